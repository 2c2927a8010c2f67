//! The row log: every change once, in (revision, sub) order.
//!
//! Owns: the bytes of row blocks, the block directories, the segment table, what stays in memory and what must be
//! written; how much of each segment is dead (`space`), and the segments that replace sparse ones (`rewrite`). Does not
//! know: which rows are live, the key index, or when a checkpoint happens. Byte layout: `docs/format/store.md`,
//! section "Row log".
//!
//! Rows are packed into blocks, blocks into segment files; a row is addressed by (revision, sub), found by binary
//! search over segments, blocks and the block's offset table, so moving a block moves no pointer. Full blocks are
//! written ahead. A checkpoint pads the open block, appends the directory of every segment that changed and the table
//! of all segments; the table's place is the root a superblock names. After a crash the log continues behind that
//! root, over blocks no checkpoint named. A segment that was replaced keeps its file until no retained checkpoint names
//! it.
//!
//! Invariants
//! - I1: rows ascend strictly in (main, sub), within a block and across blocks.
//! - I2: a block that was handed out for writing is never changed; a block that a root names is never rewritten.
//! - I3: a block's checksum, which stands in its directory, is verified before its first use from the file.
//! - I4: a block leaves memory only after its writes have completed.
//! - I5: nothing read from a file can panic: what is malformed under a right checksum is `Corrupt` too.
//! - I6: a file is removed only when neither of the two newest durable checkpoints names it; the rest of a segment's
//!   file is given back only when the newest durable checkpoint names the segment as closed.

mod rewrite;
pub(crate) mod scrub;
mod space;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::key_entry::Revision;
use crate::store::row_block::{self, BlockKind, BlockRows, OpenBlock, UNIT_BYTES};

pub use crate::store::row_block::Row;
pub(crate) use rewrite::Rewrite;
pub use space::ReclaimCursor;
use space::Retired;

/// Sizes of a row log.
#[derive(Clone, Copy, Debug)]
pub struct RowLogOptions {
    /// Bytes of a segment file; a multiple of 4096, at least twice the longest row.
    pub segment_bytes: u64,
    /// Logical bytes of a block, a multiple of 4096; a larger row gets a block of its own.
    pub block_bytes: u32,
    /// Written blocks stay in memory up to this many bytes.
    pub rows_resident_bytes_max: u64,
    /// Longest single write, a multiple of 4096.
    pub write_bytes_max: u32,
}

/// What a superblock names of the row log: the place of the segment table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLogRoot {
    /// Number of the row file that holds the table.
    pub file: u32,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Length in bytes; 0 for a log that never saw a checkpoint.
    pub len: u32,
    /// The table's checksum.
    pub checksum: u32,
}

impl RowLogRoot {
    /// The root of a fresh store.
    pub const EMPTY: Self = Self { file: 0, offset: 0, len: 0, checksum: 0 };
}

impl Default for RowLogRoot {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// The row log's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCheckpoint {
    /// What the superblock names once the writes up to `last_token` completed and `files` were synced.
    pub root: RowLogRoot,
    /// For [`RowLog::is_written_through`].
    pub last_token: u64,
    /// Row files written to since the checkpoint before; not those of a rewrite under way, which nothing names yet.
    pub files: Vec<StoreFile>,
}

