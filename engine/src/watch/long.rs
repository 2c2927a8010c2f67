//! Revisions with more events than a block holds, and the long responses they make.
//!
//! Owns: what is known of such a revision per range; a response under way: how far it came, what it holds on to. Does
//! not know: when a stream gets its turn.
//!
//! A response's length must be known before it begins. It follows from the totals that the walk counted; where it is
//! cut into fragments, a fragment is measured first and then sent. The rows are a deletion's, in order of their keys,
//! or a transaction's: those of one range lie between its first and its last.
//!
//! Invariants
//! - I1: what was announced is what is sent, whatever is compacted meanwhile: a pin keeps the rows, and it is settled
//!   when the first response begins whether previous pairs are shown.
//! - I2: what is announced is there: rows of a revision above the compacted one, or what the compaction leaves of the
//!   compacted one itself. Until a response begins nothing is held for it.

use std::collections::BTreeMap;

use crate::budget::{Pause, price};
use crate::mvcc::{KeyRange, KeyTree, Pin};
use crate::store::key_entry::Revision;
use crate::store::row_log::Row;
use crate::watch::event::{encode_event, encoded_len};
use crate::watch::hub::{ACTIVE, FRAGMENT, Hub, NO_DELETE, NO_PUT, PREV_KV, State};
use crate::watch::lane::{Ground, HEAD_BYTES, is_undone, row_seen_before};
use crate::watch::{ResponseHead, StreamKey};

/// A part of a response goes when it is at least so long.
const PART_BYTES: usize = 64 << 10;

/// Lengths of what a range gets of a long revision.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    first: u32,
    last: u32,
    /// Bytes of deletions and puts, without previous pairs and with them.
    bytes: [[u64; 2]; 2],
}

impl Totals {
    /// Bytes of the events that a watcher with these flags gets, with previous pairs if there are any to be shown.
    pub(super) fn bytes(&self, flags: u8, prev_is_shown: bool) -> u64 {
        let form = usize::from(prev_is_shown && flags & PREV_KV != 0);
        let [deletes, puts] = self.bytes[form];
        (if flags & NO_DELETE == 0 { deletes } else { 0 }) + (if flags & NO_PUT == 0 { puts } else { 0 })
    }
}

/// A revision that is being gone through.
#[derive(Debug)]
pub(super) struct LongRevision {
    pub(super) revision: i64,
    /// Of each key its last row counts.
    last_rows_only: bool,
    /// By node.
    pub(super) totals: BTreeMap<u32, Totals>,
}

impl LongRevision {
    pub(super) fn new(revision: i64, last_rows_only: bool) -> Self {
        Self { revision, last_rows_only, totals: BTreeMap::new() }
    }

    /// What a watcher waits for, to whom so much of it belongs.
    pub(super) fn of(&self, totals: &Totals) -> Long {
        Long { revision: self.revision, last_rows_only: self.last_rows_only, totals: *totals }
    }

    /// Counts an event of these lengths for a node.
    pub(super) fn count(&mut self, node: u32, sub: u32, put: bool, lens: [usize; 2]) {
        let totals = self.totals.entry(node).or_insert_with(|| Totals { first: sub, ..Totals::default() });
        totals.last = sub;
        for (form, len) in lens.into_iter().enumerate() {
            totals.bytes[form][usize::from(put)] += len as u64;
        }
    }
}

/// What a watcher waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Long {
    pub(super) revision: i64,
    last_rows_only: bool,
    pub(super) totals: Totals,
}

/// A long response, or the fragments of one, under way.
#[derive(Debug)]
pub(super) struct Sending {
    /// `None`: it was cancelled; the response is sent to its end all the same.
    pub(super) watcher: Option<u32>,
    id: i64,
    flags: u8,
    start: Vec<u8>,
    range_end: Vec<u8>,
    prev_is_shown: bool,
    last_rows_only: bool,
    pin: Pin,
    /// The next row and the last one.
    next: Revision,
    last: Revision,
    /// Bytes of events not sent yet, and those of them that belong to the message under way.
    left: u64,
    message_left: u64,
    /// A fragment that is being measured: the next row and the bytes so far.
    measured: (Revision, u64),
    /// Events sent.
    events: u64,
}

impl Hub {
    /// Begins the response to the next watcher of a stream that waits for one. False: there is none.
    pub(super) fn begin_long<T: KeyTree>(&mut self, stream: u32, ground: &mut Ground<'_, T>) -> bool {
        let Some(&watcher) = self.streams[stream].longs.first() else { return false };
        let Long { revision, last_rows_only, totals } = self.longs[&watcher];
        let compacted = ground.keyspace.state().compacted;
        if revision < compacted {
            self.cancel_compacted(watcher, compacted);
            return true;
        }
        if revision == compacted && !last_rows_only {
            // It was counted before the compaction, which leaves of each key the last row alone. A scan looks again.
            self.change(watcher, revision, State::Waiting);
            return true;
        }
        let prev_is_shown = revision > compacted;
        let held = &self.watchers[watcher];
        let (start, range_end) = match self.index.range(held.node) {
            KeyRange::Single(key) => (key, &b""[..]),
            KeyRange::Between(start, end) => (start, end),
            KeyRange::From(start) => (start, &b"\0"[..]),
        };
        let next = Revision { main: revision, sub: totals.first };
        let sending = Sending {
            watcher: Some(watcher),
            id: held.id,
            flags: held.flags,
            start: start.to_vec(),
            range_end: range_end.to_vec(),
            prev_is_shown,
            last_rows_only,
            // Pairs that were replaced are seen at the revision before.
            pin: ground.keyspace.pin_at(if prev_is_shown { revision - 1 } else { revision }),
            next,
            last: Revision { main: revision, sub: totals.last },
            left: totals.bytes(held.flags, prev_is_shown),
            message_left: 0,
            measured: (next, 0),
            events: 0,
        };
        self.streams[stream].sending = Some(Box::new(sending));
        true
    }

