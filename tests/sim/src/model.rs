//! The reference model: what a correct server would answer, written as plainly as possible.
//!
//! Owns: every version of every key, and etcd's rules of evaluation (reads, compares, pre-checks, changes). Does not
//! know: the engine, whose code it must not share; argument checks ([`crate::arguments`]); compaction, which only takes
//! answers away: the caller says what is compacted; which leases there are (`leases`). A key is attached to the lease
//! that its pair names, for as long as it does.
//!
//! Invariants
//! - I1: one changing request takes exactly one revision; a request that changes nothing takes none.
//! - I2: versions count puts since the key was last created; a delete ends the count.
//! - I3: evaluation changes nothing; [`Model::install`] alone does.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use crate::history::{
    Answer, Compare, Delete, Fault, Put, Range, Relation, Request, SortOrder, SortTarget, Target, Txn,
};
use crate::value::Value;

/// One version of a key, as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Value,
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

    /// Its bounds for an ordered map; `None` if it holds nothing.
    fn bounds(&self) -> Option<Bounds<'_>> {
        let from = Bound::Included(self.key.as_slice());
        match self.range_end.as_slice() {
            [] => Some((from, Bound::Included(self.key.as_slice()))),
            [0] => Some((from, Bound::Unbounded)),
            end => (self.key.as_slice() < end).then_some((from, Bound::Excluded(end))),
        }
    }
}

/// A range of an ordered map's keys.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// What a request does to keys, in order: a pair, or a deletion.
pub type Changes = Vec<(Vec<u8>, Option<KeyValue>)>;

/// An answer and what it changes.
pub type Evaluated = Result<(Answer, Changes), Fault>;

