//! `trilith-media`: a campaign of power cuts and rot.
//!
//! Owns: the command line, the spread over threads, the report. Does not know: what a case does.
//!
//! Usage: `trilith-media [--crash-states N] [--corruptions N] [--seed S] [--jobs J]` or
//! `trilith-media --only KIND:NUMBER [--seed S]`, KIND being `crash` or `rot`. The last line is the summary; the exit
//! status is 0, 1 for a violation, 127 for a panic.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use trilith_media::coverage;
use trilith_media::power_cut::{choose, survey, try_cases};
use trilith_media::recording::{Recording, record};
use trilith_media::rot::{Outcome, Quarry, judge};
use trilith_sim::rng::Rng;

const EXIT_USAGE: u8 = 2;
const EXIT_PANIC: i32 = 127;
/// Images tried of each trace.
const CRASHES_PER_TRACE: u64 = 500;
/// Faults tried of each trace.
const FAULTS_PER_TRACE: u64 = 250;
/// Violations after which a thread takes no further trace.
const VIOLATIONS_MAX: usize = 20;

thread_local! {
    static CASE: RefCell<String> = const { RefCell::new(String::new()) };
}

#[derive(Clone, Debug)]
struct Arguments {
    crash_states: u64,
    corruptions: u64,
    seed: u64,
    jobs: u64,
    only: Option<(Part, u64)>,
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Crash,
    Rot,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Rot => "rot",
        }
    }

    fn per_trace(self) -> u64 {
        match self {
            Self::Crash => CRASHES_PER_TRACE,
            Self::Rot => FAULTS_PER_TRACE,
        }
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed =
        Arguments { crash_states: 4_000, corruptions: 2_000, seed: 1, jobs: 1, only: None, verbose: false };
    let mut arguments = arguments;
    while let Some(name) = arguments.next() {
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (name, None),
        };
        if name == "--verbose" {
            parsed.verbose = true;
            continue;
        }
        let value = inline.or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a value"))?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{name} needs a number, not {text:?}"));
        match name.as_str() {
            "--crash-states" => parsed.crash_states = number(&value)?,
            "--corruptions" => parsed.corruptions = number(&value)?,
            "--seed" => parsed.seed = number(&value)?,
            "--jobs" => parsed.jobs = number(&value)?.clamp(1, 64),
            "--only" => {
                parsed.only = match value.split_once(':') {
                    Some(("crash", text)) => Some((Part::Crash, number(text)?)),
                    Some(("rot", text)) => Some((Part::Rot, number(text)?)),
                    _ => return Err(format!("--only needs crash:NUMBER or rot:NUMBER, not {value:?}")),
                }
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(parsed)
}

/// Cases of one trace.
#[derive(Clone, Copy, Debug)]
struct Batch {
    part: Part,
    trace: u64,
    /// Numbers within the trace.
    first: u64,
    count: u64,
}

fn batches(arguments: &Arguments) -> Vec<Batch> {
    if let Some((part, number)) = arguments.only {
        return vec![Batch { part, trace: number / part.per_trace(), first: number % part.per_trace(), count: 1 }];
    }
    let mut batches = Vec::new();
    for (part, total) in [(Part::Crash, arguments.crash_states), (Part::Rot, arguments.corruptions)] {
        for trace in 0..total.div_ceil(part.per_trace()) {
            let count = part.per_trace().min(total - trace * part.per_trace());
            batches.push(Batch { part, trace, first: 0, count });
        }
    }
    batches
}

#[derive(Default)]
struct Total {
    tried: BTreeMap<&'static str, u64>,
    coverage: BTreeMap<String, u64>,
    outcomes: BTreeMap<(String, String, Outcome), u64>,
    violations: Vec<String>,
}

impl Total {
    fn add(&mut self, other: Self) {
        for (part, count) in other.tried {
            *self.tried.entry(part).or_insert(0) += count;
        }
        for (what, count) in other.coverage {
            *self.coverage.entry(what).or_insert(0) += count;
        }
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_insert(0) += count;
        }
        self.violations.extend(other.violations);
    }
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!(
                "{text}\nusage: trilith-media [--crash-states N] [--corruptions N] [--seed S] [--jobs J] | --only \
                 KIND:NUMBER"
            );
            return ExitCode::from(EXIT_USAGE);
        }
    };
    report_panics(arguments.seed);
    let batches = batches(&arguments);
    let next = AtomicU64::new(0);
    let total = Mutex::new(Total::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let tried = try_batch(*batch, &arguments);
                    let mut total = total.lock().expect("a panic ends the process");
                    total.add(tried);
                    if total.violations.len() > VIOLATIONS_MAX {
                        break;
                    }
                }
            });
        }
    });
    let total = total.into_inner().expect("a panic ends the process");
    summarise(&total, started.elapsed().as_secs_f64())
}

