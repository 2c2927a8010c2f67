//! The simulated port: every submission of the shell becomes a completion at a drawn time.
//!
//! Owns: virtual time, the queue of what is due, open files, connections (both ends), injected errors and the point at
//! which the process dies. Does not know: what the bytes mean, or what a client or server does with them.
//!
//! Invariants
//! - I1: nothing happens but from [`SimPort::advance`] and the boot calls; equal seeds give equal traces.
//! - I2: events are ordered as the port promises: files first (in any order), sockets (each connection in order),
//!   timer.
//! - I3: a dead process has no effect: its submissions are swallowed, its completions never delivered.
//! - I4: the shell's breaches of the port's contract are collected as violations, not tolerated.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::rc::Rc;

use trilith_reactor::{CloseReason, ConnectionId, Event, FileId, FileMode, ListenerId, Port, Preparation, Token};

mod boot_files;

use crate::disk::{Barrier, Disk, InodeId, NameChange, Survival, WriteId};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::weather::{CrashKind, Fate, Latency, MILLISECOND, Phase, SECOND, Trouble, Weather};

/// Wall-clock time at virtual time zero.
const WALL_EPOCH: u64 = 1_700_000_000 * SECOND;
/// A killed process's writes land within this time.
const LANDING_MAX: u64 = 60 * MILLISECOND;
/// What is populated and dropped as one.
const PAGE_BYTES: u64 = 4096;
/// Delays below this are no pauses.
const LATE_MIN: u64 = 10 * MILLISECOND;
/// Linux's EIO.
const EIO: i32 = 5;
/// Linux's ENOSPC.
const ENOSPC: i32 = 28;
/// How much longer a turn takes on a slow CPU.
const SLOW_CPU: u64 = 50;

/// What reaches a client.
#[derive(Debug)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Delivery {
    /// Bytes of the server, with the disk as it was when they were sent if the sample chose them (last piece).
    Bytes { connection: ConnectionId, bytes: Vec<u8>, sent_at: u64, media: Option<Box<Disk>> },
    /// The connection is gone.
    Closed { connection: ConnectionId },
    /// The time has come that [`SimPort::wake_client`] was asked for.
    Wake { client: usize },
}

#[derive(Debug)]
enum Pending {
    Write {
        token: Token,
        inode: InodeId,
        id: WriteId,
        offset: u64,
        len: usize,
        barrier: Barrier,
    },
    /// The durability that an early acknowledgement left out.
    Settle {
        inode: InodeId,
        id: WriteId,
    },
    EarlyWritten {
        token: Token,
    },
    Sync {
        token: Token,
        inode: InodeId,
        covered: Vec<WriteId>,
    },
    Read {
        token: Token,
        inode: InodeId,
        offset: u64,
        len: usize,
    },
    Create {
        token: Token,
        name: String,
        change: u64,
        mode: FileMode,
    },
    Unlink {
        token: Token,
        change: u64,
    },
    Populate {
        token: Token,
        inode: InodeId,
        offset: u64,
        len: usize,
    },
    /// A hole being punched: zeros that are durable with a later sync, or without one.
    Discard {
        token: Token,
        inode: InodeId,
        id: WriteId,
        offset: u64,
        len: usize,
    },
    Accept {
        connection: ConnectionId,
    },
    ToServer {
        connection: ConnectionId,
        bytes: Vec<u8>,
    },
    ServerClosed {
        connection: ConnectionId,
        reason: CloseReason,
    },
    Sent {
        connection: ConnectionId,
        buffer: Vec<u8>,
    },
    ToClient(Delivery),
}

/// How a submission goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    Io,
    Short,
    NoSpace,
}

impl Error {
    fn as_io(self) -> io::Error {
        match self {
            Self::Io => io::Error::from_raw_os_error(EIO),
            Self::Short => io::ErrorKind::WriteZero.into(),
            Self::NoSpace => io::Error::from_raw_os_error(ENOSPC),
        }
    }
}

#[derive(Debug)]
struct Due {
    what: Pending,
    /// Reports an error.
    fails: Option<Error>,
    /// The process dies before the event is delivered.
    fatal: bool,
}

#[derive(Clone, Debug)]
struct Handle {
    name: Rc<str>,
    inode: InodeId,
    mode: FileMode,
}

#[derive(Debug)]
struct Connection {
    /// The shell knows of it and has not closed it.
    open: bool,
    sending: bool,
    receiving: bool,
    /// Bytes that arrived while not receiving.
    held: Vec<u8>,
    to_server_at: u64,
    to_client_at: u64,
}

