//! One run: lives of a server process on one disk, clients, audits after every recovery.
//!
//! Owns: the order of things and the bounds of patience. Does not know: what the server is made of.
//!
//! Invariants
//! - I1: each life begins with an audit: the recovered store is read and everything acknowledged is checked in it.
//! - I2: the last life follows a crash, so that every acknowledgement of a run has been through a recovery.
//! - I3: patience is bounded in virtual time and in turns: a server that hangs is a failure, not a long run.

use std::collections::BTreeMap;
use std::fmt;

use trilith_reactor::{Event, Turn};

use crate::checker::Checker;
use crate::client::{Client, draw_request};
use crate::disk::{Disk, Survival};
use crate::history::{Request, Response};
use crate::port::{Delivery, SimPort};
use crate::rng::Rng;
use crate::subject::Subject;
use crate::trace::Trace;
use crate::weather::{CrashKind, Fate, Latency, MICROSECOND, MILLISECOND, SECOND, Swarm};

/// A call that is under way for longer, though the server lives, hangs.
const PATIENCE: u64 = 120 * SECOND;
/// A graceful stop that takes longer hangs.
const STOP_PATIENCE: u64 = 60 * SECOND;
/// Turns of one life.
const TURNS_MAX: u64 = 300_000;
/// Turns that a server may take to stop after an I/O error was delivered.
const ERROR_TURNS_MAX: u64 = 3;
/// Historical revisions that an audit reads besides the unclaimed ones.
const AUDIT_SAMPLES: u64 = 6;
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
}

