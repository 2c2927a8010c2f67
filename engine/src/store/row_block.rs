//! The bytes of the row log's blocks.
//!
//! Owns: the layout of row blocks, segment directories and the segment table. Does not know: where blocks stand, what
//! is in memory.
//!
//! Every block is a multiple of 4096 bytes, little-endian:
//! ```text
//! header   0 magic "TRWB"   4 crc u32 (CRC-32/IEEE of bytes 8..)   8 len u32   12 kind u8   13 format u8 = 1
//!         14 0 u16   16 count u32   20 last.sub u32   24 last.main i64                              (32 bytes)
//! rows     rows back to back from 32, zeros, and at the end of the block their offsets, u32 each, in order
//! row      0 main i64   8 sub u32   12 key len u32   16 create i64   24 version i64   32 lease i64   40 prev.main i64
//!         48 jump.main i64   56 prev.sub u32   60 jump.sub u32   64 value len u32   68 key, value
//! directory  count entries from 32: first.main i64, first.sub u32, offset u32, checksum u32, len u16, rows u16
//!          (24 bytes)
//! table    32 reclaim: from i64, to i64, next.main i64, next.sub u32, 0 u32 (32 bytes), then
//!          count records from 64: above.main i64, above.sub u32, file u32, used u32, blocks u32,
//!          directory: file u32, offset u32, len u32, checksum u32, rows u32, dead rows u32, dead bytes u64 (56 bytes)
//! ```
//! Offsets, lengths and `used` of directory and table are in units of 4096 bytes, but a directory's len is in bytes.
//!
//! Invariants
//! - I1: row offsets ascend and rows ascend in (main, sub).
//! - I2: reading never panics: a field that does not fit is [`Malformed`], whatever the checksum said.

use std::sync::atomic::{AtomicU16, Ordering};

use crate::store::key_entry::Revision;
use crate::store::row_log::{ReclaimCursor, RowLogRoot};

/// Blocks start and end on multiples of this.
pub(crate) const UNIT_BYTES: u64 = 4096;

const MAGIC: [u8; 4] = *b"TRWB";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 32;
const ROW_HEADER_BYTES: usize = 68;
const DIRECTORY_ENTRY_BYTES: usize = 24;
const TABLE_RECORD_BYTES: usize = 56;
const RECLAIM_BYTES: usize = 32;
/// Rows of a block at most: the directory counts them in 15 bits.
pub(crate) const BLOCK_ROWS_MAX: usize = 0x7fff;

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its address.
    pub at: Revision,
    /// The key.
    pub key: &'a [u8],
    /// The value; empty for a tombstone.
    pub value: &'a [u8],
    /// Creation revision of the generation; 0 for a tombstone.
    pub create: i64,
    /// Puts in the generation; 0 for a tombstone.
    pub version: i64,
    /// The lease, 0 for none.
    pub lease: i64,
    /// The key's row before, or `NONE`.
    pub prev: Revision,
    /// The skew-binary jump pointer, or `NONE`.
    pub jump: Revision,
}

impl Row<'_> {
    /// Whether the row deletes its key.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    fn encoded_len(&self) -> usize {
        ROW_HEADER_BYTES + self.key.len() + self.value.len()
    }
}

/// The bytes are not a block of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Rows = 1,
    Directory = 2,
    Table = 3,
}

/// The block that rows are appended to.
#[derive(Debug)]
pub(crate) struct OpenBlock {
    bytes: Vec<u8>,
    /// The offset table in its final form.
    table: Vec<u8>,
    first: Revision,
    last: Revision,
}

