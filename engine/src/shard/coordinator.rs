//! The coordinator: orders the shards' work, numbers what they changed, appends the rows, answers.
//!
//! Owns: the queue of a committed batch, the round or the command of several shards under way, revision, compacted
//! revision and digest, leases with their attachments, publication. Does not know: keys' entries (shards hold them),
//! raft, the wire, when a batch begins or a checkpoint is due.
//!
//! Invariants
//! - I1: one round, or one command of several shards, at a time; the next begins when the rows of the one before
//!   stand in the row log and their numbers are on their way to the shards.
//! - I2: what a shard is told to install names only rows that are in the row log.
//! - I3: a publication follows the settling of everything before it; answers leave after it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::budget::{Budget, Pause, price};
use crate::command::Command;
use crate::lease::{Lease, Leases};
use crate::mvcc::changes::{Changes, Rest};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::{checkpoint_digest, lease_digest};
use crate::mvcc::pins::Pins;
use crate::mvcc::{CompactOutcome, KeyspaceState, MvccError, Published};
use crate::page_source::PageSource;
use crate::shard::answer::{Answer, Answered};
use crate::shard::append::{Answering, Append, Content, number_spanning};
use crate::shard::balance::{Balance, Checkpoint};
use crate::shard::load::LoadSample;
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::merge::Merge;
use crate::shard::message::{
    ChangeList, FrozenPart, ReadPoint, Report, ShardReport, ShardTask, StoredCommand, Task, WRITER,
};
use crate::shard::ops;
use crate::shard::reader::{Reader, range_error};
use crate::shard::revoke::{Revoke, revoke_error};
use crate::shard::round::Round;
use crate::shard::spanning::{Spanning, Stage, owners};
use crate::shard::worker::Shared;
use crate::store::row_log::RowLog;

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
    pub(super) leases: Leases<T>,
    published: Published,
    published_compacted: i64,
    pins: Pins,
    queue: VecDeque<(u64, StoredCommand)>,
    work: Work,
    /// `Settled` reports to come.
    pub(super) unsettled: u32,
    outbox: VecDeque<(ShardId, ShardTask<T>)>,
    /// Changes that the shards have installed or forgotten, or are about to: the last to hold them frees them bit by
    /// bit.
    dropped: Vec<ChangeList>,
    freeing: Option<Rest<'static>>,
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
    Revoke(Revoke),
    Append(Append),
}

