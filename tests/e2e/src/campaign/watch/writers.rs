//! Clients that change keys, take leases and compact, until they are told to stop or their server is gone.
//!
//! Owns: what they ask for and what they take for an answer. Does not know: watchers.
//!
//! I1  What a request changes is in the ledger before it is sent, and its answer before the next request.
//! I2  Each writer has keys and leases of its own, so it knows what its next request changes, and in what order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::campaign::watch::ledger::{EXPIRING, Shared};
use crate::campaign::watch::model::{Change, Model};
use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::messages::{self, Message};

/// Writers, beside the one whose leases expire.
pub(super) const WRITERS: u64 = 12;
/// Keys of a writer.
pub(super) const KEYS: u64 = 40;
const CONNECTIONS: u64 = 3;
/// Time to live of leases that are meant to expire, in seconds: the shortest that etcd grants by default.
const SHORT_TTL: u64 = 2;
const LONG_TTL: u64 = 3600;
/// Steps of a long transaction.
const LONG_STEPS: u64 = 20;
const PUT: &str = "/etcdserverpb.KV/Put";
const TXN: &str = "/etcdserverpb.KV/Txn";
const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";

/// A key of a writer.
pub(super) fn key_of(writer: u64, number: u64) -> Vec<u8> {
    format!("s{writer:02}/{number:02}").into_bytes()
}

/// What a writer's keys begin with.
pub(super) fn prefix_of(writer: u64) -> Vec<u8> {
    format!("s{writer:02}/").into_bytes()
}

/// What comes behind all of them.
pub(super) fn end_of(writer: u64) -> Vec<u8> {
    format!("s{writer:02}0").into_bytes()
}

/// Starts all writers on a thread; it ends when they have. The values of a long transaction's steps have so many bytes.
pub(super) fn start(
    shared: &Arc<Shared>,
    address: SocketAddr,
    model: &Model,
    long_step_bytes: u64,
    seed: u64,
) -> JoinHandle<Result<()>> {
    let shared = Arc::clone(shared);
    let live: Vec<BTreeMap<Vec<u8>, u64>> = (0..WRITERS)
        .map(|writer| model.live(&prefix_of(writer)).map(|pair| (pair.key.clone(), pair.lease)).collect())
        .collect();
    std::thread::spawn(move || runtime()?.block_on(write_all(shared, address, live, long_step_bytes, seed)))
}

async fn write_all(
    shared: Arc<Shared>,
    address: SocketAddr,
    live: Vec<BTreeMap<Vec<u8>, u64>>,
    long_step_bytes: u64,
    seed: u64,
) -> Result<()> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        match Connection::open(address).await {
            Ok(client) => clients.push(client),
            Err(error) => {
                shared.note_lost(&error);
                return Ok(());
            }
        }
    }
    let mut tasks = Vec::new();
    for (number, live) in (0_u64..).zip(live) {
        let client = clients[(number % CONNECTIONS) as usize].clone();
        let chance = Chance::new(seed, number + 1);
        let shared = Arc::clone(&shared);
        let writer = Writer { shared, client, chance, number, live, lease: 0, long_step_bytes };
        tasks.push(tokio::spawn(writer.run()));
    }
    let (client, chance) = (clients[0].clone(), Chance::new(seed, WRITERS + 1));
    let (number, live) = (WRITERS, BTreeMap::new());
    let expirer = Writer { shared, client, chance, number, live, lease: 0, long_step_bytes };
    tasks.push(tokio::spawn(expirer.run_expiring()));
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// A request, the changes it makes in their order, and the keys and leases afterwards.
struct Request {
    path: &'static str,
    message: Vec<u8>,
    changes: Vec<Change>,
}

enum Answer {
    /// The revision of the header.
    Done(u64),
    /// The lease it names is gone.
    NoLease,
    /// The server is gone.
    Lost,
}

struct Writer {
    shared: Arc<Shared>,
    client: Connection,
    chance: Chance,
    number: u64,
    /// Keys that are there, and their leases.
    live: BTreeMap<Vec<u8>, u64>,
    /// A lease without end in this campaign; 0: none yet.
    lease: u64,
    long_step_bytes: u64,
}

