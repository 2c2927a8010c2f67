//! Runs the campaign of power cuts and rot, built in the simulator's profile (optimised, with debug assertions).
//!
//! Does not know what a case does; the campaign prints and judges.

use anyhow::{Result, bail};

use crate::options::Options;
use crate::process::{self, Tally};
use crate::workspace::Workspace;

/// `media [--crash-states N] [--corruptions N] [--seed S] [--jobs J] | --only KIND:NUMBER`: every argument goes to the
/// campaign.
pub(crate) fn run(args: &[String]) -> Result<()> {
    Options::parse(args, &["verbose"], &["crash-states", "corruptions", "seed", "jobs", "only"])?.no_arguments()?;
    let tally = campaign(&Workspace::find()?, args)?;
    if tally.failed > 0 {
        bail!("{} of {} cases failed", tally.failed, tally.failed + tally.passed);
    }
    Ok(())
}

/// Runs the campaign and returns its count of cases.
pub(crate) fn campaign(workspace: &Workspace, args: &[String]) -> Result<Tally> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "--locked", "--profile", "sim", "--package", "trilith-media", "--"]).args(args);
    let finished = process::run_echoed(&mut cargo)?;
    let tally = finished.tally();
    if !finished.success && tally.failed == 0 {
        bail!("the campaign stopped before its summary");
    }
    if tally.passed + tally.failed == 0 {
        bail!("the campaign printed no summary line");
    }
    Ok(tally)
}
