//! Transaction evaluation.
//!
//! Owns: compares, pre-checks, the order of operations and their answers. Does not know: how changes are installed.
//!
//! Invariants
//! - I1: all compares of all nested levels that are reached see the state before the transaction.
//! - I2: pre-checks walk the chosen path only, in list order (observed on etcd 3.7.3); after them only a put that keeps
//!   a value or lease which an earlier from-key delete of the same transaction removed can still fail, and then nothing
//!   is kept.
//! - I3: operations run in list order and see what earlier ones wrote.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::command::{Compare, CompareResult, CompareTarget, DeleteRange, Op, Put, RangeQuery, Txn};
use crate::mvcc::KeyRange;
use crate::mvcc::changes::{Change, Changes, next_at};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::{Evaluated, Keyspace};
use crate::mvcc::outcome::{DeleteOutcome, MvccError, OpOutcome, PutOutcome, RowView, TxnOutcome, TxnRange};
use crate::mvcc::range::{Ranged, shape};
use crate::mvcc::view::{Layers, View, entry_view};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::{KeyEntry, Revision};

impl<T: KeyTree> Keyspace<T> {
    /// Evaluates a transaction into a change list.
    pub(super) fn evaluate_txn<'c>(
        &self,
        txn: &Txn<'c>,
        pages: &dyn PageSource,
    ) -> Evaluated<(TxnOutcome, Vec<Change<'c>>)> {
        let view = View { layers: self.layers(), changes: None, pages };
        let mut path = Vec::new();
        choose(&view, txn, &mut path)?;
        if let Err(error) = check_path(&view, txn, &mut path.iter().copied())? {
            return Ok(Err(error));
        }
        let mut run = Run { layers: self.layers(), pages, changes: Changes::new(self.state().revision + 1) };
        match run.txn(txn, &mut path.iter().copied())? {
            Ok(outcome) => Ok(Ok((outcome, run.changes.into_list()))),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl<T: KeyTree> View<'_, T> {
    /// Evaluates a put that stands at `at`, over what `before` says of its key.
    pub(crate) fn evaluate_put<'c>(&self, put: &Put<'c>, at: Revision) -> Evaluated<(Change<'c>, Option<Revision>)> {
        if put.lease != 0 && !self.layers.lease_exists(put.lease) {
            return Ok(Err(MvccError::LeaseNotFound));
        }
        let before = self.entry(put.key)?;
        let live = before.as_deref().filter(|entry| !entry.is_tombstone());
        if (put.ignore_value || put.ignore_lease) && live.is_none() {
            return Ok(Err(MvccError::KeyNotFound));
        }
        let (mut value, mut lease) = (Cow::Borrowed(put.value), put.lease);
        if let Some(live) = live {
            if put.ignore_value || put.prev_kv {
                // Read now even for the answer: after the installation nothing may be missing.
                let held = self.value(live.row)?;
                value = if put.ignore_value { Cow::Owned(held.to_vec()) } else { value };
            }
            lease = if put.ignore_lease { live.lease } else { lease };
        }
        let prev = live.filter(|_| put.prev_kv).map(|entry| entry.row);
        let change = Change::put(put.key, value, lease, at, before.as_deref(), self.layers.state.compacted);
        Ok(Ok((change, prev)))
    }

    /// Evaluates a delete whose first change stands at `at`.
    pub(crate) fn evaluate_delete<'c>(
        &self,
        del: &DeleteRange<'c>,
        at: Revision,
    ) -> Result<(Vec<Change<'c>>, Vec<Revision>), Unavailable> {
        let (mut changes, mut prev) = (Vec::new(), Vec::new());
        let mut delete = |key: Cow<'c, [u8]>, entry: &KeyEntry| {
            if entry.is_tombstone() {
                return Ok(());
            }
            if del.prev_kv {
                self.value(entry.row)?;
                prev.push(entry.row);
            }
            let at = next_at(at.main, at.sub as usize + changes.len());
            changes.push(Change::delete(key, at, entry, self.layers.state.compacted));
            Ok(())
        };
        match KeyRange::new(del.key, del.range_end) {
            KeyRange::Single(key) => {
                if let Some(entry) = self.entry(key)? {
                    delete(Cow::Borrowed(key), &entry)?;
                }
            }
            KeyRange::Between(from, to) if from >= to => {}
            range => {
                let mut scan = self.scan(range.start())?;
                while let Some((key, entry)) = scan.next()?
                    && !range.is_past(key)
                {
                    delete(Cow::Owned(key.to_vec()), &entry)?;
                }
            }
        }
        Ok((changes, prev))
    }
}

