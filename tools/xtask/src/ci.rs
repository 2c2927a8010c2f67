//! The gate: one read-only run of everything that must hold, and a summary of what ran and what did not.
//!
//! Owns the list of stages and their order, cheap ones first. A stage that fails does not stop the next.
//!
//! I1  A stage that did not run is named with its reason; under `--require-all` it is a failure.
//! I2  The last line is the sum of all checks: `N passed, N failed[, N skipped]`.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::clients::{self, Clients};
use crate::options::Options;
use crate::process::{self, Tally};
use crate::workspace::Workspace;
use crate::{arrows, compare, conformance, e2e, generate, media, mutants, sim, tidy};

/// Seeds of the simulation that every run tries.
const CRASH_SEEDS: &str = "40";
/// Images of power cuts, and faults, that every run tries.
const CRASH_STATES: &str = "4000";
const CORRUPTIONS: &str = "2000";
/// Seeded bugs that every run tries.
const MUTANTS: usize = 3;
/// Cycles of kill -9 that every run tries.
const KILL_CYCLES: &str = "50";

/// What a stage is told.
struct Context {
    workspace: Workspace,
    require_all: bool,
}

/// A name and the work behind it.
struct Stage {
    name: &'static str,
    run: fn(&Context) -> Result<Tally>,
}

const STAGES: &[Stage] = &[
    Stage { name: "format", run: format },
    Stage { name: "tidy", run: |_| one(tidy::run(&[])) },
    Stage { name: "generated", run: |_| one(generate::run(&["--check".to_owned()])) },
    Stage { name: "arrows", run: |_| one(arrows::run(&[])) },
    Stage { name: "clippy", run: clippy },
    Stage { name: "docs", run: docs },
    Stage { name: "tests", run: tests },
    Stage { name: "fuzz", run: fuzz },
    Stage { name: "simulation", run: simulation },
    Stage { name: "media", run: media },
    Stage { name: "end-to-end", run: end_to_end },
    Stage { name: "conformance", run: |context| conformance::test(&context.workspace) },
    Stage { name: "bench", run: bench },
    Stage { name: "mutants", run: |context| mutants::hunt_some(&context.workspace, MUTANTS) },
];

/// `ci [--require-all] [--only STAGE,..]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &["require-all"], &["only"])?;
    options.no_arguments()?;
    let only: Vec<&str> = options.text("only").map(|list| list.split(',').collect()).unwrap_or_default();
    if let Some(unknown) = only.iter().find(|name| !STAGES.iter().any(|stage| stage.name == **name)) {
        bail!("there is no stage '{unknown}'");
    }
    let context = Context { workspace: Workspace::find()?, require_all: options.has("require-all") };
    let mut sum = Tally::default();
    let mut lines = Vec::new();
    for stage in STAGES {
        if !only.is_empty() && !only.contains(&stage.name) {
            lines.push(format!("{:<12} not asked for", stage.name));
            continue;
        }
        println!("== {}", stage.name);
        let started = Instant::now();
        let tally = (stage.run)(&context).unwrap_or_else(|error| {
            println!("{}: {error:#}", stage.name);
            Tally { failed: 1, ..Tally::default() }
        });
        let tally = judge(tally, context.require_all);
        sum.add(tally);
        lines.push(format!("{:<12} {} ({:.0} s)", stage.name, text(tally), started.elapsed().as_secs_f64()));
    }
    println!("== summary");
    for line in lines {
        println!("{line}");
    }
    println!("{}", text(sum));
    if sum.failed > 0 {
        // Not an error to return: its message would come after the last line (I2).
        std::process::exit(1);
    }
    Ok(())
}

/// Under `--require-all` what did not run has failed (I1), and a stage that checked nothing has failed anyway.
fn judge(mut tally: Tally, require_all: bool) -> Tally {
    if require_all {
        tally.failed += std::mem::take(&mut tally.skipped);
    }
    if tally == Tally::default() {
        tally.failed = 1;
    }
    tally
}

fn text(tally: Tally) -> String {
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    format!("{} passed, {} failed{skipped}", tally.passed, tally.failed)
}

