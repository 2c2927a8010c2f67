//! The recovery scan; docs/format/wal.md section 7, whose step numbers appear below.
//!
//! Owns: telling a tear from rot, what is kept, where the log goes on. Does not know: files, elections, repair.
//!
//! Invariants
//! - I1: no bytes make it panic, and nothing is allocated on the word of an unchecked length.
//! - I2: what was acknowledged is returned, or the start is refused: nothing at or below a watermark is ever dropped.
//! - I3: it writes nothing, so a refused start leaves every byte as it was.
//! - I4: the returned entries are consecutive from `after` + 1 and their replicated digests chain from `base`.

use std::fmt;
use std::sync::Arc;

use crate::entry::{Entry, LogPosition};
use crate::ids::{BootNumber, Digest, Identity, Index, Lsn, SegmentSequence, Term};
use crate::options::SEGMENT_BYTES_MAX;
use crate::wal::frame::{
    BLOCK_BYTES, PreviousSegment, RecordHeader, RecordType, SECTOR_BYTES, Seal, SegmentHeader, SegmentSector,
    local_digest,
};
use crate::wal::hard_state::{HardState, HardStateCopy};
use crate::wal::segment::{FreeSlot, LiveSegment, SegmentLayout, Tail};
use crate::wal::{hard_state_file_name, segment_file_name};

const SECTOR: usize = SECTOR_BYTES as usize;
const BLOCK: usize = BLOCK_BYTES as usize;

/// A segment file found at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Its slot.
    pub slot: u32,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A read that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaError {
    /// What the environment said.
    pub reason: String,
}

/// Synchronous access to the log's files at boot, past any cache.
pub trait LogMedia {
    /// All segment files, in any order.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn segments(&mut self) -> Result<Vec<SegmentFile>, MediaError>;
    /// Exactly `len` bytes of a segment at `offset`; both multiples of 4096, within the file's length.
    ///
    /// # Errors
    /// The range cannot be read.
    fn read(&mut self, slot: u32, offset: u64, len: usize) -> Result<Vec<u8>, MediaError>;
    /// The first 4096 bytes of a hard-state copy (fewer if the file is shorter); `None` if there is no file.
    ///
    /// # Errors
    /// The file cannot be read.
    fn read_hard_state(&mut self, copy: u8) -> Result<Option<Vec<u8>>, MediaError>;
}

/// What recovery is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoverOptions {
    /// Entries above this index are returned: the applied index of the checkpoint in use.
    pub after: Index,
    /// The operator's order to give up everything from this LSN on. It counts only if recovery refuses at exactly this
    /// LSN, so an order left behind after it was carried out does nothing.
    pub discard_from: Option<Lsn>,
}

/// A tail that no acknowledgement ever depended on, or that the operator gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedTail {
    /// First LSN given up.
    pub first_lsn: Lsn,
    /// Records from there on of which something was found.
    pub records: u64,
}

/// What the media hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The newest hard state, its term raised to the log's; `None` in a directory never used.
    pub hard_state: Option<HardState>,
    /// The copy of the hard state to be written first: the one that may be lost.
    pub first_copy: u8,
    /// The position before `entries`.
    pub base: LogPosition,
    /// The entries above the requested index.
    pub entries: Vec<Entry>,
    /// The last LSN kept.
    pub last_lsn: Lsn,
    /// The local digest of that LSN's record.
    pub local_digest: Digest,
    /// The given-up tail, if any.
    pub dropped: Option<DroppedTail>,
    /// The segments.
    pub layout: SegmentLayout,
}

impl Recovered {
    /// The end of the log.
    #[must_use]
    pub fn last(&self) -> LogPosition {
        self.entries.last().map_or(self.base, Entry::position)
    }
}

/// Where something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultPlace {
    /// File name below the data directory.
    pub file: String,
    /// Byte offset in it.
    pub offset: u64,
    /// The log sequence number lost there.
    pub lsn: Lsn,
    /// The first log index lost there.
    pub index: Index,
}

impl fmt::Display for FaultPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {} offset {} lsn {} index {}", self.file, self.offset, self.lsn, self.index)
    }
}

