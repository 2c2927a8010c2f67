//! `trilith-call`: makes one heavy call after another and says when each began and ended, as one JSON object.
//!
//! It is what disturbs a server while `trilith-load` measures it. Every answer is checked; a wrong one is a failure.

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trilith_bench::arguments;
use trilith_bench::calls::Calls;
use trilith_bench::messages::{self, Summary};

const HELP: &str = "\
trilith-call: heavy calls, one after another, each checked; prints one JSON object

  --endpoint HOST:PORT      server (127.0.0.1:2379)
  --operation range|count|delete|compact|hash-kv|defragment   what is asked (range)
  --first-key N --keys N    the keys that are asked for, numbered and written as trilith-load does (0, 1000000)
  --key-bytes N             length of a key (64)
  --value-bytes N           length of a value (256)
  --revision N              of a compaction, or of a hash (0: the newest)
  --expect N                keys that a range, count or delete must find (what --keys says)
  --seconds S               start calls for so long (0: one call)
";

struct Options {
    endpoint: String,
    operation: String,
    first_key: u64,
    keys: u64,
    key_bytes: usize,
    value_bytes: usize,
    revision: u64,
    expect: Option<u64>,
    seconds: f64,
}

fn main() -> ExitCode {
    arguments::exit_with(run())
}

fn run() -> Result<()> {
    let Some(options) = parse(std::env::args().skip(1))? else {
        print!("{HELP}");
        return Ok(());
    };
    let (path, message) = request(&options)?;
    let mut calls = Calls::connect(&options.endpoint, path).map_err(|error| anyhow!(error))?;
    let end = Instant::now() + Duration::try_from_secs_f64(options.seconds)?;
    let mut done = Vec::new();
    loop {
        let started = micros()?;
        let answer = calls.call(&message).map_err(|error| anyhow!("{}: {error}", options.operation))?;
        let ended = micros()?;
        let summary = check(&options, &answer)?;
        done.push(json!({
            "start_us": started, "end_us": ended, "revision": summary.revision,
            "count": summary.count, "pairs": summary.pairs, "bytes": answer.len(),
        }));
        if Instant::now() >= end {
            break;
        }
    }
    println!("{}", json!({ "operation": options.operation, "calls": Value::from(done) }));
    Ok(())
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        endpoint: "127.0.0.1:2379".to_owned(),
        operation: "range".to_owned(),
        first_key: 0,
        keys: 1_000_000,
        key_bytes: 64,
        value_bytes: 256,
        revision: 0,
        expect: None,
        seconds: 0.0,
    };
    let is_run = arguments::read(arguments, |name, value| {
        match name {
            "--endpoint" => options.endpoint = value()?,
            "--operation" => options.operation = value()?,
            "--first-key" => options.first_key = value()?.parse()?,
            "--keys" => options.keys = value()?.parse()?,
            "--key-bytes" => options.key_bytes = value()?.parse()?,
            "--value-bytes" => options.value_bytes = value()?.parse()?,
            "--revision" => options.revision = value()?.parse()?,
            "--expect" => options.expect = Some(value()?.parse()?),
            "--seconds" => options.seconds = value()?.parse()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(is_run.then_some(options))
}

/// The method's path and the message.
fn request(options: &Options) -> Result<(&'static str, Vec<u8>)> {
    let (mut first, mut end, mut message) = (Vec::new(), Vec::new(), Vec::new());
    messages::key_for(&mut first, options.first_key, options.key_bytes);
    messages::key_for(&mut end, options.first_key + options.keys, options.key_bytes);
    let path = match options.operation.as_str() {
        "range" => {
            messages::span_request(&mut message, &first, &end);
            "/etcdserverpb.KV/Range"
        }
        "count" => {
            messages::count_request(&mut message, &first, &end);
            "/etcdserverpb.KV/Range"
        }
        "delete" => {
            messages::span_request(&mut message, &first, &end);
            "/etcdserverpb.KV/DeleteRange"
        }
        "compact" => {
            messages::revision_request(&mut message, options.revision);
            "/etcdserverpb.KV/Compact"
        }
        "hash-kv" => {
            messages::revision_request(&mut message, options.revision);
            "/etcdserverpb.Maintenance/HashKV"
        }
        "defragment" => "/etcdserverpb.Maintenance/Defragment",
        other => bail!("--operation is none of those --help lists: {other}"),
    };
    Ok((path, message))
}

fn check(options: &Options, answer: &[u8]) -> Result<Summary> {
    let expected = options.expect.unwrap_or(options.keys);
    let summary = match options.operation.as_str() {
        "range" | "count" => messages::check_span(answer, options.value_bytes),
        operation => messages::check_plain(answer, operation == "delete"),
    };
    let summary = summary.map_err(|error| anyhow!(error))?;
    let (count, pairs) = match options.operation.as_str() {
        "range" => (expected, expected),
        "count" | "delete" => (expected, 0),
        _ => (0, 0),
    };
    if (summary.count, summary.pairs) != (count, pairs) {
        bail!("{} keys counted and {} sent instead of {count} and {pairs}", summary.count, summary.pairs);
    }
    Ok(summary)
}

/// Microseconds since 1970.
fn micros() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}