    /// Goes on with the response under way; true if it came to its end, false if there is no room.
    pub(super) fn go_on_with_long<T: KeyTree>(
        &mut self,
        stream: u32,
        ground: &mut Ground<'_, T>,
    ) -> Result<bool, Pause> {
        let Some(mut sending) = self.streams[stream].sending.take() else { return Ok(true) };
        let gone_on = sending.go_on(StreamKey(stream), ground);
        self.events += std::mem::take(&mut sending.events);
        if !matches!(gone_on, Ok(true)) {
            self.streams[stream].sending = Some(sending);
            return gone_on;
        }
        ground.keyspace.unpin(sending.pin);
        if let Some(watcher) = sending.watcher {
            self.watchers[watcher].flags |= ACTIVE;
            let next = sending.next.main + 1;
            self.change(watcher, next, if next > self.claimed { State::Synced } else { State::Waiting });
        }
        Ok(true)
    }

    /// Gives up the response under way: its stream is gone.
    pub(super) fn drop_long(&mut self, stream: u32) {
        let sending = self.streams[stream].sending.take();
        self.released.extend(sending.map(|sending| sending.pin));
    }
}

impl Sending {
    fn go_on<T: KeyTree>(&mut self, stream: StreamKey, ground: &mut Ground<'_, T>) -> Result<bool, Pause> {
        while self.left > 0 {
            if !ground.outlet.has_room(stream) {
                return Ok(false);
            }
            if self.message_left == 0 {
                let bytes = self.measure(ground)?;
                let revision = ground.keyspace.published().revision;
                let head = ResponseHead { fragment: bytes < self.left, ..ResponseHead::events(self.id, revision) };
                ground.outlet.begin(stream, &head, bytes as usize);
                self.message_left = bytes;
            }
            self.send_part(stream, ground)?;
        }
        Ok(true)
    }

    /// The bytes of events that the next message holds.
    fn measure<T: KeyTree>(&mut self, ground: &mut Ground<'_, T>) -> Result<u64, Pause> {
        let bytes_max = ground.limits.response_bytes_max.saturating_sub(HEAD_BYTES) as u64;
        if self.flags & FRAGMENT == 0 || self.left < bytes_max {
            return Ok(self.left);
        }
        loop {
            let (next, bytes) = self.measured;
            let read = self.read(next, ground, &mut |row, prev| encoded_len(row, prev));
            let Some((at, len)) = read? else { break };
            if bytes > 0 && bytes + len as u64 >= bytes_max {
                break;
            }
            self.measured = (at.next(), bytes + len as u64);
            ground.budget.charge(price::NEXT_ROW)?;
        }
        let bytes = self.measured.1;
        self.measured.1 = 0;
        Ok(bytes)
    }

    /// Sends a part of the message under way.
    fn send_part<T: KeyTree>(&mut self, stream: StreamKey, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
        let mut part = Vec::new();
        let mut paused = Ok(());
        let part_bytes = PART_BYTES.min(ground.limits.block_bytes_max);
        while part.len() < part_bytes && (part.len() as u64) < self.message_left {
            let read = self.read(self.next, ground, &mut |row, prev| encode_event(&mut part, row, prev));
            match read {
                Ok(read) => {
                    self.next = read.expect("I1: the announced events are there").0.next();
                    self.events += 1;
                }
                Err(pause) => {
                    paused = Err(pause);
                    break;
                }
            }
            if let Err(pause) = ground.budget.charge(price::NEXT_ROW) {
                paused = Err(pause);
                break;
            }
        }
        if !part.is_empty() {
            ground.budget.spend_bytes(part.len());
            let len = part.len() as u64;
            assert!(len <= self.message_left, "I1: no more than what was announced");
            (self.left, self.message_left) = (self.left - len, self.message_left - len);
            ground.outlet.part(stream, &part);
        }
        paused
    }

    /// Looks for the next row from `next` on that is wanted, with the one before it; rows in between are paid for.
    fn read<T: KeyTree, R>(
        &self,
        next: Revision,
        ground: &mut Ground<'_, T>,
        use_row: &mut dyn FnMut(&Row<'_>, Option<&Row<'_>>) -> R,
    ) -> Result<Option<(Revision, R)>, Pause> {
        let range = KeyRange::new(&self.start, &self.range_end);
        let keyspace = &*ground.keyspace;
        let rows = keyspace.rows();
        let mut next = next;
        while let Some(row) = rows.row_from(next, ground.pages)?.filter(|row| row.at <= self.last) {
            let filter = if row.is_tombstone() { NO_DELETE } else { NO_PUT };
            let is_wanted = self.flags & filter == 0 && range.contains(row.key);
            if is_wanted && !(self.last_rows_only && is_undone(keyspace, &row, ground.pages)?) {
                let shows_prev = self.prev_is_shown && self.flags & PREV_KV != 0;
                let prev = if shows_prev { row_seen_before(rows, &row, ground.pages)? } else { None };
                return Ok(Some((row.at, use_row(&row, prev.as_ref()))));
            }
            next = row.at.next();
            ground.budget.spend(price::NEXT_ROW);
        }
        Ok(None)
    }
}
