//! A long list of changes.
//!
//! Owns: changes in chunks, so that growing moves none of them, and their memory goes back chunk by chunk. Does not
//! know: what a change is but its address.

use std::iter::Flatten;
use std::ops::Index;
use std::vec::IntoIter;

use crate::mvcc::changes::Change;
use crate::store::key_entry::Revision;

/// Changes of a chunk.
const CHUNK: usize = 1024;

/// Changes in order.
#[derive(Debug, Default)]
pub(crate) struct ChangeList<'c> {
    /// All but the last are full.
    chunks: Vec<Vec<Change<'c>>>,
    len: usize,
}

impl<'c> ChangeList<'c> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, change: Change<'c>) {
        if self.len.is_multiple_of(CHUNK) {
            // The first one grows as it must: most transactions are small.
            self.chunks.push(Vec::with_capacity(if self.len == 0 { 0 } else { CHUNK }));
        }
        self.chunks.last_mut().expect("a chunk with room was just made").push(change);
        self.len += 1;
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Change<'c>> {
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    /// The change with an address, in a list in which they ascend.
    pub(crate) fn find(&self, at: Revision) -> Option<&Change<'c>> {
        let chunk = self.chunks.partition_point(|chunk| chunk[0].entry.row <= at).checked_sub(1)?;
        let chunk = &self.chunks[chunk];
        chunk.binary_search_by_key(&at, |change| change.entry.row).ok().map(|index| &chunk[index])
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.chunks.truncate(len.div_ceil(CHUNK));
        if let Some(last) = self.chunks.last_mut().filter(|_| !len.is_multiple_of(CHUNK)) {
            last.truncate(len % CHUNK);
        }
        self.len = self.len.min(len);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Change<'c>> {
        self.chunks.iter().flatten()
    }

    /// The same, with nothing borrowed from the command.
    pub(crate) fn into_owned(self) -> ChangeList<'static> {
        let owned = |chunk: Vec<Change<'c>>| chunk.into_iter().map(Change::into_owned).collect();
        ChangeList { chunks: self.chunks.into_iter().map(owned).collect(), len: self.len }
    }

    /// The changes one by one.
    pub(crate) fn into_left(self) -> ChangesLeft<'c> {
        ChangesLeft { left: self.len, chunks: self.chunks.into_iter().flatten() }
    }
}

impl<'c> Index<usize> for ChangeList<'c> {
    type Output = Change<'c>;

    fn index(&self, index: usize) -> &Change<'c> {
        &self.chunks[index / CHUNK][index % CHUNK]
    }
}

/// The changes of a list that were not taken yet.
#[derive(Debug)]
pub(crate) struct ChangesLeft<'c> {
    left: usize,
    chunks: Flatten<IntoIter<Vec<Change<'c>>>>,
}

impl ChangesLeft<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl<'c> Iterator for ChangesLeft<'c> {
    type Item = Change<'c>;

    fn next(&mut self) -> Option<Change<'c>> {
        let change = self.chunks.next()?;
        self.left -= 1;
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn change(main: i64) -> Change<'static> {
        Change::put(b"k", Cow::Borrowed(b"v"), 0, Revision { main, sub: 0 }, None, -1)
    }

    #[test]
    fn chunks_read_as_one_list() {
        let mut list = ChangeList::default();
        for index in 0..3 * CHUNK {
            list.push(change(2 + 2 * index as i64));
        }
        let main = |change: &Change<'_>| change.entry.row.main;
        for index in 0..3 * CHUNK {
            assert_eq!(main(&list[index]), 2 + 2 * index as i64);
            let row = list[index].entry.row;
            assert_eq!(list.find(row).map(main), Some(row.main));
            assert!(list.find(Revision { main: row.main + 1, sub: 0 }).is_none());
        }
        assert!(list.find(Revision { main: 1, sub: 9 }).is_none() && list.get(3 * CHUNK).is_none());
        for len in [3 * CHUNK, 2 * CHUNK + 7, 2 * CHUNK, CHUNK + 1, CHUNK, 5, 0] {
            list.truncate(len);
            assert_eq!((list.len(), list.iter().count(), list.get(len).is_none()), (len, len, true));
        }
        (0..CHUNK + 5).for_each(|index| list.push(change(2 + index as i64)));
        let mut left = list.into_owned().into_left();
        assert!(left.by_ref().map(|change| main(&change)).eq(2..CHUNK as i64 + 7));
        assert!(left.is_empty());
    }
}
