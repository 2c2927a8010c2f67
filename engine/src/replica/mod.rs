//! One member's replica: raft and log, state, store, composed.
//!
//! Owns: the order between them: batches are proposed when the log can take them, committed entries are applied,
//! checkpoints are taken between entries and free the log. Does not know: files, sockets, clocks, who waits.
//!
//! A turn of the shell: hand in completions and input ([`Replica::submit`], [`Replica::read_index`], `handle_*`), then
//! [`Replica::propose_batch`], then [`Replica::poll_effect`] until `None`, then [`Replica::apply_step`] while the
//! budget lasts, answering as it goes.
//!
//! Invariants
//! - I1: an outcome is yielded only for a command whose entry is committed, hence durable on a quorum.
//! - I2: a command's sequence in this boot grows by one from command to command, in log order.
//! - I3: the log is kept from the older retained checkpoint.
//! - I4: while the state is lent to shards, what would change it waits: completed store effects, new ones, reclaim.

pub mod apply;
mod batch;
mod reclaim;
#[cfg(test)]
mod reclaim_tests;
mod scrub;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;

use trilith_raftlog::wal::frame::record_bytes;
use trilith_raftlog::{
    AppendWrite, Boot, BootNumber, Generation, Identity, Index, LogPosition, Lsn, MemberId, PrepareSegment, Raft,
    RaftEffect, ReadError, Recovered, Role, SegmentSequence, Term,
};

use crate::budget::{Budget, Pause};
use crate::command::Command;
use crate::lease::Leases;
use crate::mvcc::Keyspace;
use crate::page_source::{Block, PageSource};
use crate::shard::{ShardJob, ShardOptions};
use crate::snapshot::{SnapshotLimits, SnapshotStep, SnapshotStream};
use crate::store::overlay::Overlay;
use crate::store::row_log::RowLog;
use crate::store::{CheckpointRequest, Store, StoreEffect, Tree, TreeId};
use crate::tables::Tables;
use apply::{ApplyStep, CommandId, State};
use batch::Batches;
use reclaim::Reclaim;

/// Key of the small tables in their tree.
pub const TABLES_KEY: &[u8] = b"state";

/// When a checkpoint starts, and what may wait.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaOptions {
    /// Raft's and the log's own limits.
    pub log: trilith_raftlog::Options,
    /// A checkpoint starts at this much overlay, in bytes; at twice as much, proposals wait for it.
    pub checkpoint_overlay_bytes: u64,
    /// A checkpoint starts at so many changed keys.
    pub checkpoint_changes: usize,
    /// A checkpoint starts at this much log above the one before, in bytes of file, with what kills left unused.
    pub checkpoint_log_bytes: u64,
    /// Commands waiting for a place in the log, in bytes; beyond it the answer is "too many requests".
    pub pending_bytes_max: usize,
    /// How commands are shared between cores.
    pub shards: ShardOptions,
}

/// What a replica starts from.
#[derive(Debug)]
pub struct ReplicaBoot {
    /// Who this is.
    pub identity: Identity,
    /// All voters, this member included.
    pub voters: Vec<MemberId>,
    /// The initial members, identical everywhere.
    pub configuration: Tables,
    /// The log above the checkpoint in use.
    pub recovered: Recovered,
    /// The store at that checkpoint.
    pub store: Store,
    /// Its keyspace.
    pub keyspace: Keyspace<Tree>,
    /// Its small tables.
    pub tables: Tables,
    /// Its place in the log.
    pub position: LogPosition,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// The present time, nanoseconds.
    pub now: u64,
}

/// What the shell must carry out.
#[derive(Debug)]
pub enum Effect {
    /// See [`RaftEffect::WriteHardState`].
    WriteHardState {
        /// Names the completion, with `copy`.
        generation: Generation,
        /// 0 or 1.
        copy: u8,
        /// 4096 bytes for offset 0.
        bytes: Vec<u8>,
    },
    /// See [`RaftEffect::PrepareSegment`].
    PrepareSegment(PrepareSegment),
    /// See [`RaftEffect::Append`].
    Append(AppendWrite),
    /// See [`StoreEffect`].
    Store(StoreEffect),
    /// Role, term or known leader changed.
    RoleChanged {
        /// What this member is.
        role: Role,
        /// Its term.
        term: Term,
        /// The leader of the term, if known.
        leader: Option<MemberId>,
    },
    /// A checkpoint became durable.
    Checkpointed {
        /// Its number.
        sequence: u64,
        /// The last raft index it includes.
        index: Index,
    },
}

