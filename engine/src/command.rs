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
//! - I3: `decode(encode(c)) == c` for every command that passed `mvcc::check` (tests: round trip and byte fuzz below).

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

/// Begins an entry's payload; commands are then appended with [`append_command`].
pub fn begin_entry(payload: &mut Vec<u8>, member: u64, boot: u64, first_sequence: u64) {
    payload.clear();
    payload.push(FORMAT);
    payload.extend_from_slice(&member.to_le_bytes());
    payload.extend_from_slice(&boot.to_le_bytes());
    payload.extend_from_slice(&first_sequence.to_le_bytes());
    payload.extend_from_slice(&0_u32.to_le_bytes());
    assert_eq!(payload.len(), ENTRY_HEADER_BYTES, "the header has one size");
}

/// Appends one command and counts it in the header. `payload` was begun by [`begin_entry`].
pub fn append_command(payload: &mut Vec<u8>, command: &Command<'_>) {
    count_one(payload);
    encode_command(payload, command);
}

/// Appends a command that [`encode_command`] wrote elsewhere.
pub fn append_encoded(payload: &mut Vec<u8>, encoded: &[u8]) {
    count_one(payload);
    payload.extend_from_slice(encoded);
}

fn count_one(payload: &mut [u8]) {
    let (count, _) = payload[COUNT_OFFSET..].split_first_chunk_mut::<4>().expect("a begun payload has a header");
    *count = (u32::from_le_bytes(*count) + 1).to_le_bytes();
}

/// Writes a command as an entry holds it, its length prefix included.
pub fn encode_command(out: &mut Vec<u8>, command: &Command<'_>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    put_command(out, command);
    let len = length(out.len() - start - 4);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

/// The bytes a command adds to an entry, its length prefix included.
#[must_use]
pub fn command_len(command: &Command<'_>) -> usize {
    let mut bytes = Vec::new();
    match command {
        Command::Put(put) => return 5 + put_len(put),
        Command::DeleteRange(del) => return 5 + delete_len(del),
        // A leader proposes them by the ten thousand.
        Command::LeaseExpire { .. } => return 5 + 16,
        other => put_command(&mut bytes, other),
    }
    4 + bytes.len()
}

fn put_len(put: &Put<'_>) -> usize {
    4 + put.key.len() + 4 + put.value.len() + 8 + 1
}

fn delete_len(del: &DeleteRange<'_>) -> usize {
    4 + del.key.len() + 4 + del.range_end.len() + 1
}

fn put_command(out: &mut Vec<u8>, command: &Command<'_>) {
    match command {
        Command::Put(put) => put_put(out, put),
        Command::DeleteRange(del) => put_delete(out, del),
        Command::Txn(txn) => put_txn(out, txn, 1),
        Command::Compact { revision } => {
            out.push(KIND_COMPACT);
            out.extend_from_slice(&revision.to_le_bytes());
        }
        Command::AlarmActivate(alarm) => put_alarm(out, KIND_ALARM_ACTIVATE, alarm),
        Command::AlarmDeactivate(alarm) => put_alarm(out, KIND_ALARM_DEACTIVATE, alarm),
        Command::LeaseGrant { id, ttl } => {
            out.push(KIND_LEASE_GRANT);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&ttl.to_le_bytes());
        }
        Command::LeaseRevoke { id } => {
            out.push(KIND_LEASE_REVOKE);
            out.extend_from_slice(&id.to_le_bytes());
        }
        Command::LeaseExpire { id, term } => {
            out.push(KIND_LEASE_EXPIRE);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&term.to_le_bytes());
        }
        Command::LeaseCheckpoint { id, remaining } => {
            out.push(KIND_LEASE_CHECKPOINT);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&remaining.to_le_bytes());
        }
        Command::PublishMember(member) => {
            out.push(KIND_PUBLISH_MEMBER);
            out.extend_from_slice(&member.member.to_le_bytes());
            put_bytes(out, member.name);
            out.extend_from_slice(&length(member.client_urls.len()).to_le_bytes());
            for url in &member.client_urls {
                put_bytes(out, url);
            }
        }
    }
}