/// Why recovery refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoverError {
    /// The environment failed a read.
    Media(MediaError),
    /// No copy of the hard state can be read, but the directory was used.
    HardStateLost {
        /// A file that shows it.
        file: String,
    },
    /// Written by a version with another format.
    OtherVersion {
        /// The file.
        file: String,
        /// The version it names.
        version: u32,
    },
    /// A segment of another cluster, member or incarnation, or under another slot's name.
    Foreign {
        /// The file.
        file: String,
    },
    /// A segment file is shorter than its header says.
    Truncated {
        /// The file.
        file: String,
        /// Its length in bytes.
        bytes: u64,
        /// The length its header names.
        expected: u64,
    },
    /// Records stand in a segment whose own header is unreadable or older than they are.
    SegmentHeaderLost(FaultPlace),
    /// A segment that the log was written to is not there.
    SegmentLost(FaultPlace),
    /// Something known to have been durable is missing or damaged.
    Rot {
        /// Where.
        place: FaultPlace,
        /// The LSN known to have been durable.
        watermark: Lsn,
    },
    /// An intact record that does not continue its predecessor.
    BrokenChain {
        /// Where.
        place: FaultPlace,
        /// What does not fit.
        reason: &'static str,
    },
    /// The log ends, or begins, on the wrong side of an index it must hold.
    Missing {
        /// Where the log would have to go on.
        place: FaultPlace,
        /// The index that a checkpoint or the hard state proves.
        needed: Index,
    },
}

impl RecoverError {
    /// The place in the log, if the refusal is about one.
    #[must_use]
    pub fn place(&self) -> Option<&FaultPlace> {
        match self {
            Self::SegmentHeaderLost(place)
            | Self::SegmentLost(place)
            | Self::Rot { place, .. }
            | Self::BrokenChain { place, .. }
            | Self::Missing { place, .. } => Some(place),
            _ => None,
        }
    }
}

impl From<MediaError> for RecoverError {
    fn from(error: MediaError) -> Self {
        Self::Media(error)
    }
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Media(error) => write!(f, "the log cannot be read: {}", error.reason),
            Self::HardStateLost { file } => {
                write!(f, "both copies of the hard state are unreadable, but {file} shows that the directory was used")
            }
            Self::OtherVersion { file, version } => write!(f, "{file} has format version {version}"),
            Self::Foreign { file } => write!(f, "{file} at offset 0 belongs to another member, data directory or slot"),
            Self::Truncated { file, bytes, expected } => {
                write!(f, "{file} is {bytes} bytes long, but its header says {expected}")
            }
            Self::SegmentHeaderLost(place) => write!(f, "the segment's header is lost: {place}"),
            Self::SegmentLost(place) => write!(f, "a segment that the log was written to is lost: {place}"),
            Self::Rot { place, watermark } => {
                write!(f, "an acknowledged record is damaged or lost: {place} (durable up to lsn {watermark})")
            }
            Self::BrokenChain { place, reason } => write!(f, "the log's chain is broken ({reason}): {place}"),
            Self::Missing { place, needed } => write!(f, "the log does not hold index {needed}: {place}"),
        }
    }
}

impl std::error::Error for RecoverError {}

/// A record of the scan.
#[derive(Clone, Debug)]
struct Found {
    slot: u32,
    header: RecordHeader,
    local: Digest,
    whole: bool,
    /// The entries' payloads, kept only if one of them may be returned.
    payloads: Vec<Arc<Vec<u8>>>,
}

impl Found {
    fn place(&self) -> FaultPlace {
        FaultPlace {
            file: segment_file_name(self.slot),
            offset: self.header.offset,
            lsn: self.header.lsn,
            index: self.header.first_index(),
        }
    }

    fn end(&self) -> u64 {
        self.header.offset + self.header.record_bytes()
    }
}

/// A slot and what its header says, `None` if it has none.
#[derive(Clone, Copy, Debug)]
struct Slot {
    slot: u32,
    bytes: u64,
    header: Option<SegmentHeader>,
}

