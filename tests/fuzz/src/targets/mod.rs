//! The targets, one file per decoder.

pub(crate) mod command;
pub(crate) mod connection;
pub(crate) mod hpack;
pub(crate) mod page;
pub(crate) mod proto;
pub(crate) mod store;
pub(crate) mod wal;

/// For formats without checksums.
fn no_repair(_: &mut [u8]) {}
