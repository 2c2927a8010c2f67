//! A client that watches: some streams on a connection of its own, with watchers that come and go.
//!
//! Owns: its connection, what it does next, and what it takes up again where it was when a stream or the server has
//! ended. Does not know: whether what it is told is right ([`super::stream`], [`super::ledger`]).
//!
//! Invariants
//! - I1: a watcher that is taken up again begins at the first revision that it was not told about: what it is handed in
//!   all its lives has no gap.

use std::collections::BTreeMap;

use trilith_reactor::{CloseReason, ConnectionId};

use super::WatchReply;
use super::ledger::Ledger;
use super::stream::{WatchStream, Wish};
use crate::checker::Checker;
use crate::grammar::Grammar;
use crate::h2_client::{H2Client, Outcome};
use crate::port::SimPort;
use crate::rng::Rng;
use crate::weather::{MILLISECOND, SECOND, Workload};

/// gRPC's UNAVAILABLE: the server stops.
const UNAVAILABLE: u32 = 14;
const STREAMS_MAX: usize = 3;
const PATH: &str = "/etcdserverpb.Watch/Watch";
/// How long a slow reader reads nothing.
const SLOW_MIN: u64 = 100 * MILLISECOND;
const SLOW_MAX: u64 = 15 * SECOND;
/// Pauses between a client's doings.
const PAUSE_MIN: u64 = 20 * MILLISECOND;
const PAUSE_MAX: u64 = SECOND;
/// Pauses between requests for progress of one who waits for it.
const RETRY: u64 = 50 * MILLISECOND;

/// What a client acts in.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say what they are")]
pub struct Scene<'a> {
    pub now: u64,
    pub workload: &'a Workload,
    pub checker: &'a mut Checker,
    pub ledger: &'a mut Ledger,
    pub port: &'a mut SimPort,
    pub rng: &'a mut Rng,
}

#[derive(Debug)]
struct Link {
    connection: ConnectionId,
    protocol: H2Client,
    streams: BTreeMap<u32, WatchStream>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct WatchClient {
    link: Option<Link>,
    is_wake_due: bool,
    wishes: Vec<Wish>,
    /// It does nothing more but wait until it was told everything up to here.
    target: Option<i64>,
}

impl WatchClient {
    /// Its connection, if it has one.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        self.link.as_ref().map(|link| link.connection)
    }

    /// When the oldest request without an answer was sent.
    #[must_use]
    pub fn oldest_owed_at(&self) -> Option<u64> {
        self.link.as_ref()?.streams.values().filter_map(WatchStream::oldest_owed_at).min()
    }

    /// Asks to be woken as this client number, unless that is already so.
    pub fn schedule_wake(&mut self, client: usize, port: &mut SimPort, rng: &mut Rng) {
        if !self.is_wake_due {
            self.is_wake_due = true;
            let delay = match self.link {
                _ if self.target.is_some() => RETRY,
                // Lives are short: who has to begin does.
                None => rng.log_between(MILLISECOND, PAUSE_MIN),
                Some(_) => rng.log_between(PAUSE_MIN, PAUSE_MAX),
            };
            port.wake_client(client, delay);
        }
    }

    /// The wake-up came, or never will.
    pub fn clear_wake(&mut self) {
        self.is_wake_due = false;
    }

    /// Does the next thing.
    pub fn act(&mut self, hang_up_per_mille: u64, scene: &mut Scene<'_>) {
        if self.target.is_none() {
            let is_over = self.link.as_ref().is_some_and(|link| {
                link.protocol.is_going_away() || link.streams.is_empty() || scene.rng.chance(hang_up_per_mille)
            });
            if is_over {
                self.hang_up(scene);
            }
            self.connect(scene);
        }
        if let Some(link) = &mut self.link
            && !link.protocol.is_going_away()
        {
            link.read_again(scene);
            match self.target {
                Some(target) => link.ask_for_progress(target, scene.now),
                None => self.wishes.extend(link.act(scene)),
            }
        }
        self.flush(scene.port);
    }

    fn connect(&mut self, scene: &mut Scene<'_>) {
        if self.link.is_some() {
            return;
        }
        // Short windows make slow readers soon.
        let window = scene.rng.log_between(scene.workload.window_min().max(256), 1 << 16) as u32;
        let connection = scene.port.client_connect();
        let mut link = Link { connection, protocol: H2Client::new(window), streams: BTreeMap::new() };
        link.open();
        self.wishes.truncate(scene.workload.watchers_max);
        for wish in self.wishes.drain(..) {
            // Some are given up, and others share their stream.
            match scene.rng.below(10) {
                0 => continue,
                1 => link.open(),
                _ => {}
            }
            link.create(wish, scene);
        }
        self.link = Some(link);
    }

    fn flush(&mut self, port: &mut SimPort) {
        if let Some(link) = &mut self.link {
            let bytes = link.protocol.take_output();
            if !bytes.is_empty() {
                port.client_send(link.connection, &bytes);
            }
        }
    }

    /// Takes bytes of the server.
    ///
    /// # Errors
    /// The server broke the protocol or said what is wrong.
    pub fn handle_bytes(&mut self, bytes: &[u8], scene: &mut Scene<'_>) -> Result<(), String> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.protocol.handle_bytes(bytes)?;
        while let Some((id, message)) = link.protocol.poll_message() {
            if let Some(stream) = link.streams.get_mut(&id) {
                stream.handle(WatchReply::decode(&message)?, scene)?;
            }
        }
        while let Some((id, outcome)) = link.protocol.poll_outcome() {
            let Some(stream) = link.streams.remove(&id) else { continue };
            match outcome {
                Outcome::Answered { code: UNAVAILABLE, .. } | Outcome::Refused => {
                    self.wishes.extend(stream.into_wishes(true));
                }
                other => return Err(format!("the watch stream ended: {other:?}")),
            }
        }
        self.flush(scene.port);
        Ok(())
    }

