//! Bugs that etcd once had, as far as they concern one member: each has a test by which it could not have come back.
//!
//! All of them can be run against etcd, which has them fixed.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::faultfs::FaultDisk;
use crate::faultfs::medium::Survival;
use crate::messages::{self, Field, Message};
use crate::server::{Launch, Server, Subject};
use crate::setup::{Outcome, Setup};

const CUTS: u64 = 12;
const KILL_LIMIT: Duration = Duration::from_secs(60);
const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";

/// A power cut right after an answer, on a cluster of one, with everything lost that was not synced (etcd #14370).
pub(super) fn power_cut_after_answers(setup: &Setup) -> Result<Outcome> {
    let mountpoint = setup.fresh_folder("mount")?;
    let mut disk = match FaultDisk::mount(&mountpoint) {
        Ok(disk) => disk,
        Err(error) => return Ok(Outcome::Skipped(format!("no FUSE: {error:#}"))),
    };
    let launch = Launch { data: mountpoint.join("data"), ..setup.launch()? };
    // etcd leaves the durability of new names to the file system's journal.
    let names_percent = if setup.subject == Subject::Etcd { 100 } else { 0 };
    let nothing = Survival { sectors_percent: 0, names_percent, names_in_order: false };
    let mut last = 0;
    for cut in 0..CUTS {
        let mut server = launch.start().with_context(|| format!("cut {cut}"))?;
        let acknowledged = runtime()?.block_on(async {
            let client = Connection::open(server.address()).await?;
            let found = head(&client).await?;
            if found < last {
                bail!("cut {cut}: revision {last} was acknowledged, the server is at {found}");
            }
            for number in 0..=cut {
                last = client.put(format!("cut/{cut:02}/{number:02}").as_bytes(), b"v").await?;
            }
            // No request under way hides behind another.
            disk.freeze();
            Ok(last)
        });
        // Whatever came of it, the process must not be waited for on a frozen disk.
        server.signal_kill()?;
        disk.drop_requests();
        server.wait_exit(KILL_LIMIT)?;
        last = acknowledged?;
        drop(server);
        disk.restore_power(nothing, &mut Chance::new(setup.seed, cut))?;
    }
    let server = launch.start()?;
    let keys = runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        client.range(b"cut/", b"cut0").await
    })?;
    server.stop(&[])?;
    disk.unmount()?;
    let wanted = CUTS * (CUTS + 1) / 2;
    if keys.len() as u64 != wanted || keys.iter().map(|pair| pair.mod_revision).max() != Some(last) {
        bail!("{} of {wanted} acknowledged keys are there", keys.len());
    }
    Ok(Outcome::Passed)
}

/// The newest revision is a deletion, all is compacted away, the process is killed: revisions do not go back
/// (etcd #17780).
pub(super) fn tombstone_at_head_compacted(setup: &Setup) -> Result<Outcome> {
    let launch = setup.launch()?;
    let mut last = 1;
    for round in 0..6_u64 {
        let mut server = launch.start()?;
        let wanted = last;
        last = runtime()?.block_on(async {
            let client = Connection::open(server.address()).await?;
            let found = head(&client).await?;
            if found != wanted {
                bail!("round {round}: the newest revision was {wanted} and is {found}");
            }
            for number in 0..=round {
                client.put(format!("key/{number}").as_bytes(), b"v").await?;
            }
            let deleted = ask(&client, "/etcdserverpb.KV/DeleteRange", &messages::delete(b"key/", b"key0")).await?;
            let last = messages::header_revision(&deleted)?;
            let physical = round % 2 == 0;
            ask(&client, "/etcdserverpb.KV/Compact", &messages::compaction(last, physical)).await?;
            if round % 3 == 2 {
                defragment(&client).await?;
            }
            Ok(last)
        })?;
        server.kill()?;
        server.check(&[])?;
    }
    Ok(Outcome::Passed)
}

