//! From new pages to writes.
//!
//! Owns: the pages of a checkpoint that are made but not handed out, joined into contiguous writes. Does not know:
//! trees, when writes leave.
//!
//! Invariants
//! - I1: a write is contiguous, inside one file, and at most `write_bytes_max` long; every page made is in exactly one
//!   write, or in consecutive ones if it is longer.

use std::collections::VecDeque;

use crate::store::extents::{Extents, Run};
use crate::store::page::{PageId, PageRef, UNIT_BYTES};
use crate::store::tree::builder::PageSink;
use crate::store::verified::Verified;

/// Pages on their way to the files.
#[derive(Debug)]
pub(crate) struct PageWriter {
    write_bytes_max: usize,
    file_units: u32,
    open: Vec<u8>,
    open_at: PageId,
    sealed: VecDeque<(PageId, Vec<u8>)>,
    /// All units written by the checkpoint.
    written: Vec<Run>,
}

impl PageWriter {
    pub(crate) fn new(write_bytes_max: u32, file_units: u32) -> Self {
        let write_bytes_max = write_bytes_max as usize;
        assert!(write_bytes_max > 0 && write_bytes_max.is_multiple_of(UNIT_BYTES), "a write is whole units");
        let (open, open_at) = (Vec::new(), PageId(0));
        Self { write_bytes_max, file_units, open, open_at, sealed: VecDeque::new(), written: Vec::new() }
    }

    /// Takes a page and returns its checksum.
    pub(crate) fn write(&mut self, page: PageId, encode: &mut dyn FnMut(&mut Vec<u8>)) -> u32 {
        let end = self.open_at.0 + (self.open.len() / UNIT_BYTES) as u32;
        if end != page.0 || page.0.is_multiple_of(self.file_units) || self.open.is_empty() {
            self.seal();
            self.open_at = page;
            self.open.reserve(self.write_bytes_max);
        }
        let begin = self.open.len();
        encode(&mut self.open);
        let checksum = crc32fast::hash(&self.open[begin..]);
        self.note_written(Run { page, units: ((self.open.len() - begin) / UNIT_BYTES) as u32 });
        if begin > 0 && self.open.len() > self.write_bytes_max {
            let rest = self.open.split_off(begin);
            self.seal();
            (self.open, self.open_at) = (rest, page);
        }
        while self.open.len() > self.write_bytes_max {
            let rest = self.open.split_off(self.write_bytes_max);
            let next = PageId(self.open_at.0 + (self.open.len() / UNIT_BYTES) as u32);
            self.seal();
            (self.open, self.open_at) = (rest, next);
        }
        checksum
    }

    /// Makes everything taken ready to go.
    pub(crate) fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push_back((self.open_at, std::mem::take(&mut self.open)));
        }
    }

    /// The next write.
    pub(crate) fn pop(&mut self) -> Option<(PageId, Vec<u8>)> {
        self.sealed.pop_front()
    }

    /// Every run of units written, joined where contiguous within a file.
    pub(crate) fn written(&self) -> &[Run] {
        &self.written
    }

    fn note_written(&mut self, run: Run) {
        match self.written.last_mut() {
            Some(last) if last.page.0 + last.units == run.page.0 && !run.page.0.is_multiple_of(self.file_units) => {
                last.units += run.units;
            }
            _ => self.written.push(run),
        }
    }
}

/// Where a merge's pages go: units from the extents, bytes to the writer.
pub(crate) struct Sink<'a> {
    pub(crate) extents: &'a mut Extents,
    pub(crate) verified: &'a Verified,
    pub(crate) writer: &'a mut PageWriter,
    pub(crate) generation: u64,
}

impl PageSink for Sink<'_> {
    fn allocate(&mut self, units: u16) -> PageId {
        let page = self.extents.allocate(units);
        self.verified.clear(page, u32::from(units));
        page
    }

    fn write(&mut self, page: PageId, encode: &mut dyn FnMut(&mut Vec<u8>)) -> u32 {
        self.writer.write(page, encode)
    }

    fn free(&mut self, page: PageRef) {
        self.extents.free(Run { page: page.page, units: u32::from(page.units) });
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}
