//! `cargo xtask footprint`: memory after a load, and the time from kill -9 to the first linearizable read, beside
//! etcd's.
//!
//! Owns: the load (one million keys of 64 bytes, values of 256), the order of steps, the table.
//!
//! I1  Systems take turns, round by round, each on a fresh data directory; the table shows medians.
//! I2  The clock runs from before the signal to the answer's arrival: it includes the end of the old process, the
//!     start of the new one and whatever it does before it serves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::drive::{Clients, Shape};
use crate::memory::{Group, Resident};
use crate::options::Options;
use crate::servers::{Server, Site, System};
use crate::workspace::Workspace;

/// Longest wait for the first answer.
const RESTART_MAX: Duration = Duration::from_secs(120);

/// What one system came to in one round.
struct Footprint {
    system: System,
    resident: Resident,
    group_mib: Option<f64>,
    restart_seconds: f64,
}

/// `footprint [--rounds N] [--keys N] [--idle SECONDS] [--json FILE]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["rounds", "keys", "idle", "json"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    let shape = Shape { keys: options.number("keys", 1_000_000)?, first_key: 0, key_bytes: 64, value_bytes: 256 };
    let (rounds, idle) = (options.number("rounds", 3)?, Duration::from_secs(options.number("idle", 15)?));
    crate::peers::ensure(&workspace.peers(), &["etcd"])?;
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    let mut footprints = Vec::new();
    for round in 1..=rounds {
        for system in [System::Trilith, System::Etcd] {
            let footprint = measure(&workspace, system, &shape, idle).with_context(|| system.name())?;
            eprintln!("round {round}: {}", footprint.json());
            footprints.push(footprint);
        }
    }
    let file = options.text("json").map_or_else(|| workspace.target.join("footprint.json"), PathBuf::from);
    let all: Vec<Value> = footprints.iter().map(Footprint::json).collect();
    std::fs::write(&file, serde_json::to_string_pretty(&all)?)?;
    println!(
        "{} keys of {} bytes, values of {} bytes, put once each; memory after {} s without requests; {rounds} rounds, \
         medians\n",
        shape.keys,
        shape.key_bytes,
        shape.value_bytes,
        idle.as_secs()
    );
    print!("{}", render(&footprints));
    println!("every round: {}", file.display());
    Ok(())
}

fn measure(workspace: &Workspace, system: System, shape: &Shape, idle: Duration) -> Result<Footprint> {
    let site = Site::new(workspace, system, None)?;
    let group = Group::new(system.name());
    let server = site.start(&[])?;
    if let Some(group) = &group {
        group.adopt(server.process_id())?;
    }
    let clients = Clients { workspace, address: site.address() };
    clients.fill(shape)?;
    std::thread::sleep(idle);
    let resident = Resident::of(server.process_id())?;
    let group_mib = group.as_ref().map(Group::mib).transpose()?;
    let (restarted, restart_seconds) = kill_and_restart(&site, server, &clients, shape, &[])?;
    // Everything is there again.
    clients.call("count", shape, &[])?;
    drop(restarted);
    Ok(Footprint { system, resident, group_mib, restart_seconds })
}

/// Kills a server with SIGKILL and starts it again. The new process and the seconds until it answered a read.
pub(crate) fn kill_and_restart(
    site: &Site,
    server: Server,
    clients: &Clients<'_>,
    shape: &Shape,
    arguments: &[String],
) -> Result<(Server, f64)> {
    let begun = Instant::now();
    drop(server);
    let server = site.spawn(arguments)?;
    loop {
        // A read of one key, checked; while the port is closed the generator fails at once.
        if clients.load(shape, &["--operation", "range", "--connections", "1", "--requests", "1"]).is_ok() {
            return Ok((server, begun.elapsed().as_secs_f64()));
        }
        if begun.elapsed() > RESTART_MAX {
            bail!("no read was answered within {RESTART_MAX:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Footprint {
    fn json(&self) -> Value {
        json!({
            "system": self.system.name(), "resident": self.resident.json(),
            "group_mib": self.group_mib.map(f64::round), "restart_seconds": self.restart_seconds,
        })
    }
}

/// A figure's name and where it stands.
type Row = (&'static str, fn(&Footprint) -> f64);

fn render(footprints: &[Footprint]) -> String {
    let of = |system: System, value: fn(&Footprint) -> f64| {
        let mut values: Vec<f64> = footprints.iter().filter(|it| it.system == system).map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let mut text = String::from("| | trilithd | etcd | ratio |\n|---|---|---|---|\n");
    let rows: [Row; 5] = [
        ("VmRSS, MiB", |it| it.resident.all),
        ("of it heap and stacks, MiB", |it| it.resident.anonymous),
        ("of it mapped files, MiB", |it| it.resident.file),
        ("control group, page cache included, MiB", |it| it.group_mib.unwrap_or_default()),
        ("kill -9 to the first linearizable read, s", |it| it.restart_seconds),
    ];
    for (index, (label, value)) in rows.into_iter().enumerate() {
        let (ours, theirs) = (of(System::Trilith, value), of(System::Etcd, value));
        let digits = if index == 4 { 2 } else { 0 };
        text.push_str(&format!("| {label} | {ours:.digits$} | {theirs:.digits$} | {:.2} |\n", ours / theirs));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_medians_and_ratios() {
        let run = |system, all, restart_seconds| Footprint {
            system,
            resident: Resident { all, ..Resident::default() },
            group_mib: None,
            restart_seconds,
        };
        let all = [
            run(System::Trilith, 300.0, 0.4),
            run(System::Etcd, 800.0, 4.0),
            run(System::Trilith, 100.0, 0.2),
            run(System::Trilith, 200.0, 9.0),
        ];
        let text = render(&all);
        assert!(text.contains("| VmRSS, MiB | 200 | 800 | 0.25 |"), "{text}");
        assert!(text.contains("| kill -9 to the first linearizable read, s | 0.40 | 4.00 | 0.10 |"), "{text}");
    }
}
