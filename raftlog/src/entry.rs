//! One entry of the replicated log.
//!
//! Owns: the entry and its replicated digest. Does not know: what the payload means, where it is stored.
//!
//! Invariants
//! - I1: `digest` is xxh3-128 over (digest of the previous index, term, index, type, payload), so equal digests at an
//!   index mean equal logs up to it.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::ids::{Digest, Index, Term};

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EntryType {
    /// Client commands.
    Commands = 1,
    /// The first entry of a leader's term; its payload is empty.
    NoOp = 2,
    /// A cluster configuration.
    Configuration = 3,
}

/// One raft index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: Index,
    /// The term of the leader that made it.
    pub term: Term,
    /// What it is for.
    pub entry_type: EntryType,
    /// Opaque bytes, shared without copying.
    pub payload: Arc<Vec<u8>>,
    /// See I1.
    pub digest: Digest,
}

impl Entry {
    /// Makes the entry that follows one whose digest is `previous`.
    #[must_use]
    pub fn new(previous: Digest, index: Index, term: Term, entry_type: EntryType, payload: Arc<Vec<u8>>) -> Self {
        let digest = replicated_digest(previous, index, term, entry_type, &payload);
        Self { index, term, entry_type, payload, digest }
    }

    /// True if the digest is the right one after `previous`.
    #[must_use]
    pub fn follows(&self, previous: Digest) -> bool {
        self.digest == replicated_digest(previous, self.index, self.term, self.entry_type, &self.payload)
    }

    /// The entry's place without its payload.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        LogPosition { index: self.index, term: self.term, digest: self.digest }
    }
}

/// The identity of a log prefix: its last index with that entry's term and digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// Last index; zero is the empty log.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// Its replicated digest.
    pub digest: Digest,
}

/// The replicated digest of an entry (I1).
#[must_use]
pub fn replicated_digest(previous: Digest, index: Index, term: Term, entry_type: EntryType, payload: &[u8]) -> Digest {
    let mut prefix = [0u8; 33];
    prefix[0..16].copy_from_slice(&previous.0.to_le_bytes());
    prefix[16..24].copy_from_slice(&term.0.to_le_bytes());
    prefix[24..32].copy_from_slice(&index.0.to_le_bytes());
    prefix[32] = entry_type as u8;
    let mut state = Xxh3::new();
    state.update(&prefix);
    state.update(payload);
    Digest(state.digest128())
}
