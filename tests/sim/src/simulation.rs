//! One run: lives of a server process on one disk, clients, audits after every recovery.
//!
//! Owns: the order of things and the bounds of patience. Does not know: what the server is made of.
//!
//! A run takes a number of virtual seconds and has at least five faults; its lives end by fates drawn beforehand, or
//! after a time. The clients' requests come at a rate; what an outage prevented they make up for.
//!
//! Invariants
//! - I1: each life begins with an audit: the recovered store is read and everything acknowledged is checked in it.
//! - I2: the last life follows a crash, so that every acknowledgement of a run has been through a recovery.
//! - I3: patience is bounded in virtual time and in turns: a server that hangs is a failure, not a long run.

use std::collections::BTreeMap;
use std::fmt;

use trilith_reactor::{ConnectionId, Event, Turn};

use crate::checker::Checker;
use crate::client::Client;
use crate::disk::{Disk, Survival};
use crate::grammar::Grammar;
use crate::history::{Answer, Request, Response};
use crate::model::{KeyRange, KeyValue};
use crate::port::{Delivery, SimPort};
use crate::rng::Rng;
use crate::rot;
use crate::subject::Subject;
use crate::trace::Trace;
use crate::value::Value;
use crate::watch::client::{Scene, WatchClient};
use crate::watch::ledger::Ledger;
use crate::weather::{CrashKind, Fate, Latency, MICROSECOND, MILLISECOND, Rot, SECOND, Swarm};

/// A call that is under way for longer, though the server lives, hangs.
const PATIENCE: u64 = 120 * SECOND;
/// Watchers that are behind for longer, though nobody writes, are forgotten.
const WATCH_PATIENCE: u64 = 60 * SECOND;
/// Leases that are over within so long are waited for.
const RUN_OUT: u64 = 6 * SECOND;
/// A graceful stop that takes longer hangs.
const STOP_PATIENCE: u64 = 60 * SECOND;
/// Turns of one life.
const TURNS_MAX: u64 = 300_000;
/// Turns that a server may take to stop after an I/O error was delivered.
const ERROR_TURNS_MAX: u64 = 3;
/// Historical revisions that an audit reads besides the unclaimed ones.
const AUDIT_SAMPLES: u64 = 2;
/// A run is not over before so many faults.
const FAULTS_MIN: u64 = 5;
/// Where the weight of requests about alarms stands.
const ALARM_WEIGHT: usize = 8;
/// Requests that an outage may leave to be made up for.
const BACKLOG_MAX: u64 = 20_000;
/// From so many bytes of log on, every other life is spared its fate. Each life takes a segment, and one that ends
/// early ends before its checkpoint does: crash after crash the log would grow, and every start reads all of it.
const LOG_BYTES_SPARED: usize = 24 << 20;
/// How often an audit asks again for what timed out.
const AUDIT_ATTEMPTS_MAX: usize = 20;
/// Calls that an audit has under way.
const AUDIT_CALLS_MAX: usize = 64;

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server lied, lost something, or broke a protocol.
    Correctness(String),
    /// The server hangs, refuses to start, or stops without a reason.
    Liveness(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Correctness(why) => write!(f, "correctness: {why}"),
            Self::Liveness(why) => write!(f, "liveness: {why}"),
        }
    }
}

/// What a run is made from.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Prints every event to stderr.
    pub verbose: bool,
    /// Reports log writes complete before they are durable: a run with writes must then fail.
    pub early_acknowledgement: bool,
    /// A short run of keys and values alone, on a disk with room that does not rot: for servers that know no more.
    pub plain: bool,
    /// Virtual seconds of most runs; the rare long ones keep their proportion to them.
    pub seconds: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Operations answered with OK.
    pub acknowledged: u64,
    /// Crashes, of which each was followed by a recovery.
    pub crashes: u64,
    /// Turns of the server.
    pub turns: u64,
    /// Media checked at an acknowledgement.
    pub witnesses: u64,
    /// Faults that the server felt.
    pub faults: u64,
    /// Windows judged by the independent search.
    pub windows: u64,
    /// Virtual nanoseconds.
    pub virtual_time: u64,
    /// Hash of everything that crossed the port.
    pub trace_hash: u64,
    /// What happened how often.
    pub coverage: BTreeMap<String, u64>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Crash(CrashKind),
    Exit,
    /// After damage beyond what it can bear, the server said so and gave up.
    GaveUp,
}

