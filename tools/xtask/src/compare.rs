//! Speed of Trilith beside etcd and beside the floor, measured on the same machine in the same minutes.
//!
//! Owns the cases, the interleaving and the table. Puts start on a fresh server each; ranges share one that holds every
//! key. The project's load generator drives them and checks the status and the body of every response.
//!
//! I1  Rounds are interleaved: within a round every system runs a group of cases before the next group begins, so that
//!     a change of the machine's mood hits all of them.
//! I2  A figure with failed requests is not a figure: it ends the comparison.
//! I3  Systems are compared by medians over rounds; every run stands in the JSON.

mod paced;
mod table;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::options::Options;
use crate::process::{self, Tally};
use crate::servers::{Server, Site, System};
use crate::workspace::Workspace;

/// What the load generator does in one case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Put,
    Range,
}

/// One workload.
struct Case {
    name: &'static str,
    operation: Operation,
    connections: u32,
    streams: u32,
    distribution: &'static str,
}

const KEY_BYTES: u32 = 32;
const VALUE_BYTES: u32 = 256;
const KEYS: u64 = 1_000_000;

const CASES: &[Case] = &[
    case("put-10x100", Operation::Put, 10, 100, "random"),
    case("put-10x100-hot", Operation::Put, 10, 100, "one"),
    case("put-1000x1", Operation::Put, 1000, 1, "random"),
    case("put-1x1", Operation::Put, 1, 1, "random"),
    case("range-10x100", Operation::Range, 10, 100, "random"),
    case("range-10x100-hot", Operation::Range, 10, 100, "one"),
    case("range-1000x1", Operation::Range, 1000, 1, "random"),
    case("range-1x1", Operation::Range, 1, 1, "random"),
];

const fn case(
    name: &'static str,
    operation: Operation,
    connections: u32,
    streams: u32,
    distribution: &'static str,
) -> Case {
    Case { name, operation, connections, streams, distribution }
}

/// How much to measure.
struct Plan<'a> {
    workspace: &'a Workspace,
    rounds: u64,
    seconds: f64,
    warmup_seconds: f64,
    keys: u64,
    cases: Vec<&'static Case>,
}

/// One run of one case against one system.
pub(crate) struct Measurement {
    system: System,
    case: &'static str,
    operations_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    server_cpu_seconds: f64,
    operations: f64,
}

/// `compare [--quick] [--rounds N] [--seconds N] [--keys N] [--only CASE,..] [--json FILE] [--paced]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &["quick", "paced"], &["rounds", "seconds", "keys", "only", "json"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    let quick = options.has("quick");
    let plan = Plan {
        workspace: &workspace,
        rounds: options.number("rounds", if quick { 1 } else { 5 })?,
        seconds: options.number("seconds", if quick { 2 } else { 5 })? as f64,
        warmup_seconds: 1.0,
        keys: options.number("keys", if quick { KEYS / 10 } else { KEYS })?,
        cases: select(options.text("only"))?,
    };
    crate::peers::ensure(&workspace.peers(), &["etcd"])?;
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    if options.has("paced") {
        return paced::run(&plan);
    }
    let measurements = measure(&plan, &[System::Trilith, System::Etcd, System::Floor])?;
    let file = options.text("json").map_or_else(|| workspace.target.join("compare.json"), PathBuf::from);
    std::fs::write(&file, serde_json::to_string_pretty(&report(&plan, &measurements)?)?)?;
    print!(
        "{}",
        table::render(&facts(&plan)?, &plan.cases.iter().map(|case| case.name).collect::<Vec<_>>(), &measurements)
    );
    println!("every run: {}", file.display());
    Ok(())
}

/// Every case once and briefly against Trilith and the floor; a case that ran without an error counts as passed.
pub(crate) fn smoke(workspace: &Workspace) -> Result<Tally> {
    workspace.build_release(&["trilith-server"])?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--locked", "--quiet", "--package", "trilith-bench"]);
    process::run(cargo.args(["--bin", "trilith-load", "--bin", "trilith-floor"]))?;
    let plan = Plan { workspace, rounds: 1, seconds: 0.5, warmup_seconds: 0.1, keys: 10_000, cases: select(None)? };
    let measurements = measure(&plan, &[System::Trilith, System::Floor])?;
    let names: Vec<&str> = plan.cases.iter().map(|case| case.name).collect();
    print!("{}", table::render(&facts(&plan)?, &names, &measurements));
    Ok(Tally { passed: measurements.len() as u64, ..Tally::default() })
}

fn select(only: Option<&str>) -> Result<Vec<&'static Case>> {
    let Some(only) = only else { return Ok(CASES.iter().collect()) };
    only.split(',')
        .map(|name| CASES.iter().find(|case| case.name == name).with_context(|| format!("there is no case '{name}'")))
        .collect()
}

