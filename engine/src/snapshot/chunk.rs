//! Chunks of the native snapshot.
//!
//! Owns: their binary form, both ways, and where a chunk ends. Does not know: which rows belong to a snapshot, who
//! reads it. Byte layout: `docs/format/snapshot.md`.
//!
//! Invariants
//! - I1: the same items in the same order make the same chunks.
//! - I2: bytes from outside are rejected, never believed: no panic, no allocation beyond their length.

use xxhash_rust::xxh3::xxh3_128;

use crate::store::key_entry::Revision;

/// A payload closes before the item that would make it longer.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 10;

const MAGIC: [u8; 4] = *b"TRSC";
const FORMAT: u16 = 1;
/// Length of a chunk's header.
pub const HEADER_BYTES: usize = 40;
const ROW_HEADER_BYTES: usize = 45;
const LEASE_BYTES: usize = 16;

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Rows.
    Rows = 1,
    /// Leases.
    Leases = 2,
    /// The small tables.
    Tables = 3,
}

impl ChunkKind {
    /// The kind of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Rows, Self::Leases, Self::Tables].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// One row as a snapshot carries it: no pointers, they depend on when a member compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRow<'a> {
    /// Its address.
    pub at: Revision,
    /// Whether it deletes the key.
    pub is_tombstone: bool,
    /// Creation revision; 0 in a tombstone.
    pub create: i64,
    /// Version; 0 in a tombstone.
    pub version: i64,
    /// Lease; 0 for none.
    pub lease: i64,
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

/// A chunk under construction.
#[derive(Debug)]
pub(super) struct OpenChunk {
    kind: ChunkKind,
    items: u32,
    payload: Vec<u8>,
    /// The first row's address.
    first: Revision,
}

/// A finished chunk: header and payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What it holds.
    pub kind: ChunkKind,
    /// How many items.
    pub items: u32,
    /// The first row's address; `NONE` where there are no rows.
    pub first: Revision,
    /// Digest of the payload.
    pub digest: u128,
    /// Header and payload.
    pub bytes: Vec<u8>,
}

impl OpenChunk {
    pub(super) fn new(kind: ChunkKind) -> Self {
        Self { kind, items: 0, payload: vec![0; HEADER_BYTES], first: Revision::NONE }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Whether an item of `len` bytes belongs to the next chunk.
    fn closes_before(&self, len: usize) -> bool {
        self.items > 0 && self.payload.len() - HEADER_BYTES + len > PAYLOAD_BYTES_MAX
    }

    /// Whether a row belongs to the next chunk.
    pub(super) fn closes_before_row(&self, row: &SnapshotRow<'_>) -> bool {
        self.kind != ChunkKind::Rows || self.closes_before(ROW_HEADER_BYTES + row.key.len() + row.value.len())
    }

    /// Whether a lease belongs to the next chunk.
    pub(super) fn closes_before_lease(&self) -> bool {
        self.kind != ChunkKind::Leases || self.closes_before(LEASE_BYTES)
    }

    pub(super) fn push_row(&mut self, row: &SnapshotRow<'_>) {
        assert_eq!(self.kind, ChunkKind::Rows, "a chunk holds one kind of items");
        if self.items == 0 {
            self.first = row.at;
        }
        let out = &mut self.payload;
        out.extend_from_slice(&row.at.main.to_le_bytes());
        out.extend_from_slice(&row.at.sub.to_le_bytes());
        out.push(u8::from(row.is_tombstone));
        let length =
            |bytes: &[u8]| u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB").to_le_bytes();
        out.extend_from_slice(&length(row.key));
        out.extend_from_slice(&length(row.value));
        for number in [row.create, row.version, row.lease] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(row.key);
        out.extend_from_slice(row.value);
        self.items += 1;
    }

    pub(super) fn push_lease(&mut self, id: i64, ttl: i64) {
        assert_eq!(self.kind, ChunkKind::Leases, "a chunk holds one kind of items");
        self.payload.extend_from_slice(&id.to_le_bytes());
        self.payload.extend_from_slice(&ttl.to_le_bytes());
        self.items += 1;
    }

    pub(super) fn push_tables(&mut self, tables: &[u8]) {
        assert_eq!((self.kind, self.items), (ChunkKind::Tables, 0), "the tables are one item");
        self.payload.extend_from_slice(tables);
        self.items = 1;
    }

    /// Closes the chunk as number `number` of its snapshot.
    pub(super) fn seal(self, number: u32) -> Chunk {
        let Self { kind, items, payload: mut bytes, first } = self;
        let length = u32::try_from(bytes.len() - HEADER_BYTES).expect("a chunk is far below 4 GiB");
        let digest = xxh3_128(&bytes[HEADER_BYTES..]);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[6] = kind as u8;
        bytes[8..12].copy_from_slice(&number.to_le_bytes());
        bytes[12..16].copy_from_slice(&items.to_le_bytes());
        bytes[16..20].copy_from_slice(&length.to_le_bytes());
        bytes[24..40].copy_from_slice(&digest.to_le_bytes());
        Chunk { kind, items, first, digest, bytes }
    }
}

/// A chunk whose form and digest are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadChunk<'a> {
    /// What it holds.
    pub kind: ChunkKind,
    /// Its number.
    pub number: u32,
    /// How many items it announces.
    pub items: u32,
    /// Digest of the payload.
    pub digest: u128,
    payload: &'a [u8],
}

