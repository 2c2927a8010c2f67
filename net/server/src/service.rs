//! The RPCs: from a decoded call to a command, a read or an answer, and from outcomes back to callers.
//!
//! Owns: the commands and reads that wait, and who is answered when. Does not know: sockets, files, the turn. What is
//! checked of a request (arguments, admission, size, then the log) is in `requests`, the form of an answer in
//! `answers`.
//!
//! Invariants
//! - I1: a caller is answered exactly once, or its connection is gone.
//! - I2: commands are answered in the order of their sequences; an outcome always belongs to the first waiter.
//! - I3: a linearizable read is evaluated only after its read index, asked for after the read arrived, is applied.

use std::collections::BTreeMap;

use trilith_engine::budget::{Budget, Pause};
use trilith_engine::command::{Alarm, Command, encode_command};
use trilith_engine::lease::lessor::Lessor;
use trilith_engine::mvcc::{RangeCursor, RowView, TxnCursor, check};
use trilith_engine::page_source::{Block, PageSource, Unavailable};
use trilith_engine::replica::apply::{ALARM_NOSPACE, ApplyStep};
use trilith_engine::replica::{Replica, SubmitError};
use trilith_engine::store::key_entry::Revision;
use trilith_engine::watch::WatchLimits;
use trilith_raftlog::{ReadError, Role};
use trilith_wire::api::methods::Method;
use trilith_wire::api::status::{self, Status};
use trilith_wire::connection::{Known, RequestHead};
use trilith_wire::proto::Message;
use trilith_wire::proto::etcdserverpb as pb;

use crate::api::{self, request, response};
use crate::clients::{Caller, Clients};
use crate::http::Probe;
use crate::metrics::applied::AppliedMetrics;
use crate::metrics::moment::Moment;

mod admission;
mod answers;
mod deadlines;
mod jobs;
mod lease_lists;
mod leases;
mod reads;
mod requests;
mod steps;
mod streams;
mod waiters;
mod watches;

pub use admission::{Admission, rows_held_max};
use answers::{refuse, respond, send, try_whole};
use deadlines::Deadlines;
use jobs::{Job, Jobs, LeaseList, Wait, Work};
use leases::LeaseWork;
use reads::{Read, ReadKind, Reads};
use requests::{authenticate, health_check, health_list};
pub use steps::JobStep;
use streams::OpenCalls;
use waiters::Waiters;
use watches::WatchCalls;

/// Response bytes of reads in one step.
const READ_BYTES_PER_STEP: usize = 1 << 20;
/// Reads in one step at most.
const READS_PER_STEP: usize = 512;
/// Work units of a read that is answered in one step; a longer one becomes a job.
const READ_UNITS: u32 = 5_000;

/// A proposal or read without an answer for this long ends with an error: 5 s and two election timeouts, as in etcd.
#[must_use]
pub fn request_timeout(election_timeout: u64) -> u64 {
    5_000_000_000 + 2 * election_timeout
}

/// What becomes of a call.
#[derive(Debug)]
pub enum Verdict {
    /// It is answered later.
    Pending,
    /// It is answered now, with this message.
    Message(Vec<u8>),
    /// This is its first message; the call stays open.
    Begun(Vec<u8>),
    /// It is refused now.
    Refused(Status),
}

/// What the head of a call says that matters beside its method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallFacts {
    /// How long the client waits, in nanoseconds.
    pub timeout: Option<u64>,
    /// The API version that the client states can be taken, or it states none.
    pub has_valid_version: bool,
    /// The call is for a member that knows a leader.
    pub needs_leader: bool,
}

impl CallFacts {
    /// Reads them from a head.
    #[inline]
    #[must_use]
    pub fn of(head: &RequestHead) -> Self {
        let version = head.known(Known::ClientApiVersion);
        Self {
            timeout: head.timeout(),
            has_valid_version: version.is_none_or(|version| std::str::from_utf8(version).is_ok()),
            needs_leader: head.known(Known::HasLeader) == Some(b"true"),
        }
    }
}

/// A put in its log form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedPut {
    /// What it costs of the quota.
    pub cost: u64,
    /// The length of the form.
    pub len: usize,
}

