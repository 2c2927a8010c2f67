//! One client: keeps several requests under way on one connection, reconnects, gives calls up, and reports every
//! outcome.
//!
//! Owns: the state of its connection. Does not know: what is asked ([`crate::grammar`]), whether answers are right.
//!
//! Invariants
//! - I1: every invoked operation is completed exactly once in the checker, whatever happens to its connection.

use std::collections::{BTreeMap, VecDeque};

use trilith_reactor::{CloseReason, ConnectionId};

use crate::checker::{Checker, Reply};
use crate::codec::KEEP_ALIVE_PATH;
use crate::h2_client::{H2Client, Outcome};
use crate::history::{Request, Response};
use crate::port::SimPort;
use crate::rng::Rng;
use crate::weather::Workload;

/// gRPC's UNAVAILABLE: the server stops, nobody knows what became of the request.
const UNAVAILABLE: u32 = 14;

#[derive(Debug)]
struct Link {
    connection: ConnectionId,
    protocol: H2Client,
    /// Stream to operation and time of invocation.
    calls: BTreeMap<u32, (u64, u64)>,
    /// The stream on which leases are kept alive, and its requests without an answer.
    keep_alive: Option<u32>,
    renewals: VecDeque<(u64, u64)>,
    revision_seen: i64,
}

impl Link {
    fn len(&self) -> usize {
        self.calls.len() + self.renewals.len()
    }

    /// The operations under way, which nobody hears about any more.
    fn take_operations(&mut self) -> Vec<u64> {
        let calls = std::mem::take(&mut self.calls).into_values();
        calls.chain(self.renewals.drain(..)).map(|(operation, _)| operation).collect()
    }

    /// The next answer on the stream on which leases are kept alive.
    fn handle_renewal(&mut self, message: &[u8], checker: &mut Checker, now: u64) -> Result<(), String> {
        let (operation, _) = self.renewals.pop_front().ok_or("a lease is kept alive that nobody asked for")?;
        let response = checker.request(operation).decode_response(message)?;
        self.revision_seen = self.revision_seen.max(response.answer.revision);
        checker.complete(operation, Reply::Answered(response), now)
    }