impl OpenBlock {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; HEADER_BYTES], table: Vec::new(), first: Revision::NONE, last: Revision::NONE }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Bytes so far, the offset table included; 0 when empty.
    pub(crate) fn len(&self) -> usize {
        if self.is_empty() { 0 } else { self.bytes.len() + self.table.len() }
    }

    pub(crate) fn rows_count(&self) -> usize {
        self.table.len() / 4
    }

    /// Whether the block must be closed before this row: it would be too long, or hold too many rows.
    pub(crate) fn is_full_for(&self, row: &Row<'_>, block_bytes: u32) -> bool {
        let len = self.bytes.len() + self.table.len() + row.encoded_len() + 4;
        !self.is_empty() && (len > block_bytes as usize || self.rows_count() == BLOCK_ROWS_MAX)
    }

    pub(crate) fn first(&self) -> Revision {
        self.first
    }

    pub(crate) fn append(&mut self, row: &Row<'_>) {
        let offset = u32::try_from(self.bytes.len()).expect("a block is far below 4 GiB");
        if self.is_empty() {
            self.first = row.at;
        }
        self.last = row.at;
        self.table.extend_from_slice(&offset.to_le_bytes());
        self.bytes.reserve(row.encoded_len());
        self.bytes.extend_from_slice(&row_header(row));
        self.bytes.extend_from_slice(row.key);
        self.bytes.extend_from_slice(row.value);
    }

    /// The last bytes appended.
    pub(crate) fn tail(&self, len: usize) -> &[u8] {
        &self.bytes[self.bytes.len() - len..]
    }

    pub(crate) fn rows(&self) -> BlockRows<'_> {
        BlockRows { bytes: &self.bytes, table: &self.table }
    }

    /// The finished block; a new one begins.
    pub(crate) fn seal(&mut self) -> Vec<u8> {
        assert!(!self.is_empty(), "an empty block is not sealed");
        let capacity = self.bytes.capacity();
        let mut fresh = Vec::with_capacity(capacity.min(1 << 17));
        fresh.resize(HEADER_BYTES, 0);
        let mut bytes = std::mem::replace(&mut self.bytes, fresh);
        let len = (bytes.len() + self.table.len()).next_multiple_of(UNIT_BYTES as usize);
        bytes.resize(len - self.table.len(), 0);
        bytes.extend_from_slice(&self.table);
        begin(&mut bytes, BlockKind::Rows, self.table.len() / 4, self.last);
        self.table.clear();
        finish(&mut bytes);
        bytes
    }
}

fn row_header(row: &Row<'_>) -> [u8; ROW_HEADER_BYTES] {
    let mut header = [0; ROW_HEADER_BYTES];
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("admission bounds a row").to_le_bytes();
    header[..8].copy_from_slice(&row.at.main.to_le_bytes());
    header[8..12].copy_from_slice(&row.at.sub.to_le_bytes());
    header[12..16].copy_from_slice(&len(row.key));
    header[16..24].copy_from_slice(&row.create.to_le_bytes());
    header[24..32].copy_from_slice(&row.version.to_le_bytes());
    header[32..40].copy_from_slice(&row.lease.to_le_bytes());
    header[40..48].copy_from_slice(&row.prev.main.to_le_bytes());
    header[48..56].copy_from_slice(&row.jump.main.to_le_bytes());
    header[56..60].copy_from_slice(&row.prev.sub.to_le_bytes());
    header[60..64].copy_from_slice(&row.jump.sub.to_le_bytes());
    header[64..68].copy_from_slice(&len(row.value));
    header
}

/// The rows of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockRows<'a> {
    bytes: &'a [u8],
    table: &'a [u8],
}

impl<'a> BlockRows<'a> {
    /// Of a sealed block whose header was verified, or is our own.
    pub(crate) fn of_sealed(bytes: &'a [u8]) -> Option<Self> {
        let count = u32_at(bytes, 16)? as usize;
        let start =
            bytes.len().checked_sub(count.checked_mul(4)?).filter(|&start| start >= HEADER_BYTES && count > 0)?;
        Some(Self { bytes: &bytes[..start], table: &bytes[start..] })
    }

