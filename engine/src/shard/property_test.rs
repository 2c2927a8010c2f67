//! Shards against the single keyspace: the same log yields the same answers, rows, revisions and digest, whatever the
//! number of shards, the boundaries, their moves, the order in which messages travel, checkpoints and missing pages.
//! `TRILITH_SHARD_OPS` scales the run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::budget::{Budget, Pause};
use crate::command::{Command, Entry, Op, Put, Txn, append_command, begin_entry};
use crate::lease::Leases;
use crate::mvcc::map_tree::{MapTree, Pages, Random};
use crate::mvcc::{Evaluated, Keyspace, KeyspaceState, MvccError, OpOutcome, RangeCursor, RowList, TxnRange};
use crate::page_source::{Block, PageSource, Unavailable};
use crate::shard::generator::{Generator, KEYS, LEASES};
use crate::shard::message::{Report, Task};
use crate::shard::{
    Answer, Answered, Coordinator, CoordinatorStep, Shard, ShardId, ShardMap, ShardOptions, ShardReport, ShardStep,
    ShardTask, Shared, StoredCommand,
};
use crate::store::key_entry::Revision;
use crate::store::row_log::{RowLog, RowLogOptions};
use crate::store::test_disk::Disk;

const ROWS: RowLogOptions = RowLogOptions {
    segment_bytes: 128 * 1024,
    block_bytes: 4096,
    rows_resident_bytes_max: 16 * 1024,
    write_bytes_max: 8192,
};

/// A budget that ends soon, or late.
fn some_budget(random: &mut Random) -> Budget {
    let most = 1 << random.below(12);
    Budget::new(1 + random.below(most) as u32)
}

/// The reference.
struct Single {
    space: Keyspace<MapTree>,
    leases: MapTree,
    pages: Pages,
}

