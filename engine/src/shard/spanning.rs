//! One command of several shards, in two rounds; also a read.
//!
//! Owns: who was asked, who has answered, and what. Does not know: numbers of changes, the row log.
//!
//! Round one (transactions only) gathers every compare of every level and the preconditions of both branches on the
//! state before the command. Round two runs the whole list of ops along the path that they decide, every shard its
//! part. A read takes the same two rounds at a published revision and changes nothing; it may come between anything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::command::Command;
use crate::mvcc::MvccError;
use crate::shard::map::{ShardId, ShardMap, ShardSet};
use crate::shard::message::{ChangeList, Gathered, Part, PartResult, ReadPoint, ShardTask, StoredCommand, Task};
use crate::shard::ops;

/// A command of several shards.
#[derive(Debug)]
pub(super) struct Spanning {
    job: u64,
    pub(super) command: StoredCommand,
    /// The map when the round under way began: messages keep their order, so the shards go by the same.
    pub(super) map: Arc<ShardMap>,
    pub(super) at: ReadPoint,
    /// Who owns a key that it may touch.
    pub(super) owners: ShardSet,
    /// The branches taken, once they are known.
    pub(super) path: Option<Arc<[bool]>>,
    /// Who has yet to answer.
    awaited: ShardSet,
    gathered: Gathered,
    ran: BTreeMap<ShardId, (PartResult, ChangeList)>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Somebody has yet to answer.
    Waiting,
    /// Round one is over.
    Gathered,
    /// Round two is over.
    Ran,
}

/// A command that failed while it ran.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: MvccError,
    pub(super) dropped: Vec<ChangeList>,
}

/// The parts and the changes of each shard.
pub(super) type Ran = BTreeMap<ShardId, (Vec<Part>, ChangeList)>;

impl Spanning {
    pub(super) fn new(job: u64, command: StoredCommand, map: &Arc<ShardMap>, at: ReadPoint) -> Self {
        Self {
            job,
            owners: owners(map, &command.decode()),
            command,
            map: Arc::clone(map),
            at,
            path: None,
            awaited: ShardSet::default(),
            gathered: Gathered::default(),
            ran: BTreeMap::new(),
        }
    }

    /// Begins round one.
    pub(super) fn begin_gather<T>(&mut self, outbox: &mut VecDeque<(ShardId, ShardTask<T>)>) {
        self.awaited = self.owners;
        for shard in self.owners.iter() {
            let task = Task::Gather { job: self.job, at: self.at, command: self.command.clone() };
            outbox.push_back((shard, ShardTask(task)));
        }
    }

    /// Begins round two, by the present map.
    pub(super) fn begin_run<T>(&mut self, map: &Arc<ShardMap>, outbox: &mut VecDeque<(ShardId, ShardTask<T>)>) {
        self.map = Arc::clone(map);
        self.owners = owners(map, &self.command.decode());
        self.awaited = self.owners;
        let path = self.path.clone().expect("the branches are known");
        for shard in self.owners.iter() {
            let (command, path) = (self.command.clone(), Arc::clone(&path));
            outbox.push_back((shard, ShardTask(Task::Run { job: self.job, at: self.at, command, path })));
        }
    }

    pub(super) fn handle_gathered(&mut self, from: ShardId, gathered: &Gathered) {
        self.handle_answer(from);
        ops::join(&mut self.gathered, gathered);
    }

    pub(super) fn handle_ran(&mut self, from: ShardId, result: PartResult, changes: ChangeList) {
        self.handle_answer(from);
        self.ran.insert(from, (result, changes));
    }

    fn handle_answer(&mut self, from: ShardId) {
        assert!(self.awaited.contains(from), "one answer of each shard that was asked");
        self.awaited = self.awaited.without(from);
    }

    pub(super) fn stage(&self) -> Stage {
        match (self.awaited.is_empty(), &self.path) {
            (false, _) => Stage::Waiting,
            (true, None) => Stage::Gathered,
            (true, Some(_)) => Stage::Ran,
        }
    }

    /// Chooses the branches by what was gathered.
    pub(super) fn decide(&mut self) -> Result<(), MvccError> {
        let command = self.command.decode();
        let Command::Txn(txn) = &command else { unreachable!("only a transaction has branches") };
        if self.owners.is_empty() {
            self.gathered = ops::nothing_gathered(txn);
        }
        self.path = Some(ops::decide(txn, &self.gathered, self.at.revision, self.at.compacted)?);
        Ok(())
    }

    /// What round two brought; or the error of the earliest op that failed, and the changes to forget.
    pub(super) fn results(&mut self) -> Result<Ran, Failed> {
        let mut parts = BTreeMap::new();
        let mut failed: Option<(usize, MvccError)> = None;
        let mut dropped = Vec::new();
        for (shard, (result, changes)) in std::mem::take(&mut self.ran) {
            match result {
                Ok(ran) => {
                    dropped.push(Arc::clone(&changes));
                    parts.insert(shard, (ran, changes));
                }
                Err(error) => failed = Some(failed.filter(|first| first.0 <= error.0).unwrap_or(error)),
            }
        }
        failed.map_or(Ok(parts), |(_, error)| Err(Failed { error, dropped }))
    }

    /// Runs of changes in their final order: op by op, within an op shard by shard in key order.
    pub(super) fn order(&self, ran: &Ran) -> Vec<(ShardId, u32)> {
        let command = self.command.decode();
        let path = self.path.as_deref().expect("it ran along its path");
        let mut parts: BTreeMap<ShardId, std::slice::Iter<'_, Part>> =
            ran.iter().map(|(&shard, (parts, _))| (shard, parts.iter())).collect();
        let mut order = Vec::new();
        for leaf in ops::leaves(&command, path) {
            let (key, range_end) = leaf.range();
            for shard in self.map.owners(key, range_end).iter() {
                let part = parts.get_mut(&shard).and_then(Iterator::next).expect("a part of each owner of its keys");
                order.push((shard, part.changes()));
            }
        }
        order
    }
}

/// The owners of every key that a command may touch.
pub(super) fn owners(map: &ShardMap, command: &Command<'_>) -> ShardSet {
    let mut owners = ShardSet::default();
    ops::touched(command, &mut |key, range_end| owners = owners.union(map.owners(key, range_end)));
    owners
}
