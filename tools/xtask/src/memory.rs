//! How much memory a process takes up, as the kernel counts it.
//!
//! Owns: `/proc` and the memory controller of control groups, either version. Does not know: what the process is.
//!
//! I1  A control group is made beside the others for one server, and goes with its value; without the right to make
//!     one there is no figure, and no failure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Resident memory, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Resident {
    /// `VmRSS`.
    pub(crate) all: f64,
    /// `RssAnon`: heap and stacks.
    pub(crate) anonymous: f64,
    /// `RssFile`: mapped files.
    pub(crate) file: f64,
}

impl Resident {
    /// Of a running process.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/status");
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        Self::parse(&text).with_context(|| format!("{path} has no figures"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1024.0)
        };
        Some(Self { all: field("VmRSS")?, anonymous: field("RssAnon")?, file: field("RssFile")? })
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "rss_mib": self.all.round(), "anonymous_mib": self.anonymous.round(), "file_mib": self.file.round() })
    }
}

/// Watches a process's memory until it is asked to stop or the process ends.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(f64, Resident)>>,
}

impl Watch {
    /// Looks every `period`.
    pub(crate) fn start(process: u32, period: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, begun) = (Arc::clone(&stop), Instant::now());
        let thread = std::thread::spawn(move || {
            let mut course = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                let Ok(resident) = Resident::of(process) else { break };
                course.push((begun.elapsed().as_secs_f64(), resident));
                std::thread::sleep(period);
            }
            course
        });
        Self { stop, thread }
    }

    /// Seconds since the start, and the memory then.
    pub(crate) fn finish(self) -> Vec<(f64, Resident)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch does not panic")
    }
}

/// A control group for one server.
pub(crate) struct Group {
    folder: PathBuf,
    usage: &'static str,
}

impl Group {
    /// Makes one, if this program may.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let roots = [("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.current")];
        let (root, usage) = roots.into_iter().find(|(root, _)| Path::new(root).join("cgroup.procs").exists())?;
        let folder = Path::new(root).join(format!("trilith-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).ok()?;
        let group = Self { folder, usage };
        group.folder.join(usage).exists().then_some(group)
    }

    /// Puts a process in; what it takes up from then on counts.
    pub(crate) fn adopt(&self, process: u32) -> Result<()> {
        Ok(std::fs::write(self.folder.join("cgroup.procs"), process.to_string())?)
    }

    /// Memory charged to the group, page cache included, in MiB.
    pub(crate) fn mib(&self) -> Result<f64> {
        let text = std::fs::read_to_string(self.folder.join(self.usage))?;
        Ok(text.trim().parse::<f64>()? / f64::from(1 << 20))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel lets go of a group only some time after its last process.
        let limit = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.folder).is_err() && self.folder.exists() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let text = "Name:\ttrilithd\nVmRSS:\t  2048 kB\nRssAnon:\t  1024 kB\nRssFile:\t   512 kB\n";
        assert_eq!(Resident::parse(text), Some(Resident { all: 2.0, anonymous: 1.0, file: 0.5 }));
        assert_eq!(Resident::parse("VmRSS:\t 2048 kB\n"), None);
        assert!(Resident::of(std::process::id()).unwrap().all > 0.0);
    }
}
