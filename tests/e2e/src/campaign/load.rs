//! Clients that put, delete, transact and compact until they are told to stop or their connection dies.
//!
//! A lost connection or a refusal ends a stream and is kept for the test to judge; a wrong answer is an error.
//!
//! I1  A request is noted as in doubt before it is sent, and an answer as acknowledged before the next request.
//! I2  Each stream changes keys of its own, so it knows what its next request must find.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::history::{History, Mutation, Payload};
use crate::messages::{self, Field, Message};

/// Streams of a connection.
const STREAMS: u64 = 6;
const CONNECTIONS: u64 = 3;
/// Small keys of a stream.
const KEYS: u64 = 8;

/// What the clients mostly do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Small requests of every kind.
    Small,
    /// Large values besides, so that the log grows by a checkpoint's worth within seconds.
    Bulk,
    /// Small requests beside compactions and defragmentations, which write checkpoints and free what is dead.
    Upkeep,
}

/// What the load shares with the test.
#[derive(Debug, Default)]
pub struct Shared {
    history: Mutex<History>,
    stopping: AtomicBool,
    answers: AtomicU64,
    /// Why the first stream ended that was not asked to.
    lost: Mutex<Option<String>>,
}

/// How a request ended.
enum Answer {
    Good(Vec<u8>),
    Lost,
}

impl Shared {
    /// The oracle.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the first stream ended that was not asked to.
    pub fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_lost(&self, reason: String) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    /// Acknowledgements of this run.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts them.
    pub fn start(shared: &Arc<Shared>, address: SocketAddr, mix: Mix, seed: u64) -> Self {
        shared.stopping.store(false, Ordering::Relaxed);
        shared.answers.store(0, Ordering::Relaxed);
        *shared.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let threads = (0..CONNECTIONS).map(|connection| {
            let shared = Arc::clone(shared);
            std::thread::spawn(move || connect_and_drive(address, &shared, mix, seed, connection))
        });
        Self { shared: Arc::clone(shared), threads: threads.collect() }
    }

