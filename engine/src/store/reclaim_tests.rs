//! Reclaim against a model: random puts, deletes and compactions, reclaim and checkpoints in small steps, a power loss
//! after any of them, and after each the real recovery, from the newest checkpoint and from the older one: every read
//! at every revision that is not compacted equals the model, and nothing dead is kept for long.

use std::collections::{BTreeMap, BTreeSet};

use trilith_raftlog::{Digest, Index, LogPosition, Term};

use crate::budget::{Budget, Pause};
use crate::command::{DeleteRange, Put, RangeQuery};
use crate::mvcc::{Keyspace, KeyspaceState};
use crate::page_source::{FileKind, StoreFile, Unavailable};
use crate::snapshot::{Catalogue, Chunk, SnapshotError, SnapshotLimits, SnapshotStep, SnapshotStream};
use crate::store::checkpoint::{CheckpointRequest, CheckpointStep, Store, StoreOptions};
use crate::store::checkpoint_tests::{Disk, IDENTITY, retry, superblock_file};
use crate::store::effect::StoreEffect;
use crate::store::reclaim::{self, ReclaimLimits, ReclaimStep};
use crate::store::recover::recover;
use crate::store::row_log::{RowLog, RowLogOptions};
use crate::store::tree::Tree;
use crate::store::tree::tests::Rng;
use crate::tables::Tables;

const SEGMENT_BYTES: u64 = 32 * 1024;

const OPTIONS: StoreOptions = StoreOptions {
    index_file_bytes: 64 * 4096,
    index_files_max: 10_000,
    row_segment_bytes: SEGMENT_BYTES,
    write_bytes_max: 8192,
    writes_in_flight_max: 3,
};

/// Some worlds keep many segments in memory.
fn row_options(seed: u64) -> RowLogOptions {
    RowLogOptions {
        segment_bytes: SEGMENT_BYTES,
        block_bytes: 4096,
        rows_resident_bytes_max: [8 << 10, 1 << 20][(seed % 2) as usize],
        write_bytes_max: 8192,
    }
}

#[derive(Clone, Debug)]
enum Command {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>, Vec<u8>),
    Compact(i64),
}

/// A row of the model: modification revision, create, version, value.
type Version = (i64, i64, i64, Option<Vec<u8>>);

/// What a reader sees: key, create, modification revision, version, value.
type Shown<'a> = (&'a [u8], i64, i64, i64, &'a [u8]);

/// All history of every key, and the scalars.
#[derive(Clone, Debug, Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    revision: i64,
    compacted: i64,
}

impl Model {
    fn apply(&mut self, command: &Command) {
        match command {
            Command::Put(key, value) => {
                self.revision += 1;
                let rows = self.keys.entry(key.clone()).or_default();
                let (create, version) = match rows.last() {
                    Some((_, create, version, Some(_))) => (*create, *version + 1),
                    _ => (self.revision, 1),
                };
                rows.push((self.revision, create, version, Some(value.clone())));
            }
            Command::Delete(from, to) => {
                let hit: Vec<_> = self.keys.range(from.clone()..to.clone()).map(|(key, _)| key.clone()).collect();
                let live: Vec<_> = hit.into_iter().filter(|key| self.keys[key].last().unwrap().3.is_some()).collect();
                self.revision += i64::from(!live.is_empty());
                for key in live {
                    self.keys.get_mut(&key).unwrap().push((self.revision, 0, 0, None));
                }
            }
            Command::Compact(at) => self.compacted = *at,
        }
    }

