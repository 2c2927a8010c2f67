//! Work of later stages that is done beside earlier ones, in a process of its own that yields to everything else.
//!
//! I1  Work ahead is never needed: what it did not do, or could not, is done by whoever needs it.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::options::Options;
use crate::workspace::Workspace;
use crate::{clients, conformance, mutants};

/// A process at work; it ends with this value.
pub(crate) struct Ahead {
    what: &'static str,
    child: Child,
}

impl Ahead {
    /// Builds and installs peers and clients, beside stages that compile.
    pub(crate) fn clients(workspace: &Workspace) -> Result<Self> {
        Self::start(workspace, "clients", "5", &[])
    }

    /// Builds the copy of the tree for some mutants, beside stages that wait.
    pub(crate) fn mutants(workspace: &Workspace, count: usize) -> Result<Self> {
        Self::start(workspace, "mutants", "19", &["--mutants".to_owned(), count.to_string()])
    }

    fn start(workspace: &Workspace, what: &'static str, niceness: &str, words: &[String]) -> Result<Self> {
        let folder = workspace.target.join("ahead");
        std::fs::create_dir_all(&folder)?;
        let output = File::create(folder.join(format!("{what}.txt")))?;
        let mut command = Command::new("nice");
        // This program's file may be replaced by the stages that compile; the process keeps what it was started from.
        command.args(["-n", niceness]).arg(format!("/proc/{}/exe", std::process::id())).arg("prepare").args(words);
        command.current_dir(&workspace.root).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("cannot start nice")?;
        Ok(Self { what, child })
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) {
        let started = Instant::now();
        let end = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        println!("{} prepared ahead: {end}, waited {:.0} s", self.what, started.elapsed().as_secs_f64());
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `prepare [--mutants N]`: peers and clients, or the copy of the tree for the mutants whose turn it is.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["mutants"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    if options.has("mutants") {
        return mutants::prepare_some(&workspace, usize::try_from(options.number("mutants", 0)?)?);
    }
    let clients = clients::prepare(&workspace)?;
    let missing = clients.missing.into_iter().chain(conformance::prepare(&workspace)?);
    missing.for_each(|line| println!("{line}"));
    Ok(())
}