impl<T: KeyTree + Clone> Coordinator<T> {
    /// The coordinator of a keyspace whose shards have no changes since the checkpoint of `state`.
    #[must_use]
    pub fn new(options: ShardOptions, map: ShardMap, state: KeyspaceState, leases: Leases<T>, applied: u64) -> Self {
        Self {
            options,
            map: Arc::new(map),
            load: LoadSample::new(),
            state,
            leases,
            published: Published { revision: state.revision, applied },
            published_compacted: state.compacted,
            pins: Pins::default(),
            queue: VecDeque::new(),
            work: Work::None,
            unsettled: 0,
            outbox: VecDeque::new(),
            dropped: Vec::new(),
            freeing: None,
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

    /// Takes the next command of the committed batch: of keys, of leases, or a compaction. What an alarm refuses is
    /// not handed in: alarms change between commands, where their table is.
    pub fn handle_command(&mut self, id: u64, command: StoredCommand) {
        self.queue.push_back((id, command));
    }

    /// Takes a read: the bytes are of a transaction that holds only ranges, as the log would hold it. `is_range`: the
    /// transaction is the form of its only range, which follows a plain range's rules.
    pub fn handle_read(&mut self, id: u64, read: StoredCommand, is_range: bool) {
        let (revision, compacted) = (self.published.revision, self.published_compacted);
        let at = ReadPoint { revision, compacted, floor: compacted };
        if let Some(error) = range_error(&read, at).filter(|_| is_range) {
            return self.answers.push_back(Answered { id, result: Err(error) });
        }
        let job = Box::new(Spanning::new(self.next_job, read, &self.map, at));
        let pin = self.pins.take(revision);
        self.readers.insert(self.next_job, Reader::begin(id, job, pin, is_range, &mut self.outbox));
        self.next_job += 1;
    }

    /// Takes what a shard has done.
    pub fn handle_report(&mut self, from: ShardId, report: ShardReport) {
        match report.0 {
            Report::Round { results, changes } => {
                let Work::Round(round) = &mut self.work else { unreachable!("a round answers a round") };
                round.handle_report(from, results, changes);
            }
            Report::Gathered { job, gathered } => self.spanning(job).handle_gathered(from, &gathered),
            Report::Ran { job, result, changes } => match &mut self.work {
                Work::Revoke(revoke) if job == WRITER => revoke.handle_ran(from, result, changes),
                _ => self.spanning(job).handle_ran(from, result, changes),
            },
            Report::Settled => self.unsettled -= 1,
            Report::Installed => self.handle_installed(),
            Report::Frozen(part) => self.handle_frozen(part),
            Report::Surveyed(keys) => self.balance.handle_surveyed(keys),
            Report::HandedOver(entries) => self.handle_handed_over(entries),
        }
    }

    /// Goes on as far as the shards' reports allow. Nothing else writes to the row log.
    pub fn step(&mut self, rows: &mut RowLog, pages: &dyn PageSource, budget: &mut Budget) -> CoordinatorStep {
        loop {
            match self.go_on(rows, pages, budget) {
                Ok(true) => {}
                Ok(false) => break,
                Err(pause) => return CoordinatorStep::Paused(pause),
            }
        }
        let freed = self.free_dropped(budget);
        match self.answer_readers(Shared { rows, pages }, budget).and(freed) {
            Err(pause) => CoordinatorStep::Paused(pause),
            Ok(()) if self.is_idle() => CoordinatorStep::Idle,
            Ok(()) => CoordinatorStep::Waiting,
        }
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

    /// Leases and attachments, as of everything evaluated.
    #[must_use]
    pub fn leases(&self) -> &Leases<T> {
        &self.leases
    }

    /// The present map.
    #[must_use]
    pub fn map(&self) -> &Arc<ShardMap> {
        &self.map
    }

    /// Rows that no reader at this revision or above sees may be reclaimed.
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
        let floor = self.pins.oldest().map_or(compacted, |oldest| oldest.min(compacted));
        ReadPoint { revision, compacted, floor }
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
            Work::Round(round) if round.is_waiting() => return Ok(false),
            Work::Round(_) => {
                let Work::Round(round) = self.take_work() else { unreachable!("a round is under way") };
                self.work = Work::Append(round.number(&mut self.state.digest));
            }
            Work::Spanning { job, .. } => match job.stage() {
                Stage::Waiting => return Ok(false),
                Stage::Gathered => self.run_spanning(),
                Stage::Ran => self.number_spanning(),
            },
            Work::Revoke(revoke) => {
                if revoke.is_waiting() {
                    return Ok(false);
                }
                if !revoke.is_sent {
                    revoke.find_keys(&self.leases, &self.map, pages, budget)?;
                }
                self.go_on_with_revoke();
            }
            Work::Append(append) => {
                append.write(rows, &mut self.leases, &mut self.state.digest, budget)?;
                self.settle();
                let Work::Append(append) = &mut self.work else { unreachable!("rows were appended") };
                append.answer(Shared { rows, pages }, &mut self.evaluated, budget)?;
                self.work = Work::None;
            }
        }
        Ok(true)
    }

    fn take_work(&mut self) -> Work {
        std::mem::replace(&mut self.work, Work::None)
    }

    /// Begins the next round, or what stands between rounds.
    fn start(&mut self, budget: &mut Budget) {
        let at = self.read_point();
        let mut round = Round::new(at.revision);
        let mut tasks: BTreeMap<ShardId, Vec<(u32, StoredCommand)>> = BTreeMap::new();
        while let Some((id, stored)) = self.queue.front() {
            if round.len() == self.options.round_commands_max || (round.len() > 0 && budget.is_used_up()) {
                break;
            }
            let (id, stored) = (*id, stored.clone());
            let command = stored.decode();
            budget.spend(price::SEEK);
            let index = round.len() as u32;
            if let Command::LeaseGrant { id: lease, ttl } = command {
                round.push_grant(id, lease, ttl, self.grant(lease, ttl));
                for shard in self.map.ids() {
                    tasks.entry(shard).or_default().push((index, stored.clone()));
                    round.expect(shard);
                }
            } else if let Some(shard) = self.only_owner(&command).filter(|_| !round.is_undecided(&command)) {
                ops::touched(&command, &mut |key, _| self.load.note(key, stored.len()));
                round.push(id, stored.clone(), shard);
                tasks.entry(shard).or_default().push((index, stored.clone()));
            } else {
                if round.len() == 0 {
                    self.queue.pop_front();
                    self.start_alone(id, &stored, &command, at);
                }
                break;
            }
            self.queue.pop_front();
        }
        if round.len() > 0 {
            for (shard, commands) in tasks {
                self.send(shard, Task::Round { at, commands });
            }
            self.work = Work::Round(round);
        }
    }

    /// The one shard that a command concerns, if it is one.
    fn only_owner(&self, command: &Command<'_>) -> Option<ShardId> {
        if !matches!(command, Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_)) {
            return None;
        }
        let owners = owners(&self.map, command);
        // What touches no key at all is evaluated by anyone.
        (owners.len() <= 1).then(|| owners.iter().next().unwrap_or(ShardId(0)))
    }

