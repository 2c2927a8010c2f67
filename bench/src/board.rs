//! Watch streams and puts of one thread: many connections on one ring.
//!
//! Owns: connections, which of them are not read for a while, puts under way. Does not know: what watchers wait for.
//!
//! I1  A connection that is not read keeps at most one buffer here; the rest stays with the kernel and the server.

use crate::client::{Client, Outcome};
use crate::feeds::Feeds;
use crate::messages;
use crate::sockets::{Completion, Sockets};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Without any bytes for so long, while something is waited for, a run is given up.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
const PUT: &str = "/etcdserverpb.KV/Put";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

enum Peer {
    Watches(Feeds),
    Calls(Client<(Instant, u64)>),
}

/// A call that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// When it was planned.
    pub planned: Instant,
    /// The caller's number for it.
    pub number: u64,
    /// The revision of the answer.
    pub revision: u64,
}

/// The connections of a thread.
pub struct Board {
    endpoint: String,
    sockets: Sockets,
    peers: Vec<Option<Peer>>,
    unread: Vec<usize>,
    kept: Vec<(usize, Vec<u8>)>,
}

impl Board {
    /// No connection yet.
    pub fn new(endpoint: &str) -> Result<Self, String> {
        let sockets = Sockets::new().map_err(|error| format!("cannot set up io_uring: {error}"))?;
        Ok(Self { endpoint: endpoint.to_owned(), sockets, peers: Vec::new(), unread: Vec::new(), kept: Vec::new() })
    }

    fn connect(&mut self) -> Result<usize, String> {
        let endpoint = &self.endpoint;
        let stream = TcpStream::connect(endpoint).map_err(|error| format!("cannot connect to {endpoint}: {error}"))?;
        let slot = self.sockets.add(stream).map_err(|error| error.to_string())?;
        self.peers.resize_with(self.peers.len().max(slot + 1), || None);
        Ok(slot)
    }

    /// A connection for watch streams; ready when this returns. What comes on others meanwhile is not handed on.
    pub fn connect_watches(&mut self) -> Result<usize, String> {
        let slot = self.connect()?;
        let feeds = Feeds::new(WATCH, &self.endpoint, self.sockets.queue(slot));
        self.peers[slot] = Some(Peer::Watches(feeds));
        self.wait_until_ready(slot)
    }

    /// A connection for puts; ready when this returns.
    pub fn connect_puts(&mut self) -> Result<usize, String> {
        self.connect_calls(PUT)
    }

    /// A connection for calls of one method; ready when this returns.
    pub fn connect_calls(&mut self, path: &str) -> Result<usize, String> {
        let slot = self.connect()?;
        let client = Client::new(path, &self.endpoint, self.sockets.queue(slot));
        self.peers[slot] = Some(Peer::Calls(client));
        self.wait_until_ready(slot)
    }

    fn wait_until_ready(&mut self, slot: usize) -> Result<usize, String> {
        loop {
            let is_ready = match self.peers[slot].as_ref() {
                Some(Peer::Watches(feeds)) => feeds.is_ready(),
                Some(Peer::Calls(client)) => client.has_room(),
                None => false,
            };
            if is_ready {
                return Ok(slot);
            }
            self.pump(SILENCE_MAX, &mut |_, _, _| Ok(()), &mut Vec::new())?;
        }
    }

    fn feeds(&mut self, slot: usize) -> (&mut Feeds, &mut Vec<u8>) {
        let Some(Peer::Watches(feeds)) = self.peers[slot].as_mut() else { panic!("no connection of watches") };
        (feeds, self.sockets.queue(slot))
    }

    /// Opens a watch stream.
    pub fn open(&mut self, slot: usize) -> u32 {
        let (feeds, out) = self.feeds(slot);
        feeds.open(out)
    }

    /// Sends a watch request.
    pub fn send(&mut self, slot: usize, stream: u32, request: &[u8]) {
        let (feeds, out) = self.feeds(slot);
        feeds.send(stream, request, out);
    }

    /// Calls under way on a connection of calls, and whether there is room for another.
    pub fn outstanding(&self, slot: usize) -> (usize, bool) {
        match self.peers[slot].as_ref() {
            Some(Peer::Calls(client)) => (client.outstanding(), client.has_room()),
            _ => (0, false),
        }
    }

    /// Makes a call that was planned for some time and has a number.
    pub fn call(&mut self, slot: usize, request: &[u8], planned: Instant, number: u64) {
        let Some(Peer::Calls(client)) = self.peers[slot].as_mut() else { panic!("no connection of calls") };
        client.call(request, (planned, number), self.sockets.queue(slot));
    }

    /// Reads a connection no more.
    pub fn stop_reading(&mut self, slot: usize) {
        self.unread.push(slot);
    }

    /// Reads it again.
    pub fn go_on_reading(
        &mut self,
        slot: usize,
        hear: &mut impl FnMut(usize, u32, &[u8]) -> Result<(), String>,
        done: &mut Vec<Done>,
    ) -> Result<(), String> {
        self.unread.retain(|&unread| unread != slot);
        while let Some(place) = self.kept.iter().position(|(kept, _)| *kept == slot) {
            let (_, bytes) = self.kept.swap_remove(place);
            self.take(slot, bytes, hear, done)?;
        }
        Ok(())
    }

    /// Waits for something and takes it in; false if nothing came in time.
    pub fn pump(
        &mut self,
        timeout: Duration,
        hear: &mut impl FnMut(usize, u32, &[u8]) -> Result<(), String>,
        done: &mut Vec<Done>,
    ) -> Result<bool, String> {
        let mut completions = Vec::new();
        let (timeout, begun) = (timeout.max(Duration::from_micros(1)), Instant::now());
        self.sockets.wait(Some(timeout), &mut completions).map_err(|error| format!("io_uring: {error}"))?;
        // What was sent ends a wait, too.
        let some = !completions.is_empty() || begun.elapsed() < timeout;
        for completion in completions {
            match completion {
                Completion::Received(slot, bytes) if self.unread.contains(&slot) => self.kept.push((slot, bytes)),
                Completion::Received(slot, bytes) => self.take(slot, bytes, hear, done)?,
                Completion::Closed(_) => return Err("the server closed a connection".to_owned()),
                other => unreachable!("a client neither accepts nor writes files: {other:?}"),
            }
        }
        Ok(some)
    }

    fn take(
        &mut self,
        slot: usize,
        bytes: Vec<u8>,
        hear: &mut impl FnMut(usize, u32, &[u8]) -> Result<(), String>,
        done: &mut Vec<Done>,
    ) -> Result<(), String> {
        let out = self.sockets.queue(slot);
        match self.peers[slot].as_mut().expect("an open connection receives") {
            Peer::Watches(feeds) => {
                feeds.receive(&bytes, out, &mut |stream, message| hear(slot, stream, message))?;
            }
            Peer::Calls(client) => {
                let mut finished = Vec::new();
                client.receive(&bytes, out, &mut finished)?;
                for finished in finished {
                    let revision = match finished.outcome {
                        Outcome::Status(0) => messages::header_revision_of(&finished.message),
                        other => return Err(format!("a call failed: {other:?}")),
                    };
                    let revision = revision.ok_or("an answer without a revision")?;
                    let (planned, number) = finished.tag;
                    done.push(Done { planned, number, revision });
                }
            }
        }
        self.sockets.receive_again(slot, bytes);
        Ok(())
    }
}