/// Runs one seed.
pub fn run<S: Subject>(options: Options) -> Report {
    let mut rng = Rng::new(options.seed);
    let mut swarm = Swarm::draw(&mut rng.fork(1));
    swarm.weather.early_acknowledgement = options.early_acknowledgement;
    swarm.shorten(options.seconds);
    if options.plain {
        swarm.make_plain();
    }
    let port_rng = rng.fork(2);
    let mut disk = Disk::default();
    if swarm.rot != Rot::Never {
        disk.remember_previous();
    }
    let port = SimPort::new(disk, swarm.weather.clone(), port_rng, 0, Trace::begin(options.verbose));
    let mut simulation = Simulation::new(port, swarm, rng.fork(3));
    let failure = simulation.run_lives::<S>().err();
    let Simulation { port, checker, crashes, turns, witnesses, .. } = simulation;
    Report {
        faults: port.faults(),
        windows: checker.windows(),
        acknowledged: checker.acknowledged(),
        crashes,
        turns,
        witnesses,
        virtual_time: trilith_reactor::Port::now(&port),
        trace_hash: port.trace.hash(),
        coverage: port.coverage().clone(),
        failure,
    }
}

struct Simulation {
    port: SimPort,
    checker: Checker,
    swarm: Swarm,
    rng: Rng,
    clients: Vec<Client>,
    watchers: Vec<WatchClient>,
    ledger: Ledger,
    /// Watchers act, though no requests are sent any more.
    is_catching_up: bool,
    auditor: Client,
    /// What the auditor was answered.
    audited: BTreeMap<u64, Response>,
    /// Requests that the clients sent.
    issued: u64,
    /// Clients send nothing more from here on, until the next life.
    life_until: u64,
    /// Data at rest was damaged beyond what must be borne: the server may refuse, but not lie.
    damaged: Option<rot::Damage>,
    crashes: u64,
    turns: u64,
    turns_of_life: u64,
    error_turns: u64,
    witnesses: u64,
    /// Media to check with what was acknowledged from them.
    evidence: Vec<(Disk, Vec<(u64, Response)>)>,
    events: Vec<Event>,
    deliveries: Vec<Delivery>,
}

impl Simulation {
    fn new(port: SimPort, swarm: Swarm, rng: Rng) -> Self {
        let clients = (0..swarm.workload.clients).map(|_| Client::new()).collect();
        let watchers = (0..swarm.workload.watch_clients).map(|_| WatchClient::default()).collect();
        let mut checker =
            Checker::new(swarm.limits.request_bytes_max, swarm.limits.quota_bytes >= 0, swarm.limits.election_timeout);
        if swarm.limits.cache_bytes < u64::MAX {
            checker.expect_overload();
        }
        checker.watch(b"k00000".to_vec());
        checker.watch(b"k00003".to_vec());
        Self {
            port,
            checker,
            swarm,
            rng,
            clients,
            watchers,
            ledger: Ledger::default(),
            is_catching_up: false,
            auditor: Client::new(),
            audited: BTreeMap::new(),
            issued: 0,
            life_until: 0,
            damaged: None,
            crashes: 0,
            turns: 0,
            turns_of_life: 0,
            error_turns: 0,
            witnesses: 0,
            evidence: Vec::new(),
            events: Vec::new(),
            deliveries: Vec::new(),
        }
    }

    fn now(&self) -> u64 {
        trilith_reactor::Port::now(&self.port)
    }

    fn run_lives<S: Subject>(&mut self) -> Result<(), Failure> {
        let end = self.now() + self.swarm.duration;
        while self.now() < end || self.port.faults() < FAULTS_MIN {
            let mut fate = self.swarm.draw_fate(&mut self.rng);
            let mut length = self.rng.log_between(100 * MILLISECOND, 2 * self.swarm.life);
            if self.log_bytes() > LOG_BYTES_SPARED && self.rng.chance(500) {
                (fate, length) = (Fate::Survive, length.max(self.swarm.life));
                self.port.cover("(life spared)");
            }
            self.begin_life(fate, length);
            let ending = self.run_life::<S>(fate)?;
            self.crashes += u64::from(matches!(ending, Ending::Crash(_)));
            if ending == Ending::GaveUp {
                return Ok(());
            }
            self.rest(ending);
        }
        // Whatever was acknowledged in the last life is looked at in one more.
        self.begin_life(Fate::Survive, 0);
        self.run_life::<S>(Fate::Survive)?;
        Ok(())
    }

    /// The files of the log, whatever is in them.
    fn log_bytes(&self) -> usize {
        let disk = self.port.disk();
        disk.names_from("wal/seg").iter().filter_map(|name| disk.lookup(name)).map(|file| disk.len(file)).sum()
    }

    fn begin_life(&mut self, fate: Fate, length: u64) {
        let troubles = if fate == Fate::Survive { Vec::new() } else { self.swarm.draw_troubles(&mut self.rng) };
        self.port.begin_life(fate, &troubles);
        self.checker.begin_life(self.now());
        self.life_until = self.now() + length;
        self.turns_of_life = 0;
        self.error_turns = 0;
    }

