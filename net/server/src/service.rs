//! The RPCs: from a decoded call to a command, a read or an answer, and from outcomes back to callers.
//!
//! Owns: the order of checks (arguments, admission, size, then the log), the commands and reads that wait, and their
//! answers. Does not know: sockets, files, the turn.
//!
//! Invariants
//! - I1: a caller is answered exactly once, or its connection is gone.
//! - I2: commands are answered in the order of their sequences; an outcome always belongs to the first waiter.
//! - I3: a linearizable read is evaluated only after its read index, asked for after the read arrived, is applied.

use std::collections::BTreeMap;

use trilith_engine::budget::{Budget, Pause};
use trilith_engine::command::{Alarm, Command, Op, SortOrder, SortTarget, Txn, encode_command};
use trilith_engine::lease::lessor::Lessor;
use trilith_engine::mvcc::{HashCursor, MvccError, RangeCursor, RowView, TxnCursor, check};
use trilith_engine::page_source::{Block, PageSource, Unavailable};
use trilith_engine::replica::apply::{ALARM_NOSPACE, Applied, ApplyError, ApplyStep, Outcome};
use trilith_engine::replica::{Replica, SubmitError};
use trilith_engine::store::key_entry::Revision;
use trilith_engine::watch::WatchLimits;
use trilith_raftlog::{ReadError, Role};
use trilith_wire::api::methods::Method;
use trilith_wire::api::status::{self, Status};
use trilith_wire::connection::{Known, RequestHead};
use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::{Message, health};

use crate::answering::Answering as Connection;
use crate::api::parts::Answer;
use crate::api::{self, request, response};
use crate::clients::{Caller, Clients};
use crate::http::{CLUSTER_VERSION, Probe, Response, SERVER_VERSION};
use crate::metrics::applied::AppliedMetrics;
use crate::metrics::moment::Moment;

mod admission;
mod deadlines;
mod jobs;
mod lease_lists;
mod leases;
mod reads;
mod steps;
mod streams;
mod waiters;
mod watches;

