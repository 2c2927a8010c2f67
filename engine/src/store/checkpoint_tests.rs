//! Crash tests of checkpoints: random work, a power loss after any action with any subset of unsynced sectors kept, and
//! the real recovery against a model of every checkpoint ever begun.

mod scrub;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, Index, LogPosition, MemberId, Term};

use crate::mvcc::KeyspaceState;
use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::checkpoint::{CheckpointRequest, CheckpointStep, Store, StoreOptions};
use crate::store::effect::StoreEffect;
use crate::store::key_entry::{Chain, KeyEntry, Revision};
use crate::store::overlay::Overlay;
use crate::store::page::PageRef;
use crate::store::recover::{RecoverError, StoreMedia, recover};
use crate::store::row_log::{Row, RowLog, RowLogOptions};
use crate::store::superblock::{SUPERBLOCK_BYTES, Superblock};
use crate::store::tree::TreeId;
use crate::store::tree::tests::Rng;

const SECTOR: usize = 512;

pub(super) const IDENTITY: Identity =
    Identity { cluster_id: ClusterId(11), member_id: MemberId(22), incarnation: Incarnation(33) };

const OPTIONS: StoreOptions = StoreOptions {
    index_file_bytes: 64 * 4096,
    index_files_max: 10_000,
    row_segment_bytes: 64 * 1024,
    write_bytes_max: 8192,
    writes_in_flight_max: 4,
};

const ROW_OPTIONS: RowLogOptions =
    RowLogOptions { segment_bytes: 64 * 1024, block_bytes: 4096, rows_resident_bytes_max: 8192, write_bytes_max: 4096 };

pub(super) fn superblock_file(number: u32) -> StoreFile {
    StoreFile { kind: FileKind::Superblock, number }
}

/// What a crash leaves, and what the process saw before.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) durable: BTreeMap<StoreFile, Vec<u8>>,
    pub(super) seen: BTreeMap<StoreFile, Vec<u8>>,
    unsynced: Vec<(StoreFile, u64, Vec<u8>)>,
    /// Blocks that were asked for once.
    pub(super) loaded: RefCell<BTreeSet<Block>>,
}

impl Disk {
    pub(super) fn new() -> Self {
        let mut disk = Self::default();
        for number in 0..2 {
            disk.durable.insert(superblock_file(number), vec![0; SUPERBLOCK_BYTES as usize]);
        }
        disk.seen = disk.durable.clone();
        disk
    }

    pub(super) fn perform(&mut self, effect: &StoreEffect) {
        match effect {
            StoreEffect::CreateFile { file, bytes, .. } => {
                self.durable.insert(*file, vec![0; *bytes as usize]);
                self.seen.insert(*file, vec![0; *bytes as usize]);
                self.unsynced.retain(|(other, ..)| other != file);
            }
            StoreEffect::Write(write) => {
                let file = self.seen.get_mut(&write.file).expect("a file is created before it is written");
                let bytes = write.bytes.as_slice();
                file[write.offset as usize..][..bytes.len()].copy_from_slice(bytes);
                self.unsynced.push((write.file, write.offset, bytes.to_vec()));
            }
            StoreEffect::Sync { file, .. } => {
                self.durable.insert(*file, self.seen[file].clone());
                self.unsynced.retain(|(other, ..)| other != file);
            }
            StoreEffect::Populate { block, .. } => {
                assert!(self.seen[&block.file].len() as u64 >= block.offset + u64::from(block.len) && block.len > 0);
            }
            StoreEffect::Discard { file, offset, len, .. } => {
                for files in [&mut self.durable, &mut self.seen] {
                    let bytes = files.get_mut(file).expect("only an existing file gives back room");
                    bytes[*offset as usize..][..*len as usize].fill(0);
                }
                let end = *offset + *len;
                self.unsynced.retain(|(other, at, _)| other != file || *at < *offset || *at >= end);
            }
            StoreEffect::RemoveFile { file, .. } => {
                let seen = self.seen.remove(file);
                assert!(seen.is_some(), "{file:?} is removed once");
                self.durable.remove(file);
                self.unsynced.retain(|(other, ..)| other != file);
            }
        }
    }