    fn at(&self, revision: i64) -> Vec<Shown<'_>> {
        let newest = |rows: &'_ [Version]| rows.partition_point(|(at, ..)| *at <= revision).checked_sub(1);
        let view = |(key, rows): (&'_ Vec<u8>, &'_ Vec<Version>)| newest(rows).map(|index| (key.clone(), index));
        let found: Vec<_> = self.keys.iter().filter_map(view).collect();
        let row = |(key, index): (Vec<u8>, usize)| {
            let (key, rows) = self.keys.get_key_value(&key).expect("it was just found");
            let (at, create, version, value) = &rows[index];
            value.as_ref().map(|value| (key.as_slice(), *create, *at, *version, value.as_slice()))
        };
        found.into_iter().filter_map(row).collect()
    }

    /// Rows that must be kept as of the compaction: those above, and the newest of each key at it unless a tombstone
    /// below it.
    fn live_rows(&self) -> u64 {
        let of_key = |rows: &Vec<Version>| {
            let above = rows.iter().filter(|(at, ..)| *at > self.compacted).count();
            let newest = rows[..rows.len() - above].last();
            above + usize::from(newest.is_some_and(|(at, _, _, value)| value.is_some() || *at == self.compacted))
        };
        self.keys.values().map(of_key).sum::<usize>() as u64
    }

    /// Keys that stay in the index.
    fn indexed(&self) -> u64 {
        let stays = |rows: &&Vec<Version>| rows.last().is_some_and(|row| row.3.is_some() || row.0 >= self.compacted);
        self.keys.values().filter(stays).count() as u64
    }
}

struct World {
    seed: u64,
    rng: Rng,
    disk: Disk,
    store: Store,
    space: Keyspace<Tree>,
    in_flight: Vec<StoreEffect>,
    log: Vec<Command>,
    /// Entries of the log applied.
    applied: usize,
    model: Model,
    /// No room on the file system: effects that want some wait.
    out_of_room: bool,
    thorough: bool,
    keys: u64,
}

fn step_of<T>(mut work: impl FnMut() -> Result<T, Pause>) -> T {
    loop {
        match work() {
            Ok(value) => return value,
            Err(Pause::Pages(Unavailable::Missing(_))) => {}
            Err(pause) => panic!("{pause:?}"),
        }
    }
}

fn open(disk: &mut Disk, seed: u64) -> (Store, Keyspace<Tree>, usize) {
    let store = recover(OPTIONS, IDENTITY, disk).expect("a crash alone never makes the store unreadable");
    let Some(superblock) = store.superblock().copied() else {
        let space = Keyspace::new(store.keys(), RowLog::new(row_options(seed)), KeyspaceState::FRESH, 0);
        return (store, space, 0);
    };
    let mut rows = retry(|| RowLog::open(row_options(seed), superblock.rows, disk));
    if let Some(older) = store.older_rows() {
        retry(|| rows.retain_older(older, disk));
    }
    let applied = superblock.position.index.0;
    let space = Keyspace::new(store.keys(), rows, superblock.keyspace, applied);
    (store, space, applied as usize)
}

fn apply(space: &mut Keyspace<Tree>, command: &Command, index: usize, disk: &Disk) {
    let budget = &mut Budget::unlimited();
    match command {
        Command::Put(key, value) => {
            let put = Put { key, value, ..Put::default() };
            step_of(|| space.apply_put(&put, budget, disk)).expect("a put is taken");
        }
        Command::Delete(from, to) => {
            let del = DeleteRange { key: from, range_end: to, prev_kv: false };
            step_of(|| space.apply_delete_range(&del, budget, disk)).expect("a delete is taken");
        }
        Command::Compact(at) => drop(space.apply_compact(*at).expect("it is above the one before")),
    }
    space.publish(index as u64 + 1);
}

