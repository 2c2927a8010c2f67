//! What single parts of the engine cost: one thread (but for `batch`), files in memory.
//!
//! Owns: the cases. Does not know: raft, the wire, the disk. `cargo bench --package trilith-bench` measures,
//! `cargo bench --package trilith-bench -- --test` runs every case once.
//!
//! Keys of 64 bytes, values of 256 bytes; "a million" is the number of keys in the index where a case has one.

mod batch;
mod bed;

use std::hint::black_box;
use std::time::{Duration, Instant};

use bed::{Bed, OVERLAY_CHANGES, ROWS, Random, VALUE_BYTES, key};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trilith_engine::budget::Budget;
use trilith_engine::command::{Compare, CompareResult, CompareTarget, Op, Put, RangeQuery, Txn};
use trilith_engine::store::key_entry::{Chain, KeyEntry, Revision};
use trilith_engine::store::overlay::Overlay;
use trilith_engine::store::row_log::{Row, RowEffect, RowLog};

const KEYS: u64 = 1_000_000;

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(4));
    targets = row_append, overlay_insert, on_a_million, old_versions
}
criterion_main!(benches);

/// A row of a chain: what the log gets per change.
fn row_append(criterion: &mut Criterion) {
    let value = [b'v'; VALUE_BYTES];
    let mut rows = RowLog::new(ROWS);
    let mut main = 1;
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    group.bench_function("row append", |bencher| {
        bencher.iter_custom(|count| {
            let mut took = Duration::ZERO;
            let end = main + count as i64;
            while main < end {
                let started = Instant::now();
                for _ in 0..1000.min(end - main) {
                    main += 1;
                    let (at, key) = (Revision { main, sub: 0 }, key(main as u64 % KEYS));
                    let (prev, jump) = (Revision::NONE, Revision::NONE);
                    let row = Row { at, key: &key, value: &value, create: main, version: 1, lease: 0, prev, jump };
                    black_box(rows.append(&row));
                }
                took += started.elapsed();
                write_out(&mut rows);
            }
            took
        });
    });
    group.finish();
}

/// Completes the writes of full blocks without a file: nobody reads them.
fn write_out(rows: &mut RowLog) {
    while let Some(effect) = rows.poll_effect() {
        if let RowEffect::Write(write) = effect {
            rows.handle_write_complete(write.token);
        }
    }
}

/// A change of a random key enters the overlay.
fn overlay_insert(criterion: &mut Criterion) {
    let mut main = 1;
    let mut random = Random::new(3);
    let mut overlay = Overlay::new();
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    group.bench_function("overlay insert", |bencher| {
        bencher.iter(|| {
            if overlay.len() >= OVERLAY_CHANGES {
                overlay = Overlay::new();
            }
            main += 1;
            let entry = KeyEntry {
                row: Revision { main, sub: 0 },
                create: main,
                version: 1,
                lease: 0,
                chain: Chain::link(None, -1).chain,
            };
            overlay.put(&key(random.below(KEYS)), entry, true);
        });
    });
    group.finish();
}

/// Everything that works on one store of a million keys.
fn on_a_million(criterion: &mut Criterion) {
    let mut bed = Bed::filled(KEYS);
    index_lookup(criterion, &bed);
    range_thousand(criterion, &bed);
    put(criterion, &mut bed);
    bed = batch::batch(criterion, bed);
    txn(criterion, &mut bed);
    merge(criterion, &mut bed);
}

