//! More data than memory may hold: everything is read right, and memory stays within its budget.

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::server::{Launch, Server, Subject};
use crate::setup::{Outcome, Setup};

const CACHE_BYTES: u64 = 16 << 20;
/// Twelve times the cache: most reads go to the disk.
const KEYS: u64 = 12 * CACHE_BYTES / VALUE_BYTES as u64;
const VALUE_BYTES: usize = 16 << 10;
const READS: u64 = 6000;
const WORKERS: u64 = 8;
/// Beyond the cache, of files: the program itself, and what is on its way.
const FILES_SLACK_BYTES: u64 = 16 << 20;
/// Beyond the cache, in all.
const SLACK_BYTES: u64 = 256 << 20;

/// The scenario.
pub(super) fn more_than_memory(setup: &Setup) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd maps all it stores".to_owned()));
    }
    let launch = Launch { flags: vec![format!("--cache-bytes={CACHE_BYTES}")], ..setup.launch()? };
    let mut server = launch.start()?;
    share(&server, |client, _, worker| {
        let mut numbers = (worker..KEYS).step_by(WORKERS as usize);
        numbers.try_for_each(|number| {
            client.runtime.block_on(client.connection.put(&key(number), &value(number))).map(drop)
        })
    })?;
    share(&server, |client, chance, _| read_at_random(&server, client, chance))?;
    // What is in memory after a start came from the disk.
    server.kill()?;
    let server = launch.start()?;
    share(&server, |client, chance, _| read_at_random(&server, client, chance))?;
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

struct Client {
    runtime: Runtime,
    connection: Connection,
}

/// Does the work on several connections at once.
fn share(server: &Server, work: impl Fn(&Client, &mut Chance, u64) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let work = &work;
                scope.spawn(move || {
                    let runtime = runtime()?;
                    let connection = runtime.block_on(Connection::open(server.address()))?;
                    work(&Client { runtime, connection }, &mut Chance::new(worker, 0), worker)
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().ok().context("a worker panicked")?)
    })
}

/// Reads keys drawn at random, and looks at the process's memory between.
fn read_at_random(server: &Server, client: &Client, chance: &mut Chance) -> Result<()> {
    for read in 0..READS / WORKERS {
        let number = chance.below(KEYS);
        let found = client.runtime.block_on(client.connection.range(&key(number), b""))?;
        let [pair] = &found[..] else { bail!("key {number}: {} answers", found.len()) };
        if pair.value[..] != value(number) {
            bail!("key {number} has another value");
        }
        if read % 32 > 0 {
            continue;
        }
        let (files, all) = (server.memory("RssFile")?, server.memory("VmRSS")?);
        if files > CACHE_BYTES + FILES_SLACK_BYTES || all > CACHE_BYTES + SLACK_BYTES {
            bail!("a cache of {CACHE_BYTES} bytes, but {files} bytes of files in memory, {all} in all");
        }
    }
    Ok(())
}

fn key(number: u64) -> Vec<u8> {
    // Neighbours are far apart in the order in which they are written.
    format!("residency/{:08x}", (number as u32).reverse_bits()).into_bytes()
}

/// Every value is its own.
fn value(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(VALUE_BYTES);
    while bytes.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