pub use admission::{Admission, rows_held_max};
use deadlines::Deadlines;
use jobs::{Job, Jobs, LeaseList, WHOLE_BYTES_MAX, Wait, Work};
use leases::LeaseWork;
use reads::{Read, ReadKind, Reads};
pub use steps::JobStep;
use streams::{OpenCall, OpenCalls};
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
            Method::Defragment => self.handle_defragment(caller, message, now),
            Method::Watch => Ok(self.open_watch(caller)),
            Method::LeaseGrant => self.handle_lease_grant(caller, message, now),
            Method::LeaseRevoke => self.handle_lease_revoke(caller, message, now),
            Method::LeaseTimeToLive => self.handle_time_to_live(caller, message, now),
            Method::LeaseLeases => self.handle_leases(caller, message, now),
            Method::LeaseKeepAlive => Ok(self.open_keep_alive(caller)),
            Method::HealthCheck => health_check(message),
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

    /// Authentication is off, and nothing has changed it since the cluster began.
    fn auth_status(&self, message: &[u8]) -> Result<Verdict, Status> {
        decode::<pb::AuthStatusRequest>(message)?;
        let header = Some(self.current_header());
        let response = pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 };
        Ok(Verdict::Message(response.encode_to_vec()))
    }

    /// Health of a service until it changes, which it does with the end of the process alone.
    fn open_health_watch(&mut self, caller: Caller, message: &[u8]) -> Result<Verdict, Status> {
        let request = decode::<health::HealthCheckRequest<'_>>(message)?;
        let status = health_of(request.service).unwrap_or(health::ServingStatus::SERVICE_UNKNOWN);
        self.open_calls.insert(caller, OpenCall::Health);
        Ok(Verdict::Begun(health::HealthCheckResponse { status }.encode_to_vec()))
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

    fn handle_put(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::PutRequest<'_>>(message)?;
        let put = request::put(&request);
        self.admit_growth(admission::put_cost(&put), now)?;
        check::check_put(&put).map_err(api::mvcc_status)?;
        self.admission.check_size(message.len())?;
        self.submit(caller, &Command::Put(put), now)
    }

    fn handle_delete_range(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::DeleteRangeRequest<'_>>(message)?;
        let delete = request::delete_range(&request);
        check::check_delete_range(&delete).map_err(api::mvcc_status)?;
        self.admission.check_size(message.len())?;
        self.admit_answer(delete.prev_kv && !delete.range_end.is_empty())?;
        self.submit(caller, &Command::DeleteRange(delete), now)
    }

    fn handle_txn(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::TxnRequest<'_>>(message)?;
        let txn = request::txn(&request);
        if txn.has_put() {
            self.admit_growth(admission::txn_cost(&txn), now)?;
        }
        check::check_txn(&txn, self.admission.txn_ops_max).map_err(api::mvcc_status)?;
        if txn.is_read_only() {
            let serializable = txn.is_serializable();
            return self.start_read(caller, ReadKind::Txn, message.to_vec(), serializable, now);
        }
        self.admission.check_size(message.len())?;
        self.admit_answer(shows_ranges(&txn))?;
        let asked = oldest_asked(&txn);
        let sequence = self.submit_for(caller, &Command::Txn(txn), now)?;
        self.asked.extend(asked.map(|revision| (sequence, revision)));
        Ok(Verdict::Pending)
    }

    fn handle_compact(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::CompactionRequest>(message)?;
        let sequence = self.submit_for(caller, &Command::Compact { revision: request.revision }, now)?;
        if request.physical {
            self.physical.insert(sequence, request.revision);
        }
        Ok(Verdict::Pending)
    }

    fn handle_range(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::RangeRequest<'_>>(message)?;
        check::check_range(&request::range(&request)).map_err(api::mvcc_status)?;
        self.start_read(caller, ReadKind::Range, message.to_vec(), request.serializable, now)
    }

    fn handle_range_stream(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::RangeRequest<'_>>(message)?;
        let query = request::range(&request);
        check::check_range(&query).map_err(api::mvcc_status)?;
        let by_key = query.sort_target == SortTarget::Key && query.sort_order == SortOrder::Ascend;
        if query.sort_order != SortOrder::None && !by_key {
            return Err(status::RANGE_STREAM_SORT);
        }
        let filters =
            [query.min_mod_revision, query.max_mod_revision, query.min_create_revision, query.max_create_revision];
        if filters != [0; 4] {
            return Err(status::RANGE_STREAM_REVISION_FILTER);
        }
        self.start_read(caller, ReadKind::RangeStream, message.to_vec(), request.serializable, now)
    }

    fn handle_hash(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        decode::<pb::HashRequest>(message)?;
        let cursor = HashCursor::whole(self.replica.keyspace());
        self.begin_hash(caller, cursor, false, now);
        Ok(Verdict::Pending)
    }

    fn handle_hash_kv(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::HashKVRequest>(message)?;
        let cursor = HashCursor::new(self.replica.keyspace(), request.revision).map_err(api::mvcc_status)?;
        self.begin_hash(caller, cursor, true, now);
        Ok(Verdict::Pending)
    }

    fn handle_defragment(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        decode::<pb::DefragmentRequest>(message)?;
        let work = Work::Defragment { ticket: self.replica.defragment() };
        self.jobs.push(Job { caller, pin: None, started: now, work }, Wait::Turn);
        Ok(Verdict::Pending)
    }

    fn handle_member_list(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::MemberListRequest>(message)?;
        self.start_read(caller, ReadKind::MemberList, Vec::new(), !request.linearizable, now)
    }

    fn handle_alarm(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::AlarmRequest>(message)?;
        let number = u32::try_from(request.alarm.0).unwrap_or(0);
        let alarm = Alarm { member: request.member_id, alarm: number };
        match request.action {
            pb::AlarmAction::GET => self.start_read(caller, ReadKind::Alarms(number), Vec::new(), false, now),
            // Naming no alarm changes nothing, as in etcd.
            pb::AlarmAction::ACTIVATE | pb::AlarmAction::DEACTIVATE if number == 0 => {
                self.start_read(caller, ReadKind::NoAlarms, Vec::new(), false, now)
            }
            pb::AlarmAction::ACTIVATE => self.submit(caller, &Command::AlarmActivate(alarm), now),
            pb::AlarmAction::DEACTIVATE => self.submit(caller, &Command::AlarmDeactivate(alarm), now),
            _ => self.start_read(caller, ReadKind::NoAlarms, Vec::new(), false, now),
        }
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

    /// A compaction that its caller wants carried out: answered when the room is given back, also if this revision was
    /// compacted before, as in etcd.
    fn answer_physical(&mut self, clients: &mut Clients, caller: Caller, revision: i64, applied: Applied, now: u64) {
        let outcome = match applied.result {
            Ok(Outcome::Compact(compact)) => Ok(compact.revision),
            Err(error @ ApplyError::Mvcc(MvccError::Compacted)) => Err(api::apply_status(error)),
            Err(error) => return self.refuse_caller(clients, caller, &api::apply_status(error)),
            Ok(other) => unreachable!("{other:?} of a compaction"),
        };
        self.begin_physical(caller, revision, outcome, now);
    }

    /// `before` is the newest revision the command read.
    fn answer_command(
        &mut self,
        clients: &mut Clients,
        caller: Caller,
        applied: Applied,
        before: i64,
        pages: &dyn PageSource,
        now: u64,
    ) {
        let Some(connection) = clients.answer(caller) else { return };
        let outcome = match applied.result {
            Ok(outcome) => outcome,
            Err(error) => return refuse(connection, caller, &api::apply_status(error)),
        };
        match outcome {
            Outcome::Put(put) if put.prev.is_none() => {
                let header = Some(self.header(put.revision));
                send(connection, caller, &pb::PutResponse { header, prev_kv: None });
            }
            Outcome::Put(put) => {
                let answer = Answer::put(self.header(put.revision), put);
                self.answer_applied(clients, caller, answer, before, pages, now);
            }
            Outcome::DeleteRange(delete) => {
                let answer = Answer::delete_range(self.header(delete.revision), delete);
                self.answer_applied(clients, caller, answer, before, pages, now);
            }
            Outcome::Txn(txn) => {
                let answer = Answer::txn(self.header(txn.revision), txn);
                self.answer_applied(clients, caller, answer, before, pages, now);
            }
            Outcome::Compact(compact) => {
                send(connection, caller, &pb::CompactionResponse { header: Some(self.header(compact.revision)) });
            }
            Outcome::Alarm { alarm, listed } => {
                let alarms = listed.then(|| alarm_member(alarm)).into_iter().collect();
                send(connection, caller, &pb::AlarmResponse { header: Some(self.current_header()), alarms });
            }
            Outcome::LeaseGrant { id, ttl } => {
                let header = Some(self.current_header());
                send(connection, caller, &pb::LeaseGrantResponse { header, id, ttl, error: "" });
            }
            Outcome::LeaseEnd { outcome, .. } => {
                send(connection, caller, &pb::LeaseRevokeResponse { header: Some(self.header(outcome.revision)) });
            }
            Outcome::LeaseCheckpoint { .. } => unreachable!("only the server itself notes what is left of leases"),
            Outcome::Published => unreachable!("only the server itself publishes"),
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

    /// Answers a read; returns the length of the answer, roughly.
    fn answer_read(
        &self,
        clients: &mut Clients,
        read: &Read,
        budget: &mut Budget,
        pages: &dyn PageSource,
        now: u64,
    ) -> Result<usize, Pause> {
        let (caller, wall_now) = (read.caller, clients.wall_now);
        let Some(connection) = clients.answer(caller) else { return Ok(0) };
        let header = self.current_header();
        Ok(match &read.kind {
            ReadKind::Range => {
                let request = decode::<pb::RangeRequest<'_>>(&read.message).expect("decoded when it arrived");
                match self.replica.keyspace().range(&request::range(&request), budget, pages)? {
                    Ok(outcome) => send_whole(connection, caller, &response::range(header, &outcome))?,
                    Err(error) => {
                        refuse(connection, caller, &api::mvcc_status(error));
                        0
                    }
                }
            }
            ReadKind::RangeStream => return Err(Pause::Budget),
            ReadKind::Txn => {
                let request = decode::<pb::TxnRequest<'_>>(&read.message).expect("decoded when it arrived");
                match self.replica.keyspace().read_txn(&request::txn(&request), budget, pages)? {
                    Ok(outcome) => {
                        let rows = KeyspaceRows { replica: &self.replica, pages };
                        let mut answer = Answer::txn(self.header(outcome.revision), outcome);
                        try_whole(connection, caller, &mut answer, usize::MAX, &rows)?.ok_or(Pause::Budget)?
                    }
                    Err(error) => {
                        refuse(connection, caller, &api::mvcc_status(error));
                        0
                    }
                }
            }
            ReadKind::MemberList => send(connection, caller, &self.member_list()),
            ReadKind::TimeToLive => {
                let request = decode::<pb::LeaseTimeToLiveRequest>(&read.message).expect("decoded when it arrived");
                match self.time_to_live(request.id, now) {
                    Ok(answer) if request.keys && answer.ttl >= 0 => return Err(Pause::Budget),
                    Ok(answer) => send(connection, caller, &answer),
                    Err(status) => {
                        refuse(connection, caller, &status);
                        0
                    }
                }
            }
            ReadKind::Leases => return Err(Pause::Budget),
            ReadKind::KeepAlive(_) => unreachable!("answered where the state may change"),
            ReadKind::Alarms(kind) => {
                let wanted = |alarm: &&Alarm| *kind == 0 || alarm.alarm == *kind;
                let alarms = self.replica.tables().alarms().iter().filter(wanted).map(|a| alarm_member(*a)).collect();
                send(connection, caller, &pb::AlarmResponse { header: Some(header), alarms })
            }
            ReadKind::NoAlarms => {
                send(connection, caller, &pb::AlarmResponse { header: Some(header), alarms: Vec::new() })
            }
            ReadKind::Probe(probe) => {
                let response = probe.as_ref().clone().finish(None, wall_now);
                respond(connection, caller, &response);
                response.body.len()
            }
        })
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

    fn member_list(&self) -> pb::MemberListResponse<'_> {
        let members = self.replica.tables().members().iter();
        pb::MemberListResponse {
            header: Some(self.header(0)),
            members: members
                .map(|(id, member)| pb::Member {
                    id: *id,
                    name: &member.name,
                    peer_urls: member.peer_urls.iter().map(String::as_str).collect(),
                    client_urls: member.client_urls.iter().map(String::as_str).collect(),
                    is_learner: false,
                })
                .collect(),
        }
    }

    fn status(&self) -> Vec<u8> {
        let leader = self.replica.leader().map_or(0, |leader| leader.0);
        let mut errors = Vec::new();
        if leader == 0 {
            errors.push(status::NO_LEADER.message.into_owned());
        }
        for alarm in self.replica.tables().alarms() {
            let name = pb::AlarmType(i32::try_from(alarm.alarm).unwrap_or(0)).name().unwrap_or("UNKNOWN");
            errors.push(format!("memberID:{} alarm:{name}", alarm.member));
        }
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let response = pb::StatusResponse {
            header: Some(self.current_header()),
            version: SERVER_VERSION,
            db_size: size(self.replica.store_bytes()),
            leader,
            raft_index: self.replica.commit().0,
            raft_term: self.replica.term().0,
            raft_applied_index: self.replica.applied().0,
            errors: errors.iter().map(String::as_str).collect(),
            db_size_in_use: size(self.replica.store_bytes_in_use()),
            is_learner: false,
            storage_version: CLUSTER_VERSION,
            db_size_quota: self.admission.quota_bytes,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        };
        response.encode_to_vec()
    }
}

/// What [`Service::apply_step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to apply.
    Idle,
    /// Something was applied.
    Moved,
    /// A command of this boot with this sequence was applied.
    Own(u64),
}

/// The oldest revision that a range of a transaction asks for, at any depth; `None`: all read the newest.
fn oldest_asked(txn: &Txn<'_>) -> Option<i64> {
    let of_op = |op: &Op<'_>| match op {
        Op::Range(query) => Some(query.revision).filter(|&revision| revision > 0),
        Op::Txn(nested) => oldest_asked(nested),
        Op::Put(_) | Op::DeleteRange(_) | Op::Unset => None,
    };
    txn.success.iter().chain(&txn.failure).filter_map(of_op).min()
}

/// Whether the answer of a transaction shows ranges, of what it reads or of what it deletes, at any depth.
fn shows_ranges(txn: &Txn<'_>) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Range(query) => !query.range_end.is_empty() && !query.count_only,
        Op::DeleteRange(delete) => !delete.range_end.is_empty() && delete.prev_kv,
        Op::Txn(nested) => shows_ranges(nested),
        Op::Put(_) | Op::Unset => false,
    })
}

