//! A walk through the history that hands events to watchers: the live one, or a scan of those that catch up.
//!
//! Owns: how rows become a block, how a block is handed out, what happens to a revision that is too long for a block.
//! Does not know: who takes part in a scan, why a watcher catches up.
//!
//! A walk reads rows into a block until it is full, always whole revisions, and hands it node by node to the node's
//! watchers. Of a single revision that does not fit, only each node's first and last row and the events' lengths are
//! noted, and each of the node's watchers is then sent a long response of its own ([`crate::watch::long`]). That holds
//! for single keys, too: a transaction may change one several times, and what it did to it is never split.
//!
//! Invariants
//! - I1: everything up to `done` was handed over; a pause keeps what was read, looked up and handed over since.
//! - I2: while a walk is under way, a pin keeps the rows above `done`.

use crate::budget::{Budget, Pause, price};
use crate::mvcc::view::MISSING_ROW;
use crate::mvcc::{KeyTree, Keyspace, Pin};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::Revision;
use crate::store::row_log::{Row, RowLog};
use crate::watch::block::{Block, Hit, Selection};
use crate::watch::event::encoded_len;
use crate::watch::hub::{ACTIVE, FRAGMENT, Hub, LIVE, PREV_KV, State, VARIANT};
use crate::watch::index::{List, Node};
use crate::watch::long::LongRevision;
use crate::watch::slab::NIL;
use crate::watch::{Outlet, ResponseHead, StreamKey, WatchLimits};

/// A watcher looked at.
const LOOK: u32 = 1;
/// A response handed over.
const SEND: u32 = 4;
/// Events wait for so many rows at most before they are handed out.
const ROWS_MAX: u32 = 1 << 13;
/// What a response holds beside its events, at most.
pub(super) const HEAD_BYTES: usize = 128;

/// What a step works with.
pub(super) struct Ground<'g, T> {
    pub(super) keyspace: &'g mut Keyspace<T>,
    pub(super) pages: &'g dyn PageSource,
    pub(super) budget: &'g mut Budget,
    pub(super) outlet: &'g mut dyn Outlet,
    pub(super) limits: WatchLimits,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Reading rows.
    Build,
    /// Handing the block out: at the hits from `hit` on; `begun` if the first node's list is being gone through.
    Deliver { hit: usize, begun: bool },
    /// The watchers of a long revision are told to wait for it.
    Assign { begun: bool },
}

#[derive(Debug)]
pub(super) struct Lane {
    /// Which walk: a scan, or [`LIVE`].
    walk: usize,
    /// Everything up to here is handed over.
    done: i64,
    /// The revision whose rows are being read.
    at: i64,
    /// The next row.
    next: Revision,
    /// What `done` becomes when the block is handed out.
    last: i64,
    stage: Stage,
    block: Block,
    /// Rows read since the block before.
    rows: u32,
    /// The revision whose rows are being read is the compacted one: of each key its last row counts.
    last_rows_only: bool,
    long: Option<LongRevision>,
    pin: Option<Pin>,
    /// For reuse.
    nodes: Vec<u32>,
}

impl Lane {
    /// A walk that begins behind `done`.
    pub(super) fn new(walk: usize, done: i64) -> Self {
        Self {
            walk,
            done,
            at: done,
            next: Revision { main: done + 1, sub: 0 },
            last: done,
            stage: Stage::Build,
            block: Block::default(),
            rows: 0,
            last_rows_only: false,
            long: None,
            pin: None,
            nodes: Vec::new(),
        }
    }

    pub(super) fn done(&self) -> i64 {
        self.done
    }

    /// The newest revision that was looked at: a watcher that wants less cannot join.
    pub(super) fn at(&self) -> i64 {
        self.at
    }

    /// Whether it stands between two blocks.
    pub(super) fn is_resting(&self) -> bool {
        matches!(self.stage, Stage::Build) && self.at == self.done
    }

    /// Goes on behind `done` instead.
    pub(super) fn jump(&mut self, done: i64) {
        assert!(self.is_resting(), "a block is handed out whole");
        (self.done, self.at, self.last) = (done, done, done);
        self.next = Revision { main: done + 1, sub: 0 };
    }

    /// Gives the pin back, if there is one.
    pub(super) fn release(&mut self, released: &mut Vec<Pin>) {
        released.extend(self.pin.take());
    }

    /// Keeps the rows above `done`, from now on those alone.
    pub(super) fn hold<T: KeyTree>(&mut self, keyspace: &mut Keyspace<T>) {
        // A scan is behind no compaction here, the live walk may be: its pin was taken before.
        let from = if self.walk == LIVE { self.done } else { self.done.max(keyspace.state().compacted) };
        if self.pin.as_ref().is_some_and(|pin| pin.revision() == from) {
            return;
        }
        let pin = keyspace.pin_at(from);
        self.pin.replace(pin).into_iter().for_each(|pin| keyspace.unpin(pin));
    }

