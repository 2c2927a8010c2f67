//! Streams and watchers, and what each waits for.
//!
//! Owns: the tables of streams and watchers, the state of every watcher and the list, set or queue that belongs to it,
//! control answers. Does not know: rows, events' bytes, when something is delivered.
//!
//! Invariants
//! - I1: a watcher stands in exactly the structure of its state; `Stream::unsynced` counts those of its watchers that
//!   are not synced, cancelled ones that the client has not cancelled included.
//! - I2: a synced watcher has been handed every event of its range that is at or above its `next` and at or below
//!   `front`, or the live block under way will hand it; below `next` nothing is delivered.
//! - I3: no walk through a list stands at a watcher that left the list.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::mvcc::{KeyRange, Pin};
use crate::watch::index::{Index, List, Node};
use crate::watch::long::{Long, Sending};
use crate::watch::slab::{NIL, Slab};
use crate::watch::{Outlet, ResponseHead, StreamKey};

/// Walks through the history at a time.
pub(super) const SCANS_MAX: usize = 8;
/// The live walk, among all walks.
pub(super) const LIVE: usize = SCANS_MAX;

/// Wants previous pairs.
pub(super) const PREV_KV: u8 = 1;
pub(super) const NO_PUT: u8 = 2;
pub(super) const NO_DELETE: u8 = 4;
/// What decides on an event's form and presence.
pub(super) const VARIANT: u8 = PREV_KV | NO_PUT | NO_DELETE;
pub(super) const FRAGMENT: u8 = 8;
/// Wants periodic progress.
pub(super) const PROGRESS: u8 = 16;
/// Got an event since the last periodic progress.
pub(super) const ACTIVE: u8 = 32;
/// Of a single key with too many versions to follow them.
pub(super) const BY_SCAN: u8 = 64;

/// What a watcher waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The next publication.
    Synced,
    /// Its turn to catch up.
    Waiting,
    /// Events of the history, from this scan.
    Scanning(u8),
    /// Room on its stream.
    Parked,
    /// The events of one long revision.
    Long,
}

