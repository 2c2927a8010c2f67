//! Running other programs and reading what they print.
//!
//! Owns the echo of a child's output, the summary lines it recognises, limits of time, and the search for programs in
//! PATH. Prints command names only, never the environment.
//!
//! I1  A bounded run ends in time, with every process of its group.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Counts of checks of one stage or of the whole gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Checks that held.
    pub(crate) passed: u64,
    /// Checks that did not.
    pub(crate) failed: u64,
    /// Checks that did not run.
    pub(crate) skipped: u64,
}

impl Tally {
    /// Adds another count to this one.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads a summary line: ours (`3 passed, 1 failed[, 2 skipped]`) or the one of Rust's test harness.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let text = match line.strip_prefix("test result: ") {
            Some(rest) => rest.split_once(". ")?.1,
            None => line,
        };
        let mut tally = Self::default();
        let mut fields = 0;
        for part in text.split([',', ';']) {
            let Some((count, word)) = part.trim().split_once(' ') else { continue };
            let Ok(count) = count.parse::<u64>() else {
                if fields == 0 {
                    return None;
                }
                continue;
            };
            match word {
                "passed" => tally.passed = count,
                "failed" => tally.failed = count,
                "skipped" | "ignored" => tally.skipped = count,
                _ => continue,
            }
            fields += 1;
        }
        (fields >= 2).then_some(tally)
    }
}

/// What a finished child left.
pub(crate) struct Finished {
    /// Whether it exited with status 0.
    pub(crate) success: bool,
    /// Everything it wrote to standard output.
    pub(crate) stdout: String,
}

impl Finished {
    /// Sum of all summary lines in the output.
    pub(crate) fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for tally in self.stdout.lines().filter_map(Tally::from_line) {
            sum.add(tally);
        }
        sum
    }
}

/// Runs the command with its output echoed as it comes, and keeps standard output.
pub(crate) fn run_echoed(command: &mut Command) -> Result<Finished> {
    let name = name_of(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
    let pipe = child.stdout.take().expect("standard output is piped above");
    let mut stdout = String::new();
    for line in BufReader::new(pipe).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        stdout.push_str(&line);
        stdout.push('\n');
    }
    let success = child.wait()?.success();
    Ok(Finished { success, stdout })
}

/// Runs the command quietly and returns its standard output; its standard error is part of the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{name} failed ({}):\n{}", output.status, tail.join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the command with inherited output; a failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = name_of(command);
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// How a bounded run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It was ended when this time was up.
    Late(Duration),
}

impl End {
    /// Whether it exited with status 0.
    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "{status}"),
            Self::Late(limit) => write!(f, "not done after {} s", limit.as_secs()),
        }
    }
}

/// Runs the command in a process group of its own, which ends with it or when time is up (I1).
pub(crate) fn bounded(command: &mut Command, limit: Duration) -> Result<End> {
    let name = name_of(command);
    let mut child = command.process_group(0).spawn().with_context(|| format!("cannot start {name}"))?;
    let deadline = Instant::now() + limit;
    let end = loop {
        if let Some(status) = child.try_wait()? {
            break End::Exited(status);
        }
        if Instant::now() > deadline {
            break End::Late(limit);
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // What the program started and left behind is in its group, whose number is that of the program.
    let group = format!("-{}", child.id());
    let _ = capture(Command::new("kill").args(["-s", "KILL", "--", &group]));
    child.wait()?;
    Ok(end)
}

/// Ends every process that descends from this one, but not the process itself. They are stopped first, until no new one
/// is found: one that is killed between two of its forks would leave a child behind that descends from nobody known.
pub(crate) fn end_descendants(ancestor: u32) {
    let mut stopped = Vec::new();
    loop {
        let running: Vec<u32> = descendants(ancestor).into_iter().filter(|number| !stopped.contains(number)).collect();
        if running.is_empty() {
            break;
        }
        signal("STOP", &running);
        stopped.extend(running);
    }
    signal("KILL", &stopped);
}

fn signal(name: &str, processes: &[u32]) {
    if !processes.is_empty() {
        let _ = capture(Command::new("kill").args(["-s", name, "--"]).args(processes.iter().map(u32::to_string)));
    }
}

/// The processes that descend from this one, without those that are dead already.
fn descendants(ancestor: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything; state and parent follow it.
        let mut facts = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        let (state, parent) = (facts.next(), facts.next().and_then(|parent| parent.parse::<u32>().ok()));
        parents.extend(parent.filter(|_| state != Some("Z")).map(|parent| (number, parent)));
    }
    let mut known = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = known.get(next) {
        known.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(number, _)| *number));
        next += 1;
    }
    known.split_off(1)
}

/// The program in PATH, if it is there.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    let arguments: Vec<_> = command.get_args().take(3).map(OsStr::to_string_lossy).collect();
    format!("{program} {}", arguments.join(" ")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_of_both_kinds_are_read() {
        let ours = Tally::from_line("12 passed, 3 failed, 1 skipped").unwrap();
        assert_eq!(ours, Tally { passed: 12, failed: 3, skipped: 1 });
        let short = Tally::from_line("12 passed, 0 failed").unwrap();
        assert_eq!(short, Tally { passed: 12, failed: 0, skipped: 0 });
        let rust = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.1s";
        assert_eq!(Tally::from_line(rust).unwrap(), Tally { passed: 5, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_bounded_run_ends_in_time_with_what_it_started() {
        let file = std::env::temp_dir().join(format!("trilith-bounded-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $!; wait"]).stdout(std::fs::File::create(&file).unwrap());
        let limit = Duration::from_millis(500);
        let end = bounded(&mut command, limit).unwrap();
        let grandchild = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(end, End::Late(limit));
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_running(grandchild.trim()) {
            assert!(Instant::now() < deadline, "{grandchild} is still there");
            std::thread::yield_now();
        }
        assert!(bounded(&mut Command::new("true"), limit * 100).unwrap().is_success());
        assert!(!bounded(&mut Command::new("false"), limit * 100).unwrap().is_success());
    }

    /// Whether the process is there and not dead with nobody to wait for it.
    fn is_running(number: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        !number.is_empty() && !stat.is_empty() && !stat.contains(") Z ")
    }

    #[test]
    fn descendants_end_and_their_ancestor_does_not() {
        let mut command = Command::new("sh");
        // What is left behind, if anything, must not keep open what the tests print to.
        command.args(["-c", "sh -c 'sleep 600; exit 3'; exit 7"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            end_descendants(child.id());
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the descendants are still there");
        };
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn other_lines_are_no_summary() {
        for line in ["", "5 passed", "what passed, 3 failed, 1 skipped", "running 5 tests", "a, b"] {
            assert_eq!(Tally::from_line(line), None, "{line}");
        }
    }
}
