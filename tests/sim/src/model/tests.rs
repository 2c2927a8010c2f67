//! Tests of the reference model, by hand-made examples.

use super::*;

fn put(key: &[u8], value: &[u8]) -> Request {
    Request::Put(Put { key: key.to_vec(), value: value.to_vec(), prev_kv: true, ..Put::default() })
}

fn delete(key: &[u8]) -> Request {
    Request::Delete(Delete { range: KeyRange::single(key.to_vec()), prev_kv: false })
}

fn compare(key: &[u8], relation: Relation, target: Target) -> Compare {
    Compare { range: KeyRange::single(key.to_vec()), relation, target }
}

fn apply(model: &mut Model, request: &Request) -> Answer {
    model.apply(request, -1).expect("nothing is wrong with it")
}

#[test]
fn lives_of_a_key() {
    let mut model = Model::new();
    assert_eq!(apply(&mut model, &put(b"k", b"1")).kvs, []);
    assert_eq!(apply(&mut model, &put(b"k", b"2")).kvs[0].version, 1);
    assert_eq!(apply(&mut model, &delete(b"k")).count, 1);
    assert_eq!((apply(&mut model, &delete(b"k")).count, model.revision()), (0, 4));
    assert_eq!(apply(&mut model, &put(b"k", b"3")).kvs, []);
    let at = |revision| {
        let pair = model.range(&KeyRange::everything(), revision).next();
        pair.map(|pair| (pair.create_revision, pair.mod_revision, pair.version, pair.value))
    };
    assert_eq!(at(1), None);
    assert_eq!(at(2), Some((2, 2, 1, Value::of(b"1"))));
    assert_eq!(at(3), Some((2, 3, 2, Value::of(b"2"))));
    assert_eq!(at(4), None);
    assert_eq!(at(5), Some((5, 5, 1, Value::of(b"3"))));
}

#[test]
fn a_transaction_takes_one_revision_and_reads_its_own_writes() {
    let mut model = Model::new();
    apply(&mut model, &put(b"a", b"1"));
    let compares = vec![compare(b"a", Relation::Equal, Target::Value(b"1".to_vec()))];
    let success = vec![Request::read_everything(0), put(b"b", b"2"), delete(b"a"), Request::read_everything(0)];
    let txn = Request::Txn(Txn { compares, success, failure: vec![delete(b"a")] });
    let answer = apply(&mut model, &txn);
    assert!(answer.succeeded && answer.revision == 3 && model.revision() == 3);
    let revisions: Vec<i64> = answer.inner.iter().map(|inner| inner.revision).collect();
    assert_eq!(revisions, [2, 3, 3, 3]);
    assert_eq!((answer.inner[0].count, answer.inner[3].kvs[0].key.as_slice()), (1, b"b".as_slice()));
    let answer = apply(&mut model, &txn);
    assert!(!answer.succeeded && answer.revision == 3 && answer.inner[0].count == 0);
}

#[test]
fn nested_compares_see_the_state_before() {
    let mut model = Model::new();
    let absent = || vec![compare(b"a", Relation::Equal, Target::Version(0))];
    let nested = Request::Txn(Txn { compares: absent(), success: vec![put(b"b", b"then")], failure: Vec::new() });
    let outer = Txn { compares: Vec::new(), success: vec![put(b"a", b"1"), nested], failure: Vec::new() };
    let answer = apply(&mut model, &Request::Txn(outer));
    assert!(answer.inner[1].succeeded && answer.inner[1].revision == 0 && model.get(b"b", 2).is_some());
}

#[test]
fn a_put_that_keeps_needs_something_there_even_after_a_delete_of_the_same_transaction() {
    let mut model = Model::new();
    apply(&mut model, &put(b"a", b"1"));
    let keep = Request::Put(Put { key: b"a".to_vec(), ignore_value: true, ..Put::default() });
    let range = KeyRange { key: b"a".to_vec(), range_end: vec![0] };
    let all = Request::Delete(Delete { range, prev_kv: false });
    let txn = Request::Txn(Txn { compares: Vec::new(), success: vec![all, keep.clone()], failure: Vec::new() });
    assert_eq!(model.apply(&txn, -1), Err(Fault::KEY_NOT_FOUND));
    assert_eq!(model.revision(), 2);
    assert_eq!(apply(&mut model, &keep).revision, 3);
    assert_eq!(model.get(b"a", 3).map(|pair| (pair.value, pair.version)), Some((Value::of(b"1"), 2)));
}

#[test]
fn limits_filters_and_sorts() {
    let mut model = Model::new();
    for (key, value) in [(b"a", b"3"), (b"b", b"1"), (b"c", b"2"), (b"a", b"0")] {
        apply(&mut model, &put(key, value));
    }
    let whole = Range::whole(KeyRange::everything(), 0);
    let keys = |range: Range| {
        let (answer, _) = model.evaluate(&Request::Range(range), 5, -1).expect("nothing is wrong with it");
        (answer.kvs.iter().map(|pair| char::from(pair.key[0])).collect::<String>(), answer.count, answer.more)
    };
    let by_value = Range { target: SortTarget::Value, ..whole.clone() };
    assert_eq!(keys(by_value.clone()), ("abc".to_owned(), 3, false));
    assert_eq!(keys(Range { order: SortOrder::Descend, limit: 2, ..by_value.clone() }), ("cb".to_owned(), 3, true));
    // Without an order the limit counts keys first: a and b (and one more) are looked at.
    let by_mod = Range { target: SortTarget::Mod, limit: 1, ..whole.clone() };
    assert_eq!(keys(by_mod), ("b".to_owned(), 3, true));
    assert_eq!(keys(Range { min_mod: 4, ..whole.clone() }), ("ac".to_owned(), 3, false));
    assert_eq!(keys(Range { count_only: true, limit: 1, ..whole.clone() }), (String::new(), 3, false));
    assert_eq!(keys(Range { revision: 2, ..whole }), ("a".to_owned(), 1, false));
}

#[test]
fn what_is_compacted_or_not_there_yet_is_refused() {
    let mut model = Model::new();
    (0..3).for_each(|_| drop(apply(&mut model, &put(b"a", b"1"))));
    let read = |revision| Request::read_everything(revision);
    assert_eq!(model.apply(&read(5), 3), Err(Fault::FUTURE));
    assert_eq!(model.apply(&read(2), 3), Err(Fault::COMPACTED));
    assert!(model.apply(&read(3), 3).is_ok() && model.apply(&read(-1), 3).is_ok());
    let in_txn = Request::Txn(Txn { compares: Vec::new(), success: vec![read(-1)], failure: Vec::new() });
    assert_eq!(model.apply(&in_txn, 3), Err(Fault::COMPACTED));
    assert!(model.apply(&in_txn, -1).is_ok());
}

#[test]
fn ranges_as_etcd_encodes_them() {
    let range = |key: &[u8], end: &[u8]| KeyRange { key: key.to_vec(), range_end: end.to_vec() };
    assert!(range(b"b", b"").contains(b"b") && !range(b"b", b"").contains(b"ba"));
    assert!(range(b"b", b"\0").contains(b"z") && !range(b"b", b"\0").contains(b"a"));
    assert!(range(b"b", b"c").contains(b"bz") && !range(b"b", b"c").contains(b"c"));
    assert!(!range(b"b", b"b").contains(b"b") && !range(b"c", b"b").contains(b"b"));
    assert!(range(b"c", b"b").bounds().is_none() && range(b"b", b"b").bounds().is_none());
}