fn measure(plan: &Plan<'_>, systems: &[System]) -> Result<Vec<Measurement>> {
    let (puts, ranges): (Vec<&Case>, Vec<&Case>) = plan.cases.iter().partition(|case| case.operation == Operation::Put);
    let mut groups: Vec<Vec<&'static Case>> = puts.into_iter().map(|case| vec![case]).collect();
    if !ranges.is_empty() {
        groups.push(ranges);
    }
    let mut measurements = Vec::new();
    for round in 1..=plan.rounds {
        for group in &groups {
            for system in systems {
                let site = Site::new(plan.workspace, *system, None)?;
                let server = site.start(&[])?;
                if group[0].operation == Operation::Range {
                    fill(plan, &server, group[0]).with_context(|| format!("filling {}", system.name()))?;
                    settle(plan, &server).with_context(|| format!("reading from {}", system.name()))?;
                }
                for case in group {
                    let measurement = measure_one(plan, &server, case, *system);
                    let measurement = measurement.with_context(|| format!("{} on {}", case.name, system.name()))?;
                    let (name, speed) = (system.name(), measurement.operations_per_second);
                    eprintln!("round {round}: {:<16} {name:<8} {speed:>9.0}/s", case.name);
                    measurements.push(measurement);
                }
            }
        }
    }
    Ok(measurements)
}

fn measure_one(plan: &Plan<'_>, server: &Server, case: &'static Case, system: System) -> Result<Measurement> {
    drive(plan, server, &Drive { seconds: plan.warmup_seconds, ..Drive::of(case) })?;
    let result = drive(plan, server, &Drive { seconds: plan.seconds, ..Drive::of(case) })?;
    let cpu = &result["server_cpu_seconds"];
    Ok(Measurement {
        system,
        case: case.name,
        operations_per_second: number(&result["per_second"], "per_second")?,
        p50_us: number(&result["latency_us"]["p50"], "p50")?,
        p99_us: number(&result["latency_us"]["p99"], "p99")?,
        server_cpu_seconds: number(&cpu["user"], "user")? + number(&cpu["system"], "system")?,
        operations: number(&result["requests"], "requests")?,
    })
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value.as_f64().with_context(|| format!("load printed no '{name}'"))
}

/// Puts every key once.
fn fill(plan: &Plan<'_>, server: &Server, case: &'static Case) -> Result<Value> {
    drive(plan, server, &Drive { seconds: 0.1, preload: true, ..Drive::of(case) })
}

/// Reads from everywhere until what is read has been read before: the first reads after so many puts are of pages that
/// no one has looked at, and a case at depth one would be made of them.
fn settle(plan: &Plan<'_>, server: &Server) -> Result<Value> {
    let case = CASES.iter().find(|case| case.name == "range-10x100").context("a case of many ranges")?;
    drive(plan, server, &Drive { seconds: 4.0 * plan.warmup_seconds, ..Drive::of(case) })
}

/// One run of the load generator.
struct Drive {
    case: &'static Case,
    seconds: f64,
    /// Put every key once before.
    preload: bool,
    /// Requests a second, whatever the answers.
    rate: Option<f64>,
}

impl Drive {
    fn of(case: &'static Case) -> Self {
        Self { case, seconds: 0.0, preload: false, rate: None }
    }
}

/// Runs the load generator, which fails if any answer was wrong (I2).
fn drive(plan: &Plan<'_>, server: &Server, run: &Drive) -> Result<Value> {
    let mut load = Command::new(plan.workspace.release("trilith-load"));
    let operation = if run.case.operation == Operation::Put { "put" } else { "range" };
    for (flag, value) in [
        ("--endpoint", server.address().to_string()),
        ("--operation", operation.to_owned()),
        ("--distribution", run.case.distribution.to_owned()),
        ("--connections", run.case.connections.to_string()),
        ("--streams", run.case.streams.to_string()),
        ("--keys", plan.keys.to_string()),
        ("--key-bytes", KEY_BYTES.to_string()),
        ("--value-bytes", VALUE_BYTES.to_string()),
        ("--seconds", run.seconds.to_string()),
        ("--pid", server.process_id().to_string()),
    ] {
        load.args([flag, &value]);
    }
    if run.preload {
        // The whole key space, whatever keys the case itself asks for.
        load.args(["--preload", "--distribution", "random"]);
    }
    if let Some(rate) = run.rate {
        load.args(["--rate", &rate.to_string()]);
    }
    let text = process::capture(&mut load)?;
    let result: Value = serde_json::from_str(text.trim()).context("load prints JSON")?;
    if result["error_count"].as_u64() != Some(0) {
        bail!("{} of {} requests failed", result["error_count"], result["requests"]);
    }
    Ok(result)
}

/// What must stand beside a figure: the machine and the mode of durability.
fn facts(plan: &Plan<'_>) -> Result<Vec<String>> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(vec![
        format!("one member; {cores} cores shared by server and load generator; Linux {}", kernel.trim()),
        "durability: every put is flushed to the disk before its answer, on all three systems".to_owned(),
        format!("keys of {KEY_BYTES} bytes, values of {VALUE_BYTES} bytes; random: {} keys, hot: one", plan.keys),
        format!("CxS: C connections with S requests each; {} rounds of {} s, medians", plan.rounds, plan.seconds),
    ])
}

fn report(plan: &Plan<'_>, measurements: &[Measurement]) -> Result<Value> {
    let runs: Vec<Value> = measurements
        .iter()
        .map(|run| {
            json!({
                "system": run.system.name(), "case": run.case,
                "operations_per_second": run.operations_per_second, "p50_us": run.p50_us, "p99_us": run.p99_us,
                "operations": run.operations, "server_cpu_seconds": run.server_cpu_seconds,
            })
        })
        .collect();
    Ok(json!({ "facts": facts(plan)?, "rounds": plan.rounds, "seconds": plan.seconds, "runs": runs }))
}