/// Every read equals the model.
fn check(space: &Keyspace<Tree>, model: &Model, disk: &Disk, from: i64) {
    assert_eq!((space.state().revision, space.state().compacted.max(0)), (model.revision, model.compacted));
    for revision in from.max(model.compacted).max(1)..=model.revision {
        let query = RangeQuery { key: b"\0", range_end: b"\0", revision, ..RangeQuery::default() };
        let outcome = step_of(|| space.range(&query, &mut Budget::unlimited(), disk)).expect("it is not compacted");
        let found: Vec<_> =
            outcome.rows.iter().map(|row| (row.key, row.create, row.modified, row.version, row.value)).collect();
        let wanted = model.at(revision);
        assert!(found == wanted, "at {revision} of {}..{}", model.compacted, model.revision);
        assert_eq!(outcome.count, wanted.len() as i64);
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut disk = Disk::new();
        let (store, space, applied) = open(&mut disk, seed);
        let model = Model { revision: 1, ..Model::default() };
        let mut rng = Rng(seed);
        let keys = [3, 40, 300][rng.below(3) as usize];
        let (in_flight, log) = (Vec::new(), Vec::new());
        Self {
            seed,
            rng,
            disk,
            store,
            space,
            in_flight,
            log,
            applied,
            model,
            out_of_room: false,
            thorough: false,
            keys,
        }
    }

    fn key(&mut self) -> Vec<u8> {
        format!("key/{:05}", self.rng.below(self.keys)).into_bytes()
    }

    fn random_command(&mut self) -> Command {
        match self.rng.below(40) {
            0 if self.model.compacted < self.model.revision => {
                // At the newest revision, which may be a delete, or anywhere.
                let span = (self.model.revision - self.model.compacted) as u64;
                let back = if self.rng.below(3) == 0 { 0 } else { self.rng.below(span) };
                Command::Compact(self.model.revision - back as i64)
            }
            1..=6 => {
                let key = self.key();
                let end = [key.as_slice(), &b"\0"[..]].concat();
                Command::Delete(key, end)
            }
            7 => {
                let (one, other) = (self.key(), self.key());
                Command::Delete(one.clone().min(other.clone()), one.max(other))
            }
            _ => {
                let len = [10, 200, 3000][(self.rng.below(20) / 9) as usize] + self.rng.below(50);
                Command::Put(self.key(), vec![self.rng.next() as u8; len as usize])
            }
        }
    }

    fn do_command(&mut self, command: Command) {
        self.model.apply(&command);
        apply(&mut self.space, &command, self.applied, &self.disk);
        self.log.push(command);
        self.applied += 1;
        assert_eq!(self.applied, self.log.len());
    }

    fn begin_checkpoint(&mut self) {
        if self.store.is_checkpointing() {
            return;
        }
        self.space.freeze();
        let rows = self.space.rows_mut().handle_checkpoint();
        self.store.begin_checkpoint(CheckpointRequest {
            position: LogPosition { index: Index(self.applied as u64), term: Term(2), digest: Digest(7) },
            keyspace: self.space.state(),
            rows,
            leases: std::sync::Arc::default(),
            tables: Vec::new(),
        });
    }

    fn reclaim(&mut self, units: u32) -> ReclaimStep {
        let limits = ReclaimLimits {
            writes_in_flight_max: 2,
            overlay_bytes_max: 1 << 20,
            thorough: self.thorough,
            is_short_of_room: self.out_of_room,
        };
        let bound = self.space.reclaim_bound();
        let step = reclaim::step(&mut self.space, bound, &limits, &mut Budget::new(units), &self.disk);
        assert!(!matches!(step, ReclaimStep::NeedPages(Unavailable::Corrupt(_))), "{step:?}");
        if step == ReclaimStep::NeedsCheckpoint {
            self.begin_checkpoint();
        }
        step
    }

    fn merge(&mut self, units: u32) {
        if let Some(frozen) = self.space.frozen() {
            let step = self.store.step(units, frozen, &self.disk);
            assert!(!matches!(step, CheckpointStep::NeedPages(Unavailable::Corrupt(_))), "{step:?}");
        }
    }

    fn poll(&mut self) -> bool {
        let effect = self.store.poll_effect(self.space.rows_mut());
        let some = effect.is_some();
        if let Some(StoreEffect::Discard { file, .. } | StoreEffect::RemoveFile { file, .. }) = &effect {
            assert_ne!(Some(*file), self.space.rows().newest_file(), "it is appended to");
        }
        self.in_flight.extend(effect);
        some
    }

    fn complete(&mut self, which: usize) {
        // Superblocks have their room for good.
        let wants_room = match &self.in_flight[which] {
            StoreEffect::CreateFile { .. } => true,
            StoreEffect::Write(write) => write.file.kind != FileKind::Superblock,
            _ => false,
        };
        if self.out_of_room && wants_room {
            return;
        }
        let effect = self.in_flight.swap_remove(which);
        self.disk.perform(&effect);
        self.store.handle_complete(effect.token(), self.space.rows_mut());
        if let Some(published) = self.store.take_published() {
            self.space.rows_mut().handle_published();
            drop(self.space.install_trees(published.keys, published.leases));
        }
    }

    fn act(&mut self) {
        match self.rng.below(20) {
            0..=6 => {
                let command = self.random_command();
                self.do_command(command);
            }
            7..=9 => {
                let units = [1, 30, 2000][self.rng.below(3) as usize];
                self.reclaim(units);
            }
            10 | 11 => {
                let units = [1, 30, 100_000][self.rng.below(3) as usize];
                self.merge(units);
            }
            12..=14 => drop(self.poll()),
            15..=17 if !self.in_flight.is_empty() => {
                let which = self.rng.below(self.in_flight.len() as u64) as usize;
                self.complete(which);
            }
            18 if self.rng.below(8) == 0 => self.begin_checkpoint(),
            19 if self.rng.below(20) == 0 => {
                self.out_of_room = !self.out_of_room;
                self.thorough = self.rng.below(4) == 0;
                self.store.set_thorough_release(self.rng.below(2) == 0);
            }
            _ => {}
        }
    }

    fn crash_and_recover(&mut self) {
        let in_flight = std::mem::take(&mut self.in_flight);
        self.disk.crash(&in_flight, &mut self.rng);
        self.remove_leftovers();
        let older = self.older();
        let (store, space, applied) = open(&mut self.disk, self.seed);
        (self.store, self.space, self.applied) = (store, space, applied);
        self.replay();
        check(&self.space, &self.model, &self.disk, 0);
        if let Some((mut disk, index)) = older {
            let (_, mut space, applied) = open(&mut disk, self.seed);
            assert_eq!(applied, index, "the older checkpoint is used");
            for (at, command) in self.log.iter().enumerate().skip(applied) {
                apply(&mut space, command, at, &disk);
            }
            check(&space, &self.model, &disk, self.model.revision - 20);
        }
    }

    /// What the newest superblock's rot leaves, if an older checkpoint is retained.
    fn older(&self) -> Option<(Disk, usize)> {
        let store = recover(OPTIONS, IDENTITY, &mut self.disk.clone()).unwrap();
        store.older_rows()?;
        let mut disk = self.disk.clone();
        let copy = store.superblock()?.copy();
        disk.seen.get_mut(&superblock_file(copy)).unwrap()[100] ^= 1;
        Some((disk, store.retain_from().0 as usize))
    }

    fn replay(&mut self) {
        for (at, command) in self.log.iter().enumerate().skip(self.applied) {
            apply(&mut self.space, command, at, &self.disk);
        }
        self.applied = self.log.len();
    }

    /// As a boot does.
    fn remove_leftovers(&mut self) {
        let (store, space, _) = open(&mut self.disk, self.seed);
        let files: Vec<StoreFile> = self.disk.seen.keys().copied().collect();
        for file in files {
            let left_over = match file.kind {
                FileKind::Superblock => false,
                FileKind::Index => file.number >= store.index_files(),
                FileKind::Rows => !space.rows().has_file(file),
            };
            if left_over {
                self.disk.seen.remove(&file);
                self.disk.durable.remove(&file);
            }
        }
    }

    /// Ends everything that is under way.
    fn settle(&mut self) {
        self.out_of_room = false;
        loop {
            let step = self.reclaim(100_000);
            self.merge(100_000);
            while self.poll() {}
            let quiet = self.in_flight.is_empty() && !self.store.is_checkpointing() && step == ReclaimStep::Idle;
            while !self.in_flight.is_empty() {
                self.complete(0);
                while self.poll() {}
            }
            if quiet {
                return;
            }
        }
    }

    fn settled_checkpoints(&mut self, count: usize) {
        for _ in 0..count {
            self.begin_checkpoint();
            self.settle();
        }
    }

    fn used_bytes(&self) -> u64 {
        self.store.index_bytes() + self.space.rows().used_bytes()
    }
}

