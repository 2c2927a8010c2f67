//! `cargo xtask dataset`: more data than memory for it.
//!
//! Owns: the load (values of 4 KiB until the asked size is reached), the restart, the random reads, and the course of
//! memory over all of it. Does not know: what the server keeps where.
//!
//! I1  Every value read is checked. The data directory goes at the end, and the disk has room for it at the start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::drive::{Clients, Shape};
use crate::footprint::kill_and_restart;
use crate::memory::{Resident, Watch};
use crate::options::Options;
use crate::process;
use crate::servers::{Site, System};
use crate::workspace::Workspace;

const VALUE_BYTES: u32 = 4096;
const KEY_BYTES: u32 = 64;
/// The disk holds this many times the data at the start: rows, index, log, and room for two checkpoints.
const ROOM: u64 = 2;
/// How often memory is looked at.
const PERIOD: Duration = Duration::from_millis(200);
/// Reads after each restart.
const READ_STREAMS: [(&str, &str); 2] = [("1", "1"), ("10", "10")];

/// One part of the run.
struct Part {
    what: String,
    seconds: f64,
    per_second: Option<f64>,
    latency_us: Option<(f64, f64)>,
    course: Vec<(f64, Resident)>,
}

impl Part {
    fn peak(&self) -> Resident {
        let larger = |left: Resident, right: &(f64, Resident)| if right.1.all > left.all { right.1 } else { left };
        self.course.iter().fold(Resident::default(), larger)
    }

    fn last(&self) -> Resident {
        self.course.last().map(|(_, resident)| *resident).unwrap_or_default()
    }
}

