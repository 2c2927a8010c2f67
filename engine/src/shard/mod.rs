//! Shards: the commands of a batch evaluated beside each other, each range of keys by one of several owners.
//!
//! Owns: which commands of an entry are evaluated together, by whom, and how the outcome becomes that of one keyspace,
//! to the byte: answers, rows (and so events), revisions, digest. Does not know: cores, threads, raft, the wire, when a
//! batch or a checkpoint is due. `docs/adr/0009-lent-state.md` says why it is built this way.
//!
//! ```text
//! begin    commands that follow each other in an entry and name single keys -> one job for each shard that owns some
//!          of the keys; the state is lent: nothing of it changes until every job is back
//! job      a shard evaluates its commands in log order, reading the lent state and what its own commands before have
//!          changed, under provisional numbers: as if every command of the round changed something
//! install  in log order, where the state is: final numbers, rows, overlay; each command is published and answered as
//!          if it had been applied alone
//! ```
//!
//! Everything else (ranges of keys, leases that begin or end, compactions, alarms) is applied between rounds, to the
//! keyspace itself. So are batches that are too small to gain from other cores: a put at depth one never leaves its
//! own.
//!
//! A [`ShardJob`] owns what it holds or shares it immutably, so the mesh between cores carries it as it is. Whoever
//! holds one may step it or not: one that comes back before its end is finished at home.
//!
//! Invariants
//! - I1: what is answered, appended and published does not depend on the number of shards, on boundaries, on where jobs
//!   run, how far, or in which order they come back (test: `property_test`).
//! - I2: while a job is out, nothing writes to the state ([`Keyspace`](crate::mvcc::Keyspace) asserts it); readers of
//!   the published state are served meanwhile.
//! - I3: a round writes nothing: if the process ends in the middle of one, the entry is applied anew.

mod job;
mod load;
mod map;
mod numbering;
mod round;

pub use job::{JobStep, ShardJob};
pub use map::{SHARDS_MAX, ShardId, ShardMap};
pub use round::ShardOptions;
pub(crate) use round::{Begun, Installed, Shards};

#[cfg(test)]
mod generator;
#[cfg(test)]
mod property_test;
