//! Shows what an etcd v3 endpoint answers to the calls of Rust's `etcd-client`.
//!
//! Usage: `tour HOST:PORT PART..`. Each part works below a key prefix of its own, removes it first, and prints one line
//! an answer. Revisions are printed relative to the one the part began at, leases by their order of appearance.
#![forbid(unsafe_code)]

mod keys;
mod leases;
mod services;
mod show;
mod watches;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use etcd_client::{Client, DeleteOptions, Error};

/// Longest time of a part.
const PART_SECONDS_MAX: u64 = 100;

/// One part under way.
struct Tour {
    client: Client,
    /// Before every key of the part.
    prefix: String,
    /// The revision that is printed as r+0.
    base: i64,
    /// Leases in the order of their first appearance.
    leases: Vec<i64>,
}

impl Tour {
    async fn begin(endpoint: &str, part: &str) -> Result<Self, Error> {
        let mut client = Client::connect([endpoint], None).await?;
        let prefix = format!("conformance/rust/{part}/");
        let answer = client.delete(prefix.as_str(), Some(DeleteOptions::new().with_prefix())).await?;
        let base = answer.header().map_or(0, |header| header.revision());
        Ok(Self { client, prefix, base, leases: Vec::new() })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((endpoint, parts)) = arguments.split_first() else {
        eprintln!("usage: tour HOST:PORT PART..");
        return ExitCode::from(2);
    };
    for part in parts {
        println!("== {part}");
        let limit = Duration::from_secs(PART_SECONDS_MAX);
        match tokio::time::timeout(limit, run(endpoint, part)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                println!("stopped: {error}");
                return ExitCode::FAILURE;
            }
            Err(_) => {
                println!("the part took too long");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

async fn run(endpoint: &str, part: &str) -> Result<(), Error> {
    let mut tour = Tour::begin(endpoint, part).await?;
    match part {
        "kv" => tour.keys().await,
        "txn" => tour.transactions().await,
        "watch" => return tour.watches().await,
        "lease" => return tour.leases().await,
        "maintenance" => tour.maintenance().await,
        "lock" => tour.lock().await,
        "election" => tour.election().await,
        "auth" => tour.auth().await,
        "snapshot" => tour.snapshot().await,
        _ => return Err(Error::InvalidArgs(format!("there is no part '{part}'"))),
    }
    Ok(())
}

/// The value, or nothing after 20 seconds.
async fn within<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(20), future).await.ok()
}