/// What the row log wants from its files.
#[derive(Clone, Debug)]
pub enum RowEffect {
    /// Make this segment ready before any write to it. It may exist already (from before a crash): its bytes are
    /// nobody's.
    CreateSegment(StoreFile),
    /// Write these bytes; answer with [`RowLog::handle_write_complete`].
    Write(RowWrite),
    /// Give back the room of this range, which is not written again while this process runs.
    DiscardTail {
        /// The file.
        file: StoreFile,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Remove this file: nothing names it any more.
    RemoveSegment(StoreFile),
}

/// One write, at most `write_bytes_max` long, offset and length multiples of 4096.
#[derive(Clone, Debug)]
pub struct RowWrite {
    /// Names the write in its completion; tokens ascend.
    pub token: u64,
    /// Where.
    pub file: StoreFile,
    /// Where in it.
    pub offset: u64,
    /// The block the bytes are part of.
    pub bytes: Arc<Vec<u8>>,
    /// The part of `bytes` to write.
    pub part: std::ops::Range<usize>,
}

/// The row log of a store.
#[derive(Debug)]
pub struct RowLog {
    options: RowLogOptions,
    /// In revision order.
    segments: Vec<Segment>,
    /// The next segment's file number.
    next_file: u32,
    /// What all segments use.
    used_bytes: u64,
    open: OpenBlock,
    newest: Revision,
    /// Sealed blocks in memory, oldest first.
    resident: VecDeque<Resident>,
    resident_bytes: u64,
    unwritten_bytes: u64,
    effects: VecDeque<RowEffect>,
    /// Writes not completed, queued or in flight.
    outstanding: BTreeSet<u64>,
    next_token: u64,
    /// Files that the next checkpoint has to sync, ascending: those written to since the last, but for the ones that a
    /// rewrite under way makes.
    unsynced: BTreeSet<u32>,
    /// How far the dead rows were counted.
    reclaim: ReclaimCursor,
    rewrite: Option<Rewrite>,
    /// No segments call for a rewrite, and nothing has changed since that was found.
    is_dense: bool,
    /// Segments that were replaced, whose files a retained checkpoint may name.
    retired: Vec<Retired>,
    /// Checkpoints begun and published by this process.
    begun: u64,
    published: u64,
}

#[derive(Debug, Default)]
struct Segment {
    file: u32,
    /// Bytes used from the start of the file.
    used: u64,
    /// Every row inside is above this address, every row of an earlier segment at or below it.
    above: Revision,
    blocks: Vec<row_block::DirectoryEntry>,
    /// Where the directory stands; `len` 0 if it was never written.
    directory: RowLogRoot,
    /// The directory on file lacks blocks, or lies in a file that is to be removed.
    dirty: bool,
    /// Rows in its blocks, and the blocks' bytes.
    rows: u32,
    block_bytes: u64,
    /// How many of the rows are dead, and about how many bytes of the blocks they take up.
    dead_rows: u32,
    dead_bytes: u64,
    /// The first checkpoint that names it as closed (as counted by `begun`); 0 for none yet.
    closed_by: u64,
    /// The rest of its file was given back.
    tail_returned: bool,
}

/// A sealed block in memory.
#[derive(Debug)]
struct Resident {
    first: Revision,
    bytes: Arc<Vec<u8>>,
    /// The token of its last write.
    last_token: u64,
    /// Its first token.
    first_token: u64,
}

impl RowLog {
    /// An empty log.
    #[must_use]
    pub fn new(options: RowLogOptions) -> Self {
        let aligned = |bytes: u64| bytes > 0 && bytes.is_multiple_of(UNIT_BYTES);
        assert!(aligned(options.segment_bytes) && aligned(u64::from(options.block_bytes)), "blocks are whole units");
        assert!(aligned(u64::from(options.write_bytes_max)), "writes are whole units");
        assert!(u64::from(options.block_bytes) <= options.segment_bytes, "a segment holds a block");
        assert!(options.segment_bytes / UNIT_BYTES <= u64::from(u32::MAX), "offsets fit their field");
        Self {
            options,
            segments: Vec::new(),
            next_file: 0,
            used_bytes: 0,
            open: OpenBlock::new(),
            newest: Revision::NONE,
            resident: VecDeque::new(),
            resident_bytes: 0,
            unwritten_bytes: 0,
            effects: VecDeque::new(),
            outstanding: BTreeSet::new(),
            next_token: 1,
            unsynced: BTreeSet::new(),
            reclaim: ReclaimCursor::default(),
            rewrite: None,
            is_dense: false,
            retired: Vec::new(),
            begun: 0,
            published: 0,
        }
    }