/// `dataset [--gib N] [--cache-bytes N] [--seconds N] [--folder FOLDER] [--json FILE]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["gib", "cache-bytes", "seconds", "folder", "json"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    let (gib, cache_bytes) = (options.number("gib", 10)?, options.number("cache-bytes", 1 << 30)?);
    let seconds = options.number("seconds", 60)?;
    let folder = options.text("folder").map_or_else(|| workspace.target.join("dataset"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    let (wanted, free) = (ROOM * (gib << 30), free_bytes(&folder)?);
    if free < wanted {
        bail!("{} has {} GiB free, {} are needed", folder.display(), free >> 30, wanted >> 30);
    }
    let keys = (gib << 30) / u64::from(VALUE_BYTES);
    let shape = Shape { keys, first_key: 0, key_bytes: KEY_BYTES, value_bytes: VALUE_BYTES };
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    let site = Site::new(&workspace, System::Trilith, Some(&folder))?;
    let parts = measure(&workspace, &site, &shape, cache_bytes, seconds)?;
    let disk_mib = disk_mib(site.folder())?;
    println!(
        "{keys} keys, values of {VALUE_BYTES} bytes: {gib} GiB; --cache-bytes={cache_bytes}; on disk {disk_mib} MiB\n"
    );
    print!("{}", render(&parts, cache_bytes));
    let file = options.text("json").map_or_else(|| workspace.target.join("dataset.json"), PathBuf::from);
    std::fs::write(&file, serde_json::to_string_pretty(&report(&parts))?)?;
    println!("course of memory: {}", file.display());
    Ok(())
}

fn measure(workspace: &Workspace, site: &Site, shape: &Shape, cache_bytes: u64, seconds: u64) -> Result<Vec<Part>> {
    let arguments = [format!("--cache-bytes={cache_bytes}")];
    let clients = Clients { workspace, address: site.address() };
    let mut server = site.start(&arguments)?;
    let mut parts = Vec::new();
    let (begun, watch) = (Instant::now(), Watch::start(server.process_id(), PERIOD));
    clients.fill(shape).context("loading")?;
    let took = begun.elapsed().as_secs_f64();
    let course = watch.finish();
    eprintln!("loaded in {took:.0} s");
    parts.push(Part {
        what: "load".to_owned(),
        seconds: took,
        per_second: Some(shape.keys as f64 / took),
        latency_us: None,
        course,
    });
    for (connections, streams) in READ_STREAMS {
        let took;
        (server, took) = kill_and_restart(site, server, &clients, shape, &arguments)?;
        let course = vec![(0.0, Resident::of(server.process_id())?)];
        eprintln!("first read {took:.2} s after kill -9");
        let what = "kill -9 to the first linearizable read".to_owned();
        parts.push(Part { what, seconds: took, per_second: None, latency_us: None, course });
        let watch = Watch::start(server.process_id(), PERIOD);
        let time = seconds.to_string();
        let flags = ["--operation", "range", "--connections", connections, "--streams", streams, "--seconds", &time];
        let result = clients.load(shape, &flags).context("random reads")?;
        let latency = |name: &str| result["latency_us"][name].as_f64();
        parts.push(Part {
            what: format!("random linearizable reads, {connections}x{streams}"),
            seconds: seconds as f64,
            per_second: result["per_second"].as_f64(),
            latency_us: latency("p50").zip(latency("p99")),
            course: watch.finish(),
        });
    }
    let (begun, watch) = (Instant::now(), Watch::start(server.process_id(), PERIOD));
    clients.call("count", shape, &[]).context("counting the keys")?;
    let seconds = begun.elapsed().as_secs_f64();
    let course = watch.finish();
    parts.push(Part { what: "count of all keys".to_owned(), seconds, per_second: None, latency_us: None, course });
    Ok(parts)
}

fn render(parts: &[Part], cache_bytes: u64) -> String {
    let mut text = String::from(
        "| part | s | /s | p50 / p99 us | VmRSS MiB, highest | of it heap | of it mapped | at the end |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for part in parts {
        let (peak, last) = (part.peak(), part.last());
        let per_second = part.per_second.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        let latency = part.latency_us.map_or_else(|| "-".to_owned(), |(p50, p99)| format!("{p50:.0} / {p99:.0}"));
        text.push_str(&format!(
            "| {} | {:.2} | {per_second} | {latency} | {:.0} | {:.0} | {:.0} | {:.0} |\n",
            part.what, part.seconds, peak.all, peak.anonymous, peak.file, last.all
        ));
    }
    let limit = cache_bytes as f64 / f64::from(1 << 20) + 256.0;
    let highest = parts.iter().map(|part| part.peak().all).fold(0.0, f64::max);
    let verdict = if highest <= limit { "within" } else { "ABOVE" };
    text.push_str(&format!("\nhighest VmRSS {highest:.0} MiB: {verdict} budget + 256 MiB = {limit:.0} MiB\n"));
    text
}

fn report(parts: &[Part]) -> Value {
    let part = |part: &Part| {
        let course: Vec<Value> =
            part.course.iter().map(|(at, resident)| json!({ "s": at, "resident": resident.json() })).collect();
        json!({ "part": part.what, "seconds": part.seconds, "per_second": part.per_second, "course": course })
    };
    parts.iter().map(part).collect()
}

/// Bytes that a folder's file system has left.
fn free_bytes(folder: &Path) -> Result<u64> {
    let text = process::capture(Command::new("df").args(["--output=avail", "--block-size=1"]).arg(folder))?;
    text.lines().last().and_then(|line| line.trim().parse().ok()).context("df says how much is free")
}

/// MiB that a folder takes up.
fn disk_mib(folder: &Path) -> Result<u64> {
    let text = process::capture(Command::new("du").args(["--summarize", "--block-size=1M"]).arg(folder))?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).context("du says how much is used")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_looks_at_the_highest_figure_of_all_parts() {
        let part = |all| Part {
            what: "load".to_owned(),
            seconds: 1.0,
            per_second: None,
            latency_us: None,
            course: [all, 1.0].map(|all| (0.0, Resident { all, ..Resident::default() })).to_vec(),
        };
        assert!(render(&[part(1279.0), part(1280.0)], 1 << 30).contains("1280 MiB: within"));
        assert!(render(&[part(1281.0), part(1.0)], 1 << 30).contains("1281 MiB: ABOVE"));
    }
}
