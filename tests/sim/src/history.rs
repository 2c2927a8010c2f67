//! Requests and responses as the clients saw them.
//!
//! Owns: the operations of the workload and what an answer says. Does not know: their bytes ([`crate::codec`]), whether
//! an answer is right ([`crate::checker`]).

use std::fmt;

use crate::model::{KeyRange, KeyValue};

/// How a compare relates what is stored to what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Stored equals named.
    Equal,
    /// Stored is greater.
    Greater,
    /// Stored is less.
    Less,
    /// They differ.
    NotEqual,
    /// A number that no relation has: always true.
    Unknown,
}

/// What a compare looks at, and what it is compared with.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// The version; 0 for a missing key.
    Version(i64),
    /// The version, but the message names another kind of number: compared with 0.
    VersionMismatched,
    /// The creation revision; 0 for a missing key.
    Create(i64),
    /// The revision of the last change; 0 for a missing key.
    Mod(i64),
    /// The lease; 0 for none.
    Lease(i64),
    /// The value; false for a missing key.
    Value(Vec<u8>),
    /// The value, but the message names a number: compared with nothing.
    ValueMismatched,
    /// A number that no target has: compares as equal.
    Unknown,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version}"),
            Self::VersionMismatched => write!(f, "version, mismatched"),
            Self::Create(revision) => write!(f, "create {revision}"),
            Self::Mod(revision) => write!(f, "mod {revision}"),
            Self::Lease(lease) => write!(f, "lease {lease}"),
            Self::Value(value) => write!(f, "value {}", value[..value.len().min(11)].escape_ascii()),
            Self::ValueMismatched => write!(f, "value, mismatched"),
            Self::Unknown => write!(f, "unknown"),
        }
    }
}

/// A condition of a transaction; it must hold for every key in the range.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say what they are")]
pub struct Compare {
    pub range: KeyRange,
    pub relation: Relation,
    pub target: Target,
}

/// Order of a read's pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say what they are")]
pub enum SortOrder {
    #[default]
    None,
    Ascend,
    Descend,
    Unknown,
}

/// What a read's pairs are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say what they are")]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
    Unknown,
}

/// A read; `revision` 0 is the newest, `limit` 0 none, a bound of 0 none.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct Range {
    pub range: KeyRange,
    pub limit: i64,
    pub revision: i64,
    pub order: SortOrder,
    pub target: SortTarget,
    pub serializable: bool,
    pub keys_only: bool,
    pub count_only: bool,
    pub min_mod: i64,
    pub max_mod: i64,
    pub min_create: i64,
    pub max_create: i64,
}

impl Range {
    /// A linearizable read of whole pairs.
    #[must_use]
    pub fn whole(range: KeyRange, revision: i64) -> Self {
        Self {
            range,
            limit: 0,
            revision,
            order: SortOrder::None,
            target: SortTarget::Key,
            serializable: false,
            keys_only: false,
            count_only: false,
            min_mod: 0,
            max_mod: 0,
            min_create: 0,
            max_create: 0,
        }
    }

    /// Whether any bound is set.
    #[must_use]
    pub fn has_filters(&self) -> bool {
        [self.min_mod, self.max_mod, self.min_create, self.max_create] != [0; 4]
    }
}

/// A put.
#[derive(Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct Put {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub lease: i64,
    pub prev_kv: bool,
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

impl Put {
    /// Whether it keeps something of the pair before, which must then be there.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.ignore_value || self.ignore_lease
    }
}

/// A delete.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct Delete {
    pub range: KeyRange,
    pub prev_kv: bool,
}

/// If all `compares` hold, `success`, else `failure`.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Request>,
    pub failure: Vec<Request>,
}

impl Txn {
    /// The operations of one branch.
    #[must_use]
    pub fn branch(&self, succeeded: bool) -> &[Request] {
        if succeeded { &self.success } else { &self.failure }
    }

    /// The operations of both branches.
    pub fn operations(&self) -> impl Iterator<Item = &Request> {
        self.success.iter().chain(&self.failure)
    }
}

/// Kinds of alarms, by their number in the API.
pub const NOSPACE: i32 = 1;
/// See [`NOSPACE`].
pub const CORRUPT: i32 = 2;

