//! A shard's part of a round.
//!
//! Owns: the evaluation of commands that name single keys of one shard, in log order and in steps, and what they have
//! changed under provisional numbers. Does not know: other shards, final numbers, which thread it is on.
//!
//! Invariants
//! - I1: a command sees the lent state and what the commands of this job before it have changed: no other command of
//!   the round touches its keys.
//! - I2: a command that fails leaves no change.

use std::ops::Range;
use std::sync::Arc;

use crate::budget::{Budget, Pause};
use crate::command::{Command, DeleteRange, Op, Put, Txn, decode_command};
use crate::mvcc::changes::{Change, Changes};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Lent;
use crate::mvcc::txn::{Ground, TxnRun};
use crate::mvcc::view::View;
use crate::mvcc::{Evaluated, MvccError, OpOutcome, PutOutcome};
use crate::page_source::{PageSource, Unavailable};
use crate::shard::map::ShardId;

/// What a step of a job came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStep {
    /// Everything is evaluated: hand it back.
    Done,
    /// The budget is used up: step again.
    More,
    /// A block is needed first. Hand the job back: it goes on where pages can be loaded.
    NeedPages(Unavailable),
}

/// A command of a job.
#[derive(Clone, Debug)]
pub(super) struct JobCommand {
    /// Its place in the round, from 0.
    pub(super) index: u32,
    /// Where in the entry's payload it stands.
    pub(super) at: Range<usize>,
}

/// What a command came to.
#[derive(Debug)]
pub(super) struct JobResult {
    /// How many keys it changed.
    pub(super) changes: u32,
    /// Its answer, under provisional numbers.
    pub(super) answer: Result<OpOutcome, MvccError>,
}

/// Commands on the keys of one shard, the state they are evaluated over, and how far that has come.
#[derive(Debug)]
pub struct ShardJob<T> {
    shard: ShardId,
    lent: Lent<T>,
    payload: Arc<Vec<u8>>,
    commands: Vec<JobCommand>,
    results: Vec<JobResult>,
    changes: Changes<'static>,
    /// The transaction under evaluation; it holds the changes meanwhile.
    txn: Option<Box<TxnRun<'static>>>,
}

impl<T: KeyTree> ShardJob<T> {
    pub(super) fn new(shard: ShardId, lent: Lent<T>, payload: Arc<Vec<u8>>, commands: Vec<JobCommand>) -> Self {
        let changes = Changes::new(lent.revision() + 1);
        Self { shard, lent, payload, results: Vec::with_capacity(commands.len()), commands, changes, txn: None }
    }

    /// Whose it is.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Whether everything is evaluated.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.results.len() == self.commands.len()
    }

    /// How many commands it has.
    #[must_use]
    pub fn commands_len(&self) -> usize {
        self.commands.len()
    }

    /// What came of it, at its end: results and changes in the order of its commands. The state is given back.
    pub(super) fn finish(self) -> (Vec<JobResult>, Changes<'static>) {
        assert!(self.is_done(), "every command has a result");
        (self.results, self.changes)
    }

    /// Goes on.
    pub fn step(&mut self, pages: &dyn PageSource, budget: &mut Budget) -> JobStep {
        let payload = Arc::clone(&self.payload);
        while let Some(JobCommand { index, at }) = self.commands.get(self.results.len()).cloned() {
            let command = decode_command(&payload[at]).expect("checked when the entry was handed in");
            let base = self.lent.revision() + i64::from(index);
            match self.command(&command, base, pages, budget) {
                Ok(answer) => {
                    if answer.is_err() {
                        self.changes.take_back();
                    }
                    self.results.push(JobResult { changes: self.changes.of_command(), answer });
                }
                Err(Pause::Budget) => return JobStep::More,
                Err(Pause::Pages(unavailable)) => return JobStep::NeedPages(unavailable),
            }
            if budget.is_used_up() && !self.is_done() {
                return JobStep::More;
            }
        }
        JobStep::Done
    }

    /// Evaluates a command over revision `base`.
    fn command(
        &mut self,
        command: &Command<'_>,
        base: i64,
        pages: &dyn PageSource,
        budget: &mut Budget,
    ) -> Evaluated<OpOutcome> {
        if self.txn.is_none() {
            self.changes.begin(base + 1);
        }
        match command {
            Command::Put(put) => self.put(put, pages, budget),
            Command::DeleteRange(delete) => self.delete(*delete, base, pages, budget),
            Command::Txn(txn) => self.txn(txn, base, pages, budget),
            other => unreachable!("{other:?} is applied between rounds"),
        }
    }

    fn put(&mut self, put: &Put<'_>, pages: &dyn PageSource, budget: &mut Budget) -> Evaluated<OpOutcome> {
        let view = View { layers: self.lent.layers(), changes: Some(&self.changes), pages };
        let evaluated = view.evaluate_put(put, self.changes.next_at(), budget)?;
        Ok(evaluated.map(|(change, prev)| {
            self.changes.push(change.into_owned());
            OpOutcome::Put(PutOutcome { revision: self.changes.revision(), prev })
        }))
    }

    /// As a transaction of nothing else.
    fn delete(
        &mut self,
        delete: DeleteRange<'_>,
        base: i64,
        pages: &dyn PageSource,
        budget: &mut Budget,
    ) -> Evaluated<OpOutcome> {
        let txn = Txn { success: vec![Op::DeleteRange(delete)], ..Txn::default() };
        let answer = self.txn(&txn, base, pages, budget)?;
        Ok(answer.map(|answer| match answer {
            OpOutcome::Txn(mut txn) => txn.responses.pop().expect("an operation has an answer"),
            other => unreachable!("{other:?} answers no transaction"),
        }))
    }

    fn txn(&mut self, txn: &Txn<'_>, base: i64, pages: &dyn PageSource, budget: &mut Budget) -> Evaluated<OpOutcome> {
        let layers = self.lent.layers();
        let mut run = self.txn.take().unwrap_or_else(|| {
            let changes = std::mem::replace(&mut self.changes, Changes::new(base + 1));
            Box::new(TxnRun::over(base, layers.state.compacted, changes))
        });
        match run.step(txn, &Ground { layers, pages }, Change::into_owned, budget) {
            Ok(answer) => {
                self.changes = run.changes;
                Ok(answer.map(OpOutcome::Txn))
            }
            Err(pause) => {
                self.txn = Some(run);
                Err(pause)
            }
        }
    }
}
