//! One life of a member over a [`MediaPort`], with the one client that it has.
//!
//! Owns: geometries, the boot, calls and their outcomes. Does not know: what an answer should be.
//!
//! Invariants
//! - I1: a life that makes no progress within its bounds is reported as such, never waited for.

use std::collections::VecDeque;

use trilith_reactor::{ConnectionId, Event, ListenerId};
use trilith_server::journal::{Format, Journal, Level};
use trilith_server::options::{self, Invocation};
use trilith_server::{Node, NodeOptions};
use trilith_sim::h2_client::{H2Client, Outcome};
use trilith_sim::rng::Rng;

use crate::image::Image;
use crate::port::{MediaPort, Pace, Rest};

/// One millisecond of virtual time.
pub const MILLISECOND: u64 = 1_000_000;
/// A start or a call that takes longer hangs.
const PATIENCE: u64 = 60_000 * MILLISECOND;
const WINDOW_BYTES: u32 = 8 << 20;
const CLIENT: ConnectionId = ConnectionId(1);

/// Sizes of a member's files and triggers, tiny, so that little work reaches everything.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    wal_segment_bytes: u64,
    row_segment_bytes: u64,
    block_bytes: u32,
    write_bytes_max: u32,
    rows_resident_bytes_max: u64,
    appends_in_flight_max: usize,
    /// Changes after which a checkpoint begins.
    pub checkpoint_changes: usize,
    checkpoint_log_bytes: u64,
    request_bytes_max: usize,
    /// What all keys begin with: long ones make trees of several levels out of few keys.
    key_prefix_bytes: usize,
}

impl Geometry {
    /// Draws one.
    pub fn draw(rng: &mut Rng) -> Self {
        let kib = |choices: &[u64], rng: &mut Rng| choices[rng.index(choices.len())] << 10;
        let wal_segment_bytes = kib(&[16, 16, 24, 32], rng);
        let row_segment_bytes = kib(&[32, 48, 64], rng);
        Self {
            wal_segment_bytes,
            row_segment_bytes,
            block_bytes: kib(&[4, 4, 8], rng) as u32,
            write_bytes_max: kib(&[4, 8, 16], rng) as u32,
            rows_resident_bytes_max: kib(&[4, 16, 64], rng),
            appends_in_flight_max: rng.between(1, 4) as usize,
            checkpoint_changes: rng.between(6, 24) as usize,
            checkpoint_log_bytes: kib(&[24, 48, 96], rng),
            request_bytes_max: (wal_segment_bytes - (6 << 10)).min(row_segment_bytes / 2) as usize,
            key_prefix_bytes: [1, 1, 1, 200, 700, 1_500][rng.index(6)],
        }
    }

    /// Longest value of the workload.
    #[must_use]
    pub fn value_bytes_max(&self) -> u64 {
        self.request_bytes_max as u64 - 512 - self.key_prefix_bytes as u64
    }

    /// Changes in a branch of a transaction.
    #[must_use]
    pub fn branch_max(&self) -> u64 {
        if self.key_prefix_bytes > 1_000 { 1 } else { 3 }
    }

    /// A key of the workload.
    #[must_use]
    pub fn key(&self, number: u64) -> Vec<u8> {
        let mut key = vec![b'k'; self.key_prefix_bytes];
        key.extend_from_slice(format!("{number:02}").as_bytes());
        key
    }

    fn options(&self) -> NodeOptions {
        let parsed = options::parse(&[], &[], |_| unreachable!("no file is named"));
        let Ok(Invocation::Serve(defaults)) = parsed else { unreachable!("no flag is needed") };
        let mut node = NodeOptions::new(&defaults);
        let log = &mut node.replica.log;
        log.segment_bytes = self.wal_segment_bytes;
        log.entry_bytes_max = self.wal_segment_bytes as usize - (4 << 10) - 1024;
        log.batch_bytes_max = 3 << 10;
        log.appends_in_flight_max = self.appends_in_flight_max;
        node.replica.checkpoint_changes = self.checkpoint_changes;
        node.replica.checkpoint_log_bytes = self.checkpoint_log_bytes;
        node.store.index_file_bytes = 256 << 10;
        node.store.index_files_max = 64;
        node.store.row_segment_bytes = self.row_segment_bytes;
        node.store.write_bytes_max = self.write_bytes_max;
        node.store.writes_in_flight_max = 4;
        node.rows.segment_bytes = self.row_segment_bytes;
        node.rows.block_bytes = self.block_bytes;
        node.rows.rows_resident_bytes_max = self.rows_resident_bytes_max;
        node.rows.write_bytes_max = self.write_bytes_max.max(self.block_bytes);
        node.request_bytes_max = self.request_bytes_max;
        node.reserve_bytes = 8 << 10;
        node.txn_ops_max = 1 << 20;
        node.journal = Journal { level_min: Level::Error, format: Format::Json };
        node
    }
}

/// How a life ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The start was refused, for this reason.
    Refused(String),
    /// The process stopped, with its last words.
    Stopped(String),
    /// It makes no progress.
    Hangs(String),
    /// It broke the protocol.
    Breach(String),
}

/// How a call ended, while the process goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With a message.
    Message(Vec<u8>),
    /// With a gRPC status and its text.
    Failed(u32, String),
}

