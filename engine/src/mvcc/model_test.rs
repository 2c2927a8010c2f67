//! The keyspace against the reference model: the same random operations, every answer compared, with checkpoints,
//! pages that are missing at first use, and restarts in between. `TRILITH_MODEL_OPS` scales the run.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use crate::budget::{Budget, Pause};
use crate::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, Entry, Op, Put, RangeQuery, SortOrder, SortTarget,
    Txn, append_command, begin_entry,
};
use crate::mvcc::check::{check_delete_range, check_put, check_range, check_txn};
use crate::mvcc::key_tree::{KeyScan, KeyTree};
use crate::mvcc::model::{Answer, Answered, Kv, Model};
use crate::mvcc::{
    DeleteOutcome, KeyRange, Keyspace, KeyspaceState, OpOutcome, PutOutcome, RowView, TxnOutcome, TxnRange,
};
use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::key_entry::KeyEntry;
use crate::store::row_log::{RowCheckpoint, RowLog, RowLogOptions, RowLogRoot};
use crate::store::test_disk::Disk;
use crate::store::{
    CheckpointRequest, CheckpointStep, SUPERBLOCK_BYTES, Store, StoreEffect, StoreMedia, StoreOptions, Tree, recover,
};
use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, Index, LogPosition, MemberId, Term};

const OPTIONS: RowLogOptions = RowLogOptions {
    segment_bytes: 128 * 1024,
    block_bytes: 4096,
    rows_resident_bytes_max: 16 * 1024,
    write_bytes_max: 8192,
};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// A page source where a block is missing until it was asked for; a store in the small.
#[derive(Debug, Default)]
struct Pages {
    disk: Disk,
    resident: RefCell<BTreeSet<Block>>,
    misses: Cell<u64>,
}

impl PageSource for Pages {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        if self.resident.borrow_mut().insert(block) {
            self.misses.set(self.misses.get() + 1);
            return Err(Unavailable::Missing(block));
        }
        if block.file == MAP_FILE { Ok(&[]) } else { self.disk.block(block) }
    }
}

/// The key tree as an ordered map; each key stands on a page of its own. Entries are held in their binary form.
#[derive(Clone, Debug, Default)]
struct MapTree(BTreeMap<Vec<u8>, Vec<u8>>);

/// Where the pages of a [`MapTree`] are thought to be.
const MAP_FILE: StoreFile = StoreFile { kind: FileKind::Index, number: u32::MAX };

fn page_of(key: &[u8]) -> Block {
    let offset = key.iter().fold(0, |sum, &byte| (sum * 257 + u64::from(byte)) % 4096);
    Block { file: MAP_FILE, offset, len: 1 }
}

struct MapScan<'a> {
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
}

/// What holds checkpoints: an ordered map, or the store.
trait Backing {
    type Tree: KeyTree + std::fmt::Debug;

    fn new(pages: &mut Pages) -> Self;

    /// Begins to keep the frozen changes.
    fn begin(&mut self, space: &mut Keyspace<Self::Tree>, rows: RowCheckpoint, applied: u64, random: &mut Random);

    /// Goes on with it; a tree once it is durable.
    fn go_on(&mut self, space: &mut Keyspace<Self::Tree>, pages: &mut Pages) -> Option<Self::Tree>;

    /// What a start finds: tree, row log, scalars and the applied index.
    fn restart(&mut self, pages: &mut Pages) -> (Self::Tree, RowLogRoot, KeyspaceState, u64);
}

/// Checkpoints as clones of a map.
struct Maps {
    durable: (MapTree, RowLogRoot, KeyspaceState, u64),
    pending: Option<(MapTree, RowLogRoot, KeyspaceState, u64)>,
}

impl Backing for Maps {
    type Tree = MapTree;

    fn new(_: &mut Pages) -> Self {
        Self { durable: (MapTree::default(), RowLogRoot::EMPTY, KeyspaceState::FRESH, 0), pending: None }
    }

