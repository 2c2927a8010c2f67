//! The numbers of the log, each its own type so that none can stand for another.
//!
//! Owns: newtypes and their little arithmetic. Does not know: what is stored under them.
//!
//! Invariants
//! - I1: every counter only grows; running out of 64 bits is a programming error and ends the process.

use std::fmt;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The one before any real value.
            pub const ZERO: Self = Self(0);

            /// The successor (I1).
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("I1: a 64-bit counter never runs out"))
            }

            /// The predecessor; zero stays zero.
            #[must_use]
            pub fn previous(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    };
}

counter! {
    /// Position of an entry in the replicated log, from 1.
    Index
}
counter! {
    /// A raft term. The initial configuration has term 1, the first leader term 2.
    Term
}
counter! {
    /// Log sequence number: one batch, one write; from 1, never reused on a member but after a discarded tail.
    Lsn
}
counter! {
    /// Version of the hard state, from 1.
    Generation
}
counter! {
    /// How often this data directory was started, from 1.
    BootNumber
}
counter! {
    /// Number of a segment's present life; a recycled slot gets a higher one. From 1.
    SegmentSequence
}
identifier! {
    /// A member of the cluster; zero is nobody.
    MemberId
}
identifier! {
    /// The cluster.
    ClusterId
}
identifier! {
    /// Random number made with the data directory.
    Incarnation
}

/// A 128-bit xxh3 digest; zero stands before the first link of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// What the first link of a chain follows.
    pub const ZERO: Self = Self(0);
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a data directory is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
    /// The member it belongs to.
    pub member_id: MemberId,
    /// Random number made with the directory.
    pub incarnation: Incarnation,
}

/// What must be durable before an effect may be carried out: the contiguous LSN prefix and the hard state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// All batches up to here are durable; zero asks for none.
    pub lsn: Lsn,
    /// Both copies of this generation (or a later one) are durable; zero asks for none.
    pub generation: Generation,
}

impl Durability {
    /// Asks for nothing.
    pub const NONE: Self = Self { lsn: Lsn::ZERO, generation: Generation::ZERO };

    /// True if a medium that has reached `reached` satisfies this demand.
    #[must_use]
    pub fn is_met_by(self, reached: Self) -> bool {
        self.lsn <= reached.lsn && self.generation <= reached.generation
    }
}