    /// The row at an address.
    pub(crate) fn find(&self, at: Revision) -> Result<Option<Row<'a>>, Malformed> {
        // Most blocks hold one row a revision: the distance from the first row is the index. The first row stands
        // right behind the header.
        let first = i64_at(self.bytes, HEADER_BYTES).ok_or(Malformed)?;
        let guess = usize::try_from(at.main.wrapping_sub(first)).unwrap_or(usize::MAX);
        if guess < self.count() && self.address(guess)? == at {
            return self.row(guess).map(Some);
        }
        let row = self.find_from(at)?;
        Ok(row.filter(|row| row.at == at))
    }

    /// The first row at or above an address.
    pub(crate) fn find_from(&self, at: Revision) -> Result<Option<Row<'a>>, Malformed> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.address(middle)? < at {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low < self.count() { self.row(low).map(Some) } else { Ok(None) }
    }

    fn count(&self) -> usize {
        self.table.len() / 4
    }

    fn offset(&self, index: usize) -> Result<usize, Malformed> {
        u32_at(self.table, index * 4).map(|offset| offset as usize).ok_or(Malformed)
    }

    fn address(&self, index: usize) -> Result<Revision, Malformed> {
        let bytes = self.bytes.get(self.offset(index)?..).ok_or(Malformed)?;
        Ok(Revision { main: i64_at(bytes, 0).ok_or(Malformed)?, sub: u32_at(bytes, 8).ok_or(Malformed)? })
    }

    fn row(&self, index: usize) -> Result<Row<'a>, Malformed> {
        let bytes = self.bytes.get(self.offset(index)?..).ok_or(Malformed)?;
        read_row(bytes).ok_or(Malformed)
    }
}

fn read_row(bytes: &[u8]) -> Option<Row<'_>> {
    let (header, rest) = bytes.split_first_chunk::<ROW_HEADER_BYTES>()?;
    let (key, rest) = rest.split_at_checked(u32_at(header, 12)? as usize)?;
    let value = rest.get(..u32_at(header, 64)? as usize)?;
    Some(Row {
        at: Revision { main: i64_at(header, 0)?, sub: u32_at(header, 8)? },
        key,
        value,
        create: i64_at(header, 16)?,
        version: i64_at(header, 24)?,
        lease: i64_at(header, 32)?,
        prev: Revision { main: i64_at(header, 40)?, sub: u32_at(header, 56)? },
        jump: Revision { main: i64_at(header, 48)?, sub: u32_at(header, 60)? },
    })
}

/// What a directory says of one row block: 24 bytes in memory as on file.
#[derive(Debug)]
pub(crate) struct DirectoryEntry {
    main: i64,
    sub: u32,
    /// In units.
    offset: u32,
    pub(crate) checksum: u32,
    /// In units.
    len: u16,
    /// Rows, and in the highest bit (zero on file): the bytes were compared with the checksum since they were last
    /// read in. Relaxed: whoever misses a mark compares once more.
    rows: AtomicU16,
}

const VERIFIED: u16 = 0x8000;

const _: () = assert!(size_of::<DirectoryEntry>() == DIRECTORY_ENTRY_BYTES, "the directory is kept in memory");

impl DirectoryEntry {
    pub(crate) fn new(first: Revision, offset: u64, len: u64, checksum: u32, rows: usize) -> Self {
        let offset = u32::try_from(offset / UNIT_BYTES).expect("a segment is below 16 TiB");
        let len = u16::try_from(len / UNIT_BYTES).expect("a block is below 256 MiB");
        assert!(rows > 0 && rows <= BLOCK_ROWS_MAX, "a block is closed before it holds more rows");
        Self { main: first.main, sub: first.sub, offset, checksum, len, rows: AtomicU16::new(rows as u16) }
    }

    /// Rows in the block.
    pub(crate) fn rows(&self) -> u32 {
        u32::from(self.rows.load(Ordering::Relaxed) & !VERIFIED)
    }

    pub(crate) fn is_verified(&self) -> bool {
        self.rows.load(Ordering::Relaxed) & VERIFIED != 0
    }

    pub(crate) fn set_verified(&self, verified: bool) {
        if verified {
            self.rows.fetch_or(VERIFIED, Ordering::Relaxed);
        } else {
            self.rows.fetch_and(!VERIFIED, Ordering::Relaxed);
        }
    }

    pub(crate) fn first(&self) -> Revision {
        Revision { main: self.main, sub: self.sub }
    }