/// Raft's answer to a read round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAnswer {
    /// The round's number.
    pub context: u64,
    /// What must be applied before it is answered; `None`: leadership was lost.
    pub index: Option<Index>,
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// Too much waits for a place in the log.
    Overloaded,
    /// It exceeds the longest entry.
    TooLarge,
    /// This member does not lead.
    NotLeader,
    /// The replica is stopping, or a write failed.
    Stopped,
}

/// One member's replica.
#[derive(Debug)]
pub struct Replica {
    options: ReplicaOptions,
    member: MemberId,
    raft: Raft,
    state: State<Tree>,
    store: Store,
    batches: Batches,
    next_sequence: u64,
    commit: Index,
    reads: VecDeque<ReadAnswer>,
    effects: VecDeque<Effect>,
    position: LogPosition,
    /// Bytes of log applied since the newest checkpoint began. Not the length of the live log: that includes what the
    /// older checkpoint needs, and would call for the next one as soon as this one ends.
    log_bytes_since_checkpoint: u64,
    /// Where the newest checkpoint began.
    checkpoint_index: Index,
    reclaim: Reclaim,
    /// Store effects that ended while the state was lent.
    stored: Vec<u64>,
    stopping: bool,
}

impl Replica {
    /// Starts a replica from what recovery found.
    #[must_use]
    pub fn boot(options: ReplicaOptions, boot: ReplicaBoot) -> Self {
        let applied = boot.position.index;
        let mut raft = Raft::boot(
            options.log,
            Boot {
                identity: boot.identity,
                voters: boot.voters,
                configuration: boot.configuration.encode(),
                applied,
                recovered: boot.recovered,
                seed: boot.seed,
                now: boot.now,
            },
        );
        if boot.store.superblock().is_some() {
            // What was freed before the last process ended still holds its records.
            raft.handle_checkpoint(boot.store.retain_from().next());
        }
        let member = boot.identity.member_id;
        Self {
            options,
            member,
            batches: Batches::new(member, raft.boot_number(), options.log.entry_bytes_max),
            raft,
            reclaim: Reclaim::default(),
            state: State::new(boot.keyspace, boot.tables, applied, options.shards),
            store: boot.store,
            next_sequence: 1,
            commit: applied,
            reads: VecDeque::new(),
            effects: VecDeque::new(),
            position: boot.position,
            log_bytes_since_checkpoint: 0,
            checkpoint_index: applied,
            stored: Vec::new(),
            stopping: false,
        }
    }

    /// Takes a command into the batch under construction; returns its sequence (I2).
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was taken.
    pub fn submit(&mut self, command: &Command<'_>) -> Result<u64, SubmitError> {
        self.check_submission()?;
        let sequence = self.next_sequence;
        self.batches.append(command, sequence).map_err(|_| SubmitError::TooLarge)?;
        self.next_sequence += 1;
        Ok(sequence)
    }

    /// Takes a command in the form that [`crate::command::encode_command`] gave it: another core did that work.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was taken.
    pub fn submit_encoded(&mut self, encoded: &[u8]) -> Result<u64, SubmitError> {
        self.check_submission()?;
        let sequence = self.next_sequence;
        self.batches.append_encoded(encoded, sequence).map_err(|_| SubmitError::TooLarge)?;
        self.next_sequence += 1;
        Ok(sequence)
    }

    #[inline]
    fn check_submission(&self) -> Result<(), SubmitError> {
        if self.stopping || self.raft.is_poisoned() {
            return Err(SubmitError::Stopped);
        }
        if self.raft.role() != Role::Leader {
            return Err(SubmitError::NotLeader);
        }
        if self.batches.bytes() > self.options.pending_bytes_max {
            return Err(SubmitError::Overloaded);
        }
        Ok(())
    }

    /// Proposes what was gathered, as far as the log can take it without waiting. Once a turn, after the input.
    pub fn propose_batch(&mut self) {
        while self.raft.wants_entry() && !self.is_behind() {
            let Some(payload) = self.batches.take() else { return };
            // `wants_entry` promised a place and `Batches` keeps entries within their limit.
            self.raft.propose(Arc::new(payload)).expect("a leader that wants an entry takes one");
        }
    }