impl<'a> ReadChunk<'a> {
    /// Reads a whole chunk. `None`: not a chunk of this format, or damaged.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (header, payload) = bytes.split_at_checked(HEADER_BYTES)?;
        let mut input = header;
        let magic: [u8; 4] = take(&mut input)?;
        let format = u16::from_le_bytes(take(&mut input)?);
        let [kind, zero] = take(&mut input)?;
        let number = u32::from_le_bytes(take(&mut input)?);
        let items = u32::from_le_bytes(take(&mut input)?);
        let length = u32::from_le_bytes(take(&mut input)?);
        let zeros: [u8; 4] = take(&mut input)?;
        let digest = u128::from_le_bytes(take(&mut input)?);
        let sound = magic == MAGIC && format == FORMAT && zero == 0 && zeros == [0; 4];
        let whole = usize::try_from(length) == Ok(payload.len()) && xxh3_128(payload) == digest;
        let kind = ChunkKind::from_number(kind)?;
        (sound && whole).then_some(Self { kind, number, items, digest, payload })
    }

    /// The rows of a chunk of rows. `None`: malformed.
    #[must_use]
    pub fn rows(&self) -> Option<Vec<SnapshotRow<'a>>> {
        let (mut input, mut rows) = (self.payload, Vec::new());
        while !input.is_empty() {
            let row = take_row(&mut input)?;
            let ascends = rows.last().is_none_or(|before: &SnapshotRow<'_>| before.at < row.at);
            if !ascends {
                return None;
            }
            rows.push(row);
        }
        (self.kind == ChunkKind::Rows && rows.len() == self.items as usize).then_some(rows)
    }

    /// The leases of a chunk of leases: id and time to live in seconds. `None`: malformed.
    #[must_use]
    pub fn leases(&self) -> Option<Vec<(i64, i64)>> {
        let (mut input, mut leases) = (self.payload, Vec::new());
        while !input.is_empty() {
            leases.push((i64::from_le_bytes(take(&mut input)?), i64::from_le_bytes(take(&mut input)?)));
        }
        let ascend = leases.is_sorted_by(|left, right| left.0 < right.0);
        (self.kind == ChunkKind::Leases && leases.len() == self.items as usize && ascend).then_some(leases)
    }

    /// The tables of a chunk of tables.
    #[must_use]
    pub fn tables(&self) -> Option<&'a [u8]> {
        (self.kind == ChunkKind::Tables && self.items == 1).then_some(self.payload)
    }
}