    /// The log a checkpoint named: reads the segment table and the directories.
    ///
    /// # Errors
    /// A block is not usable; `Corrupt` if its bytes are not what the root names.
    pub fn open(options: RowLogOptions, root: RowLogRoot, pages: &dyn PageSource) -> Result<Self, Unavailable> {
        let mut log = Self::new(options);
        if root.len == 0 {
            return Ok(log);
        }
        let table = read_meta(root, BlockKind::Table, pages)?;
        let corrupt = Unavailable::Corrupt(place(root));
        let mut missing = None;
        log.reclaim = row_block::reclaim_cursor(table).ok_or(corrupt)?;
        for record in row_block::table_records(table).ok_or(corrupt)? {
            let mut blocks = Vec::new();
            if record.directory.len > 0 {
                let bytes = match read_meta(record.directory, BlockKind::Directory, pages) {
                    // The source sees every directory it lacks in one call, however many there are.
                    Err(block @ Unavailable::Missing(_)) => {
                        missing = missing.or(Some(block));
                        continue;
                    }
                    read => read?,
                };
                let corrupt = Unavailable::Corrupt(place(record.directory));
                blocks = row_block::directory_entries(bytes).ok_or(corrupt)?;
            }
            let in_order = log.segments.last().is_none_or(|before| before.above <= record.above);
            let segment = Segment::from_record(&record, blocks, &options).filter(|_| in_order).ok_or(corrupt)?;
            log.next_file = log.next_file.max(segment.file + 1);
            log.segments.push(segment);
        }
        log.newest = row_block::newest(table).ok_or(corrupt)?;
        log.used_bytes = log.segments.iter().map(|segment| segment.used).sum();
        missing.map_or(Ok(log), Err)
    }

    /// The address of the newest row; `NONE` in an empty log.
    #[must_use]
    pub fn newest(&self) -> Revision {
        self.newest
    }

    /// The longest key and value together that a row may hold.
    #[must_use]
    pub fn row_bytes_max(&self) -> u64 {
        self.options.segment_bytes / 2
    }

    /// Appends a row above all others. Returns its key and value as stored, back to back.
    pub fn append(&mut self, row: &Row<'_>) -> &[u8] {
        assert!(row.at > self.newest, "I1: rows ascend");
        assert!((row.key.len() + row.value.len()) as u64 <= self.row_bytes_max(), "admission bounds a row");
        if self.open.is_full_for(row, self.options.block_bytes) {
            self.seal();
        }
        let before = self.open.len();
        self.open.append(row);
        self.unwritten_bytes += (self.open.len() - before) as u64;
        self.newest = row.at;
        self.open.tail(row.key.len() + row.value.len())
    }

    /// The row at an address; `None` if no such row remains.
    ///
    /// # Errors
    /// Its block is not usable now.
    pub fn row<'a>(&'a self, at: Revision, pages: &'a dyn PageSource) -> Result<Option<Row<'a>>, Unavailable> {
        let Some((rows, place)) = self.rows_around(at, pages)? else { return Ok(None) };
        rows.find(at).map_err(|_| Unavailable::Corrupt(place))
    }

    /// The first row at or above an address.
    ///
    /// # Errors
    /// Its block is not usable now.
    pub fn row_from<'a>(&'a self, at: Revision, pages: &'a dyn PageSource) -> Result<Option<Row<'a>>, Unavailable> {
        if let Some((rows, place)) = self.rows_around(at, pages)?
            && let Some(row) = rows.find_from(at).map_err(|_| Unavailable::Corrupt(place))?
        {
            return Ok(Some(row));
        }
        match self.first_of_next_block(at) {
            Some(first) => self.row(first, pages),
            None => Ok(None),
        }
    }

    /// The next thing to do with the files: full blocks are written ahead, the open one only at a checkpoint.
    pub fn poll_effect(&mut self) -> Option<RowEffect> {
        self.effects.pop_front()
    }

    /// A write is on the file (not necessarily synced).
    pub fn handle_write_complete(&mut self, token: u64) {
        assert!(self.outstanding.remove(&token), "a write completes once");
        if self.rewrite.as_mut().is_some_and(|rewrite| rewrite.handle_write_complete(token)) {
            return;
        }
        let index = self.resident.partition_point(|block| block.last_token < token);
        if let Some(block) = self.resident.get(index).filter(|block| block.first_token <= token) {
            let open = self.outstanding.range(block.first_token..=block.last_token).next().is_some();
            self.unwritten_bytes -= if open { 0 } else { block.bytes.len() as u64 };
        }
        self.evict();
    }

