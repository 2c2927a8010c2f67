//! What the model test runs over: pages that are missing at first use, and what holds checkpoints.
//!
//! Owns: an ordered map in the place of the key tree, and the store in the small. Does not know: operations, answers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, Index, LogPosition, MemberId, Term};

use crate::lease::{Leases, encode_stored};
use crate::mvcc::key_tree::{KeyScan, KeyTree};
use crate::mvcc::{KeyRange, Keyspace, KeyspaceState};
use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::key_entry::KeyEntry;
use crate::store::row_log::{RowCheckpoint, RowLog, RowLogOptions, RowLogRoot};
use crate::store::test_disk::Disk;
use crate::store::{
    CheckpointRequest, CheckpointStep, SUPERBLOCK_BYTES, Store, StoreEffect, StoreMedia, StoreOptions, Tree, TreeId,
    recover,
};

pub(super) const OPTIONS: RowLogOptions = RowLogOptions {
    segment_bytes: 128 * 1024,
    block_bytes: 4096,
    rows_resident_bytes_max: 16 * 1024,
    write_bytes_max: 8192,
};

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    pub(super) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// A page source where a block is missing until it was asked for; a store in the small.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pub(super) disk: Disk,
    pub(super) resident: RefCell<BTreeSet<Block>>,
    pub(super) misses: Cell<u64>,
    /// Blocks asked for, missing or not.
    pub(super) asked: Cell<u64>,
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
pub(super) struct MapTree(pub(super) BTreeMap<Vec<u8>, Vec<u8>>);

/// Where the pages of a [`MapTree`] are thought to be.
const MAP_FILE: StoreFile = StoreFile { kind: FileKind::Index, number: u32::MAX };

fn page_of(key: &[u8]) -> Block {
    let offset = key.iter().fold(0, |sum, &byte| (sum * 257 + u64::from(byte)) % 4096);
    Block { file: MAP_FILE, offset, len: 1 }
}

pub(super) struct MapScan<'a> {
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
        let Some((key, bytes)) = self.entries.next() else { return Ok(None) };
        self.pages.block(page_of(key))?;
        Ok(Some((key, KeyEntry::decode(bytes).unwrap())))
    }

    fn next_raw(&mut self) -> Result<Option<(&'a [u8], &'a [u8])>, Unavailable> {
        let Some((key, bytes)) = self.entries.next() else { return Ok(None) };
        self.pages.block(page_of(key))?;
        Ok(Some((key, bytes)))
    }
}

/// What a start finds.
pub(super) struct Found<T> {
    pub(super) keys: T,
    pub(super) leases: T,
    pub(super) rows: RowLogRoot,
    pub(super) state: KeyspaceState,
    pub(super) applied: u64,
}

impl<T: KeyTree> Found<T> {
    /// The keyspace that a start makes of it.
    pub(super) fn open(self, pages: &Disk) -> Keyspace<T> {
        let rows = RowLog::open(OPTIONS, self.rows, pages).unwrap();
        let leases = Leases::open(self.leases, &Warm(pages)).unwrap();
        Keyspace::new(self.keys, rows, self.state, self.applied).with_leases(leases)
    }
}

/// A disk whose pages are all resident, those of a [`MapTree`] included.
pub(super) struct Warm<'a>(pub(super) &'a Disk);

impl PageSource for Warm<'_> {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        if block.file == MAP_FILE { Ok(&[]) } else { self.0.block(block) }
    }
}

/// What holds checkpoints: an ordered map, or the store.
pub(super) trait Backing {
    type Tree: KeyTree + std::fmt::Debug;

    fn new(pages: &mut Pages) -> Self;

    /// Begins to keep the frozen changes.
    fn begin(&mut self, space: &mut Keyspace<Self::Tree>, rows: RowCheckpoint, applied: u64, random: &mut Random);

    /// Goes on with it; the trees of keys and leases once it is durable.
    fn go_on(&mut self, space: &mut Keyspace<Self::Tree>, pages: &mut Pages) -> Option<(Self::Tree, Self::Tree)>;

    /// What a start finds.
    fn restart(&mut self, pages: &mut Pages) -> Found<Self::Tree>;
}

/// A checkpoint of a [`Maps`].
#[derive(Clone)]
struct MapsCheckpoint {
    keys: MapTree,
    leases: MapTree,
    rows: RowLogRoot,
    state: KeyspaceState,
    applied: u64,
}

/// Checkpoints as clones of a map.
pub(super) struct Maps {
    durable: MapsCheckpoint,
    pending: Option<MapsCheckpoint>,
}

impl Backing for Maps {
    type Tree = MapTree;

    fn new(_: &mut Pages) -> Self {
        let (keys, leases) = (MapTree::default(), MapTree::default());
        let durable = MapsCheckpoint { keys, leases, rows: RowLogRoot::EMPTY, state: KeyspaceState::FRESH, applied: 0 };
        Self { durable, pending: None }
    }

