//! Shards against one keyspace: the same log yields the same answers, rows, revisions and digest, whatever the number
//! of shards, the boundaries, where jobs run and in which order they come back, checkpoints and missing pages.
//! `TRILITH_SHARD_OPS` scales the run.

use std::collections::BTreeMap;
use std::sync::Arc;

use trilith_raftlog::{Digest, Entry as LogEntry, EntryType, Index, Term};

use crate::budget::Budget;
use crate::command::{Command, DeleteRange, Put, RangeQuery, append_command, begin_entry};
use crate::lease::Leases;
use crate::mvcc::map_tree::{MapTree, Pages, Random};
use crate::mvcc::{Keyspace, KeyspaceState};
use crate::page_source::{Block, PageSource, Unavailable};
use crate::replica::apply::{ApplyError, ApplyStep, Outcome, State};
use crate::shard::generator::{Generator, KEYS, LEASES};
use crate::shard::{JobStep, ShardJob, ShardMap, ShardOptions};
use crate::store::Tree;
use crate::store::key_entry::Revision;
use crate::store::row_log::{RowLog, RowLogOptions};
use crate::store::test_disk::Disk;
use crate::tables::Tables;

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

/// One replicated state with its own pages.
struct Bed {
    state: State<MapTree>,
    leases: MapTree,
    pages: Pages,
    /// Jobs on other cores.
    away: Vec<ShardJob<MapTree>>,
    tally: BTreeMap<&'static str, u64>,
}

type Answer = Result<Outcome, ApplyError>;

impl Bed {
    fn new(options: ShardOptions) -> Self {
        let keyspace = Keyspace::new(MapTree::default(), RowLog::new(ROWS), KeyspaceState::FRESH, 0);
        let keyspace = keyspace.with_leases(Leases::default());
        let state = State::new(keyspace, Tables::default(), Index::ZERO, options);
        let (leases, pages) = (MapTree::default(), Pages::default());
        Self { state, leases, pages, away: Vec::new(), tally: BTreeMap::new() }
    }

    fn note(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// Applies an entry; its answers, in order.
    fn apply(&mut self, entry: &LogEntry, random: &mut Random) -> Vec<Answer> {
        self.state.begin_entry(entry);
        let mut answers = Vec::new();
        loop {
            match self.state.apply_next(&mut some_budget(random), &self.pages) {
                ApplyStep::Applied(applied) => {
                    assert_eq!(applied.id.sequence, 1 + answers.len() as u64, "in log order");
                    self.touch(&applied.result);
                    answers.push(applied.result);
                }
                ApplyStep::EntryDone(_) => return answers,
                ApplyStep::More | ApplyStep::Suspended(Unavailable::Missing(_)) => {}
                ApplyStep::Waiting => self.carry(random),
                step @ (ApplyStep::Idle | ApplyStep::Suspended(_)) => panic!("{step:?}"),
            }
        }
    }

    /// What an answer names can be read when it is given.
    fn touch(&self, result: &Answer) {
        if let Ok(Outcome::Put(put)) = result
            && let Some(at) = put.prev
        {
            assert_eq!(self.state.keyspace.row(at, &self.pages.disk).unwrap().modified, at.main);
        }
    }

    /// Other cores do something: take jobs, step them, hand one back, finished or not.
    fn carry(&mut self, random: &mut Random) {
        while let Some(job) = self.state.poll_job() {
            self.away.push(job);
        }
        assert!(self.state.is_lent() && !self.away.is_empty(), "who waits, waits for a job");
        let mut job = self.away.swap_remove(random.below(self.away.len() as u64) as usize);
        if random.one_in(8) {
            self.note("handed back untouched");
            return self.state.handle_job(job);
        }
        match job.step(&self.pages, &mut some_budget(random)) {
            JobStep::Done => self.note("done elsewhere"),
            JobStep::NeedPages(_) => self.note("handed back for pages"),
            JobStep::More if random.one_in(10) => self.note("handed back half done"),
            JobStep::More => return self.away.push(job),
        }
        self.state.handle_job(job);
    }

    fn checkpoint(&mut self, random: &mut Random) {
        let keyspace = &mut self.state.keyspace;
        match keyspace.frozen() {
            None => {
                keyspace.freeze();
                keyspace.rows_mut().handle_checkpoint();
            }
            Some(frozen) => {
                let compacted = keyspace.state().compacted;
                let tree = keyspace.tree().merged(frozen, compacted, random);
                self.leases = self.leases.merged_leases(&keyspace.frozen_leases());
                keyspace.install_trees(tree, self.leases.clone());
            }
        }
    }
}

/// Pages of a [`MapTree`] that are never missing.
struct Resident;

impl PageSource for Resident {
    fn block(&self, _: Block) -> Result<&[u8], Unavailable> {
        Ok(&[])
    }
}

/// One keyspace and one of several shards, side by side.
struct Comparison {
    single: Bed,
    shards: Bed,
    random: Random,
    index: u64,
    operations: u64,
    compared_to: Revision,
}

impl Comparison {
    fn new(seed: u64, shards: usize) -> Self {
        let mut random = Random(seed);
        let gain_commands_min = 1 + random.below(4) as usize;
        let round_commands_max = 1 << (1 + random.below(8));
        let options = ShardOptions { shards, round_commands_max, gain_commands_min, load_stride: 8 };
        let (single, shards) = (Bed::new(ShardOptions::default()), Bed::new(options));
        Self { single, shards, random, index: 0, operations: 0, compared_to: Revision { main: 0, sub: 0 } }
    }

