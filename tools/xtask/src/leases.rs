//! `cargo xtask leases`: leases that run out together while keys are put, beside etcd.
//!
//! Owns: the runs, which puts belong to the quiet stretch and which to that in which leases end, the table. Does not
//! know: how leases are made (`trilith-leases`), how puts are (`trilith-load`).
//!
//! I1  Puts come in an open loop and count from their planned start; one belongs to the stretch in which that lies.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::drive::{Clients, Shape};
use crate::options::Options;
use crate::process;
use crate::servers::{Site, System};
use crate::workspace::Workspace;

/// Puts a second.
const RATE: &str = "2000";
/// The quiet stretch ends so long before the first lease is due, and is so long at most, in microseconds.
const QUIET_BEFORE: u64 = 200_000;
const QUIET_MAX: u64 = 8_000_000;
/// How long etcd, which ends a thousand leases a second, is waited for.
const WAIT_SECONDS: &str = "20";
/// Time to live of those granted last: long enough for etcd on a busy machine to take a key for each.
const TTL_SECONDS: &str = "40";

/// `leases [--leases N] [--rounds N]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["leases", "rounds"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    let leases = options.number("leases", 200_000)?;
    crate::peers::ensure(&workspace.peers(), &["etcd"])?;
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    println!("{leases} leases, each with a key, that run out together; {RATE} puts a second in an open loop.\n");
    let head =
        ["", "gone", "late ms, p50 / p99 / max", "puts, quiet: us, p50 / p99 / max", "while leases end", "p99 ratio"];
    println!("| {} |\n|---|---|---|---|---|---|", head.join(" | "));
    for _ in 0..options.number("rounds", 1)? {
        for system in [System::Trilith, System::Etcd] {
            println!("{}", measure(&workspace, system, leases)?);
        }
    }
    Ok(())
}

fn measure(workspace: &Workspace, system: System, leases: u64) -> Result<String> {
    let site = Site::new(workspace, system, None)?;
    let server = site.start(&[])?;
    let trace = site.folder().join("trace");
    let clients = Clients { workspace, address: server.address() };
    let shape = Shape { keys: 100_000, first_key: 0, key_bytes: 32, value_bytes: 256 };
    let file = trace.to_string_lossy().into_owned();
    // It goes on until it is told to end.
    let limits = ["--rate", RATE, "--seconds", "86400"];
    let streams = ["--connections", "4", "--streams", "1000"];
    let flags = [&limits[..], &streams, &["--trace", &file]].concat();
    let load = clients.start_load(&shape, &flags)?;
    let mut command = Command::new(workspace.release("trilith-leases"));
    command.arg("--endpoint").arg(server.address().to_string()).args(["--wait", WAIT_SECONDS, "--ttl", TTL_SECONDS]);
    let text = process::capture(command.arg("--leases").arg(leases.to_string())).with_context(|| system.name())?;
    load.finish()?;
    let result: Value = serde_json::from_str(text.trim()).context("trilith-leases prints JSON")?;
    row(system, &result, &read_trace(&trace)?)
}

/// Planned start and latency of each put, in microseconds.
fn read_trace(file: &Path) -> Result<Vec<(u64, u64)>> {
    let text = std::fs::read_to_string(file).context("the trace of the puts")?;
    let line = |line: &str| {
        let (start, latency) = line.split_once(' ').context("a line of two numbers")?;
        Ok((start.parse()?, latency.parse()?))
    };
    text.lines().map(line).collect()
}

fn row(system: System, result: &Value, puts: &[(u64, u64)]) -> Result<String> {
    let at = |name: &str| result[name].as_u64();
    let first_due = at("first_due_us").context("when the first lease was due")?;
    let quiet_end = first_due - QUIET_BEFORE;
    let quiet_begin = at("attached_us").context("when the keys were there")?.max(quiet_end - QUIET_MAX);
    let end = at("last_gone_us").unwrap_or(u64::MAX);
    let (quiet, busy) = (quantiles(puts, quiet_begin, quiet_end)?, quantiles(puts, first_due, end)?);
    let (leases, gone) = (at("leases").unwrap_or_default(), at("gone").unwrap_or_default());
    let late = &result["late_ms"];
    Ok(format!(
        "| {} | {gone} of {leases} | {} / {} / {} | {} / {} / {} | {} / {} / {} | {:.2} |",
        system.name(),
        late["p50"],
        late["p99"],
        late["max"],
        quiet[0],
        quiet[1],
        quiet[2],
        busy[0],
        busy[1],
        busy[2],
        busy[1] as f64 / quiet[1] as f64,
    ))
}

/// p50, p99 and the highest latency of the puts of a stretch.
fn quantiles(puts: &[(u64, u64)], begin: u64, end: u64) -> Result<[u64; 3]> {
    let within = puts.iter().filter(|(start, _)| (begin..end).contains(start));
    let mut latencies: Vec<u64> = within.map(|&(_, latency)| latency).collect();
    latencies.sort_unstable();
    let last = latencies.len().checked_sub(1).context("a stretch without puts")?;
    Ok([latencies[last / 2], latencies[last * 99 / 100], latencies[last]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn puts_belong_to_the_stretch_of_their_planned_start() {
        let quiet = (0..100).map(|put| (9_000_000 + put * 1000, 10));
        let busy = (0..100).map(|put| (10_000_000 + put * 1000, 30));
        let odd = [(8_000_000, 900), (9_900_000, 900), (10_200_000, 900)];
        let puts: Vec<_> = quiet.chain(busy).chain(odd).collect();
        let result = json!({
            "leases": 5, "gone": 5, "attached_us": 8_500_000, "first_due_us": 10_000_000, "last_gone_us": 10_100_000,
            "late_ms": { "p50": 1, "p99": 2, "max": 3 },
        });
        let wanted = "| trilith | 5 of 5 | 1 / 2 / 3 | 10 / 10 / 10 | 30 / 30 / 30 | 3.00 |";
        assert_eq!(row(System::Trilith, &result, &puts).unwrap(), wanted);
        assert!(row(System::Trilith, &result, &[]).is_err());
    }
}
