//! Watchers that are behind.
//!
//! Owns: which of them joins which scan, the walk along a single key's versions, the end of those whose events are
//! compacted. Does not know: how a scan reads and hands over (`lane`).
//!
//! A watcher of a single key looks at the key's newest entry: mostly nothing has changed, and it is synced at once. If
//! there are a few versions it follows them; if there are many it takes part in a scan, as ranges do. A scan serves all
//! watchers that are not far from each other, so that the history is read once for them.
//!
//! Invariants
//! - I1: a scan takes in a watcher only if it has not looked at anything the watcher wants.
//! - I2: a watcher behind the compacted revision is cancelled before rows are read for it.

use crate::budget::{Budget, Pause, price};
use crate::mvcc::view::MISSING_ROW;
use crate::mvcc::{KeyRange, KeyTree, Keyspace};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::Revision;
use crate::watch::ResponseHead;
use crate::watch::block::Block;
use crate::watch::hub::{BY_SCAN, Hub, PREV_KV, SCANS_MAX, State};
use crate::watch::lane::{Ground, Lane, previous_row, send};

/// Versions of a key that a watcher follows.
const VERSIONS_MAX: usize = 128;
/// A scan takes in watchers that want to begin so many revisions ahead of it at most.
const JOIN_REVISIONS: i64 = 10_000;
/// Keys whose pages are missing are looked up in one step, so that the page source learns of all of them.
const MISSING_MAX: usize = 32;

/// The scans under way.
#[derive(Debug)]
pub(super) struct CatchUp {
    scans: [Option<Lane>; SCANS_MAX],
    /// Which scan comes first in the next step.
    turn: usize,
    /// The key that is looked up first in the next step.
    key_turn: (i64, u32),
}

impl CatchUp {
    pub(super) fn new() -> Self {
        Self { scans: [const { None }; SCANS_MAX], turn: 0, key_turn: (i64::MIN, 0) }
    }

    /// Whether a scan is under way.
    pub(super) fn is_scanning(&self) -> bool {
        self.scans.iter().any(Option::is_some)
    }

    /// Goes on with everything that is behind. Answers with a page that something waits for.
    pub(super) fn step<T: KeyTree>(
        &mut self,
        hub: &mut Hub,
        ground: &mut Ground<'_, T>,
    ) -> Result<Option<Unavailable>, Pause> {
        let mut waits = self.follow_keys(hub, ground)?;
        self.enlist(hub, ground)?;
        self.turn = (self.turn + 1) % SCANS_MAX;
        for index in 0..SCANS_MAX {
            let scan = (self.turn + index) % SCANS_MAX;
            match self.scan(hub, scan, ground) {
                Ok(()) => {}
                Err(Pause::Pages(missing)) => waits = waits.or(Some(missing)),
                Err(Pause::Budget) => return Err(Pause::Budget),
            }
        }
        Ok(waits)
    }

    /// Looks up the keys of those that watch one.
    fn follow_keys<T: KeyTree>(
        &mut self,
        hub: &mut Hub,
        ground: &mut Ground<'_, T>,
    ) -> Result<Option<Unavailable>, Pause> {
        let mut waits = None;
        let mut missing = 0;
        // Each is looked at once a step.
        for _ in 0..hub.keys_waiting.len() {
            let first = hub.keys_waiting.range(self.key_turn..).next().or_else(|| hub.keys_waiting.first());
            let Some(&(next, watcher)) = first else { break };
            self.key_turn = (next, watcher + 1);
            match follow_key(hub, watcher, ground) {
                Ok(()) => {}
                Err(Pause::Pages(unavailable)) => {
                    waits = waits.or(Some(unavailable));
                    missing += 1;
                    if missing == MISSING_MAX {
                        break;
                    }
                }
                Err(Pause::Budget) => return Err(Pause::Budget),
            }
            ground.budget.charge(1)?;
        }
        Ok(waits)
    }

    /// Lets watchers that wait join a scan.
    fn enlist<T: KeyTree>(&mut self, hub: &mut Hub, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
        let compacted = ground.keyspace.state().compacted;
        let mut from = (i64::MIN, 0);
        while let Some(&(next, watcher)) = hub.ranges_waiting.range(from..).next() {
            from = (next, watcher + 1);
            if next < compacted {
                hub.cancel_compacted(watcher, compacted);
            } else if next > hub.claimed {
                hub.sync(watcher);
            } else if let Some(scan) = self.scan_for(next) {
                let lane = self.scans[scan].get_or_insert_with(|| Lane::new(scan, next - 1));
                assert!(lane.at() < next, "I1");
                hub.change(watcher, next, State::Scanning(scan as u8));
            } else {
                return Ok(());
            }
            ground.budget.charge(price::NEXT_ROW)?;
        }
        Ok(())
    }

    /// The scan that a watcher can join, or a place for a new one.
    fn scan_for(&self, next: i64) -> Option<usize> {
        let near = |scan: &Option<Lane>| {
            scan.as_ref().is_some_and(|lane| lane.at() < next && next - lane.at() <= JOIN_REVISIONS)
        };
        self.scans.iter().position(near).or_else(|| self.scans.iter().position(Option::is_none))
    }