impl Writer {
    async fn run(mut self) -> Result<()> {
        while !self.shared.is_stopping() {
            if self.number == 0 && self.chance.percent(3) && !self.compact().await? {
                return Ok(());
            }
            if self.lease == 0 {
                let lease = self.shared.number();
                match self.grant(lease, LONG_TTL).await? {
                    Answer::Done(_) => self.lease = lease,
                    _ => return Ok(()),
                }
            }
            let request = self.choose();
            let Answer::Done(_) = self.make(&request).await? else { return Ok(()) };
            if request.path == REVOKE {
                self.lease = 0;
            }
            for change in request.changes {
                match change.put {
                    Some((_, lease)) => drop(self.live.insert(change.key, lease)),
                    None => drop(self.live.remove(&change.key)),
                }
            }
        }
        Ok(())
    }

    /// Puts keys whose leases nobody keeps.
    async fn run_expiring(mut self) -> Result<()> {
        while !self.shared.is_stopping() {
            let lease = self.shared.number();
            let Answer::Done(_) = self.grant(lease, SHORT_TTL).await? else { return Ok(()) };
            for _ in 0..=self.chance.below(3) {
                let key = [EXPIRING, format!("{:08}", self.shared.number()).as_bytes()].concat();
                let put = self.put(key, lease, 8);
                match self.make(&put).await? {
                    Answer::Done(_) => {}
                    Answer::NoLease => self.shared.ledger().forget(self.number),
                    Answer::Lost => return Ok(()),
                }
            }
            tokio::time::sleep(Duration::from_millis(5 + self.chance.below(30))).await;
        }
        Ok(())
    }

    /// Makes a request that changes something (I1).
    async fn make(&self, request: &Request) -> Result<Answer> {
        self.shared.ledger().begin(self.number, request.changes.clone());
        let answer = self.send(request.path, &request.message).await?;
        if let Answer::Done(revision) = answer {
            self.shared.ledger().acknowledge(self.number, revision)?;
        }
        Ok(answer)
    }

    async fn send(&self, path: &str, message: &[u8]) -> Result<Answer> {
        let reply = match self.client.call(path, message).await {
            Ok(reply) if !reply.grpc_status.is_empty() => reply,
            Ok(_) => return Ok(Answer::Lost),
            Err(error) => {
                self.shared.note_lost(&error);
                return Ok(Answer::Lost);
            }
        };
        if reply.grpc_message.contains("requested lease not found") {
            return Ok(Answer::NoLease);
        }
        let answer = reply.message().with_context(|| format!("{path} of writer {}", self.number))?;
        Ok(Answer::Done(messages::header_revision(answer)?))
    }

    async fn grant(&self, lease: u64, ttl: u64) -> Result<Answer> {
        let answer = self.send(GRANT, &Message::new().number(1, ttl).number(2, lease).finish()).await?;
        if let Answer::NoLease = answer {
            bail!("a grant found no lease");
        }
        Ok(answer)
    }

    fn choose(&mut self) -> Request {
        let some_live = self.live.keys().nth(self.chance.below(self.live.len().max(1) as u64) as usize).cloned();
        match (self.chance.below(100), some_live) {
            (0..10, Some(key)) => {
                let message = messages::delete(&key, b"");
                Request { path: DELETE, message, changes: vec![Change { key, put: None }] }
            }
            (10..13, Some(_)) => {
                let message = messages::delete(&prefix_of(self.number), &end_of(self.number));
                let changes = self.live.keys().map(|key| Change { key: key.clone(), put: None }).collect();
                Request { path: DELETE, message, changes }
            }
            (13..33, _) => {
                let is_long = self.chance.below(60) == 0;
                self.transact(is_long)
            }
            (33..37, _) => self.put_and_delete(),
            (37..42, _) if self.live.values().any(|&lease| lease == self.lease) => self.revoke(),
            _ => {
                let (key, lease, length) = (self.key(), self.some_lease(), self.length());
                self.put(key, lease, length)
            }
        }
    }