#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) id: i64,
    /// No event below is delivered (any more).
    pub(super) next: i64,
    pub(super) stream: u32,
    pub(super) node: u32,
    before: u32,
    pub(super) after: u32,
    pub(super) state: State,
    pub(super) flags: u8,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    /// By id; `NIL` for one that compaction has cancelled.
    pub(super) watchers: BTreeMap<i64, u32>,
    pub(super) next_id: i64,
    /// Control answers in order.
    pub(super) answers: VecDeque<ResponseHead>,
    /// Watchers without room: (next, watcher).
    pub(super) parked: BTreeSet<(i64, u32)>,
    /// Watchers that wait for the events of a long revision.
    pub(super) longs: BTreeSet<u32>,
    /// The long response that is under way.
    pub(super) sending: Option<Box<Sending>>,
    pub(super) unsynced: u32,
    /// Watchers that began above `front`: (start revision, watcher). Those that were reached may remain.
    pub(super) future: BTreeSet<(i64, u32)>,
    /// Watchers that want periodic progress.
    pub(super) progress_watchers: u32,
    /// When periodic progress is due.
    pub(super) due: Option<u64>,
    /// Periodic progress is under way, from this id on.
    pub(super) tick_from: Option<i64>,
    /// Progress was asked for so many times, the last time at this revision.
    pub(super) requests: u32,
    pub(super) requested_at: i64,
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) streams: Slab<Stream>,
    pub(super) watchers: Slab<Watcher>,
    pub(super) index: Index,
    pub(super) synced: usize,
    /// Up to here synced watchers were handed everything.
    pub(super) front: i64,
    /// Up to here the live walk has looked for watchers: whoever comes later and wants less must catch up.
    pub(super) claimed: i64,
    /// Watchers that catch up, by what they wait for: (next, watcher).
    pub(super) keys_waiting: BTreeSet<(i64, u32)>,
    pub(super) ranges_waiting: BTreeSet<(i64, u32)>,
    pub(super) members: [BTreeSet<u32>; SCANS_MAX],
    /// Where each walk stands in the list it goes through.
    pub(super) cursors: [u32; SCANS_MAX + 1],
    pub(super) longs: BTreeMap<u32, Long>,
    /// Streams on which something can go on.
    pub(super) runnable: BTreeSet<u32>,
    pub(super) closing: BTreeSet<u32>,
    /// Pins to be given back.
    pub(super) released: Vec<Pin>,
    /// Events handed over.
    pub(super) events: u64,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self {
            streams: Slab::default(),
            watchers: Slab::default(),
            index: Index::default(),
            synced: 0,
            front: 0,
            claimed: 0,
            keys_waiting: BTreeSet::new(),
            ranges_waiting: BTreeSet::new(),
            members: Default::default(),
            cursors: [NIL; SCANS_MAX + 1],
            longs: BTreeMap::new(),
            runnable: BTreeSet::new(),
            closing: BTreeSet::new(),
            released: Vec::new(),
            events: 0,
        }
    }

    /// Adds a watcher, synced if nothing it wants was looked for yet.
    pub(super) fn add(&mut self, stream: u32, id: i64, range: KeyRange<'_>, next: i64, flags: u8) -> u32 {
        let node = self.index.enter(range, flags & PREV_KV != 0);
        let state = if next > self.claimed { State::Synced } else { State::Waiting };
        let watcher = self.watchers.insert(Watcher { id, next, stream, node, before: NIL, after: NIL, state, flags });
        let held = &mut self.streams[stream];
        held.watchers.insert(id, watcher);
        held.progress_watchers += u32::from(flags & PROGRESS != 0);
        held.unsynced += 1;
        self.enter(watcher);
        watcher
    }

    /// Takes a watcher out; its id remains in its stream's table.
    pub(super) fn remove(&mut self, watcher: u32) -> Watcher {
        self.leave(watcher);
        let gone = self.watchers.remove(watcher).expect("a watcher is removed once");
        self.index.leave(gone.node, gone.flags & PREV_KV != 0);
        let stream = &mut self.streams[gone.stream];
        stream.progress_watchers -= u32::from(gone.flags & PROGRESS != 0);
        stream.future.remove(&(gone.next, watcher));
        if let Some(sending) = stream.sending.as_mut().filter(|sending| sending.watcher == Some(watcher)) {
            sending.watcher = None;
        }
        gone
    }

    /// Gives a watcher another state and another place in the history.
    pub(super) fn change(&mut self, watcher: u32, next: i64, state: State) {
        self.leave(watcher);
        let changed = &mut self.watchers[watcher];
        (changed.next, changed.state) = (next, state);
        self.enter(watcher);
    }

    /// A watcher that was handed everything it wants up to `claimed` goes on with the live ones.
    pub(super) fn sync(&mut self, watcher: u32) {
        let held = &mut self.watchers[watcher];
        held.flags &= !BY_SCAN;
        let next = held.next.max(self.claimed + 1);
        self.change(watcher, next, State::Synced);
    }

    /// A watcher finds no room for its events from revision `next` on.
    pub(super) fn park(&mut self, watcher: u32, next: i64) {
        self.change(watcher, next, State::Parked);
    }

    /// What a watcher wants next is compacted. Its id stays taken, and what its stream waits for never comes.
    pub(super) fn cancel_compacted(&mut self, watcher: u32, compacted: i64) {
        let gone = self.remove(watcher);
        // It was not synced and counts as such until its id goes, too.
        self.streams[gone.stream].watchers.insert(gone.id, NIL);
        self.answer(gone.stream, ResponseHead::compacted(gone.id, compacted));
    }

    pub(super) fn answer(&mut self, stream: u32, head: ResponseHead) {
        self.streams[stream].answers.push_back(head);
        self.runnable.insert(stream);
    }

    /// Whether a response may go to a stream now.
    pub(super) fn is_ready(&self, stream: u32, outlet: &mut dyn Outlet) -> bool {
        let held = &self.streams[stream];
        held.answers.is_empty() && held.sending.is_none() && outlet.has_room(StreamKey(stream))
    }

    /// Whether a synced watcher began in the future and is not reached yet.
    pub(super) fn is_future(&self, watcher: u32) -> bool {
        let held = &self.watchers[watcher];
        held.next > self.front && self.streams[held.stream].future.contains(&(held.next, watcher))
    }

    /// Whether everything on a stream is handed over up to `front`, and something is watched.
    pub(super) fn is_all_synced(&self, stream: u32) -> bool {
        let held = &self.streams[stream];
        let future = held.future.last().is_some_and(|&(start, _)| start > self.front);
        held.unsynced == 0 && !future && !held.watchers.is_empty()
    }

    /// About the heap bytes held.
    pub(super) fn heap_bytes(&self) -> usize {
        // An entry of a stream's table, in an ordered map that may be half full.
        let per_watcher = size_of::<(i64, u32)>() * 2;
        let tables = self.watchers.len() * per_watcher;
        self.streams.heap_bytes() + self.watchers.heap_bytes() + self.index.heap_bytes() + tables
    }

    fn enter(&mut self, watcher: u32) {
        let Watcher { next, stream, node, state, flags, .. } = self.watchers[watcher];
        match state {
            State::Synced => {
                self.synced += 1;
                self.streams[stream].unsynced -= 1;
                self.link(watcher);
            }
            State::Waiting => {
                let by_key = flags & BY_SCAN == 0 && self.index.get(node).is_some_and(Node::is_key);
                let set = if by_key { &mut self.keys_waiting } else { &mut self.ranges_waiting };
                set.insert((next, watcher));
            }
            State::Scanning(scan) => {
                self.members[usize::from(scan)].insert(watcher);
                self.link(watcher);
            }
            State::Parked => drop(self.streams[stream].parked.insert((next, watcher))),
            State::Long => {
                self.streams[stream].longs.insert(watcher);
                self.runnable.insert(stream);
            }
        }
    }

    fn leave(&mut self, watcher: u32) {
        let Watcher { next, stream, state, .. } = self.watchers[watcher];
        match state {
            State::Synced => {
                self.synced -= 1;
                self.streams[stream].unsynced += 1;
                self.unlink(watcher);
            }
            State::Waiting => {
                self.keys_waiting.remove(&(next, watcher));
                self.ranges_waiting.remove(&(next, watcher));
            }
            State::Scanning(scan) => {
                self.members[usize::from(scan)].remove(&watcher);
                self.unlink(watcher);
            }
            State::Parked => drop(self.streams[stream].parked.remove(&(next, watcher))),
            State::Long => {
                self.streams[stream].longs.remove(&watcher);
                self.longs.remove(&watcher);
            }
        }
    }

    fn list(&mut self, node: u32, state: State) -> &mut List {
        let node = self.index.node_mut(node);
        if state == State::Synced { &mut node.synced } else { &mut node.scanning }
    }

    /// Puts a watcher at the end of its node's list.
    fn link(&mut self, watcher: u32) {
        let Watcher { node, state, .. } = self.watchers[watcher];
        let list = self.list(node, state);
        let last = std::mem::replace(&mut list.last, watcher);
        if last == NIL {
            list.first = watcher;
        } else {
            self.watchers[last].after = watcher;
        }
        (self.watchers[watcher].before, self.watchers[watcher].after) = (last, NIL);
    }

    fn unlink(&mut self, watcher: u32) {
        let Watcher { node, before, after, state, .. } = self.watchers[watcher];
        // I3.
        self.cursors.iter_mut().filter(|cursor| **cursor == watcher).for_each(|cursor| *cursor = after);
        if before == NIL {
            self.list(node, state).first = after;
        } else {
            self.watchers[before].after = after;
        }
        if after == NIL {
            self.list(node, state).last = before;
        } else {
            self.watchers[after].before = before;
        }
    }
}
