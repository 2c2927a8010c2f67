//! A walk over the log on the medium while it is in use: rot is found before a start needs what rotted.
//!
//! Owns: what is read next, and the verdict on what was read. Does not know: files, the pace, what is done about rot.
//!
//! Only bytes behind which the log already stands as durable are looked at; nobody writes them again while their
//! segment lives. A segment that was recycled meanwhile is left. Behind a record that does not hold, the rest of its
//! segment is not looked at in this pass: where the next record begins is unknown.
//!
//! Invariants
//! - I1: rot is reported after a second read alone, as memory or the way to it may have been wrong the first time.
//! - I2: no bytes make it panic, and it reads at most a chunk, or one whole record, at once.

use crate::ids::SegmentSequence;
use crate::wal::frame::{BLOCK_BYTES, RecordHeader, SECTOR_BYTES, SegmentHeader, SegmentSector};
use crate::wal::segment::LiveSegment;

/// Bytes of one read, unless a record is longer.
const READ_BYTES: u64 = 256 << 10;
const SECTOR: usize = SECTOR_BYTES as usize;
const BLOCK: usize = BLOCK_BYTES as usize;

/// Bytes of a segment; offset and length are multiples of 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpan {
    /// The segment's file.
    pub slot: u32,
    /// Where they begin.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
}

/// One pass over the log.
#[derive(Debug, Default)]
pub struct LogScrub {
    /// The segment it stands in, and the first byte of it that was not judged.
    sequence: SegmentSequence,
    offset: u64,
    /// The length of the record there, where it is known.
    record_bytes: u64,
    /// What stands there did not hold once (I1).
    is_suspect: bool,
    reading: Option<LogSpan>,
}

/// How far a walk over bytes came.
enum Stop {
    /// To their end.
    End,
    /// To a record of this length, which goes on behind them.
    Longer(u64),
    /// To something that is not what was written.
    Rot,
}

impl LogScrub {
    /// What is to be read next. `live` holds the segments in use by sequence, each up to its last durable byte.
    /// `None`: the pass is over.
    pub fn next(&mut self, live: &[LiveSegment]) -> Option<LogSpan> {
        let segment = live.iter().find(|segment| {
            segment.sequence > self.sequence || (segment.sequence == self.sequence && segment.end > self.offset)
        })?;
        if segment.sequence > self.sequence {
            self.enter(segment.sequence);
        }
        let bytes = self.record_bytes.max(READ_BYTES).min(segment.end - self.offset);
        self.reading = Some(LogSpan { slot: segment.slot, offset: self.offset, bytes });
        self.reading
    }

    /// The medium's answer to [`Self::next`]; `None` if it could not be read. Answers what is rotten.
    pub fn handle_read(&mut self, live: &[LiveSegment], bytes: Option<&[u8]>) -> Option<LogSpan> {
        let span = self.reading.take()?;
        let is_live = |segment: &&LiveSegment| segment.sequence == self.sequence && segment.slot == span.slot;
        let Some(segment) = live.iter().find(is_live) else {
            self.enter(self.sequence.next());
            return None;
        };
        let (judged, stop) = walk(segment.sequence, span.offset, bytes.unwrap_or_default());
        if judged > 0 {
            (self.offset, self.is_suspect) = (self.offset + judged, false);
        }
        self.record_bytes = 0;
        match stop {
            Stop::End if bytes.is_some() => None,
            // A record that ends behind the segment's records has a false length.
            Stop::Longer(bytes) if bytes <= segment.end - self.offset => {
                self.record_bytes = bytes;
                None
            }
            _ if !self.is_suspect => {
                self.is_suspect = true;
                None
            }
            _ => {
                let rot = LogSpan { offset: self.offset, bytes: BLOCK_BYTES, ..span };
                self.enter(self.sequence.next());
                Some(rot)
            }
        }
    }

    fn enter(&mut self, sequence: SegmentSequence) {
        *self = Self { sequence, ..Self::default() };
    }
}

/// Judges what stands at `offset` of a segment, record by record; answers the bytes that hold, and why it stopped.
fn walk(sequence: SegmentSequence, offset: u64, bytes: &[u8]) -> (u64, Stop) {
    let mut judged = 0;
    while let Some(rest) = bytes.get(judged..).filter(|rest| rest.len() >= BLOCK) {
        let at = offset + judged as u64;
        let len = if at == 0 { header_bytes(sequence, rest) } else { record_bytes(sequence, at, rest) };
        match len {
            Ok(len) => judged += len,
            Err(stop) => return (judged as u64, stop),
        }
    }
    (judged as u64, Stop::End)
}

/// The length of a segment's header, if both copies hold.
fn header_bytes(sequence: SegmentSequence, block: &[u8]) -> Result<usize, Stop> {
    let holds = |sector: &[u8]| match SegmentHeader::decode(sector) {
        SegmentSector::Valid(header) => header.sequence == sequence,
        _ => false,
    };
    (holds(&block[..SECTOR]) && holds(&block[BLOCK - SECTOR..BLOCK])).then_some(BLOCK).ok_or(Stop::Rot)
}

/// The length of the record at `at`, if header, payload and trailer hold.
fn record_bytes(sequence: SegmentSequence, at: u64, rest: &[u8]) -> Result<usize, Stop> {
    let header = RecordHeader::decode(&rest[..SECTOR]).ok_or(Stop::Rot)?;
    if (header.sequence, header.offset) != (sequence, at) {
        return Err(Stop::Rot);
    }
    let Some(record) = usize::try_from(header.record_bytes()).ok().and_then(|len| rest.get(..len)) else {
        return Err(Stop::Longer(header.record_bytes()));
    };
    let payload = &record[SECTOR..SECTOR + header.payload_bytes()];
    let holds = record[record.len() - SECTOR..] == record[..SECTOR] && crc32fast::hash(payload) == header.payload_crc;
    holds.then_some(record.len()).ok_or(Stop::Rot)
}
