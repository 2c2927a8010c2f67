//! The loop: seeds and corpus first, then mutations of both.
//!
//! Owns: the corpus on disk and the report of a finding.
//!
//! Invariants:
//! - I1: the input under test is kept where a panic hook finds it, so that a finding is reported even where a panic
//!   aborts the process.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Once;
use std::{fs, io};

use crate::Target;
use crate::mutate::{Random, mutate};

/// Bytes of an input that a report prints.
const REPORT_BYTES_MAX: usize = 8192;

thread_local! {
    /// What is being tested: target, seed and round, input.
    static CURRENT: RefCell<(String, Vec<u8>)> = const { RefCell::new((String::new(), Vec::new())) };
}

/// Makes every later panic print the input under test, as hexadecimal digits.
pub fn report_findings() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            CURRENT.with_borrow(|(what, input)| print_finding(what, input));
            before(panic);
        }));
    });
}

fn print_finding(what: &str, input: &[u8]) {
    // A panic elsewhere is no finding.
    if !what.is_empty() {
        let shown = &input[..input.len().min(REPORT_BYTES_MAX)];
        let digits: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("finding in {what}, {} bytes: {digits}", input.len());
    }
}

/// The committed inputs of a target, in the order of their names.
pub fn corpus(target: &Target) -> io::Result<Vec<Vec<u8>>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut paths = Vec::new();
    match fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry?.path());
            }
        }
        // A target need not have one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    paths.sort();
    paths.into_iter().map(fs::read).collect()
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Inputs tried.
    pub tried: u64,
    /// Of these, accepted as valid.
    pub accepted: u64,
}

/// Tries one input.
pub fn try_input(target: &Target, what: &str, input: Vec<u8>) -> bool {
    CURRENT.set((format!("{}, {what}", target.name), input.clone()));
    let accepted = (target.run)(&input);
    CURRENT.with_borrow_mut(|current| current.0.clear());
    accepted
}

/// Tries `rounds` mutations of the seeds and the corpus.
pub fn fuzz(target: &Target, seed: u64, rounds: u64) -> io::Result<Outcome> {
    let mut inputs = (target.seeds)();
    inputs.extend(corpus(target)?);
    let mut outcome = Outcome::default();
    for round in 0..rounds {
        let mut random = Random::new(seed.wrapping_mul(0x1_0000_0001).wrapping_add(round));
        let mut input = inputs[random.below(inputs.len())].clone();
        let other = &inputs[random.below(inputs.len())];
        mutate(&mut random, &mut input, other);
        // One in four keeps its broken checksums: rejecting those is part of the format.
        if random.below(4) != 0 {
            (target.repair)(&mut input);
        }
        let accepted = try_input(target, &format!("seed {seed} round {round}"), input);
        outcome.tried += 1;
        outcome.accepted += u64::from(accepted);
    }
    Ok(outcome)
}