#[test]
fn reads_equal_the_model_after_a_crash_anywhere() {
    let (mut crashes, mut rewritten) = (0, 0);
    for seed in 0..40 {
        let mut world = World::new(seed);
        for _ in 0..6 {
            for _ in 0..world.rng.below(3000) {
                world.act();
            }
            check(&world.space, &world.model, &world.disk, world.model.revision - 5);
            let files = world.space.rows().files();
            world.crash_and_recover();
            crashes += 1;
            rewritten += usize::from(files.first().is_some_and(|file| file.number > 0));
        }
    }
    assert!(crashes == 240 && rewritten > 60, "segments are replaced in {rewritten} of {crashes} runs");
}

/// All of a snapshot; between two steps `meanwhile` may do anything to the world.
fn snapshot(world: &mut World, units: u32, meanwhile: fn(&mut World)) -> (Vec<Chunk>, Catalogue) {
    let position = LogPosition { index: Index(world.applied as u64), term: Term(2), digest: Digest(7) };
    let limits = SnapshotLimits { age_max: 1, growth_bytes_max: u64::MAX };
    let pin = world.space.pin_at(world.space.state().compacted);
    let mut stream = SnapshotStream::new(&world.space, &Tables::default(), position, 1, pin, limits, 0);
    let mut chunks = Vec::new();
    let catalogue = loop {
        match stream.step(&world.space, &mut Budget::new(units), &world.disk, 0) {
            Ok(SnapshotStep::Chunk(chunk)) => chunks.push(chunk),
            Ok(SnapshotStep::End(catalogue)) => break catalogue,
            Ok(SnapshotStep::Failed(error)) => panic!("{error:?}"),
            Err(Pause::Budget | Pause::Pages(Unavailable::Missing(_))) => meanwhile(world),
            Err(pause) => panic!("{pause:?}"),
        }
    };
    world.space.unpin(stream.into_pin());
    (chunks, catalogue)
}

