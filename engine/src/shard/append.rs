//! Numbers, rows and answers of what shards have evaluated.
//!
//! Owns: the final order of changes, their way into the row log, and answers being put together. Does not know: who
//! evaluates what and when, publication.
//!
//! Invariants
//! - I1: rows are appended in the order of their final numbers, which are those that one keyspace would have given.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::budget::{Budget, Pause, price};
use crate::lease::Leases;
use crate::mvcc::MvccError;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::change_digest;
use crate::shard::answer::{Answer, Answered};
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::merge::{Contribution, Merge};
use crate::shard::message::{ChangeList, Part, StoredCommand};
use crate::shard::numbering::Numbering;
use crate::shard::worker::Shared;
use crate::store::key_entry::Revision;
use crate::store::row_log::{Row, RowLog};

/// Changes on their way into the row log, and answers being put together.
#[derive(Debug)]
pub(super) struct Append {
    /// Runs of changes in their final order: whose, how many, where the first goes.
    pub(super) runs: VecDeque<(ShardId, u32, Revision)>,
    pub(super) lists: BTreeMap<ShardId, List>,
    /// The newest revision after them.
    pub(super) newest: i64,
    pub(super) answers: VecDeque<Answering>,
    /// The lease that ends with them.
    pub(super) ends: Option<i64>,
}

/// The changes of one shard.
#[derive(Debug)]
pub(super) struct List {
    pub(super) changes: ChangeList,
    pub(super) next: usize,
    pub(super) numbering: Numbering,
}

/// An answer to be put together.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) id: u64,
    pub(super) content: Content,
}

/// What of.
#[derive(Debug)]
pub(super) enum Content {
    /// Parts of shards' answers; the map, if there is more than one shard.
    Parts { command: StoredCommand, map: Option<Arc<ShardMap>>, merge: Box<Merge> },
    /// It stands.
    Whole(Result<Answer, MvccError>),
}

/// The final numbers of one command of several shards.
#[derive(Debug)]
pub(super) struct SpanningNumbers {
    pub(super) runs: VecDeque<(ShardId, u32, Revision)>,
    pub(super) lists: BTreeMap<ShardId, List>,
    pub(super) newest: i64,
    /// The parts of its answer.
    pub(super) contributions: Vec<Contribution>,
}

/// Numbers the changes of one command of several shards over revision `base`. `order`: runs of changes in their final
/// order; `ran`: the parts and changes of each shard.
pub(super) fn number_spanning(
    base: i64,
    order: Vec<(ShardId, u32)>,
    ran: BTreeMap<ShardId, (Vec<Part>, ChangeList)>,
) -> SpanningNumbers {
    let changed: u32 = order.iter().map(|&(_, count)| count).sum();
    let numbering = Numbering::new(base, std::iter::once(changed > 0));
    let mut sub = 0;
    let mut runs = VecDeque::new();
    for (shard, count) in order {
        runs.push_back((shard, count, Revision { main: base + 1, sub }));
        sub += count;
    }
    let (mut lists, mut contributions) = (BTreeMap::new(), Vec::new());
    for (shard, (parts, changes)) in ran {
        let own = runs.iter().filter(|run| run.0 == shard).map(|&(_, count, at)| (count, at.sub));
        let numbering = numbering.with_runs(own);
        contributions.push(Contribution { shard, numbering: numbering.clone(), parts: parts.into() });
        lists.insert(shard, List { changes, next: 0, numbering });
    }
    SpanningNumbers { runs, lists, newest: numbering.newest(), contributions }
}

impl Append {
    /// Appends the rows in their final order.
    pub(super) fn write<T: KeyTree>(
        &mut self,
        rows: &mut RowLog,
        leases: &mut Leases<T>,
        digest: &mut u128,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        while let Some((shard, count, at)) = self.runs.front_mut() {
            let list = self.lists.get_mut(shard).expect("a run is of a shard that changed something");
            if *count == 0 {
                self.runs.pop_front();
                continue;
            }
            let change = list.changes.change(list.next).expect("as many changes as were counted");
            let row = Row {
                at: *at,
                key: &change.key,
                value: &change.value,
                create: list.numbering.revision(change.entry.create),
                version: change.entry.version,
                lease: change.entry.lease,
                prev: list.numbering.row(change.prev),
                jump: list.numbering.row(change.jump),
            };
            assert_eq!(list.numbering.row(change.entry.row), row.at, "shard and coordinator number alike");
            let stored = rows.append(&row);
            *digest = digest.wrapping_add(change_digest(&row, stored));
            leases.attach(&change.key, change.lease_before, change.entry.lease);
            (list.next, *count, at.sub) = (list.next + 1, *count - 1, at.sub + 1);
            budget.spend_bytes(change.key.len() + change.value.len());
            budget.charge(price::CHANGE)?;
        }
        Ok(())
    }

    /// Puts the answers together.
    pub(super) fn answer(
        &mut self,
        shared: Shared<'_>,
        answered: &mut Vec<Answered>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        while let Some(answering) = self.answers.front_mut() {
            if let Content::Parts { command, map, merge } = &mut answering.content {
                merge.step(&command.decode(), map.as_deref(), shared, budget)?;
            }
            let Some(Answering { id, content }) = self.answers.pop_front() else { break };
            let result = match content {
                Content::Parts { command, merge, .. } => Ok(Answer::Op(merge.finish(&command.decode()))),
                Content::Whole(result) => result,
            };
            answered.push(Answered { id, result });
        }
        Ok(())
    }
}