fn put_alarm(out: &mut Vec<u8>, kind: u8, alarm: &Alarm) {
    out.push(kind);
    out.extend_from_slice(&alarm.member.to_le_bytes());
    out.extend_from_slice(&alarm.alarm.to_le_bytes());
}

fn put_put(out: &mut Vec<u8>, put: &Put<'_>) {
    out.reserve(1 + put_len(put));
    out.push(KIND_PUT);
    put_bytes(out, put.key);
    put_bytes(out, put.value);
    out.extend_from_slice(&put.lease.to_le_bytes());
    out.push(flags(&[put.prev_kv, put.ignore_value, put.ignore_lease]));
}

fn put_delete(out: &mut Vec<u8>, del: &DeleteRange<'_>) {
    out.reserve(1 + delete_len(del));
    out.push(KIND_DELETE_RANGE);
    put_bytes(out, del.key);
    put_bytes(out, del.range_end);
    out.push(flags(&[del.prev_kv]));
}

fn put_range(out: &mut Vec<u8>, query: &RangeQuery<'_>) {
    out.push(KIND_RANGE);
    put_bytes(out, query.key);
    put_bytes(out, query.range_end);
    for number in [
        query.limit,
        query.revision,
        query.min_mod_revision,
        query.max_mod_revision,
        query.min_create_revision,
        query.max_create_revision,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.push(match query.sort_order {
        SortOrder::None => 0,
        SortOrder::Ascend => 1,
        SortOrder::Descend => 2,
        SortOrder::Unknown => unchecked("a sort order"),
    });
    out.push(match query.sort_target {
        SortTarget::Key => 0,
        SortTarget::Version => 1,
        SortTarget::Create => 2,
        SortTarget::Mod => 3,
        SortTarget::Value => 4,
        SortTarget::Unknown => unchecked("a sort target"),
    });
    out.push(flags(&[query.keys_only, query.count_only]));
}

fn put_txn(out: &mut Vec<u8>, txn: &Txn<'_>, depth: usize) {
    assert!(depth <= TXN_DEPTH_MAX, "the argument check bounds nesting");
    out.push(KIND_TXN);
    out.extend_from_slice(&length(txn.compares.len()).to_le_bytes());
    for compare in &txn.compares {
        put_compare(out, compare);
    }
    for branch in [&txn.success, &txn.failure] {
        out.extend_from_slice(&length(branch.len()).to_le_bytes());
        for op in branch {
            match op {
                Op::Range(query) => put_range(out, query),
                Op::Put(put) => put_put(out, put),
                Op::DeleteRange(del) => put_delete(out, del),
                Op::Txn(nested) => put_txn(out, nested, depth + 1),
                Op::Unset => out.push(unchecked("an op")),
            }
        }
    }
}

fn put_compare(out: &mut Vec<u8>, compare: &Compare<'_>) {
    put_bytes(out, compare.key);
    put_bytes(out, compare.range_end);
    out.push(match compare.result {
        CompareResult::Equal => 0,
        CompareResult::Greater => 1,
        CompareResult::Less => 2,
        CompareResult::NotEqual => 3,
        CompareResult::Unknown => 255,
    });
    let (target, number) = match compare.target {
        CompareTarget::Version(number) => (0, number),
        CompareTarget::Create(number) => (1, number),
        CompareTarget::Mod(number) => (2, number),
        CompareTarget::Value(value) => {
            out.push(3);
            return put_bytes(out, value);
        }
        CompareTarget::Lease(number) => (4, number),
        CompareTarget::Unknown => return out.push(255),
    };
    out.push(target);
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length(bytes.len()).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a request is bounded far below 4 GiB")
}

fn flags(bits: &[bool]) -> u8 {
    bits.iter().enumerate().fold(0, |flags, (bit, &set)| flags | u8::from(set) << bit)
}

/// Encoding what the argument check rejects would poison the log of every member.
fn unchecked(what: &str) -> u8 {
    panic!("{what} that mvcc::check rejects reached the log encoder")
}

/// The commands of an entry.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its header.
    pub header: EntryHeader,
    payload: &'a [u8],
    input: Input<'a>,
}

