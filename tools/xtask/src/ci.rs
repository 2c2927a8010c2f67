//! The gate: one read-only run of everything that must hold, and a summary of what ran and what did not.
//!
//! Owns the list of stages, their order, cheap ones first, and how long each may take. A stage that fails does not stop
//! the next. What later stages need besides the workspace is built beside the earlier ones.
//!
//! I1  A stage that did not run is named with its reason; under `--require-all` it is a failure.
//! I2  The last line is the sum of all checks: `N passed, N failed[, N skipped]`.
//! I3  A stage that takes too long is ended with all its processes and has failed by name.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::ahead::Ahead;
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
const MUTANTS: usize = 2;
/// Cycles of kill -9 that every run tries.
const KILL_CYCLES: &str = "50";
const CORES_KILL_CYCLES: &str = "10";

/// Scenarios that every run tries on several cores, too, and on how many: the sequencer serves no client then.
const ON_CORES: &str = "etcdctl_current_keys,etcdctl_leases,go_clientv3,http_,malformed_calls,graceful_stop,\
     kill_under_load";
const CORES: &str = "9";
/// Cores of the node's tests.
const NODE_CORES: &str = "4";

/// How often the processes of a stage are ended whose time is up, for it may start others.
const END_EVERY: Duration = Duration::from_secs(1);

/// What a stage is told.
struct Context {
    workspace: Workspace,
    require_all: bool,
    /// The clients and peers of the end-to-end tests and of the conformance suite, under way.
    clients: RefCell<Option<Ahead>>,
    /// The copy of the tree with the seeded bugs, under way.
    mutants: RefCell<Option<Ahead>>,
    /// Whether the tests have run and passed.
    tests_passed: Cell<bool>,
}

/// A name, the work behind it, and the longest it may take, on a slow machine that has built nothing yet.
struct Stage {
    name: &'static str,
    seconds_max: u64,
    run: fn(&Context) -> Result<Tally>,
}

const fn stage(name: &'static str, seconds_max: u64, run: fn(&Context) -> Result<Tally>) -> Stage {
    Stage { name, seconds_max, run }
}

const STAGES: &[Stage] = &[
    stage("format", 60, format),
    stage("tidy", 60, |_| one(tidy::run(&[]))),
    stage("generated", 120, |_| one(generate::run(&["--check".to_owned()]))),
    stage("arrows", 120, |_| one(arrows::run(&[]))),
    stage("clippy", 480, clippy),
    stage("docs", 300, docs),
    stage("tests", 1200, tests),
    stage("fuzz", 240, fuzz),
    stage("simulation", 480, simulation),
    stage("media", 240, media),
    stage("end-to-end", 1200, end_to_end),
    stage("conformance", 900, conformance),
    stage("bench", 360, bench),
    stage("mutants", 480, mutants),
];
/// Stages that need peers and clients, and so are worth preparing for.
const WITH_CLIENTS: &[&str] = &["end-to-end", "conformance"];

/// `ci [--require-all] [--only STAGE,..]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &["require-all"], &["only"])?;
    options.no_arguments()?;
    let only: Vec<&str> = options.text("only").map(|list| list.split(',').collect()).unwrap_or_default();
    if let Some(unknown) = only.iter().find(|name| !STAGES.iter().any(|stage| stage.name == **name)) {
        bail!("there is no stage '{unknown}'");
    }
    let is_wanted = |name: &str| only.is_empty() || only.contains(&name);
    let begun = Instant::now();
    let workspace = Workspace::find()?;
    let ahead = WITH_CLIENTS.iter().any(|name| is_wanted(name)).then(|| Ahead::clients(&workspace)).transpose()?;
    let require_all = options.has("require-all");
    let clients = RefCell::new(ahead);
    let context =
        Context { workspace, require_all, clients, mutants: RefCell::default(), tests_passed: Cell::default() };
    let mut sum = Tally::default();
    let mut lines = Vec::new();
    for stage in STAGES {
        if !is_wanted(stage.name) {
            lines.push(format!("{:<12} not asked for", stage.name));
            continue;
        }
        println!("== {}", stage.name);
        let started = Instant::now();
        let limit = Duration::from_secs(stage.seconds_max);
        let tally = within(limit, end_processes, || (stage.run)(&context)).unwrap_or_else(|error| {
            println!("{}: {error:#}", stage.name);
            Tally { failed: 1, ..Tally::default() }
        });
        let tally = judge(tally, context.require_all);
        sum.add(tally);
        let line = format!("{:<12} {} ({:.0} s)", stage.name, text(tally), started.elapsed().as_secs_f64());
        println!("{line}");
        lines.push(line);
    }
    println!("== summary");
    for line in lines {
        println!("{line}");
    }
    println!("{:<12} {:.0} s", "in all", begun.elapsed().as_secs_f64());
    println!("{}", text(sum));
    if sum.failed > 0 {
        // Not an error to return: its message would come after the last line (I2).
        std::process::exit(1);
    }
    Ok(())
}