/// Reads the log.
///
/// # Errors
/// See [`RecoverError`]; every refusal names what an operator needs to know.
pub fn recover(media: &mut dyn LogMedia, options: &RecoverOptions) -> Result<Recovered, RecoverError> {
    let attempt =
        |media: &mut dyn LogMedia, discard_from| recover_once(media, RecoverOptions { discard_from, ..*options });
    let refused = match attempt(media, None) {
        Ok(recovered) => return Ok(recovered),
        Err(error) => error,
    };
    let Some(order) = options.discard_from else { return Err(refused) };
    // Behind the fault named first there may be an earlier one: what would be named after giving up the first?
    let mut fault = refused.place().map(|place| place.lsn);
    while let Some(lsn) = fault.filter(|lsn| *lsn >= order) {
        if lsn == order {
            return attempt(media, Some(order));
        }
        let earlier = attempt(media, Some(lsn)).err();
        fault = earlier.and_then(|error| error.place().map(|place| place.lsn)).filter(|earlier| *earlier < lsn);
    }
    Err(refused)
}

fn recover_once(media: &mut dyn LogMedia, options: RecoverOptions) -> Result<Recovered, RecoverError> {
    let (hard_state, first_copy) = recover_hard_state(media)?;
    let mut files = media.segments()?;
    files.sort_by_key(|file| file.slot);
    let Some(mut hard_state) = hard_state else {
        if options.after > Index::ZERO {
            return Err(RecoverError::HardStateLost { file: "a checkpoint".to_owned() });
        }
        return recover_unused(media, &files, first_copy);
    };
    let mut scan = Scan::new(hard_state, options);
    for file in &files {
        scan.read_segment(media, *file)?;
    }
    let kept = scan.keep();
    let watermark = scan.watermark(&kept);
    let walked = scan.walk(&kept, watermark)?;
    scan.check_seals(&walked)?;
    scan.check_newest(&walked)?;
    let last = walked.log.last();
    let needed = options.after.max(hard_state.commit);
    let beyond = last.index < options.after || (last.index < needed && options.discard_from.is_none());
    if beyond {
        return Err(RecoverError::Missing { place: scan.place_after(walked.last.as_ref(), &kept), needed });
    }
    let log_term = walked.term.max(last.term);
    if log_term > hard_state.term {
        hard_state.term = log_term;
        hard_state.vote = None;
    }
    hard_state.commit = hard_state.commit.max(walked.commit_hint).max(options.after).min(last.index);
    let dropped = scan.dropped(&kept, walked.last_lsn);
    let layout = scan.layout(&kept, &walked, dropped, hard_state.boot_number);
    Ok(Recovered {
        hard_state: Some(hard_state),
        first_copy,
        base: walked.log.base,
        entries: walked.log.entries,
        last_lsn: walked.last_lsn,
        local_digest: walked.local_digest,
        dropped,
        layout,
    })
}

/// Step 1. Also says which copy is to be written first.
fn recover_hard_state(media: &mut dyn LogMedia) -> Result<(Option<HardState>, u8), RecoverError> {
    let mut copies = [HardStateCopy::Absent; 2];
    for copy in 0..2u8 {
        let bytes = media.read_hard_state(copy)?;
        copies[usize::from(copy)] = HardState::decode(bytes.as_deref());
        if let HardStateCopy::OtherVersion(version) = copies[usize::from(copy)] {
            return Err(RecoverError::OtherVersion { file: hard_state_file_name(copy), version });
        }
    }
    match copies {
        [HardStateCopy::Valid(a), HardStateCopy::Valid(b)] if a.identity != b.identity => {
            Err(RecoverError::Foreign { file: hard_state_file_name(1) })
        }
        [HardStateCopy::Valid(a), HardStateCopy::Valid(b)] if b.generation > a.generation => Ok((Some(b), 0)),
        [HardStateCopy::Valid(a), _] => Ok((Some(a), 1)),
        [_, HardStateCopy::Valid(b)] => Ok((Some(b), 0)),
        [HardStateCopy::Absent, HardStateCopy::Absent] => Ok((None, 0)),
        _ => Err(RecoverError::HardStateLost { file: hard_state_file_name(0) }),
    }
}

