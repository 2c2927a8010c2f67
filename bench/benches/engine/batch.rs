//! Batches of puts, evaluated by one shard or by several, here or on other threads.
//!
//! Owns: the case, its entries, and the threads that jobs travel to. Does not know: the log, how a server's cores pass
//! jobs on.
//!
//! An entry of 1,000 puts on random keys is applied to the bed's state, from the call that hands it in to its end. What
//! is not measured: making the entry, writing blocks of rows, checkpoints. Threads live as long as their case. Jobs
//! travel through channels, and whoever waits for one asks again and again for `SPIN` before it sleeps: so what is
//! measured is shards, not how fast a kernel wakes a thread.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Scope, available_parallelism};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use trilith_engine::budget::Budget;
use trilith_engine::command::{Command, Put, append_command, begin_entry};
use trilith_engine::replica::apply::ApplyStep;
use trilith_engine::shard::{JobStep, ShardJob};
use trilith_engine::store::Tree;
use trilith_raftlog::{Digest, Entry, EntryType, Term};

use crate::KEYS;
use crate::bed::{Bed, Files, Random, VALUE_BYTES, key};

/// Puts of an entry.
const PUTS: u64 = 1000;
/// Entries after which boundaries follow the load, with some to spare.
const WARM_UP_ENTRIES: usize = 10;
/// How long one who waits stays awake: longer than an entry takes, and than making one.
const SPIN: Duration = Duration::from_millis(20);

/// Who evaluates.
struct Variant {
    name: &'static str,
    shards: usize,
    /// Threads beside the one that applies.
    others: usize,
    /// Whether the one that applies evaluates as well.
    here: bool,
    /// Whether the time counts in which the one that applies waits for the others: a server's serves sockets meanwhile.
    waits: bool,
}

const VARIANTS: [Variant; 6] = [
    Variant { name: "one shard", shards: 1, others: 0, here: true, waits: true },
    Variant { name: "two shards, both here", shards: 2, others: 0, here: true, waits: true },
    Variant { name: "two shards, one on another thread", shards: 2, others: 1, here: true, waits: true },
    Variant { name: "two shards elsewhere, without waiting", shards: 2, others: 1, here: false, waits: false },
    Variant { name: "two shards on two other threads", shards: 2, others: 2, here: false, waits: true },
    Variant { name: "three shards, two on other threads", shards: 3, others: 2, here: true, waits: true },
];

/// All variants for which the machine has processors, on a filled bed, which is handed back.
pub(crate) fn batch(criterion: &mut Criterion, mut bed: Bed) -> Bed {
    let processors = available_parallelism().map_or(1, usize::from);
    let mut group = criterion.benchmark_group("engine/batch of 1,000 puts");
    group.throughput(Throughput::Elements(PUTS)).sampling_mode(SamplingMode::Flat);
    for variant in VARIANTS {
        if variant.others >= processors {
            println!("left out on {processors} processors: {}", variant.name);
            continue;
        }
        bed = bed.with_shards(variant.shards);
        bed.checkpoint();
        std::thread::scope(|scope| {
            let mut case = Case::new(&mut bed, &variant, scope);
            case.warm_up();
            case.measure(&mut group, variant.name);
        });
    }
    group.finish();
    bed.checkpoint();
    bed
}

/// A job on its way.
struct Errand {
    job: ShardJob<Tree>,
    files: Arc<Files>,
}

/// A variant at work.
struct Case<'b> {
    bed: &'b mut Bed,
    random: Random,
    others: Vec<Sender<Errand>>,
    /// How many places evaluate: the others and, if it does, this thread.
    places: usize,
    back: Receiver<ShardJob<Tree>>,
    /// Commands that jobs have evaluated, by shard.
    evaluated: Vec<u64>,
    /// Time that does not count.
    waited: Duration,
    waits: bool,
}

