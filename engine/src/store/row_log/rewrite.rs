//! Segments that replace sparse ones.
//!
//! Owns: the copy of the rows that stay, in the same order and under the same addresses, into new segment files, and
//! the moment at which these take the old ones' place. Does not know: which rows stay (`store::reclaim` says).
//!
//! While a rewrite runs, readers use the old segments. Once every write of the new ones has completed they take the old
//! ones' place in memory; the next checkpoint names and syncs them. A crash before that leaves files nothing names. No
//! checkpoint waits for the writes of a rewrite under way: on a full disk these may wait for the room that it makes.
//!
//! Invariants
//! - I1: the sources are closed segments whose blocks are all written; while they are copied, segments are only added
//!   behind them.
//! - I2: after the switch no block of the sources is in memory, so a row is found by the new segments alone.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::Revision;
use crate::store::row_block::{self, DirectoryEntry, OpenBlock, Row};
use crate::store::row_log::{RowEffect, RowLog, Segment, row_file};

/// A rewrite under way.
#[derive(Debug)]
pub(crate) struct Rewrite {
    sources: Range<usize>,
    /// The last address that a row of the sources can have.
    last: Revision,
    /// The next row to look at.
    next: Revision,
    block_bytes: u32,
    segment_bytes: u64,
    write_bytes_max: usize,
    open: OpenBlock,
    outputs: Vec<Segment>,
    /// Sealed blocks on their way into one write, and where it goes in the last output.
    buffer: Vec<u8>,
    buffer_at: u64,
    /// Writes to hand over: file, offset, bytes.
    ready: Vec<(u32, u64, Vec<u8>)>,
    /// The next file number, and how many of the outputs' files were asked for.
    next_file: u32,
    created: usize,
    /// Writes not completed.
    writes: BTreeSet<u64>,
}

impl Rewrite {
    /// The next row that has to be decided on. `None`: all were.
    pub(crate) fn next_row<'a>(
        &self,
        rows: &'a RowLog,
        pages: &'a dyn PageSource,
    ) -> Result<Option<Row<'a>>, Unavailable> {
        Ok(rows.row_from(self.next, pages)?.filter(|row| row.at <= self.last))
    }

    /// Takes over the row, which stays.
    pub(crate) fn keep(&mut self, row: &Row<'_>) {
        if self.open.is_full_for(row, self.block_bytes) {
            self.seal();
        }
        self.open.append(row);
    }

    /// Goes on behind a row that was kept or left out.
    pub(crate) fn advance(&mut self, past: Revision) {
        self.next = past.next();
    }

    /// Everything was decided on: what is at hand is made ready to be written.
    pub(crate) fn end(&mut self) {
        if !self.open.is_empty() {
            self.seal();
        }
        self.flush();
    }

    /// Writes not completed.
    pub(crate) fn writes_in_flight(&self) -> usize {
        self.writes.len()
    }

    /// Whether the write is one of these and has not completed.
    pub(super) fn awaits(&self, token: u64) -> bool {
        self.writes.contains(&token)
    }

    /// Whether the write was one of these.
    pub(super) fn handle_write_complete(&mut self, token: u64) -> bool {
        self.writes.remove(&token)
    }

    fn seal(&mut self) {
        let (first, rows) = (self.open.first(), self.open.rows_count());
        let bytes = self.open.seal();
        let len = bytes.len() as u64;
        if self.outputs.last().is_none_or(|segment| segment.used + len > self.segment_bytes) {
            self.flush();
            let above = if self.outputs.is_empty() { Revision::NONE } else { RowLog::below(first) };
            self.outputs.push(Segment { file: self.next_file, above, ..Segment::default() });
            self.next_file += 1;
            self.buffer_at = 0;
        }
        if self.buffer.len() + bytes.len() > self.write_bytes_max {
            self.flush();
        }
        let segment = self.outputs.last_mut().expect("an output was just made");
        let checksum = row_block::checksum(&bytes);
        segment.push_block(DirectoryEntry::new(first, segment.used, len, checksum, rows));
        segment.used += len;
        self.buffer.extend_from_slice(&bytes);
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let segment = self.outputs.last().expect("bytes belong to an output");
        let bytes = std::mem::take(&mut self.buffer);
        let at = self.buffer_at;
        self.buffer_at += bytes.len() as u64;
        self.ready.push((segment.file, at, bytes));
    }
}

