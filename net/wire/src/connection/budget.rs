//! The memory that partly received requests may take, shared by all connections of a core.
//!
//! Owns: the account. Does not know: streams, frames, windows.
//!
//! Invariants
//! - I1: `used_bytes` is the sum of what the connections hold; each byte is released exactly once.
//! - I2: a grant for a message is made whole or not at all, so a set of partial messages cannot deadlock: whoever holds
//!   a grant holds enough to finish.

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
