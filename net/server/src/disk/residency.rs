//! Which store files are open, and which chunks of them are in memory.
//!
//! Owns: the [`marks`] of every chunk of 64 KiB (when it was last read), which readers on other threads share, and the
//! choice of what leaves memory: a second chance for what was read since the choice last fell on it.
//! Does not know: the port, what the bytes mean, who waits.
//!
//! Invariants
//! - I1: a block is given out only from chunks that were populated and not overwritten since.
//! - I2: a store file has one descriptor from its opening or creation on: a name is not created twice in a process.
//! - I3: a chunk that is in memory stands in the queue of candidates exactly once.
//! - I4: what was read since `protected_since` stays, however little the budget, up to [`OVERSHOOT_CHUNKS_MAX`] more
//!   than it: an evaluation that waits for its last page must find the ones before.
//! - I5: the snapshot that is kept for the next sharing has just the files that are open.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use trilith_engine::page_source::{Block, FileKind, StoreFile, Unavailable};
use trilith_reactor::{FileId, SharedMapping};

use super::marks::{Mark, marks};
use super::shared::{SharedFile, SharedPages};

/// Residency is tracked, and pages are loaded and released, in chunks of this size.
pub(super) const CHUNK_BYTES: u64 = 64 << 10;
/// What a step may need at once beyond the budget: 128 MiB.
const OVERSHOOT_CHUNKS_MAX: u64 = (128 << 20) / CHUNK_BYTES;
/// Candidates looked at, and chunks released, in one turn at most.
const LOOKS_PER_TURN: usize = 4096;
const RELEASED_PER_TURN: usize = 512;
/// Misses of one evaluation that are remembered.
const MISSED_MAX: usize = 128;

/// A chunk of a store file.
pub(super) type ChunkId = (StoreFile, u64);

/// What the sequencer alone knows of a chunk.
#[derive(Clone, Debug, Default)]
struct Chunk {
    /// Completed writes, wrapping: a populate counts only if none ended while it was under way.
    writes: u32,
    /// Stands in the queue of candidates.
    queued: bool,
}

/// One open store file.
#[derive(Debug)]
pub(super) struct OpenStoreFile {
    pub(super) id: FileId,
    pub(super) bytes: u64,
    /// As many as `chunks`.
    marks: Arc<[Mark]>,
    chunks: Vec<Chunk>,
}

impl OpenStoreFile {
    fn share(&self, mapping: SharedMapping) -> SharedFile {
        SharedFile { bytes: self.bytes, marks: Arc::clone(&self.marks), mapping }
    }
}

#[derive(Debug)]
struct Candidate {
    chunk: ChunkId,
    /// The read that was known when the choice last fell on it.
    seen: u64,
}

/// The open store files and what of them is in memory.
#[derive(Debug)]
pub(super) struct Residency {
    superblocks: Vec<Option<OpenStoreFile>>,
    index: Vec<Option<OpenStoreFile>>,
    rows: Vec<Option<OpenStoreFile>>,
    candidates: VecDeque<Candidate>,
    resident: u64,
    turn: u64,
    /// Blocks that were read in vain: an evaluation looks ahead for what it will need next.
    missed: RefCell<Vec<Block>>,
    /// What was shared last, unless a file was added or removed since.
    shared: Option<Arc<SharedPages>>,
}

impl Default for Residency {
    fn default() -> Self {
        Self {
            superblocks: Vec::new(),
            index: Vec::new(),
            rows: Vec::new(),
            candidates: VecDeque::new(),
            resident: 0,
            turn: 1,
            missed: RefCell::default(),
            shared: None,
        }
    }
}

impl Residency {
    /// A file was opened or created; nothing of it is in memory.
    pub(super) fn add(&mut self, file: StoreFile, id: FileId, bytes: u64) {
        let chunks = usize::try_from(bytes.div_ceil(CHUNK_BYTES)).expect("a file's chunks fit memory");
        self.shared = None;
        let family = self.family_mut(file.kind);
        let number = file.number as usize;
        if family.len() <= number {
            family.resize_with(number + 1, || None);
        }
        assert!(family[number].is_none(), "I2: {file:?} is opened or created once");
        family[number] =
            Some(OpenStoreFile { id, bytes, marks: marks(chunks), chunks: vec![Chunk::default(); chunks] });
    }

    /// Forgets a file that is about to be removed; its descriptor.
    pub(super) fn remove(&mut self, file: StoreFile) -> FileId {
        // Before the port is told: its mapping is freed off the core, unless others still read it.
        self.shared = None;
        let open = self.family_mut(file.kind).get_mut(file.number as usize).and_then(Option::take);
        let open = open.expect("only an open file is removed");
        self.resident -= open.marks.iter().filter(|mark| mark.turn() > 0).count() as u64;
        self.candidates.retain(|candidate| candidate.chunk.0 != file);
        open.id
    }

