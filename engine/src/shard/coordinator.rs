//! The coordinator: orders the shards' work, numbers what they changed, appends the rows, answers.
//!
//! Owns: the queue of a committed batch, the round or the command of several shards under way, revision, compacted
//! revision and digest, publication, readers' jobs. Does not know: keys' entries (shards hold them), raft, the wire,
//! when a batch begins or a checkpoint is due.
//!
//! Invariants
//! - I1: one round, or one command of several shards, at a time; the next begins when the rows of the one before stand
//!   in the row log and their numbers are on their way to the shards.
//! - I2: what a shard is told to install names only rows that are in the row log.
//! - I3: a publication follows the settling of everything before it; answers leave after it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::budget::{Budget, Pause, price};
use crate::command::{Command, Txn};
use crate::mvcc::keyspace::change_digest;
use crate::mvcc::pins::{Pin, Pins};
use crate::mvcc::range::revision_read;
use crate::mvcc::{CompactOutcome, KeyspaceState, MvccError, OpOutcome, Published};
use crate::page_source::PageSource;
use crate::shard::balance::Balance;
use crate::shard::load::LoadSample;
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::merge::{Contribution, Merge};
use crate::shard::message::{
    ChangeList, CommandResult, FrozenPart, Part, ReadPoint, Report, ShardReport, ShardTask, StoredCommand, Task, WRITER,
};
use crate::shard::numbering::Numbering;
use crate::shard::ops;
use crate::shard::spanning::{Spanning, Stage, owners};
use crate::shard::worker::Shared;
use crate::store::key_entry::Revision;
use crate::store::row_log::{Row, RowLog};

/// Sizes of the coordinator's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOptions {
    /// Commands of a round at most.
    pub round_commands_max: usize,
    /// Changed keys that move from one shard to another at once.
    pub move_keys_max: u32,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self { round_commands_max: 1024, move_keys_max: 256 }
    }
}

/// What a command or a read answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of a put, a delete, a transaction. A read of a range is answered as the only operation of one.
    Op(OpOutcome),
    /// Of a compaction.
    Compact(CompactOutcome),
}

/// An answer and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// As its command or read was handed in.
    pub id: u64,
    /// What came of it. Rows are named by address: they stand in the row log.
    pub result: Result<Answer, MvccError>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoordinatorStep {
    /// Nothing to do.
    Idle,
    /// Shards have to report first.
    Waiting,
    /// The step stopped before its end: out of budget, or for pages.
    Paused(Pause),
}

/// The coordinator.
#[derive(Debug)]
pub struct Coordinator<T> {
    pub(super) options: ShardOptions,
    pub(super) map: Arc<ShardMap>,
    load: LoadSample,
    state: KeyspaceState,
    published: Published,
    published_compacted: i64,
    pins: Pins,
    queue: VecDeque<(u64, StoredCommand)>,
    work: Work,
    /// `Settled` reports to come.
    pub(super) unsettled: u32,
    outbox: VecDeque<(ShardId, ShardTask<T>)>,
    /// Of commands not published yet.
    evaluated: Vec<Answered>,
    answers: VecDeque<Answered>,
    readers: BTreeMap<u64, Reader>,
    next_job: u64,
    pub(super) checkpoint: Checkpoint,
    /// Frozen changes that a tree has taken in.
    pub(super) retired: Vec<FrozenPart>,
    pub(super) balance: Balance,
    /// Where boundaries should be.
    pub(super) wanted: Option<ShardMap>,
}

/// What is under way.
#[derive(Debug)]
enum Work {
    None,
    Round(Round),
    Spanning { id: u64, job: Box<Spanning> },
    Append(Append),
}

/// Commands of one shard each, evaluated beside each other.
#[derive(Debug)]
struct Round {
    commands: Vec<(u64, StoredCommand, ShardId)>,
    reports: BTreeMap<ShardId, Option<(Vec<CommandResult>, ChangeList)>>,
}