/// A transaction under execution.
struct Run<'s, 'c, T> {
    layers: Layers<'s, T>,
    pages: &'s dyn PageSource,
    changes: Changes<'c>,
}

impl<'c, T: KeyTree> Run<'_, 'c, T> {
    fn view(&self) -> View<'_, T> {
        View { layers: self.layers, changes: Some(&self.changes), pages: self.pages }
    }

    fn txn(&mut self, txn: &Txn<'c>, path: &mut dyn Iterator<Item = bool>) -> Evaluated<TxnOutcome> {
        let succeeded = path.next().expect("the path has one choice for each transaction reached");
        let mut responses = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            let response = match op {
                Op::Range(query) => self.range(query)?.map(OpOutcome::Range),
                Op::Put(put) => self.put(put)?.map(OpOutcome::Put),
                Op::DeleteRange(del) => Ok(OpOutcome::DeleteRange(self.delete_range(del)?)),
                Op::Txn(nested) => self.txn(nested, path)?.map(OpOutcome::Txn),
                Op::Unset => Err(MvccError::KeyNotFound),
            };
            match response {
                Ok(response) => responses.push(response),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(TxnOutcome { revision: self.changes.revision(), succeeded, responses }))
    }

    fn range(&self, query: &RangeQuery<'_>) -> Evaluated<TxnRange> {
        let revision = self.changes.revision();
        let view = self.view();
        let ranged = view.range(query, revision)?;
        if let Ok(Ranged { rows, .. }) = &ranged {
            for found in rows {
                // Read now even for keys alone: the answer is made from the rows, and after the installation nothing
                // may be missing.
                view.value(found.at)?;
            }
        }
        Ok(ranged.map(|ranged| TxnRange {
            revision,
            rows: ranged.rows.iter().map(|found| found.at).collect(),
            count: ranged.count,
            more: ranged.more,
            shape: shape(query),
        }))
    }

    fn put(&mut self, put: &Put<'c>) -> Evaluated<PutOutcome> {
        match self.view().evaluate_put(put, self.changes.next_at())? {
            Ok((change, prev)) => {
                self.changes.push(change);
                Ok(Ok(PutOutcome { revision: self.changes.revision(), prev }))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn delete_range(&mut self, del: &DeleteRange<'c>) -> Result<DeleteOutcome, Unavailable> {
        let (changes, prev) = self.view().evaluate_delete(del, self.changes.next_at())?;
        let deleted = changes.len() as i64;
        changes.into_iter().for_each(|change| self.changes.push(change));
        Ok(DeleteOutcome { revision: self.changes.revision(), deleted, prev })
    }
}

/// Evaluates the compares of a transaction and of those nested in the branch it takes, in pre-order (I1).
pub(crate) fn choose<T: KeyTree>(view: &View<'_, T>, txn: &Txn<'_>, path: &mut Vec<bool>) -> Result<(), Unavailable> {
    let mut succeeded = true;
    for compare in &txn.compares {
        succeeded = succeeded && holds(view, compare)?;
    }
    path.push(succeeded);
    for op in if succeeded { &txn.success } else { &txn.failure } {
        if let Op::Txn(nested) = op {
            choose(view, nested, path)?;
        }
    }
    Ok(())
}

/// Whether a compare holds for every key of its range.
fn holds<T: KeyTree>(view: &View<'_, T>, compare: &Compare<'_>) -> Result<bool, Unavailable> {
    compare_keys(view, compare, KeyRange::new(compare.key, compare.range_end)).map(|seen| seen.holds(compare))
}

/// What a compare met in a range, or in the part of it that one shard owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    /// A live key was there.
    pub(crate) found: bool,
    /// The compare holds for every key there, as far as was looked.
    pub(crate) all: bool,
}

impl Compared {
    /// Of no key.
    pub(crate) const NOTHING: Self = Self { found: false, all: true };

    /// What the whole compare comes to.
    pub(crate) fn holds(self, compare: &Compare<'_>) -> bool {
        // A missing key has no value at all, not an empty one; everything else of it is 0.
        let missing = RowView { key: &[], value: &[], create: 0, modified: 0, version: 0, lease: 0 };
        let value = matches!(compare.target, CompareTarget::Value(_));
        self.all && (self.found || (!value && relates(compare, &missing)))
    }
}

/// Compares every key of `range`, a part of the compare's, up to the first for which it does not hold.
pub(crate) fn compare_keys<T: KeyTree>(
    view: &View<'_, T>,
    compare: &Compare<'_>,
    range: KeyRange<'_>,
) -> Result<Compared, Unavailable> {
    let mut seen = Compared::NOTHING;
    let needs_value = matches!(compare.target, CompareTarget::Value(_));
    let mut check = |key: &[u8], entry: &KeyEntry| -> Result<bool, Unavailable> {
        if entry.is_tombstone() {
            return Ok(true);
        }
        let value = if needs_value { view.value(entry.row)? } else { &[] };
        seen.found = true;
        seen.all = relates(compare, &RowView { key: &[], value, ..entry_view(key, entry) });
        Ok(seen.all)
    };
    match range {
        KeyRange::Single(key) => {
            if let Some(entry) = view.entry(key)? {
                check(key, &entry)?;
            }
        }
        KeyRange::Between(from, to) if from >= to => {}
        range => {
            let mut scan = view.scan(range.start())?;
            while let Some((key, entry)) = scan.next()?
                && !range.is_past(key)
                && check(key, &entry)?
            {}
        }
    }
    Ok(seen)
}

pub(crate) fn relates(compare: &Compare<'_>, row: &RowView<'_>) -> bool {
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

/// Checks the operations of the chosen path, in order.
pub(crate) fn check_path<T: KeyTree>(
    view: &View<'_, T>,
    txn: &Txn<'_>,
    path: &mut dyn Iterator<Item = bool>,
) -> Evaluated<()> {
    let succeeded = path.next().expect("the path has one choice for each transaction reached");
    for op in if succeeded { &txn.success } else { &txn.failure } {
        let checked = match op {
            Op::Txn(nested) => check_path(view, nested, path)?,
            Op::Put(put) => check_put(view, put)?,
            Op::Range(query) => check_range(view, query),
            Op::DeleteRange(_) | Op::Unset => Ok(()),
        };
        if let Err(error) = checked {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

pub(crate) fn check_put<T: KeyTree>(view: &View<'_, T>, put: &Put<'_>) -> Evaluated<()> {
    if put.lease != 0 && !view.layers.lease_exists(put.lease) {
        return Ok(Err(MvccError::LeaseNotFound));
    }
    if (put.ignore_value || put.ignore_lease) && view.entry(put.key)?.is_none_or(|entry| entry.is_tombstone()) {
        return Ok(Err(MvccError::KeyNotFound));
    }
    Ok(Ok(()))
}

/// Unlike a plain range, a revision below the compacted one is refused here even when negative.
pub(crate) fn check_range<T: KeyTree>(view: &View<'_, T>, query: &RangeQuery<'_>) -> Result<(), MvccError> {
    let state = view.layers.state;
    match query.revision {
        0 => Ok(()),
        revision if revision > state.revision => Err(MvccError::FutureRevision),
        revision if revision < state.compacted => Err(MvccError::Compacted),
        _ => Ok(()),
    }
}