impl RowLog {
    /// Begins to rewrite these adjacent segments. False: blocks of theirs are still being written.
    pub(crate) fn begin_rewrite(&mut self, sources: Range<usize>) -> bool {
        assert!(self.rewrite.is_none() && !sources.is_empty(), "one rewrite at a time");
        // I1: there is a segment behind the sources, the newest.
        let last = self.segments[sources.end].above;
        let written = |token: u64| self.is_written_through(token);
        if self.resident.iter().take_while(|block| block.first <= last).any(|block| !written(block.last_token)) {
            return false;
        }
        let live = self.segments[sources.clone()].iter().any(|segment| segment.dead_rows < segment.rows);
        let first = self.segments[sources.start].above.next();
        self.rewrite = Some(Rewrite {
            // Where nothing lives, nothing is read.
            next: if live { first } else { last.next() },
            last,
            sources,
            block_bytes: self.options.block_bytes,
            segment_bytes: self.options.segment_bytes,
            write_bytes_max: self.options.write_bytes_max as usize,
            open: OpenBlock::new(),
            outputs: Vec::new(),
            buffer: Vec::new(),
            buffer_at: 0,
            ready: Vec::new(),
            next_file: 0,
            created: 0,
            writes: BTreeSet::new(),
        });
        true
    }

    /// The rewrite under way, to go on with; it comes back by [`Self::resume_rewrite`] in the same step.
    pub(crate) fn take_rewrite(&mut self) -> Option<Rewrite> {
        let mut rewrite = self.rewrite.take()?;
        rewrite.next_file = self.next_file;
        Some(rewrite)
    }

    /// Takes the rewrite back and hands over its writes.
    pub(crate) fn resume_rewrite(&mut self, mut rewrite: Rewrite) {
        self.next_file = rewrite.next_file;
        for segment in &rewrite.outputs[rewrite.created..] {
            self.effects.push_back(RowEffect::CreateSegment(row_file(segment.file)));
        }
        rewrite.created = rewrite.outputs.len();
        for (file, offset, bytes) in rewrite.ready.drain(..) {
            let first = self.next_token;
            self.hand_out(file, offset, &Arc::new(bytes));
            rewrite.writes.extend(first..self.next_token);
        }
        self.rewrite = Some(rewrite);
    }

    /// Writes of the rewrite under way that have not completed.
    pub(crate) fn rewrite_writes(&self) -> usize {
        self.rewrite.as_ref().map_or(0, Rewrite::writes_in_flight)
    }

    /// Whether a rewrite is under way.
    pub(crate) fn is_rewriting(&self) -> bool {
        self.rewrite.is_some()
    }

    /// Puts the new segments in the place of the old ones; every row was decided on and every write has completed.
    pub(crate) fn end_rewrite(&mut self) {
        let mut rewrite = self.rewrite.take().expect("the caller saw it end");
        assert!(rewrite.writes.is_empty() && rewrite.ready.is_empty(), "I1: a segment is used when it is written");
        // I2: blocks leave memory oldest first; all up to the sources' were written when the rewrite began.
        while let Some(oldest) = self.resident.front()
            && oldest.first <= rewrite.last
        {
            self.resident_bytes -= oldest.bytes.len() as u64;
            self.resident.pop_front();
        }
        self.unsynced.extend(rewrite.outputs.iter().map(|segment| segment.file));
        if let Some(first) = rewrite.outputs.first_mut() {
            first.above = self.segments[rewrite.sources.start].above;
        }
        self.replace_segments(rewrite.sources, rewrite.outputs);
    }
}
