//! A stretch of the history as events that somebody watches.
//!
//! Owns: the events' bytes, each encoded once without its previous pair and, where wanted, once with it; which node is
//! hit by which event; the part of it that one watcher gets. Does not know: rows, watchers, streams.
//!
//! Invariants
//! - I1: events ascend in (main, sub); an event nobody watches is not held.
//! - I2: up to `whole` the block holds whole revisions.

use crate::store::key_entry::Revision;
use crate::store::row_log::Row;
use crate::watch::event::encode_event;
use crate::watch::hub::{NO_DELETE, NO_PUT, PREV_KV};

/// Hits of a block at most, so that sorting them is a short piece of work.
const HITS_MAX: usize = 1 << 13;
/// Revisions of a block at most.
const REVISIONS_MAX: usize = 1000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) at: Revision,
    pub(super) put: bool,
    /// Where its bytes end.
    plain_end: usize,
    with_prev_end: usize,
}

/// A node and an event of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hit {
    pub(super) node: u32,
    pub(super) event: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    events: usize,
    plain: usize,
    with_prev: usize,
    hits: usize,
    revisions: usize,
}

#[derive(Debug, Default)]
pub(super) struct Block {
    events: Vec<Event>,
    plain: Vec<u8>,
    with_prev: Vec<u8>,
    pub(super) hits: Vec<Hit>,
    whole: Mark,
}

/// What a watcher gets of a block.
#[derive(Debug)]
pub(super) struct Selection<'b> {
    /// The events' bytes; those that lie side by side in one slice.
    pub(super) slices: Vec<&'b [u8]>,
    pub(super) bytes: usize,
    pub(super) events: u64,
    /// The first and the last revision.
    pub(super) first: i64,
    pub(super) last: i64,
}

impl Block {
    /// Adds the event of a row that these nodes hold; with its previous pair if `wants_prev`.
    pub(super) fn push(&mut self, row: &Row<'_>, prev: Option<&Row<'_>>, wants_prev: bool, nodes: &[u32]) {
        let event = u32::try_from(self.events.len()).expect("a block is short");
        encode_event(&mut self.plain, row, None);
        if wants_prev {
            encode_event(&mut self.with_prev, row, prev);
        }
        let (plain_end, with_prev_end) = (self.plain.len(), self.with_prev.len());
        self.events.push(Event { at: row.at, put: !row.is_tombstone(), plain_end, with_prev_end });
        self.hits.extend(nodes.iter().map(|&node| Hit { node, event }));
    }

    /// Everything so far is whole revisions.
    pub(super) fn mark_whole(&mut self) {
        let revisions = self.whole.revisions + usize::from(self.events.len() > self.whole.events);
        let (events, hits) = (self.events.len(), self.hits.len());
        self.whole = Mark { events, plain: self.plain.len(), with_prev: self.with_prev.len(), hits, revisions };
    }

    pub(super) fn has_whole(&self) -> bool {
        self.whole.events > 0
    }

    /// Forgets the events of the revision that is not whole.
    pub(super) fn truncate(&mut self) {
        self.events.truncate(self.whole.events);
        self.plain.truncate(self.whole.plain);
        self.with_prev.truncate(self.whole.with_prev);
        self.hits.truncate(self.whole.hits);
    }

    /// Whether no more events should be added.
    pub(super) fn is_over(&self, bytes_max: usize) -> bool {
        self.plain.len() + self.with_prev.len() >= bytes_max || self.hits.len() >= HITS_MAX
    }

    /// Whether no more revisions should be added.
    pub(super) fn is_full(&self, bytes_max: usize) -> bool {
        self.is_over(bytes_max) || self.whole.revisions >= REVISIONS_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Forgets everything; keeps room for an ordinary block.
    pub(super) fn clear(&mut self) {
        const ROOM: usize = 1 << 18;
        self.events.clear();
        self.hits.clear();
        for bytes in [&mut self.plain, &mut self.with_prev] {
            bytes.clear();
            bytes.shrink_to(ROOM);
        }
        self.whole = Mark::default();
    }

    /// Brings the hits of a node together, in order of the events.
    pub(super) fn sort(&mut self) {
        self.hits.sort_unstable();
    }

    /// The end of the hits of one node.
    pub(super) fn group_end(&self, start: usize) -> usize {
        let node = self.hits[start].node;
        start + self.hits[start..].partition_point(|hit| hit.node == node)
    }

    pub(super) fn event(&self, hit: Hit) -> &Event {
        &self.events[hit.event as usize]
    }

    /// An event's bytes.
    pub(super) fn bytes(&self, hit: Hit, with_prev: bool) -> &[u8] {
        let index = hit.event as usize;
        let end = |event: &Event| if with_prev { event.with_prev_end } else { event.plain_end };
        let start = index.checked_sub(1).map_or(0, |before| end(&self.events[before]));
        let bytes = if with_prev { &self.with_prev } else { &self.plain };
        &bytes[start..end(&self.events[index])]
    }

    /// Those of the hits that a watcher with these flags wants, from a revision on.
    pub(super) fn wanted(&self, hits: &[Hit], flags: u8, next: i64) -> impl Iterator<Item = Hit> {
        hits.iter().copied().filter(move |&hit| {
            let event = self.event(hit);
            event.at.main >= next && flags & (if event.put { NO_PUT } else { NO_DELETE }) == 0
        })
    }

    /// What a watcher with these flags gets of its node's hits.
    pub(super) fn select(&self, hits: &[Hit], flags: u8, next: i64) -> Option<Selection<'_>> {
        let with_prev = flags & PREV_KV != 0;
        let buffer = if with_prev { &self.with_prev } else { &self.plain };
        let mut selection = Selection { slices: Vec::new(), bytes: 0, events: 0, first: 0, last: 0 };
        // The open run of bytes.
        let (mut start, mut end) = (0, 0);
        for hit in self.wanted(hits, flags, next) {
            let event = self.event(hit);
            let event_end = if with_prev { event.with_prev_end } else { event.plain_end };
            let event_start = event_end - self.bytes(hit, with_prev).len();
            if event_start != end {
                selection.slices.extend((start < end).then(|| &buffer[start..end]));
                start = event_start;
            }
            end = event_end;
            selection.bytes += event_end - event_start;
            selection.first = if selection.events == 0 { event.at.main } else { selection.first };
            selection.last = event.at.main;
            selection.events += 1;
        }
        selection.slices.extend((start < end).then(|| &buffer[start..end]));
        (selection.events > 0).then_some(selection)
    }
}
