//! Bytes into commands.
//!
//! Owns: every check of an entry's syntax (I1 and I2 of the parent). Does not know: what a command means.

use std::ops::Range;

use super::{
    Alarm, Command, CommandError, Compare, CompareResult, CompareTarget, DeleteRange, ENTRY_HEADER_BYTES, EntryHeader,
    FORMAT, KIND_ALARM_ACTIVATE, KIND_ALARM_DEACTIVATE, KIND_COMPACT, KIND_DELETE_RANGE, KIND_LEASE_CHECKPOINT,
    KIND_LEASE_EXPIRE, KIND_LEASE_GRANT, KIND_LEASE_REVOKE, KIND_PUBLISH_MEMBER, KIND_PUT, KIND_RANGE, KIND_TXN, Op,
    PublishMember, Put, RangeQuery, SortOrder, SortTarget, TXN_DEPTH_MAX, Txn,
};

/// What stands before a command: its length.
const LENGTH_BYTES: usize = 4;

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

    /// The next command, and where in the payload its bytes ([`decode_command`]'s) stand.
    pub(crate) fn next_placed(&mut self) -> Option<(Range<usize>, Command<'a>)> {
        let start = self.position();
        let command = self.next_command()?.expect("checked when the entry was handed in");
        Some((start + LENGTH_BYTES..self.position(), command))
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
