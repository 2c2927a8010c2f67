//! Events in the form in which they leave.
//!
//! Owns: the bytes of one event as field 11 of a WatchResponse: tag, length, `mvccpb.Event` (1 type, 2 kv, 3 prev_kv).
//! Does not know: responses, who gets them.
//!
//! A put shows the whole pair; a deletion shows key and revision alone.

use crate::mvcc::hash::{put_bytes_tag, put_number, put_varint};
use crate::store::row_log::Row;

const EVENTS_TAG: u8 = 11 << 3 | 2;
const TYPE_TAG: u8 = 1 << 3;
const DELETE: u8 = 1;
const KV_TAG: u8 = 2 << 3 | 2;
const PREV_KV_TAG: u8 = 3 << 3 | 2;

/// Appends the event of a row.
pub(super) fn encode_event(out: &mut Vec<u8>, row: &Row<'_>, prev: Option<&Row<'_>>) {
    let len = event_len(row, prev);
    out.reserve(len + 11);
    out.push(EVENTS_TAG);
    put_varint(out, len as u64);
    if row.is_tombstone() {
        out.extend_from_slice(&[TYPE_TAG, DELETE]);
    }
    put_pair(out, KV_TAG, row);
    if let Some(prev) = prev {
        put_pair(out, PREV_KV_TAG, prev);
    }
}

/// The length of what [`encode_event`] appends.
pub(super) fn encoded_len(row: &Row<'_>, prev: Option<&Row<'_>>) -> usize {
    let len = event_len(row, prev);
    1 + varint_len(len as u64) + len
}

fn event_len(row: &Row<'_>, prev: Option<&Row<'_>>) -> usize {
    let kind = if row.is_tombstone() { 2 } else { 0 };
    kind + field_len(pair_len(row)) + prev.map_or(0, |prev| field_len(pair_len(prev)))
}

fn put_pair(out: &mut Vec<u8>, tag: u8, row: &Row<'_>) {
    out.push(tag);
    put_varint(out, pair_len(row) as u64);
    put_bytes_tag(out, 1, row.key.len());
    out.extend_from_slice(row.key);
    put_number(out, 2, row.create);
    put_number(out, 3, row.at.main);
    put_number(out, 4, row.version);
    put_bytes_tag(out, 5, row.value.len());
    out.extend_from_slice(row.value);
    put_number(out, 6, row.lease);
}

/// A tombstone's row has neither creation, version, value nor lease: fields that are zero are left out.
fn pair_len(row: &Row<'_>) -> usize {
    let number = |number: i64| if number == 0 { 0 } else { 1 + varint_len(number.cast_unsigned()) };
    let bytes = |bytes: &[u8]| if bytes.is_empty() { 0 } else { field_len(bytes.len()) };
    bytes(row.key)
        + bytes(row.value)
        + number(row.create)
        + number(row.at.main)
        + number(row.version)
        + number(row.lease)
}

/// A tag of one byte, a length, and so many bytes.
fn field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn varint_len(value: u64) -> usize {
    (63 - (value | 1).leading_zeros() as usize) / 7 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::key_entry::Revision;

    fn row<'a>(key: &'a [u8], value: &'a [u8], main: i64, create: i64, version: i64, lease: i64) -> Row<'a> {
        let at = Revision { main, sub: 0 };
        Row { at, key, value, create, version, lease, prev: Revision::NONE, jump: Revision::NONE }
    }

    fn encoded(row: &Row<'_>, prev: Option<&Row<'_>>) -> Vec<u8> {
        let mut out = Vec::new();
        encode_event(&mut out, row, prev);
        assert_eq!(out.len(), encoded_len(row, prev));
        out
    }

    /// The bytes are what protobuf makes of the same messages.
    #[test]
    fn events_have_their_bytes() {
        let put = row(b"foo", b"bar", 7, 5, 2, 0);
        let pair = b"\x0a\x03foo\x10\x05\x18\x07\x20\x02\x2a\x03bar";
        assert_eq!(encoded(&put, None), [b"\x5a\x12\x12\x10", pair.as_slice()].concat());
        let delete = row(b"foo", b"", 300, 0, 0, 0);
        let gone = b"\x0a\x03foo\x18\xac\x02";
        assert_eq!(encoded(&delete, None), [b"\x5a\x0c\x08\x01\x12\x08", gone.as_slice()].concat());
        let both = [b"\x5a\x1e\x08\x01\x12\x08", gone.as_slice(), b"\x1a\x10", pair].concat();
        assert_eq!(encoded(&delete, Some(&put)), both);
    }

    #[test]
    fn lengths_are_those_of_the_bytes() {
        for shift in 0..63 {
            let number = 1_i64 << shift;
            let value = vec![b'v'; (shift * shift * 9) as usize];
            let put = row(b"k", &value, number, number, number, -number);
            encoded(&put, None);
            encoded(&row(b"k", b"", number, 0, 0, 0), Some(&put));
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number.cast_unsigned() - 1);
            assert_eq!(bytes.len(), varint_len(number.cast_unsigned() - 1));
        }
        assert_eq!(varint_len(u64::MAX), 10);
    }
}
