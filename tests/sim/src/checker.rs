//! The revision witness: decides from revisions alone whether a history is linearizable and durable.
//!
//! Owns: every operation with what was known when it was invoked, the claims of acknowledged writes on revisions, and
//! the reference model that they add up to. Does not know: connections, crashes. After each recovery the caller asks
//! for [`Checker::unclaimed`] revisions, reads the store there, and calls [`Checker::settle`].
//!
//! Invariants
//! - I1: an acknowledged write stands exactly once, at the revision it returned, with exactly the model's response.
//! - I2: a failed write stands nowhere; one of unknown outcome at most once; each revision belongs to one write.
//! - I3: an operation returns a revision no lower than any returned to anybody before it was invoked, a write a higher
//!   one; a serializable read no lower than any returned on its connection.
//! - I4: a read equals the model at its revision, and what was read is never lost.
//! - I5: once a compaction was acknowledged, no read shows anything older; without one that was asked for, none is
//!   refused.
//! - I6: a refusal names the fault that the arguments have, or one that the state had at some revision between those
//!   known before the request and those made by writes begun after the refusal.
//! - I7: a lease ends when it is revoked or its time is over, and all its keys go with it at one revision, which no
//!   client's write claims (`leases`).

use std::collections::{BTreeMap, BTreeSet};

use crate::alarms::Alarms;
use crate::arguments;
use crate::history::{Answer, Fault, Request, Response};
use crate::leases::Leases;
use crate::model::{Changes, KeyValue, Model};
use crate::settle;
use crate::value::OperationId;
use crate::wgl::Audit;

/// What an envelope adds to a message at most before its size is compared with the limit.
const ENVELOPE_BYTES_MAX: usize = 64;

/// A refusal of what would take more memory than there is for answers.
const OVERLOADED: (u32, &str) = (2, "etcdserver: too many requests");

/// How a call ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Reply {
    /// Status OK.
    Answered(Response),
    /// Certainly without effect: gRPC code and text.
    Failed { code: u32, text: String },
    /// The server never looked at it: certainly without effect.
    Refused,
    /// Nobody told.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) request: Request,
    /// The highest revision that anybody had been given.
    pub(crate) floor: i64,
    /// The same for its connection.
    pub(crate) connection_floor: i64,
    /// The highest compaction that was acknowledged.
    pub(crate) compacted_floor: i64,
    /// The highest compaction that was asked for.
    asked_before: i64,
    /// What is wrong with its arguments.
    fault: Option<Fault>,
    message_bytes: usize,
    invoked_at: u64,
    open: bool,
}

/// A refusal that depends on the state.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) id: OperationId,
    pub(crate) fault: Fault,
    /// Operations from this one on were begun after it.
    pub(crate) next: OperationId,
    /// The highest compaction asked for when it arrived.
    pub(crate) asked: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Checker {
    pub(crate) operations: Vec<Operation>,
    pub(crate) model: Model,
    pub(crate) claims: BTreeMap<i64, (OperationId, Answer)>,
    pub(crate) unknown: BTreeSet<OperationId>,
    /// Revisions that several writes may have made, by different ways to the same state.
    pub(crate) ambiguous: BTreeMap<i64, Vec<Changes>>,
    /// Answers that name no revision of their own: reads, and deletes that found nothing.
    pub(crate) observations: Vec<(OperationId, Answer)>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) alarms: Alarms,
    pub(crate) leases: Leases,
    pub(crate) audit: Audit,
    pub(crate) highest_returned: i64,
    /// When revisions were first shown, in order of both.
    pub(crate) shown: Vec<(i64, u64)>,
    /// Revisions that were the newest some time after this one.
    pub(crate) newest_after: Vec<(i64, u64)>,
    /// All revisions up to here are claimed or settled.
    contiguous: i64,
    /// Highest compactions that were asked for, and acknowledged.
    pub(crate) compaction_asked: i64,
    compaction_acknowledged: i64,
    identity: Option<(u64, u64)>,
    acknowledged: u64,
    request_bytes_max: usize,
    may_be_overloaded: bool,
    pub(crate) covered: Vec<&'static str>,
}

impl Checker {
    /// A checker of a server that takes requests of so many bytes, that has a quota which may be used up or not, and
    /// that has this election timeout.
    #[must_use]
    pub fn new(request_bytes_max: usize, has_quota: bool, election_timeout: u64) -> Self {
        Self {
            alarms: Alarms::new(has_quota),
            leases: Leases::new(election_timeout),
            request_bytes_max,
            compaction_asked: -1,
            compaction_acknowledged: -1,
            contiguous: 1,
            ..Self::default()
        }
    }

    /// The number that the next operation will have.
    #[must_use]
    pub fn next_operation(&self) -> OperationId {
        self.operations.len() as OperationId
    }

