//! The write-ahead form of commands: what an entry's payload says.
//!
//! Owns: the syntax tree of a KV request (shared by the server's conversion, the argument checks of `mvcc::check` and
//! apply) and its binary form in the log. Does not know: protobuf, raft, or what a command does.
//!
//! Payload of an entry of type Commands, little-endian:
//! ```text
//! header   0 format u8 = 1   1 member u64   9 boot u64   17 first sequence u64   25 count u32      (29 bytes)
//! command  0 len u32 (kind and body)   4 kind u8   5 body
//! ```
//! Command i of the entry has sequence `first sequence + i`; (member, boot, sequence) names it for the member that
//! answers its client. Bodies: integers little-endian, byte strings `len u32` + bytes, lists `count u32` + items.
//!
//! Invariants
//! - I1: decoding never panics, allocates at most in proportion to its input, and nests at most [`TXN_DEPTH_MAX`].
//! - I2: an unknown format, kind, flag or enum value, a short body and trailing bytes are errors: every member must
//!   read an entry alike or not at all.
//! - I3: `decode(encode(c)) == c` for every command that passed `mvcc::check` (round trip and byte fuzz in
//!   `codec_test`).

mod decode;
mod encode;

pub use decode::{Entry, decode_command};
pub use encode::{append_command, append_encoded, begin_entry, command_len, encode_command};

/// Deepest nesting of transactions; the outermost has depth 1.
pub const TXN_DEPTH_MAX: usize = 128;

/// Bytes of the entry header.
pub const ENTRY_HEADER_BYTES: usize = 29;

/// One client operation as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// KV.Put.
    Put(Put<'a>),
    /// KV.DeleteRange.
    DeleteRange(DeleteRange<'a>),
    /// KV.Txn.
    Txn(Txn<'a>),
    /// KV.Compact.
    Compact {
        /// The revision that becomes the compacted one.
        revision: i64,
    },
    /// Maintenance.Alarm ACTIVATE.
    AlarmActivate(Alarm),
    /// Maintenance.Alarm DEACTIVATE.
    AlarmDeactivate(Alarm),
    /// A member announces its name and client URLs.
    PublishMember(PublishMember<'a>),
    /// Lease.LeaseGrant, its ID chosen and its TTL clamped.
    LeaseGrant {
        /// The lease; never 0.
        id: i64,
        /// Seconds to live; at least 1.
        ttl: i64,
    },
    /// Lease.LeaseRevoke.
    LeaseRevoke {
        /// The lease.
        id: i64,
    },
    /// A leader saw a lease expire: it ends like a revoked one, unless another leader decides on leases by now.
    LeaseExpire {
        /// The lease.
        id: i64,
        /// The leader's term: in an entry of another term the command changes nothing.
        term: u64,
    },
    /// A leader notes how much of a lease is left, for the next one.
    LeaseCheckpoint {
        /// The lease.
        id: i64,
        /// Seconds left; 0: renewed, the note is void.
        remaining: i64,
    },
}

/// A put request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put<'a> {
    /// The key; never empty once checked.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The lease to attach to; 0 detaches.
    pub lease: i64,
    /// Answer with the previous key-value.
    pub prev_kv: bool,
    /// Keep the current value.
    pub ignore_value: bool,
    /// Keep the current lease.
    pub ignore_lease: bool,
}

/// A delete request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteRange<'a> {
    /// First key.
    pub key: &'a [u8],
    /// End, etcd's convention (see `mvcc::KeyRange`).
    pub range_end: &'a [u8],
    /// Answer with the previous key-values.
    pub prev_kv: bool,
}

/// A range request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeQuery<'a> {
    /// First key.
    pub key: &'a [u8],
    /// End, etcd's convention (see `mvcc::KeyRange`).
    pub range_end: &'a [u8],
    /// At most so many rows; <= 0 means all.
    pub limit: i64,
    /// Read at this revision; <= 0 means the newest.
    pub revision: i64,
    /// Sort order.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
    /// Answered from local state without a quorum. Not part of the log form.
    pub serializable: bool,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Inclusive bound of the modification revision; 0 is off.
    pub min_mod_revision: i64,
    /// Inclusive bound of the modification revision; 0 is off.
    pub max_mod_revision: i64,
    /// Inclusive bound of the creation revision; 0 is off.
    pub min_create_revision: i64,
    /// Inclusive bound of the creation revision; 0 is off.
    pub max_create_revision: i64,
}

/// RangeRequest.SortOrder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// Unsorted (by key in fact).
    #[default]
    None,
    /// Ascending.
    Ascend,
    /// Descending.
    Descend,
    /// A number that etcd's enum does not have; rejected by the argument check.
    Unknown,
}