/// What a client asks of an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmAction {
    /// List them.
    Get,
    /// Raise one.
    Activate,
    /// Clear one.
    Deactivate,
}

/// What a client asked.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Request {
    /// KV.Put. Values are unique in a run, so that nearly every version names the request that made it.
    Put(Put),
    /// KV.DeleteRange.
    Delete(Delete),
    /// KV.Range.
    Range(Range),
    /// KV.Txn, or one nested in another.
    Txn(Txn),
    /// An operation of a transaction that says nothing.
    Unset,
    /// KV.Compact: forget what is older than `revision`.
    Compact { revision: i64, physical: bool },
    /// Maintenance.Alarm about one kind; of the member that answers, whose number the client knows.
    Alarm { action: AlarmAction, member: u64, kind: i32 },
    /// Maintenance.Status.
    Status,
    /// Maintenance.HashKV.
    HashKv { revision: i64 },
    /// Maintenance.Hash.
    Hash,
    /// Maintenance.Defragment.
    Defragment,
    /// Cluster.MemberList.
    MemberList { linearizable: bool },
    /// Lease.LeaseGrant; of id 0 the server chooses one.
    LeaseGrant { id: i64, ttl: i64 },
    /// Lease.LeaseRevoke.
    LeaseRevoke { id: i64 },
    /// One request of Lease.LeaseKeepAlive, on a stream of its own or on one with others.
    LeaseKeepAlive { id: i64, is_alone: bool },
    /// Lease.LeaseTimeToLive.
    LeaseTimeToLive { id: i64, keys: bool },
    /// Lease.LeaseLeases.
    LeaseLeases,
}

impl fmt::Debug for Request {
    /// Short enough for a report: values by their beginning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(put) => {
                let beginning = put.value[..put.value.len().min(11)].escape_ascii();
                write!(f, "put {} = {beginning} ({} bytes", put.key.escape_ascii(), put.value.len())?;
                for (set, name) in
                    [(put.prev_kv, "prev_kv"), (put.ignore_value, "ignore_value"), (put.ignore_lease, "ignore_lease")]
                {
                    if set {
                        write!(f, ", {name}")?;
                    }
                }
                if put.lease != 0 { write!(f, ", lease {})", put.lease) } else { write!(f, ")") }
            }
            Self::Delete(delete) => write!(f, "delete {:?} (prev_kv {})", delete.range, delete.prev_kv),
            Self::Range(range) => {
                write!(f, "read {:?} at {} (limit {}", range.range, range.revision, range.limit)?;
                for (set, name) in [
                    (range.serializable, "serializable"),
                    (range.keys_only, "keys_only"),
                    (range.count_only, "count_only"),
                ] {
                    if set {
                        write!(f, ", {name}")?;
                    }
                }
                if range.has_filters() {
                    write!(f, ", mod {}..={}", range.min_mod, range.max_mod)?;
                    write!(f, ", create {}..={}", range.min_create, range.max_create)?;
                }
                write!(f, ", {:?} by {:?})", range.order, range.target)
            }
            Self::Txn(Txn { compares, success, failure }) => {
                write!(f, "txn if {compares:?} then {success:?} else {failure:?}")
            }
            Self::Unset => write!(f, "unset"),
            Self::Compact { revision, physical } => write!(f, "compact {revision} (physical {physical})"),
            Self::Alarm { action, member, kind } => write!(f, "alarm {action:?} {kind} of {member:x}"),
            Self::Status => write!(f, "status"),
            Self::HashKv { revision } => write!(f, "hash of keys at {revision}"),
            Self::Hash => write!(f, "hash"),
            Self::Defragment => write!(f, "defragment"),
            Self::MemberList { linearizable } => write!(f, "members (linearizable {linearizable})"),
            Self::LeaseGrant { id, ttl } => write!(f, "grant lease {id} for {ttl} s"),
            Self::LeaseRevoke { id } => write!(f, "revoke lease {id}"),
            Self::LeaseKeepAlive { id, is_alone } => write!(f, "keep lease {id} alive (alone {is_alone})"),
            Self::LeaseTimeToLive { id, keys } => write!(f, "time to live of lease {id} (keys {keys})"),
            Self::LeaseLeases => write!(f, "leases"),
        }
    }
}

