//! What the requests of an epoch amount to, one after the other, and the comparison with what a member answers.
//!
//! Owns: the plain model of keys, revisions, compaction and the alarm; the reading of everything. Does not know: media.
//!
//! Invariants
//! - I1: requests of the one connection take effect in the order in which they were sent, so a member's state is that
//!   after some number of them, and nothing else.
//! - I2: reading everything touches every row at every revision from the compacted one on.

use std::collections::BTreeMap;
use std::rc::Rc;

use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::mvccpb::KeyValue;

use crate::member::{Ended, Member, Reply};
use crate::request::{Change, Request, decode, encode_alarms, encode_reads, everything, key_text};

/// Reads in one transaction.
const READS_MAX: usize = 128;
/// gRPC's OUT_OF_RANGE, the status of a compacted revision and of one to come.
const OUT_OF_RANGE: u32 = 11;

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    value: Vec<u8>,
    created: i64,
    modified: i64,
    version: i64,
}

type Snapshot = BTreeMap<Rc<Vec<u8>>, Rc<Row>>;

/// What stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The newest revision.
    pub revision: i64,
    /// The compacted revision; reads below it fail.
    pub compacted: i64,
    /// Whether the alarm about space is raised.
    pub has_alarm: bool,
}

/// The states after each request, and the keys at each revision.
#[derive(Clone, Debug)]
pub struct Ledger {
    states: Vec<State>,
    /// By revision.
    snapshots: Vec<Rc<Snapshot>>,
}

impl Default for Ledger {
    fn default() -> Self {
        let empty = Rc::new(Snapshot::new());
        let state = State { revision: 1, compacted: 0, has_alarm: false };
        Self { states: vec![state], snapshots: vec![Rc::clone(&empty), empty] }
    }
}

/// Why a member is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It ended.
    Ended(Ended),
    /// It answers wrongly.
    Wrong(String),
}

impl From<Ended> for Fault {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Breach(text) => Self::Wrong(text),
            ended => Self::Ended(ended),
        }
    }
}

fn wrong<T>(text: String) -> Result<T, Fault> {
    Err(Fault::Wrong(text))
}

impl Ledger {
    /// How many requests it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len() - 1
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stands after `count` requests.
    #[must_use]
    pub fn state(&self, count: usize) -> State {
        self.states[count]
    }

    /// What stands after all of them.
    #[must_use]
    pub fn last(&self) -> State {
        self.states[self.len()]
    }

    /// The version of `key` that stands after all of them, 0 if it is missing.
    #[must_use]
    pub fn version(&self, key: &[u8]) -> i64 {
        let newest = self.snapshots.last().and_then(|rows| rows.get(&key.to_vec()));
        newest.map_or(0, |row| row.version)
    }

    /// The least number of requests after which `revision` stands.
    #[must_use]
    pub fn reaches(&self, revision: i64) -> Option<usize> {
        self.states.iter().position(|state| state.revision == revision)
    }

    /// Forgets all but the first `count` requests.
    pub fn truncate(&mut self, count: usize) {
        self.states.truncate(count + 1);
        self.snapshots.truncate(self.last().revision as usize + 1);
    }

    /// Adds a request; its place, counted from 1.
    pub fn push(&mut self, request: &Request) -> usize {
        let mut state = self.last();
        match request {
            Request::Change(change) => self.change(std::slice::from_ref(change), &mut state),
            Request::Txn { key, version, success, failure } => {
                let holds = self.version(key) == *version;
                self.change(if holds { success } else { failure }, &mut state);
            }
            Request::Compact { revision } => state.compacted = *revision,
            Request::Alarm { active } => state.has_alarm = *active,
            Request::Count { .. } => unreachable!("a read changes nothing"),
        }
        self.states.push(state);
        self.len()
    }