/// A compaction exactly at a deletion: what is seen at that revision and the hash of it are the same before and after a
/// restart (etcd #18089).
pub(super) fn tombstone_at_compaction(setup: &Setup) -> Result<Outcome> {
    let launch = setup.launch()?;
    let mut server = launch.start()?;
    let (compacted, newest) = runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        for value in [b"1", b"2"] {
            client.put(b"gone", value).await?;
            client.put(b"stays", value).await?;
        }
        let deleted = ask(&client, "/etcdserverpb.KV/DeleteRange", &messages::delete(b"gone", b"")).await?;
        let compacted = messages::header_revision(&deleted)?;
        let newest = client.put(b"gone", b"back").await?;
        ask(&client, "/etcdserverpb.KV/Compact", &messages::compaction(compacted, true)).await?;
        Ok::<_, anyhow::Error>((compacted, newest))
    })?;
    server = restarted(&launch, server)?;
    let before = picture(&server, compacted, newest)?;
    if before.keys != [vec!["stays"], vec!["gone", "stays"]] {
        bail!("at the compaction and after it there are {:?}", before.keys);
    }
    server = restarted(&launch, server)?;
    let after = picture(&server, compacted, newest)?;
    if after != before {
        bail!("before and after a restart: {before:?}, {after:?}");
    }
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

/// Keys made and deleted again and again, compacted away while that goes on, killed: what was deleted stays deleted,
/// what was made is there, and hashes are those from before (etcd #19179).
pub(super) fn deleted_keys_after_restart(setup: &Setup) -> Result<Outcome> {
    const KEYS: u64 = 400;
    let launch = setup.launch()?;
    let mut server = launch.start()?;
    for round in 0..3_u64 {
        let (compacted, newest) = runtime()?.block_on(async {
            let client = Connection::open(server.address()).await?;
            let mut middle = 0;
            for number in 0..KEYS {
                let key = format!("key/{number:04}");
                client.put(key.as_bytes(), b"v").await?;
                // Every fourth key stays.
                if number % 4 != round {
                    let delete = messages::delete(key.as_bytes(), b"");
                    let deleted = ask(&client, "/etcdserverpb.KV/DeleteRange", &delete).await?;
                    let revision = messages::header_revision(&deleted)?;
                    middle = if number < KEYS / 2 { revision } else { middle };
                }
            }
            ask(&client, "/etcdserverpb.KV/Compact", &messages::compaction(middle, round % 2 == 1)).await?;
            Ok::<_, anyhow::Error>((middle, head(&client).await?))
        })?;
        server = restarted(&launch, server)?;
        let before = picture(&server, compacted, newest)?;
        server = restarted(&launch, server)?;
        let after = picture(&server, compacted, newest)?;
        let stay: Vec<String> = (0..KEYS).filter(|it| it % 4 == round).map(|it| format!("key/{it:04}")).collect();
        if after.keys[1] != stay {
            bail!("round {round}: {} keys instead of {} are there", after.keys[1].len(), stay.len());
        }
        if after != before {
            bail!("round {round}: a restart changed what is seen at {compacted} or {newest}, or a hash");
        }
    }
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

/// What clients see at two revisions.
#[derive(Debug, PartialEq, Eq)]
struct Picture {
    keys: [Vec<String>; 2],
    hashes: [u64; 2],
}

fn picture(server: &Server, compacted: u64, newest: u64) -> Result<Picture> {
    runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        let mut picture = Picture { keys: [Vec::new(), Vec::new()], hashes: [0, 0] };
        for (place, revision) in [compacted, newest].into_iter().enumerate() {
            let answer = ask(&client, "/etcdserverpb.KV/Range", &messages::range_at(b"\0", b"\0", revision)).await?;
            let pairs = messages::range_response(&answer)?;
            picture.keys[place] = pairs.iter().map(|pair| String::from_utf8_lossy(&pair.key).into_owned()).collect();
            picture.hashes[place] = hash(&client, revision).await?;
        }
        Ok(picture)
    })
}

async fn hash(client: &Connection, revision: u64) -> Result<u64> {
    let answer = ask(client, HASH_KV, &Message::new().number(1, revision).finish()).await?;
    let found = messages::fields(&answer)?.into_iter().find_map(|field| match field {
        (2, Field::Number(hash)) => Some(hash),
        _ => None,
    });
    found.context("an answer without a hash")
}

async fn defragment(client: &Connection) -> Result<()> {
    ask(client, "/etcdserverpb.Maintenance/Defragment", &[]).await.map(drop)
}

async fn ask(client: &Connection, path: &str, message: &[u8]) -> Result<Vec<u8>> {
    let reply = client.call(path, message).await;
    reply.and_then(|reply| reply.message().map(<[u8]>::to_vec)).with_context(|| path.to_owned())
}

async fn head(client: &Connection) -> Result<u64> {
    let answer = ask(client, "/etcdserverpb.KV/Range", &messages::range(b"head", b"")).await?;
    messages::header_revision(&answer)
}

/// Killed and started again.
fn restarted(launch: &Launch, mut server: Server) -> Result<Server> {
    server.check(&[])?;
    server.kill()?;
    launch.start()
}
