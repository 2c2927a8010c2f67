//! The store's blocks for other threads: a snapshot of the open files, read as the sequencer reads them.
//!
//! Owns: which files a snapshot has, and what a reader may do with their marks. Does not know: what the bytes mean,
//! who reads, how what is missing comes.
//!
//! The sequencer lends a state of the engine that does not change meanwhile, together with the snapshot of that turn
//! ([`Disk::share`]). A reader never loads: it gives back what it cannot read, and the sequencer evaluates that at
//! home. What goes on at the same time, and why it does no harm:
//!
//! - *Writes.* A checkpoint writes to pages that the lent tree does not name; one that it names is not rewritten, nor
//!   is its room given back, while it is lent. A write makes the whole chunk count as not in memory: readers of its
//!   other pages find them missing, or, if they looked before, read what they always read and may wait for the medium.
//! - *Loads.* A chunk whose load has ended is in memory for everybody from then on.
//! - *Rereads.* A block that is suspected in memory is forgotten, released and loaded again. Who reads it right then
//!   waits for the medium, and gets what a checksum finds right, or wrong as before.
//! - *New files.* The lent tree names none. The next snapshot has them.
//! - *Removed files.* A snapshot keeps their mappings, memory and room until it is dropped, by whomever: who drops the
//!   last one does the work of freeing them. The sequencer's own copy goes with the removal.
//! - *Eviction.* [`Disk::release_cold`] is not called while a snapshot is being read; the lender sees to that. If it
//!   were, a reader could wait for the medium, and read no wrong byte. Reads before it count as the sequencer's own do.
//!
//! Invariants
//! - I1: a block is answered as [`super::Pages`] answers it, but that a file which the snapshot does not have is
//!   missing, not corrupt: it may be one that cannot be shared.
//! - I2: a reader changes nothing but marks, and of these none of a chunk that is not in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trilith_engine::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use trilith_reactor::{Port, SharedMapping};

use super::Disk;
use super::marks::Mark;
use super::residency::chunks_inside;

/// One file of a snapshot.
#[derive(Debug)]
pub(super) struct SharedFile {
    pub(super) bytes: u64,
    pub(super) marks: Arc<[Mark]>,
    pub(super) mapping: SharedMapping,
}

/// The index and row files that were open in a turn, for any thread.
#[derive(Debug)]
pub struct SharedPages {
    index: Vec<Option<SharedFile>>,
    rows: Vec<Option<SharedFile>>,
    /// The last turn in which it was lent.
    turn: AtomicU64,
}

impl SharedPages {
    pub(super) fn new(index: Vec<Option<SharedFile>>, rows: Vec<Option<SharedFile>>) -> Self {
        Self { index, rows, turn: AtomicU64::new(0) }
    }

    /// It is lent in this turn.
    pub(super) fn set_turn(&self, turn: u64) {
        self.turn.store(turn, Ordering::Relaxed);
    }

    fn file(&self, file: StoreFile) -> Option<&SharedFile> {
        let family = match file.kind {
            FileKind::Superblock => return None,
            FileKind::Index => &self.index,
            FileKind::Rows => &self.rows,
        };
        family.get(file.number as usize)?.as_ref()
    }
}

impl PageSource for SharedPages {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        let file = self.file(block.file).ok_or(Unavailable::Missing(block))?;
        let inside = chunks_inside(block, file.bytes).ok_or(Unavailable::Corrupt(block))?;
        let turn = self.turn.load(Ordering::Relaxed);
        if !file.marks[inside].iter().all(|mark| mark.touch(turn)) {
            return Err(Unavailable::Missing(block));
        }
        file.mapping.bytes(block.offset, block.len as usize).ok_or(Unavailable::Corrupt(block))
    }
}

impl Disk {
    /// The files as they are open now, for other threads. Costs next to nothing unless one was opened or removed since
    /// the last call. See the head of `shared.rs` for what the lender answers for.
    pub fn share<P: Port>(&mut self, port: &P) -> Arc<SharedPages> {
        self.store.share(|id| port.shared_mapping(id))
    }
}
