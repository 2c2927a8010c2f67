//! The write-ahead log: bytes, plan, recovery. The format is docs/format/wal.md.
//!
//! Owns: everything between an entry and the offset of its bytes. Does not know: elections, quorums, file handles.

pub mod batch;
pub mod frame;
pub mod hard_state;
pub mod recover;
pub mod scrub;
pub mod segment;

pub use batch::AppendWrite;
pub use hard_state::HardState;
pub use recover::{DroppedTail, LogMedia, MediaError, RecoverError, RecoverOptions, Recovered, SegmentFile, recover};
pub use scrub::{LogScrub, LogSpan};
pub use segment::{FreeSlot, LiveSegment, PrepareSegment, SegmentLayout, Tail};

/// Name of a segment's file below the data directory.
#[must_use]
pub fn segment_file_name(slot: u32) -> String {
    format!("wal/seg-{slot:04}")
}

/// The slot a file name below the data directory stands for, if it is a segment's.
#[must_use]
pub fn segment_slot(name: &str) -> Option<u32> {
    let slot = name.strip_prefix("wal/seg-")?.parse().ok()?;
    (segment_file_name(slot) == name).then_some(slot)
}

/// Name of the file of one of the two hard-state copies (0 or 1) below the data directory; 4096 bytes long.
#[must_use]
pub fn hard_state_file_name(copy: u8) -> String {
    assert!(copy < 2, "there are two copies");
    format!("wal/hard-state-{copy}")
}
