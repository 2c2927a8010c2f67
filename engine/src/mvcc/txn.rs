//! Transaction evaluation, in slices.
//!
//! Owns: the branches taken, pre-checks, the order of operations and their answers, left and taken up again anywhere.
//! Does not know: how changes are installed.
//!
//! The transaction itself is not kept between slices: its caller decodes it again, and what is kept (the branches
//! taken, how many operations are done) leads back to the same place.
//!
//! Invariants
//! - I1: all compares of all nested levels that are reached see the state before the transaction.
//! - I2: pre-checks walk the chosen path only, in list order (observed on etcd 3.7.3); after them only a put that keeps
//!   a value or lease which an earlier from-key delete of the same transaction removed can still fail, and then nothing
//!   is kept.
//! - I3: operations run in list order and see what earlier ones wrote.

use std::borrow::Cow;

use crate::budget::{Budget, Pause, price};
use crate::command::{DeleteRange, Op, Put, RangeQuery, Txn};
use crate::mvcc::KeyRange;
use crate::mvcc::changes::{Change, Changes};
use crate::mvcc::compare::CompareWalk;
use crate::mvcc::delete::{DeleteSlice, DeleteWalk};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Evaluated;
use crate::mvcc::outcome::{DeleteOutcome, MvccError, OpOutcome, PutOutcome, TxnOutcome, TxnRange};
use crate::mvcc::range::{Ranged, revision_read, shape};
use crate::mvcc::range_walk::RangeWalk;
use crate::mvcc::view::{Layers, View};
use crate::page_source::PageSource;
use crate::store::key_entry::Revision;

impl<T: KeyTree> View<'_, T> {
    /// Evaluates a put that stands at `at`.
    pub(crate) fn evaluate_put<'c>(
        &self,
        put: &Put<'c>,
        at: Revision,
        budget: &mut Budget,
    ) -> Evaluated<(Change<'c>, Option<Revision>)> {
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
        budget.spend(price::SEEK + price::CHANGE);
        budget.spend_bytes(value.len());
        let prev = live.filter(|_| put.prev_kv).map(|entry| entry.row);
        let change = Change::put(put.key, value, lease, at, before.as_deref(), self.layers.floor);
        Ok(Ok((change, prev)))
    }
}

/// Where a transaction reads.
pub(crate) struct Ground<'s, T> {
    pub(crate) layers: Layers<'s, T>,
    pub(crate) pages: &'s dyn PageSource,
}

/// How a change is kept beyond the slice that made it.
pub(crate) type Keep<'c, 'k> = fn(Change<'c>) -> Change<'k>;

/// A transaction under evaluation.
#[derive(Debug)]
pub(crate) struct TxnRun<'k> {
    /// The revision before the transaction.
    base: i64,
    /// The compacted revision then.
    compacted: i64,
    /// Branches taken, in the order in which transactions are met.
    path: Vec<bool>,
    /// Compares of the transaction at hand that hold.
    compares: usize,
    compare: CompareWalk,
    /// Whether all steps of the path passed the pre-checks.
    checked: bool,
    /// Steps of the path checked or done.
    steps: usize,
    range: Option<Box<RangeWalk>>,
    delete: Option<DeleteWalk>,
    /// Answers of transactions that have begun and not ended, the outermost first.
    open: Vec<TxnOutcome>,
    pub(crate) changes: Changes<'k>,
}

/// A step along the chosen path.
enum Step<'t, 'c> {
    Begin { succeeded: bool },
    Op(&'t Op<'c>),
    End,
}

impl<'k> TxnRun<'k> {
    /// Begins a transaction over the state at revision `base`.
    pub(crate) fn new(base: i64, compacted: i64) -> Self {
        Self::over(base, compacted, Changes::new(base + 1))
    }

    /// The same, of a transaction that sees the changes of commands before it, which are not installed; its own are to
    /// follow them.
    pub(crate) fn over(base: i64, compacted: i64, changes: Changes<'k>) -> Self {
        Self {
            base,
            compacted,
            path: Vec::new(),
            compares: 0,
            compare: CompareWalk::new(),
            checked: false,
            steps: 0,
            range: None,
            delete: None,
            open: Vec::new(),
            changes,
        }
    }

    /// Addresses of rows it holds: its memory. A transaction of ranges alone is not nested.
    pub(crate) fn rows_held(&self) -> usize {
        let answered = self.open.iter().flat_map(|txn| &txn.responses).map(|response| match response {
            OpOutcome::Range(range) => range.rows.len(),
            _ => 0,
        });
        answered.sum::<usize>() + self.range.as_ref().map_or(0, |walk| walk.rows_held())
    }

