//! The event trace: a running hash that proves determinism, and the last events for a report.
//!
//! Owns: both; the last events are kept per thread, so that a panic hook can print them. Does not know: what the events
//! mean.
//!
//! Invariants
//! - I1: everything that crosses the port is hashed, bytes included: equal hashes mean equal runs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};

use crate::weather::MILLISECOND;

/// How many events a report shows.
const TAIL_EVENTS: usize = 200;

thread_local! {
    static TAIL: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// Hash of a run's events.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    prefix: &'static str,
    verbose: bool,
}

impl Trace {
    /// The trace of a run that begins on this thread; `verbose` prints each event to stderr as it happens.
    #[must_use]
    pub fn begin(verbose: bool) -> Self {
        TAIL.with_borrow_mut(VecDeque::clear);
        Self { hash: 0, prefix: "", verbose }
    }

    /// The trace of something inside that run, marked by `prefix`.
    #[must_use]
    pub fn inside(&self, prefix: &'static str) -> Self {
        Self { hash: 0, prefix, verbose: self.verbose }
    }

    /// Adds an event at `now`; its text is part of the hash.
    pub fn event(&mut self, now: u64, text: fmt::Arguments<'_>) {
        let (milliseconds, nanoseconds) = (now / MILLISECOND, now % MILLISECOND);
        TAIL.with_borrow_mut(|tail| {
            // The oldest line's room is taken again: a run has hundreds of thousands of events.
            let mut line = if tail.len() < TAIL_EVENTS { String::new() } else { tail.pop_front().unwrap_or_default() };
            line.clear();
            write!(line, "{}{milliseconds:>7}.{nanoseconds:06} {text}", self.prefix).expect("a string takes any text");
            self.hash = xxhash_rust::xxh3::xxh3_64_with_seed(line.as_bytes(), self.hash);
            if self.verbose {
                eprintln!("{line}");
            }
            tail.push_back(line);
        });
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
}

/// The last events of this thread's run, oldest first, one a line.
#[must_use]
pub fn tail() -> String {
    TAIL.with_borrow(|tail| tail.iter().map(|line| format!("{line}\n")).collect())
}
