//! Ranges in one step, and the rules that all ranges share.
//!
//! Owns: revision rules, filters and shape of a range; its evaluation with borrowed rows for the common small query.
//! Does not know: layers, protobuf, evaluation in slices (`range_walk`, which also does what is not common here).
//!
//! Invariants
//! - I1: `count` is the number of live keys in the range at the revision read, whatever limit and filters say.
//! - I2: rows with equal sort keys stand in key order (etcd leaves it open; we must be deterministic).

use crate::budget::{Budget, Pause, price};
use crate::command::{RangeQuery, SortOrder, SortTarget};
use crate::mvcc::KeyRange;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Evaluated;
use crate::mvcc::outcome::{MvccError, RowShape, RowView};
use crate::mvcc::range_walk::RangeWalk;
use crate::mvcc::view::{View, entry_view};
use crate::store::key_entry::{KeyEntry, Revision};

/// A range's answer.
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

/// The revision a query reads, for a reader whose newest one is `newest`.
pub(crate) fn revision_read(query: &RangeQuery<'_>, newest: i64, compacted: i64) -> Result<i64, MvccError> {
    if query.revision > newest {
        return Err(MvccError::FutureRevision);
    }
    let at = if query.revision <= 0 { newest } else { query.revision };
    if at < compacted { Err(MvccError::Compacted) } else { Ok(at) }
}

impl<'v, T: KeyTree> View<'v, T> {
    /// Evaluates a range for a reader whose newest revision is `revision`.
    pub(crate) fn range(&self, query: &RangeQuery<'_>, revision: i64, budget: &mut Budget) -> Evaluated<Ranged<'v>> {
        match revision_read(query, revision, self.layers.state.compacted) {
            Ok(at) if at < revision => {
                // Its own changes are above what it reads.
                let view = View { layers: self.layers, changes: None, pages: self.pages };
                Ok(Ok(view.range_at(query, at, budget)?))
            }
            Ok(at) => Ok(Ok(self.range_at(query, at, budget)?)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Evaluates a range at a revision that may be read.
    pub(crate) fn range_at(&self, query: &RangeQuery<'_>, at: i64, budget: &mut Budget) -> Result<Ranged<'v>, Pause> {
        let range = KeyRange::new(query.key, query.range_end);
        if self.layers.is_above(at) || (query.sort_target != SortTarget::Key && !query.count_only) {
            return self.range_walked(query, at, budget);
        }
        if query.count_only {
            budget.spend(price::COUNT);
            return Ok(Ranged { count: self.count(range)?, ..Ranged::default() });
        }
        let (mut rows, count) = self.collect(query, range, budget)?;
        if query.sort_order == SortOrder::Descend {
            rows.reverse();
        }
        let limit = limit(query);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let shape = shape(query);
        for found in &mut rows {
            if shape == RowShape::Whole {
                found.view.value = self.value(found.at)?;
                budget.spend_bytes(found.view.value.len());
                budget.charge(price::ROW)?;
            }
            found.view = shape.show(found.view);
        }
        Ok(Ranged { rows, count, more })
    }

    /// Everything else: as a cursor would do it, but in one go.
    fn range_walked(&self, query: &RangeQuery<'_>, at: i64, budget: &mut Budget) -> Result<Ranged<'v>, Pause> {
        let mut walk = RangeWalk::new(query, at);
        walk.step(self, query, budget, &mut |_| {})?;
        let shape = shape(query);
        let (rows, count, more) = walk.into_parts();
        let found = |&at: &Revision| Ok(Found { at, view: shape.show(self.row(at)?) });
        let rows = rows.iter().map(found).collect::<Result<_, Pause>>()?;
        Ok(Ranged { rows, count, more })
    }

    /// The rows that pass the filters, in key order, as many as can matter; and the count.
    fn collect(
        &self,
        query: &RangeQuery<'_>,
        range: KeyRange<'_>,
        budget: &mut Budget,
    ) -> Result<(Vec<Found<'v>>, i64), Pause> {
        let rows_max = rows_max(query);
        let (mut rows, mut count) = (Vec::new(), 0);
        budget.spend(price::SEEK);
        if let KeyRange::Single(key) = range {
            if let Some(entry) = self.entry(key)?
                && let Some(found) = self.found(None, &entry)?
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
            budget.charge(price::ENTRY)?;
            let Some(found) = self.found(Some(key), &entry)? else { continue };
            count += 1;
            if rows.len() < rows_max && passes(query, &found.view) {
                rows.push(found);
            } else if rows.len() == rows_max {
                // Enough rows; the rest is only counted, and that is cheap.
                budget.spend(price::COUNT);
                return Ok((rows, self.count(range)?));
            }
        }
        Ok((rows, count))
    }

    /// What the newest state shows of a key, if it is alive. A single key's own bytes come from its row: the request's
    /// do not live long enough.
    fn found(&self, key: Option<&'v [u8]>, entry: &KeyEntry) -> Result<Option<Found<'v>>, Pause> {
        if entry.is_tombstone() {
            return Ok(None);
        }
        let key = match key {
            Some(key) => key,
            None => self.row(entry.row)?.key,
        };
        Ok(Some(Found { at: entry.row, view: entry_view(key, entry) }))
    }
}

/// How many rows are answered at most.
pub(crate) fn limit(query: &RangeQuery<'_>) -> usize {
    usize::try_from(query.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX)
}

/// How many rows have to be collected in key order before the answer is known.
pub(crate) fn rows_max(query: &RangeQuery<'_>) -> usize {
    let filters =
        [query.min_mod_revision, query.max_mod_revision, query.min_create_revision, query.max_create_revision];
    let by_key = query.sort_target == SortTarget::Key && query.sort_order == SortOrder::Ascend;
    if (query.sort_order != SortOrder::None && !by_key) || filters != [0; 4] || query.limit <= 0 {
        return usize::MAX;
    }
    // One more tells whether the limit cut something.
    usize::try_from(query.limit).map_or(usize::MAX, |limit| limit.saturating_add(1))
}

pub(crate) fn passes(query: &RangeQuery<'_>, view: &RowView<'_>) -> bool {
    let least = |bound: i64, value: i64| bound == 0 || value >= bound;
    let most = |bound: i64, value: i64| bound == 0 || value <= bound;
    least(query.min_mod_revision, view.modified)
        && most(query.max_mod_revision, view.modified)
        && least(query.min_create_revision, view.create)
        && most(query.max_create_revision, view.create)
}