    /// Boundaries anywhere, as a load that nobody foresaw would have them.
    fn move_boundaries(&mut self, shards: usize) {
        let mut boundaries: Vec<Vec<u8>> =
            (1..shards).map(|_| KEYS[self.random.below(KEYS.len() as u64) as usize].to_vec()).collect();
        boundaries.sort();
        self.shards.state.set_shard_map(ShardMap::with_boundaries(boundaries));
    }

    fn entry(&mut self) -> LogEntry {
        let KeyspaceState { revision, compacted, .. } = self.single.state.keyspace.state();
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 1, 1);
        for index in 0..1 + self.random.below(40) {
            // Often a revision that the entry itself hands out.
            let revision = revision + self.random.below(index + 2) as i64;
            let mut generator = Generator { random: &mut self.random, revision, compacted };
            append_command(&mut payload, &generator.command());
            self.operations += 1;
        }
        self.index += 1;
        LogEntry::new(Digest::default(), Index(self.index), Term(2), EntryType::Commands, Arc::new(payload))
    }

    fn turn(&mut self, shards: usize) {
        if self.random.one_in(10) {
            self.move_boundaries(shards);
        }
        let entry = self.entry();
        let wanted = self.single.apply(&entry, &mut self.random);
        let got = self.shards.apply(&entry, &mut self.random);
        assert_eq!(got, wanted, "entry {}", self.index);
        assert_eq!(self.shards.state.keyspace.state(), self.single.state.keyspace.state());
        assert_eq!(self.shards.state.keyspace.published(), self.single.state.keyspace.published());
        self.compare_leases();
        self.compare_events();
        for bed in [&mut self.single, &mut self.shards] {
            if self.random.one_in(8) {
                bed.checkpoint(&mut self.random);
            }
            if self.random.one_in(10) {
                bed.pages.disk.drain(bed.state.keyspace.rows_mut());
            }
            if self.random.one_in(20) {
                bed.pages.resident.borrow_mut().clear();
            }
        }
    }

    /// Leases, and the keys attached to them.
    fn compare_leases(&self) {
        let (wanted, got) = (self.single.state.keyspace.leases(), self.shards.state.keyspace.leases());
        assert_eq!(got.sum(), wanted.sum());
        for lease in LEASES {
            assert_eq!(attached(got, lease), attached(wanted, lease), "{lease}");
        }
    }