fn summarise(total: &Total, seconds: f64) -> ExitCode {
    for (what, count) in &total.coverage {
        println!("{count:>8} {what}");
    }
    for ((family, kind, outcome), count) in &total.outcomes {
        println!("{count:>8} {family:<18} {kind:<13} {outcome:?}");
    }
    let tried: u64 = total.tried.values().sum();
    let count = |part: Part| total.tried.get(part.name()).copied().unwrap_or(0);
    let failed = total.violations.len() as u64;
    println!(
        "{} passed, {failed} failed; {} crash states, {} corruptions, {:.0} a second, {failed} violations",
        tried.saturating_sub(failed),
        count(Part::Crash),
        count(Part::Rot),
        tried as f64 / seconds.max(0.001)
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn try_batch(batch: Batch, arguments: &Arguments) -> Total {
    let seed = arguments.seed;
    let trace_seed = seed.wrapping_mul(1 << 32) + batch.trace;
    let mut total = Total::default();
    note(batch, batch.first);
    match record(trace_seed) {
        Ok(recording) if batch.part == Part::Crash => try_crashes(batch, &recording, trace_seed, seed, &mut total),
        Ok(recording) => try_faults(batch, &recording, trace_seed, arguments, &mut total),
        Err(text) => violation(batch, batch.first, seed, &text, &mut total),
    }
    total
}

fn try_crashes(batch: Batch, recording: &Recording, trace_seed: u64, seed: u64, total: &mut Total) {
    let survey = survey(&recording.steps);
    coverage::count(&recording.steps, &mut total.coverage);
    *total.coverage.entry("points of a power cut".to_owned()).or_insert(0) += survey.len() as u64;
    let images: u64 = survey.iter().map(|(_, images)| images).sum();
    *total.coverage.entry("images that a power cut may leave".to_owned()).or_insert(0) += images;
    let cases = choose(&survey, CRASHES_PER_TRACE, trace_seed);
    let cases = cases.into_iter().filter(|case| (batch.first..batch.first + batch.count).contains(&case.number));
    try_cases(recording, cases.collect(), trace_seed, &mut |case| note(batch, case.number), &mut |case, result| {
        *total.tried.entry(batch.part.name()).or_insert(0) += 1;
        if let Err(text) = result {
            violation(batch, case.number, seed, &text, total);
        }
    });
}

fn try_faults(batch: Batch, recording: &Recording, trace_seed: u64, arguments: &Arguments, total: &mut Total) {
    let quarries: Vec<Quarry<'_>> = recording.closed.iter().map(|closed| Quarry::new(recording, closed)).collect();
    for number in batch.first..batch.first + batch.count {
        note(batch, number);
        let mut rng = Rng::new(trace_seed ^ number << 40);
        let (struck, closed) = loop {
            let quarry = rng.index(quarries.len());
            if let Some(struck) = quarries[quarry].strike(&mut rng) {
                break (struck, &recording.closed[quarry]);
            }
        };
        *total.tried.entry(batch.part.name()).or_insert(0) += 1;
        let ledger = &recording.epochs[closed.epoch];
        match judge(&recording.geometry, &struck, ledger, closed.count, rng.bits()) {
            Ok((outcome, words)) => {
                if arguments.verbose {
                    println!("rot:{}: {}: {outcome:?} {words}", number_of(batch, number), struck.text);
                }
                let key = (struck.family, format!("{:?}", struck.kind), outcome);
                *total.outcomes.entry(key).or_insert(0) += 1;
            }
            Err(text) => violation(batch, number, arguments.seed, &text, total),
        }
    }
}

fn number_of(batch: Batch, number: u64) -> u64 {
    batch.trace * batch.part.per_trace() + number
}

/// Remembers what is being tried, in case it panics.
fn note(batch: Batch, number: u64) {
    CASE.set(format!("{}:{}", batch.part.name(), number_of(batch, number)));
}

fn violation(batch: Batch, number: u64, seed: u64, text: &str, total: &mut Total) {
    let case = format!("{}:{}", batch.part.name(), number_of(batch, number));
    println!("{case}: {text}\nreproduce with: cargo xtask media --seed {seed} --only {case}");
    total.violations.push(case);
}

/// A panic of the member ends the campaign: the case is all that is left to say.
fn report_panics(seed: u64) {
    std::panic::set_hook(Box::new(move |panic| {
        let case = CASE.take();
        println!("{case}: crash: {panic}");
        let backtrace = std::backtrace::Backtrace::force_capture().to_string();
        // Frames of this workspace name their files relative to it.
        backtrace.lines().filter(|line| line.trim_start().starts_with("at ./")).for_each(|line| println!("{line}"));
        println!(
            "reproduce with: cargo xtask media --seed {seed} --only {case}\n0 passed, 1 failed; stopped by a panic"
        );
        std::process::exit(EXIT_PANIC);
    }));
}
