//! Room on the file system: given back, and missing.
//!
//! Owns: discards and removals under way, effects that found no room. Does not know: how room is found (the shell has a
//! reserve), alarms.
//!
//! A creation or a write that fails for lack of room has done nothing: it is kept and repeated when the shell says so
//! ([`Store::retry_no_space`]) or when something was given back. Until then the checkpoint waits and rows stay in
//! memory. Any other failure is final.
//!
//! Invariants
//! - I1: a file is removed only when no discard of it is under way, and nothing is submitted for it afterwards.
//! - I2: units under discard are not allocated: a late discard cannot hit a new page.

use crate::page_source::{FileKind, StoreFile};
use crate::store::checkpoint::{Purpose, RowFiles, Store};
use crate::store::effect::StoreEffect;
use crate::store::extents::Run;
use crate::store::page::UNIT_BYTES;

impl Store {
    /// The effect of this token found no room on the file system, and did nothing. It waits for
    /// [`Self::retry_no_space`].
    pub fn handle_no_space(&mut self, token: u64, rows: &mut dyn RowFiles) {
        let in_flight = self.in_flight.get(&token).expect("an effect is answered once");
        match in_flight.purpose {
            // What cannot be given back stays taken.
            Purpose::Discard(_) => self.handle_complete(token, rows),
            Purpose::Create(_) | Purpose::PageWrite | Purpose::RowWrite(_) => self.starved.push(token),
            Purpose::Remove | Purpose::Phase => self.handle_failed(),
        }
    }

    /// Whether effects wait for room.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Repeats what found no room: some may be there now.
    pub fn retry_no_space(&mut self) {
        for token in std::mem::take(&mut self.starved) {
            let effect = self.in_flight[&token].repeat.clone().expect("what may lack room is kept");
            self.queue.push_back(effect);
        }
    }

    /// Returns all free room from now on that the next checkpoint will not need; or keeps more at hand again.
    pub fn set_thorough_release(&mut self, thorough: bool) {
        self.thorough_release = thorough;
    }

    /// Whether room is being given back.
    #[must_use]
    pub fn is_releasing(&self) -> bool {
        let releases = |purpose: Purpose| matches!(purpose, Purpose::Discard(_) | Purpose::Remove);
        !self.removals_held.is_empty() || self.in_flight.values().any(|in_flight| releases(in_flight.purpose))
    }

    /// Gives back free extents beyond what checkpoints are likely to need.
    pub(super) fn discard_extents(&mut self) {
        for run in self.extents.take_discards(self.thorough_release) {
            let block = self.verified.block(run.page, run.units);
            self.discard(block.file, block.offset, u64::from(run.units) * UNIT_BYTES as u64);
        }
    }

    pub(super) fn discard(&mut self, file: StoreFile, offset: u64, len: u64) {
        let token = self.token(Purpose::Discard(file));
        self.send(StoreEffect::Discard { token, file, offset, len });
    }

    /// Removes a file, behind discards of it that are under way (I1).
    pub(super) fn remove_file(&mut self, file: StoreFile) {
        if self.in_flight.values().any(|in_flight| in_flight.purpose == Purpose::Discard(file)) {
            self.removals_held.push(file);
            return;
        }
        let token = self.token(Purpose::Remove);
        self.queue.push_back(StoreEffect::RemoveFile { token, file });
    }

    pub(super) fn end_discard(&mut self, effect: &StoreEffect) {
        let &StoreEffect::Discard { file, offset, len, .. } = effect else {
            unreachable!("a discard's effect is kept");
        };
        if file.kind == FileKind::Index {
            let units =
                |bytes: u64| u32::try_from(bytes / UNIT_BYTES as u64).expect("a range of a file in 32-bit units");
            self.extents.end_discard(Run { page: self.verified.page_at(file, offset), units: units(len) });
        }
        for file in std::mem::take(&mut self.removals_held) {
            self.remove_file(file);
        }
        self.retry_no_space();
    }
}
