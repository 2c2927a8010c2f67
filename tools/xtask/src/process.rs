//! Running other programs and reading what they print.
//!
//! Owns the echo of a child's output, the summary lines it recognises, and the search for programs in PATH.
//! Prints command names only, never the environment.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    fn other_lines_are_no_summary() {
        for line in ["", "5 passed", "what passed, 3 failed, 1 skipped", "running 5 tests", "a, b"] {
            assert_eq!(Tally::from_line(line), None, "{line}");
        }
    }
}
