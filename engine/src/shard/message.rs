//! What the coordinator and the shards say to each other.
//!
//! Owns: the messages. Does not know: who evaluates them, how they travel. They own all they hold or share it
//! immutably (`Arc`), so they may cross threads; to whoever carries them they are opaque.

use std::ops::Range;
use std::sync::Arc;

use crate::command::{Command, decode_command};
use crate::mvcc::MvccError;
use crate::mvcc::changes::Changes;
use crate::mvcc::compare::Compared;
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::numbering::Numbering;
use crate::store::key_entry::{KeyEntry, Revision};
use crate::store::overlay::Overlay;

/// A command where it stands: in the payload of its log entry, or in the bytes a reader made of its request.
#[derive(Clone, Debug)]
pub struct StoredCommand {
    payload: Arc<Vec<u8>>,
    at: Range<usize>,
}

impl StoredCommand {
    /// The command (kind and body) at `at` of a payload. It was decoded before: the payload holds what can be
    /// applied.
    #[must_use]
    pub fn new(payload: Arc<Vec<u8>>, at: Range<usize>) -> Self {
        Self { payload, at }
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.at.len()
    }

    pub(super) fn decode(&self) -> Command<'_> {
        decode_command(&self.payload[self.at.clone()]).expect("checked when the entry was handed in")
    }
}

/// For one shard.
#[derive(Debug)]
pub struct ShardTask<T>(pub(super) Task<T>);

/// From one shard.
#[derive(Debug)]
pub struct ShardReport(pub(super) Report);

/// The job of the one command of several shards that writes; readers' jobs have other numbers.
pub(super) const WRITER: u64 = 0;

/// What a shard is to do. Those to one shard are done in the order in which they were sent.
#[derive(Debug)]
pub(super) enum Task<T> {
    /// Evaluate commands that concern this shard alone, and take note of leases granted among them; answer with
    /// [`Report::Round`].
    Round { at: ReadPoint, commands: Vec<(u32, StoredCommand)> },
    /// Look at the compares and the preconditions of a transaction; answer with [`Report::Gathered`].
    Gather { job: u64, at: ReadPoint, command: StoredCommand },
    /// Evaluate this shard's part of every op of a command along a path; answer with [`Report::Ran`].
    Run { job: u64, at: ReadPoint, command: StoredCommand, path: Arc<[bool]> },
    /// Delete these keys, which are this shard's and attached to a lease that ends; answer with [`Report::Ran`].
    Revoke { at: ReadPoint, lease: i64, keys: Vec<Vec<u8>> },
    /// A lease is no more; answer with [`Report::Settled`].
    LeaseEnded(i64),
    /// Install the changes evaluated last under their final numbers; answer with [`Report::Settled`].
    Settle(Numbering),
    /// Forget the changes evaluated last; answer with [`Report::Settled`].
    Discard,
    /// The changes so far become the frozen ones; answer with [`Report::Frozen`].
    Freeze,
    /// This tree holds the frozen changes; answer with [`Report::Installed`].
    InstallTree(T),
    /// Name every so many-th changed key above the first and below the second; answer with [`Report::Surveyed`].
    Survey { from: Vec<u8>, to: Vec<u8>, stride: u32 },
    /// Copy the changes of these keys; answer with [`Report::HandedOver`]. They are the shard's own until a map
    /// without them arrives.
    HandOver { from: Vec<u8>, to: Vec<u8> },
    /// Take over changes, none above the revision, and then the map; answer with [`Report::Settled`].
    Adopt { entries: Vec<HandedOver>, revision: i64, map: Arc<ShardMap> },
}

/// The state that an evaluation sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadPoint {
    /// The newest revision.
    pub(super) revision: i64,
    /// The compacted revision.
    pub(super) compacted: i64,
    /// At or below it a chain of versions need not be kept.
    pub(super) floor: i64,
}

/// A change that goes from one shard to another.
#[derive(Debug)]
pub(super) struct HandedOver {
    pub(super) key: Vec<u8>,
    pub(super) entry: KeyEntry,
    /// Whether the layers below the changes hold the key alive.
    pub(super) live_below: bool,
}

/// What a shard has done.
#[derive(Debug)]
pub(super) enum Report {
    Round { results: Vec<CommandResult>, changes: ChangeList },
    Gathered { job: u64, gathered: Gathered },
    Ran { job: u64, result: PartResult, changes: ChangeList },
    Settled,
    Installed,
    Frozen(FrozenPart),
    Surveyed(Vec<Vec<u8>>),
    HandedOver(Vec<HandedOver>),
}

/// Changes with provisional numbers, in the order in which they were made.
pub(super) type ChangeList = Arc<Changes<'static>>;

/// One command of a round, evaluated.
#[derive(Debug)]
pub(super) struct CommandResult {
    /// How many keys it changed.
    pub(super) changes: u32,
    pub(super) result: Result<Evaluation, MvccError>,
}

/// The branches a command took and the answers of its ops, with provisional numbers.
#[derive(Debug)]
pub(super) struct Evaluation {
    pub(super) path: Arc<[bool]>,
    pub(super) parts: Vec<Part>,
}

/// The parts of ops, or the op that failed (counted in the order of execution) and why.
pub(super) type PartResult = Result<Vec<Part>, (usize, MvccError)>;

/// What a shard found of a transaction's compares and preconditions, both in the order of `ops::probes`.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathered {
    pub(super) compares: Vec<Compared>,
    pub(super) puts: Vec<Option<MvccError>>,
}

/// A shard's part of an op's answer.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Of a put.
    Put { prev: Option<Revision> },
    /// Of a delete.
    Delete { deleted: u32, prev: Vec<Revision> },
    /// Of a range; if others have parts too, neither sorted nor cut.
    Range { rows: Vec<Revision>, count: i64, more: bool },
}

impl Part {
    /// Keys changed.
    pub(super) fn changes(&self) -> u32 {
        match self {
            Self::Put { .. } => 1,
            Self::Delete { deleted, .. } => *deleted,
            Self::Range { .. } => 0,
        }
    }
}

/// The changes of one shard that a checkpoint merges.
#[derive(Clone, Debug)]
pub struct FrozenPart {
    /// Which one's.
    pub shard: ShardId,
    /// Holds them; beyond the bounds, keys that have moved to another shard since.
    pub overlay: Arc<Overlay>,
    /// The first key that counts.
    pub from: Vec<u8>,
    /// The first key beyond, unless this is the last shard.
    pub to: Option<Vec<u8>>,
}