#[test]
fn a_snapshot_is_the_same_whatever_was_reclaimed() {
    let mut rows_left_out = 0;
    for seed in 200..230 {
        let mut world = World::new(seed);
        for _ in 0..2 {
            for _ in 0..world.rng.below(3000) {
                world.act();
            }
            // The same commands, with neither checkpoint nor reclaim.
            let mut plain = World::new(seed);
            plain.model = world.model.clone();
            plain.log = world.log.clone();
            plain.replay();
            let wanted = snapshot(&mut plain, 1 << 30, |_| ());
            let (chunks, catalogue) = snapshot(&mut world, 40, |world| (0..5).for_each(|_| world.act()));
            assert!(catalogue == wanted.1 && chunks == wanted.0, "seed {seed}");
            assert_eq!(Catalogue::decode(&catalogue.encode()).as_ref(), Some(&catalogue));
            // What it holds is what the model keeps.
            let accepted = (0..).zip(&chunks).map(|(number, chunk)| catalogue.accept(number, &chunk.bytes).unwrap());
            let rows: usize = accepted.filter_map(|chunk| chunk.rows()).map(|rows| rows.len()).sum();
            assert_eq!(rows as u64, plain.model.live_rows(), "seed {seed}");
            assert_eq!(catalogue.rows, rows as u64);
            rows_left_out += plain.model.keys.values().map(Vec::len).sum::<usize>() - rows;
        }
    }
    assert!(rows_left_out > 1000, "compacted history is left out: {rows_left_out} rows");
}