fn submit_status(error: SubmitError) -> Status {
    match error {
        SubmitError::Overloaded => status::TOO_MANY_REQUESTS,
        SubmitError::TooLarge => status::REQUEST_TOO_LARGE,
        SubmitError::NotLeader => status::NO_LEADER,
        SubmitError::Stopped => status::STOPPED,
    }
}

fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    pb::AlarmMember { member_id: alarm.member, alarm: pb::AlarmType(i32::try_from(alarm.alarm).unwrap_or(0)) }
}

/// What health checks say of a service: of the server as a whole it is the empty name, and no other is known.
fn health_of(service: &str) -> Option<health::ServingStatus> {
    service.is_empty().then_some(health::ServingStatus::SERVING)
}

/// A client that was given a name and a password goes on without a token when it is told that none is needed.
fn authenticate(message: &[u8]) -> Result<Verdict, Status> {
    decode::<pb::AuthenticateRequest<'_>>(message)?;
    Err(status::AUTH_NOT_ENABLED)
}

fn health_check(message: &[u8]) -> Result<Verdict, Status> {
    let request = decode::<health::HealthCheckRequest<'_>>(message)?;
    let status = health_of(request.service).ok_or(status::UNKNOWN_HEALTH_SERVICE)?;
    Ok(Verdict::Message(health::HealthCheckResponse { status }.encode_to_vec()))
}

