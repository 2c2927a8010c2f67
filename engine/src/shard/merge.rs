//! From the parts of a command's answer to the answer.
//!
//! Owns: the joining of parts in key order, limits, sorting, counts, and the final numbers in what is answered. Does
//! not know: who evaluated a part, the state.
//!
//! Invariants
//! - I1: the answer is that of one keyspace: rows with equal sort keys stand in key order, the limit cuts after
//!   sorting but for the sort without an order, which sorts the first rows in key order.

use std::collections::VecDeque;

use crate::budget::{Budget, Pause, price};
use crate::command::{Command, Op, RangeQuery, SortOrder, SortTarget, Txn};
use crate::mvcc::key_tree::{KeyScan, KeyTree};
use crate::mvcc::range::{limit, shape};
use crate::mvcc::sort::SortHeap;
use crate::mvcc::view::{Layers, View};
use crate::mvcc::{DeleteOutcome, KeyRange, KeyspaceState, OpOutcome, PutOutcome, TxnOutcome, TxnRange};
use crate::page_source::{PageSource, Unavailable};
use crate::shard::evaluation::slice_rows_max;
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::message::Part;
use crate::shard::numbering::Numbering;
use crate::shard::ops::{self, Leaf};
use crate::shard::worker::Shared;
use crate::store::key_entry::{KeyEntry, Revision};
use crate::store::overlay::Overlay;

/// What one shard contributes: a part for each op that it owns keys of.
#[derive(Debug)]
pub(super) struct Contribution {
    pub(super) shard: ShardId,
    pub(super) numbering: Numbering,
    pub(super) parts: VecDeque<Part>,
}

/// An answer being put together.
#[derive(Debug)]
pub(super) struct Merge {
    /// The newest revision before the command.
    before: i64,
    path: std::sync::Arc<[bool]>,
    /// In key order.
    contributions: Vec<Contribution>,
    /// Of ops that are put together.
    merged: Vec<Part>,
    open: Option<OpenRange>,
}

/// A range being put together.
#[derive(Debug)]
struct OpenRange {
    /// By contribution: rows not taken over yet, in key order.
    sources: VecDeque<(usize, std::vec::IntoIter<Revision>)>,
    rows: Vec<Revision>,
    count: i64,
    more: bool,
    /// One shard owns it all, so it is sorted and cut.
    is_whole: bool,
    sorted: Option<Sorted>,
}

#[derive(Debug)]
struct Sorted {
    heap: SortHeap,
    /// Rows that are in the heap.
    taken: usize,
    /// The worst first.
    out: Vec<Revision>,
}

impl Merge {
    pub(super) fn new(before: i64, path: std::sync::Arc<[bool]>, contributions: Vec<Contribution>) -> Self {
        Self { before, path, contributions, merged: Vec::new(), open: None }
    }

    /// Goes on until everything is put together. `map` says who owns what, unless there is one contribution to all.
    pub(super) fn step(
        &mut self,
        command: &Command<'_>,
        map: Option<&ShardMap>,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        let leaves = ops::leaves(command, &self.path);
        while let Some(&leaf) = leaves.get(self.merged.len()) {
            let part = match leaf {
                Leaf::Range(query) => {
                    let mut open = self.open.take().unwrap_or_else(|| self.open_range(leaf, map));
                    if let Err(pause) = open.step(query, &self.contributions, shared, budget) {
                        self.open = Some(open);
                        return Err(pause);
                    }
                    Part::Range { rows: open.rows, count: open.count, more: open.more }
                }
                Leaf::Put(_) | Leaf::Delete(_) => self.change(leaf, map),
            };
            self.merged.push(part);
            budget.charge(price::ENTRY)?;
        }
        Ok(())
    }