#[test]
fn a_snapshot_past_its_limits_ends_with_an_error() {
    let mut world = World::new(7);
    (0..400).for_each(|number: u32| world.do_command(Command::Put(number.to_be_bytes().to_vec(), vec![1; 500])));
    let position = LogPosition { index: Index(400), term: Term(2), digest: Digest(7) };
    let limits = SnapshotLimits { age_max: 10, growth_bytes_max: 100_000 };
    for (now, written, wanted) in [(11, 0, SnapshotError::TooOld), (10, 300, SnapshotError::Outgrown)] {
        let pin = world.space.pin_at(world.space.state().compacted);
        let mut stream = SnapshotStream::new(&world.space, &Tables::default(), position, 1, pin, limits, 0);
        let step = stream.step(&world.space, &mut Budget::new(10), &world.disk, 0);
        assert!(matches!(step, Err(Pause::Budget)), "{step:?}");
        (0..written).for_each(|_| world.do_command(Command::Put(b"k".to_vec(), vec![1; 500])));
        let step = stream.step(&world.space, &mut Budget::new(10), &world.disk, now);
        assert_eq!(step.unwrap(), SnapshotStep::Failed(wanted));
        world.space.unpin(stream.into_pin());
    }
}

#[test]
fn the_counts_are_exact_and_the_index_forgets_compacted_keys() {
    for seed in 100..130 {
        let mut world = World::new(seed);
        for _ in 0..4 {
            for _ in 0..world.rng.below(3000) {
                world.act();
            }
            if world.rng.below(2) == 0 {
                world.crash_and_recover();
            }
            world.settle();
            world.settled_checkpoints(1);
            // All segments, however few of their rows are dead: counts are compared with what remains.
            let (rows, dead) = world.space.rows().rows_counted();
            let live = world.model.live_rows();
            assert_eq!(rows - dead, live, "{rows} rows, {dead} dead, seed {seed}");
            assert_eq!(world.store.keys().entries(), world.model.indexed(), "seed {seed}");
            check(&world.space, &world.model, &world.disk, 0);
        }
    }
}

#[test]
fn deleting_everything_gives_back_nearly_all_room() {
    for seed in 0..5 {
        let mut world = World::new(seed);
        for number in 0..4000_u64 {
            let key = format!("key/{:05}", number % 1000).into_bytes();
            world.do_command(Command::Put(key, vec![7; 100]));
            if number % 1000 == 0 {
                world.begin_checkpoint();
                world.settle();
            }
        }
        let full = world.used_bytes();
        assert!(full > 600_000, "{full}");
        world.do_command(Command::Delete(b"k".to_vec(), b"l".to_vec()));
        world.do_command(Command::Put(b"last".to_vec(), b"one".to_vec()));
        world.do_command(Command::Compact(world.model.revision));
        world.settle();
        world.space.rows_mut().roll();
        world.thorough = true;
        world.store.set_thorough_release(true);
        world.settled_checkpoints(3);
        let used = world.used_bytes();
        assert!(used < full / 20, "{used} of {full} bytes are left");
        assert_eq!(world.space.rows().rows_counted(), (1, 0));
        // What is allocated follows what is used: files are gone and free units are holes.
        let zero = |unit: &&[u8]| unit.iter().all(|byte| *byte == 0);
        let units = world.disk.seen.values().flat_map(|bytes| bytes.chunks(4096)).filter(|unit| !zero(unit)).count();
        assert!(units as u64 * 4096 < used + 64 * 4096 + 3 * 8192, "{units} units hold bytes");
        world.crash_and_recover();
    }
}

#[test]
fn a_newest_revision_that_is_a_compacted_tombstone_survives_a_crash() {
    // The delete is the newest row; then everything it could be derived from is reclaimed.
    let mut world = World::new(1);
    world.do_command(Command::Put(b"key/a".to_vec(), b"v".to_vec()));
    world.do_command(Command::Delete(b"key/a".to_vec(), b"key/b".to_vec()));
    world.do_command(Command::Compact(world.model.revision));
    world.settle();
    world.space.rows_mut().roll();
    world.thorough = true;
    world.settled_checkpoints(3);
    world.crash_and_recover();
    assert_eq!((world.space.state().revision, world.space.state().compacted), (3, 3));
    // The tombstone at the compacted revision stays for those who read from there (the deleted key's row does not).
    assert_eq!(world.space.rows().rows_counted(), (1, 0));
    assert_eq!(world.store.keys().entries(), 1);
    world.do_command(Command::Put(b"key/c".to_vec(), b"v".to_vec()));
    world.do_command(Command::Compact(4));
    world.settled_checkpoints(3);
    assert_eq!(world.store.keys().entries(), 1, "the tombstone has left the index");
    world.crash_and_recover();
    assert_eq!(world.space.state().revision, 4);
}

