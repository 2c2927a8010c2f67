//! Bytes of the log.

/// Alignment of records, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// The unit a disk writes atomically, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Length on disk of a record with `payload_bytes` of payload.
#[must_use]
pub fn record_bytes(payload_bytes: usize) -> u64 {
    (payload_bytes as u64 + 2 * SECTOR_BYTES).next_multiple_of(BLOCK_BYTES)
}