fn index_lookup(criterion: &mut Criterion, bed: &Bed) {
    let mut random = Random::new(5);
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    let tree = bed.state.keyspace.tree();
    group.bench_function("index lookup, warm", |bencher| {
        bencher.iter(|| tree.get(&key(random.below(KEYS)), &*bed.files).expect("in memory").expect("it was put").len());
    });
    // Cold: every page on the path has its checksum and structure verified first. Reading it from a disk would come
    // on top.
    let (tree, verified) = bed.unverified_tree();
    group.bench_function("index lookup, unverified pages", |bencher| {
        bencher.iter_batched(
            || verified.clear_all(),
            |()| tree.get(&key(random.below(KEYS)), &*bed.files).expect("in memory").expect("it was put").len(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn range_thousand(criterion: &mut Criterion, bed: &Bed) {
    let mut random = Random::new(7);
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("range of 1,000", |bencher| {
        bencher.iter(|| {
            let first = random.below(KEYS - 1000);
            let (from, to) = (key(first), key(first + 1000));
            let query = RangeQuery { key: &from, range_end: &to, ..RangeQuery::default() };
            assert_eq!(range_rows(bed, &query), 1000);
        });
    });
    group.finish();
}

/// The number of rows a range answers.
fn range_rows(bed: &Bed, query: &RangeQuery<'_>) -> usize {
    let outcome = bed.state.keyspace.range(query, &mut Budget::unlimited(), &*bed.files);
    let outcome = outcome.expect("in memory").expect("a valid range");
    black_box(&outcome.rows).len()
}

fn put(criterion: &mut Criterion, bed: &mut Bed) {
    let mut random = Random::new(9);
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    // Checkpoints, as often as the server's trigger asks for them, are left out: `merge` shows them.
    group.bench_function("put through a keyspace", |bencher| {
        bencher.iter_custom(|count| {
            let started = Instant::now();
            let mut checkpoints = Duration::ZERO;
            for _ in 0..count {
                bed.put(&key(random.below(KEYS)));
                checkpoints += bed.checkpoint_if_due();
            }
            started.elapsed() - checkpoints
        });
    });
    group.finish();
    bed.checkpoint();
}

/// The transaction of a lock: create if absent, else read.
fn txn(criterion: &mut Criterion, bed: &mut Bed) {
    let mut random = Random::new(11);
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    group.bench_function("txn: compare, put", |bencher| {
        bencher.iter_custom(|count| {
            let value = [b'v'; VALUE_BYTES];
            let mut took = Duration::ZERO;
            for _ in 0..count {
                let key = key(random.below(KEYS));
                let compare = Compare {
                    key: &key,
                    range_end: &[],
                    result: CompareResult::Greater,
                    target: CompareTarget::Version(0),
                };
                let put = Op::Put(Put { key: &key, value: &value, ..Put::default() });
                let get = Op::Range(RangeQuery { key: &key, ..RangeQuery::default() });
                let txn = Txn { compares: vec![compare], success: vec![put], failure: vec![get] };
                let started = Instant::now();
                let outcome = bed.state.keyspace.apply_txn(&txn, &mut Budget::unlimited(), &*bed.files);
                took += started.elapsed();
                let outcome = outcome.expect("in memory").expect("a valid txn");
                assert!(outcome.succeeded, "every key exists");
                bed.publish();
                bed.checkpoint_if_due();
            }
            took
        });
    });
    group.finish();
    bed.checkpoint();
}

/// A checkpoint's merge of random changes into a tree of a million keys, per change.
fn merge(criterion: &mut Criterion, bed: &mut Bed) {
    let mut group = criterion.benchmark_group("engine");
    group.sample_size(10);
    for changes in [10_000, 350_000] {
        let mut random = Random::new(13);
        group.throughput(Throughput::Elements(changes));
        group.bench_function(BenchmarkId::new("merge", changes), |bencher| {
            bencher.iter_custom(|count| {
                let mut took = Duration::ZERO;
                for _ in 0..count {
                    while (bed.state.keyspace.overlay().len() as u64) < changes {
                        bed.put(&key(random.below(KEYS)));
                    }
                    took += bed.checkpoint();
                }
                took
            });
        });
    }
    group.finish();
}

/// A key at a random old revision, found by jump pointers.
fn old_versions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    for versions in [10_i64, 10_000] {
        let mut bed = Bed::new();
        let key = key(1);
        for _ in 0..versions {
            bed.put(&key);
        }
        let (first, mut random) = (2, Random::new(15));
        group.bench_function(BenchmarkId::new("key at a revision, versions", versions), |bencher| {
            bencher.iter(|| {
                let revision = first + random.below(versions as u64) as i64;
                let query = RangeQuery { key: &key, revision, ..RangeQuery::default() };
                assert_eq!(range_rows(&bed, &query), 1);
            });
        });
    }
    group.finish();
}
