//! Chunks that somebody waits for: which are wanted, which are under way.
//!
//! Owns: the order and the bound of loads, and how far to read ahead: a miss right behind the last load of a walk means
//! that the walk goes on, and each time twice as much is loaded. Does not know: the port, who waits.
//!
//! Invariants
//! - I1: a chunk is asked of the port once at a time.
//! - I2: at most [`IN_FLIGHT_MAX`] loads are under way; what waits is asked for in the order of the files, neighbours
//!   together, up to [`LOAD_CHUNKS_MAX`].

use std::collections::{BTreeMap, VecDeque};

use std::ops::Range;

use trilith_engine::page_source::{Block, StoreFile};

use super::residency::{CHUNK_BYTES, ChunkId};

/// Loads under way at most.
const IN_FLIGHT_MAX: usize = 32;
/// Chunks of one load at most.
const LOAD_CHUNKS_MAX: u64 = 4;
/// Chunks read ahead of a walk at most: 1 MiB.
const AHEAD_CHUNKS_MAX: u64 = 16;
/// Walks that are followed at once.
const WALKS_MAX: usize = 8;

/// An ascending walk over a file, as far as it shows in misses.
#[derive(Debug)]
struct Walk {
    file: StoreFile,
    /// The chunk behind those that were loaded for it.
    next: u64,
    ahead: u64,
}

/// Chunks wanted and under way.
#[derive(Debug, Default)]
pub(super) struct Loads {
    /// Not yet asked for, with the turn in which they were missed first.
    wanted: BTreeMap<ChunkId, u64>,
    /// Asked for.
    under_way: BTreeMap<ChunkId, u64>,
    in_flight: usize,
    /// Where the next load starts looking: no file starves another.
    next: Option<ChunkId>,
    /// The one that moved last is the last.
    walks: VecDeque<Walk>,
}

impl Loads {
    /// A block was missed in this turn. `chunks`: how many its file has; `is_held`: which of them are in memory.
    pub(super) fn request(&mut self, block: Block, turn: u64, chunks: u64, is_held: impl Fn(ChunkId) -> bool) {
        if self.awaits(block) {
            return;
        }
        let missed = numbers(block);
        let end = missed.end + self.ahead_of(block.file, &missed);
        for number in missed.start..end.min(chunks) {
            let chunk = (block.file, number);
            if !is_held(chunk) && !self.under_way.contains_key(&chunk) {
                self.wanted.entry(chunk).or_insert(turn);
            }
        }
    }

    /// How many chunks to load beyond those missed.
    fn ahead_of(&mut self, file: StoreFile, missed: &Range<u64>) -> u64 {
        let walk = self.walks.iter().position(|walk| walk.file == file && missed.contains(&walk.next));
        let ahead = match walk.and_then(|position| self.walks.remove(position)) {
            Some(walk) => (walk.ahead * 2).clamp(1, AHEAD_CHUNKS_MAX),
            None => 0,
        };
        if self.walks.len() == WALKS_MAX {
            self.walks.pop_front();
        }
        self.walks.push_back(Walk { file, next: missed.end + ahead, ahead });
        ahead
    }

    /// The next load to submit: whole chunks, which may reach beyond the file's end.
    pub(super) fn poll(&mut self) -> Option<Block> {
        if self.in_flight == IN_FLIGHT_MAX {
            return None;
        }
        let from_here = self.next.and_then(|next| self.wanted.range(next..).next());
        let (&(file, first), _) = from_here.or_else(|| self.wanted.first_key_value())?;
        let mut number = first;
        while number < first + LOAD_CHUNKS_MAX
            && let Some(turn) = self.wanted.remove(&(file, number))
        {
            self.under_way.insert((file, number), turn);
            number += 1;
        }
        self.in_flight += 1;
        self.next = Some((file, number));
        let len = u32::try_from((number - first) * CHUNK_BYTES).expect("a load is far below 4 GiB");
        Some(Block { file, offset: first * CHUNK_BYTES, len })
    }

    /// A load has ended.
    pub(super) fn handle_loaded(&mut self, load: Block) {
        self.in_flight -= 1;
        for chunk in chunks_of(load) {
            let asked = self.under_way.remove(&chunk);
            assert!(asked.is_some(), "I1: {chunk:?} was under way");
        }
    }