    /// Power loss: each sector of a write that no sync covered survives or not.
    pub(super) fn crash(&mut self, in_flight: &[StoreEffect], rng: &mut Rng) {
        let keep = rng.below(4);
        for effect in in_flight {
            match effect {
                StoreEffect::Write(write) => {
                    self.unsynced.push((write.file, write.offset, write.bytes.as_slice().to_vec()));
                }
                StoreEffect::CreateFile { file, .. } if rng.below(2) == 0 => {
                    self.durable.insert(*file, vec![0xcc; 4096]);
                }
                StoreEffect::Discard { .. } | StoreEffect::RemoveFile { .. } if rng.below(2) == 0 => {
                    self.perform(effect);
                }
                _ => {}
            }
        }
        for (file, offset, bytes) in std::mem::take(&mut self.unsynced) {
            let Some(file) = self.durable.get_mut(&file) else { continue };
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                let at = offset as usize + index * SECTOR;
                if at + SECTOR <= file.len() && (keep == 1 || (keep > 1 && rng.below(2) == 0)) {
                    file[at..at + SECTOR].copy_from_slice(sector);
                }
            }
        }
        self.seen = self.durable.clone();
        self.loaded.borrow_mut().clear();
    }
}

impl PageSource for Disk {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        if self.loaded.borrow_mut().insert(block) {
            return Err(Unavailable::Missing(block));
        }
        let start = block.offset as usize;
        let file = self.seen.get(&block.file).ok_or(Unavailable::Corrupt(block))?;
        file.get(start..start + block.len as usize).ok_or(Unavailable::Corrupt(block))
    }
}

impl StoreMedia for Disk {
    fn read(&mut self, file: StoreFile, offset: u64, len: usize) -> Result<Option<Vec<u8>>, String> {
        let bytes = self.seen.get(&file).and_then(|bytes| bytes.get(offset as usize..offset as usize + len));
        Ok(bytes.map(<[u8]>::to_vec))
    }
}

/// The state as of a checkpoint.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    keys: BTreeMap<Vec<u8>, KeyEntry>,
    tables: BTreeMap<Vec<u8>, Vec<u8>>,
    index: u64,
    revision: i64,
}

struct World {
    rng: Rng,
    disk: Disk,
    store: Store,
    rows: RowLog,
    in_flight: Vec<StoreEffect>,
    /// State by sequence, for every checkpoint begun.
    checkpoints: BTreeMap<u64, Model>,
    published: u64,
    model: Model,
}

