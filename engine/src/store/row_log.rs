//! The row log: every change once, in (revision, sub) order.
//!
//! Owns: the bytes of row blocks, the block directory, the segment table, what stays in memory and what must be
//! written. Does not know: which rows are live, the key index, or when a checkpoint happens.
//!
//! Invariants
//! - I1: rows ascend strictly in (main, sub), within a block and across blocks.
//! - I2: a block that was handed out for writing is never changed; a block that a root names is never rewritten.
//! - I3: a block's checksum is verified before its first use after it was read from its file.
//! - I4: a block leaves memory only after its write has completed.

use std::sync::Arc;

use crate::page_source::{Block, PageSource, StoreFile, Unavailable};
use crate::store::key_entry::Revision;

/// Sizes of a row log.
#[derive(Clone, Copy, Debug)]
pub struct RowLogOptions {
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Logical bytes of a block; a larger row gets a block of its own.
    pub block_bytes: u32,
    /// Written blocks stay in memory up to this many bytes.
    pub rows_resident_bytes_max: u64,
    /// Longest single write.
    pub write_bytes_max: u32,
}

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

/// What a superblock names of the row log: the place of the segment table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLogRoot {
    /// Where the segment table stands; `len` 0 for an empty log.
    pub table: Block,
    /// Its checksum.
    pub checksum: u32,
}

/// What the row log wants from its files.
#[derive(Clone, Debug)]
pub enum RowEffect {
    /// Create (or take from the reserve) and preallocate this segment; before any write to it.
    CreateSegment(StoreFile),
    /// Write these bytes; answer with [`RowLog::handle_write_complete`].
    Write(RowWrite),
}

/// One write, at most `write_bytes_max` long, offset and length multiples of 4096.
#[derive(Clone, Debug)]
pub struct RowWrite {
    /// Names the write in its completion.
    pub token: u64,
    /// Where.
    pub file: StoreFile,
    /// Where in it.
    pub offset: u64,
    /// The block the bytes are part of.
    pub bytes: Arc<Vec<u8>>,
    /// The part of `bytes` to write.
    pub part: std::ops::Range<usize>,
}

/// The row log of a store.
#[derive(Debug)]
pub struct RowLog {}

impl RowLog {
    /// An empty log.
    #[must_use]
    pub fn new(options: RowLogOptions) -> Self {
        todo!()
    }

    /// The log a checkpoint named: reads the segment table and the directories.
    ///
    /// # Errors
    /// A block is not usable; `Corrupt` if its bytes are not what the root names.
    pub fn open(options: RowLogOptions, root: RowLogRoot, pages: &dyn PageSource) -> Result<Self, Unavailable> {
        todo!()
    }

    /// Appends a row above all others.
    pub fn append(&mut self, row: &Row<'_>) {
        todo!()
    }

    /// The row at an address; `None` if no such row remains.
    ///
    /// # Errors
    /// Its block is not usable now.
    pub fn row<'a>(&'a self, at: Revision, pages: &'a dyn PageSource) -> Result<Option<Row<'a>>, Unavailable> {
        todo!()
    }

    /// The next thing to do with the files: full blocks are written ahead, the open one only at a checkpoint.
    pub fn poll_effect(&mut self) -> Option<RowEffect> {
        todo!()
    }

    /// A write is on the file (not necessarily synced).
    pub fn handle_write_complete(&mut self, token: u64) {
        todo!()
    }

    /// Pads the open block and appends directories and segment table. The root may be named by a superblock once
    /// every write polled until then has completed ([`Self::is_written`]) and the row files were synced.
    pub fn handle_checkpoint(&mut self) -> RowLogRoot {
        todo!()
    }

    /// Whether every sealed block has been written.
    #[must_use]
    pub fn is_written(&self) -> bool {
        todo!()
    }

    /// Forgets that blocks of this part of a file were verified: its pages were released.
    pub fn handle_released(&self, range: Block) {
        todo!()
    }

    /// Row bytes not yet written.
    #[must_use]
    pub fn unwritten_bytes(&self) -> u64 {
        todo!()
    }

    /// Block bytes held in memory.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        todo!()
    }

    /// Bytes used in segment files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }
}
