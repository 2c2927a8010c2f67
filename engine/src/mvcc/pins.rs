//! Revisions that readers hold on to.
//!
//! Owns: how many readers stand at which revision. Does not know: what is reclaimed, for how long a reader may hold on.
//!
//! Invariants
//! - I1: a pin is given up once, by the hand that took it.

use std::collections::BTreeMap;

/// A hold on a revision: every row visible at or above it stays readable until it is given back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a pin holds history until it is given back"]
pub struct Pin {
    revision: i64,
}

impl Pin {
    /// The revision held.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }
}

/// All pins of a keyspace.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    readers: BTreeMap<i64, u32>,
}

impl Pins {
    pub(crate) fn take(&mut self, revision: i64) -> Pin {
        *self.readers.entry(revision).or_default() += 1;
        Pin { revision }
    }

    pub(crate) fn give_back(&mut self, pin: &Pin) {
        let readers = self.readers.get_mut(&pin.revision).expect("I1: a pin is given back once");
        *readers -= 1;
        if *readers == 0 {
            self.readers.remove(&pin.revision);
        }
    }

    pub(crate) fn oldest(&self) -> Option<i64> {
        self.readers.first_key_value().map(|(&revision, _)| revision)
    }
}
