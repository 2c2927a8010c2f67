//! The limits and times of one member's log.
//!
//! Owns: the options and the relations between them. Does not know: flags or configuration files.
//!
//! Invariants
//! - I1: a fresh segment holds any single batch.

use crate::wal::frame;

/// Limits and times; all members may differ in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Length of a new segment file, in bytes; a multiple of 4096.
    pub segment_bytes: u64,
    /// Entries are merged into one batch while their payloads stay within this many bytes.
    pub batch_bytes_max: usize,
    /// Longest payload of one entry, in bytes; may exceed `batch_bytes_max`, then the entry has a batch of its own.
    pub entry_bytes_max: usize,
    /// Batches issued and not completed (queue depth), at least 1.
    pub appends_in_flight_max: usize,
    /// Payload bytes of entries kept in memory (not yet applied) beyond which proposals are refused.
    pub log_bytes_max: usize,
    /// Reads waiting for a ReadIndex answer beyond which reads are refused.
    pub reads_pending_max: usize,
    /// Payload bytes of unacknowledged entries on the way to one peer.
    pub peer_window_bytes_max: usize,
    /// Least time without a leader before an election, in nanoseconds; drawn from [1, 1.5) of it.
    pub election_timeout: u64,
    /// Time between a leader's heartbeats, in nanoseconds.
    pub heartbeat_interval: u64,
    /// Quiet time after which a watermark record is written, in nanoseconds.
    pub quiet_delay: u64,
}

/// Smallest segment: header block, and room for small batches.
pub const SEGMENT_BYTES_MIN: u64 = 16 * 1024;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl Options {
    /// The values of a daemon with etcd's default times (heartbeat 100 ms, election 1 s).
    #[must_use]
    pub fn standard() -> Self {
        Self {
            segment_bytes: 32 << 20,
            batch_bytes_max: 1 << 20,
            entry_bytes_max: 4 << 20,
            appends_in_flight_max: 2,
            log_bytes_max: 64 << 20,
            reads_pending_max: 65_536,
            peer_window_bytes_max: 4 << 20,
            election_timeout: 1_000_000_000,
            heartbeat_interval: 100_000_000,
            quiet_delay: 2_000_000,
        }
    }

    /// Says what is wrong with a set of options, if anything.
    ///
    /// # Errors
    /// The violated relation, in words for the operator.
    pub fn check(&self) -> Result<(), &'static str> {
        if !self.segment_bytes.is_multiple_of(frame::BLOCK_BYTES) {
            return Err("segment_bytes is not a multiple of 4096");
        }
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            return Err("segment_bytes is outside 16 KiB ..= 1 GiB");
        }
        if self.batch_bytes_max > self.entry_bytes_max {
            return Err("batch_bytes_max exceeds entry_bytes_max");
        }
        if frame::record_bytes(self.entry_bytes_max) > self.segment_bytes - frame::BLOCK_BYTES {
            return Err("a segment cannot hold an entry of entry_bytes_max");
        }
        if self.appends_in_flight_max == 0 || self.entry_bytes_max == 0 {
            return Err("appends_in_flight_max and entry_bytes_max must be at least 1");
        }
        if self.log_bytes_max < self.entry_bytes_max {
            return Err("log_bytes_max is below entry_bytes_max");
        }
        if self.heartbeat_interval == 0 || self.election_timeout <= self.heartbeat_interval {
            return Err("election_timeout must exceed heartbeat_interval, which must not be zero");
        }
        Ok(())
    }
}