/// A directory without hard state: unused, unless a segment proves otherwise.
fn recover_unused(media: &mut dyn LogMedia, files: &[SegmentFile], first_copy: u8) -> Result<Recovered, RecoverError> {
    let mut layout = SegmentLayout::empty();
    for file in files {
        let bytes = media.read(file.slot, 0, usable(file.bytes))?;
        let mut sectors = bytes.chunks_exact(SECTOR);
        let used = |sector: &[u8]| {
            SegmentHeader::decode(sector) != SegmentSector::Invalid || RecordHeader::decode(sector).is_some()
        };
        if sectors.any(used) {
            return Err(RecoverError::HardStateLost { file: segment_file_name(file.slot) });
        }
        layout.free.push(FreeSlot { slot: file.slot, file_bytes: file.bytes, created: false });
        layout.slots_end = layout.slots_end.max(file.slot.saturating_add(1));
    }
    Ok(Recovered {
        hard_state: None,
        first_copy,
        base: LogPosition::default(),
        entries: Vec::new(),
        last_lsn: Lsn::ZERO,
        local_digest: Digest::ZERO,
        dropped: None,
        layout,
    })
}

/// The part of a file that can hold blocks.
fn usable(bytes: u64) -> usize {
    let bytes = bytes.min(SEGMENT_BYTES_MAX);
    usize::try_from(bytes - bytes % BLOCK_BYTES).expect("at most 1 GiB")
}

/// Everything found, and the rules that judge it.
struct Scan {
    identity: Identity,
    options: RecoverOptions,
    slots: Vec<Slot>,
    records: Vec<Found>,
    highest_sequence: SegmentSequence,
}

impl Scan {
    fn new(hard_state: HardState, options: RecoverOptions) -> Self {
        Self {
            identity: hard_state.identity,
            options,
            slots: Vec::new(),
            records: Vec::new(),
            highest_sequence: SegmentSequence::ZERO,
        }
    }

    fn is_discarded(&self, lsn: Lsn) -> bool {
        self.options.discard_from.is_some_and(|from| lsn >= from)
    }

    /// Steps 2 and 3 for one file.
    fn read_segment(&mut self, media: &mut dyn LogMedia, file: SegmentFile) -> Result<(), RecoverError> {
        let bytes = media.read(file.slot, 0, usable(file.bytes))?;
        let mut header = self.read_segment_header(file, &bytes)?;
        let end = header.map_or(bytes.len(), |header| usable(header.file_bytes));
        let bytes = bytes.get(..end).unwrap_or(&bytes);
        let mut current = Vec::new();
        // Newer than the header: the proof that the header's write was lost, unless the operator gives them up.
        let mut orphans: Vec<Found> = Vec::new();
        let sequence = header.map_or(SegmentSequence::ZERO, |header| header.sequence);
        self.highest_sequence = self.highest_sequence.max(sequence);
        for found in self.scan_records(file.slot, sequence, bytes) {
            if header.is_some() && found.header.sequence == sequence {
                current.push(found);
            } else if header.is_none() || found.header.sequence > sequence {
                self.highest_sequence = self.highest_sequence.max(found.header.sequence);
                orphans.push(found);
            }
        }
        let lost = orphans.iter().filter(|found| !self.is_discarded(found.header.lsn));
        if let Some(found) = lost.min_by_key(|found| found.header.lsn) {
            return Err(RecoverError::SegmentHeaderLost(found.place()));
        }
        if !orphans.is_empty() && current.is_empty() {
            header = None;
        }
        self.records.append(&mut current);
        self.slots.push(Slot { slot: file.slot, bytes: file.bytes, header });
        Ok(())
    }

    fn read_segment_header(&self, file: SegmentFile, bytes: &[u8]) -> Result<Option<SegmentHeader>, RecoverError> {
        let name = || segment_file_name(file.slot);
        let copies = [bytes.get(..SECTOR), bytes.get(BLOCK - SECTOR..BLOCK)];
        let mut newest: Option<SegmentHeader> = None;
        for sector in copies.into_iter().flatten() {
            match SegmentHeader::decode(sector) {
                SegmentSector::Invalid => {}
                SegmentSector::OtherVersion(version) => {
                    return Err(RecoverError::OtherVersion { file: name(), version });
                }
                SegmentSector::Valid(header) => {
                    if header.identity != self.identity || header.slot != file.slot {
                        return Err(RecoverError::Foreign { file: name() });
                    }
                    if newest.is_none_or(|newest| newest.sequence < header.sequence) {
                        newest = Some(header);
                    }
                }
            }
        }
        match newest {
            Some(header) if header.file_bytes > file.bytes => {
                Err(RecoverError::Truncated { file: name(), bytes: file.bytes, expected: header.file_bytes })
            }
            newest => Ok(newest),
        }
    }