    /// Takes the next part of everyone who has one of this op.
    fn take(&mut self, leaf: Leaf<'_>, map: Option<&ShardMap>) -> Vec<(usize, Part)> {
        let (key, range_end) = leaf.range();
        let owns = |shard| map.is_none_or(|map| map.part(shard, key, range_end).is_some());
        let owners = self.contributions.iter_mut().enumerate().filter(|(_, contribution)| owns(contribution.shard));
        let take = |(index, contribution): (usize, &mut Contribution)| {
            (index, contribution.parts.pop_front().expect("a part for each op it owns keys of"))
        };
        owners.map(take).collect()
    }

    fn open_range(&mut self, leaf: Leaf<'_>, map: Option<&ShardMap>) -> OpenRange {
        let (key, range_end) = leaf.range();
        let mut open = OpenRange {
            sources: VecDeque::new(),
            rows: Vec::new(),
            count: 0,
            more: false,
            is_whole: true,
            sorted: None,
        };
        for (index, part) in self.take(leaf, map) {
            let Part::Range { rows, count, more } = part else { unreachable!("a range has parts of a range") };
            let shard = self.contributions[index].shard;
            open.is_whole = map.is_none_or(|map| map.part(shard, key, range_end) == Some((key, range_end)));
            open.count += count;
            open.more |= more;
            open.sources.push_back((index, rows.into_iter()));
        }
        open
    }

    fn change(&mut self, leaf: Leaf<'_>, map: Option<&ShardMap>) -> Part {
        let parts = self.take(leaf, map);
        let number = |index: usize, at: Revision| self.contributions[index].numbering.row(at);
        if let Leaf::Put(_) = leaf {
            let [(index, Part::Put { prev })] = parts.as_slice() else { unreachable!("a put has one part") };
            return Part::Put { prev: prev.map(|at| number(*index, at)) };
        }
        let (mut all, mut rows) = (0, Vec::new());
        for (index, part) in parts {
            let Part::Delete { deleted, prev } = part else { unreachable!("a delete has parts of a delete") };
            all += deleted;
            rows.extend(prev.into_iter().map(|at| number(index, at)));
        }
        Part::Delete { deleted: all, prev: rows }
    }

    /// The answer, once [`Self::step`] is done.
    pub(super) fn finish(self, command: &Command<'_>) -> OpOutcome {
        let mut answer = Answering {
            before: self.before,
            changes: 0,
            path: self.path.iter().copied(),
            parts: self.merged.into_iter(),
        };
        match command {
            Command::Txn(txn) => OpOutcome::Txn(answer.txn(txn)),
            _ => answer.op(None),
        }
    }
}

impl OpenRange {
    fn step(
        &mut self,
        query: &RangeQuery<'_>,
        contributions: &[Contribution],
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        let rows_max = if self.is_whole { 0 } else { slice_rows_max(query) };
        let rows_max = usize::try_from(rows_max).ok().filter(|&max| max > 0).unwrap_or(usize::MAX);
        while let Some((index, rows)) = self.sources.front_mut() {
            let numbering = &contributions[*index].numbering;
            match rows.next().filter(|_| self.rows.len() < rows_max) {
                Some(at) => self.rows.push(numbering.row(at)),
                None => drop(self.sources.pop_front()),
            }
            budget.charge(1)?;
        }
        if self.is_whole || query.count_only {
            return Ok(());
        }
        if query.sort_target == SortTarget::Key {
            if query.sort_order == SortOrder::Descend {
                self.rows.reverse();
            }
        } else {
            self.sort(query, shared, budget)?;
        }
        let limit = limit(query);
        self.more |= self.rows.len() > limit;
        self.rows.truncate(limit);
        Ok(())
    }