    /// Pads the open block and appends directories and segment table.
    pub fn handle_checkpoint(&mut self) -> RowCheckpoint {
        if !self.open.is_empty() {
            self.seal();
        }
        for index in 0..self.segments.len() {
            if !std::mem::take(&mut self.segments[index].dirty) {
                continue;
            }
            if self.segments[index].blocks.is_empty() {
                self.segments[index].directory = RowLogRoot::EMPTY;
                continue;
            }
            let bytes = row_block::directory_block(&self.segments[index].blocks);
            self.segments[index].directory = self.push_meta(bytes);
        }
        let root = self.push_table();
        self.note_checkpoint();
        let files = std::mem::take(&mut self.unsynced).into_iter().map(row_file).collect();
        RowCheckpoint { root, last_token: self.next_token - 1, files }
    }

    /// Whether every write up to this token has completed. Those of a rewrite under way do not count: nothing names
    /// what they write.
    #[must_use]
    pub fn is_written_through(&self, token: u64) -> bool {
        let is_of_rewrite = |&open: &u64| self.rewrite.as_ref().is_some_and(|rewrite| rewrite.awaits(open));
        self.outstanding.range(..=token).all(is_of_rewrite)
    }

    /// Forgets that blocks of this part of a file were verified: its pages were released.
    pub fn handle_released(&self, range: Block) {
        let Some(segment) = self.segments.iter().find(|segment| row_file(segment.file) == range.file) else { return };
        let end = range.offset + u64::from(range.len);
        let first = segment.blocks.partition_point(|entry| entry.offset() + entry.len() <= range.offset);
        let touched = segment.blocks[first..].iter().take_while(|entry| entry.offset() < end);
        touched.for_each(|entry| entry.set_verified(false));
    }

    /// Row bytes not yet written; they stay in memory whatever the limit.
    #[must_use]
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes
    }

