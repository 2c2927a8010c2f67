//! Bytes of segment headers and records; docs/format/wal.md sections 3 and 4.
//!
//! Owns: offsets, encoding, decoding, digests of headers. Does not know: which segment or LSN comes next, what a
//! decoded record means for recovery.
//!
//! Invariants
//! - I1: what `encode` writes, `decode` reads back equal; anything else decodes to `None`, never to a panic.
//! - I2: a decoded header's lengths agree with each other and are bounded before anything is allocated.
//! - I3: header and trailer of a record are equal bytes, in its first and in its last sector.

use xxhash_rust::xxh3::xxh3_128;

use crate::entry::{EntryType, LogPosition};
use crate::ids::{BootNumber, ClusterId, Digest, Identity, Incarnation, Index, Lsn, MemberId, SegmentSequence, Term};
use crate::options::SEGMENT_BYTES_MAX;

/// Alignment of records, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// The unit a disk writes atomically, in bytes; a header fills one.
pub const SECTOR_BYTES: u64 = 512;
/// Entries in one record.
pub const ENTRIES_PER_RECORD_MAX: usize = 16;
/// The format version written and the only one read.
pub const FORMAT_VERSION: u32 = 1;

const SECTOR: usize = SECTOR_BYTES as usize;
const BLOCK: usize = BLOCK_BYTES as usize;
const CRC: usize = SECTOR - 4;

const SEGMENT_MAGIC: &[u8; 8] = b"TRILWSEG";
const SEGMENT_VERSION: usize = 8;
const SEGMENT_FLAGS: usize = 12;
const SEGMENT_IDENTITY: usize = 16;
const SEGMENT_SLOT: usize = 40;
const SEGMENT_SEQUENCE: usize = 48;
const SEGMENT_FILE_BYTES: usize = 56;
const SEGMENT_BOOT: usize = 64;
const SEGMENT_SEAL_LSN: usize = 72;
const SEGMENT_SEAL_DIGEST: usize = 80;
const SEGMENT_PREVIOUS: usize = 96;
const SEGMENT_PREVIOUS_SLOT: usize = 104;
const FLAG_SEALING: u32 = 1;

const RECORD_MAGIC: &[u8; 4] = b"TRWR";
const RECORD_TYPE: usize = 4;
const RECORD_ENTRIES: usize = 5;
const RECORD_SEQUENCE: usize = 8;
const RECORD_OFFSET: usize = 16;
const RECORD_LSN: usize = 24;
const RECORD_BOOT: usize = 32;
const RECORD_IDENTITY: usize = 40;
const RECORD_FIRST: usize = 64;
const RECORD_LAST: usize = 72;
const RECORD_TERM: usize = 80;
const RECORD_PREVIOUS_TERM: usize = 88;
const RECORD_PREVIOUS_DIGEST: usize = 96;
const RECORD_WATERMARK: usize = 112;
const RECORD_COMMIT: usize = 120;
const RECORD_LOCAL: usize = 128;
const RECORD_BYTES: usize = 144;
const RECORD_PAYLOAD_BYTES: usize = 148;
const RECORD_PAYLOAD_CRC: usize = 152;
const RECORD_ROWS: usize = 160;
const ROW: usize = 20;

const _: () = assert!(RECORD_ROWS + ENTRIES_PER_RECORD_MAX * ROW <= CRC, "the rows end before the checksum");
const _: () = assert!(SEGMENT_PREVIOUS_SLOT + 4 <= CRC, "the segment header ends before the checksum");

/// Length on disk of a record with `payload_bytes` of payload.
#[must_use]
pub fn record_bytes(payload_bytes: usize) -> u64 {
    (payload_bytes as u64 + 2 * SECTOR_BYTES).next_multiple_of(BLOCK_BYTES)
}

/// "Everything above `after` in segments of lower sequences is void."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The last LSN kept.
    pub after: Lsn,
    /// The local digest of its record.
    pub digest: Digest,
}

/// The segment that was written to when a later one was made ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreviousSegment {
    /// Its number.
    pub sequence: SegmentSequence,
    /// Its file.
    pub slot: u32,
}

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose it is.
    pub identity: Identity,
    /// The file it stands in.
    pub slot: u32,
    /// The segment's number.
    pub sequence: SegmentSequence,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// The start that wrote it.
    pub boot_number: BootNumber,
    /// Present if it voids a tail.
    pub seal: Option<Seal>,
    /// Absent in the first segment of a directory.
    pub previous: Option<PreviousSegment>,
}

/// What a header sector turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentSector {
    /// A header of this format.
    Valid(SegmentHeader),
    /// Intact, but of another format version.
    OtherVersion(u32),
    /// No header.
    Invalid,
}

