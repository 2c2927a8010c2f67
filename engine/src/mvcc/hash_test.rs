//! HashKV against etcd itself: `hash_vectors.txt` holds operations and what etcd 3.7.3 answered to HashKV among them,
//! recorded over its gRPC gateway; etcd was started again after each compaction, since until then it answers with
//! hashes that it took while compacting. The operations make the same revisions here.
//!
//! Lines: `put key value lease`, `del key end`, `txn op..` (`p:key:value:lease` or `d:key:end`), `clear` (all keys),
//! `grant id`, `revoke id`, `compact revision`, and `hash asked hash compacted hashed current`; `-` is empty.

use crate::budget::{Budget, Pause};
use crate::command::{DeleteRange, Op, Put, Txn};
use crate::mvcc::map_tree::{Pages, Warm};
use crate::mvcc::model_bed::{Backing, Maps};
use crate::mvcc::{HashCursor, Keyspace, MvccError};

const RECORDED: &str = include_str!("hash_vectors.txt");

type Space = Keyspace<<Maps as Backing>::Tree>;

fn bytes(word: &str) -> &[u8] {
    if word == "-" { b"" } else { word.as_bytes() }
}

fn put<'a>(words: &[&'a str]) -> Put<'a> {
    Put { key: bytes(words[0]), value: bytes(words[1]), lease: words[2].parse().unwrap(), ..Put::default() }
}

fn delete<'a>(words: &[&'a str]) -> DeleteRange<'a> {
    DeleteRange { key: bytes(words[0]), range_end: bytes(words[1]), prev_kv: false }
}

fn op(text: &str) -> Op<'_> {
    let words: Vec<&str> = text.split(':').collect();
    if words[0] == "p" { Op::Put(put(&words[1..])) } else { Op::DeleteRange(delete(&words[1..])) }
}

fn hash(space: &Space, pages: &Warm<'_>, revision: i64, units: u32) -> (HashCursor, u32) {
    let mut cursor = HashCursor::new(space, revision).unwrap();
    loop {
        match space.hash_kv_step(&mut cursor, &mut Budget::new(units), pages) {
            Ok(hash) => return (cursor, hash),
            Err(pause) => assert_eq!(pause, Pause::Budget),
        }
    }
}

fn apply(space: &mut Space, pages: &Warm<'_>, words: &[&str]) {
    let budget = &mut Budget::unlimited();
    match words[0] {
        "put" => drop(space.apply_put(&put(&words[1..]), budget, pages).unwrap().unwrap()),
        "del" => drop(space.apply_delete_range(&delete(&words[1..]), budget, pages).unwrap().unwrap()),
        "clear" => drop(space.apply_delete_range(&delete(&["\0", "\0"]), budget, pages).unwrap().unwrap()),
        "txn" => {
            let success = words[1..].iter().map(|word| op(word)).collect();
            let txn = Txn { compares: vec![], success, failure: vec![] };
            drop(space.apply_txn(&txn, budget, pages).unwrap().unwrap());
        }
        "grant" => space.apply_lease_grant(words[1].parse().unwrap(), 100).unwrap(),
        "revoke" => drop(space.apply_lease_revoke(words[1].parse().unwrap(), budget, pages).unwrap().unwrap()),
        "compact" => drop(space.apply_compact(words[1].parse().unwrap()).unwrap()),
        other => panic!("{other}"),
    }
}

#[test]
fn hash_kv_is_what_etcd_answers() {
    let mut pages = Pages::default();
    let mut space = Maps::new(&mut pages).restart(&mut pages).open(&pages.disk);
    let pages = Warm(&pages.disk);
    let mut compared = 0;
    for (index, line) in RECORDED.lines().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == "hash" {
            let numbers: Vec<i64> = words[1..].iter().map(|word| word.parse().unwrap()).collect();
            let (cursor, hash) = hash(&space, &pages, numbers[0], 1 + compared);
            let got = [numbers[0], i64::from(hash), cursor.compacted(), cursor.revision(), cursor.published()];
            assert_eq!(got, numbers[..], "line {}", index + 1);
            compared += 1;
        } else {
            apply(&mut space, &pages, &words);
            space.publish(index as u64);
        }
    }
    assert!(compared > 30, "{compared} hashes were compared");
}

#[test]
fn revisions_out_of_reach_are_refused() {
    let mut pages = Pages::default();
    let mut space = Maps::new(&mut pages).restart(&mut pages).open(&pages.disk);
    let pages = Warm(&pages.disk);
    for _ in 0..3 {
        apply(&mut space, &pages, &["put", "k", "v", "0"]);
    }
    apply(&mut space, &pages, &["compact", "3"]);
    space.publish(1);
    assert_eq!(HashCursor::new(&space, 5).err(), Some(MvccError::FutureRevision));
    assert_eq!(HashCursor::new(&space, 2).err(), Some(MvccError::Compacted));
    assert_eq!(hash(&space, &pages, 0, 1).1, hash(&space, &pages, 4, 100).1, "0 is the newest");
    assert_ne!(hash(&space, &pages, 0, 1).1, hash(&space, &pages, 3, 1).1);
    assert_eq!(hash(&space, &pages, -1, 1).1, crc32c::crc32c(b"key"), "no row is that old");
}
