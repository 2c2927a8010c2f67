//! One member: the turn of its core, or of the sequencer among its cores.
//!
//! Owns: the phases of a life (starting, serving, draining, stopped), the order inside a turn, the coupling of replica,
//! disk and clients. Does not know: which port it runs on; what a request means ([`crate::service`]).
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
use trilith_engine::page_source::{Block, Unavailable};
use trilith_engine::replica::apply::{ALARM_CORRUPT, ALARM_NOSPACE};
use trilith_engine::replica::{Effect, ReplicaOptions};
use trilith_engine::store::row_log::RowLogOptions;
use trilith_engine::store::{CheckpointStep, ReclaimStep, StoreEffect, StoreOptions};
use trilith_engine::watch::{WatchLimits, WatchStep};
use trilith_raftlog::{Identity, Role};
use trilith_reactor::{BootFiles, ConnectionId, CoreId, CoreLoop, Event, Port, Turn};
use trilith_wire::api::status::unknown_method;
use trilith_wire::connection::{ConnectionEvent, ConnectionLimits};

use crate::api;
use crate::auto_compaction::AutoCompaction;
use crate::boot::{self, BootError};
use crate::clients::{Caller, Clients};
use crate::disk::{Completion, Disk, Pages, store_file_name};
use crate::front::message::{Order, Request, Requests, Said, take};
use crate::front::{FrontMetrics, FrontOptions};
use crate::http::{self, Answer, Audience};
use crate::journal::{Field, Journal, Level};
use crate::layout::Layout;
use crate::metrics::calls::SlowCall;
use crate::metrics::moment::Moment;
use crate::metrics::{Metrics, StepKind};
use crate::options::Options;
use crate::scrub::{Loss, Rot, Scrubber};
use crate::service::{Admission, CallFacts, Progress, Service, Verdict, request_timeout};
use crate::surface::{self, Surface};

mod cores;

use cores::{Busy, Scrapes};

/// Work units of one step: 500 us.
const STEP_UNITS: u32 = 5_000;
/// Commands applied in one step at most.
const APPLY_COMMANDS_PER_STEP: u32 = 512;
/// Steps of apply in one turn.
const APPLY_STEPS_PER_TURN: u32 = 4;
/// Steps of reads in one turn.
const READ_STEPS_PER_TURN: u32 = 4;
/// See [`NodeOptions::watch_block_bytes_max`]: the daemon's.
const WATCH_BLOCK_BYTES_MAX: usize = 1 << 20;
/// How often the feature gate LeaseCheckpoint notes what is left of leases: etcd's 5 min.
const LEASE_CHECKPOINT_INTERVAL: u64 = 300 * 1_000_000_000;
/// Steps of watches in one turn.
const WATCH_STEPS_PER_TURN: u32 = 4;
/// Work units of reclaim in one turn.
const RECLAIM_UNITS_PER_TURN: u32 = 1_500;
/// Work units counted for looking at a job.
const UNITS_PER_JOB_STEP: u32 = 10;
/// Work units of long jobs in one turn: short, because every put waits for the turn.
const JOB_UNITS_PER_TURN: u32 = 2_500;
/// Merge work of a checkpoint in one step, in units of about 0.2 us.
const CHECKPOINT_UNITS_PER_STEP: u32 = 2_500;
/// Pause after a step of a checkpoint that nothing presses, in nanoseconds. A step makes up to 70 KiB of pages.
const CHECKPOINT_PAUSE: u64 = 1_000_000;
/// Pause after a step of reclaim, in nanoseconds.
const RECLAIM_PAUSE: u64 = 500_000;
/// How long a graceful stop waits for open requests: etcd's 7 s.
const DRAIN_TIMEOUT: u64 = 7_000_000_000;
/// Memory for partly received requests.
const ASSEMBLY_BYTES_MAX: usize = 64 << 20;
/// What a message may have beyond `--max-request-bytes` (etcd's `grpcOverheadBytes`).
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Everything a member is started with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Member name.
    pub name: String,
    /// Advertised peer URLs.
    pub peer_urls: Vec<String>,
    /// Advertised client URLs.
    pub client_urls: Vec<String>,
    /// Cluster token.
    pub token: String,
    /// A directory without data is to join a cluster.
    pub is_joining: bool,
    /// Listeners, metrics, warnings, gates.
    pub surface: Surface,
    /// How log records are rendered.
    pub journal: Journal,
    /// Raft, log and checkpoint triggers.
    pub replica: ReplicaOptions,
    /// Index files.
    pub store: StoreOptions,
    /// Row files.
    pub rows: RowLogOptions,
    /// `--max-request-bytes`.
    pub request_bytes_max: usize,
    /// `--max-txn-ops`.
    pub txn_ops_max: usize,
    /// Effective quota; negative is none.
    pub quota_bytes: i64,
    /// Announced and enforced streams per connection, if any.
    pub streams_max: Option<u32>,
    /// Shortest interval between client pings, nanoseconds.
    pub keepalive_min_time: u64,
    /// Idle time after which the server pings, nanoseconds.
    pub keepalive_interval: u64,
    /// Wait for a ping's answer, nanoseconds.
    pub keepalive_timeout: u64,
    /// Longest wait for a data file's lock, nanoseconds.
    pub lock_wait: u64,
    /// Discard the log from this LSN on instead of refusing to start.
    pub wal_discard_from_lsn: Option<u64>,
    /// Memory for pages of store files, rows and the overlay together.
    pub cache_bytes: u64,
    /// Room kept back for a full disk; 0 is none.
    pub reserve_bytes: u64,
    /// Time between notices of progress to watchers that asked for them, nanoseconds.
    pub watch_progress_interval: u64,
    /// Encoded events that are handed to all who watch at once; a revision with more leaves in parts.
    pub watch_block_bytes_max: usize,
    /// Time of one scrub of everything stored, nanoseconds; 0 is never.
    pub scrub_interval: u64,
    /// Cores that serve connections beside this one.
    pub connection_cores: usize,
    /// Whether this core serves connections, too, when there are others for that.
    pub sequencer_serves: bool,
}