    /// All records of this identity at their own offset, whatever their sequence. Only those of the segment's own
    /// `sequence` keep the scan out of their blocks: a stale one may be cut by what overwrote it.
    fn scan_records(&self, slot: u32, sequence: SegmentSequence, bytes: &[u8]) -> Vec<Found> {
        let mut found = Vec::new();
        let mut free_from = BLOCK;
        let mut at = BLOCK;
        while at + BLOCK <= bytes.len() {
            let block_end = at + BLOCK;
            let by_header =
                self.read_record(slot, bytes, at..at + SECTOR).filter(|found| found.header.offset == at as u64);
            let by_trailer = || {
                self.read_record(slot, bytes, block_end - SECTOR..block_end)
                    .filter(|found| found.end() == block_end as u64 && found.header.offset >= free_from as u64)
            };
            at = block_end;
            let stale = by_header.as_ref().is_some_and(|found| found.header.sequence != sequence);
            let record = if stale { by_trailer().or(by_header) } else { by_header.or_else(by_trailer) };
            let Some(record) = record else { continue };
            if record.header.sequence == sequence {
                free_from = usize::try_from(record.end()).expect("within the bytes read");
                at = at.max(free_from);
            }
            found.push(record);
        }
        found
    }

    /// Reads the record that the header or trailer in `sector` describes, if its bytes lie within the file.
    fn read_record(&self, slot: u32, bytes: &[u8], sector: std::ops::Range<usize>) -> Option<Found> {
        let sector = bytes.get(sector)?;
        let header = RecordHeader::decode(sector).filter(|header| header.identity == self.identity)?;
        let start = usize::try_from(header.offset).ok()?;
        let end = start.checked_add(usize::try_from(header.record_bytes()).ok()?)?;
        let record = bytes.get(start..end)?;
        let payload = record.get(SECTOR..SECTOR + header.payload_bytes())?;
        let whole = crc32fast::hash(payload) == header.payload_crc;
        let mut payloads = Vec::new();
        if whole && header.last_index() > self.options.after {
            let mut rest = payload;
            for row in &header.rows {
                let (entry, after) = rest.split_at(row.payload_bytes as usize);
                payloads.push(Arc::new(entry.to_vec()));
                rest = after;
            }
        }
        Some(Found { slot, local: local_digest(sector), header, whole, payloads })
    }

