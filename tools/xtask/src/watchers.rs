//! `cargo xtask watchers`: what many watchers cost a server, and what one reader that stops reading costs the others,
//! beside etcd.
//!
//! Owns: the runs and the table. Does not know: how watchers are made (`trilith-watchers`).
//!
//! I1  Each run has a server of its own on a fresh data directory; systems take turns.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::options::Options;
use crate::process;
use crate::servers::{Site, System};
use crate::workspace::Workspace;

/// Name, flags of the generator, and whether it is about a stalled reader.
type Run = (&'static str, &'static [&'static str]);

const MEMORY: &[Run] = &[
    ("1,000 watchers on one stream", &["--mode=memory", "--watchers=1000", "--streams=1", "--connections=1"]),
    ("100,000 watchers on 100 streams", &["--mode=memory", "--watchers=100000", "--streams=100", "--connections=4"]),
];
const STALL: &[&str] = &["--mode=stall", "--watchers=100", "--rate=500", "--seconds=8", "--value-bytes=512"];

/// `watchers [--only memory|stall] [--rounds N]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["only", "rounds"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    let rounds = options.number("rounds", 1)?;
    let wants = |part: &str| options.text("only").is_none_or(|only| only == part);
    crate::peers::ensure(&workspace.peers(), &["etcd"])?;
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    if wants("memory") {
        println!("Watchers of distinct keys of 32 bytes; VmRSS before and after; then 1,000 of the keys are put.\n");
        println!(
            "| {} |\n|---|---|---|---|---|",
            ["", "", "bytes each", "all created, s", "event us, p50 / p99"].join(" | ")
        );
        for round in (0..rounds).flat_map(|_| MEMORY) {
            for system in [System::Trilith, System::Etcd] {
                println!("{}", memory_row(round.0, system, &measure(&workspace, system, round.1)?));
            }
        }
    }
    if wants("stall") {
        println!("\n100 readers of a key put 500 times a second; one reads nothing in the middle stretch of 8 s.\n");
        let head = ["", "before: us, p50 / p99 / max", "stalled", "after", "VmRSS MiB", "behind", "caught up, s"];
        println!("| {} |\n|---|---|---|---|---|---|---|", head.join(" | "));
        for _ in 0..rounds {
            for system in [System::Trilith, System::Etcd] {
                println!("{}", stall_row(system, &measure(&workspace, system, STALL)?));
            }
        }
    }
    Ok(())
}

fn measure(workspace: &Workspace, system: System, flags: &[&str]) -> Result<Value> {
    let site = Site::new(workspace, system, None)?;
    let server = site.start(&[])?;
    let mut command = Command::new(workspace.release("trilith-watchers"));
    command.arg("--endpoint").arg(server.address().to_string());
    command.arg("--pid").arg(server.process_id().to_string()).args(flags);
    let text = process::capture(&mut command).with_context(|| system.name())?;
    serde_json::from_str(text.trim()).context("trilith-watchers prints JSON")
}

fn memory_row(name: &str, system: System, result: &Value) -> String {
    let event = &result["event_us"];
    format!(
        "| {name} | {} | {} | {:.2} | {} / {} |",
        system.name(),
        result["bytes_per_watcher"],
        result["created_seconds"].as_f64().unwrap_or_default(),
        event["p50"],
        event["p99"],
    )
}

fn stall_row(system: System, result: &Value) -> String {
    let latency = |name: &str| format!("{} / {} / {}", result[name]["p50"], result[name]["p99"], result[name]["max"]);
    let mib = |name: &str| result[name].as_u64().unwrap_or_default() >> 20;
    format!(
        "| {} | {} | {} | {} | {}, {}, {} | {} | {:.2} |",
        system.name(),
        latency("quiet_us"),
        latency("stalled_us"),
        latency("after_us"),
        mib("resident_quiet"),
        mib("resident_stalled"),
        mib("resident_after"),
        result["behind"],
        result["caught_up_seconds"].as_f64().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_show_what_was_measured() {
        let memory = json!({ "bytes_per_watcher": 250.0, "created_seconds": 1.0, "event_us": { "p50": 1, "p99": 2 } });
        assert_eq!(memory_row("many", System::Trilith, &memory), "| many | trilith | 250.0 | 1.00 | 1 / 2 |");
        let latency = json!({ "p50": 1, "p99": 2, "max": 3 });
        let stall = json!({
            "quiet_us": latency, "stalled_us": latency, "after_us": latency, "resident_quiet": 1 << 20,
            "resident_stalled": 2 << 20, "resident_after": 3 << 20, "behind": 7, "caught_up_seconds": 0.5,
        });
        let row = "| etcd | 1 / 2 / 3 | 1 / 2 / 3 | 1 / 2 / 3 | 1, 2, 3 | 7 | 0.50 |";
        assert_eq!(stall_row(System::Etcd, &stall), row);
    }
}