/// The simulator's port. Lives through crashes: [`SimPort::crash`] ends a process, [`SimPort::begin_life`] starts one.
#[derive(Debug)]
pub struct SimPort {
    disk: Disk,
    now: u64,
    rng: Rng,
    weather: Weather,
    queue: BTreeMap<(u64, u64), Due>,
    sequence: u64,
    handles: Vec<Option<Handle>>,
    /// Of each file, by page: populated and not written since.
    resident: BTreeMap<InodeId, Vec<bool>>,
    /// How often a mapped page was read that is not resident.
    stalls: Cell<u64>,
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: u64,
    listening: bool,
    deadline: Option<u64>,
    /// How late the timer will be.
    late: u64,
    /// For so long the process could not run, or not when it wanted.
    lost: u64,
    pauses: Vec<(u64, u64)>,
    fate: Fate,
    life_began: u64,
    submissions: u64,
    aimed_submissions: u64,
    dead: bool,
    error_delivered_at: Option<u64>,
    /// A creation found no space: the server may stop or go on.
    space_was_missing: bool,
    /// What is still to come in this life, latest first.
    troubles: Vec<(u64, Trouble)>,
    stalled_until: u64,
    slow_until: u64,
    wall_offset: i64,
    faults: u64,
    /// The last record of a fatal failure.
    last_words: String,
    stop_requested_at: Option<u64>,
    violations: Vec<String>,
    coverage: BTreeMap<String, u64>,
    /// The trace of everything that crossed the port.
    pub trace: Trace,
}

impl SimPort {
    /// A port over `disk` at virtual time `now`.
    #[must_use]
    pub fn new(disk: Disk, weather: Weather, rng: Rng, now: u64, trace: Trace) -> Self {
        Self {
            disk,
            now,
            rng,
            weather,
            queue: BTreeMap::new(),
            sequence: 0,
            handles: Vec::new(),
            resident: BTreeMap::new(),
            stalls: Cell::new(0),
            connections: BTreeMap::new(),
            next_connection: 1,
            listening: false,
            deadline: None,
            late: 0,
            lost: 0,
            pauses: Vec::new(),
            fate: Fate::Survive,
            life_began: now,
            submissions: 0,
            aimed_submissions: 0,
            dead: false,
            error_delivered_at: None,
            space_was_missing: false,
            troubles: Vec::new(),
            stalled_until: 0,
            slow_until: 0,
            wall_offset: 0,
            faults: 0,
            last_words: String::new(),
            stop_requested_at: None,
            violations: Vec::new(),
            coverage: BTreeMap::new(),
            trace,
        }
    }

    /// Starts a process's life, with what comes so long after its start.
    pub fn begin_life(&mut self, fate: Fate, troubles: &[(u64, Trouble)]) {
        self.fate = fate;
        self.troubles = troubles.iter().rev().map(|(after, trouble)| (self.now + after, *trouble)).collect();
        self.space_was_missing = false;
        self.last_words.clear();
        self.life_began = self.now;
        self.submissions = 0;
        self.aimed_submissions = 0;
        self.dead = false;
        self.error_delivered_at = None;
        self.stop_requested_at = None;
        self.listening = true;
        self.trace.event(self.now, format_args!("life {fate:?}"));
    }

    /// Whether the process died in the last call or turn.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// When an injected error was delivered in this life.
    #[must_use]
    pub fn error_delivered_at(&self) -> Option<u64> {
        self.error_delivered_at
    }

    /// Whether a file could not be created for lack of space in this life.
    #[must_use]
    pub fn space_was_missing(&self) -> bool {
        self.space_was_missing
    }

    /// Faults so far that the server felt.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// The server's last record of a fatal failure in this life, if any.
    #[must_use]
    pub fn last_words(&self) -> &str {
        &self.last_words
    }

    /// The disk, to be damaged between lives.
    pub fn disk_mut(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// For how long the process could not run at all so far, or not when it wanted to, and its clock as it sees it may
    /// have stood still.
    #[must_use]
    pub fn lost_time(&self) -> u64 {
        self.lost
    }

    /// Pauses since the last call: when each began and how long it was.
    pub fn take_pauses(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.pauses)
    }

    /// Counts a fault that the server feels.
    pub fn count_fault(&mut self, what: &str) {
        self.faults += 1;
        self.cover(what);
    }

    /// When SIGTERM was delivered in this life.
    #[must_use]
    pub fn stop_requested_at(&self) -> Option<u64> {
        self.stop_requested_at
    }

    /// How this life ends.
    #[must_use]
    pub fn fate(&self) -> Fate {
        self.fate
    }

    /// The next contract breach, if any.
    pub fn take_violation(&mut self) -> Option<String> {
        // Not a breach: a populate and a write of one page may end in either order. But a core would have stalled.
        for _ in 0..self.stalls.take() {
            self.cover("(page read without being resident)");
        }
        self.violations.pop()
    }