    /// Whether a client has given up.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// No further request is sent.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits for all clients, whose server is gone; the first wrong answer any of them got.
    pub fn join(self) -> Result<()> {
        self.stop();
        let mut first = Ok(());
        for thread in self.threads {
            let result = thread.join().ok().context("a load thread panicked")?;
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}

fn connect_and_drive(address: SocketAddr, shared: &Arc<Shared>, mix: Mix, seed: u64, connection: u64) -> Result<()> {
    runtime()?.block_on(async {
        let client = match Connection::open(address).await {
            Ok(client) => client,
            Err(error) => {
                shared.note_lost(format!("{error:#}"));
                return Ok(());
            }
        };
        let streams: Vec<_> = (0..STREAMS)
            .map(|number| {
                let stream = connection * STREAMS + number;
                let driver = Driver::new(client.clone(), Arc::clone(shared), mix, seed, stream);
                tokio::spawn(driver.run())
            })
            .collect();
        let mut first = Ok(());
        for stream in streams {
            let result = stream.await?;
            if first.is_ok() {
                first = result;
            }
        }
        first
    })
}

/// A request that changes something, and what its answer must say.
struct Call {
    path: &'static str,
    message: Vec<u8>,
    mutation: Mutation,
    /// Field of the response and its value: keys deleted, or that a transaction succeeded.
    wanted: Option<(u32, u64)>,
}

/// One stream: a closed loop.
struct Driver {
    client: Connection,
    shared: Arc<Shared>,
    mix: Mix,
    chance: Chance,
    stream: u64,
    prefix: String,
    live: BTreeSet<String>,
}

impl Driver {
    fn new(client: Connection, shared: Arc<Shared>, mix: Mix, seed: u64, stream: u64) -> Self {
        let prefix = format!("s{stream:02}/");
        let live = shared.history().live(&prefix).into_iter().collect();
        Self { client, shared, mix, chance: Chance::new(seed, stream + 1), stream, prefix, live }
    }

    async fn run(mut self) -> Result<()> {
        while !self.shared.stopping.load(Ordering::Relaxed) {
            if self.stream == 0 && self.chance.percent(if self.mix == Mix::Upkeep { 20 } else { 2 }) {
                self.compact().await;
            }
            if self.stream == 1 && self.mix == Mix::Upkeep && self.chance.percent(20) {
                self.send("/etcdserverpb.Maintenance/Defragment", &[]).await;
            }
            let call = self.choose();
            self.shared.history().begin(self.stream, call.mutation.clone());
            let Answer::Good(answer) = self.send(call.path, &call.message).await else { return Ok(()) };
            let revision = messages::header_revision(&answer)?;
            check_answer(&answer, &call)?;
            self.shared.history().acknowledge(self.stream, revision)?;
            self.shared.answers.fetch_add(1, Ordering::Relaxed);
            for (key, payload) in call.mutation.changes {
                if payload.is_some() {
                    self.live.insert(key)
                } else {
                    self.live.remove(&key)
                };
            }
        }
        Ok(())
    }

    async fn send(&self, path: &str, message: &[u8]) -> Answer {
        let reply = self.client.call(path, message).await;
        match reply.and_then(|reply| reply.message().map(<[u8]>::to_vec)) {
            Ok(answer) => Answer::Good(answer),
            Err(error) => {
                self.shared.note_lost(format!("{path} of stream {}: {error:#}", self.stream));
                Answer::Lost
            }
        }
    }

    fn choose(&mut self) -> Call {
        if self.mix == Mix::Bulk && self.chance.percent(25) {
            let length = 200_000 + self.chance.below(900_000) as usize;
            return self.put(format!("{}bulk", self.prefix), length);
        }
        match self.chance.below(100) {
            0..12 if !self.live.is_empty() => self.delete_one(),
            12..16 if !self.live.is_empty() => self.delete_all(),
            16..40 => self.transact(),
            _ => {
                let (key, length) = (self.key(), self.length());
                self.put(key, length)
            }
        }
    }

    fn key(&mut self) -> String {
        format!("{}{}", self.prefix, self.chance.below(KEYS))
    }

    /// Mostly below a log block, at times just around it or many of them.
    fn length(&mut self) -> usize {
        match self.chance.below(20) {
            0 => 40_000 + self.chance.below(30_000) as usize,
            1..4 => 2_900 + self.chance.below(400) as usize,
            _ => 8 + self.chance.below(300) as usize,
        }
    }

    fn payload(&self, length: usize) -> Payload {
        self.shared.history().payload(length)
    }

    fn put(&self, key: String, length: usize) -> Call {
        let payload = self.payload(length);
        let message = messages::put(key.as_bytes(), &payload.bytes());
        let mutation = Mutation { changes: vec![(key, Some(payload))] };
        Call { path: "/etcdserverpb.KV/Put", message, mutation, wanted: None }
    }

    fn delete_one(&mut self) -> Call {
        let live: Vec<&String> = self.live.iter().collect();
        let key = (*self.chance.pick(&live)).clone();
        let message = messages::delete(key.as_bytes(), b"");
        let mutation = Mutation { changes: vec![(key, None)] };
        Call { path: "/etcdserverpb.KV/DeleteRange", message, mutation, wanted: Some((2, 1)) }
    }

    fn delete_all(&self) -> Call {
        let end = format!("s{:02}0", self.stream);
        let message = messages::delete(self.prefix.as_bytes(), end.as_bytes());
        let changes: Vec<_> = self.live.iter().map(|key| (key.clone(), None)).collect();
        let wanted = Some((2, changes.len() as u64));
        Call { path: "/etcdserverpb.KV/DeleteRange", message, mutation: Mutation { changes }, wanted }
    }

    /// Two to four changes under a comparison that holds.
    fn transact(&mut self) -> Call {
        let count = 2 + self.chance.below(3);
        let mut keys = BTreeSet::new();
        while (keys.len() as u64) < count {
            keys.insert(self.key());
        }
        let first = keys.first().expect("at least two");
        // version(key) > 0, or = 0 for an absent one.
        let (result, version) = if self.live.contains(first) { (1, 0) } else { (0, 0) };
        let compare = Message::new().number(1, result).number(2, 0).bytes(3, first.as_bytes()).number(4, version);
        let mut message = Message::new().bytes(1, &compare.finish());
        let mut changes = Vec::new();
        for key in keys {
            let (field, operation, payload) = if self.live.contains(&key) && self.chance.percent(30) {
                (3, messages::delete(key.as_bytes(), b""), None)
            } else {
                let length = self.length();
                let payload = self.payload(length);
                (2, messages::put(key.as_bytes(), &payload.bytes()), Some(payload))
            };
            message = message.bytes(2, &Message::new().bytes(field, &operation).finish());
            changes.push((key, payload));
        }
        let (path, message) = ("/etcdserverpb.KV/Txn", message.finish());
        Call { path, message, mutation: Mutation { changes }, wanted: Some((2, 1)) }
    }

    /// At the newest revision anybody was told of, or some way behind it.
    async fn compact(&mut self) {
        let behind = if self.chance.percent(30) { 0 } else { self.chance.below(400) };
        let revision = {
            let mut history = self.shared.history();
            let revision = history.told_head().saturating_sub(behind);
            if revision <= history.compactions().1 {
                return;
            }
            history.begin_compaction(revision);
            revision
        };
        let message = messages::compaction(revision, self.chance.percent(50));
        if let Answer::Good(_) = self.send("/etcdserverpb.KV/Compact", &message).await {
            self.shared.history().acknowledge_compaction(revision);
        }
    }
}

fn check_answer(answer: &[u8], call: &Call) -> Result<()> {
    let Some((field, wanted)) = call.wanted else { return Ok(()) };
    if !messages::fields(answer)?.contains(&(field, Field::Number(wanted))) {
        bail!("{}: field {field} of the answer is not {wanted}: {:?}", call.path, call.mutation);
    }
    Ok(())
}