    fn grant(&mut self, lease: i64, ttl: i64) -> bool {
        let is_new = self.leases.get(lease).is_none();
        if is_new {
            self.leases.grant(lease, Lease::granted(ttl));
        }
        is_new
    }

    /// Begins what is no part of a round.
    fn start_alone(&mut self, id: u64, stored: &StoredCommand, command: &Command<'_>, at: ReadPoint) {
        match command {
            Command::Compact { revision } => {
                let result = self.compact(*revision).map(Answer::Compact);
                self.evaluated.push(Answered { id, result });
            }
            Command::LeaseRevoke { id: lease } | Command::LeaseExpire { id: lease, .. } => {
                match revoke_error(&self.leases, *lease) {
                    Some(error) => self.evaluated.push(Answered { id, result: Err(error) }),
                    None => self.work = Work::Revoke(Revoke::new(id, *lease)),
                }
            }
            Command::LeaseCheckpoint { id: lease, remaining } => {
                if self.leases.checkpoint(*lease, *remaining) {
                    let change = checkpoint_digest(*lease, *remaining, self.state.revision);
                    self.state.digest = self.state.digest.wrapping_add(change);
                }
                self.evaluated.push(Answered { id, result: Ok(Answer::LeaseCheckpoint) });
            }
            _ => {
                let mut job = Box::new(Spanning::new(WRITER, stored.clone(), &self.map, at));
                if let Command::Txn(_) = command {
                    job.begin_gather(&mut self.outbox);
                } else {
                    job.path = Some(Arc::default());
                    job.begin_run(&self.map, &mut self.outbox);
                }
                self.work = Work::Spanning { id, job };
            }
        }
    }

    fn compact(&mut self, revision: i64) -> Result<CompactOutcome, MvccError> {
        if revision <= self.state.compacted {
            return Err(MvccError::Compacted);
        }
        if revision > self.state.revision {
            return Err(MvccError::FutureRevision);
        }
        self.state.compacted = revision;
        Ok(CompactOutcome { revision: self.state.revision })
    }