    /// The open files, by kind and number.
    pub(super) fn files(&self) -> Vec<StoreFile> {
        let kinds = [FileKind::Superblock, FileKind::Index, FileKind::Rows];
        let numbers = |kind| (0..).zip(self.family(kind)).filter(|(_, open)| open.is_some()).map(|(number, _)| number);
        kinds.iter().flat_map(|&kind| numbers(kind).map(move |number| StoreFile { kind, number })).collect()
    }

    /// One open file.
    pub(super) fn file(&self, file: StoreFile) -> Option<&OpenStoreFile> {
        self.family(file.kind).get(file.number as usize)?.as_ref()
    }

    fn family(&self, kind: FileKind) -> &[Option<OpenStoreFile>] {
        match kind {
            FileKind::Superblock => &self.superblocks,
            FileKind::Index => &self.index,
            FileKind::Rows => &self.rows,
        }
    }

    fn family_mut(&mut self, kind: FileKind) -> &mut Vec<Option<OpenStoreFile>> {
        match kind {
            FileKind::Superblock => &mut self.superblocks,
            FileKind::Index => &mut self.index,
            FileKind::Rows => &mut self.rows,
        }
    }

    fn chunks_mut(&mut self, block: Block) -> impl Iterator<Item = (&Mark, &mut Chunk)> {
        let open = self.family_mut(block.file.kind).get_mut(block.file.number as usize).and_then(Option::as_mut);
        open.into_iter().flat_map(move |OpenStoreFile { marks, chunks, .. }| {
            let inside = positions(block, chunks.len());
            marks[inside.clone()].iter().zip(&mut chunks[inside])
        })
    }

    /// The open files for other threads. `mapping`: where one is to be read from, if it can be shared.
    pub(super) fn share(&mut self, mapping: impl Fn(FileId) -> Option<SharedMapping>) -> Arc<SharedPages> {
        let table = |family: &[Option<OpenStoreFile>]| {
            family.iter().map(|open| open.as_ref().and_then(|open| Some(open.share(mapping(open.id)?)))).collect()
        };
        let (index, rows) = (&self.index, &self.rows);
        let shared = self.shared.get_or_insert_with(|| Arc::new(SharedPages::new(table(index), table(rows))));
        shared.set_turn(self.turn);
        Arc::clone(shared)
    }

    /// Notes that a block is read now; where it is to be read from.
    ///
    /// # Errors
    /// It is not in memory, or no file holds it.
    pub(super) fn touch(&self, block: Block) -> Result<FileId, Unavailable> {
        let open = self.file(block.file).ok_or(Unavailable::Corrupt(block))?;
        let inside = chunks_inside(block, open.bytes).ok_or(Unavailable::Corrupt(block))?;
        for mark in &open.marks[inside] {
            if mark.turn() == 0 {
                let mut missed = self.missed.borrow_mut();
                if missed.len() < MISSED_MAX {
                    missed.push(block);
                }
                return Err(Unavailable::Missing(block));
            }
            mark.set(self.turn);
        }
        Ok(open.id)
    }

    /// Takes the blocks that were read in vain since the last call.
    pub(super) fn take_missed(&self) -> Vec<Block> {
        self.missed.take()
    }

    /// Whether all of a block is in memory.
    pub(super) fn holds(&self, block: Block) -> bool {
        self.file(block.file)
            .is_none_or(|open| open.marks[positions(block, open.marks.len())].iter().all(|mark| mark.turn() > 0))
    }

    /// Whether a chunk is in memory.
    pub(super) fn holds_chunk(&self, (file, number): ChunkId) -> bool {
        self.holds(Block { file, offset: number * CHUNK_BYTES, len: 1 })
    }

    /// Writes so far to the chunks a block touches; differs before and after any of them was written.
    pub(super) fn writes(&self, block: Block) -> u32 {
        let chunks = self.file(block.file).map_or(&[][..], |open| &open.chunks[positions(block, open.chunks.len())]);
        chunks.iter().map(|chunk| chunk.writes).fold(0, u32::wrapping_add)
    }

    /// A populate that began at `writes` has ended. It counts unless a write ended meanwhile.
    pub(super) fn mark(&mut self, block: Block, writes: u32) {
        if self.writes(block) != writes {
            return;
        }
        let turn = self.turn;
        let (mut came, mut queued) = (0, Vec::new());
        for ((mark, chunk), number) in self.chunks_mut(block).zip(block.offset / CHUNK_BYTES..) {
            came += u64::from(!mark.replace(turn));
            if !std::mem::replace(&mut chunk.queued, true) {
                queued.push(Candidate { chunk: (block.file, number), seen: 0 });
            }
        }
        self.resident += came;
        self.candidates.extend(queued);
    }

