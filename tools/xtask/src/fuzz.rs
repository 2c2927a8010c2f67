//! `cargo xtask fuzz`: every decoder's fuzz target in turn, for as long as is asked.
//!
//! Owns: the command line. Does not know: the targets; `trilith-fuzz` shares the time among them, prints each finding
//! and ends with it.

use anyhow::Result;

use crate::options::Options;
use crate::process;
use crate::workspace::Workspace;

/// `fuzz [--minutes N] [--seed N] [TARGET]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["minutes", "seed"])?;
    let (minutes, seed) = (options.number("minutes", 60)?, options.number("seed", 1)?);
    let mut cargo = Workspace::find()?.cargo();
    // Overflow checks are on in the release profile too.
    cargo.args(["run", "--release", "--quiet", "--locked", "--package", "trilith-fuzz", "--"]).args(&options.arguments);
    cargo.args(["--minutes", &minutes.to_string(), "--seed", &seed.to_string()]);
    process::run(&mut cargo)
}