    /// Hands over everything up to `target`, or up to the end of the first block at or behind it.
    pub(super) fn advance<T: KeyTree>(
        &mut self,
        hub: &mut Hub,
        target: i64,
        ground: &mut Ground<'_, T>,
    ) -> Result<(), Pause> {
        loop {
            match self.stage {
                Stage::Build if self.is_resting() && self.done >= target => return Ok(()),
                Stage::Build => {
                    if self.is_resting() {
                        self.hold(ground.keyspace);
                    }
                    self.build(hub, target, ground)?;
                }
                Stage::Deliver { .. } => {
                    self.deliver(hub, ground)?;
                    self.block.clear();
                    if self.long.is_none() {
                        self.finish(hub, ground.keyspace);
                        return Ok(());
                    }
                    self.stage = Stage::Assign { begun: false };
                }
                Stage::Assign { .. } => {
                    self.assign(hub, ground.budget)?;
                    self.long = None;
                    self.finish(hub, ground.keyspace);
                    return Ok(());
                }
            }
        }
    }

    fn finish<T: KeyTree>(&mut self, hub: &mut Hub, keyspace: &mut Keyspace<T>) {
        (self.done, self.at, self.stage, self.rows) = (self.last, self.last, Stage::Build, 0);
        if self.walk == LIVE {
            hub.front = self.done;
            self.hold(keyspace);
        }
    }

    /// Reads rows up to the end of the block.
    fn build<T: KeyTree>(&mut self, hub: &mut Hub, target: i64, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
        let bytes_max = ground.limits.block_bytes_max;
        let keyspace = &*ground.keyspace;
        loop {
            let row = keyspace.rows().row_from(self.next, ground.pages)?.filter(|row| row.at.main <= target);
            let Some(row) = row else {
                self.end_block(hub, target.max(self.at), ground.budget);
                return Ok(());
            };
            if row.at.main > self.at {
                self.block.mark_whole();
                let far = self.rows >= ROWS_MAX && !self.block.is_empty();
                if self.at > self.done && (self.long.is_some() || self.block.is_full(bytes_max) || far) {
                    self.end_block(hub, row.at.main - 1, ground.budget);
                    return Ok(());
                }
                self.at = row.at.main;
                // Settled once for a revision. Who is synced wants what happened, and its rows are held.
                self.last_rows_only = self.walk != LIVE && self.at == keyspace.state().compacted;
                if self.walk == LIVE {
                    hub.claimed = hub.claimed.max(self.at);
                }
            } else if self.block.is_over(bytes_max) {
                if self.long.is_none() && self.block.has_whole() {
                    self.block.truncate();
                    self.next = Revision { main: self.at, sub: 0 };
                    self.end_block(hub, self.at - 1, ground.budget);
                    return Ok(());
                }
                self.go_long(ground.budget);
            }
            self.take_row(hub, keyspace, &row, ground.pages, ground.budget)?;
            self.next = row.at.next();
            self.rows += 1;
            ground.budget.charge(price::NEXT_ROW)?;
        }
    }

    /// Whole revisions up to `last` are read.
    fn end_block(&mut self, hub: &mut Hub, last: i64, budget: &mut Budget) {
        // The revisions behind a long one, which are not read yet, come with the next block.
        self.last = if self.long.is_some() { self.at } else { last };
        if self.walk == LIVE {
            hub.claimed = hub.claimed.max(self.last);
        }
        self.begin_delivery(budget);
    }

    fn begin_delivery(&mut self, budget: &mut Budget) {
        self.block.sort();
        budget.spend(self.block.hits.len() as u32 / 4);
        self.stage = Stage::Deliver { hit: 0, begun: false };
    }

    /// The revision at hand is too long for a block: what the block holds of it is counted instead.
    fn go_long(&mut self, budget: &mut Budget) {
        budget.spend(self.block.hits.len() as u32 / 2);
        let mut long = LongRevision::new(self.at, self.last_rows_only);
        for &hit in &self.block.hits {
            let event = self.block.event(hit);
            let lens = [self.block.bytes(hit, false).len(), self.block.bytes(hit, true).len()];
            long.count(hit.node, event.at.sub, event.put, lens);
        }
        self.block.clear();
        self.long = Some(long);
    }