impl SegmentHeader {
    /// The 4096 bytes of the header block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut sector = [0u8; SECTOR];
        sector[..8].copy_from_slice(SEGMENT_MAGIC);
        put_u32(&mut sector, SEGMENT_VERSION, FORMAT_VERSION);
        put_identity(&mut sector, SEGMENT_IDENTITY, self.identity);
        put_u32(&mut sector, SEGMENT_SLOT, self.slot);
        put_u64(&mut sector, SEGMENT_SEQUENCE, self.sequence.0);
        put_u64(&mut sector, SEGMENT_FILE_BYTES, self.file_bytes);
        put_u64(&mut sector, SEGMENT_BOOT, self.boot_number.0);
        if let Some(seal) = self.seal {
            put_u32(&mut sector, SEGMENT_FLAGS, FLAG_SEALING);
            put_u64(&mut sector, SEGMENT_SEAL_LSN, seal.after.0);
            put_u128(&mut sector, SEGMENT_SEAL_DIGEST, seal.digest.0);
        }
        if let Some(previous) = self.previous {
            put_u64(&mut sector, SEGMENT_PREVIOUS, previous.sequence.0);
            put_u32(&mut sector, SEGMENT_PREVIOUS_SLOT, previous.slot);
        }
        put_checksum(&mut sector);
        let mut block = vec![0u8; BLOCK];
        block[..SECTOR].copy_from_slice(&sector);
        block[BLOCK - SECTOR..].copy_from_slice(&sector);
        block
    }

    /// Reads one 512-byte sector.
    #[must_use]
    pub fn decode(sector: &[u8]) -> SegmentSector {
        if sector.len() != SECTOR || !sector.starts_with(SEGMENT_MAGIC) || !checksum_holds(sector) {
            return SegmentSector::Invalid;
        }
        let version = get_u32(sector, SEGMENT_VERSION);
        if version != FORMAT_VERSION {
            return SegmentSector::OtherVersion(version);
        }
        let sealing = get_u32(sector, SEGMENT_FLAGS) & FLAG_SEALING != 0;
        let seal = Seal {
            after: Lsn(get_u64(sector, SEGMENT_SEAL_LSN)),
            digest: Digest(get_u128(sector, SEGMENT_SEAL_DIGEST)),
        };
        let previous = PreviousSegment {
            sequence: SegmentSequence(get_u64(sector, SEGMENT_PREVIOUS)),
            slot: get_u32(sector, SEGMENT_PREVIOUS_SLOT),
        };
        let header = Self {
            identity: get_identity(sector, SEGMENT_IDENTITY),
            slot: get_u32(sector, SEGMENT_SLOT),
            sequence: SegmentSequence(get_u64(sector, SEGMENT_SEQUENCE)),
            file_bytes: get_u64(sector, SEGMENT_FILE_BYTES),
            boot_number: BootNumber(get_u64(sector, SEGMENT_BOOT)),
            seal: sealing.then_some(seal),
            previous: (previous.sequence > SegmentSequence::ZERO).then_some(previous),
        };
        // Counters at the end of their range could not be followed; no honest header gets near.
        let sound = header.file_bytes.is_multiple_of(BLOCK_BYTES)
            && (2 * BLOCK_BYTES..=SEGMENT_BYTES_MAX).contains(&header.file_bytes)
            && header.sequence.0 < u64::MAX / 2
            && header.slot < u32::MAX / 2
            && seal.after.0 < u64::MAX / 2;
        if sound { SegmentSector::Valid(header) } else { SegmentSector::Invalid }
    }
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    /// Entries of one type.
    Entries(EntryType),
    /// Nothing but a watermark.
    Watermark,
    /// The last record of a boot that stopped gracefully.
    Stop,
}

impl RecordType {
    fn to_byte(self) -> u8 {
        match self {
            Self::Entries(entry_type) => entry_type as u8,
            Self::Watermark => 4,
            Self::Stop => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Entries(EntryType::Commands),
            2 => Self::Entries(EntryType::NoOp),
            3 => Self::Entries(EntryType::Configuration),
            4 => Self::Watermark,
            5 => Self::Stop,
            _ => return None,
        })
    }

    /// True for records without entries.
    #[must_use]
    pub fn is_mark(self) -> bool {
        matches!(self, Self::Watermark | Self::Stop)
    }
}

/// One entry of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// Length of its payload.
    pub payload_bytes: u32,
    /// Its replicated digest.
    pub digest: Digest,
}

