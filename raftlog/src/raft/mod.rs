//! The raft step machine of one member, and its log.
//!
//! Owns: role, term, vote, commit, and the order in which effects leave. Does not know: files, clocks, what a payload
//! means, how members find each other.
//!
//! Invariants
//! - I1: an effect leaves only when its `after` is met; a poisoned machine yields nothing.
//! - I2: no record is written before the boot number and the present term are durable in both hard-state copies.
//! - I3: a vote, own or given, counts or leaves only after it is durable.
//! - I4: commit grows, stays within the log, and a leader counts only entries of its own term, on a quorum of disks.
//! - I5: committed entries are never truncated; `applied <= commit <= last`.
//! - I6: at most one leader a term: a leader never accepts entries of its own term from another.
//! - I7: nothing is written after the stop record.
//!
//! A single voter takes the same path as many: it asks itself, votes durably, appends a no-op, commits by a quorum of
//! one disk. Scenarios: testdata/*.txt. Crash images: tests/crash_images.rs.

mod election;
mod log;
pub mod message;
mod progress;
mod random;
mod read_index;
mod replicate;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use log::Log;
pub use message::{Message, MessageBody};
use progress::Progress;
use random::Random;
use read_index::ReadQueue;

use crate::entry::{Entry, EntryType, LogPosition};
use crate::ids::{BootNumber, Durability, Generation, Identity, Index, Lsn, MemberId, SegmentSequence, Term};
use crate::options::Options;
use crate::wal::batch::{Wal, WalStart, plan_batch};
use crate::wal::frame::RecordType;
use crate::wal::hard_state::{HardState, HardStateWriter};
use crate::wal::{AppendWrite, LiveSegment, PrepareSegment, Recovered};

/// What a member is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would win.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Orders the log.
    Leader,
}

/// What a [`Raft`] starts from.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Who this is; equal to the recovered hard state's identity if there is one.
    pub identity: Identity,
    /// All voters, this member included.
    pub voters: Vec<MemberId>,
    /// Payload of entry 1, identical on all members; used only if the log is empty.
    pub configuration: Vec<u8>,
    /// The applied index of the checkpoint in use, the one recovery was asked for.
    pub applied: Index,
    /// What the media hold.
    pub recovered: Recovered,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// The present time, in nanoseconds.
    pub now: u64,
}

/// What the shell must do. The contract stands in the crate's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RaftEffect {
    /// Write one copy of the hard state.
    WriteHardState {
        /// Names the completion, with `copy`.
        generation: Generation,
        /// 0 or 1.
        copy: u8,
        /// 4096 bytes for offset 0.
        bytes: Vec<u8>,
    },
    /// Make a segment file ready.
    PrepareSegment(PrepareSegment),
    /// Write one batch.
    Append(AppendWrite),
    /// Entries up to here may be applied.
    Commit {
        /// The commit index; grows from effect to effect.
        up_to: Index,
        /// What the commit rests on at this member.
        after: Durability,
    },
    /// A read may be answered once `index` is applied.
    ReadReady {
        /// The reader's own number.
        context: u64,
        /// The index that must be applied.
        index: Index,
        /// What the answer rests on at this member.
        after: Durability,
    },
    /// Leadership was lost before the read was confirmed.
    ReadAborted {
        /// The reader's own number.
        context: u64,
    },
    /// A message to a peer.
    Send {
        /// The message.
        message: Message,
        /// What it rests on at this member.
        after: Durability,
    },
    /// Role, term or known leader changed.
    RoleChanged {
        /// What this member is.
        role: Role,
        /// Its term.
        term: Term,
        /// The leader of the term, if known.
        leader: Option<MemberId>,
    },
}

/// Why a proposal was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposeError {
    /// Ask the leader, if one is known.
    NotLeader {
        /// The leader.
        leader: Option<MemberId>,
    },
    /// The payload exceeds `entry_bytes_max`.
    TooLarge,
    /// `log_bytes_max` of entries wait to be applied.
    Full,
    /// A write failed or the log is stopping.
    Stopped,
}

/// Why a read was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadError {
    /// Ask the leader, if one is known.
    NotLeader {
        /// The leader.
        leader: Option<MemberId>,
    },
    /// `reads_pending_max` reads wait.
    Full,
    /// A write failed.
    Stopped,
}

