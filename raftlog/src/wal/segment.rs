//! Segments: a ring of fixed file names, the next one always requested ahead.
//!
//! Owns: which slot is written, which is ready, which may be recycled. Does not know: entries, files, durability.
//!
//! Invariants
//! - I1: sequences only grow, and records of a higher sequence have higher LSNs.
//! - I2: one preparation at a time; slots are recycled in the order in which they were freed, oldest log first.
//! - I3: a segment is used only after its header is durable.
//! - I4: a freed segment is never the one written to, and a later segment holds a durable record.

use std::collections::VecDeque;

use crate::ids::{BootNumber, Durability, Identity, Index, Lsn, SegmentSequence};
use crate::wal::frame::{BLOCK_BYTES, PreviousSegment, Seal, SegmentHeader};

/// A segment file to be made ready for appends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareSegment {
    /// The slot, which names the file.
    pub slot: u32,
    /// The segment's new sequence number; names the completion.
    pub sequence: SegmentSequence,
    /// True if the file must be made (or made anew, if a crash left a part of one): `file_bytes` zeros, pre-written.
    pub create: bool,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// The first 4096 bytes, written last.
    pub header: Vec<u8>,
    /// Met before the write may be issued.
    pub after: Durability,
}

/// A segment that holds records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSegment {
    /// Its file.
    pub slot: u32,
    /// Its number.
    pub sequence: SegmentSequence,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// Highest index of any of its records.
    pub last_index: Index,
    /// First byte behind its records, which follow the header without gaps.
    pub end: u64,
}

/// A slot without log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSlot {
    /// Its file.
    pub slot: u32,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// False if the file was never completed and must be made anew.
    pub created: bool,
}

/// Where the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// In the last live segment, at this offset.
    Continue {
        /// First byte not used.
        offset: u64,
    },
    /// In a fresh segment with a sealing header.
    Fresh,
}

/// The segments as recovery found them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentLayout {
    /// Segments with kept records, by sequence.
    pub live: Vec<LiveSegment>,
    /// Slots to be recycled, in order.
    pub free: Vec<FreeSlot>,
    /// Where to go on.
    pub tail: Tail,
    /// Highest sequence ever seen.
    pub highest_sequence: SegmentSequence,
    /// Above every slot in use.
    pub slots_end: u32,
}

impl SegmentLayout {
    /// A directory without segments.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            live: Vec::new(),
            free: Vec::new(),
            tail: Tail::Fresh,
            highest_sequence: SegmentSequence::ZERO,
            slots_end: 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Prepared {
    slot: u32,
    sequence: SegmentSequence,
    file_bytes: u64,
}

/// Where one record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    pub(crate) sequence: SegmentSequence,
    pub(crate) offset: u64,
}

/// The segments of a running log.
#[derive(Debug)]
pub(crate) struct SegmentRing {
    identity: Identity,
    boot_number: BootNumber,
    segment_bytes: u64,
    record_bytes_max: u64,
    live: VecDeque<LiveSegment>,
    /// Offset in the last live segment; `None` if that one must not be written.
    write_offset: Option<u64>,
    ready: Option<Prepared>,
    preparing: Option<Prepared>,
    free: VecDeque<FreeSlot>,
    next_sequence: SegmentSequence,
    slots_end: u32,
    /// Carried by the next header, if the log goes on in a fresh segment.
    seal: Option<Seal>,
}

impl SegmentRing {
    pub(crate) fn new(
        identity: Identity,
        boot_number: BootNumber,
        (segment_bytes, record_bytes_max): (u64, u64),
        layout: SegmentLayout,
        end: Seal,
    ) -> Self {
        let (write_offset, seal) = match layout.tail {
            Tail::Continue { offset } => (Some(offset), None),
            Tail::Fresh => (None, Some(end)),
        };
        assert!(write_offset.is_none() || !layout.live.is_empty(), "a log goes on only where there is one");
        Self {
            identity,
            boot_number,
            segment_bytes,
            record_bytes_max,
            live: layout.live.into(),
            write_offset,
            ready: None,
            preparing: None,
            free: layout.free.into(),
            next_sequence: layout.highest_sequence.next(),
            slots_end: layout.slots_end,
            seal,
        }
    }