    /// Operations answered with OK.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The highest revision any client was given.
    #[must_use]
    pub fn highest_returned(&self) -> i64 {
        self.highest_returned
    }

    /// The revision up to which it is known who made each: up to there a compaction leaves no riddle.
    #[must_use]
    pub fn contiguous_revision(&self) -> i64 {
        self.contiguous
    }

    /// The highest compaction that was asked for: everything from there on must be readable.
    #[must_use]
    pub fn compaction_asked(&self) -> i64 {
        self.compaction_asked
    }

    /// The highest compaction that was acknowledged: nothing older is shown any more.
    #[must_use]
    pub fn compaction_acknowledged(&self) -> i64 {
        self.compaction_acknowledged
    }

    /// Somebody was shown this revision by other means than an answer: it is never lost, nor is anything older shown to
    /// those who ask from now on.
    pub fn show(&mut self, revision: i64, now: u64) {
        if revision > self.highest_returned {
            self.highest_returned = revision;
            self.shown.push((revision, now));
        }
    }

    /// A life of the server begins at this time.
    pub fn begin_life(&mut self, now: u64) {
        self.leases.begin_life(now);
    }

    /// It has ended.
    pub fn end_life(&mut self, now: u64) {
        self.leases.end_life(now);
    }

    /// It is `now`, and all in all the server could not run for so long.
    pub fn set_time(&mut self, now: u64, lost: u64) {
        self.leases.set_time(now, lost);
    }

    /// The server did not run for so long from this time on.
    pub fn note_pause(&mut self, began: u64, length: u64) {
        self.leases.note_pause(began, length);
    }

    /// The lease that ends next, as far as is known, or is about to.
    #[must_use]
    pub fn lease_next_to_end(&self) -> Option<i64> {
        self.leases.next_to_end()
    }

    /// From now on until the settlement nobody asks but the auditor, who asks for all leases too.
    pub fn begin_audit_of_leases(&mut self) {
        self.leases.begin_audit();
    }

    /// Leases that somebody may take to be alive.
    #[must_use]
    pub fn leases_alive(&self) -> &BTreeSet<i64> {
        self.leases.alive()
    }

    /// When all leases are over that are over within `length`, if there are any and nothing keeps them.
    #[must_use]
    pub fn leases_run_out_by(&self, now: u64, length: u64) -> Option<u64> {
        self.leases.run_out_by(now, length).filter(|_| !self.alarms.may_be_corrupt())
    }

    /// Leases that should be over by now.
    #[must_use]
    pub fn leases_overdue(&self, now: u64) -> usize {
        self.leases.overdue(now)
    }

    /// Whether an alarm may keep leases from ending.
    #[must_use]
    pub fn may_keep_leases(&self) -> bool {
        self.alarms.may_be_corrupt()
    }

    /// Between which times a revision was made: after it was not there yet, and before it was shown.
    pub(crate) fn times_of(&self, revision: i64, now: u64) -> (u64, u64) {
        let below = self.newest_after.iter().filter(|(newest, _)| *newest < revision);
        let from = below.map(|(_, invoked_at)| *invoked_at).max().unwrap_or(0);
        let shown = self.shown.partition_point(|(shown, _)| *shown < revision);
        (from, self.shown.get(shown).map_or(now, |(_, at)| *at))
    }

    /// The answering member, once somebody was answered.
    #[must_use]
    pub fn member(&self) -> u64 {
        self.identity.map_or(0, |(_, member)| member)
    }

    /// The reference model, up to the last settlement.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// All revisions that several writes may have made: what each would have changed, step by step. Watchers of a later
    /// life may still be shown them.
    #[must_use]
    pub fn ambiguous(&self) -> &BTreeMap<i64, Vec<Changes>> {
        &self.ambiguous
    }

    /// From now on the server may find the disk full.
    pub fn expect_no_space(&mut self) {
        self.alarms.expect_no_space();
    }

    /// The server has little memory for long answers: it may refuse requests on that account.
    pub fn expect_overload(&mut self) {
        self.may_be_overloaded = true;
    }

    /// Judges what happens to a key by an independent search too.
    pub fn watch(&mut self, key: Vec<u8>) {
        self.audit.watch(key);
    }