/// All revisions of a store.
#[derive(Clone, Debug)]
pub struct Model {
    revision: i64,
    /// Per key, its changes in order of revision; `None` is a deletion.
    keys: BTreeMap<Vec<u8>, Vec<(i64, Option<KeyValue>)>>,
    /// The changes of revision 2, 3 and so on, as the keys in order.
    order: Vec<Vec<Vec<u8>>>,
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
        Self { revision: 1, keys: BTreeMap::new(), order: Vec::new() }
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Every key that ever was, in order.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.keys().map(Vec::as_slice)
    }

    /// The keys that `revision` changed, in the order of its changes.
    #[must_use]
    pub fn changed_at(&self, revision: i64) -> &[Vec<u8>] {
        usize::try_from(revision - 2).ok().and_then(|at| self.order.get(at)).map_or(&[], Vec::as_slice)
    }

    /// What `revision` did to keys, in order: the pair, or `None` for a deletion.
    pub fn changes_at(&self, revision: i64) -> impl Iterator<Item = (&[u8], Option<&KeyValue>)> {
        let keys = self.changed_at(revision);
        keys.iter().enumerate().map(move |(position, key)| {
            let versions = self.versions(key);
            let from = versions.partition_point(|(changed, _)| *changed < revision);
            // A transaction may delete a key and put it again.
            let is_only = versions.get(from + 1).is_none_or(|(changed, _)| *changed != revision);
            let before = if is_only { 0 } else { keys[..position].iter().filter(|other| *other == key).count() };
            (key.as_slice(), versions[from + before].1.as_ref())
        })
    }

    /// The versions of a key, oldest first: revision, and the pair unless it was deleted.
    #[must_use]
    pub fn versions(&self, key: &[u8]) -> &[(i64, Option<KeyValue>)] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// The pair of `key` as of `revision`.
    #[must_use]
    pub fn get(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        version_at(self.keys.get(key)?, revision)
    }

    /// The pairs of `range` as of `revision`, by key.
    pub fn range<'a>(&'a self, range: &KeyRange, revision: i64) -> impl Iterator<Item = &'a KeyValue> {
        let bounds = range.bounds();
        let keys = bounds.map(|bounds| self.keys.range::<[u8], _>(bounds));
        keys.into_iter().flatten().filter_map(move |(_, versions)| version_at(versions, revision))
    }

    /// The keys attached to a lease as of `at`.
    pub fn attached(&self, lease: i64, at: i64) -> impl Iterator<Item = &[u8]> {
        let pairs = self.keys.values().filter_map(move |versions| version_at(versions, at));
        pairs.filter(move |pair| pair.lease == lease).map(|pair| pair.key.as_slice())
    }

    /// What the end of a lease changes as the next thing after revision `at`: its keys go, in their order.
    #[must_use]
    pub fn end_of_lease(&self, lease: i64, at: i64) -> Changes {
        self.attached(lease, at).map(|key| (key.to_vec(), None)).collect()
    }

    /// The leases that a key was attached to from one revision to another, 0 for none.
    pub fn leases_of(&self, key: &[u8], from: i64, to: i64) -> impl Iterator<Item = i64> {
        let versions = self.versions(key);
        let first = versions.partition_point(|(changed, _)| *changed <= from);
        let last = versions.partition_point(|(changed, _)| *changed <= to);
        let lease = |pair: &Option<KeyValue>| pair.as_ref().map_or(0, |pair| pair.lease);
        let before = version_at(versions, from).map_or(0, |pair| pair.lease);
        [before].into_iter().chain(versions[first..last].iter().map(move |(_, pair)| lease(pair)))
    }

    /// Executes a request at the newest revision of a store without leases.
    ///
    /// # Errors
    /// It is refused and changes nothing.
    pub fn apply(&mut self, request: &Request, compacted: i64) -> Result<Answer, Fault> {
        let (answer, changes) = self.evaluate_without_leases(request, self.revision, compacted)?;
        self.install(changes);
        Ok(answer)
    }

    /// Makes changes the next revision; none take none.
    pub fn install(&mut self, changes: Changes) {
        if changes.is_empty() {
            return;
        }
        self.revision += 1;
        self.order.push(changes.iter().map(|(key, _)| key.clone()).collect());
        for (key, pair) in changes {
            self.keys.entry(key).or_default().push((self.revision, pair));
        }
    }

    /// What a request answers and changes as the next thing after revision `at`, where `compacted` is compacted (a read
    /// of exactly that revision is fine) and the leases that it names exist.
    ///
    /// # Errors
    /// It is refused.
    pub fn evaluate(&self, request: &Request, at: i64, compacted: i64) -> Evaluated {
        self.evaluate_with(request, (at, compacted), true)
    }

    /// The same, where the leases that it names do not exist.
    ///
    /// # Errors
    /// It is refused.
    pub fn evaluate_without_leases(&self, request: &Request, at: i64, compacted: i64) -> Evaluated {
        self.evaluate_with(request, (at, compacted), false)
    }

    fn evaluate_with(&self, request: &Request, (at, compacted): (i64, i64), has_leases: bool) -> Evaluated {
        let (changes, pending) = (Vec::new(), BTreeMap::new());
        let mut run = Run { model: self, base: at, compacted, has_leases, changes, pending };
        let answer = match request {
            Request::Txn(txn) => {
                let mut path = Vec::new();
                run.choose(txn, &mut path);
                run.check(txn, &mut path.iter().copied())?;
                let mut answer = run.txn(txn, &mut path.iter().copied())?;
                answer.revision = run.revision();
                answer
            }
            Request::Range(range) => {
                if range.revision > at {
                    return Err(Fault::FUTURE);
                }
                if range.revision > 0 && range.revision < compacted {
                    return Err(Fault::COMPACTED);
                }
                run.range(range)
            }
            operation => run.operation(operation, &mut std::iter::empty())?,
        };
        Ok((answer, run.changes))
    }
}

fn version_at(versions: &[(i64, Option<KeyValue>)], revision: i64) -> Option<&KeyValue> {
    let position = versions.partition_point(|(changed, _)| *changed <= revision).checked_sub(1)?;
    versions[position].1.as_ref()
}

/// A request under evaluation after revision `base`.
struct Run<'m> {
    model: &'m Model,
    base: i64,
    compacted: i64,
    /// Whether the leases exist that the request names.
    has_leases: bool,
    changes: Changes,
    /// The last of `changes` to each key.
    pending: BTreeMap<Vec<u8>, Option<KeyValue>>,
}