    /// Looks up who wants a row, and makes it an event if somebody does.
    fn take_row<T: KeyTree>(
        &mut self,
        hub: &Hub,
        keyspace: &Keyspace<T>,
        row: &Row<'_>,
        pages: &dyn PageSource,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        let index = &hub.index;
        let list = |node: u32| {
            index.get(node).map_or(List::EMPTY, |node| if self.walk == LIVE { node.synced } else { node.scanning })
        };
        self.nodes.clear();
        index.stab(row.key, &mut self.nodes);
        budget.spend(self.nodes.len() as u32);
        self.nodes.retain(|&node| !list(node).is_empty());
        if self.nodes.is_empty() || (self.last_rows_only && is_undone(keyspace, row, pages)?) {
            return Ok(());
        }
        let wants_prev = self.nodes.iter().any(|&node| index.get(node).is_some_and(Node::wants_prev));
        let prev = if wants_prev { previous_row(keyspace, row, pages)? } else { None };
        if let Some(long) = &mut self.long {
            let lens = [encoded_len(row, None), if wants_prev { encoded_len(row, prev.as_ref()) } else { 0 }];
            self.nodes.iter().for_each(|&node| long.count(node, row.at.sub, !row.is_tombstone(), lens));
            return Ok(());
        }
        self.block.push(row, prev.as_ref(), wants_prev, &self.nodes);
        budget.spend(if prev.is_some() { price::ROW } else { 0 });
        budget.spend_bytes(row.key.len() + row.value.len() + prev.map_or(0, |prev| prev.value.len()));
        Ok(())
    }

    /// Hands the block out.
    fn deliver<T: KeyTree>(&mut self, hub: &mut Hub, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
        let Stage::Deliver { mut hit, mut begun } = self.stage else { unreachable!("the caller looked") };
        let published = ground.keyspace.published().revision;
        while hit < self.block.hits.len() {
            let end = self.block.group_end(hit);
            if !begun {
                self.enter_list(hub, self.block.hits[hit].node);
                begun = true;
            }
            let mut group = Group {
                block: &self.block,
                hits: &self.block.hits[hit..end],
                header: (self.walk != LIVE).then_some(published),
                cached: Default::default(),
            };
            while let Some(watcher) = self.next_of_list(hub) {
                let units = group.hand_to(hub, watcher, &ground.limits, ground.outlet);
                if !ground.budget.spend(units) {
                    self.stage = Stage::Deliver { hit, begun };
                    return Err(Pause::Budget);
                }
            }
            (hit, begun) = (end, false);
        }
        Ok(())
    }

    /// Tells the watchers of a long revision to wait for it.
    fn assign(&mut self, hub: &mut Hub, budget: &mut Budget) -> Result<(), Pause> {
        let Stage::Assign { mut begun } = self.stage else { unreachable!("the caller looked") };
        let mut long = self.long.take().expect("a long revision is assigned");
        while let Some((&node, totals)) = long.totals.first_key_value() {
            if !begun {
                self.enter_list(hub, node);
                begun = true;
            }
            while let Some(watcher) = self.next_of_list(hub) {
                let held = &hub.watchers[watcher];
                if held.next <= long.revision && totals.bytes(held.flags, true) > 0 {
                    hub.change(watcher, long.revision, State::Long);
                    hub.longs.insert(watcher, long.of(totals));
                }
                if !budget.spend(SEND) {
                    (self.stage, self.long) = (Stage::Assign { begun }, Some(long));
                    return Err(Pause::Budget);
                }
            }
            long.totals.pop_first();
            begun = false;
        }
        Ok(())
    }

    /// Begins to go through the watchers of a node.
    fn enter_list(&self, hub: &mut Hub, node: u32) {
        let node = hub.index.get(node);
        let list = |walk| if walk == LIVE { node.map(|node| node.synced) } else { node.map(|node| node.scanning) };
        hub.cursors[self.walk] = list(self.walk).map_or(NIL, |list| list.first);
    }

    /// The next of them that takes part in this walk.
    fn next_of_list(&self, hub: &mut Hub) -> Option<u32> {
        loop {
            let watcher = hub.cursors[self.walk];
            let held = hub.watchers.get(watcher)?;
            hub.cursors[self.walk] = held.after;
            let takes_part = self.walk == LIVE || held.state == State::Scanning(self.walk as u8);
            if takes_part && !hub.streams[held.stream].closed {
                return Some(watcher);
            }
        }
    }
}

/// The pair that a row's event shows as the previous one, unless the revision before is compacted.
pub(super) fn previous_row<'k, T: KeyTree>(
    keyspace: &'k Keyspace<T>,
    row: &Row<'_>,
    pages: &'k dyn PageSource,
) -> Result<Option<Row<'k>>, Unavailable> {
    if row.at.main - 1 < keyspace.state().compacted {
        return Ok(None);
    }
    row_seen_before(keyspace.rows(), row, pages)
}

