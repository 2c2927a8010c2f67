//! The store: row log, key index, overlay, checkpoints.

pub mod checkpoint;
#[cfg(test)]
mod checkpoint_tests;
pub mod effect;
pub mod extents;
pub mod key_entry;
pub mod overlay;
pub mod page;
pub(crate) mod page_writer;
pub mod reclaim;
#[cfg(test)]
mod reclaim_tests;
pub mod recover;
mod row_block;
pub mod row_log;
pub mod superblock;
pub mod tree;
pub mod verified;

pub use checkpoint::scrub::{Scrub, ScrubStep};
pub use checkpoint::{CheckpointRequest, CheckpointStep, PublishedCheckpoint, RowFiles, Store, StoreOptions};
pub use effect::{StoreBytes, StoreEffect, StoreWrite};
pub use reclaim::{ReclaimLimits, ReclaimStep};
pub use recover::{RecoverError, StoreMedia, recover};
pub use superblock::{SUPERBLOCK_BYTES, Superblock};
pub use tree::{Tree, TreeId, TreeRoot, TreeScan};
#[cfg(test)]
pub(crate) mod test_disk;
