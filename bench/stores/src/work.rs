//! What every store is asked, and what its answers must be.
//!
//! Owns: keys, values, the order of operations, sizes of batches, the figures. Does not know: any store.
//!
//! Invariants
//! - I1: every store gets the same operations in the same order; every answer is compared with what was written.
//! - I2: a value says which key and which generation it belongs to, so a stale or misplaced one is found.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 64;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 256;
/// Keys of one durable commit while loading.
pub(crate) const LOAD_BATCH: u64 = 10_000;
/// Fewer keys than one batch would not be a load.
pub(crate) const KEYS_MIN: u64 = LOAD_BATCH;
/// Random lookups.
pub(crate) const LOOKUPS: u64 = 1_000_000;
/// Keys of one durable commit while updating.
pub(crate) const UPDATE_BATCH: u64 = 100;
/// Room for a store that maps its whole file.
pub(crate) const MAP_BYTES: usize = 16 << 30;

/// One run's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Number of different keys.
    pub(crate) keys: u64,
    /// Durable commits of [`UPDATE_BATCH`] random keys, and then as many of one.
    pub(crate) commits: u64,
}

impl Work {
    /// The number of the key that is loaded as the `position`-th: every key once, in no order.
    pub(crate) fn load_order(&self, position: u64) -> u64 {
        let stride = (self.keys * 5 / 8..).find(|&stride| gcd(stride, self.keys) == 1);
        let stride = stride.expect("numbers prime to the number of keys exist");
        ((u128::from(position) * u128::from(stride)) % u128::from(self.keys)) as u64
    }

    /// Positions of the batches of the load.
    pub(crate) fn load_batches(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let keys = self.keys;
        (0..keys.div_ceil(LOAD_BATCH)).map(move |batch| batch * LOAD_BATCH..((batch + 1) * LOAD_BATCH).min(keys))
    }

    /// Random lookups of this run.
    pub(crate) fn lookups(&self) -> u64 {
        LOOKUPS.min(self.keys)
    }

    /// The number of the `index`-th random key.
    pub(crate) fn random_key(&self, index: u64) -> u64 {
        // SplitMix64's output function, scaled to the number of keys.
        let mut mixed = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * u128::from(self.keys)) >> 64) as u64
    }
}

fn gcd(left: u64, right: u64) -> u64 {
    if right == 0 { left } else { gcd(right, left % right) }
}

/// The key of a number: decimal digits, so that number order is key order.
pub(crate) fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = [b'0'; KEY_BYTES];
    let mut rest = number;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// The value a key gets; generation 0 is the load's.
pub(crate) fn value(number: u64, generation: u64) -> [u8; VALUE_BYTES] {
    let mut value = [b'v'; VALUE_BYTES];
    value[..8].copy_from_slice(&number.to_le_bytes());
    value[8..16].copy_from_slice(&generation.to_le_bytes());
    value
}

/// Whether a loaded key has its value.
pub(crate) fn check_loaded(number: u64, found: Option<&[u8]>) -> Result<()> {
    if found != Some(&value(number, 0)[..]) {
        bail!("key {number} has another value than the one it was loaded with");
    }
    Ok(())
}

/// Whether the next pair of a scan is the right one.
pub(crate) fn check_scanned(number: u64, found_key: &[u8], found_value: &[u8]) -> Result<()> {
    if found_key != key(number) {
        bail!("a scan found another key in place {number}");
    }
    check_loaded(number, Some(found_value))
}

/// What a store achieved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Rows a second of the load.
    pub(crate) load_per_second: f64,
    /// Rows a second of a scan in key order, after one that is not counted.
    pub(crate) scan_per_second: f64,
    /// Random lookups a second, value included.
    pub(crate) lookups_per_second: f64,
    /// Rows a second of durable batches.
    pub(crate) batch_rows_per_second: f64,
    /// Durable commits of one row a second.
    pub(crate) single_commits_per_second: f64,
    /// What the folder takes up on the disk after all of it, in MiB.
    pub(crate) disk_mib: f64,
}

impl Figures {
    /// Names of [`Self::values`].
    pub(crate) const LABELS: [&'static str; 6] = [
        "bulk load in random order, 10,000 rows a durable commit, rows/s",
        "scan in key order, warm, rows/s",
        "random lookup, warm, /s",
        "random updates, 100 rows a durable commit, rows/s",
        "random updates, one row a durable commit, /s",
        "on disk afterwards, MiB",
    ];

