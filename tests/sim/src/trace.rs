//! The event trace: a running hash that proves determinism, and the last events for a report.
//!
//! Owns: both. Does not know: what the events mean.
//!
//! Invariants
//! - I1: everything that crosses the port is hashed, bytes included: equal hashes mean equal runs.

use std::collections::VecDeque;
use std::fmt;

/// How many events a report shows.
const TAIL_EVENTS: usize = 200;

/// Hash and tail of a run's events.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    tail: VecDeque<String>,
    verbose: bool,
}

impl Trace {
    /// An empty trace; `verbose` prints each event to stderr as it happens.
    #[must_use]
    pub fn new(verbose: bool) -> Self {
        Self { verbose, ..Self::default() }
    }

    /// Adds an event; `text` is part of the hash.
    pub fn event(&mut self, now: u64, text: fmt::Arguments<'_>) {
        let line = format!("{:>14.6} {text}", now as f64 / 1e6);
        self.hash = xxhash_rust::xxh3::xxh3_64_with_seed(line.as_bytes(), self.hash);
        self.events += 1;
        if self.verbose {
            eprintln!("{line}");
        }
        if self.tail.len() == TAIL_EVENTS {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// Adds bytes to the hash only.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.hash = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.hash);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The last events, oldest first.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}
