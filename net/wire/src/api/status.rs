//! The one table of errors a client can see: gRPC code and exact text.
//!
//! Owns: the gRPC codes, the canonical etcd errors as constants, and the texts that a grpc-go server makes by itself.
//!
//! Does not know: when an error applies, or how a status travels (trailers, percent-encoding, JSON).
//!
//! Clients map the text to a typed error and decide by the code whether to retry, so both are part of the API: etcd
//! 3.7.3 is followed to the letter, including the errors that leave it with code `Unknown`.
//!
//! Invariants:
//! - I1: no two rows have the same text: a client can tell every error by its text alone.
//! - I2: the table equals `net/wire/tests/golden/status.txt`, which was written down separately.

use std::borrow::Cow;
use std::fmt;

/// gRPC status codes, by their number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of the gRPC specification and say all there is")]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// All codes, ascending.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::Canceled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The code of a number on the wire; a client treats an unknown one as `Unknown` (gRPC specification).
    pub fn from_number(number: u64) -> Self {
        usize::try_from(number).ok().and_then(|index| Self::ALL.get(index)).copied().unwrap_or(Self::Unknown)
    }

    /// The name grpc-go prints, as in metric labels: `OK`, `InvalidArgument`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Canceled => "Canceled",
            Self::Unknown => "Unknown",
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::PermissionDenied => "PermissionDenied",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Aborted => "Aborted",
            Self::OutOfRange => "OutOfRange",
            Self::Unimplemented => "Unimplemented",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::DataLoss => "DataLoss",
            Self::Unauthenticated => "Unauthenticated",
        }
    }

    /// The HTTP status the JSON gateway answers with (grpc-gateway v2).
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::Canceled => 499,
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Unknown | Self::Internal | Self::DataLoss => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a call ended: a code and, unless it is `Ok`, a text for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The gRPC code.
    pub code: Code,
    /// The exact text, before any encoding.
    pub message: Cow<'static, str>,
}

impl Status {
    /// Success.
    pub const OK: Self = Self::fixed(Code::Ok, "");

    /// A status with a text known beforehand.
    pub const fn fixed(code: Code, message: &'static str) -> Self {
        Self { code, message: Cow::Borrowed(message) }
    }

    /// A status with a text made for the occasion.
    pub fn with_message(code: Code, message: String) -> Self {
        Self { code, message: Cow::Owned(message) }
    }
}

