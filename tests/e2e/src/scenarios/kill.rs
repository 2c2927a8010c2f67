//! kill -9 under load: whatever was acknowledged is there afterwards, with the same revision.
//!
//! I1  An acknowledgement is noted before the next request of its stream is sent, so a key whose put was cut off is
//!     known to be in doubt, and at most one per stream is.
//! I2  Keys written once must come back with exactly the acknowledged value and revision; hot keys, which every round
//!     overwrites, must show the last acknowledged put or the one in doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::{Connection, runtime};
use crate::messages::KeyValue;
use crate::server::Server;
use crate::setup::{Outcome, Setup};

const CONNECTIONS: usize = 4;
const STREAMS: usize = 8;
/// Acknowledged puts before the server is killed in the middle of more.
const PUTS_PER_CYCLE: u64 = 1000;
/// Between full checks, keys of this many cycles are read back: a campaign must not grow with its square.
const CYCLES_READ_BACK: u64 = 5;
/// Everything is read back after so many cycles, and at the end.
const FULL_CHECK_EVERY: u64 = 50;
/// Longest wait for them.
const LOAD_SECONDS_MAX: u64 = 200;

/// Everything acknowledged or in doubt, over all cycles.
#[derive(Debug, Default)]
struct Journal {
    /// Key written once -> (revision, value).
    acknowledged: BTreeMap<String, (u64, String)>,
    /// Hot key -> the last acknowledged (revision, value).
    hot: BTreeMap<String, (u64, String)>,
    /// Hot key -> the value in doubt.
    doubtful: BTreeMap<String, String>,
}

/// The journal and the counters the load shares with the test.
#[derive(Debug, Default)]
struct Shared {
    journal: Mutex<Journal>,
    puts: AtomicU64,
    killed: AtomicBool,
}

