//! One shard: evaluates its part of what the coordinator asks.
//!
//! Owns: the changes since the last checkpoint of the keys it owns, installed, frozen, and evaluated but not settled.
//! Does not know: other shards, final revisions before they are told, the log, publication.
//!
//! Row log and pages are shared and only read here; they come in with each step.
//!
//! Invariants
//! - I1: tasks are done in the order in which they came, each to its end, over as many steps as it takes.
//! - I2: nothing is installed but by `Settle`, and a reader never sees what is not installed.
//! - I3: entries beyond the shard's bounds (handed over since) are never looked at: each request is cut to the
//!   bounds.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::budget::{Budget, Pause, price};
use crate::command::Command;
use crate::lease::{Lease, Leases};
use crate::mvcc::KeyRange;
use crate::mvcc::changes::{Change, Changes};
use crate::mvcc::compare::{CompareWalk, Compared};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::range_walk::key_after;
use crate::mvcc::txn::check_put;
use crate::mvcc::view::{Layers, View};
use crate::mvcc::{KeyspaceState, MvccError};
use crate::page_source::{PageSource, Unavailable};
use crate::shard::coordinator::Coordinator;
use crate::shard::evaluation::{LeafRun, Scope};
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::message::{
    ChangeList, CommandResult, Evaluation, FrozenPart, Gathered, HandedOver, Part, ReadPoint, Report, ShardReport,
    ShardTask, StoredCommand, Task, WRITER,
};
use crate::shard::numbering::Numbering;
use crate::shard::ops::{self, Probe};
use crate::store::key_entry::Revision;
use crate::store::overlay::Overlay;
use crate::store::row_log::RowLog;

/// What all shards read and none writes.
#[derive(Clone, Copy)]
pub struct Shared<'s> {
    /// The row log; it holds every row that a settled change names.
    pub rows: &'s RowLog,
    /// Pages.
    pub pages: &'s dyn PageSource,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardStep {
    /// Every task is done.
    Idle,
    /// The budget is used up.
    More,
    /// A page is needed first.
    NeedPages(Unavailable),
}

/// A shard.
#[derive(Debug)]
pub struct Shard<T> {
    id: ShardId,
    map: Arc<ShardMap>,
    tree: T,
    frozen: Option<Arc<Overlay>>,
    fresh: Overlay,
    /// Which leases exist. Attachments are the coordinator's.
    leases: Leases<T>,
    /// The newest row installed here or, for all this shard can tell, elsewhere.
    newest: Revision,
    /// Evaluated, but without final numbers.
    pending: Option<ChangeList>,
    tasks: VecDeque<Job<T>>,
    reports: VecDeque<Report>,
}

/// A task and how far it has come.
#[derive(Debug)]
struct Job<T> {
    task: Task<T>,
    progress: Progress,
}

#[derive(Debug, Default)]
struct Progress {
    /// Commands, probes, entries done.
    done: usize,
    changes: Option<Changes<'static>>,
    results: Vec<CommandResult>,
    gathered: Gathered,
    compare: Option<CompareWalk>,
    /// Branches of the command under evaluation.
    path: Option<Arc<[bool]>>,
    run: Option<LeafRun>,
    /// Where a walk over entries goes on.
    from: Option<Vec<u8>>,
    keys: Vec<Vec<u8>>,
    entries: Vec<HandedOver>,
}

impl<T: KeyTree + Clone> Shard<T> {
    /// A shard of a keyspace without changes since the checkpoint that `tree` belongs to, by its coordinator.
    #[must_use]
    pub fn new(id: ShardId, coordinator: &Coordinator<T>, tree: T) -> Self {
        Self {
            id,
            map: Arc::clone(coordinator.map()),
            tree,
            frozen: None,
            fresh: Overlay::new(),
            leases: coordinator.leases().without_attachments(),
            newest: Revision { main: coordinator.state().revision, sub: u32::MAX },
            pending: None,
            tasks: VecDeque::new(),
            reports: VecDeque::new(),
        }
    }

    /// Takes a task; the coordinator's order is to be kept.
    pub fn handle_task(&mut self, task: ShardTask<T>) {
        self.tasks.push_back(Job { task: task.0, progress: Progress::default() });
    }

