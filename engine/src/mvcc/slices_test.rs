//! Large commands and reads over a large keyspace, slice by slice; and single cases from etcd's history of bugs.

use crate::budget::{Budget, Pause, price};
use crate::command::{
    Compare, CompareResult, CompareTarget, DeleteRange, Op, Put, RangeQuery, SortOrder, SortTarget, Txn,
};
use crate::mvcc::hash::EVERYTHING;
use crate::mvcc::map_tree::{Pages, Warm};
use crate::mvcc::model_bed::{Backing, Maps};
use crate::mvcc::{HashCursor, Keyspace, LogicalRows, MvccError, OpOutcome, RangeCursor, TxnCursor};
use crate::page_source::Unavailable;

type Space = Keyspace<<Maps as Backing>::Tree>;

const KEYS: usize = 3000;
const ALL: RangeQuery<'static> = RangeQuery { count_only: false, ..EVERYTHING };
const DELETE_ALL: DeleteRange<'static> = DeleteRange { key: b"\0", range_end: b"\0", prev_kv: true };

fn fresh() -> (Space, Pages) {
    let mut pages = Pages::default();
    (Maps::new(&mut pages).restart(&mut pages).open(&pages.disk), pages)
}

fn put(space: &mut Space, pages: &Pages, key: &str, value: &[u8]) {
    let put = Put { key: key.as_bytes(), value, ..Put::default() };
    space.apply_put(&put, &mut Budget::unlimited(), &Warm(&pages.disk)).unwrap().unwrap();
    space.publish(space.published().applied + 1);
}

/// Keys in an order that no sort target shares; rows mostly on file.
fn large() -> (Space, Pages) {
    let (mut space, mut pages) = fresh();
    for index in 0..KEYS {
        let value = vec![b'v'; 40 + index * 37 % 200];
        put(&mut space, &pages, &format!("key/{:05}", index * 1237 % KEYS), &value);
    }
    space.rows_mut().handle_checkpoint();
    pages.disk.drain(space.rows_mut());
    (space, pages)
}