/// The header of a record, without the fields derived from its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it holds.
    pub record_type: RecordType,
    /// The segment's number.
    pub sequence: SegmentSequence,
    /// Where it starts in its file.
    pub offset: u64,
    /// Its number.
    pub lsn: Lsn,
    /// The start that wrote it.
    pub boot_number: BootNumber,
    /// Whose it is.
    pub identity: Identity,
    /// The log's position before its first entry.
    pub previous: LogPosition,
    /// Term of its entries.
    pub term: Term,
    /// Durable LSN when it was issued.
    pub watermark: Lsn,
    /// A commit index, at most the last index.
    pub commit_hint: Index,
    /// Local digest of its predecessor.
    pub previous_local: Digest,
    /// Length and digest of each entry.
    pub rows: Vec<EntryRow>,
    /// CRC of the payload.
    pub payload_crc: u32,
}

impl RecordHeader {
    /// Index of the first entry.
    #[must_use]
    pub fn first_index(&self) -> Index {
        self.previous.index.next()
    }

    /// Index of the last entry; the log's last index in a mark.
    #[must_use]
    pub fn last_index(&self) -> Index {
        Index(self.previous.index.0 + self.rows.len() as u64)
    }

    /// The log's position after the record.
    #[must_use]
    pub fn last_position(&self) -> LogPosition {
        self.rows.last().map_or(self.previous, |row| LogPosition {
            index: self.last_index(),
            term: self.term,
            digest: row.digest,
        })
    }

    /// Bytes of payload.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.rows.iter().map(|row| row.payload_bytes as usize).sum()
    }

    /// Bytes on disk.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.payload_bytes())
    }

    /// Lays out the whole record; also returns its local digest. `payload_crc` is computed, not read.
    ///
    /// # Panics
    /// If rows and payloads disagree: the caller made both.
    pub fn encode<'a>(&self, payloads: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Digest) {
        assert!(self.rows.len() <= ENTRIES_PER_RECORD_MAX, "a record has at most 16 entries");
        assert_eq!(self.rows.is_empty(), self.record_type.is_mark(), "marks and only marks have no entries");
        assert!(self.watermark < self.lsn, "a record cannot know of its own durability");
        assert!(self.commit_hint <= self.last_index(), "a commit hint stays within its batch");
        let record_bytes = self.record_bytes();
        let total = usize::try_from(record_bytes).expect("a record fits memory");
        let mut bytes = Vec::with_capacity(total);
        bytes.resize(SECTOR, 0);
        let mut count = 0;
        for payload in payloads {
            assert_eq!(payload.len(), self.rows[count].payload_bytes as usize, "rows describe the payloads");
            bytes.extend_from_slice(payload);
            count += 1;
        }
        assert_eq!(count, self.rows.len(), "one payload a row");
        let payload_bytes = bytes.len() - SECTOR;
        let crc = crc32fast::hash(&bytes[SECTOR..]);
        let sector = self.encode_sector(record_bytes, payload_bytes, crc);
        bytes[..SECTOR].copy_from_slice(&sector);
        bytes.resize(total - SECTOR, 0);
        bytes.extend_from_slice(&sector);
        assert_eq!(bytes.len() as u64, record_bytes, "I3: the trailer ends the record");
        (bytes, local_digest(&sector))
    }

    fn encode_sector(&self, record_bytes: u64, payload_bytes: usize, crc: u32) -> [u8; SECTOR] {
        let mut sector = [0u8; SECTOR];
        sector[..4].copy_from_slice(RECORD_MAGIC);
        sector[RECORD_TYPE] = self.record_type.to_byte();
        sector[RECORD_ENTRIES] = u8::try_from(self.rows.len()).expect("at most 16 rows");
        put_u64(&mut sector, RECORD_SEQUENCE, self.sequence.0);
        put_u64(&mut sector, RECORD_OFFSET, self.offset);
        put_u64(&mut sector, RECORD_LSN, self.lsn.0);
        put_u64(&mut sector, RECORD_BOOT, self.boot_number.0);
        put_identity(&mut sector, RECORD_IDENTITY, self.identity);
        put_u64(&mut sector, RECORD_FIRST, self.first_index().0);
        put_u64(&mut sector, RECORD_LAST, self.last_index().0);
        put_u64(&mut sector, RECORD_TERM, self.term.0);
        put_u64(&mut sector, RECORD_PREVIOUS_TERM, self.previous.term.0);
        put_u128(&mut sector, RECORD_PREVIOUS_DIGEST, self.previous.digest.0);
        put_u64(&mut sector, RECORD_WATERMARK, self.watermark.0);
        put_u64(&mut sector, RECORD_COMMIT, self.commit_hint.0);
        put_u128(&mut sector, RECORD_LOCAL, self.previous_local.0);
        put_u32(&mut sector, RECORD_BYTES, u32::try_from(record_bytes).expect("a record is below 4 GiB"));
        put_u32(&mut sector, RECORD_PAYLOAD_BYTES, u32::try_from(payload_bytes).expect("a payload is below 4 GiB"));
        put_u32(&mut sector, RECORD_PAYLOAD_CRC, crc);
        for (row, at) in self.rows.iter().zip((RECORD_ROWS..).step_by(ROW)) {
            put_u32(&mut sector, at, row.payload_bytes);
            put_u128(&mut sector, at + 4, row.digest.0);
        }
        put_checksum(&mut sector);
        sector
    }

    /// Reads one 512-byte sector; `None` unless every relation between the fields holds (I1, I2).
    #[must_use]
    pub fn decode(sector: &[u8]) -> Option<Self> {
        if sector.len() != SECTOR || !sector.starts_with(RECORD_MAGIC) || !checksum_holds(sector) {
            return None;
        }
        let record_type = RecordType::from_byte(sector[RECORD_TYPE])?;
        let count = usize::from(sector[RECORD_ENTRIES]);
        if count > ENTRIES_PER_RECORD_MAX || (count == 0) != record_type.is_mark() {
            return None;
        }
        let rows: Vec<EntryRow> = (0..count)
            .map(|row| RECORD_ROWS + row * ROW)
            .map(|at| EntryRow { payload_bytes: get_u32(sector, at), digest: Digest(get_u128(sector, at + 4)) })
            .collect();
        let payload_bytes: u64 = rows.iter().map(|row| u64::from(row.payload_bytes)).sum();
        if payload_bytes > SEGMENT_BYTES_MAX || payload_bytes != u64::from(get_u32(sector, RECORD_PAYLOAD_BYTES)) {
            return None;
        }
        let header = Self {
            record_type,
            sequence: SegmentSequence(get_u64(sector, RECORD_SEQUENCE)),
            offset: get_u64(sector, RECORD_OFFSET),
            lsn: Lsn(get_u64(sector, RECORD_LSN)),
            boot_number: BootNumber(get_u64(sector, RECORD_BOOT)),
            identity: get_identity(sector, RECORD_IDENTITY),
            previous: LogPosition {
                index: Index(get_u64(sector, RECORD_FIRST).checked_sub(1)?),
                term: Term(get_u64(sector, RECORD_PREVIOUS_TERM)),
                digest: Digest(get_u128(sector, RECORD_PREVIOUS_DIGEST)),
            },
            term: Term(get_u64(sector, RECORD_TERM)),
            watermark: Lsn(get_u64(sector, RECORD_WATERMARK)),
            commit_hint: Index(get_u64(sector, RECORD_COMMIT)),
            previous_local: Digest(get_u128(sector, RECORD_LOCAL)),
            rows,
            payload_crc: get_u32(sector, RECORD_PAYLOAD_CRC),
        };
        let last = header.previous.index.0.checked_add(count as u64)?;
        // An index or LSN at the end of its range could not be followed; no honest log gets near.
        let sound = last == get_u64(sector, RECORD_LAST)
            && last < u64::MAX / 2
            && header.lsn.0 < u64::MAX / 2
            && header.sequence.0 < u64::MAX / 2
            && header.term.0 < u64::MAX / 2
            && header.watermark < header.lsn
            && header.commit_hint.0 <= last
            && header.previous.term <= header.term
            && header.offset.is_multiple_of(BLOCK_BYTES)
            && (BLOCK_BYTES..SEGMENT_BYTES_MAX).contains(&header.offset)
            && u64::from(get_u32(sector, RECORD_BYTES)) == header.record_bytes();
        sound.then_some(header)
    }
}