impl<'a> Entry<'a> {
    /// Reads a payload's header; the commands are read by iteration, which does not look at their count
    /// ([`Self::check`] does, once).
    ///
    /// # Errors
    /// The payload is not one of ours.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CommandError> {
        let mut input = Input(payload);
        match input.u8()? {
            FORMAT => {}
            other => return Err(CommandError::UnknownFormat(other)),
        }
        let (member, boot) = (input.u64()?, input.u64()?);
        let header = EntryHeader { member, boot, first_sequence: input.u64()?, count: input.u32()? };
        Ok(Self { header, payload, input })
    }

    /// Decodes everything: what passes here can be applied.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), CommandError> {
        let mut entry = Self { input: Input(&self.payload[ENTRY_HEADER_BYTES..]), ..self.clone() };
        for _ in 0..self.header.count {
            entry.next_command().unwrap_or(Err(CommandError::Truncated))?;
        }
        if entry.input.0.is_empty() { Ok(()) } else { Err(CommandError::TrailingBytes) }
    }

    /// The next command in order; `None` at the end of the payload. An error ends the iteration.
    pub fn next_command(&mut self) -> Option<Result<Command<'a>, CommandError>> {
        if self.input.0.is_empty() {
            return None;
        }
        let command = self.input.bytes().and_then(decode_command);
        if command.is_err() {
            self.input = Input(&[]);
        }
        Some(command)
    }

    /// Where in the payload the next command stands.
    #[must_use]
    pub fn position(&self) -> usize {
        self.payload.len() - self.input.0.len()
    }

    /// Continues at a position an iteration of the same payload had reached.
    pub fn skip_to(&mut self, position: usize) {
        assert!((ENTRY_HEADER_BYTES..=self.payload.len()).contains(&position), "a position inside the payload");
        self.input = Input(&self.payload[position..]);
    }
}

/// Reads one command: kind and body.
///
/// # Errors
/// The bytes are not exactly one command.
pub fn decode_command(bytes: &[u8]) -> Result<Command<'_>, CommandError> {
    let mut input = Input(bytes);
    let command = match input.u8()? {
        KIND_PUT => Command::Put(input.put()?),
        KIND_DELETE_RANGE => Command::DeleteRange(input.delete_range()?),
        KIND_TXN => Command::Txn(input.txn(1)?),
        KIND_COMPACT => Command::Compact { revision: input.i64()? },
        KIND_ALARM_ACTIVATE => Command::AlarmActivate(input.alarm()?),
        KIND_ALARM_DEACTIVATE => Command::AlarmDeactivate(input.alarm()?),
        KIND_PUBLISH_MEMBER => Command::PublishMember(input.publish_member()?),
        KIND_LEASE_GRANT => input.lease_grant()?,
        KIND_LEASE_REVOKE => Command::LeaseRevoke { id: input.i64()? },
        KIND_LEASE_EXPIRE => Command::LeaseExpire { id: input.i64()?, term: input.u64()? },
        KIND_LEASE_CHECKPOINT => input.lease_checkpoint()?,
        other => return Err(CommandError::UnknownKind(other)),
    };
    if input.0.is_empty() { Ok(command) } else { Err(CommandError::TrailingBytes) }
}