    /// Goes on with the tasks.
    pub fn step(&mut self, shared: Shared<'_>, budget: &mut Budget) -> ShardStep {
        while let Some(mut job) = self.tasks.pop_front() {
            match self.work(&mut job, shared, budget) {
                Ok(report) => self.reports.push_back(report),
                Err(pause) => {
                    self.tasks.push_front(job);
                    return match pause {
                        Pause::Budget => ShardStep::More,
                        Pause::Pages(unavailable) => ShardStep::NeedPages(unavailable),
                    };
                }
            }
        }
        ShardStep::Idle
    }

    /// The next answer for the coordinator.
    pub fn poll_report(&mut self) -> Option<ShardReport> {
        self.reports.pop_front().map(ShardReport)
    }

    /// The changes since the last freeze, for their size.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.fresh
    }

    fn work(&mut self, job: &mut Job<T>, shared: Shared<'_>, budget: &mut Budget) -> Result<Report, Pause> {
        let progress = &mut job.progress;
        match &mut job.task {
            Task::Round { at, commands } => self.round(*at, commands, progress, shared, budget),
            Task::Gather { job, at, command } => {
                self.gather(*at, command, progress, shared, budget)?;
                Ok(Report::Gathered { job: *job, gathered: std::mem::take(&mut progress.gathered) })
            }
            Task::Run { job, at, command, path } => self.run(*job, *at, command, path, progress, shared, budget),
            Task::Revoke { at, lease, keys } => self.revoke(*at, *lease, keys, progress, shared, budget),
            Task::LeaseEnded(id) => {
                self.leases.note(*id, None);
                Ok(Report::Settled)
            }
            Task::Settle(numbering) => self.settle(numbering, &mut progress.done, budget),
            Task::Discard => {
                self.pending = None;
                Ok(Report::Settled)
            }
            Task::Freeze => Ok(Report::Frozen(self.freeze())),
            Task::InstallTree(tree) => {
                std::mem::swap(&mut self.tree, tree);
                self.frozen = None;
                Ok(Report::Installed)
            }
            Task::Survey { from, to, stride } => self.survey(from, to, *stride, progress, budget),
            Task::HandOver { from, to } => self.hand_over(from, to, progress, budget),
            Task::Adopt { entries, revision, map } => {
                self.adopt(entries, budget)?;
                self.newest = Revision { main: *revision, sub: u32::MAX };
                self.map = Arc::clone(map);
                Ok(Report::Settled)
            }
        }
    }

    /// Commands that concern this shard alone, under provisional numbers.
    fn round(
        &mut self,
        at: ReadPoint,
        commands: &[(u32, StoredCommand)],
        progress: &mut Progress,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<Report, Pause> {
        assert!(self.pending.is_none(), "a round follows the settling of the one before");
        while let Some((index, command)) = commands.get(progress.done) {
            let at = ReadPoint { revision: at.revision + i64::from(*index), ..at };
            let changes = progress.changes.get_or_insert_with(|| Changes::new(at.revision + 1));
            changes.begin(at.revision + 1);
            let command = command.decode();
            if let Command::LeaseGrant { id, ttl } = command {
                // One that exists is refused by the coordinator, and stays as it is.
                if self.leases.get(id).is_none() {
                    self.leases.note(id, Some(Lease::granted(ttl)));
                }
                progress.done += 1;
                continue;
            }
            let result = self.command(at, &command, progress, shared, budget)?;
            let changes = progress.changes.as_mut().expect("made above");
            if result.is_err() {
                changes.take_back();
            }
            let changed = changes.of_command();
            progress.results.push(CommandResult { changes: changed, result });
            progress.done += 1;
            (progress.path, progress.run, progress.gathered) = (None, None, Gathered::default());
        }
        let changes = self.keep_pending(progress.changes.take());
        Ok(Report::Round { results: std::mem::take(&mut progress.results), changes })
    }

    fn command(
        &self,
        at: ReadPoint,
        command: &Command<'_>,
        progress: &mut Progress,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<Result<Evaluation, MvccError>, Pause> {
        let path = match (&progress.path, command) {
            (Some(path), _) => Arc::clone(path),
            (None, Command::Txn(txn)) => {
                let mut probes = Vec::new();
                ops::probes(txn, &mut probes);
                let Progress { gathered, changes, compare, .. } = progress;
                self.probe(at, &probes, gathered, changes.as_ref(), compare, shared, budget)?;
                let path = match ops::decide(txn, gathered, at.revision, at.compacted) {
                    Ok(path) => path,
                    Err(error) => return Ok(Err(error)),
                };
                Arc::clone(progress.path.insert(path))
            }
            (None, _) => Arc::default(),
        };
        let scope = Scope { layers: self.layers(at, shared), pages: shared.pages, part: None, base: at.revision };
        let leaves = ops::leaves(command, &path);
        let run = progress.run.get_or_insert_default();
        let changes = progress.changes.as_mut().expect("a round has a change list");
        let done = run.step(&leaves, &scope, changes, budget)?;
        Ok(done.map(|()| Evaluation { path, parts: run.take_parts() }).map_err(|(_, error)| error))
    }

    /// This shard's part of all compares and preconditions of a transaction.
    fn gather(
        &self,
        at: ReadPoint,
        command: &StoredCommand,
        progress: &mut Progress,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        let command = command.decode();
        let Command::Txn(txn) = &command else { unreachable!("only a transaction has something to gather") };
        let mut probes = Vec::new();
        ops::probes(txn, &mut probes);
        let Progress { gathered, compare, .. } = progress;
        self.probe(at, &probes, gathered, None, compare, shared, budget)
    }

    #[expect(clippy::too_many_arguments, reason = "what is read, what is asked, and how far it has come")]
    fn probe(
        &self,
        at: ReadPoint,
        probes: &[Probe<'_>],
        gathered: &mut Gathered,
        changes: Option<&Changes<'static>>,
        walk: &mut Option<CompareWalk>,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        let view = View { layers: self.layers(at, shared), changes, pages: shared.pages };
        while let Some(probe) = probes.get(gathered.compares.len() + gathered.puts.len()) {
            match probe {
                Probe::Compare(compare) => {
                    let mut seen = Compared::NOTHING;
                    if let Some((key, range_end)) = self.map.part(self.id, compare.key, compare.range_end) {
                        let walk = walk.get_or_insert_with(CompareWalk::new);
                        walk.step(&view, compare, KeyRange::new(key, range_end), at.revision, budget)?;
                        seen = walk.seen;
                    }
                    *walk = None;
                    gathered.compares.push(seen);
                }
                Probe::Put(put) => {
                    let is_own = self.map.owner(put.key) == self.id;
                    let checked = if is_own { check_put(&view, put)? } else { Ok(()) };
                    gathered.puts.push(checked.err());
                }
            }
            budget.charge(price::ENTRY)?;
        }
        Ok(())
    }

    /// This shard's part of every op of a command that others have parts of, too.
    #[expect(clippy::too_many_arguments, reason = "a task's fields, and how far it has come")]
    fn run(
        &mut self,
        job: u64,
        at: ReadPoint,
        command: &StoredCommand,
        path: &[bool],
        progress: &mut Progress,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<Report, Pause> {
        let scope = Scope {
            layers: self.layers(at, shared),
            pages: shared.pages,
            part: Some((&self.map, self.id)),
            base: at.revision,
        };
        let command = command.decode();
        let leaves = ops::leaves(&command, path);
        let changes = progress.changes.get_or_insert_with(|| Changes::new(at.revision + 1));
        let run = progress.run.get_or_insert_default();
        let result = run.step(&leaves, &scope, changes, budget)?.map(|()| run.take_parts());
        if result.is_err() {
            changes.take_back();
        }
        let changes = progress.changes.take();
        // A reader's run may come between a writer's and its settling.
        let changes = if job == WRITER { self.keep_pending(changes) } else { Arc::new(no_changes()) };
        Ok(Report::Ran { job, result, changes })
    }

    /// Deletes keys whose lease ends.
    fn revoke(
        &mut self,
        at: ReadPoint,
        lease: i64,
        keys: &[Vec<u8>],
        progress: &mut Progress,
        shared: Shared<'_>,
        budget: &mut Budget,
    ) -> Result<Report, Pause> {
        let view = View { layers: self.layers(at, shared), changes: None, pages: shared.pages };
        let changes = progress.changes.get_or_insert_with(|| Changes::new(at.revision + 1));
        while let Some(key) = keys.get(changes.of_command() as usize) {
            let entry = view
                .entry(key)?
                .filter(|entry| entry.lease == lease)
                .expect("an attached key is alive and names its lease");
            changes.push(Change::delete(Cow::Owned(key.clone()), changes.next_at(), &entry, at.floor));
            budget.charge(price::SEEK + price::CHANGE)?;
        }
        let deleted = changes.of_command();
        let changes = progress.changes.take();
        let changes = self.keep_pending(changes);
        Ok(Report::Ran { job: WRITER, result: Ok(vec![Part::Delete { deleted, prev: Vec::new() }]), changes })
    }

    fn keep_pending(&mut self, changes: Option<Changes<'static>>) -> ChangeList {
        assert!(self.pending.is_none(), "one evaluation waits to be settled");
        let changes = Arc::new(changes.unwrap_or_else(no_changes));
        self.pending = Some(Arc::clone(&changes));
        changes
    }

    /// Installs what was evaluated last.
    fn settle(&mut self, numbering: &Numbering, done: &mut usize, budget: &mut Budget) -> Result<Report, Pause> {
        let changes = self.pending.take().expect("something was evaluated");
        while let Some(change) = changes.change(*done) {
            let entry = change.entry.renumbered(&|row| numbering.row(row), &|revision| numbering.revision(revision));
            self.fresh.put(&change.key, entry, change.was_live);
            *done += 1;
            if !budget.spend(price::CHANGE) && *done < changes.len() {
                self.pending = Some(changes);
                return Err(Pause::Budget);
            }
        }
        self.newest = Revision { main: numbering.newest(), sub: u32::MAX };
        Ok(Report::Settled)
    }

    fn freeze(&mut self) -> FrozenPart {
        assert!(self.frozen.is_none() && self.pending.is_none(), "one checkpoint at a time, between batches");
        let overlay = Arc::new(std::mem::take(&mut self.fresh));
        self.frozen = Some(Arc::clone(&overlay));
        let (from, to) = self.map.bounds(self.id);
        FrozenPart { shard: self.id, overlay, from: from.to_vec(), to: to.map(<[u8]>::to_vec) }
    }

    fn survey(
        &self,
        from: &[u8],
        to: &[u8],
        stride: u32,
        progress: &mut Progress,
        budget: &mut Budget,
    ) -> Result<Report, Pause> {
        let mut cursor = self.fresh.seek(progress.from.as_deref().unwrap_or(from));
        while let Some((key, _, after)) = self.fresh.next(cursor).filter(|(key, ..)| *key < to) {
            cursor = after;
            progress.done += 1;
            if progress.done.is_multiple_of(stride as usize) && key > from {
                progress.keys.push(key.to_vec());
            }
            if !budget.spend(price::ENTRY) {
                progress.from = Some(key_after(key));
                return Err(Pause::Budget);
            }
        }
        Ok(Report::Surveyed(std::mem::take(&mut progress.keys)))
    }

    fn hand_over(&self, from: &[u8], to: &[u8], progress: &mut Progress, budget: &mut Budget) -> Result<Report, Pause> {
        assert!(self.frozen.is_none(), "ownership stays between freeze and publication");
        let mut cursor = self.fresh.seek(progress.from.as_deref().unwrap_or(from));
        while let Some((key, entry, after)) = self.fresh.next(cursor).filter(|(key, ..)| *key < to) {
            cursor = after;
            let live_below = i64::from(!entry.is_tombstone()) - self.fresh.live_delta(KeyRange::Single(key)) == 1;
            progress.entries.push(HandedOver { key: key.to_vec(), entry: entry.clone(), live_below });
            if !budget.spend(price::CHANGE) {
                progress.from = Some(key_after(key));
                return Err(Pause::Budget);
            }
        }
        Ok(Report::HandedOver(std::mem::take(&mut progress.entries)))
    }

    fn adopt(&mut self, entries: &mut Vec<HandedOver>, budget: &mut Budget) -> Result<(), Pause> {
        while let Some(HandedOver { key, entry, live_below }) = entries.pop() {
            // A key that was here before still is, as it was then.
            if entry.is_erased() || self.fresh.get(&key).is_none_or(|held| held.row < entry.row) {
                self.fresh.put(&key, entry, live_below);
            }
            if !budget.spend(price::CHANGE) && !entries.is_empty() {
                return Err(Pause::Budget);
            }
        }
        Ok(())
    }

    fn layers<'s>(&'s self, at: ReadPoint, shared: Shared<'s>) -> Layers<'s, T> {
        Layers {
            tree: &self.tree,
            frozen: self.frozen.as_deref(),
            fresh: &self.fresh,
            rows: shared.rows,
            newest: self.newest,
            leases: Some(&self.leases),
            state: KeyspaceState { revision: at.revision, compacted: at.compacted, digest: 0 },
            floor: at.floor,
        }
    }
}

fn no_changes() -> Changes<'static> {
    Changes::new(1)
}