impl Request {
    /// Whether it may change the store.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self {
            Self::Put(_) | Self::Delete(_) => true,
            Self::Txn(txn) => txn.operations().any(Self::is_write),
            _ => false,
        }
    }

    /// Whether it changes what is replicated, which the corruption alarm forbids.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.is_write() || matches!(self, Self::Compact { .. } | Self::LeaseGrant { .. } | Self::LeaseRevoke { .. })
    }

    /// The lease that its puts name, in either branch; a request of the workload names one at most.
    #[must_use]
    pub fn lease_named(&self) -> Option<i64> {
        match self {
            Self::Put(put) => Some(put.lease).filter(|lease| *lease != 0),
            Self::Txn(txn) => txn.operations().find_map(Self::lease_named),
            _ => None,
        }
    }

    /// Whether the answered request attached a key to a lease.
    #[must_use]
    pub fn has_attached(&self, answer: &Answer) -> bool {
        match self {
            Self::Put(put) => put.lease != 0,
            Self::Txn(_) => {
                self.executed(answer).iter().zip(&answer.inner).any(|(operation, inner)| operation.has_attached(inner))
            }
            _ => false,
        }
    }

    /// Whether it may store something new, which the space alarm forbids.
    #[must_use]
    pub fn grows(&self) -> bool {
        match self {
            Self::Put(_) | Self::LeaseGrant { .. } => true,
            Self::Txn(txn) => txn.operations().any(Self::grows),
            _ => false,
        }
    }

    /// Whether it is answered without the log: a read, or a transaction of reads alone.
    #[must_use]
    pub fn is_read(&self) -> bool {
        match self {
            Self::Range(_) => true,
            Self::Txn(txn) => txn.operations().all(|operation| matches!(operation, Self::Range(_))),
            _ => false,
        }
    }

    /// Whether it may be answered from the past (as long as its connection saw nothing newer).
    #[must_use]
    pub fn is_serializable(&self) -> bool {
        match self {
            Self::Range(range) => range.serializable,
            // Read-only transactions are as serializable as all of their reads, vacuously so without any.
            Self::Txn(txn) => self.is_read() && txn.operations().all(Self::is_serializable),
            Self::Status | Self::Hash | Self::HashKv { .. } | Self::LeaseLeases => true,
            Self::MemberList { linearizable } => !linearizable,
            _ => false,
        }
    }

    /// Whether the answer says that the request changed the store.
    #[must_use]
    pub fn has_changed(&self, answer: &Answer) -> bool {
        match self {
            Self::Put(_) => true,
            Self::Delete(_) => answer.count > 0,
            Self::Txn(_) => {
                self.executed(answer).iter().zip(&answer.inner).any(|(operation, inner)| operation.has_changed(inner))
            }
            _ => false,
        }
    }

    /// The operations that an answered request stands for: itself, or the branch that its transaction took.
    #[must_use]
    pub fn executed(&self, answer: &Answer) -> &[Self] {
        match self {
            Self::Txn(txn) => txn.branch(answer.succeeded),
            other => std::slice::from_ref(other),
        }
    }

    /// The past revisions that an answered request read.
    pub fn history_read(&self, answer: &Answer, visit: &mut dyn FnMut(i64)) {
        match self {
            Self::Range(range) if range.revision > 0 => visit(range.revision),
            Self::Txn(_) => {
                for (operation, inner) in self.executed(answer).iter().zip(&answer.inner) {
                    operation.history_read(inner, visit);
                }
            }
            _ => {}
        }
    }

    /// What an alarm request that is answered must list at least.
    #[must_use]
    pub fn alarms_named(&self) -> Vec<i32> {
        match self {
            Self::Alarm { action: AlarmAction::Activate, kind, .. } if *kind != 0 => vec![*kind],
            _ => Vec::new(),
        }
    }

    /// A full read at `revision`.
    #[must_use]
    pub fn read_everything(revision: i64) -> Self {
        Self::Range(Range::whole(KeyRange::everything(), revision))
    }
}

/// A refusal: gRPC code and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The code.
    pub code: u32,
    /// The text.
    pub text: &'static str,
}