    /// Every row since the last look: what watchers would be told, in order.
    fn compare_events(&mut self) {
        loop {
            let [wanted, got] = [&self.single, &self.shards]
                .map(|bed| row_from(bed.state.keyspace.rows(), self.compared_to, &bed.pages.disk));
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

type Event = (Revision, Vec<u8>, Vec<u8>, i64, i64, i64);

fn row_from(rows: &RowLog, at: Revision, disk: &Disk) -> Option<Event> {
    let row = rows.row_from(at, disk).unwrap()?;
    Some((row.at, row.key.to_vec(), row.value.to_vec(), row.create, row.version, row.lease))
}

#[test]
fn any_number_of_shards_is_one_keyspace() {
    let operations = std::env::var("TRILITH_SHARD_OPS").map_or(30_000, |ops| ops.parse().unwrap());
    let first = std::env::var("TRILITH_SHARD_SEED").map_or(1, |seed| seed.parse().unwrap());
    let counts = [2, 3, 4, 8];
    let mut tally = BTreeMap::new();
    let (mut done, mut seed, mut misses) = (0, first, 0);
    while done < operations {
        let shards = counts[(seed % 4) as usize];
        let mut comparison = Comparison::new(seed * 7919, shards);
        comparison.move_boundaries(shards);
        for _ in 0..60 {
            comparison.turn(shards);
        }
        done += comparison.operations;
        misses += comparison.shards.pages.misses.get();
        for (what, count) in comparison.shards.tally {
            *tally.entry(what).or_insert(0) += count;
        }
        seed += 1;
    }
    println!("{done} operations, {} seeds, {misses} misses: {tally:?}", seed - first);
    assert!(misses > 100, "pages were missing at times");
    for what in ["done elsewhere", "handed back untouched", "handed back for pages", "handed back half done"] {
        assert!(tally.get(what).is_some_and(|&count| count >= 10), "{what} is exercised: {tally:?}");
    }
}

#[test]
fn a_job_may_go_to_another_thread() {
    fn goes<T: Send>() {}
    goes::<ShardJob<Tree>>();
}

/// An entry of puts on 1,000 keys.
fn puts(index: u64) -> LogEntry {
    let mut payload = Vec::new();
    begin_entry(&mut payload, 1, 1, 1);
    for number in 0..1000 {
        let key = format!("/registry/{:04}", number * 7 % 1000).into_bytes();
        append_command(&mut payload, &Command::Put(Put { key: &key, ..Default::default() }));
    }
    LogEntry::new(Digest::default(), Index(index), Term(2), EntryType::Commands, Arc::new(payload))
}

#[test]
fn boundaries_follow_the_load() {
    let mut bed = Bed::new(ShardOptions { shards: 4, ..ShardOptions::default() });
    let mut random = Random(7);
    bed.apply(&puts(1), &mut random);
    assert_eq!(bed.tally, BTreeMap::new(), "before any load was seen all of it is one shard's");
    bed.state.begin_entry(&puts(2));
    assert_eq!(bed.state.apply_next(&mut Budget::unlimited(), &bed.pages), ApplyStep::Waiting);
    let mut shares = Vec::new();
    while let Some(job) = bed.state.poll_job() {
        shares.push(job.commands_len());
        bed.state.handle_job(job);
    }
    assert_eq!((shares.len(), shares.iter().sum()), (4, 1000));
    assert!(shares.iter().all(|share| (150..350).contains(share)), "{shares:?}");
}

#[test]
fn readers_are_served_while_the_state_is_lent_and_nothing_may_change_it() {
    let mut bed = Bed::new(ShardOptions { shards: 2, gain_commands_min: 1, ..ShardOptions::default() });
    bed.state.set_shard_map(ShardMap::with_boundaries(vec![b"/registry/0500".to_vec()]));
    bed.apply(&puts(1), &mut Random(7));
    bed.state.begin_entry(&puts(2));
    assert_eq!(bed.state.apply_next(&mut Budget::unlimited(), &bed.pages), ApplyStep::Waiting);
    let query = RangeQuery { key: b"/registry/0001", ..Default::default() };
    let range = bed.state.keyspace.range(&query, &mut Budget::unlimited(), &bed.pages).unwrap().unwrap();
    assert_eq!((range.rows.len(), range.rows[0].version), (1, 1), "what was published before");
    let change = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bed.state.keyspace.freeze()));
    assert!(change.is_err(), "a checkpoint would change what jobs read");
}

#[test]
fn an_answer_has_the_numbers_that_one_keyspace_would_give() {
    // The first command changes nothing, so all that follow are one below their provisional numbers.
    let mut bed = Bed::new(ShardOptions { shards: 2, gain_commands_min: 1, ..ShardOptions::default() });
    bed.state.set_shard_map(ShardMap::with_boundaries(vec![b"m".to_vec()]));
    let put = |key| Command::Put(Put { key, prev_kv: true, ..Default::default() });
    let nothing = Command::DeleteRange(DeleteRange { key: b"a", ..Default::default() });
    let mut payload = Vec::new();
    begin_entry(&mut payload, 1, 1, 1);
    [nothing, put(b"z"), put(b"a"), put(b"z")].iter().for_each(|command| append_command(&mut payload, command));
    let entry = LogEntry::new(Digest::default(), Index(1), Term(2), EntryType::Commands, Arc::new(payload));
    let answers = bed.apply(&entry, &mut Random(3));
    let number = |answer: &Answer| match answer {
        Ok(Outcome::Put(put)) => (put.revision, put.prev.map(|at| at.main)),
        Ok(Outcome::DeleteRange(delete)) => (delete.revision, None),
        other => panic!("{other:?}"),
    };
    let numbers: Vec<_> = answers.iter().map(number).collect();
    assert_eq!(numbers, [(1, None), (2, None), (3, None), (4, Some(2))]);
    assert!(!bed.tally.is_empty(), "it was a round");
}
