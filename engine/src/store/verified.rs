//! Which index pages were verified since they were read from their file.
//!
//! Owns: one mark per unit of the index files, and the geometry that turns page numbers into blocks. Does not know:
//! checksums, trees, residency.
//!
//! Shared by all trees of a store, on any core: marks are relaxed atomics, because a lost or late mark only means
//! that a page is verified twice.
//!
//! Invariants
//! - I1: a mark is cleared before its unit is written anew and whenever its memory is released.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::page_source::{Block, FileKind, StoreFile};
use crate::store::page::{PageId, UNIT_BYTES};

/// The geometry of the index files and the marks of their units.
#[derive(Debug)]
pub struct Verified {
    file_units: u32,
    /// By file; made at the first mark in it.
    marks: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl Verified {
    /// No unit is marked.
    #[must_use]
    pub fn new(file_units: u32, files_max: u32) -> Self {
        assert!(file_units > 0 && file_units.is_multiple_of(64), "an index file is a multiple of 256 KiB");
        assert!(u64::from(file_units) * u64::from(files_max) <= u64::from(u32::MAX), "page numbers are 32 bits");
        Self { file_units, marks: (0..files_max).map(|_| OnceLock::new()).collect() }
    }

    /// Units of a file.
    #[must_use]
    pub fn file_units(&self) -> u32 {
        self.file_units
    }

    /// Where a run of units stands. It lies in one file unless the bytes that named it are damaged; then the block
    /// reaches beyond its file's end and cannot be read.
    #[must_use]
    pub fn block(&self, page: PageId, units: u32) -> Block {
        let file = StoreFile { kind: FileKind::Index, number: page.0 / self.file_units };
        let offset = u64::from(page.0 % self.file_units) * UNIT_BYTES as u64;
        Block { file, offset, len: units.saturating_mul(UNIT_BYTES as u32) }
    }

    /// The page that starts at this place of an index file.
    #[must_use]
    pub fn page_at(&self, file: StoreFile, offset: u64) -> PageId {
        let unit = u32::try_from(offset / UNIT_BYTES as u64).expect("a file has 32-bit units");
        PageId(file.number * self.file_units + unit)
    }

    /// Whether a page needs no verification.
    #[must_use]
    pub fn is_marked(&self, page: PageId) -> bool {
        let (file, word, bit) = self.place(page);
        let words = self.marks.get(file).and_then(OnceLock::get);
        words.is_some_and(|words| words[word].load(Ordering::Relaxed) & bit != 0)
    }

    /// Marks a page's first unit.
    pub fn mark(&self, page: PageId) {
        let (file, word, bit) = self.place(page);
        let Some(words) = self.marks.get(file) else { return };
        let words = words.get_or_init(|| (0..self.file_units / 64).map(|_| AtomicU64::new(0)).collect());
        words[word].fetch_or(bit, Ordering::Relaxed);
    }

    /// Clears the marks of a run.
    pub fn clear(&self, page: PageId, units: u32) {
        let (mut unit, end) = (page.0, page.0.saturating_add(units));
        while unit < end {
            let (file, word, _) = self.place(PageId(unit));
            // As far as the word goes; files begin at words.
            let bit = unit % self.file_units % 64;
            let bits = (end - unit).min(64 - bit);
            if let Some(words) = self.marks.get(file).and_then(OnceLock::get) {
                words[word].fetch_and(!(u64::MAX >> (64 - bits) << bit), Ordering::Relaxed);
            }
            unit += bits;
        }
    }

    /// Clears the marks of a block of an index file that was released from memory, and of any page that reaches into
    /// it from before: a page's mark is its first unit's.
    pub fn clear_block(&self, block: Block) {
        if block.file.kind != FileKind::Index || block.file.number as usize >= self.marks.len() {
            return;
        }
        let base = block.file.number * self.file_units;
        let unit = |byte: u64| u32::try_from(byte / UNIT_BYTES as u64).unwrap_or(u32::MAX).min(self.file_units);
        let end = unit((block.offset + u64::from(block.len)).next_multiple_of(UNIT_BYTES as u64));
        let first = unit(block.offset);
        self.clear(PageId(base + first), end.saturating_sub(first));
        // Pages do not overlap, so only the last marked one before the block can reach into it.
        if let Some(before) = self.last_marked(block.file.number as usize, first) {
            self.clear(PageId(base + before), 1);
        }
    }

    /// The last marked unit of a file below this one.
    fn last_marked(&self, file: usize, below: u32) -> Option<u32> {
        let words = self.marks.get(file)?.get()?;
        let (word, bit) = ((below / 64) as usize, below % 64);
        let in_word = |at: usize, marks: u64| marks.checked_ilog2().map(|bit| at as u32 * 64 + bit);
        let partial = words.get(word).map_or(0, |marks| marks.load(Ordering::Relaxed) & ((1 << bit) - 1));
        in_word(word, partial).or_else(|| (0..word).rev().find_map(|at| in_word(at, words[at].load(Ordering::Relaxed))))
    }

    /// Clears everything.
    pub fn clear_all(&self) {
        for words in self.marks.iter().filter_map(OnceLock::get) {
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    fn place(&self, page: PageId) -> (usize, usize, u64) {
        let unit = page.0 % self.file_units;
        ((page.0 / self.file_units) as usize, (unit / 64) as usize, 1 << (unit % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_follow_writes_and_releases() {
        let verified = Verified::new(128, 3);
        for page in [0, 5, 64, 127, 128, 300] {
            assert!(!verified.is_marked(PageId(page)));
            verified.mark(PageId(page));
            assert!(verified.is_marked(PageId(page)));
        }
        verified.clear(PageId(60), 10);
        assert!(!verified.is_marked(PageId(64)) && verified.is_marked(PageId(5)));
        // A page that starts before the released block may reach into it.
        let file = StoreFile { kind: FileKind::Index, number: 0 };
        verified.clear_block(Block { file, offset: 6 * 4096, len: 4096 });
        assert!(!verified.is_marked(PageId(5)) && verified.is_marked(PageId(0)) && verified.is_marked(PageId(127)));
        verified.clear_all();
        assert!([0, 127, 128, 300].iter().all(|&page| !verified.is_marked(PageId(page))));
        verified.mark(PageId(1 << 20));
        assert!(!verified.is_marked(PageId(1 << 20)), "a page beyond the last file is never marked");
    }

    /// Against one flag per unit, over ranges that begin and end anywhere.
    #[test]
    fn runs_of_any_shape_are_cleared_to_the_unit() {
        const UNITS: u32 = 256;
        let mut rng = crate::store::tree::tests::Rng(5);
        for round in 0..2000_u32 {
            let verified = Verified::new(UNITS, 2);
            let mut marked = vec![false; 2 * UNITS as usize];
            for _ in 0..rng.below(1 + u64::from(round % 200)) {
                let page = rng.below(2 * u64::from(UNITS)) as u32;
                verified.mark(PageId(page));
                marked[page as usize] = true;
            }
            let from = rng.below(u64::from(UNITS)) as u32;
            let units = rng.below(u64::from(UNITS - from) + 1) as u32;
            let number = rng.below(2) as u32;
            let first = number * UNITS + from;
            marked[first as usize..(first + units) as usize].fill(false);
            if round % 2 == 0 {
                verified.clear(PageId(first), units);
            } else {
                let file = StoreFile { kind: FileKind::Index, number };
                verified.clear_block(Block {
                    file,
                    offset: u64::from(from) * 4096 + 1,
                    len: (units * 4096).max(2) - 1,
                });
                marked[first as usize] = false;
                let before = (number * UNITS..first).rev().find(|&unit| marked[unit as usize]);
                before.into_iter().for_each(|unit| marked[unit as usize] = false);
            }
            let found: Vec<bool> = (0..2 * UNITS).map(|unit| verified.is_marked(PageId(unit))).collect();
            assert!(found == marked, "round {round}: {units} units from {first}");
        }
    }

    #[test]
    fn blocks_of_damaged_references_lie_outside_every_file() {
        let verified = Verified::new(64, 2);
        assert_eq!(verified.block(PageId(65), 2).offset, 4096);
        let beyond = verified.block(PageId(u32::MAX), u32::MAX);
        assert!(beyond.len >= 4096 * 64 || beyond.file.number >= 2);
    }
}
