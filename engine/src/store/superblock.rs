//! The superblock: the one place that names everything a checkpoint consists of.
//!
//! Owns: its bytes (docs/format/store.md section 2). Does not know: how the things it names are read, which of two
//! copies is used, or when a checkpoint happens.
//!
//! Invariants
//! - I1: the copy of sequence n is number n % 2, so a write never touches the newest valid copy.
//! - I2: a copy decodes only if magic, checksum, format, copy number and zeros are right: it has one binary form.

use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, Index, LogPosition, MemberId, Term};

use crate::mvcc::KeyspaceState;
use crate::store::page::{PageId, PageRef};
use crate::store::row_log::RowLogRoot;
use crate::store::tree::TreeRoot;

/// Bytes of a superblock copy and of its file.
pub const SUPERBLOCK_BYTES: u64 = 4096;

const BYTES: usize = SUPERBLOCK_BYTES as usize;
const MAGIC: [u8; 8] = *b"TRLSTORE";
const FORMAT: u16 = 1;
const CHECKSUM_AT: usize = 12;
const END: usize = 264;

/// Everything a checkpoint names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number of the checkpoint, from 1.
    pub sequence: u64,
    /// What the data directory is bound to.
    pub identity: Identity,
    /// The last raft entry the checkpoint includes.
    pub position: LogPosition,
    /// Revision, compacted revision, state digest.
    pub keyspace: KeyspaceState,
    /// Bytes of every index file.
    pub index_file_bytes: u64,
    /// Index files in use: numbers below this.
    pub index_files: u32,
    /// Key -> entry; `None` while empty.
    pub keys: Option<TreeRoot>,
    /// (lease, key); `None` while empty.
    pub leases: Option<TreeRoot>,
    /// Members, alarms and other small tables; `None` while empty.
    pub tables: Option<TreeRoot>,
    /// Which units of the index files are in use; counts nothing live.
    pub map: PageRef,
    /// The row log's segment table.
    pub rows: RowLogRoot,
}

/// Why bytes are no superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// Nothing but zeros: never written.
    Blank,
    /// Torn or rotten.
    Damaged,
    /// Whole, but of a format this version does not know.
    UnknownFormat(u16),
}

impl Superblock {
    /// The copy this checkpoint is written to (I1).
    #[must_use]
    pub fn copy(&self) -> u32 {
        (self.sequence % 2) as u32
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[self.copy() as u8, 0]);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        for id in [self.identity.cluster_id.0, self.identity.member_id.0, self.identity.incarnation.0] {
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.extend_from_slice(&self.position.index.0.to_le_bytes());
        out.extend_from_slice(&self.position.term.0.to_le_bytes());
        out.extend_from_slice(&self.position.digest.0.to_le_bytes());
        out.extend_from_slice(&self.keyspace.revision.to_le_bytes());
        out.extend_from_slice(&self.keyspace.compacted.to_le_bytes());
        out.extend_from_slice(&self.keyspace.digest.to_le_bytes());
        out.extend_from_slice(&self.index_file_bytes.to_le_bytes());
        out.extend_from_slice(&self.index_files.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for root in [self.keys, self.leases, self.tables] {
            encode_root(root, &mut out);
        }
        out.extend_from_slice(&self.map.page.0.to_le_bytes());
        out.extend_from_slice(&self.map.units.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.map.checksum.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.rows.file.to_le_bytes());
        out.extend_from_slice(&self.rows.len.to_le_bytes());
        out.extend_from_slice(&self.rows.offset.to_le_bytes());
        out.extend_from_slice(&self.rows.checksum.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        assert_eq!(out.len(), END, "the fields have fixed places");
        out.resize(BYTES, 0);
        let checksum = crc32fast::hash(&out);
        out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads copy number `copy`.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn decode(bytes: &[u8], copy: u32) -> Result<Self, SuperblockError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(SuperblockError::Blank);
        }
        if bytes.len() != BYTES || bytes[..8] != MAGIC {
            return Err(SuperblockError::Damaged);
        }
        let mut input = Fields(&bytes[8..]);
        let format = input.u16();
        let (copy_found, zero) = (input.array::<1>()[0], input.array::<1>()[0]);
        let checksum = input.u32();
        let mut zeroed = bytes.to_vec();
        zeroed[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
        if crc32fast::hash(&zeroed) != checksum {
            return Err(SuperblockError::Damaged);
        }
        if format != FORMAT {
            return Err(SuperblockError::UnknownFormat(format));
        }
        let superblock = decode_fields(&mut input).ok_or(SuperblockError::Damaged)?;
        let right = u32::from(copy_found) == copy && zero == 0 && superblock.copy() == copy;
        let rest_is_zero = input.0.iter().all(|&byte| byte == 0);
        if right && rest_is_zero && superblock.sequence > 0 { Ok(superblock) } else { Err(SuperblockError::Damaged) }
    }
}

fn encode_root(root: Option<TreeRoot>, out: &mut Vec<u8>) {
    let Some(root) = root else {
        out.extend_from_slice(&[0; 32]);
        return;
    };
    out.extend_from_slice(&root.page.page.0.to_le_bytes());
    out.extend_from_slice(&root.page.units.to_le_bytes());
    out.extend_from_slice(&[root.height, 1]);
    out.extend_from_slice(&root.page.checksum.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&root.page.live.to_le_bytes());
    out.extend_from_slice(&root.entries.to_le_bytes());
}

fn decode_fields(input: &mut Fields<'_>) -> Option<Superblock> {
    let sequence = input.u64();
    let identity = Identity {
        cluster_id: ClusterId(input.u64()),
        member_id: MemberId(input.u64()),
        incarnation: Incarnation(input.u64()),
    };
    let position = LogPosition { index: Index(input.u64()), term: Term(input.u64()), digest: Digest(input.u128()) };
    let (revision, compacted) = (input.u64().cast_signed(), input.u64().cast_signed());
    let keyspace = KeyspaceState { revision, compacted, digest: input.u128() };
    let (index_file_bytes, index_files) = (input.u64(), input.u32());
    input.zeros::<4>()?;
    let (keys, leases, tables) = (decode_root(input)?, decode_root(input)?, decode_root(input)?);
    let (page, units) = (PageId(input.u32()), input.u16());
    input.zeros::<2>()?;
    let map = PageRef { page, units, checksum: input.u32(), live: 0 };
    input.zeros::<4>()?;
    let (file, len, offset, checksum) = (input.u32(), input.u32(), input.u64(), input.u32());
    input.zeros::<4>()?;
    let rows = RowLogRoot { file, offset, len, checksum };
    Some(Superblock {
        sequence,
        identity,
        position,
        keyspace,
        index_file_bytes,
        index_files,
        keys,
        leases,
        tables,
        map,
        rows,
    })
}

fn decode_root(input: &mut Fields<'_>) -> Option<Option<TreeRoot>> {
    let (page, units) = (PageId(input.u32()), input.u16());
    let [height, present] = input.array();
    let checksum = input.u32();
    input.zeros::<4>()?;
    let (live, entries) = (input.u64(), input.u64());
    let root = TreeRoot { page: PageRef { page, units, checksum, live }, height, entries };
    let absent = (page.0, units, height, checksum, live, entries) == (0, 0, 0, 0, 0, 0);
    match present {
        0 if absent => Some(None),
        1 if units > 0 && entries >= live && entries > 0 => Some(Some(root)),
        _ => None,
    }
}

/// Fields from the front of a block that is longer than all of them.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields end before the block does");
        self.0 = rest;
        *field
    }

