//! Runs the campaign of power cuts: the release server on a disk that loses what was not synced.
//!
//! Does not know the disk or the checks; they are scenarios of the end-to-end tests.

use anyhow::{Result, bail};

use crate::clients::Clients;
use crate::e2e;
use crate::options::Options;
use crate::workspace::Workspace;

/// `powercut [--cycles N] [--seed N]`: 200 cycles of seed 1 by default.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["cycles", "seed"])?;
    options.no_arguments()?;
    let cycles = options.number("cycles", 200)?.to_string();
    let seed = options.number("seed", 1)?.to_string();
    let flags = ["--require-all", "--only", "power_cuts", "--cuts", &cycles, "--seed", &seed].map(str::to_owned);
    let tally = e2e::test(&Workspace::find()?, &Clients::default(), &flags, e2e::CAMPAIGN_SECONDS_MAX)?;
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the campaign of power cuts failed");
    }
    Ok(())
}
