//! Comparisons of transactions.
//!
//! Owns: whether a compare holds for the keys of a range, left and taken up again at any key. Does not know: branches.

use std::cmp::Ordering;

use crate::budget::{Budget, Pause, price};
use crate::command::{Compare, CompareResult, CompareTarget};
use crate::mvcc::KeyRange;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::outcome::RowView;
use crate::mvcc::range_walk::{key_after, look_ahead};
use crate::mvcc::view::{Scan, View};
use crate::store::key_entry::KeyEntry;

/// What a compare met in its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    /// A live key was there.
    found: bool,
    /// The compare holds for every key there, as far as was looked.
    all: bool,
}

impl Compared {
    /// Of no key.
    const NOTHING: Self = Self { found: false, all: true };

    /// What the whole compare comes to.
    pub(crate) fn holds(self, compare: &Compare<'_>) -> bool {
        // A missing key has no value at all, not an empty one; everything else of it is 0.
        let missing = RowView { key: &[], value: &[], create: 0, modified: 0, version: 0, lease: 0 };
        let value = matches!(compare.target, CompareTarget::Value(_));
        self.all && (self.found || (!value && relates(compare, &missing)))
    }
}

/// How far a compare has come.
#[derive(Debug)]
pub(crate) struct CompareWalk {
    /// Where the walk goes on; `None` before the first slice.
    from: Option<Vec<u8>>,
    /// What it met so far.
    pub(crate) seen: Compared,
}

impl CompareWalk {
    pub(crate) fn new() -> Self {
        Self { from: None, seen: Compared::NOTHING }
    }

    /// Goes on, over `range`, which is the compare's or a part of it, at revision `at`, up to the first key for which
    /// the compare does not hold.
    pub(crate) fn step<T: KeyTree>(
        &mut self,
        view: &View<'_, T>,
        compare: &Compare<'_>,
        range: KeyRange<'_>,
        at: i64,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        budget.spend(price::SEEK);
        match range {
            KeyRange::Single(key) => match view.entry(key)? {
                Some(entry) => self.key(view, compare, key, &entry, at, budget),
                None => Ok(()),
            },
            KeyRange::Between(from, to) if from >= to => Ok(()),
            range => {
                let mut scan = view.scan(self.from.as_deref().unwrap_or_else(|| range.start()))?;
                let mut done = None;
                let walked = self.keys(view, compare, range, at, &mut scan, &mut done, budget);
                if matches!(walked, Err(Pause::Pages(_))) {
                    look_ahead(view, &mut scan, range);
                }
                if walked.is_err()
                    && let Some(key) = done
                {
                    self.from = Some(key_after(key));
                }
                walked
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a walk reads, what it is asked, and how far it has come")]
    fn keys<'v, T: KeyTree>(
        &mut self,
        view: &View<'v, T>,
        compare: &Compare<'_>,
        range: KeyRange<'_>,
        at: i64,
        scan: &mut Scan<'v, T>,
        done: &mut Option<&'v [u8]>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        while self.seen.all {
            let Some((key, entry)) = scan.next()?.filter(|(key, _)| !range.is_past(key)) else { break };
            self.key(view, compare, key, &entry, at, budget)?;
            *done = Some(key);
            budget.charge(price::ENTRY)?;
        }
        Ok(())
    }

    fn key<T: KeyTree>(
        &mut self,
        view: &View<'_, T>,
        compare: &Compare<'_>,
        key: &[u8],
        entry: &KeyEntry,
        at: i64,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        let Some((row, shown)) = view.shown(key, entry, at, budget)? else { return Ok(()) };
        let value = if matches!(compare.target, CompareTarget::Value(_)) { view.value(row)? } else { &[] };
        budget.spend_bytes(value.len());
        self.seen = Compared { found: true, all: relates(compare, &RowView { value, ..shown }) };
        Ok(())
    }
}

fn relates(compare: &Compare<'_>, row: &RowView<'_>) -> bool {
    let order = match compare.target {
        CompareTarget::Version(version) => row.version.cmp(&version),
        CompareTarget::Create(create) => row.create.cmp(&create),
        CompareTarget::Mod(modified) => row.modified.cmp(&modified),
        CompareTarget::Value(value) => row.value.cmp(value),
        CompareTarget::Lease(lease) => row.lease.cmp(&lease),
        CompareTarget::Unknown => Ordering::Equal,
    };
    match compare.result {
        CompareResult::Equal => order.is_eq(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Unknown => true,
    }
}