    /// Whether any part of a block is still to come.
    pub(super) fn awaits(&self, block: Block) -> bool {
        chunks_of(block).any(|chunk| self.wanted.contains_key(&chunk) || self.under_way.contains_key(&chunk))
    }

    /// Nothing is to come.
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.under_way.is_empty()
    }

    /// The turn of the oldest miss that is not yet made good.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.wanted.values().chain(self.under_way.values()).min().copied()
    }
}

fn numbers(block: Block) -> Range<u64> {
    block.offset / CHUNK_BYTES..(block.offset + u64::from(block.len)).div_ceil(CHUNK_BYTES)
}

fn chunks_of(block: Block) -> impl Iterator<Item = ChunkId> {
    numbers(block).map(move |number| (block.file, number))
}

#[cfg(test)]
mod tests {
    use trilith_engine::page_source::{FileKind, StoreFile};

    use super::*;

    fn block(number: u32, chunk: u64, chunks: u32) -> Block {
        let file = StoreFile { kind: FileKind::Rows, number };
        Block { file, offset: chunk * CHUNK_BYTES + 4096, len: chunks * CHUNK_BYTES as u32 - 8192 }
    }

    fn request(loads: &mut Loads, block: Block, turn: u64) {
        loads.request(block, turn, 1000, |_| false);
    }

    /// Everything wanted is loaded; the chunks of file 1.
    fn load_all(loads: &mut Loads) -> Vec<u64> {
        let mut loaded = Vec::new();
        while let Some(load) = loads.poll() {
            loaded.extend(numbers(load));
            loads.handle_loaded(load);
        }
        loaded
    }

    #[test]
    fn walks_are_read_ahead_and_jumps_are_not() {
        let mut loads = Loads::default();
        // Two walks, taking turns, and jumps between.
        let mut next = [100, 500];
        for ahead in [0, 1, 2, 4, 8, 16, 16] {
            for next in &mut next {
                request(&mut loads, block(1, *next, 1), 1);
                // While it is awaited, asking again is no step of the walk.
                request(&mut loads, block(1, *next, 1), 1);
                assert_eq!(load_all(&mut loads), (*next..=*next + ahead).collect::<Vec<_>>());
                *next += ahead + 1;
            }
            let jump = ahead * 11 + 3;
            request(&mut loads, block(1, jump, 1), 1);
            assert_eq!(load_all(&mut loads), [jump]);
        }
        loads.request(block(1, next[0], 1), 1, next[0] + 3, |(_, number)| number == next[0] + 1);
        assert_eq!(load_all(&mut loads), [next[0], next[0] + 2], "neither what is held nor beyond the file");
    }

    #[test]
    fn neighbours_load_together_and_nothing_twice() {
        let mut loads = Loads::default();
        request(&mut loads, block(1, 7, 1), 5);
        request(&mut loads, block(1, 3, 2), 6);
        request(&mut loads, block(1, 5, 1), 7);
        request(&mut loads, block(1, 6, 1), 7);
        let place = |load: Block| (load.offset / CHUNK_BYTES, u64::from(load.len) / CHUNK_BYTES);
        let first = loads.poll().unwrap();
        assert_eq!(place(first), (3, LOAD_CHUNKS_MAX));
        request(&mut loads, block(1, 4, 1), 8);
        let second = loads.poll().unwrap();
        assert_eq!(place(second), (7, 1), "4 is under way");
        assert_eq!((loads.poll(), loads.oldest()), (None, Some(5)));
        loads.handle_loaded(second);
        assert!(loads.awaits(block(1, 6, 2)) && !loads.awaits(block(1, 7, 1)));
        loads.handle_loaded(first);
        assert!(loads.is_empty() && loads.oldest().is_none());
    }

    #[test]
    fn loads_under_way_are_bounded_and_take_turns() {
        let mut loads = Loads::default();
        (0..100).for_each(|number| request(&mut loads, block(number, 9, 1), 1));
        let mut under_way: Vec<Block> = std::iter::from_fn(|| loads.poll()).collect();
        assert_eq!(under_way.len(), IN_FLIGHT_MAX);
        request(&mut loads, block(0, 2, 1), 2);
        loads.handle_loaded(under_way.remove(0));
        assert_eq!(loads.poll().unwrap().file.number as usize, IN_FLIGHT_MAX, "an early file does not go first");
    }
}