/// Changes on their way into the row log, and answers being put together.
#[derive(Debug)]
struct Append {
    /// Runs of changes in their final order: whose, how many, where the first goes.
    runs: VecDeque<(ShardId, u32, Revision)>,
    lists: BTreeMap<ShardId, List>,
    newest: i64,
    answers: VecDeque<Answering>,
}

#[derive(Debug)]
struct List {
    changes: ChangeList,
    next: usize,
    numbering: Numbering,
}

#[derive(Debug)]
struct Answering {
    id: u64,
    command: StoredCommand,
    map: Option<Arc<ShardMap>>,
    result: Result<Merge, MvccError>,
}

/// A read under way.
#[derive(Debug)]
struct Reader {
    id: u64,
    job: Box<Spanning>,
    merge: Option<Merge>,
    pin: Pin,
    /// A range: the transaction it came in has this one operation.
    is_range: bool,
}

/// The running checkpoint's part here.
#[derive(Debug)]
pub(super) enum Checkpoint {
    None,
    /// Shards hand out what they froze.
    Freezing(BTreeMap<ShardId, FrozenPart>),
    /// It is being merged.
    Frozen(Vec<FrozenPart>),
    /// So many shards have yet to take the new tree.
    Installing(u32, Vec<FrozenPart>),
}

impl<T: Clone> Coordinator<T> {
    /// The coordinator of a keyspace whose shards have no changes since the checkpoint of `state`.
    #[must_use]
    pub fn new(options: ShardOptions, map: ShardMap, state: KeyspaceState, applied: u64) -> Self {
        Self {
            options,
            map: Arc::new(map),
            load: LoadSample::new(),
            state,
            published: Published { revision: state.revision, applied },
            published_compacted: state.compacted,
            pins: Pins::default(),
            queue: VecDeque::new(),
            work: Work::None,
            unsettled: 0,
            outbox: VecDeque::new(),
            evaluated: Vec::new(),
            answers: VecDeque::new(),
            readers: BTreeMap::new(),
            next_job: WRITER + 1,
            checkpoint: Checkpoint::None,
            retired: Vec::new(),
            balance: Balance::None,
            wanted: None,
        }
    }

    /// The present map, to make shards with.
    #[must_use]
    pub fn map(&self) -> &Arc<ShardMap> {
        &self.map
    }

    /// Takes the next command of the committed batch: a put, a delete, a transaction or a compaction. What an alarm
    /// refuses is not handed in.
    pub fn handle_command(&mut self, id: u64, command: StoredCommand) {
        self.queue.push_back((id, command));
    }

    /// Takes a read: the bytes are of a transaction that holds only ranges, as the log would hold it. `is_range`: the
    /// transaction is the form of its only range, which follows a plain range's rules.
    pub fn handle_read(&mut self, id: u64, read: StoredCommand, is_range: bool) {
        let at = ReadPoint {
            revision: self.published.revision,
            compacted: self.published_compacted,
            floor: self.published_compacted,
        };
        let job = self.next_job;
        self.next_job += 1;
        let mut spanning = Spanning::new(job, read, &self.map, at);
        let decoded = spanning.command.clone();
        let decoded = decoded.decode();
        let Command::Txn(txn) = &decoded else { unreachable!("a read is a transaction") };
        if let Some(error) = range_error(txn, at).filter(|_| is_range) {
            return self.answers.push_back(Answered { id, result: Err(error) });
        }
        if is_range {
            spanning.path = Some([true].into());
            spanning.begin_run(&self.map, &mut self.outbox);
        } else {
            spanning.begin_gather(&mut self.outbox);
        }
        let pin = self.pins.take(at.revision);
        self.readers.insert(job, Reader { id, job: Box::new(spanning), merge: None, pin, is_range });
    }

    /// Takes what a shard has done.
    pub fn handle_report(&mut self, from: ShardId, report: ShardReport) {
        match report.0 {
            Report::Round { results, changes } => {
                let Work::Round(round) = &mut self.work else { unreachable!("a round answers a round") };
                let before = round.reports.insert(from, Some((results, changes)));
                assert!(matches!(before, Some(None)), "one report for each round");
            }
            Report::Gathered { job, gathered } => self.spanning(job).handle_gathered(from, &gathered),
            Report::Ran { job, result, changes } => self.spanning(job).handle_ran(from, result, changes),
            Report::Settled => self.unsettled -= 1,
            Report::Installed => self.handle_installed(),
            Report::Frozen(part) => self.handle_frozen(part),
            Report::Surveyed(keys) => self.balance.handle_surveyed(keys),
            Report::HandedOver(entries) => self.handle_handed_over(entries),
        }
    }

