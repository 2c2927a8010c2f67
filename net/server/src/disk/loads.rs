//! Chunks that somebody waits for: which are wanted, which are under way.
//!
//! Owns: the order and the bound of loads. Does not know: the port, who waits.
//!
//! Invariants
//! - I1: a chunk is asked of the port once at a time.
//! - I2: at most [`IN_FLIGHT_MAX`] loads are under way; what waits is asked for in the order of the files, neighbours
//!   together, up to [`LOAD_CHUNKS_MAX`].

use std::collections::BTreeMap;

use trilith_engine::page_source::Block;

use super::residency::{CHUNK_BYTES, ChunkId};

/// Loads under way at most.
const IN_FLIGHT_MAX: usize = 32;
/// Chunks of one load at most.
const LOAD_CHUNKS_MAX: u64 = 4;

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
}

impl Loads {
    /// A block was missed in this turn.
    pub(super) fn request(&mut self, block: Block, turn: u64) {
        for chunk in chunks_of(block) {
            if !self.under_way.contains_key(&chunk) {
                self.wanted.entry(chunk).or_insert(turn);
            }
        }
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

fn chunks_of(block: Block) -> impl Iterator<Item = ChunkId> {
    let end = (block.offset + u64::from(block.len)).div_ceil(CHUNK_BYTES);
    (block.offset / CHUNK_BYTES..end).map(move |number| (block.file, number))
}

#[cfg(test)]
mod tests {
    use trilith_engine::page_source::{FileKind, StoreFile};

    use super::*;

    fn block(number: u32, chunk: u64, chunks: u32) -> Block {
        let file = StoreFile { kind: FileKind::Rows, number };
        Block { file, offset: chunk * CHUNK_BYTES + 4096, len: chunks * CHUNK_BYTES as u32 - 8192 }
    }

    #[test]
    fn neighbours_load_together_and_nothing_twice() {
        let mut loads = Loads::default();
        loads.request(block(1, 7, 1), 5);
        loads.request(block(1, 3, 2), 6);
        loads.request(block(1, 5, 3), 7);
        let place = |load: Block| (load.offset / CHUNK_BYTES, u64::from(load.len) / CHUNK_BYTES);
        let first = loads.poll().unwrap();
        assert_eq!(place(first), (3, LOAD_CHUNKS_MAX));
        loads.request(block(1, 4, 1), 8);
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
        (0..100).for_each(|number| loads.request(block(number, 9, 1), 1));
        let mut under_way: Vec<Block> = std::iter::from_fn(|| loads.poll()).collect();
        assert_eq!(under_way.len(), IN_FLIGHT_MAX);
        loads.request(block(0, 2, 1), 2);
        loads.handle_loaded(under_way.remove(0));
        assert_eq!(loads.poll().unwrap().file.number as usize, IN_FLIGHT_MAX, "an early file does not go first");
    }
}