    /// What happens while no process runs.
    fn rest(&mut self, ending: Ending) {
        let longest = if self.rng.chance(100) { 3 * SECOND } else { 100 * MILLISECOND };
        self.port.sleep(self.rng.log_between(MICROSECOND, longest));
        if self.swarm.workload.leases_max > 0 && self.rng.chance(60) {
            // Long enough for leases to be due when a process runs again.
            self.port.sleep(self.rng.between(SECOND, 5 * SECOND));
        }
        if ending != Ending::Crash(CrashKind::PowerLoss) && self.rng.chance(300) {
            self.port.lose_power();
        }
        let damage = match self.swarm.rot {
            Rot::Redundant if self.rng.chance(400) => rot::damage_redundant(self.port.disk_mut(), &mut self.rng),
            // Only below a durable watermark is a lost batch told from one that never was.
            Rot::Anything if ending == Ending::Exit && self.port.stop_requested_at().is_some() => {
                rot::damage_anything(self.port.disk_mut(), &mut self.rng)
            }
            _ => None,
        };
        let Some(damage) = damage else { return };
        self.port.trace.event(self.now(), format_args!("{damage:?}"));
        self.port.count_fault(damage.what);
        if self.swarm.rot == Rot::Anything {
            self.damaged = Some(damage);
        }
    }

    fn run_life<S: Subject>(&mut self, fate: Fate) -> Result<Ending, Failure> {
        let mut node = match S::boot(&self.swarm.limits, &mut self.port) {
            _ if self.port.is_dead() => {
                self.port.cover("(crash at boot)");
                return self.end_by_crash(fate);
            }
            Ok(node) => node,
            Err(_) if self.port.error_delivered_at().is_some() || self.port.space_was_missing() => {
                return self.end_by_exit();
            }
            Err(why) => return self.end_by_refusal(&why),
        };
        if let Some(ending) = self.turn(&mut node)? {
            return Ok(ending);
        }
        if let Some(ending) = self.audit(&mut node)? {
            self.port.cover("(ended during the audit)");
            return Ok(ending);
        }
        for client in 0..self.clients.len() {
            let delay = self.swarm.workload.think.draw(&mut self.rng);
            self.clients[client].schedule_wake(client, delay, &mut self.port);
        }
        self.wake_watchers();
        let drains = self.rng.chance(500);
        while self.is_working() || (drains && self.clients.iter().any(|client| client.open_calls() > 0)) {
            if let Some(ending) = self.step(&mut node)? {
                return Ok(ending);
            }
            if !self.is_working() && self.checker.may_keep_leases() {
                self.cancel_renewals();
            }
            self.check_evidence::<S>()?;
        }
        if drains && let Some(ending) = self.let_leases_run_out(&mut node)? {
            return Ok(ending);
        }
        if drains && let Some(ending) = self.let_watchers_catch_up(&mut node)? {
            return Ok(ending);
        }
        let kind = if self.rng.chance(500) { CrashKind::Kill } else { CrashKind::PowerLoss };
        drop(node);
        self.crash(kind)
    }

    /// Who keeps a lease alive that cannot end is not answered before it has.
    fn cancel_renewals(&mut self) {
        let now = self.now();
        for client in &mut self.clients {
            client.cancel_renewals(now, &mut self.port, &mut self.checker);
        }
    }

    /// Whether clients still send requests in this life.
    fn is_working(&self) -> bool {
        self.now() < self.life_until
    }

    /// The server refuses to start: fine after damage, if it says where.
    fn end_by_refusal(&mut self, why: &str) -> Result<Ending, Failure> {
        let Some(damage) = &self.damaged else {
            return Err(Failure::Liveness(format!("the server refuses to start: {why}")));
        };
        self.port.trace.event(self.now(), format_args!("refused: {why}"));
        let file = damage.name.rsplit('/').next().unwrap_or_default();
        let family = file.split('-').next().unwrap_or_default();
        let names_place = why.contains(family) || why.contains("hard") || why.contains("LSN");
        if !names_place {
            let why = format!("{damage:?} is refused without saying where: {why}");
            return Err(Failure::Correctness(why));
        }
        self.port.cover("(damage refused)");
        self.end_by_exit()?;
        Ok(Ending::GaveUp)
    }

    fn end_by_crash(&mut self, fate: Fate) -> Result<Ending, Failure> {
        match fate {
            Fate::CrashAt { kind, .. } | Fate::CrashOnFile { kind, .. } | Fate::CrashAfter { kind, .. } => {
                self.crash(kind)
            }
            _ => unreachable!("only these fates kill"),
        }
    }

