//! A disk that runs full under load: nothing acknowledged is lost, and when there is room again all goes on.
//!
//! A server that stops must have stopped cleanly. One that goes on must refuse writes with the alarm that etcd raises,
//! go on reading, and be brought back by deleting, compacting, defragmenting and disarming.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::campaign::load::{Load, Mix, Shared};
use crate::campaign::verify::verify;
use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::faultfs::FaultDisk;
use crate::faultfs::medium::Survival;
use crate::history::{History, Mutation};
use crate::messages::{self, Field, Message};
use crate::server::{Launch, Server, Subject};
use crate::setup::{Outcome, Setup};

/// Room beyond the files of a fresh start: less than the next file of the log or the store.
const ROOM_BYTES: u64 = 8 << 20;
/// Longest load until the disk is full.
const FILL_LIMIT: Duration = Duration::from_secs(30);
/// A process that gives up is gone after this long.
const EXIT_LIMIT: Duration = Duration::from_secs(2);
const NOSPACE: u64 = 1;
const DEACTIVATE: u64 = 2;
const SPACE_EXCEEDED: &str = "etcdserver: mvcc: database space exceeded";

/// The scenario.
pub(super) fn disk_full(setup: &Setup) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd has no promise about a full disk".to_owned()));
    }
    let mountpoint = setup.fresh_folder("mount")?;
    let mut disk = match FaultDisk::mount(&mountpoint) {
        Ok(disk) => disk,
        Err(error) => return Ok(Outcome::Skipped(format!("no FUSE: {error:#}"))),
    };
    let launch = Launch { data: mountpoint.join("data"), ..setup.launch()? };
    let mut server = launch.start()?;
    let shared = Arc::new(Shared::default());
    let has_stopped = fill(&mut server, &disk, &shared)?;
    disk.set_capacity(u64::MAX);
    if has_stopped {
        drop(server);
        let lossy = Survival { sectors_percent: 0, names_percent: 0, names_in_order: false };
        disk.restore_power(lossy, &mut Chance::new(setup.seed, 0))?;
        server = launch.start().context("after the disk had been full")?;
    }
    verify(server.address(), &mut shared.history(), &mut Chance::new(setup.seed, 1))?;
    runtime()?.block_on(async { Connection::open(server.address()).await?.put(b"t/room", b"again").await })?;
    server.stop(if has_stopped { &[] } else { &["space", "alarm"] })?;
    disk.unmount()?;
    Ok(match has_stopped {
        true => Outcome::Inapplicable("the server stops on a full disk instead of raising the alarm".to_owned()),
        false => Outcome::Passed,
    })
}

/// Loads until writes fail; whether the server stopped at that.
fn fill(server: &mut Server, disk: &FaultDisk, shared: &Arc<Shared>) -> Result<bool> {
    disk.set_capacity(disk.used_bytes() + ROOM_BYTES);
    let load = Load::start(shared, server.address(), Mix::Bulk, 1);
    let limit = Instant::now() + FILL_LIMIT;
    while shared.lost().is_none() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
    load.stop();
    let exit = server.wait_exit(EXIT_LIMIT);
    load.join()?;
    let reason = shared.lost().context("the disk never ran full")?;
    if let Ok(status) = exit {
        server.check_records()?;
        if status.success() || !server.log_tail(5).contains("No space left") {
            bail!("the process ended with {status} and does not say why:\n{}", server.log_tail(5));
        }
        return Ok(true);
    }
    if !reason.contains(SPACE_EXCEEDED) {
        bail!("a write on a full disk was refused with: {reason}");
    }
    let head = verify(server.address(), &mut shared.history(), &mut Chance::new(2, 0)).context("on a full disk")?;
    runtime()?.block_on(recover(server, &mut shared.history(), head))?;
    Ok(false)
}

/// What an operator does about the alarm, with the disk still full.
async fn recover(server: &Server, history: &mut History, head: u64) -> Result<()> {
    let client = Connection::open(server.address()).await?;
    let call = async |path: &str, message: Vec<u8>| -> Result<Vec<u8>> {
        let reply = client.call(path, &message).await?;
        reply.message().map(<[u8]>::to_vec).with_context(|| format!("{path} on a full disk"))
    };
    let alarms = call("/etcdserverpb.Maintenance/Alarm", Vec::new()).await?;
    let is_raised = messages::fields(&alarms)?.into_iter().any(|(field, value)| match (field, value) {
        (2, Field::Bytes(alarm)) => messages::fields(alarm).is_ok_and(|it| it.contains(&(2, Field::Number(NOSPACE)))),
        _ => false,
    });
    if !is_raised {
        bail!("writes are refused, but no alarm is raised");
    }
    history.begin(0, Mutation { changes: history.live("").into_iter().map(|key| (key, None)).collect() });
    let deleted = call("/etcdserverpb.KV/DeleteRange", messages::delete(b"\0", b"\0")).await?;
    history.acknowledge(0, messages::header_revision(&deleted)?)?;
    history.begin_compaction(head);
    call("/etcdserverpb.KV/Compact", messages::compaction(head, true)).await?;
    history.acknowledge_compaction(head);
    call("/etcdserverpb.Maintenance/Defragment", Vec::new()).await?;
    let disarm = Message::new().number(1, DEACTIVATE).number(3, NOSPACE).finish();
    call("/etcdserverpb.Maintenance/Alarm", disarm).await?;
    Ok(())
}
