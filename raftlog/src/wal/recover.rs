//! The recovery scan.

use crate::entry::{Entry, LogPosition};
use crate::ids::{Digest, Index, Lsn};
use crate::wal::HardState;

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
    /// The operator's order to give up everything from this LSN on.
    pub discard_from: Option<Lsn>,
}

/// A tail that no acknowledgement ever depended on and that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedTail {
    /// First LSN given up.
    pub first_lsn: Lsn,
    /// Records above it of which something was found.
    pub records: u64,
}

/// What the media hold.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The newest hard state; `None` in a directory never used.
    pub hard_state: Option<HardState>,
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
}

/// Why recovery refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoverError {
    /// The environment failed a read.
    Media(MediaError),
}

/// Reads the log.
///
/// # Errors
/// See [`RecoverError`]; every refusal names what an operator needs to know.
pub fn recover(_media: &mut dyn LogMedia, _options: &RecoverOptions) -> Result<Recovered, RecoverError> {
    unimplemented!()
}
