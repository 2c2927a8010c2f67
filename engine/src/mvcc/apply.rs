//! Commands that change keys.
//!
//! Owns: evaluation and installation of commands, in slices: what a command that paused has done so far. Does not know:
//! where commands come from, raft, publication.
//!
//! A command that pauses is called again with the same arguments; nothing else is applied before it has ended. What it
//! has installed by then stands above the published revision, where no reader looks.
//!
//! Invariants
//! - I1: a transaction is evaluated whole before any of it is installed; a delete cannot fail and is installed as it is
//!   evaluated.
//! - I2: the revision moves when a command has ended, never before.

use crate::budget::{Budget, Pause, price};
use crate::command::{DeleteRange, Op, Put, Txn};
use crate::mvcc::changes::{Change, Rest, next_at};
use crate::mvcc::delete::{DeleteSlice, DeleteWalk, RevokeWalk};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::{Evaluated, Keyspace};
use crate::mvcc::outcome::{CompactOutcome, DeleteOutcome, LeaseRevokeOutcome, MvccError, PutOutcome, TxnOutcome};
use crate::mvcc::txn::{Ground, TxnRun};
use crate::mvcc::view::View;
use crate::page_source::PageSource;

/// A command that paused.
#[derive(Debug)]
pub(super) enum Pending {
    Delete(DeleteWalk),
    Revoke(RevokeWalk),
    Txn(TxnRun<'static>),
    /// A transaction's changes, from the next one to be installed.
    Install {
        outcome: TxnOutcome,
        changes: Rest<'static>,
    },
}

impl<T: KeyTree> Keyspace<T> {
    /// Applies a put.
    ///
    /// # Errors
    /// See [`Evaluated`]; only pages make it pause.
    pub fn apply_put(&mut self, put: &Put<'_>, budget: &mut Budget, pages: &dyn PageSource) -> Evaluated<PutOutcome> {
        assert!(self.pending.is_none(), "a command that paused is called again before the next");
        let main = self.state().revision + 1;
        let view = View { layers: self.layers(), changes: None, pages };
        match view.evaluate_put(put, next_at(main, 0), budget)? {
            Ok((change, prev)) => {
                self.install(&change);
                self.move_to(main);
                Ok(Ok(PutOutcome { revision: main, prev }))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// Applies a delete.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn apply_delete_range(
        &mut self,
        del: &DeleteRange<'_>,
        budget: &mut Budget,
        pages: &dyn PageSource,
    ) -> Evaluated<DeleteOutcome> {
        let mut walk = match self.pending.take().map(|pending| *pending) {
            None => DeleteWalk::default(),
            Some(Pending::Delete(walk)) => walk,
            Some(_) => unreachable!("a command that paused is called again before the next"),
        };
        let main = self.state().revision + 1;
        let view = View { layers: self.layers(), changes: None, pages };
        let mut slice = DeleteSlice { walk: &mut walk, view: &view, del, first: next_at(main, 0), changes: Vec::new() };
        let ended = slice.step(budget);
        let changes = slice.changes;
        changes.iter().for_each(|change| self.install(change));
        if let Err(pause) = ended {
            self.pending = Some(Box::new(Pending::Delete(walk)));
            return Err(pause);
        }
        if walk.deleted > 0 {
            self.move_to(main);
        }
        Ok(Ok(DeleteOutcome { revision: self.state().revision, deleted: walk.deleted as i64, prev: walk.prev }))
    }

    /// Applies a transaction.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn apply_txn(&mut self, txn: &Txn<'_>, budget: &mut Budget, pages: &dyn PageSource) -> Evaluated<TxnOutcome> {
        match self.pending.take().map(|pending| *pending) {
            None => self.begin_txn(txn, budget, pages),
            Some(Pending::Txn(run)) => self.go_on_with_txn(run, txn, budget, pages),
            Some(Pending::Install { outcome, changes }) => self.install_rest(outcome, changes, budget).map(Ok),
            Some(Pending::Delete(_) | Pending::Revoke(_)) => {
                unreachable!("a command that paused is called again before the next")
            }
        }
    }

    /// The usual case: everything in one slice, and nothing copied that the command holds.
    fn begin_txn(&mut self, txn: &Txn<'_>, budget: &mut Budget, pages: &dyn PageSource) -> Evaluated<TxnOutcome> {
        let mut run = TxnRun::new(self.state().revision, self.state().compacted);
        let ground = Ground { layers: self.layers(), pages };
        let outcome = match run.step(txn, &ground, |change| change, budget) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Ok(Err(error)),
            Err(pause) => {
                self.pending = Some(Box::new(Pending::Txn(run.into_owned())));
                return Err(pause);
            }
        };
        let mut changes = run.changes.into_rest();
        let changed = !changes.is_empty();
        while let Some(change) = changes.take_next() {
            self.install(&change);
            // Evaluation paid for the changes; installing as many may take as long again.
            if !budget.spend(price::CHANGE) && !changes.is_empty() {
                let changes = changes.into_owned();
                self.pending = Some(Box::new(Pending::Install { outcome, changes }));
                return Err(Pause::Budget);
            }
        }
        self.end_txn(&outcome, changed);
        Ok(Ok(outcome))
    }

    fn go_on_with_txn(
        &mut self,
        mut run: TxnRun<'static>,
        txn: &Txn<'_>,
        budget: &mut Budget,
        pages: &dyn PageSource,
    ) -> Evaluated<TxnOutcome> {
        let ground = Ground { layers: self.layers(), pages };
        match run.step(txn, &ground, Change::into_owned, budget) {
            Ok(Ok(outcome)) => self.install_rest(outcome, run.changes.into_rest(), budget).map(Ok),
            Ok(Err(error)) => Ok(Err(error)),
            Err(pause) => {
                self.pending = Some(Box::new(Pending::Txn(run)));
                Err(pause)
            }
        }
    }

