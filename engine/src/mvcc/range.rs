//! Range evaluation.
//!
//! Owns: revision rules, limit, filters, sorting and shape of a range. Does not know: layers, protobuf.
//!
//! Invariants
//! - I1: `count` is the number of live keys in the range at the revision read, whatever limit and filters say.
//! - I2: rows with equal sort keys stand in key order (etcd leaves it open; we must be deterministic).

use std::cmp::Ordering;

use crate::command::{RangeQuery, SortOrder, SortTarget};
use crate::mvcc::KeyRange;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Evaluated;
use crate::mvcc::outcome::{MvccError, RowShape, RowView};
use crate::mvcc::view::{View, entry_view, row_view};
use crate::page_source::Unavailable;
use crate::store::key_entry::{KeyEntry, Revision};

/// A range's answer with the rows' addresses.
#[derive(Debug, Default)]
pub(crate) struct Ranged<'v> {
    pub(crate) rows: Vec<Found<'v>>,
    pub(crate) count: i64,
    pub(crate) more: bool,
}

/// One row found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'v> {
    pub(crate) at: Revision,
    pub(crate) view: RowView<'v>,
}

/// What the rows of this query show.
pub(crate) fn shape(query: &RangeQuery<'_>) -> RowShape {
    match (query.keys_only, query.sort_target) {
        (false, _) => RowShape::Whole,
        (true, SortTarget::Value) => RowShape::WithoutValue,
        (true, _) => RowShape::KeyOnly,
    }
}

impl<'v, T: KeyTree> View<'v, T> {
    /// Evaluates a range for a reader whose newest revision is `revision`.
    pub(crate) fn range(&self, query: &RangeQuery<'_>, revision: i64) -> Evaluated<Ranged<'v>> {
        if query.revision > revision {
            return Ok(Err(MvccError::FutureRevision));
        }
        let at = if query.revision <= 0 { revision } else { query.revision };
        if at < self.layers.state.compacted {
            return Ok(Err(MvccError::Compacted));
        }
        let newest = at == revision;
        let range = KeyRange::new(query.key, query.range_end);
        if query.count_only && newest {
            return Ok(Ok(Ranged { count: self.count(range)?, ..Ranged::default() }));
        }
        let (mut rows, count) = self.collect(query, range, (!newest).then_some(at))?;
        if query.count_only {
            return Ok(Ok(Ranged { count, ..Ranged::default() }));
        }
        self.sort(query, &mut rows)?;
        let limit = usize::try_from(query.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let shape = shape(query);
        for found in &mut rows {
            if shape == RowShape::Whole {
                found.view.value = self.value(found.at)?;
            }
            found.view = shape.show(found.view);
        }
        Ok(Ok(Ranged { rows, count, more }))
    }

    /// The rows that pass the filters, in key order, as many as can matter; and the count. `at` is a past revision.
    fn collect(
        &self,
        query: &RangeQuery<'_>,
        range: KeyRange<'_>,
        at: Option<i64>,
    ) -> Result<(Vec<Found<'v>>, i64), Unavailable> {
        let rows_max = rows_max(query);
        let (mut rows, mut count) = (Vec::new(), 0);
        if let KeyRange::Single(key) = range {
            let entry = self.entry(key)?;
            if let Some(entry) = entry
                && let Some(found) = self.found(None, &entry, at)?
            {
                count = 1;
                rows.extend(passes(query, &found.view).then_some(found));
            }
            return Ok((rows, count));
        }
        if matches!(range, KeyRange::Between(from, to) if from >= to) {
            return Ok((rows, 0));
        }
        let mut scan = self.scan(range.start())?;
        while let Some((key, entry)) = scan.next()? {
            if range.is_past(key) {
                break;
            }
            let Some(found) = self.found(Some(key), &entry, at)? else { continue };
            count += 1;
            if rows.len() < rows_max && passes(query, &found.view) {
                rows.push(found);
            } else if rows.len() == rows_max && at.is_none() {
                // Enough rows; the rest is only counted, and now that is cheap.
                return Ok((rows, self.count(range)?));
            }
        }
        Ok((rows, count))
    }

    /// What a reader sees of a key, if it is alive for it. A single key's own bytes come from its row: the request's
    /// do not live long enough.
    fn found(
        &self,
        key: Option<&'v [u8]>,
        entry: &KeyEntry,
        at: Option<i64>,
    ) -> Result<Option<Found<'v>>, Unavailable> {
        match (at, key) {
            (Some(at), _) if entry.row.main > at => {
                let row = self.row_at(entry, at)?;
                Ok(row.map(|row| Found { at: row.at, view: RowView { value: &[], ..row_view(&row) } }))
            }
            _ if entry.is_tombstone() => Ok(None),
            (_, Some(key)) => Ok(Some(Found { at: entry.row, view: entry_view(key, entry) })),
            (_, None) => {
                let key = match self.changes.and_then(|changes| changes.at(entry.row)) {
                    Some(change) => &change.key,
                    None => self.present(entry.row)?.key,
                };
                Ok(Some(Found { at: entry.row, view: entry_view(key, entry) }))
            }
        }
    }

    fn sort(&self, query: &RangeQuery<'_>, rows: &mut [Found<'v>]) -> Result<(), Unavailable> {
        // No order with another target than the key means ascending (and the limit was applied before, as in etcd).
        let descending = query.sort_order == SortOrder::Descend;
        if query.sort_target == SortTarget::Key {
            if descending {
                rows.reverse();
            }
            return Ok(());
        }
        if query.sort_target == SortTarget::Value {
            for found in &mut *rows {
                found.view.value = self.value(found.at)?;
            }
        }
        rows.sort_by(|left, right| {
            let order = compare(query.sort_target, &left.view, &right.view);
            if descending { order.reverse() } else { order }
        });
        Ok(())
    }
}

/// How many rows have to be collected in key order before the answer is known.
fn rows_max(query: &RangeQuery<'_>) -> usize {
    let filters =
        [query.min_mod_revision, query.max_mod_revision, query.min_create_revision, query.max_create_revision];
    let by_key = query.sort_target == SortTarget::Key && query.sort_order == SortOrder::Ascend;
    if (query.sort_order != SortOrder::None && !by_key) || filters != [0; 4] || query.limit <= 0 {
        return usize::MAX;
    }
    // One more tells whether the limit cut something.
    usize::try_from(query.limit).map_or(usize::MAX, |limit| limit.saturating_add(1))
}

fn passes(query: &RangeQuery<'_>, view: &RowView<'_>) -> bool {
    let least = |bound: i64, value: i64| bound == 0 || value >= bound;
    let most = |bound: i64, value: i64| bound == 0 || value <= bound;
    least(query.min_mod_revision, view.modified)
        && most(query.max_mod_revision, view.modified)
        && least(query.min_create_revision, view.create)
        && most(query.max_create_revision, view.create)
}

fn compare(target: SortTarget, left: &RowView<'_>, right: &RowView<'_>) -> Ordering {
    match target {
        SortTarget::Version => left.version.cmp(&right.version),
        SortTarget::Create => left.create.cmp(&right.create),
        SortTarget::Mod => left.modified.cmp(&right.modified),
        SortTarget::Value => left.value.cmp(right.value),
        SortTarget::Key | SortTarget::Unknown => left.key.cmp(right.key),
    }
}