    /// In bytes.
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.offset) * UNIT_BYTES
    }

    /// In bytes.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.len) * UNIT_BYTES
    }
}

/// A segment's directory, not yet finished.
pub(crate) fn directory_block(entries: &[DirectoryEntry]) -> Vec<u8> {
    let len = (HEADER_BYTES + entries.len() * DIRECTORY_ENTRY_BYTES).next_multiple_of(UNIT_BYTES as usize);
    let mut bytes = Vec::with_capacity(len);
    bytes.resize(HEADER_BYTES, 0);
    for entry in entries {
        bytes.extend_from_slice(&entry.main.to_le_bytes());
        bytes.extend_from_slice(&entry.sub.to_le_bytes());
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.checksum.to_le_bytes());
        bytes.extend_from_slice(&entry.len.to_le_bytes());
        bytes.extend_from_slice(&(entry.rows() as u16).to_le_bytes());
    }
    bytes.resize(len, 0);
    begin(&mut bytes, BlockKind::Directory, entries.len(), Revision::NONE);
    bytes
}

/// The entries of a verified directory.
pub(crate) fn directory_entries(bytes: &[u8]) -> Option<Vec<DirectoryEntry>> {
    let mut entries: Vec<DirectoryEntry> = Vec::new();
    for entry in records::<DIRECTORY_ENTRY_BYTES>(bytes, HEADER_BYTES)? {
        let first = Revision { main: i64_at(entry, 0)?, sub: u32_at(entry, 8)? };
        let both = u32_at(entry, 20)?;
        let (len, rows) = (both as u16, (both >> 16) as u16);
        let bounded = len > 0 && rows > 0 && rows & VERIFIED == 0;
        if !bounded || entries.last().is_some_and(|before| before.first() >= first) {
            return None;
        }
        let (offset, checksum) = (u32_at(entry, 12)?, u32_at(entry, 16)?);
        entries.push(DirectoryEntry {
            main: first.main,
            sub: first.sub,
            offset,
            checksum,
            len,
            rows: AtomicU16::new(rows),
        });
    }
    Some(entries)
}

/// What the table says of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableRecord {
    pub(crate) file: u32,
    /// In bytes.
    pub(crate) used: u64,
    pub(crate) above: Revision,
    pub(crate) blocks: u32,
    pub(crate) directory: RowLogRoot,
    pub(crate) rows: u32,
    pub(crate) dead_rows: u32,
    pub(crate) dead_bytes: u64,
}

/// The length of a table block of so many segments.
pub(crate) fn table_bytes(segments: usize) -> usize {
    (HEADER_BYTES + RECLAIM_BYTES + segments * TABLE_RECORD_BYTES).next_multiple_of(UNIT_BYTES as usize)
}

/// A table block of `len` bytes, not yet finished. `newest` is the newest row of the log.
pub(crate) fn table_block(
    records: impl Iterator<Item = TableRecord>,
    reclaim: ReclaimCursor,
    newest: Revision,
    len: usize,
) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(&reclaim.from.to_le_bytes());
    bytes.extend_from_slice(&reclaim.to.to_le_bytes());
    bytes.extend_from_slice(&reclaim.next.main.to_le_bytes());
    bytes.extend_from_slice(&reclaim.next.sub.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let mut count = 0;
    let units = |bytes: u64| u32::try_from(bytes / UNIT_BYTES).expect("a segment is below 16 TiB").to_le_bytes();
    for record in records {
        bytes.extend_from_slice(&record.above.main.to_le_bytes());
        bytes.extend_from_slice(&record.above.sub.to_le_bytes());
        bytes.extend_from_slice(&record.file.to_le_bytes());
        bytes.extend_from_slice(&units(record.used));
        bytes.extend_from_slice(&record.blocks.to_le_bytes());
        bytes.extend_from_slice(&record.directory.file.to_le_bytes());
        bytes.extend_from_slice(&units(record.directory.offset));
        bytes.extend_from_slice(&record.directory.len.to_le_bytes());
        bytes.extend_from_slice(&record.directory.checksum.to_le_bytes());
        bytes.extend_from_slice(&record.rows.to_le_bytes());
        bytes.extend_from_slice(&record.dead_rows.to_le_bytes());
        bytes.extend_from_slice(&record.dead_bytes.to_le_bytes());
        count += 1;
    }
    assert!(bytes.len() <= len, "the table was sized for one segment more");
    bytes.resize(len, 0);
    begin(&mut bytes, BlockKind::Table, count, newest);
    bytes
}

