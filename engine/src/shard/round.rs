//! Rounds: commands that are evaluated beside each other, and the order in which they are installed.
//!
//! Owns: the boundaries between shards, which commands share a round, its jobs on their way out and back. Does not
//! know: how a job is evaluated, how it travels, who is answered.
//!
//! Invariants
//! - I1: commands of a round follow each other in one entry, and each touches single keys of one shard alone.
//! - I2: no command of a round but the first names a revision that a command before it in the round may take: to
//!   compare with, to read at, to filter by. One at or below the round's base, or above all that the round can reach,
//!   compares alike with provisional numbers and with final ones.
//! - I3: nothing is installed before every job is back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::vec::IntoIter;

use crate::budget::{Budget, Pause, price};
use crate::command::{Command, Compare, CompareTarget, Entry, Op, Txn};
use crate::mvcc::changes::Rest;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::{Keyspace, MvccError, OpOutcome};
use crate::page_source::PageSource;
use crate::shard::job::{JobCommand, JobResult, JobStep, ShardJob};
use crate::shard::load::{LoadSample, SAMPLE_MIN_PER_SHARD};
use crate::shard::map::{SHARDS_MAX, ShardId, ShardMap};
use crate::shard::numbering::Numbering;

/// Operations of a command, of all branches, beyond which it is applied by itself: a job ends a step between commands.
const OPERATIONS_MAX: u32 = 256;
/// Boundaries are computed anew after so many commands at most. First, when all load falls on one shard, as soon as
/// there is a sample; then after twice as many each time.
const BALANCE_COMMANDS_MAX: u64 = 65_536;

/// How commands are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOptions {
    /// How many shards; one: no rounds at all.
    pub shards: usize,
    /// Commands of a round at most.
    pub round_commands_max: usize,
    /// A round is worth its messages if so many of its commands are of other shards than the busiest.
    pub gain_commands_min: usize,
    /// Every so many-th operation goes into the sample by which boundaries are set.
    pub load_stride: u64,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self { shards: 1, round_commands_max: 1024, gain_commands_min: 32, load_stride: 8 }
    }
}

/// The shards, as whoever applies sees them.
#[derive(Debug)]
pub(crate) struct Shards<T> {
    options: ShardOptions,
    map: ShardMap,
    load: LoadSample,
    /// Commands until boundaries are computed anew, and from one time to the next.
    until_balance: u64,
    balance_interval: u64,
    outbox: VecDeque<ShardJob<T>>,
    round: Option<Round<T>>,
    rounds: u64,
}

/// What the commands at hand came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// A round: its jobs wait to be carried out.
    Round,
    /// They are to be applied one by one, up to this position of the payload.
    Direct { until: usize },
}

/// A command of a round, installed.
#[derive(Debug)]
pub(crate) struct Installed {
    /// Where in the payload the next one stands.
    pub(crate) end: usize,
    /// Its answer.
    pub(crate) answer: Result<OpOutcome, MvccError>,
}

#[derive(Debug)]
struct Round<T> {
    numbering: Numbering,
    /// Those not installed yet: whose, and where they end.
    members: VecDeque<(ShardId, usize)>,
    /// Jobs that are not at home.
    out: usize,
    /// Jobs that came back before their end.
    unfinished: Vec<ShardJob<T>>,
    /// By shard.
    lists: Vec<Option<List>>,
}

/// What a shard has evaluated and is not installed yet.
#[derive(Debug)]
struct List {
    results: IntoIter<JobResult>,
    changes: Rest<'static>,
}

impl<T: KeyTree> Shards<T> {
    pub(crate) fn new(options: ShardOptions) -> Self {
        assert!((1..=SHARDS_MAX).contains(&options.shards), "{} shards", options.shards);
        assert!(options.gain_commands_min > 0, "a round of one shard gains nothing");
        let first_balance = options.load_stride * SAMPLE_MIN_PER_SHARD as u64 * options.shards as u64;
        Self {
            options,
            map: ShardMap::new(options.shards),
            load: LoadSample::new(options.load_stride),
            until_balance: first_balance,
            balance_interval: first_balance,
            outbox: VecDeque::new(),
            round: None,
            rounds: 0,
        }
    }

    /// Rounds so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Whether commands of a round are to be evaluated or installed.
    pub(crate) fn has_round(&self) -> bool {
        self.round.is_some()
    }

    /// Whether the state is lent: nothing may change it.
    pub(crate) fn is_lent(&self) -> bool {
        self.round.as_ref().is_some_and(|round| !round.is_evaluated())
    }