    fn key(&mut self) -> Vec<u8> {
        key_of(self.number, self.chance.below(KEYS))
    }

    fn some_lease(&mut self) -> u64 {
        if self.chance.percent(20) { self.lease } else { 0 }
    }

    /// Of a value: mostly short, at times many times a frame.
    fn length(&mut self) -> u64 {
        match self.chance.below(50) {
            0 => 10_000 + self.chance.below(40_000),
            1..5 => 1_000 + self.chance.below(3_000),
            _ => 8 + self.chance.below(200),
        }
    }

    /// A value nobody else writes.
    fn value(&self, length: u64) -> Vec<u8> {
        let word = format!("<{:x}>", self.shared.number());
        word.bytes().cycle().take((length as usize).max(word.len())).collect()
    }

    fn put(&self, key: Vec<u8>, lease: u64, length: u64) -> Request {
        let value = self.value(length);
        let message = put_message(&key, &value, lease);
        Request { path: PUT, message, changes: vec![Change { key, put: Some((value, lease)) }] }
    }

    /// Ends the lease: all its keys go, in their order.
    fn revoke(&self) -> Request {
        let attached = self.live.iter().filter(|(_, lease)| **lease == self.lease);
        let changes = attached.map(|(key, _)| Change { key: key.clone(), put: None }).collect();
        Request { path: REVOKE, message: Message::new().number(1, self.lease).finish(), changes }
    }

    /// Changes several keys at one revision; a long one does not fit a response.
    fn transact(&mut self, is_long: bool) -> Request {
        let (mut message, mut changes) = (Message::new(), Vec::<Change>::new());
        let steps = if is_long { LONG_STEPS } else { 2 + self.chance.below(9) };
        for _ in 0..steps {
            let key = self.key();
            if changes.iter().any(|change| change.key == key) {
                continue;
            }
            let operation = if self.live.contains_key(&key) && self.chance.percent(30) {
                let delete = messages::delete(&key, b"");
                changes.push(Change { key, put: None });
                Message::new().bytes(3, &delete)
            } else {
                let lease = self.some_lease();
                let length = if is_long { self.long_step_bytes } else { self.length() };
                let put = self.put(key, lease, length);
                changes.extend(put.changes);
                Message::new().bytes(2, &put.message)
            };
            message = message.bytes(2, &operation.finish());
        }
        Request { path: TXN, message: message.finish(), changes }
    }

    /// Changes a key twice at one revision: inner transactions may.
    fn put_and_delete(&mut self) -> Request {
        let key = self.key();
        let (lease, length) = (self.some_lease(), self.length());
        let mut put = self.put(key.clone(), lease, length);
        let delete = Message::new().bytes(3, &messages::delete(&key, b"")).finish();
        let steps = [Message::new().bytes(2, &put.message).finish(), delete];
        let message = steps.iter().fold(Message::new(), |message, step| {
            let inner = Message::new().bytes(2, step).finish();
            message.bytes(2, &Message::new().bytes(4, &inner).finish())
        });
        put.changes.push(Change { key, put: None });
        Request { path: TXN, message: message.finish(), changes: put.changes }
    }

    /// Compacts at what was seen last, or some way behind; false: the server is gone.
    async fn compact(&mut self) -> Result<bool> {
        let behind = if self.chance.percent(40) { self.chance.below(3) } else { self.chance.below(600) };
        let Some(revision) = self.shared.ledger().begin_compaction(behind) else { return Ok(true) };
        let message = messages::compaction(revision, self.chance.percent(50));
        match self.send("/etcdserverpb.KV/Compact", &message).await? {
            Answer::Done(_) => {
                self.shared.ledger().acknowledge_compaction(revision);
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

fn put_message(key: &[u8], value: &[u8], lease: u64) -> Vec<u8> {
    let message = Message::new().bytes(1, key).bytes(2, value);
    if lease == 0 { message.finish() } else { message.number(3, lease).finish() }
}
