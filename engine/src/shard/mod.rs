//! Shards: one keyspace whose changes are held and evaluated by several owners of keys.
//!
//! Owns: how a committed batch is evaluated by several shards with the outcome of one keyspace, to the byte:
//! responses, rows (and so events), revisions, digest. Does not know: cores, threads, raft, the wire, when a batch or
//! a checkpoint is due.
//!
//! A shard owns ranges of keys of the changes since the last checkpoint, in memory, and nothing on disk: there is one
//! key index and one row log. The coordinator stands where the batch comes from and the row log is written.
//!
//! ```text
//! round     commands that concern one shard each -> each shard evaluates its own in log order, numbering as if every
//!           command changed something -> change counts -> prefix sums give revisions -> rows appended -> `Settle`
//! two rounds for a command of several shards, alone: `Gather` compares and preconditions of all levels on the state
//!           before it -> path -> `Run` each shard its part of all ops -> prefix sums over (op, shard) give subs
//! publish   when everybody has settled: one revision, one applied index, and the answers leave
//! ```
//!
//! What a command names decides whether it may share a round: a revision that commands before it in the round may
//! take (to compare with, to read at, to filter by) is undecided, so such a command begins the next round, where it
//! is known. A revision at or below the round's base, or above all that the round can reach, compares alike with
//! provisional numbers. A compaction and the end of a lease stand between rounds; a lease that begins is noted by all
//! shards at its place in the round.
//!
//! Carrying messages. [`ShardTask`] and [`ShardReport`] own what they hold or share it immutably, so the mesh between
//! cores carries them as they are, one batch for each destination and turn: the coordinator's core drains
//! [`Coordinator::poll_task`] into them, a shard's core hands each to [`Shard::handle_task`], steps, and sends what
//! [`Shard::poll_report`] yields back. The one thing the mesh must keep is the order between two ends. The row log is
//! read by all and written by the coordinator between their steps ([`Shared`]); across cores its sealed blocks are
//! shared as they are and the open block's rows have to travel with `Settle`.
//!
//! With one shard none of this runs: a server with one shard applies to [`Keyspace`](crate::mvcc::Keyspace), whose
//! evaluation (`mvcc::view`, `mvcc::range_walk`, ...) is the same code over the same kind of layers.
//!
//! Invariants
//! - I1: what is answered, appended and published does not depend on the number of shards, on boundaries and their
//!   moves, or on the order in which messages of different shards travel (test: `property_test`).
//! - I2: ownership changes between batches, never between the freeze and the installation of a checkpoint.
//! - I3: a reader sees the published revision at which it began, whatever is installed meanwhile.

mod answer;
mod append;
mod balance;
mod coordinator;
mod evaluation;
mod load;
mod map;
mod merge;
mod message;
mod numbering;
mod ops;
mod reader;
mod revoke;
mod round;
mod spanning;
mod worker;

pub use answer::{Answer, Answered};
pub use coordinator::{Coordinator, CoordinatorStep, ShardOptions};
pub use map::{SHARDS_MAX, ShardId, ShardMap, ShardSet};
pub use message::{FrozenPart, ShardReport, ShardTask, StoredCommand};
pub use worker::{Shard, ShardStep, Shared};

#[cfg(test)]
mod generator;
#[cfg(test)]
mod property_test;
