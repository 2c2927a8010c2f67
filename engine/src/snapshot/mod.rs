//! The native snapshot: the logical state at a raft index, as a stream of chunks.
//!
//! Owns: the order of the stream, the catalogue, the limits of a snapshot under way. Does not know: who reads it, page
//! layouts, checkpoints. Format: `docs/format/snapshot.md`.
//!
//! Invariants
//! - I1: members at the same applied index write the same bytes.
//! - I2: a snapshot is whole or an error: past its limits it ends, it never leaves something out.

pub mod catalogue;
pub mod chunk;
mod stream;

pub use catalogue::{Catalogue, ChunkRecord};
pub use chunk::{Chunk, ChunkKind, ReadChunk, SnapshotRow};
pub use stream::{SnapshotError, SnapshotLimits, SnapshotStep, SnapshotStream};
