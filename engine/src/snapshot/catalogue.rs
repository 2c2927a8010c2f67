//! The catalogue of a native snapshot.
//!
//! Owns: what a reader must know before it fetches a chunk, its archive form and the checking of chunks against it.
//! Does not know: rows.
//!
//! The archive is rkyv's, validated before any access: the catalogue comes from another member or a file.
//!
//! Invariants
//! - I1: a chunk that the catalogue accepts is, but for a collision of 2^-128, the chunk it was written for.

use rkyv::rancor::Error;
use rkyv::{Archive, Deserialize, Serialize};
use trilith_raftlog::LogPosition;
use xxhash_rust::xxh3::xxh3_128;

use crate::mvcc::KeyspaceState;
use crate::snapshot::chunk::{Chunk, ReadChunk};

const FORMAT: u16 = 1;
const DIGEST_BYTES: usize = 16;

/// What a snapshot consists of.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Catalogue {
    format: u16,
    /// The cluster.
    pub cluster_id: u64,
    /// The last raft entry included: index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The replicated log digest up to it.
    pub log_digest: [u8; 16],
    /// The revision.
    pub revision: i64,
    /// The compacted revision; -1 for none.
    pub compacted: i64,
    /// The digest of every change ever applied.
    pub state_digest: [u8; 16],
    /// Rows in all chunks.
    pub rows: u64,
    /// The chunks, in order.
    pub chunks: Vec<ChunkRecord>,
}

/// What the catalogue says of a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ChunkRecord {
    /// A [`crate::snapshot::ChunkKind`]'s number.
    pub kind: u8,
    /// Items in it.
    pub items: u32,
    /// Its length, header included.
    pub bytes: u32,
    /// Digest of its payload.
    pub digest: [u8; 16],
    /// Address of the first row: main revision.
    pub first_main: i64,
    /// Address of the first row: sub revision.
    pub first_sub: u32,
}

impl Catalogue {
    pub(super) fn new(cluster_id: u64, position: LogPosition, state: KeyspaceState) -> Self {
        Self {
            format: FORMAT,
            cluster_id,
            index: position.index.0,
            term: position.term.0,
            log_digest: position.digest.0.to_le_bytes(),
            revision: state.revision,
            compacted: state.compacted,
            state_digest: state.digest.to_le_bytes(),
            rows: 0,
            chunks: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, chunk: &Chunk) {
        if chunk.kind == super::ChunkKind::Rows {
            self.rows += u64::from(chunk.items);
        }
        self.chunks.push(ChunkRecord {
            kind: chunk.kind as u8,
            items: chunk.items,
            bytes: u32::try_from(chunk.bytes.len()).expect("a chunk is far below 4 GiB"),
            digest: chunk.digest.to_le_bytes(),
            first_main: chunk.first.main,
            first_sub: chunk.first.sub,
        });
    }

    /// The archive and its digest.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = rkyv::to_bytes::<Error>(self).expect("plain data archives into memory").into_vec();
        let digest = xxh3_128(&bytes);
        bytes.extend_from_slice(&digest.to_le_bytes());
        bytes
    }

    /// Reads an archive. `None`: damaged, or of another format.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (archive, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
        if xxh3_128(archive).to_le_bytes() != digest {
            return None;
        }
        // Archives are read where they are aligned.
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(archive.len());
        aligned.extend_from_slice(archive);
        let catalogue = rkyv::from_bytes::<Self, Error>(&aligned).ok()?;
        (catalogue.format == FORMAT).then_some(catalogue)
    }

    /// The chunk of this number, if these bytes are it (I1).
    #[must_use]
    pub fn accept<'a>(&self, number: u32, bytes: &'a [u8]) -> Option<ReadChunk<'a>> {
        let record = self.chunks.get(number as usize)?;
        let chunk = ReadChunk::decode(bytes)?;
        let same = chunk.number == number
            && chunk.kind as u8 == record.kind
            && chunk.items == record.items
            && chunk.digest.to_le_bytes() == record.digest
            && usize::try_from(record.bytes) == Ok(bytes.len());
        same.then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use trilith_raftlog::{Digest, Index, Term};

    use super::*;
    use crate::snapshot::chunk::{ChunkKind, OpenChunk};

    fn catalogue() -> (Catalogue, Vec<Chunk>) {
        let position = LogPosition { index: Index(9), term: Term(2), digest: Digest(77) };
        let state = KeyspaceState { revision: 5, compacted: -1, digest: 1 << 100 };
        let mut catalogue = Catalogue::new(3, position, state);
        let chunks: Vec<Chunk> = (0..3)
            .map(|number| {
                let mut open = OpenChunk::new(ChunkKind::Leases);
                open.push_lease(i64::from(number), 60);
                open.seal(number)
            })
            .collect();
        chunks.iter().for_each(|chunk| catalogue.push(chunk));
        (catalogue, chunks)
    }

    #[test]
    fn an_archive_is_read_back_or_rejected() {
        let (catalogue, _) = catalogue();
        let bytes = catalogue.encode();
        assert_eq!(Catalogue::decode(&bytes), Some(catalogue));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Catalogue::decode(&damaged), None, "byte {at}");
            assert_eq!(Catalogue::decode(&bytes[..at]), None, "cut at {at}");
            // Malformed under a right digest: no panic, no access outside.
            let archive = damaged.len() - DIGEST_BYTES;
            let digest = xxh3_128(&damaged[..archive]);
            damaged[archive..].copy_from_slice(&digest.to_le_bytes());
            let _: Option<Catalogue> = Catalogue::decode(&damaged);
        }
    }

    #[test]
    fn a_chunk_is_accepted_in_its_own_place_alone() {
        let (catalogue, chunks) = catalogue();
        for (number, chunk) in (0..).zip(&chunks) {
            for place in 0..4 {
                assert_eq!(catalogue.accept(place, &chunk.bytes).is_some(), place == number);
            }
        }
    }
}
