//! Room on the file system that is given back.
//!
//! Owns: discards and removals under way. Does not know: what is free, how the file system does it. A creation or a
//! write that finds no room is the shell's to repeat: here it takes long, the checkpoint waits and rows stay in memory.
//!
//! Invariants
//! - I1: a file is removed only when no discard of it is under way, and nothing is submitted for it afterwards.
//! - I2: units under discard are not allocated: a late discard cannot hit a new page.

use crate::page_source::{FileKind, StoreFile};
use crate::store::checkpoint::{Purpose, Store};
use crate::store::effect::StoreEffect;
use crate::store::extents::Run;
use crate::store::page::UNIT_BYTES;

impl Store {
    /// Returns all free room from now on that the next checkpoint will not need; or keeps more at hand again.
    pub fn set_thorough_release(&mut self, thorough: bool) {
        self.thorough_release = thorough;
    }

    /// Whether room is being given back.
    #[must_use]
    pub fn is_releasing(&self) -> bool {
        let releases = |purpose: &Purpose| matches!(purpose, Purpose::Discard { .. } | Purpose::Remove);
        !self.removals_held.is_empty() || self.in_flight.values().any(releases)
    }

    /// Gives back free extents beyond what checkpoints are likely to need.
    pub(super) fn discard_extents(&mut self) {
        for run in self.extents.take_discards(self.thorough_release) {
            let block = self.verified.block(run.page, run.units);
            self.discard(block.file, block.offset, u64::from(run.units) * UNIT_BYTES as u64);
        }
    }

    pub(super) fn discard(&mut self, file: StoreFile, offset: u64, len: u64) {
        let token = self.token(Purpose::Discard { file, offset, len });
        self.queue.push_back(StoreEffect::Discard { token, file, offset, len });
    }

    /// Removes a file, behind discards of it that are under way (I1).
    pub(super) fn remove_file(&mut self, file: StoreFile) {
        let is_of_it = |purpose: &Purpose| matches!(purpose, Purpose::Discard { file: other, .. } if *other == file);
        if self.in_flight.values().any(is_of_it) {
            self.removals_held.push(file);
            return;
        }
        let token = self.token(Purpose::Remove);
        self.queue.push_back(StoreEffect::RemoveFile { token, file });
    }

    pub(super) fn end_discard(&mut self, file: StoreFile, offset: u64, len: u64) {
        if file.kind == FileKind::Index {
            let units = u32::try_from(len / UNIT_BYTES as u64).expect("a file has 32-bit units");
            self.extents.end_discard(Run { page: self.verified.page_at(file, offset), units });
        }
        for file in std::mem::take(&mut self.removals_held) {
            self.remove_file(file);
        }
    }
}