    /// Counts that something of this name happened.
    pub fn cover(&mut self, what: &str) {
        match self.coverage.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.coverage.insert(what.to_owned(), 1);
            }
        }
    }

    /// What happened how often: faults, and the server's log records by message.
    #[must_use]
    pub fn coverage(&self) -> &BTreeMap<String, u64> {
        &self.coverage
    }

    /// The disk as it is.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Lets virtual time pass without a turn, as while the process is down.
    pub fn sleep(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
    }

    /// Ends the process: settles the disk, resets the connections. Returns what still reaches the clients.
    pub fn crash(&mut self, kind: CrashKind) -> Vec<Delivery> {
        self.trace.event(self.now, format_args!("crash {kind:?} after {} submissions", self.submissions));
        self.disk.advance(self.now);
        self.count_fault(match kind {
            CrashKind::Kill => "(kill)",
            CrashKind::PowerLoss => "(power loss)",
        });
        if self.disk.is_writing("store/") {
            self.cover("(restart during a checkpoint)");
        }
        match kind {
            CrashKind::Kill => self.disk.kill(self.now, LANDING_MAX, &mut self.rng),
            CrashKind::PowerLoss => self.lose_unsettled(),
        }
        self.end_life(if kind == CrashKind::Kill { 900 } else { 400 })
    }

    /// Ends a process that stopped by itself.
    pub fn exit(&mut self) -> Vec<Delivery> {
        self.trace.event(self.now, format_args!("exit after {} submissions", self.submissions));
        self.disk.kill(self.now, LANDING_MAX, &mut self.rng);
        self.end_life(1_000)
    }

    /// The power fails while no process runs.
    pub fn lose_power(&mut self) {
        self.trace.event(self.now, format_args!("power loss"));
        self.lose_unsettled();
    }

    fn lose_unsettled(&mut self) {
        let losses = self.disk.power_loss(Survival::Drawn, &mut self.rng);
        for (what, happened) in [
            ("(sectors lost)", losses.sectors > 0),
            ("(torn log write)", losses.torn_log > 0),
            ("(torn store write)", losses.torn_store > 0),
            ("(torn superblock)", losses.torn_superblock > 0),
            ("(name lost)", losses.names > 0),
            ("(name back)", losses.names_back > 0),
        ] {
            if happened {
                self.cover(what);
            }
        }
    }

    /// `delivered_per_mille`: how often a connection's bytes under way still arrive.
    fn end_life(&mut self, delivered_per_mille: u64) -> Vec<Delivery> {
        let connections = std::mem::take(&mut self.connections);
        let delivered: BTreeSet<ConnectionId> =
            connections.keys().copied().filter(|_| self.rng.chance(delivered_per_mille)).collect();
        let mut deliveries = Vec::new();
        for due in std::mem::take(&mut self.queue).into_values() {
            match due.what {
                Pending::ToClient(Delivery::Bytes { connection, .. }) if !delivered.contains(&connection) => {}
                Pending::ToClient(Delivery::Wake { .. } | Delivery::Closed { .. }) => {}
                Pending::ToClient(delivery) => deliveries.push(delivery),
                _ => {}
            }
        }
        deliveries.extend(connections.into_keys().map(|connection| Delivery::Closed { connection }));
        self.handles.clear();
        self.resident.clear();
        self.deadline = None;
        self.listening = false;
        self.dead = true;
        deliveries
    }

    /// Delivers [`Delivery::Wake`] after `delay`; forgotten when the process's life ends.
    pub fn wake_client(&mut self, client: usize, delay: u64) {
        self.schedule(self.now + delay, Pending::ToClient(Delivery::Wake { client }));
    }

    fn schedule(&mut self, at: u64, what: Pending) {
        self.schedule_submission(at, what, None, false);
    }

    fn schedule_submission(&mut self, at: u64, what: Pending, fails: Option<Error>, fatal: bool) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), Due { what, fails, fatal });
    }

    /// Counts a submission, to the file of that name if to any. `None`: the process is dead and it has no effect.
    /// Otherwise whether it fails, and whether its completion is fatal.
    fn submit(&mut self, file: Option<&str>) -> Option<(Option<Error>, bool)> {
        if self.dead {
            return None;
        }
        self.submissions += 1;
        let phase = match self.fate {
            Fate::CrashAt { number, phase, .. } => (number == self.submissions).then_some(phase),
            Fate::CrashOnFile { prefix, number, phase, .. } if file.is_some_and(|name| name.starts_with(prefix)) => {
                self.aimed_submissions += 1;
                (number == self.aimed_submissions).then_some(phase)
            }
            Fate::ErrorAt { number } if self.submissions >= number && file.is_some() => {
                self.fate = Fate::Survive;
                return Some((Some(Error::Io), false));
            }
            _ => None,
        };
        match phase {
            None => Some((None, false)),
            Some(Phase::BeforeSubmit) => {
                self.dead = true;
                None
            }
            Some(Phase::AfterSubmit) => {
                self.dead = true;
                Some((None, false))
            }
            Some(Phase::AfterCompletion) => Some((None, true)),
        }
    }

    /// Counts a submission to an open file.
    fn submit_to(&mut self, file: FileId) -> Option<(Option<Error>, bool, Handle)> {
        let handle = self.handle(file)?;
        let (fails, fatal) = self.submit(Some(&handle.name))?;
        Some((fails, fatal, handle))
    }

    /// When something that takes so long ends.
    fn due_after(&mut self, latency: Latency) -> u64 {
        self.now + latency.draw(&mut self.rng)
    }

    /// The same of a file operation: the disk may be stalled.
    fn disk_due_after(&mut self, latency: Latency) -> u64 {
        self.due_after(latency).max(self.stalled_until.saturating_add(latency.min))
    }

    /// The error of a creation now, if there is no space.
    fn creation_error(&self, fails: Option<Error>) -> Option<Error> {
        let Fate::NoSpace { delay, length } = self.fate else { return fails };
        let from = self.life_began + delay;
        fails.or_else(|| (from..from + length).contains(&self.now).then_some(Error::NoSpace))
    }

    fn cause(&mut self, trouble: Trouble) {
        self.trace.event(self.now, format_args!("{trouble:?}"));
        match trouble {
            Trouble::Pause(length) => {
                self.lost += 2 * length;
                self.pauses.push((self.now, length));
                self.now += length;
                self.disk.advance(self.now);
                self.count_fault("(pause)");
            }
            Trouble::Stall(length) => {
                self.lost += length;
                self.stalled_until = self.now + length;
                let began = self.now;
                let is_file = |due: &Due| due.what.is_file();
                let files: Vec<(u64, u64)> =
                    self.queue.iter().filter(|(_, due)| is_file(due)).map(|(key, _)| *key).collect();
                for key in files {
                    let due = self.queue.remove(&key).expect("just listed");
                    self.queue.insert((key.0 + length, key.1), due);
                }
                self.trace.event(began, format_args!("stalled until {}", self.stalled_until));
                self.count_fault("(disk stall)");
            }
            Trouble::SlowCpu(length) => {
                self.slow_until = self.now + length;
                self.count_fault("(slow CPU)");
            }
            Trouble::WallJump(distance) => {
                self.wall_offset += distance;
                self.count_fault("(wall clock jump)");
            }
        }
    }

    fn handle(&mut self, file: FileId) -> Option<Handle> {
        let handle = self.handles.get(file.0 as usize).cloned().flatten();
        if handle.is_none() && !self.dead {
            self.violations.push(format!("{file:?} is not open"));
        }
        handle
    }

    fn open_handle(&mut self, name: &str, inode: InodeId, mode: FileMode) -> FileId {
        self.handles.push(Some(Handle { name: name.into(), inode, mode }));
        FileId(self.handles.len() as u32 - 1)
    }

    /// Moves time to the next thing due and delivers all that is due then. False if nothing ever will be.
    pub fn advance(&mut self, events: &mut Vec<Event>, deliveries: &mut Vec<Delivery>) -> bool {
        let crash_at = match self.fate {
            Fate::CrashAfter { delay, .. } => Some(self.life_began + delay),
            Fate::StopAfter { delay } if self.stop_requested_at.is_none() => Some(self.life_began + delay),
            _ => None,
        };
        let queued = self.queue.keys().next().map(|(at, _)| *at);
        let trouble_at = self.troubles.last().map(|(at, _)| *at);
        let Some(next) = [queued, self.deadline, crash_at, trouble_at].into_iter().flatten().min() else {
            return false;
        };
        self.now = self.now.max(next);
        self.disk.advance(self.now);
        while let Some((_, trouble)) = self.troubles.pop_if(|(at, _)| *at <= self.now) {
            self.cause(trouble);
        }
        if crash_at.is_some_and(|at| at <= self.now) {
            if matches!(self.fate, Fate::CrashAfter { .. }) {
                self.dead = true;
                return true;
            }
            self.stop_requested_at = Some(self.now);
            self.cover("(graceful stop)");
            events.push(Event::StopRequested { signal: 15 });
        }
        self.deliver_due(events, deliveries);
        if self.deadline.is_some_and(|at| at <= self.now) && !self.dead {
            self.deadline = None;
            // Who looks at its clock now and then takes twice the delay for a pause, at most.
            self.lost += if self.late > LATE_MIN { 3 * self.late } else { 0 };
            events.push(Event::Timer);
        }
        for event in events.iter() {
            self.trace.event(self.now, format_args!("<- {}", Described(event)));
            if let Event::Received { bytes, .. } | Event::Read { result: Ok(bytes), .. } = event {
                self.trace.bytes(bytes);
            }
        }
        true
    }

    fn deliver_due(&mut self, events: &mut Vec<Event>, deliveries: &mut Vec<Delivery>) {
        let mut files = Vec::new();
        let mut sockets: BTreeMap<ConnectionId, VecDeque<Event>> = BTreeMap::new();
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > self.now || self.dead {
                break;
            }
            let due = entry.remove();
            match due.what {
                Pending::ToClient(delivery) => deliveries.push(delivery),
                Pending::Accept { connection } => {
                    let event = Event::Accepted { listener: ListenerId(0), connection, peer: "10.0.0.1:9".to_owned() };
                    sockets.entry(connection).or_default().push_back(event);
                }
                what @ (Pending::ToServer { .. } | Pending::ServerClosed { .. } | Pending::Sent { .. }) => {
                    self.dead |= due.fatal;
                    if let Some((connection, event)) = self.socket_event(what) {
                        sockets.entry(connection).or_default().push_back(event);
                    }
                }
                what => {
                    let event = self.complete_file(what, due.fails);
                    self.dead |= due.fatal;
                    files.extend(event);
                }
            }
        }
        if self.dead {
            return;
        }
        self.rng.shuffle(&mut files);
        events.extend(files);
        let mut order: Vec<ConnectionId> = sockets.keys().copied().collect();
        self.rng.shuffle(&mut order);
        for connection in order {
            events.extend(sockets.remove(&connection).expect("listed above"));
        }
    }

    fn complete_file(&mut self, what: Pending, error: Option<Error>) -> Option<Event> {
        let of_store = matches!(what, Pending::Write { barrier: Barrier::AtSync, .. });
        if !matches!(what, Pending::Read { .. }) {
            self.feel(error, of_store);
        }
        let fails = error.is_some();
        let outcome = |error: Option<Error>| error.map_or(Ok(()), |error| Err(error.as_io()));
        let event = match what {
            Pending::Write { token, inode, id, offset, len, .. } => {
                self.set_resident(inode, offset, len, false);
                if fails {
                    self.disk.fail_write(inode, id, &mut self.rng);
                } else {
                    self.disk.complete_write(inode, id);
                }
                Event::Written { token, result: outcome(error) }
            }
            Pending::Settle { inode, id } => {
                self.disk.complete_write(inode, id);
                return None;
            }
            Pending::EarlyWritten { token } => Event::Written { token, result: Ok(()) },
            Pending::Sync { token, inode, covered } => {
                if !fails {
                    self.disk.complete_sync(inode, &covered);
                }
                Event::Synced { token, result: outcome(error) }
            }
            Pending::Read { token, inode, offset, len } => {
                let bytes = self.disk.visible(inode, offset, len).map(<[u8]>::to_vec);
                let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof));
                Event::Read { token, result: outcome(error).and(bytes) }
            }
            Pending::Create { token, name, change, mode } => {
                if let Some(error) = error {
                    self.disk.abandon_change(change);
                    return Some(Event::Created { token, result: Err(error.as_io()) });
                }
                let inode = self.disk.complete_change(change).expect("a create makes a file");
                Event::Created { token, result: Ok(self.open_handle(&name, inode, mode)) }
            }
            Pending::Unlink { token, change } => {
                if fails {
                    self.disk.abandon_change(change);
                } else {
                    self.disk.complete_change(change);
                }
                Event::Renamed { token, result: outcome(error) }
            }
            Pending::Discard { token, inode, id, offset, len } => {
                self.set_resident(inode, offset, len, false);
                if fails {
                    self.disk.fail_write(inode, id, &mut self.rng);
                } else {
                    self.disk.complete_write(inode, id);
                }
                Event::Discarded { token, result: outcome(error) }
            }
            Pending::Populate { token, inode, offset, len } => {
                self.set_resident(inode, offset, len, !fails);
                Event::Populated { token, result: outcome(error) }
            }
            other => unreachable!("{other:?} is not a file operation"),
        };
        Some(event)
    }

    /// An error reaches the server.
    fn feel(&mut self, error: Option<Error>, of_store: bool) {
        match error {
            None => {}
            Some(Error::NoSpace) => {
                self.space_was_missing = true;
                self.count_fault("(no space)");
            }
            // What a write to the store lacks is taken for space.
            Some(Error::Short) if of_store => {
                self.space_was_missing = true;
                self.count_fault("(short write)");
            }
            Some(error) => {
                self.error_delivered_at = Some(self.now);
                self.count_fault(if error == Error::Io { "(I/O error)" } else { "(short write)" });
            }
        }
    }

    fn socket_event(&mut self, what: Pending) -> Option<(ConnectionId, Event)> {
        match what {
            Pending::ToServer { connection, bytes } => {
                let state = self.connections.get_mut(&connection).filter(|state| state.open)?;
                if !state.receiving {
                    state.held.extend_from_slice(&bytes);
                    return None;
                }
                Some((connection, Event::Received { connection, bytes }))
            }
            Pending::Sent { connection, mut buffer } => {
                let state = self.connections.get_mut(&connection).filter(|state| state.open)?;
                state.sending = false;
                buffer.clear();
                Some((connection, Event::Sent { connection, buffer }))
            }
            Pending::ServerClosed { connection, reason } => {
                self.connections.remove(&connection)?;
                Some((connection, Event::Closed { connection, reason }))
            }
            other => unreachable!("{other:?} is no socket event"),
        }
    }

    /// Lets the turn's CPU time pass; may be a long pause.
    pub fn spend_turn(&mut self) {
        let factor = if self.now < self.slow_until { SLOW_CPU } else { 1 };
        let length = factor * self.weather.turn.draw(&mut self.rng);
        self.lost += if length > LATE_MIN { 3 * length } else { 0 };
        self.now += length;
    }

    /// A client connects. The server may be down: then the connection closes at once.
    pub fn client_connect(&mut self) -> ConnectionId {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let at = self.due_after(self.weather.network);
        if !self.listening {
            self.schedule(at, Pending::ToClient(Delivery::Closed { connection }));
            return connection;
        }
        let state = Connection {
            open: true,
            sending: false,
            receiving: true,
            held: Vec::new(),
            to_server_at: at,
            to_client_at: at,
        };
        self.connections.insert(connection, state);
        self.schedule(at, Pending::Accept { connection });
        connection
    }

    /// A client sends bytes; they arrive in order, in pieces.
    pub fn client_send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let Some(mut at) = self.connections.get(&connection).map(|state| state.to_server_at) else { return };
        at = at.max(self.due_after(self.weather.network));
        for piece in bytes.chunks(self.weather.segment_bytes_max) {
            self.schedule(at, Pending::ToServer { connection, bytes: piece.to_vec() });
            if self.rng.chance(200) {
                at += self.weather.send.draw(&mut self.rng);
            }
        }
        if let Some(state) = self.connections.get_mut(&connection) {
            state.to_server_at = at;
        }
    }

    /// A client hangs up, in order or abruptly. It hears nothing more.
    pub fn client_close(&mut self, connection: ConnectionId, reason: CloseReason) {
        let Some(state) = self.connections.get(&connection) else { return };
        let at = state.to_server_at.max(self.due_after(self.weather.network));
        self.schedule(at, Pending::ServerClosed { connection, reason });
        self.queue.retain(|_, due| match &due.what {
            Pending::ToClient(Delivery::Bytes { connection: other, .. } | Delivery::Closed { connection: other }) => {
                *other != connection
            }
            _ => true,
        });
    }

    /// Populated pages are resident; a direct write drops what it covers.
    fn set_resident(&mut self, inode: InodeId, offset: u64, len: usize, resident: bool) {
        let marks = self.resident.entry(inode).or_default();
        let pages = pages(offset, len);
        if marks.len() < pages.end && resident {
            marks.resize(pages.end, false);
        }
        let (from, to) = (pages.start.min(marks.len()), pages.end.min(marks.len()));
        marks[from..to].fill(resident);
    }

    /// Counts the writes that a campaign must have seen.
    fn cover_write(&mut self, name: &str, offset: u64, inode: InodeId) {
        if name.starts_with("store/superblock") && self.disk.is_writing("wal/seg") {
            self.cover("(checkpoint while writing)");
        }
        if name.starts_with("wal/seg") && offset == 0 && self.disk.was_written(inode, 0) {
            self.cover("(log segment recycled)");
        }
    }

    fn check_aligned(&mut self, what: &str, offset: u64, len: usize) -> io::Result<()> {
        if offset.is_multiple_of(4096) && len.is_multiple_of(4096) && len > 0 {
            return Ok(());
        }
        self.violations.push(format!("{what} of {len} bytes at {offset} is not aligned to 4096"));
        Err(io::ErrorKind::InvalidInput.into())
    }

    /// One blocking call on the file of that name. Whether the process dies right after it.
    fn boot_submit(&mut self, name: &str, latency: Latency) -> io::Result<bool> {
        let was_dead = self.dead;
        let submitted = self.submit(Some(name));
        self.now += latency.draw(&mut self.rng);
        self.disk.advance(self.now);
        match submitted {
            None => Err(crash_error()),
            Some((Some(error), _)) => {
                self.feel(Some(error), false);
                self.cover("(I/O error at boot)");
                Err(error.as_io())
            }
            Some((None, fatal)) => {
                // A blocking call that ends is followed at once by the death that was to come after its completion.
                if fatal && !was_dead {
                    self.dead = true;
                }
                Ok(fatal)
            }
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(crash_error()) } else { Ok(()) }
    }
}