/// Checks the arguments of a put and writes its log form behind `out`. `None`: the service has to look at the message,
/// and to say what is wrong with it in etcd's order.
pub fn encode_put(admission: &Admission, message: &[u8], out: &mut Vec<u8>) -> Option<EncodedPut> {
    let request = decode::<pb::PutRequest<'_>>(message).ok()?;
    let put = request::put(&request);
    check::check_put(&put).ok()?;
    admission.check_size(message.len()).ok()?;
    let start = out.len();
    encode_command(out, &Command::Put(put));
    Some(EncodedPut { cost: admission::put_cost(&put), len: out.len() - start })
}

/// The service side of a member.
#[derive(Debug)]
pub struct Service {
    /// The replica behind it.
    pub replica: Replica,
    admission: Admission,
    cluster_id: u64,
    member_id: u64,
    timeout: u64,
    waiters: Waiters,
    reads: Reads,
    jobs: Jobs,
    open_calls: OpenCalls,
    watch_calls: WatchCalls,
    deadlines: Deadlines,
    leases: LeaseWork,
    /// The part of a long answer that is being made; kept for its memory.
    part: Vec<u8>,
    /// Compactions that are answered when their room is given back, by sequence.
    physical: BTreeMap<u64, i64>,
    /// The oldest revision that a transaction on its way asks for, by sequence, where it asks for one.
    asked: BTreeMap<u64, i64>,
    /// Alarms of this member that are being raised, by the sequence of the command.
    alarms_on_their_way: BTreeMap<u64, Alarm>,
    /// The disk is full, whatever the quota says.
    is_short_of_space: bool,
    /// Applied commands, counted.
    pub applied: AppliedMetrics,
    /// Reads evaluated since the node last took the counts: refused, answered.
    pub reads_done: [u64; 2],
    /// Read rounds that raft refused.
    pub rounds_refused: u64,
}

/// Rows of the keyspace through a page source.
struct KeyspaceRows<'a> {
    replica: &'a Replica,
    pages: &'a dyn PageSource,
}

impl<'a> response::Rows<'a> for KeyspaceRows<'a> {
    fn row(&self, at: Revision) -> Result<RowView<'a>, Unavailable> {
        self.replica.keyspace().row(at, self.pages)
    }
}

impl Service {
    /// A service over a booted replica.
    #[must_use]
    pub fn new(
        replica: Replica,
        admission: Admission,
        watch_limits: WatchLimits,
        (cluster_id, member_id): (u64, u64),
        timeout: u64,
        lessor: Lessor,
    ) -> Self {
        Self {
            replica,
            admission,
            cluster_id,
            member_id,
            timeout,
            waiters: Waiters::default(),
            reads: Reads::default(),
            jobs: Jobs::new(admission.rows_held_max),
            open_calls: OpenCalls::default(),
            watch_calls: WatchCalls::new(watch_limits),
            deadlines: Deadlines::default(),
            leases: LeaseWork::new(lessor),
            part: Vec::new(),
            physical: BTreeMap::new(),
            asked: BTreeMap::new(),
            alarms_on_their_way: BTreeMap::new(),
            is_short_of_space: false,
            applied: AppliedMetrics::default(),
            reads_done: [0; 2],
            rounds_refused: 0,
        }
    }

    /// What a scraper is told of the moment.
    #[must_use]
    pub fn moment(&self) -> Moment {
        let alarm_name = |alarm: &Alarm| pb::AlarmType(i32::try_from(alarm.alarm).unwrap_or(0)).name();
        let alarms = self.replica.tables().alarms().iter();
        Moment {
            member_id: self.member_id,
            has_leader: self.replica.leader().is_some(),
            is_leader: self.replica.role() == Role::Leader,
            committed: self.replica.commit().0,
            applied: self.replica.applied().0,
            pending: self.waiters.len() as u64,
            quota_bytes: self.admission.quota_bytes,
            store_bytes: self.replica.store_bytes(),
            store_bytes_in_use: self.replica.store_bytes_in_use(),
            revision: self.replica.keyspace().published().revision,
            compacted: self.replica.keyspace().state().compacted,
            open_reads: self.jobs.pins() as u64,
            rounds_refused: self.rounds_refused,
            shard_rounds: self.replica.shard_rounds(),
            alarms: alarms.map(|alarm| (alarm.member, alarm_name(alarm).unwrap_or("UNKNOWN"))).collect(),
            ..Moment::default()
        }
    }