#[test]
fn a_walk_goes_on_after_a_crash_where_the_checkpoint_found_it() {
    let mut world = World::new(4);
    // Of every five rows of a key one is dead in the end: too few for a rewrite, which would set the counts right.
    for number in 0..300_u64 {
        let (key, round) = (number % 60, number / 60);
        world.do_command(Command::Put(format!("key/{key:05}").into_bytes(), vec![round as u8; 50]));
    }
    world.settled_checkpoints(1);
    world.do_command(Command::Compact(100));
    while world.space.rows().reclaim_cursor().next.main < 80 {
        world.reclaim(40);
    }
    world.do_command(Command::Compact(121));
    let cursor = world.space.rows().reclaim_cursor();
    assert!(cursor.is_walking() && cursor.next.main < 95, "{cursor:?}");
    world.begin_checkpoint();
    while world.store.is_checkpointing() {
        world.merge(100_000);
        while world.poll() {}
        (0..world.in_flight.len()).for_each(|_| world.complete(0));
    }
    world.reclaim(300);
    world.crash_and_recover();
    assert_eq!(world.space.rows().reclaim_cursor(), cursor);
    world.settle();
    assert_eq!(world.space.rows().reclaim_cursor().to, 121);
    assert_eq!(world.space.rows().rows_counted(), (300, 60));
}

#[test]
fn a_pinned_revision_outlives_its_compaction() {
    let mut world = World::new(2);
    for round in 0..200_u8 {
        world.do_command(Command::Put(b"key/a".to_vec(), vec![round; 900]));
    }
    let pin = world.space.pin_at(100);
    world.do_command(Command::Compact(world.model.revision));
    world.settle();
    world.settled_checkpoints(2);
    let row = retry(|| world.space.newest_row_at(b"key/a", 100, &world.disk)).expect("a row is visible at the pin");
    assert_eq!(retry(|| world.space.row(row, &world.disk)).value, vec![98; 900]);
    assert!(world.used_bytes() > 90 * 900);
    world.space.unpin(pin);
    world.settle();
    world.settled_checkpoints(2);
    assert!(world.used_bytes() < 80 * 900, "{}", world.used_bytes());
    check(&world.space, &world.model, &world.disk, 0);
}

/// Rows of one key that die beside rows of others that live: a segment half dead, then some wholly dead.
fn half_dead_then_dead(world: &mut World) {
    for number in 0..110_u64 {
        let key = if number % 2 == 0 && number < 40 { format!("key/{number:05}") } else { "key/a".to_owned() };
        world.do_command(Command::Put(key.into_bytes(), vec![number as u8; 900]));
    }
    world.settled_checkpoints(2);
    world.do_command(Command::Compact(world.model.revision));
}

#[test]
fn what_needs_no_room_goes_first_on_a_full_disk() {
    let mut world = World::new(3);
    half_dead_then_dead(&mut world);
    world.out_of_room = true;
    for _ in 0..50 {
        world.reclaim(100_000);
        while world.poll() {}
    }
    assert!(world.space.rows().has_retired(), "segments without a live row are replaced by nothing");
    check(&world.space, &world.model, &world.disk, 0);
    world.crash_and_recover();
}