    /// Whether the overlay has outgrown the running checkpoint so far that writes must wait for it.
    fn is_behind(&self) -> bool {
        self.store.is_checkpointing()
            && self.state.keyspace.overlay().bytes() >= 2 * self.options.checkpoint_overlay_bytes
    }

    /// Asks for a linearizable read; [`Self::poll_read`] answers with the same context.
    ///
    /// # Errors
    /// This member cannot confirm reads; no answer will follow.
    pub fn read_index(&mut self, context: u64) -> Result<(), ReadError> {
        self.raft.read_index(context)
    }

    /// The next answer to a read round.
    pub fn poll_read(&mut self) -> Option<ReadAnswer> {
        self.reads.pop_front()
    }

    /// The next thing to carry out, or `None` until something is handed in or stepped.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            let Some(effect) = self.raft.poll_effect() else { break };
            match effect {
                RaftEffect::WriteHardState { generation, copy, bytes } => {
                    return Some(Effect::WriteHardState { generation, copy, bytes });
                }
                RaftEffect::PrepareSegment(prepare) => return Some(Effect::PrepareSegment(prepare)),
                RaftEffect::Append(append) => return Some(Effect::Append(append)),
                RaftEffect::Commit { up_to, .. } => {
                    assert!(up_to >= self.commit, "the commit index never goes back");
                    self.commit = up_to;
                }
                RaftEffect::ReadReady { context, index, .. } => {
                    self.reads.push_back(ReadAnswer { context, index: Some(index) });
                }
                RaftEffect::ReadAborted { context } => {
                    self.reads.push_back(ReadAnswer { context, index: None });
                }
                RaftEffect::Send { .. } => unreachable!("a cluster of one has no peers"),
                RaftEffect::RoleChanged { role, term, leader } => {
                    return Some(Effect::RoleChanged { role, term, leader });
                }
            }
        }
        if self.state.is_lent() {
            return None;
        }
        self.store.poll_effect(self.state.keyspace.rows_mut()).map(Effect::Store)
    }

    /// Applies the next committed command, or a part of a large one, or says why not. A checkpoint that is due begins
    /// at the end of an entry, not when the shell looks: under load that would be in mid-entry almost always.
    pub fn apply_step(&mut self, budget: &mut Budget, pages: &dyn PageSource) -> ApplyStep {
        if self.state.is_between_entries() {
            if self.state.applied() >= self.commit {
                return ApplyStep::Idle;
            }
            let index = self.state.applied().next();
            let entry = self.raft.entry(index).expect("a committed entry stays in memory until it is applied");
            self.position = entry.position();
            self.log_bytes_since_checkpoint += record_bytes(entry.payload.len());
            self.state.begin_entry(entry);
        }
        let step = self.state.apply_next(budget, pages);
        if let ApplyStep::EntryDone(index) = step {
            self.raft.handle_applied(index);
            if self.is_checkpoint_due() {
                self.begin_checkpoint();
            }
        }
        self.take_stored();
        step
    }

    /// The next job of a round of shards, for the core that serves its shard; see [`ShardJob`]. After
    /// [`Self::apply_step`].
    pub fn poll_job(&mut self) -> Option<ShardJob<Tree>> {
        self.state.poll_job()
    }

    /// Takes a job back, done or not: [`Self::apply_step`] does the rest.
    pub fn handle_job(&mut self, job: ShardJob<Tree>) {
        self.state.handle_job(job);
        self.take_stored();
    }

    /// Rounds of shards so far.
    #[must_use]
    pub fn shard_rounds(&self) -> u64 {
        self.state.shard_rounds()
    }

    /// Whether there is nothing to be done for the round under way: its jobs are elsewhere.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.state.is_waiting()
    }

    /// Whether jobs are not done: what they read must stay where it is.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.state.is_lent()
    }

    fn is_checkpoint_due(&self) -> bool {
        if self.store.is_checkpointing() || self.stopping {
            return false;
        }
        let overlay = self.state.keyspace.overlay();
        overlay.bytes() >= self.options.checkpoint_overlay_bytes
            || overlay.len() >= self.options.checkpoint_changes
            || self.log_bytes_since_checkpoint + self.raft.log_unused_bytes(self.checkpoint_index)
                >= self.options.checkpoint_log_bytes
            || self.reclaim.wants_checkpoint()
    }

    fn begin_checkpoint(&mut self) {
        assert_eq!(self.position.index, self.state.applied(), "a checkpoint is taken between entries");
        self.log_bytes_since_checkpoint = 0;
        self.checkpoint_index = self.position.index;
        self.reclaim.handle_begun();
        self.state.keyspace.freeze();
        let rows = self.state.keyspace.rows_mut().handle_checkpoint();
        self.store.begin_checkpoint(CheckpointRequest {
            position: self.position,
            keyspace: self.state.keyspace.state(),
            rows,
            leases: self.state.keyspace.frozen_leases(),
            tables: vec![(TABLES_KEY.to_vec(), Some(self.state.tables.encode()))],
        });
    }

    /// A store effect is done, whole.
    pub fn handle_store_complete(&mut self, token: u64) {
        self.stored.push(token);
        self.take_stored();
    }

    /// What the end of store effects changes, once the state is not lent.
    fn take_stored(&mut self) {
        if self.stored.is_empty() || self.state.is_lent() {
            return;
        }
        for token in std::mem::take(&mut self.stored) {
            self.store.handle_complete(token, self.state.keyspace.rows_mut());
            self.take_published();
        }
    }

    fn take_published(&mut self) {
        if let Some(published) = self.store.take_published() {
            self.state.keyspace.rows_mut().handle_published();
            // Freeing what was merged takes as long as many commands: it is done in slices.
            let merged = self.state.keyspace.install_trees(published.keys, published.leases);
            self.reclaim.handle_published(merged);
            self.raft.handle_checkpoint(published.retain_from.next());
            self.effects
                .push_back(Effect::Checkpointed { sequence: published.sequence, index: published.position.index });
        }
    }

    /// A batch is durable.
    pub fn handle_append_complete(&mut self, lsn: Lsn, now: u64) {
        self.raft.handle_append_complete(lsn, now);
    }

    /// A hard-state copy is durable.
    pub fn handle_hard_state_complete(&mut self, generation: Generation, copy: u8, now: u64) {
        self.raft.handle_hard_state_complete(generation, copy, now);
    }

    /// A segment is ready.
    pub fn handle_segment_prepared(&mut self, sequence: SegmentSequence, now: u64) {
        self.raft.handle_segment_prepared(sequence, now);
    }

    /// Any write or sync failed: nothing is acknowledged from here on.
    pub fn handle_write_failed(&mut self) {
        self.raft.handle_write_failed();
        self.store.handle_failed();
    }

    /// Time has come to `now`.
    pub fn handle_tick(&mut self, now: u64) {
        self.raft.handle_tick(now);
    }

    /// When `handle_tick` is due.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.raft.deadline()
    }

    /// Graceful stop: proposes what was taken and then nothing more.
    pub fn handle_stop(&mut self, now: u64) {
        self.stopping = true;
        self.raft.handle_stop(now);
    }

    /// Whether the last record of a graceful stop is durable.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.raft.is_stopped()
    }

    /// Whether commands wait for a place in the log.
    #[must_use]
    pub fn has_pending_commands(&self) -> bool {
        self.batches.bytes() > 0
    }

    /// Whether a command was submitted in this boot of this member.
    #[must_use]
    pub fn is_own(&self, id: CommandId) -> bool {
        id.member == self.member.0 && id.boot == self.boot_number().0
    }

    /// Keys and their history.
    #[must_use]
    pub fn keyspace(&self) -> &Keyspace<Tree> {
        &self.state.keyspace
    }

    /// Members and alarms.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.state.tables
    }

    /// The last index applied whole.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.state.applied()
    }

    /// The last index known committed.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.raft.role()
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.raft.term()
    }

    /// The term in which this member leads, once it has applied an entry of it: then it knows everything committed
    /// before.
    #[must_use]
    pub fn settled_term(&self) -> Option<Term> {
        let term = self.raft.term();
        (self.raft.role() == Role::Leader && self.position.term == term).then_some(term)
    }

    /// The leader of this term, if known.
    #[must_use]
    pub fn leader(&self) -> Option<MemberId> {
        self.raft.leader()
    }

    /// This start's number.
    #[must_use]
    pub fn boot_number(&self) -> BootNumber {
        self.raft.boot_number()
    }

    /// Memory of rows and changes: what stays of them in memory beside the pages of the store.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let keyspace = &self.state.keyspace;
        let frozen = keyspace.frozen().map_or(0, Overlay::bytes);
        keyspace.rows().resident_bytes() + keyspace.overlay().bytes() + frozen
    }

    /// A range of a store file has left memory: what was verified of it no longer is.
    pub fn handle_released(&mut self, range: Block) {
        self.store.handle_released(range);
        self.state.keyspace.rows().handle_released(range);
    }

    /// What etcd calls the database size: used store extents, pending rows and the overlay.
    #[must_use]
    pub fn store_bytes(&self) -> u64 {
        self.store.index_bytes() + self.state.keyspace.rows().used_bytes() + self.overlay_bytes()
    }

    /// What etcd calls the database size in use: dead rows, replaced pages and pages not yet reusable left out.
    #[must_use]
    pub fn store_bytes_in_use(&self) -> u64 {
        self.store.index_bytes_in_use() + self.state.keyspace.rows().live_bytes() + self.overlay_bytes()
    }

    fn overlay_bytes(&self) -> u64 {
        self.state.keyspace.overlay().bytes() + self.state.keyspace.frozen().map_or(0, Overlay::bytes)
    }

    /// Holds on to a revision that may be read now, as [`Keyspace::pin_at`].
    pub fn pin_at(&mut self, revision: i64) -> crate::mvcc::Pin {
        self.state.keyspace.pin_at(revision)
    }

    /// Gives a pin back.
    pub fn unpin(&mut self, pin: crate::mvcc::Pin) {
        self.state.keyspace.unpin(pin);
    }

    /// Begins a native snapshot of everything applied; `None` in the middle of an entry: to be asked again at its end.
    /// [`Self::end_snapshot`] must follow.
    pub fn begin_snapshot(&mut self, limits: SnapshotLimits, now: u64) -> Option<SnapshotStream> {
        if !self.state.is_between_entries() {
            return None;
        }
        let pin = self.state.keyspace.pin_at(self.state.keyspace.state().compacted);
        let (keyspace, tables, cluster_id) =
            (&self.state.keyspace, &self.state.tables, self.store.identity().cluster_id);
        Some(SnapshotStream::new(keyspace, tables, self.position, cluster_id.0, pin, limits, now))
    }

    /// Goes on with a snapshot.
    ///
    /// # Errors
    /// The budget is used up, or a page is needed first: call again.
    pub fn snapshot_step(
        &self,
        snapshot: &mut SnapshotStream,
        budget: &mut Budget,
        pages: &dyn PageSource,
        now: u64,
    ) -> Result<SnapshotStep, Pause> {
        snapshot.step(&self.state.keyspace, budget, pages, now)
    }

    /// Lets go of what a snapshot holds, wherever it stands.
    pub fn end_snapshot(&mut self, snapshot: SnapshotStream) {
        self.state.keyspace.unpin(snapshot.into_pin());
    }

    /// Whether [`Self::apply_step`] has something to do.
    #[must_use]
    pub fn has_committed(&self) -> bool {
        self.state.applied() < self.commit
    }
}