impl Fault {
    /// A key is empty.
    pub const NO_KEY: Self = Self { code: 3, text: "etcdserver: key is not provided" };
    /// A put keeps what is not there, or an operation says nothing.
    pub const KEY_NOT_FOUND: Self = Self { code: 3, text: "etcdserver: key not found" };
    /// A put keeps the value and brings one.
    pub const VALUE_PROVIDED: Self = Self { code: 3, text: "etcdserver: value is provided" };
    /// A put keeps the lease and brings one.
    pub const LEASE_PROVIDED: Self = Self { code: 3, text: "etcdserver: lease is provided" };
    /// Too many operations in a transaction.
    pub const TOO_MANY_OPS: Self = Self { code: 3, text: "etcdserver: too many operations in txn request" };
    /// A transaction writes a key twice.
    pub const DUPLICATE_KEY: Self = Self { code: 3, text: "etcdserver: duplicate key given in txn request" };
    /// A sort that there is not.
    pub const INVALID_SORT: Self = Self { code: 3, text: "etcdserver: invalid sort option" };
    /// The message is too long.
    pub const TOO_LARGE: Self = Self { code: 3, text: "etcdserver: request is too large" };
    /// The revision was compacted.
    pub const COMPACTED: Self = Self { code: 11, text: "etcdserver: mvcc: required revision has been compacted" };
    /// The revision is not there yet.
    pub const FUTURE: Self = Self { code: 11, text: "etcdserver: mvcc: required revision is a future revision" };
    /// The quota is used up, or the space alarm is on.
    pub const NO_SPACE: Self = Self { code: 8, text: "etcdserver: mvcc: database space exceeded" };
    /// The corruption alarm is on.
    pub const CORRUPT: Self = Self { code: 15, text: "etcdserver: corrupt cluster" };
    /// There is no such lease.
    pub const LEASE_NOT_FOUND: Self = Self { code: 5, text: "etcdserver: requested lease not found" };

    /// The lease is there.
    pub const LEASE_EXISTS: Self = Self { code: 9, text: "etcdserver: lease already exists" };
    /// No lease lives so long.
    pub const TTL_TOO_LARGE: Self = Self { code: 11, text: "etcdserver: too large lease TTL" };

    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::NO_KEY,
        Self::KEY_NOT_FOUND,
        Self::VALUE_PROVIDED,
        Self::LEASE_PROVIDED,
        Self::TOO_MANY_OPS,
        Self::DUPLICATE_KEY,
        Self::INVALID_SORT,
        Self::TOO_LARGE,
        Self::COMPACTED,
        Self::FUTURE,
        Self::NO_SPACE,
        Self::CORRUPT,
        Self::LEASE_NOT_FOUND,
        Self::LEASE_EXISTS,
        Self::TTL_TOO_LARGE,
    ];
}

/// What an answer says about the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The header's revision.
    pub revision: i64,
    /// Pairs read, or the previous pairs of a write.
    pub kvs: Vec<KeyValue>,
    /// Pairs counted (Range) or deleted (DeleteRange); a hash.
    pub count: i64,
    /// Whether a limit cut the pairs.
    pub more: bool,
    /// Whether a transaction's compares held.
    pub succeeded: bool,
    /// The answers of a transaction's operations.
    pub inner: Vec<Self>,
    /// Kinds of alarms listed.
    pub alarms: Vec<i32>,
    /// What a hash was computed over: the revision and what was compacted.
    pub hashed: (i64, i64),
    /// What it says about leases.
    pub lease: LeaseFacts,
}

/// What an answer says about leases; times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseFacts {
    /// The lease granted, kept alive or looked at.
    pub id: i64,
    /// What it is granted, renewed for, or what is left of it.
    pub ttl: i64,
    /// What it was granted.
    pub granted_ttl: i64,
    /// The keys attached to it.
    pub keys: Vec<Vec<u8>>,
    /// All leases.
    pub ids: Vec<i64>,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The cluster.
    pub cluster_id: u64,
    /// The answering member.
    pub member_id: u64,
    /// The term.
    pub raft_term: u64,
    /// The rest.
    pub answer: Answer,
}
