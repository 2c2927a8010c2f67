//! The few etcd messages the tests build and read themselves, in plain proto3 wire format.
//!
//! Written apart from the product's codec on purpose: a mistake shared by both ends would be invisible.
//! Field numbers are those of etcd's rpc.proto and kv.proto.

use anyhow::{Context, Result, bail};

/// A message under construction.
#[derive(Clone, Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a varint field.
    #[must_use]
    pub fn number(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    /// Adds a length-delimited field.
    #[must_use]
    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
        self
    }

    /// The encoded form.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.bytes.push(value.to_le_bytes()[0]);
    }
}

/// One field of a received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// Wire type 0.
    Number(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
}

/// Splits a message into its fields; other wire types do not occur in etcd's messages and are errors.
pub fn fields(mut rest: &[u8]) -> Result<Vec<(u32, Field<'_>)>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        let field = match key & 7 {
            0 => Field::Number(take_varint(&mut rest)?),
            2 => {
                let length = usize::try_from(take_varint(&mut rest)?)?;
                let (value, tail) = rest.split_at_checked(length).context("a field is longer than its message")?;
                rest = tail;
                Field::Bytes(value)
            }
            other => bail!("wire type {other}"),
        };
        found.push((u32::try_from(key >> 3)?, field));
    }
    Ok(found)
}

fn take_varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first().context("a varint ends early")?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a varint is longer than ten bytes")
}

/// A key as a Range returns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Revision of the last change.
    pub mod_revision: u64,
    /// Revision of the creation.
    pub create_revision: u64,
    /// Number of changes since the creation.
    pub version: u64,
}

impl KeyValue {
    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut pair = Self::default();
        for field in fields(bytes)? {
            match field {
                (1, Field::Bytes(key)) => pair.key = key.to_vec(),
                (2, Field::Number(revision)) => pair.create_revision = revision,
                (3, Field::Number(revision)) => pair.mod_revision = revision,
                (4, Field::Number(version)) => pair.version = version,
                (5, Field::Bytes(value)) => pair.value = value.to_vec(),
                _ => {}
            }
        }
        Ok(pair)
    }
}

/// A PutRequest.
pub fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
    Message::new().bytes(1, key).bytes(2, value).finish()
}

/// A linearizable RangeRequest for [key, end); an empty end asks for the key alone.
pub fn range(key: &[u8], end: &[u8]) -> Vec<u8> {
    let message = Message::new().bytes(1, key);
    if end.is_empty() { message.finish() } else { message.bytes(2, end).finish() }
}

/// A linearizable RangeRequest for [key, end) at an old revision; a response carries the keys of that time.
pub fn range_at(key: &[u8], end: &[u8], revision: u64) -> Vec<u8> {
    Message { bytes: range(key, end) }.number(4, revision).finish()
}

/// A DeleteRangeRequest for [key, end); an empty end asks for the key alone.
pub fn delete(key: &[u8], end: &[u8]) -> Vec<u8> {
    range(key, end)
}

/// A CompactionRequest.
pub fn compaction(revision: u64, physical: bool) -> Vec<u8> {
    Message::new().number(1, revision).number(2, u64::from(physical)).finish()
}

/// The revision in the header of any response.
pub fn header_revision(response: &[u8]) -> Result<u64> {
    for field in fields(response)? {
        let (1, Field::Bytes(header)) = field else { continue };
        for field in fields(header)? {
            if let (3, Field::Number(revision)) = field {
                return Ok(revision);
            }
        }
    }
    bail!("the response header carries no revision")
}

/// The keys of a RangeResponse.
pub fn range_response(response: &[u8]) -> Result<Vec<KeyValue>> {
    let mut pairs = Vec::new();
    for field in fields(response)? {
        if let (2, Field::Bytes(pair)) = field {
            pairs.push(KeyValue::decode(pair)?);
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        let message = Message::new().number(3, 300).bytes(7, b"abc").number(1, u64::MAX).finish();
        let read = fields(&message).unwrap();
        assert_eq!(read, [(3, Field::Number(300)), (7, Field::Bytes(b"abc")), (1, Field::Number(u64::MAX))]);
    }

    #[test]
    fn torn_messages_are_errors() {
        let message = Message::new().number(3, 300).bytes(7, b"abc").finish();
        for length in [1, 2, 4, 5, message.len() - 1] {
            assert!(fields(&message[..length]).is_err(), "{length}");
        }
        assert!(fields(&[0x0d, 0, 0, 0, 0]).is_err(), "fixed32");
    }

    #[test]
    fn responses_are_taken_apart() {
        let header = Message::new().number(1, 9).number(3, 42).finish();
        let pair = Message::new().bytes(1, b"k").number(2, 40).number(3, 41).number(4, 2).bytes(5, b"v").finish();
        let response = Message::new().bytes(1, &header).bytes(2, &pair).number(4, 1).finish();
        assert_eq!(header_revision(&response).unwrap(), 42);
        let pairs = range_response(&response).unwrap();
        assert_eq!(pairs[0].mod_revision, 41);
        assert_eq!((pairs[0].key.as_slice(), pairs[0].value.as_slice()), (&b"k"[..], &b"v"[..]));
        assert_eq!((pairs[0].create_revision, pairs[0].version), (40, 2));
    }
}
