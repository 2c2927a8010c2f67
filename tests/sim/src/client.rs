//! One client: draws requests, keeps several under way on one connection, reconnects, and reports every outcome.
//!
//! Owns: the workload's grammar and the state of its connection. Does not know: whether answers are right.
//!
//! Invariants
//! - I1: every invoked operation is completed exactly once in the checker, whatever happens to its connection.

use std::collections::BTreeMap;

use trilith_reactor::{CloseReason, ConnectionId};

use crate::checker::{Checker, Reply, unique_value};
use crate::h2_client::{H2Client, Outcome};
use crate::history::{Compare, Relation, Request, Response};
use crate::model::KeyRange;
use crate::port::SimPort;
use crate::rng::Rng;
use crate::weather::{Workload, draw_weighted};

/// Values in transactions are shorter, so that eight of them fit a request.
const TXN_VALUE_BYTES_MAX: u64 = 1_000;
/// gRPC's UNAVAILABLE: the server stops, nobody knows what became of the request.
const UNAVAILABLE: u32 = 14;

#[derive(Debug)]
struct Link {
    connection: ConnectionId,
    protocol: H2Client,
    /// Stream to operation and time of invocation.
    calls: BTreeMap<u32, (u64, u64)>,
    revision_seen: i64,
}

/// A client of the workload.
#[derive(Debug)]
pub struct Client {
    link: Option<Link>,
    is_wake_due: bool,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client that is not connected.
    #[must_use]
    pub fn new() -> Self {
        Self { link: None, is_wake_due: false }
    }

    /// Its connection, if it has one.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        self.link.as_ref().map(|link| link.connection)
    }

    /// Calls under way.
    #[must_use]
    pub fn open_calls(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.calls.len())
    }

    /// When the oldest call under way was begun.
    #[must_use]
    pub fn oldest_call_at(&self) -> Option<u64> {
        self.link.as_ref()?.calls.values().map(|(_, invoked_at)| *invoked_at).min()
    }

    /// Asks to be woken, unless that is already so.
    pub fn schedule_wake(&mut self, client: usize, delay: u64, port: &mut SimPort) {
        if !self.is_wake_due {
            self.is_wake_due = true;
            port.wake_client(client, delay);
        }
    }

    /// The wake-up came.
    pub fn clear_wake(&mut self) {
        self.is_wake_due = false;
    }

    /// Connects if necessary; connections start with a drawn receive window.
    pub fn connect(&mut self, workload: &Workload, port: &mut SimPort, rng: &mut Rng) {
        if self.link.as_ref().is_some_and(|link| link.protocol.is_going_away() && link.calls.is_empty()) {
            self.hang_up(CloseReason::EndOfStream, port);
        }
        if self.link.is_none() {
            // Not so small that reading large values takes virtual minutes.
            let window_min = workload.value_bytes_max / 16 + 16;
            let window = if rng.chance(300) { rng.log_between(window_min, 65_535) } else { 1 << 20 };
            let protocol = H2Client::new(window as u32);
            let connection = port.client_connect();
            self.link = Some(Link { connection, protocol, calls: BTreeMap::new(), revision_seen: 0 });
        }
    }

    /// Whether a request may be sent now.
    #[must_use]
    pub fn can_call(&self, outstanding_max: usize) -> bool {
        self.link.as_ref().is_some_and(|link| !link.protocol.is_going_away() && link.calls.len() < outstanding_max)
    }

    /// Begins a call; [`Client::flush`] sends it.
    pub fn call(&mut self, request: Request, now: u64, checker: &mut Checker) -> u64 {
        let link = self.link.as_mut().expect("the caller connected");
        let (path, message) = request.encode();
        let stream = link.protocol.call(path, &message);
        let operation = checker.invoke(request, link.revision_seen);
        link.calls.insert(stream, (operation, now));
        operation
    }

    /// Hands what the protocol has to say to the network.
    pub fn flush(&mut self, port: &mut SimPort) {
        if let Some(link) = &mut self.link {
            let bytes = link.protocol.take_output();
            if !bytes.is_empty() {
                port.client_send(link.connection, &bytes);
            }
        }
    }

    /// Takes bytes of the server. Returns the operations that were answered, with their responses' revisions.
    ///
    /// # Errors
    /// The server broke the protocol or gave a wrong answer.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        checker: &mut Checker,
        answered: &mut Vec<(u64, Response)>,
    ) -> Result<(), String> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.protocol.handle_bytes(bytes)?;
        while let Some((stream, outcome)) = link.protocol.poll_outcome() {
            let (operation, _) = link.calls.remove(&stream).expect("the protocol reports calls it was given");
            let reply = match outcome {
                Outcome::Answered { code: 0, message, .. } => {
                    let response = checker.request(operation).decode_response(&message)?;
                    link.revision_seen = link.revision_seen.max(response.answer.revision);
                    answered.push((operation, response.clone()));
                    Reply::Answered(response)
                }
                Outcome::Answered { code: UNAVAILABLE, .. } => Reply::Unknown,
                Outcome::Answered { code, text, .. } => Reply::Failed { code, text },
                Outcome::Refused => Reply::Refused,
                Outcome::Reset(code) => return Err(format!("stream reset with error {code}")),
            };
            checker.complete(operation, reply)?;
        }
        Ok(())
    }

    /// The connection ended: what was under way is unknown.
    pub fn handle_closed(&mut self, checker: &mut Checker) {
        if let Some(link) = self.link.take() {
            for (operation, _) in link.calls.into_values() {
                checker.complete(operation, Reply::Unknown).expect("an unknown outcome is never wrong");
            }
        }
    }

    /// Ends the connection from this side; calls under way must have been given up by the caller.
    fn hang_up(&mut self, reason: CloseReason, port: &mut SimPort) {
        if let Some(link) = self.link.take() {
            assert!(link.calls.is_empty(), "nothing is under way");
            port.client_close(link.connection, reason);
        }
    }

    /// Gives up the connection with all that is under way.
    pub fn abandon(&mut self, port: &mut SimPort, checker: &mut Checker, rng: &mut Rng) {
        let reason = if rng.chance(500) { CloseReason::EndOfStream } else { CloseReason::Failed };
        if let Some(connection) = self.connection() {
            port.client_close(connection, reason);
        }
        self.handle_closed(checker);
    }
}