    fn seals(&self) -> impl Iterator<Item = (SegmentSequence, Seal)> + '_ {
        self.slots.iter().filter_map(|slot| slot.header).filter_map(|header| Some((header.sequence, header.seal?)))
    }

    /// True if neither a later seal nor the operator gave up `lsn` of the segment `sequence` (step 4).
    fn is_kept(&self, sequence: SegmentSequence, lsn: Lsn) -> bool {
        let sealed_off = self.seals().any(|(sealing, seal)| sealing > sequence && seal.after < lsn);
        !sealed_off && !self.is_discarded(lsn)
    }

    /// The records that count, by LSN.
    fn keep(&self) -> Vec<Found> {
        let counts = |found: &&Found| self.is_kept(found.header.sequence, found.header.lsn);
        let mut kept: Vec<Found> = self.records.iter().filter(counts).cloned().collect();
        kept.sort_by_key(|found| (found.header.lsn, found.header.sequence));
        kept
    }

    /// Step 5.
    fn watermark(&self, kept: &[Found]) -> Lsn {
        let records = kept.iter().map(|found| found.header.watermark);
        let seals = self.seals().filter(|(sequence, seal)| self.is_kept(*sequence, seal.after));
        records.chain(seals.map(|(_, seal)| seal.after)).max().unwrap_or(Lsn::ZERO)
    }

    /// Steps 6 to 9.
    fn walk(&self, kept: &[Found], watermark: Lsn) -> Result<Walked, RecoverError> {
        let kept = &kept[..proven_end(kept, watermark)];
        let reaches = |found: &Found| found.whole && found.header.first_index() <= self.options.after.next();
        let base = kept.iter().rposition(reaches);
        let mut walked = match base {
            Some(base) => Walked::from_base(&kept[base], self.options.after)?,
            None if self.options.after == Index::ZERO => Walked::from_nothing(),
            None => {
                let place = kept.first().map_or_else(|| self.place_after(None, kept), |first| self.place_before(first));
                return Err(RecoverError::Missing { place, needed: self.options.after });
            }
        };
        for found in &kept[base.map_or(0, |base| base + 1)..] {
            let lsn = walked.last_lsn.next();
            if found.header.lsn < lsn {
                let reason = "two records have one LSN";
                return Err(RecoverError::BrokenChain { place: found.place(), reason });
            }
            let hole = if found.header.lsn > lsn {
                Some(self.place_after(walked.last.as_ref(), kept))
            } else {
                (!found.whole).then(|| found.place())
            };
            match hole {
                None => walked.take(found)?,
                Some(place) if lsn <= watermark => return Err(RecoverError::Rot { place, watermark }),
                Some(_) => return Ok(walked),
            }
        }
        if walked.last_lsn < watermark {
            return Err(RecoverError::Rot { place: self.place_after(walked.last.as_ref(), kept), watermark });
        }
        Ok(walked)
    }

    /// A seal that names an LSN of the walk must name its digest.
    fn check_seals(&self, walked: &Walked) -> Result<(), RecoverError> {
        for (sequence, seal) in self.seals().filter(|(sequence, seal)| self.is_kept(*sequence, seal.after)) {
            let at = walked.locals.binary_search_by_key(&seal.after, |(lsn, _)| *lsn);
            if at.is_ok_and(|at| walked.locals[at].1 != seal.digest) {
                let slot = self.slots.iter().find(|slot| slot.header.is_some_and(|h| h.sequence == sequence));
                let place = FaultPlace {
                    file: segment_file_name(slot.map_or(0, |slot| slot.slot)),
                    offset: 0,
                    lsn: seal.after,
                    index: walked.log.last().index,
                };
                return Err(RecoverError::BrokenChain { place, reason: "a sealing header names another digest" });
            }
        }
        Ok(())
    }

    fn headers(&self) -> impl Iterator<Item = SegmentHeader> + '_ {
        self.slots.iter().filter_map(|slot| slot.header)
    }

    /// The segment that a header names as the one before it, if that is not there.
    fn lost_before(&self, header: &SegmentHeader) -> Option<PreviousSegment> {
        header.previous.filter(|previous| !self.headers().any(|found| found.sequence == previous.sequence))
    }

    /// A segment is made ready while the one before it is written to, and that one is not recycled before the ready
    /// one holds a durable record. So the newest segment, still unused, proves the one before it: no watermark does if
    /// all of that is lost together.
    fn check_newest(&self, walked: &Walked) -> Result<(), RecoverError> {
        let newest = self.headers().max_by_key(|header| header.sequence);
        let unused = newest.filter(|newest| !self.records.iter().any(|it| it.header.sequence == newest.sequence));
        let Some(lost) = unused.and_then(|newest| self.lost_before(&newest)) else { return Ok(()) };
        let place = FaultPlace {
            file: segment_file_name(lost.slot),
            offset: 0,
            lsn: walked.last_lsn.next(),
            index: walked.log.last().index.next(),
        };
        if self.is_discarded(place.lsn) { Ok(()) } else { Err(RecoverError::SegmentLost(place)) }
    }

    /// Where a log that begins too late breaks off: in the segment before its first record, if that is not there.
    fn place_before(&self, first: &Found) -> FaultPlace {
        let header = self.headers().find(|header| header.sequence == first.header.sequence);
        match header.and_then(|header| self.lost_before(&header)) {
            Some(lost) => FaultPlace { file: segment_file_name(lost.slot), offset: 0, ..first.place() },
            None => first.place(),
        }
    }

    /// Where the record after `last` should stand.
    fn place_after(&self, last: Option<&Found>, kept: &[Found]) -> FaultPlace {
        let Some(last) = last else {
            let oldest = self.slots.iter().filter(|slot| slot.header.is_some());
            let oldest = oldest.min_by_key(|slot| slot.header.map(|header| header.sequence));
            let lost = oldest.and_then(|slot| self.lost_before(&slot.header?));
            let (slot, offset) = match (lost, oldest) {
                (Some(lost), _) => (lost.slot, 0),
                (None, oldest) => (oldest.map_or(0, |slot| slot.slot), BLOCK_BYTES),
            };
            return FaultPlace { file: segment_file_name(slot), offset, lsn: Lsn(1), index: Index(1) };
        };
        let mut place = FaultPlace {
            file: segment_file_name(last.slot),
            offset: last.end(),
            lsn: last.header.lsn.next(),
            index: last.header.last_index().next(),
        };
        // If the next record known stands in a later segment, a segment between the two must have held this one.
        let next = kept.iter().find(|found| found.header.lsn > last.header.lsn);
        let between = |header: &SegmentHeader| {
            let before = |next: &Found| {
                header.sequence < next.header.sequence
                    || (header.sequence == next.header.sequence && next.header.offset > BLOCK_BYTES)
            };
            header.sequence > last.header.sequence && next.is_some_and(before)
        };
        if let Some(header) = self.headers().filter(between).min_by_key(|header| header.sequence) {
            place.file = segment_file_name(header.slot);
            place.offset = BLOCK_BYTES;
        }
        // Or that segment is not there at all, and a later one names it. What it sealed off may count again.
        let lost = self.headers().filter_map(|header| self.lost_before(&header));
        let lost = lost.filter(|lost| lost.sequence > last.header.sequence);
        if let Some(lost) = lost.min_by_key(|lost| lost.sequence) {
            place.file = segment_file_name(lost.slot);
            place.offset = 0;
        }
        place
    }

    fn dropped(&self, kept: &[Found], last_lsn: Lsn) -> Option<DroppedTail> {
        let torn = kept.iter().filter(|found| found.header.lsn > last_lsn).count();
        let discarded = self.records.iter().filter(|found| self.is_discarded(found.header.lsn)).count();
        let records = (torn + discarded) as u64;
        (records > 0).then(|| DroppedTail { first_lsn: last_lsn.next(), records })
    }

    /// Step 11.
    fn layout(
        &self,
        kept: &[Found],
        walked: &Walked,
        dropped: Option<DroppedTail>,
        boot_number: BootNumber,
    ) -> SegmentLayout {
        let mut layout = SegmentLayout { highest_sequence: self.highest_sequence, ..SegmentLayout::empty() };
        for slot in &self.slots {
            layout.slots_end = layout.slots_end.max(slot.slot.saturating_add(1));
            let header = slot.header;
            let held = |found: &&Found| found.slot == slot.slot && found.header.lsn <= walked.last_lsn;
            let first_lsn = kept.iter().filter(held).map(|found| found.header.lsn).min();
            let last_index = kept.iter().filter(held).map(|found| found.header.last_index()).max();
            let end = kept.iter().filter(held).map(Found::end).max();
            match (header, first_lsn, last_index) {
                (Some(header), Some(first_lsn), Some(last_index)) => layout.live.push(LiveSegment {
                    slot: slot.slot,
                    sequence: header.sequence,
                    file_bytes: header.file_bytes,
                    first_lsn,
                    last_index,
                    end: end.unwrap_or(BLOCK_BYTES),
                }),
                (Some(header), ..) => {
                    let free = FreeSlot { slot: slot.slot, file_bytes: header.file_bytes, created: true };
                    layout.free.push(free);
                }
                (None, ..) => {
                    layout.free.push(FreeSlot { slot: slot.slot, file_bytes: slot.bytes, created: false });
                }
            }
        }
        layout.live.sort_by_key(|segment| segment.sequence);
        // Oldest life first: should a killed process still write somewhere, it is where it wrote last.
        let sequence =
            |slot: u32| self.slots.iter().find(|s| s.slot == slot).and_then(|s| s.header).map(|h| h.sequence);
        layout.free.sort_by_key(|free| (!free.created, sequence(free.slot), free.slot));
        let stopped = walked.last.as_ref().filter(|last| {
            last.header.record_type == RecordType::Stop
                && last.header.boot_number == boot_number
                && !self.seals().any(|(sequence, _)| sequence > last.header.sequence)
        });
        if let (Some(last), None) = (stopped, dropped) {
            layout.tail = Tail::Continue { offset: last.end() };
        }
        layout
    }
}

