//! The revision witness: decides from revisions alone whether a history is linearizable and durable.
//!
//! Owns: every operation with what was known when it was invoked, the claims of acknowledged writes on revisions, and
//! the reference model that they add up to. Does not know: time, connections, crashes. After each recovery the caller
//! asks for [`Checker::unclaimed`] revisions, reads the store there, and calls [`Checker::settle`].
//!
//! Invariants
//! - I1: an acknowledged write stands exactly once, at the revision it returned, with exactly the model's response.
//! - I2: a failed write stands nowhere; one of unknown outcome at most once; each revision belongs to one write.
//! - I3: an operation returns a revision no lower than any returned to anybody before it was invoked, a write a higher
//!   one; a serializable read no lower than any returned on its connection.
//! - I4: a read equals the model at its revision, and what was read is never lost.
//! - I5: once a compaction was acknowledged, no read shows anything older; without one that was asked for, none is
//!   refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, Request, Response};
use crate::model::{KeyRange, KeyValue, Model};

/// Numbers the operations of a run from 0.
pub type OperationId = u64;

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
struct Operation {
    request: Request,
    /// The highest revision that anybody had been given.
    floor: i64,
    /// The same for its connection.
    connection_floor: i64,
    /// The highest compaction that was acknowledged.
    compacted_floor: i64,
    open: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Checker {
    operations: Vec<Operation>,
    model: Model,
    claims: BTreeMap<i64, (OperationId, Answer)>,
    unknown: BTreeSet<OperationId>,
    unknown_ever: BTreeSet<OperationId>,
    /// Answers that name no revision of their own: reads, and deletes that found nothing.
    observations: Vec<(OperationId, Answer)>,
    highest_returned: i64,
    /// Highest compactions that were asked for, and acknowledged.
    compaction_asked: i64,
    compaction_acknowledged: i64,
    identity: Option<(u64, u64)>,
    acknowledged: u64,
}

/// The value of a put, unique to its request, padded to `len` bytes.
#[must_use]
pub fn unique_value(operation: OperationId, len: usize) -> Vec<u8> {
    let mut value = format!("op{operation:08}.").into_bytes();
    while value.len() < len {
        value.push(b'a' + ((operation as usize * 7 + value.len()) % 26) as u8);
    }
    value
}

fn operation_of(value: &[u8]) -> Option<OperationId> {
    std::str::from_utf8(value.get(2..10)?).ok()?.parse().ok()
}

impl Checker {
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

    /// The revision up to which the model is settled.
    #[must_use]
    pub fn settled_revision(&self) -> i64 {
        self.model.revision()
    }

    /// The highest compaction that was asked for: everything from there on must be readable.
    #[must_use]
    pub fn compaction_asked(&self) -> i64 {
        self.compaction_asked
    }

