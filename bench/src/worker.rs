//! One thread of the load generator: its connections, its share of the requests, its measurements.
//!
//! Owns: when the next request starts and whether an answer is right. Does not know: frames, other threads (but for the
//! highest revision any thread saw).
//!
//! Invariants
//! - I1: a put's revision is above, and a linearizable range's at or above, every revision that was seen anywhere
//!   before the request was sent.
//! - I2: in an open loop latency counts from the planned start, and every request that was planned within the run is
//!   sent, so that a stalled server cannot hide the requests it kept from being sent.

use crate::client::{Client, Finished, Outcome};
use crate::messages;
use crate::options::{Distribution, Limit, Operation, Options};
use crate::sockets::{Completion, Sockets};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Without any answer for so long the run is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Latencies are recorded up to ten minutes, in nanoseconds, with three digits.
const LATENCY_MAX: u64 = 600 * 1_000_000_000;

/// What a thread measured.
pub struct Measured {
    /// Of right answers, in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Counts by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// When the first request started.
    pub started: Instant,
    /// When the last answer came.
    pub ended: Instant,
    /// Planned start and latency of right answers, if asked for.
    pub trace: Vec<(Instant, Duration)>,
}

struct Request {
    start: Instant,
    key: u64,
    /// The highest revision seen when the request was sent.
    seen: u64,
}

/// The share of one thread.
pub struct Share {
    /// Connections of this thread.
    pub connections: usize,
    /// The first of this thread's requests, when they are numbered.
    pub first_request: u64,
    /// How many of them, if the run is limited so.
    pub requests: Option<u64>,
    /// Planned requests a second of this thread.
    pub rate: Option<f64>,
    /// Different for each thread.
    pub seed: u64,
}

struct Worker<'a> {
    options: &'a Options,
    share: &'a Share,
    revision: &'a AtomicU64,
    stop: &'a AtomicBool,
    sockets: Sockets,
    clients: Vec<Option<Client<Request>>>,
    /// Connections that may have room for a call.
    roomy: Vec<usize>,
    random: u64,
    issued: u64,
    outstanding: u64,
    start: Instant,
    deadline: Option<Instant>,
    measured: Measured,
    key: Vec<u8>,
    value: Vec<u8>,
    message: Vec<u8>,
}

/// Runs one thread's share to its end, or until `stop` is set.
pub fn run(options: &Options, share: &Share, revision: &AtomicU64, stop: &AtomicBool) -> Result<Measured, String> {
    let now = Instant::now();
    let latencies = Histogram::new_with_bounds(1, LATENCY_MAX, 3).expect("valid bounds");
    let mut worker = Worker {
        options,
        share,
        revision,
        stop,
        sockets: Sockets::new().map_err(|error| format!("cannot set up io_uring: {error}"))?,
        clients: Vec::new(),
        roomy: Vec::new(),
        random: share.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        issued: 0,
        outstanding: 0,
        start: now,
        deadline: None,
        measured: Measured { latencies, errors: BTreeMap::new(), started: now, ended: now, trace: Vec::new() },
        key: Vec::new(),
        value: Vec::new(),
        message: Vec::new(),
    };
    worker.connect()?;
    worker.work()?;
    Ok(worker.measured)
}