fn take_row<'a>(input: &mut &'a [u8]) -> Option<SnapshotRow<'a>> {
    let main = i64::from_le_bytes(take(input)?);
    let sub = u32::from_le_bytes(take(input)?);
    let [flags] = take(input)?;
    let key_len = u32::from_le_bytes(take(input)?) as usize;
    let value_len = u32::from_le_bytes(take(input)?) as usize;
    let create = i64::from_le_bytes(take(input)?);
    let version = i64::from_le_bytes(take(input)?);
    let lease = i64::from_le_bytes(take(input)?);
    let key = take_slice(input, key_len)?;
    let value = take_slice(input, value_len)?;
    let is_tombstone = flags == 1;
    let bare = create == 0 && version == 0 && lease == 0 && value.is_empty();
    let sound = flags <= 1 && main > 1 && !key.is_empty() && is_tombstone == (version == 0) && (!is_tombstone || bare);
    let at = Revision { main, sub };
    sound.then_some(SnapshotRow { at, is_tombstone, create, version, lease, key, value })
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(*head)
}

fn take_slice<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(main: i64, key: &[u8], value: &'static [u8]) -> SnapshotRow<'static> {
        let key = Box::leak(key.to_vec().into_boxed_slice());
        let (is_tombstone, at) = (value.is_empty(), Revision { main, sub: 3 });
        let live = i64::from(!is_tombstone);
        SnapshotRow { at, is_tombstone, create: 2 * live, version: live, lease: -9 * live, key, value }
    }

    #[test]
    fn what_is_written_is_read() {
        let rows = [row(2, b"a", b"1"), row(7, b"bb", b""), row(i64::MAX, b"c", &[5; 70_000])];
        let mut open = OpenChunk::new(ChunkKind::Rows);
        rows.iter().for_each(|row| open.push_row(row));
        let chunk = open.seal(12);
        let read = ReadChunk::decode(&chunk.bytes).unwrap();
        assert_eq!((read.kind, read.number, read.items, read.digest), (ChunkKind::Rows, 12, 3, chunk.digest));
        assert_eq!(chunk.first, rows[0].at);
        assert_eq!(read.rows().unwrap(), rows);
        assert_eq!((read.leases(), read.tables()), (None, None));

        let mut open = OpenChunk::new(ChunkKind::Leases);
        [(-5, 60), (1, 9)].into_iter().for_each(|(id, ttl)| open.push_lease(id, ttl));
        let chunk = open.seal(0);
        assert_eq!(ReadChunk::decode(&chunk.bytes).unwrap().leases().unwrap(), [(-5, 60), (1, 9)]);

        let mut open = OpenChunk::new(ChunkKind::Tables);
        open.push_tables(b"tables");
        assert_eq!(ReadChunk::decode(&open.seal(1).bytes).unwrap().tables(), Some(&b"tables"[..]));
    }

    #[test]
    fn damage_anywhere_is_rejected() {
        let mut open = OpenChunk::new(ChunkKind::Rows);
        [row(2, b"a", b"1"), row(7, b"bb", b"")].iter().for_each(|row| open.push_row(row));
        let bytes = open.seal(0).bytes;
        for at in 0..bytes.len() {
            // The number is the catalogue's to check, and the items the reader's of the payload.
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            let read = ReadChunk::decode(&damaged).and_then(|chunk| chunk.rows());
            assert!(read.is_none() || (8..12).contains(&at), "byte {at}");
            assert!(ReadChunk::decode(&bytes[..at]).is_none(), "cut at {at}");
        }
        // Malformed under a right digest.
        let payload = bytes[HEADER_BYTES..].to_vec();
        for at in 0..payload.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut open = OpenChunk::new(ChunkKind::Rows);
                open.payload.extend_from_slice(&payload);
                open.payload[HEADER_BYTES + at] = value;
                open.items = 2;
                let sealed = open.seal(0);
                let _: Option<usize> = ReadChunk::decode(&sealed.bytes).unwrap().rows().map(|rows| rows.len());
            }
        }
    }

    #[test]
    fn a_chunk_closes_before_it_is_too_long() {
        let mut open = OpenChunk::new(ChunkKind::Rows);
        let long = row(2, b"k", &[1; PAYLOAD_BYTES_MAX]);
        assert!(!open.closes_before_row(&long), "a long row has a chunk of its own");
        open.push_row(&row(3, b"k", &[1; 100_000]));
        assert!(!open.closes_before_row(&row(4, b"k", &[1; 100_000])));
        assert!(open.closes_before_row(&long) && open.closes_before_lease());
    }
}
