//! Long runs of one fuzz target, or of all: `trilith-fuzz [TARGET] [--seed N] [--rounds N | --minutes N]`.
//!
//! With `--minutes` the time is shared equally among the targets. Each goes on with one seed after another, from the
//! given one, so that a finding is still named by target, seed and round alone.
//!
//! A finding ends the process with a report of the input; put it into `corpus/<target>/` when it is fixed.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use trilith_fuzz::{TARGETS, Target, run};

const USAGE: &str = "usage: trilith-fuzz [TARGET] [--seed N] [--rounds N | --minutes N]";
/// Rounds of one seed in a run that is limited by time, of the cheapest target.
const ROUNDS_PER_SEED: u64 = 100_000;

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
    let (mut name, mut seed, mut rounds, mut minutes) = (None, 1u64, 100_000u64, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse().ok()).ok_or_else(|| USAGE.to_owned());
        match arg.as_str() {
            "--seed" => seed = number()?,
            "--rounds" => rounds = number()?,
            "--minutes" => minutes = Some(number()?),
            _ if name.is_none() && TARGETS.iter().any(|target| target.name == arg) => name = Some(arg),
            _ => return Err(USAGE.to_owned()),
        }
    }
    run::report_findings();
    let targets: Vec<&Target> =
        TARGETS.iter().filter(|target| name.as_deref().is_none_or(|name| target.name == name)).collect();
    let share = minutes.map(|minutes| Duration::from_secs(minutes * 60) / targets.len() as u32);
    for target in targets {
        let outcome = match share {
            None => run::fuzz(target, seed, rounds.div_ceil(target.cost)),
            Some(time) => fuzz_for(target, seed, time),
        };
        let outcome = outcome.map_err(|error| format!("corpus of {}: {error}", target.name))?;
        println!("{}: {} tried, {} accepted", target.name, outcome.tried, outcome.accepted);
    }
    Ok(())
}

/// Tries one seed after another until the time is up.
fn fuzz_for(target: &Target, first_seed: u64, time: Duration) -> std::io::Result<run::Outcome> {
    let (begun, mut all) = (Instant::now(), run::Outcome::default());
    for seed in first_seed.. {
        let outcome = run::fuzz(target, seed, ROUNDS_PER_SEED.div_ceil(target.cost))?;
        all.tried += outcome.tried;
        all.accepted += outcome.accepted;
        if begun.elapsed() >= time {
            println!("{}: seeds {first_seed} to {seed}", target.name);
            break;
        }
    }
    Ok(all)
}
