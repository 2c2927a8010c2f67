//! Things that are named by small numbers.
//!
//! Owns: slots in chunks, so that growing moves nothing and at most one chunk is unused, and the numbers that are free.
//! Does not know: what stands in a slot.

use std::ops::{Index, IndexMut};

/// Slots of a chunk.
const CHUNK: usize = 256;

/// No slot.
pub(super) const NIL: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Slab<T> {
    /// All but the last are full.
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(slot) = self.free.pop() {
            *self.slot(slot).expect("a free slot was made before") = Some(value);
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::new());
        }
        let chunk = self.chunks.last_mut().expect("a chunk with room was just made");
        chunk.push(Some(value));
        let slots = (self.chunks.len() - 1) * CHUNK + self.chunks.last().map_or(0, Vec::len);
        u32::try_from(slots - 1).ok().filter(|&slot| slot != NIL).expect("slots are fewer than 2^32")
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let value = self.slot(slot)?.take()?;
        self.len -= 1;
        self.free.push(slot);
        Some(value)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.slot(slot)?.as_mut()
    }

    /// Heap bytes of the slots themselves.
    pub(super) fn heap_bytes(&self) -> usize {
        let slots: usize = self.chunks.iter().map(Vec::capacity).sum();
        slots * size_of::<Option<T>>() + self.free.capacity() * 4 + self.chunks.capacity() * 24
    }

    fn slot(&mut self, slot: u32) -> Option<&mut Option<T>> {
        self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        self.get(slot).expect("a slot that is named is taken")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.get_mut(slot).expect("a slot that is named is taken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_given_back_and_taken_again() {
        let mut slab = Slab::default();
        let slots: Vec<u32> = (0..3 * CHUNK as u32 + 1).map(|value| slab.insert(value)).collect();
        assert!(slots.iter().all(|&slot| slab[slot] == slot));
        assert_eq!((slab.remove(300), slab.remove(300), slab.get(300), slab.len()), (Some(300), None, None, 768));
        assert_eq!(slab.insert(7), 300);
        slab[300] += 1;
        assert_eq!((slab[300], slab.get(NIL)), (8, None));
        assert_eq!(slab.remove(100_000), None);
    }
}