    fn change(&mut self, changes: &[Change], state: &mut State) {
        let before = self.snapshots.last().expect("there is always one");
        let mut rows = Snapshot::clone(before);
        let modified = state.revision + 1;
        let mut has_changed = false;
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    let (created, version) = rows.get(key).map_or((modified, 1), |row| (row.created, row.version + 1));
                    let row = Row { value: value.clone(), created, modified, version };
                    rows.insert(Rc::new(key.clone()), Rc::new(row));
                    has_changed = true;
                }
                Change::Delete { key, end } => {
                    let is_in = |name: &Vec<u8>| if end.is_empty() { name == key } else { name >= key && name < end };
                    let count = rows.len();
                    rows.retain(|name, _| !is_in(name));
                    has_changed |= rows.len() < count;
                }
            }
        }
        if has_changed {
            state.revision = modified;
            self.snapshots.push(Rc::new(rows));
        }
    }

    /// Reads everything and says after how many requests, of `least..=most`, the member stands.
    ///
    /// # Errors
    /// After none of them, or it ended.
    pub fn verify(&self, member: &mut Member, least: usize, most: usize) -> Result<usize, Fault> {
        let (revision, has_alarm) = read_alarm(member)?;
        let fits = |state: &State| state.revision == revision && state.has_alarm == has_alarm;
        let fitting: Vec<usize> = (least..=most).filter(|&count| fits(&self.states[count])).collect();
        let mut compactions: Vec<i64> = fitting.iter().map(|&count| self.states[count].compacted).collect();
        compactions.dedup();
        let mut found = None;
        for compacted in compactions {
            if is_compacted_at(member, compacted, revision)? {
                found = Some(compacted);
            }
        }
        let Some(compacted) = found else {
            return wrong(format!(
                "revision {revision} with alarm {has_alarm}: not what stands after {least} to {most} requests: {:?}",
                &self.states[least..=most.min(least + 8)]
            ));
        };
        self.compare_all(member, compacted, revision)?;
        let stands = fitting.into_iter().rev().find(|&count| self.states[count].compacted == compacted);
        Ok(stands.expect("taken from the fitting ones"))
    }

    fn compare_all(&self, member: &mut Member, compacted: i64, revision: i64) -> Result<(), Fault> {
        let first = compacted.max(1);
        // At the compacted revision whole; above, the keys of each revision and the values that it brought.
        let mut reads = vec![(first, pb::RangeRequest { revision: first, ..everything() })];
        for at in first + 1..=revision {
            reads.push((at, pb::RangeRequest { revision: at, keys_only: true, ..everything() }));
            reads.push((at, pb::RangeRequest { revision: at, min_mod_revision: at, ..everything() }));
        }
        for reads in reads.chunks(READS_MAX) {
            let requests = reads.iter().map(|(_, read)| *read).collect();
            let bytes = match member.call(encode_reads(requests))? {
                Reply::Message(bytes) => bytes,
                failed => return wrong(format!("reads from revision {} fail: {failed:?}", reads[0].0)),
            };
            let answer: pb::TxnResponse<'_> = decode(&bytes).map_err(Fault::Wrong)?;
            if answer.responses.len() != reads.len() {
                return wrong(format!("{} answers to {} reads", answer.responses.len(), reads.len()));
            }
            for ((at, read), response) in reads.iter().zip(&answer.responses) {
                let Some(pb::ResponseOpResponse::Range(range)) = &response.response else {
                    return wrong(format!("a read at {at} is not answered as one"));
                };
                self.compare(*at, read, &range.kvs)?;
            }
        }
        Ok(())
    }

    fn compare(&self, at: i64, read: &pb::RangeRequest<'_>, found: &[KeyValue<'_>]) -> Result<(), Fault> {
        let rows = self.snapshots[at as usize].iter().filter(|(_, row)| row.modified >= read.min_mod_revision);
        let mut found = found.iter();
        for (key, row) in rows {
            let Some(pair) = found.next() else {
                return wrong(format!("at revision {at}: {} is missing", key_text(key)));
            };
            let value: &[u8] = if read.keys_only { b"" } else { &row.value };
            let numbers = (pair.create_revision, pair.mod_revision, pair.version, pair.lease);
            if pair.key != key.as_slice() || numbers != (row.created, row.modified, row.version, 0) {
                let expected = (key_text(key), row.created, row.modified, row.version);
                return wrong(format!("at revision {at}: {} {numbers:?} instead of {expected:?}", key_text(pair.key)));
            }
            if pair.value != value {
                return wrong(format!("at revision {at}: {} has another value", key_text(key)));
            }
        }
        match found.next() {
            Some(pair) => wrong(format!("at revision {at}: {} should not be there", key_text(pair.key))),
            None => Ok(()),
        }
    }
}

/// The revision of the header and whether an alarm is raised.
fn read_alarm(member: &mut Member) -> Result<(i64, bool), Fault> {
    let bytes = match member.call(encode_alarms())? {
        Reply::Message(bytes) => bytes,
        failed => return wrong(format!("the question for alarms fails: {failed:?}")),
    };
    let answer: pb::AlarmResponse = decode(&bytes).map_err(Fault::Wrong)?;
    let revision = answer.header.map_or(0, |header| header.revision);
    Ok((revision, !answer.alarms.is_empty()))
}

/// Whether reads begin at `compacted`.
fn is_compacted_at(member: &mut Member, compacted: i64, revision: i64) -> Result<bool, Fault> {
    let first = compacted.max(1);
    let mut fails = Vec::new();
    for at in [first - 1, first, revision + 1] {
        if at == 0 {
            fails.push(true);
            continue;
        }
        let reads = vec![pb::RangeRequest { revision: at, count_only: true, ..everything() }];
        fails.push(match member.call(encode_reads(reads))? {
            Reply::Message(_) => false,
            Reply::Failed(OUT_OF_RANGE, _) => true,
            failed => return wrong(format!("a read at revision {at}: {failed:?}")),
        });
    }
    Ok(fails == [true, false, true])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Change {
        Change::Put { key: key.into(), value: b"v".to_vec() }
    }

    #[test]
    fn requests_take_a_revision_if_they_change_something() {
        let mut ledger = Ledger::default();
        let delete = Change::Delete { key: b"a".to_vec(), end: b"c".to_vec() };
        ledger.push(&Request::Change(delete.clone()));
        assert_eq!(ledger.last().revision, 1);
        ledger.push(&Request::Change(put("a")));
        ledger.push(&Request::Txn {
            key: b"a".to_vec(),
            version: 1,
            success: vec![put("a"), put("b")],
            failure: vec![],
        });
        assert_eq!((ledger.last().revision, ledger.version(b"a"), ledger.version(b"b")), (3, 2, 1));
        ledger.push(&Request::Change(delete));
        ledger.push(&Request::Compact { revision: 3 });
        assert_eq!(ledger.last(), State { revision: 4, compacted: 3, has_alarm: false });
        assert_eq!((ledger.version(b"a"), ledger.reaches(3), ledger.len()), (0, Some(3), 5));
        ledger.truncate(3);
        assert_eq!((ledger.last().revision, ledger.version(b"a")), (3, 2));
    }
}
