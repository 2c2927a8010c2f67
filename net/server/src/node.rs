//! One member: the turn of its core, or of the sequencer among its cores.
//!
//! Owns: the phases of a life (starting, serving, draining, stopped), the order inside a turn, the coupling of replica,
//! disk and clients. Does not know: which port it runs on; what a request means ([`crate::service`]). What a member
//! does for itself is in `upkeep`, what concerns other cores in `cores`.
//!
//! A turn handles completions, input and time in this order, then steps the replica within its budget, sends each
//! connection's output in one write, and sets one deadline.
//!
//! Invariants
//! - I1: clients are served only after this boot's publication of the member was applied, hence after everything
//!   committed before is applied.
//! - I2: after a failed write nothing is answered and the process ends.
//! - I3: a turn's work is bounded: what does not fit makes the next turn due at once.

use std::time::Duration;

use trilith_engine::budget::{Budget, Pause};
use trilith_engine::command::{Command, PublishMember};
use trilith_engine::lease::lessor::{Lessor, LessorOptions};
use trilith_engine::page_source::Unavailable;
use trilith_engine::replica::Effect;
use trilith_engine::replica::apply::{ALARM_CORRUPT, ALARM_NOSPACE};
use trilith_engine::store::StoreEffect;
use trilith_engine::watch::{WatchLimits, WatchStep};
use trilith_raftlog::{Identity, Role};
use trilith_reactor::{BootFiles, CoreId, CoreLoop, Event, Port, Turn};
use trilith_wire::api::status::unknown_method;
use trilith_wire::connection::ConnectionEvent;

use crate::api;
use crate::auto_compaction::AutoCompaction;
use crate::boot::{self, BootError};
use crate::clients::{Caller, Clients};
use crate::disk::{Completion, Disk, Pages};
use crate::front::message::{Order, Requests};
use crate::http::{self, Answer};
use crate::journal::{Field, Level};
use crate::metrics::calls::SlowCall;
use crate::metrics::{Metrics, StepKind};
use crate::scrub::Scrubber;
use crate::service::{CallFacts, Progress, Service, Verdict, request_timeout};
use crate::surface;
use crate::turns::Share;

mod cores;
mod options;
mod shards;
mod upkeep;

use cores::{Busy, Scrapes};
pub use options::NodeOptions;
use options::{ASSEMBLY_BYTES_MAX, GRPC_OVERHEAD_BYTES};

/// Work units of one step: 500 us.
const STEP_UNITS: u32 = 5_000;
/// Work units of a step of apply: fewer, because a change among many keys costs thrice its price on cold caches.
pub(crate) const APPLY_UNITS_PER_STEP: u32 = 1_250;
/// Commands applied in one step at most.
const APPLY_COMMANDS_PER_STEP: u32 = 512;
/// Steps of apply in one turn.
const APPLY_STEPS_PER_TURN: u32 = 16;
/// Steps of reads in one turn.
const READ_STEPS_PER_TURN: u32 = 4;
/// How often the feature gate LeaseCheckpoint notes what is left of leases: etcd's 5 min.
const LEASE_CHECKPOINT_INTERVAL: u64 = 300 * 1_000_000_000;
/// Steps of watches in one turn.
const WATCH_STEPS_PER_TURN: u32 = 4;
/// Work units counted for looking at a job.
const UNITS_PER_JOB_STEP: u32 = 10;
/// Work units of one step of a long job: a hash after a compaction looks keys up as reclaim does.
const JOB_UNITS_PER_STEP: u32 = 1_000;
/// Work units of long jobs in one turn: few, because every put waits for the turn.
const JOB_UNITS_PER_TURN: u32 = 2_500;
/// How long a graceful stop waits for open requests: etcd's 7 s.
const DRAIN_TIMEOUT: u64 = 7_000_000_000;

/// Where a member is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Replaying, electing, publishing. The number is the publication's sequence once it was submitted.
    Starting(Option<u64>),
    /// Answering clients.
    Serving,
    /// Finishing open requests until this time.
    Draining { signal: i32, until: u64 },
    /// The last log record is being written.
    Closing { signal: i32 },
}