    fn crash(&mut self, kind: CrashKind) -> Result<Ending, Failure> {
        let deliveries = self.port.crash(kind);
        self.end_connections(deliveries)?;
        Ok(Ending::Crash(kind))
    }

    fn end_by_exit(&mut self) -> Result<Ending, Failure> {
        let deliveries = self.port.exit();
        self.end_connections(deliveries)?;
        Ok(Ending::Exit)
    }

    fn end_connections(&mut self, deliveries: Vec<Delivery>) -> Result<(), Failure> {
        // Nobody reconnects before the next life has been audited.
        self.life_until = 0;
        self.is_catching_up = false;
        let now = self.now();
        self.checker.end_life(now);
        for delivery in deliveries {
            self.deliver(delivery)?;
        }
        self.evidence.clear();
        for client in self.clients.iter_mut().chain([&mut self.auditor]) {
            client.handle_closed(now, &mut self.checker);
            client.clear_wake();
        }
        for watcher in &mut self.watchers {
            watcher.handle_closed(true);
            watcher.clear_wake();
        }
        self.check_port()
    }

    fn check_port(&mut self) -> Result<(), Failure> {
        match self.port.take_violation() {
            Some(breach) => Err(Failure::Correctness(format!("breach of the port's contract: {breach}"))),
            None => Ok(()),
        }
    }

    /// Lets the next things happen. Returns how the life ended, if it did.
    fn step<S: Subject>(&mut self, node: &mut S) -> Result<Option<Ending>, Failure> {
        let mut deliveries = std::mem::take(&mut self.deliveries);
        let progress = self.port.advance(&mut self.events, &mut deliveries);
        for (began, length) in self.port.take_pauses() {
            self.checker.note_pause(began, length);
        }
        self.checker.set_time(self.now(), self.port.lost_time());
        for delivery in deliveries.drain(..) {
            self.deliver(delivery)?;
        }
        self.deliveries = deliveries;
        if !progress {
            return Err(Failure::Liveness("nothing is due and calls are under way".to_owned()));
        }
        self.check_patience()?;
        if self.port.is_dead() {
            return self.end_by_crash_of_port().map(Some);
        }
        if self.events.is_empty() { Ok(None) } else { self.turn(node) }
    }

    fn end_by_crash_of_port(&mut self) -> Result<Ending, Failure> {
        self.events.clear();
        let fate = self.port.fate();
        self.end_by_crash(fate)
    }

    /// One turn of the server with the events at hand.
    fn turn<S: Subject>(&mut self, node: &mut S) -> Result<Option<Ending>, Failure> {
        if self.port.space_was_missing() {
            // Its alarm stays until somebody clears it.
            self.checker.expect_no_space();
            self.swarm.workload.weights[ALARM_WEIGHT] = self.swarm.workload.weights[ALARM_WEIGHT].max(3);
        }
        let turn = node.handle_turn(&mut self.port, &mut self.events);
        self.turns += 1;
        self.turns_of_life += 1;
        if self.port.is_dead() {
            return self.end_by_crash_of_port().map(Some);
        }
        self.check_port()?;
        if !self.events.is_empty() {
            return Err(Failure::Correctness("a turn left events behind".to_owned()));
        }
        if let Turn::Stop(status) = turn {
            if self.damaged.is_some() && self.port.last_words().contains("offset") {
                self.port.cover("(damage met)");
                self.end_by_exit()?;
                return Ok(Some(Ending::GaveUp));
            }
            let had_reason = self.port.error_delivered_at().is_some()
                || self.port.stop_requested_at().is_some()
                || self.port.space_was_missing();
            if !had_reason {
                return Err(Failure::Liveness(format!("the server stopped by itself with status {status}")));
            }
            return self.end_by_exit().map(Some);
        }
        if self.port.error_delivered_at().is_some() {
            self.error_turns += 1;
            if self.error_turns > ERROR_TURNS_MAX {
                return Err(Failure::Liveness("the server goes on after an I/O error".to_owned()));
            }
        }
        self.port.spend_turn();
        Ok(None)
    }

    fn check_patience(&self) -> Result<(), Failure> {
        let owed = self.watchers.iter().filter_map(WatchClient::oldest_owed_at);
        let oldest = self.clients.iter().chain([&self.auditor]).filter_map(Client::oldest_call_at).chain(owed).min();
        if oldest.is_some_and(|at| at + PATIENCE < self.now()) {
            let (seconds, progress) = (PATIENCE / SECOND, self.show_progress());
            return Err(Failure::Liveness(format!("a call is under way for {seconds} virtual seconds{progress}")));
        }
        if self.port.stop_requested_at().is_some_and(|at| at + STOP_PATIENCE < self.now()) {
            return Err(Failure::Liveness(format!("no stop within {} virtual seconds", STOP_PATIENCE / SECOND)));
        }
        if self.turns_of_life > TURNS_MAX {
            return Err(Failure::Liveness(format!("{TURNS_MAX} turns in one life{}", self.show_progress())));
        }
        Ok(())
    }