    /// The connection ended, perhaps since the process did.
    pub fn handle_closed(&mut self, is_crash: bool) {
        self.target = None;
        if let Some(link) = self.link.take() {
            self.wishes.extend(link.streams.into_values().flat_map(|stream| stream.into_wishes(is_crash)));
        }
    }

    fn hang_up(&mut self, scene: &mut Scene<'_>) {
        if let Some(connection) = self.connection() {
            scene.port.cover("(watch client hung up)");
            let reason = if scene.rng.chance(500) { CloseReason::Failed } else { CloseReason::EndOfStream };
            scene.port.client_close(connection, reason);
        }
        self.handle_closed(false);
    }

    /// From now on it only waits until it was told everything up to `target`.
    pub fn begin_catching_up(&mut self, target: i64, scene: &mut Scene<'_>) {
        self.target = Some(target);
        let Some(link) = &mut self.link else { return };
        for (id, stream) in std::mem::take(&mut link.streams) {
            if stream.half_closed {
                link.protocol.cancel(id);
                self.wishes.extend(stream.into_wishes(false));
            } else {
                link.streams.insert(id, stream);
            }
        }
        for (id, stream) in &mut link.streams {
            stream.slow_until = None;
            link.protocol.go_on_reading(*id);
            stream.begin_catching_up();
        }
        self.flush(scene.port);
    }

    /// Whether it was told everything, as far as there is somebody to tell it.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        match (&self.link, self.target) {
            (Some(link), Some(target)) if !link.protocol.is_going_away() => {
                link.streams.values().all(|stream| stream.has_caught_up(target))
            }
            _ => true,
        }
    }
}

impl Link {
    fn open(&mut self) {
        let id = self.protocol.open(PATH);
        self.streams.insert(id, WatchStream::default());
    }

    /// Some stream that takes requests.
    fn pick(&self, scene: &mut Scene<'_>) -> Option<u32> {
        let open: Vec<u32> = self.streams.iter().filter(|(_, stream)| !stream.half_closed).map(|(id, _)| *id).collect();
        if open.is_empty() { None } else { Some(open[scene.rng.index(open.len())]) }
    }

    fn create(&mut self, wish: Wish, scene: &mut Scene<'_>) {
        let Some(id) = self.pick(scene) else { return };
        let message = self.streams.get_mut(&id).expect("just picked").create(wish, scene);
        self.protocol.send(id, &message);
    }

    /// Slow readers whose time is over go on.
    fn read_again(&mut self, scene: &mut Scene<'_>) {
        for (id, stream) in &mut self.streams {
            if stream.slow_until.is_some_and(|until| until <= scene.now) {
                stream.slow_until = None;
                if self.protocol.go_on_reading(*id) {
                    scene.port.cover("(slow watch stream)");
                }
            }
        }
    }

    /// Requests something. Returns the watchers of a stream that it gave up.
    fn act(&mut self, scene: &mut Scene<'_>) -> Vec<Wish> {
        let Some(id) = self.pick(scene) else {
            self.open();
            return Vec::new();
        };
        let watchers: usize = self.streams.values().map(WatchStream::len).sum();
        let streams = self.streams.len();
        let choice = scene.rng.below(24);
        let stream = self.streams.get_mut(&id).expect("just picked");
        match choice {
            0..7 if watchers < scene.workload.watchers_max => {
                let Scene { workload, checker, rng, .. } = scene;
                let spec = Grammar { workload, checker, rng }.watch();
                self.create(Wish { spec, is_crash_behind: false }, scene);
            }
            0..9 => {
                if let Some(watcher) = stream.used_id(scene) {
                    let message = stream.cancel(watcher, scene.now);
                    self.protocol.send(id, &message);
                }
            }
            9 => {
                // Often of nobody, or of somebody who has ended.
                let message = stream.cancel(scene.rng.below(8) as i64, scene.now);
                self.protocol.send(id, &message);
            }
            10..14 => {
                let message = stream.request_progress();
                self.protocol.send(id, &message);
            }
            14..19 => {
                let until = scene.now + scene.rng.log_between(SLOW_MIN, SLOW_MAX);
                stream.slow_until.get_or_insert(until);
                self.protocol.stop_reading(id);
            }
            19 if streams < STREAMS_MAX => self.open(),
            20 if scene.rng.chance(200) => {
                stream.half_closed = true;
                self.protocol.half_close(id);
            }
            21 if scene.rng.chance(300) => {
                self.protocol.cancel(id);
                return self.streams.remove(&id).map_or_else(Vec::new, |stream| stream.into_wishes(false));
            }
            _ => {}
        }
        Vec::new()
    }

    fn ask_for_progress(&mut self, target: i64, now: u64) {
        for (id, stream) in &mut self.streams {
            for watcher in stream.stuck(target) {
                let message = stream.cancel(watcher, now);
                self.protocol.send(*id, &message);
            }
            if !stream.has_caught_up(target) {
                let message = stream.request_progress();
                self.protocol.send(*id, &message);
            }
        }
    }
}
