//! Runs the watch campaign: the release server killed again and again under watchers of every shape.
//!
//! Does not know the rules that are checked; they belong to the end-to-end tests.

use anyhow::{Result, bail};

use crate::clients::Clients;
use crate::e2e;
use crate::options::Options;
use crate::workspace::Workspace;

/// `watch-campaign [--events N] [--seed N]`: a million events of seed 1 by default.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["events", "seed"])?;
    options.no_arguments()?;
    let events = options.number("events", 1_000_000)?.to_string();
    let seed = options.number("seed", 1)?.to_string();
    let flags = ["--require-all", "--only", "watch_campaign", "--events", &events, "--seed", &seed].map(str::to_owned);
    let tally = e2e::test(&Workspace::find()?, &Clients::default(), &flags, e2e::CAMPAIGN_SECONDS_MAX)?;
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the watch campaign failed");
    }
    Ok(())
}