    /// Requests the next segment unless one is ready or on its way (I2).
    pub(crate) fn poll_prepare(&mut self, after: Durability) -> Option<PrepareSegment> {
        if self.ready.is_some() || self.preparing.is_some() {
            return None;
        }
        let free = self.take_slot();
        let sequence = self.next_sequence;
        self.next_sequence = sequence.next();
        let seal = self.seal.take();
        let header = SegmentHeader {
            identity: self.identity,
            slot: free.slot,
            sequence,
            file_bytes: free.file_bytes,
            boot_number: self.boot_number,
            seal,
            previous: self.live.back().map(|last| PreviousSegment { sequence: last.sequence, slot: last.slot }),
        };
        self.preparing = Some(Prepared { slot: free.slot, sequence, file_bytes: free.file_bytes });
        Some(PrepareSegment {
            slot: free.slot,
            sequence,
            create: !free.created,
            file_bytes: free.file_bytes,
            header: header.encode(),
            after,
        })
    }

    /// The next recyclable slot that is large enough, or a new one. A slot too small for a record is left alone.
    fn take_slot(&mut self) -> FreeSlot {
        while let Some(free) = self.free.pop_front() {
            if !free.created {
                return FreeSlot { file_bytes: self.segment_bytes, ..free };
            }
            if free.file_bytes >= BLOCK_BYTES + self.record_bytes_max {
                return free;
            }
        }
        let slot = self.slots_end;
        self.slots_end = slot.checked_add(1).expect("slots are far fewer than 2^32");
        FreeSlot { slot, file_bytes: self.segment_bytes, created: false }
    }

    pub(crate) fn handle_prepared(&mut self, sequence: SegmentSequence) {
        let prepared = self.preparing.take().expect("a completion answers a preparation");
        assert_eq!(prepared.sequence, sequence, "I2: one preparation at a time");
        assert!(self.ready.is_none(), "I2: nothing is prepared while one is ready");
        self.ready = Some(prepared);
    }

    /// True if a record of any size would find a place now.
    pub(crate) fn has_room(&self) -> bool {
        self.ready.is_some() || self.rest() >= self.record_bytes_max
    }

    fn rest(&self) -> u64 {
        let (Some(offset), Some(current)) = (self.write_offset, self.live.back()) else { return 0 };
        current.file_bytes.checked_sub(offset).expect("a write offset stays within its file")
    }

    /// Takes the place of a record, or `None` if the next segment is not ready yet.
    pub(crate) fn place(&mut self, record_bytes: u64, lsn: Lsn, last_index: Index) -> Option<Place> {
        assert!(record_bytes <= self.record_bytes_max, "a record fits a segment");
        if self.rest() < record_bytes {
            let ready = self.ready.take()?;
            assert!(self.live.back().is_none_or(|last| last.sequence < ready.sequence), "I1: sequences grow");
            self.live.push_back(LiveSegment {
                slot: ready.slot,
                sequence: ready.sequence,
                file_bytes: ready.file_bytes,
                first_lsn: lsn,
                last_index,
                end: BLOCK_BYTES,
            });
            self.write_offset = Some(BLOCK_BYTES);
        }
        let offset = self.write_offset.expect("I3: a record goes to a segment in use");
        let current = self.live.back_mut().expect("I3: a record goes to a segment in use");
        assert!(offset + record_bytes <= current.file_bytes, "a record ends within its file");
        current.last_index = current.last_index.max(last_index);
        current.end = offset + record_bytes;
        self.write_offset = Some(current.end);
        Some(Place { slot: current.slot, sequence: current.sequence, offset })
    }

    /// Frees the oldest segments whose entries all lie below `retain_from` (I4).
    pub(crate) fn free_below(&mut self, retain_from: Index, durable: Lsn) {
        while let (Some(oldest), Some(second)) = (self.live.front(), self.live.get(1)) {
            if oldest.last_index >= retain_from || second.first_lsn > durable {
                break;
            }
            self.free.push_back(FreeSlot { slot: oldest.slot, file_bytes: oldest.file_bytes, created: true });
            self.live.pop_front();
        }
    }

    /// The segments that hold records, by sequence.
    pub(crate) fn live(&self) -> impl Iterator<Item = &LiveSegment> {
        self.live.iter()
    }

    /// Bytes at the ends of segments that were left before they were full, of those that end above one index and not
    /// above another.
    pub(crate) fn unused_bytes(&self, above: Index, up_to: Index) -> u64 {
        let left = self.live.iter().take(self.live.len().saturating_sub(1));
        let between = left.filter(|segment| segment.last_index > above && segment.last_index <= up_to);
        between.map(|segment| segment.file_bytes.saturating_sub(segment.end)).sum()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live.iter().map(|segment| segment.file_bytes).sum()
    }
}