    /// Whether nothing can be done before a job comes back.
    pub(crate) fn is_waiting(&self) -> bool {
        self.outbox.is_empty() && self.round.as_ref().is_some_and(|round| round.out > 0 && round.unfinished.is_empty())
    }

    /// Makes a round of the commands from where `entry` stands on, if it is worth it.
    pub(crate) fn begin(
        &mut self,
        payload: &Arc<Vec<u8>>,
        mut entry: Entry<'_>,
        keyspace: &Keyspace<T>,
        budget: &mut Budget,
    ) -> Begun {
        assert!(self.round.is_none(), "one round after the other");
        if self.options.shards == 1 || (entry.header.count as usize) < 2 * self.options.gain_commands_min {
            return Begun::Direct { until: usize::MAX };
        }
        let base = keyspace.state().revision;
        let mut members = VecDeque::new();
        let mut commands = vec![Vec::new(); self.options.shards];
        let mut shares = vec![0_usize; self.options.shards];
        while members.len() < self.options.round_commands_max
            && let Some((at, command)) = entry.next_placed()
        {
            let reach = base + members.len() as i64 + 1;
            let is_undecided = !members.is_empty() && names_revision(&command, &|named| named > base && named <= reach);
            let Some(shard) = self.owner(&command).filter(|_| !is_undecided) else { break };
            shares[usize::from(shard.0)] += 1;
            commands[usize::from(shard.0)].push(JobCommand { index: members.len() as u32, at });
            members.push_back((shard, entry.position()));
        }
        let gain = members.len() - shares.iter().max().copied().unwrap_or(0);
        self.balance(members.len());
        budget.spend(price::PLACE * members.len() as u32);
        if gain < self.options.gain_commands_min {
            return Begun::Direct { until: entry.position() };
        }
        let jobs = commands.into_iter().zip(0..).filter(|(commands, _)| !commands.is_empty());
        let job = |(commands, id)| ShardJob::new(ShardId(id), keyspace.lend(), Arc::clone(payload), commands);
        self.outbox.extend(jobs.map(job));
        let lists = (0..self.options.shards).map(|_| None).collect();
        let (numbering, out) = (Numbering::new(base), self.outbox.len());
        self.rounds += 1;
        self.round = Some(Round { numbering, members, out, unfinished: Vec::new(), lists });
        Begun::Round
    }

    /// The next job for somebody else, or to be handed straight back.
    pub(crate) fn poll_job(&mut self) -> Option<ShardJob<T>> {
        self.outbox.pop_front()
    }

    /// Takes a job back.
    pub(crate) fn handle_job(&mut self, job: ShardJob<T>) {
        let round = self.round.as_mut().expect("jobs are of the round under way");
        round.out = round.out.checked_sub(1).expect("a job comes back once");
        if job.is_done() { round.take_in(job) } else { round.unfinished.push(job) }
    }

    /// Goes on with jobs that came back before their end. False: others are out.
    ///
    /// # Errors
    /// The budget is used up, or a page is needed first: call again.
    pub(crate) fn step(&mut self, pages: &dyn PageSource, budget: &mut Budget) -> Result<bool, Pause> {
        let round = self.round.as_mut().expect("a round is under way");
        while let Some(mut job) = round.unfinished.pop() {
            match job.step(pages, budget) {
                JobStep::Done => round.take_in(job),
                step => {
                    round.unfinished.push(job);
                    return Err(match step {
                        JobStep::NeedPages(unavailable) => Pause::Pages(unavailable),
                        _ => Pause::Budget,
                    });
                }
            }
        }
        Ok(round.out == 0)
    }

    /// Installs the next command of the round.
    pub(crate) fn install_next(&mut self, keyspace: &mut Keyspace<T>, budget: &mut Budget) -> Installed {
        let round = self.round.as_mut().filter(|round| round.is_evaluated()).expect("I3: every job is back");
        let (shard, end) = round.members.pop_front().expect("a round ends with its last command");
        let List { results, changes } = round.lists[usize::from(shard.0)].as_mut().expect("it had a job");
        let JobResult { changes: changed, mut answer } = results.next().expect("a result for each command");
        round.numbering.push(changed > 0);
        let is_identity = round.numbering.is_identity();
        for _ in 0..changed {
            let change = changes.take_next().expect("as many changes as were counted");
            let change = if is_identity { change } else { round.numbering.change(change) };
            keyspace.install(&change);
            budget.spend_bytes(change.value.len());
        }
        budget.spend(price::ENTRY + price::CHANGE * changed);
        if changed > 0 {
            keyspace.move_to(keyspace.state().revision + 1);
        }
        if !is_identity && let Ok(answer) = &mut answer {
            round.numbering.answer(answer);
        }
        if round.members.is_empty() {
            self.round = None;
        }
        Installed { end, answer }
    }

