//! The row log's space: dead rows, sparse segments, files that may go.
//!
//! Owns: the count of dead rows per segment and the place the count has reached, the choice of the segments to rewrite,
//! files that wait for checkpoints before they are removed. Does not know: which rows are dead (`store::reclaim` says).
//!
//! A dead row is counted with the average length of the rows of its block, so that counting reads no block but the
//! walk's own; when all rows of a block are dead, all its bytes are.
//!
//! Invariants
//! - I1: the cursor and the counts are of one moment, and a checkpoint stores both in one block (the segment table), so
//!   a walk that is resumed after a crash counts nothing twice and forgets nothing.
//! - I2: a retired file is removed only when two checkpoints that do not name it are durable.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::page_source::{PageSource, StoreFile, Unavailable};
use crate::store::key_entry::Revision;
use crate::store::row_block::{self, BlockKind, DirectoryEntry, TableRecord, UNIT_BYTES};
use crate::store::row_log::{RowEffect, RowLog, RowLogOptions, RowLogRoot, Segment, read_meta, row_file};

/// Shortest rest of a file that is given back: shorter ones are worth no call.
const TAIL_BYTES_MIN: u64 = 16 << 10;
/// Rests from this length on are given back again at the first checkpoint of a process: a crash may have come first.
const TAIL_BYTES_AGAIN: u64 = 1 << 20;

/// Replaced bytes that may wait to be removed at once, in segments: they take room beside what replaced them.
const RETIRED_SEGMENTS_MAX: u64 = 4;

/// How far reclaim has counted dead rows. At rest `from` and `to` are equal: all rows that are dead as of that bound
/// are counted. During a walk, rows below `next` are done, and what `from` left out and `to` takes in is counted for
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimCursor {
    /// The bound of the walk before; 0 if there was none.
    pub from: i64,
    /// The bound of this walk.
    pub to: i64,
    /// The next row.
    pub next: Revision,
}

impl ReclaimCursor {
    /// Whether a walk is under way.
    #[must_use]
    pub fn is_walking(&self) -> bool {
        self.from < self.to
    }
}

/// A segment that was replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retired {
    pub(super) file: u32,
    pub(super) used: u64,
    /// It held rows, not only what checkpoints wrote.
    pub(super) held_rows: bool,
    /// The first checkpoint that does not name it, as counted by `begun`.
    pub(super) freed_by: u64,
}

impl Segment {
    /// The segment that a table's record and its directory describe. `None`: they do not fit each other.
    pub(super) fn from_record(
        record: &TableRecord,
        blocks: Vec<DirectoryEntry>,
        options: &RowLogOptions,
    ) -> Option<Self> {
        let rows: u64 = blocks.iter().map(|entry| u64::from(entry.rows())).sum();
        let block_bytes = blocks.iter().map(DirectoryEntry::len).sum();
        // A table is read before the directories: until these are there, nothing is compared.
        let fits = blocks.len() == record.blocks as usize
            && rows == u64::from(record.rows)
            && record.dead_rows <= record.rows
            && record.dead_bytes <= block_bytes
            && block_bytes <= record.used
            && record.used <= options.segment_bytes
            && record.file != u32::MAX;
        fits.then(|| Self {
            file: record.file,
            used: record.used,
            above: record.above,
            blocks,
            directory: record.directory,
            dirty: false,
            rows: record.rows,
            block_bytes,
            dead_rows: record.dead_rows,
            dead_bytes: record.dead_bytes,
            closed_by: 0,
            tail_returned: options.segment_bytes - record.used < TAIL_BYTES_AGAIN,
        })
    }

    fn has_live_rows(&self) -> bool {
        self.dead_rows < self.rows
    }

    /// Bytes of blocks that live rows take up, about.
    fn live_bytes(&self) -> u64 {
        if self.has_live_rows() { self.block_bytes - self.dead_bytes } else { 0 }
    }
}

impl RowLog {
    /// How far dead rows are counted.
    #[must_use]
    pub fn reclaim_cursor(&self) -> ReclaimCursor {
        self.reclaim
    }

    /// Starts to count what dies as the bound moves up to `to`.
    pub(crate) fn begin_walk(&mut self, to: i64) {
        assert!(!self.reclaim.is_walking() && self.reclaim.to < to, "one walk after the other, upwards");
        // Only rows that have a segment are counted.
        if !self.open.is_empty() && self.open.first().main <= to {
            self.seal();
        }
        let from = self.reclaim.to;
        self.reclaim = ReclaimCursor { from, to, next: Revision { main: from, sub: 0 } };
    }