    /// Block bytes held in memory, written or not, directory included.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let entries: usize = self.segments.iter().map(|segment| segment.blocks.len()).sum();
        self.resident_bytes + self.open.len() as u64 + (entries * size_of::<row_block::DirectoryEntry>()) as u64
    }

    /// Bytes used in segment files, or about to be: those of the open block included.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes + self.open.len() as u64
    }

    /// Whether the log holds anything in this file; if not, it is left over from a crash.
    #[must_use]
    pub fn has_file(&self, file: StoreFile) -> bool {
        self.segments.iter().any(|segment| row_file(segment.file) == file)
            || self.retired.iter().any(|retired| row_file(retired.file) == file)
    }

    /// The block that would hold the row at `at`, from memory or its file.
    fn rows_around<'a>(
        &'a self,
        at: Revision,
        pages: &'a dyn PageSource,
    ) -> Result<Option<(BlockRows<'a>, Block)>, Unavailable> {
        let nowhere = Block { file: row_file(u32::MAX), offset: 0, len: 0 };
        if !self.open.is_empty() && at >= self.open.first() {
            return Ok(Some((self.open.rows(), nowhere)));
        }
        let above = self.resident.partition_point(|block| block.first <= at);
        if above > 0 {
            let rows = BlockRows::of_sealed(&self.resident[above - 1].bytes).expect("a sealed block is well formed");
            return Ok(Some((rows, nowhere)));
        }
        let above = self.segments.partition_point(|segment| segment.above < at);
        let Some(segment) = above.checked_sub(1).map(|index| &self.segments[index]) else { return Ok(None) };
        let above = segment.blocks.partition_point(|entry| entry.first() <= at);
        let Some(entry) = above.checked_sub(1).map(|index| &segment.blocks[index]) else { return Ok(None) };
        let place = Block { file: row_file(segment.file), offset: entry.offset(), len: entry.len() as u32 };
        let bytes = pages.block(place)?;
        if !entry.is_verified() {
            row_block::verify(bytes, BlockKind::Rows, entry.checksum).ok_or(Unavailable::Corrupt(place))?;
            entry.set_verified(true);
        }
        let rows = BlockRows::of_sealed(bytes).ok_or(Unavailable::Corrupt(place))?;
        Ok(Some((rows, place)))
    }

    /// The first row of the first block that starts above `at`.
    fn first_of_next_block(&self, at: Revision) -> Option<Revision> {
        let from = self.segments.partition_point(|segment| segment.above < at).saturating_sub(1);
        for segment in &self.segments[from..] {
            let above = segment.blocks.partition_point(|entry| entry.first() <= at);
            if let Some(entry) = segment.blocks.get(above) {
                return Some(entry.first());
            }
        }
        (!self.open.is_empty() && self.open.first() > at).then(|| self.open.first())
    }

    /// Closes the open block: it gets a place, a checksum and a directory entry, and is written ahead.
    fn seal(&mut self) {
        let (first, open_bytes, rows) = (self.open.first(), self.open.len() as u64, self.open.rows_count());
        let bytes = self.open.seal();
        let checksum = row_block::checksum(&bytes);
        let (file, offset) = self.allocate(bytes.len() as u64, first);
        let segment = self.segments.last_mut().expect("a place was allocated in the last segment");
        segment.push_block(row_block::DirectoryEntry::new(first, offset, bytes.len() as u64, checksum, rows));
        self.resident_bytes += bytes.len() as u64;
        self.unwritten_bytes = self.unwritten_bytes - open_bytes + bytes.len() as u64;
        let bytes = Arc::new(bytes);
        let first_token = self.next_token;
        self.push_writes(file, offset, &bytes);
        // Nothing is evicted here: a row that was read before this append is readable to the end of the step.
        self.resident.push_back(Resident { first, bytes, first_token, last_token: self.next_token - 1 });
    }

    /// Appends a directory or table block.
    fn push_meta(&mut self, mut bytes: Vec<u8>) -> RowLogRoot {
        row_block::finish(&mut bytes);
        let (len, checksum) = (bytes.len() as u32, row_block::checksum(&bytes));
        let next = Revision { main: self.newest.main, sub: self.newest.sub.saturating_add(1) };
        let (file, offset) = self.allocate(u64::from(len), next);
        self.push_writes(file, offset, &Arc::new(bytes));
        RowLogRoot { file, offset, len, checksum }
    }

    fn push_table(&mut self) -> RowLogRoot {
        // The table names the segment it stands in, which may be a new one: it is placed first, sized for that.
        let len = row_block::table_bytes(self.segments.len() + 1);
        let next = Revision { main: self.newest.main, sub: self.newest.sub.saturating_add(1) };
        let (file, offset) = self.allocate(len as u64, next);
        let records = self.segments.iter().map(|segment| row_block::TableRecord {
            file: segment.file,
            used: segment.used,
            above: segment.above,
            blocks: segment.blocks.len() as u32,
            directory: segment.directory,
            rows: segment.rows,
            dead_rows: segment.dead_rows,
            dead_bytes: segment.dead_bytes,
        });
        let mut bytes = row_block::table_block(records, self.reclaim, self.newest, len);
        row_block::finish(&mut bytes);
        let root = RowLogRoot { file, offset, len: bytes.len() as u32, checksum: row_block::checksum(&bytes) };
        self.push_writes(file, offset, &Arc::new(bytes));
        root
    }

    /// A place for `len` bytes; `next` is the first row that could follow.
    fn allocate(&mut self, len: u64, next: Revision) -> (u32, u64) {
        assert!(
            len > 0 && len.is_multiple_of(UNIT_BYTES) && len <= self.options.segment_bytes,
            "a block fits a segment"
        );
        let full = self.segments.last().is_none_or(|segment| segment.used + len > self.options.segment_bytes);
        if full {
            self.add_segment(Self::below(next));
        }
        let segment = self.segments.last_mut().expect("a segment was just made");
        let offset = segment.used;
        segment.used += len;
        self.used_bytes += len;
        (segment.file, offset)
    }

    fn add_segment(&mut self, above: Revision) {
        let file = self.next_file;
        self.next_file += 1;
        self.is_dense = false;
        self.effects.push_back(RowEffect::CreateSegment(row_file(file)));
        self.segments.push(Segment { file, above, ..Segment::default() });
    }

    /// The greatest address below `next`.
    fn below(next: Revision) -> Revision {
        match next.sub.checked_sub(1) {
            Some(sub) => Revision { main: next.main, sub },
            None => Revision { main: next.main - 1, sub: u32::MAX },
        }
    }

    /// Writes what the next checkpoint has to sync.
    fn push_writes(&mut self, file: u32, offset: u64, bytes: &Arc<Vec<u8>>) {
        self.hand_out(file, offset, bytes);
        self.unsynced.insert(file);
    }

    fn hand_out(&mut self, file: u32, offset: u64, bytes: &Arc<Vec<u8>>) {
        let step = self.options.write_bytes_max as usize;
        for start in (0..bytes.len()).step_by(step) {
            let part = start..bytes.len().min(start + step);
            let (token, offset) = (self.next_token, offset + start as u64);
            self.outstanding.insert(token);
            self.next_token += 1;
            let write = RowWrite { token, file: row_file(file), offset, bytes: Arc::clone(bytes), part };
            self.effects.push_back(RowEffect::Write(write));
        }
    }

    /// Drops the oldest blocks beyond the limit, written ones only (I4).
    fn evict(&mut self) {
        while self.resident_bytes > self.options.rows_resident_bytes_max
            && let Some(oldest) = self.resident.front()
            && self.is_written_through(oldest.last_token)
        {
            self.resident_bytes -= oldest.bytes.len() as u64;
            self.resident.pop_front();
        }
    }
}

