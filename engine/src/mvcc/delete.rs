//! Deletes in slices.
//!
//! Owns: the walk over the keys that a delete or the end of a lease removes, left and taken up again at any key. Does
//! not know: where the tombstones are installed, and when.

use std::borrow::Cow;

use crate::budget::{Budget, Pause, price};
use crate::command::DeleteRange;
use crate::mvcc::KeyRange;
use crate::mvcc::changes::{Change, next_at};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::range_walk::{key_after, look_ahead};
use crate::mvcc::view::{Scan, View};
use crate::store::key_entry::{KeyEntry, Revision};

/// With so many rows, room is made for all there may be.
const MANY: usize = 4096;

/// Attached keys looked up ahead when a page is missing.
const LOOK_AHEAD: usize = 32;

/// How far a delete has come.
#[derive(Debug, Default)]
pub(crate) struct DeleteWalk {
    /// Where the walk goes on; `None` before the first slice.
    from: Option<Vec<u8>>,
    /// Keys deleted so far.
    pub(crate) deleted: usize,
    /// Their rows, if asked for.
    pub(crate) prev: Vec<Revision>,
}

/// A slice of a delete.
pub(crate) struct DeleteSlice<'s, 'v, 'c, T> {
    pub(crate) walk: &'s mut DeleteWalk,
    pub(crate) view: &'s View<'v, T>,
    pub(crate) del: &'s DeleteRange<'c>,
    /// Where the first change of the whole delete stands.
    pub(crate) first: Revision,
    /// The changes of this slice.
    pub(crate) changes: Vec<Change<'c>>,
}

impl<'v, 'c, T: KeyTree> DeleteSlice<'_, 'v, 'c, T> {
    /// Goes on. The changes are good even if the slice ends early.
    pub(crate) fn step(&mut self, budget: &mut Budget) -> Result<(), Pause> {
        budget.spend(price::SEEK);
        match KeyRange::new(self.del.key, self.del.range_end) {
            KeyRange::Single(key) => match self.view.entry(key)? {
                Some(entry) => self.delete(Cow::Borrowed(key), &entry, budget),
                None => Ok(()),
            },
            KeyRange::Between(from, to) if from >= to => Ok(()),
            range => {
                let mut scan = self.view.scan(self.walk.from.as_deref().unwrap_or_else(|| range.start()))?;
                let mut done = None;
                let walked = self.keys(range, &mut scan, &mut done, budget);
                if matches!(walked, Err(Pause::Pages(_))) {
                    look_ahead(self.view, &mut scan, range);
                }
                if walked.is_err()
                    && let Some(key) = done
                {
                    self.walk.from = Some(key_after(key));
                }
                walked
            }
        }
    }

    fn keys(
        &mut self,
        range: KeyRange<'_>,
        scan: &mut Scan<'v, T>,
        done: &mut Option<&'v [u8]>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        while let Some((key, entry)) = scan.next()?.filter(|(key, _)| !range.is_past(key)) {
            if !entry.is_tombstone() {
                self.delete(Cow::Owned(key.to_vec()), &entry, budget)?;
            }
            *done = Some(key);
            budget.charge(price::ENTRY)?;
        }
        Ok(())
    }

    fn delete(&mut self, key: Cow<'c, [u8]>, entry: &KeyEntry, budget: &mut Budget) -> Result<(), Pause> {
        if entry.is_tombstone() {
            return Ok(());
        }
        if self.del.prev_kv {
            // Read now even for the answer: nothing may be missing when it is given, if this step is the only one.
            self.view.value(entry.row)?;
            budget.spend(price::ROW);
            if self.walk.prev.len() == MANY
                && let Ok(count) = self.view.count(KeyRange::new(self.del.key, self.del.range_end))
            {
                // Growing would copy megabytes in one step.
                self.walk.prev.reserve_exact(usize::try_from(count).unwrap_or(0));
            }
            self.walk.prev.push(entry.row);
        }
        let at = next_at(self.first.main, self.first.sub as usize + self.walk.deleted);
        self.changes.push(Change::delete(key, at, entry, self.view.layers.floor));
        self.walk.deleted += 1;
        budget.spend(price::CHANGE);
        Ok(())
    }
}

/// How far the end of a lease has come.
#[derive(Debug, Default)]
pub(crate) struct RevokeWalk {
    /// Where the walk over the attached keys goes on.
    from: Vec<u8>,
    /// Keys deleted so far.
    pub(crate) deleted: usize,
}

impl RevokeWalk {
    /// Goes on; the changes of this slice, also of one that ends early, are added to `changes`.
    pub(crate) fn step<T: KeyTree>(
        &mut self,
        view: &View<'_, T>,
        id: i64,
        main: i64,
        changes: &mut Vec<Change<'static>>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        budget.spend(price::SEEK);
        let mut attached = view.layers.leases.attached(id, &self.from, view.pages)?;
        while let Some(key) = attached.next_key()? {
            let entry = match view.entry(key) {
                Ok(entry) => entry,
                Err(unavailable) => {
                    // The next keys will be needed, too.
                    for _ in 0..LOOK_AHEAD {
                        let Ok(Some(key)) = attached.next_key() else { break };
                        let _: Result<bool, _> = view.entry(key).map(|entry| entry.is_some());
                    }
                    return Err(unavailable.into());
                }
            };
            let entry = entry.filter(|entry| entry.lease == id).expect("an attached key is alive and names its lease");
            let at = next_at(main, self.deleted);
            changes.push(Change::delete(Cow::Owned(key.to_vec()), at, &entry, view.layers.floor));
            self.deleted += 1;
            self.from = key_after(key);
            budget.charge(price::SEEK + price::CHANGE)?;
        }
        Ok(())
    }
}