pub(super) fn retry<T>(mut read: impl FnMut() -> Result<T, Unavailable>) -> T {
    loop {
        match read() {
            Ok(value) => return value,
            Err(Unavailable::Missing(_)) => {}
            Err(Unavailable::Corrupt(block)) => panic!("{block:?} is corrupt"),
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let checkpoints = BTreeMap::from([(0, Model::default())]);
        Self {
            rng: Rng(seed),
            disk: Disk::new(),
            store: Store::new(OPTIONS, IDENTITY),
            rows: RowLog::new(ROW_OPTIONS),
            in_flight: Vec::new(),
            checkpoints,
            published: 0,
            model: Model::default(),
        }
    }

    fn random_key(&mut self) -> Vec<u8> {
        let number = self.rng.below(400);
        let pad = if number.is_multiple_of(50) { number as usize * 23 } else { 0 };
        [format!("key/{number:05}").into_bytes(), vec![b'p'; pad]].concat()
    }

    /// Changes some keys and tables, and asks for a checkpoint of them.
    fn change(&mut self) -> (Overlay, CheckpointRequest) {
        let mut overlay = Overlay::new();
        for _ in 0..self.rng.below(120) {
            let key = self.random_key();
            self.model.revision += 1;
            let row = Revision { main: self.model.revision, sub: 0 };
            let dead = self.rng.below(5) == 0;
            let (create, version) = if dead { (0, 0) } else { (row.main, 1) };
            let chain = Chain::link(None, -1).chain;
            let entry = KeyEntry { row, create, version, lease: 0, chain };
            let (prev, jump) = (Revision::NONE, Revision::NONE);
            self.rows.append(&Row { at: row, key: &key, value: b"value", create, version, lease: 0, prev, jump });
            let live_below = self.model.keys.get(&key).is_some_and(|entry| !entry.is_tombstone());
            overlay.put(&key, entry.clone(), live_below);
            self.model.keys.insert(key, entry);
        }
        let mut tables = BTreeMap::new();
        for _ in 0..self.rng.below(3) {
            let (key, value) = (vec![self.rng.below(9) as u8], vec![self.rng.next() as u8; 3]);
            tables.insert(key, (self.rng.below(2) == 0).then_some(value));
        }
        for (key, value) in tables.clone() {
            match value {
                Some(value) => drop(self.model.tables.insert(key, value)),
                None => drop(self.model.tables.remove(&key)),
            }
        }
        self.model.index += 1 + self.rng.below(9);
        let request = CheckpointRequest {
            position: LogPosition { index: Index(self.model.index), term: Term(2), digest: Digest(7) },
            keyspace: KeyspaceState { revision: self.model.revision, compacted: -1, digest: 3 },
            rows: self.rows.handle_checkpoint(),
            leases: std::sync::Arc::default(),
            tables: tables.into_iter().collect(),
        };
        (overlay, request)
    }

    /// Runs a checkpoint, or crashes on the way after `actions`. True: the machine still runs.
    fn checkpoint(&mut self, actions: &mut u64) -> bool {
        let (overlay, request) = self.change();
        let sequence = self.published + 1;
        self.checkpoints.insert(sequence, self.model.clone());
        self.store.begin_checkpoint(request);
        loop {
            if *actions == 0 {
                return false;
            }
            *actions -= 1;
            self.act(&overlay);
            if let Some(published) = self.store.take_published() {
                assert_eq!((published.sequence, published.position.index.0), (sequence, self.model.index));
                assert_eq!(published.retain_from.0, self.checkpoints[&self.published].index);
                self.published = sequence;
                assert_eq!(published.keys.entries(), self.model.keys.len() as u64);
                return true;
            }
        }
    }

    fn act(&mut self, overlay: &Overlay) {
        match self.rng.below(3) {
            0 => {
                let budget = [1, 30, 100_000][self.rng.below(3) as usize];
                let step = self.store.step(budget, overlay, &self.disk);
                assert!(!matches!(step, CheckpointStep::NeedPages(Unavailable::Corrupt(_))), "{step:?}");
            }
            1 => {
                if let Some(effect) = self.store.poll_effect(&mut self.rows) {
                    self.check_apart(&effect);
                    self.in_flight.push(effect);
                }
            }
            _ if self.in_flight.is_empty() => {}
            _ => {
                let which = self.rng.below(self.in_flight.len() as u64) as usize;
                let effect = self.in_flight.swap_remove(which);
                self.disk.perform(&effect);
                self.store.handle_complete(effect.token(), &mut self.rows);
            }
        }
    }

    fn check_apart(&self, effect: &StoreEffect) {
        let StoreEffect::Write(write) = effect else { return };
        let place = |w: &crate::store::StoreWrite| (w.file, w.offset, w.offset + w.bytes.as_slice().len() as u64);
        let (file, start, end) = place(write);
        assert!(start.is_multiple_of(4096) && end.is_multiple_of(4096) && end - start <= 8192);
        for other in &self.in_flight {
            if let StoreEffect::Write(other) = other {
                let (other_file, from, to) = place(other);
                assert!(other_file != file || to <= start || end <= from, "writes in flight do not overlap");
            }
        }
    }

    fn crash_and_recover(&mut self) {
        let in_flight = std::mem::take(&mut self.in_flight);
        self.disk.crash(&in_flight, &mut self.rng);
        let (store, rows) = open(&mut self.disk).expect("a crash alone never makes the store unreadable");
        (self.store, self.rows) = (store, rows);
        let sequence = self.store.superblock().map_or(0, |superblock| superblock.sequence);
        assert!(sequence == self.published || sequence == self.published + 1, "{sequence} after {}", self.published);
        check_contents(&self.disk, &self.store, &self.rows, &self.checkpoints[&sequence]);
        self.published = sequence;
        self.model = self.checkpoints[&sequence].clone();
        self.check_older();
    }

    /// If the newest superblock rots, the older checkpoint is whole.
    fn check_older(&self) {
        let Some(current) = self.store.superblock().copied() else { return };
        let mut disk = self.disk.clone();
        disk.loaded.borrow_mut().clear();
        disk.seen.get_mut(&superblock_file(current.copy())).unwrap()[100] ^= 1;
        let other = Superblock::decode(&disk.seen[&superblock_file(1 - current.copy())], 1 - current.copy());
        match open(&mut disk) {
            Ok((store, rows)) => {
                assert_eq!(store.superblock(), other.as_ref().ok());
                assert_eq!(other.unwrap().sequence + 1, current.sequence);
                assert_eq!(self.store.retain_from(), other.unwrap().position.index);
                check_contents(&disk, &store, &rows, &self.checkpoints[&(current.sequence - 1)]);
            }
            Err(RecoverError::Corrupt { file, offset: 0, .. }) => {
                assert!(other.is_err() && file.kind == FileKind::Superblock);
                assert!(current.sequence == 1 || self.store.retain_from() == current.position.index);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn open(disk: &mut Disk) -> Result<(Store, RowLog), RecoverError> {
    let store = recover(OPTIONS, IDENTITY, disk)?;
    let rows = match store.superblock() {
        Some(superblock) => retry(|| RowLog::open(ROW_OPTIONS, superblock.rows, disk)),
        None => RowLog::new(ROW_OPTIONS),
    };
    Ok((store, rows))
}

fn check_contents(disk: &Disk, store: &Store, rows: &RowLog, model: &Model) {
    let keys = store.keys();
    let mut scan = retry(|| keys.scan(b"", disk));
    for (key, entry) in &model.keys {
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        assert_eq!(retry(|| scan.next_entry()), Some((key.as_slice(), bytes.as_slice())));
        let row = retry(|| rows.row(entry.row, disk)).expect("the index names rows that exist");
        assert_eq!((row.key, row.version), (key.as_slice(), entry.version));
    }
    assert_eq!(retry(|| scan.next_entry()), None);
    let tables = store.tables();
    let mut scan = retry(|| tables.scan(b"", disk));
    for (key, value) in &model.tables {
        assert_eq!(retry(|| scan.next_entry()), Some((key.as_slice(), value.as_slice())));
    }
    assert_eq!(retry(|| scan.next_entry()), None);
    let Some(superblock) = store.superblock() else { return };
    assert_eq!((superblock.position.index.0, superblock.keyspace.revision), (model.index, model.revision));
    let mut in_use = BTreeSet::new();
    let mut note = |page: PageRef| in_use.extend(page.page.0..page.page.0 + u32::from(page.units));
    note(superblock.map);
    for id in TreeId::ALL {
        let tree = store.tree(id);
        retry(|| tree.visit_pages(disk, &mut note));
    }
    assert_eq!(store.extents().used_list(), in_use.into_iter().collect::<Vec<_>>(), "no unit leaks");
}

#[test]
fn a_crash_after_any_action_leaves_one_of_the_two_newest_checkpoints() {
    let mut ends = [0; 2];
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..8 {
            let mut actions = world.rng.below(1500);
            while world.checkpoint(&mut actions) {}
            let before = world.published;
            world.crash_and_recover();
            ends[usize::from(world.published > before)] += 1;
        }
    }
    assert!(ends[0] > 100 && ends[1] > 3, "both outcomes occur: {ends:?}");
}

/// A checkpoint without faults, effects completed at once.
fn plain_checkpoint(world: &mut World) {
    while !world.checkpoint(&mut 1_000_000) {}
}

#[test]
fn pinned_trees_stay_readable_while_checkpoints_pass() {
    let mut world = World::new(77);
    for _ in 0..3 {
        plain_checkpoint(&mut world);
    }
    let pinned = world.model.keys.clone();
    let tree = world.store.keys();
    let pin = world.store.pin();
    for _ in 0..10 {
        plain_checkpoint(&mut world);
        let mut scan = retry(|| tree.scan(b"", &world.disk));
        for key in pinned.keys() {
            assert_eq!(retry(|| scan.next_entry()).map(|(key, _)| key), Some(key.as_slice()));
        }
    }
    let held = world.store.index_bytes();
    world.store.unpin(pin);
    plain_checkpoint(&mut world);
    assert!(world.store.index_bytes() < held, "a pin given up frees its pages");
}

#[test]
fn space_does_not_grow_without_need() {
    let mut world = World::new(5);
    for _ in 0..30 {
        plain_checkpoint(&mut world);
    }
    let files = world.store.extents().files();
    for _ in 0..60 {
        plain_checkpoint(&mut world);
    }
    assert!(world.store.extents().files() <= files + 1, "{files} files became {}", world.store.extents().files());
}

#[test]
fn a_failure_is_final() {
    let mut world = World::new(9);
    plain_checkpoint(&mut world);
    let (overlay, request) = world.change();
    world.store.begin_checkpoint(request);
    for _ in 0..50 {
        world.act(&overlay);
    }
    world.store.handle_failed();
    for effect in std::mem::take(&mut world.in_flight) {
        world.store.handle_complete(effect.token(), &mut world.rows);
    }
    for _ in 0..1000 {
        world.act(&overlay);
        assert!(world.in_flight.is_empty() && world.store.take_published().is_none());
    }
}

#[test]
fn damage_is_refused_with_its_place_and_foreign_stores_by_name() {
    let mut world = World::new(31);
    for _ in 0..4 {
        plain_checkpoint(&mut world);
    }
    let superblock = *world.store.superblock().unwrap();
    let map = OPTIONS.index_file_bytes;
    let (file, offset) = (u64::from(superblock.map.page.0) * 4096 / map, u64::from(superblock.map.page.0) * 4096 % map);
    let file = StoreFile { kind: FileKind::Index, number: file as u32 };
    for at in [0, 9, 23, 24, 30, 4095] {
        let mut disk = world.disk.clone();
        disk.seen.get_mut(&file).unwrap()[offset as usize + at] ^= 4;
        match recover(OPTIONS, IDENTITY, &mut disk) {
            Err(RecoverError::Corrupt { file: found, offset: at, .. }) => assert_eq!((found, at), (file, offset)),
            other => panic!("{other:?}"),
        }
    }
    let stranger = Identity { incarnation: Incarnation(34), ..IDENTITY };
    let error = recover(OPTIONS, stranger, &mut world.disk).unwrap_err();
    assert_eq!(error, RecoverError::ForeignIdentity { file: superblock_file(0), found: IDENTITY });
    assert!(error.to_string().contains("incarnation 21"), "{error}");
    for number in 0..2 {
        world.disk.seen.get_mut(&superblock_file(number)).unwrap()[50] ^= 1;
    }
    assert!(matches!(recover(OPTIONS, IDENTITY, &mut world.disk), Err(RecoverError::Corrupt { .. })));
}

/// Forged superblocks under a right checksum: refused or opened, never a panic.
#[test]
fn forged_superblocks_and_maps_never_panic() {
    let mut world = World::new(32);
    for _ in 0..4 {
        plain_checkpoint(&mut world);
    }
    let superblock = *world.store.superblock().unwrap();
    for round in 0..2000 {
        let mut bytes = superblock.encode();
        for _ in 0..=world.rng.below(2) {
            let at = if round < 1000 { 112 + world.rng.below(152) } else { 8 + world.rng.below(300) };
            bytes[at as usize] = world.rng.next() as u8;
        }
        bytes[12..16].fill(0);
        let checksum = crc32fast::hash(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        world.disk.seen.insert(superblock_file(superblock.copy()), bytes);
        if let Ok(store) = recover(OPTIONS, IDENTITY, &mut world.disk) {
            let _ = store.keys().visit_pages(&world.disk, &mut |_| {});
        }
    }
}
