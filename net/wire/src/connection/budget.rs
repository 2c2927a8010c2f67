//! The memory that partly received requests, and responses on their way out, may take: shared by all connections of a
//! core.
//!
//! Owns: the two accounts. Does not know: streams, frames, windows.
//!
//! Invariants
//! - I1: `used_bytes` is the sum of what the connections hold; each byte is released exactly once.
//! - I2: a grant for a message is made whole or not at all, so a set of partial messages cannot deadlock: whoever holds
//!   a grant holds enough to finish.
//! - I3: what `OutputBudget` has of a connection is what that connection had unsent when it last settled.

use crate::connection::limits::{OUTPUT_BYTES_MAX, OUTPUT_FAIR_BYTES, OUTPUT_LEAST_BYTES, RESPONSE_BACKLOG_BYTES_MAX};

/// Bytes of partly received messages, per core.
#[derive(Debug)]
pub struct AssemblyBudget {
    limit_bytes: usize,
    used_bytes: usize,
}

impl AssemblyBudget {
    /// An account of `limit_bytes` (design: 64 MiB a core).
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, used_bytes: 0 }
    }

    /// Bytes held at the moment.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Whether new streams should be refused.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.used_bytes >= self.limit_bytes
    }

    /// Whether so much is held that those who are slow to send must not keep it.
    pub(crate) fn is_pressed(&self) -> bool {
        self.used_bytes >= self.limit_bytes / 2
    }

    /// Whether `bytes` more would exceed the limit.
    pub(crate) fn would_exceed(&self, bytes: usize) -> bool {
        self.used_bytes.saturating_add(bytes) > self.limit_bytes
    }

    /// Grants `bytes`, whole or not at all. An idle account grants any size, so that a limit smaller than one message
    /// slows requests down but never locks them out.
    pub(crate) fn try_grant(&mut self, bytes: usize) -> bool {
        let after = self.used_bytes.saturating_add(bytes);
        if after > self.limit_bytes && self.used_bytes > 0 {
            return false;
        }
        self.used_bytes = after;
        true
    }

    /// Accounts for bytes that arrived within a window granted earlier and must be kept.
    pub(crate) fn charge(&mut self, bytes: usize) {
        self.used_bytes = self.used_bytes.saturating_add(bytes);
    }

    /// Returns what `try_grant` and `charge` took.
    pub(crate) fn release(&mut self, bytes: usize) {
        assert!(bytes <= self.used_bytes, "I1: released {bytes} of {} used", self.used_bytes);
        self.used_bytes -= bytes;
    }
}

/// Bytes that wait for windows or the kernel, per core.
#[derive(Debug)]
pub struct OutputBudget {
    limit_bytes: usize,
    used_bytes: usize,
}

impl Default for OutputBudget {
    fn default() -> Self {
        Self::new(OUTPUT_BYTES_MAX)
    }
}

impl OutputBudget {
    /// An account in which everybody may have much while all together have less than `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, used_bytes: 0 }
    }

    /// Bytes unsent at the moment.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Replaces what a connection had by what it has now; what it may have.
    pub(crate) fn settle(&mut self, before: usize, now: usize) -> usize {
        assert!(before <= self.used_bytes, "I3: {before} of {} settled", self.used_bytes);
        self.used_bytes = self.used_bytes - before + now;
        if self.used_bytes < self.limit_bytes {
            RESPONSE_BACKLOG_BYTES_MAX
        } else if self.used_bytes / 2 < self.limit_bytes {
            OUTPUT_FAIR_BYTES
        } else {
            OUTPUT_LEAST_BYTES
        }
    }
}