/// How many of the records by LSN stand before the first hole above every watermark: that hole is a tear wherever the
/// walk begins, so what is kept does not depend on the checkpoint.
fn proven_end(kept: &[Found], watermark: Lsn) -> usize {
    // Before the first record lies what was freed.
    let mut expected = kept.first().map_or(Lsn::ZERO, |found| found.header.lsn).max(watermark.next());
    for (at, found) in kept.iter().enumerate().skip_while(|(_, found)| found.header.lsn <= watermark) {
        if found.header.lsn > expected || !found.whole {
            return at;
        }
        expected = found.header.lsn.next();
    }
    kept.len()
}

/// Entries after a base position.
struct Log {
    base: LogPosition,
    entries: Vec<Entry>,
}

impl Log {
    fn last(&self) -> LogPosition {
        self.entries.last().map_or(self.base, Entry::position)
    }

    /// The position at `index`, if it lies within.
    fn position(&self, index: Index) -> Option<LogPosition> {
        if index == self.base.index {
            return Some(self.base);
        }
        let at = index.0.checked_sub(self.base.index.0)?.checked_sub(1)?;
        self.entries.get(usize::try_from(at).ok()?).map(Entry::position)
    }
}

/// The walk's state: the log up to an LSN.
struct Walked {
    log: Log,
    last_lsn: Lsn,
    local_digest: Digest,
    last: Option<Found>,
    locals: Vec<(Lsn, Digest)>,
    commit_hint: Index,
    term: Term,
}