/// The pages that a range touches.
fn pages(offset: u64, len: usize) -> std::ops::Range<usize> {
    (offset / PAGE_BYTES) as usize..(offset + len as u64).div_ceil(PAGE_BYTES) as usize
}

fn crash_error() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "simulated crash")
}

/// An event without its bytes.
struct Described<'a>(&'a Event);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Read { token, result } => {
                write!(f, "Read {{ token: {token:?}, result: {:?} }}", result.as_ref().map(Vec::len))
            }
            Event::Received { connection, bytes } => write!(f, "Received {{ {connection:?}, {} bytes }}", bytes.len()),
            Event::Sent { connection, .. } => write!(f, "Sent {{ {connection:?} }}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Port for SimPort {
    fn now(&self) -> u64 {
        self.now
    }

    fn wall_now(&self) -> u64 {
        let drift = self.now as i64 / 1_000 * self.weather.wall_drift_per_mille;
        (WALL_EPOCH + self.now).saturating_add_signed(drift + self.wall_offset)
    }

    fn entropy(&mut self) -> u64 {
        self.rng.bits()
    }

    fn write(&mut self, token: Token, file: FileId, offset: u64, bytes: Vec<u8>) {
        self.trace.event(self.now, format_args!("-> write {} {file:?} {offset}+{}", token.0, bytes.len()));
        self.trace.bytes(&bytes);
        let Some((fails, fatal, handle)) = self.submit_to(file) else { return };
        let fails = fails.map(|error| if self.rng.chance(400) { Error::Short } else { error });
        let bytes_len = bytes.len();
        let _ = self.check_aligned("a write", offset, bytes_len);
        let (barrier, latency) = match handle.mode {
            FileMode::Log => (Barrier::AtCompletion, self.weather.log_write),
            FileMode::Store => (Barrier::AtSync, self.weather.store_write),
        };
        let id = match self.disk.begin_write(handle.inode, offset, bytes, barrier, &mut self.rng) {
            Ok(id) => id,
            Err(breach) => {
                self.violations.push(format!("{breach}: {file:?} at {offset}"));
                return;
            }
        };
        let (len, inode) = (bytes_len, handle.inode);
        self.cover_write(&handle.name, offset, inode);
        self.set_resident(inode, offset, len, false);
        let at = self.disk_due_after(latency);
        if self.weather.early_acknowledgement && handle.mode == FileMode::Log && fails.is_none() {
            self.schedule_submission(at, Pending::EarlyWritten { token }, None, fatal);
            let settled_at = at + latency.draw(&mut self.rng).max(5 * MILLISECOND);
            self.schedule(settled_at, Pending::Settle { inode: handle.inode, id });
        } else {
            self.schedule_submission(at, Pending::Write { token, inode, id, offset, len, barrier }, fails, fatal);
        }
    }

    fn sync(&mut self, token: Token, file: FileId) {
        self.trace.event(self.now, format_args!("-> sync {} {file:?}", token.0));
        let Some((fails, fatal, handle)) = self.submit_to(file) else { return };
        let covered = self.disk.begin_sync(handle.inode);
        let at = self.disk_due_after(self.weather.sync);
        self.schedule_submission(at, Pending::Sync { token, inode: handle.inode, covered }, fails, fatal);
    }

    fn read(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        self.trace.event(self.now, format_args!("-> read {} {file:?} {offset}+{len}", token.0));
        let Some((fails, fatal, handle)) = self.submit_to(file) else { return };
        self.cover(if handle.name.starts_with("store/") { "(store read past the cache)" } else { "(log read again)" });
        let _ = self.check_aligned("a read", offset, len);
        let at = self.disk_due_after(self.weather.read);
        self.schedule_submission(at, Pending::Read { token, inode: handle.inode, offset, len }, fails, fatal);
    }

    fn create(&mut self, token: Token, name: &str, bytes: u64, mode: FileMode, _preparation: Preparation) {
        self.trace.event(self.now, format_args!("-> create {} {name} {bytes}", token.0));
        let Some((fails, fatal)) = self.submit(Some(name)) else { return };
        let fails = self.creation_error(fails);
        if name == "store/reserve" {
            self.cover(if fails.is_none() { "(reserve made again)" } else { "(no room for the reserve)" });
        }
        if bytes == 0 || !bytes.is_multiple_of(4096) {
            self.violations.push(format!("{name} of {bytes} bytes is not made of whole blocks"));
        }
        let change = self.disk.begin_change(NameChange::Create { name: name.to_owned(), bytes: bytes as usize });
        let at = self.disk_due_after(self.weather.sync);
        let what = Pending::Create { token, name: name.to_owned(), change, mode };
        self.schedule_submission(at, what, fails, fatal);
    }

    fn unlink(&mut self, token: Token, file: FileId, name: &str) {
        self.trace.event(self.now, format_args!("-> unlink {} {file:?} {name}", token.0));
        match name {
            "store/reserve" => self.cover("(reserve given up)"),
            _ if name.starts_with("store/rows") => self.cover("(row segment removed)"),
            _ => {}
        }
        let Some((fails, fatal)) = self.submit(Some(name)) else { return };
        if let Some(handle) = self.handle(file)
            && self.disk.lookup(name) != Some(handle.inode)
        {
            self.violations.push(format!("{file:?} is not {name}"));
        }
        if let Some(slot) = self.handles.get_mut(file.0 as usize) {
            *slot = None;
        }
        let change = self.disk.begin_change(NameChange::Unlink { name: name.to_owned() });
        let at = self.disk_due_after(self.weather.sync);
        self.schedule_submission(at, Pending::Unlink { token, change }, fails, fatal);
    }

    fn populate(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        self.trace.event(self.now, format_args!("-> populate {} {file:?} {offset}+{len}", token.0));
        let Some((fails, fatal, handle)) = self.submit_to(file) else { return };
        if handle.mode != FileMode::Store {
            self.violations.push(format!("{file:?} is not mapped"));
        }
        self.cover(if handle.name.starts_with("store/rows") { "(rows populated)" } else { "(index populated)" });
        let at = self.disk_due_after(self.weather.read);
        let what = Pending::Populate { token, inode: handle.inode, offset, len };
        self.schedule_submission(at, what, fails, fatal);
    }

    fn discard(&mut self, token: Token, file: FileId, offset: u64, len: u64) {
        self.trace.event(self.now, format_args!("-> discard {} {file:?} {offset}+{len}", token.0));
        let Some((fails, fatal, handle)) = self.submit_to(file) else { return };
        let (inode, len) = (handle.inode, len as usize);
        let _ = self.check_aligned("a discard", offset, len);
        let id = match self.disk.begin_write(inode, offset, vec![0; len], Barrier::AtSync, &mut self.rng) {
            Ok(id) => id,
            Err(breach) => {
                self.violations.push(format!("discard: {breach}: {file:?} at {offset}"));
                return;
            }
        };
        self.set_resident(inode, offset, len, false);
        let at = self.disk_due_after(self.weather.store_write);
        self.schedule_submission(at, Pending::Discard { token, inode, id, offset, len }, fails, fatal);
    }

    fn release(&mut self, file: FileId, offset: u64, len: usize) {
        self.trace.event(self.now, format_args!("-> release {file:?} {offset}+{len}"));
        if self.dead {
            return;
        }
        let Some(handle) = self.handle(file) else { return };
        let _ = self.check_aligned("a release", offset, len);
        self.set_resident(handle.inode, offset, len, false);
        self.cover("(pages released)");
    }

    fn mapped(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]> {
        let handle = self.handles.get(file.0 as usize)?.as_ref()?;
        if handle.mode != FileMode::Store {
            return None;
        }
        let marks = self.resident.get(&handle.inode).and_then(|marks| marks.get(pages(offset, len)));
        if marks.is_none_or(|marks| marks.contains(&false)) {
            self.stalls.set(self.stalls.get() + 1);
        }
        self.disk.visible(handle.inode, offset, len)
    }

    fn send(&mut self, connection: ConnectionId, bytes: Vec<u8>) {
        self.trace.event(self.now, format_args!("-> send {connection:?} {} bytes", bytes.len()));
        self.trace.bytes(&bytes);
        let Some((_, fatal)) = self.submit(None) else { return };
        let network = self.due_after(self.weather.network);
        let sent_at = self.due_after(self.weather.send);
        let now = self.now;
        let Some(state) = self.connections.get_mut(&connection) else { return };
        if !state.open || state.sending || bytes.is_empty() {
            let breach = format!("a send on {connection:?} which is closed or has one outstanding, or an empty send");
            self.violations.push(breach);
            return;
        }
        state.sending = true;
        let mut at = state.to_client_at.max(network);
        let sampled = self.rng.chance(self.weather.witness_per_mille);
        let mut media = sampled.then(|| Box::new(self.disk.clone()));
        let piece_bytes = self.weather.segment_bytes_max.max(256);
        let pieces = bytes.len().div_ceil(piece_bytes);
        for (position, piece) in bytes.chunks(piece_bytes).enumerate() {
            let media = if position + 1 == pieces { media.take() } else { None };
            let delivery = Delivery::Bytes { connection, bytes: piece.to_vec(), sent_at: now, media };
            self.schedule(at, Pending::ToClient(delivery));
            if self.rng.chance(100) {
                at += self.weather.send.draw(&mut self.rng);
            }
        }
        if let Some(state) = self.connections.get_mut(&connection) {
            state.to_client_at = at;
        }
        self.schedule_submission(sent_at, Pending::Sent { connection, buffer: bytes }, None, fatal);
    }

    fn set_receiving(&mut self, connection: ConnectionId, receiving: bool) {
        let at = self.now + 1;
        let Some(state) = self.connections.get_mut(&connection).filter(|_| !self.dead) else { return };
        state.receiving = receiving;
        if receiving && !state.held.is_empty() {
            // Ahead of what is still on its way: sequence zero sorts first among the entries of that time.
            let bytes = std::mem::take(&mut state.held);
            let first_later = self.queue.iter().find_map(|(key, due)| match &due.what {
                Pending::ToServer { connection: other, .. } if *other == connection => Some(*key),
                _ => None,
            });
            let key = first_later.filter(|key| key.0 <= at);
            match key {
                Some(key) => {
                    let Some(Due { what: Pending::ToServer { bytes: later, .. }, .. }) = self.queue.get_mut(&key)
                    else {
                        unreachable!("found above")
                    };
                    let mut joined = bytes;
                    joined.append(later);
                    *later = joined;
                }
                None => self.schedule(at, Pending::ToServer { connection, bytes }),
            }
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        self.trace.event(self.now, format_args!("-> close {connection:?}"));
        let at = self.due_after(self.weather.network);
        let Some(state) = self.connections.get_mut(&connection).filter(|state| state.open && !self.dead) else {
            return;
        };
        state.open = false;
        let client_at = state.to_client_at.max(at);
        self.schedule(at, Pending::ServerClosed { connection, reason: CloseReason::Requested });
        self.schedule(client_at, Pending::ToClient(Delivery::Closed { connection }));
    }

    fn close_listeners(&mut self) {
        self.trace.event(self.now, format_args!("-> close listeners"));
        if !self.dead {
            self.listening = false;
        }
    }

    fn set_deadline(&mut self, deadline: Option<u64>) {
        let late = self.weather.timer_late.draw(&mut self.rng);
        if !self.dead {
            // A deadline that has passed asks for another turn at once: nothing sleeps, so nothing is late.
            self.late = late;
            self.deadline = deadline.map(|at| if at <= self.now { at } else { at.saturating_add(late) });
        }
    }

    fn log(&mut self, record: &[u8]) {
        let text = String::from_utf8_lossy(record);
        self.trace.event(self.now, format_args!("-> log {text}"));
        if let Some((_, rest)) = text.split_once("\"msg\":\"") {
            let message = rest.split('"').next().unwrap_or_default().to_owned();
            self.cover(&message);
            if text.contains("\"level\":\"fatal\"") || text.contains("failed") {
                self.last_words = text.to_string();
            }
        }
    }
}

impl Pending {
    /// Whether the disk has it.
    fn is_file(&self) -> bool {
        !matches!(
            self,
            Self::Accept { .. }
                | Self::ToServer { .. }
                | Self::ServerClosed { .. }
                | Self::Sent { .. }
                | Self::ToClient(_)
        )
    }
}
