//! Trilith's deterministic state machine: MVCC and store.
//!
//! Knows no clock, thread, file or socket: bytes are read through [`page_source::PageSource`], writes leave as effects.
#![forbid(unsafe_code)]

pub mod budget;
pub mod command;
pub mod lease;
pub mod mvcc;
pub mod page_source;
pub mod replica;
pub mod shard;
pub mod snapshot;
pub mod store;
pub mod tables;
pub mod watch;