    /// Goes on as far as the shards' reports allow. Before anything else is written to the row log, it has to be done.
    pub fn step(&mut self, rows: &mut RowLog, pages: &dyn PageSource, budget: &mut Budget) -> CoordinatorStep {
        loop {
            match self.go_on(rows, pages, budget) {
                Ok(true) => {}
                Ok(false) => break,
                Err(pause) => return CoordinatorStep::Paused(pause),
            }
        }
        if let Err(pause) = self.answer_readers(rows, pages, budget) {
            return CoordinatorStep::Paused(pause);
        }
        if self.is_idle() { CoordinatorStep::Idle } else { CoordinatorStep::Waiting }
    }

    /// The next message for a shard. Messages to one shard are to arrive in this order, whole and once.
    pub fn poll_task(&mut self) -> Option<(ShardId, ShardTask<T>)> {
        self.outbox.pop_front()
    }

    /// The next answer that may leave.
    pub fn poll_answer(&mut self) -> Option<Answered> {
        self.answers.pop_front()
    }

    /// Whether every command handed in is evaluated, numbered and installed everywhere.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty() && matches!(self.work, Work::None) && self.unsettled == 0
    }

    /// Whether everything is settled and no shard has yet to answer a reader or a move.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_settled() && self.readers.is_empty() && !self.balance.is_waiting()
    }

    /// Makes everything handed in visible, as of raft index `applied`.
    pub fn publish(&mut self, applied: u64) {
        assert!(self.is_settled(), "I3: what is published is installed everywhere");
        assert!(applied >= self.published.applied, "the applied index never goes back");
        self.published = Published { revision: self.state.revision, applied };
        self.published_compacted = self.state.compacted;
        self.answers.extend(self.evaluated.drain(..));
    }

    /// What readers see.
    #[must_use]
    pub fn published(&self) -> Published {
        self.published
    }

    /// The applied state (a checkpoint's scalars when everything is published).
    #[must_use]
    pub fn state(&self) -> KeyspaceState {
        self.state
    }

    /// Rows at or below it that are not the newest of their key may be reclaimed.
    #[must_use]
    pub fn reclaim_bound(&self) -> i64 {
        self.pins.oldest().map_or(self.published_compacted, |oldest| oldest.min(self.published_compacted))
    }

    pub(super) fn send(&mut self, to: ShardId, task: Task<T>) {
        self.outbox.push_back((to, ShardTask(task)));
    }

    /// The map that would have shared the load evenly since it was last asked for.
    pub(super) fn wanted_map(&mut self) -> Option<ShardMap> {
        self.load.take_map(self.map.shards())
    }

    fn read_point(&self) -> ReadPoint {
        let KeyspaceState { revision, compacted, .. } = self.state;
        ReadPoint { revision, compacted, floor: self.pins.oldest().map_or(compacted, |oldest| oldest.min(compacted)) }
    }

    /// The job of this number.
    fn spanning(&mut self, number: u64) -> &mut Spanning {
        if number != WRITER {
            return &mut self.readers.get_mut(&number).expect("a reader waits for its shards").job;
        }
        let Work::Spanning { job, .. } = &mut self.work else { unreachable!("only what runs reports") };
        job
    }

    /// One step of the work under way. False: nothing can be done.
    fn go_on(&mut self, rows: &mut RowLog, pages: &dyn PageSource, budget: &mut Budget) -> Result<bool, Pause> {
        match &mut self.work {
            Work::None => {
                let can_start = !self.balance.is_waiting() && !self.queue.is_empty();
                if can_start {
                    self.start(budget);
                }
                return Ok(can_start);
            }
            Work::Round(round) => {
                if round.reports.values().any(Option::is_none) {
                    return Ok(false);
                }
                self.number_round();
            }
            Work::Spanning { job, .. } => match job.stage() {
                Stage::Waiting => return Ok(false),
                Stage::Gathered => self.run_spanning(),
                Stage::Ran => self.number_spanning(),
            },
            Work::Append(append) => {
                append.write(rows, &mut self.state.digest, budget)?;
                self.settle();
                self.put_together(Shared { rows, pages }, budget)?;
                self.work = Work::None;
            }
        }
        Ok(true)
    }

    /// Begins the next round, or the next command of several shards.
    fn start(&mut self, budget: &mut Budget) {
        let mut round = Round { commands: Vec::new(), reports: BTreeMap::new() };
        let mut tasks: BTreeMap<ShardId, Vec<(u32, StoredCommand)>> = BTreeMap::new();
        let at = self.read_point();
        while let Some((id, stored)) =
            self.queue.front().filter(|_| round.commands.len() < self.options.round_commands_max)
        {
            let (id, stored) = (*id, stored.clone());
            let command = stored.decode();
            budget.spend(price::SEEK);
            let is_first = round.commands.is_empty();
            if let Command::Compact { revision } = command {
                if is_first {
                    self.queue.pop_front();
                    self.compact(id, revision);
                }
                break;
            }
            let owners = owners(&self.map, &command);
            if owners.len() > 1 {
                if is_first {
                    self.queue.pop_front();
                    self.start_spanning(id, stored.clone(), &command, at);
                }
                break;
            }
            // What names a revision that commands of this round may take is undecided until they are numbered.
            let index = round.commands.len() as i64;
            let open = |revision: i64| revision > at.revision && revision <= at.revision + index + 1;
            if !is_first && ops::names_revision(&command, &open) {
                break;
            }
            self.queue.pop_front();
            ops::touched(&command, &mut |key, _| self.load.note(key, stored.len()));
            let shard = owners.iter().next().unwrap_or(ShardId(0));
            tasks.entry(shard).or_default().push((index as u32, stored.clone()));
            round.commands.push((id, stored.clone(), shard));
        }
        if round.commands.is_empty() {
            return;
        }
        for (shard, commands) in tasks {
            round.reports.insert(shard, None);
            self.send(shard, Task::Round { at, commands });
        }
        self.work = Work::Round(round);
    }

    fn compact(&mut self, id: u64, revision: i64) {
        let result = if revision <= self.state.compacted {
            Err(MvccError::Compacted)
        } else if revision > self.state.revision {
            Err(MvccError::FutureRevision)
        } else {
            self.state.compacted = revision;
            Ok(Answer::Compact(CompactOutcome { revision: self.state.revision }))
        };
        self.evaluated.push(Answered { id, result });
    }

    fn start_spanning(&mut self, id: u64, stored: StoredCommand, command: &Command<'_>, at: ReadPoint) {
        let mut job = Spanning::new(WRITER, stored, &self.map, at);
        if let Command::Txn(_) = command {
            job.begin_gather(&mut self.outbox);
        } else {
            job.path = Some(Arc::default());
            job.begin_run(&self.map, &mut self.outbox);
        }
        self.work = Work::Spanning { id, job: Box::new(job) };
    }

    /// All compares are known.
    fn run_spanning(&mut self) {
        let Work::Spanning { id, job } = &mut self.work else { unreachable!("asked for what is under way") };
        match job.decide() {
            Ok(()) => job.begin_run(&self.map, &mut self.outbox),
            Err(error) => {
                self.evaluated.push(Answered { id: *id, result: Err(error) });
                self.work = Work::None;
            }
        }
    }

    /// Every command's change count is known: prefix sums give the revisions.
    fn number_round(&mut self) {
        let Work::Round(round) = std::mem::replace(&mut self.work, Work::None) else { unreachable!("a round ran") };
        let base = self.state.revision;
        let mut lists = BTreeMap::new();
        let mut results = BTreeMap::new();
        for (shard, report) in round.reports {
            let (shard_results, changes) = report.expect("all have reported");
            results.insert(shard, shard_results.into_iter());
            lists.insert(shard, changes);
        }
        let mut take = |shard: &ShardId| results.get_mut(shard)?.next();
        let results: Vec<CommandResult> =
            round.commands.iter().map(|(_, _, shard)| take(shard).expect("a result for each command")).collect();
        let numbering = Numbering::new(base, results.iter().map(|result| result.changes > 0));
        let (mut runs, mut answers) = (VecDeque::new(), VecDeque::new());
        for (index, ((id, command, shard), result)) in round.commands.into_iter().zip(results).enumerate() {
            let before = numbering.revision(base + index as i64);
            if result.changes > 0 {
                runs.push_back((shard, result.changes, Revision { main: before + 1, sub: 0 }));
            }
            let result = result.result.map(|evaluation| {
                let parts = evaluation.parts.into();
                Merge::new(before, evaluation.path, vec![Contribution { shard, numbering: numbering.clone(), parts }])
            });
            answers.push_back(Answering { id, command, map: None, result });
        }
        let newest = numbering.newest();
        let list = |changes| List { changes, next: 0, numbering: numbering.clone() };
        let lists = lists.into_iter().map(|(shard, changes)| (shard, list(changes))).collect();
        self.work = Work::Append(Append { runs, lists, newest, answers });
    }

    /// Every op's change count in every shard is known: prefix sums over (op, shard) give the subs.
    fn number_spanning(&mut self) {
        let Work::Spanning { id, mut job } = std::mem::replace(&mut self.work, Work::None) else {
            unreachable!("a command ran")
        };
        let base = self.state.revision;
        let ran = match job.results() {
            Ok(ran) => ran,
            Err(error) => {
                for shard in job.owners.iter() {
                    self.unsettled += 1;
                    self.send(shard, Task::Discard);
                }
                return self.evaluated.push(Answered { id, result: Err(error) });
            }
        };
        let order = job.order(&ran);
        let changed: u32 = order.iter().map(|&(_, count)| count).sum();
        let numbering = Numbering::new(base, std::iter::once(changed > 0));
        let mut sub = 0;
        let mut runs = VecDeque::new();
        for (shard, count) in order {
            runs.push_back((shard, count, Revision { main: base + 1, sub }));
            sub += count;
        }
        let (mut lists, mut contributions) = (BTreeMap::new(), Vec::new());
        for (shard, (parts, changes)) in ran {
            let own = runs.iter().filter(|run| run.0 == shard).map(|&(_, count, at)| (count, at.sub));
            let numbering = numbering.with_runs(own);
            contributions.push(Contribution { shard, numbering: numbering.clone(), parts: parts.into() });
            lists.insert(shard, List { changes, next: 0, numbering });
        }
        let path = job.path.clone().expect("a command ran along its path");
        let merge = Merge::new(base, path, contributions);
        let answers = VecDeque::from([Answering { id, command: job.command, map: Some(job.map), result: Ok(merge) }]);
        self.work = Work::Append(Append { runs, lists, newest: numbering.newest(), answers });
    }

    /// The rows are in the row log: the shards may install what names them (I2).
    fn settle(&mut self) {
        let Work::Append(append) = &mut self.work else { unreachable!("rows were appended") };
        self.state.revision = append.newest;
        for (shard, list) in std::mem::take(&mut append.lists) {
            assert_eq!(list.next, list.changes.len(), "every change has its row");
            self.unsettled += 1;
            self.outbox.push_back((shard, ShardTask(Task::Settle(list.numbering))));
        }
    }

    fn put_together(&mut self, shared: Shared<'_>, budget: &mut Budget) -> Result<(), Pause> {
        let Work::Append(append) = &mut self.work else { unreachable!("rows were appended") };
        while let Some(answering) = append.answers.front_mut() {
            let command = answering.command.decode();
            if let Ok(merge) = &mut answering.result {
                merge.step(&command, answering.map.as_deref(), shared, budget)?;
            }
            let Some(Answering { id, command, result, .. }) = append.answers.pop_front() else { break };
            let result = result.map(|merge| Answer::Op(merge.finish(&command.decode())));
            self.evaluated.push(Answered { id, result });
        }
        Ok(())
    }

    fn answer_readers(&mut self, rows: &RowLog, pages: &dyn PageSource, budget: &mut Budget) -> Result<(), Pause> {
        let jobs: Vec<u64> = self.readers.keys().copied().collect();
        for number in jobs {
            let Some(reader) = self.readers.get_mut(&number) else { continue };
            if let Some(result) = reader.go_on(&self.map, &mut self.outbox, Shared { rows, pages }, budget)? {
                let Some(reader) = self.readers.remove(&number) else { continue };
                self.pins.give_back(&reader.pin);
                self.answers.push_back(Answered { id: reader.id, result: result.map(Answer::Op) });
            }
        }
        Ok(())
    }
}