impl Run<'_> {
    fn revision(&self) -> i64 {
        self.base + i64::from(!self.changes.is_empty())
    }

    fn change(&mut self, key: &[u8], pair: Option<KeyValue>) {
        self.pending.insert(key.to_vec(), pair.clone());
        self.changes.push((key.to_vec(), pair));
    }

    fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        match self.pending.get(key) {
            Some(pair) => pair.as_ref(),
            None => self.model.get(key, self.base),
        }
    }

    /// The pairs of a range, own changes included.
    fn pairs(&self, range: &KeyRange) -> Vec<KeyValue> {
        let before = self.model.range(range, self.base);
        if self.pending.is_empty() {
            return before.cloned().collect();
        }
        let mut pairs: BTreeMap<&[u8], &KeyValue> = before.map(|pair| (pair.key.as_slice(), pair)).collect();
        for (key, pair) in self.pending.iter().filter(|(key, _)| range.contains(key)) {
            match pair {
                Some(pair) => pairs.insert(key, pair),
                None => pairs.remove(key.as_slice()),
            };
        }
        pairs.into_values().cloned().collect()
    }

    /// The branches that a transaction and those nested in it take, in order: all compares see the state before it.
    fn choose(&self, txn: &Txn, path: &mut Vec<bool>) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        path.push(succeeded);
        for operation in txn.branch(succeeded) {
            if let Request::Txn(nested) = operation {
                self.choose(nested, path);
            }
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut found = false;
        for pair in self.model.range(&compare.range, self.base) {
            found = true;
            if !relates(compare, Some(pair)) {
                return false;
            }
        }
        // A value that is not there compares as false, whatever the relation; all else of it is 0.
        found || (!matches!(compare.target, Target::Value(_) | Target::ValueMismatched) && relates(compare, None))
    }

    /// The checks before any change, along the chosen path.
    fn check(&self, txn: &Txn, path: &mut dyn Iterator<Item = bool>) -> Result<(), Fault> {
        let succeeded = path.next().expect("one choice for each transaction reached");
        for operation in txn.branch(succeeded) {
            match operation {
                Request::Txn(nested) => self.check(nested, path)?,
                Request::Put(put) if put.lease != 0 && !self.has_leases => return Err(Fault::LEASE_NOT_FOUND),
                Request::Put(put) if put.keeps() && self.model.get(&put.key, self.base).is_none() => {
                    return Err(Fault::KEY_NOT_FOUND);
                }
                Request::Range(range) if range.revision > self.base => return Err(Fault::FUTURE),
                // Unlike in a plain read, a negative revision may be a compacted one.
                Request::Range(range) if range.revision != 0 && range.revision < self.compacted => {
                    return Err(Fault::COMPACTED);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn txn(&mut self, txn: &Txn, path: &mut dyn Iterator<Item = bool>) -> Result<Answer, Fault> {
        let succeeded = path.next().expect("one choice for each transaction reached");
        let mut inner = Vec::new();
        for operation in txn.branch(succeeded) {
            inner.push(self.operation(operation, path)?);
        }
        // The header of a nested answer is empty.
        Ok(Answer { succeeded, inner, ..Answer::default() })
    }

    fn operation(&mut self, operation: &Request, path: &mut dyn Iterator<Item = bool>) -> Result<Answer, Fault> {
        match operation {
            Request::Put(put) => self.put(put),
            Request::Delete(delete) => Ok(self.delete(delete)),
            Request::Range(range) => Ok(self.range(range)),
            Request::Txn(txn) => self.txn(txn, path),
            other => Ok(Answer { revision: self.base, alarms: other.alarms_named(), ..Answer::default() }),
        }
    }

    fn put(&mut self, put: &Put) -> Result<Answer, Fault> {
        if put.lease != 0 && !self.has_leases {
            return Err(Fault::LEASE_NOT_FOUND);
        }
        let previous = self.get(&put.key).cloned();
        if put.keeps() && previous.is_none() {
            return Err(Fault::KEY_NOT_FOUND);
        }
        let revision = self.base + 1;
        let (create_revision, version) =
            previous.as_ref().map_or((revision, 1), |before| (before.create_revision, before.version + 1));
        let kept = previous.as_ref().filter(|_| put.ignore_value).map(|before| before.value);
        let value = kept.unwrap_or_else(|| Value::of(&put.value));
        let kept = previous.as_ref().filter(|_| put.ignore_lease).map(|before| before.lease);
        let (key, lease) = (put.key.clone(), kept.unwrap_or(put.lease));
        let pair = KeyValue { key, value, create_revision, mod_revision: revision, version, lease };
        self.change(&put.key, Some(pair));
        let kvs = previous.into_iter().filter(|_| put.prev_kv).collect();
        Ok(Answer { revision, kvs, ..Answer::default() })
    }

    fn delete(&mut self, delete: &Delete) -> Answer {
        let deleted = self.pairs(&delete.range);
        for pair in &deleted {
            self.change(&pair.key, None);
        }
        let count = deleted.len() as i64;
        let kvs = if delete.prev_kv { deleted } else { Vec::new() };
        Answer { revision: self.revision(), kvs, count, ..Answer::default() }
    }

    fn range(&self, range: &Range) -> Answer {
        let mut kvs = if range.revision > 0 {
            self.model.range(&range.range, range.revision).cloned().collect()
        } else {
            self.pairs(&range.range)
        };
        let count = kvs.len() as i64;
        if range.count_only {
            return Answer { revision: self.revision(), count, ..Answer::default() };
        }
        let more = select(range, &mut kvs);
        if range.keys_only {
            // The lease goes with the value, unless the pairs had to be sorted by it.
            let by_value = range.target == SortTarget::Value;
            for pair in &mut kvs {
                pair.value = Value::default();
                pair.lease *= i64::from(by_value);
            }
        }
        Answer { revision: self.revision(), kvs, count, more, ..Answer::default() }
    }
}

/// Filters, sorts and cuts what a read found; whether the limit cut something.
fn select(range: &Range, kvs: &mut Vec<KeyValue>) -> bool {
    let within = |value: i64, least: i64, most: i64| (least == 0 || value >= least) && (most == 0 || value <= most);
    kvs.retain(|pair| {
        within(pair.mod_revision, range.min_mod, range.max_mod)
            && within(pair.create_revision, range.min_create, range.max_create)
    });
    let limit = usize::try_from(range.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    if range.order == SortOrder::None && !range.has_filters() {
        // Without an order the limit counts in key order, with one more to tell whether it cut.
        kvs.truncate(limit.saturating_add(1));
    }
    let by = |left: &KeyValue, right: &KeyValue| match range.target {
        SortTarget::Key | SortTarget::Unknown => left.key.cmp(&right.key),
        SortTarget::Version => left.version.cmp(&right.version),
        SortTarget::Create => left.create_revision.cmp(&right.create_revision),
        SortTarget::Mod => left.mod_revision.cmp(&right.mod_revision),
        SortTarget::Value => left.value.cmp(&right.value),
    };
    if range.order == SortOrder::Descend {
        // Equal ones stay in key order.
        kvs.sort_by(|left, right| by(right, left));
    } else {
        kvs.sort_by(by);
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    more
}

fn relates(compare: &Compare, pair: Option<&KeyValue>) -> bool {
    let number = |of: fn(&KeyValue) -> i64, with: i64| pair.map_or(0, of).cmp(&with);
    let order = match &compare.target {
        Target::Version(version) => number(|pair| pair.version, *version),
        Target::VersionMismatched => number(|pair| pair.version, 0),
        Target::Create(revision) => number(|pair| pair.create_revision, *revision),
        Target::Mod(revision) => number(|pair| pair.mod_revision, *revision),
        Target::Lease(lease) => number(|pair| pair.lease, *lease),
        Target::Value(value) => pair.map_or(Ordering::Equal, |pair| pair.value.cmp(&Value::of(value))),
        Target::ValueMismatched => pair.map_or(Ordering::Equal, |pair| pair.value.cmp(&Value::default())),
        Target::Unknown => Ordering::Equal,
    };
    match compare.relation {
        Relation::Equal => order.is_eq(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
        Relation::NotEqual => order.is_ne(),
        Relation::Unknown => true,
    }
}

#[cfg(test)]
mod tests;
