//! Every target on its seeds, its corpus and a fixed number of seeded mutations.

use trilith_fuzz::{TARGETS, Target, run};

/// Mutations of the cheapest target; `TRILITH_FUZZ_ROUNDS` replaces it.
const ROUNDS: u64 = 200_000;

fn rounds() -> u64 {
    match std::env::var("TRILITH_FUZZ_ROUNDS") {
        Ok(text) => text.parse().expect("TRILITH_FUZZ_ROUNDS is a number"),
        Err(_) => ROUNDS,
    }
}

fn replay(target: &Target) {
    for (index, seed) in (target.seeds)().into_iter().enumerate() {
        assert!(run::try_input(target, &format!("seed input {index}"), seed), "{}: seed {index} is valid", target.name);
    }
    for (index, input) in run::corpus(target).expect("the corpus is readable").into_iter().enumerate() {
        run::try_input(target, &format!("corpus input {index}"), input);
    }
    let rounds = rounds().div_ceil(target.cost);
    let outcome = run::fuzz(target, 1, rounds).expect("the corpus is readable");
    println!("{}: {} tried, {} accepted", target.name, outcome.tried, outcome.accepted);
    assert_eq!(outcome.tried, rounds);
    // Mutations that never leave anything valid would test the first check alone.
    assert!(outcome.accepted > 0, "{}: no mutation was accepted", target.name);
    assert!(outcome.accepted < outcome.tried, "{}: no mutation was rejected", target.name);
}

/// One test per target, so that a finding does not hide another.
macro_rules! replays {
    ($($test:ident = $name:literal;)*) => {
        $(#[test]
        fn $test() {
            run::report_findings();
            let target = TARGETS.iter().find(|target| target.name == $name).expect("the target exists");
            replay(target);
        })*

        #[test]
        fn every_target_has_its_test() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

replays! {
    proto = "proto";
    hpack = "hpack";
    huffman = "huffman";
    http2 = "http2";
    http1 = "http1";
    command = "command";
    hard_state = "hard-state";
    wal_sector = "wal-sector";
    wal_recovery = "wal-recovery";
    page = "page";
    superblock = "superblock";
    store_recovery = "store-recovery";
}

#[test]
fn every_corpus_folder_belongs_to_a_target() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
    for entry in std::fs::read_dir(folder).expect("the corpus is readable") {
        let name = entry.expect("the corpus is readable").file_name();
        assert!(TARGETS.iter().any(|target| *target.name == *name), "{name:?}");
    }
}
