//! Reclaim, checkpoints and defragmentation of a whole replica over files in memory: what is driven when, and that it
//! ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use trilith_raftlog::{
    ClusterId, Identity, Incarnation, LogMedia, LogPosition, MediaError, MemberId, RecoverOptions, SegmentFile, recover,
};

use super::*;
use crate::command::{DeleteRange, Put};
use crate::mvcc::KeyspaceState;
use crate::page_source::{FileKind, StoreFile, Unavailable};
use crate::shard::ShardOptions;
use crate::store::row_log::RowLogOptions;
use crate::store::test_disk::Disk;
use crate::store::{CheckpointStep, ReclaimStep, StoreOptions};

const IDENTITY: Identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(2), incarnation: Incarnation(3) };

const STORE: StoreOptions = StoreOptions {
    index_file_bytes: 64 * 4096,
    index_files_max: 1000,
    row_segment_bytes: 64 << 10,
    write_bytes_max: 16 << 10,
    writes_in_flight_max: 2,
};

const ROWS: RowLogOptions = RowLogOptions {
    segment_bytes: 64 << 10,
    block_bytes: 4096,
    rows_resident_bytes_max: 32 << 10,
    write_bytes_max: 16 << 10,
};

/// A log that was never written.
struct NoLog;

impl LogMedia for NoLog {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, MediaError> {
        Ok(Vec::new())
    }

    fn read(&mut self, _: u32, _: u64, _: usize) -> Result<Vec<u8>, MediaError> {
        unreachable!("there is no segment")
    }

    fn read_hard_state(&mut self, _: u8) -> Result<Option<Vec<u8>>, MediaError> {
        Ok(None)
    }
}

struct World {
    replica: Replica,
    disk: Disk,
    now: u64,
    /// Effects of the store that are held back instead of carried out.
    hold_discards: bool,
    held: Vec<StoreEffect>,
    /// Bytes of files that exist, holes left out.
    discarded: u64,
    checkpoints: u64,
    /// Units of 4096 bytes that all files together may take; holes take none.
    capacity: usize,
    taken: BTreeSet<(StoreFile, u64)>,
    /// What found no room, to be tried again.
    parked: VecDeque<StoreEffect>,
}

impl World {
    fn new() -> Self {
        let recovered = recover(&mut NoLog, &RecoverOptions { after: Index::ZERO, discard_from: None }).unwrap();
        let store = Store::new(STORE, IDENTITY);
        let options = ReplicaOptions {
            log: trilith_raftlog::Options::standard(),
            checkpoint_overlay_bytes: 400_000,
            checkpoint_changes: 2000,
            checkpoint_log_bytes: 100 << 20,
            pending_bytes_max: 1 << 20,
            shards: ShardOptions::default(),
        };
        let replica = Replica::boot(
            options,
            ReplicaBoot {
                identity: IDENTITY,
                voters: vec![IDENTITY.member_id],
                configuration: Tables::default(),
                recovered,
                keyspace: Keyspace::new(store.keys(), RowLog::new(ROWS), KeyspaceState::FRESH, 0),
                store,
                tables: Tables::default(),
                position: LogPosition::default(),
                seed: 1,
                now: 0,
            },
        );
        let mut disk = Disk::default();
        for number in 0..2 {
            let file = StoreFile { kind: FileKind::Superblock, number };
            disk.files.insert(file, vec![0; crate::store::SUPERBLOCK_BYTES as usize]);
        }
        let mut world = Self {
            replica,
            disk,
            now: 0,
            hold_discards: false,
            held: Vec::new(),
            discarded: 0,
            checkpoints: 0,
            capacity: usize::MAX,
            taken: BTreeSet::new(),
            parked: VecDeque::new(),
        };
        while world.replica.role() != Role::Leader {
            world.now = world.replica.deadline().unwrap_or(world.now + 1);
            world.replica.handle_tick(world.now);
            world.carry_out();
        }
        world
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.replica.poll_effect() {
            match effect {
                Effect::WriteHardState { generation, copy, .. } => {
                    self.replica.handle_hard_state_complete(generation, copy, self.now);
                }
                Effect::PrepareSegment(prepare) => self.replica.handle_segment_prepared(prepare.sequence, self.now),
                Effect::Append(append) => self.replica.handle_append_complete(append.lsn, self.now),
                Effect::Store(effect) => self.store_effect(effect),
                Effect::RoleChanged { .. } => {}
                Effect::Checkpointed { .. } => self.checkpoints += 1,
            }
        }
    }

