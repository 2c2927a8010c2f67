//! Runs the simulator, built in its own profile (optimised, with debug assertions).
//!
//! Does not know what a seed means; the simulator prints and judges.

use anyhow::{Result, bail};

use crate::options::Options;
use crate::process::{self, Tally};
use crate::workspace::Workspace;

/// `sim [--seed N | --seeds N] [--seconds T] ...`: every argument goes to the simulator.
pub(crate) fn run(args: &[String]) -> Result<()> {
    Options::parse(
        args,
        &["trace", "verbose", "early-acknowledgement"],
        &["seed", "seeds", "from", "jobs", "seconds"],
    )?
    .no_arguments()?;
    let tally = simulate(&Workspace::find()?, args)?;
    if tally.failed > 0 {
        bail!("{} of {} seeds failed", tally.failed, tally.failed + tally.passed);
    }
    Ok(())
}

/// Runs the simulator and returns its count of seeds.
pub(crate) fn simulate(workspace: &Workspace, args: &[String]) -> Result<Tally> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "--locked", "--profile", "sim", "--package", "trilith-sim", "--"]).args(args);
    let finished = process::run_echoed(&mut cargo)?;
    let tally = finished.tally();
    if !finished.success && tally.failed == 0 {
        bail!("the simulator stopped before its summary");
    }
    if tally.passed + tally.failed == 0 {
        bail!("the simulator printed no summary line");
    }
    Ok(tally)
}
