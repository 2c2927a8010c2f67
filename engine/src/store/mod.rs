//! The store: row log, key index, overlay, checkpoints.

pub mod key_entry;
pub mod overlay;
pub mod row_log;
