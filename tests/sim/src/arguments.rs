//! etcd's checks of a request's arguments, before it looks at any state: what must be refused, with which words.
//!
//! Owns: the checks and their order, written from the API's rules. Does not know: the server's own checks, whose code
//! they must not share.

use std::collections::BTreeSet;

use crate::history::{Fault, Put, Range, Request, SortOrder, SortTarget, Txn};
use crate::model::KeyRange;

/// The most operations on one level of a transaction, less what the levels above use.
pub const TXN_OPS_MAX: usize = 128;

/// The longest life of a lease, in seconds.
pub const TTL_MAX: i64 = 9_000_000_000;

/// The fault in the request's arguments that has to be named, if any.
#[must_use]
pub fn fault(request: &Request) -> Option<Fault> {
    match request {
        Request::Txn(txn) => {
            check_txn(txn, TXN_OPS_MAX).and_then(|()| written(&txn.success)).and_then(|_| written(&txn.failure)).err()
        }
        operation => check_operation(operation, 0).err(),
    }
}

fn check_operation(operation: &Request, ops_left: usize) -> Result<(), Fault> {
    match operation {
        Request::Put(put) => check_put(put),
        Request::Delete(delete) => check_key(&delete.range.key),
        Request::Range(range) => check_range(range),
        Request::Txn(txn) => check_txn(txn, ops_left),
        Request::Unset => Err(Fault::KEY_NOT_FOUND),
        Request::LeaseGrant { ttl, .. } if *ttl > TTL_MAX => Err(Fault::TTL_TOO_LARGE),
        _ => Ok(()),
    }
}

fn check_key(key: &[u8]) -> Result<(), Fault> {
    if key.is_empty() { Err(Fault::NO_KEY) } else { Ok(()) }
}

fn check_put(put: &Put) -> Result<(), Fault> {
    check_key(&put.key)?;
    match put {
        _ if put.ignore_value && !put.value.is_empty() => Err(Fault::VALUE_PROVIDED),
        _ if put.ignore_lease && put.lease != 0 => Err(Fault::LEASE_PROVIDED),
        _ => Ok(()),
    }
}

fn check_range(range: &Range) -> Result<(), Fault> {
    check_key(&range.range.key)?;
    if range.order == SortOrder::Unknown || range.target == SortTarget::Unknown {
        return Err(Fault::INVALID_SORT);
    }
    Ok(())
}

fn check_txn(txn: &Txn, ops_left: usize) -> Result<(), Fault> {
    let used = txn.compares.len().max(txn.success.len()).max(txn.failure.len());
    let left = ops_left.checked_sub(used).ok_or(Fault::TOO_MANY_OPS)?;
    txn.compares.iter().try_for_each(|compare| check_key(&compare.range.key))?;
    txn.operations().try_for_each(|operation| check_operation(operation, left))
}

/// The keys that a branch may put, and the ranges that it may delete.
struct Written {
    puts: BTreeSet<Vec<u8>>,
    deletes: Vec<KeyRange>,
}

impl Written {
    fn put(&mut self, key: &[u8]) -> Result<(), Fault> {
        let deleted = self.deletes.iter().any(|range| range.contains(key));
        if deleted || !self.puts.insert(key.to_vec()) { Err(Fault::DUPLICATE_KEY) } else { Ok(()) }
    }
}

/// A branch puts no key twice, nor one that it deletes: deletes of a level count first, then nested transactions in
/// order (their deletes against what follows), then the level's puts.
fn written(branch: &[Request]) -> Result<Written, Fault> {
    let mut all = Written { puts: BTreeSet::new(), deletes: Vec::new() };
    for operation in branch {
        if let Request::Delete(delete) = operation
            // Without an end a delete is taken for one of nothing here.
            && delete.range.range_end != [0]
        {
            all.deletes.push(delete.range.clone());
        }
    }
    for operation in branch {
        let Request::Txn(txn) = operation else { continue };
        let (success, failure) = (written(&txn.success)?, written(&txn.failure)?);
        // Only one of the two runs: both may put a key.
        for key in success.puts.union(&failure.puts) {
            all.put(key)?;
        }
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for operation in branch {
        if let Request::Put(put) = operation {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Delete;

    fn put(key: &[u8]) -> Request {
        Request::Put(Put { key: key.to_vec(), ..Put::default() })
    }

    fn delete(key: &[u8], range_end: &[u8]) -> Request {
        let range = KeyRange { key: key.to_vec(), range_end: range_end.to_vec() };
        Request::Delete(Delete { range, prev_kv: false })
    }

    fn txn(success: Vec<Request>, failure: Vec<Request>) -> Request {
        Request::Txn(Txn { compares: Vec::new(), success, failure })
    }

    #[test]
    fn the_rules_on_keys_written_twice() {
        let duplicate = Some(Fault::DUPLICATE_KEY);
        let in_one = |operations| fault(&txn(operations, Vec::new()));
        assert_eq!(in_one(vec![put(b"a"), put(b"a")]), duplicate);
        assert_eq!(in_one(vec![delete(b"a", b"c"), put(b"b")]), duplicate);
        assert_eq!(in_one(vec![put(b"b"), delete(b"a", b"\0")]), None);
        assert_eq!(in_one(vec![txn(vec![put(b"a")], vec![put(b"a")])]), None);
        assert_eq!(in_one(vec![txn(vec![put(b"a")], vec![]), txn(vec![], vec![put(b"a")])]), duplicate);
        assert_eq!(in_one(vec![txn(vec![put(b"a")], vec![]), txn(vec![delete(b"a", b"")], vec![])]), None);
        assert_eq!(in_one(vec![txn(vec![delete(b"a", b"")], vec![]), txn(vec![put(b"a")], vec![])]), duplicate);
        assert_eq!(in_one(vec![put(b""), put(b"a"), put(b"a")]), Some(Fault::NO_KEY));
    }

    #[test]
    fn operations_count_along_a_path() {
        let many = |count: usize| (0..count).map(|_| Request::read_everything(0)).collect::<Vec<_>>();
        assert_eq!(fault(&txn(many(128), Vec::new())), None);
        assert_eq!(fault(&txn(many(129), Vec::new())), Some(Fault::TOO_MANY_OPS));
        let mut nested = many(100);
        nested.push(txn(many(27), many(27)));
        assert_eq!(fault(&txn(nested.clone(), Vec::new())), None);
        nested.push(txn(many(28), Vec::new()));
        assert_eq!(fault(&txn(nested, Vec::new())), Some(Fault::TOO_MANY_OPS));
    }
}
