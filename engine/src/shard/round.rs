//! Commands of one shard each, evaluated beside each other.
//!
//! Owns: which commands share a round, and their numbers. Does not know: how a shard evaluates, what follows.
//!
//! Invariants
//! - I1: commands of a round stand in log order, and each concerns the keys of one shard.
//! - I2: no command of a round but the first names a revision that a command of the round may take.

use std::collections::{BTreeMap, VecDeque};

use crate::command::Command;
use crate::mvcc::MvccError;
use crate::mvcc::keyspace::lease_digest;
use crate::shard::answer::Answer;
use crate::shard::append::{Answering, Append, Content, List};
use crate::shard::map::ShardId;
use crate::shard::merge::{Contribution, Merge};
use crate::shard::message::{ChangeList, CommandResult, StoredCommand};
use crate::shard::numbering::Numbering;
use crate::shard::ops;
use crate::store::key_entry::Revision;

/// A round.
#[derive(Debug)]
pub(super) struct Round {
    /// The newest revision before it.
    base: i64,
    commands: Vec<Member>,
    reports: BTreeMap<ShardId, Option<(Vec<CommandResult>, ChangeList)>>,
}

/// A command of a round.
#[derive(Debug)]
enum Member {
    /// A shard evaluates it.
    Shard { id: u64, command: StoredCommand, shard: ShardId },
    /// A lease is granted, or was already; everybody takes note.
    Grant { id: u64, lease: i64, ttl: i64, is_granted: bool },
}

impl Round {
    pub(super) fn new(base: i64) -> Self {
        Self { base, commands: Vec::new(), reports: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether a command has to begin a round: what it asks is not decided before those of this one have numbers.
    pub(super) fn is_undecided(&self, command: &Command<'_>) -> bool {
        let reach = self.base + self.commands.len() as i64 + 1;
        let is_open = |revision: i64| revision > self.base && revision <= reach;
        !self.commands.is_empty() && ops::names_revision(command, &is_open)
    }

    pub(super) fn push(&mut self, id: u64, command: StoredCommand, shard: ShardId) {
        self.commands.push(Member::Shard { id, command, shard });
        self.reports.insert(shard, None);
    }

    pub(super) fn push_grant(&mut self, id: u64, lease: i64, ttl: i64, is_granted: bool) {
        self.commands.push(Member::Grant { id, lease, ttl, is_granted });
    }

    /// Waits for the report of one more shard.
    pub(super) fn expect(&mut self, shard: ShardId) {
        self.reports.insert(shard, None);
    }

    pub(super) fn handle_report(&mut self, from: ShardId, results: Vec<CommandResult>, changes: ChangeList) {
        let before = self.reports.insert(from, Some((results, changes)));
        assert!(matches!(before, Some(None)), "one report for each round");
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.reports.values().any(Option::is_none)
    }

    /// Every command's change count is known: prefix sums give the revisions. `digest` takes in what is no change of
    /// a key.
    pub(super) fn number(self, digest: &mut u128) -> Append {
        let (mut lists, mut reported) = (BTreeMap::new(), BTreeMap::new());
        for (shard, report) in self.reports {
            let (results, changes) = report.expect("all have reported");
            reported.insert(shard, results.into_iter());
            lists.insert(shard, changes);
        }
        let mut results = Vec::with_capacity(self.commands.len());
        for member in &self.commands {
            results.push(match member {
                Member::Shard { shard, .. } => reported.get_mut(shard).and_then(Iterator::next),
                Member::Grant { .. } => None,
            });
        }
        let changed = results.iter().map(|result| result.as_ref().is_some_and(|result| result.changes > 0));
        let numbering = Numbering::new(self.base, changed);
        let (mut runs, mut answers) = (VecDeque::new(), VecDeque::new());
        for (index, (member, result)) in self.commands.into_iter().zip(results).enumerate() {
            let before = numbering.revision(self.base + index as i64);
            answers.push_back(match member {
                Member::Grant { id, lease, ttl, is_granted } => {
                    if is_granted {
                        *digest = digest.wrapping_add(lease_digest(lease, ttl, true, before));
                    }
                    let result = if is_granted { Ok(Answer::LeaseGrant) } else { Err(MvccError::LeaseExists) };
                    Answering { id, content: Content::Whole(result) }
                }
                Member::Shard { id, command, shard } => {
                    let result = result.expect("a result for each command of a shard");
                    if result.changes > 0 {
                        runs.push_back((shard, result.changes, Revision { main: before + 1, sub: 0 }));
                    }
                    let content = content(result, before, shard, &numbering, command);
                    Answering { id, content }
                }
            });
        }
        let newest = numbering.newest();
        let list = |changes| List { changes, next: 0, numbering: numbering.clone() };
        let lists = lists.into_iter().map(|(shard, changes)| (shard, list(changes))).collect();
        Append { runs, lists, newest, answers, ends: None }
    }
}

fn content(
    result: CommandResult,
    before: i64,
    shard: ShardId,
    numbering: &Numbering,
    command: StoredCommand,
) -> Content {
    match result.result {
        Err(error) => Content::Whole(Err(error)),
        Ok(evaluation) => {
            let (numbering, parts) = (numbering.clone(), evaluation.parts.into());
            let contribution = Contribution { shard, numbering, parts };
            let merge = Merge::new(before, evaluation.path, vec![contribution]);
            Content::Parts { command, map: None, merge: Box::new(merge) }
        }
    }
}