/// The bytes not yet read.
#[derive(Clone, Debug)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CommandError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(CommandError::Truncated)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, CommandError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, CommandError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CommandError> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, CommandError> {
        self.array().map(i64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], CommandError> {
        let len = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(CommandError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A list's length. Every item takes at least `item_bytes`, so a false one is found before it is allocated (I1).
    fn count(&mut self, item_bytes: usize) -> Result<usize, CommandError> {
        let count = self.u32()? as usize;
        if count > self.0.len() / item_bytes { Err(CommandError::Truncated) } else { Ok(count) }
    }

    fn flags<const N: usize>(&mut self) -> Result<[bool; N], CommandError> {
        let bits = self.u8()?;
        if u32::from(bits) >> N != 0 {
            return Err(CommandError::UnknownValue(bits));
        }
        Ok(std::array::from_fn(|bit| bits >> bit & 1 == 1))
    }

    fn put(&mut self) -> Result<Put<'a>, CommandError> {
        let (key, value, lease) = (self.bytes()?, self.bytes()?, self.i64()?);
        let [prev_kv, ignore_value, ignore_lease] = self.flags()?;
        Ok(Put { key, value, lease, prev_kv, ignore_value, ignore_lease })
    }

    fn delete_range(&mut self) -> Result<DeleteRange<'a>, CommandError> {
        let (key, range_end) = (self.bytes()?, self.bytes()?);
        let [prev_kv] = self.flags()?;
        Ok(DeleteRange { key, range_end, prev_kv })
    }

    fn range(&mut self) -> Result<RangeQuery<'a>, CommandError> {
        let mut query = RangeQuery { key: self.bytes()?, range_end: self.bytes()?, ..RangeQuery::default() };
        for number in [
            &mut query.limit,
            &mut query.revision,
            &mut query.min_mod_revision,
            &mut query.max_mod_revision,
            &mut query.min_create_revision,
            &mut query.max_create_revision,
        ] {
            *number = self.i64()?;
        }
        query.sort_order = match self.u8()? {
            0 => SortOrder::None,
            1 => SortOrder::Ascend,
            2 => SortOrder::Descend,
            other => return Err(CommandError::UnknownValue(other)),
        };
        query.sort_target = match self.u8()? {
            0 => SortTarget::Key,
            1 => SortTarget::Version,
            2 => SortTarget::Create,
            3 => SortTarget::Mod,
            4 => SortTarget::Value,
            other => return Err(CommandError::UnknownValue(other)),
        };
        [query.keys_only, query.count_only] = self.flags()?;
        Ok(query)
    }

    fn lease_checkpoint(&mut self) -> Result<Command<'a>, CommandError> {
        let (id, remaining) = (self.i64()?, self.i64()?);
        if remaining >= 0 {
            Ok(Command::LeaseCheckpoint { id, remaining })
        } else {
            Err(CommandError::UnknownValue(KIND_LEASE_CHECKPOINT))
        }
    }

    /// A lease that cannot be is an unknown value: no member may grant what another cannot read.
    fn lease_grant(&mut self) -> Result<Command<'a>, CommandError> {
        let (id, ttl) = (self.i64()?, self.i64()?);
        if id == 0 || ttl < 1 {
            Err(CommandError::UnknownValue(KIND_LEASE_GRANT))
        } else {
            Ok(Command::LeaseGrant { id, ttl })
        }
    }

    fn txn(&mut self, depth: usize) -> Result<Txn<'a>, CommandError> {
        if depth > TXN_DEPTH_MAX {
            return Err(CommandError::TooDeep);
        }
        let count = self.count(COMPARE_BYTES_MIN)?;
        let mut compares = Vec::with_capacity(count);
        for _ in 0..count {
            compares.push(self.compare()?);
        }
        Ok(Txn { compares, success: self.branch(depth)?, failure: self.branch(depth)? })
    }

    fn branch(&mut self, depth: usize) -> Result<Vec<Op<'a>>, CommandError> {
        let count = self.count(OP_BYTES_MIN)?;
        let mut ops = Vec::with_capacity(count);
        for _ in 0..count {
            ops.push(match self.u8()? {
                KIND_RANGE => Op::Range(self.range()?),
                KIND_PUT => Op::Put(self.put()?),
                KIND_DELETE_RANGE => Op::DeleteRange(self.delete_range()?),
                KIND_TXN => Op::Txn(self.txn(depth + 1)?),
                other => return Err(CommandError::UnknownKind(other)),
            });
        }
        Ok(ops)
    }

    fn compare(&mut self) -> Result<Compare<'a>, CommandError> {
        let (key, range_end) = (self.bytes()?, self.bytes()?);
        let result = match self.u8()? {
            0 => CompareResult::Equal,
            1 => CompareResult::Greater,
            2 => CompareResult::Less,
            3 => CompareResult::NotEqual,
            255 => CompareResult::Unknown,
            other => return Err(CommandError::UnknownValue(other)),
        };
        let target = match self.u8()? {
            0 => CompareTarget::Version(self.i64()?),
            1 => CompareTarget::Create(self.i64()?),
            2 => CompareTarget::Mod(self.i64()?),
            3 => CompareTarget::Value(self.bytes()?),
            4 => CompareTarget::Lease(self.i64()?),
            255 => CompareTarget::Unknown,
            other => return Err(CommandError::UnknownValue(other)),
        };
        Ok(Compare { key, range_end, result, target })
    }

    fn alarm(&mut self) -> Result<Alarm, CommandError> {
        Ok(Alarm { member: self.u64()?, alarm: self.u32()? })
    }

    fn publish_member(&mut self) -> Result<PublishMember<'a>, CommandError> {
        let (member, name) = (self.u64()?, self.bytes()?);
        let count = self.count(4)?;
        let client_urls = (0..count).map(|_| self.bytes()).collect::<Result<_, _>>()?;
        Ok(PublishMember { member, name, client_urls })
    }
}

