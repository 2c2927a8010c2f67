//! Trilith itself under the simulator: some seeds pass, equal seeds give equal traces, and a disk that reports log
//! writes too early is noticed.

#![forbid(unsafe_code)]

use trilith_sim::simulation::{Failure, Options, Report, run};
use trilith_sim::trace;
use trilith_sim::trilith::Trilith;
use trilith_sim::weather::USUAL_SECONDS;

fn run_seed(seed: u64, early_acknowledgement: bool) -> Report {
    run::<Trilith>(Options { seed, verbose: false, early_acknowledgement, plain: false, seconds: USUAL_SECONDS })
}

#[test]
fn seeds_pass() {
    let (mut acknowledged, mut crashes) = (0, 0);
    for seed in 1_000_000..1_000_006 {
        let report = run_seed(seed, false);
        if let Some(failure) = &report.failure {
            panic!("{}seed {seed}: {failure}", trace::tail());
        }
        acknowledged += report.acknowledged;
        crashes += report.crashes;
    }
    assert!(acknowledged > 1_000 && crashes > 50, "{acknowledged} acknowledged operations, {crashes} crashes");
}

/// A whole store with a large value, read through a small window on a slow network, once seemed to take for ever.
#[test]
fn a_slow_reader_of_everything_is_no_hang() {
    let options = Options { seed: 505_450, verbose: false, early_acknowledgement: false, plain: false, seconds: 3 };
    assert_eq!(run::<Trilith>(options).failure, None);
}

/// Seeds that once found something: a removed file asked for, a start refused beside a stale superblock.
#[test]
fn seeds_that_failed_once() {
    for seed in [29, 228] {
        assert_eq!(run_seed(seed, false).failure, None, "seed {seed}");
    }
}

#[test]
fn same_seed_same_trace() {
    for seed in 0..2 {
        let (first, second) = (run_seed(seed, false), run_seed(seed, false));
        assert_eq!((first.trace_hash, first.turns), (second.trace_hash, second.turns), "seed {seed}");
    }
}

/// Either the checker misses acknowledged writes, or the server itself does, and refuses to start or asserts.
#[test]
fn early_acknowledgement_is_caught() {
    let (mut lost, mut refused) = (0, 0);
    for seed in 0..12 {
        match std::panic::catch_unwind(|| run_seed(seed, true).failure) {
            Ok(None) => {}
            Ok(Some(Failure::Correctness(_))) => lost += 1,
            Ok(Some(Failure::Liveness(why))) => {
                assert!(why.contains("refuses to start"), "seed {seed}: {why}");
                refused += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(lost > 0 && refused > 0, "{lost} seeds lost something, {refused} were refused");
}