fn draw_key(workload: &Workload, rng: &mut Rng) -> Vec<u8> {
    format!("k{:03}", rng.below(workload.keys)).into_bytes()
}

fn draw_range(workload: &Workload, rng: &mut Rng) -> KeyRange {
    let key = draw_key(workload, rng);
    let range_end = match rng.below(6) {
        0 | 1 => Vec::new(),
        2 => draw_key(workload, rng),
        3 => vec![0],
        4 => {
            // The ten keys that share all but the last digit.
            let prefix = key[..3].to_vec();
            let mut end = prefix.clone();
            end[2] += 1;
            return KeyRange { key: prefix, range_end: end };
        }
        _ => return KeyRange::everything(),
    };
    KeyRange { key, range_end }
}

/// Draws the next request of the workload.
pub fn draw_request(workload: &Workload, checker: &Checker, rng: &mut Rng) -> Request {
    let single = |rng: &mut Rng| KeyRange::single(draw_key(workload, rng));
    match draw_weighted(rng, &workload.weights) {
        0 => draw_put(draw_key(workload, rng), workload.value_bytes_max, checker, rng),
        1 => {
            let newest = checker.highest_returned().max(1) as u64;
            let revision = if rng.chance(300) { rng.between(1, newest + 2) as i64 } else { 0 };
            draw_read(draw_range(workload, rng), revision, rng)
        }
        2 => {
            let range = if rng.chance(700) { single(rng) } else { draw_range(workload, rng) };
            Request::DeleteRange { range, prev_kv: rng.chance(300) }
        }
        3 => {
            let compares = (0..rng.below(3)).map(|_| draw_compare(workload, checker, rng)).collect();
            let success = draw_branch(workload, checker, rng);
            Request::Txn { compares, success, failure: draw_branch(workload, checker, rng) }
        }
        4 => {
            let settled = checker.settled_revision().max(1) as u64;
            Request::Compact { revision: rng.between(1, settled) as i64 }
        }
        _ => Request::Put { key: Vec::new(), value: unique_value(checker.next_operation(), 12), prev_kv: false },
    }
}

fn draw_put(key: Vec<u8>, value_bytes_max: u64, checker: &Checker, rng: &mut Rng) -> Request {
    let len = rng.log_between(12, value_bytes_max) as usize;
    Request::Put { key, value: unique_value(checker.next_operation(), len), prev_kv: rng.chance(200) }
}

fn draw_read(range: KeyRange, revision: i64, rng: &mut Rng) -> Request {
    Request::Range {
        range,
        limit: if rng.chance(300) { rng.between(1, 5) as i64 } else { 0 },
        revision,
        serializable: rng.chance(300),
        keys_only: rng.chance(100),
        count_only: rng.chance(100),
    }
}

fn draw_compare(workload: &Workload, checker: &Checker, rng: &mut Rng) -> Compare {
    let key = draw_key(workload, rng);
    let relations = [Relation::Equal, Relation::Greater, Relation::Less, Relation::NotEqual];
    let relation = relations[rng.index(relations.len())];
    let revision = rng.below(checker.highest_returned().max(1) as u64 + 2) as i64;
    match rng.below(4) {
        0 => Compare::Version { key, relation, version: rng.below(4) as i64 },
        1 => Compare::Created { key, relation, revision },
        2 => Compare::Modified { key, relation, revision },
        _ => Compare::Value { key, relation, value: unique_value(rng.below(checker.next_operation() + 1), 12) },
    }
}

/// Up to four operations; no key is put twice or both put and deleted, which would be refused.
fn draw_branch(workload: &Workload, checker: &Checker, rng: &mut Rng) -> Vec<Request> {
    let mut written = Vec::new();
    let mut operations = Vec::new();
    for _ in 0..rng.below(5) {
        let key = draw_key(workload, rng);
        if rng.chance(400) || written.contains(&key) {
            operations.push(draw_read(draw_range(workload, rng), 0, rng));
            continue;
        }
        written.push(key.clone());
        operations.push(if rng.chance(600) {
            draw_put(key, workload.value_bytes_max.min(TXN_VALUE_BYTES_MAX), checker, rng)
        } else {
            Request::DeleteRange { range: KeyRange::single(key), prev_kv: rng.chance(300) }
        });
    }
    operations
}