    /// Sorts, and keeps as many rows as the limit allows.
    fn sort(&mut self, query: &RangeQuery<'_>, shared: Shared<'_>, budget: &mut Budget) -> Result<(), Pause> {
        let descending = query.sort_order == SortOrder::Descend;
        let sorted = self.sorted.get_or_insert_with(|| Sorted {
            heap: SortHeap::new(query.sort_target, descending, limit(query)),
            taken: 0,
            out: Vec::new(),
        });
        let none = Overlay::new();
        let view = rows_only(&none, shared);
        sorted.heap.settle(&view, budget)?;
        while let Some(&at) = self.rows.get(sorted.taken) {
            let row = view.row(at)?;
            sorted.taken += 1;
            sorted.heap.push(at, &row);
            sorted.heap.settle(&view, budget)?;
            budget.charge(price::ROW)?;
        }
        while let Some(at) = sorted.heap.pop() {
            sorted.out.push(at);
            sorted.heap.settle(&view, budget)?;
            budget.charge(price::COMPARISON)?;
        }
        let mut rows = std::mem::take(&mut sorted.out);
        rows.reverse();
        self.more |= self.rows.len() > rows.len();
        self.rows = rows;
        Ok(())
    }
}

/// A view that shows rows by their addresses and no keys.
fn rows_only<'s>(none: &'s Overlay, shared: Shared<'s>) -> View<'s, NoKeys> {
    let layers = Layers {
        tree: &NoKeys,
        frozen: None,
        fresh: none,
        rows: shared.rows,
        newest: shared.rows.newest(),
        leases: None,
        state: KeyspaceState::FRESH,
        floor: 0,
    };
    View { layers, changes: None, pages: shared.pages }
}

/// A key index without keys.
#[derive(Debug)]
struct NoKeys;

impl KeyTree for NoKeys {
    type Scan<'a> = Self;

    fn get(&self, _: &[u8], _: &dyn PageSource) -> Result<Option<KeyEntry>, Unavailable> {
        Ok(None)
    }

    fn count_live(&self, _: KeyRange<'_>, _: &dyn PageSource) -> Result<u64, Unavailable> {
        Ok(0)
    }

    fn scan<'a>(&'a self, _: &[u8], _: &'a dyn PageSource) -> Result<Self, Unavailable> {
        Ok(Self)
    }
}

impl<'a> KeyScan<'a> for NoKeys {
    fn next(&mut self) -> Result<Option<(&'a [u8], KeyEntry)>, Unavailable> {
        Ok(None)
    }

    fn next_raw(&mut self) -> Result<Option<(&'a [u8], &'a [u8])>, Unavailable> {
        Ok(None)
    }
}

/// Hangs the parts back onto the transaction's ops, with each one's own revision.
struct Answering<P, M> {
    before: i64,
    /// Keys changed so far.
    changes: u64,
    path: P,
    parts: M,
}

impl<P: Iterator<Item = bool>, M: Iterator<Item = Part>> Answering<P, M> {
    fn txn(&mut self, txn: &Txn<'_>) -> TxnOutcome {
        let succeeded = self.path.next().expect("the path has one choice for each transaction reached");
        let mut responses = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            responses.push(match op {
                Op::Txn(nested) => OpOutcome::Txn(self.txn(nested)),
                Op::Range(query) => self.op(Some(query)),
                _ => self.op(None),
            });
        }
        TxnOutcome { revision: self.revision(), succeeded, responses }
    }

    fn op(&mut self, query: Option<&RangeQuery<'_>>) -> OpOutcome {
        let part = self.parts.next().expect("every op was put together");
        self.changes += u64::from(part.changes());
        let revision = self.revision();
        match part {
            Part::Put { prev } => OpOutcome::Put(PutOutcome { revision, prev }),
            Part::Delete { deleted, prev } => {
                OpOutcome::DeleteRange(DeleteOutcome { revision, deleted: i64::from(deleted), prev })
            }
            Part::Range { rows, count, more } => {
                let shape = shape(query.expect("a range answers a range"));
                OpOutcome::Range(TxnRange { revision, rows, count, more, shape })
            }
        }
    }

    fn revision(&self) -> i64 {
        self.before + i64::from(self.changes > 0)
    }
}