/// What is wrong with the revision of a plain range.
fn range_error(txn: &Txn<'_>, at: ReadPoint) -> Option<MvccError> {
    let Some(crate::command::Op::Range(query)) = txn.success.first() else { return None };
    revision_read(query, at.revision, at.compacted).err()
}

impl Append {
    /// Appends the rows in their final order.
    fn write(&mut self, rows: &mut RowLog, digest: &mut u128, budget: &mut Budget) -> Result<(), Pause> {
        while let Some((shard, count, at)) = self.runs.front_mut() {
            let list = self.lists.get_mut(shard).expect("a run is of a shard that changed something");
            if *count == 0 {
                self.runs.pop_front();
                continue;
            }
            let change = &list.changes[list.next];
            let row = Row {
                at: *at,
                key: &change.key,
                value: &change.value,
                create: list.numbering.revision(change.entry.create),
                version: change.entry.version,
                lease: change.entry.lease,
                prev: list.numbering.row(change.prev),
                jump: list.numbering.row(change.jump),
            };
            assert_eq!(list.numbering.row(change.entry.row), row.at, "shard and coordinator number alike");
            let stored = rows.append(&row);
            *digest = digest.wrapping_add(change_digest(&row, stored));
            (list.next, *count, at.sub) = (list.next + 1, *count - 1, at.sub + 1);
            budget.spend_bytes(change.key.len() + change.value.len());
            budget.charge(price::CHANGE)?;
        }
        Ok(())
    }
}