/// The state that a store's newest checkpoint holds; `None` if there is no checkpoint, or its tables are of no form
/// that this version knows. To be repeated while pages are missing: all that are known to be needed are asked for in
/// one call.
///
/// # Errors
/// A page is not usable: load it and call again, or refuse to start.
pub fn open_state(
    store: &Store,
    rows_options: crate::store::row_log::RowLogOptions,
    pages: &dyn PageSource,
) -> Result<Option<(Keyspace<Tree>, Tables, LogPosition)>, crate::page_source::Unavailable> {
    let Some(superblock) = store.superblock() else { return Ok(None) };
    let mut rows = RowLog::open(rows_options, superblock.rows, pages)?;
    if let Some(older) = store.older_rows() {
        rows.retain_older(older, pages)?;
    }
    let tree = store.tables();
    let Some(tables) = tree.get(TABLES_KEY, pages)? else { return Ok(None) };
    let Some(tables) = Tables::decode(tables) else { return Ok(None) };
    let leases = Leases::open(store.tree(TreeId::Leases), pages)?;
    let keyspace = Keyspace::new(store.keys(), rows, superblock.keyspace, superblock.position.index.0);
    let keyspace = keyspace.with_leases(leases);
    Ok(Some((keyspace, tables, superblock.position)))
}
