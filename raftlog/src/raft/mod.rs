//! The raft step machine.

pub mod message;

use std::sync::Arc;

pub use message::{Message, MessageBody};

use crate::entry::{Entry, LogPosition};
use crate::ids::{BootNumber, Durability, Generation, Identity, Index, Lsn, MemberId, SegmentSequence, Term};
use crate::options::Options;
use crate::wal::{AppendWrite, PrepareSegment, Recovered};

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
pub struct Raft {}

impl Raft {
    /// Starts a member; a single voter campaigns at once.
    #[must_use]
    pub fn boot(_options: Options, _boot: Boot) -> Self {
        unimplemented!()
    }
    /// The next effect, or `None` until something is handed in.
    pub fn poll_effect(&mut self) -> Option<RaftEffect> {
        unimplemented!()
    }
    /// When `handle_tick` is due, in nanoseconds; ask after draining the effects.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        unimplemented!()
    }
    /// Time has come to `now`.
    pub fn handle_tick(&mut self, _now: u64) {
        unimplemented!()
    }
    /// A batch is durable.
    pub fn handle_append_complete(&mut self, _lsn: Lsn, _now: u64) {
        unimplemented!()
    }
    /// A hard-state copy is durable.
    pub fn handle_hard_state_complete(&mut self, _generation: Generation, _copy: u8, _now: u64) {
        unimplemented!()
    }
    /// A segment is ready.
    pub fn handle_segment_prepared(&mut self, _sequence: SegmentSequence, _now: u64) {
        unimplemented!()
    }
    /// A write failed or was short: nothing is acknowledged from here on.
    pub fn handle_write_failed(&mut self) {
        unimplemented!()
    }
    /// Appends an entry of client commands; returns its index.
    ///
    /// # Errors
    /// See [`ProposeError`]; nothing was taken.
    pub fn propose(&mut self, _payload: Arc<Vec<u8>>) -> Result<Index, ProposeError> {
        unimplemented!()
    }
    /// True if this is the leader and an entry proposed now would be written without waiting.
    #[must_use]
    pub fn wants_entry(&self) -> bool {
        unimplemented!()
    }
    /// Asks for a linearizable read; `ReadReady` or `ReadAborted` answers with the same context.
    ///
    /// # Errors
    /// See [`ReadError`]; no effect will follow.
    pub fn read_index(&mut self, _context: u64) -> Result<(), ReadError> {
        unimplemented!()
    }
    /// A message of a voter arrived.
    pub fn handle_message(&mut self, _message: Message, _now: u64) {
        unimplemented!()
    }
    /// Entries up to `index` are applied and may leave memory.
    pub fn handle_applied(&mut self, _index: Index) {
        unimplemented!()
    }
    /// Entries below `retain_from` are covered by every retained checkpoint: their segments may be recycled.
    pub fn handle_checkpoint(&mut self, _retain_from: Index) {
        unimplemented!()
    }
    /// Graceful stop: nothing more is proposed; a last record is written behind what is in flight.
    pub fn handle_stop(&mut self, _now: u64) {
        unimplemented!()
    }
    /// True once `handle_stop` was given and its last record is durable.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        unimplemented!()
    }
    /// True after `handle_write_failed`.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        unimplemented!()
    }
    /// An entry still in memory.
    #[must_use]
    pub fn entry(&self, _index: Index) -> Option<&Entry> {
        unimplemented!()
    }
    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        unimplemented!()
    }
    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        unimplemented!()
    }
    /// The leader of this term, if known.
    #[must_use]
    pub fn leader(&self) -> Option<MemberId> {
        unimplemented!()
    }
    /// The commit index.
    #[must_use]
    pub fn commit(&self) -> Index {
        unimplemented!()
    }
    /// The end of the log.
    #[must_use]
    pub fn last(&self) -> LogPosition {
        unimplemented!()
    }
    /// What is durable.
    #[must_use]
    pub fn durability(&self) -> Durability {
        unimplemented!()
    }
    /// This start's number.
    #[must_use]
    pub fn boot_number(&self) -> BootNumber {
        unimplemented!()
    }
    /// Bytes of segment files that hold log not yet freed by a checkpoint.
    #[must_use]
    pub fn log_file_bytes(&self) -> u64 {
        unimplemented!()
    }
}
