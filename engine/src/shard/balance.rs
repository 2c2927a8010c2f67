//! Moving boundaries, and the coordinator's part of a checkpoint.
//!
//! Owns: the way from the present map to the one the load asks for, in slices between batches. Does not know: why the
//! load falls as it does, what is written of a checkpoint.
//!
//! A boundary between two shards moves by slices of changed keys. Their present owner names every so many-th key on
//! the way (a survey); then slice after slice is copied to the new owner, and the map with the boundary at that
//! slice's far end goes to all: a shard looks only at keys within its bounds, so the copies left behind are out of
//! sight until the next checkpoint takes them out of memory. A move holds up writes for the time of one slice, and
//! readers not at all: messages to one shard keep their order, so each read meets every shard on one side of the
//! move.
//!
//! Invariants
//! - I1: ownership changes between batches, never between a freeze and the installation of its tree everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::mvcc::key_tree::KeyTree;
use crate::shard::coordinator::Coordinator;
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::message::{FrozenPart, HandedOver, Task};
use crate::store::overlay::Overlay;

/// Where a move stands.
#[derive(Debug)]
pub(super) enum Balance {
    /// Nothing moves.
    None,
    /// The owner of the keys between two places of a boundary names some of them.
    Surveying { boundary: usize, to: Vec<u8>, keys: Option<Vec<Vec<u8>>> },
    /// Places that a boundary is to go through, the last one first.
    Moving { boundary: usize, way: Vec<Vec<u8>>, is_copying: bool },
}

/// The running checkpoint's part here.
#[derive(Debug)]
pub(super) enum Checkpoint {
    None,
    /// Shards hand out what they froze.
    Freezing(BTreeMap<ShardId, FrozenPart>),
    /// It is being merged.
    Frozen(Vec<FrozenPart>),
    /// So many shards have yet to take the new tree.
    Installing(u32, Vec<FrozenPart>),
}

impl Balance {
    /// Whether a shard has yet to answer.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Self::Surveying { keys: None, .. } | Self::Moving { is_copying: true, .. })
    }

    pub(super) fn handle_surveyed(&mut self, found: Vec<Vec<u8>>) {
        let Self::Surveying { keys, .. } = self else { unreachable!("a survey was asked for") };
        *keys = Some(found);
    }
}

impl<T: KeyTree + Clone> Coordinator<T> {
    /// Goes on with moving boundaries to where the load before the last checkpoint asked for, by one exchange of
    /// messages. To be called between batches; false: nothing is left to move. While it waits for a shard, what is
    /// handed in waits, too.
    pub fn balance_step(&mut self) -> bool {
        if !self.is_settled() || !matches!(self.checkpoint, Checkpoint::None) {
            return !matches!(self.balance, Balance::None) || self.wanted.is_some();
        }
        match std::mem::replace(&mut self.balance, Balance::None) {
            Balance::None => return self.begin_move(),
            Balance::Surveying { boundary, to, keys: Some(mut way) } => {
                // Upwards the keys come in the order of the way, downwards the other way round; the last is popped
                // first.
                if to > self.map.boundaries()[boundary] {
                    way.push(to);
                    way.reverse();
                } else {
                    way.insert(0, to);
                }
                self.balance = Balance::Moving { boundary, way, is_copying: false };
                self.move_slice();
            }
            Balance::Moving { boundary, way, is_copying: false } => {
                self.balance = Balance::Moving { boundary, way, is_copying: false };
                self.move_slice();
            }
            waiting => self.balance = waiting,
        }
        true
    }

    /// Moves boundaries to given places: [`Self::balance_step`] does the rest.
    pub fn handle_wanted_map(&mut self, wanted: ShardMap) {
        assert_eq!(wanted.shards(), self.map.shards(), "the number of shards stays");
        self.wanted = Some(wanted);
    }

    /// Starts a checkpoint between batches, after everything is published: what changed so far is frozen. The row
    /// log's part is `RowLog::handle_checkpoint`, in the same step.
    pub fn freeze(&mut self) {
        assert!(self.can_freeze(), "I1: between batches, and nothing moves");
        self.checkpoint = Checkpoint::Freezing(BTreeMap::new());
        self.leases.freeze();
        for shard in self.map.ids() {
            self.send(shard, Task::Freeze);
        }
    }

    /// Whether a checkpoint may start now.
    #[must_use]
    pub fn can_freeze(&self) -> bool {
        matches!(self.checkpoint, Checkpoint::None) && self.is_settled() && !self.balance.is_waiting()
    }