/// The records of a verified table.
pub(crate) fn table_records(bytes: &[u8]) -> Option<Vec<TableRecord>> {
    let units = |units: u32| u64::from(units) * UNIT_BYTES;
    let read = |record: &[u8]| {
        Some(TableRecord {
            above: Revision { main: i64_at(record, 0)?, sub: u32_at(record, 8)? },
            file: u32_at(record, 12)?,
            used: units(u32_at(record, 16)?),
            blocks: u32_at(record, 20)?,
            directory: RowLogRoot {
                file: u32_at(record, 24)?,
                offset: units(u32_at(record, 28)?),
                len: u32_at(record, 32)?,
                checksum: u32_at(record, 36)?,
            },
            rows: u32_at(record, 40)?,
            dead_rows: u32_at(record, 44)?,
            dead_bytes: i64_at(record, 48)?.cast_unsigned(),
        })
    };
    records::<TABLE_RECORD_BYTES>(bytes, HEADER_BYTES + RECLAIM_BYTES)?.map(read).collect()
}

/// How far reclaim had come, from a verified table. `None`: malformed.
pub(crate) fn reclaim_cursor(bytes: &[u8]) -> Option<ReclaimCursor> {
    let field = bytes.get(HEADER_BYTES..)?;
    let next = Revision { main: i64_at(field, 16)?, sub: u32_at(field, 24)? };
    let cursor = ReclaimCursor { from: i64_at(field, 0)?, to: i64_at(field, 8)?, next };
    (cursor.from <= cursor.to && u32_at(field, 28)? == 0).then_some(cursor)
}

/// The address in the header: the newest row (of the block; of the log, in a table).
pub(crate) fn newest(bytes: &[u8]) -> Option<Revision> {
    Some(Revision { main: i64_at(bytes, 24)?, sub: u32_at(bytes, 20)? })
}

fn records<const N: usize>(bytes: &[u8], from: usize) -> Option<impl Iterator<Item = &[u8]>> {
    let len = (u32_at(bytes, 16)? as usize).checked_mul(N)?;
    Some(bytes.get(from..)?.get(..len)?.chunks_exact(N))
}

fn begin(bytes: &mut [u8], kind: BlockKind, count: usize, last: Revision) {
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[12] = kind as u8;
    bytes[13] = FORMAT;
    bytes[16..20].copy_from_slice(&u32::try_from(count).expect("a block is far below 4 GiB").to_le_bytes());
    bytes[20..24].copy_from_slice(&last.sub.to_le_bytes());
    bytes[24..32].copy_from_slice(&last.main.to_le_bytes());
}

/// Fills in length and checksum.
pub(crate) fn finish(bytes: &mut [u8]) {
    assert!(bytes.len().is_multiple_of(UNIT_BYTES as usize), "blocks are whole units");
    let len = u32::try_from(bytes.len()).expect("a block is far below 4 GiB");
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// The checksum of a finished block.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    u32_at(bytes, 4).expect("a finished block has a header")
}

/// Compares a block's bytes with what its parent says of it.
pub(crate) fn verify(bytes: &[u8], kind: BlockKind, checksum: u32) -> Option<()> {
    let header = bytes.get(..HEADER_BYTES)?;
    let fits = header[..4] == MAGIC
        && u32_at(header, 4)? == checksum
        && u32_at(header, 8)? as usize == bytes.len()
        && header[12] == kind as u8
        && header[13] == FORMAT
        && header[14..16] == [0; 2]
        && crc32fast::hash(&bytes[8..]) == checksum;
    fits.then_some(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    bytes.get(at..)?.first_chunk().map(|bytes| i64::from_le_bytes(*bytes))
}
