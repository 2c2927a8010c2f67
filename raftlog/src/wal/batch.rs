//! The group-commit plan: which entries form the next batch, and its bytes.

use crate::ids::{Durability, Lsn};

/// One batch to be written; a completed write of it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendWrite {
    /// Its log sequence number.
    pub lsn: Lsn,
    /// The segment file.
    pub slot: u32,
    /// Where in the file, in bytes; a multiple of 4096.
    pub offset: u64,
    /// The record; its length is a multiple of 4096.
    pub bytes: Vec<u8>,
    /// Met before the write may be issued.
    pub after: Durability,
}
