//! Runs the end-to-end tests: prepares the clients, builds the server, hands both to the `e2e` program, once a
//! scenario.
//!
//! Knows of the scenarios what the program lists: their names, and which may run beside others. The server under test
//! is the release build, or the one named by TRILITHD.
//!
//! I1  Every scenario is bounded in time, and ends with all its processes and mounts.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::clients::{self, Clients};
use crate::lanes;
use crate::options::Options;
use crate::process::{self, Tally};
use crate::workspace::Workspace;

/// Scenarios at once: they wait for disks, timers and each other's answers more than they compute.
const LANES: usize = 3;
/// Longest time of one scenario in the gate.
pub(crate) const GATE_SECONDS_MAX: u64 = 480;
/// Longest time of one scenario that may be a campaign of many cycles.
pub(crate) const CAMPAIGN_SECONDS_MAX: u64 = 24 * 3600;

/// `e2e [--only NAME] [--cycles N] [--cuts N] [--cores N] [--seed N] [--require-all] [--list]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    Options::parse(args, &["require-all", "list"], &["only", "cycles", "cuts", "cores", "seed"])?.no_arguments()?;
    let workspace = Workspace::find()?;
    let tally = test(&workspace, &clients::prepare(&workspace)?, args, CAMPAIGN_SECONDS_MAX)?;
    if tally.failed > 0 {
        bail!("{} scenarios failed", tally.failed);
    }
    Ok(())
}

/// `kill [--cycles N]`: only the kill -9 scenario, 1,000 cycles by default.
pub(crate) fn run_kill(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["cycles"])?;
    options.no_arguments()?;
    let cycles = options.number("cycles", 1000)?.to_string();
    let workspace = Workspace::find()?;
    let flags = ["--only", "kill_under_load", "--cycles", &cycles].map(str::to_owned);
    let tally = test(&workspace, &Clients::default(), &flags, CAMPAIGN_SECONDS_MAX)?;
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the kill campaign failed");
    }
    Ok(())
}

/// Builds the server and runs the scenarios that `flags` select, each in a process of its own and for so long at most.
pub(crate) fn test(workspace: &Workspace, clients: &Clients, flags: &[String], seconds_max: u64) -> Result<Tally> {
    let server = server(workspace)?;
    let mut cargo = workspace.cargo();
    process::run(cargo.args(["build", "--quiet", "--locked", "--package", "trilith-e2e"]))?;
    let program = workspace.target.join("debug/e2e");
    let list = process::capture(Command::new(&program).args(flags).arg("--list"))?;
    if flags.iter().any(|flag| flag == "--list") {
        print!("{list}");
        return Ok(Tally::default());
    }
    let mut words: Vec<OsString> = vec!["--trilithd".into(), server.into()];
    for (flag, value) in [("--peers", &clients.peers), ("--go-client", &clients.go), ("--python", &clients.python)] {
        words.extend(value.iter().flat_map(|value| [flag.into(), value.into()]));
    }
    words.extend(["--python-client".into(), workspace.root.join("tests/e2e/clients/python/client.py").into()]);
    words.extend(flags.iter().map(OsString::from));
    let folder = workspace.target.join("e2e/run");
    std::fs::create_dir_all(&folder)?;
    Runner { program, words, folder, limit: Duration::from_secs(seconds_max) }.all(&list)
}

/// Runs scenarios by name.
struct Runner {
    program: PathBuf,
    /// Flags that every run has.
    words: Vec<OsString>,
    /// Where the scenarios keep their data, each in a folder of its own.
    folder: PathBuf,
    /// Longest time of one.
    limit: Duration,
}

impl Runner {
    /// Those of the list: several at once, then one by one those that want the machine for themselves.
    fn all(&self, list: &str) -> Result<Tally> {
        let named = |wanted: &str| {
            let of_pace = list.lines().filter_map(|line| line.split_once(' ').filter(|(pace, _)| *pace == wanted));
            of_pace.map(|(_, name)| name.trim()).collect::<Vec<_>>()
        };
        let together = [named("long"), named("short")].concat();
        let mut sum = lanes::run(LANES, &together, |name| self.one(name))?;
        for name in named("alone") {
            sum.add(self.one(name)?);
        }
        Ok(sum)
    }

    /// One scenario, with its output printed when it has ended.
    fn one(&self, name: &str) -> Result<Tally> {
        let folder = self.folder.join(name);
        remove(&folder);
        std::fs::create_dir_all(&folder)?;
        let path = self.folder.join(format!("{name}.txt"));
        let output = File::create(&path)?;
        let mut command = Command::new(&self.program);
        command.args(&self.words).args(["--exactly", name, "--scratch"]).arg(&folder);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let end = process::bounded(&mut command, self.limit)?;
        remove(&folder);
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let (tally, text) = judge(name, &end.to_string(), &text);
        print!("{text}");
        Ok(tally)
    }
}

/// Counts and lines to print of a scenario's output. Without its summary the scenario has failed.
fn judge(name: &str, end: &str, text: &str) -> (Tally, String) {
    let lines: Vec<&str> = text.lines().collect();
    match lines.split_last() {
        Some((last, before)) if Tally::from_line(last).is_some() => {
            let shown = before.iter().map(|line| format!("{line}\n")).collect();
            (Tally::from_line(last).unwrap_or_default(), shown)
        }
        _ => (Tally { failed: 1, ..Tally::default() }, format!("{text}FAILED   {name}: {end}\n")),
    }
}

/// Removes a scenario's folder, with the file systems that a scenario which was cut short has left mounted in it.
fn remove(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mountpoint in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mountpoint).starts_with(folder) {
            let unmounted = process::capture(Command::new("fusermount3").args(["-u", "-z", mountpoint]));
            if unmounted.is_err() {
                let _ = process::capture(Command::new("umount").args(["--lazy", mountpoint]));
            }
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}

fn server(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TRILITHD") {
        return Ok(PathBuf::from(path));
    }
    workspace.build_release(&["trilith-server"])?;
    Ok(workspace.release("trilithd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_without_a_summary_failed() {
        let (tally, text) = judge("x", "exit status: 0", "ok       x (1.0 s)\n1 passed, 0 failed, 0 skipped\n");
        assert_eq!((tally.passed, tally.failed, text.as_str()), (1, 0, "ok       x (1.0 s)\n"));
        for output in ["", "ok       x (1.0 s)\n", "thread panicked\n"] {
            let (tally, text) = judge("x", "not done after 9 s", output);
            assert_eq!((tally.passed, tally.failed), (0, 1));
            assert!(text.ends_with("FAILED   x: not done after 9 s\n"), "{text}");
        }
    }
}