/// One member's raft and log.
#[derive(Debug)]
pub struct Raft {
    options: Options,
    id: MemberId,
    voters: Vec<MemberId>,
    role: Role,
    term: Term,
    vote: Option<MemberId>,
    leader: Option<MemberId>,
    log: Log,
    commit: Index,
    applied: Index,
    hard_state: HardStateWriter,
    wal: Wal,
    effects: VecDeque<RaftEffect>,
    announced_role: (Role, Term, Option<MemberId>),
    announced_commit: Index,
    /// Votes received in this candidacy.
    votes: BTreeMap<MemberId, bool>,
    /// Candidate: vote requests left, the own vote counts. Only after the vote is durable (I3).
    has_requested_votes: bool,
    /// Replies that rest on the hard state.
    deferred: Vec<Message>,
    /// Leader: what is known of the others.
    peers: BTreeMap<MemberId, Progress>,
    /// Leader: index of the no-op that began the term.
    term_start: Index,
    reads: ReadQueue,
    /// Follower: highest index known to equal the leader's log, and what was acknowledged of it.
    verified: Index,
    acknowledged: Index,
    acknowledgement_due: bool,
    leader_heard: u64,
    random: Random,
    now: u64,
    election_deadline: u64,
    heartbeat_deadline: u64,
    quiet_deadline: Option<u64>,
    is_mark_due: bool,
    is_stopping: bool,
    is_stop_issued: bool,
    is_poisoned: bool,
}

impl Raft {
    /// Starts a member; a single voter campaigns at once.
    ///
    /// # Panics
    /// If the options fail [`Options::check`], the voters do not include this member, or `recovered` belongs to another
    /// identity or another `applied`: the shell has checked all of it.
    #[must_use]
    pub fn boot(options: Options, boot: Boot) -> Self {
        assert_eq!(options.check(), Ok(()), "the options were checked");
        let Boot { identity, mut voters, configuration, applied, recovered, seed, now } = boot;
        voters.sort_unstable();
        voters.dedup();
        assert!(voters.contains(&identity.member_id), "a member boots as a voter");
        assert_eq!(recovered.base.index, applied, "recovery was asked for what follows the checkpoint");
        let last = recovered.last();
        let hard_state = next_boot(recovered.hard_state, identity, last);
        let start = WalStart {
            identity,
            boot_number: hard_state.boot_number,
            last_lsn: recovered.last_lsn,
            local_digest: recovered.local_digest,
            last_index: last.index,
            layout: recovered.layout,
        };
        let mut log = Log::new(recovered.base, recovered.entries);
        if last.index == Index::ZERO {
            let payload = Arc::new(configuration);
            log.push(Entry::new(last.digest, Index(1), Term(1), EntryType::Configuration, payload));
        }
        let commit = hard_state.commit.max(applied);
        let mut raft = Self {
            id: identity.member_id,
            voters,
            role: Role::Follower,
            term: hard_state.term,
            vote: hard_state.vote,
            leader: None,
            log,
            commit,
            applied,
            hard_state: HardStateWriter::new(hard_state, recovered.first_copy),
            wal: Wal::new(&options, start),
            effects: VecDeque::new(),
            announced_role: (Role::Follower, Term::ZERO, None),
            announced_commit: applied,
            votes: BTreeMap::new(),
            has_requested_votes: false,
            deferred: Vec::new(),
            peers: BTreeMap::new(),
            term_start: Index::ZERO,
            reads: ReadQueue::default(),
            verified: commit,
            acknowledged: Index::ZERO,
            acknowledgement_due: false,
            leader_heard: 0,
            random: Random::new(seed),
            now,
            election_deadline: now,
            heartbeat_deadline: now,
            quiet_deadline: None,
            is_mark_due: false,
            is_stopping: false,
            is_stop_issued: false,
            is_poisoned: false,
            options,
        };
        raft.reset_election_timer();
        if raft.is_single() {
            raft.campaign();
        }
        raft
    }

    /// The next effect, or `None` until something is handed in.
    pub fn poll_effect(&mut self) -> Option<RaftEffect> {
        if self.is_poisoned {
            return None;
        }
        if self.effects.is_empty() {
            self.produce_effects();
        }
        self.effects.pop_front()
    }