impl Worker<'_> {
    fn connect(&mut self) -> Result<(), String> {
        let path = match self.options.operation {
            Operation::Put => "/etcdserverpb.KV/Put",
            Operation::Range => "/etcdserverpb.KV/Range",
        };
        let endpoint = &self.options.endpoint;
        for _ in 0..self.share.connections {
            let stream =
                TcpStream::connect(endpoint).map_err(|error| format!("cannot connect to {endpoint}: {error}"))?;
            let slot = self.sockets.add(stream).map_err(|error| error.to_string())?;
            let client = Client::new(path, endpoint, self.sockets.queue(slot));
            self.clients.resize_with(self.clients.len().max(slot + 1), || None);
            self.clients[slot] = Some(client);
        }
        // All are ready once their SETTINGS came; the clock starts then.
        let mut completions = Vec::new();
        while self.roomy.len() < self.share.connections {
            self.wait(SILENCE_MAX, &mut completions)?;
            self.roomy = (0..self.clients.len()).filter(|&slot| self.has_room(slot)).collect();
        }
        self.start = Instant::now();
        self.measured.started = self.start;
        if let Limit::Time(time) = self.options.limit {
            self.deadline = Some(self.start + time);
        }
        Ok(())
    }

    fn has_room(&self, slot: usize) -> bool {
        let client = self.clients[slot].as_ref();
        client.is_some_and(|client| client.has_room() && client.outstanding() < self.options.streams)
    }

    fn work(&mut self) -> Result<(), String> {
        let mut completions = Vec::new();
        loop {
            self.issue();
            let planned_out = self.share.rate.is_some() && self.next_planned().is_none();
            let closed_out = self.share.rate.is_none() && self.is_over(Instant::now());
            if self.outstanding == 0 && (planned_out || closed_out) {
                return Ok(());
            }
            let timeout = self.next_planned().map_or(SILENCE_MAX, |planned| {
                planned.saturating_duration_since(Instant::now()).clamp(Duration::from_micros(1), SILENCE_MAX)
            });
            self.wait(timeout, &mut completions)?;
        }
    }

    /// Whether a request that starts, or was planned, at `now` is no longer part of the run.
    fn is_over(&self, now: Instant) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.share.requests.is_some_and(|requests| self.issued >= requests)
            || self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// When the next request of an open loop is planned; `None` in a closed loop, or if there is no next one.
    fn next_planned(&self) -> Option<Instant> {
        let rate = self.share.rate?;
        let planned = self.start + Duration::from_secs_f64(self.issued as f64 / rate);
        (!self.is_over(planned) && !self.roomy.is_empty()).then_some(planned)
    }

    /// Starts every request that may start now.
    fn issue(&mut self) {
        let mut now = Instant::now();
        while let Some(&slot) = self.roomy.last() {
            // I2: a request that waits for room started when it was planned.
            let planned = self.share.rate.map(|rate| self.start + Duration::from_secs_f64(self.issued as f64 / rate));
            let start = planned.unwrap_or(now);
            if self.is_over(start) || start > now {
                return;
            }
            self.call(slot, start);
            if !self.has_room(slot) {
                self.roomy.pop();
            }
            if self.issued.is_multiple_of(16) {
                now = Instant::now();
            }
        }
    }

    fn call(&mut self, slot: usize, start: Instant) {
        let number = self.next_key();
        messages::key_for(&mut self.key, number, self.options.key_bytes);
        match self.options.operation {
            Operation::Put => {
                messages::value_for(&mut self.value, &self.key, self.options.value_bytes);
                messages::put_request(&mut self.message, &self.key, &self.value);
            }
            Operation::Range => messages::range_request(&mut self.message, &self.key, self.options.serializable),
        }
        let request = Request { start, key: number, seen: self.revision.load(Ordering::Relaxed) };
        let client = self.clients[slot].as_mut().expect("a roomy connection is open");
        client.call(&self.message, request, self.sockets.queue(slot));
        self.issued += 1;
        self.outstanding += 1;
    }

    fn next_key(&mut self) -> u64 {
        self.options.first_key + self.next_number()
    }

    fn next_number(&mut self) -> u64 {
        match self.options.distribution {
            Distribution::One => 0,
            Distribution::Sequential => (self.share.first_request + self.issued) % self.options.keys,
            Distribution::Random => {
                // SplitMix64, scaled to the number of keys.
                self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = self.random;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed ^= mixed >> 31;
                ((u128::from(mixed) * u128::from(self.options.keys)) >> 64) as u64
            }
        }
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<Completion>) -> Result<(), String> {
        let before = Instant::now();
        self.sockets.wait(Some(timeout), completions).map_err(|error| format!("io_uring: {error}"))?;
        if completions.is_empty() && before.elapsed() >= SILENCE_MAX {
            return Err(format!("no answer for {SILENCE_MAX:?}, {} requests outstanding", self.outstanding));
        }
        let mut finished = Vec::new();
        for completion in completions.drain(..) {
            match completion {
                Completion::Received(slot, bytes) => {
                    let client = self.clients[slot].as_mut().expect("an open connection receives");
                    let result = client.receive(&bytes, self.sockets.queue(slot), &mut finished);
                    result.map_err(|error| format!("the server broke the protocol: {error}"))?;
                    self.sockets.receive_again(slot, bytes);
                    let now = Instant::now();
                    for finished in finished.drain(..) {
                        self.finish(finished, now);
                    }
                    if self.has_room(slot) && !self.roomy.contains(&slot) {
                        self.roomy.push(slot);
                    }
                }
                Completion::Closed(_) => return Err("the server closed a connection".to_owned()),
                other => unreachable!("a client neither accepts nor writes files: {other:?}"),
            }
        }
        Ok(())
    }

    fn finish(&mut self, finished: Finished<Request>, now: Instant) {
        self.outstanding -= 1;
        self.measured.ended = now;
        match self.judge(&finished) {
            Ok(()) => {
                let latency = now.saturating_duration_since(finished.tag.start).as_nanos() as u64;
                self.measured.latencies.saturating_record(latency.max(1));
                if self.options.trace.is_some() {
                    self.measured.trace.push((finished.tag.start, Duration::from_nanos(latency)));
                }
            }
            Err(what) => *self.measured.errors.entry(what).or_default() += 1,
        }
    }

    /// Whether the answer is the right one.
    fn judge(&mut self, finished: &Finished<Request>) -> Result<(), String> {
        match finished.outcome {
            Outcome::Status(0) => {}
            Outcome::Status(status) => return Err(format!("grpc-status {status}")),
            Outcome::Reset(code) => return Err(format!("RST_STREAM {code}")),
            Outcome::Broken(what) => return Err(what.to_owned()),
        }
        let seen = finished.tag.seen;
        let (revision, least) = match self.options.operation {
            Operation::Put => (messages::check_put(&finished.message)?, seen + 1),
            Operation::Range => {
                messages::key_for(&mut self.key, finished.tag.key, self.options.key_bytes);
                let revision = messages::check_range(&finished.message, &self.key, self.options.value_bytes)?;
                (revision, if self.options.serializable { 0 } else { seen })
            }
        };
        if revision < least {
            return Err("a revision went backwards".to_owned());
        }
        self.revision.fetch_max(revision, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::{self, Frame, flag, frame};
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Answers puts, but none before `stall` has passed since the first; until nothing comes any more.
    fn stalling_server(listener: &TcpListener, stall: Duration) {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut out = Vec::new();
        h2::put_settings(&mut out, &[]);
        let (mut input, mut buffer) = (Vec::new(), vec![0; 65_536]);
        let (mut revision, mut stalled) = (1, false);
        loop {
            stream.write_all(&out).unwrap();
            out.clear();
            let Ok(len @ 1..) = stream.read(&mut buffer) else { return };
            input.extend_from_slice(&buffer[..len]);
            if input.starts_with(h2::PREFACE) {
                input.drain(..h2::PREFACE.len());
            }
            let mut rest = &input[..];
            while let Some((frame, after)) = Frame::parse(rest) {
                rest = after;
                if frame.kind == frame::DATA && frame.has(flag::END_STREAM) {
                    if !std::mem::replace(&mut stalled, true) {
                        std::thread::sleep(stall);
                    }
                    revision += 1;
                    answer_put(&mut out, frame.stream, revision);
                }
            }
            input = rest.to_vec();
        }
    }

    fn answer_put(out: &mut Vec<u8>, stream: u32, revision: u8) {
        h2::put_head(out, 1, frame::HEADERS, flag::END_HEADERS, stream);
        out.push(0x88);
        let message = [0x0a, 6, 0x08, 1, 0x10, 1, 0x18, revision];
        h2::put_head(out, 5 + message.len(), frame::DATA, 0, stream);
        out.extend_from_slice(&[0, 0, 0, 0, message.len() as u8]);
        out.extend_from_slice(&message);
        let trailers = b"\x00\x0bgrpc-status\x010";
        h2::put_head(out, trailers.len(), frame::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream);
        out.extend_from_slice(trailers);
    }

    #[test]
    fn an_open_loop_counts_what_a_stalled_server_kept_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        // 100 requests are planned for 100 ms; three may be outstanding, and the server stalls beyond the end.
        let arguments = ["--endpoint", &endpoint, "--seconds", "0.1", "--connections", "1", "--streams", "3"];
        let mut options = Options::parse(arguments.iter().map(|&text| text.to_owned())).unwrap();
        options.trace = Some("unused".into());
        let share = Share { connections: 1, first_request: 0, requests: None, rate: Some(1000.0), seed: 1 };
        let stall = Duration::from_millis(200);
        let measured = std::thread::scope(|scope| {
            scope.spawn(|| stalling_server(&listener, stall));
            run(&options, &share, &AtomicU64::new(0), &AtomicBool::new(false)).unwrap()
        });
        assert_eq!(measured.errors, BTreeMap::new());
        assert_eq!(measured.latencies.len(), 100, "I2: every planned request is sent");
        assert_eq!(measured.trace.len(), 100);
        let shortest = measured.trace.iter().map(|(_, latency)| *latency).min().unwrap();
        assert!(shortest >= stall - Duration::from_millis(100), "I2: from the planned start: {shortest:?}");
    }
}