    /// Goes on with one scan.
    fn scan<T: KeyTree>(&mut self, hub: &mut Hub, scan: usize, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
        let Some(lane) = &mut self.scans[scan] else { return Ok(()) };
        while !hub.members[scan].is_empty() {
            if !lane.is_resting() {
                lane.advance(hub, hub.claimed, ground)?;
                continue;
            }
            let compacted = ground.keyspace.state().compacted;
            if lane.done() + 1 < compacted {
                sweep(hub, scan, compacted, ground.budget)?;
                lane.jump(compacted - 1);
            } else if lane.done() >= hub.claimed {
                sync_all(hub, scan, ground.budget)?;
            } else {
                lane.advance(hub, hub.claimed, ground)?;
            }
        }
        lane.release(&mut hub.released);
        self.scans[scan] = None;
        Ok(())
    }
}

/// Cancels the members of a scan that want what is compacted.
fn sweep(hub: &mut Hub, scan: usize, compacted: i64, budget: &mut Budget) -> Result<(), Pause> {
    let mut from = 0;
    while let Some(&watcher) = hub.members[scan].range(from..).next() {
        from = watcher + 1;
        if hub.watchers[watcher].next < compacted {
            hub.cancel_compacted(watcher, compacted);
        }
        budget.charge(price::NEXT_ROW)?;
    }
    Ok(())
}

/// A scan has reached the live walk.
fn sync_all(hub: &mut Hub, scan: usize, budget: &mut Budget) -> Result<(), Pause> {
    while let Some(&watcher) = hub.members[scan].first() {
        hub.sync(watcher);
        budget.charge(price::NEXT_ROW)?;
    }
    Ok(())
}

/// Hands a watcher of a single key what it missed.
fn follow_key<T: KeyTree>(hub: &mut Hub, watcher: u32, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
    loop {
        let held = &hub.watchers[watcher];
        let (stream, next, compacted) = (held.stream, held.next, ground.keyspace.state().compacted);
        if next < compacted {
            hub.cancel_compacted(watcher, compacted);
            return Ok(());
        }
        let KeyRange::Single(key) = hub.index.range(held.node) else { unreachable!("only single keys are followed") };
        let claimed = hub.claimed;
        let Some(versions) = versions(ground.keyspace, key, next, claimed, ground.pages, ground.budget)? else {
            hub.watchers[watcher].flags |= BY_SCAN;
            hub.change(watcher, next, State::Waiting);
            return Ok(());
        };
        if versions.is_empty() {
            hub.sync(watcher);
            return Ok(());
        }
        if !hub.is_ready(stream, ground.outlet) {
            hub.park(watcher, next);
            return Ok(());
        }
        let last = hand_versions(hub, watcher, &versions, ground)?;
        hub.change(watcher, last + 1, State::Waiting);
        ground.budget.charge(price::ROW)?;
    }
}

/// The rows of a key from revision `from` to `to`, newest first. `None`: there are many. Of the compacted revision the
/// last one alone: what a transaction did before that to the same key is compacted, whether the rows are gone or not.
fn versions<T: KeyTree>(
    keyspace: &Keyspace<T>,
    key: &[u8],
    from: i64,
    to: i64,
    pages: &dyn PageSource,
    budget: &mut Budget,
) -> Result<Option<Vec<Revision>>, Unavailable> {
    budget.spend(price::SEEK);
    let mut at = keyspace.newest_entry(key, pages)?.map_or(Revision::NONE, |entry| entry.row);
    let mut versions = Vec::new();
    for _ in 0..VERSIONS_MAX {
        if at.main < from {
            return Ok(Some(versions));
        }
        if at.main <= to {
            versions.push(at);
        }
        if at.main <= keyspace.state().compacted {
            return Ok(Some(versions));
        }
        budget.spend(price::ROW);
        at = keyspace.rows().row(at, pages)?.ok_or(MISSING_ROW)?.prev;
    }
    Ok(None)
}

/// Hands over the oldest of the versions, as many as a block holds, but whole revisions: a transaction may have changed
/// the key several times. Answers with the last revision that was handed over.
fn hand_versions<T: KeyTree>(
    hub: &mut Hub,
    watcher: u32,
    versions: &[Revision],
    ground: &mut Ground<'_, T>,
) -> Result<i64, Pause> {
    let held = &hub.watchers[watcher];
    let (id, node, flags) = (held.id, held.node, held.flags);
    let mut block = Block::default();
    let mut last = held.next - 1;
    let mut whole = last;
    for &at in versions.iter().rev() {
        if at.main > last {
            block.mark_whole();
            whole = last;
            if block.is_over(ground.limits.block_bytes_max) {
                break;
            }
        }
        let keyspace = &*ground.keyspace;
        let read = |pages| {
            let row = keyspace.rows().row(at, pages)?.ok_or(MISSING_ROW)?;
            let prev = if flags & PREV_KV != 0 { previous_row(keyspace, &row, pages)? } else { None };
            Ok((row, prev))
        };
        match read(ground.pages) {
            Ok((row, prev)) => block.push(&row, prev.as_ref(), flags & PREV_KV != 0, &[node]),
            // What was read of the revisions before goes first.
            Err(_) if block.has_whole() => {
                block.truncate();
                last = whole;
                break;
            }
            Err(unavailable) => return Err(Pause::Pages(unavailable)),
        }
        ground.budget.spend(price::ROW);
        last = at.main;
    }
    if let Some(selection) = block.select(&block.hits, flags, 0) {
        let head = ResponseHead::events(id, ground.keyspace.published().revision);
        send(hub, watcher, &block, &block.hits, &selection, head, &ground.limits, ground.outlet);
        ground.budget.spend_bytes(selection.bytes);
    }
    Ok(last)
}