    /// When `handle_tick` is due, in nanoseconds; ask after draining the effects.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        if self.is_poisoned {
            return None;
        }
        let raft = match self.role {
            _ if self.is_stopping => None,
            Role::Leader if self.is_single() => None,
            Role::Leader => Some(self.heartbeat_deadline.min(self.election_deadline)),
            Role::PreCandidate | Role::Candidate if self.is_single() => None,
            _ => Some(self.election_deadline),
        };
        [raft, self.quiet_deadline].into_iter().flatten().min()
    }

    /// Time has come to `now`.
    pub fn handle_tick(&mut self, now: u64) {
        self.advance_time(now);
        if self.quiet_deadline.is_some_and(|deadline| deadline <= self.now) {
            self.quiet_deadline = None;
            self.is_mark_due = true;
        }
        if self.is_poisoned || self.is_stopping {
            return;
        }
        if self.role == Role::Leader {
            self.lead_on();
        } else if self.election_deadline <= self.now {
            self.campaign();
        }
    }

    fn advance_time(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// A batch is durable.
    pub fn handle_append_complete(&mut self, lsn: Lsn, now: u64) {
        self.advance_time(now);
        if self.is_poisoned {
            return;
        }
        self.wal.handle_complete(lsn);
        if self.role == Role::Leader {
            self.advance_commit();
        }
        if self.wal.is_idle() && !self.wal.is_marked() {
            self.quiet_deadline = Some(self.now.saturating_add(self.options.quiet_delay));
        }
    }

    /// A hard-state copy is durable.
    pub fn handle_hard_state_complete(&mut self, generation: Generation, copy: u8, now: u64) {
        self.advance_time(now);
        if !self.is_poisoned {
            self.hard_state.handle_complete(generation, copy);
        }
    }

    /// A segment is ready.
    pub fn handle_segment_prepared(&mut self, sequence: SegmentSequence, now: u64) {
        self.advance_time(now);
        if !self.is_poisoned {
            self.wal.handle_prepared(sequence);
        }
    }

    /// A write failed or was short: nothing is acknowledged from here on.
    pub fn handle_write_failed(&mut self) {
        self.is_poisoned = true;
        self.effects.clear();
    }

    /// Appends an entry of client commands; returns its index.
    ///
    /// # Errors
    /// See [`ProposeError`]; nothing was taken.
    pub fn propose(&mut self, payload: Arc<Vec<u8>>) -> Result<Index, ProposeError> {
        if self.is_poisoned || self.is_stopping {
            return Err(ProposeError::Stopped);
        }
        if self.role != Role::Leader {
            return Err(ProposeError::NotLeader { leader: self.leader });
        }
        if payload.len() > self.options.entry_bytes_max {
            return Err(ProposeError::TooLarge);
        }
        if self.log.bytes() >= self.options.log_bytes_max {
            return Err(ProposeError::Full);
        }
        Ok(self.append_own(EntryType::Commands, payload))
    }

    fn append_own(&mut self, entry_type: EntryType, payload: Arc<Vec<u8>>) -> Index {
        assert_eq!(self.role, Role::Leader, "only a leader orders the log");
        let last = self.log.last();
        let index = last.index.next();
        self.log.push(Entry::new(last.digest, index, self.term, entry_type, payload));
        index
    }

    /// True if this is the leader and an entry proposed now would be written without waiting.
    #[must_use]
    pub fn wants_entry(&self) -> bool {
        self.role == Role::Leader
            && !self.is_poisoned
            && !self.is_stopping
            && self.hard_state.is_settled()
            && !self.log.has_unplanned()
            && self.wal.can_append()
            && self.log.bytes() < self.options.log_bytes_max
    }

    /// Asks for a linearizable read; `ReadReady` or `ReadAborted` answers with the same context.
    ///
    /// # Errors
    /// See [`ReadError`]; no effect will follow.
    pub fn read_index(&mut self, context: u64) -> Result<(), ReadError> {
        if self.is_poisoned || self.is_stop_issued {
            return Err(ReadError::Stopped);
        }
        if self.role != Role::Leader {
            return Err(ReadError::NotLeader { leader: self.leader });
        }
        if self.reads.pending() >= self.options.reads_pending_max {
            return Err(ReadError::Full);
        }
        self.reads.push(context);
        Ok(())
    }

    /// Entries up to `index` are applied and may leave memory.
    ///
    /// # Panics
    /// If `index` was never committed, or goes back.
    pub fn handle_applied(&mut self, index: Index) {
        assert!(index >= self.applied && index <= self.announced_commit, "I5: what is applied was committed");
        self.applied = index;
        // A leader keeps a share for peers that lag; without peers nothing is kept.
        let keep = if self.peers.is_empty() { 0 } else { self.options.log_bytes_max / 4 };
        self.log.release(index, keep);
    }

    /// Entries below `retain_from` are covered by every retained checkpoint: their segments may be recycled.
    ///
    /// # Panics
    /// If it reaches beyond what is applied: a checkpoint holds applied entries only.
    pub fn handle_checkpoint(&mut self, retain_from: Index) {
        assert!(retain_from <= self.applied.next(), "a checkpoint holds applied entries only");
        assert!(retain_from.previous() <= self.wal.durable_index(), "a checkpoint needs its log durable here");
        self.wal.free_below(retain_from);
    }

    /// Graceful stop: nothing more is proposed; a last record is written behind what is in flight.
    pub fn handle_stop(&mut self, now: u64) {
        self.advance_time(now);
        self.is_stopping = true;
    }

    /// True once `handle_stop` was given and its last record is durable.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_stop_issued && self.wal.is_idle()
    }

    /// True after `handle_write_failed`.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }

    /// An entry still in memory.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.log.entry(index)
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The leader of this term, if known.
    #[must_use]
    pub fn leader(&self) -> Option<MemberId> {
        self.leader
    }

    /// The commit index.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The end of the log.
    #[must_use]
    pub fn last(&self) -> LogPosition {
        self.log.last()
    }

    /// What is durable.
    #[must_use]
    pub fn durability(&self) -> Durability {
        Durability { lsn: self.wal.durable_lsn(), generation: self.hard_state.durable_generation() }
    }

    /// Highest index durable at this member.
    #[must_use]
    pub fn durable_index(&self) -> Index {
        self.wal.durable_index()
    }

    /// This start's number.
    #[must_use]
    pub fn boot_number(&self) -> BootNumber {
        self.hard_state.boot_number()
    }

    /// Bytes of segment files that hold log not yet freed by a checkpoint.
    #[must_use]
    pub fn log_file_bytes(&self) -> u64 {
        self.wal.live_bytes()
    }

    /// Room that was given up in segments which end above an index and hold applied entries alone: every start that
    /// follows a kill goes on in a fresh segment.
    #[must_use]
    pub fn log_unused_bytes(&self, above: Index) -> u64 {
        self.wal.unused_bytes(above, self.applied)
    }

    /// The segments in use by sequence, each up to its last durable byte: what a scrubber may read.
    #[must_use]
    pub fn durable_segments(&self) -> Vec<LiveSegment> {
        self.wal.durable_segments()
    }

    /// Bytes of entries in memory, committed or not.
    #[must_use]
    pub fn log_memory_bytes(&self) -> usize {
        self.log.bytes()
    }

    fn is_single(&self) -> bool {
        self.voters.len() == 1
    }

    fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// What an effect that speaks of `index` rests on here: the own disk only where the own vote was needed for it.
    fn rests_on(&self, index: Index) -> Durability {
        let own = index <= self.wal.durable_index();
        let lsn = if own { self.wal.durable_lsn() } else { Lsn::ZERO };
        Durability { lsn, generation: self.hard_state.durable_generation() }
    }

    /// Everything that can leave now, disk first. Each part leaves nothing behind that it could do at once.
    fn produce_effects(&mut self) {
        assert!(self.applied <= self.commit && self.commit <= self.log.last().index, "I5");
        self.produce_hard_state();
        if self.hard_state.is_settled() {
            self.settle_votes();
            self.produce_segment();
            self.produce_appends();
            self.produce_mark();
            self.produce_deferred();
            self.produce_acknowledgement();
            self.produce_replication();
            self.produce_reads();
        }
        self.produce_role();
        self.produce_commit();
    }

    fn produce_hard_state(&mut self) {
        let commit = self.commit.min(self.wal.durable_index());
        self.hard_state.set(self.term, self.vote, commit);
        if let Some(write) = self.hard_state.poll() {
            let (generation, copy, bytes) = (write.generation, write.copy, write.bytes);
            self.effects.push_back(RaftEffect::WriteHardState { generation, copy, bytes });
        }
    }

    fn produce_segment(&mut self) {
        let after = Durability { lsn: Lsn::ZERO, generation: self.hard_state.durable_generation() };
        if let Some(prepare) = self.wal.poll_prepare(after) {
            self.effects.push_back(RaftEffect::PrepareSegment(prepare));
        }
    }

    /// Forms batches while the queue depth allows (I2 holds: the hard state is settled).
    fn produce_appends(&mut self) {
        let after = Durability { lsn: Lsn::ZERO, generation: self.hard_state.durable_generation() };
        assert!(after.generation > Generation::ZERO, "I2");
        while self.log.has_unplanned() && self.wal.has_depth() {
            assert!(!self.is_stop_issued, "I7");
            let (previous, entries) = self.log.unplanned();
            let batch = plan_batch(entries, self.options.batch_bytes_max);
            let last = batch.last().expect("a batch of what is unplanned is not empty").index;
            let commit = self.commit;
            let Some(append) = self.wal.append(previous, &batch, commit, after) else { break };
            self.log.mark_planned(last);
            self.quiet_deadline = None;
            self.is_mark_due = false;
            self.effects.push_back(RaftEffect::Append(append));
        }
        // A segment was opened: ask for the one after it.
        self.produce_segment();
    }

    /// Writes the watermark of a quiet log, or the stop record.
    fn produce_mark(&mut self) {
        if !self.wal.is_idle() || self.log.has_unplanned() || self.is_stop_issued {
            return;
        }
        let record_type = match (self.is_stopping, self.is_mark_due && !self.wal.is_marked()) {
            (true, _) => RecordType::Stop,
            (false, true) => RecordType::Watermark,
            (false, false) => return,
        };
        let after = Durability { lsn: Lsn::ZERO, generation: self.hard_state.durable_generation() };
        let end = (self.log.last(), self.term);
        let Some(append) = self.wal.append_mark(record_type, end, self.commit, after) else { return };
        self.is_mark_due = false;
        self.is_stop_issued = record_type == RecordType::Stop;
        self.effects.push_back(RaftEffect::Append(append));
        self.produce_segment();
    }

    fn produce_deferred(&mut self) {
        let after = Durability { lsn: Lsn::ZERO, generation: self.hard_state.durable_generation() };
        for message in self.deferred.drain(..) {
            if message.term == self.term {
                self.effects.push_back(RaftEffect::Send { message, after });
            }
        }
    }

    fn produce_reads(&mut self) {
        if self.role != Role::Leader || self.commit < self.term_start {
            return;
        }
        while let Some(round) = self.reads.form_round(self.commit) {
            self.broadcast_heartbeat(round);
            self.confirm_reads();
        }
    }

    fn produce_role(&mut self) {
        let state = (self.role, self.term, self.leader);
        if self.announced_role != state {
            self.announced_role = state;
            let (role, term, leader) = state;
            self.effects.push_back(RaftEffect::RoleChanged { role, term, leader });
        }
    }

    fn produce_commit(&mut self) {
        if self.commit > self.announced_commit {
            self.announced_commit = self.commit;
            let after = self.rests_on(self.commit);
            self.effects.push_back(RaftEffect::Commit { up_to: self.commit, after });
        }
    }

    fn send(&mut self, to: MemberId, term: Term, body: MessageBody) {
        let message = Message { from: self.id, to, term, body };
        let after = Durability { lsn: Lsn::ZERO, generation: self.hard_state.durable_generation() };
        self.effects.push_back(RaftEffect::Send { message, after });
    }

    fn others(&self) -> Vec<MemberId> {
        self.voters.iter().copied().filter(|voter| *voter != self.id).collect()
    }
}

/// The hard state this start begins with: the recovered one under the next boot number.
fn next_boot(recovered: Option<HardState>, identity: Identity, last: LogPosition) -> HardState {
    let mut state = recovered.unwrap_or(HardState {
        generation: Generation::ZERO,
        identity,
        term: Term::ZERO,
        vote: None,
        commit: Index::ZERO,
        boot_number: BootNumber::ZERO,
    });
    assert_eq!(state.identity, identity, "the data directory belongs to this member");
    assert!(state.term >= last.term && state.commit <= last.index, "recovery made them agree");
    state.boot_number = state.boot_number.next();
    // The initial configuration has term 1.
    state.term = state.term.max(Term(1));
    state
}