impl<'b> Case<'b> {
    fn new<'s>(bed: &'b mut Bed, variant: &Variant, scope: &'s Scope<'s, '_>) -> Self {
        let (home, back) = channel();
        let spawn = |_| {
            let (sender, errands) = channel();
            let home = home.clone();
            scope.spawn(move || run_errands(&errands, &home));
            sender
        };
        let others = (0..variant.others).map(spawn).collect();
        let places = variant.others + usize::from(variant.here);
        let (random, evaluated) = (Random::new(17), vec![0; variant.shards]);
        Self { bed, random, others, places, back, evaluated, waited: Duration::ZERO, waits: variant.waits }
    }

    /// Entries until the load is shared; the next one must be shared well.
    fn warm_up(&mut self) {
        for _ in 0..WARM_UP_ENTRIES {
            let entry = self.entry();
            self.apply(&entry);
        }
        self.evaluated.fill(0);
        let entry = self.entry();
        self.apply(&entry);
        self.check(1);
    }

    fn measure(&mut self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                self.evaluated.fill(0);
                let mut took = Duration::ZERO;
                self.waited = Duration::ZERO;
                for _ in 0..count {
                    let entry = self.entry();
                    let started = Instant::now();
                    self.apply(&entry);
                    took += started.elapsed();
                    self.bed.write_ahead();
                    self.bed.checkpoint_if_due();
                }
                self.check(count);
                took - self.waited
            });
        });
    }

    /// So many entries were evaluated by shards, each about as much as the next; or by none if there is only one.
    fn check(&self, entries: u64) {
        let shards = self.evaluated.len() as u64;
        let share = entries * PUTS / shards;
        let is_fair = |&evaluated: &u64| evaluated * 10 >= share * 6 && evaluated * 10 <= share * 14;
        let is_right = if shards == 1 { self.evaluated == [0] } else { self.evaluated.iter().all(is_fair) };
        assert!(is_right, "{entries} entries: {:?}", self.evaluated);
    }

    /// The next entry.
    fn entry(&mut self) -> Entry {
        let value = [b'v'; VALUE_BYTES];
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 1, 1);
        for _ in 0..PUTS {
            let key = key(self.random.below(KEYS));
            append_command(&mut payload, &Command::Put(Put { key: &key, value: &value, ..Put::default() }));
        }
        let index = self.bed.state.applied().next();
        Entry::new(Digest::default(), index, Term(2), EntryType::Commands, Arc::new(payload))
    }

    fn apply(&mut self, entry: &Entry) {
        self.bed.state.begin_entry(entry);
        loop {
            match self.bed.state.apply_next(&mut Budget::unlimited(), &*self.bed.files) {
                ApplyStep::Applied(applied) => assert!(black_box(applied).result.is_ok(), "a plain put"),
                ApplyStep::Waiting => self.carry(),
                ApplyStep::EntryDone(_) => break,
                step => panic!("all is in memory: {step:?}"),
            }
        }
    }

    /// Sends away the jobs that are for others, evaluates the rest, and waits until all are back.
    fn carry(&mut self) {
        let (mut mine, mut out) = (Vec::new(), 0);
        while let Some(job) = self.bed.state.poll_job() {
            let shard = usize::from(job.shard().0);
            self.evaluated[shard] += job.commands_len() as u64;
            match self.others.get(shard % self.places) {
                Some(other) => {
                    other.send(Errand { job, files: Arc::clone(&self.bed.files) }).expect("threads outlive the case");
                    out += 1;
                }
                None => mine.push(job),
            }
        }
        for job in mine {
            let job = evaluated(job, &self.bed.files);
            self.bed.state.handle_job(job);
        }
        let started = Instant::now();
        for _ in 0..out {
            self.bed.state.handle_job(receive(&self.back).expect("threads outlive the case"));
        }
        if !self.waits {
            self.waited += started.elapsed();
        }
    }
}

/// What another thread does until its case ends.
fn run_errands(errands: &Receiver<Errand>, home: &Sender<ShardJob<Tree>>) {
    while let Some(Errand { job, files }) = receive(errands) {
        let job = evaluated(job, &files);
        // Given back before the job is: files may change as soon as all jobs are at home.
        drop(files);
        home.send(job).expect("the case waits for its jobs");
    }
}

fn evaluated(mut job: ShardJob<Tree>, files: &Files) -> ShardJob<Tree> {
    assert_eq!(job.step(files, &mut Budget::unlimited()), JobStep::Done, "all is in memory");
    job
}

/// The next message; none if nobody can send one any more.
fn receive<M>(from: &Receiver<M>) -> Option<M> {
    let started = Instant::now();
    while started.elapsed() < SPIN {
        match from.try_recv() {
            Ok(message) => return Some(message),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
        }
    }
    from.recv().ok()
}