    /// What the mapping held of a block is gone: it was written, discarded, or is to be read again.
    pub(super) fn forget(&mut self, block: Block) {
        let mut gone = 0;
        for (mark, chunk) in self.chunks_mut(block) {
            gone += u64::from(mark.replace(0));
            chunk.writes = chunk.writes.wrapping_add(1);
        }
        self.resident -= gone;
    }

    /// A turn begins: reads from here on are newer than all before.
    pub(super) fn begin_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// The turn at hand.
    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.resident * CHUNK_BYTES
    }

    /// Takes cold chunks out until at most `bytes_max` are in memory, as far as one turn goes; neighbours as one block.
    pub(super) fn evict(&mut self, bytes_max: u64, protected_since: u64) -> Vec<Block> {
        let chunks_max = bytes_max / CHUNK_BYTES;
        if self.resident <= chunks_max {
            return Vec::new();
        }
        let mut cold = Vec::new();
        for _ in 0..self.candidates.len().min(LOOKS_PER_TURN) {
            if self.resident <= chunks_max || cold.len() == RELEASED_PER_TURN {
                break;
            }
            let candidate = self.candidates.pop_front().expect("no more looks than candidates");
            // I4: beyond that, the oldest goes whoever reads it.
            let ignore_reads = self.resident > chunks_max + OVERSHOOT_CHUNKS_MAX;
            cold.extend(self.judge(candidate, protected_since, ignore_reads));
        }
        self.blocks(cold)
    }

    /// Whether a candidate leaves memory; if not, it is looked at again later.
    fn judge(&mut self, candidate: Candidate, protected_since: u64, ignore_reads: bool) -> Option<ChunkId> {
        let Candidate { chunk: (file, number), seen } = candidate;
        let block = Block { file, offset: number * CHUNK_BYTES, len: 1 };
        let (mark, chunk) = self.chunks_mut(block).next().expect("I3: candidates are chunks of open files");
        let touched = mark.turn();
        let is_protected = touched >= protected_since;
        if touched > 0 && !ignore_reads && (is_protected || touched > seen) {
            let seen = if is_protected { seen } else { touched };
            self.candidates.push_back(Candidate { chunk: (file, number), seen });
            return None;
        }
        chunk.queued = false;
        mark.set(0);
        if touched == 0 {
            return None;
        }
        self.resident -= 1;
        Some((file, number))
    }

    fn blocks(&self, mut chunks: Vec<ChunkId>) -> Vec<Block> {
        chunks.sort_unstable();
        let mut blocks: Vec<Block> = Vec::new();
        for (file, number) in chunks {
            let offset = number * CHUNK_BYTES;
            let rest = self.file(file).map_or(0, |open| open.bytes - offset);
            let len = u32::try_from(rest.min(CHUNK_BYTES)).expect("a chunk is far below 4 GiB");
            match blocks.last_mut() {
                Some(last) if last.file == file && last.offset + u64::from(last.len) == offset => last.len += len,
                _ => blocks.push(Block { file, offset, len }),
            }
        }
        blocks
    }
}

/// The positions of the chunks a block touches; `None` if it reaches beyond the end of a file of so many bytes.
pub(super) fn chunks_inside(block: Block, file_bytes: u64) -> Option<Range<usize>> {
    let end = block.offset.checked_add(u64::from(block.len)).filter(|end| *end <= file_bytes)?;
    let position = |chunk: u64| usize::try_from(chunk).ok();
    Some(position(block.offset / CHUNK_BYTES)?..position(end.div_ceil(CHUNK_BYTES))?)
}

