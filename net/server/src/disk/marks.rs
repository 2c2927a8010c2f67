//! When the chunks of a store file were last read: one mark each, which several threads may set.
//!
//! Owns: who may change a mark, and how. Does not know: files, blocks, what leaves memory.
//!
//! A mark is the turn of the last read, or 0: the chunk is not in memory. The sequencer owns the marks; other threads,
//! which read through a snapshot ([`super::shared`]), tell of their reads here.
//!
//! Invariants
//! - I1: the owner alone makes a mark 0, or other than 0. Another thread replaces one that is not 0 by a later one, and
//!   that in one step with its look at it: a chunk that the owner has forgotten meanwhile stays forgotten. So the owner
//!   may look and change in two steps: in between, a mark grows at most.
//! - I2: a mark orders no other memory. What a reader's tree names does not change; a mark that it sees early or late
//!   makes it wait for the medium, or look for help, in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// When one chunk was last read.
#[derive(Debug, Default)]
pub(super) struct Mark(AtomicU64);

/// Marks of a file's chunks, none of which is in memory.
pub(super) fn marks(chunks: usize) -> Arc<[Mark]> {
    (0..chunks).map(|_| Mark::default()).collect()
}

impl Mark {
    /// The turn of the last read; 0: not in memory.
    pub(super) fn turn(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The owner's: read in this turn, or (0) no longer in memory.
    pub(super) fn set(&self, turn: u64) {
        self.0.store(turn, Ordering::Relaxed);
    }

    /// The owner's: as [`Self::set`]; whether the chunk was in memory until here.
    pub(super) fn replace(&self, turn: u64) -> bool {
        let was_in_memory = self.turn() > 0;
        self.set(turn);
        was_in_memory
    }

    /// Any thread's: read in this turn, if it is in memory; whether it is. An older turn changes nothing.
    pub(super) fn touch(&self, turn: u64) -> bool {
        self.touch_seen(self.turn(), turn)
    }

    /// As [`Self::touch`], after a look that may be out of date.
    fn touch_seen(&self, mut seen: u64, turn: u64) -> bool {
        while 0 < seen && seen < turn {
            match self.0.compare_exchange_weak(seen, turn, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(changed) => seen = changed,
            }
        }
        seen > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_makes_a_mark_later_and_brings_nothing_back() {
        let mark = Mark::default();
        assert!(!mark.touch(7) && mark.turn() == 0);
        assert!(!mark.replace(3) && mark.touch(7) && mark.turn() == 7);
        assert!(mark.touch(5) && mark.turn() == 7, "a thread that is behind");
        assert!(mark.replace(0) && !mark.touch(8) && mark.turn() == 0);
    }

    #[test]
    fn what_changes_between_a_look_and_its_touch_is_heeded() {
        let mark = Mark::default();
        mark.set(3);
        let seen = mark.turn();
        mark.set(0);
        assert!(!mark.touch_seen(seen, 7) && mark.turn() == 0, "forgotten meanwhile, it stays forgotten");
        mark.set(5);
        assert!(mark.touch_seen(seen, 7) && mark.turn() == 7, "loaded again");
        mark.set(9);
        assert!(mark.touch_seen(seen, 7) && mark.turn() == 9);
    }
}
