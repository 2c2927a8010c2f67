//! What the model test runs over: what holds checkpoints.
//!
//! Owns: checkpoints as clones of an ordered map, and those of the store in the small. Does not know: operations,
//! answers.

use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, Index, LogPosition, MemberId, Term};

use crate::lease::Leases;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::map_tree::{MapTree, Pages, Random, Warm};
use crate::mvcc::{Keyspace, KeyspaceState};
use crate::page_source::{FileKind, StoreFile, Unavailable};
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
        let frozen = space.frozen().unwrap();
        let keys = space.tree().merged(frozen, space.reclaim_bound(), random);
        let leases = self.durable.leases.merged_leases(&space.frozen_leases());
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
