//! The group-commit plan: which entries form the next batch, its bytes and its place, and what is durable.
//!
//! Owns: LSNs, the local chain, batches in flight, the durable prefix. Does not know: roles, quorums, time.
//!
//! Invariants
//! - I1: LSNs are issued without gaps; at most `appends_in_flight_max` are in flight.
//! - I2: the durable LSN is the highest one completed with all lower ones; completions come in any order.
//! - I3: an index counts as durable only through the newest record that holds it: superseding takes it back at once.
//! - I4: a payload is copied once, into the record's bytes.

use std::collections::VecDeque;

use crate::entry::{Entry, LogPosition};
use crate::ids::{BootNumber, Digest, Durability, Identity, Index, Lsn, SegmentSequence, Term};
use crate::options::Options;
use crate::wal::frame::{self, ENTRIES_PER_RECORD_MAX, EntryRow, RecordHeader, RecordType, Seal};
use crate::wal::segment::{LiveSegment, Place, PrepareSegment, SegmentLayout, SegmentRing};

/// One batch to be written; a completed write of it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendWrite {
    /// Its log sequence number.
    pub lsn: Lsn,
    /// The segment file.
    pub slot: u32,
    /// Where in the file, in bytes; a multiple of 4096.
    pub offset: u64,
    /// The record; its length is a multiple of 4096.
    pub bytes: Vec<u8>,
    /// Met before the write may be issued.
    pub after: Durability,
}

/// The longest prefix of `entries` that fits one record: one term, one type, at most 16 entries, and payloads within
/// `batch_bytes_max` unless the first alone exceeds it.
pub(crate) fn plan_batch<'a>(entries: impl Iterator<Item = &'a Entry>, batch_bytes_max: usize) -> Vec<&'a Entry> {
    let mut batch: Vec<&Entry> = Vec::new();
    let mut bytes = 0usize;
    for entry in entries {
        bytes = bytes.saturating_add(entry.payload.len());
        let fits = batch.first().is_none_or(|first| {
            first.term == entry.term && first.entry_type == entry.entry_type && bytes <= batch_bytes_max
        });
        if !fits || batch.len() == ENTRIES_PER_RECORD_MAX {
            break;
        }
        batch.push(entry);
    }
    batch
}

#[derive(Debug)]
struct InFlight {
    lsn: Lsn,
    place: Place,
    /// Index that is durable once this record and all before it are; lowered by superseding (I3).
    last_index: Index,
    completed: bool,
}

/// Where a log starts from at boot.
#[derive(Debug)]
pub(crate) struct WalStart {
    pub(crate) identity: Identity,
    pub(crate) boot_number: BootNumber,
    pub(crate) last_lsn: Lsn,
    pub(crate) local_digest: Digest,
    pub(crate) last_index: Index,
    pub(crate) layout: SegmentLayout,
}

/// The writing side of the log.
#[derive(Debug)]
pub(crate) struct Wal {
    identity: Identity,
    boot_number: BootNumber,
    in_flight_max: usize,
    ring: SegmentRing,
    last_lsn: Lsn,
    local_digest: Digest,
    in_flight: VecDeque<InFlight>,
    durable_lsn: Lsn,
    durable_index: Index,
    /// True if everything durable lies under the watermark of the last record, but for marks.
    is_marked: bool,
}

impl Wal {
    pub(crate) fn new(options: &Options, start: WalStart) -> Self {
        let end = Seal { after: start.last_lsn, digest: start.local_digest };
        let sizes = (options.segment_bytes, frame::record_bytes(options.entry_bytes_max));
        Self {
            identity: start.identity,
            boot_number: start.boot_number,
            in_flight_max: options.appends_in_flight_max,
            ring: SegmentRing::new(start.identity, start.boot_number, sizes, start.layout, end),
            last_lsn: start.last_lsn,
            local_digest: start.local_digest,
            in_flight: VecDeque::new(),
            durable_lsn: start.last_lsn,
            durable_index: start.last_index,
            // A fresh segment's sealing header names the last LSN, and behind a stop record nothing is unmarked.
            is_marked: true,
        }
    }

    pub(crate) fn durable_lsn(&self) -> Lsn {
        self.durable_lsn
    }