impl NodeOptions {
    /// The daemon's sizes with the operator's choices.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let mut log = trilith_raftlog::Options::standard();
        log.election_timeout = options.election_timeout_ms * 1_000_000;
        log.heartbeat_interval = options.heartbeat_interval_ms * 1_000_000;
        // One command in an entry of its own must always fit.
        log.entry_bytes_max = log.entry_bytes_max.max(options.max_request_bytes + (1 << 20));
        log.segment_bytes = log.segment_bytes.max((log.entry_bytes_max as u64 + (1 << 20)).next_multiple_of(1 << 20));
        let row_segment_bytes = 64 << 20;
        // A key may be as long as a request, and a page at most an eighth of its file. Counts for new stores alone.
        let cache_bytes = if options.cache_bytes == 0 { u64::MAX } else { options.cache_bytes };
        let index_file_bytes =
            (8 * (options.max_request_bytes as u64 + (8 << 10))).next_multiple_of(1 << 20).max(64 << 20);
        Self {
            name: options.name.clone(),
            peer_urls: options.initial_advertise_peer_urls.clone(),
            client_urls: options.advertise_client_urls.clone(),
            token: options.initial_cluster_token.clone(),
            is_joining: options.is_joining,
            surface: Surface::new(options),
            journal: Journal { level_min: options.log_level, format: options.log_format },
            replica: ReplicaOptions {
                log,
                checkpoint_overlay_bytes: 48 << 20,
                checkpoint_changes: 350_000,
                // A start holds the log above a checkpoint in memory, twice as much while one was under way.
                checkpoint_log_bytes: (128 << 20).min(cache_bytes.saturating_mul(2).max(64 << 20)),
                pending_bytes_max: 64 << 20,
            },
            store: StoreOptions {
                index_file_bytes,
                index_files_max: 65_536,
                row_segment_bytes,
                write_bytes_max: 256 << 10,
                writes_in_flight_max: 4,
            },
            rows: RowLogOptions {
                segment_bytes: row_segment_bytes,
                block_bytes: 32 << 10,
                rows_resident_bytes_max: (64 << 20).min(cache_bytes / 2),
                write_bytes_max: 256 << 10,
            },
            request_bytes_max: options.max_request_bytes,
            txn_ops_max: options.max_txn_ops,
            quota_bytes: options.quota_backend_bytes,
            streams_max: (options.max_concurrent_streams < u32::MAX).then_some(options.max_concurrent_streams),
            keepalive_min_time: options.keepalive_min_time,
            keepalive_interval: options.keepalive_interval,
            keepalive_timeout: options.keepalive_timeout,
            lock_wait: boot::LOCK_WAIT,
            wal_discard_from_lsn: options.wal_discard_from_lsn,
            cache_bytes,
            // Two merges that need files of their own, and two segments of the log.
            reserve_bytes: 2 * (index_file_bytes + row_segment_bytes + log.segment_bytes),
            watch_progress_interval: options.watch_progress_notify_interval,
            watch_block_bytes_max: WATCH_BLOCK_BYTES_MAX,
            scrub_interval: options.scrub_interval,
            connection_cores: options.cores.as_ref().map_or(0, Layout::connection_cores),
            sequencer_serves: options.cores.as_ref().is_none_or(|layout| layout.sequencer_serves),
        }
    }

    /// What a connection core of this member is started with.
    #[must_use]
    pub fn front(&self) -> FrontOptions {
        FrontOptions {
            limits: self.connection_limits(),
            assembly_bytes_max: ASSEMBLY_BYTES_MAX,
            surface: self.surface.clone(),
            admission: self.admission(crate::identity::member_id(&self.peer_urls, &self.token).0),
        }
    }

    fn admission(&self, member_id: u64) -> Admission {
        Admission {
            request_bytes_max: self.request_bytes_max,
            txn_ops_max: self.txn_ops_max,
            quota_bytes: self.quota_bytes,
            member_id,
            rows_held_max: crate::service::rows_held_max(self.cache_bytes),
        }
    }

    /// Writes a log record.
    pub fn log<P: Port>(&self, port: &mut P, level: Level, message: &str, fields: &[(&str, Field<'_>)]) {
        if let Some(record) = self.journal.render(port.wall_now(), level, message, fields) {
            port.log(record.as_bytes());
        }
    }

    fn connection_limits(&self) -> ConnectionLimits {
        let mut limits = ConnectionLimits::new(api::route);
        limits.message_bytes_max = self.request_bytes_max + GRPC_OVERHEAD_BYTES;
        limits.http_body_bytes_max = limits.message_bytes_max;
        limits.concurrent_streams_announced = self.streams_max;
        if let Some(streams) = self.streams_max {
            limits.streams_max = limits.streams_max.min(streams as usize);
        }
        limits.ping_interval_min = self.keepalive_min_time;
        limits.keepalive_interval = self.keepalive_interval;
        limits.keepalive_timeout = self.keepalive_timeout;
        limits
    }
}

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

    /// Looks at every touched connection for requests, and at what other cores' connections have asked for.
    fn poll_clients<P: Port>(&mut self, port: &mut P, now: u64) {
        self.clients.wall_now = port.wall_now();
        if !self.parcels.is_empty() {
            self.handle_parcels(port, now);
        }
        if !self.is_listening() {
            return;
        }
        self.clients.revive();
        let mut position = 0;
        while let Some(slot) = self.clients.touched(position) {
            self.poll_client(slot, now);
            self.clients.handle_polled(slot);
            position += 1;
        }
        self.serve_scrapers(port);
    }

    fn poll_client(&mut self, slot: usize, now: u64) {
        let Self { clients, service, identity, scrapes, .. } = self;
        let wall_now = clients.wall_now;
        let Some((client, budget)) = clients.connection(slot) else { return };
        let (id, audience) = (client.id(), client.audience);
        while let Some(event) = client.connection.poll_event(budget, now) {
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
        let mut budget = Budget::new(JOB_UNITS_PER_TURN);
        while budget.left() > 0 {
            let started = port.cpu_now();
            let pages = Pages { port: &*port, disk: &self.disk };
            let Some(step) = self.service.step_job(&mut self.clients, &pages, &mut budget, now) else { return };
            self.metrics.observe_step(step.kind, port.cpu_now().saturating_sub(started));
            if let Some(unavailable) = step.missing {
                self.load(port, unavailable);
            }
            // Whatever it did, it cost something: a job that finds nothing to do must not keep the turn.
            budget.spend(UNITS_PER_JOB_STEP);
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
        }
        self.more |= self.service.replica.has_committed();
    }

    /// One step of apply; the page it lacks, if it does.
    fn apply_commands<P: Port>(&mut self, port: &mut P, now: u64) -> Option<Unavailable> {
        let mut budget = Budget::new(STEP_UNITS);
        for _ in 0..APPLY_COMMANDS_PER_STEP {
            let pages = Pages { port: &*port, disk: &self.disk };
            match self.service.apply_step(&mut self.clients, &pages, &mut budget, now) {
                Ok(Progress::Idle) | Err(Pause::Budget) => return None,
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

    /// Compacts by itself when the time has come.
    fn compact_automatically<P: Port>(&mut self, port: &mut P, now: u64) {
        let Some(machine) = self.auto_compaction.as_mut().filter(|_| self.phase == Phase::Serving) else { return };
        let revision = self.service.replica.keyspace().published().revision;
        let leads = self.service.replica.role() == Role::Leader;
        let Some(target) = machine.handle_time(revision, leads, now) else { return };
        let message = format!("starting auto {} compaction", machine.mode());
        self.options.log(port, Level::Info, &message, &[("revision", Field::Number(target))]);
        match self.service.submit_own(&Command::Compact { revision: target }, now) {
            Ok(sequence) => self.compacting = Some(sequence),
            Err(_) => self.end_compaction(port, now),
        }
        self.more = true;
    }

    /// A command of this member was applied: the automatic compaction, perhaps.
    fn note_compacted<P: Port>(&mut self, port: &mut P, sequence: u64, now: u64) {
        if self.compacting == Some(sequence) {
            self.compacting = None;
            self.end_compaction(port, now);
        }
    }

    /// The automatic compaction has its outcome: what is compacted tells which.
    fn end_compaction<P: Port>(&mut self, port: &mut P, now: u64) {
        let keyspace = self.service.replica.keyspace();
        let (revision, compacted) = (keyspace.published().revision, keyspace.state().compacted);
        let Some(machine) = &mut self.auto_compaction else { return };
        let succeeded = machine.pending().is_some_and(|target| target <= compacted);
        let Some(target) = machine.handle_outcome(succeeded, revision, now) else { return };
        let mode = machine.mode();
        let fields = [("revision", Field::Number(target))];
        let (level, message) = match succeeded {
            true => (Level::Info, format!("completed auto {mode} compaction")),
            false => (Level::Warn, format!("failed auto {mode} compaction")),
        };
        self.options.log(port, level, &message, &fields);
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

    /// Steps the running checkpoint: when nothing presses, one step at a time with a pause after it, so that its pages
    /// reach the disk in between the log's records and not in one long row.
    fn checkpoint<P: Port>(&mut self, port: &mut P, now: u64) {
        let steps = self.service.replica.checkpoint_steps();
        if steps == 1 && self.checkpoint_at > now {
            return;
        }
        self.checkpoint_at = now + CHECKPOINT_PAUSE;
        for _ in 0..steps {
            let pages = Pages { port: &*port, disk: &self.disk };
            let started = port.cpu_now();
            let step = self.service.replica.checkpoint_step(CHECKPOINT_UNITS_PER_STEP, &pages);
            if matches!(step, CheckpointStep::More | CheckpointStep::NeedPages(_)) {
                self.metrics.observe_step(StepKind::Checkpoint, port.cpu_now().saturating_sub(started));
            }
            match step {
                CheckpointStep::Idle | CheckpointStep::Waiting => return self.checkpoint_at = 0,
                CheckpointStep::More => {}
                CheckpointStep::NeedPages(unavailable) => {
                    self.checkpoint_at = 0;
                    return self.load(port, unavailable);
                }
            }
        }
        self.more |= steps > 1;
    }

    /// Gives back what compactions left, and the memory of merged overlays.
    fn reclaim<P: Port>(&mut self, port: &mut P, now: u64) {
        if self.reclaim_at > now {
            return;
        }
        self.reclaim_at = 0;
        let pages = Pages { port: &*port, disk: &self.disk };
        let started = port.cpu_now();
        let step = self.service.replica.reclaim_step(&mut Budget::new(RECLAIM_UNITS_PER_TURN), &pages);
        if matches!(step, ReclaimStep::More | ReclaimStep::NeedPages(_)) {
            self.metrics.observe_step(StepKind::Reclaim, port.cpu_now().saturating_sub(started));
        }
        // Whatever it came to, who waits for what is done by now goes on.
        self.service.handle_stored();
        match step {
            ReclaimStep::Idle | ReclaimStep::Waiting | ReclaimStep::NeedsCheckpoint => {}
            ReclaimStep::More => self.reclaim_at = now + RECLAIM_PAUSE,
            ReclaimStep::NeedPages(unavailable) => self.load(port, unavailable),
        }
    }

    fn load<P: Port>(&mut self, port: &mut P, unavailable: Unavailable) {
        match unavailable {
            Unavailable::Missing(block) => self.disk.load(port, block),
            // Not before the medium was asked.
            Unavailable::Corrupt(block) => {
                if !self.disk.recheck(port, block) {
                    self.fail_corrupt(port, block);
                }
            }
        }
    }

    fn fail_corrupt<P: Port>(&mut self, port: &mut P, Block { file, offset, len }: Block) {
        self.service.replica.handle_write_failed();
        let name = store_file_name(file);
        let reason = format!(
            "{len} bytes at offset {offset} of {name} do not match their checksum, on the disk as in memory: restore a \
             backup, on another disk"
        );
        self.fail(port, &reason);
    }

    fn log_block<P: Port>(&self, port: &mut P, level: Level, message: &str, block: Block) {
        let name = store_file_name(block.file);
        let offset = Field::Number(i64::try_from(block.offset).unwrap_or(i64::MAX));
        let fields = [("file", Field::Text(&name)), ("offset", offset), ("bytes", Field::Number(block.len.into()))];
        self.options.log(port, level, message, &fields);
    }

    /// Keeps memory within its budget; between steps, since nobody reads a page then.
    fn release_cold<P: Port>(&mut self, port: &mut P) {
        let replica = &mut self.service.replica;
        for range in self.disk.release_cold(port, replica.memory_bytes()) {
            replica.handle_released(range);
        }
    }

    /// Lets the scrubber read on where there is nothing else to do.
    fn scrub<P: Port>(&mut self, port: &mut P, now: u64) {
        if self.phase != Phase::Serving {
            return;
        }
        let is_quiet = !self.more && self.service.is_idle();
        let passes = self.scrubber.passes();
        let rot = self.scrubber.poll(port, &mut self.disk, &self.service.replica, now, is_quiet);
        if let Some(rot) = rot {
            self.report_rot(port, &rot, now);
        }
        if self.scrubber.passes() > passes {
            self.options.log(port, Level::Info, "scrubbed the data directory", &[]);
        }
    }

    /// What is served still is, until it is read; but the operator has to know.
    fn report_rot<P: Port>(&mut self, port: &mut P, rot: &Rot, now: u64) {
        let offset = Field::Number(i64::try_from(rot.offset).unwrap_or(i64::MAX));
        let fields = [("file", Field::Text(&rot.file)), ("offset", offset), ("bytes", Field::Number(rot.len.into()))];
        let message = match rot.loss {
            Loss::None => "the scrubber found a damaged copy; the other one is used: replace the disk",
            Loss::UntilCheckpoints => {
                "the scrubber found a damaged record of the log; checkpoints make it superfluous: replace the disk"
            }
            Loss::Data => "the scrubber found damaged data: restore a backup, on another disk",
        };
        self.options.log(port, Level::Error, message, &fields);
        match rot.loss {
            Loss::None => {}
            Loss::UntilCheckpoints => self.service.replica.renew_log(),
            Loss::Data => self.service.raise_alarm(ALARM_CORRUPT, now),
        }
        self.more = true;
    }

    /// Tries again what found no room, and makes it known.
    fn mind_space<P: Port>(&mut self, port: &mut P, now: u64) {
        self.disk.handle_time(port);
        let is_short = self.disk.is_short_of_space();
        self.service.replica.set_short_of_room(is_short);
        self.service.handle_space(is_short, now);
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
        self.order(Order::Serve);
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