    /// A tombstone nobody can see any more leaves the index at times, as reclaim would do it.
    fn begin(&mut self, space: &mut Keyspace<MapTree>, rows: RowCheckpoint, applied: u64, random: &mut Random) {
        let mut tree = space.tree().clone();
        let frozen = space.frozen().unwrap();
        let mut cursor = frozen.seek(&[]);
        while let Some((key, entry, after)) = frozen.next(cursor) {
            let mut bytes = Vec::new();
            entry.encode_into(&mut bytes);
            tree.0.insert(key.to_vec(), bytes);
            cursor = after;
        }
        if random.one_in(2) {
            let compacted = space.state().compacted;
            let seen = |entry: KeyEntry| !entry.is_tombstone() || entry.row.main >= compacted;
            tree.0.retain(|_, bytes| seen(KeyEntry::decode(bytes).unwrap()));
        }
        self.pending = Some((tree, rows.root, space.state(), applied));
    }

    fn go_on(&mut self, _: &mut Keyspace<MapTree>, _: &mut Pages) -> Option<MapTree> {
        self.durable = self.pending.take()?;
        Some(self.durable.0.clone())
    }

    fn restart(&mut self, _: &mut Pages) -> (MapTree, RowLogRoot, KeyspaceState, u64) {
        self.pending = None;
        self.durable.clone()
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
            tables: Vec::new(),
        });
    }

    fn go_on(&mut self, space: &mut Keyspace<Tree>, pages: &mut Pages) -> Option<Tree> {
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
        self.take_published().map(|published| published.keys)
    }

    fn restart(&mut self, pages: &mut Pages) -> (Tree, RowLogRoot, KeyspaceState, u64) {
        *self = recover(STORE_OPTIONS, IDENTITY, pages).unwrap();
        match self.superblock() {
            Some(found) => (self.keys(), found.rows, found.keyspace, found.position.index.0),
            None => (self.keys(), RowLogRoot::EMPTY, KeyspaceState::FRESH, 0),
        }
    }
}

struct Machine<B: Backing> {
    random: Random,
    space: Keyspace<B::Tree>,
    pages: Pages,
    model: Model,
    backing: B,
    /// Payloads of everything ever applied.
    log: Vec<Vec<u8>>,
    applied: u64,
    tally: BTreeMap<&'static str, u64>,
}

