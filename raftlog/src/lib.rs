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
//! | `WriteHardState { generation, copy, bytes }` | writes 4096 bytes at offset 0 of [`wal::hard_state_file_name`], durably | `handle_hard_state_complete(generation, copy, now)` |
//! | `PrepareSegment(PrepareSegment { .. })` | if `create`: creates (or makes anew) the file of `bytes` zeros, pre-written and synced with its directory; then writes `header` at offset 0, durably | `handle_segment_prepared(sequence, now)` |
//! | `Append(AppendWrite { lsn, .. })` | writes `bytes` at `offset` of [`wal::segment_file_name`], durably | `handle_append_complete(lsn, now)`, in any order |
//! | `Commit { up_to, .. }` | applies [`Raft::entry`] up to that index, when it likes | `handle_applied(index)`, cumulative |
//! | `ReadReady { context, index, .. }` | answers the read after applying `index` | - |
//! | `ReadAborted { context }` | the read's outcome is an error | - |
//! | `Send(message)` | hands it to the peer's connection or drops it | - |
//! | `RoleChanged { .. }` | informs the proposer | - |
//!
//! Any of those writes that fails or is short: `handle_write_failed()`. The machine is then poisoned: it yields no effect,
//! acknowledges nothing, refuses everything; the process must stop. Nothing is retried.
//!
//! No effect is to be carried out before its turn: within one file, and between files, the shell may reorder freely.
//! What *it* saw complete starts as `Durability { lsn: recovered.last_lsn, generation: Generation::ZERO }`.
//! An effect is yielded only when its `after` is already met by the completions handed in. The shell asserts it
//! (`after.is_met_by(..)` over what *it* saw complete), and the simulator does; that is how an acknowledgement
//! ahead of durability is caught by somebody else than its author.
//!
//! Proposals: [`Raft::wants_entry`] says that an append could be issued now; the caller collects commands until then and
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