    /// All rows below `next` are done.
    pub(crate) fn advance_walk(&mut self, next: Revision) {
        assert!(self.reclaim.is_walking() && next >= self.reclaim.next, "a walk goes upwards");
        self.reclaim.next = next;
    }

    /// All rows up to the bound are done.
    pub(crate) fn end_walk(&mut self) {
        let to = self.reclaim.to;
        self.reclaim = ReclaimCursor { from: to, to, next: Revision::NONE };
    }

    /// Counts a row as dead. One that is not there any more, or never was, counts nothing.
    pub(crate) fn note_dead(&mut self, at: Revision) {
        let above = self.segments.partition_point(|segment| segment.above < at);
        let Some(segment) = above.checked_sub(1).map(|index| &mut self.segments[index]) else { return };
        let above = segment.blocks.partition_point(|entry| entry.first() <= at);
        let Some(entry) = above.checked_sub(1).map(|index| &segment.blocks[index]) else { return };
        self.is_dense = false;
        segment.dead_rows = (segment.dead_rows + 1).min(segment.rows);
        segment.dead_bytes = (segment.dead_bytes + entry.len() / u64::from(entry.rows())).min(segment.block_bytes);
    }

    /// Bytes of blocks without those that dead rows take up (counted by average), directories and tables.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.segments.iter().map(Segment::live_bytes).sum::<u64>() + self.open.len() as u64
    }

    /// Rows in segments, and how many of them are counted as dead.
    #[must_use]
    pub fn rows_counted(&self) -> (u64, u64) {
        let sum = |count: fn(&Segment) -> u32| self.segments.iter().map(|segment| u64::from(count(segment))).sum();
        (sum(|segment| segment.rows), sum(|segment| segment.dead_rows))
    }

    /// The next adjacent segments that should become one. Those over half dead; `thorough`: over an eighth. Small ones
    /// beside them join, and so do several small ones, so that the number of files follows the live bytes. Before any
    /// of these, those in which nothing lives. The newest segment is appended to and left out.
    pub(crate) fn next_run(&mut self, thorough: bool) -> Option<Range<usize>> {
        if self.is_dense && !thorough {
            return None;
        }
        let run = self.find_run(thorough);
        self.is_dense = run.is_none();
        run
    }

    /// Whether no segments call for a rewrite.
    pub(crate) fn is_dense(&self) -> bool {
        self.is_dense || self.find_run(false).is_none()
    }

    fn find_run(&self, thorough: bool) -> Option<Range<usize>> {
        let segments = &self.segments[..self.segments.len().saturating_sub(1)];
        // What needs no room comes first: on a full disk nothing else may be able to go.
        if let Some(start) = segments.iter().position(|segment| !segment.has_live_rows()) {
            let dead = segments[start..].iter().take_while(|segment| !segment.has_live_rows());
            return Some(start..start + dead.count());
        }
        let share = if thorough { 7 } else { 4 };
        let sparse = |segment: &Segment| segment.live_bytes() * 8 < segment.used * share;
        let small = |segment: &Segment| segment.used <= self.options.segment_bytes / 8;
        let room = self.options.segment_bytes / 4 * 3;
        let mut start = 0;
        while start < segments.len() {
            let (mut end, mut live, mut any_sparse) = (start, 0, false);
            while let Some(next) = segments.get(end)
                && (sparse(next) || small(next))
                && (end == start || live + next.live_bytes() <= room)
            {
                live += next.live_bytes();
                any_sparse |= sparse(next);
                end += 1;
            }
            if any_sparse || end - start >= 4 {
                return Some(start..end);
            }
            start = end.max(start + 1);
        }
        None
    }

    /// Closes the newest segment, so that it can be rewritten too; rows go on in a new one.
    pub(crate) fn roll(&mut self) {
        if !self.open.is_empty() {
            self.seal();
        }
        if self.segments.last().is_some_and(|segment| segment.live_bytes() * 8 < segment.used * 7) {
            self.add_segment(self.newest);
        }
    }

    /// A checkpoint begins: what it names is written down.
    pub(super) fn note_checkpoint(&mut self) {
        self.begun += 1;
        let closed = self.segments.len().saturating_sub(1);
        for segment in self.segments[..closed].iter_mut().filter(|segment| segment.closed_by == 0) {
            segment.closed_by = self.begun;
        }
    }

    /// The checkpoint begun last is durable.
    pub fn handle_published(&mut self) {
        self.published = self.begun;
        let published = self.published;
        let (gone, kept): (Vec<_>, Vec<_>) = self.retired.iter().partition(|retired| retired.freed_by < published);
        self.retired = kept;
        for retired in gone {
            self.used_bytes -= retired.used;
            self.effects.push_back(RowEffect::RemoveSegment(row_file(retired.file)));
        }
        let segment_bytes = self.options.segment_bytes;
        for segment in &mut self.segments {
            if segment.tail_returned || segment.closed_by == 0 || segment.closed_by > published {
                continue;
            }
            segment.tail_returned = true;
            let offset = segment.used.next_multiple_of(UNIT_BYTES);
            if segment_bytes - offset >= TAIL_BYTES_MIN {
                let (file, len) = (row_file(segment.file), segment_bytes - offset);
                self.effects.push_back(RowEffect::DiscardTail { file, offset, len });
            }
        }
    }

    /// Whether files that held rows wait for checkpoints before they are removed. What checkpoints themselves left
    /// behind, directories and tables alone, is not worth further ones: it would call for them without end.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        self.retired.iter().any(|retired| retired.held_rows)
    }

    /// Whether so much that held rows waits to be removed that nothing more should be copied before; short of room:
    /// anything.
    pub(crate) fn has_much_retired(&self, is_short_of_room: bool) -> bool {
        let bytes: u64 = self.retired.iter().filter(|retired| retired.held_rows).map(|retired| retired.used).sum();
        if is_short_of_room { bytes > 0 } else { bytes >= RETIRED_SEGMENTS_MAX * self.options.segment_bytes }
    }

    /// Whether anything lives in these segments.
    pub(crate) fn has_live_rows(&self, run: &Range<usize>) -> bool {
        self.segments[run.clone()].iter().any(Segment::has_live_rows)
    }

    /// Segments are replaced by others, the files of the former are retired.
    pub(super) fn replace_segments(&mut self, sources: Range<usize>, outputs: Vec<Segment>) {
        self.is_dense = false;
        self.used_bytes += outputs.iter().map(|segment| segment.used).sum::<u64>();
        let removed: Vec<_> = self.segments.splice(sources, outputs).collect();
        let files: BTreeSet<u32> = removed.iter().map(|segment| segment.file).collect();
        for segment in self.segments.iter_mut().filter(|segment| files.contains(&segment.directory.file)) {
            // Segments that never had a directory say "file 0" and have nothing to write.
            segment.dirty |= segment.directory.len > 0;
        }
        let freed_by = self.begun + 1;
        self.retired.extend(removed.iter().map(|segment| {
            let (file, used, held_rows) = (segment.file, segment.used, segment.rows > 0);
            Retired { file, used, held_rows, freed_by }
        }));
    }

    /// Keeps the files that the older retained checkpoint names and this one does not, until the next checkpoint is
    /// durable. A table that cannot be read keeps nothing: no start can use it either.
    ///
    /// # Errors
    /// The table is not resident.
    pub fn retain_older(&mut self, older: RowLogRoot, pages: &dyn PageSource) -> Result<(), Unavailable> {
        let table = match read_meta(older, BlockKind::Table, pages) {
            Err(missing @ Unavailable::Missing(_)) => return Err(missing),
            Err(Unavailable::Corrupt(_)) => return Ok(()),
            Ok(table) => table,
        };
        for record in row_block::table_records(table).unwrap_or_default() {
            if record.file != u32::MAX && !self.has_file(row_file(record.file)) {
                self.next_file = self.next_file.max(record.file + 1);
                self.used_bytes += record.used;
                let (file, used, held_rows) = (record.file, record.used, record.rows > 0);
                self.retired.push(Retired { file, used, held_rows, freed_by: 0 });
            }
        }
        Ok(())
    }

    /// Forgets retired files that are not there: two later checkpoints were durable and they were removed, and one of
    /// the two is lost since, so that a start finds an older one beside the other.
    pub fn forget_removed(&mut self, is_there: impl Fn(StoreFile) -> bool) {
        let (there, gone): (Vec<_>, Vec<_>) = self.retired.iter().partition(|retired| is_there(row_file(retired.file)));
        self.retired = there;
        self.used_bytes -= gone.iter().map(|retired| retired.used).sum::<u64>();
    }

    /// The file that is appended to.
    #[cfg(test)]
    pub(crate) fn newest_file(&self) -> Option<StoreFile> {
        self.segments.last().map(|segment| row_file(segment.file))
    }

    /// Files of segments, those retired included.
    #[must_use]
    pub fn files(&self) -> BTreeSet<StoreFile> {
        let retired = self.retired.iter().map(|retired| retired.file);
        let all = self.segments.iter().map(|segment| segment.file).chain(retired);
        all.filter(|&file| file != u32::MAX).map(row_file).collect()
    }
}
