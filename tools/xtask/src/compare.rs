//! Speed of Trilith beside etcd and beside the floor, measured on the same machine in the same minutes.
//!
//! Owns the cases, the interleaving and the table. Every measurement starts a server on a fresh data directory, drives
//! it with the project's load generator (which checks the status and the body of every response), and stops it.
//!
//! I1  Rounds are interleaved: within a round every system runs a case before the next case begins, so that a change
//!     of the machine's mood hits all of them.
//! I2  A figure with failed requests is not a figure: it ends the comparison.
//! I3  Systems are compared by medians over rounds; the spread stands beside them in the JSON.

mod servers;
mod table;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::options::Options;
use crate::process::{self, Tally};
use crate::workspace::Workspace;
use servers::System;

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
    /// Size of the key space; 1 is one hot key.
    keys: u32,
}

const KEY_BYTES: u32 = 32;
const VALUE_BYTES: u32 = 256;

const CASES: &[Case] = &[
    case("put-10x100", Operation::Put, 10, 100, 1_000_000),
    case("put-10x100-hot", Operation::Put, 10, 100, 1),
    case("put-1000x1", Operation::Put, 1000, 1, 1_000_000),
    case("put-1x1", Operation::Put, 1, 1, 1_000_000),
    case("range-10x100", Operation::Range, 10, 100, 1_000_000),
    case("range-10x100-hot", Operation::Range, 10, 100, 1),
    case("range-1x1", Operation::Range, 1, 1, 1_000_000),
];

const fn case(name: &'static str, operation: Operation, connections: u32, streams: u32, keys: u32) -> Case {
    Case { name, operation, connections, streams, keys }
}

/// How much to measure.
struct Plan<'a> {
    workspace: &'a Workspace,
    rounds: u64,
    seconds: f64,
    warmup_seconds: f64,
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

/// `compare [--quick] [--rounds N] [--seconds N] [--only CASE,..] [--json FILE]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &["quick"], &["rounds", "seconds", "only", "json"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    let quick = options.has("quick");
    let plan = Plan {
        workspace: &workspace,
        rounds: options.number("rounds", if quick { 1 } else { 5 })?,
        seconds: options.number("seconds", if quick { 2 } else { 5 })? as f64,
        warmup_seconds: 1.0,
        cases: select(options.text("only"))?,
    };
    crate::peers::ensure(&workspace.peers(), &["etcd"])?;
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    let measurements = measure(&plan, &[System::Trilith, System::Etcd, System::Floor])?;
    let file = options.text("json").map_or_else(|| workspace.target.join("compare.json"), PathBuf::from);
    std::fs::write(&file, serde_json::to_string_pretty(&report(&plan, &measurements)?)?)?;
    print!("{}", table::render(&facts()?, &plan.cases.iter().map(|case| case.name).collect::<Vec<_>>(), &measurements));
    println!("every run: {}", file.display());
    Ok(())
}

/// Every case once and briefly against Trilith and the floor; a case that ran without an error counts as passed.
pub(crate) fn smoke(workspace: &Workspace) -> Result<Tally> {
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    let plan = Plan { workspace, rounds: 1, seconds: 1.0, warmup_seconds: 0.2, cases: select(None)? };
    let measurements = measure(&plan, &[System::Trilith, System::Floor])?;
    let names: Vec<&str> = plan.cases.iter().map(|case| case.name).collect();
    print!("{}", table::render(&facts()?, &names, &measurements));
    Ok(Tally { passed: measurements.len() as u64, ..Tally::default() })
}

fn select(only: Option<&str>) -> Result<Vec<&'static Case>> {
    let Some(only) = only else { return Ok(CASES.iter().collect()) };
    only.split(',')
        .map(|name| CASES.iter().find(|case| case.name == name).with_context(|| format!("there is no case '{name}'")))
        .collect()
}

fn measure(plan: &Plan<'_>, systems: &[System]) -> Result<Vec<Measurement>> {
    let mut measurements = Vec::new();
    for round in 0..plan.rounds {
        for case in &plan.cases {
            for system in systems {
                if *system == System::Floor && case.operation == Operation::Range {
                    continue;
                }
                let measurement =
                    measure_one(plan, case, *system).with_context(|| format!("{} on {}", case.name, system.name()))?;
                eprintln!(
                    "round {}: {:<16} {:<8} {:>9.0}/s",
                    round + 1,
                    case.name,
                    system.name(),
                    measurement.operations_per_second
                );
                measurements.push(measurement);
            }
        }
    }
    Ok(measurements)
}

fn measure_one(plan: &Plan<'_>, case: &'static Case, system: System) -> Result<Measurement> {
    let server = servers::Server::start(plan.workspace, system)?;
    if case.operation == Operation::Range {
        let seconds = if case.keys == 1 { 0.2 } else { 2.0 };
        drive(plan, &server, &Case { operation: Operation::Put, connections: 10, streams: 100, ..*case }, seconds)?;
    }
    if plan.warmup_seconds > 0.0 {
        drive(plan, &server, case, plan.warmup_seconds)?;
    }
    let cpu_before = server.cpu_seconds()?;
    let result = drive(plan, &server, case, plan.seconds)?;
    let cpu_after = server.cpu_seconds()?;
    let number = |name: &str| result[name].as_f64().with_context(|| format!("load printed no number '{name}'"));
    Ok(Measurement {
        system,
        case: case.name,
        operations_per_second: number("operations_per_second")?,
        p50_us: number("p50_us")?,
        p99_us: number("p99_us")?,
        server_cpu_seconds: cpu_after - cpu_before,
        operations: number("operations")?,
    })
}

/// One run of the load generator; an error of any request is an error here (I2).
fn drive(plan: &Plan<'_>, server: &servers::Server, case: &Case, seconds: f64) -> Result<Value> {
    let mut load = Command::new(plan.workspace.release("load"));
    load.arg(match case.operation {
        Operation::Put => "put",
        Operation::Range => "range",
    });
    for (flag, value) in [
        ("--endpoint", server.address().to_string()),
        ("--connections", case.connections.to_string()),
        ("--streams", case.streams.to_string()),
        ("--keys", case.keys.to_string()),
        ("--key-bytes", KEY_BYTES.to_string()),
        ("--value-bytes", VALUE_BYTES.to_string()),
        ("--seconds", seconds.to_string()),
    ] {
        load.args([flag, &value]);
    }
    let text = process::capture(load.arg("--json"))?;
    let result: Value = serde_json::from_str(text.trim()).context("load prints JSON")?;
    if result["errors"].as_u64() != Some(0) {
        bail!("{} of {} requests failed", result["errors"], result["operations"]);
    }
    Ok(result)
}

/// What must stand beside a figure: the machine and the mode of durability.
fn facts() -> Result<Vec<String>> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(vec![
        format!("one member, {cores} cores shared by server and load generator, Linux {}", kernel.trim()),
        "durability: every put is flushed to the disk before its answer, on all three systems".to_owned(),
        format!("keys of {KEY_BYTES} bytes, values of {VALUE_BYTES} bytes; CxS is C connections with S streams each"),
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
    Ok(json!({ "facts": facts()?, "rounds": plan.rounds, "seconds": plan.seconds, "runs": runs }))
}