/// The row that a row's event shows as the previous one: what was seen of the key at the revision before, whatever the
/// same transaction did to it since. A put that creates its key shows none, even behind a deletion of that transaction.
pub(super) fn row_seen_before<'k>(
    rows: &'k RowLog,
    row: &Row<'_>,
    pages: &'k dyn PageSource,
) -> Result<Option<Row<'k>>, Unavailable> {
    if row.create == row.at.main {
        return Ok(None);
    }
    let (mut version, mut prev) = (row.version, row.prev);
    while !prev.is_none() {
        let Some(before) = rows.row(prev, pages)? else {
            // Before a creation stands a deletion at most, and that may be compacted.
            return if version == 1 { Ok(None) } else { Err(MISSING_ROW) };
        };
        if before.at.main < row.at.main {
            return Ok((!before.is_tombstone()).then_some(before));
        }
        (version, prev) = (before.version, before.prev);
    }
    Ok(None)
}

/// Whether the transaction that wrote a row of the compacted revision changed its key once more: then the row is
/// compacted, too, whether it is gone or not.
pub(super) fn is_undone<T: KeyTree>(
    keyspace: &Keyspace<T>,
    row: &Row<'_>,
    pages: &dyn PageSource,
) -> Result<bool, Unavailable> {
    Ok(keyspace.newest_row_at(row.key, row.at.main, pages)? != Some(row.at))
}

/// A node's part of a block. What it looks like is worked out once for all watchers that want the same of it.
struct Group<'b> {
    block: &'b Block,
    hits: &'b [Hit],
    /// The header's revision; `None`: that of the events.
    header: Option<i64>,
    cached: [Option<Option<Selection<'b>>>; VARIANT as usize + 1],
}

impl<'b> Group<'b> {
    /// Hands a watcher what it wants; answers with the price.
    fn hand_to(&mut self, hub: &mut Hub, watcher: u32, limits: &WatchLimits, outlet: &mut dyn Outlet) -> u32 {
        let (block, hits) = (self.block, self.hits);
        let (stream, next, flags) = {
            let held = &hub.watchers[watcher];
            (held.stream, held.next, held.flags)
        };
        let fresh;
        let selection = if next <= block.event(hits[0]).at.main {
            let cached = &mut self.cached[usize::from(flags & VARIANT)];
            cached.get_or_insert_with(|| block.select(hits, flags, 0)).as_ref()
        } else if next > block.event(hits[hits.len() - 1]).at.main {
            None
        } else {
            fresh = block.select(hits, flags, next);
            fresh.as_ref()
        };
        let Some(selection) = selection else { return LOOK };
        if !hub.is_ready(stream, outlet) {
            hub.park(watcher, selection.first);
            return SEND;
        }
        let head = ResponseHead::events(hub.watchers[watcher].id, self.header.unwrap_or(selection.last));
        send(hub, watcher, block, hits, selection, head, limits, outlet);
        SEND + (selection.bytes / price::BYTES) as u32
    }
}

/// Hands a watcher its part of a block.
#[allow(clippy::too_many_arguments, reason = "two callers, and no two of the arguments belong together elsewhere")]
pub(super) fn send(
    hub: &mut Hub,
    watcher: u32,
    block: &Block,
    hits: &[Hit],
    selection: &Selection<'_>,
    head: ResponseHead,
    limits: &WatchLimits,
    outlet: &mut dyn Outlet,
) {
    let held = &mut hub.watchers[watcher];
    let (stream, flags) = (StreamKey(held.stream), held.flags);
    held.flags |= ACTIVE;
    hub.events += selection.events;
    if flags & FRAGMENT != 0 && selection.bytes + HEAD_BYTES >= limits.response_bytes_max {
        let wanted = block.wanted(hits, flags, selection.first);
        let events = wanted.map(|hit| block.bytes(hit, flags & PREV_KV != 0));
        send_in_fragments(outlet, stream, head, events, limits.response_bytes_max);
    } else {
        outlet.send(stream, &head, &selection.slices);
    }
}

/// Cuts a response: every piece is as long as it may be, and holds an event at least.
fn send_in_fragments<'b>(
    outlet: &mut dyn Outlet,
    stream: StreamKey,
    head: ResponseHead,
    events: impl Iterator<Item = &'b [u8]>,
    bytes_max: usize,
) {
    let (mut piece, mut bytes) = (Vec::new(), HEAD_BYTES);
    for event in events {
        if !piece.is_empty() && bytes + event.len() >= bytes_max {
            outlet.send(stream, &ResponseHead { fragment: true, ..head }, &piece);
            piece.clear();
            bytes = HEAD_BYTES;
        }
        bytes += event.len();
        piece.push(event);
    }
    outlet.send(stream, &head, &piece);
}