impl<B: Backing> Machine<B> {
    fn new(seed: u64) -> Self {
        let mut pages = Pages::default();
        let mut backing = B::new(&mut pages);
        let (tree, root, state, applied) = backing.restart(&mut pages);
        assert_eq!((root, applied), (RowLogRoot::EMPTY, 0));
        Self {
            random: Random(seed),
            space: Keyspace::new(tree, RowLog::new(OPTIONS), state, 0),
            pages,
            model: Model::new(),
            backing,
            log: Vec::new(),
            applied: 0,
            tally: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..4 => self.begin_checkpoint(),
            4..10 => self.go_on(),
            10..12 => self.restart(),
            12..30 => self.pages.resident.borrow_mut().clear(),
            30..50 => self.pages.disk.drain(self.space.rows_mut()),
            50..400 => self.read(),
            _ => self.write(),
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn read(&mut self) {
        let query = self.query();
        check_range(&query).unwrap();
        let wanted = self.model.range(&query);
        let revision = self.space.published().revision;
        let got = loop {
            match self.space.range(&query, &mut Budget::unlimited(), &self.pages) {
                Ok(answer) => break answer,
                Err(Pause::Pages(Unavailable::Missing(_))) => {}
                Err(error) => panic!("{error:?}"),
            }
        };
        let got = got.map(|outcome| Answer::Range {
            revision,
            kvs: outcome.rows.iter().map(kv).collect(),
            count: outcome.count,
            more: outcome.more,
        });
        assert_eq!(got, wanted, "{query:?}");
        self.note(if wanted.is_ok() { "range" } else { "range error" });
    }

    fn write(&mut self) {
        let command = self.command();
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 1, self.applied);
        append_command(&mut payload, &command);
        let wanted = match &command {
            Command::Put(put) => self.model.put(put),
            Command::DeleteRange(del) => self.model.delete(del),
            Command::Txn(txn) => self.model.txn(txn),
            Command::Compact { revision } => self.model.compact(*revision),
            other => unreachable!("{other:?} is not generated"),
        };
        if let Command::Txn(txn) = &command
            && txn.is_read_only()
        {
            let got = self.suspended(|space, pages| {
                space.read_txn(txn, &mut Budget::unlimited(), pages).map(|outcome| outcome.map(OpOutcome::Txn))
            });
            assert_eq!(got, wanted, "{txn:?} without the log");
        }
        let got = self.apply(&payload);
        assert_eq!(got, wanted, "{command:?}");
        let revision = self.space.state().revision;
        assert_eq!((revision, self.space.state().compacted), (self.model.revision, self.model.compacted));
        let what = match (&command, &wanted) {
            (Command::Put(_), Ok(_)) => "put",
            (Command::DeleteRange(_), Ok(_)) => "delete",
            (Command::Txn(_), Ok(_)) => "txn",
            (Command::Txn(_), Err(_)) => "txn error",
            (Command::Compact { .. }, Ok(_)) => "compact",
            _ => "error",
        };
        self.note(what);
        self.log.push(payload);
    }

    /// Applies a payload as a replica does, and resolves the addresses of its answer.
    fn apply(&mut self, payload: &[u8]) -> Answered {
        let mut entry = Entry::decode(payload).unwrap();
        let command = entry.next_command().unwrap().unwrap();
        let got = match &command {
            Command::Put(put) => self.suspended(|space, pages| {
                Ok(space.apply_put(put, &mut Budget::unlimited(), pages)?.map(OpOutcome::Put))
            }),
            Command::DeleteRange(del) => self.suspended(|space, pages| {
                Ok(space.apply_delete_range(del, &mut Budget::unlimited(), pages)?.map(OpOutcome::DeleteRange))
            }),
            Command::Txn(txn) => self.suspended(|space, pages| {
                Ok(space.apply_txn(txn, &mut Budget::unlimited(), pages)?.map(OpOutcome::Txn))
            }),
            Command::Compact { revision } => {
                self.space.apply_compact(*revision).map(|outcome| Answer::Compact { revision: outcome.revision })
            }
            other => unreachable!("{other:?} is not generated"),
        };
        self.applied += 1;
        self.space.publish(self.applied);
        got
    }

    /// Repeats a call until no page is missing; a suspended one must have changed nothing.
    fn suspended(
        &mut self,
        mut call: impl FnMut(&mut Keyspace<B::Tree>, &Pages) -> Result<Result<OpOutcome, crate::mvcc::MvccError>, Pause>,
    ) -> Answered {
        let before = (self.space.state().revision, self.space.published());
        loop {
            match call(&mut self.space, &self.pages) {
                Ok(outcome) => return outcome.map(|outcome| self.resolve(&outcome)),
                Err(Pause::Pages(Unavailable::Missing(_))) => {
                    let after = (self.space.state().revision, self.space.published());
                    assert_eq!(before, after, "nothing of a command that paused is visible");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn resolve(&self, outcome: &OpOutcome) -> Answer {
        // What an answer names was read in the same step, so nothing is missing.
        let row = |at: &_| self.space.row(*at, &self.pages.disk).unwrap();
        match outcome {
            OpOutcome::Range(TxnRange { revision, rows, count, more, shape }) => Answer::Range {
                revision: *revision,
                kvs: rows.iter().map(|at| kv(&shape.show(row(at)))).collect(),
                count: *count,
                more: *more,
            },
            OpOutcome::Put(PutOutcome { revision, prev }) => {
                Answer::Put { revision: *revision, prev: prev.as_ref().map(|at| kv(&row(at))) }
            }
            OpOutcome::DeleteRange(DeleteOutcome { revision, deleted, prev }) => Answer::Delete {
                revision: *revision,
                deleted: *deleted,
                prev: prev.iter().map(|at| kv(&row(at))).collect(),
            },
            OpOutcome::Txn(TxnOutcome { revision, succeeded, responses }) => Answer::Txn {
                revision: *revision,
                succeeded: *succeeded,
                answers: responses.iter().map(|outcome| self.resolve(outcome)).collect(),
            },
        }
    }

    fn begin_checkpoint(&mut self) {
        if self.space.frozen().is_some() {
            return;
        }
        self.space.freeze();
        let rows = self.space.rows_mut().handle_checkpoint();
        self.pages.disk.drain(self.space.rows_mut());
        assert!(self.space.rows().is_written_through(rows.last_token));
        self.backing.begin(&mut self.space, rows, self.applied, &mut self.random);
    }

    fn go_on(&mut self) {
        for _ in 0..self.random.below(200) {
            if self.space.frozen().is_none() {
                return;
            }
            if let Some(tree) = self.backing.go_on(&mut self.space, &mut self.pages) {
                let mut retired = self.space.install_tree(tree).unwrap();
                while !retired.free_slice(1) {}
                self.note("checkpoint");
            }
        }
    }

    /// A crash: the last durable checkpoint and the log after it yield the same state.
    fn restart(&mut self) {
        let before = (self.space.state(), self.applied);
        if self.random.one_in(2) {
            self.pages.disk.drain(self.space.rows_mut());
        }
        self.pages.resident.borrow_mut().clear();
        let (tree, root, state, applied) = self.backing.restart(&mut self.pages);
        let rows = RowLog::open(OPTIONS, root, &self.pages.disk).unwrap();
        self.space = Keyspace::new(tree, rows, state, applied);
        self.applied = applied;
        let log = std::mem::take(&mut self.log);
        for payload in &log[applied as usize..] {
            // What it answers was compared when it was first applied.
            let _: Answered = self.apply(payload);
        }
        self.log = log;
        let after = (self.space.state(), self.applied);
        assert_eq!(after, before, "revision, compaction, digest and applied index survive a restart");
        self.note("restart");
    }

    fn command(&mut self) -> Command<'static> {
        loop {
            match self.random.below(100) {
                0..50 => {
                    let put = self.put();
                    if check_put(&put).is_ok() {
                        return Command::Put(put);
                    }
                }
                50..65 => {
                    let del = self.delete();
                    check_delete_range(&del).unwrap();
                    return Command::DeleteRange(del);
                }
                65..97 => {
                    let txn = self.transaction(1);
                    if check_txn(&txn, 128).is_ok() {
                        return Command::Txn(txn);
                    }
                }
                _ => return Command::Compact { revision: self.revision() },
            }
        }
    }

    fn transaction(&mut self, depth: u64) -> Txn<'static> {
        let compares = (0..self.random.below(3)).map(|_| self.compare()).collect();
        Txn { compares, success: self.ops(depth), failure: self.ops(depth) }
    }

    fn ops(&mut self, depth: u64) -> Vec<Op<'static>> {
        let mut ops = Vec::new();
        for _ in 0..self.random.below(5) {
            let op = match self.random.below(if depth < 4 { 10 } else { 8 }) {
                0..3 => Op::Range(self.query()),
                3..6 => Op::Put(self.put()),
                6..8 => Op::DeleteRange(self.delete()),
                _ => Op::Txn(self.transaction(depth + 1)),
            };
            ops.push(op);
        }
        ops
    }

    fn compare(&mut self) -> Compare<'static> {
        use CompareResult::{Equal, Greater, Less, NotEqual, Unknown};
        Compare {
            key: self.key(),
            range_end: self.range_end(),
            result: [Equal, Greater, Less, NotEqual, Equal, Less, Greater, NotEqual, Unknown]
                [self.random.below(9) as usize],
            target: match self.random.below(11) {
                0..2 => CompareTarget::Version(self.random.below(4) as i64),
                2..4 => CompareTarget::Create(self.revision()),
                4..6 => CompareTarget::Mod(self.revision()),
                6..9 => CompareTarget::Value(self.value()),
                9 => CompareTarget::Lease(self.random.below(2) as i64),
                _ => CompareTarget::Unknown,
            },
        }
    }

    fn query(&mut self) -> RangeQuery<'static> {
        use SortTarget::{Create, Key, Mod, Value, Version};
        let mut query = RangeQuery { key: self.key(), range_end: self.range_end(), ..RangeQuery::default() };
        if self.random.one_in(3) {
            query.limit = [-1, 1, 2, 3, 5, 8, i64::MAX][self.random.below(7) as usize];
        }
        if self.random.one_in(3) {
            query.revision = self.revision();
        }
        if self.random.one_in(3) {
            query.sort_order = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.random.below(3) as usize];
            query.sort_target = [Key, Version, Create, Mod, Value][self.random.below(5) as usize];
        }
        query.keys_only = self.random.one_in(5);
        query.count_only = self.random.one_in(6);
        if self.random.one_in(4) {
            for bound in [
                &mut query.min_mod_revision,
                &mut query.max_mod_revision,
                &mut query.min_create_revision,
                &mut query.max_create_revision,
            ] {
                if self.random.one_in(2) {
                    *bound = self.model.revision - self.random.below(60) as i64;
                }
            }
        }
        query
    }

    fn put(&mut self) -> Put<'static> {
        let ignore_value = self.random.one_in(8);
        Put {
            key: self.key(),
            value: if ignore_value { b"" } else { self.value() },
            lease: i64::from(self.random.one_in(40)),
            prev_kv: self.random.one_in(3),
            ignore_value,
            ignore_lease: self.random.one_in(10),
        }
    }

    fn delete(&mut self) -> DeleteRange<'static> {
        DeleteRange { key: self.key(), range_end: self.range_end(), prev_kv: self.random.one_in(2) }
    }

    fn key(&mut self) -> &'static [u8] {
        const KEYS: [&[u8]; 24] = [
            b"a",
            b"a\0",
            b"a\0\0",
            b"ab",
            b"abc",
            b"abd",
            b"b",
            b"\0",
            b"\xff",
            b"\xff\xff",
            b"/r/pods/1",
            b"/r/pods/2",
            b"/r/pods/20",
            b"/r/pods/3",
            b"/r/svc/1",
            b"/r/svc/2",
            b"/r/svc/2/x",
            b"/s",
            b"m",
            b"n",
            b"o",
            b"p",
            b"q",
            b"z",
        ];
        KEYS[self.random.below(24) as usize]
    }

    fn range_end(&mut self) -> &'static [u8] {
        match self.random.below(10) {
            0..4 => b"",
            4 => b"\0",
            5 => b"/r/pods0",
            6 => b"/s",
            _ => self.key(),
        }
    }

    fn value(&mut self) -> &'static [u8] {
        const BIG: &[u8] = &[b'v'; 9000];
        [b"".as_slice(), b"1", b"2", b"22", &BIG[..300], &BIG[..700], &BIG[..700], BIG][self.random.below(8) as usize]
    }

    /// Mostly a revision that can be read; some that cannot.
    fn revision(&mut self) -> i64 {
        let (low, high) = (self.model.compacted, self.model.revision);
        match self.random.below(20) {
            0 => high + 1,
            1 => low - 1,
            2 => 0,
            3 => low,
            4 => high,
            5 => -self.random.below(3).cast_signed(),
            _ => low.max(high - 300) + self.random.below((high - low.max(high - 300) + 1).cast_unsigned()) as i64,
        }
    }
}

