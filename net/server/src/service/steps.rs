//! The steps of long work: what each stage of a job does with its slice of a turn.
//!
//! Owns: the stages' order, their errors, and the choice between an answer in one step and a job. Does not know: the
//! turn.

use trilith_engine::budget::{Budget, Pause};
use trilith_engine::mvcc::{HashCursor, RowList, TxnRange};
use trilith_engine::page_source::{PageSource, Unavailable};
use trilith_wire::api::status::{self, Status};
use trilith_wire::connection::limits::STREAM_BACKLOG_LOW_BYTES;
use trilith_wire::proto::{Message, etcdserverpb as pb};

use super::jobs::{AGE_MAX, Job, MESSAGE_BYTES_MAX, PART_BYTES, RangeStream, Wait, Work};
use super::{KeyspaceRows, Service, decode, refuse, send, try_whole};
use crate::api::parts::Answer;
use crate::api::response::Rows as _;
use crate::api::{self, request, response};
use crate::clients::{Caller, Clients};
use crate::metrics::StepKind;

const _: () = assert!(PART_BYTES >= STREAM_BACKLOG_LOW_BYTES, "one part fills a stream far enough to be called back");

/// Rows of an answer that are measured in the step that made it.
const ROWS_WHOLE_MAX: usize = 256;
/// Work units of one row measured.
const UNITS_PER_ROW: u32 = 8;
/// Work units of one part sent: copying, and the lookup of its rows.
const UNITS_PER_PART: u32 = 1500;

/// What a step of long work did.
#[derive(Debug)]
pub struct JobStep {
    /// Under which name it is timed.
    pub kind: StepKind,
    /// A page it lacks; after it is loaded: [`Service::handle_loaded`].
    pub missing: Option<Unavailable>,
}

/// Where a job stands after a step.
pub(super) enum Next {
    Goes(Wait),
    /// It goes on as other work.
    Becomes(Box<Work>),
    Ends,
    Fails(Status),
}

impl Service {
    /// Steps the job whose turn it is; `None` if none could do anything now.
    pub fn step_job(
        &mut self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        now: u64,
    ) -> Option<JobStep> {
        let mut job = self.jobs.take()?;
        let (kind, mut missing) = (job.work.kind(), None);
        let next = match self.advance(clients, pages, budget, &mut job, now) {
            Ok(next) => next,
            Err(Pause::Budget) => Next::Goes(Wait::Turn),
            Err(Pause::Pages(unavailable)) => {
                missing = Some(unavailable);
                Next::Goes(Wait::Page(unavailable.block()))
            }
        };
        match next {
            Next::Goes(wait) => self.jobs.push(job, wait),
            Next::Becomes(work) => self.jobs.push(Job { work: *work, ..job }, Wait::Turn),
            Next::Ends => self.end_job(job),
            Next::Fails(status) => {
                if let Some(connection) = clients.answer(job.caller) {
                    refuse(connection, job.caller, &status);
                }
                self.end_job(job);
            }
        }
        Some(JobStep { kind, missing })
    }

    /// Whether a job could go on at once.
    #[must_use]
    pub fn has_ready_job(&self) -> bool {
        self.jobs.has_ready()
    }

    fn end_job(&mut self, job: Job) {
        if let Some(pin) = job.pin {
            self.replica.unpin(pin);
        }
    }

    fn advance(
        &mut self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        job: &mut Job,
        now: u64,
    ) -> Result<Next, Pause> {
        if clients.answer(job.caller).is_none_or(|connection| !connection.is_open(job.caller.stream)) {
            return Ok(Next::Ends);
        }
        if now.saturating_sub(job.started) > AGE_MAX {
            return Ok(Next::Fails(status::CONTEXT_DEADLINE_EXCEEDED));
        }
        let holds_too_much = self.jobs.is_too_much(job.work.rows());
        match &mut job.work {
            Work::Leases(_) | Work::LeaseKeys { .. } if holds_too_much => Ok(Next::Fails(status::TOO_MANY_REQUESTS)),
            Work::Leases(list) => self.list_leases(budget, list).map(|work| Next::Becomes(Box::new(work))),
            Work::LeaseKeys { id, from, encoded } => self.list_lease_keys(pages, budget, (*id, from, encoded), now),
            Work::SendBytes { .. } => Ok(self.send_bytes(clients, budget, job)),
            Work::Range { .. } | Work::Txn { .. } => self.evaluate(pages, budget, job),
            Work::Measure(_) => self.measure(clients, pages, budget, job),
            Work::Send(_) => self.send_part(clients, pages, budget, job),
            Work::Stream(_) => self.send_chunk(clients, pages, budget, job),
            Work::Hash { .. } => self.hash(clients, pages, budget, job),
            Work::Defragment { ticket } => {
                if !self.replica.is_defragmented(*ticket) {
                    return Ok(Next::Goes(Wait::Store));
                }
                let connection = clients.answer(job.caller).expect("present above");
                send(connection, job.caller, &pb::DefragmentResponse { header: None });
                Ok(Next::Ends)
            }
            Work::Compact { revision, outcome } => {
                if !self.replica.is_reclaimed(*revision) {
                    return Ok(Next::Goes(Wait::Store));
                }
                let revision = match outcome {
                    Ok(revision) => *revision,
                    Err(status) => return Ok(Next::Fails(status.clone())),
                };
                let connection = clients.answer(job.caller).expect("present above");
                send(connection, job.caller, &pb::CompactionResponse { header: Some(self.header(revision)) });
                Ok(Next::Ends)
            }
        }
    }