/// One member.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    identity: Identity,
    phase: Phase,
    service: Service,
    disk: Disk,
    scrubber: Scrubber,
    clients: Clients,
    metrics: Metrics,
    /// When the command that is to be applied next came to the head of the queue, if there is one.
    apply_since: Option<u64>,
    /// Automatic compaction, while it is on, and the sequence of the one on its way.
    auto_compaction: Option<AutoCompaction>,
    compacting: Option<u64>,
    /// Background work pauses until these times; 0: it does not.
    checkpoint_at: u64,
    reclaim_at: u64,
    failed: bool,
    /// More work is ready than the turn's budget allowed.
    more: bool,
    /// What connection cores have sent.
    parcels: Vec<(CoreId, Box<Requests>)>,
    scrapes: Scrapes,
    busy: Busy,
}

impl Node {
    /// Starts a member from its data directory.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn boot<P: Port + BootFiles>(options: NodeOptions, port: &mut P) -> Result<Self, BootError> {
        let booted = boot::boot(&options, port)?;
        let admission = options.admission(booted.identity.member_id.0);
        let watch_limits = WatchLimits {
            response_bytes_max: options.request_bytes_max + GRPC_OVERHEAD_BYTES,
            block_bytes_max: options.watch_block_bytes_max,
            progress_interval: options.watch_progress_interval,
            seed: port.entropy(),
        };
        let ids = (booted.identity.cluster_id.0, booted.identity.member_id.0);
        let log = options.replica.log;
        let timeout = request_timeout(log.election_timeout);
        let lessor = LessorOptions {
            checkpoint_interval: options.surface.gates.is_on("LeaseCheckpoint").then_some(LEASE_CHECKPOINT_INTERVAL),
            ..LessorOptions::new(log.election_timeout, log.heartbeat_interval, timeout)
        };
        let lessor = Lessor::new(lessor, port.now());
        let service = Service::new(booted.replica, admission, watch_limits, ids, timeout, lessor);
        let clients = Clients::with_cores(options.connection_limits(), ASSEMBLY_BYTES_MAX, options.connection_cores);
        Ok(Self {
            identity: booted.identity,
            phase: Phase::Starting(None),
            service,
            disk: booted.disk,
            scrubber: Scrubber::new(options.scrub_interval, port.now()),
            clients,
            metrics: Metrics::new(options.surface.is_extensive, options.surface.slow_call_after),
            apply_since: None,
            auto_compaction: None,
            compacting: None,
            checkpoint_at: 0,
            reclaim_at: 0,
            failed: false,
            more: false,
            parcels: Vec::new(),
            scrapes: Scrapes::default(),
            busy: Busy::default(),
            options,
        })
    }

    /// Whether clients are served.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Closing { .. })
    }

    /// The replica, for inspection.
    #[must_use]
    pub fn replica(&self) -> &trilith_engine::replica::Replica {
        &self.service.replica
    }

    /// Calls with deadlines of their own that are remembered, for inspection.
    #[must_use]
    pub fn deadlines_kept(&self) -> usize {
        self.service.deadlines_kept()
    }

    /// Open calls that are remembered, for inspection.
    #[must_use]
    pub fn calls_kept(&self) -> usize {
        self.service.calls_kept()
    }

    fn handle_event<P: Port>(&mut self, port: &mut P, event: Event, now: u64) {
        let event = match self.disk.handle_event(port, event) {
            Ok(completion) => return self.handle_completion(port, completion, now),
            Err(event) => event,
        };
        match event {
            Event::Accepted { listener, connection, .. } => self.handle_accepted(port, listener, connection, now),
            Event::Parcel { from, parcel } => {
                let requests = parcel.downcast::<Requests>().expect("connection cores send requests");
                self.parcels.push((from, requests));
            }
            Event::Received { connection, bytes } => self.clients.handle_received(connection, bytes, now),
            Event::Sent { connection, buffer } => self.clients.handle_sent(connection, buffer, now),
            Event::Closed { connection, .. } => {
                let _ = self.clients.handle_closed(connection, &mut self.metrics.calls, now);
                self.service.handle_connection_closed(connection);
            }
            Event::Timer => {}
            Event::StopRequested { signal } => self.handle_stop_request(port, signal, now),
            other => unreachable!("{other:?} is about files"),
        }
    }

    fn handle_completion<P: Port>(&mut self, port: &mut P, completion: Completion, now: u64) {
        let replica = &mut self.service.replica;
        match completion {
            Completion::HardState { generation, copy } => replica.handle_hard_state_complete(generation, copy, now),
            Completion::Append { lsn } => {
                self.metrics.observe_appended(lsn, now);
                replica.handle_append_complete(lsn, now);
            }
            Completion::Segment { sequence } => replica.handle_segment_prepared(sequence, now),
            Completion::Store { token } => {
                self.metrics.observe_stored(token, now);
                replica.handle_store_complete(token);
            }
            Completion::Loaded => self.service.handle_loaded(|block| self.disk.awaits(block)),
            Completion::Progress => {}
            Completion::Reread { block } => {
                replica.handle_released(block);
                let message = "memory held other bytes of the store than the disk: reading them again";
                self.log_block(port, Level::Warn, message, block);
            }
            Completion::Corrupt { block } => self.fail_corrupt(port, block),
            Completion::Direct { result } => {
                let bytes = result.as_deref().ok();
                let started = port.cpu_now();
                let rotten = self.scrubber.handle_read(&self.service.replica, bytes, now);
                self.metrics.observe_step(StepKind::Scrub, port.cpu_now().saturating_sub(started));
                rotten.into_iter().for_each(|rot| self.report_rot(port, &rot, now));
            }
            Completion::OutOfSpace { what, error } => {
                let error = format!("{what}: {error}");
                let message = "the disk is full: puts are refused until there is room again";
                self.options.log(port, Level::Error, message, &[("error", Field::Text(&error))]);
            }
            Completion::SpaceBack => {
                let message = "the disk has room again: the space alarm may be disarmed";
                self.options.log(port, Level::Info, message, &[]);
            }
            Completion::Failed { what, error } => {
                replica.handle_write_failed();
                self.fail(port, &format!("{what}: {error}"));
            }
        }
    }

    /// The end: nothing more is answered (I2).
    fn fail<P: Port>(&mut self, port: &mut P, reason: &str) {
        self.options.log(
            port,
            Level::Fatal,
            "the data directory failed; stopping without further acknowledgements",
            &[("error", Field::Text(reason))],
        );
        self.failed = true;
    }

    fn handle_stop_request<P: Port>(&mut self, port: &mut P, signal: i32, now: u64) {
        if matches!(self.phase, Phase::Draining { .. } | Phase::Closing { .. }) {
            return;
        }
        let name = if signal == 2 { "interrupt" } else { "terminated" };
        self.options.log(port, Level::Info, "received signal; shutting down", &[("signal", Field::Text(name))]);
        port.close_listeners();
        self.clients.start_drain(now);
        self.order(Order::Drain);
        match self.phase {
            // I1: what was asked before service began is not served for a farewell.
            Phase::Starting(_) => self.begin_closing(signal, now),
            _ => self.phase = Phase::Draining { signal, until: now + DRAIN_TIMEOUT },
        }
    }

    /// Refuses what still waits and writes the log's last record.
    fn begin_closing(&mut self, signal: i32, now: u64) {
        self.service.refuse_all(&mut self.clients);
        self.service.replica.handle_stop(now);
        self.phase = Phase::Closing { signal };
        self.more = true;
    }

    /// Whether nothing more can be written for a farewell: all of it was, or the rest waits for room on a full disk and
    /// was promised to nobody. After a turn that began with the farewell under way.
    fn is_closed(&self) -> bool {
        (self.service.replica.is_stopped() || self.disk.log_waits_for_room()) && self.disk.is_idle()
    }

    /// Whether requests are looked at.
    fn is_listening(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining { .. })
    }

    /// Looks for requests: at what other cores' connections have asked for, which their credit bounds, and at the own
    /// connections, in turns.
    fn poll_clients<P: Port>(&mut self, port: &mut P, now: u64) {
        self.clients.wall_now = port.wall_now();
        if !self.parcels.is_empty() {
            self.handle_parcels(port, now);
        }
        if !self.is_listening() {
            return;
        }
        self.clients.begin_polling();
        while let Some((slot, share)) = self.clients.next_to_poll() {
            self.poll_client(slot, share, now);
        }
        self.more |= self.clients.has_waiting();
        self.serve_scrapers(port);
    }

    fn poll_client(&mut self, slot: usize, mut share: Share, now: u64) {
        let Self { clients, service, identity, scrapes, .. } = self;
        let wall_now = clients.wall_now;
        let Some((client, budget)) = clients.connection(slot) else { return };
        let (id, audience) = (client.id(), client.audience);
        while let Some(event) = client.poll(&mut share, budget, now) {
            match event {
                ConnectionEvent::GrpcRequest { stream, route, head, message } => {
                    let caller = Caller::new(slot, id, stream);
                    let verdict = match route.filter(|_| audience.has_grpc()) {
                        Some(route) => {
                            service.handle_call(caller, api::method(route), CallFacts::of(head), message, now)
                        }
                        None => Verdict::Refused(unknown_method(head.path())),
                    };
                    match verdict {
                        Verdict::Pending => {}
                        Verdict::Message(bytes) => {
                            client.connection.send_unary(stream, bytes.len(), |out| out.extend_from_slice(&bytes));
                        }
                        Verdict::Begun(bytes) => {
                            client.connection.send_message(stream, bytes.len(), |out| out.extend_from_slice(&bytes));
                        }
                        Verdict::Refused(status) => {
                            client.connection.finish(stream, u32::from(status.code.number()), &status.message);
                        }
                    }
                }
                ConnectionEvent::HttpRequest { stream, head, .. } => {
                    let request = http::Request { method: head.method(), path: head.path(), query: head.query() };
                    let caller = Caller::new(slot, id, stream);
                    let answer = http::respond(audience, &request, &http_status(service, identity, wall_now));
                    match answer {
                        Answer::Now(response) => client.connection.respond(stream, &response),
                        Answer::AfterRead(probe) => service.handle_probe(caller, probe, now),
                        Answer::Reset => client.connection.reset(stream),
                        Answer::Metrics => scrapes.want(caller, audience),
                    }
                }
                ConnectionEvent::GrpcMessage { stream, message } => {
                    if let Err(status) = service.handle_message(Caller::new(slot, id, stream), message, now) {
                        client.connection.finish(stream, u32::from(status.code.number()), &status.message);
                    }
                }
                ConnectionEvent::GrpcHalfClose { stream } => {
                    if service.handle_half_close(Caller::new(slot, id, stream)) {
                        client.connection.finish(stream, 0, "");
                    }
                }
                ConnectionEvent::StreamReset { stream } => service.handle_reset(Caller::new(slot, id, stream)),
                ConnectionEvent::StreamWritable { stream } => service.handle_writable(Caller::new(slot, id, stream)),
            }
        }
        clients.handle_polled(slot, &share);
    }

    /// Steps the replica: reads are issued, batches proposed, effects carried out, commands applied, reads answered.
    fn step<P: Port>(&mut self, port: &mut P, now: u64) {
        self.service.issue_reads(&mut self.clients);
        self.service.replica.propose_batch();
        self.carry_out(port);
        self.apply(port, now);
        self.checkpoint(port, now);
        self.reclaim(port, now);
        // What apply released may let the log take more: no event would tell.
        self.service.replica.propose_batch();
        self.carry_out(port);
        self.service.handle_read_answers(&mut self.clients);
        self.read(port, now);
        self.watch(port, now);
        self.step_jobs(port, now);
    }

    /// Hands events to those who watch, step by step.
    fn watch<P: Port>(&mut self, port: &mut P, now: u64) {
        for _ in 0..WATCH_STEPS_PER_TURN {
            if !self.service.has_watch_work() {
                return;
            }
            let started = port.cpu_now();
            let pages = Pages { port: &*port, disk: &self.disk };
            let mut budget = Budget::new(STEP_UNITS);
            let step = self.service.step_watches(&mut self.clients, &pages, &mut budget, now);
            self.metrics.observe_step(StepKind::Watch, port.cpu_now().saturating_sub(started));
            match step {
                Ok(WatchStep::Idle) => return,
                Ok(WatchStep::More) => {}
                Err(unavailable) => {
                    self.load(port, unavailable);
                    // Who waits for nothing does not wait for the page.
                    if !budget.is_used_up() {
                        return;
                    }
                }
            }
        }
        self.more = true;
    }

    /// Answers reads, step by step.
    fn read<P: Port>(&mut self, port: &mut P, now: u64) {
        for _ in 0..READ_STEPS_PER_TURN {
            if !self.service.has_ready_read() {
                return;
            }
            let started = port.cpu_now();
            let pages = Pages { port: &*port, disk: &self.disk };
            let mut budget = Budget::new(STEP_UNITS);
            let missing = self.service.answer_reads(&mut self.clients, &pages, &mut budget, now);
            let spent = port.cpu_now().saturating_sub(started);
            self.metrics.observe_step(StepKind::Read, spent);
            let done = std::mem::take(&mut self.service.reads_done);
            self.metrics.observe_reads(done, spent);
            self.service.applied.observe_ranges(done.iter().sum());
            for unavailable in missing {
                self.load(port, unavailable);
            }
        }
        self.more |= self.service.has_ready_read();
    }

    /// Steps long jobs, one after the other.
    fn step_jobs<P: Port>(&mut self, port: &mut P, now: u64) {
        let mut turn = Budget::new(JOB_UNITS_PER_TURN);
        // Looked at before the clock is, which is a system call.
        while turn.left() > 0 && self.service.has_ready_job() {
            let units = turn.left().min(JOB_UNITS_PER_STEP);
            let mut budget = Budget::new(units);
            let started = port.cpu_now();
            let pages = Pages { port: &*port, disk: &self.disk };
            let Some(step) = self.service.step_job(&mut self.clients, &pages, &mut budget, now) else { return };
            self.metrics.observe_step(step.kind, port.cpu_now().saturating_sub(started));
            if let Some(unavailable) = step.missing {
                self.load(port, unavailable);
            }
            // Whatever it did, it cost something: a job that finds nothing to do must not keep the turn.
            turn.spend(units - budget.left() + UNITS_PER_JOB_STEP);
        }
        self.more |= self.service.has_ready_job();
    }

    fn carry_out<P: Port>(&mut self, port: &mut P) {
        while let Some(effect) = self.service.replica.poll_effect() {
            match effect {
                Effect::WriteHardState { generation, copy, bytes } => {
                    self.disk.write_hard_state(port, generation, copy, bytes);
                }
                Effect::PrepareSegment(prepare) => self.disk.prepare_segment(port, prepare),
                Effect::Append(append) => {
                    self.metrics.observe_append(append.lsn, append.bytes.len(), port.now());
                    self.disk.append(port, append);
                }
                Effect::Store(effect) => {
                    if let StoreEffect::Sync { token, .. } = effect {
                        self.metrics.observe_sync(token, port.now());
                    }
                    self.disk.store(port, effect);
                }
                Effect::RoleChanged { role, term, .. } => {
                    self.metrics.observe_role(role == Role::Leader);
                    let term = i64::try_from(term.0).unwrap_or(i64::MAX);
                    self.options.log(
                        port,
                        Level::Info,
                        "raft role changed",
                        &[("role", Field::Text(role_name(role))), ("term", Field::Number(term))],
                    );
                }
                Effect::Checkpointed { sequence, index } => {
                    let number = |value: u64| Field::Number(i64::try_from(value).unwrap_or(i64::MAX));
                    self.options.log(
                        port,
                        Level::Debug,
                        "checkpoint is durable",
                        &[("sequence", number(sequence)), ("index", number(index.0))],
                    );
                }
            }
        }
    }

    /// Applies committed commands, step by step.
    fn apply<P: Port>(&mut self, port: &mut P, now: u64) {
        for _ in 0..APPLY_STEPS_PER_TURN {
            if !self.service.replica.has_committed() {
                self.apply_since = None;
                return;
            }
            self.apply_since = self.apply_since.or(Some(now));
            let started = port.cpu_now();
            let pause = self.apply_commands(port, now);
            let spent = port.cpu_now().saturating_sub(started);
            self.metrics.observe_step(StepKind::Apply, spent);
            self.service.applied.handle_step_end(spent);
            if let Some(unavailable) = pause {
                return self.load(port, unavailable);
            }
            if self.service.replica.is_waiting() {
                return;
            }
        }
        self.more |= self.service.replica.has_committed();
    }

    /// One step of apply; the page it lacks, if it does.
    fn apply_commands<P: Port>(&mut self, port: &mut P, now: u64) -> Option<Unavailable> {
        let mut budget = Budget::new(APPLY_UNITS_PER_STEP);
        for _ in 0..APPLY_COMMANDS_PER_STEP {
            let pages = Pages { port: &*port, disk: &self.disk };
            match self.service.apply_step(&mut self.clients, &pages, &mut budget, now) {
                Ok(Progress::Idle) | Err(Pause::Budget) => return None,
                Ok(Progress::Waiting) => {
                    self.send_jobs(&*port);
                    return None;
                }
                Ok(Progress::Moved) => self.note_applied(port, now),
                Ok(Progress::Own(sequence)) => {
                    self.note_applied(port, now);
                    self.note_compacted(port, sequence, now);
                    if self.phase == Phase::Starting(Some(sequence)) {
                        self.start_serving(port);
                    }
                }
                Err(Pause::Pages(unavailable)) => return Some(unavailable),
            }
            if budget.left() == 0 {
                return None;
            }
        }
        None
    }

    /// A command was applied: it is told of if it took long.
    fn note_applied<P: Port>(&mut self, port: &mut P, now: u64) {
        let took = now.saturating_sub(self.apply_since.replace(now).unwrap_or(now));
        let expected = self.options.surface.slow_apply_after;
        if took > expected {
            self.service.applied.observe_slow();
            let (took, expected) = (surface::duration_text(took), surface::duration_text(expected));
            let fields = [("took", Field::Text(&took)), ("expected-duration", Field::Text(&expected))];
            self.options.log(port, Level::Warn, "apply request took too long", &fields);
        }
    }

    fn log_slow_calls<P: Port>(&mut self, port: &mut P) {
        let slow = self.metrics.calls.take_slow();
        self.log_slow(port, &slow);
    }

    fn log_slow<P: Port>(&self, port: &mut P, calls: &[SlowCall]) {
        let wall_now = port.wall_now();
        for slow in calls {
            surface::describe_slow_call(slow, wall_now, |fields| {
                self.options.log(port, Level::Warn, "request stats", fields);
            });
        }
    }

    /// Publishes this member once it leads, and begins to serve when that is applied (I1).
    fn advance_phase(&mut self, now: u64) {
        match self.phase {
            Phase::Starting(None) if self.service.replica.role() == Role::Leader => {
                let publish = PublishMember {
                    member: self.identity.member_id.0,
                    name: self.options.name.as_bytes(),
                    client_urls: self.options.client_urls.iter().map(String::as_bytes).collect(),
                };
                if let Ok(sequence) = self.service.submit_own(&Command::PublishMember(publish), now) {
                    self.phase = Phase::Starting(Some(sequence));
                    self.more = true;
                }
            }
            Phase::Draining { signal, until } => {
                let done = self.service.is_idle() && !self.service.replica.has_pending_commands();
                if done {
                    self.service.end_open_calls(&mut self.clients);
                }
                if (done && self.clients.is_empty()) || now >= until {
                    self.begin_closing(signal, now);
                }
            }
            _ => {}
        }
    }

    fn start_serving<P: Port>(&mut self, port: &mut P) {
        self.phase = Phase::Serving;
        let revision = self.service.replica.keyspace().published().revision;
        let retention = self.options.surface.auto_compaction;
        self.auto_compaction = AutoCompaction::new(retention, revision, port.now());
        let id = self.identity.member_id.to_string();
        let cluster = self.identity.cluster_id.to_string();
        self.options.log(
            port,
            Level::Info,
            "published local member to cluster through raft",
            &[("local-member-id", Field::Text(&id)), ("cluster-id", Field::Text(&cluster))],
        );
        self.options.log(port, Level::Info, "ready to serve client requests", &[]);
        self.clients.touch_all_next();
        self.order(Order::Serve { member_id: self.identity.member_id.0 });
        self.more = true;
    }

    fn set_deadline<P: Port>(&self, port: &mut P, now: u64) {
        if self.more {
            return port.set_deadline(Some(now));
        }
        let drain = match self.phase {
            Phase::Draining { until, .. } => Some(until),
            _ => None,
        };
        let compaction = self.auto_compaction.as_ref().and_then(AutoCompaction::deadline);
        let own = [self.service.replica.deadline(), self.service.deadline(), compaction];
        let scrub = self.scrubber.deadline(now).filter(|_| self.phase == Phase::Serving);
        let paused = [self.checkpoint_at, self.reclaim_at].map(|at| (at > now).then_some(at));
        let others = [self.clients.deadline(), self.disk.deadline(), drain, scrub];
        let deadlines = own.into_iter().chain(others).chain(paused);
        port.set_deadline(deadlines.flatten().min());
    }
}