    /// The shard that owns every key a command may read or write, whichever branches it takes; none if it is to be
    /// applied by itself.
    fn owner(&mut self, command: &Command<'_>) -> Option<ShardId> {
        let mut operations = 0;
        let Self { map, load, .. } = self;
        let mut owner = None;
        let mut first: Option<(&[u8], usize)> = None;
        let is_single = single_keys(command, &mut |key, bytes| {
            operations += 1;
            let (_, all) = first.get_or_insert((key, 0));
            *all += bytes;
            let this = map.owner(key);
            operations <= OPERATIONS_MAX && *owner.get_or_insert(this) == this
        });
        let (key, bytes) = first?;
        load.note(key, bytes);
        owner.filter(|_| is_single)
    }

    /// Boundaries follow the load: nobody holds anything by them between rounds.
    fn balance(&mut self, commands: usize) {
        self.until_balance = self.until_balance.saturating_sub(commands as u64);
        if self.until_balance == 0 {
            if let Some(map) = self.load.take_map(self.options.shards) {
                self.map = map;
                self.balance_interval = (2 * self.balance_interval).min(BALANCE_COMMANDS_MAX);
            }
            self.until_balance = self.balance_interval;
        }
    }

    #[cfg(test)]
    pub(crate) fn set_map(&mut self, map: ShardMap) {
        assert_eq!(map.shards(), self.options.shards);
        (self.map, self.until_balance) = (map, u64::MAX);
    }
}

impl<T> Round<T> {
    /// Whether every job is back and done.
    fn is_evaluated(&self) -> bool {
        self.out == 0 && self.unfinished.is_empty()
    }
}

impl<T: KeyTree> Round<T> {
    fn take_in(&mut self, job: ShardJob<T>) {
        let shard = usize::from(job.shard().0);
        let (results, changes) = job.finish();
        self.lists[shard] = Some(List { results: results.into_iter(), changes: changes.into_rest() });
    }
}

/// Shows every key that a command may read or write, with the bytes it brings there, until told to stop. False: told
/// to, or it is not a command of single keys.
fn single_keys<'c>(command: &'c Command<'c>, show: &mut dyn FnMut(&'c [u8], usize) -> bool) -> bool {
    match command {
        Command::Put(put) => show(put.key, put.value.len()),
        Command::DeleteRange(delete) => delete.range_end.is_empty() && show(delete.key, 0),
        Command::Txn(txn) => txn_keys(txn, show),
        _ => false,
    }
}

fn txn_keys<'c>(txn: &'c Txn<'c>, show: &mut dyn FnMut(&'c [u8], usize) -> bool) -> bool {
    let compared = txn.compares.iter().all(|compare| compare.range_end.is_empty() && show(compare.key, 0));
    compared
        && txn.success.iter().chain(&txn.failure).all(|op| match op {
            Op::Range(query) => query.range_end.is_empty() && show(query.key, 0),
            Op::Put(put) => show(put.key, put.value.len()),
            Op::DeleteRange(delete) => delete.range_end.is_empty() && show(delete.key, 0),
            Op::Txn(nested) => txn_keys(nested, show),
            Op::Unset => false,
        })
}

/// Whether a command names a revision for which `named` holds: to compare with, to read at, to filter by.
fn names_revision(command: &Command<'_>, named: &dyn Fn(i64) -> bool) -> bool {
    match command {
        Command::Txn(txn) => txn_names_revision(txn, named),
        _ => false,
    }
}

fn txn_names_revision(txn: &Txn<'_>, named: &dyn Fn(i64) -> bool) -> bool {
    let in_compare = |compare: &Compare<'_>| match compare.target {
        CompareTarget::Create(revision) | CompareTarget::Mod(revision) => named(revision),
        _ => false,
    };
    let in_op = |op: &Op<'_>| match op {
        Op::Range(query) => [
            query.revision,
            query.min_mod_revision,
            query.max_mod_revision,
            query.min_create_revision,
            query.max_create_revision,
        ]
        .into_iter()
        .any(named),
        Op::Txn(nested) => txn_names_revision(nested, named),
        Op::Put(_) | Op::DeleteRange(_) | Op::Unset => false,
    };
    txn.compares.iter().any(in_compare) || txn.success.iter().chain(&txn.failure).any(in_op)
}