    /// That stream ended.
    fn end_keep_alive(&mut self, outcome: Outcome, checker: &mut Checker, now: u64) -> Result<(), String> {
        self.keep_alive = None;
        if !matches!(outcome, Outcome::Refused | Outcome::Answered { code: UNAVAILABLE, .. }) {
            return Err(format!("the stream on which leases are kept alive ended: {outcome:?}"));
        }
        self.renewals.drain(..).try_for_each(|(operation, _)| checker.complete(operation, Reply::Unknown, now))
    }
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
        self.link.as_ref().map_or(0, Link::len)
    }

    /// When the oldest call under way was begun.
    #[must_use]
    pub fn oldest_call_at(&self) -> Option<u64> {
        let link = self.link.as_ref()?;
        link.calls.values().chain(&link.renewals).map(|(_, invoked_at)| *invoked_at).min()
    }

    /// What came of the answers to calls under way: when each was begun, its bytes so far, and all of them if known.
    pub fn progress(&self) -> impl Iterator<Item = (u64, usize, Option<usize>)> {
        self.link.iter().flat_map(|link| {
            link.calls.iter().map(|(stream, (_, invoked_at))| {
                let (received, expected) = link.protocol.progress(*stream);
                (*invoked_at, received, expected)
            })
        })
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
        if self.link.as_ref().is_some_and(|link| link.protocol.is_going_away() && link.len() == 0) {
            self.hang_up(CloseReason::EndOfStream, port);
        }
        if self.link.is_none() {
            let window = if rng.chance(300) { rng.log_between(workload.window_min(), 65_535) } else { 1 << 20 };
            let protocol = H2Client::new(window as u32);
            let connection = port.client_connect();
            let (calls, renewals) = (BTreeMap::new(), VecDeque::new());
            self.link = Some(Link { connection, protocol, calls, keep_alive: None, renewals, revision_seen: 0 });
        }
    }

    /// Whether a request may be sent now.
    #[must_use]
    pub fn can_call(&self, outstanding_max: usize) -> bool {
        self.link.as_ref().is_some_and(|link| !link.protocol.is_going_away() && link.len() < outstanding_max)
    }

    /// Begins a call; [`Client::flush`] sends it.
    pub fn call(&mut self, request: Request, now: u64, checker: &mut Checker) -> u64 {
        let link = self.link.as_mut().expect("the caller connected");
        let (path, message) = request.encode();
        let shares = matches!(request, Request::LeaseKeepAlive { is_alone: false, .. });
        let operation = checker.invoke(request, message.len(), link.revision_seen, now);
        if shares {
            let stream = *link.keep_alive.get_or_insert_with(|| link.protocol.open(KEEP_ALIVE_PATH));
            link.protocol.send(stream, &message);
            link.renewals.push_back((operation, now));
        } else {
            let stream = link.protocol.call(path, &message);
            link.calls.insert(stream, (operation, now));
        }
        operation
    }

    /// Gives up what keeps leases alive: as long as a lease cannot end, that waits.
    pub fn cancel_renewals(&mut self, now: u64, port: &mut SimPort, checker: &mut Checker) {
        let Some(link) = &mut self.link else { return };
        let is_renewal = |operation: u64| matches!(checker.request(operation), Request::LeaseKeepAlive { .. });
        let alone = link.calls.iter().filter(|(_, (operation, _))| is_renewal(*operation));
        let streams: Vec<u32> = alone.map(|(stream, _)| *stream).chain(link.keep_alive.take()).collect();
        let mut ended: Vec<u64> = link.renewals.drain(..).map(|(operation, _)| operation).collect();
        for stream in streams {
            link.protocol.cancel(stream);
            ended.extend(link.calls.remove(&stream).map(|(operation, _)| operation));
        }
        for operation in ended {
            checker.complete(operation, Reply::Unknown, now).expect("an unknown outcome is never wrong");
        }
        self.flush(port);
    }

    /// Gives up one call under way, or begins one that is never finished.
    pub fn disturb(&mut self, now: u64, port: &mut SimPort, checker: &mut Checker, rng: &mut Rng) {
        let Some(link) = &mut self.link else { return };
        if link.keep_alive.is_some() && rng.chance(300) {
            port.cover("(cancelled keep-alive)");
            return self.cancel_renewals(now, port, checker);
        }
        let calls: Vec<u32> = link.calls.keys().copied().collect();
        if calls.is_empty() || rng.chance(300) {
            if link.protocol.is_going_away() {
                return;
            }
            port.cover("(abandoned stream)");
            link.protocol.abandon("/etcdserverpb.KV/Put", &[0, 0, 0, 1, 0, 10, 3][..rng.index(8)]);
            return;
        }
        let stream = calls[rng.index(calls.len())];
        let (operation, _) = link.calls.remove(&stream).expect("just listed");
        link.protocol.cancel(stream);
        port.cover("(cancelled call)");
        checker.complete(operation, Reply::Unknown, now).expect("an unknown outcome is never wrong");
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
        (sent_at, now): (u64, u64),
        checker: &mut Checker,
        answered: &mut Vec<(u64, Response)>,
    ) -> Result<(), String> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.protocol.set_sent_at(sent_at);
        link.protocol.handle_bytes(bytes)?;
        while let Some((_, message)) = link.protocol.poll_message() {
            link.handle_renewal(&message, checker, now)?;
        }
        while let Some((stream, outcome)) = link.protocol.poll_outcome() {
            if link.keep_alive == Some(stream) {
                link.end_keep_alive(outcome, checker, now)?;
                continue;
            }
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
            checker.complete(operation, reply, now)?;
        }
        Ok(())
    }

    /// The connection ended: what was under way is unknown.
    pub fn handle_closed(&mut self, now: u64, checker: &mut Checker) {
        if let Some(mut link) = self.link.take() {
            for operation in link.take_operations() {
                checker.complete(operation, Reply::Unknown, now).expect("an unknown outcome is never wrong");
            }
        }
    }

    /// Large answers that came in several turns of the server, since the last call.
    pub fn take_sliced(&mut self) -> u64 {
        self.link.as_mut().map_or(0, |link| link.protocol.take_sliced())
    }

    /// Ends the connection from this side; calls under way must have been given up by the caller.
    fn hang_up(&mut self, reason: CloseReason, port: &mut SimPort) {
        if let Some(link) = self.link.take() {
            assert!(link.len() == 0, "nothing is under way");
            port.client_close(link.connection, reason);
        }
    }

    /// Gives up the connection with all that is under way.
    pub fn abandon(&mut self, now: u64, port: &mut SimPort, checker: &mut Checker, rng: &mut Rng) {
        let reset = rng.chance(500);
        if let Some(connection) = self.connection() {
            port.cover(if reset { "(connection reset)" } else { "(hang-up)" });
            port.client_close(connection, if reset { CloseReason::Failed } else { CloseReason::EndOfStream });
        }
        self.handle_closed(now, checker);
    }
}