/// The positions of the chunks a block touches, as far as the file goes.
fn positions(block: Block, chunks: usize) -> Range<usize> {
    let end = (block.offset.saturating_add(u64::from(block.len))).div_ceil(CHUNK_BYTES);
    let clamp = |chunk: u64| usize::try_from(chunk).map_or(chunks, |chunk| chunk.min(chunks));
    let start = clamp(block.offset / CHUNK_BYTES);
    start..clamp(end).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: StoreFile = StoreFile { kind: FileKind::Rows, number: 3 };

    fn chunk(number: u64) -> Block {
        Block { file: FILE, offset: number * CHUNK_BYTES + 4096, len: 8192 }
    }

    /// A file of 16 chunks and a half, the first `loaded` of them in memory, each loaded in a turn of its own.
    fn residency(loaded: u64) -> Residency {
        let mut residency = Residency::default();
        residency.add(FILE, FileId(5), 16 * CHUNK_BYTES + CHUNK_BYTES / 2);
        for number in 0..loaded {
            residency.begin_turn();
            residency.mark(chunk(number), residency.writes(chunk(number)));
        }
        residency
    }

    fn held(residency: &Residency) -> Vec<u64> {
        (0..17).filter(|&number| residency.holds(chunk(number))).collect()
    }

    /// Evicts down to `chunks` in a turn that reads nothing; what left, as (first chunk, chunks).
    fn evict(residency: &mut Residency, chunks: u64, protected_since: u64) -> Vec<(u64, u64)> {
        residency.begin_turn();
        let blocks = residency.evict(chunks * CHUNK_BYTES, protected_since);
        blocks.iter().map(|block| (block.offset / CHUNK_BYTES, u64::from(block.len).div_ceil(CHUNK_BYTES))).collect()
    }

    #[test]
    fn what_was_read_since_the_last_look_stays() {
        let mut residency = residency(6);
        assert_eq!(residency.bytes(), 6 * CHUNK_BYTES);
        assert_eq!(evict(&mut residency, 6, u64::MAX), []);
        // The first look at each gives it its chance.
        assert_eq!(evict(&mut residency, 4, u64::MAX), []);
        for number in [0, 1, 4] {
            residency.touch(chunk(number)).unwrap();
        }
        assert_eq!(evict(&mut residency, 4, u64::MAX), [(2, 2)]);
        assert_eq!(held(&residency), [0, 1, 4, 5]);
        assert_eq!(evict(&mut residency, 3, u64::MAX), [(5, 1)]);
        assert_eq!(residency.touch(chunk(5)), Err(Unavailable::Missing(chunk(5))));
        assert_eq!(residency.touch(chunk(4)), Ok(FileId(5)));
        assert_eq!(residency.bytes(), 3 * CHUNK_BYTES);
    }

    #[test]
    fn what_an_unfinished_evaluation_read_stays() {
        let mut residency = residency(8);
        evict(&mut residency, 7, u64::MAX);
        let since = residency.begin_turn();
        for number in 0..6 {
            residency.touch(chunk(number)).unwrap();
        }
        for _ in 0..5 {
            evict(&mut residency, 2, since);
        }
        assert_eq!(held(&residency), [0, 1, 2, 3, 4, 5]);
        for _ in 0..2 {
            evict(&mut residency, 2, u64::MAX);
        }
        assert_eq!(held(&residency).len(), 2);
    }

    #[test]
    fn the_overshoot_is_bounded_whatever_is_read() {
        let mut residency = Residency::default();
        let chunks = OVERSHOOT_CHUNKS_MAX + 100;
        residency.add(FILE, FileId(5), chunks * CHUNK_BYTES);
        let whole = Block { file: FILE, offset: 0, len: u32::try_from(chunks * CHUNK_BYTES).unwrap() };
        residency.mark(whole, 0);
        residency.touch(whole).unwrap();
        let released = residency.evict(0, 0);
        assert_eq!(released, [Block { len: 100 * CHUNK_BYTES as u32, ..whole }]);
        assert_eq!(residency.evict(0, 0), []);
    }

    #[test]
    fn a_populate_that_a_write_overtook_does_not_count() {
        let mut residency = residency(0);
        let writes = residency.writes(chunk(2));
        residency.forget(chunk(2));
        residency.mark(chunk(2), writes);
        assert_eq!((held(&residency), residency.bytes()), (vec![], 0));
        residency.mark(chunk(2), residency.writes(chunk(2)));
        assert_eq!(held(&residency), [2]);
        residency.forget(chunk(2));
        assert_eq!((held(&residency), residency.bytes()), (vec![], 0));
        // Loaded again before the choice fell on its old place: it stands in the queue once.
        residency.mark(chunk(2), residency.writes(chunk(2)));
        assert_eq!((residency.candidates.len(), residency.bytes()), (1, CHUNK_BYTES));
        residency.remove(FILE);
        assert_eq!((residency.candidates.len(), residency.bytes()), (0, 0));
    }

    #[test]
    fn blocks_that_no_file_holds_are_corrupt() {
        let residency = residency(17);
        let end = 16 * CHUNK_BYTES + CHUNK_BYTES / 2;
        let last = Block { file: FILE, offset: end - 4096, len: 4096 };
        assert!(residency.touch(last).is_ok());
        for block in [
            Block { len: 4097, ..last },
            Block { offset: u64::MAX, ..last },
            Block { offset: end + CHUNK_BYTES, len: 0, ..last },
            Block { file: StoreFile { number: 4, ..FILE }, ..last },
        ] {
            assert_eq!(residency.touch(block), Err(Unavailable::Corrupt(block)));
        }
    }

    #[test]
    fn the_last_chunk_is_released_as_far_as_its_file_goes() {
        let mut residency = residency(17);
        let mut released = Vec::new();
        for _ in 0..3 {
            residency.begin_turn();
            released.extend(residency.evict(0, u64::MAX));
        }
        assert_eq!(released, [Block { file: FILE, offset: 0, len: (16 * CHUNK_BYTES + CHUNK_BYTES / 2) as u32 }]);
    }
}