    fn install_rest(
        &mut self,
        outcome: TxnOutcome,
        mut changes: Rest<'static>,
        budget: &mut Budget,
    ) -> Result<TxnOutcome, Pause> {
        let changed = outcome.revision > self.state().revision;
        while let Some(change) = changes.take_next() {
            self.install(&change);
            if !budget.spend(price::CHANGE) && !changes.is_empty() {
                self.pending = Some(Box::new(Pending::Install { outcome, changes }));
                return Err(Pause::Budget);
            }
        }
        self.end_txn(&outcome, changed);
        Ok(outcome)
    }

    fn end_txn(&mut self, outcome: &TxnOutcome, changed: bool) {
        if changed {
            self.move_to(self.state().revision + 1);
        }
        assert_eq!(outcome.revision, self.state().revision, "a transaction that changes takes one revision");
    }

    /// Grants a lease.
    ///
    /// # Errors
    /// It exists.
    pub fn apply_lease_grant(&mut self, id: i64, ttl: i64) -> Result<(), MvccError> {
        if self.leases().get(id).is_some() {
            return Err(MvccError::LeaseExists);
        }
        self.change_lease(id, Some(ttl));
        Ok(())
    }

    /// Notes how much of a lease is left, in seconds; 0 forgets the note. A lease that has ended needs none.
    pub fn apply_lease_checkpoint(&mut self, id: i64, remaining: i64) {
        self.note_remaining(id, remaining);
    }

    /// Ends a lease: all its keys are deleted, in key order and at one revision.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn apply_lease_revoke(
        &mut self,
        id: i64,
        budget: &mut Budget,
        pages: &dyn PageSource,
    ) -> Evaluated<LeaseRevokeOutcome> {
        let mut walk = match self.pending.take().map(|pending| *pending) {
            None => RevokeWalk::default(),
            Some(Pending::Revoke(walk)) => walk,
            Some(_) => unreachable!("a command that paused is called again before the next"),
        };
        if self.leases().get(id).is_none() {
            return Ok(Err(MvccError::LeaseNotFound));
        }
        let (main, mut changes) = (self.state().revision + 1, Vec::new());
        let view = View { layers: self.layers(), changes: None, pages };
        let ended = walk.step(&view, id, main, &mut changes, budget);
        changes.iter().for_each(|change| self.install(change));
        if let Err(pause) = ended {
            self.pending = Some(Box::new(Pending::Revoke(walk)));
            return Err(pause);
        }
        if walk.deleted > 0 {
            self.move_to(main);
        }
        self.change_lease(id, None);
        Ok(Ok(LeaseRevokeOutcome { revision: self.state().revision, deleted: walk.deleted as i64 }))
    }

    /// Sets the compacted revision; visible at once.
    ///
    /// # Errors
    /// Already compacted, or in the future.
    pub fn apply_compact(&mut self, revision: i64) -> Result<CompactOutcome, MvccError> {
        let state = self.state();
        if revision <= state.compacted {
            return Err(MvccError::Compacted);
        }
        if revision > state.revision {
            return Err(MvccError::FutureRevision);
        }
        self.compact(revision);
        Ok(CompactOutcome { revision: state.revision })
    }

    /// Whether a command has paused and must be called again before anything else is applied. Published revision and
    /// state are as before it.
    #[must_use]
    pub fn is_mid_command(&self) -> bool {
        self.pending.is_some()
    }

    /// Evaluates a transaction that holds only ranges, without the log, in one step.
    ///
    /// # Errors
    /// See [`Evaluated`]; it is to be begun again.
    pub fn read_txn(&self, txn: &Txn<'_>, budget: &mut Budget, pages: &dyn PageSource) -> Evaluated<TxnOutcome> {
        self.read_txn_step(txn, &mut TxnCursor::new(self), budget, pages)
    }

    /// Goes on with a transaction that holds only ranges.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn read_txn_step(
        &self,
        txn: &Txn<'_>,
        cursor: &mut TxnCursor,
        budget: &mut Budget,
        pages: &dyn PageSource,
    ) -> Evaluated<TxnOutcome> {
        assert!(txn.is_read_only(), "a transaction that writes goes through the log");
        let ground = Ground { layers: self.layers(), pages };
        cursor.run.step(txn, &ground, Change::into_owned, budget)
    }
}

/// A transaction of ranges under evaluation: all of it reads at one revision. Owns what it needs.
#[derive(Debug)]
pub struct TxnCursor {
    revision: i64,
    run: TxnRun<'static>,
}

impl TxnCursor {
    /// Begins at the published revision. To go on after anything was applied, a pin must hold the oldest revision
    /// that its ranges ask for ([`Self::revision_held`]).
    #[must_use]
    pub fn new<T: KeyTree>(keyspace: &Keyspace<T>) -> Self {
        let revision = keyspace.published().revision;
        Self { revision, run: TxnRun::new(revision, keyspace.state().compacted) }
    }

    /// The revision it reads at.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Addresses of rows it holds: its memory.
    #[must_use]
    pub fn rows_held(&self) -> usize {
        self.run.rows_held()
    }

    /// The oldest revision that a transaction begun here may read.
    #[must_use]
    pub fn revision_held<T: KeyTree>(&self, keyspace: &Keyspace<T>, txn: &Txn<'_>) -> i64 {
        let compacted = keyspace.state().compacted;
        let asked = txn.success.iter().chain(&txn.failure).filter_map(|op| match op {
            Op::Range(query) if query.revision > 0 => Some(query.revision),
            _ => None,
        });
        asked.filter(|&revision| revision >= compacted).min().unwrap_or(self.revision).min(self.revision)
    }
}