/// Runs one seed.
pub fn run<S: Subject>(options: Options) -> Report {
    let mut rng = Rng::new(options.seed);
    let mut swarm = Swarm::draw(&mut rng.fork(1));
    swarm.weather.early_acknowledgement = options.early_acknowledgement;
    let port_rng = rng.fork(2);
    let port = SimPort::new(Disk::default(), swarm.weather.clone(), port_rng, 0, Trace::begin(options.verbose));
    let mut simulation = Simulation::new(port, swarm, rng.fork(3));
    let failure = simulation.run_lives::<S>().err();
    let Simulation { port, checker, crashes, turns, witnesses, .. } = simulation;
    Report {
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
    auditor: Client,
    /// What the auditor was answered.
    audited: BTreeMap<u64, Response>,
    /// Requests that the clients may still send in this life.
    budget: u64,
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
        Self {
            port,
            checker: Checker::default(),
            swarm,
            rng,
            clients,
            auditor: Client::new(),
            audited: BTreeMap::new(),
            budget: 0,
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
        let lives = self.swarm.lives;
        for life in 0..=lives {
            let (fate, budget) = if life == lives {
                (Fate::Survive, 0)
            } else {
                (self.swarm.draw_fate(&mut self.rng), self.swarm.workload.operations / lives as u64 + 1)
            };
            self.budget = budget;
            self.turns_of_life = 0;
            self.error_turns = 0;
            let ending = self.run_life::<S>(fate)?;
            self.crashes += u64::from(matches!(ending, Ending::Crash(_)));
            self.port.sleep(self.rng.log_between(MICROSECOND, 5 * SECOND));
            if ending != Ending::Crash(CrashKind::PowerLoss) && self.rng.chance(300) {
                self.port.lose_power();
            }
        }
        Ok(())
    }

    fn run_life<S: Subject>(&mut self, fate: Fate) -> Result<Ending, Failure> {
        self.port.begin_life(fate);
        let mut node = match S::boot(&self.swarm.limits, &mut self.port) {
            _ if self.port.is_dead() => {
                self.port.cover("(crash at boot)");
                return self.end_by_crash(fate);
            }
            Ok(node) => node,
            Err(_) if self.port.error_delivered_at().is_some() => return self.end_by_exit(),
            Err(why) => return Err(Failure::Liveness(format!("the server refuses to start: {why}"))),
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
        while self.budget > 0 || self.clients.iter().any(|client| client.open_calls() > 0) {
            if let Some(ending) = self.step(&mut node)? {
                return Ok(ending);
            }
            self.check_evidence::<S>()?;
        }
        let kind = if self.rng.chance(500) { CrashKind::Kill } else { CrashKind::PowerLoss };
        drop(node);
        self.crash(kind)
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
        self.budget = 0;
        for delivery in deliveries {
            self.deliver(delivery)?;
        }
        self.evidence.clear();
        for client in self.clients.iter_mut().chain([&mut self.auditor]) {
            client.handle_closed(&mut self.checker);
            client.clear_wake();
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
            if self.port.error_delivered_at().is_none() && self.port.stop_requested_at().is_none() {
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
        let oldest = self.clients.iter().chain([&self.auditor]).filter_map(Client::oldest_call_at).min();
        if oldest.is_some_and(|at| at + PATIENCE < self.now()) {
            return Err(Failure::Liveness(format!("a call is under way for {} virtual seconds", PATIENCE / SECOND)));
        }
        if self.port.stop_requested_at().is_some_and(|at| at + STOP_PATIENCE < self.now()) {
            return Err(Failure::Liveness(format!("no stop within {} virtual seconds", STOP_PATIENCE / SECOND)));
        }
        if self.turns_of_life > TURNS_MAX {
            return Err(Failure::Liveness(format!("{TURNS_MAX} turns in one life")));
        }
        Ok(())
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<(), Failure> {
        match delivery {
            Delivery::Wake { client } => {
                self.clients[client].clear_wake();
                self.drive_client(client);
                Ok(())
            }
            Delivery::Closed { connection } => {
                if self.auditor.connection() == Some(connection) {
                    self.auditor.handle_closed(&mut self.checker);
                }
                for client in 0..self.clients.len() {
                    if self.clients[client].connection() == Some(connection) {
                        self.clients[client].handle_closed(&mut self.checker);
                        self.wake_later(client);
                    }
                }
                Ok(())
            }
            Delivery::Bytes { connection, bytes, media, .. } => {
                let mut answered = Vec::new();
                let of_auditor = self.auditor.connection() == Some(connection);
                let position = self.clients.iter().position(|client| client.connection() == Some(connection));
                let client = match position {
                    Some(position) => &mut self.clients[position],
                    None if of_auditor => &mut self.auditor,
                    None => return Ok(()),
                };
                let handled = client.handle_bytes(&bytes, &mut self.checker, &mut answered);
                handled.map_err(Failure::Correctness)?;
                client.flush(&mut self.port);
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
        if self.budget > 0 {
            let delay = self.swarm.workload.think.draw(&mut self.rng);
            self.clients[client].schedule_wake(client, delay, &mut self.port);
        }
    }

    /// A client's turn to send something.
    fn drive_client(&mut self, position: usize) {
        let workload = self.swarm.workload;
        let now = self.now();
        let client = &mut self.clients[position];
        if self.rng.chance(self.swarm.weather.hang_up_per_mille) {
            client.abandon(&mut self.port, &mut self.checker, &mut self.rng);
        }
        client.connect(&workload, &mut self.port, &mut self.rng);
        for _ in 0..self.rng.log_between(1, workload.outstanding_max as u64) {
            if self.budget == 0 || !client.can_call(workload.outstanding_max) {
                break;
            }
            self.budget -= 1;
            let request = draw_request(&workload, &self.checker, &mut self.rng);
            client.call(request, now, &mut self.checker);
        }
        client.flush(&mut self.port);
        if client.can_call(workload.outstanding_max) || client.open_calls() == 0 {
            self.wake_later(position);
        }
    }

    /// Reads the recovered store and settles all that is known about earlier lives.
    fn audit<S: Subject>(&mut self, node: &mut S) -> Result<Option<Ending>, Failure> {
        let newest = match self.ask(node, vec![Request::read_everything(0)])? {
            Ok(answers) => answers[0].answer.revision,
            Err(ending) => return Ok(Some(ending)),
        };
        let unclaimed = self.checker.unclaimed(newest);
        let mut revisions = unclaimed.clone();
        for _ in 0..AUDIT_SAMPLES {
            let oldest = self.checker.compaction_asked().max(1) as u64;
            revisions.push(self.rng.between(oldest, newest.max(1) as u64) as i64);
        }
        let requests = revisions.iter().map(|revision| Request::read_everything(*revision)).collect();
        let answers = match self.ask(node, requests)? {
            Ok(answers) => answers,
            Err(ending) => return Ok(Some(ending)),
        };
        let states = unclaimed.into_iter().zip(answers.into_iter().map(|response| response.answer.kvs)).collect();
        self.auditor.abandon(&mut self.port, &mut self.checker, &mut self.rng);
        self.checker.settle(newest, &states).map_err(Failure::Correctness)?;
        self.port.trace.event(self.now(), format_args!("settled at revision {newest}"));
        Ok(None)
    }

    /// The auditor asks and waits; what timed out during a stall it asks again. `Err`: the life ended first.
    fn ask<S: Subject>(
        &mut self,
        node: &mut S,
        requests: Vec<Request>,
    ) -> Result<Result<Vec<Response>, Ending>, Failure> {
        let mut responses = vec![None; requests.len()];
        for _ in 0..AUDIT_ATTEMPTS_MAX {
            let open: Vec<usize> = (0..requests.len()).filter(|at| responses[*at].is_none()).collect();
            for batch in open.chunks(AUDIT_CALLS_MAX) {
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
        for (mut disk, answered) in std::mem::take(&mut self.evidence) {
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
        self.port.begin_life(Fate::Survive);
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
            let mut operations = request.executed(&response.answer).iter();
            let holds = operations.all(|operation| match operation {
                Request::Put { key, value, .. } => {
                    pairs.iter().any(|pair| pair.key == *key && pair.value == *value && pair.mod_revision == revision)
                }
                Request::DeleteRange { range, .. } => pairs.iter().all(|pair| !range.contains(&pair.key)),
                _ => true,
            });
            if !holds {
                return Err(Failure::Correctness(format!("revision {revision} is not {request:?}")));
            }
        }
        Ok(())
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
    weather.early_acknowledgement = false;
}
