//! Read-only mappings of fixed-size files.
//!
//! Owns: the mapping's life and the bounds of the slices taken from it. Does not know: what is in a page.
//!
//! Invariants
//! - I1: a mapped file is never truncated while the mapping lives (files have a fixed size from creation on).
//! - I2: the shell reads no range that it is writing at the same time: store pages are written before they are named by
//!   anything and are not rewritten while anything names them. Hence a slice does not change while it is borrowed.

use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::File;
use std::io;

/// A whole file, mapped once.
pub(crate) struct Mapping {
    map: MmapRaw,
}

impl Mapping {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().map_raw_read_only(file)? })
    }

    fn range_is_inside(&self, offset: u64, len: usize) -> Option<usize> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.map.len()).then_some(start)
    }

    /// The bytes of a range, or `None` if it reaches beyond the file. Touches no page.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = self.range_is_inside(offset, len)?;
        // SAFETY: the range lies inside the mapping, which lives as long as `self`; the pages stay valid (I1) and do
        // not change under the borrow (I2).
        Some(unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(start), len) })
    }

    /// Brings a range into memory; an unreadable page is an error here instead of a SIGBUS later. Blocks.
    pub(crate) fn populate(&self, offset: u64, len: usize) -> io::Result<()> {
        let start = self
            .range_is_inside(offset, len)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "range beyond the mapping"))?;
        self.map.advise_range(Advice::PopulateRead, start, len)
    }
}