    pub(crate) fn durable_index(&self) -> Index {
        self.durable_index
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.is_marked
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// True if another record may be in flight, wherever it would go.
    pub(crate) fn has_depth(&self) -> bool {
        self.in_flight.len() < self.in_flight_max
    }

    /// True if a record of any size could be issued now.
    pub(crate) fn can_append(&self) -> bool {
        self.has_depth() && self.ring.has_room()
    }

    /// Issues entries that follow `previous` as one record; `None` if the next segment is not ready yet.
    pub(crate) fn append(
        &mut self,
        previous: LogPosition,
        entries: &[&Entry],
        commit: Index,
        after: Durability,
    ) -> Option<AppendWrite> {
        let first = entries.first().expect("a batch is not empty");
        assert!(entries.len() <= ENTRIES_PER_RECORD_MAX, "a batch is one record");
        assert_eq!(first.index, previous.index.next(), "a batch follows its predecessor");
        let alike = |entry: &&Entry| (entry.term, entry.entry_type) == (first.term, first.entry_type);
        assert!(entries.iter().all(alike), "a batch has one term and one type");
        let row = |entry: &&Entry| EntryRow {
            payload_bytes: u32::try_from(entry.payload.len()).expect("a payload is below 4 GiB"),
            digest: entry.digest,
        };
        let rows = entries.iter().map(row).collect();
        let contents = (RecordType::Entries(first.entry_type), first.term, rows);
        self.issue(previous, contents, commit, after, entries.iter().map(|entry| entry.payload.as_slice()))
    }

    /// Issues a record without entries.
    pub(crate) fn append_mark(
        &mut self,
        record_type: RecordType,
        (last, term): (LogPosition, Term),
        commit: Index,
        after: Durability,
    ) -> Option<AppendWrite> {
        assert!(record_type.is_mark() && self.in_flight.is_empty(), "a mark is written into quiet");
        self.issue(last, (record_type, term, Vec::new()), commit, after, std::iter::empty())
    }

    fn issue<'a>(
        &mut self,
        previous: LogPosition,
        (record_type, term, rows): (RecordType, Term, Vec<EntryRow>),
        commit: Index,
        after: Durability,
        payloads: impl Iterator<Item = &'a [u8]>,
    ) -> Option<AppendWrite> {
        assert!(self.has_depth(), "I1: the queue depth is bounded");
        let lsn = self.last_lsn.next();
        let mut header = RecordHeader {
            record_type,
            sequence: SegmentSequence::ZERO,
            offset: 0,
            lsn,
            boot_number: self.boot_number,
            identity: self.identity,
            previous,
            term,
            watermark: self.durable_lsn,
            commit_hint: Index::ZERO,
            previous_local: self.local_digest,
            rows,
            payload_crc: 0,
        };
        let last_index = header.last_index();
        header.commit_hint = commit.min(last_index);
        let place = self.ring.place(header.record_bytes(), lsn, last_index)?;
        header.sequence = place.sequence;
        header.offset = place.offset;
        let (bytes, local_digest) = header.encode(payloads);
        self.last_lsn = lsn;
        self.local_digest = local_digest;
        self.is_marked = record_type.is_mark();
        self.in_flight.push_back(InFlight { lsn, place, last_index, completed: false });
        Some(AppendWrite { lsn, slot: place.slot, offset: place.offset, bytes, after })
    }

    /// Entries from `index` on are about to be replaced (I3).
    pub(crate) fn supersede_from(&mut self, index: Index) {
        let kept = index.previous();
        for record in &mut self.in_flight {
            record.last_index = record.last_index.min(kept);
        }
        self.durable_index = self.durable_index.min(kept);
    }

    pub(crate) fn handle_complete(&mut self, lsn: Lsn) {
        let record = self.in_flight.iter_mut().find(|record| record.lsn == lsn);
        let record = record.expect("a completion answers an append in flight");
        assert!(!record.completed, "an append completes once");
        record.completed = true;
        while let Some(record) = self.in_flight.front().filter(|record| record.completed) {
            assert_eq!(record.lsn, self.durable_lsn.next(), "I2: the durable prefix has no hole");
            self.durable_lsn = record.lsn;
            self.durable_index = self.durable_index.max(record.last_index);
            self.in_flight.pop_front();
        }
    }

    pub(crate) fn poll_prepare(&mut self, after: Durability) -> Option<PrepareSegment> {
        self.ring.poll_prepare(after)
    }

    pub(crate) fn handle_prepared(&mut self, sequence: SegmentSequence) {
        self.ring.handle_prepared(sequence);
    }

    pub(crate) fn free_below(&mut self, retain_from: Index) {
        self.ring.free_below(retain_from, self.durable_lsn);
    }

    /// The segments in use, each up to its last durable byte.
    pub(crate) fn durable_segments(&self) -> Vec<LiveSegment> {
        let first = self.in_flight.front().map(|record| record.place);
        let before = |segment: &&LiveSegment| first.is_none_or(|first| segment.sequence <= first.sequence);
        let cut = |segment: &LiveSegment| match first.filter(|first| first.sequence == segment.sequence) {
            Some(first) => LiveSegment { end: first.offset, ..*segment },
            None => *segment,
        };
        self.ring.live().take_while(before).map(cut).collect()
    }

    pub(crate) fn unused_bytes(&self, above: Index, up_to: Index) -> u64 {
        self.ring.unused_bytes(above, up_to)
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.ring.live_bytes()
    }
}
