//! The hard state and its two copies; docs/format/wal.md section 5.
//!
//! Owns: the copies' bytes, and the order in which a generation reaches both. Does not know: when a vote or term
//! changes.
//!
//! Invariants
//! - I1: a generation is durable when both copies of it are; the second is written after the first completed.
//! - I2: at most one generation is being written; what changes meanwhile goes into the next one.
//! - I3: at any moment one copy holds the generation last durable, or the one recovered.

use crate::ids::{BootNumber, Generation, Identity, Index, MemberId, Term};
use crate::wal::frame::{
    BLOCK_BYTES, FORMAT_VERSION, SECTOR_BYTES, checksum_holds, get_identity, get_u32, get_u64, put_checksum,
    put_identity, put_u32, put_u64,
};

const MAGIC: &[u8; 8] = b"TRILHARD";
const VERSION: usize = 8;
const GENERATION: usize = 16;
const IDENTITY: usize = 24;
const TERM: usize = 48;
const VOTE: usize = 56;
const COMMIT: usize = 64;
const BOOT: usize = 72;
const SECTOR: usize = SECTOR_BYTES as usize;

/// What a member must not forget besides its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// Version of this record.
    pub generation: Generation,
    /// Whose it is.
    pub identity: Identity,
    /// The present term.
    pub term: Term,
    /// Who got this member's vote in that term.
    pub vote: Option<MemberId>,
    /// A commit index within the own durable log; the real one may be higher.
    pub commit: Index,
    /// How often the directory was started.
    pub boot_number: BootNumber,
}

/// What a copy turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardStateCopy {
    /// Intact.
    Valid(HardState),
    /// No file, or nothing but zeros.
    Absent,
    /// Intact, but of another format version.
    OtherVersion(u32),
    /// Anything else.
    Damaged,
}

impl HardState {
    /// The 4096 bytes of a copy.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK_BYTES as usize];
        let sector = &mut block[..SECTOR];
        sector[..8].copy_from_slice(MAGIC);
        put_u32(sector, VERSION, FORMAT_VERSION);
        put_u64(sector, GENERATION, self.generation.0);
        put_identity(sector, IDENTITY, self.identity);
        put_u64(sector, TERM, self.term.0);
        put_u64(sector, VOTE, self.vote.map_or(0, |member| member.0));
        put_u64(sector, COMMIT, self.commit.0);
        put_u64(sector, BOOT, self.boot_number.0);
        put_checksum(sector);
        block
    }

    /// Reads a copy.
    #[must_use]
    pub fn decode(bytes: Option<&[u8]>) -> HardStateCopy {
        let Some(bytes) = bytes else { return HardStateCopy::Absent };
        if bytes.iter().all(|byte| *byte == 0) {
            return HardStateCopy::Absent;
        }
        let Some(sector) = bytes.get(..SECTOR) else { return HardStateCopy::Damaged };
        if !sector.starts_with(MAGIC) || !checksum_holds(sector) {
            return HardStateCopy::Damaged;
        }
        if get_u32(sector, VERSION) != FORMAT_VERSION {
            return HardStateCopy::OtherVersion(get_u32(sector, VERSION));
        }
        let vote = get_u64(sector, VOTE);
        let state = Self {
            generation: Generation(get_u64(sector, GENERATION)),
            identity: get_identity(sector, IDENTITY),
            term: Term(get_u64(sector, TERM)),
            vote: (vote != 0).then_some(MemberId(vote)),
            commit: Index(get_u64(sector, COMMIT)),
            boot_number: BootNumber(get_u64(sector, BOOT)),
        };
        let counters = [state.generation.0, state.term.0, state.commit.0, state.boot_number.0];
        // Counters at the end of their range could not be followed; no honest file gets near.
        if counters.iter().any(|counter| *counter > u64::MAX / 2) {
            return HardStateCopy::Damaged;
        }
        HardStateCopy::Valid(state)
    }
}

/// One copy to be written.
#[derive(Debug)]
pub(crate) struct CopyWrite {
    pub(crate) generation: Generation,
    pub(crate) copy: u8,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug)]
struct Writing {
    state: HardState,
    copy: u8,
    is_second: bool,
    issued: bool,
}

/// Carries generations to both copies.
#[derive(Debug)]
pub(crate) struct HardStateWriter {
    wanted: HardState,
    durable: Option<HardState>,
    writing: Option<Writing>,
    dirty: bool,
    first_copy: u8,
}

impl HardStateWriter {
    /// `wanted` follows what was recovered; `first_copy` is the copy that may be lost (I3).
    pub(crate) fn new(wanted: HardState, first_copy: u8) -> Self {
        assert!(first_copy < 2, "there are two copies");
        Self { wanted, durable: None, writing: None, dirty: true, first_copy }
    }

    pub(crate) fn set(&mut self, term: Term, vote: Option<MemberId>, commit: Index) {
        assert!(term >= self.wanted.term, "a term never goes back");
        assert!(
            term > self.wanted.term || self.wanted.vote.is_none() || vote == self.wanted.vote,
            "a vote never changes within a term"
        );
        if (term, vote) != (self.wanted.term, self.wanted.vote) {
            self.dirty = true;
        }
        self.wanted.term = term;
        self.wanted.vote = vote;
        self.wanted.commit = commit.max(self.wanted.commit);
    }

    /// True if everything set so far is durable.
    pub(crate) fn is_settled(&self) -> bool {
        !self.dirty && self.writing.is_none()
    }

    pub(crate) fn durable_generation(&self) -> Generation {
        self.durable.map_or(Generation::ZERO, |state| state.generation)
    }

    pub(crate) fn boot_number(&self) -> BootNumber {
        self.wanted.boot_number
    }

    pub(crate) fn poll(&mut self) -> Option<CopyWrite> {
        if self.writing.is_none() && self.dirty {
            self.dirty = false;
            self.wanted.generation = self.wanted.generation.next();
            self.writing = Some(Writing { state: self.wanted, copy: self.first_copy, is_second: false, issued: false });
        }
        let writing = self.writing.as_mut().filter(|writing| !writing.issued)?;
        writing.issued = true;
        Some(CopyWrite { generation: writing.state.generation, copy: writing.copy, bytes: writing.state.encode() })
    }

    pub(crate) fn handle_complete(&mut self, generation: Generation, copy: u8) {
        let writing = self.writing.as_mut().expect("a completion answers a write in progress");
        assert_eq!((writing.state.generation, writing.copy), (generation, copy), "I2: one copy is in flight");
        assert!(writing.issued, "a write completes after it was issued");
        if writing.is_second {
            self.durable = Some(writing.state);
            self.writing = None;
        } else {
            writing.copy = 1 - copy;
            writing.is_second = true;
            writing.issued = false;
        }
    }
}