    fn zeros<const N: usize>(&mut self) -> Option<()> {
        (self.array::<N>() == [0; N]).then_some(())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.array())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        let page = |page| PageRef { page: PageId(page), units: 3, checksum: 77, live: 5 };
        Superblock {
            sequence: 9,
            identity: Identity { cluster_id: ClusterId(1), member_id: MemberId(2), incarnation: Incarnation(3) },
            position: LogPosition { index: Index(4), term: Term(5), digest: Digest(6 << 100) },
            keyspace: KeyspaceState { revision: 7, compacted: -1, digest: 8 << 100 },
            index_file_bytes: 1 << 26,
            index_files: 2,
            keys: Some(TreeRoot { page: page(40), height: 2, entries: 6 }),
            leases: None,
            tables: Some(TreeRoot { page: page(50), height: 0, entries: 5 }),
            map: PageRef { live: 0, ..page(60) },
            rows: RowLogRoot { file: 1, offset: 8192, len: 4096, checksum: 5 },
        }
    }

    #[test]
    fn round_trips_in_its_own_copy_only() {
        let superblock = sample();
        let bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes, 1), Ok(superblock));
        assert_eq!(Superblock::decode(&bytes, 0), Err(SuperblockError::Damaged));
        assert_eq!(Superblock::decode(&[0; BYTES], 1), Err(SuperblockError::Blank));
    }

    #[test]
    fn every_flipped_copy_is_refused_and_a_torn_one_is_old_or_new() {
        let bytes = sample().encode();
        for at in 0..BYTES {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert_eq!(Superblock::decode(&damaged, 1), Err(SuperblockError::Damaged), "byte {at}");
        }
        let (old, new) = (Superblock { sequence: 7, ..sample() }, sample());
        for kept in 0..256_u32 {
            let mut torn = old.encode();
            for sector in (0..8).filter(|sector| kept >> sector & 1 == 1) {
                torn[sector * 512..][..512].copy_from_slice(&bytes[sector * 512..][..512]);
            }
            // All fields stand in the first sector: a tear leaves one of the two.
            assert_eq!(Superblock::decode(&torn, 1), Ok(if kept & 1 == 1 { new } else { old }));
        }
        assert_eq!(Superblock::decode(&bytes[..4000], 1), Err(SuperblockError::Damaged));
    }

    #[test]
    fn unknown_formats_and_nonsense_under_a_right_checksum_are_told_apart() {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sample().encode();
            change(&mut bytes);
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
            let checksum = crc32fast::hash(&bytes);
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
            Superblock::decode(&bytes, 1)
        };
        assert_eq!(with(&|bytes| bytes[8] = 2), Err(SuperblockError::UnknownFormat(2)));
        for at in [11, 124, 4000, 140, 167, 163, 204, 230, 236, 260] {
            assert_eq!(with(&|bytes| bytes[at] ^= 2), Err(SuperblockError::Damaged), "byte {at}");
        }
    }
}
