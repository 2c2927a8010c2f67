//! What the overlay and the key tree hold of a key.
//!
//! Owns: the entry, its binary form (the opaque value of a tree leaf), and the arithmetic of the version chain's
//! skew-binary roots. Does not know: pages, rows' bytes, or which layer an entry stands in.
//!
//! A key's rows form a chain from the newest to the oldest. Row n of a chain belongs to a forest of complete binary
//! trees whose sizes are the skew-binary digits of n (2^k - 1, only the two smallest may be equal). Appending either
//! joins the two newest trees under the new row, or starts a tree of one; the row's jump pointer is always the root
//! of the tree after its own, so key-at-revision follows O(log n) pointers. The entry carries the roots, so that
//! appending reads no row.
//!
//! Binary form (LEB128 unless said otherwise), canonical, one per entry:
//! ```text
//! flags u8 (1 lease, 2 several versions)   row.main   row.sub
//! version (0 = tombstone)   if version > 0: row.main - create   if lease: i64 LE
//! if several: chain length, number of older roots, then per root: main distance to the root before, sub
//! ```
//!
//! Invariants
//! - I1: `row` is the newest row of the key; `version == 0` exactly for a tombstone, which has no create and no lease.
//! - I2: older roots descend strictly and lie below `row`; roots at or below the compacted revision are dropped (a
//!   pointer there is never followed further), so the list is a prefix of the skew-binary one.

/// A point in the history: main revision and the position inside it. Also the address of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The revision clients see.
    pub main: i64,
    /// The position of the change inside it, from 0.
    pub sub: u32,
}

impl Revision {
    /// "No row": the end of a chain. No change has main revision 0.
    pub const NONE: Self = Self { main: 0, sub: 0 };

    /// Whether this names no row.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.main == 0
    }
}

/// The newest state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// The newest row; `row.main` is the modification revision.
    pub row: Revision,
    /// Creation revision of the current generation; 0 for a tombstone.
    pub create: i64,
    /// Puts in the current generation; 0 for a tombstone.
    pub version: i64,
    /// The lease, 0 for none.
    pub lease: i64,
    /// The chain this entry is the head of.
    pub chain: Chain,
}

/// The skew-binary roots of a chain; the newest root is the entry's own row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    rows: u64,
    older: Roots,
}

/// Roots below the newest, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    /// The usual case, in place. Unused slots are `NONE`.
    Inline([Revision; ROOTS_INLINE]),
    /// More than fit in place.
    Spilled(Vec<Revision>),
}

const ROOTS_INLINE: usize = 2;

impl Default for Roots {
    fn default() -> Self {
        Self::Inline([Revision::NONE; ROOTS_INLINE])
    }
}

impl KeyEntry {
    /// Whether the key is deleted.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Appends the binary form.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        todo!()
    }

    /// Reads the binary form, which must fill `bytes`. `None`: malformed.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        todo!()
    }

    /// Whether the binary form is of a live key, without decoding it; for subtree counts. `None`: malformed.
    #[must_use]
    pub fn decode_is_live(bytes: &[u8]) -> Option<bool> {
        todo!()
    }
}