impl Segment {
    fn push_block(&mut self, entry: row_block::DirectoryEntry) {
        self.rows += entry.rows();
        self.block_bytes += entry.len();
        self.blocks.push(entry);
        self.dirty = true;
    }
}

fn row_file(number: u32) -> StoreFile {
    StoreFile { kind: FileKind::Rows, number }
}

fn place(root: RowLogRoot) -> Block {
    Block { file: row_file(root.file), offset: root.offset, len: root.len }
}

fn read_meta(root: RowLogRoot, kind: BlockKind, pages: &dyn PageSource) -> Result<&[u8], Unavailable> {
    let place = place(root);
    let bytes = pages.block(place)?;
    row_block::verify(bytes, kind, root.checksum).ok_or(Unavailable::Corrupt(place))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::store::test_disk::Disk;

    const OPTIONS: RowLogOptions = RowLogOptions {
        segment_bytes: 256 * 1024,
        block_bytes: 8192,
        rows_resident_bytes_max: 64 * 1024,
        write_bytes_max: 16 * 1024,
    };

    /// Rows 2.. with gaps, several subs, values from nothing to several blocks.
    fn rows(count: u32) -> Vec<(Revision, Vec<u8>)> {
        let at = |number: u32| Revision { main: i64::from(2 + number / 3 + number / 50 * 7), sub: number % 3 };
        let len = |number: u32| if number % 97 == 5 { 50_000 } else { number as usize % 600 };
        (0..count).map(|number| (at(number), vec![number as u8; len(number)])).collect()
    }

    fn row<'a>(at: Revision, value: &'a [u8]) -> Row<'a> {
        let (prev, jump) = (Revision { main: at.main - 1, sub: 9 }, Revision { main: 1, sub: at.sub });
        Row { at, key: b"key", value, create: at.main, version: 4, lease: -5, prev, jump }
    }

    fn assert_holds(log: &RowLog, rows: &[(Revision, Vec<u8>)], pages: &Disk) {
        for (at, value) in rows {
            assert_eq!(log.row(*at, pages).unwrap(), Some(row(*at, value)));
        }
        for pair in rows.windows(2) {
            let between = Revision { main: pair[0].0.main, sub: pair[0].0.sub + 1 };
            assert_eq!(log.row_from(between, pages).unwrap().map(|row| row.at), Some(pair[1].0));
            if between != pair[1].0 {
                assert_eq!(log.row(between, pages).unwrap(), None);
            }
        }
        assert_eq!(log.row(Revision { main: 1, sub: 0 }, pages).unwrap(), None);
        let last = rows.last().unwrap().0;
        assert_eq!(log.row_from(Revision { main: last.main, sub: last.sub + 1 }, pages).unwrap(), None);
    }

    #[test]
    fn rows_are_found_in_memory_on_file_and_after_restarts() {
        let (mut disk, mut log, rows) = (Disk::default(), RowLog::new(OPTIONS), rows(3000));
        let mut root = RowLogRoot::EMPTY;
        for (number, (at, value)) in rows.iter().enumerate() {
            log.append(&row(*at, value));
            if number % 700 == 699 {
                let unnamed = disk.clone();
                let checkpoint = log.handle_checkpoint();
                assert!(!log.is_written_through(checkpoint.last_token));
                assert_holds(&log, &rows[..=number], &disk);
                disk.drain(&mut log);
                assert!(log.is_written_through(checkpoint.last_token));
                assert_eq!(log.unwritten_bytes(), 0);
                for file in
                    disk.files.keys().filter(|&file| disk.files[file] != *unnamed.files.get(file).unwrap_or(&vec![]))
                {
                    assert!(checkpoint.files.contains(file), "{file:?} was written and must be synced");
                }
                root = checkpoint.root;
                assert!(log.resident.iter().map(|block| block.bytes.len()).sum::<usize>() <= 64 * 1024);
                assert_holds(&log, &rows[..=number], &disk);
                log = RowLog::open(OPTIONS, root, &disk).unwrap();
                assert_eq!((log.newest(), log.resident.len()), (*at, 0));
                assert_holds(&log, &rows[..=number], &disk);
            } else if number % 100 == 3 {
                disk.drain(&mut log);
            }
        }
        assert_holds(&log, &rows, &disk);
        // A crash: what was appended after the last root is gone and is appended again over its written blocks.
        disk.drain(&mut log);
        let mut log = RowLog::open(OPTIONS, root, &disk).unwrap();
        for (at, value) in &rows[2800..] {
            log.append(&row(*at, value));
        }
        disk.drain(&mut log);
        assert_holds(&log, &rows, &disk);
        assert_holds(&RowLog::open(OPTIONS, root, &disk).unwrap(), &rows[..2800], &disk);
    }

    /// Every block is missing until it was asked for.
    struct Loading<'a>(&'a Disk, RefCell<BTreeSet<Block>>);

    impl PageSource for Loading<'_> {
        fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
            if self.1.borrow_mut().insert(block) { Err(Unavailable::Missing(block)) } else { self.0.block(block) }
        }
    }

    #[test]
    fn opening_asks_for_all_directories_at_once() {
        let (mut disk, mut log) = (Disk::default(), RowLog::new(OPTIONS));
        for (at, value) in &rows(6000) {
            log.append(&row(*at, value));
        }
        let root = log.handle_checkpoint().root;
        disk.drain(&mut log);
        assert!(log.segments.len() > 5);
        let pages = Loading(&disk, RefCell::default());
        for _ in ["the table", "the directories"] {
            assert!(matches!(RowLog::open(OPTIONS, root, &pages), Err(Unavailable::Missing(_))));
        }
        let reopened = RowLog::open(OPTIONS, root, &pages).unwrap();
        assert_eq!((reopened.newest(), reopened.used_bytes()), (log.newest(), log.used_bytes()));
        assert!((0..6).all(|number| reopened.has_file(row_file(number))) && !reopened.has_file(row_file(99)));
    }

    #[test]
    fn damage_is_found_once_and_again_after_a_release() {
        let (mut disk, mut log, rows) = (Disk::default(), RowLog::new(OPTIONS), rows(1000));
        for (at, value) in &rows {
            log.append(&row(*at, value));
        }
        let root = log.handle_checkpoint().root;
        disk.drain(&mut log);
        let log = RowLog::open(OPTIONS, root, &disk).unwrap();
        assert_holds(&log, &rows, &disk);
        for offset in (0..OPTIONS.segment_bytes).step_by(4096) {
            let mut damaged = disk.clone();
            let file = row_file(0);
            let length = damaged.files[&file].len() as u64;
            let Some(byte) = damaged.files.get_mut(&file).unwrap().get_mut(offset as usize + 77) else { continue };
            *byte ^= 0x10;
            let broken = |log: &RowLog| rows.iter().filter(|(at, _)| log.row(*at, &damaged).is_err()).count();
            assert_eq!(broken(&log), 0, "verified blocks are not verified again");
            log.handle_released(Block { file, offset: 0, len: length as u32 });
            match RowLog::open(OPTIONS, root, &damaged) {
                Ok(reopened) => {
                    let lost = broken(&log);
                    assert_eq!(lost, broken(&reopened));
                    assert!(lost > 0, "damage at {offset} hits a block of rows");
                }
                Err(error) => assert!(matches!(error, Unavailable::Corrupt(_)), "{error:?}"),
            }
            assert_holds(&log, &rows, &disk);
        }
        disk.cold = true;
        assert!(matches!(RowLog::open(OPTIONS, root, &disk), Err(Unavailable::Missing(_))));
        log.handle_released(Block { file: row_file(0), offset: 0, len: u32::MAX });
        assert!(matches!(log.row(rows[0].0, &disk), Err(Unavailable::Missing(_))));
    }

    #[test]
    fn a_release_touches_the_blocks_it_overlaps_and_no_other() {
        let (mut disk, mut log, rows) = (Disk::default(), RowLog::new(OPTIONS), rows(1000));
        for (at, value) in &rows {
            log.append(&row(*at, value));
        }
        let root = log.handle_checkpoint().root;
        disk.drain(&mut log);
        let log = RowLog::open(OPTIONS, root, &disk).unwrap();
        let file = row_file(0);
        let blocks = &log.segments[0].blocks;
        for offset in (0..OPTIONS.segment_bytes).step_by(4096) {
            for len in [1, 4096, 5000, 64 << 10] {
                blocks.iter().for_each(|entry| entry.set_verified(true));
                log.segments[1].blocks.iter().for_each(|entry| entry.set_verified(true));
                log.handle_released(Block { file, offset, len });
                let overlaps = |at: u64, bytes: u64| at < offset + u64::from(len) && offset < at + bytes;
                for entry in blocks {
                    assert_eq!(entry.is_verified(), !overlaps(entry.offset(), entry.len()), "{offset} {len}");
                }
                assert!(log.segments[1].blocks.iter().all(row_block::DirectoryEntry::is_verified));
            }
        }
    }

    #[test]
    fn malformed_blocks_under_a_right_checksum_do_not_panic() {
        let mut block = OpenBlock::new();
        let rows = rows(40);
        rows.iter().filter(|(_, value)| value.len() < 600).for_each(|(at, value)| block.append(&row(*at, value)));
        let sealed = block.seal();
        for position in (8..sealed.len()).filter(|at| at % 7 == 0 || *at < 200 || *at > sealed.len() - 200) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = sealed.clone();
                bytes[position] = value;
                row_block::finish(&mut bytes);
                let Some(found) = BlockRows::of_sealed(&bytes) else { continue };
                for (at, _) in &rows {
                    let _: Result<_, row_block::Malformed> = found.find(*at).map(|row| row.map(|row| row.key.len()));
                }
            }
        }
        let verified = row_block::verify(&sealed, BlockKind::Rows, row_block::checksum(&sealed));
        assert_eq!(verified, Some(()));
        assert_eq!(row_block::verify(&sealed, BlockKind::Table, row_block::checksum(&sealed)), None);
        assert_eq!(row_block::verify(&sealed[..sealed.len() - 1], BlockKind::Rows, row_block::checksum(&sealed)), None);
    }
}