    /// Windows that the independent search judged.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.audit.windows
    }

    /// Things worth counting since the last call.
    pub fn take_covered(&mut self) -> Vec<&'static str> {
        let mut covered = std::mem::take(&mut self.covered);
        covered.append(&mut self.leases.take_covered());
        covered
    }

    /// A client is about to send `request` on a connection that was given `connection_floor` at most, at time `now`.
    pub fn invoke(&mut self, request: Request, message_bytes: usize, connection_floor: i64, now: u64) -> OperationId {
        if let Request::Compact { revision, .. } = &request
            && *revision < FAR_FUTURE
        {
            assert!(*revision <= self.contiguous, "revisions above must stay readable until they are settled");
            self.compaction_asked = self.compaction_asked.max(*revision);
        }
        let id = self.next_operation();
        self.alarms.invoke(id, &request);
        self.leases.invoke(&request);
        self.audit.invoke(id, &request, now);
        self.operations.push(Operation {
            floor: self.highest_returned,
            connection_floor,
            compacted_floor: self.compaction_acknowledged,
            asked_before: self.compaction_asked,
            fault: arguments::fault(&request),
            message_bytes,
            invoked_at: now,
            open: true,
            request,
        });
        id
    }

    /// The request of an operation.
    #[must_use]
    pub fn request(&self, id: OperationId) -> &Request {
        &self.operations[id as usize].request
    }

    /// A call ended.
    ///
    /// # Errors
    /// The answer is wrong whatever else happened; the text says why.
    pub fn complete(&mut self, id: OperationId, reply: Reply, now: u64) -> Result<(), String> {
        let operation = &mut self.operations[id as usize];
        assert!(operation.open, "an operation ends once");
        operation.open = false;
        self.alarms.complete(id, &operation.request, &reply).map_err(|why| self.blame(id, &why))?;
        self.complete_about_leases(id, &reply, now).map_err(|why| self.blame(id, &why))?;
        match reply {
            Reply::Unknown => {
                if self.request(id).is_write() {
                    self.unknown.insert(id);
                }
                Ok(())
            }
            Reply::Refused => {
                self.audit.drop_failed(id);
                Ok(())
            }
            Reply::Failed { code, text } => {
                self.audit.drop_failed(id);
                self.handle_failure(id, code, &text).map_err(|why| self.blame(id, &why))
            }
            Reply::Answered(response) => {
                self.acknowledged += 1;
                self.audit.complete(id, &self.operations[id as usize].request, &response.answer, now);
                self.handle_answer(id, response, now).map_err(|why| self.blame(id, &why))
            }
        }
    }

    fn complete_about_leases(&mut self, id: OperationId, reply: &Reply, now: u64) -> Result<(), String> {
        let Operation { request, invoked_at, .. } = &self.operations[id as usize];
        let may_be_stuck = self.alarms.may_be_corrupt();
        self.leases.complete(request, reply, (*invoked_at, now), may_be_stuck)
    }

    pub(crate) fn blame(&self, id: OperationId, why: &str) -> String {
        format!("operation {id}, {:?}: {why}", self.operations[id as usize].request)
    }

    /// Judges a refusal, as far as that does not need the state.
    fn handle_failure(&mut self, id: OperationId, code: u32, text: &str) -> Result<(), String> {
        let operation = &self.operations[id as usize];
        let failed = || format!("failed with code {code}: {text}");
        if (code, text) == OVERLOADED && self.may_be_overloaded {
            self.covered.push(OVERLOADED.1);
            return Ok(());
        }
        let fault = Fault::ALL.into_iter().find(|fault| (fault.code, fault.text) == (code, text));
        let Some(fault) = fault else {
            // What this version does not serve yet is refused as a whole.
            let is_extra = matches!(operation.request, Request::Hash | Request::HashKv { .. } | Request::Defragment);
            return if code == 12 && is_extra { Ok(()) } else { Err(failed()) };
        };
        self.covered.push(fault.text);
        match fault {
            // Whether the quota is used up is looked at before the arguments are, and nobody else knows.
            Fault::NO_SPACE | Fault::CORRUPT => {
                return if self.alarms.may_refuse(&operation.request, fault) { Ok(()) } else { Err(failed()) };
            }
            _ if operation.fault.is_some() => {
                let expected = operation.fault == Some(fault);
                return if expected { Ok(()) } else { Err(format!("{}, not {:?}", failed(), operation.fault)) };
            }
            Fault::TOO_LARGE => {
                let may = operation.message_bytes + ENVELOPE_BYTES_MAX > self.request_bytes_max;
                return if may && !operation.request.is_read() { Ok(()) } else { Err(failed()) };
            }
            // Leases have no revisions: what was seen of them is judged apart.
            Fault::LEASE_EXISTS if matches!(operation.request, Request::LeaseGrant { .. }) => return Ok(()),
            Fault::LEASE_NOT_FOUND if matches!(operation.request, Request::LeaseRevoke { .. }) => return Ok(()),
            Fault::COMPACTED | Fault::FUTURE | Fault::KEY_NOT_FOUND | Fault::LEASE_NOT_FOUND => {}
            _ => return Err(failed()),
        }
        self.refusals.push(Refusal { id, fault, next: self.next_operation(), asked: self.compaction_asked });
        Ok(())
    }

    fn handle_answer(&mut self, id: OperationId, response: Response, now: u64) -> Result<(), String> {
        let operation = &self.operations[id as usize];
        if let Some(fault) = operation.fault {
            return Err(format!("answered, though {}", fault.text));
        }
        if operation.message_bytes > self.request_bytes_max && !operation.request.is_read() {
            return Err(format!("answered, though its message has {} bytes", operation.message_bytes));
        }
        let Response { cluster_id, member_id, raft_term, answer } = response;
        if matches!(operation.request, Request::Defragment) {
            return Ok(());
        }
        if *self.identity.get_or_insert((cluster_id, member_id)) != (cluster_id, member_id) || raft_term == 0 {
            return Err(format!(
                "cluster {cluster_id}, member {member_id}, term {raft_term}; before: {:?}",
                self.identity
            ));
        }
        if matches!(operation.request, Request::MemberList { .. }) {
            // Its header has no revision.
            return if answer.revision == 0 { Ok(()) } else { Err(format!("revision {}", answer.revision)) };
        }
        self.check_floors(id, &answer)?;
        let operation = &self.operations[id as usize];
        if let Request::Compact { revision, .. } = &operation.request {
            self.compaction_acknowledged = self.compaction_acknowledged.max(*revision);
        }
        if !operation.request.is_serializable() {
            self.newest_after
                .push((answer.revision - i64::from(operation.request.has_changed(&answer)), operation.invoked_at));
        }
        self.show(answer.revision, now);
        let operation = &self.operations[id as usize];
        if operation.request.has_changed(&answer) { self.claim(id, answer) } else { self.observe(id, answer) }
    }

    /// What was known before the request must show in its answer.
    fn check_floors(&mut self, id: OperationId, answer: &Answer) -> Result<(), String> {
        let operation = &self.operations[id as usize];
        let changes = operation.request.has_changed(answer);
        let floor = match &operation.request {
            request if request.is_serializable() => operation.connection_floor,
            _ => operation.floor + i64::from(changes),
        };
        let revision = answer.revision;
        if revision < floor {
            return Err(format!("returned revision {revision}, below {floor}, which was returned before"));
        }
        let mut oldest_read = i64::MAX;
        operation.request.history_read(answer, &mut |at| oldest_read = oldest_read.min(at));
        if oldest_read < operation.compacted_floor {
            return Err(format!("read revision {oldest_read}, though {} was compacted", operation.compacted_floor));
        }
        if oldest_read < i64::MAX && operation.asked_before < self.compaction_asked {
            self.covered.push("(compaction during a read)");
        }
        match &operation.request {
            Request::Compact { revision: asked, .. } if *asked <= operation.compacted_floor || *asked > revision => {
                let compacted = operation.compacted_floor;
                Err(format!("compacted at {revision}, where {compacted} was compacted"))
            }
            _ => Ok(()),
        }
    }

    fn observe(&mut self, id: OperationId, answer: Answer) -> Result<(), String> {
        self.observations.push((id, answer));
        Ok(())
    }

    fn claim(&mut self, id: OperationId, answer: Answer) -> Result<(), String> {
        let revision = answer.revision;
        if revision <= self.model.revision() {
            return Err(format!("claims revision {revision}, but {} was settled", self.model.revision()));
        }
        if let Some((other, _)) = self.claims.insert(revision, (id, answer)) {
            return Err(format!("claims revision {revision}, which operation {other} has"));
        }
        while self.claims.contains_key(&(self.contiguous + 1)) {
            self.contiguous += 1;
        }
        Ok(())
    }

    /// Revisions up to `newest` that no acknowledged write claims: the caller reads the whole store at each.
    #[must_use]
    pub fn unclaimed(&self, newest: i64) -> Vec<i64> {
        (self.model.revision() + 1..=newest).filter(|revision| !self.claims.contains_key(revision)).collect()
    }

    /// Extends the model to `newest`, the revision of a recovered store that nobody writes to, and judges all answers
    /// since the last call. `states` holds the whole store at each unclaimed revision.
    ///
    /// # Errors
    /// The history is not that of a correct server; the text says why.
    pub fn settle(&mut self, newest: i64, states: &BTreeMap<i64, Vec<KeyValue>>, now: u64) -> Result<(), String> {
        assert!(self.operations.iter().rev().take(4_096).all(|operation| !operation.open), "settling needs quiet");
        let judged = settle::settle(self, newest, states, now);
        self.contiguous = newest;
        self.shown.clear();
        self.newest_after.clear();
        judged
    }
}

/// Compactions at or beyond this are certain to be refused.
pub const FAR_FUTURE: i64 = 1 << 40;