impl Single {
    fn until_done<A>(
        &mut self,
        mut call: impl FnMut(&mut Keyspace<MapTree>, &Pages) -> Evaluated<A>,
    ) -> Result<A, MvccError> {
        loop {
            match call(&mut self.space, &self.pages) {
                Ok(answer) => return answer,
                Err(Pause::Budget | Pause::Pages(Unavailable::Missing(_))) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    fn apply(&mut self, command: &Command<'_>) -> Result<Answer, MvccError> {
        let budget = &mut Budget::unlimited();
        match command {
            Command::Put(put) => {
                self.until_done(|space, pages| space.apply_put(put, budget, pages)).map(OpOutcome::Put).map(Answer::Op)
            }
            Command::DeleteRange(del) => self
                .until_done(|space, pages| space.apply_delete_range(del, budget, pages))
                .map(OpOutcome::DeleteRange)
                .map(Answer::Op),
            Command::Txn(txn) => {
                self.until_done(|space, pages| space.apply_txn(txn, budget, pages)).map(OpOutcome::Txn).map(Answer::Op)
            }
            Command::Compact { revision } => self.space.apply_compact(*revision).map(Answer::Compact),
            Command::LeaseGrant { id, ttl } => self.space.apply_lease_grant(*id, *ttl).map(|()| Answer::LeaseGrant),
            Command::LeaseRevoke { id } => {
                self.until_done(|space, pages| space.apply_lease_revoke(*id, budget, pages)).map(Answer::LeaseRevoke)
            }
            Command::LeaseCheckpoint { id, remaining } => {
                self.space.apply_lease_checkpoint(*id, *remaining);
                Ok(Answer::LeaseCheckpoint)
            }
            other => unreachable!("{other:?} is not generated"),
        }
    }

    fn read(&mut self, txn: &Txn<'_>, is_range: bool) -> Result<Answer, MvccError> {
        let budget = &mut Budget::unlimited();
        if let Some(Op::Range(query)) = txn.success.first().filter(|_| is_range) {
            let mut cursor = RangeCursor::new(&self.space, query)?;
            let list = self
                .until_done(|space, pages| space.range_step(query, &mut cursor, budget, pages, &mut |_| {}).map(Ok))?;
            let RowList { rows, count, more, shape, revision, .. } = list;
            return Ok(Answer::Op(OpOutcome::Range(TxnRange { revision, rows, count, more, shape })));
        }
        self.until_done(|space, pages| space.read_txn(txn, budget, pages)).map(OpOutcome::Txn).map(Answer::Op)
    }

    fn checkpoint(&mut self, random: &mut Random) {
        match self.space.frozen() {
            None => {
                self.space.freeze();
                self.space.rows_mut().handle_checkpoint();
            }
            Some(frozen) => {
                let compacted = self.space.state().compacted;
                let tree = self.space.tree().merged(&[(frozen, b"", None)], compacted, random);
                self.leases = self.leases.merged_leases(&self.space.frozen_leases());
                self.space.install_trees(tree, self.leases.clone());
            }
        }
    }
}

/// The shards, and the links between them and the coordinator.
struct Cluster {
    coordinator: Coordinator<MapTree>,
    shards: Vec<Shard<MapTree>>,
    tasks: Vec<VecDeque<ShardTask<MapTree>>>,
    reports: Vec<VecDeque<ShardReport>>,
    rows: RowLog,
    tree: MapTree,
    leases: MapTree,
    pages: Pages,
    tally: BTreeMap<&'static str, u64>,
}

impl Cluster {
    fn new(map: ShardMap) -> Self {
        let options = ShardOptions { round_commands_max: 50, move_keys_max: 3 };
        let coordinator = Coordinator::new(options, map, KeyspaceState::FRESH, Leases::default(), 0);
        let count = coordinator.map().shards();
        let shard = |id| Shard::new(id, &coordinator, MapTree::default());
        let shards = coordinator.map().ids().map(shard).collect();
        Self {
            shards,
            coordinator,
            tasks: (0..count).map(|_| VecDeque::new()).collect(),
            reports: (0..count).map(|_| VecDeque::new()).collect(),
            rows: RowLog::new(ROWS),
            tree: MapTree::default(),
            leases: MapTree::default(),
            pages: Pages::default(),
            tally: BTreeMap::new(),
        }
    }

    /// One thing that may happen next, at random: a message arrives, a shard or the coordinator takes a step.
    fn happen(&mut self, random: &mut Random) {
        let shard = random.below(self.shards.len() as u64) as usize;
        match random.below(4) {
            0 => {
                let step = self.coordinator.step(&mut self.rows, &self.pages, &mut some_budget(random));
                assert!(!matches!(step, CoordinatorStep::Paused(Pause::Pages(Unavailable::Corrupt(_)))), "{step:?}");
                while let Some((to, task)) = self.coordinator.poll_task() {
                    self.note(&task);
                    self.tasks[usize::from(to.0)].push_back(task);
                }
            }
            1 => {
                if let Some(task) = self.tasks[shard].pop_front() {
                    self.shards[shard].handle_task(task);
                }
            }
            2 => {
                let shared = Shared { rows: &self.rows, pages: &self.pages };
                let step = self.shards[shard].step(shared, &mut some_budget(random));
                assert!(!matches!(step, ShardStep::NeedPages(Unavailable::Corrupt(_))), "{step:?}");
                while let Some(report) = self.shards[shard].poll_report() {
                    self.reports[shard].push_back(report);
                }
            }
            _ => {
                if let Some(report) = self.reports[shard].pop_front() {
                    if let Report::HandedOver(entries) = &report.0
                        && !entries.is_empty()
                    {
                        *self.tally.entry("changes moved").or_default() += 1;
                    }
                    self.coordinator.handle_report(ShardId(shard as u8), report);
                }
            }
        }
    }

    fn note(&mut self, task: &ShardTask<MapTree>) {
        let what = match &task.0 {
            Task::Round { commands, .. } if commands.len() > 1 => "round of several",
            Task::Round { .. } => "round of one",
            Task::Gather { .. } => "gather",
            Task::Run { .. } => "run",
            Task::Revoke { .. } => "revoke",
            Task::LeaseEnded(_) => "lease ended",
            Task::Settle(_) => "settle",
            Task::Discard => "discard",
            Task::Freeze => "freeze",
            Task::InstallTree(_) => "tree",
            Task::Survey { .. } => "survey",
            Task::HandOver { .. } => "hand over",
            Task::Adopt { .. } => "adopt",
        };
        *self.tally.entry(what).or_default() += 1;
    }

    fn until(&mut self, random: &mut Random, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..10_000_000 {
            if done(self) {
                return;
            }
            self.happen(random);
        }
        panic!("nothing happens any more: {:?}", self.coordinator);
    }

    /// A slice of a move, between batches.
    fn balance(&mut self, random: &mut Random) {
        if random.one_in(30) {
            let shards = self.coordinator.map().shards();
            self.coordinator.handle_wanted_map(some_map(random, shards));
        }
        for _ in 0..random.below(4) {
            self.coordinator.balance_step();
            self.until(random, |cluster| cluster.coordinator.is_settled() && cluster.is_quiet());
        }
    }

    fn is_quiet(&self) -> bool {
        self.tasks.iter().all(VecDeque::is_empty) && self.reports.iter().all(VecDeque::is_empty)
    }

    fn checkpoint(&mut self, random: &mut Random) {
        if let Some(parts) = self.coordinator.frozen() {
            let parts: Vec<_> = parts.iter().map(|part| (&*part.overlay, &*part.from, part.to.as_deref())).collect();
            self.tree = self.tree.merged(&parts, self.coordinator.state().compacted, random);
            let frozen = self.coordinator.leases().frozen().map(Arc::clone).unwrap_or_default();
            self.leases = self.leases.merged_leases(&frozen);
            self.coordinator.install_trees(&self.tree, self.leases.clone());
        } else if self.coordinator.can_freeze() {
            self.coordinator.freeze();
            self.rows.handle_checkpoint();
        }
        self.coordinator.take_retired();
    }
}

fn some_map(random: &mut Random, shards: usize) -> ShardMap {
    let mut boundaries: Vec<Vec<u8>> = (1..shards).map(|_| random.pick(&KEYS).to_vec()).collect();
    boundaries.sort();
    ShardMap::with_boundaries(boundaries)
}

/// A command as it stands in an entry.
fn stored(command: &Command<'_>) -> StoredCommand {
    let mut payload = Vec::new();
    begin_entry(&mut payload, 1, 1, 1);
    let start = payload.len() + 4;
    append_command(&mut payload, command);
    let end = payload.len();
    assert!(Entry::decode(&payload).unwrap().check().is_ok());
    StoredCommand::new(Arc::new(payload), start..end)
}

/// Reads that were asked for before a batch, with what they have to answer.
struct Reads {
    waiting: VecDeque<(u64, StoredCommand, bool)>,
    wanted: BTreeMap<u64, Result<Answer, MvccError>>,
}

struct Comparison {
    random: Random,
    single: Single,
    cluster: Cluster,
    applied: u64,
    next_id: u64,
    compared_to: Revision,
    operations: u64,
    with_reads: bool,
}

impl Comparison {
    fn new(seed: u64, shards: usize) -> Self {
        let mut random = Random(seed);
        let map = some_map(&mut random, shards);
        Self {
            single: Single {
                space: Keyspace::new(MapTree::default(), RowLog::new(ROWS), KeyspaceState::FRESH, 0),
                leases: MapTree::default(),
                pages: Pages::default(),
            },
            cluster: Cluster::new(map),
            applied: 0,
            next_id: 0,
            compared_to: Revision::NONE,
            operations: 0,
            with_reads: random.one_in(2),
            random,
        }
    }

    fn generator(&mut self) -> Generator<'_> {
        let KeyspaceState { revision, compacted, .. } = self.single.space.state();
        Generator { random: &mut self.random, revision, compacted }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.operations += 1;
        self.next_id
    }

    fn turn(&mut self) {
        self.between_batches();
        let mut reads = self.reads();
        let mut wanted = VecDeque::new();
        let mut batch = VecDeque::new();
        let most = 1 << self.random.below(6);
        for _ in 0..1 + self.random.below(most) {
            let command = self.generator().command();
            let id = self.id();
            wanted.push_back((id, command.clone(), self.single.apply(&command)));
            batch.push_back((id, stored(&command)));
        }
        self.applied += 1;
        self.single.space.publish(self.applied);
        self.run_batch(&mut batch, &mut reads);
        while let Some(Answered { id, result }) = self.cluster.coordinator.poll_answer() {
            if let Some(read) = reads.wanted.remove(&id) {
                assert_eq!(result, read, "read {id}");
                continue;
            }
            let (wanted_id, command, answer) = wanted.pop_front().expect("no more answers than commands");
            assert_eq!((id, &result), (wanted_id, &answer), "{command:?}");
        }
        assert!(wanted.is_empty() && reads.wanted.is_empty(), "an answer to everything");
        assert_eq!(self.cluster.coordinator.state(), self.single.space.state(), "revision, compaction, digest");
        assert_eq!(self.cluster.coordinator.published(), self.single.space.published());
        self.compare_leases();
        self.compare_events();
    }

    /// Hands the batch in piece by piece, lets the reads come at any moment, and publishes at the end.
    fn run_batch(&mut self, batch: &mut VecDeque<(u64, StoredCommand)>, reads: &mut Reads) {
        while !batch.is_empty() || !reads.waiting.is_empty() {
            if self.random.one_in(3)
                && let Some((id, command)) = batch.pop_front()
            {
                self.cluster.coordinator.handle_command(id, command);
            }
            if self.random.one_in(6)
                && let Some((id, read, is_range)) = reads.waiting.pop_front()
            {
                self.cluster.coordinator.handle_read(id, read, is_range);
            }
            self.cluster.happen(&mut self.random);
        }
        self.cluster.until(&mut self.random, |cluster| cluster.coordinator.is_settled());
        // Readers stay at the revision at which they began, also beyond the publication of the next.
        self.cluster.coordinator.publish(self.applied);
        let step = |cluster: &Cluster| cluster.coordinator.is_idle() && cluster.is_quiet();
        self.cluster.until(&mut self.random, step);
    }

    fn reads(&mut self) -> Reads {
        let mut reads = Reads { waiting: VecDeque::new(), wanted: BTreeMap::new() };
        for _ in 0..if self.with_reads { self.random.below(6) } else { 0 } {
            let is_range = self.random.one_in(2);
            let mut generator = self.generator();
            let txn = match is_range {
                true => Txn { success: vec![Op::Range(generator.query())], ..Txn::default() },
                false => generator.read_txn(),
            };
            let id = self.id();
            reads.wanted.insert(id, self.single.read(&txn, is_range));
            reads.waiting.push_back((id, stored(&Command::Txn(txn)), is_range));
        }
        reads
    }

    fn between_batches(&mut self) {
        self.cluster.balance(&mut self.random);
        if self.random.one_in(8) {
            self.single.checkpoint(&mut self.random);
        }
        if self.random.one_in(8) {
            self.cluster.checkpoint(&mut self.random);
        }
        if self.random.one_in(20) {
            self.single.pages.resident.borrow_mut().clear();
            self.cluster.pages.resident.borrow_mut().clear();
        }
        if self.random.one_in(10) {
            self.single.pages.disk.drain(self.single.space.rows_mut());
            self.cluster.pages.disk.drain(&mut self.cluster.rows);
        }
    }

    /// Leases, and the keys attached to them.
    fn compare_leases(&self) {
        let (wanted, got) = (self.single.space.leases(), self.cluster.coordinator.leases());
        assert_eq!(got.sum(), wanted.sum());
        for lease in LEASES {
            assert_eq!(attached(got, lease), attached(wanted, lease), "{lease}");
        }
    }

    /// Every row since the last look: what watchers would be told, in order.
    fn compare_events(&mut self) {
        loop {
            let wanted = row_from(self.single.space.rows(), self.compared_to, &self.single.pages.disk);
            let got = row_from(&self.cluster.rows, self.compared_to, &self.cluster.pages.disk);
            assert_eq!(got, wanted);
            let Some((at, ..)) = got else { break };
            self.compared_to = at.next();
        }
    }
}

fn attached(leases: &Leases<MapTree>, lease: i64) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let mut walk = leases.attached(lease, b"", &Resident).unwrap();
    while let Some(key) = walk.next_key().unwrap() {
        keys.push(key.to_vec());
    }
    keys
}

/// Pages of a [`MapTree`] that are never missing.
struct Resident;

impl PageSource for Resident {
    fn block(&self, _: Block) -> Result<&[u8], Unavailable> {
        Ok(&[])
    }
}

/// Puts one key of many after the other, and publishes.
fn put_all(cluster: &mut Cluster, random: &mut Random, keys: &[Vec<u8>], applied: u64) {
    for (id, key) in keys.iter().enumerate() {
        let put = Command::Put(Put { key, ..Put::default() });
        cluster.coordinator.handle_command(id as u64, stored(&put));
    }
    cluster.until(random, |cluster| cluster.coordinator.is_settled());
    cluster.coordinator.publish(applied);
}

#[test]
fn boundaries_follow_the_load_after_a_checkpoint_and_not_during_it() {
    let mut random = Random(77);
    let mut cluster = Cluster::new(ShardMap::new(4));
    let keys: Vec<Vec<u8>> = (0..4000).map(|index| format!("/r/{:04}", index * 7 % 1000).into_bytes()).collect();
    put_all(&mut cluster, &mut random, &keys, 1);
    let owner = |cluster: &Cluster, key: &Vec<u8>| cluster.coordinator.map().owner(key);
    assert!(keys.iter().all(|key| owner(&cluster, key) == ShardId(0)), "before any load was seen");
    cluster.checkpoint(&mut random);
    cluster.until(&mut random, |cluster| cluster.coordinator.frozen().is_some());
    put_all(&mut cluster, &mut random, &keys[..900], 2);
    assert!(!cluster.coordinator.balance_step(), "nothing moves between freeze and installation");
    cluster.checkpoint(&mut random);
    cluster.until(&mut random, |cluster| cluster.coordinator.can_freeze());
    let mut slices = 0;
    while cluster.coordinator.balance_step() {
        cluster.until(&mut random, |cluster| cluster.coordinator.is_idle());
        slices += 1;
    }
    assert!(slices > 10, "{slices} slices: what changed since the freeze moves bit by bit");
    let held = |shard: u8| keys[..1000].iter().filter(|key| owner(&cluster, key) == ShardId(shard)).count();
    for shard in 0..4 {
        assert!((150..350).contains(&held(shard)), "shard {shard} holds {} of 1000 keys", held(shard));
    }
}

type Event = (Revision, Vec<u8>, Vec<u8>, i64, i64, i64);

fn row_from(rows: &RowLog, at: Revision, disk: &Disk) -> Option<Event> {
    let row = rows.row_from(at, disk).unwrap()?;
    Some((row.at, row.key.to_vec(), row.value.to_vec(), row.create, row.version, row.lease))
}

#[test]
fn any_number_of_shards_is_one_keyspace() {
    let operations = std::env::var("TRILITH_SHARD_OPS").map_or(30_000, |ops| ops.parse().unwrap());
    let first = std::env::var("TRILITH_SHARD_SEED").map_or(1, |seed| seed.parse().unwrap());
    let counts = [1, 2, 4, 8];
    let mut tally = BTreeMap::new();
    let (mut done, mut seed, mut misses) = (0, first, 0);
    while done < operations {
        let shards = counts[(seed % 4) as usize];
        let mut comparison = Comparison::new(seed * 7919, shards);
        let turns = if operations > 100_000 { 500 } else { 60 };
        for _ in 0..turns {
            comparison.turn();
        }
        done += comparison.operations;
        misses += comparison.cluster.pages.misses.get();
        for (what, count) in comparison.cluster.tally {
            *tally.entry(what).or_insert(0) += count;
        }
        seed += 1;
    }
    println!("{done} operations, {} seeds, {misses} misses: {tally:?}", seed - first);
    assert!(misses > 100, "pages were missing at times");
    for what in [
        "round of several",
        "round of one",
        "gather",
        "run",
        "settle",
        "revoke",
        "lease ended",
        "discard",
        "freeze",
        "tree",
        "survey",
        "hand over",
        "changes moved",
        "adopt",
    ] {
        assert!(tally.get(what).is_some_and(|&count| count >= 10), "{what} is exercised: {tally:?}");
    }
}