impl Reader {
    /// Goes on; the result at the end.
    fn go_on<T>(
        &mut self,
        map: &Arc<ShardMap>,
        outbox: &mut VecDeque<(ShardId, ShardTask<T>)>,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<Option<Result<OpOutcome, MvccError>>, Pause> {
        match self.job.stage() {
            Stage::Waiting => return Ok(None),
            Stage::Gathered => {
                if let Err(error) = self.job.decide() {
                    return Ok(Some(Err(error)));
                }
                self.job.begin_run(map, outbox);
                return Ok(None);
            }
            Stage::Ran => {}
        }
        let revision = self.job.at.revision;
        if self.merge.is_none() {
            let ran = match self.job.results() {
                Ok(ran) => ran,
                Err(error) => return Ok(Some(Err(error))),
            };
            let numbering = Numbering::new(revision, std::iter::empty());
            let contribution = |(shard, (parts, _)): (ShardId, (Vec<Part>, ChangeList))| Contribution {
                shard,
                numbering: numbering.clone(),
                parts: parts.into(),
            };
            let path = self.job.path.clone().expect("a read ran along its path");
            self.merge = Some(Merge::new(revision, path, ran.into_iter().map(contribution).collect()));
        }
        let command = self.job.command.decode();
        if let Some(merge) = &mut self.merge {
            merge.step(&command, Some(&self.job.map), shared, budget)?;
        }
        let outcome = self.merge.take().map(|merge| merge.finish(&command));
        Ok(outcome.map(|outcome| Ok(if self.is_range { only_range(outcome) } else { outcome })))
    }
}

fn only_range(outcome: OpOutcome) -> OpOutcome {
    match outcome {
        OpOutcome::Txn(txn) => txn.responses.into_iter().next().expect("the range it was made for"),
        other => other,
    }
}
