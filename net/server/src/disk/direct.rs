//! Reads of the medium itself, past mapping and cache: what a failed checksum and the scrubber ask for.
//!
//! Owns: which blocks are under suspicion, and how often they were read again. Does not know: checksums.
//!
//! A block whose checksum failed is read directly and compared with the mapping. The same bytes: the medium is damaged.
//! Other bytes: memory was; the block is released, loaded again and evaluated again.
//!
//! Invariants
//! - I1: a block is read again [`REREADS_MAX`] times at most while it stays in memory; then it counts as damaged.

use std::collections::BTreeMap;
use std::fmt;

use trilith_engine::page_source::{Block, StoreFile};
use trilith_raftlog::wal::{hard_state_file_name, segment_file_name};
use trilith_reactor::{FileId, Port};

use super::{Completion, Disk, Purpose, store_file_name};

const REREADS_MAX: u32 = 3;

/// A file of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A store file.
    Store(StoreFile),
    /// A hard-state copy.
    HardState(u8),
    /// A log segment, by slot.
    Segment(u32),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match *self {
            Self::Store(file) => store_file_name(file),
            Self::HardState(copy) => hard_state_file_name(copy),
            Self::Segment(slot) => segment_file_name(slot),
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Suspect {
    rereads: u32,
    is_being_read: bool,
}

/// Blocks whose checksum failed.
#[derive(Debug, Default)]
pub(super) struct Suspects(BTreeMap<Block, Suspect>);

impl Suspects {
    pub(super) fn is_being_read(&self, block: Block) -> bool {
        self.0.get(&block).is_some_and(|suspect| suspect.is_being_read)
    }

    /// A range has left memory: what comes back of it is above suspicion.
    pub(super) fn forget(&mut self, range: Block) {
        if !self.0.is_empty() {
            self.0.retain(|block, suspect| suspect.is_being_read || !overlap(*block, range));
        }
    }
}

fn overlap(one: Block, other: Block) -> bool {
    let end = |block: Block| block.offset + u64::from(block.len);
    one.file == other.file && one.offset < end(other) && other.offset < end(one)
}

impl Disk {
    /// A block's checksum failed: asks the medium, unless that is under way. `false`: there is nothing to ask, or it
    /// was asked often enough.
    pub fn recheck<P: Port>(&mut self, port: &mut P, block: Block) -> bool {
        let Some(open) = self.store.file(block.file) else { return false };
        let is_inside = block.offset.checked_add(u64::from(block.len)).is_some_and(|end| end <= open.bytes);
        let id = open.id;
        let suspect = self.suspects.0.entry(block).or_default();
        if suspect.is_being_read {
            return true;
        }
        if !is_inside || block.len == 0 || suspect.rereads == REREADS_MAX {
            return false;
        }
        suspect.rereads += 1;
        suspect.is_being_read = true;
        let submission = self.token(Purpose::Recheck { block });
        port.read(submission, id, block.offset, block.len as usize);
        true
    }

    /// The medium's bytes of a suspect have come.
    pub(super) fn compare<P: Port>(&mut self, port: &mut P, block: Block, medium: &[u8]) -> Completion {
        if let Some(suspect) = self.suspects.0.get_mut(&block) {
            suspect.is_being_read = false;
        }
        self.remove_unread_files(port);
        let Some(id) = self.store_file(block.file) else { return Completion::Loaded };
        let is_in_memory = self.store.holds(block);
        if is_in_memory && port.mapped(id, block.offset, block.len as usize) == Some(medium) {
            return Completion::Corrupt { block };
        }
        self.store.forget(block);
        let (offset, len) = super::whole_chunks(block, self.store.file(block.file).map_or(0, |open| open.bytes));
        port.release(id, offset, len);
        self.load(port, block);
        let len = u32::try_from(len).expect("a block is far below 4 GiB");
        Completion::Reread { block: Block { offset, len, ..block } }
    }

    /// Reads the medium; ends in [`Completion::Direct`]. `false`: no such file is open. Whole blocks of 4096 bytes.
    pub fn read_direct<P: Port>(&mut self, port: &mut P, source: Source, offset: u64, len: usize) -> bool {
        let Some(id) = self.source_id(source) else { return false };
        let submission = self.token(Purpose::Direct { source });
        port.read(submission, id, offset, len);
        true
    }

    fn source_id(&self, source: Source) -> Option<FileId> {
        match source {
            Source::Store(file) => self.store_file(file),
            Source::HardState(copy) => *self.hard_state.get(usize::from(copy))?,
            Source::Segment(slot) => self.segment(slot),
        }
    }
}
