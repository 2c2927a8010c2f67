//! Commands into bytes.
//!
//! Owns: the length and the layout of what is written. Does not know: what may be asked for: what `mvcc::check` rejects
//! never comes here, and is a bug if it does.

use super::{
    Alarm, COUNT_OFFSET, Command, Compare, CompareResult, CompareTarget, DeleteRange, ENTRY_HEADER_BYTES, FORMAT,
    KIND_ALARM_ACTIVATE, KIND_ALARM_DEACTIVATE, KIND_COMPACT, KIND_DELETE_RANGE, KIND_LEASE_CHECKPOINT,
    KIND_LEASE_EXPIRE, KIND_LEASE_GRANT, KIND_LEASE_REVOKE, KIND_PUBLISH_MEMBER, KIND_PUT, KIND_RANGE, KIND_TXN, Op,
    Put, RangeQuery, SortOrder, SortTarget, TXN_DEPTH_MAX, Txn,
};

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
