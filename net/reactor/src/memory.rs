//! How much memory this process may use: the machine's, or less if a control group says so.
//!
//! Owns: where the kernel tells and what its words mean (cgroup v1 and v2). Does not know: what the memory is for.
//!
//! Invariant I1: what cannot be read limits nothing.

use std::fs;
use std::path::Path;

/// Bytes of memory available to this process in all: the least of the machine's and of its control groups' limits.
#[must_use]
pub fn memory_bytes() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    limit(&read)
}

fn limit(read: &dyn Fn(&Path) -> Option<String>) -> u64 {
    let machine = read(Path::new("/proc/meminfo")).as_deref().and_then(machine_bytes).unwrap_or(u64::MAX);
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group_bytes(line, read));
    limits.fold(machine, u64::min)
}

/// `MemTotal:       16384 kB`
fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit of one hierarchy: `0::/path` is cgroup v2, `4:memory:/path` the memory controller of v1. A group's
/// ancestors limit it too; in a container the path may not be visible, but the root then is the container's group.
fn group_bytes(line: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, name) = if controllers.is_empty() {
        ("/sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    let inside = Path::new(path.trim_start_matches('/'));
    let groups = inside.ancestors().map(|group| Path::new(root).join(group).join(name));
    // `max` is no number, and no limit.
    groups.filter_map(|file| read(&file)?.trim().parse::<u64>().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(files: &[(&str, &str)]) -> u64 {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        limit(&read)
    }

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:        2048 kB\nMemFree:          1 kB\n");

    #[test]
    fn the_machine_limits_where_no_group_does() {
        assert_eq!(limit_of(&[]), u64::MAX);
        assert_eq!(limit_of(&[MEMINFO]), 2 << 20);
        let unlimited = [
            MEMINFO,
            ("/proc/self/cgroup", "0::/a\n"),
            ("/sys/fs/cgroup/a/memory.max", "max\n"),
            ("/sys/fs/cgroup/memory.max", "9223372036854771712\n"),
        ];
        assert_eq!(limit_of(&unlimited), 2 << 20);
    }

    #[test]
    fn the_tightest_group_of_a_path_counts() {
        let groups = ("/proc/self/cgroup", "0::/system.slice/trilith.service\n");
        let own = ("/sys/fs/cgroup/system.slice/trilith.service/memory.max", "900000\n");
        let parent = ("/sys/fs/cgroup/system.slice/memory.max", "800000\n");
        assert_eq!(limit_of(&[MEMINFO, groups, own]), 900_000);
        assert_eq!(limit_of(&[MEMINFO, groups, own, parent]), 800_000);
        // As a container sees it.
        assert_eq!(limit_of(&[MEMINFO, groups, ("/sys/fs/cgroup/memory.max", "700000\n")]), 700_000);
    }

    #[test]
    fn the_first_version_names_its_controllers() {
        let groups = ("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n0::/y\n");
        let limits = [
            ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "600000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/x/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(limit_of(&[MEMINFO, groups, limits[0], limits[1]]), 600_000);
    }
}