    /// What came of the answer to the oldest call: an answer that trickles is no hang.
    fn show_progress(&self) -> String {
        let calls = self.clients.iter().chain([&self.auditor]).flat_map(Client::progress);
        let Some((since, received, expected)) = calls.min() else { return String::new() };
        let milliseconds = (self.now() - since) / MILLISECOND;
        let expected = expected.map_or_else(String::new, |expected| format!(" of {expected}"));
        format!("; of the oldest call {received}{expected} bytes came in {milliseconds} virtual milliseconds")
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<(), Failure> {
        let now = self.now();
        match delivery {
            Delivery::Wake { client } if client == self.clients.len() + self.watchers.len() => Ok(()),
            Delivery::Wake { client } if client >= self.clients.len() => {
                self.drive_watcher(client - self.clients.len());
                Ok(())
            }
            Delivery::Wake { client } => {
                self.clients[client].clear_wake();
                self.drive_client(client);
                Ok(())
            }
            Delivery::Closed { connection } => {
                if self.auditor.connection() == Some(connection) {
                    self.auditor.handle_closed(now, &mut self.checker);
                }
                for client in 0..self.clients.len() {
                    if self.clients[client].connection() == Some(connection) {
                        self.clients[client].handle_closed(now, &mut self.checker);
                        self.wake_later(client);
                    }
                }
                let watcher = self.watchers.iter_mut().find(|watcher| watcher.connection() == Some(connection));
                if let Some(watcher) = watcher {
                    watcher.handle_closed(false);
                }
                Ok(())
            }
            Delivery::Bytes { connection, bytes, sent_at, media } => {
                let mut answered = Vec::new();
                let of_auditor = self.auditor.connection() == Some(connection);
                let position = self.clients.iter().position(|client| client.connection() == Some(connection));
                let client = match position {
                    Some(position) => &mut self.clients[position],
                    None if of_auditor => &mut self.auditor,
                    None => return self.deliver_to_watcher(connection, &bytes),
                };
                let handled = client.handle_bytes(&bytes, (sent_at, now), &mut self.checker, &mut answered);
                handled.map_err(Failure::Correctness)?;
                client.flush(&mut self.port);
                for _ in 0..client.take_sliced() {
                    self.port.cover("(large read in slices)");
                }
                match position {
                    Some(client) => self.wake_later(client),
                    None => self.audited.extend(answered.iter().cloned()),
                }
                if let Some(media) = media
                    && !answered.is_empty()
                {
                    self.evidence.push((*media, answered));
                }
                Ok(())
            }
        }
    }

    fn wake_later(&mut self, client: usize) {
        if self.is_working() {
            let delay = self.swarm.workload.think.draw(&mut self.rng).max(self.next_due_in());
            self.clients[client].schedule_wake(client, delay, &mut self.port);
        }
    }

    /// Requests that are due and were not sent.
    fn backlog(&self) -> u64 {
        let due = self.now() / MILLISECOND * self.swarm.workload.rate / 1_000;
        due.saturating_sub(self.issued).min(BACKLOG_MAX)
    }

    /// How long until the next request is due, if none is.
    fn next_due_in(&self) -> u64 {
        if self.backlog() > 0 { 0 } else { SECOND / self.swarm.workload.rate }
    }

    /// A client's turn to send something.
    fn drive_client(&mut self, position: usize) {
        if !self.is_working() {
            return;
        }
        let workload = self.swarm.workload;
        let now = self.now();
        let backlog = self.backlog();
        let client = &mut self.clients[position];
        let weather = &self.swarm.weather;
        if self.rng.chance(weather.hang_up_per_mille) {
            client.abandon(now, &mut self.port, &mut self.checker, &mut self.rng);
        } else if self.rng.chance(weather.disturb_per_mille) {
            client.disturb(now, &mut self.port, &mut self.checker, &mut self.rng);
        }
        client.connect(&workload, &mut self.port, &mut self.rng);
        for _ in 0..self.rng.log_between(1, workload.outstanding_max as u64).min(backlog) {
            if !client.can_call(workload.outstanding_max) {
                break;
            }
            self.issued += 1;
            let mut grammar = Grammar { workload: &workload, checker: &self.checker, rng: &mut self.rng };
            let request = grammar.request();
            client.call(request, now, &mut self.checker);
        }
        client.flush(&mut self.port);
        if client.can_call(workload.outstanding_max) || client.open_calls() == 0 {
            self.wake_later(position);
        }
        for what in self.checker.take_covered() {
            self.port.cover(what);
        }
    }

    fn scene(&mut self) -> (Scene<'_>, &mut [WatchClient]) {
        let scene = Scene {
            now: trilith_reactor::Port::now(&self.port),
            workload: &self.swarm.workload,
            checker: &mut self.checker,
            ledger: &mut self.ledger,
            port: &mut self.port,
            rng: &mut self.rng,
        };
        (scene, &mut self.watchers)
    }

    fn deliver_to_watcher(&mut self, connection: ConnectionId, bytes: &[u8]) -> Result<(), Failure> {
        let (mut scene, watchers) = self.scene();
        let watcher = watchers.iter_mut().find(|watcher| watcher.connection() == Some(connection));
        watcher.map_or(Ok(()), |watcher| watcher.handle_bytes(bytes, &mut scene)).map_err(Failure::Correctness)
    }

    fn wake_watchers(&mut self) {
        for (position, watcher) in self.watchers.iter_mut().enumerate() {
            watcher.schedule_wake(self.clients.len() + position, &mut self.port, &mut self.rng);
        }
    }

    /// A watching client's turn to do something.
    fn drive_watcher(&mut self, position: usize) {
        self.watchers[position].clear_wake();
        if !self.is_working() && !self.is_catching_up {
            return;
        }
        let hang_up_per_mille = self.swarm.weather.hang_up_per_mille;
        let (mut scene, watchers) = self.scene();
        watchers[position].act(hang_up_per_mille, &mut scene);
        self.wake_watchers();
    }

    /// Nobody writes any more: whoever watches and reads is told everything before long.
    fn let_watchers_catch_up<S: Subject>(&mut self, node: &mut S) -> Result<Option<Ending>, Failure> {
        let (since, target) = (self.now(), self.checker.highest_returned());
        self.is_catching_up = true;
        let (mut scene, watchers) = self.scene();
        watchers.iter_mut().for_each(|watcher| watcher.begin_catching_up(target, &mut scene));
        self.wake_watchers();
        while !self.watchers.iter().all(WatchClient::has_caught_up) {
            if let Some(ending) = self.step(node)? {
                return Ok(Some(ending));
            }
            if self.now() > since + WATCH_PATIENCE {
                let why =
                    format!("watchers do not come to {target} within {} virtual seconds", WATCH_PATIENCE / SECOND);
                return Err(Failure::Liveness(why));
            }
        }
        if !self.watchers.is_empty() {
            self.port.cover("(watchers caught up)");
        }
        Ok(None)
    }

    /// Nobody keeps leases alive any more: those with little time left end, each with its keys.
    fn let_leases_run_out<S: Subject>(&mut self, node: &mut S) -> Result<Option<Ending>, Failure> {
        if self.damaged.is_some() || self.swarm.workload.leases_max == 0 || !self.rng.chance(700) {
            return Ok(None);
        }
        let Some(mut until) = self.checker.leases_run_out_by(self.now(), RUN_OUT) else { return Ok(None) };
        loop {
            self.auditor.schedule_wake(
                self.clients.len() + self.watchers.len(),
                until.saturating_sub(self.now()),
                &mut self.port,
            );
            while self.now() < until {
                if let Some(ending) = self.step(node)? {
                    return Ok(Some(ending));
                }
            }
            self.auditor.clear_wake();
            // Whatever is listed too long after its time fails.
            if let Err(ending) = self.ask(node, vec![Request::LeaseLeases])? {
                return Ok(Some(ending));
            }
            if self.checker.leases_overdue(self.now()) == 0 {
                self.port.cover("(leases ran out)");
                let now = self.now();
                self.auditor.abandon(now, &mut self.port, &mut self.checker, &mut self.rng);
                return Ok(None);
            }
            until = self.now() + SECOND;
        }
    }

    /// Reads the recovered store and settles all that is known about earlier lives.
    fn audit<S: Subject>(&mut self, node: &mut S) -> Result<Option<Ending>, Failure> {
        let known = self.checker.highest_returned();
        let mut newest = match self.ask(node, vec![Request::read_everything(0)])? {
            Ok(answers) => answers[0].answer.revision,
            Err(ending) => return Ok(Some(ending)),
        };
        if self.swarm.workload.leases_max > 0
            && let Some(ending) = self.audit_leases(node)?
        {
            return Ok(Some(ending));
        }
        let mut unclaimed = self.checker.unclaimed(newest);
        let mut revisions = unclaimed.clone();
        for _ in 0..AUDIT_SAMPLES {
            let oldest = self.checker.compaction_asked().clamp(1, newest.max(1)) as u64;
            revisions.push(self.rng.between(oldest, newest.max(1) as u64) as i64);
        }
        let mut states = BTreeMap::new();
        loop {
            let requests = revisions.iter().map(|revision| Request::read_everything(*revision)).collect();
            let answers = match self.ask(node, requests)? {
                Ok(answers) => answers,
                Err(ending) => return Ok(Some(ending)),
            };
            states.extend(unclaimed.into_iter().zip(answers.into_iter().map(|response| response.answer.kvs)));
            // Leases may end meanwhile; but what was shown before must be there from the beginning.
            if newest < known || newest == self.checker.highest_returned() {
                break;
            }
            unclaimed = (newest + 1..=self.checker.highest_returned()).collect();
            revisions.clone_from(&unclaimed);
            newest = self.checker.highest_returned();
        }
        let now = self.now();
        self.auditor.abandon(now, &mut self.port, &mut self.checker, &mut self.rng);
        self.checker.settle(newest, &states, now).map_err(Failure::Correctness)?;
        self.ledger.settle(self.checker.model(), self.checker.ambiguous()).map_err(Failure::Correctness)?;
        self.port.trace.event(self.now(), format_args!("settled at revision {newest}"));
        Ok(None)
    }

    /// All leases, and what is left of each.
    fn audit_leases<S: Subject>(&mut self, node: &mut S) -> Result<Option<Ending>, Failure> {
        self.checker.begin_audit_of_leases();
        let ids = match self.ask(node, vec![Request::LeaseLeases])? {
            Ok(answers) => answers[0].answer.lease.ids.clone(),
            Err(ending) => return Ok(Some(ending)),
        };
        let requests = ids.into_iter().map(|id| Request::LeaseTimeToLive { id, keys: true }).collect();
        Ok(self.ask(node, requests)?.err())
    }

    /// The auditor asks and waits; what timed out during a stall it asks again. `Err`: the life ended first.
    fn ask<S: Subject>(
        &mut self,
        node: &mut S,
        requests: Vec<Request>,
    ) -> Result<Result<Vec<Response>, Ending>, Failure> {
        let mut responses = vec![None; requests.len()];
        for attempt in 0..AUDIT_ATTEMPTS_MAX {
            let open: Vec<usize> = (0..requests.len()).filter(|at| responses[*at].is_none()).collect();
            // What is refused for want of memory is asked for with less beside it.
            for batch in open.chunks((AUDIT_CALLS_MAX >> attempt).max(1)) {
                self.auditor.connect(&self.swarm.workload, &mut self.port, &mut self.rng);
                let now = self.now();
                let mut calls = BTreeMap::new();
                for position in batch {
                    let call = self.auditor.call(requests[*position].clone(), now, &mut self.checker);
                    calls.insert(call, *position);
                }
                self.auditor.flush(&mut self.port);
                while self.auditor.open_calls() > 0 {
                    if let Some(ending) = self.step(node)? {
                        self.audited.clear();
                        return Ok(Err(ending));
                    }
                }
                for (call, response) in std::mem::take(&mut self.audited) {
                    responses[calls[&call]] = Some(response);
                }
            }
            if responses.iter().all(Option::is_some) {
                return Ok(Ok(responses.into_iter().flatten().collect()));
            }
            // Under way to a stop the server may refuse; the end comes by itself.
            while self.port.error_delivered_at().is_some() || self.port.stop_requested_at().is_some() {
                if let Some(ending) = self.step(node)? {
                    return Ok(Err(ending));
                }
            }
        }
        Err(Failure::Liveness("the server does not answer the auditor".to_owned()))
    }

    /// Recovers copies of media as they were when acknowledgements left, without any write that was in flight.
    fn check_evidence<S: Subject>(&mut self) -> Result<(), Failure> {
        for (mut disk, mut answered) in std::mem::take(&mut self.evidence) {
            if self.damaged.is_some() {
                continue;
            }
            // What may be compacted cannot be looked at.
            let oldest = self.checker.compaction_asked();
            answered.retain(|(_, response)| response.answer.revision >= oldest.max(1));
            let mut rng = self.rng.fork(4);
            let survival = if rng.chance(700) { Survival::Nothing } else { Survival::Drawn };
            disk.power_loss(survival, &mut rng);
            let mut swarm = self.swarm.clone();
            calm(&mut swarm);
            let port =
                SimPort::new(disk, swarm.weather.clone(), rng.fork(5), self.now(), self.port.trace.inside("copy "));
            let mut copy = Self::new(port, swarm, rng);
            let requests = answered.iter().map(|(id, response)| (self.checker.request(*id), response));
            let checked = copy.check_copy::<S>(&requests.collect::<Vec<_>>());
            self.port.trace.event(self.now(), format_args!("media checked, trace {:x}", copy.port.trace.hash()));
            self.witnesses += 1;
            checked.map_err(|why| match why {
                Failure::Correctness(why) => Failure::Correctness(format!("media at an acknowledgement: {why}")),
                Failure::Liveness(why) => Failure::Liveness(format!("media at an acknowledgement: {why}")),
            })?;
        }
        Ok(())
    }

    fn check_copy<S: Subject>(&mut self, acknowledged: &[(&Request, &Response)]) -> Result<(), Failure> {
        self.port.begin_life(Fate::Survive, &[]);
        let mut node = S::boot(&self.swarm.limits, &mut self.port)
            .map_err(|why| Failure::Liveness(format!("the server refuses to start: {why}")))?;
        self.turn(&mut node)?;
        let mut requests = vec![Request::read_everything(0)];
        requests.extend(acknowledged.iter().map(|(_, response)| Request::read_everything(response.answer.revision)));
        // A read that fails with a future revision would not be an answer: compare the newest revision first.
        let newest = match self.ask(&mut node, requests[..1].to_vec())? {
            Ok(answers) => answers[0].answer.revision,
            Err(ending) => unreachable!("{ending:?} without a fate"),
        };
        if let Some((request, response)) = acknowledged.iter().find(|(_, response)| response.answer.revision > newest) {
            let revision = response.answer.revision;
            let why = format!("revision {revision} of {request:?} is lost: the store is at {newest}");
            return Err(Failure::Correctness(why));
        }
        let Ok(states) = self.ask(&mut node, requests[1..].to_vec())? else {
            unreachable!("a copy has no fate");
        };
        for ((request, response), state) in acknowledged.iter().zip(states) {
            let revision = response.answer.revision;
            let pairs = &state.answer.kvs;
            let mut effects = Effects::default();
            effects.add(request, &response.answer);
            let holds = effects.stand_in(pairs, revision);
            if !holds {
                return Err(Failure::Correctness(format!("revision {revision} is not {request:?}")));
            }
        }
        Ok(())
    }
}

/// What an acknowledged request must have left behind.
#[derive(Default)]
struct Effects {
    /// The last put of each key; `None` if it kept the value.
    puts: BTreeMap<Vec<u8>, Option<Value>>,
    deleted: Vec<KeyRange>,
}

impl Effects {
    fn add(&mut self, request: &Request, answer: &Answer) {
        match request {
            Request::Put(put) => {
                let value = (!put.ignore_value).then(|| Value::of(&put.value));
                self.puts.insert(put.key.clone(), value);
            }
            Request::Delete(delete) => {
                self.puts.retain(|key, _| !delete.range.contains(key));
                self.deleted.push(delete.range.clone());
            }
            Request::Txn(txn) => {
                for (operation, inner) in txn.branch(answer.succeeded).iter().zip(&answer.inner) {
                    self.add(operation, inner);
                }
            }
            _ => {}
        }
    }

