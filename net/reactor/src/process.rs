//! What the operating system says of this process.
//!
//! Owns: reading it, from `/proc` and the limits. Does not know: who asks. It is asked for rarely, by a scraper: a few
//! small reads that no disk is behind.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys::{Resource, limit};

/// The kernel counts CPU time for users in hundredths of a second, on every architecture.
const TICK_NANOSECONDS: u64 = 10_000_000;

/// Figures of the process; what cannot be read is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessStats {
    /// CPU time of all threads, in nanoseconds.
    pub cpu_time: u64,
    /// When the process began, in nanoseconds since the Unix epoch.
    pub start_time: u64,
    /// Resident memory, mapped pages included.
    pub resident_bytes: u64,
    /// Address space in use.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// How many there may be.
    pub open_files_max: u64,
}

/// Reads the figures of the process that began at `start`.
pub(crate) fn read(start: SystemTime) -> ProcessStats {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let since_epoch = start.duration_since(UNIX_EPOCH).unwrap_or_default();
    ProcessStats {
        cpu_time: cpu_ticks(&stat).saturating_mul(TICK_NANOSECONDS),
        start_time: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
        resident_bytes: kilobytes(&status, "VmRSS:") << 10,
        virtual_bytes: kilobytes(&status, "VmSize:") << 10,
        open_files: open_files(),
        open_files_max: limit(Resource::OpenFiles).map_or(0, |limit| limit.soft),
    }
}

/// User and system time, the 14th and 15th field; the second is a name in parentheses that may hold anything.
fn cpu_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn kilobytes(status: &str, field: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(field));
    value.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

/// Since Linux 6.2 the size of the directory; before, its entries have to be counted.
fn open_files() -> u64 {
    match fs::metadata("/proc/self/fd").map_or(0, |metadata| metadata.len()) {
        // One of the entries is the directory being read.
        0 => fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1)),
        count => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_name() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3 0 100 200 300";
        assert_eq!(cpu_ticks(stat), 300);
        assert_eq!(cpu_ticks(""), 0);
        let status = "Name:\tx\nVmSize:\t   2048 kB\nVmRSS:\t     12 kB\n";
        assert_eq!((kilobytes(status, "VmSize:"), kilobytes(status, "VmRSS:")), (2_048, 12));
        assert_eq!(kilobytes(status, "VmSwap:"), 0);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let before = read(UNIX_EPOCH);
        let held: Vec<_> = (0..10).filter_map(|_| fs::File::open("/proc/self/stat").ok()).collect();
        let after = read(UNIX_EPOCH);
        assert!(after.resident_bytes > 0 && after.virtual_bytes >= after.resident_bytes);
        assert!(after.open_files >= before.open_files.min(3) + 5, "{held:?}");
        assert!(after.open_files_max >= after.open_files && after.start_time == 0);
    }
}