fn decode<'a, M: Message<'a>>(message: &'a [u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| status::undecodable(&error))
}

/// Decodes a message of an open call.
fn decode_streamed<'a, M: Message<'a>>(message: &'a [u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| status::undecodable_message(&error))
}

/// Sends a unary answer; returns its length.
fn send<'a>(mut connection: Connection<'_>, caller: Caller, message: &impl Message<'a>) -> usize {
    let len = message.encoded_len();
    connection.send_unary(caller.stream, len, |out| message.encode_into(out));
    len
}

/// Sends a unary answer unless it is too long for one step.
fn send_whole<'a>(mut connection: Connection<'_>, caller: Caller, message: &impl Message<'a>) -> Result<usize, Pause> {
    let len = message.encoded_len();
    if len > WHOLE_BYTES_MAX {
        return Err(Pause::Budget);
    }
    connection.send_unary(caller.stream, len, |out| message.encode_into(out));
    Ok(len)
}

/// Sends a unary answer, if it is short and shows at most `rows_max` rows; returns its length.
fn try_whole(
    mut connection: Connection<'_>,
    caller: Caller,
    answer: &mut Answer,
    rows_max: usize,
    rows: &KeyspaceRows<'_>,
) -> Result<Option<usize>, Unavailable> {
    let Some(len) = answer.measure(rows_max, rows)?.filter(|&len| len <= WHOLE_BYTES_MAX) else { return Ok(None) };
    let mut parts = answer.take_parts();
    connection.send_unary(caller.stream, len, |out| {
        parts.take(len, rows, out).expect("rows that were just measured are readable");
    });
    Ok(Some(len))
}

fn refuse(mut connection: Connection<'_>, caller: Caller, status: &Status) {
    connection.finish(caller.stream, u32::from(status.code.number()), &status.message);
}

fn respond(mut connection: Connection<'_>, caller: Caller, response: &Response) {
    connection.respond(caller.stream, response);
}
