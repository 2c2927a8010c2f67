//! Segments: a ring of fixed file names.

use crate::ids::{Durability, SegmentSequence};

/// A segment file to be made ready for appends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareSegment {
    /// The slot, which names the file.
    pub slot: u32,
    /// The segment's new sequence number; names the completion.
    pub sequence: SegmentSequence,
    /// True if the file must be made (or made anew, if a crash left a part of one): `file_bytes` zeros, pre-written.
    pub create: bool,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// The first 4096 bytes, written last.
    pub header: Vec<u8>,
    /// Met before the write may be issued.
    pub after: Durability,
}
