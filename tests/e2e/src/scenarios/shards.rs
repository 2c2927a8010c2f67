//! Batches of writes that threads evaluate beside each other, each a range of keys, in the real process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail};

use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::messages::KeyValue;
use crate::server::{Launch, Server, Subject};
use crate::setup::{Outcome, Setup};

const CONNECTIONS: u64 = 4;
/// Writers of a connection, each with one put at a time: together enough for large batches.
const WRITERS: u64 = 100;
const PUTS: u64 = 30;
const KEYS: u64 = 4_000;

/// A put that was answered.
#[derive(Debug)]
struct Put {
    key: String,
    value: String,
    revision: u64,
}

/// Many writers at once, before a checkpoint (all changes in memory), after it (pages of a file, read by every thread)
/// and after a restart (none of them in memory): every put took one revision, and every key is as its last put left it.
pub(super) fn writes_by_shards(setup: &Setup) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd has no shards".to_owned()));
    }
    let flags = ["--cores=4", "--shards=3"].map(str::to_owned).to_vec();
    let launch = Launch { flags, ..setup.launch()? };
    let mut puts = Vec::new();
    for life in 0..2 {
        let server = launch.start()?;
        for phase in 0..2 {
            let before = rounds(&server)?;
            puts.extend(write(&server, setup.seed ^ (2 * life + phase))?);
            let made = rounds(&server)? - before;
            if made == 0 {
                bail!("life {life}, phase {phase}: shards evaluated nothing");
            }
            let found = runtime()?.block_on(read_and_checkpoint(&server))?;
            check(&puts, &found).with_context(|| format!("life {life}, phase {phase}, after {made} rounds"))?;
        }
        server.stop(&[])?;
    }
    Ok(Outcome::Passed)
}

/// All writers' puts.
fn write(server: &Server, seed: u64) -> Result<Vec<Put>> {
    runtime()?.block_on(async {
        let mut writers = Vec::new();
        for connection in 0..CONNECTIONS {
            let client = Connection::open(server.address()).await?;
            for writer in 0..WRITERS {
                let number = connection * WRITERS + writer;
                writers.push(tokio::spawn(write_some(client.clone(), Chance::new(seed, number), number)));
            }
        }
        let mut puts = Vec::new();
        for writer in writers {
            puts.extend(writer.await.context("a writer died")??);
        }
        Ok(puts)
    })
}

async fn write_some(client: Connection, mut chance: Chance, writer: u64) -> Result<Vec<Put>> {
    let mut puts = Vec::new();
    for number in 0..PUTS {
        let key = format!("shards/{:05}", chance.below(KEYS));
        let value = format!("{writer}/{number}/{}", chance.bits());
        let revision = client.put(key.as_bytes(), value.as_bytes()).await?;
        puts.push(Put { key, value, revision });
    }
    Ok(puts)
}

async fn read_and_checkpoint(server: &Server) -> Result<Vec<KeyValue>> {
    let client = Connection::open(server.address()).await?;
    let found = client.range(b"shards/", b"shards0").await?;
    client.call("/etcdserverpb.Maintenance/Defragment", b"").await?.message()?;
    Ok(found)
}

/// One revision for each put from 2 on, and the keys that they leave.
fn check(puts: &[Put], found: &[KeyValue]) -> Result<()> {
    let mut in_order: Vec<&Put> = puts.iter().collect();
    in_order.sort_by_key(|put| put.revision);
    let mut wanted: BTreeMap<&str, KeyValue> = BTreeMap::new();
    for (put, revision) in in_order.into_iter().zip(2..) {
        if put.revision != revision {
            bail!("{put:?}: revision {revision} is due");
        }
        let pair = wanted.entry(&put.key).or_insert_with(|| KeyValue {
            key: put.key.clone().into_bytes(),
            value: Vec::new(),
            mod_revision: 0,
            create_revision: revision,
            version: 0,
        });
        (pair.value, pair.mod_revision, pair.version) = (put.value.clone().into_bytes(), revision, pair.version + 1);
    }
    let differing = wanted.values().zip(found).find(|(wanted, found)| wanted != found);
    if found.len() != wanted.len() || differing.is_some() {
        bail!("{} keys, {} are due; the first to differ: {differing:?}", found.len(), wanted.len());
    }
    Ok(())
}

/// Batches that shards have evaluated so far.
fn rounds(server: &Server) -> Result<u64> {
    let mut stream = TcpStream::connect(server.address())?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text.lines().find_map(|line| line.strip_prefix("trilith_shard_rounds_total "));
    line.context("the metric is missing")?.trim().parse().context("the metric is no number")
}
