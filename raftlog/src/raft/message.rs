//! What members say to each other.
//!
//! Owns: the closed set of raft messages as decoded values. Does not know: their bytes, connections, or identity checks
//! (cluster, incarnation and boot number are compared by the transport before a message gets here).

use crate::entry::{Entry, LogPosition};
use crate::ids::{Index, MemberId, Term};

/// One message between two voters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender.
    pub from: MemberId,
    /// The receiver.
    pub to: MemberId,
    /// The sender's term; in a `PreVote` and its granting reply, the term the candidate would have.
    pub term: Term,
    /// What is said.
    pub body: MessageBody,
}

/// The closed set of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageBody {
    /// Would you vote for me? Changes nobody's term.
    PreVote {
        /// Index of the candidate's last entry.
        last_index: Index,
        /// Term of the candidate's last entry.
        last_term: Term,
    },
    /// Answer to `PreVote`.
    PreVoteReply {
        /// The answer.
        granted: bool,
    },
    /// Vote for me.
    Vote {
        /// Index of the candidate's last entry.
        last_index: Index,
        /// Term of the candidate's last entry.
        last_term: Term,
    },
    /// Answer to `Vote`; sent after the vote is durable.
    VoteReply {
        /// The answer.
        granted: bool,
    },
    /// Entries that follow `previous`; none is a probe.
    Append {
        /// The position they follow.
        previous: LogPosition,
        /// Consecutive entries.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// Entries up to here are durable at the sender and equal to the leader's.
    AppendAccepted {
        /// Highest such index.
        match_index: Index,
    },
    /// `previous` is not in the sender's log.
    AppendRejected {
        /// The refused `previous.index`.
        previous_index: Index,
        /// The leader should probe at this index or below.
        hint_index: Index,
        /// Term of the sender's entry at `hint_index`.
        hint_term: Term,
    },
    /// I am the leader.
    Heartbeat {
        /// Commit index, never above what the receiver is known to hold.
        commit: Index,
        /// Number of the newest ReadIndex round sent.
        round: u64,
    },
    /// Answer to `Heartbeat`.
    HeartbeatReply {
        /// The round answered.
        round: u64,
    },
}