    /// Takes room for a creation or a write. False: there is none.
    fn takes_room(&mut self, effect: &StoreEffect) -> bool {
        let (file, from, bytes) = match effect {
            StoreEffect::CreateFile { file, bytes, .. } => (*file, 0, *bytes),
            StoreEffect::Write(write) if write.file.kind != FileKind::Superblock => {
                (write.file, write.offset, write.bytes.as_slice().len() as u64)
            }
            _ => return true,
        };
        let units = (from / 4096..(from + bytes) / 4096).map(|unit| (file, unit));
        let new: Vec<_> = units.filter(|unit| !self.taken.contains(unit)).collect();
        let fits = self.taken.len() + new.len() <= self.capacity;
        self.taken.extend(new.into_iter().filter(|_| fits));
        fits
    }

    fn store_effect(&mut self, effect: StoreEffect) {
        if !self.takes_room(&effect) {
            return self.parked.push_back(effect);
        }
        match &effect {
            StoreEffect::CreateFile { file, bytes, .. } => {
                self.disk.files.insert(*file, vec![0; *bytes as usize]);
            }
            StoreEffect::Write(write) => self.disk.write(write.file, write.offset, write.bytes.as_slice()),
            StoreEffect::Discard { .. } if self.hold_discards => return self.held.push(effect),
            StoreEffect::Discard { file, offset, len, .. } => {
                self.disk.files.get_mut(file).unwrap()[*offset as usize..][..*len as usize].fill(0);
                self.taken.retain(|(of, unit)| of != file || !(*offset..offset + len).contains(&(unit * 4096)));
                self.discarded += len;
            }
            StoreEffect::RemoveFile { file, .. } => {
                self.disk.files.remove(file).expect("it is removed once");
                self.taken.retain(|(of, _)| of != file);
            }
            StoreEffect::Sync { .. } | StoreEffect::Populate { .. } => {}
        }
        self.replica.handle_store_complete(effect.token());
    }

    /// One turn; what reclaim came to.
    fn turn(&mut self) -> ReclaimStep {
        for effect in std::mem::take(&mut self.parked) {
            self.store_effect(effect);
        }
        self.replica.set_short_of_room(!self.parked.is_empty());
        self.replica.propose_batch();
        self.carry_out();
        let mut budget = Budget::new(20_000);
        while !matches!(self.replica.apply_step(&mut budget, &self.disk), ApplyStep::Idle) {}
        let merged = self.replica.checkpoint_step(2000, &self.disk);
        assert!(!matches!(merged, CheckpointStep::NeedPages(Unavailable::Corrupt(_))), "{merged:?}");
        let step = self.replica.reclaim_step(&mut Budget::new(3000), &self.disk);
        assert!(!matches!(step, ReclaimStep::NeedPages(_)), "{step:?}");
        self.carry_out();
        step
    }

    fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..100_000 {
            let idle = self.turn() == ReclaimStep::Idle && !self.replica.store.is_checkpointing();
            quiet = if idle && !self.replica.has_pending_commands() { quiet + 1 } else { 0 };
            if quiet == 2 {
                return;
            }
        }
        panic!("reclaim does not end");
    }

    fn put(&mut self, number: u32, value: &[u8]) {
        let key = format!("key/{number:06}").into_bytes();
        self.replica.submit(&Command::Put(Put { key: &key, value, ..Put::default() })).expect("a leader takes it");
        if number.is_multiple_of(50) {
            self.turn();
        }
    }

    fn compact(&mut self) {
        self.settle();
        let revision = self.replica.keyspace().state().revision;
        self.replica.submit(&Command::Compact { revision }).expect("a leader takes it");
        self.settle();
    }

    fn delete_all(&mut self) {
        let del = DeleteRange { key: b"k", range_end: b"l", prev_kv: false };
        self.replica.submit(&Command::DeleteRange(del)).expect("a leader takes it");
        self.put(0, b"one is left, so that the tombstones are below the newest revision");
    }
}

#[test]
fn compaction_alone_gives_back_the_room_of_what_it_left_dead() {
    let mut world = World::new();
    for round in 0..5_u8 {
        (0..3000).for_each(|number| world.put(number, &[round; 100]));
    }
    world.settle();
    let (before, files) = (world.replica.store_bytes(), world.disk.files.len());
    let in_use = world.replica.store_bytes_in_use();
    assert!(world.replica.keyspace().rows().rows_counted().1 == 0 && before > 3_000_000);
    world.compact();
    let (after, rows) = (world.replica.store_bytes(), world.replica.keyspace().rows());
    assert!(after < before / 3, "{before} bytes became {after}");
    assert!(world.replica.store_bytes_in_use() < in_use / 3);
    assert!(!rows.has_retired() && rows.rows_counted().0 < 4000, "{:?}", rows.rows_counted());
    assert!(world.disk.files.len() < files / 2, "{files} files became {}", world.disk.files.len());
    // At rest nothing goes on: no checkpoint calls for the next.
    let checkpoints = world.checkpoints;
    for _ in 0..1000 {
        world.turn();
    }
    assert_eq!(world.checkpoints, checkpoints);
}

