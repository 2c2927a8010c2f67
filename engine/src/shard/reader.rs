//! Reads by several shards, without the log.
//!
//! Owns: a read on its way: its rounds, the pin it holds, its answer being put together. Does not know: when a read
//! may begin.
//!
//! Invariants
//! - I1: a read sees the revision that was published when it began, to its end.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::budget::{Budget, Pause};
use crate::command::{Command, Op};
use crate::mvcc::pins::Pin;
use crate::mvcc::range::revision_read;
use crate::mvcc::{MvccError, OpOutcome};
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::merge::{Contribution, Merge};
use crate::shard::message::{ChangeList, Part, ReadPoint, ShardTask, StoredCommand};
use crate::shard::numbering::Numbering;
use crate::shard::spanning::{Spanning, Stage};
use crate::shard::worker::Shared;

/// A read under way.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) id: u64,
    pub(super) job: Box<Spanning>,
    merge: Option<Merge>,
    pub(super) pin: Pin,
    /// A range: the transaction it came in has this one operation.
    is_range: bool,
}

impl Reader {
    /// Begins a read: a transaction of ranges, or (`is_range`) the only range of one.
    pub(super) fn begin<T>(
        id: u64,
        mut job: Box<Spanning>,
        pin: Pin,
        is_range: bool,
        outbox: &mut VecDeque<(ShardId, ShardTask<T>)>,
    ) -> Self {
        if is_range {
            let map = Arc::clone(&job.map);
            job.path = Some([true].into());
            job.begin_run(&map, outbox);
        } else {
            job.begin_gather(outbox);
        }
        Self { id, job, merge: None, pin, is_range }
    }

    /// Goes on; the result at the end.
    pub(super) fn go_on<T>(
        &mut self,
        map: &Arc<ShardMap>,
        outbox: &mut VecDeque<(ShardId, ShardTask<T>)>,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<Option<Result<OpOutcome, MvccError>>, Pause> {
        match self.job.stage() {
            Stage::Waiting => return Ok(None),
            Stage::Gathered => {
                if let Err(error) = self.job.decide() {
                    return Ok(Some(Err(error)));
                }
                self.job.begin_run(map, outbox);
                return Ok(None);
            }
            Stage::Ran => {}
        }
        let revision = self.job.at.revision;
        if self.merge.is_none() {
            let ran = match self.job.results() {
                Ok(ran) => ran,
                Err(failed) => return Ok(Some(Err(failed.error))),
            };
            let numbering = Numbering::new(revision, std::iter::empty());
            let contribution = |(shard, (parts, _)): (ShardId, (Vec<Part>, ChangeList))| Contribution {
                shard,
                numbering: numbering.clone(),
                parts: parts.into(),
            };
            let path = self.job.path.clone().expect("a read ran along its path");
            self.merge = Some(Merge::new(revision, path, ran.into_iter().map(contribution).collect()));
        }
        let command = self.job.command.decode();
        if let Some(merge) = &mut self.merge {
            merge.step(&command, Some(&self.job.map), shared, budget)?;
        }
        let outcome = self.merge.take().map(|merge| merge.finish(&command));
        Ok(outcome.map(|outcome| Ok(if self.is_range { only_range(outcome) } else { outcome })))
    }
}

fn only_range(outcome: OpOutcome) -> OpOutcome {
    match outcome {
        OpOutcome::Txn(txn) => txn.responses.into_iter().next().expect("the range it was made for"),
        other => other,
    }
}

/// What is wrong with the revision that a plain range asks for.
pub(super) fn range_error(read: &StoredCommand, at: ReadPoint) -> Option<MvccError> {
    let command = read.decode();
    let Command::Txn(txn) = &command else { unreachable!("a read is a transaction") };
    let Some(Op::Range(query)) = txn.success.first() else { return None };
    revision_read(query, at.revision, at.compacted).err()
}