    /// The same, with nothing borrowed from the command.
    pub(crate) fn into_owned(self) -> TxnRun<'static> {
        TxnRun {
            base: self.base,
            compacted: self.compacted,
            path: self.path,
            compares: self.compares,
            compare: self.compare,
            checked: self.checked,
            steps: self.steps,
            range: self.range,
            delete: self.delete,
            open: self.open,
            changes: self.changes.into_owned(),
        }
    }

    /// Goes on until the end or the budget's. After an outcome, the changes are complete.
    pub(crate) fn step<'c, T: KeyTree>(
        &mut self,
        txn: &Txn<'c>,
        ground: &Ground<'_, T>,
        keep: Keep<'c, 'k>,
        budget: &mut Budget,
    ) -> Evaluated<TxnOutcome> {
        let steps = self.choose(txn, ground, budget)?;
        if !self.checked {
            if let Err(error) = self.check(&steps, ground, budget)? {
                return Ok(Err(error));
            }
            (self.checked, self.steps) = (true, 0);
        }
        while let Some(step) = steps.get(self.steps) {
            let response = match step {
                Step::Begin { succeeded } => {
                    self.open.push(TxnOutcome { revision: 0, succeeded: *succeeded, responses: Vec::new() });
                    self.steps += 1;
                    continue;
                }
                Step::Op(op) => self.op(op, ground, keep, budget)?,
                Step::End => match self.end() {
                    (outcome, false) => Ok(OpOutcome::Txn(outcome)),
                    (outcome, true) => return Ok(Ok(outcome)),
                },
            };
            match response {
                Ok(response) => {
                    self.open.last_mut().expect("an operation stands in a transaction").responses.push(response);
                }
                Err(error) => return Ok(Err(error)),
            }
            self.steps += 1;
            budget.charge(price::ENTRY)?;
        }
        unreachable!("the last step ends the transaction")
    }

    /// Ends the innermost transaction; true if it is the outermost, too.
    fn end(&mut self) -> (TxnOutcome, bool) {
        let mut outcome = self.open.pop().expect("what ends has begun");
        outcome.revision = self.changes.revision();
        (outcome, self.open.is_empty())
    }

    /// Evaluates the compares of the transaction and of those nested in the branch it takes, in the order in which they
    /// are met (I1), and lays the path out.
    fn choose<'t, 'c, T: KeyTree>(
        &mut self,
        txn: &'t Txn<'c>,
        ground: &Ground<'_, T>,
        budget: &mut Budget,
    ) -> Result<Vec<Step<'t, 'c>>, Pause> {
        let (mut met, mut stack) = (0, Vec::with_capacity(1));
        let mut steps = Vec::with_capacity(2 + txn.success.len().max(txn.failure.len()));
        let mut next = Some(txn);
        loop {
            if let Some(txn) = next.take() {
                if met == self.path.len() {
                    let succeeded = self.compare(txn, ground, budget)?;
                    self.path.push(succeeded);
                }
                let succeeded = self.path[met];
                met += 1;
                steps.push(Step::Begin { succeeded });
                stack.push(if succeeded { txn.success.iter() } else { txn.failure.iter() });
            }
            let Some(ops) = stack.last_mut() else { return Ok(steps) };
            match ops.next() {
                Some(Op::Txn(nested)) => next = Some(nested),
                Some(op) => steps.push(Step::Op(op)),
                None => {
                    steps.push(Step::End);
                    stack.pop();
                }
            }
        }
    }

    /// Whether all compares of one transaction hold.
    fn compare<T: KeyTree>(
        &mut self,
        txn: &Txn<'_>,
        ground: &Ground<'_, T>,
        budget: &mut Budget,
    ) -> Result<bool, Pause> {
        // None of its own yet (I1).
        let view = View { layers: ground.layers, changes: Some(&self.changes), pages: ground.pages };
        let mut succeeded = true;
        while let Some(compare) = txn.compares.get(self.compares).filter(|_| succeeded) {
            let range = KeyRange::new(compare.key, compare.range_end);
            self.compare.step(&view, compare, range, self.base, budget)?;
            succeeded = self.compare.seen.holds(compare);
            self.compare = CompareWalk::new();
            self.compares += 1;
            if succeeded {
                budget.charge(price::ENTRY)?;
            }
        }
        self.compares = 0;
        Ok(succeeded)
    }

    /// Checks the operations of the chosen path, in order (I2).
    fn check<T: KeyTree>(
        &mut self,
        steps: &[Step<'_, '_>],
        ground: &Ground<'_, T>,
        budget: &mut Budget,
    ) -> Evaluated<()> {
        let view = View { layers: ground.layers, changes: Some(&self.changes), pages: ground.pages };
        while let Some(step) = steps.get(self.steps) {
            let checked = match step {
                Step::Op(Op::Put(put)) => check_put(&view, put)?,
                Step::Op(Op::Range(query)) => check_range(query, self.base, self.compacted),
                Step::Op(Op::DeleteRange(_) | Op::Txn(_) | Op::Unset) | Step::Begin { .. } | Step::End => Ok(()),
            };
            if let Err(error) = checked {
                return Ok(Err(error));
            }
            self.steps += 1;
            budget.charge(price::ENTRY)?;
        }
        Ok(Ok(()))
    }

    fn op<'c, T: KeyTree>(
        &mut self,
        op: &Op<'c>,
        ground: &Ground<'_, T>,
        keep: Keep<'c, 'k>,
        budget: &mut Budget,
    ) -> Evaluated<OpOutcome> {
        Ok(match op {
            Op::Range(query) => self.range(query, ground, budget)?.map(OpOutcome::Range),
            Op::Put(put) => self.put(put, ground, keep, budget)?.map(OpOutcome::Put),
            Op::DeleteRange(del) => Ok(OpOutcome::DeleteRange(self.delete_range(del, ground, keep, budget)?)),
            Op::Txn(_) => unreachable!("a nested transaction is laid out in steps"),
            Op::Unset => Err(MvccError::KeyNotFound),
        })
    }

    fn range<T: KeyTree>(
        &mut self,
        query: &RangeQuery<'_>,
        ground: &Ground<'_, T>,
        budget: &mut Budget,
    ) -> Evaluated<TxnRange> {
        let revision = self.changes.revision();
        let at = match revision_read(query, revision, self.compacted) {
            Ok(at) => at,
            Err(error) => return Ok(Err(error)),
        };
        // Its own changes, and those of commands before it, are above everything that was there before.
        let changes = (query.revision <= 0 || at > self.base).then_some(&self.changes);
        let view = View { layers: ground.layers, changes, pages: ground.pages };
        if query.range_end.is_empty() {
            // A single key takes no walk.
            let Ranged { rows, count, more } = view.range_at(query, at, &mut Budget::unlimited())?;
            budget.spend(price::SEEK + price::ROW);
            for found in &rows {
                view.value(found.at)?;
            }
            let rows = rows.iter().map(|found| found.at).collect();
            return Ok(Ok(TxnRange { revision, rows, count, more, shape: shape(query) }));
        }
        let mut walk = self.range.take().unwrap_or_else(|| Box::new(RangeWalk::new(query, at)));
        // The rows are looked at even for keys alone: the answer is made from them, and if it takes no more than this
        // step, nothing may be missing after the installation.
        if let Err(pause) = walk.step(&view, query, budget, &mut |_| {}) {
            self.range = Some(walk);
            return Err(pause);
        }
        let (rows, count, more) = walk.into_parts();
        Ok(Ok(TxnRange { revision, rows, count, more, shape: shape(query) }))
    }

    fn put<'c, T: KeyTree>(
        &mut self,
        put: &Put<'c>,
        ground: &Ground<'_, T>,
        keep: Keep<'c, 'k>,
        budget: &mut Budget,
    ) -> Evaluated<PutOutcome> {
        let view = View { layers: ground.layers, changes: Some(&self.changes), pages: ground.pages };
        match view.evaluate_put(put, self.changes.next_at(), budget)? {
            Ok((change, prev)) => {
                self.changes.push(keep(change));
                Ok(Ok(PutOutcome { revision: self.changes.revision(), prev }))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn delete_range<'c, T: KeyTree>(
        &mut self,
        del: &DeleteRange<'c>,
        ground: &Ground<'_, T>,
        keep: Keep<'c, 'k>,
        budget: &mut Budget,
    ) -> Result<DeleteOutcome, Pause> {
        let mut walk = self.delete.take().unwrap_or_default();
        let mut first = self.changes.next_at();
        first.sub -= walk.deleted as u32;
        let view = View { layers: ground.layers, changes: Some(&self.changes), pages: ground.pages };
        let mut slice = DeleteSlice { walk: &mut walk, view: &view, del, first, changes: Vec::new() };
        let ended = slice.step(budget);
        let changes = slice.changes;
        changes.into_iter().for_each(|change| self.changes.push(keep(change)));
        if let Err(pause) = ended {
            self.delete = Some(walk);
            return Err(pause);
        }
        Ok(DeleteOutcome { revision: self.changes.revision(), deleted: walk.deleted as i64, prev: walk.prev })
    }
}

fn check_put<T: KeyTree>(view: &View<'_, T>, put: &Put<'_>) -> Evaluated<()> {
    if put.lease != 0 && !view.layers.lease_exists(put.lease) {
        return Ok(Err(MvccError::LeaseNotFound));
    }
    if (put.ignore_value || put.ignore_lease) && view.entry(put.key)?.is_none_or(|entry| entry.is_tombstone()) {
        return Ok(Err(MvccError::KeyNotFound));
    }
    Ok(Ok(()))
}

/// Unlike a plain range, a revision below the compacted one is refused here even when negative.
fn check_range(query: &RangeQuery<'_>, newest: i64, compacted: i64) -> Result<(), MvccError> {
    match query.revision {
        0 => Ok(()),
        revision if revision > newest => Err(MvccError::FutureRevision),
        revision if revision < compacted => Err(MvccError::Compacted),
        _ => Ok(()),
    }
}