    /// Whether the whole store at `revision`, which the request made, shows it.
    fn stand_in(&self, pairs: &[KeyValue], revision: i64) -> bool {
        let stands = |key: &Vec<u8>, value: &Option<Value>| {
            let found = pairs.iter().find(|pair| pair.key == *key);
            found.is_some_and(|pair| pair.mod_revision == revision && value.is_none_or(|value| pair.value == value))
        };
        let is_spared = |pair: &KeyValue| !self.deleted.iter().any(|range| range.contains(&pair.key));
        self.puts.iter().all(|(key, value)| stands(key, value))
            && pairs.iter().all(|pair| is_spared(pair) || self.puts.contains_key(&pair.key))
    }
}

/// No faults and no stalls: for copies, whose only question is what they hold.
fn calm(swarm: &mut Swarm) {
    let quick = Latency { min: 10 * MICROSECOND, max: MILLISECOND, stall_per_mille: 0, stall_max: 0 };
    let weather = &mut swarm.weather;
    for latency in [
        &mut weather.log_write,
        &mut weather.store_write,
        &mut weather.sync,
        &mut weather.read,
        &mut weather.network,
        &mut weather.send,
        &mut weather.turn,
        &mut weather.timer_late,
    ] {
        *latency = quick;
    }
    weather.witness_per_mille = 0;
    weather.hang_up_per_mille = 0;
    weather.disturb_per_mille = 0;
    weather.early_acknowledgement = false;
}
