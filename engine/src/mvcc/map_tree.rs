//! A key tree in the small, for tests: an ordered map whose pages are missing at their first use.
//!
//! Owns: the map, its merges with frozen changes, page sources that miss every block once or none, and the seeded
//! choices of those tests. Does not know: the store's pages, operations, answers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::lease::encode_stored;
use crate::mvcc::KeyRange;
use crate::mvcc::key_tree::{KeyScan, KeyTree};
use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::key_entry::KeyEntry;
use crate::store::overlay::Overlay;
use crate::store::test_disk::Disk;

/// A seeded source of choices.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// A page source where a block is missing until it was asked for; a store in the small.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pub(crate) disk: Disk,
    pub(crate) resident: RefCell<BTreeSet<Block>>,
    pub(crate) misses: Cell<u64>,
    /// Blocks asked for, missing or not.
    pub(crate) asked: Cell<u64>,
}

impl PageSource for Pages {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        self.asked.set(self.asked.get() + 1);
        if self.resident.borrow_mut().insert(block) {
            self.misses.set(self.misses.get() + 1);
            return Err(Unavailable::Missing(block));
        }
        if block.file == MAP_FILE { Ok(&[]) } else { self.disk.block(block) }
    }
}

/// The key tree as an ordered map; each key stands on a page of its own. Entries are held in their binary form.
#[derive(Clone, Debug, Default)]
pub(crate) struct MapTree(Arc<BTreeMap<Vec<u8>, Vec<u8>>>);

/// Where the pages of a [`MapTree`] are thought to be.
const MAP_FILE: StoreFile = StoreFile { kind: FileKind::Index, number: u32::MAX };

fn page_of(key: &[u8]) -> Block {
    let offset = key.iter().fold(0, |sum, &byte| (sum * 257 + u64::from(byte)) % 4096);
    Block { file: MAP_FILE, offset, len: 1 }
}

pub(crate) struct MapScan<'a> {
    entries: std::collections::btree_map::Range<'a, Vec<u8>, Vec<u8>>,
    pages: &'a dyn PageSource,
}

impl KeyTree for MapTree {
    type Scan<'a> = MapScan<'a>;

    fn get(&self, key: &[u8], pages: &dyn PageSource) -> Result<Option<KeyEntry>, Unavailable> {
        pages.block(page_of(key))?;
        Ok(self.0.get(key).map(|bytes| KeyEntry::decode(bytes).unwrap()))
    }

    fn count_live(&self, range: KeyRange<'_>, pages: &dyn PageSource) -> Result<u64, Unavailable> {
        pages.block(page_of(range.start()))?;
        let inside = self.0.iter().filter(|(key, _)| range.contains(key));
        Ok(inside.filter(|(_, bytes)| KeyEntry::decode_is_live(bytes).unwrap()).count() as u64)
    }

    fn scan<'a>(&'a self, from: &[u8], pages: &'a dyn PageSource) -> Result<MapScan<'a>, Unavailable> {
        Ok(MapScan { entries: self.0.range(from.to_vec()..), pages })
    }
}

impl<'a> KeyScan<'a> for MapScan<'a> {
    fn next(&mut self) -> Result<Option<(&'a [u8], KeyEntry)>, Unavailable> {
        let next = self.next_raw()?;
        Ok(next.map(|(key, bytes)| (key, KeyEntry::decode(bytes).unwrap())))
    }

    fn next_raw(&mut self) -> Result<Option<(&'a [u8], &'a [u8])>, Unavailable> {
        let Some((key, bytes)) = self.entries.next() else { return Ok(None) };
        self.pages.block(page_of(key))?;
        Ok(Some((key, bytes)))
    }
}

impl MapTree {
    /// The tree after a merge of frozen changes; tombstones that nobody can see leave it at times.
    pub(crate) fn merged(&self, frozen: &Overlay, bound: i64, random: &mut Random) -> Self {
        let mut map = BTreeMap::clone(&self.0);
        let mut cursor = frozen.seek(b"");
        while let Some((key, entry, after)) = frozen.next(cursor) {
            let mut bytes = Vec::new();
            entry.encode_into(&mut bytes);
            map.insert(key.to_vec(), bytes);
            cursor = after;
        }
        if random.one_in(2) {
            let seen = |entry: KeyEntry| !entry.is_tombstone() || entry.row.main >= bound;
            map.retain(|_, bytes| seen(KeyEntry::decode(bytes).unwrap()));
        }
        Self(Arc::new(map))
    }

    /// The tree of leases after a merge.
    pub(crate) fn merged_leases(&self, frozen: &Overlay) -> Self {
        let mut map = BTreeMap::clone(&self.0);
        let mut cursor = frozen.seek(b"");
        while let Some((key, entry, after)) = frozen.next(cursor) {
            let mut bytes = Vec::new();
            if encode_stored(key, entry, &mut bytes) {
                map.insert(key.to_vec(), bytes);
            } else {
                map.remove(key);
            }
            cursor = after;
        }
        Self(Arc::new(map))
    }
}

/// A disk whose pages are all resident, those of a [`MapTree`] included.
pub(crate) struct Warm<'a>(pub(crate) &'a Disk);

impl PageSource for Warm<'_> {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        if block.file == MAP_FILE { Ok(&[]) } else { self.0.block(block) }
    }
}
