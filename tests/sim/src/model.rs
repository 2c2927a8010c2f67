//! The reference model: what a correct server would answer, written as plainly as possible.
//!
//! Owns: every version of every key, and the rules of etcd's key-value API. Does not know: the engine, whose code it
//! must not share; compaction, which only takes answers away.
//!
//! Invariants
//! - I1: one changing request takes exactly one revision; a request that changes nothing takes none.
//! - I2: versions count puts since the key was last created; a delete ends the count.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Answer, Compare, Request};

/// One version of a key, as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// Revision at which this life of the key began.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// Puts since the key was created, from 1.
    pub version: i64,
    /// Lease, 0 for none.
    pub lease: i64,
}

/// A key range in etcd's encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub key: Vec<u8>,
    /// Empty: that key alone. One zero byte: no end. Otherwise the first key beyond.
    pub range_end: Vec<u8>,
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.key.escape_ascii(), self.range_end.escape_ascii())
    }
}

impl KeyRange {
    /// All keys.
    #[must_use]
    pub fn everything() -> Self {
        Self { key: vec![0], range_end: vec![0] }
    }

    /// One key.
    #[must_use]
    pub fn single(key: Vec<u8>) -> Self {
        Self { key, range_end: Vec::new() }
    }

    /// Whether `key` is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.range_end.as_slice() {
            [] => key == self.key,
            [0] => key >= self.key.as_slice(),
            end => key >= self.key.as_slice() && key < end,
        }
    }
}

/// All revisions of a store.
#[derive(Clone, Debug)]
pub struct Model {
    revision: i64,
    /// Per key, its changes in order of revision; `None` is a deletion.
    keys: BTreeMap<Vec<u8>, Vec<(i64, Option<KeyValue>)>>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty store, at revision 1.
    #[must_use]
    pub fn new() -> Self {
        Self { revision: 1, keys: BTreeMap::new() }
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The pairs of `range` as of `revision`, by key.
    #[must_use]
    pub fn range(&self, range: &KeyRange, revision: i64) -> Vec<&KeyValue> {
        let in_range = self.keys.iter().filter(|(key, _)| range.contains(key));
        let version_at = |changes: &'_ [(i64, Option<KeyValue>)]| {
            changes.partition_point(|(changed, _)| *changed <= revision).checked_sub(1)
        };
        in_range.filter_map(|(_, changes)| changes[version_at(changes)?].1.as_ref()).collect()
    }

    /// Executes a request; returns the answer it must get.
    pub fn apply(&mut self, request: &Request) -> Answer {
        let base = self.revision;
        let Request::Txn { compares, success, failure } = request else {
            let answer = self.execute(request, base);
            self.revision = answer.revision;
            return answer;
        };
        let succeeded = compares.iter().all(|compare| self.holds(compare, base));
        let mut inner = Vec::new();
        let mut at = base;
        for operation in if succeeded { success } else { failure } {
            // Later operations see the changes of earlier ones.
            let answer = self.execute_within(operation, base, at);
            at = answer.revision;
            inner.push(answer);
        }
        self.revision = at;
        Answer { revision: at, succeeded, inner, ..Answer::default() }
    }

    /// What the request would answer at revision `at`, if it would change nothing there.
    #[must_use]
    pub fn observe(&self, request: &Request, at: i64) -> Option<Answer> {
        match request {
            Request::Put { .. } => None,
            Request::Compact { .. } => Some(Answer { revision: at, ..Answer::default() }),
            Request::DeleteRange { range, .. } => {
                self.range(range, at).is_empty().then(|| Answer { revision: at, ..Answer::default() })
            }
            Request::Range { .. } => Some(self.read(request, at)),
            Request::Txn { compares, success, failure } => {
                let succeeded = compares.iter().all(|compare| self.holds(compare, at));
                let operations = if succeeded { success } else { failure };
                let inner = operations.iter().map(|operation| self.observe(operation, at)).collect::<Option<_>>()?;
                Some(Answer { revision: at, succeeded, inner, ..Answer::default() })
            }
        }
    }

    /// What the request would delete at revision `at`, by key, if it would put nothing.
    #[must_use]
    pub fn deletions(&self, request: &Request, at: i64) -> Option<Vec<&KeyValue>> {
        match request {
            Request::Put { .. } => None,
            Request::Range { .. } | Request::Compact { .. } => Some(Vec::new()),
            Request::DeleteRange { range, .. } => Some(self.range(range, at)),
            Request::Txn { compares, success, failure } => {
                let succeeded = compares.iter().all(|compare| self.holds(compare, at));
                let mut deleted = BTreeMap::new();
                for operation in if succeeded { success } else { failure } {
                    deleted.extend(self.deletions(operation, at)?.into_iter().map(|pair| (&pair.key, pair)));
                }
                Some(deleted.into_values().collect())
            }
        }
    }

    fn execute(&mut self, request: &Request, base: i64) -> Answer {
        self.execute_within(request, base, base)
    }

