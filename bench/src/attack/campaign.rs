//! Runs one attack: opens its connections, sends its pieces at its rate, and counts what the server does.
//!
//! Owns: pacing and the books. Does not know: what a piece says.
//!
//! Invariants
//! - I1: no more pieces, and no more connections, than the attack's rates allow since its start; what could not be sent
//!   in time is not made up for.
//! - I2: what waits in this process for one socket is bounded; a server that does not read is not fed from memory.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::peer::Peer;
pub use super::peer::{Counts, count};
use super::{Attack, Expect};
use crate::sockets::{Completion, Sockets};

/// Between two rounds of sending.
const TICK: Duration = Duration::from_millis(5);
/// Longest wait for a connection, and for the first byte of an attack.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Bytes that may wait here for one socket.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// Source addresses 127.0.0.2, .3 and so on: each has ports of its own.
const SOURCES: u64 = 16;

/// What became of an attack.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Connections that were opened.
    pub opened: u64,
    /// Connections that could not be.
    pub unopened: u64,
    /// Connections that the server closed, by the code of its GOAWAY, if it said one.
    pub closed: Counts,
    /// Connections still open at the end.
    pub open: u64,
    /// The longest any connection lived, in seconds.
    pub longest_seconds: f64,
    /// Pieces and bytes handed to the kernel's queue.
    pub pieces: u64,
    /// Bytes of greetings and pieces.
    pub bytes: u64,
    /// What the server answered: resets by code, statuses other than 200 of HTTP, statuses of gRPC.
    pub answers: Counts,
}

impl Outcome {
    /// What the attack's expectation comes to: `Ok` with a word for a table, or what is wrong.
    pub fn judge(&self, expect: Expect) -> Result<String, String> {
        let closed: u64 = self.closed.values().sum();
        if self.opened == 0 {
            return Err("no connection could be opened".to_owned());
        }
        match expect {
            Expect::Harmless if closed == 0 => Ok("stays".to_owned()),
            Expect::Harmless => Ok("closed".to_owned()),
            Expect::Refused(answer) if self.answers.contains_key(answer) || closed > 0 => Ok("refused".to_owned()),
            Expect::Refused(answer) => Err(format!("no answer is {answer}")),
            Expect::Closed(_) if closed == 0 => Err("no connection was closed".to_owned()),
            Expect::Closed(seconds) if self.longest_seconds > seconds => {
                Err(format!("a connection lived {:.1} s", self.longest_seconds))
            }
            Expect::Closed(_) => Ok("closed".to_owned()),
        }
    }
}

struct Campaign<'a> {
    attack: &'a Attack,
    endpoint: SocketAddr,
    sockets: Sockets,
    peers: Vec<Option<Peer>>,
    alive: usize,
    next: usize,
    outcome: Outcome,
}

/// Runs an attack for so long, or until `stop` is set.
pub fn run(attack: &Attack, endpoint: SocketAddr, time: Duration, stop: &AtomicBool) -> Result<Outcome, String> {
    let sockets = Sockets::new().map_err(|error| format!("cannot set up io_uring: {error}"))?;
    let (peers, outcome) = (Vec::new(), Outcome::default());
    let mut campaign = Campaign { attack, endpoint, sockets, peers, alive: 0, next: 0, outcome };
    let mut last = Instant::now();
    let end = last + time;
    let (mut connects, mut pieces) = (1.0, 0.0);
    let mut completions = Vec::new();
    while last < end && !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let passed = now.duration_since(last).min(10 * TICK).as_secs_f64();
        last = now;
        connects += passed * f64::from(attack.connects_per_second);
        pieces += passed * f64::from(attack.pieces_per_second);
        connects -= campaign.connect(connects as u64) as f64;
        campaign.send(pieces as u64);
        pieces = pieces.fract();
        let until = now + TICK;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            campaign.sockets.wait(Some(left), &mut completions).map_err(|error| format!("io_uring: {error}"))?;
            campaign.take(&mut completions);
        }
    }
    Ok(campaign.finish())
}

