//! The keyspace against the reference model: the same random operations, every answer compared, with checkpoints,
//! pages that are missing at first use, and restarts in between. `TRILITH_MODEL_OPS` scales the run.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

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
use crate::store::row_log::{RowLog, RowLogOptions, RowLogRoot};
use crate::store::test_disk::Disk;

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
        if block.file.kind == FileKind::Index { Ok(&[]) } else { self.disk.block(block) }
    }
}

/// The key tree as an ordered map; each key stands on a page of its own. Entries are held in their binary form.
#[derive(Clone, Debug, Default)]
struct MapTree(BTreeMap<Vec<u8>, Vec<u8>>);

fn page_of(key: &[u8]) -> Block {
    let offset = key.iter().fold(0, |sum, &byte| (sum * 257 + u64::from(byte)) % 4096);
    Block { file: StoreFile { kind: FileKind::Index, number: 0 }, offset, len: 1 }
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

/// What a checkpoint leaves on the disk.
#[derive(Debug)]
struct Checkpoint {
    tree: MapTree,
    root: RowLogRoot,
    state: KeyspaceState,
    /// Payloads of everything applied since.
    log: Vec<Vec<u8>>,
}

struct Machine {
    random: Random,
    space: Keyspace<MapTree>,
    pages: Pages,
    model: Model,
    durable: Checkpoint,
    /// The checkpoint under way.
    frozen: Option<Checkpoint>,
    applied: u64,
    tally: BTreeMap<&'static str, u64>,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let rows = RowLog::new(OPTIONS);
        let state = KeyspaceState::FRESH;
        Self {
            random: Random(seed),
            space: Keyspace::new(MapTree::default(), rows, state, 0),
            pages: Pages::default(),
            model: Model::new(),
            durable: Checkpoint { tree: MapTree::default(), root: RowLogRoot::EMPTY, state, log: Vec::new() },
            frozen: None,
            applied: 0,
            tally: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..4 => self.begin_checkpoint(),
            4..10 => self.end_checkpoint(),
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
            match self.space.range(&query, &self.pages) {
                Ok(answer) => break answer,
                Err(Unavailable::Missing(_)) => {}
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
            let got =
                self.suspended(|space, pages| space.read_txn(txn, pages).map(|outcome| outcome.map(OpOutcome::Txn)));
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
        self.durable.log.push(payload.clone());
        if let Some(frozen) = &mut self.frozen {
            frozen.log.push(payload);
        }
    }

    /// Applies a payload as a replica does, and resolves the addresses of its answer.
    fn apply(&mut self, payload: &[u8]) -> Answered {
        let mut entry = Entry::decode(payload).unwrap();
        let command = entry.next_command().unwrap().unwrap();
        let got = match &command {
            Command::Put(put) => self.suspended(|space, pages| Ok(space.apply_put(put, pages)?.map(OpOutcome::Put))),
            Command::DeleteRange(del) => {
                self.suspended(|space, pages| Ok(space.apply_delete_range(del, pages)?.map(OpOutcome::DeleteRange)))
            }
            Command::Txn(txn) => self.suspended(|space, pages| Ok(space.apply_txn(txn, pages)?.map(OpOutcome::Txn))),
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
        mut call: impl FnMut(
            &mut Keyspace<MapTree>,
            &Pages,
        ) -> Result<Result<OpOutcome, crate::mvcc::MvccError>, Unavailable>,
    ) -> Answered {
        let before = (self.space.state(), self.space.overlay().len(), self.space.rows().newest());
        loop {
            match call(&mut self.space, &self.pages) {
                Ok(outcome) => return outcome.map(|outcome| self.resolve(&outcome)),
                Err(Unavailable::Missing(_)) => {
                    let after = (self.space.state(), self.space.overlay().len(), self.space.rows().newest());
                    assert_eq!(before, after, "a suspended command has changed nothing");
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
        if self.frozen.is_some() {
            return;
        }
        let state = self.space.state();
        self.space.freeze();
        let rows = self.space.rows_mut().handle_checkpoint();
        self.pages.disk.drain(self.space.rows_mut());
        assert!(self.space.rows().is_written_through(rows.last_token));
        let tree = self.merge(state.compacted);
        self.frozen = Some(Checkpoint { tree, root: rows.root, state, log: Vec::new() });
        self.note("checkpoint");
    }

    /// The tree and the frozen changes; a tombstone nobody can see any more leaves the index, as reclaim would do it.
    fn merge(&mut self, compacted: i64) -> MapTree {
        let mut tree = self.space.tree().clone();
        let frozen = self.space.frozen().unwrap();
        let mut cursor = frozen.seek(&[]);
        while let Some((key, entry, after)) = frozen.next(cursor) {
            let mut bytes = Vec::new();
            entry.encode_into(&mut bytes);
            tree.0.insert(key.to_vec(), bytes);
            cursor = after;
        }
        let keep = |bytes: &[u8]| {
            let entry = KeyEntry::decode(bytes).unwrap();
            !entry.is_tombstone() || entry.row.main >= compacted
        };
        if self.random.one_in(2) {
            tree.0.retain(|_, bytes| keep(bytes));
        }
        tree
    }

    fn end_checkpoint(&mut self) {
        let Some(checkpoint) = self.frozen.take() else { return };
        let mut retired = self.space.install_tree(checkpoint.tree.clone()).unwrap();
        while !retired.free_slice(1) {}
        self.durable = checkpoint;
    }

    /// A crash: the last durable checkpoint and the log after it yield the same state.
    fn restart(&mut self) {
        let before = self.space.state();
        if self.random.one_in(2) {
            self.pages.disk.drain(self.space.rows_mut());
        }
        self.frozen = None;
        self.pages.resident.borrow_mut().clear();
        let rows = RowLog::open(OPTIONS, self.durable.root, &self.pages.disk).unwrap();
        self.space = Keyspace::new(self.durable.tree.clone(), rows, self.durable.state, 0);
        self.applied = 0;
        for payload in std::mem::take(&mut self.durable.log) {
            // What it answers was compared when it was first applied.
            let _: Answered = self.apply(&payload);
            self.durable.log.push(payload);
        }
        assert_eq!(self.space.state(), before, "revision, compaction and digest survive a restart");
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

#[test]
fn answers_like_the_model_through_checkpoints_and_restarts() {
    let ops = std::env::var("TRILITH_MODEL_OPS").map_or(50_000, |ops| ops.parse().unwrap());
    let seeds = 5;
    let mut tally = BTreeMap::new();
    for seed in 1..=seeds {
        let mut machine = Machine::new(seed * 7919);
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