#[test]
fn a_checkpoint_ends_while_the_writes_of_a_rewrite_wait_for_room() {
    for crashes_after in 0..4 {
        let mut world = World::new(3);
        half_dead_then_dead(&mut world);
        while !world.space.rows().is_rewriting() || world.space.rows().rewrite_writes() == 0 {
            assert_ne!(world.reclaim(300), ReclaimStep::Idle, "the first segment lives in part");
        }
        let newest = world.space.rows().newest_file().unwrap();
        let of_rewrite = |effect: &StoreEffect| match effect {
            StoreEffect::CreateFile { file, .. } | StoreEffect::Sync { file, .. } => *file > newest,
            StoreEffect::Write(write) => write.file > newest && write.file.kind == FileKind::Rows,
            _ => false,
        };
        for _ in 0..crashes_after.min(2) {
            world.begin_checkpoint();
            while world.store.is_checkpointing() {
                world.merge(100_000);
                while world.poll() {}
                let free = world.in_flight.iter().position(|effect| !of_rewrite(effect));
                world.complete(free.expect("the checkpoint waits for nothing of the rewrite"));
            }
        }
        assert!(world.space.rows().is_rewriting());
        if crashes_after == 3 {
            world.settle();
            assert!(world.space.rows().files().contains(&StoreFile { number: newest.number + 1, ..newest }));
            world.settled_checkpoints(1);
        }
        world.crash_and_recover();
        world.settle();
        check(&world.space, &world.model, &world.disk, 0);
    }
}

#[test]
fn a_full_disk_has_the_dead_counted_and_the_replaced_removed_before_more_is_copied() {
    let mut world = World::new(3);
    half_dead_then_dead(&mut world);
    world.out_of_room = true;
    let step = (0..1000).map(|_| world.reclaim(300)).find(|step| *step != ReclaimStep::More);
    assert_eq!(step, Some(ReclaimStep::NeedsCheckpoint), "what was replaced goes first");
    world.do_command(Command::Put(b"key/b".to_vec(), b"v".to_vec()));
    world.do_command(Command::Compact(world.model.revision));
    world.reclaim(1);
    assert!(world.space.rows().reclaim_cursor().is_walking(), "the dead are counted first");
}

#[test]
fn what_was_replaced_is_removed_before_much_more_is_replaced() {
    let mut world = World::new(3);
    for number in 0..2000_u64 {
        let key = if number % 3 == 0 { format!("key/{number:05}") } else { "key/a".to_owned() };
        world.do_command(Command::Put(key.into_bytes(), vec![number as u8; 900]));
    }
    world.settled_checkpoints(2);
    world.do_command(Command::Compact(world.model.revision));
    let (full, mut most, mut checkpoints) = (world.used_bytes(), 0, 0);
    loop {
        let step = world.reclaim(1000);
        checkpoints += u64::from(step == ReclaimStep::NeedsCheckpoint && world.in_flight.is_empty());
        world.merge(100_000);
        while world.poll() {}
        (0..world.in_flight.len()).for_each(|_| world.complete(0));
        most = most.max(world.used_bytes());
        if step == ReclaimStep::Idle && !world.store.is_checkpointing() {
            break;
        }
    }
    assert!(full > 50 * SEGMENT_BYTES && checkpoints > 5, "{full} bytes, {checkpoints} checkpoints");
    // The bound, the output under way, and what checkpoints themselves take.
    assert!(most < full + 12 * SEGMENT_BYTES, "{most} bytes where {full} were");
    assert!(world.used_bytes() < full * 2 / 3);
    check(&world.space, &world.model, &world.disk, world.model.revision - 5);
}

#[test]
fn files_are_kept_while_a_checkpoint_names_them_and_then_removed() {
    let mut world = World::new(3);
    for round in 0..100_u8 {
        world.do_command(Command::Put(b"key/a".to_vec(), vec![round; 900]));
    }
    world.settled_checkpoints(2);
    world.do_command(Command::Compact(world.model.revision));
    world.settle();
    let rows = |world: &World| -> BTreeSet<u32> {
        world.disk.seen.keys().filter(|file| file.kind == FileKind::Rows).map(|file| file.number).collect()
    };
    let before = rows(&world);
    assert!(world.space.rows().has_retired() && before.contains(&0));
    world.begin_checkpoint();
    world.settle();
    assert!(rows(&world).contains(&0), "the older checkpoint names it");
    world.begin_checkpoint();
    world.settle();
    assert!(!rows(&world).contains(&0));
    world.settled_checkpoints(2);
    assert!(!world.space.rows().has_retired());
    assert_eq!(rows(&world), world.space.rows().files().iter().map(|file| file.number).collect());
}