impl Shared {
    fn journal(&self) -> std::sync::MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The scenario; `--cycles` says how often.
pub(super) fn kill_under_load(setup: &Setup) -> Result<Outcome> {
    let launch = setup.launch()?;
    let shared = Arc::new(Shared::default());
    for cycle in 0..setup.cycles {
        let mut server = launch.start().with_context(|| format!("cycle {cycle}"))?;
        let first = if cycle % FULL_CHECK_EVERY == 0 { 0 } else { cycle.saturating_sub(CYCLES_READ_BACK) };
        verify(&server, &shared, first..cycle).with_context(|| format!("after {cycle} cycles"))?;
        load_and_kill(&mut server, &shared, cycle).with_context(|| format!("cycle {cycle}"))?;
        server.check(&[]).with_context(|| format!("cycle {cycle}"))?;
    }
    let server = launch.start()?;
    verify(&server, &shared, 0..setup.cycles)?;
    server.stop(&[])?;
    let acknowledged = shared.journal().acknowledged.len();
    println!("         {acknowledged} acknowledged keys survived {} kills", setup.cycles);
    Ok(Outcome::Passed)
}

fn load_and_kill(server: &mut Server, shared: &Arc<Shared>, cycle: u64) -> Result<()> {
    shared.puts.store(0, Ordering::Relaxed);
    shared.killed.store(false, Ordering::Relaxed);
    let address = server.address();
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|connection| {
            let shared = Arc::clone(shared);
            std::thread::spawn(move || drive(address, &shared, cycle, connection))
        })
        .collect();
    let limit = Instant::now() + Duration::from_secs(LOAD_SECONDS_MAX);
    while shared.puts.load(Ordering::Relaxed) < PUTS_PER_CYCLE && threads.iter().any(|thread| !thread.is_finished()) {
        if Instant::now() > limit {
            bail!("{PUTS_PER_CYCLE} puts were not acknowledged in {LOAD_SECONDS_MAX} s");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    shared.killed.store(true, Ordering::Relaxed);
    server.kill()?;
    for thread in threads {
        thread.join().ok().context("a load thread panicked")??;
    }
    let puts = shared.puts.load(Ordering::Relaxed);
    if puts < PUTS_PER_CYCLE {
        bail!("only {puts} puts were acknowledged");
    }
    Ok(())
}

/// One connection with several streams, each a closed loop, until the server is gone.
fn drive(address: SocketAddr, shared: &Arc<Shared>, cycle: u64, connection: usize) -> Result<()> {
    runtime()?.block_on(async {
        let client = Connection::open(address).await?;
        let streams: Vec<_> = (0..STREAMS)
            .map(|stream| tokio::spawn(put_until_killed(client.clone(), Arc::clone(shared), cycle, connection, stream)))
            .collect();
        for stream in streams {
            stream.await??;
        }
        Ok(())
    })
}

async fn put_until_killed(
    client: Connection,
    shared: Arc<Shared>,
    cycle: u64,
    connection: usize,
    stream: usize,
) -> Result<()> {
    let hot = format!("hot/{connection}-{stream}");
    for number in 0_u64.. {
        let is_hot = number % 4 == 0;
        let key = if is_hot { hot.clone() } else { format!("{}-{connection}-{stream}-{number:06}", cycle_key(cycle)) };
        let value = format!("value {cycle} {number} {}", "x".repeat((number % 7 * 97) as usize));
        if is_hot {
            shared.journal().doubtful.insert(key.clone(), value.clone());
        }
        let revision = match client.put(key.as_bytes(), value.as_bytes()).await {
            Ok(revision) => revision,
            Err(_) if shared.killed.load(Ordering::Relaxed) => return Ok(()),
            Err(error) => return Err(error).context("a put failed before the kill"),
        };
        let mut journal = shared.journal();
        if is_hot {
            journal.doubtful.remove(&key);
            journal.hot.insert(key, (revision, value));
        } else {
            journal.acknowledged.insert(key, (revision, value));
        }
        drop(journal);
        shared.puts.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Compares the keys of these cycles and the hot keys with the journal, then settles what was in doubt.
fn verify(server: &Server, shared: &Shared, cycles: Range<u64>) -> Result<()> {
    let (once, hot) = runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        let mut once = Vec::new();
        for cycle in cycles.clone() {
            let (from, to) = (cycle_key(cycle), cycle_key(cycle + 1));
            once.extend(client.range(from.as_bytes(), to.as_bytes()).await?);
        }
        Ok::<_, anyhow::Error>((once, client.range(b"hot/", b"hot0").await?))
    })?;
    let mut journal = shared.journal();
    check_once(journal.acknowledged.range(cycle_key(cycles.start)..cycle_key(cycles.end)), &once)?;
    check_hot(&mut journal, &hot)?;
    check_revisions(once.iter().chain(&hot))
}

/// What every key of a cycle begins with; keys sort by cycle.
fn cycle_key(cycle: u64) -> String {
    format!("once/{cycle:05}")
}

fn check_once<'a>(
    acknowledged: impl Iterator<Item = (&'a String, &'a (u64, String))>,
    found: &[KeyValue],
) -> Result<()> {
    let found: BTreeMap<String, &KeyValue> =
        found.iter().map(|pair| (String::from_utf8_lossy(&pair.key).into_owned(), pair)).collect();
    for (key, (revision, value)) in acknowledged {
        match found.get(key) {
            None => bail!("{key} was acknowledged at revision {revision} and is gone"),
            Some(pair) if pair.mod_revision != *revision => {
                bail!("{key} was acknowledged at revision {revision} and came back at {}", pair.mod_revision)
            }
            Some(pair) if pair.value != value.as_bytes() => bail!("{key} came back with another value"),
            Some(pair) if pair.version != 1 || pair.create_revision != *revision => {
                bail!("{key} was put once and came back as version {}", pair.version)
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn check_hot(journal: &mut Journal, found: &[KeyValue]) -> Result<()> {
    let found: BTreeMap<String, &KeyValue> =
        found.iter().map(|pair| (String::from_utf8_lossy(&pair.key).into_owned(), pair)).collect();
    for (key, (revision, value)) in &journal.hot {
        let Some(pair) = found.get(key) else { bail!("{key} was acknowledged and is gone") };
        let last = pair.mod_revision == *revision && pair.value == value.as_bytes();
        let doubtful = journal.doubtful.get(key).is_some_and(|value| pair.value == value.as_bytes());
        let legal = last || doubtful && pair.mod_revision > *revision;
        if !legal {
            bail!("{key}: acknowledged at revision {revision}, found an unknown state at {}", pair.mod_revision);
        }
    }
    // What was in doubt has been decided by what is there now.
    journal.doubtful.clear();
    for (key, pair) in found {
        journal.hot.insert(key, (pair.mod_revision, String::from_utf8_lossy(&pair.value).into_owned()));
    }
    Ok(())
}

/// Puts change one key each, so no two keys share a revision.
fn check_revisions<'a>(pairs: impl Iterator<Item = &'a KeyValue>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for pair in pairs {
        if !seen.insert(pair.mod_revision) {
            bail!("two keys carry revision {}", pair.mod_revision);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str, revision: u64) -> KeyValue {
        let (key, value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        KeyValue { key, value, mod_revision: revision, create_revision: revision, version: 1 }
    }

    fn journal() -> Journal {
        let mut journal = Journal::default();
        journal.acknowledged.insert("once/a".to_owned(), (7, "v".to_owned()));
        journal.hot.insert("hot/a".to_owned(), (8, "w".to_owned()));
        journal.doubtful.insert("hot/a".to_owned(), "w2".to_owned());
        journal
    }

    #[test]
    fn a_lost_moved_or_changed_key_is_found() {
        assert!(check_once(journal().acknowledged.iter(), &[pair("once/a", "v", 7)]).is_ok());
        let more = [pair("once/a", "v", 7), pair("once/b", "doubtful", 9)];
        assert!(check_once(journal().acknowledged.iter(), &more).is_ok());
        for found in [vec![], vec![pair("once/a", "v", 8)], vec![pair("once/a", "x", 7)]] {
            assert!(check_once(journal().acknowledged.iter(), &found).is_err());
        }
    }

    #[test]
    fn a_hot_key_may_show_the_last_or_the_doubtful_put_only() {
        assert!(check_hot(&mut journal(), &[pair("hot/a", "w", 8)]).is_ok());
        assert!(check_hot(&mut journal(), &[pair("hot/a", "w2", 9)]).is_ok());
        for found in [vec![], vec![pair("hot/a", "old", 5)], vec![pair("hot/a", "w2", 8)], vec![pair("hot/a", "w", 9)]]
        {
            assert!(check_hot(&mut journal(), &found).is_err());
        }
    }

    #[test]
    fn a_revision_used_twice_is_found() {
        assert!(check_revisions([pair("a", "", 3), pair("b", "", 4)].iter()).is_ok());
        assert!(check_revisions([pair("a", "", 3), pair("b", "", 3)].iter()).is_err());
    }
}