    pub(crate) fn values(&self) -> [f64; 6] {
        [
            self.load_per_second,
            self.scan_per_second,
            self.lookups_per_second,
            self.batch_rows_per_second,
            self.single_commits_per_second,
            self.disk_mib,
        ]
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "load_per_second": self.load_per_second.round(),
            "scan_per_second": self.scan_per_second.round(),
            "lookups_per_second": self.lookups_per_second.round(),
            "batch_rows_per_second": self.batch_rows_per_second.round(),
            "single_commits_per_second": self.single_commits_per_second.round(),
            "disk_mib": self.disk_mib.round(),
        })
    }
}

/// A store whose calls return when the work is done.
pub(crate) trait Blocking {
    /// Writes rows (number of the key, generation of its value) and makes them durable, all or none.
    fn commit(&mut self, rows: &mut dyn Iterator<Item = (u64, u64)>) -> Result<()>;
    /// Looks keys up that were loaded, and checks their values.
    fn look_up(&mut self, numbers: &mut dyn Iterator<Item = u64>) -> Result<()>;
    /// Walks over all keys in order, checks each, and returns how many there are.
    fn scan(&mut self) -> Result<u64>;
}

/// Puts the work to a store.
pub(crate) fn drive(store: &mut dyn Blocking, folder: &Path, work: &Work) -> Result<Figures> {
    let load = timed(|| {
        work.load_batches()
            .try_for_each(|batch| store.commit(&mut batch.map(|position| (work.load_order(position), 0))))
    })?;
    let mut scan = Duration::ZERO;
    // The first one brings everything into memory.
    for _ in 0..2 {
        scan = timed(|| {
            let rows = store.scan()?;
            if rows != work.keys {
                bail!("a scan found {rows} of {} keys", work.keys);
            }
            Ok(())
        })?;
    }
    let lookups = timed(|| store.look_up(&mut (0..work.lookups()).map(|index| work.random_key(index))))?;
    let batches = timed(|| {
        (0..work.commits).try_for_each(|commit| {
            store.commit(&mut (0..UPDATE_BATCH).map(|row| (work.random_key(commit * UPDATE_BATCH + row), 1)))
        })
    })?;
    let singles = timed(|| {
        (0..work.commits).try_for_each(|commit| store.commit(&mut std::iter::once((work.random_key(commit), 2))))
    })?;
    let times = Times { load, scan, lookups, batches, singles };
    Ok(times.figures(work, disk_mib(folder)?))
}

fn timed(task: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    task()?;
    Ok(started.elapsed())
}

/// How long each part took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) load: Duration,
    pub(crate) scan: Duration,
    pub(crate) lookups: Duration,
    pub(crate) batches: Duration,
    pub(crate) singles: Duration,
}

impl Times {
    pub(crate) fn figures(&self, work: &Work, disk_mib: f64) -> Figures {
        Figures {
            load_per_second: per_second(work.keys, self.load),
            scan_per_second: per_second(work.keys, self.scan),
            lookups_per_second: per_second(work.lookups(), self.lookups),
            batch_rows_per_second: per_second(work.commits * UPDATE_BATCH, self.batches),
            single_commits_per_second: per_second(work.commits, self.singles),
            disk_mib,
        }
    }
}

/// How many of `count` fit into a second.
fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// MiB that a folder's files take up on the disk, holes left out.
pub(crate) fn disk_mib(folder: &Path) -> Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let facts = entry.metadata()?;
        bytes += if facts.is_dir() { disk_mib(&entry.path())? } else { facts.blocks() as f64 / 2048.0 };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_names_every_key_once() {
        let work = Work { keys: 12_345, commits: 1 };
        let mut seen: Vec<u64> = work.load_batches().flatten().map(|position| work.load_order(position)).collect();
        assert!(seen.windows(2).any(|pair| pair[0] > pair[1]), "not in order");
        seen.sort_unstable();
        assert_eq!(seen, (0..12_345).collect::<Vec<_>>());
    }

    #[test]
    fn a_wrong_answer_is_found() {
        assert!(check_loaded(7, Some(&value(7, 0))).is_ok());
        for wrong in [None, Some(&value(7, 1)[..]), Some(&value(8, 0)[..]), Some(&value(7, 0)[1..])] {
            assert!(check_loaded(7, wrong).is_err());
        }
        assert!(check_scanned(7, &key(7), &value(7, 0)).is_ok());
        assert!(check_scanned(7, &key(8), &value(7, 0)).is_err());
    }
}
