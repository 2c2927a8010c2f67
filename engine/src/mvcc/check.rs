//! etcd's argument checks of KV requests, before anything is proposed.
//!
//! Owns: which request is malformed and which fault is named first. Does not know: state, quota, permissions, size.
//!
//! Invariants
//! - I1: a request that passes can be encoded and applied: no empty key, no unknown sort, no unset op, bounded depth.
//! - I2: the order of faults is etcd's: op counts, compare keys, ops of success then failure, then duplicate keys of
//!   success, then of failure.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{DeleteRange, Op, Put, RangeQuery, SortOrder, SortTarget, TXN_DEPTH_MAX, Txn};
use crate::mvcc::{KeyRange, MvccError};

/// Checks a range request.
///
/// # Errors
/// The first fault etcd would name.
pub fn check_range(query: &RangeQuery<'_>) -> Result<(), MvccError> {
    check_key(query.key)?;
    if query.sort_order == SortOrder::Unknown || query.sort_target == SortTarget::Unknown {
        return Err(MvccError::InvalidSortOption);
    }
    Ok(())
}

/// Checks a put request.
///
/// # Errors
/// The first fault etcd would name.
pub fn check_put(put: &Put<'_>) -> Result<(), MvccError> {
    check_key(put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(MvccError::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(MvccError::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete request.
///
/// # Errors
/// The first fault etcd would name.
pub fn check_delete_range(del: &DeleteRange<'_>) -> Result<(), MvccError> {
    check_key(del.key)
}

/// Checks a transaction and all it nests against `--max-txn-ops`.
///
/// # Errors
/// The first fault etcd would name. Nesting deeper than [`TXN_DEPTH_MAX`], which etcd's default limit excludes too, is
/// too many operations.
pub fn check_txn(txn: &Txn<'_>, txn_ops_max: usize) -> Result<(), MvccError> {
    check_ops(txn, txn_ops_max, 1)?;
    check_duplicates(&txn.success)?;
    check_duplicates(&txn.failure)?;
    Ok(())
}

fn check_key(key: &[u8]) -> Result<(), MvccError> {
    if key.is_empty() { Err(MvccError::EmptyKey) } else { Ok(()) }
}

/// Each level may use what the levels above left of the limit; siblings are not added up.
fn check_ops(txn: &Txn<'_>, ops_max: usize, depth: usize) -> Result<(), MvccError> {
    let ops = txn.compares.len().max(txn.success.len()).max(txn.failure.len());
    if ops > ops_max || depth > TXN_DEPTH_MAX {
        return Err(MvccError::TooManyOperations);
    }
    for compare in &txn.compares {
        check_key(compare.key)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(query) => check_range(query)?,
            Op::Put(put) => check_put(put)?,
            Op::DeleteRange(del) => check_delete_range(del)?,
            Op::Txn(nested) => check_ops(nested, ops_max - ops, depth + 1)?,
            Op::Unset => return Err(MvccError::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys a branch may write.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deletes<'a>,
}

/// The keys a branch may delete: single ones, and disjoint half-open intervals from start to end.
#[derive(Default)]
struct Deletes<'a> {
    keys: BTreeSet<&'a [u8]>,
    intervals: BTreeMap<&'a [u8], &'a [u8]>,
}

impl<'a> Deletes<'a> {
    fn insert(&mut self, range: KeyRange<'a>) {
        match range {
            KeyRange::Single(key) => drop(self.keys.insert(key)),
            KeyRange::Between(from, to) if from < to => self.insert_interval(from, to),
            // etcd reads the end "\0" as a key below every other here, so that a from-key delete covers nothing.
            KeyRange::Between(..) | KeyRange::From(_) => {}
        }
    }

    /// Joins the interval with those it touches.
    fn insert_interval(&mut self, from: &'a [u8], to: &'a [u8]) {
        let (mut from, mut to) = (from, to);
        while let Some((&start, &end)) = self.intervals.range(..=to).next_back()
            && end >= from
        {
            self.intervals.remove(start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.intervals.insert(from, to);
    }

    /// Adds the smaller to the larger, so that deep nesting costs n log n and not n times depth.
    fn absorb(&mut self, other: Self) {
        let mut other = other;
        if self.len() < other.len() {
            std::mem::swap(self, &mut other);
        }
        self.keys.extend(other.keys);
        other.intervals.into_iter().for_each(|(from, to)| self.insert_interval(from, to));
    }

    fn len(&self) -> usize {
        self.keys.len() + self.intervals.len()
    }

    fn covers(&self, key: &[u8]) -> bool {
        self.keys.contains(key) || self.intervals.range(..=key).next_back().is_some_and(|(_, &end)| key < end)
    }
}

/// etcd's duplicate-key analysis of one branch: this level's deletes, then nested transactions in order (whose deletes
/// count against what follows, not against what came before), then this level's puts.
fn check_duplicates<'a>(ops: &'a [Op<'a>]) -> Result<Touched<'a>, MvccError> {
    let mut touched = Touched::default();
    for op in ops {
        if let Op::DeleteRange(del) = op {
            touched.deletes.insert(KeyRange::new(del.key, del.range_end));
        }
    }
    for op in ops {
        let Op::Txn(nested) = op else { continue };
        let mut success = check_duplicates(&nested.success)?;
        let failure = check_duplicates(&nested.failure)?;
        // Only one of the two branches runs: both may put a key.
        unite(&mut success.puts, failure.puts);
        touched.puts(success.puts)?;
        touched.deletes.absorb(success.deletes);
        touched.deletes.absorb(failure.deletes);
    }
    for op in ops {
        if let Op::Put(put) = op {
            touched.put(put.key)?;
        }
    }
    Ok(touched)
}

impl<'a> Touched<'a> {
    fn puts(&mut self, keys: BTreeSet<&'a [u8]>) -> Result<(), MvccError> {
        if self.deletes.len() > 0 && keys.iter().any(|key| self.deletes.covers(key)) {
            return Err(MvccError::DuplicateKey);
        }
        let separate = self.puts.len() + keys.len();
        unite(&mut self.puts, keys);
        if self.puts.len() < separate { Err(MvccError::DuplicateKey) } else { Ok(()) }
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), MvccError> {
        if self.deletes.covers(key) || !self.puts.insert(key) { Err(MvccError::DuplicateKey) } else { Ok(()) }
    }
}

/// The union, at the cost of the smaller.
fn unite<'a>(keys: &mut BTreeSet<&'a [u8]>, other: BTreeSet<&'a [u8]>) {
    let mut other = other;
    if keys.len() < other.len() {
        std::mem::swap(keys, &mut other);
    }
    keys.extend(other);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Compare, CompareResult, CompareTarget};

    fn put(key: &[u8]) -> Op<'_> {
        Op::Put(Put { key, ..Put::default() })
    }

    fn del<'a>(key: &'a [u8], range_end: &'a [u8]) -> Op<'a> {
        Op::DeleteRange(DeleteRange { key, range_end, prev_kv: false })
    }

    fn txn<'a>(success: Vec<Op<'a>>, failure: Vec<Op<'a>>) -> Op<'a> {
        Op::Txn(Txn { compares: vec![], success, failure })
    }

    fn check(success: Vec<Op<'_>>) -> Result<(), MvccError> {
        let failure = vec![];
        check_txn(&Txn { compares: vec![], success, failure }, 128)
    }

    #[test]
    fn faults_of_single_requests_in_order() {
        let put = |key, value, lease, ignore_value, ignore_lease| {
            check_put(&Put { key, value, lease, ignore_value, ignore_lease, prev_kv: true })
        };
        assert_eq!(put(b"", b"v", 1, true, true), Err(MvccError::EmptyKey));
        assert_eq!(put(b"k", b"v", 1, true, true), Err(MvccError::ValueProvided));
        assert_eq!(put(b"k", b"", 1, true, true), Err(MvccError::LeaseProvided));
        assert_eq!(put(b"k", b"", 0, true, true), Ok(()));
        assert_eq!(put(b"k", b"v", 1, false, false), Ok(()));
        let range = |key, sort_order, sort_target| {
            check_range(&RangeQuery { key, sort_order, sort_target, ..RangeQuery::default() })
        };
        assert_eq!(range(b"", SortOrder::Unknown, SortTarget::Key), Err(MvccError::EmptyKey));
        assert_eq!(range(b"k", SortOrder::Unknown, SortTarget::Key), Err(MvccError::InvalidSortOption));
        assert_eq!(range(b"k", SortOrder::None, SortTarget::Unknown), Err(MvccError::InvalidSortOption));
        assert_eq!(range(b"k", SortOrder::Descend, SortTarget::Value), Ok(()));
        assert_eq!(check_delete_range(&DeleteRange::default()), Err(MvccError::EmptyKey));
    }

    #[test]
    fn limits_are_shared_along_a_path_and_not_between_siblings() {
        let puts = |count: u8, keys: &'static [[u8; 1]]| keys[..count as usize].iter().map(|key| put(key)).collect();
        const KEYS: [[u8; 1]; 8] = [[1], [2], [3], [4], [5], [6], [7], [8]];
        let limited = |success, max| check_txn(&Txn { success, ..Txn::default() }, max);
        assert_eq!(limited(puts(4, &KEYS), 4), Ok(()));
        assert_eq!(limited(puts(5, &KEYS), 4), Err(MvccError::TooManyOperations));
        assert_eq!(limited(vec![txn(puts(3, &KEYS), vec![])], 4), Ok(()));
        assert_eq!(limited(vec![txn(puts(4, &KEYS), vec![])], 4), Err(MvccError::TooManyOperations));
        assert_eq!(limited(vec![txn(puts(3, &KEYS), vec![]), txn(vec![], vec![])], 5), Ok(()));
        let compare =
            Compare { key: b"", range_end: b"", result: CompareResult::Equal, target: CompareTarget::Version(0) };
        let compares = Txn { compares: vec![compare; 2], success: vec![Op::Unset], ..Txn::default() };
        assert_eq!(check_txn(&compares, 1), Err(MvccError::TooManyOperations));
        assert_eq!(check_txn(&compares, 2), Err(MvccError::EmptyKey));
        assert_eq!(check(vec![Op::Unset]), Err(MvccError::KeyNotFound));
        assert_eq!(check(vec![put(b"a"), put(b"a"), put(b"")]), Err(MvccError::EmptyKey));
        let deep =
            (0..TXN_DEPTH_MAX).fold(Txn::default(), |inner, _| Txn { success: vec![Op::Txn(inner)], ..Txn::default() });
        assert_eq!(check_txn(&deep, usize::MAX), Err(MvccError::TooManyOperations));
    }

    #[test]
    fn duplicate_keys_as_etcd_finds_them() {
        let duplicate = Err(MvccError::DuplicateKey);
        assert_eq!(check(vec![put(b"a"), put(b"a")]), duplicate);
        assert_eq!(check(vec![put(b"a"), del(b"a", b"")]), duplicate);
        assert_eq!(check(vec![del(b"a", b"c"), put(b"b")]), duplicate);
        assert_eq!(check(vec![del(b"a", b"c"), put(b"c")]), Ok(()));
        assert_eq!(check(vec![del(b"b", b"a"), put(b"a")]), Ok(()));
        assert_eq!(check(vec![del(b"a", b""), txn(vec![], vec![put(b"a")])]), duplicate);
        assert_eq!(check(vec![txn(vec![del(b"a", b"")], vec![]), put(b"a")]), duplicate);
        assert_eq!(check(vec![txn(vec![put(b"k")], vec![]), txn(vec![], vec![put(b"k")])]), duplicate);
        assert_eq!(check(vec![txn(vec![put(b"k")], vec![put(b"k")])]), Ok(()));
        assert_eq!(check(vec![txn(vec![put(b"k")], vec![put(b"k")]), put(b"k")]), duplicate);
        assert_eq!(check(vec![del(b"a", b"z"), del(b"b", b""), del(b"a", b"z")]), Ok(()));
        assert_eq!(check(vec![txn(vec![del(b"k", b"")], vec![]), txn(vec![put(b"k")], vec![])]), duplicate);
        assert_eq!(check(vec![txn(vec![put(b"k")], vec![]), txn(vec![del(b"k", b"")], vec![])]), Ok(()));
        assert_eq!(check(vec![del(b"a", b"\0"), put(b"b")]), Ok(()));
        let failure = Txn { failure: vec![put(b"a"), put(b"a")], ..Txn::default() };
        assert_eq!(check_txn(&failure, 128), duplicate);
    }

    #[test]
    fn joined_intervals_cover_what_their_parts_did() {
        let mut random = 88_172_645_463_325_252_u64;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % bound) as usize
        };
        let keys: Vec<[u8; 1]> = (1..20).map(|key| [key]).collect();
        for _ in 0..2000 {
            let (mut deletes, mut parts) = (Deletes::default(), Vec::new());
            for _ in 0..below(8) {
                let range = KeyRange::new(&keys[below(19)], if below(4) == 0 { &[] } else { &keys[below(19)] });
                deletes.insert(range);
                parts.push(range);
            }
            for key in &keys {
                let wanted = parts.iter().any(|range| range.contains(key));
                assert_eq!(deletes.covers(key), wanted, "{key:?} in {parts:?}");
            }
        }
    }
}
