//! A disk that runs full under load: the server goes on, refuses writes with the alarm that etcd raises, reads, loses
//! nothing acknowledged, and is brought back by deleting, compacting and defragmenting, and by disarming once there is
//! room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::campaign::load::{Load, Mix, Shared};
use crate::campaign::verify::verify;
use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::faultfs::FaultDisk;
use crate::history::{History, Mutation};
use crate::messages::{self, Field, Message};
use crate::server::{Launch, Server, Subject};
use crate::setup::{Outcome, Setup};

/// Room beyond the files of a fresh start: less than the next file of the log or the store.
const ROOM_BYTES: u64 = 8 << 20;
/// Longest load until the disk is full.
const FILL_LIMIT: Duration = Duration::from_secs(90);
/// The server must have noticed after this long that there is room.
const NOTICE_LIMIT: Duration = Duration::from_secs(90);
const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const NOSPACE: u64 = 1;
const DEACTIVATE: u64 = 2;
const SPACE_EXCEEDED: &str = "etcdserver: mvcc: database space exceeded";

/// The scenario.
pub(super) fn disk_full(setup: &Setup) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd has no promise about a full disk".to_owned()));
    }
    let mountpoint = setup.fresh_folder("mount")?;
    let disk = match FaultDisk::mount(&mountpoint) {
        Ok(disk) => disk,
        Err(error) => return Ok(Outcome::Skipped(format!("no FUSE: {error:#}"))),
    };
    let launch = Launch { data: mountpoint.join("data"), ..setup.launch()? };
    let mut server = launch.start()?;
    let shared = Arc::new(Shared::default());
    fill(&mut server, &disk, &shared)?;
    disk.set_capacity(u64::MAX);
    let tail = || format!("there is room again; the log ends with\n{}", server.log_tail(8));
    verify(server.address(), &mut shared.history(), &mut Chance::new(setup.seed, 1)).with_context(tail)?;
    runtime()?.block_on(disarm_until_put(&server)).with_context(tail)?;
    server.stop(&["the disk is full"])?;
    disk.unmount()?;
    Ok(Outcome::Passed)
}

/// Loads until writes fail, and does what an operator would.
fn fill(server: &mut Server, disk: &FaultDisk, shared: &Arc<Shared>) -> Result<()> {
    disk.set_capacity(disk.used_bytes() + ROOM_BYTES);
    let load = Load::start(shared, server.address(), Mix::Bulk, 1);
    let limit = Instant::now() + FILL_LIMIT;
    while shared.lost().is_none() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
    load.join()?;
    let reason = shared.lost().context("the disk never ran full")?;
    server.check(&["the disk is full"])?;
    if !reason.contains(SPACE_EXCEEDED) {
        bail!("a write on a full disk was refused with: {reason}");
    }
    let head = verify(server.address(), &mut shared.history(), &mut Chance::new(2, 0));
    let head = head.with_context(|| format!("on a full disk; the log ends with\n{}", server.log_tail(8)))?;
    runtime()?.block_on(recover(server, &mut shared.history(), head))
}

/// What an operator does about the alarm, with the disk still full.
async fn recover(server: &Server, history: &mut History, head: u64) -> Result<()> {
    let client = Connection::open(server.address()).await?;
    let call = async |path: &str, message: Vec<u8>| -> Result<Vec<u8>> {
        let reply = client.call(path, &message).await;
        let answer = reply.and_then(|reply| reply.message().map(<[u8]>::to_vec));
        answer.with_context(|| format!("{path} on a full disk; the log ends with\n{}", server.log_tail(8)))
    };
    if raised(&call(ALARM, Vec::new()).await?)?.is_none() {
        bail!("writes are refused, but no alarm is raised");
    }
    let live = history.live("");
    if live.is_empty() {
        return Ok(());
    }
    history.begin(0, Mutation { changes: live.into_iter().map(|key| (key, None)).collect() });
    let deleted = call("/etcdserverpb.KV/DeleteRange", messages::delete(b"\0", b"\0")).await?;
    history.acknowledge(0, messages::header_revision(&deleted)?)?;
    history.begin_compaction(head);
    call("/etcdserverpb.KV/Compact", messages::compaction(head, true)).await?;
    history.acknowledge_compaction(head);
    call("/etcdserverpb.Maintenance/Defragment", Vec::new()).await?;
    Ok(())
}

/// The alarm can be put out for good once the server has noticed that there is room.
async fn disarm_until_put(server: &Server) -> Result<()> {
    let client = Connection::open(server.address()).await?;
    let limit = Instant::now() + NOTICE_LIMIT;
    loop {
        let alarms = client.call(ALARM, &[]).await.context("alarm")?;
        if let Some(member) = raised(alarms.message()?)? {
            let disarm = Message::new().number(1, DEACTIVATE).number(2, member).number(3, NOSPACE).finish();
            client.call(ALARM, &disarm).await.context("disarm")?.message()?;
        }
        match client.call("/etcdserverpb.KV/Put", &messages::put(b"t/room", b"again")).await.context("put")?.message() {
            Err(error) if Instant::now() > limit => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(_) => return Ok(()),
        }
    }
}

/// The member that has raised the alarm for space.
fn raised(alarms: &[u8]) -> Result<Option<u64>> {
    for (field, value) in messages::fields(alarms)? {
        if let (2, Field::Bytes(alarm)) = (field, value)
            && let [(1, Field::Number(member)), (2, Field::Number(NOSPACE))] = messages::fields(alarm)?[..]
        {
            return Ok(Some(member));
        }
    }
    Ok(None)
}