/// Does the work; when time is up, `end` is called until the work returns, and it has failed (I3).
fn within(limit: Duration, end: impl Fn() + Send, work: impl FnOnce() -> Result<Tally>) -> Result<Tally> {
    let (done, ended) = channel::<()>();
    let watch = move || {
        let mut wait = limit;
        while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            end();
            wait = END_EVERY;
        }
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(watch);
        let result = work();
        drop(done);
        if started.elapsed() > limit { bail!("not done after {} s", limit.as_secs()) } else { result }
    })
}

fn end_processes() {
    process::end_descendants(std::process::id());
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
    let mut tally = rust_tests(&mut cargo)?;
    context.tests_passed.set(tally.failed == 0);
    // The turns of a whole process once more, on several cores and shards.
    let mut cargo = context.workspace.cargo();
    cargo.args(["test", "--package", "trilith-server", "--test", "node", "--locked", "--no-fail-fast"]);
    tally.add(rust_tests(cargo.env("TRILITH_TEST_CORES", NODE_CORES))?);
    Ok(tally)
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
    await_clients(context);
    // What the last stage builds is built while these wait.
    *context.mutants.borrow_mut() = Ahead::mutants(&context.workspace, MUTANTS).ok();
    let clients = match clients::prepare(&context.workspace) {
        Ok(clients) => clients,
        Err(error) if context.require_all => return Err(error),
        Err(error) => Clients { missing: vec![format!("{error:#}")], ..Clients::default() },
    };
    for line in &clients.missing {
        println!("{line}");
    }
    let flags = ["--cycles", KILL_CYCLES].map(str::to_owned);
    let mut tally = e2e::test(&context.workspace, &clients, &flags, e2e::GATE_SECONDS_MAX)?;
    let flags = ["--cores", CORES, "--cycles", CORES_KILL_CYCLES, "--only", ON_CORES].map(str::to_owned);
    tally.add(e2e::test(&context.workspace, &clients, &flags, e2e::GATE_SECONDS_MAX)?);
    Ok(tally)
}

fn conformance(context: &Context) -> Result<Tally> {
    await_clients(context);
    conformance::test(&context.workspace)
}

/// What could not be prepared is tried again by the stage that needs it, whose error then names it.
fn await_clients(context: &Context) {
    if let Some(ahead) = context.clients.take() {
        ahead.wait();
    }
}

fn mutants(context: &Context) -> Result<Tally> {
    if let Some(ahead) = context.mutants.take() {
        ahead.wait();
    }
    mutants::hunt_some(&context.workspace, MUTANTS, context.tests_passed.get())
}

/// Every case of the comparison and of the micro-benchmarks once, briefly, without a gate on speed.
fn bench(context: &Context) -> Result<Tally> {
    let mut cargo = context.workspace.cargo();
    // As a test: built as the tests are, and each benchmark runs once.
    cargo.args(["test", "--quiet", "--package", "trilith-bench", "--bench", "engine", "--locked"]);
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
    fn a_stage_is_done_in_time_or_failed() {
        let (long, short) = (Duration::from_secs(600), Duration::from_millis(20));
        let nobody = || panic!("time is not up");
        let passed = Tally { passed: 2, ..Tally::default() };
        assert_eq!(within(long, nobody, || Ok(passed)).unwrap(), passed);
        assert_eq!(within(long, nobody, || bail!("its own reason")).unwrap_err().to_string(), "its own reason");
        // Work that returns only when it is ended.
        let (end, ended) = channel();
        let late = within(
            short,
            move || end.send(()).unwrap_or_default(),
            || {
                ended.recv()?;
                Ok(passed)
            },
        );
        assert_eq!(late.unwrap_err().to_string(), "not done after 0 s");
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
