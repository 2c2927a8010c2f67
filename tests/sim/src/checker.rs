//! The revision witness: decides from revisions alone whether a history is linearizable and durable.
//!
//! Owns: every operation with what was known when it was invoked, the claims of acknowledged writes on revisions, and the
//! reference model that they add up to. Does not know: time, connections, crashes. After each recovery the caller asks
//! for [`Checker::unclaimed`] revisions, reads the store there, and calls [`Checker::settle`].
//!
//! Invariants
//! - I1: an acknowledged write stands exactly once, at the revision it returned, with exactly the model's response.
//! - I2: a failed write stands nowhere; one of unknown outcome at most once; each revision belongs to one write.
//! - I3: an operation returns a revision no lower than any returned to anybody before it was invoked, a write a higher
//!   one; a serializable read no lower than any returned on its connection.
//! - I4: a read equals the model at its revision, and what was read is never lost.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Header, Request, Response};
use crate::model::{KeyValue, Model};

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
    open: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Checker {
    operations: Vec<Operation>,
    model: Model,
    claims: BTreeMap<i64, (OperationId, Response)>,
    unknown: BTreeSet<OperationId>,
    unknown_ever: BTreeSet<OperationId>,
    /// Answers that name no revision of their own: reads, and deletes that found nothing.
    observations: Vec<(OperationId, Response)>,
    highest_returned: i64,
    identity: Option<(u64, u64)>,
    acknowledged: u64,
}