    /// What the running checkpoint merges, in key order, once all shards have handed it out.
    #[must_use]
    pub fn frozen(&self) -> Option<&[FrozenPart]> {
        match &self.checkpoint {
            Checkpoint::Frozen(parts) => Some(parts),
            _ => None,
        }
    }

    /// Ends a checkpoint: `keys` and `leases` hold the old trees and the frozen changes.
    pub fn install_trees(&mut self, keys: &T, leases: T) {
        let Checkpoint::Frozen(parts) = std::mem::replace(&mut self.checkpoint, Checkpoint::None) else {
            unreachable!("a tree follows a freeze")
        };
        self.leases.install_tree(leases);
        self.checkpoint = Checkpoint::Installing(self.map.shards() as u32, parts);
        for shard in self.map.ids() {
            self.send(shard, Task::InstallTree(keys.clone()));
        }
    }

    /// The overlays of a checkpoint that every shard has let go, so that their memory may be freed in slices.
    pub fn take_retired(&mut self) -> Vec<Overlay> {
        self.retired.drain(..).filter_map(|part| Arc::try_unwrap(part.overlay).ok()).collect()
    }

    pub(super) fn handle_frozen(&mut self, part: FrozenPart) {
        let Checkpoint::Freezing(parts) = &mut self.checkpoint else { unreachable!("a freeze was asked for") };
        parts.insert(part.shard, part);
        if parts.len() == self.map.shards() {
            let parts = std::mem::take(parts).into_values().collect();
            self.checkpoint = Checkpoint::Frozen(parts);
        }
    }

    /// A shard has taken the new tree.
    pub(super) fn handle_installed(&mut self) {
        let Checkpoint::Installing(left, parts) = &mut self.checkpoint else { unreachable!("a tree was handed out") };
        *left -= 1;
        if *left == 0 {
            self.retired.append(parts);
            self.checkpoint = Checkpoint::None;
            self.wanted = self.wanted.take().or_else(|| self.wanted_map());
        }
    }

    pub(super) fn handle_handed_over(&mut self, entries: Vec<HandedOver>) {
        let Balance::Moving { boundary, way, is_copying } = &mut self.balance else {
            unreachable!("a slice was asked for")
        };
        let (boundary, to) = (*boundary, way.pop().expect("a slice has an end"));
        *is_copying = false;
        let upwards = to > self.map.boundaries()[boundary];
        Arc::make_mut(&mut self.map).move_boundary(boundary, to);
        let receiver = ShardId(boundary as u8 + u8::from(!upwards));
        let (revision, mut entries) = (self.state().revision, Some(entries));
        for shard in self.map.ids() {
            let entries = entries.take_if(|_| shard == receiver).unwrap_or_default();
            self.unsettled += 1;
            self.send(shard, Task::Adopt { entries, revision, map: Arc::clone(&self.map) });
        }
    }

    /// Begins with the first boundary that is not where it should be.
    fn begin_move(&mut self) -> bool {
        if self.wanted.is_none() {
            return false;
        }
        let Some((boundary, to)) = self.next_move() else {
            self.wanted = None;
            return false;
        };
        let from = self.map.boundaries()[boundary].clone();
        let donor = ShardId(boundary as u8 + u8::from(to > from));
        let (low, high) = if to > from { (from, to.clone()) } else { (to.clone(), from) };
        self.balance = Balance::Surveying { boundary, to, keys: None };
        self.send(donor, Task::Survey { from: low, to: high, stride: self.options.move_keys_max });
        true
    }

    /// A boundary that can go where it should be without passing another. One always can, if any is not there.
    fn next_move(&self) -> Option<(usize, Vec<u8>)> {
        let wanted = self.wanted.as_ref()?.boundaries();
        let present = self.map.boundaries();
        let can_move = |&index: &usize| {
            let (from, to) = (&present[index], &wanted[index]);
            let above_lower = index == 0 || present[index - 1] <= *to;
            let below_upper = present.get(index + 1).is_none_or(|upper| to <= upper);
            from != to && above_lower && below_upper
        };
        (0..present.len()).find(can_move).map(|index| (index, wanted[index].clone()))
    }

    /// Asks for the next slice, or ends the move.
    fn move_slice(&mut self) {
        let Balance::Moving { boundary, way, is_copying } = &mut self.balance else { return };
        let Some(to) = way.last().cloned() else {
            self.balance = Balance::None;
            return;
        };
        *is_copying = true;
        let boundary = *boundary;
        let from = self.map.boundaries()[boundary].clone();
        let donor = ShardId(boundary as u8 + u8::from(to > from));
        let (low, high) = if to > from { (from, to) } else { (to, from) };
        self.send(donor, Task::HandOver { from: low, to: high });
    }
}