    /// All compares are known.
    fn run_spanning(&mut self) {
        let Work::Spanning { id, job } = &mut self.work else { unreachable!("a command is under way") };
        match job.decide() {
            Ok(()) => job.begin_run(&self.map, &mut self.outbox),
            Err(error) => {
                self.evaluated.push(Answered { id: *id, result: Err(error) });
                self.work = Work::None;
            }
        }
    }

    /// Every op's change count in every shard is known: prefix sums over (op, shard) give the subs.
    fn number_spanning(&mut self) {
        let Work::Spanning { id, mut job } = self.take_work() else { unreachable!("a command is under way") };
        let base = self.state.revision;
        let ran = match job.results() {
            Ok(ran) => ran,
            Err(failed) => {
                self.dropped.extend(failed.dropped);
                for shard in job.owners.iter() {
                    self.unsettled += 1;
                    self.send(shard, Task::Discard);
                }
                return self.evaluated.push(Answered { id, result: Err(failed.error) });
            }
        };
        let numbers = number_spanning(base, job.order(&ran), ran);
        let path = job.path.clone().expect("a command ran along its path");
        let merge = Box::new(Merge::new(base, path, numbers.contributions));
        let content = Content::Parts { command: job.command, map: Some(job.map), merge };
        let answers = [Answering { id, content }].into();
        let (runs, lists) = (numbers.runs, numbers.lists);
        self.work = Work::Append(Append { runs, lists, newest: numbers.newest, answers, ends: None });
    }

    /// All keys of a lease that ends are known, or deleted.
    fn go_on_with_revoke(&mut self) {
        let at = self.read_point();
        let Work::Revoke(revoke) = &mut self.work else { unreachable!("a lease ends") };
        if revoke.is_sent {
            let Work::Revoke(revoke) = self.take_work() else { unreachable!("a lease ends") };
            self.work = Work::Append(revoke.number(at.revision));
            return;
        }
        let lease = revoke.lease;
        for (shard, keys) in revoke.send() {
            self.send(shard, Task::Revoke { at, lease, keys });
        }
    }

    /// The rows are in the row log: the shards may install what names them (I2).
    fn settle(&mut self) {
        let Work::Append(append) = &mut self.work else { unreachable!("rows were appended") };
        self.state.revision = append.newest;
        let ends = append.ends.take();
        for (shard, list) in std::mem::take(&mut append.lists) {
            assert_eq!(list.next, list.changes.len(), "every change has its row");
            self.unsettled += 1;
            self.dropped.push(list.changes);
            self.send(shard, Task::Settle(list.numbering));
        }
        let Some(lease) = ends else { return };
        let ttl = self.leases.get(lease).map_or(0, |lease| lease.ttl);
        self.leases.remove(lease);
        let change = lease_digest(lease, ttl, false, self.state.revision);
        self.state.digest = self.state.digest.wrapping_add(change);
        for shard in self.map.ids() {
            self.unsettled += 1;
            self.send(shard, Task::LeaseEnded(lease));
        }
    }

    /// Frees changes once no shard holds them.
    fn free_dropped(&mut self, budget: &mut Budget) -> Result<(), Pause> {
        while self.unsettled == 0 {
            while self.freeing.as_mut().and_then(Rest::take_next).is_some() {
                budget.charge(1)?;
            }
            let Some(list) = self.dropped.pop() else { break };
            self.freeing = Arc::into_inner(list).map(Changes::into_rest);
        }
        Ok(())
    }

    fn answer_readers(&mut self, shared: Shared<'_>, budget: &mut Budget) -> Result<(), Pause> {
        let jobs: Vec<u64> = self.readers.keys().copied().collect();
        for number in jobs {
            let Some(reader) = self.readers.get_mut(&number) else { continue };
            if let Some(result) = reader.go_on(&self.map, &mut self.outbox, shared, budget)? {
                let Some(reader) = self.readers.remove(&number) else { continue };
                self.pins.give_back(&reader.pin);
                self.answers.push_back(Answered { id: reader.id, result: result.map(Answer::Op) });
            }
        }
        Ok(())
    }
}