    fn evaluate(&self, pages: &dyn PageSource, budget: &mut Budget, job: &mut Job) -> Result<Next, Pause> {
        if self.jobs.is_too_much(job.work.rows()) {
            return Ok(Next::Fails(status::TOO_MANY_REQUESTS));
        }
        match &mut job.work {
            Work::Range { message, cursor, streams } => {
                let request = decode::<pb::RangeRequest<'_>>(message).expect("decoded when it arrived");
                let (query, read_at) = (request::range(&request), cursor.revision());
                let list = self.replica.keyspace().range_step(&query, cursor, budget, pages, &mut |_| {})?;
                let RowList { rows, count, more, shape, revision, .. } = list;
                let range = TxnRange { revision, rows, count, more, shape };
                job.work = if *streams {
                    Work::Stream(RangeStream::new(range, read_at))
                } else {
                    Work::Measure(Answer::range(self.header(range.revision), range))
                };
            }
            Work::Txn { message, cursor } => {
                let request = decode::<pb::TxnRequest<'_>>(message).expect("decoded when it arrived");
                match self.replica.keyspace().read_txn_step(&request::txn(&request), cursor, budget, pages)? {
                    Ok(outcome) => job.work = Work::Measure(Answer::txn(self.header(outcome.revision), outcome)),
                    Err(error) => return Ok(Next::Fails(api::mvcc_status(error))),
                }
            }
            other => unreachable!("{other:?} is no evaluation"),
        }
        Ok(Next::Goes(Wait::Turn))
    }

    fn measure(
        &self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        job: &mut Job,
    ) -> Result<Next, Pause> {
        let Work::Measure(answer) = &mut job.work else { unreachable!("the caller looked") };
        let rows_max = (budget.left() / UNITS_PER_ROW).max(1);
        budget.spend(rows_max * UNITS_PER_ROW);
        let rows = KeyspaceRows { replica: &self.replica, pages };
        let Some(len) = answer.measure(rows_max as usize, &rows)? else { return Ok(Next::Goes(Wait::Turn)) };
        if len > MESSAGE_BYTES_MAX {
            return Ok(Next::Fails(status::message_too_long_to_send(len, MESSAGE_BYTES_MAX)));
        }
        clients.answer(job.caller).expect("the caller looked").begin_message(job.caller.stream, len);
        job.work = Work::Send(answer.take_parts());
        Ok(Next::Goes(Wait::Turn))
    }

    fn send_part(
        &mut self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        job: &mut Job,
    ) -> Result<Next, Pause> {
        let Work::Send(parts) = &mut job.work else { unreachable!("the caller looked") };
        let (mut connection, stream) = (clients.answer(job.caller).expect("the caller looked"), job.caller.stream);
        if connection.backlog_bytes(stream) > STREAM_BACKLOG_LOW_BYTES {
            return Ok(Next::Goes(Wait::Client));
        }
        self.part.clear();
        let rows = KeyspaceRows { replica: &self.replica, pages };
        let taken = parts.take(PART_BYTES, &rows, &mut self.part);
        budget.spend(UNITS_PER_PART);
        connection.send_part(stream, &self.part);
        taken?;
        if !parts.is_empty() {
            return Ok(Next::Goes(Wait::Turn));
        }
        connection.finish(stream, 0, "");
        Ok(Next::Ends)
    }

    /// Sends the next part of a message that is made; one that is short, at once.
    fn send_bytes(&self, clients: &mut Clients, budget: &mut Budget, job: &mut Job) -> Next {
        let Work::SendBytes { parts: [head, list], sent } = &mut job.work else { unreachable!("the caller looked") };
        let (mut connection, stream) = (clients.answer(job.caller).expect("the caller looked"), job.caller.stream);
        let len = head.len() + list.len();
        let Some(sent) = sent else {
            if len > MESSAGE_BYTES_MAX {
                return Next::Fails(status::message_too_long_to_send(len, MESSAGE_BYTES_MAX));
            }
            connection.begin_message(stream, len);
            connection.send_part(stream, head);
            *sent = Some(0);
            return Next::Goes(Wait::Turn);
        };
        if connection.backlog_bytes(stream) > STREAM_BACKLOG_LOW_BYTES {
            return Next::Goes(Wait::Client);
        }
        let part = &list[*sent..list.len().min(*sent + PART_BYTES)];
        connection.send_part(stream, part);
        *sent += part.len();
        budget.spend(UNITS_PER_PART);
        if *sent < list.len() {
            return Next::Goes(Wait::Turn);
        }
        connection.finish(stream, 0, "");
        Next::Ends
    }

