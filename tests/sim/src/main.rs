//! `trilith-sim`: runs seeds of the simulator and judges them.
//!
//! Owns: the command line and the report. Does not know: what a seed does.
//!
//! Usage: `trilith-sim --seed N [--verbose]`, or `trilith-sim --seeds N [--from S] [--jobs J] [--seconds T]`, where T
//! is the length of a run in virtual seconds, usually 36 (one in a hundred is long and takes 17 times as much); a run
//! that is to be repeated needs the T that it had. Every fiftieth seed, and a single one, runs twice: both traces must
//! be equal. `--early-acknowledgement` makes the simulated disk lie, so that the run has to fail. A campaign of many
//! seeds fails if it misses a gate ([`gates`]). The last line is the
//! summary; the exit status is 0, or that of the gravest failure: 126 for a gate that was missed, 127 for a panic, 128
//! for a server that hangs, 129 for one that lies.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use trilith_sim::gates;
use trilith_sim::simulation::{Failure, Options, Report, run};
use trilith_sim::trace;
use trilith_sim::trilith::Trilith;
use trilith_sim::weather::USUAL_SECONDS;

const EXIT_GATES: u8 = 126;
const EXIT_CRASH: i32 = 127;
const EXIT_LIVENESS: u8 = 128;
const EXIT_CORRECTNESS: u8 = 129;
const EXIT_USAGE: u8 = 2;
/// Of so many seeds one runs twice.
const DOUBLE_RUN_EVERY: u64 = 50;

thread_local! {
    /// The seed under way and the length of its run.
    static RUN: Cell<(u64, u64)> = const { Cell::new((0, USUAL_SECONDS)) };
}

#[derive(Clone, Copy)]
struct Arguments {
    first: u64,
    count: u64,
    jobs: u64,
    seconds: u64,
    verbose: bool,
    early_acknowledgement: bool,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed =
        Arguments { first: 0, count: 1, jobs: 1, seconds: USUAL_SECONDS, verbose: false, early_acknowledgement: false };
    let mut arguments = arguments;
    while let Some(name) = arguments.next() {
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (name, None),
        };
        let mut number = || {
            let text = inline.clone().or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a number"))?;
            text.parse::<u64>().map_err(|_| format!("{name} needs a number, not {text:?}"))
        };
        match name.as_str() {
            "--seed" => (parsed.first, parsed.count) = (number()?, 1),
            "--seeds" => parsed.count = number()?,
            "--from" | "--start" => parsed.first = number()?,
            "--jobs" => parsed.jobs = number()?.clamp(1, 64),
            "--seconds" => parsed.seconds = number()?.clamp(1, 3_600),
            "--verbose" | "--trace" => parsed.verbose = true,
            "--early-acknowledgement" => parsed.early_acknowledgement = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(parsed)
}

#[derive(Default)]
struct Total {
    seeds: u64,
    failed: u64,
    acknowledged: u64,
    crashes: u64,
    witnesses: u64,
    faults: u64,
    windows: u64,
    virtual_seconds: f64,
    liveness: u64,
    correctness: u64,
    coverage: BTreeMap<String, u64>,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!(
                "{text}\nusage: trilith-sim --seed N [--verbose] | --seeds N [--from S] [--jobs J] [--seconds T]"
            );
            return ExitCode::from(EXIT_USAGE);
        }
    };
    report_panics();
    let began = std::time::Instant::now();
    let next = AtomicU64::new(0);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    if position >= arguments.count {
                        break;
                    }
                    let report = run_seed(arguments, arguments.first + position);
                    let mut total = total.lock().expect("a panic ends the process");
                    add(&mut total, arguments, arguments.first + position, &report);
                }
            });
        }
    });
    let total = total.into_inner().expect("a panic ends the process");
    for (what, count) in &total.coverage {
        println!("{count:>10} {what}");
    }
    let missed = if total.failed == 0 { gates::missed(total.seeds, &total.coverage) } else { Vec::new() };
    for gate in &missed {
        println!("MISSED {gate}");
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{:.0} virtual seconds, {:.0} in a real one of {} jobs; {:.0} acknowledged operations and {:.1} faults in 36",
        total.virtual_seconds,
        total.virtual_seconds / seconds,
        arguments.jobs,
        total.acknowledged as f64 / total.virtual_seconds * 36.0,
        total.faults as f64 / total.virtual_seconds * 36.0,
    );
    println!(
        "{} passed, {} failed; {} seeds, {} acknowledged operations, {} faults, {} crashes, {} media checked at \
         acknowledgements, {} windows searched, {:.0} virtual seconds, {} gates missed, {} violations",
        total.seeds - total.failed,
        total.failed,
        total.seeds,
        total.acknowledged,
        total.faults,
        total.crashes,
        total.witnesses,
        total.windows,
        total.virtual_seconds,
        missed.len(),
        total.failed
    );
    match (total.correctness, total.liveness, missed.is_empty()) {
        (0, 0, true) => ExitCode::SUCCESS,
        (0, 0, false) => ExitCode::from(EXIT_GATES),
        (0, ..) => ExitCode::from(EXIT_LIVENESS),
        _ => ExitCode::from(EXIT_CORRECTNESS),
    }
}

fn run_seed(arguments: Arguments, seed: u64) -> Report {
    RUN.set((seed, arguments.seconds));
    let Arguments { verbose, early_acknowledgement, seconds, .. } = arguments;
    let options = Options { seed, verbose, early_acknowledgement, plain: false, seconds };
    let mut report = run::<Trilith>(options);
    if report.failure.is_none() && (arguments.count == 1 || seed.is_multiple_of(DOUBLE_RUN_EVERY)) {
        let again = run::<Trilith>(Options { verbose: false, ..options });
        if again.trace_hash != report.trace_hash {
            let text = format!("trace {:x}, then {:x}: not deterministic", report.trace_hash, again.trace_hash);
            report.failure = Some(Failure::Correctness(text));
        }
    }
    if let Some(failure) = &report.failure {
        println!("{}seed {seed}: {failure}", trace::tail());
    } else if arguments.count == 1 {
        println!("seed {seed}: trace {:x}, {} turns", report.trace_hash, report.turns);
    }
    report
}

fn add(total: &mut Total, arguments: Arguments, seed: u64, report: &Report) {
    total.seeds += 1;
    total.acknowledged += report.acknowledged;
    total.crashes += report.crashes;
    total.witnesses += report.witnesses;
    total.faults += report.faults;
    total.windows += report.windows;
    total.virtual_seconds += report.virtual_time as f64 / 1e9;
    for (what, count) in &report.coverage {
        *total.coverage.entry(what.clone()).or_insert(0) += count;
    }
    match &report.failure {
        None => return,
        Some(Failure::Liveness(_)) => total.liveness += 1,
        Some(Failure::Correctness(_)) => total.correctness += 1,
    }
    total.failed += 1;
    println!("reproduce with: trilith-sim --seed {seed} --seconds {} --verbose", arguments.seconds);
}

/// A panic of the server ends the run: the last events and the seed are all that is left to say.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let (seed, seconds) = RUN.get();
        println!("{}seed {seed}: crash: {panic}", trace::tail());
        let backtrace = std::backtrace::Backtrace::force_capture().to_string();
        // Frames of this workspace name their files relative to it.
        backtrace.lines().filter(|line| line.trim_start().starts_with("at ./")).for_each(|line| println!("{line}"));
        println!("reproduce with: trilith-sim --seed {seed} --seconds {seconds} --verbose");
        println!("0 passed, 1 failed; stopped by a panic");
        std::process::exit(EXIT_CRASH);
    }));
}