/// The local digest of a record, from its header sector.
#[must_use]
pub fn local_digest(sector: &[u8]) -> Digest {
    Digest(xxh3_128(&sector[..CRC]))
}

/// Stores the checksum of a 512-byte sector in its last four bytes.
pub(crate) fn put_checksum(sector: &mut [u8]) {
    let crc = crc32fast::hash(&sector[..CRC]);
    put_u32(sector, CRC, crc);
}

/// True if the checksum in the last four bytes of a 512-byte sector holds.
pub(crate) fn checksum_holds(sector: &[u8]) -> bool {
    crc32fast::hash(&sector[..CRC]) == get_u32(sector, CRC)
}

pub(crate) fn put_identity(bytes: &mut [u8], at: usize, identity: Identity) {
    put_u64(bytes, at, identity.cluster_id.0);
    put_u64(bytes, at + 8, identity.member_id.0);
    put_u64(bytes, at + 16, identity.incarnation.0);
}

pub(crate) fn get_identity(bytes: &[u8], at: usize) -> Identity {
    Identity {
        cluster_id: ClusterId(get_u64(bytes, at)),
        member_id: MemberId(get_u64(bytes, at + 8)),
        incarnation: Incarnation(get_u64(bytes, at + 16)),
    }
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_u128(bytes: &mut [u8], at: usize, value: u128) {
    bytes[at..at + 16].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn get_u128(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}