fn kv(row: &RowView<'_>) -> Kv {
    Kv {
        key: row.key.to_vec(),
        value: row.value.to_vec(),
        create: row.create,
        modified: row.modified,
        version: row.version,
        lease: row.lease,
    }
}

fn run<B: Backing>(ops: u64) {
    let ops = std::env::var("TRILITH_MODEL_OPS").map_or(ops, |ops| ops.parse().unwrap());
    let seeds = 5;
    let mut tally = BTreeMap::new();
    for seed in 1..=seeds {
        let mut machine = Machine::<B>::new(seed * 7919);
        for _ in 0..ops / seeds {
            machine.step();
        }
        machine.restart();
        assert!(machine.pages.misses.get() > 100, "pages were missing at times");
        for (what, count) in machine.tally {
            *tally.entry(what).or_insert(0) += count;
        }
    }
    for what in
        ["range", "range error", "put", "delete", "txn", "txn error", "compact", "error", "checkpoint", "restart"]
    {
        assert!(tally.get(what).is_some_and(|&count| count >= 10), "{what} is exercised: {tally:?}");
    }
}

#[test]
fn answers_like_the_model_over_an_ordered_map() {
    run::<Maps>(50_000);
}

#[test]
fn answers_like_the_model_over_the_store() {
    run::<Store>(50_000);
}
