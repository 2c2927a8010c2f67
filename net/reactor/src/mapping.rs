//! Read-only mappings of fixed-size files.
//!
//! Owns: the mapping's life and the bounds of the slices taken from it. Does not know: what is in a page, which threads
//! read it.
//!
//! Invariants
//! - I1: a mapped file is never truncated while the mapping lives (files have a fixed size from creation on).
//! - I2: no thread reads a range while the shell writes it: store pages are written before they are named by anything
//!   and are not rewritten while anything names them. Hence a slice does not change while it is borrowed.
//! - I3: pages come in by `populate` alone: the kernel reads nothing around them, so that what is resident is what was
//!   asked for.

use crate::port::MappedBytes;
use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};
use std::fs::File;
use std::io;

/// Read ahead of a populate in one request: the kernel cuts longer ones short.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// A whole file, mapped once.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: MmapRaw,
}

impl Mapping {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let map = MmapOptions::new().map_raw_read_only(file)?;
        // I3: without it the kernel guesses at a scan and reads megabytes around a page.
        map.advise(Advice::Random)?;
        Ok(Self { map })
    }

    fn range_is_inside(&self, offset: u64, len: usize) -> Option<usize> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.map.len()).then_some(start)
    }

    /// Starts reading a range as a whole: populating alone would read one page after the other. What is wrong with the
    /// range, the populate says.
    pub(crate) fn begin_populate(&self, offset: u64, len: usize) {
        let Some(start) = self.range_is_inside(offset, len) else { return };
        for part in (0..len).step_by(READ_AHEAD_BYTES) {
            let _ = self.map.advise_range(Advice::WillNeed, start + part, READ_AHEAD_BYTES.min(len - part));
        }
    }

    /// Brings a range into memory; an unreadable page is an error here instead of a SIGBUS later. Blocks.
    pub(crate) fn populate(&self, offset: u64, len: usize) -> io::Result<()> {
        let start = self
            .range_is_inside(offset, len)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "range beyond the mapping"))?;
        self.map.advise_range(Advice::PopulateRead, start, len)
    }

    /// Takes a range out of this process's memory; the next access reads it again, at the cost of a fault.
    pub(crate) fn release(&self, offset: u64, len: usize) {
        let Some(start) = self.range_is_inside(offset, len) else { return };
        // SAFETY: the mapping is shared and its file is only written to past it, so a page that is dropped comes back
        // from the file with the same bytes (I2); nothing is lost.
        let released = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        released.expect("a range inside a mapping of whole pages can be released");
    }
}

impl MappedBytes for Mapping {
    fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = self.range_is_inside(offset, len)?;
        // SAFETY: the range lies inside the mapping, which lives as long as `self`; the pages stay valid (I1) and do
        // not change under the borrow (I2).
        Some(unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(start), len) })
    }
}
