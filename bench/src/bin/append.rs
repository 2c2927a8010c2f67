//! Latency of a durable 4 KiB append: a bare `pwrite` beside the server's port at several queue depths.
//!
//! Shows what the reactor costs on top of the device. Usage: `append <directory> [writes]`. One JSON line per way.

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trilith_reactor::{
    BootFiles, CoreLoop, Event, FileId, FileMode, GlommioPort, Port, Preparation, ReactorOptions, Token, Turn, run,
};

const BLOCK_BYTES: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = PathBuf::from(arguments.next().context("usage: append <directory> [writes]")?);
    let writes = match arguments.next() {
        Some(text) => text.to_str().context("a number of writes")?.parse()?,
        None => 5000,
    };
    report("pwrite, depth 1", &raw(&directory, writes)?, None);
    for depth in [1, 2, 4] {
        let start = Instant::now();
        let latencies = through_port(&directory, writes, depth)?;
        report(&format!("port, depth {depth}"), &latencies, Some(start.elapsed()));
    }
    Ok(())
}

fn report(way: &str, latencies: &Histogram<u64>, took: Option<Duration>) {
    let micros = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let per_second = took.map(|took| (latencies.len() as f64 / took.as_secs_f64()) as u64);
    let line = serde_json::json!({
        "way": way, "writes": latencies.len(), "per_second": per_second,
        "p50_us": micros(0.5), "p90_us": micros(0.9), "p99_us": micros(0.99), "max_us": micros(1.0),
    });
    println!("{line}");
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three significant digits are supported")
}

/// A plain thread that waits for each write.
fn raw(directory: &std::path::Path, writes: u64) -> Result<Histogram<u64>> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join("raw");
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    let file = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(&path)?;
    let memory = vec![0_u8; (1 << 20) + BLOCK_BYTES];
    let aligned = &memory[memory.as_ptr().align_offset(BLOCK_BYTES)..];
    for offset in (0..FILE_BYTES).step_by(1 << 20) {
        file.write_all_at(&aligned[..1 << 20], offset)?;
    }
    let mut latencies = histogram();
    for number in 0..writes {
        let start = Instant::now();
        file.write_all_at(&aligned[..BLOCK_BYTES], number * BLOCK_BYTES as u64 % FILE_BYTES)?;
        latencies.record(start.elapsed().as_nanos() as u64)?;
    }
    std::fs::remove_file(path)?;
    Ok(latencies)
}

struct Appender {
    file: FileId,
    depth: u64,
    writes: u64,
    started: Vec<Instant>,
    done: u64,
    latencies: Histogram<u64>,
}

impl CoreLoop<GlommioPort> for &mut Appender {
    fn handle_turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Turn {
        for event in events.drain(..) {
            let Event::Written { token, result } = event else { panic!("only writes were submitted: {event:?}") };
            result.expect("the device writes");
            let took = self.started[token.0 as usize].elapsed();
            self.latencies.record(took.as_nanos() as u64).expect("the histogram grows by itself");
            self.done += 1;
        }
        while (self.started.len() as u64) < self.writes.min(self.done + self.depth) {
            let number = self.started.len() as u64;
            self.started.push(Instant::now());
            let offset = number * BLOCK_BYTES as u64 % FILE_BYTES;
            Port::write(port, Token(number), self.file, offset, vec![7; BLOCK_BYTES]);
        }
        if self.done == self.writes { Turn::Stop(0) } else { Turn::Continue }
    }
}

fn through_port(directory: &std::path::Path, writes: u64, depth: u64) -> Result<Histogram<u64>> {
    let options = ReactorOptions {
        data_directory: directory.to_owned(),
        listeners: Vec::new(),
        bind_retry_max: Duration::ZERO,
        log_outputs: Vec::new(),
        signals: false,
        spin_before_sleep: Duration::ZERO,
    };
    let mut appender =
        Appender { file: FileId(0), depth, writes, started: Vec::new(), done: 0, latencies: histogram() };
    let outcome = run(&options, |port| {
        appender.file = BootFiles::create(port, "port", FILE_BYTES, FileMode::Log, Preparation::PreWrite)?;
        Ok::<_, std::io::Error>(&mut appender)
    });
    outcome.map_err(|error| anyhow!("{error:?}"))?;
    std::fs::remove_file(directory.join("port"))?;
    Ok(appender.latencies)
}