impl fmt::Display for Status {
    /// As grpc-go prints an error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc error: code = {} desc = {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

/// Declares one constant per row, and `ALL` with every row in order.
macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:ident $text:literal;)*) => {
        $($(#[$doc])* pub const $name: Status = Status::fixed(Code::$code, $text);)*

        /// Every constant of this table, in order.
        pub const ALL: &[Status] = &[$($name),*];
    };
}

errors! {
    // Key-value requests.
    /// Range, Put, DeleteRange, or a compare or operation of Txn, with an empty key.
    EMPTY_KEY = InvalidArgument "etcdserver: key is not provided";
    /// Put with `ignore_value` or `ignore_lease` on a missing key; an operation of Txn that is not set.
    KEY_NOT_FOUND = InvalidArgument "etcdserver: key not found";
    /// Put with `ignore_value` and a value.
    VALUE_PROVIDED = InvalidArgument "etcdserver: value is provided";
    /// Put with `ignore_lease` and a lease.
    LEASE_PROVIDED = InvalidArgument "etcdserver: lease is provided";
    /// Txn with more operations in a branch, or compares, than `--max-txn-ops`.
    TOO_MANY_OPS = InvalidArgument "etcdserver: too many operations in txn request";
    /// Txn that writes one key twice.
    DUPLICATE_KEY = InvalidArgument "etcdserver: duplicate key given in txn request";
    /// Range with an unknown sort order or target.
    INVALID_SORT_OPTION = InvalidArgument "etcdserver: invalid sort option";
    /// Metadata `client-api-version` that is not UTF-8.
    INVALID_CLIENT_API_VERSION = InvalidArgument "etcdserver: invalid client api version";
    /// A read or compaction below the compacted revision.
    COMPACTED = OutOfRange "etcdserver: mvcc: required revision has been compacted";
    /// A read or compaction above the current revision.
    FUTURE_REVISION = OutOfRange "etcdserver: mvcc: required revision is a future revision";
    /// A write under the NOSPACE alarm or beyond the quota.
    NO_SPACE = ResourceExhausted "etcdserver: mvcc: database space exceeded";

    // Leases and watches.
    /// Put, Txn or LeaseRevoke with an unknown lease.
    LEASE_NOT_FOUND = NotFound "etcdserver: requested lease not found";
    /// LeaseGrant with an id in use.
    LEASE_EXISTS = FailedPrecondition "etcdserver: lease already exists";
    /// LeaseGrant beyond 9,000,000,000 seconds.
    LEASE_TTL_TOO_LARGE = OutOfRange "etcdserver: too large lease TTL";
    /// Watch stream ended by its client.
    WATCH_CANCELED = Canceled "etcdserver: watch canceled";

    // Membership.
    /// MemberAdd of an existing member.
    MEMBER_EXISTS = FailedPrecondition "etcdserver: member ID already exist";
    /// MemberAdd or MemberUpdate with the URL of another member.
    PEER_URL_EXISTS = FailedPrecondition "etcdserver: Peer URLs already exists";
    /// A change that would leave too few started members. etcd's table says FailedPrecondition; Unknown leaves it.
    NOT_ENOUGH_STARTED = Unknown "etcdserver: re-configuration failed due to not enough started members";
    /// MemberAdd with unusable URLs.
    MEMBER_BAD_URLS = InvalidArgument "etcdserver: given member URLs are invalid";
    /// Remove, Update or Promote of a member that is unknown or gone.
    MEMBER_NOT_FOUND = NotFound "etcdserver: member not found";
    /// MemberPromote of a voter.
    MEMBER_NOT_LEARNER = FailedPrecondition "etcdserver: can only promote a learner member";
    /// MemberPromote too early.
    LEARNER_NOT_READY = FailedPrecondition "etcdserver: can only promote a learner member which is in sync with leader";
    /// MemberAdd of one learner too many.
    TOO_MANY_LEARNERS = FailedPrecondition "etcdserver: too many learner members in cluster";
    /// A peer of another cluster.
    CLUSTER_ID_MISMATCH = FailedPrecondition "etcdserver: cluster ID mismatch";

    // Admission.
    /// A replicated request beyond `--max-request-bytes`.
    REQUEST_TOO_LARGE = InvalidArgument "etcdserver: request is too large";
    /// Overload. etcd's table says ResourceExhausted; Unknown leaves it.
    TOO_MANY_REQUESTS = Unknown "etcdserver: too many requests";

    // Users and roles.
    /// AuthEnable without the user root.
    ROOT_USER_NOT_EXIST = FailedPrecondition "etcdserver: root user does not exist";
    /// AuthEnable when root lacks the role root.
    ROOT_ROLE_NOT_EXIST = FailedPrecondition "etcdserver: root user does not have root role";
    /// UserAdd of an existing user.
    USER_EXISTS = FailedPrecondition "etcdserver: user name already exists";
    /// UserAdd of the empty name, or a call without identity while authentication is on.
    USER_EMPTY = InvalidArgument "etcdserver: user name is empty";
    /// A user that does not exist.
    USER_NOT_FOUND = FailedPrecondition "etcdserver: user name not found";
    /// RoleAdd of an existing role.
    ROLE_EXISTS = FailedPrecondition "etcdserver: role name already exists";
    /// A role that does not exist.
    ROLE_NOT_FOUND = FailedPrecondition "etcdserver: role name not found";
    /// RoleAdd of the empty name.
    ROLE_EMPTY = InvalidArgument "etcdserver: role name is empty";
    /// Authenticate with a wrong name or password.
    AUTH_FAILED = InvalidArgument "etcdserver: authentication failed, invalid user ID or password";
    /// RoleGrantPermission without a permission.
    PERMISSION_NOT_GIVEN = InvalidArgument "etcdserver: permission not given";
    /// The identity may not do this.
    PERMISSION_DENIED = PermissionDenied "etcdserver: permission denied";
    /// UserRevokeRole of a role the user does not hold.
    ROLE_NOT_GRANTED = FailedPrecondition "etcdserver: role is not granted to the user";
    /// RoleRevokePermission of a permission the role does not hold.
    PERMISSION_NOT_GRANTED = FailedPrecondition "etcdserver: permission is not granted to the role";
    /// Authenticate while authentication is off.
    AUTH_NOT_ENABLED = FailedPrecondition "etcdserver: authentication is not enabled";
    /// A bad or expired token.
    INVALID_AUTH_TOKEN = Unauthenticated "etcdserver: invalid auth token";
    /// A change that would lock root out, or an invalid range of a permission.
    INVALID_AUTH_MANAGEMENT = InvalidArgument "etcdserver: invalid auth management";
    /// A stale token, or users and roles changed meanwhile.
    AUTH_OLD_REVISION = InvalidArgument "etcdserver: revision of auth store is old";
    /// Authenticate with a password for a user that has none.
    NO_PASSWORD_USER = Unknown "auth: authentication failed, password was given for no password user";
    /// A password that bcrypt cannot take.
    PASSWORD_TOO_LONG = Unknown "bcrypt: password length exceeds 72 bytes";

    // Cluster state.
    /// No leader where one is needed.
    NO_LEADER = Unavailable "etcdserver: no leader";
    /// MoveLeader on a follower.
    NOT_LEADER = FailedPrecondition "etcdserver: not leader";
    /// Leadership moved during a read.
    LEADER_CHANGED = Unavailable "etcdserver: leader changed";
    /// The cluster version is undecided.
    NOT_CAPABLE = FailedPrecondition "etcdserver: not capable";
    /// Shutdown.
    STOPPED = Unavailable "etcdserver: server stopped";
    /// A proposal or read index without an answer in time.
    TIMEOUT = Unavailable "etcdserver: request timed out";
    /// The same, shortly after this member became leader.
    TIMEOUT_LEADER_FAILURE = Unavailable "etcdserver: request timed out, possibly due to previous leader failure";
    /// The same, when links were lost since the request began.
    TIMEOUT_CONNECTION_LOST = Unavailable "etcdserver: request timed out, possibly due to connection lost";
    /// The applied index did not reach the needed one in time.
    TIMEOUT_APPLIED_INDEX = Unavailable "etcdserver: request timed out, waiting for the applied index took too long";
    /// MoveLeader without success in time.
    TIMEOUT_LEADER_TRANSFER = Unknown "etcdserver: request timed out, leader transfer took too long";
    /// A member change that the quorum would not survive.
    UNHEALTHY = Unavailable "etcdserver: unhealthy cluster";
    /// A write under the CORRUPT alarm.
    CORRUPT = DataLoss "etcdserver: corrupt cluster";
    /// What a learner does not answer.
    NOT_SUPPORTED_FOR_LEARNER = FailedPrecondition "etcdserver: rpc not supported for learner";
    /// MoveLeader to an unknown member or a learner.
    BAD_LEADER_TRANSFEREE = FailedPrecondition "etcdserver: bad leader transferee";
    /// Keepalive on a deposed leader.
    NOT_PRIMARY_LESSOR = Unknown "not a primary lessor";
    /// A proposal during a leader transfer.
    PROPOSAL_DROPPED = Unknown "raft proposal dropped";

    // Downgrade.
    /// A target that is not a version.
    DOWNGRADE_WRONG_VERSION_FORMAT = InvalidArgument "etcdserver: wrong downgrade target version format";
    /// A target that is not one minor below.
    DOWNGRADE_INVALID_TARGET_VERSION = InvalidArgument "etcdserver: invalid downgrade target version";
    /// The cluster version is undecided.
    CLUSTER_VERSION_UNAVAILABLE = FailedPrecondition "etcdserver: cluster version not found during downgrade";
    /// A second downgrade.
    DOWNGRADE_IN_PROCESS = FailedPrecondition "etcdserver: cluster has a downgrade job in progress";
    /// Cancel without a downgrade.
    NO_INFLIGHT_DOWNGRADE = FailedPrecondition "etcdserver: no inflight downgrade job";
    /// Downgrade with an unknown action.
    UNKNOWN_METHOD = Unknown "etcdserver: unknown method";

    // Cancellation and deadlines.
    /// Cancelled by the server.
    CANCELED = Canceled "etcdserver: request canceled";
    /// etcd's own deadline text.
    DEADLINE_EXCEEDED = DeadlineExceeded "etcdserver: context deadline exceeded";
    /// The client's deadline passed, or a write found no leader for seven seconds.
    CONTEXT_DEADLINE_EXCEEDED = DeadlineExceeded "context deadline exceeded";
    /// The client went away.
    CONTEXT_CANCELED = Canceled "context canceled";

    // Range streams, locks, elections, health.
    /// RangeStream with another order than by key.
    RANGE_STREAM_SORT = Unimplemented "RangeStream does not support custom sort orders";
    /// RangeStream with a revision bound.
    RANGE_STREAM_REVISION_FILTER = Unimplemented "RangeStream does not support revision filters";
    /// Election/Leader without a leader.
    ELECTION_NO_LEADER = Unknown "election: no leader";
    /// Proclaim or Resign without leadership.
    ELECTION_NOT_LEADER = Unknown "election: not leader";
    /// Proclaim or Resign without the proof of leadership.
    ELECTION_LEADER_MISSING = Unknown "\"leader\" field must be provided";
    /// Lock whose lease ended while it waited.
    SESSION_EXPIRED = Unknown "mutex: session is expired";
    /// Health/Check of a service that is not known.
    UNKNOWN_HEALTH_SERVICE = NotFound "unknown service";
}

/// A message longer than the receive limit (grpc-go's text). Lengths in bytes.
pub fn message_too_large(len: u64, len_max: u64) -> Status {
    let text = format!("grpc: received message larger than max ({len} vs. {len_max})");
    Status::with_message(Code::ResourceExhausted, text)
}

/// An answer longer than the send limit (grpc-go's text). Lengths in bytes.
pub fn message_too_long_to_send(len: usize, len_max: usize) -> Status {
    let text = format!("grpc: trying to send message larger than max ({len} vs. {len_max})");
    Status::with_message(Code::ResourceExhausted, text)
}

/// A request that is not the method's message (grpc-go's text).
pub fn undecodable(error: &dyn fmt::Display) -> Status {
    Status::with_message(Code::Internal, format!("grpc: error unmarshalling request: {error}"))
}

/// A message of a stream that is not the method's (grpc-go's text).
pub fn undecodable_message(error: &dyn fmt::Display) -> Status {
    Status::with_message(Code::Internal, format!("grpc: failed to unmarshal the received message: {error}"))
}

/// A path that names no method: what grpc-go says depends on whether the service is known.
pub fn unknown_method(path: &[u8]) -> Status {
    let path = String::from_utf8_lossy(path);
    let text = match path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) if super::methods::is_service(service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
    };
    Status::with_message(Code::Unimplemented, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../tests/golden/status.txt");

    #[test]
    fn table_equals_the_golden_list() {
        let table: Vec<String> = ALL.iter().map(|status| format!("{} {}", status.code, status.message)).collect();
        let mut golden: Vec<&str> = GOLDEN.lines().collect();
        let mut ours: Vec<&str> = table.iter().map(String::as_str).collect();
        golden.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, golden);
    }

    #[test]
    fn texts_are_distinct() {
        for (index, status) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.message != status.message), "{status}");
        }
    }

    #[test]
    fn codes_round_trip() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(code.number()), index);
            assert_eq!(Code::from_number(index as u64), code);
        }
        assert_eq!(Code::from_number(17), Code::Unknown);
        assert_eq!(Code::from_number(u64::MAX), Code::Unknown);
    }

    #[test]
    fn grpc_texts() {
        let text = |path: &[u8]| unknown_method(path).message.into_owned();
        assert_eq!(text(b"/etcdserverpb.KV/Puts"), "unknown method Puts for service etcdserverpb.KV");
        assert_eq!(text(b"/etcdserverpb.Kv/Put"), "unknown service etcdserverpb.Kv");
        assert_eq!(text(b"/"), "malformed method name: \"/\"");
        assert_eq!(text(b"/Put"), "malformed method name: \"/Put\"");
        assert_eq!(text(b"etcdserverpb.KV/Put"), "malformed method name: \"etcdserverpb.KV/Put\"");
        assert_eq!(unknown_method(b"").code, Code::Unimplemented);
        let large = message_too_large(2_097_153, 2_097_152);
        assert_eq!(
            large.to_string(),
            "rpc error: code = ResourceExhausted desc = grpc: received message larger than max (2097153 vs. 2097152)"
        );
    }
}
