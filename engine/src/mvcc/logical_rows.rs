//! The history that clients can still see, row by row.
//!
//! Owns: which rows belong to the state between the compacted revision and a later one, whatever reclaim has removed by
//! now: all rows above the compacted revision, and of those at or below it each key's last one. Does not know: who
//! wants them (HashKV, the hash of the store, a snapshot), hashing, encoding.
//!
//! Invariants
//! - I1: the rows are a function of the commands applied, equal on every member.
//! - I2: rows come in order of their addresses, each once.

use crate::budget::{Budget, Pause, price};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Keyspace;
use crate::mvcc::view::View;
use crate::page_source::PageSource;
use crate::store::key_entry::Revision;
use crate::store::row_log::Row;

/// Rows whose keys are looked up ahead when a page is missing.
const LOOK_AHEAD: usize = 32;

/// A walk over the visible history. Owns what it needs; the compacted revision it began with must be pinned.
#[derive(Debug)]
pub struct LogicalRows {
    compacted: i64,
    revision: i64,
    /// A row at or below the compacted revision belongs to the history if it is its key's last one here.
    survives_at: i64,
    next: Revision,
}

impl LogicalRows {
    /// The history up to `revision`, which is not compacted; what was live at the compacted revision is part of it, and
    /// so is what was deleted by exactly that one.
    #[must_use]
    pub fn new<T: KeyTree>(keyspace: &Keyspace<T>, revision: i64) -> Self {
        Self::between(keyspace.state().compacted, revision)
    }

    /// The history from a compacted revision, which is pinned, to a later one.
    pub(crate) fn between(compacted: i64, revision: i64) -> Self {
        Self { compacted, revision, survives_at: compacted, next: Revision::NONE }
    }

    /// The same without the rows that were written over between the compacted revision and the last one.
    pub(crate) fn live_at_end(self) -> Self {
        Self { survives_at: self.revision, ..self }
    }

    /// The revision to be pinned.
    #[must_use]
    pub fn revision_held(&self) -> i64 {
        self.compacted
    }

    /// Goes on until the end or the budget's; `visit` gets each row once.
    ///
    /// # Errors
    /// The walk is not at its end: call again.
    pub fn step<T: KeyTree>(
        &mut self,
        keyspace: &Keyspace<T>,
        budget: &mut Budget,
        pages: &dyn PageSource,
        visit: &mut dyn FnMut(&Row<'_>),
    ) -> Result<(), Pause> {
        let view = View { layers: keyspace.layers(), changes: None, pages };
        while let Some(row) = keyspace.rows().row_from(self.next, pages)?.filter(|row| row.at.main <= self.revision) {
            if row.at.main > self.compacted || self.survives(&view, &row, budget)? {
                visit(&row);
                budget.spend_bytes(row.key.len() + row.value.len());
            }
            self.next = row.at.next();
            budget.charge(price::NEXT_ROW)?;
        }
        Ok(())
    }

    /// Whether a row at or below the compacted revision is still visible.
    fn survives<T: KeyTree>(&self, view: &View<'_, T>, row: &Row<'_>, budget: &mut Budget) -> Result<bool, Pause> {
        if row.is_tombstone() && row.at.main < self.compacted {
            return Ok(false);
        }
        budget.spend(price::SEEK);
        let entry = match view.entry(row.key) {
            Ok(entry) => entry,
            Err(unavailable) => {
                self.look_ahead(view, row.at);
                return Err(unavailable.into());
            }
        };
        // A key without an entry was deleted below the compacted revision.
        let Some(entry) = entry else { return Ok(false) };
        let last = view.row_at(&entry, self.survives_at, budget)?;
        Ok(match last {
            Some(last) => last.at == row.at,
            None => row.is_tombstone(),
        })
    }

    /// A page of the index is missing: asks for those of the next rows' keys, too.
    fn look_ahead<T: KeyTree>(&self, view: &View<'_, T>, from: Revision) {
        let mut next = from.next();
        for _ in 0..LOOK_AHEAD {
            let Ok(Some(row)) = view.layers.rows.row_from(next, view.pages) else { return };
            if row.at.main > self.compacted {
                return;
            }
            let _: Result<bool, _> = view.entry(row.key).map(|entry| entry.is_some());
            next = row.at.next();
        }
    }
}