/// Runs slices to the end; returns how many there were.
fn slices<T>(units: u32, mut step: impl FnMut(&mut Budget) -> Result<T, Pause>) -> (T, u32) {
    for count in 1.. {
        let mut budget = Budget::new(units);
        match step(&mut budget) {
            Ok(done) => return (done, count),
            Err(Pause::Budget) => assert!(budget.is_used_up(), "a slice ends for a reason"),
            Err(Pause::Pages(Unavailable::Missing(_))) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    unreachable!()
}

/// Every way to read everything costs at least this, and so takes as many slices.
#[test]
fn no_read_of_everything_is_one_long_step() {
    let (space, pages) = large();
    let pages = Warm(&pages.disk);
    let units = 1000;
    let least = |each: u32| KEYS as u32 * each / (units + 200);
    let walk = least(price::ENTRY);
    let show = walk + least(price::ROW);
    use SortTarget::{Create, Key, Mod, Value, Version};
    let sorted = |sort_target, limit| RangeQuery { sort_target, sort_order: SortOrder::Descend, limit, ..ALL };
    let cases = [
        (ALL, show),
        (sorted(Key, 0), show),
        (sorted(Key, 3), walk),
        // A heap of n compares at least about n times on the way in and n log n times on the way out.
        (sorted(Version, 0), show + 2 * least(price::COMPARISON)),
        (sorted(Create, 0), show + 8 * least(price::COMPARISON)),
        (sorted(Mod, 0), show + 8 * least(price::COMPARISON)),
        (sorted(Value, 0), show + 8 * least(price::COMPARISON)),
        (sorted(Value, 3), walk + least(price::COMPARISON)),
        (RangeQuery { keys_only: true, ..ALL }, show),
        (RangeQuery { min_mod_revision: i64::MAX, ..ALL }, walk),
        (RangeQuery { revision: KEYS as i64 / 2, ..ALL }, walk + show / 2),
        (RangeQuery { revision: KEYS as i64 / 2, count_only: true, ..ALL }, walk / 2),
    ];
    for (query, least) in cases {
        let mut cursor = RangeCursor::new(&space, &query).unwrap();
        let (list, count) = slices(units, |budget| space.range_step(&query, &mut cursor, budget, &pages, &mut |_| {}));
        assert!(count >= least, "{count} slices and not {least}: {query:?}");
        let (again, one) = {
            let mut cursor = RangeCursor::new(&space, &query).unwrap();
            slices(u32::MAX, |budget| space.range_step(&query, &mut cursor, budget, &pages, &mut |_| {}))
        };
        assert_eq!((list, one), (again, 1), "slices do not change the answer: {query:?}");
    }
    let (_, count) = {
        let mut cursor = HashCursor::new(&space, 0).unwrap();
        slices(units, |budget| space.hash_kv_step(&mut cursor, budget, &pages))
    };
    assert!(count >= least(price::NEXT_ROW));
    let compare =
        Compare { key: b"\0", range_end: b"\0", result: CompareResult::Greater, target: CompareTarget::Mod(0) };
    let txn = Txn { compares: vec![compare], success: vec![Op::Range(ALL)], failure: vec![] };
    let mut cursor = TxnCursor::new(&space);
    let (_, count) = slices(units, |budget| space.read_txn_step(&txn, &mut cursor, budget, &pages));
    assert!(count >= walk + show);
}

#[test]
fn a_large_delete_and_transaction_are_invisible_until_they_end() {
    let (mut space, pages) = large();
    let pages = Warm(&pages.disk);
    let txn = Txn { compares: vec![], success: vec![Op::DeleteRange(DELETE_ALL), Op::Range(ALL)], failure: vec![] };
    let counts = RangeQuery { count_only: true, ..ALL };
    for round in 0..2 {
        let before = space.published().revision;
        let mut half_way = 0;
        let (deleted, count) = slices(500, |budget| {
            let read = space.range(&counts, &mut Budget::unlimited(), &pages).unwrap().unwrap();
            half_way += u32::from(space.rows().newest().main > before);
            assert_eq!((read.count, space.published().revision), (KEYS as i64, before));
            let deleted = if round == 0 {
                space.apply_delete_range(&DELETE_ALL, budget, &pages)?.unwrap().deleted
            } else {
                let outcome = space.apply_txn(&txn, budget, &pages)?.unwrap();
                let [OpOutcome::DeleteRange(delete), OpOutcome::Range(rest)] = &outcome.responses[..] else {
                    panic!("two answers")
                };
                assert_eq!((rest.count, delete.prev.len()), (0, KEYS));
                delete.deleted
            };
            Ok(deleted)
        });
        assert_eq!((deleted, space.state().revision), (KEYS as i64, before + 1));
        assert!(
            count > KEYS as u32 * price::CHANGE / 700 && half_way > 10,
            "{count} slices, {half_way} in mid-install"
        );
        space.publish(space.published().applied + 1);
        let read = space.range(&counts, &mut Budget::unlimited(), &pages).unwrap().unwrap();
        assert_eq!(read.count, 0);
        if round == 0 {
            for index in 0..KEYS {
                let key = format!("key/{index:05}");
                let put = Put { key: key.as_bytes(), ..Put::default() };
                space.apply_put(&put, &mut Budget::unlimited(), &pages).unwrap().unwrap();
            }
            space.publish(space.published().applied + 1);
        }
    }
}

/// A page source that remembers what it lacked has learnt of many pages when an evaluation pauses.
#[test]
fn cold_rows_are_asked_for_by_the_dozen() {
    let (mut space, pages) = large();
    let pauses = |pages: &Pages, step: &mut dyn FnMut(&Pages) -> bool| {
        pages.resident.borrow_mut().clear();
        let (misses, mut pauses) = (pages.misses.get(), 0);
        while !step(pages) {
            pauses += 1;
        }
        (pauses, pages.misses.get() - misses)
    };
    let query = RangeQuery { sort_target: SortTarget::Value, ..ALL };
    let mut cursor = RangeCursor::new(&space, &query).unwrap();
    let (paused, missed) = pauses(&pages, &mut |pages| {
        space.range_step(&query, &mut cursor, &mut Budget::unlimited(), pages, &mut |_| {}).is_ok()
    });
    assert!(missed > 100 && paused < missed / 8, "{paused} pauses for {missed} pages of a range");
    let (paused, missed) =
        pauses(&pages, &mut |pages| space.apply_delete_range(&DELETE_ALL, &mut Budget::unlimited(), pages).is_ok());
    assert!(missed > 100 && paused < missed / 8, "{paused} pauses for {missed} pages of a delete");
}

/// etcd 3.7.3 panics here, and again at every start.
#[test]
fn a_put_that_keeps_what_a_from_key_delete_removed_is_key_not_found() {
    let (mut space, pages) = fresh();
    put(&mut space, &pages, "k", b"v");
    let before = (space.state(), space.rows().newest());
    let delete = || Op::DeleteRange(DeleteRange { key: b"a", range_end: b"\0", prev_kv: true });
    let keep = |ignore_value, ignore_lease| Op::Put(Put { key: b"k", ignore_value, ignore_lease, ..Put::default() });
    let nested = |op| Op::Txn(Txn { compares: vec![], success: vec![op], failure: vec![] });
    for (ignore_value, ignore_lease) in [(true, false), (false, true), (true, true)] {
        let keep = || keep(ignore_value, ignore_lease);
        for success in [
            vec![delete(), keep()],
            vec![delete(), nested(keep())],
            vec![nested(delete()), keep()],
            vec![nested(delete()), nested(nested(keep()))],
        ] {
            let txn = Txn { compares: vec![], success, failure: vec![] };
            assert_eq!(crate::mvcc::check::check_txn(&txn, 128), Ok(()), "etcd lets it pass");
            let (got, _) = slices(1, |budget| space.apply_txn(&txn, budget, &Warm(&pages.disk)));
            assert_eq!(got, Err(MvccError::KeyNotFound));
            assert_eq!((space.state(), space.rows().newest()), before, "nothing is applied");
            assert!(!space.is_mid_command());
        }
    }
    let txn = Txn { compares: vec![], success: vec![delete(), keep(false, false)], failure: vec![] };
    let (got, _) = slices(1, |budget| space.apply_txn(&txn, budget, &Warm(&pages.disk)));
    assert_eq!(got.unwrap().revision, 3, "a put of its own value is a new generation");
}

/// etcd applied such transactions differently on different members (18667).
#[test]
fn a_transaction_with_a_range_out_of_reach_changes_nothing() {
    let (mut space, pages) = fresh();
    (0..5).for_each(|_| put(&mut space, &pages, "k", b"v"));
    space.apply_compact(4).unwrap();
    let before = space.state();
    for (revision, error) in [(3, MvccError::Compacted), (-1, MvccError::Compacted), (7, MvccError::FutureRevision)] {
        let range = Op::Range(RangeQuery { revision, ..ALL });
        for success in [
            vec![Op::Put(Put { key: b"k", ..Put::default() }), range.clone()],
            vec![range.clone(), Op::DeleteRange(DELETE_ALL)],
            vec![Op::DeleteRange(DELETE_ALL), Op::Txn(Txn { success: vec![range.clone()], ..Txn::default() })],
        ] {
            let txn = Txn { success, ..Txn::default() };
            let (got, _) = slices(1, |budget| space.apply_txn(&txn, budget, &Warm(&pages.disk)));
            assert_eq!((got, space.state()), (Err(error), before), "revision {revision}");
        }
    }
}

/// A watch from that revision on must still meet the delete (18089, 19179).
#[test]
fn a_delete_at_the_compacted_revision_stays_in_the_history_and_one_below_does_not() {
    let (mut space, pages) = fresh();
    let warm = Warm(&pages.disk);
    let history = |space: &Space| {
        let (mut rows, mut seen) = (LogicalRows::new(space, space.published().revision), Vec::new());
        slices(1, |budget| rows.step(space, budget, &warm, &mut |row| seen.push((row.at.main, row.is_tombstone()))));
        seen
    };
    put(&mut space, &pages, "a", b"1");
    put(&mut space, &pages, "b", b"2");
    let delete = DeleteRange { key: b"a", range_end: b"", prev_kv: false };
    space.apply_delete_range(&delete, &mut Budget::unlimited(), &warm).unwrap().unwrap();
    put(&mut space, &pages, "b", b"3");
    assert_eq!(history(&space), [(2, false), (3, false), (4, true), (5, false)]);
    space.apply_compact(4).unwrap();
    assert_eq!(history(&space), [(3, false), (4, true), (5, false)], "what is live at the compacted revision, too");
    space.apply_compact(5).unwrap();
    assert_eq!(history(&space), [(5, false)]);
}

/// The pre-checks walk the path in order; a lease is looked for before a key.
#[test]
fn the_first_fault_on_the_path_is_the_answer() {
    let (mut space, pages) = fresh();
    let lease = Op::Put(Put { key: b"k", lease: 9, ..Put::default() });
    let both = Op::Put(Put { key: b"k", lease: 9, ignore_value: true, ..Put::default() });
    let kept = Op::Put(Put { key: b"k", ignore_lease: true, ..Put::default() });
    let future = Op::Range(RangeQuery { revision: 99, ..ALL });
    let cases = [
        (vec![lease.clone(), kept.clone(), future.clone()], MvccError::LeaseNotFound),
        (vec![both, future.clone()], MvccError::LeaseNotFound),
        (vec![kept.clone(), lease.clone(), future.clone()], MvccError::KeyNotFound),
        (vec![future.clone(), lease.clone()], MvccError::FutureRevision),
        (vec![Op::Txn(Txn { success: vec![future], ..Txn::default() }), kept], MvccError::FutureRevision),
    ];
    for (success, error) in cases {
        let ignored = vec![lease.clone()];
        let txn = Txn { compares: vec![], success, failure: ignored };
        let (got, _) = slices(1, |budget| space.apply_txn(&txn, budget, &Warm(&pages.disk)));
        assert_eq!(got, Err(error));
    }
}