    /// Whether nobody waits for an answer.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiters.is_empty() && self.reads.is_empty() && self.jobs.is_empty()
    }

    /// Handles a call: with its only message, or at its head if many follow.
    pub fn handle_call(
        &mut self,
        caller: Caller,
        method: Method,
        facts: CallFacts,
        message: &[u8],
        now: u64,
    ) -> Verdict {
        let result = self.check_metadata(facts).and_then(|()| match method {
            Method::Put => self.handle_put(caller, message, now),
            Method::Range => self.handle_range(caller, message, now),
            Method::RangeStream => self.handle_range_stream(caller, message, now),
            Method::DeleteRange => self.handle_delete_range(caller, message, now),
            Method::Txn => self.handle_txn(caller, message, now),
            Method::Compact => self.handle_compact(caller, message, now),
            Method::MemberList => self.handle_member_list(caller, message, now),
            Method::Alarm => self.handle_alarm(caller, message, now),
            Method::Status => decode::<pb::StatusRequest>(message).map(|_| Verdict::Message(self.status())),
            Method::Hash => self.handle_hash(caller, message, now),
            Method::HashKv => self.handle_hash_kv(caller, message, now),
            Method::MoveLeader => self.move_leader(message),
            Method::Defragment => self.handle_defragment(caller, message, now),
            Method::Watch => Ok(self.open_watch(caller)),
            Method::LeaseGrant => self.handle_lease_grant(caller, message, now),
            Method::LeaseRevoke => self.handle_lease_revoke(caller, message, now),
            Method::LeaseTimeToLive => self.handle_time_to_live(caller, message, now),
            Method::LeaseLeases => self.handle_leases(caller, message, now),
            Method::LeaseKeepAlive => Ok(self.open_keep_alive(caller)),
            Method::HealthCheck => health_check(message),
            Method::HealthList => health_list(message),
            Method::HealthWatch => self.open_health_watch(caller, message),
            Method::AuthStatus => self.auth_status(message),
            Method::Authenticate => authenticate(message),
            other => Err(api::not_implemented(other)),
        });
        self.conclude(caller, facts, result, now)
    }

    /// Handles a put whose arguments were checked where its connection is, in its log form; `cost` is what it costs of
    /// the quota.
    pub fn handle_encoded_put(
        &mut self,
        caller: Caller,
        facts: CallFacts,
        cost: u64,
        encoded: &[u8],
        now: u64,
    ) -> Verdict {
        let result = self.check_metadata(facts).and_then(|()| {
            self.admit_growth(cost, now)?;
            let sequence = self.replica.submit_encoded(encoded).map_err(submit_status)?;
            self.waiters.push(sequence, Some(caller), now);
            Ok(Verdict::Pending)
        });
        self.conclude(caller, facts, result, now)
    }

    fn conclude(&mut self, caller: Caller, facts: CallFacts, result: Result<Verdict, Status>, now: u64) -> Verdict {
        let verdict = result.unwrap_or_else(Verdict::Refused);
        if let (Verdict::Pending | Verdict::Begun(_), Some(timeout)) = (&verdict, facts.timeout) {
            self.deadlines.insert(now.saturating_add(timeout), caller);
        }
        verdict
    }

    /// etcd's interceptor: API version, then leadership.
    fn check_metadata(&self, facts: CallFacts) -> Result<(), Status> {
        if !facts.has_valid_version {
            return Err(status::INVALID_CLIENT_API_VERSION);
        }
        if facts.needs_leader && self.replica.leader().is_none() {
            return Err(status::NO_LEADER);
        }
        Ok(())
    }

    /// Asks for the linearizable read behind a health probe.
    pub fn handle_probe(&mut self, caller: Caller, probe: Probe, now: u64) {
        self.reads.start(Read { caller, kind: ReadKind::Probe(Box::new(probe)), message: Vec::new(), started: now });
    }

    /// Refuses a write whose answer may be long while others' answers take all the memory there is for them.
    fn admit_answer(&self, may_be_long: bool) -> Result<(), Status> {
        if may_be_long && !self.jobs.has_room() { Err(status::TOO_MANY_REQUESTS) } else { Ok(()) }
    }

    /// Refuses what would exceed the quota, and raises the alarm once.
    fn admit_growth(&mut self, cost: u64, now: u64) -> Result<(), Status> {
        if !self.is_short_of_space && self.admission.fits_quota(self.replica.store_bytes(), cost) {
            return Ok(());
        }
        self.raise_alarm(ALARM_NOSPACE, now);
        Err(status::NO_SPACE)
    }

    /// The disk was found full, or has room again. The alarm stays until an operator clears it, as in etcd.
    pub fn handle_space(&mut self, is_short: bool, now: u64) {
        self.is_short_of_space = is_short;
        if is_short {
            self.raise_alarm(ALARM_NOSPACE, now);
        }
    }

    /// Raises an alarm of this member through the log, unless it is on or on its way. If the log cannot take it now,
    /// whoever sees the cause again raises it.
    pub fn raise_alarm(&mut self, kind: u32, now: u64) {
        let alarm = Alarm { member: self.member_id, alarm: kind };
        let is_on_its_way = self.alarms_on_their_way.values().any(|other| *other == alarm);
        if !is_on_its_way
            && !self.replica.tables().alarms().contains(&alarm)
            && let Ok(sequence) = self.submit_own(&Command::AlarmActivate(alarm), now)
        {
            self.alarms_on_their_way.insert(sequence, alarm);
        }
    }

    fn submit(&mut self, caller: Caller, command: &Command<'_>, now: u64) -> Result<Verdict, Status> {
        self.submit_for(caller, command, now).map(|_| Verdict::Pending)
    }

    fn submit_for(&mut self, caller: Caller, command: &Command<'_>, now: u64) -> Result<u64, Status> {
        let sequence = self.replica.submit(command).map_err(submit_status)?;
        self.waiters.push(sequence, Some(caller), now);
        Ok(sequence)
    }

    /// Submits a command that nobody waits for; returns its sequence.
    ///
    /// # Errors
    /// The replica does not take it now.
    pub fn submit_own(&mut self, command: &Command<'_>, now: u64) -> Result<u64, SubmitError> {
        let sequence = self.replica.submit(command)?;
        self.waiters.push(sequence, None, now);
        Ok(sequence)
    }

    fn start_read(
        &mut self,
        caller: Caller,
        kind: ReadKind,
        message: Vec<u8>,
        local: bool,
        now: u64,
    ) -> Result<Verdict, Status> {
        let read = Read { caller, kind, message, started: now };
        if local {
            self.reads.start_local(read);
        } else {
            self.reads.start(read);
        }
        Ok(Verdict::Pending)
    }

    /// Hands the reads gathered in this turn to raft as one round.
    pub fn issue_reads(&mut self, clients: &mut Clients) {
        let Some(context) = self.reads.issue() else { return };
        if let Err(error) = self.replica.read_index(context) {
            let status = match error {
                ReadError::NotLeader { .. } => status::NO_LEADER,
                ReadError::Full => status::TOO_MANY_REQUESTS,
                _ => status::STOPPED,
            };
            self.refuse_round(clients, context, &status);
        }
    }

    /// Takes raft's answers to issued rounds.
    pub fn handle_read_answers(&mut self, clients: &mut Clients) {
        while let Some(answer) = self.replica.poll_read() {
            match answer.index {
                Some(index) => self.reads.confirm(answer.context, index.0),
                None => self.refuse_round(clients, answer.context, &status::LEADER_CHANGED),
            }
        }
    }

    fn refuse_round(&mut self, clients: &mut Clients, context: u64, status: &Status) {
        self.rounds_refused += 1;
        for read in self.reads.end_round(context) {
            self.refuse_read(clients, read, status);
        }
    }

    /// Applies one committed command and answers its caller.
    ///
    /// # Errors
    /// A page is needed first.
    pub fn apply_step(
        &mut self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        now: u64,
    ) -> Result<Progress, Pause> {
        let before = self.replica.keyspace().published().revision;
        match self.replica.apply_step(budget, pages) {
            ApplyStep::Idle => Ok(Progress::Idle),
            ApplyStep::EntryDone(_) => Ok(Progress::Moved),
            ApplyStep::More => Err(Pause::Budget),
            ApplyStep::Suspended(unavailable) => Err(Pause::Pages(unavailable)),
            ApplyStep::Waiting => Ok(Progress::Waiting),
            ApplyStep::Applied(applied) => {
                self.applied.observe(&applied.result, clients.wall_now);
                self.note_lease_outcome(clients, &applied, now);
                if !self.replica.is_own(applied.id) {
                    return Ok(Progress::Moved);
                }
                let sequence = applied.id.sequence;
                self.alarms_on_their_way.remove(&sequence);
                let physical = self.physical.remove(&sequence);
                // Its answer may show rows that no reader at `before` sees any more.
                let compacted = self.replica.keyspace().state().compacted;
                let held = self.asked.remove(&sequence).map_or(before, |asked| asked.max(compacted).min(before));
                match (self.waiters.complete(sequence), physical) {
                    (None, _) => {}
                    (Some(caller), Some(revision)) => self.answer_physical(clients, caller, revision, applied, now),
                    (Some(caller), None) => self.answer_command(clients, caller, applied, held, pages, now),
                }
                Ok(Progress::Own(sequence))
            }
        }
    }

    /// Whether a read could be evaluated now.
    #[must_use]
    pub fn has_ready_read(&self) -> bool {
        self.reads.has_ready(self.replica.applied().0)
    }

    /// Evaluates the reads whose index is applied, as many as fit the budget; those that do not fit a step become jobs.
    /// Returns the blocks that reads lack; after they are loaded: [`Self::handle_loaded`].
    pub fn answer_reads(
        &mut self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        now: u64,
    ) -> Vec<Unavailable> {
        let (mut missing, mut bytes) = (Vec::new(), 0);
        for _ in 0..READS_PER_STEP {
            let Some(read) = self.reads.take_ready(self.replica.applied().0) else { break };
            let given = budget.left();
            if let ReadKind::KeepAlive(id) = read.kind {
                self.answer_keep_alive(clients, read.caller, id, now);
                continue;
            }
            match self.answer_read(clients, &read, budget, pages, now) {
                Ok(sent) => {
                    bytes += sent;
                    self.reads_done[usize::from(sent > 0)] += 1;
                }
                // It had less than a whole step.
                Err(Pause::Budget) if given < READ_UNITS && budget.left() == 0 => self.reads.put_back(read),
                Err(Pause::Budget) => self.begin_long_read(clients, read, now),
                Err(Pause::Pages(unavailable)) => {
                    missing.push(unavailable);
                    self.reads.park(read, unavailable.block());
                }
            }
            if bytes >= READ_BYTES_PER_STEP || budget.left() == 0 {
                break;
            }
        }
        missing
    }

    /// A read that does not fit a step goes on as a job, from its start.
    fn begin_long_read(&mut self, clients: &mut Clients, read: Read, now: u64) {
        let Read { caller, kind, message, .. } = read;
        if !self.jobs.has_room() {
            return self.refuse_caller(clients, caller, &status::TOO_MANY_REQUESTS);
        }
        let keyspace = self.replica.keyspace();
        let (revision, work) = match kind {
            ReadKind::TimeToLive => {
                let request = decode::<pb::LeaseTimeToLiveRequest>(&message).expect("decoded when it arrived");
                let work = Work::LeaseKeys { id: request.id, from: Vec::new(), encoded: Vec::new() };
                return self.jobs.push(Job { caller, pin: None, started: now, work }, Wait::Turn);
            }
            ReadKind::Leases => {
                let work = Work::Leases(LeaseList::new(now));
                return self.jobs.push(Job { caller, pin: None, started: now, work }, Wait::Turn);
            }
            ReadKind::Range | ReadKind::RangeStream => {
                let streams = matches!(kind, ReadKind::RangeStream);
                let request = decode::<pb::RangeRequest<'_>>(&message).expect("decoded when it arrived");
                match RangeCursor::new(keyspace, &request::range(&request)) {
                    Ok(cursor) => (cursor.revision(), Work::Range { message, cursor, streams }),
                    Err(error) => return self.refuse_caller(clients, caller, &api::mvcc_status(error)),
                }
            }
            ReadKind::Txn => {
                let request = decode::<pb::TxnRequest<'_>>(&message).expect("decoded when it arrived");
                let cursor = TxnCursor::new(keyspace);
                let revision = cursor.revision_held(keyspace, &request::txn(&request));
                (revision, Work::Txn { message, cursor })
            }
            other => unreachable!("{other:?} fits a step"),
        };
        self.begin_reading(caller, revision, work, now);
    }

    fn refuse_caller(&self, clients: &mut Clients, caller: Caller, status: &Status) {
        if let Some(connection) = clients.answer(caller) {
            refuse(connection, caller, status);
        }
    }

    /// Pages that were missing have come: what lacks none that is still awaited is tried again.
    pub fn handle_loaded(&mut self, is_awaited: impl Fn(Block) -> bool) {
        self.reads.resume(&is_awaited);
        self.jobs.handle_loaded(&is_awaited);
    }

    /// Ends what has waited too long.
    pub fn handle_time(&mut self, clients: &mut Clients, now: u64) {
        // Not before the timeout has passed; earlier than time zero nothing began.
        self.refuse_before(clients, now.saturating_sub(self.timeout), &status::TIMEOUT);
        self.step_leases(clients, now);
        self.watch_calls.watches.handle_time(now);
        self.end_overdue(clients, now);
        self.end_slow_watches(clients, now);
        self.jobs.wake_started_before(now.saturating_sub(jobs::AGE_MAX));
    }

    /// When something that waits runs out of time.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let oldest = [self.waiters.oldest(), self.reads.oldest()];
        let waiting = oldest.into_iter().flatten().min().map(|since| since.saturating_add(self.timeout + 1));
        let working = self.jobs.oldest().map(|since| since.saturating_add(jobs::AGE_MAX + 1));
        let of_watches = [self.watch_calls.watches.deadline(), self.watch_calls.deadline()];
        let of_calls = [self.deadlines.first(), self.lease_deadline()];
        [waiting, working].into_iter().chain(of_watches).chain(of_calls).flatten().min()
    }

    /// Answers everything that waits with "server stopped".
    pub fn refuse_all(&mut self, clients: &mut Clients) {
        self.refuse_before(clients, u64::MAX, &status::STOPPED);
        for job in self.jobs.take_all() {
            if let Some(connection) = clients.answer(job.caller) {
                refuse(connection, job.caller, &status::STOPPED);
            }
        }
    }

    fn refuse_before(&mut self, clients: &mut Clients, time: u64, status: &Status) {
        while let Some(caller) = self.waiters.take_submitted_before(time) {
            if let Some(connection) = clients.answer(caller) {
                refuse(connection, caller, status);
            }
        }
        while let Some(read) = self.reads.take_started_before(time) {
            self.refuse_read(clients, read, status);
        }
    }

    fn refuse_read(&mut self, clients: &mut Clients, read: Read, status: &Status) {
        let caller = read.caller;
        if matches!(read.kind, ReadKind::KeepAlive(_)) {
            self.handle_call_ended(caller);
        }
        let wall_now = clients.wall_now;
        let Some(connection) = clients.answer(caller) else { return };
        match read.kind {
            ReadKind::Probe(probe) => respond(connection, caller, &probe.finish(Some(&status.message), wall_now)),
            _ => refuse(connection, caller, status),
        }
    }

    fn identity(&self) -> response::Identity {
        let raft_term = self.replica.term().0;
        response::Identity { cluster_id: self.cluster_id, member_id: self.member_id, raft_term }
    }

    fn header(&self, revision: i64) -> pb::ResponseHeader {
        self.identity().header(revision)
    }

    fn current_header(&self) -> pb::ResponseHeader {
        self.header(self.replica.keyspace().published().revision)
    }
}

/// What [`Service::apply_step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to apply.
    Idle,
    /// Jobs of shards have to come back first.
    Waiting,
    /// Something was applied.
    Moved,
    /// A command of this boot with this sequence was applied.
    Own(u64),
}

fn submit_status(error: SubmitError) -> Status {
    match error {
        SubmitError::Overloaded => status::TOO_MANY_REQUESTS,
        SubmitError::TooLarge => status::REQUEST_TOO_LARGE,
        SubmitError::NotLeader => status::NO_LEADER,
        SubmitError::Stopped => status::STOPPED,
    }
}

fn decode<'a, M: Message<'a>>(message: &'a [u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| status::undecodable(&error))
}

/// Decodes a message of an open call.
fn decode_streamed<'a, M: Message<'a>>(message: &'a [u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| status::undecodable_message(&error))
}