impl<P: Port> CoreLoop<P> for Node {
    fn handle_turn(&mut self, port: &mut P, events: &mut Vec<Event>) -> Turn {
        let started = port.cpu_now();
        if self.options.connection_cores > 0 {
            self.busy.observe(started, port.now());
        }
        let turn = self.turn(port, events);
        self.metrics.turn.observe(port.cpu_now().saturating_sub(started));
        turn
    }
}

impl Node {
    fn turn<P: Port>(&mut self, port: &mut P, events: &mut Vec<Event>) -> Turn {
        let now = port.now();
        let phase = self.phase;
        self.more = false;
        self.disk.begin_turn();
        for event in events.drain(..) {
            if !self.failed {
                self.handle_event(port, event, now);
            }
        }
        if self.failed {
            return Turn::Stop(1);
        }
        self.service.replica.handle_tick(now);
        self.clients.handle_time(now);
        self.service.handle_time(&mut self.clients, now);
        self.more |= self.service.forget_calls();
        self.mind_space(port, now);
        self.poll_clients(port, now);
        self.step(port, now);
        self.scrub(port, now);
        self.release_cold(port);
        self.compact_automatically(port, now);
        self.advance_phase(now);
        if self.failed {
            return Turn::Stop(1);
        }
        self.more |= self.is_listening() && self.clients.has_revived();
        self.clients.flush(port, &mut self.metrics.calls, now);
        self.log_slow_calls(port);
        if let Phase::Closing { signal } = phase
            && self.is_closed()
        {
            self.options.log(port, Level::Info, "closed trilith server", &[]);
            self.order(Order::Stop);
            self.clients.flush(port, &mut self.metrics.calls, now);
            return Turn::Stop(128 + signal);
        }
        self.set_deadline(port, now);
        Turn::Continue
    }
}

fn http_status<'a>(service: &'a Service, identity: &Identity, wall_now: u64) -> http::Status<'a> {
    let active = |kind| service.replica.tables().alarms().iter().any(|alarm| alarm.alarm == kind);
    http::Status {
        has_leader: service.replica.leader().is_some(),
        corrupt: active(ALARM_CORRUPT),
        no_space: active(ALARM_NOSPACE),
        cluster_id: identity.cluster_id.0,
        tables: service.replica.tables(),
        wall_now,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

/// The time etcd gives a bind that finds its port taken by a process that just died.
pub const BIND_RETRY_MAX: Duration = Duration::from_secs(2);