impl Walked {
    fn from_nothing() -> Self {
        Self {
            log: Log { base: LogPosition::default(), entries: Vec::new() },
            last_lsn: Lsn::ZERO,
            local_digest: Digest::ZERO,
            last: None,
            locals: Vec::new(),
            commit_hint: Index::ZERO,
            term: Term::ZERO,
        }
    }

    fn from_base(found: &Found, after: Index) -> Result<Self, RecoverError> {
        let header = &found.header;
        let mut walked = Self::from_nothing();
        // The last position at or before `after` that the record knows; `after` lies beyond it only in a log too short.
        let skipped = after.0.saturating_sub(header.previous.index.0).min(header.rows.len() as u64);
        let skipped = usize::try_from(skipped).expect("at most 16 rows");
        walked.log.base = match skipped.checked_sub(1) {
            None => header.previous,
            Some(row) => LogPosition {
                index: Index(header.previous.index.0 + skipped as u64),
                term: header.term,
                digest: header.rows[row].digest,
            },
        };
        walked.push_entries(found, skipped)?;
        walked.note(found);
        Ok(walked)
    }

    fn take(&mut self, found: &Found) -> Result<(), RecoverError> {
        let broken = |reason| Err(RecoverError::BrokenChain { place: found.place(), reason });
        let header = &found.header;
        if header.previous_local != self.local_digest {
            return broken("local digest");
        }
        if header.record_type.is_mark() && header.previous != self.log.last() {
            return broken("a mark names another end of the log");
        }
        if self.log.position(header.previous.index) != Some(header.previous) {
            return broken("the preceding entry differs");
        }
        let kept = header.previous.index.0 - self.log.base.index.0;
        self.log.entries.truncate(usize::try_from(kept).expect("within the entries held"));
        self.push_entries(found, 0)?;
        self.note(found);
        Ok(())
    }

    fn push_entries(&mut self, found: &Found, skipped: usize) -> Result<(), RecoverError> {
        let RecordType::Entries(entry_type) = found.header.record_type else { return Ok(()) };
        let rows = found.header.rows.iter().skip(skipped);
        for (row, payload) in rows.zip(found.payloads.iter().skip(skipped)) {
            let last = self.log.last();
            let payload = Arc::clone(payload);
            let entry = Entry::new(last.digest, last.index.next(), found.header.term, entry_type, payload);
            if entry.digest != row.digest {
                return Err(RecoverError::BrokenChain { place: found.place(), reason: "replicated digest" });
            }
            self.log.entries.push(entry);
        }
        assert!(self.log.last().index >= self.log.base.index, "I4: entries follow the base");
        Ok(())
    }

    fn note(&mut self, found: &Found) {
        self.last_lsn = found.header.lsn;
        self.local_digest = found.local;
        self.locals.push((found.header.lsn, found.local));
        self.commit_hint = self.commit_hint.max(found.header.commit_hint);
        self.term = self.term.max(found.header.term);
        self.last = Some(Found { payloads: Vec::new(), header: found.header.clone(), ..*found });
    }
}