    /// One operation of a request that began at revision `base` and stands at `at` (`base`, or one more).
    fn execute_within(&mut self, operation: &Request, base: i64, at: i64) -> Answer {
        match operation {
            Request::Put { key, value, prev_kv } => {
                let previous = self.put(key, value, at, base + 1);
                let kvs = previous.into_iter().filter(|_| *prev_kv).collect();
                Answer { revision: base + 1, kvs, ..Answer::default() }
            }
            Request::DeleteRange { range, prev_kv } => {
                let deleted: Vec<KeyValue> = self.range(range, at).into_iter().cloned().collect();
                for pair in &deleted {
                    self.keys.get_mut(&pair.key).expect("the pair was found").push((base + 1, None));
                }
                let count = deleted.len() as i64;
                let kvs = if *prev_kv { deleted } else { Vec::new() };
                Answer { revision: if count > 0 { base + 1 } else { at }, kvs, count, ..Answer::default() }
            }
            Request::Range { .. } => self.read(operation, at),
            Request::Txn { .. } | Request::Compact { .. } => unreachable!("not an operation of a transaction"),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8], at: i64, revision: i64) -> Option<KeyValue> {
        let previous = self.range(&KeyRange::single(key.to_vec()), at).first().map(|pair| (*pair).clone());
        let (create_revision, version) =
            previous.as_ref().map_or((revision, 1), |before| (before.create_revision, before.version + 1));
        let (key, value) = (key.to_vec(), value.to_vec());
        let after = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version, lease: 0 };
        self.keys.entry(key).or_default().push((revision, Some(after)));
        previous
    }

    fn read(&self, request: &Request, newest: i64) -> Answer {
        let Request::Range { range, limit, revision, keys_only, count_only, .. } = request else {
            unreachable!("only a range reads")
        };
        let at = if *revision > 0 { *revision } else { newest };
        let found = self.range(range, at);
        let count = found.len() as i64;
        let kept = match (count_only, *limit) {
            (true, _) => 0,
            (false, limit) if limit > 0 => count.min(limit),
            _ => count,
        };
        let mut kvs: Vec<KeyValue> = found.into_iter().take(kept as usize).cloned().collect();
        if *keys_only {
            kvs.iter_mut().for_each(|pair| pair.value.clear());
        }
        Answer { revision: newest, kvs, count, more: !count_only && kept < count, ..Answer::default() }
    }

    fn holds(&self, compare: &Compare, at: i64) -> bool {
        let pairs = self.range(&KeyRange::single(compare.key().to_vec()), at);
        let pair = pairs.first();
        let (seen, wanted, relation) = match compare {
            Compare::Value { value, relation, .. } => match pair {
                // A value that is not there compares as false, whatever the relation.
                None => return false,
                Some(pair) => return relation.holds(pair.value.cmp(value)),
            },
            Compare::Version { version, relation, .. } => (pair.map(|pair| pair.version), version, relation),
            Compare::Created { revision, relation, .. } => (pair.map(|pair| pair.create_revision), revision, relation),
            Compare::Modified { revision, relation, .. } => (pair.map(|pair| pair.mod_revision), revision, relation),
        };
        relation.holds(seen.unwrap_or(0).cmp(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Relation;

    fn put(key: &[u8], value: &[u8]) -> Request {
        Request::Put { key: key.to_vec(), value: value.to_vec(), prev_kv: true }
    }

    fn delete(key: &[u8]) -> Request {
        Request::DeleteRange { range: KeyRange::single(key.to_vec()), prev_kv: false }
    }

    #[test]
    fn lives_of_a_key() {
        let mut model = Model::new();
        assert_eq!(model.apply(&put(b"k", b"1")).kvs, []);
        assert_eq!(model.apply(&put(b"k", b"2")).kvs[0].version, 1);
        assert_eq!(model.apply(&delete(b"k")).count, 1);
        assert_eq!((model.apply(&delete(b"k")).count, model.revision()), (0, 4));
        assert_eq!(model.apply(&put(b"k", b"3")).kvs, []);
        let at = |revision| {
            let pairs = model.range(&KeyRange::everything(), revision);
            pairs.first().map(|pair| (pair.create_revision, pair.mod_revision, pair.version, pair.value.clone()))
        };
        assert_eq!(at(1), None);
        assert_eq!(at(2), Some((2, 2, 1, b"1".to_vec())));
        assert_eq!(at(3), Some((2, 3, 2, b"2".to_vec())));
        assert_eq!(at(4), None);
        assert_eq!(at(5), Some((5, 5, 1, b"3".to_vec())));
    }

    #[test]
    fn a_transaction_takes_one_revision_and_reads_its_own_writes() {
        let mut model = Model::new();
        model.apply(&put(b"a", b"1"));
        let compares = vec![Compare::Value { key: b"a".to_vec(), relation: Relation::Equal, value: b"1".to_vec() }];
        let success = vec![Request::read_everything(0), put(b"b", b"2"), delete(b"a"), Request::read_everything(0)];
        let txn = Request::Txn { compares, success, failure: vec![delete(b"a")] };
        let answer = model.apply(&txn);
        assert!(answer.succeeded && answer.revision == 3 && model.revision() == 3);
        let revisions: Vec<i64> = answer.inner.iter().map(|inner| inner.revision).collect();
        assert_eq!(revisions, [2, 3, 3, 3]);
        assert_eq!((answer.inner[0].count, answer.inner[3].kvs[0].key.as_slice()), (1, b"b".as_slice()));
        let answer = model.apply(&txn);
        assert!(!answer.succeeded && answer.revision == 3 && answer.inner[0].count == 0);
        assert_eq!(model.observe(&txn, 3), Some(answer));
        assert_eq!(model.observe(&txn, 2), None);
    }

    #[test]
    fn ranges_as_etcd_encodes_them() {
        let range = |key: &[u8], end: &[u8]| KeyRange { key: key.to_vec(), range_end: end.to_vec() };
        assert!(range(b"b", b"").contains(b"b") && !range(b"b", b"").contains(b"ba"));
        assert!(range(b"b", b"\0").contains(b"z") && !range(b"b", b"\0").contains(b"a"));
        assert!(range(b"b", b"c").contains(b"bz") && !range(b"b", b"c").contains(b"c"));
        assert!(!range(b"b", b"b").contains(b"b") && !range(b"c", b"b").contains(b"b"));
    }
}
