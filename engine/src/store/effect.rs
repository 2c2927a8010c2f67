//! What the store asks of its files.
//!
//! Owns: the effects and their order rules. Does not know: descriptors, mappings, how a file is named on the disk.
//!
//! Invariants
//! - I1: every effect carries a token that no other effect of this process carries, and is answered once, in any
//!   order, by [`crate::store::Store::handle_complete`]; any failure or short write is final
//!   ([`crate::store::Store::handle_failed`]). A creation or a write that found no room on the file system is not
//!   answered until it was repeated with success: the store waits.
//! - I2: a write to a file leaves only after the file's creation was completed; a sync of a file leaves only after
//!   every write it has to cover was completed; a superblock leaves only after every sync it depends on was completed.
//! - I3: offsets and lengths of writes are multiples of 4096, and two writes in flight never overlap.

use std::ops::Range;
use std::sync::Arc;

use crate::page_source::{Block, StoreFile};

/// Something to do with a file of the store.
#[derive(Clone, Debug)]
pub enum StoreEffect {
    /// Create a file of exactly this size, its space reserved, synced with its directory. A file of that name is left
    /// over from a crash: it is replaced, or kept if it has the size, its name being durable then (what it holds is
    /// nobody's). From its completion on the file can be read.
    CreateFile {
        /// Names the effect.
        token: u64,
        /// Which file.
        file: StoreFile,
        /// Its size, for good.
        bytes: u64,
    },
    /// Write; durable only after a later sync of the file.
    Write(StoreWrite),
    /// Make everything written to the file before durable.
    Sync {
        /// Names the effect.
        token: u64,
        /// Which file.
        file: StoreFile,
    },
    /// Load a freshly written range, so that [`crate::page_source::PageSource::block`] finds it resident.
    Populate {
        /// Names the effect.
        token: u64,
        /// What to load; may span many pages, within one file.
        block: Block,
    },
    /// Give the room of a range back to the file system. Nothing names the range, and nothing is written to it before
    /// the answer. If the environment cannot do it, it is answered all the same: the room stays taken.
    Discard {
        /// Names the effect.
        token: u64,
        /// Which file; its length stays.
        file: StoreFile,
        /// First byte, a multiple of 4096.
        offset: u64,
        /// Length in bytes, a multiple of 4096.
        len: u64,
    },
    /// Close and remove a file that nothing names any more. It is neither read nor written again, and its number is not
    /// used again by this process.
    RemoveFile {
        /// Names the effect.
        token: u64,
        /// Which file.
        file: StoreFile,
    },
}

impl StoreEffect {
    /// Its token.
    #[must_use]
    pub fn token(&self) -> u64 {
        match self {
            Self::CreateFile { token, .. }
            | Self::Sync { token, .. }
            | Self::Populate { token, .. }
            | Self::Discard { token, .. }
            | Self::RemoveFile { token, .. } => *token,
            Self::Write(write) => write.token,
        }
    }
}

/// One write of at most `write_bytes_max` bytes.
#[derive(Clone, Debug)]
pub struct StoreWrite {
    /// Names the effect.
    pub token: u64,
    /// Which file.
    pub file: StoreFile,
    /// Where in it.
    pub offset: u64,
    /// What.
    pub bytes: StoreBytes,
}

/// The bytes of a write: made for it, or part of a block that stays readable in memory.
#[derive(Clone, Debug)]
pub enum StoreBytes {
    /// Made for this write.
    Owned(Vec<u8>),
    /// Part of a shared block.
    Shared(Arc<Vec<u8>>, Range<usize>),
}

impl StoreBytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes, part) => &bytes[part.clone()],
        }
    }

    /// The bytes as a buffer of their own; copies a shared part.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes, part) => bytes[part].to_vec(),
        }
    }
}
