//! Running a command's operations, or one shard's part of them.
//!
//! Owns: the order of execution, and how far it has come. Does not know: which branches are taken and why, other
//! shards.
//!
//! Invariants
//! - I1: operations run in list order and see what earlier ones of the command wrote.

use crate::budget::{Budget, Pause, price};
use crate::command::{DeleteRange, Put, RangeQuery, SortOrder, SortTarget};
use crate::mvcc::MvccError;
use crate::mvcc::changes::{Change, Changes};
use crate::mvcc::delete::{DeleteSlice, DeleteWalk};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::range::{revision_read, rows_max};
use crate::mvcc::range_walk::RangeWalk;
use crate::mvcc::view::{Layers, View};
use crate::page_source::PageSource;
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::message::Part;
use crate::shard::ops::Leaf;

/// What a run reads.
pub(super) struct Scope<'s, T> {
    pub(super) layers: Layers<'s, T>,
    pub(super) pages: &'s dyn PageSource,
    /// The shard whose part alone is evaluated; `None`: the whole command.
    pub(super) part: Option<(&'s ShardMap, ShardId)>,
    /// The newest revision before the command.
    pub(super) base: i64,
}

/// How far a command has come.
#[derive(Debug, Default)]
pub(super) struct LeafRun {
    done: usize,
    parts: Vec<Part>,
    range: Option<Box<RangeWalk>>,
    delete: Option<DeleteWalk>,
    /// Of the delete under way.
    deleted: Vec<Change<'static>>,
}

/// An error and the op it stopped at.
type Failed = (usize, MvccError);

impl LeafRun {
    /// Goes on until the last op. The changes are added to `changes`, whose command is the one that runs.
    pub(super) fn step<T: KeyTree>(
        &mut self,
        leaves: &[Leaf<'_>],
        scope: &Scope<'_, T>,
        changes: &mut Changes<'static>,
        budget: &mut Budget,
    ) -> Result<Result<(), Failed>, Pause> {
        while let Some(&leaf) = leaves.get(self.done) {
            if let Some((key, range_end)) = scope.part_of(leaf) {
                let part = match leaf {
                    Leaf::Range(query) => self.range(query, key, range_end, scope, changes, budget)?,
                    Leaf::Put(op) => put(op, scope, changes, budget)?,
                    Leaf::Delete(del) => {
                        let del = DeleteRange { key, range_end, prev_kv: del.prev_kv };
                        Ok(self.delete(&del, scope, changes, budget)?)
                    }
                };
                match part {
                    Ok(part) => self.parts.push(part),
                    Err(error) => return Ok(Err((self.done, error))),
                }
            }
            self.done += 1;
            budget.charge(price::ENTRY)?;
        }
        Ok(Ok(()))
    }

    /// The answers, at the end.
    pub(super) fn take_parts(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }

    fn range<T: KeyTree>(
        &mut self,
        query: &RangeQuery<'_>,
        key: &[u8],
        range_end: &[u8],
        scope: &Scope<'_, T>,
        changes: &Changes<'static>,
        budget: &mut Budget,
    ) -> Result<Result<Part, MvccError>, Pause> {
        let at = match revision_read(query, changes.revision(), scope.layers.state.compacted) {
            Ok(at) => at,
            Err(error) => return Ok(Err(error)),
        };
        let is_whole = scope.part.is_none() || (key, range_end) == (query.key, query.range_end);
        let query = if is_whole { *query } else { slice_of(query, key, range_end) };
        // What the round has changed so far is above everything that was there before it.
        let own = (query.revision <= 0 || at > scope.base).then_some(changes);
        let view = View { layers: scope.layers, changes: own, pages: scope.pages };
        let mut walk = self.range.take().unwrap_or_else(|| Box::new(RangeWalk::new(&query, at)));
        if let Err(pause) = walk.step(&view, &query, budget, &mut |_| {}) {
            self.range = Some(walk);
            return Err(pause);
        }
        let (rows, count, more) = walk.into_parts();
        Ok(Ok(Part::Range { rows, count, more }))
    }

    fn delete<T: KeyTree>(
        &mut self,
        del: &DeleteRange<'_>,
        scope: &Scope<'_, T>,
        changes: &mut Changes<'static>,
        budget: &mut Budget,
    ) -> Result<Part, Pause> {
        let view = View { layers: scope.layers, changes: Some(changes), pages: scope.pages };
        let walk = self.delete.get_or_insert_default();
        let mut slice = DeleteSlice { walk, view: &view, del, first: changes.next_at(), changes: Vec::new() };
        let walked = slice.step(budget);
        self.deleted.extend(slice.changes.into_iter().map(Change::into_owned));
        walked?;
        let DeleteWalk { deleted, prev, .. } = self.delete.take().unwrap_or_default();
        self.deleted.drain(..).for_each(|change| changes.push(change));
        let deleted = u32::try_from(deleted).expect("a command changes fewer than 2^32 keys");
        Ok(Part::Delete { deleted, prev })
    }
}

impl<T> Scope<'_, T> {
    /// The keys of an op that are evaluated here.
    fn part_of<'c>(&'c self, leaf: Leaf<'c>) -> Option<(&'c [u8], &'c [u8])> {
        let (key, range_end) = leaf.range();
        match self.part {
            None => Some((key, range_end)),
            Some((map, shard)) => map.part(shard, key, range_end),
        }
    }
}

fn put<T: KeyTree>(
    put: &Put<'_>,
    scope: &Scope<'_, T>,
    changes: &mut Changes<'static>,
    budget: &mut Budget,
) -> Result<Result<Part, MvccError>, Pause> {
    let view = View { layers: scope.layers, changes: Some(changes), pages: scope.pages };
    Ok(view.evaluate_put(put, changes.next_at(), budget)?.map(|(change, prev)| {
        changes.push(change.into_owned());
        Part::Put { prev }
    }))
}

/// What of a range one shard has to find, so that the rows of all in key order contain those of the answer.
fn slice_of<'c>(query: &RangeQuery<'c>, key: &'c [u8], range_end: &'c [u8]) -> RangeQuery<'c> {
    let limit = slice_rows_max(query);
    RangeQuery { key, range_end, limit, sort_order: SortOrder::None, sort_target: SortTarget::Key, ..*query }
}

/// How many rows of a range, in key order, contain those of the answer; 0: all.
pub(super) fn slice_rows_max(query: &RangeQuery<'_>) -> i64 {
    let in_order = query.sort_target == SortTarget::Key && query.sort_order != SortOrder::Descend;
    if query.limit > 0 && in_order {
        return query.limit.saturating_add(1);
    }
    match rows_max(query) {
        usize::MAX => 0,
        rows_max => i64::try_from(rows_max).unwrap_or(0),
    }
}
