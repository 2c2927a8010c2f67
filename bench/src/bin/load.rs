//! `trilith-load`: the load generator. Its flags are in `options.rs`; it prints one JSON object and fails if any answer
//! was wrong.

use anyhow::{Result, anyhow, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trilith_bench::arguments;
use trilith_bench::options::{Distribution, HELP, Limit, Operation, Options};
use trilith_bench::worker::{self, Measured, Share};

/// Connections and streams of the preload, whatever the run has.
const PRELOAD_CONNECTIONS: usize = 4;
const PRELOAD_STREAMS: usize = 100;
/// Kernel ticks a second in /proc, fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// Set when standard input ended, if that matters.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    arguments::exit_with(run())
}

fn run() -> Result<()> {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        print!("{HELP}");
        return Ok(());
    }
    let options = Options::parse(std::env::args().skip(1)).map_err(|error| anyhow!(error))?;
    let revision = AtomicU64::new(0);
    if options.preload {
        let measured = run_all(&preload_of(&options), &revision, &STOP)?;
        if !measured.errors.is_empty() {
            bail!("the preload failed: {:?}", measured.errors);
        }
    }
    let before = options.pid.map(processor_seconds).transpose()?;
    let own_before = processor_seconds(std::process::id())?;
    if options.until_input_ends {
        thread::spawn(|| {
            // What comes in has no meaning; its end, or an error, has.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            STOP.store(true, Ordering::Relaxed);
        });
    }
    let mut measured = run_all(&options, &revision, &STOP)?;
    let own_after = processor_seconds(std::process::id())?;
    let server = match (options.pid, before) {
        (Some(pid), Some(before)) => Some(difference(before, processor_seconds(pid)?)),
        _ => None,
    };
    if let Some(file) = &options.trace {
        write_trace(file, &mut measured.trace)?;
    }
    println!("{}", report(&options, &measured, server, difference(own_before, own_after)));
    if measured.errors.is_empty() { Ok(()) } else { Err(anyhow!("some answers were wrong: {:?}", measured.errors)) }
}

/// Puts every key once.
fn preload_of(options: &Options) -> Options {
    Options {
        operation: Operation::Put,
        connections: PRELOAD_CONNECTIONS,
        streams: PRELOAD_STREAMS,
        threads: 1,
        limit: Limit::Requests(if options.distribution == Distribution::One { 1 } else { options.keys }),
        distribution: Distribution::Sequential,
        rate: None,
        trace: None,
        ..options.clone()
    }
}

/// Splits the run over the threads and joins what they measured.
fn run_all(options: &Options, revision: &AtomicU64, stop: &AtomicBool) -> Result<Measured> {
    let threads = options.threads as u64;
    let share = |number: u64| {
        let part = |total: u64| total / threads + u64::from(number < total % threads);
        let before = |total: u64| total / threads * number + number.min(total % threads);
        let (first_request, requests) = match options.limit {
            Limit::Requests(requests) => (before(requests), Some(part(requests))),
            Limit::Time(_) => (before(options.keys), None),
        };
        Share {
            connections: part(options.connections as u64) as usize,
            first_request,
            requests,
            rate: options.rate.map(|rate| rate / threads as f64),
            seed: options.seed.wrapping_mul(1000).wrapping_add(number),
        }
    };
    let shares: Vec<_> = (0..threads).map(share).collect();
    let results = thread::scope(|scope| {
        let start = |share| scope.spawn(move || worker::run(options, share, revision, stop));
        let running: Vec<_> = shares.iter().map(start).collect();
        running.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect::<Vec<_>>()
    });
    let mut all: Option<Measured> = None;
    for result in results {
        let measured = result.map_err(|error| anyhow!(error))?;
        all = Some(match all {
            None => measured,
            Some(sum) => join(sum, measured),
        });
    }
    all.ok_or_else(|| anyhow!("no threads"))
}

fn join(mut sum: Measured, other: Measured) -> Measured {
    sum.latencies.add(&other.latencies).expect("the histograms have the same bounds");
    for (what, count) in &other.errors {
        *sum.errors.entry(what.clone()).or_default() += count;
    }
    sum.started = sum.started.min(other.started);
    sum.ended = sum.ended.max(other.ended);
    sum.trace.extend(other.trace);
    sum
}

/// One line per right answer, in the order of their planned starts.
fn write_trace(file: &Path, trace: &mut [(Instant, Duration)]) -> Result<()> {
    trace.sort_unstable();
    let (now, since_epoch) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let mut out = BufWriter::new(std::fs::File::create(file)?);
    for (start, latency) in trace {
        let start = since_epoch - now.saturating_duration_since(*start);
        writeln!(out, "{} {}", start.as_micros(), latency.as_micros())?;
    }
    Ok(out.flush()?)
}

/// User and system time of a process, in seconds.
fn processor_seconds(pid: u32) -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; fields are counted after it.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(|| anyhow!("/proc/{pid}/stat has no name"))?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> {
        let field = fields.get(index).ok_or_else(|| anyhow!("/proc/{pid}/stat is short"))?;
        Ok(field.parse::<f64>()? / TICKS_PER_SECOND)
    };
    Ok((ticks(11)?, ticks(12)?))
}

fn difference(before: (f64, f64), after: (f64, f64)) -> (f64, f64) {
    (after.0 - before.0, after.1 - before.1)
}

fn report(options: &Options, measured: &Measured, server: Option<(f64, f64)>, own: (f64, f64)) -> Value {
    let seconds = measured.ended.saturating_duration_since(measured.started).as_secs_f64();
    let right = measured.latencies.len();
    let wrong: u64 = measured.errors.values().sum();
    let limit = match options.limit {
        Limit::Requests(requests) => json!({ "requests": requests }),
        Limit::Time(time) => json!({ "seconds": time.as_secs_f64() }),
    };
    json!({
        "parameters": {
            "endpoint": options.endpoint,
            "operation": match options.operation { Operation::Put => "put", Operation::Range => "range" },
            "serializable": options.serializable,
            "connections": options.connections,
            "streams": options.streams,
            "limit": limit,
            "keys": options.keys,
            "first_key": options.first_key,
            "key_bytes": options.key_bytes,
            "value_bytes": options.value_bytes,
            "distribution": format!("{:?}", options.distribution).to_lowercase(),
            "preload": options.preload,
            "rate": options.rate,
            "threads": options.threads,
            "seed": options.seed,
        },
        "requests": right + wrong,
        "seconds": seconds,
        "per_second": if seconds > 0.0 { (right as f64 / seconds).round() } else { 0.0 },
        "error_count": wrong,
        "errors": counts(&measured.errors),
        "latency_us": latencies(&measured.latencies),
        "server_cpu_seconds": server.map(|(user, system)| json!({ "user": user, "system": system })),
        "client_cpu_seconds": { "user": own.0, "system": own.1 },
    })
}

fn counts(errors: &BTreeMap<String, u64>) -> Value {
    errors.iter().map(|(what, count)| (what.clone(), Value::from(*count))).collect::<serde_json::Map<_, _>>().into()
}

fn latencies(latencies: &Histogram<u64>) -> Value {
    let micros = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
    let at = |quantile| (micros(latencies.value_at_quantile(quantile)) * 10.0).round() / 10.0;
    json!({
        "mean": (latencies.mean() / 100.0).round() / 10.0,
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0),
    })
}