/// RangeRequest.SortTarget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// By key.
    #[default]
    Key,
    /// By version.
    Version,
    /// By creation revision.
    Create,
    /// By modification revision.
    Mod,
    /// By value.
    Value,
    /// A number that etcd's enum does not have; rejected by the argument check.
    Unknown,
}

/// A transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn<'a> {
    /// All must hold for the success branch.
    pub compares: Vec<Compare<'a>>,
    /// Run if all compares hold.
    pub success: Vec<Op<'a>>,
    /// Run otherwise.
    pub failure: Vec<Op<'a>>,
}

impl Txn<'_> {
    /// Whether it holds nothing but ranges: then it needs no log. A nested transaction counts as a write, as in etcd.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| matches!(op, Op::Range(_)))
    }

    /// Whether every range in it is serializable: then a read-only one needs no quorum (nor does one without ops).
    #[must_use]
    pub fn is_serializable(&self) -> bool {
        let serializable = |op: &Op<'_>| matches!(op, Op::Range(query) if query.serializable);
        self.success.iter().chain(&self.failure).all(serializable)
    }

    /// Whether a put stands in either branch, at any depth.
    #[must_use]
    pub fn has_put(&self) -> bool {
        self.success.iter().chain(&self.failure).any(|op| match op {
            Op::Put(_) => true,
            Op::Txn(nested) => nested.has_put(),
            Op::Range(_) | Op::DeleteRange(_) | Op::Unset => false,
        })
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// A range.
    Range(RangeQuery<'a>),
    /// A put.
    Put(Put<'a>),
    /// A delete.
    DeleteRange(DeleteRange<'a>),
    /// A nested transaction.
    Txn(Txn<'a>),
    /// No member of the oneof was set; rejected by the argument check.
    Unset,
}

/// One comparison of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare<'a> {
    /// First key.
    pub key: &'a [u8],
    /// End, etcd's convention (see `mvcc::KeyRange`).
    pub range_end: &'a [u8],
    /// The relation asked for.
    pub result: CompareResult,
    /// The field compared and its reference value.
    pub target: CompareTarget<'a>,
}

/// Compare.CompareResult.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareResult {
    /// Field equals the reference.
    Equal,
    /// Field is greater.
    Greater,
    /// Field is less.
    Less,
    /// Field differs.
    NotEqual,
    /// A number that etcd's enum does not have: holds, as in etcd.
    Unknown,
}

/// Compare.CompareTarget with the reference value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareTarget<'a> {
    /// Version.
    Version(i64),
    /// Creation revision.
    Create(i64),
    /// Modification revision.
    Mod(i64),
    /// Value.
    Value(&'a [u8]),
    /// Lease.
    Lease(i64),
    /// A number that etcd's enum does not have: compares as equal, as in etcd.
    Unknown,
}

/// An alarm of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member.
    pub member: u64,
    /// etcd's AlarmType number: 1 NOSPACE, 2 CORRUPT.
    pub alarm: u32,
}

/// A member's name and client URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishMember<'a> {
    /// The member.
    pub member: u64,
    /// Its name.
    pub name: &'a [u8],
    /// Its client URLs.
    pub client_urls: Vec<&'a [u8]>,
}

/// What the header of an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// The member whose clients sent the commands.
    pub member: u64,
    /// Its boot number then.
    pub boot: u64,
    /// The sequence of the first command.
    pub first_sequence: u64,
    /// How many commands follow.
    pub count: u32,
}

/// Why a payload was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The payload or a body ends early.
    Truncated,
    /// Bytes remain after the last command or field.
    TrailingBytes,
    /// The header's format is not ours.
    UnknownFormat(u8),
    /// A command or op kind is unknown.
    UnknownKind(u8),
    /// A flag or enum value is unknown.
    UnknownValue(u8),
    /// Transactions nest deeper than [`TXN_DEPTH_MAX`].
    TooDeep,
}

const FORMAT: u8 = 1;
const COUNT_OFFSET: usize = 25;

const KIND_PUT: u8 = 1;
const KIND_DELETE_RANGE: u8 = 2;
const KIND_TXN: u8 = 3;
const KIND_COMPACT: u8 = 4;
const KIND_ALARM_ACTIVATE: u8 = 5;
const KIND_ALARM_DEACTIVATE: u8 = 6;
const KIND_PUBLISH_MEMBER: u8 = 7;
/// Only inside a transaction: a range is no command.
const KIND_RANGE: u8 = 8;
const KIND_LEASE_GRANT: u8 = 9;
const KIND_LEASE_REVOKE: u8 = 10;
const KIND_LEASE_EXPIRE: u8 = 11;
const KIND_LEASE_CHECKPOINT: u8 = 12;

#[cfg(test)]
mod codec_test;