/// The shortest compare: two empty strings, result, unknown target.
const COMPARE_BYTES_MIN: usize = 10;
/// The shortest op: a delete (kind, two empty strings, flags).
const OP_BYTES_MIN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
        }

        fn flag(&mut self) -> bool {
            self.below(2) == 0
        }

        fn number(&mut self) -> i64 {
            [i64::MIN, -1, 0, 1, 77, i64::MAX][self.below(6) as usize]
        }

        fn bytes(&mut self) -> &'static [u8] {
            [b"".as_slice(), b"a", b"\0", b"\xff\xff", b"a long enough key", &[7; 300]][self.below(6) as usize]
        }

        fn put(&mut self) -> Put<'static> {
            Put {
                key: self.bytes(),
                value: self.bytes(),
                lease: self.number(),
                prev_kv: self.flag(),
                ignore_value: self.flag(),
                ignore_lease: self.flag(),
            }
        }

        fn delete_range(&mut self) -> DeleteRange<'static> {
            DeleteRange { key: self.bytes(), range_end: self.bytes(), prev_kv: self.flag() }
        }

        fn range(&mut self) -> RangeQuery<'static> {
            use SortTarget::{Create, Key, Mod, Value, Version};
            RangeQuery {
                key: self.bytes(),
                range_end: self.bytes(),
                limit: self.number(),
                revision: self.number(),
                sort_order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.below(3) as usize],
                sort_target: [Key, Version, Create, Mod, Value][self.below(5) as usize],
                serializable: false,
                keys_only: self.flag(),
                count_only: self.flag(),
                min_mod_revision: self.number(),
                max_mod_revision: self.number(),
                min_create_revision: self.number(),
                max_create_revision: self.number(),
            }
        }

        fn compare(&mut self) -> Compare<'static> {
            use CompareResult::{Equal, Greater, Less, NotEqual, Unknown};
            Compare {
                key: self.bytes(),
                range_end: self.bytes(),
                result: [Equal, Greater, Less, NotEqual, Unknown][self.below(5) as usize],
                target: match self.below(6) {
                    0 => CompareTarget::Version(self.number()),
                    1 => CompareTarget::Create(self.number()),
                    2 => CompareTarget::Mod(self.number()),
                    3 => CompareTarget::Value(self.bytes()),
                    4 => CompareTarget::Lease(self.number()),
                    _ => CompareTarget::Unknown,
                },
            }
        }

        fn ops(&mut self, depth: usize) -> Vec<Op<'static>> {
            let count = self.below(4);
            let op = |random: &mut Self| match random.below(if depth < 4 { 4 } else { 3 }) {
                0 => Op::Range(random.range()),
                1 => Op::Put(random.put()),
                2 => Op::DeleteRange(random.delete_range()),
                _ => Op::Txn(random.txn(depth + 1)),
            };
            (0..count).map(|_| op(self)).collect()
        }

        fn txn(&mut self, depth: usize) -> Txn<'static> {
            let compares = (0..self.below(3)).map(|_| self.compare()).collect();
            Txn { compares, success: self.ops(depth), failure: self.ops(depth) }
        }

        fn command(&mut self) -> Command<'static> {
            match self.below(11) {
                0 => Command::Put(self.put()),
                1 => Command::DeleteRange(self.delete_range()),
                2 => Command::Txn(self.txn(1)),
                3 => Command::Compact { revision: self.number() },
                4 => Command::AlarmActivate(Alarm { member: self.below(9), alarm: 1 }),
                5 => Command::AlarmDeactivate(Alarm { member: self.below(9), alarm: 2 }),
                6 => Command::LeaseGrant { id: self.number() | 1, ttl: self.number().max(1) },
                7 => Command::LeaseRevoke { id: self.number() },
                8 => Command::LeaseExpire { id: self.number(), term: self.below(9) },
                9 => Command::LeaseCheckpoint { id: self.number(), remaining: self.number().max(0) },
                _ => {
                    let client_urls = (0..self.below(3)).map(|_| self.bytes()).collect();
                    Command::PublishMember(PublishMember { member: self.below(9), name: self.bytes(), client_urls })
                }
            }
        }
    }

    fn read_all(payload: &[u8]) -> Result<Vec<Command<'_>>, CommandError> {
        let mut entry = Entry::decode(payload)?;
        entry.check()?;
        std::iter::from_fn(|| entry.next_command()).collect()
    }

    #[test]
    fn entries_round_trip_and_every_cut_is_rejected() {
        let mut random = Random(42);
        let mut payload = Vec::new();
        for _ in 0..300 {
            let commands: Vec<_> = (0..random.below(5)).map(|_| random.command()).collect();
            begin_entry(&mut payload, 7, 8, 9);
            for command in &commands {
                let before = payload.len();
                append_command(&mut payload, command);
                assert_eq!(payload.len() - before, command_len(command));
            }
            let count = u32::try_from(commands.len()).unwrap();
            let header = EntryHeader { member: 7, boot: 8, first_sequence: 9, count };
            assert_eq!(Entry::decode(&payload).unwrap().header, header);
            assert_eq!(read_all(&payload).unwrap(), commands);
            for cut in (0..payload.len()).step_by(1 + payload.len() / 100) {
                assert!(read_all(&payload[..cut]).is_err(), "cut at {cut} of {}", payload.len());
            }
            payload.push(0);
            assert_eq!(read_all(&payload), Err(CommandError::TrailingBytes));
        }
    }

    #[test]
    fn damaged_bytes_are_rejected_or_have_one_form() {
        let mut random = Random(43);
        let (mut payload, mut again) = (Vec::new(), Vec::new());
        let mut accepted = 0;
        for _ in 0..20_000 {
            begin_entry(&mut payload, 7, 8, 9);
            append_command(&mut payload, &random.command());
            for _ in 0..=random.below(2) {
                let position = random.below(payload.len() as u64) as usize;
                payload[position] = random.below(256) as u8;
            }
            let Ok(commands) = read_all(&payload) else { continue };
            let header = Entry::decode(&payload).unwrap().header;
            begin_entry(&mut again, header.member, header.boot, header.first_sequence);
            commands.iter().for_each(|command| append_command(&mut again, command));
            assert_eq!(again, payload);
            accepted += 1;
        }
        assert!(accepted > 1000, "damage to keys and numbers is no syntax error: {accepted}");
    }

    #[test]
    fn nesting_is_bounded() {
        let nest = |depth: usize| {
            let nested = |inner, _| Txn { success: vec![Op::Txn(inner)], ..Txn::default() };
            (1..depth).fold(Txn::default(), nested)
        };
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 1, 1);
        append_command(&mut payload, &Command::Txn(nest(TXN_DEPTH_MAX)));
        assert_eq!(read_all(&payload).unwrap(), [Command::Txn(nest(TXN_DEPTH_MAX))]);
        // The same bytes with one level more, written by hand: the encoder refuses.
        let mut body = vec![KIND_TXN, 0, 0, 0, 0, 1, 0, 0, 0];
        body.extend_from_slice(&payload[ENTRY_HEADER_BYTES + 4..]);
        body.extend_from_slice(&[0; 4]);
        assert_eq!(decode_command(&body), Err(CommandError::TooDeep));
    }
}