impl Campaign<'_> {
    /// Opens up to `allowed` connections; how many of them were tried, or never will be.
    fn connect(&mut self, allowed: u64) -> u64 {
        let most = self.attack.connections;
        for done in 0..allowed {
            let tried = (self.outcome.opened + self.outcome.unopened) as usize;
            if self.alive >= most || (!self.attack.reconnects && tried >= most) {
                // I1: what was not needed now is not saved up.
                return allowed.max(done);
            }
            match open(self.endpoint, tried as u64).and_then(|stream| self.sockets.add(stream)) {
                Ok(slot) => self.greet(slot),
                Err(_) => {
                    self.outcome.unopened += 1;
                    return allowed;
                }
            }
        }
        allowed
    }

    fn greet(&mut self, slot: usize) {
        self.outcome.opened += 1;
        self.alive += 1;
        if self.peers.len() <= slot {
            self.peers.resize_with(slot + 1, || None);
        }
        self.peers[slot] = Some(Peer::new(Instant::now()));
        let queue = self.sockets.queue(slot);
        (self.attack.greeting)(0, queue);
        self.outcome.bytes += queue.len() as u64;
        if self.attack.hangs_up {
            self.sockets.close(slot);
        }
    }

    /// Sends so many pieces, connection after connection.
    fn send(&mut self, pieces: u64) {
        let (mut left, mut passed_over) = (pieces, 0);
        while left > 0 && passed_over < self.peers.len() {
            self.next = (self.next + 1) % self.peers.len();
            let slot = self.next;
            passed_over += 1;
            let Some(peer) = &mut self.peers[slot] else { continue };
            let queue = self.sockets.queue(slot);
            let before = queue.len();
            if before > QUEUED_BYTES_MAX {
                continue;
            }
            (self.attack.piece)(peer.round, queue);
            self.outcome.bytes += (queue.len() - before) as u64;
            peer.round += 1;
            self.outcome.pieces += 1;
            (left, passed_over) = (left - 1, 0);
        }
    }

    fn take(&mut self, completions: &mut Vec<Completion>) {
        for completion in completions.drain(..) {
            match completion {
                Completion::Received(slot, bytes) => {
                    if let Some(peer) = &mut self.peers[slot] {
                        peer.receive(&bytes, &mut self.outcome.answers);
                    }
                    if self.attack.reads {
                        self.sockets.receive_again(slot, bytes);
                    }
                }
                Completion::Closed(slot) => {
                    if let Some(peer) = self.peers[slot].take() {
                        self.alive -= 1;
                        self.note_life(&peer);
                        if !self.attack.hangs_up {
                            count(&mut self.outcome.closed, peer.end());
                        }
                    }
                }
                Completion::Accepted(_) | Completion::Written(..) => {}
            }
        }
    }

    fn note_life(&mut self, peer: &Peer) {
        let lived = peer.opened.elapsed().as_secs_f64();
        self.outcome.longest_seconds = self.outcome.longest_seconds.max(lived);
    }

    fn finish(mut self) -> Outcome {
        for peer in std::mem::take(&mut self.peers).into_iter().flatten() {
            self.outcome.open += 1;
            self.note_life(&peer);
        }
        self.outcome
    }
}

fn open(endpoint: SocketAddr, number: u64) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(endpoint), Type::STREAM, Some(Protocol::TCP))?;
    if endpoint.ip().is_loopback() && endpoint.is_ipv4() {
        let source = Ipv4Addr::new(127, 0, 0, 2 + (number % SOURCES) as u8);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect_timeout(&endpoint.into(), CONNECT_MAX)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn attack(connections: usize) -> Attack {
        let mut attack = super::super::FLOOD;
        (attack.connections, attack.reconnects) = (connections, false);
        (attack.connects_per_second, attack.pieces_per_second) = (1_000, 100);
        attack.piece = |_, out| out.push(b'p');
        attack
    }

    #[test]
    fn ends_and_answers_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut seen = [0; 34];
                stream.read_exact(&mut seen).unwrap();
                // GOAWAY 11.
                stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11]).unwrap();
            }
            listener
        });
        let stop = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            let running = scope.spawn(|| run(&attack(2), endpoint, Duration::from_secs(60), &stop));
            let listener = server.join().unwrap();
            stop.store(true, Ordering::Relaxed);
            let outcome = running.join().unwrap().unwrap();
            drop(listener);
            outcome
        });
        assert_eq!((outcome.opened, outcome.unopened), (2, 0));
        assert!(outcome.pieces >= 2, "each connection sent a piece behind its greeting");
    }

    #[test]
    fn expectations_are_judged() {
        let closed = |code: &str, longest_seconds| Outcome {
            closed: [(code.to_owned(), 1)].into(),
            longest_seconds,
            opened: 1,
            ..Outcome::default()
        };
        assert!(Outcome::default().judge(Expect::Harmless).is_err(), "nothing happened");
        let nothing = Outcome { opened: 1, ..Outcome::default() };
        assert_eq!(closed("goaway 11", 2.0).judge(Expect::Closed(3.0)).as_deref(), Ok("closed"));
        assert!(closed("goaway 11", 4.0).judge(Expect::Closed(3.0)).is_err());
        assert!(nothing.judge(Expect::Closed(3.0)).is_err() && nothing.judge(Expect::Refused("rst 7")).is_err());
        assert_eq!(nothing.judge(Expect::Harmless).as_deref(), Ok("stays"));
        let refused = Outcome { answers: [("rst 7".to_owned(), 1)].into(), ..closed("", 0.0) };
        assert_eq!(refused.judge(Expect::Refused("rst 7")).as_deref(), Ok("refused"));
    }
}
