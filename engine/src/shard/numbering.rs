//! From provisional revisions to final ones.
//!
//! Owns: the arithmetic, and its way through changes and answers. Does not know: who evaluates, what is installed
//! where.
//!
//! Shards evaluate a round without knowing which commands of other shards change something. So they number as if every
//! command did: command i of a round over revision `base` (i from 0) reads at `base + i` and writes at `base + i + 1`.
//! The final number of `base + i` is `base` plus the commands below i that changed something: this keeps the order of
//! all rows, is never above the provisional one, and maps a header's revision by the same rule.
//!
//! Invariants
//! - I1: the map is strictly monotone over the rows of a round, so what was sorted stays sorted and what was chained
//!   stays chained.

use crate::mvcc::OpOutcome;
use crate::mvcc::changes::Change;
use crate::store::key_entry::Revision;

/// The final numbers of a round, as far as it is installed.
#[derive(Debug)]
pub(super) struct Numbering {
    base: i64,
    /// Of the commands so far: the newest revision after each.
    after: Vec<i64>,
}

impl Numbering {
    /// Of a round over `base`.
    pub(super) fn new(base: i64) -> Self {
        Self { base, after: Vec::new() }
    }

    /// The next command changed something, or not.
    pub(super) fn push(&mut self, changed: bool) {
        let before = self.after.last().copied().unwrap_or(self.base);
        self.after.push(before + i64::from(changed));
    }

    /// The final number of a provisional revision; those of before the round stay.
    pub(super) fn revision(&self, provisional: i64) -> i64 {
        match usize::try_from(provisional - self.base) {
            Ok(commands @ 1..) => self.after[commands - 1],
            _ => provisional,
        }
    }

    /// The final address of a row: its command changed something, so the revision after it is its own.
    pub(super) fn row(&self, at: Revision) -> Revision {
        Revision { main: self.revision(at.main), ..at }
    }

    /// Whether every command so far has changed something: then provisional numbers are final.
    pub(super) fn is_identity(&self) -> bool {
        self.after.last().is_none_or(|&last| last == self.base + self.after.len() as i64)
    }

    /// A change under its final numbers.
    pub(super) fn change(&self, change: Change<'static>) -> Change<'static> {
        let entry = change.entry.renumbered(&|row| self.row(row), &|revision| self.revision(revision));
        Change { entry, prev: self.row(change.prev), jump: self.row(change.jump), ..change }
    }

    /// An answer under its final numbers.
    pub(super) fn answer(&self, answer: &mut OpOutcome) {
        match answer {
            OpOutcome::Put(put) => {
                put.revision = self.revision(put.revision);
                put.prev = put.prev.map(|at| self.row(at));
            }
            OpOutcome::DeleteRange(delete) => {
                delete.revision = self.revision(delete.revision);
                delete.prev.iter_mut().for_each(|at| *at = self.row(*at));
            }
            OpOutcome::Range(range) => {
                range.revision = self.revision(range.revision);
                range.rows.iter_mut().for_each(|at| *at = self.row(*at));
            }
            OpOutcome::Txn(txn) => {
                txn.revision = self.revision(txn.revision);
                txn.responses.iter_mut().for_each(|response| self.answer(response));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_without_changes_take_no_number() {
        let mut numbering = Numbering::new(10);
        for (changed, is_identity) in [(true, true), (false, false), (true, false), (false, false)] {
            numbering.push(changed);
            assert_eq!(numbering.is_identity(), is_identity);
        }
        let finals: Vec<i64> = (-1..=14).map(|provisional| numbering.revision(provisional)).collect();
        assert_eq!(finals[..12], (-1..=10).collect::<Vec<i64>>());
        assert_eq!(finals[12..], [11, 11, 12, 12]);
        assert_eq!(numbering.row(Revision { main: 13, sub: 4 }), Revision { main: 12, sub: 4 });
        assert_eq!(numbering.row(Revision { main: 10, sub: 1 }), Revision { main: 10, sub: 1 });
    }
}