/// The unique value of a put, padded to `len` bytes.
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

    /// Acknowledged writes that the model does not hold yet, with their revisions.
    pub fn claimed_writes(&self) -> impl DoubleEndedIterator<Item = (i64, &Request)> {
        self.claims.iter().map(|(revision, (id, _))| (*revision, &self.operations[*id as usize].request))
    }

    /// The model, for a caller that compares a recovered copy itself.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// A client is about to send `request` on a connection that was given `connection_floor` at most.
    pub fn invoke(&mut self, request: Request, connection_floor: i64) -> OperationId {
        self.operations.push(Operation { request, floor: self.highest_returned, connection_floor, open: true });
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
            Reply::Failed { code, text } => check_failure(operation, code, &text).map_err(|why| self.blame(id, &why)),
            Reply::Answered(response) => {
                self.acknowledged += 1;
                self.handle_answer(id, response).map_err(|why| self.blame(id, &why))
            }
        }
    }

    fn blame(&self, id: OperationId, why: &str) -> String {
        format!("operation {id} {:?}: {why}", brief(&self.operations[id as usize].request))
    }

    fn handle_answer(&mut self, id: OperationId, response: Response) -> Result<(), String> {
        let operation = &self.operations[id as usize];
        let Header { cluster_id, member_id, revision, raft_term } = response.header;
        if *self.identity.get_or_insert((cluster_id, member_id)) != (cluster_id, member_id) || raft_term == 0 {
            return Err(format!("header {:?} after identity {:?}", response.header, self.identity));
        }
        let changes = match &operation.request {
            Request::Put { .. } => true,
            Request::DeleteRange { .. } => response.count > 0,
            Request::Range { .. } => false,
        };
        let floor = match &operation.request {
            Request::Range { serializable: true, .. } => operation.connection_floor,
            _ => operation.floor + i64::from(changes),
        };
        if revision < floor {
            return Err(format!("returned revision {revision}, below {floor}, which was returned before"));
        }
        self.highest_returned = self.highest_returned.max(revision);
        if !changes {
            self.observations.push((id, response));
            return Ok(());
        }
        if revision <= self.model.revision() {
            return Err(format!("claims revision {revision}, but {} was settled", self.model.revision()));
        }
        if let Some((other, _)) = self.claims.insert(revision, (id, response)) {
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
                Some((id, response)) => {
                    self.apply_claim(id, revision, &response).map_err(|why| self.blame(id, &why))?;
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
        for (id, response) in std::mem::take(&mut self.observations) {
            self.check_observation(id, &response).map_err(|why| self.blame(id, &why))?;
        }
        Ok(())
    }

    fn apply_claim(&mut self, id: OperationId, revision: i64, response: &Response) -> Result<(), String> {
        let (previous, wanted) = match &self.operations[id as usize].request {
            Request::Put { key, value, prev_kv } => (self.model.put(key, value).into_iter().collect(), *prev_kv),
            Request::DeleteRange { range, prev_kv } => {
                let deleted = self.model.delete_range(range);
                if response.count != deleted.len() as i64 {
                    return Err(format!("deleted {} at {revision}, the model {}", response.count, deleted.len()));
                }
                (deleted, *prev_kv)
            }
            Request::Range { .. } => unreachable!("only writes claim revisions"),
        };
        let expected: Vec<KeyValue> = if wanted { previous } else { Vec::new() };
        if response.kvs != expected {
            return Err(format!("prev_kv at {revision}: {}", difference(&response.kvs, &expected)));
        }
        Ok(())
    }

    /// Finds the write of unknown outcome that made `revision`, and applies it.
    fn apply_unclaimed(
        &mut self,
        revision: i64,
        state: &[KeyValue],
        deletes: &mut Vec<(i64, Vec<OperationId>)>,
    ) -> Result<(), String> {
        if let Some(pair) = state.iter().find(|pair| pair.mod_revision == revision) {
            let id = operation_of(&pair.value).filter(|id| *id < self.next_operation());
            let id = id.ok_or_else(|| format!("revision {revision} holds a value that nobody wrote"))?;
            let Operation { request: Request::Put { key, value, .. }, floor, .. } = &self.operations[id as usize]
            else {
                return Err(self.blame(id, "is no put, but its number is in a value"));
            };
            if *key != pair.key || *value != pair.value {
                return Err(self.blame(id, &format!("stands at revision {revision} with another key or value")));
            }
            if !self.unknown.remove(&id) {
                let why = if self.unknown_ever.contains(&id) {
                    "a second time or after it was settled"
                } else {
                    "as if unknown"
                };
                return Err(self.blame(id, &format!("stands at revision {revision} {why}")));
            }
            if revision <= *floor {
                return Err(
                    self.blame(id, &format!("stands at {revision}, though {floor} was returned before it began"))
                );
            }
            self.model.put(key, value);
            return Ok(());
        }
        let everything = crate::model::KeyRange::everything();
        let before = self.model.range(&everything, revision - 1);
        let gone: Vec<&KeyValue> =
            before.into_iter().filter(|pair| state.iter().all(|left| left.key != pair.key)).collect();
        let mut candidates = Vec::new();
        for id in &self.unknown {
            let operation = &self.operations[*id as usize];
            if let Request::DeleteRange { range, .. } = &operation.request
                && operation.floor < revision
                && self.model.range(range, revision - 1) == gone
            {
                candidates.push(*id);
            }
        }
        let Some(first) = candidates.first().filter(|_| !gone.is_empty()) else {
            return Err(format!("revision {revision} is nobody's: {} keys vanished", gone.len()));
        };
        let Request::DeleteRange { range, .. } = self.operations[*first as usize].request.clone() else {
            unreachable!("chosen above")
        };
        self.model.delete_range(&range);
        deletes.push((revision, candidates));
        Ok(())
    }

    fn check_observation(&self, id: OperationId, response: &Response) -> Result<(), String> {
        let at_header = response.header.revision;
        match &self.operations[id as usize].request {
            Request::Put { .. } => unreachable!("a put claims a revision"),
            Request::DeleteRange { range, .. } => match self.model.range(range, at_header).len() {
                0 if response.kvs.is_empty() => Ok(()),
                count => Err(format!("deleted nothing at {at_header}, where the model has {count}")),
            },
            Request::Range { range, limit, revision, keys_only, count_only, .. } => {
                let at = if *revision > 0 { *revision } else { at_header };
                if at > at_header {
                    return Err(format!("read the future revision {at} at {at_header}"));
                }
                let mut expected: Vec<KeyValue> = self.model.range(range, at).into_iter().cloned().collect();
                let count = expected.len() as i64;
                let kept = if *count_only {
                    0
                } else if *limit > 0 {
                    count.min(*limit)
                } else {
                    count
                };
                expected.truncate(kept as usize);
                if *keys_only {
                    expected.iter_mut().for_each(|pair| pair.value.clear());
                }
                let more = !count_only && kept < count;
                if response.count != count || response.more != more {
                    let (seen, more_seen) = (response.count, response.more);
                    return Err(format!("count {seen}, more {more_seen} at {at}; the model: {count}, {more}"));
                }
                if response.kvs != expected {
                    return Err(format!("read at {at}: {}", difference(&response.kvs, &expected)));
                }
                Ok(())
            }
        }
    }
}

/// Judges an error that is said to have had no effect.
fn check_failure(operation: &Operation, code: u32, text: &str) -> Result<(), String> {
    let expected = match &operation.request {
        Request::Put { key, .. } => key.is_empty() && code == 3 && text == "etcdserver: key is not provided",
        Request::DeleteRange { range, .. } => {
            range.key.is_empty() && code == 3 && text == "etcdserver: key is not provided"
        }
        Request::Range { revision, .. } => {
            let future = "etcdserver: mvcc: required revision is a future revision";
            *revision > operation.floor && code == 11 && text == future
        }
    };
    if expected { Ok(()) } else { Err(format!("failed with code {code}: {text}")) }
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

/// A request without its padding.
fn brief(request: &Request) -> String {
    match request {
        Request::Put { key, value, .. } => {
            let key = String::from_utf8_lossy(key);
            format!("put {key} = {} ({} bytes)", String::from_utf8_lossy(&value[..value.len().min(11)]), value.len())
        }
        other => format!("{other:?}"),
    }
}
