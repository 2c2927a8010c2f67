//! Raft and its write-ahead log as one deterministic step machine.
//!
//! Owns: terms, votes, commit, ReadIndex ([`raft`]); the bytes of the log, the group-commit plan, segments, hard state
//! and the recovery scan ([`wal`]). Does not know: files, sockets, clocks, threads, what a payload means.
//!
//! # The event loop
//! ```text
//! boot:  lock the files; sync every segment (a killed predecessor's write may sit in the disk's cache);
//!        recovered = recover(&mut media, &RecoverOptions { after, .. })?;    after = the checkpoint's applied index
//!        raft = Raft::boot(options, Boot { recovered, .. });
//! turn:  completions -> handle_*_complete, input -> propose / read_index / handle_message, time -> handle_tick(now);
//!        then drain poll_effect() until None; then sleep no longer than deadline().
//! ```
//! | effect | the shell does | and answers, once, with |
//! |---|---|---|
//! | [`RaftEffect::WriteHardState`] | writes `bytes` at offset 0 of the copy | [`handle_hard_state_complete`] |
//! | [`RaftEffect::PrepareSegment`] | see below | [`handle_segment_prepared`] |
//! | [`RaftEffect::Append`] | writes `bytes` at `offset` of the slot | [`handle_append_complete`], in any order |
//! | [`RaftEffect::Commit`] | applies [`Raft::entry`] up to that index, in its time | [`handle_applied`], cumulative |
//! | [`RaftEffect::ReadReady`] | answers the read after applying `index` | - |
//! | [`RaftEffect::ReadAborted`] | the read's outcome is an error | - |
//! | [`RaftEffect::Send`] | hands the message to the peer's connection or drops it | - |
//! | [`RaftEffect::RoleChanged`] | informs the proposer | - |
//!
//! Every write is durable when it is answered. Files are named by [`wal::hard_state_file_name`] and
//! [`wal::segment_file_name`]. To prepare a segment: if `create`, the
//! file is made (or made anew) with `file_bytes` zeros, pre-written and synced, with its directory; then, in any case,
//! `header` is written at offset 0, durably.
//!
//! Any of those writes that fails or is short: [`Raft::handle_write_failed`]. The machine is then poisoned: it yields
//! no
//! effect, acknowledges nothing, refuses everything; the process must stop. Nothing is retried.
//!
//! No effect is to be carried out before its turn: within one file, and between files, the shell may reorder freely.
//! What *it* saw complete starts as `Durability { lsn: recovered.last_lsn, generation: Generation::ZERO }`.
//! An effect is yielded only when its `after` is already met by the completions handed in. The shell asserts it
//! (`after.is_met_by(..)` over what *it* saw complete), and the simulator does; that is how an acknowledgement
//! ahead of durability is caught by somebody else than its author.
//!
//! [`handle_hard_state_complete`]: Raft::handle_hard_state_complete
//! [`handle_segment_prepared`]: Raft::handle_segment_prepared
//! [`handle_append_complete`]: Raft::handle_append_complete
//! [`handle_applied`]: Raft::handle_applied
//!
//! Proposals: [`Raft::wants_entry`] says that an append could be issued now; the caller collects commands until then
//! and
//! proposes one entry for all of them. Proposing more is allowed: queued entries share the next batch.
//!
//! # Not built
//! Membership change, learners, leadership transfer, snapshot transfer, catching up a peer from log that has left
//! memory, and repair of a peer's rotten log do not exist here yet: no message, no effect, no option pretends to them.
#![forbid(unsafe_code)]

pub mod entry;
pub mod ids;
pub mod options;
pub mod raft;
pub mod wal;

pub use entry::{Entry, EntryType, LogPosition};
pub use ids::{
    BootNumber, ClusterId, Digest, Durability, Generation, Identity, Incarnation, Index, Lsn, MemberId,
    SegmentSequence, Term,
};
pub use options::Options;
pub use raft::{Boot, Message, MessageBody, ProposeError, Raft, RaftEffect, ReadError, Role};
pub use wal::{
    AppendWrite, DroppedTail, HardState, LogMedia, MediaError, PrepareSegment, RecoverError, RecoverOptions, Recovered,
    SegmentFile, recover,
};