    fn send_chunk(
        &self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        job: &mut Job,
    ) -> Result<Next, Pause> {
        let Work::Stream(chunks) = &mut job.work else { unreachable!("the caller looked") };
        let (mut connection, stream) = (clients.answer(job.caller).expect("the caller looked"), job.caller.stream);
        if connection.backlog_bytes(stream) > STREAM_BACKLOG_LOW_BYTES {
            return Ok(Next::Goes(Wait::Client));
        }
        // etcd reads chunk by chunk, so a compaction ends the stream.
        if chunks.read_at < self.replica.keyspace().state().compacted {
            return Ok(Next::Fails(status::COMPACTED));
        }
        let range = &chunks.range;
        let end = range.rows.len().min(chunks.next.saturating_add(chunks.rows_next));
        let rows = KeyspaceRows { replica: &self.replica, pages };
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        for &at in &range.rows[chunks.next..end] {
            match rows.row(at) {
                Ok(row) => {
                    let kv = response::key_value(&range.shape.show(row));
                    bytes += kv.encoded_len();
                    kvs.push(kv);
                }
                // What is there is sent: the rows of a chunk need not be in memory together.
                Err(_) if !kvs.is_empty() => break,
                Err(unavailable) => return Err(unavailable.into()),
            }
            // Small rows before made the chunks long; large ones must not fill them.
            if bytes >= self.admission.request_bytes_max {
                break;
            }
        }
        let end = chunks.next + kvs.len();
        let is_last = end == range.rows.len();
        let part = if is_last {
            let header = Some(self.header(range.revision));
            pb::RangeResponse { header, kvs, more: range.more, count: range.count }
        } else {
            pb::RangeResponse { kvs, ..pb::RangeResponse::default() }
        };
        let message = pb::RangeStreamResponse { range_response: Some(part) };
        let len = message.encoded_len();
        connection.send_message(stream, len, |out| message.encode_into(out));
        budget.spend(UNITS_PER_PART + u32::try_from(len / 256).unwrap_or(u32::MAX));
        if is_last {
            connection.finish(stream, 0, "");
            return Ok(Next::Ends);
        }
        chunks.next = end;
        chunks.adapt(len, self.admission.request_bytes_max);
        Ok(Next::Goes(Wait::Turn))
    }

    fn hash(
        &self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        job: &mut Job,
    ) -> Result<Next, Pause> {
        let Work::Hash { cursor, is_kv } = &mut job.work else { unreachable!("the caller looked") };
        let hash = self.replica.keyspace().hash_kv_step(cursor, budget, pages)?;
        let (connection, caller) = (clients.answer(job.caller).expect("the caller looked"), job.caller);
        let header = Some(self.header(cursor.published()));
        if *is_kv {
            let (compact_revision, hash_revision) = (cursor.compacted(), cursor.revision());
            send(connection, caller, &pb::HashKVResponse { header, hash, compact_revision, hash_revision });
        } else {
            send(connection, caller, &pb::HashResponse { header, hash });
        }
        Ok(Next::Ends)
    }

    /// Begins a hash.
    pub(super) fn begin_hash(&mut self, caller: Caller, cursor: HashCursor, is_kv: bool, now: u64) {
        self.begin_reading(caller, cursor.revision_held(), Work::Hash { cursor, is_kv }, now);
    }

    /// Answers a compaction once its room is given back.
    pub(super) fn begin_physical(&mut self, caller: Caller, revision: i64, outcome: Result<i64, Status>, now: u64) {
        let work = Work::Compact { revision, outcome };
        self.jobs.push(Job { caller, pin: None, started: now, work }, Wait::Turn);
    }

    /// Begins a job that reads at `revision` and later.
    pub(super) fn begin_reading(&mut self, caller: Caller, revision: i64, work: Work, now: u64) {
        let pin = Some(self.replica.pin_at(revision));
        self.jobs.push(Job { caller, pin, started: now, work }, Wait::Turn);
    }

    /// Sends an applied command's answer, at once if it is short; `before` is the newest revision the command read.
    pub(super) fn answer_applied(
        &mut self,
        clients: &mut Clients,
        caller: Caller,
        mut answer: Answer,
        before: i64,
        pages: &dyn PageSource,
        now: u64,
    ) {
        let rows = KeyspaceRows { replica: &self.replica, pages };
        if let Some(connection) = clients.answer(caller)
            && let Ok(Some(_)) = try_whole(connection, caller, &mut answer, ROWS_WHOLE_MAX, &rows)
        {
            return;
        }
        if self.jobs.is_too_much(answer.rows()) {
            // It is applied, and that cannot be shown: the caller must not take it for refused.
            return self.refuse_caller(clients, caller, &status::TIMEOUT);
        }
        let pin = Some(self.replica.pin_at(before));
        self.jobs.push(Job { caller, pin, started: now, work: Work::Measure(answer) }, Wait::Turn);
    }

    /// The store may have moved on.
    pub fn handle_stored(&mut self) {
        if !self.jobs.has_storing() {
            return;
        }
        let replica = &self.replica;
        self.jobs.handle_stored(|work| match work {
            Work::Defragment { ticket } => replica.is_defragmented(*ticket),
            Work::Compact { revision, .. } => replica.is_reclaimed(*revision),
            _ => true,
        });
    }
}
