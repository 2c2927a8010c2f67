//! The entries in memory.
//!
//! Owns: what lies between the oldest entry still needed and the end of the log, and how far it has been handed to the
//! WAL. Does not know: terms in force, durability, peers.
//!
//! Invariants
//! - I1: indexes are consecutive from `base`, terms never fall, digests chain.
//! - I2: entries up to `planned` were issued to the WAL; only those may leave memory.

use std::collections::VecDeque;

use crate::entry::{Entry, LogPosition};
use crate::ids::Index;

/// Counted for each entry besides its payload.
const ENTRY_OVERHEAD_BYTES: usize = 96;

#[derive(Debug)]
pub(crate) struct Log {
    base: LogPosition,
    entries: VecDeque<Entry>,
    planned: Index,
    bytes: usize,
}

impl Log {
    /// A log as recovered: all of it is in the WAL.
    pub(crate) fn new(base: LogPosition, entries: Vec<Entry>) -> Self {
        let mut log = Self { base, entries: VecDeque::new(), planned: base.index, bytes: 0 };
        for entry in entries {
            log.push(entry);
        }
        log.planned = log.last().index;
        log
    }

    pub(crate) fn last(&self) -> LogPosition {
        self.entries.back().map_or(self.base, Entry::position)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn at(&self, index: Index) -> Option<usize> {
        let at = index.0.checked_sub(self.base.index.0)?.checked_sub(1)?;
        usize::try_from(at).ok().filter(|at| *at < self.entries.len())
    }

    pub(crate) fn entry(&self, index: Index) -> Option<&Entry> {
        self.at(index).map(|at| &self.entries[at])
    }

    /// The identity of the prefix that ends at `index`, if its last entry is known.
    pub(crate) fn position(&self, index: Index) -> Option<LogPosition> {
        if index == self.base.index {
            return Some(self.base);
        }
        self.entry(index).map(Entry::position)
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        let last = self.last();
        assert_eq!(entry.index, last.index.next(), "I1: indexes are consecutive");
        assert!(entry.term >= last.term, "I1: terms never fall");
        self.bytes += entry.payload.len() + ENTRY_OVERHEAD_BYTES;
        self.entries.push_back(entry);
    }

    /// Removes the entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: Index) {
        let at = self.at(index).expect("what is truncated is in memory");
        let removed: usize = self.entries.iter().skip(at).map(|entry| entry.payload.len() + ENTRY_OVERHEAD_BYTES).sum();
        self.entries.truncate(at);
        self.bytes -= removed;
        self.planned = self.planned.min(index.previous());
        assert_eq!(self.last().index, index.previous(), "I1: the log ends before what was removed");
    }

    /// The entries not yet handed to the WAL, and the position they follow.
    pub(crate) fn unplanned(&self) -> (LogPosition, impl Iterator<Item = &Entry>) {
        let previous = self.position(self.planned).expect("I2: the last planned position is known");
        let from = self.at(self.planned.next()).unwrap_or(self.entries.len());
        (previous, self.entries.range(from..))
    }

    pub(crate) fn has_unplanned(&self) -> bool {
        self.planned < self.last().index
    }

    pub(crate) fn mark_planned(&mut self, index: Index) {
        assert!(index > self.planned && index <= self.last().index, "I2: planning goes forward");
        self.planned = index;
    }

    /// Consecutive entries from `index` on, the first whatever its size, within `bytes_max` of payload.
    pub(crate) fn slice(&self, index: Index, bytes_max: usize) -> Vec<Entry> {
        let mut slice = Vec::new();
        let mut bytes = 0usize;
        let from = self.at(index).unwrap_or(self.entries.len());
        for entry in self.entries.range(from..) {
            bytes = bytes.saturating_add(entry.payload.len());
            if bytes > bytes_max && !slice.is_empty() {
                break;
            }
            slice.push(entry.clone());
        }
        slice
    }

    /// Lets entries up to `index` leave memory while more than `keep_bytes` are held.
    pub(crate) fn release(&mut self, index: Index, keep_bytes: usize) {
        let index = index.min(self.planned);
        while let Some(entry) = self.entries.front() {
            if entry.index > index || self.bytes <= keep_bytes {
                break;
            }
            self.base = entry.position();
            self.bytes -= entry.payload.len() + ENTRY_OVERHEAD_BYTES;
            self.entries.pop_front();
        }
    }
}