    /// A tombstone nobody can see any more leaves the index at times, as reclaim would do it.
    fn begin(&mut self, space: &mut Keyspace<MapTree>, rows: RowCheckpoint, applied: u64, random: &mut Random) {
        let mut keys = space.tree().clone();
        let frozen = space.frozen().unwrap();
        let mut cursor = frozen.seek(&[]);
        while let Some((key, entry, after)) = frozen.next(cursor) {
            let mut bytes = Vec::new();
            entry.encode_into(&mut bytes);
            keys.0.insert(key.to_vec(), bytes);
            cursor = after;
        }
        if random.one_in(2) {
            let bound = space.reclaim_bound();
            let seen = |entry: KeyEntry| !entry.is_tombstone() || entry.row.main >= bound;
            keys.0.retain(|_, bytes| seen(KeyEntry::decode(bytes).unwrap()));
        }
        let mut leases = self.durable.leases.clone();
        let frozen = space.frozen_leases();
        let mut cursor = frozen.seek(&[]);
        while let Some((key, entry, after)) = frozen.next(cursor) {
            let mut bytes = Vec::new();
            if encode_stored(key, entry, &mut bytes) {
                leases.0.insert(key.to_vec(), bytes);
            } else {
                leases.0.remove(key);
            }
            cursor = after;
        }
        self.pending = Some(MapsCheckpoint { keys, leases, rows: rows.root, state: space.state(), applied });
    }

    fn go_on(&mut self, _: &mut Keyspace<MapTree>, _: &mut Pages) -> Option<(MapTree, MapTree)> {
        self.durable = self.pending.take()?;
        Some((self.durable.keys.clone(), self.durable.leases.clone()))
    }

    fn restart(&mut self, _: &mut Pages) -> Found<MapTree> {
        self.pending = None;
        let MapsCheckpoint { keys, leases, rows, state, applied } = self.durable.clone();
        Found { keys, leases, rows, state, applied }
    }
}

const STORE_OPTIONS: StoreOptions = StoreOptions {
    index_file_bytes: 64 * 4096,
    index_files_max: 1000,
    row_segment_bytes: OPTIONS.segment_bytes,
    write_bytes_max: 8192,
    writes_in_flight_max: 4,
};

const IDENTITY: Identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(2), incarnation: Incarnation(3) };

impl StoreMedia for Pages {
    fn read(&mut self, file: StoreFile, offset: u64, len: usize) -> Result<Option<Vec<u8>>, String> {
        let bytes = self.disk.files.get(&file).and_then(|bytes| bytes.get(offset as usize..)?.get(..len));
        Ok(bytes.map(<[u8]>::to_vec))
    }
}

impl Backing for Store {
    type Tree = Tree;

    fn new(pages: &mut Pages) -> Self {
        for number in 0..2 {
            let file = StoreFile { kind: FileKind::Superblock, number };
            pages.disk.files.insert(file, vec![0; SUPERBLOCK_BYTES as usize]);
        }
        Self::new(STORE_OPTIONS, IDENTITY)
    }

    fn begin(&mut self, space: &mut Keyspace<Tree>, rows: RowCheckpoint, applied: u64, _: &mut Random) {
        self.begin_checkpoint(CheckpointRequest {
            position: LogPosition { index: Index(applied), term: Term(1), digest: Digest(5) },
            keyspace: space.state(),
            rows,
            leases: space.frozen_leases(),
            tables: Vec::new(),
        });
    }

    fn go_on(&mut self, space: &mut Keyspace<Tree>, pages: &mut Pages) -> Option<(Tree, Tree)> {
        for _ in 0..3 {
            let step = self.step(20, space.frozen()?, pages);
            assert!(!matches!(step, CheckpointStep::NeedPages(Unavailable::Corrupt(_))), "{step:?}");
            let Some(effect) = self.poll_effect(space.rows_mut()) else { continue };
            match &effect {
                StoreEffect::CreateFile { file, bytes, .. } => {
                    drop(pages.disk.files.insert(*file, vec![0; *bytes as usize]));
                }
                StoreEffect::Write(write) => pages.disk.write(write.file, write.offset, write.bytes.as_slice()),
                StoreEffect::RemoveFile { file, .. } => drop(pages.disk.files.remove(file)),
                StoreEffect::Sync { .. } | StoreEffect::Populate { .. } | StoreEffect::Discard { .. } => {}
            }
            self.handle_complete(effect.token(), space.rows_mut());
        }
        self.take_published().map(|published| (published.keys, published.leases))
    }

    fn restart(&mut self, pages: &mut Pages) -> Found<Tree> {
        *self = recover(STORE_OPTIONS, IDENTITY, pages).unwrap();
        let (keys, leases) = (self.keys(), self.tree(TreeId::Leases));
        match self.superblock() {
            Some(found) => {
                let (rows, state, applied) = (found.rows, found.keyspace, found.position.index.0);
                Found { keys, leases, rows, state, applied }
            }
            None => Found { keys, leases, rows: RowLogRoot::EMPTY, state: KeyspaceState::FRESH, applied: 0 },
        }
    }
}