/// A running member and its client.
#[derive(Debug)]
pub struct Member {
    node: Node,
    /// Its port.
    pub port: MediaPort,
    client: H2Client,
    /// Answers that arrived, by stream.
    answers: VecDeque<(u32, Reply)>,
}

impl Member {
    /// Boots a member from an image.
    ///
    /// # Errors
    /// The start is refused.
    pub fn boot(geometry: &Geometry, image: Image, pace: Pace, seed: u64) -> Result<Self, Ended> {
        Self::boot_on(geometry, MediaPort::new(image, pace, seed)).map_err(|(ended, _)| ended)
    }

    /// Boots a member on a port.
    ///
    /// # Errors
    /// The start is refused; the port comes back.
    pub fn boot_on(geometry: &Geometry, mut port: MediaPort) -> Result<Self, (Ended, Box<MediaPort>)> {
        let node = match Node::boot(geometry.options(), &mut port) {
            Ok(node) => node,
            Err(error) => return Err((Ended::Refused(error.to_string()), Box::new(port))),
        };
        Ok(Self { node, port, client: H2Client::new(WINDOW_BYTES), answers: VecDeque::new() })
    }

    /// Turns until clients are served, and connects.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn serve(&mut self) -> Result<(), Ended> {
        self.turn_until(|member| member.node.is_serving())?;
        let peer = "10.0.0.9:1".to_owned();
        self.port.push(Event::Accepted { listener: ListenerId(0), connection: CLIENT, peer });
        Ok(())
    }

    /// The process dies, or died: its port.
    #[must_use]
    pub fn into_port(self) -> MediaPort {
        self.port
    }

    /// Begins a call; its stream.
    pub fn begin(&mut self, (path, message): (&str, Vec<u8>)) -> u32 {
        let stream = self.client.call(path, &message);
        self.flush();
        stream
    }

    fn flush(&mut self) {
        let bytes = self.client.take_output();
        if !bytes.is_empty() {
            self.port.push(Event::Received { connection: CLIENT, bytes });
        }
    }

    /// The next call that was answered.
    pub fn poll_answer(&mut self) -> Option<(u32, Reply)> {
        self.answers.pop_front()
    }

    /// One turn, if one is due until `until`; whether one was.
    ///
    /// # Errors
    /// The process stopped or broke the protocol.
    pub fn turn(&mut self, until: u64) -> Result<bool, Ended> {
        if !self.port.is_due(until) {
            return Ok(false);
        }
        let rest = self.port.turn(&mut self.node, until);
        self.take_sent()?;
        match rest {
            None | Some(Rest::Idle) => Ok(true),
            Some(Rest::Stopped(status)) => {
                let words = self.port.journal.last().cloned().unwrap_or_default();
                Err(Ended::Stopped(format!("status {status}: {words}")))
            }
            Some(Rest::Loops) => Err(Ended::Hangs("turns without end".to_owned())),
        }
    }

    fn take_sent(&mut self) -> Result<(), Ended> {
        let sent = self.port.take_sent();
        if sent.is_empty() {
            return Ok(());
        }
        self.client.handle_bytes(&sent).map_err(Ended::Breach)?;
        while let Some((stream, outcome)) = self.client.poll_outcome() {
            let reply = match outcome {
                Outcome::Answered { code: 0, message, .. } => Reply::Message(message),
                Outcome::Answered { code, text, .. } => Reply::Failed(code, text),
                other => return Err(Ended::Breach(format!("stream {stream} ended by {other:?}"))),
            };
            self.answers.push_back((stream, reply));
        }
        self.flush();
        Ok(())
    }

    fn turn_until(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), Ended> {
        let until = self.port.now() + PATIENCE;
        while !is_done(self) {
            if !self.turn(until)? {
                return Err(Ended::Hangs(format!("nothing happens within {} ms", PATIENCE / MILLISECOND)));
            }
        }
        Ok(())
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// The process stopped.
    pub fn rest(&mut self, nanoseconds: u64) -> Result<(), Ended> {
        let until = self.port.now() + nanoseconds;
        while self.turn(until)? {}
        Ok(())
    }

    /// One call, waited for.
    ///
    /// # Errors
    /// The process stopped first.
    pub fn call(&mut self, request: (&str, Vec<u8>)) -> Result<Reply, Ended> {
        let stream = self.begin(request);
        self.turn_until(|member| member.answers.iter().any(|(answered, _)| *answered == stream))?;
        let position = self.answers.iter().position(|(answered, _)| *answered == stream);
        let (_, reply) = position.and_then(|position| self.answers.remove(position)).expect("waited for");
        Ok(reply)
    }

    /// Asks for a graceful stop and waits for it.
    ///
    /// # Errors
    /// It does not come, or not with the status of a stop.
    pub fn stop(&mut self) -> Result<(), Ended> {
        self.port.push(Event::StopRequested { signal: 15 });
        // The client hangs up, as a farewell would have to wait for it.
        self.port.push(Event::Closed { connection: CLIENT, reason: trilith_reactor::CloseReason::EndOfStream });
        match self.turn_until(|_| false) {
            Err(Ended::Stopped(words)) if words.starts_with("status 143") => Ok(()),
            Err(ended) => Err(ended),
            Ok(()) => unreachable!("the wait has no other end"),
        }
    }
}
