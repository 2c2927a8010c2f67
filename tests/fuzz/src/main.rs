//! Long runs of one fuzz target, or of all: `trilith-fuzz [TARGET] [--seed N] [--rounds N]`.
//!
//! A finding ends the process with a report of the input; put it into `corpus/<target>/` when it is fixed.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use trilith_fuzz::{TARGETS, run};

const USAGE: &str = "usage: trilith-fuzz [TARGET] [--seed N] [--rounds N]";

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn work() -> Result<(), String> {
    let (mut name, mut seed, mut rounds) = (None, 1u64, 100_000u64);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse().ok()).ok_or_else(|| USAGE.to_owned());
        match arg.as_str() {
            "--seed" => seed = number()?,
            "--rounds" => rounds = number()?,
            _ if name.is_none() && TARGETS.iter().any(|target| target.name == arg) => name = Some(arg),
            _ => return Err(USAGE.to_owned()),
        }
    }
    run::report_findings();
    for target in TARGETS.iter().filter(|target| name.as_deref().is_none_or(|name| target.name == name)) {
        let rounds = rounds.div_ceil(target.cost);
        let outcome = run::fuzz(target, seed, rounds).map_err(|error| format!("corpus of {}: {error}", target.name))?;
        println!("{}: {} tried, {} accepted", target.name, outcome.tried, outcome.accepted);
    }
    Ok(())
}