    /// A client is about to send `request` on a connection that was given `connection_floor` at most.
    pub fn invoke(&mut self, request: Request, connection_floor: i64) -> OperationId {
        if let Request::Compact { revision } = &request {
            assert!(*revision <= self.model.revision(), "revisions above must stay readable until they are settled");
            self.compaction_asked = self.compaction_asked.max(*revision);
        }
        self.operations.push(Operation {
            request,
            floor: self.highest_returned,
            connection_floor,
            compacted_floor: self.compaction_acknowledged,
            open: true,
        });
        self.operations.len() as OperationId - 1
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
    pub fn complete(&mut self, id: OperationId, reply: Reply) -> Result<(), String> {
        let operation = &mut self.operations[id as usize];
        assert!(operation.open, "an operation ends once");
        operation.open = false;
        match reply {
            Reply::Unknown => {
                if operation.request.is_write() {
                    self.unknown.insert(id);
                    self.unknown_ever.insert(id);
                }
                Ok(())
            }
            Reply::Refused => Ok(()),
            Reply::Failed { code, text } => {
                let asked = self.compaction_asked;
                check_failure(operation, asked, code, &text).map_err(|why| self.blame(id, &why))
            }
            Reply::Answered(response) => {
                self.acknowledged += 1;
                self.handle_answer(id, response).map_err(|why| self.blame(id, &why))
            }
        }
    }

    fn blame(&self, id: OperationId, why: &str) -> String {
        format!("operation {id}, {:?}: {why}", self.operations[id as usize].request)
    }

    fn handle_answer(&mut self, id: OperationId, response: Response) -> Result<(), String> {
        let operation = &self.operations[id as usize];
        let Response { cluster_id, member_id, raft_term, answer } = response;
        let revision = answer.revision;
        if *self.identity.get_or_insert((cluster_id, member_id)) != (cluster_id, member_id) || raft_term == 0 {
            return Err(format!(
                "cluster {cluster_id}, member {member_id}, term {raft_term}; before: {:?}",
                self.identity
            ));
        }
        let changes = operation.request.has_changed(&answer);
        let floor = match &operation.request {
            request if request.is_serializable() => operation.connection_floor,
            _ => operation.floor + i64::from(changes),
        };
        if revision < floor {
            return Err(format!("returned revision {revision}, below {floor}, which was returned before"));
        }
        match &operation.request {
            Request::Range { revision: at, .. } if *at > 0 && *at < operation.compacted_floor => {
                return Err(format!("read revision {at}, though {} was compacted", operation.compacted_floor));
            }
            Request::Compact { revision } => {
                self.compaction_acknowledged = self.compaction_acknowledged.max(*revision);
            }
            _ => {}
        }
        self.highest_returned = self.highest_returned.max(revision);
        if !changes {
            self.observations.push((id, answer));
            return Ok(());
        }
        if revision <= self.model.revision() {
            return Err(format!("claims revision {revision}, but {} was settled", self.model.revision()));
        }
        if let Some((other, _)) = self.claims.insert(revision, (id, answer)) {
            return Err(format!("claims revision {revision}, which operation {other} has"));
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
    pub fn settle(&mut self, newest: i64, states: &BTreeMap<i64, Vec<KeyValue>>) -> Result<(), String> {
        assert!(self.operations.iter().all(|operation| !operation.open), "settling needs quiet clients");
        if let Some((revision, (id, _))) = self.claims.range(newest + 1..).next() {
            return Err(
                self.blame(*id, &format!("acknowledged at revision {revision} and lost: the store is at {newest}"))
            );
        }
        if self.highest_returned > newest {
            return Err(format!("revision {} was shown and lost: the store is at {newest}", self.highest_returned));
        }
        let mut unclaimed_deletes = Vec::new();
        for revision in self.model.revision() + 1..=newest {
            match self.claims.remove(&revision) {
                Some((id, answer)) => {
                    self.apply_claim(id, &answer).map_err(|why| self.blame(id, &why))?;
                }
                None => {
                    let state = states.get(&revision).ok_or_else(|| format!("revision {revision} was not read"))?;
                    self.apply_unclaimed(revision, state, &mut unclaimed_deletes)?;
                }
            }
        }
        match_deletes(&unclaimed_deletes)?;
        // Whatever did not turn up by now never may.
        self.unknown.clear();
        for (id, answer) in std::mem::take(&mut self.observations) {
            self.check_observation(id, &answer).map_err(|why| self.blame(id, &why))?;
        }
        Ok(())
    }

    fn apply_claim(&mut self, id: OperationId, answer: &Answer) -> Result<(), String> {
        let expected = self.model.apply(&self.operations[id as usize].request);
        compare_answers(answer, &expected)
    }

    /// Finds the write of unknown outcome that made `revision`, and applies it.
    fn apply_unclaimed(
        &mut self,
        revision: i64,
        state: &[KeyValue],
        deletes: &mut Vec<(i64, Vec<OperationId>)>,
    ) -> Result<(), String> {
        if let Some(pair) = state.iter().find(|pair| pair.mod_revision == revision) {
            return self.apply_unclaimed_put(revision, pair);
        }
        let before = self.model.range(&KeyRange::everything(), revision - 1);
        let gone: Vec<&KeyValue> =
            before.into_iter().filter(|pair| state.iter().all(|left| left.key != pair.key)).collect();
        let is_candidate = |id: &&OperationId| {
            let operation = &self.operations[**id as usize];
            operation.floor < revision && self.model.deletions(&operation.request, revision - 1).as_ref() == Some(&gone)
        };
        let candidates: Vec<OperationId> = self.unknown.iter().filter(is_candidate).copied().collect();
        let Some(first) = candidates.first().filter(|_| !gone.is_empty()) else {
            return Err(format!("revision {revision} is nobody's: {} keys vanished", gone.len()));
        };
        self.model.apply(&self.operations[*first as usize].request);
        deletes.push((revision, candidates));
        Ok(())
    }

    /// `pair` was put at `revision`; its value names the request.
    fn apply_unclaimed_put(&mut self, revision: i64, pair: &KeyValue) -> Result<(), String> {
        let id = operation_of(&pair.value).filter(|id| *id < self.next_operation());
        let id = id.ok_or_else(|| format!("revision {revision} holds a value that nobody wrote"))?;
        let Operation { request, floor, .. } = &self.operations[id as usize];
        if !self.unknown.remove(&id) {
            let again = self.unknown_ever.contains(&id);
            let why = if again { "a second time or after it was settled" } else { "as if unknown" };
            return Err(self.blame(id, &format!("stands at revision {revision} {why}")));
        }
        if revision <= *floor {
            return Err(self.blame(id, &format!("stands at {revision}, though {floor} was returned before it began")));
        }
        let reached = self.model.apply(request).revision;
        let found = self.model.range(&KeyRange::single(pair.key.clone()), revision);
        if reached != revision || found != [pair] {
            return Err(self.blame(id, &format!("cannot have made what stands at revision {revision}: {pair:?}")));
        }
        Ok(())
    }

    fn check_observation(&self, id: OperationId, answer: &Answer) -> Result<(), String> {
        let at = answer.revision;
        let request = &self.operations[id as usize].request;
        if let Request::Range { revision, .. } = request
            && *revision > at
        {
            return Err(format!("read the future revision {revision} at {at}"));
        }
        match self.model.observe(request, at) {
            Some(expected) => compare_answers(answer, &expected),
            None => Err(format!("changed nothing at {at}, where the model would have changed something")),
        }
    }
}

/// Judges an error that is said to have had no effect. `compaction_asked`: the highest one ever asked for.
fn check_failure(operation: &Operation, compaction_asked: i64, code: u32, text: &str) -> Result<(), String> {
    let no_key = code == 3 && text == "etcdserver: key is not provided";
    let future = code == 11 && text == "etcdserver: mvcc: required revision is a future revision";
    let compacted = code == 11 && text == "etcdserver: mvcc: required revision has been compacted";
    let expected = match &operation.request {
        Request::Put { key, .. } => no_key && key.is_empty(),
        Request::Range { revision, .. } => {
            future && *revision > operation.floor || compacted && *revision > 0 && *revision < compaction_asked
        }
        Request::Compact { revision } => compacted && *revision <= compaction_asked,
        Request::DeleteRange { .. } | Request::Txn { .. } => false,
    };
    if expected { Ok(()) } else { Err(format!("failed with code {code}: {text}")) }
}

/// Says where an answer differs from the model's.
fn compare_answers(answer: &Answer, expected: &Answer) -> Result<(), String> {
    let facts = |answer: &Answer| {
        let Answer { revision, count, more, succeeded, inner, .. } = answer;
        format!("revision {revision}, count {count}, more {more}, succeeded {succeeded}, {} inner", inner.len())
    };
    if facts(answer) != facts(expected) {
        return Err(format!("{}; the model: {}", facts(answer), facts(expected)));
    }
    if answer.kvs != expected.kvs {
        return Err(format!("pairs at {}: {}", answer.revision, difference(&answer.kvs, &expected.kvs)));
    }
    for (position, (inner, expected)) in answer.inner.iter().zip(&expected.inner).enumerate() {
        compare_answers(inner, expected).map_err(|why| format!("operation {position} of it: {why}"))?;
    }
    Ok(())
}

/// Gives every revision a delete of its own among its candidates (augmenting paths in a bipartite graph).
fn match_deletes(deletes: &[(i64, Vec<OperationId>)]) -> Result<(), String> {
    fn assign(
        position: usize,
        deletes: &[(i64, Vec<OperationId>)],
        owner: &mut BTreeMap<OperationId, usize>,
        tried: &mut BTreeSet<OperationId>,
    ) -> bool {
        for id in &deletes[position].1 {
            if tried.insert(*id) && owner.get(id).copied().is_none_or(|other| assign(other, deletes, owner, tried)) {
                owner.insert(*id, position);
                return true;
            }
        }
        false
    }
    let mut owner = BTreeMap::new();
    for position in 0..deletes.len() {
        if !assign(position, deletes, &mut owner, &mut BTreeSet::new()) {
            return Err(format!("revision {}: a delete stands more often than it was asked for", deletes[position].0));
        }
    }
    Ok(())
}

fn difference(seen: &[KeyValue], expected: &[KeyValue]) -> String {
    let position = seen.iter().zip(expected).position(|(left, right)| left != right);
    let position = position.unwrap_or_else(|| seen.len().min(expected.len()));
    let show = |pairs: &[KeyValue]| {
        pairs.get(position).map_or_else(
            || "nothing".to_owned(),
            |pair| {
                let key = String::from_utf8_lossy(&pair.key).into_owned();
                let value = String::from_utf8_lossy(&pair.value[..pair.value.len().min(12)]).into_owned();
                let KeyValue { create_revision, mod_revision, version, lease, .. } = pair;
                format!("{key}={value} create {create_revision} mod {mod_revision} version {version} lease {lease}")
            },
        )
    };
    format!(
        "{} pairs, the model {}; first difference at {position}: {}; the model: {}",
        seen.len(),
        expected.len(),
        show(seen),
        show(expected)
    )
}