/// A stage that is one check.
fn one(result: Result<()>) -> Result<Tally> {
    result.map(|()| Tally { passed: 1, ..Tally::default() })
}

fn format(context: &Context) -> Result<Tally> {
    one(process::run(context.workspace.cargo().args(["fmt", "--all", "--check"])))
}

fn clippy(context: &Context) -> Result<Tally> {
    let mut cargo = context.workspace.cargo();
    cargo.args(["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]);
    one(process::run(&mut cargo))
}

fn docs(context: &Context) -> Result<Tally> {
    let mut cargo = context.workspace.cargo();
    // Private items are documented too, so links to them are good.
    cargo.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private-intra-doc-links");
    cargo.args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items", "--locked"]);
    one(process::run(&mut cargo))
}

/// Unit, model and documentation tests. Tests marked ignored are long forms of others and count as skipped nowhere.
fn tests(context: &Context) -> Result<Tally> {
    let mut cargo = context.workspace.cargo();
    cargo.args(["test", "--workspace", "--locked", "--no-fail-fast", "--exclude", "trilith-fuzz"]);
    rust_tests(&mut cargo)
}

/// The seeded mutator over every decoder, and the stored corpus.
fn fuzz(context: &Context) -> Result<Tally> {
    let mut cargo = context.workspace.cargo();
    rust_tests(cargo.args(["test", "--package", "trilith-fuzz", "--locked", "--no-fail-fast"]))
}

fn rust_tests(cargo: &mut std::process::Command) -> Result<Tally> {
    let finished = process::run_echoed(cargo)?;
    let mut tally = finished.tally();
    tally.skipped = 0;
    if !finished.success && tally.failed == 0 {
        bail!("the tests do not build or stopped early");
    }
    Ok(tally)
}

fn simulation(context: &Context) -> Result<Tally> {
    let jobs = std::thread::available_parallelism()?.to_string();
    sim::simulate(&context.workspace, &["--seeds", CRASH_SEEDS, "--jobs", &jobs].map(str::to_owned))
}

fn media(context: &Context) -> Result<Tally> {
    let jobs = std::thread::available_parallelism()?.to_string();
    let args = ["--crash-states", CRASH_STATES, "--corruptions", CORRUPTIONS, "--jobs", &jobs];
    media::campaign(&context.workspace, &args.map(str::to_owned))
}

fn end_to_end(context: &Context) -> Result<Tally> {
    let clients = match clients::prepare(&context.workspace) {
        Ok(clients) => clients,
        Err(error) if context.require_all => return Err(error),
        Err(error) => Clients { missing: vec![format!("{error:#}")], ..Clients::default() },
    };
    for line in &clients.missing {
        println!("{line}");
    }
    e2e::test(&context.workspace, &clients, &["--cycles", KILL_CYCLES].map(str::to_owned))
}

/// Every case of the comparison and of the micro-benchmarks once, briefly, without a gate on speed.
fn bench(context: &Context) -> Result<Tally> {
    let mut cargo = context.workspace.cargo();
    cargo.args(["bench", "--quiet", "--package", "trilith-bench", "--bench", "engine", "--locked", "--", "--test"]);
    let mut tally = one(process::run(&mut cargo))?;
    tally.add(compare::smoke(&context.workspace)?);
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_a_failure_only_when_all_is_required() {
        let tally = Tally { passed: 3, failed: 0, skipped: 2 };
        assert_eq!(judge(tally, false), tally);
        assert_eq!(judge(tally, true), Tally { passed: 3, failed: 2, skipped: 0 });
    }

    #[test]
    fn a_stage_that_checked_nothing_failed() {
        assert_eq!(judge(Tally::default(), false).failed, 1);
    }

    #[test]
    fn the_summary_names_skips_only_if_there_are_any() {
        assert_eq!(text(Tally { passed: 2, failed: 0, skipped: 0 }), "2 passed, 0 failed");
        assert_eq!(text(Tally { passed: 2, failed: 1, skipped: 4 }), "2 passed, 1 failed, 4 skipped");
    }
}