/// A disk with room for so many units more than what is in use when everything but a third becomes dead.
fn reclaim_on_a_full_disk(keys: u32, units_free: usize) {
    let mut world = World::new();
    for round in 0..5_u8 {
        // A third of the rows of every segment is never replaced.
        let key = |number: u32| if number.is_multiple_of(3) { number + u32::from(round) * keys } else { number };
        (0..keys).for_each(|number| world.put(key(number), &[round; 100]));
    }
    world.settle();
    let full = world.taken.len();
    world.capacity = full + units_free;
    world.compact();
    assert!(world.parked.is_empty() && world.taken.len() < full * 4 / 5, "{} of {full} units", world.taken.len());
}

#[test]
fn a_disk_that_is_all_but_full_gets_its_room_back() {
    // More is to be rewritten than there is room for, beside what checkpoints write.
    reclaim_on_a_full_disk(3000, 56);
    // The second rewrite has no room before the first one's sources are gone.
    reclaim_on_a_full_disk(900, 24);
}

#[test]
fn erased_keys_leave_memory_and_index_without_further_writes() {
    let mut world = World::new();
    (0..8000).for_each(|number| world.put(number, b"value"));
    world.delete_all();
    world.compact();
    world.settle();
    assert_eq!(world.replica.store.keys().entries(), 1);
    assert!(world.replica.keyspace().overlay().is_empty(), "a checkpoint took the marks");
    assert!(world.replica.keyspace().overlay().bytes() < 10_000);
}

#[test]
fn defragment_ends_with_what_is_in_use_and_tickets_end_in_order() {
    let mut world = World::new();
    (0..8000).for_each(|number| world.put(number, &[7; 100]));
    world.settle();
    let full = world.replica.store_bytes();
    world.delete_all();
    world.hold_discards = true;
    world.compact();
    let first = world.replica.defragment();
    let second = world.replica.defragment();
    assert!(!world.replica.is_defragmented(first));
    for _ in 0..5000 {
        world.turn();
    }
    assert!(!world.replica.is_defragmented(first), "room is given back before it ends");
    assert!(!world.held.is_empty());
    world.hold_discards = false;
    for effect in std::mem::take(&mut world.held) {
        world.store_effect(effect);
    }
    world.settle();
    assert!(world.replica.is_defragmented(first) && world.replica.is_defragmented(second));
    let (used, in_use) = (world.replica.store_bytes(), world.replica.store_bytes_in_use());
    assert!(used < full / 20, "{used} of {full} bytes are left, {in_use} in use");
    // Files: two superblocks, the newest segment, and index files, whose free units are holes but for an extent.
    let rows = world.disk.files.keys().filter(|file| file.kind == FileKind::Rows).count();
    assert!(rows <= 2, "{rows} row files are left");
    let index: Vec<&Vec<u8>> =
        world.disk.files.iter().filter(|(file, _)| file.kind == FileKind::Index).map(|(_, bytes)| bytes).collect();
    let units = index.iter().flat_map(|bytes| bytes.chunks(4096)).filter(|unit| unit.iter().any(|&byte| byte != 0));
    assert!(units.count() < 80, "free units were given back");
    assert!(world.discarded > 0);
}

#[test]
fn defragment_ends_under_writes() {
    let mut world = World::new();
    (0..4000).for_each(|number| world.put(number, &[7; 100]));
    world.compact();
    let ticket = world.replica.defragment();
    let mut turns = 0;
    while !world.replica.is_defragmented(ticket) {
        turns += 1;
        assert!(turns < 20_000, "a defragmentation ends whatever is written meanwhile");
        (0..20).for_each(|number| world.put(turns % 150 * 20 + number, &[8; 100]));
        world.turn();
    }
    world.settle();
}

#[test]
fn a_merge_goes_faster_the_more_is_written_meanwhile() {
    let mut world = World::new();
    world.replica.options.checkpoint_overlay_bytes = 4 << 20;
    assert_eq!(world.replica.paced(1000), 250);
    (0..4000).for_each(|number| world.put(number, b"v"));
    world.settle();
    let fresh = |world: &World| world.replica.keyspace().overlay().len();
    let mut paces = BTreeMap::new();
    for number in 0..1999 {
        world.put(number * 2 + 1, b"v");
        world.turn();
        paces.insert(fresh(&world) / 250, world.replica.paced(1000));
    }
    let expected = [250, 250, 500, 500, 1000, 1000, 1000, 1000];
    assert_eq!(paces.values().copied().collect::<Vec<_>>(), expected);
    let mut steps_at = |eighths: usize| {
        world.replica.options.checkpoint_changes = fresh(&world) * 8 / eighths;
        (world.replica.paced(1000), world.replica.checkpoint_steps())
    };
    assert_eq!([7, 9, 13].map(&mut steps_at), [(1000, 1), (1000, 2), (1000, 4)]);
}
