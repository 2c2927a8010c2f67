//! Runs the end-to-end tests: prepares the clients, builds the server, hands both to the `e2e` program.
//!
//! Does not know the scenarios. The server under test is the release build, or the one named by TRILITHD.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::clients::{self, Clients};
use crate::options::Options;
use crate::process::{self, Tally};
use crate::workspace::Workspace;

/// `e2e [--only NAME] [--cycles N] [--cuts N] [--seed N] [--require-all] [--list]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    Options::parse(args, &["require-all", "list"], &["only", "cycles", "cuts", "seed"])?.no_arguments()?;
    let workspace = Workspace::find()?;
    let tally = test(&workspace, &clients::prepare(&workspace)?, args)?;
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
    let tally = test(&workspace, &Clients::default(), &flags)?;
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the kill campaign failed");
    }
    Ok(())
}

/// Builds the server and runs the scenarios that `flags` select.
pub(crate) fn test(workspace: &Workspace, clients: &Clients, flags: &[String]) -> Result<Tally> {
    let server = server(workspace)?;
    let mut cargo = workspace.cargo();
    process::run(cargo.args(["build", "--quiet", "--locked", "--package", "trilith-e2e"]))?;
    let mut command = Command::new(workspace.target.join("debug/e2e"));
    command.arg("--trilithd").arg(server);
    for (flag, value) in [("--peers", &clients.peers), ("--go-client", &clients.go), ("--python", &clients.python)] {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    let script = workspace.root.join("tests/e2e/clients/python/client.py");
    command.arg("--python-client").arg(script).args(flags);
    let finished = process::run_echoed(&mut command)?;
    let tally = finished.tally();
    if !finished.success && tally.failed == 0 {
        bail!("the end-to-end tests stopped before their summary");
    }
    Ok(tally)
}

fn server(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TRILITHD") {
        return Ok(PathBuf::from(path));
    }
    workspace.build_release(&["trilith-server"])?;
    Ok(workspace.release("trilithd"))
}
