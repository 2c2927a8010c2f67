//! `trilith-attack`: runs one attack against a server and prints what became of it, as one JSON object.
//!
//! For servers of one's own: the attacks are those that `cargo xtask attacks` measures a server under.

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use trilith_bench::arguments;
use trilith_bench::attack::{ATTACKS, campaign};

const HELP: &str = "\
trilith-attack: what a hostile client does, at a bounded rate; prints one JSON object

  --endpoint HOST:PORT      server (127.0.0.1:2379)
  --attack NAME             one of --list
  --seconds S               for so long (10), or until standard input ends
  --list                    names and summaries, as JSON
";

/// Set when standard input ended.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    arguments::exit_with(work())
}

fn work() -> Result<()> {
    let (mut endpoint, mut name, mut seconds) = ("127.0.0.1:2379".to_owned(), None, 10.0);
    let mut is_list = false;
    let is_run = arguments::read(std::env::args().skip(1), |flag, value| {
        match flag {
            "--list" => is_list = true,
            "--endpoint" => endpoint = value()?,
            "--attack" => name = Some(value()?),
            "--seconds" => seconds = value()?.parse()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if !is_run {
        print!("{HELP}");
        return Ok(());
    }
    if is_list {
        println!("{}", list());
        return Ok(());
    }
    let name = name.context("--attack names one of --list")?;
    let attack = ATTACKS.iter().find(|attack| attack.name == name).with_context(|| format!("no attack is {name}"))?;
    let endpoint = endpoint.to_socket_addrs()?.next().context("the endpoint has no address")?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        STOP.store(true, Ordering::Relaxed);
    });
    let time = Duration::try_from_secs_f64(seconds)?;
    let outcome = campaign::run(attack, endpoint, time, &STOP).map_err(|error| anyhow!(error))?;
    let verdict = outcome.judge(attack.expect);
    println!(
        "{}",
        json!({
            "attack": attack.name, "met": verdict.is_ok(), "verdict": verdict.unwrap_or_else(|wrong| wrong),
            "opened": outcome.opened, "unopened": outcome.unopened, "open": outcome.open,
            "closed": outcome.closed, "longest_seconds": outcome.longest_seconds,
            "pieces": outcome.pieces, "bytes": outcome.bytes, "answers": outcome.answers,
        })
    );
    Ok(())
}

fn list() -> serde_json::Value {
    let entries = ATTACKS.iter().map(|attack| {
        json!({
            "name": attack.name, "summary": attack.summary, "connections": attack.connections,
            "connects_per_second": attack.connects_per_second, "pieces_per_second": attack.pieces_per_second,
        })
    });
    entries.collect()
}
