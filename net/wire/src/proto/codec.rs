//! The protobuf wire format (protobuf.dev/programming-guides/encoding), as far as the etcd API uses it.
//!
//! Owns: varints, tags, length-delimited fields, the skipping of unknown fields, the bounds of decoding, and the
//! functions that append encoded fields. Generated code is a sequence of calls into this file.
//!
//! Does not know: any message.
//!
//! Rules, all as Go's protobuf applies them (etcd is written in it, so its leniency is part of the API):
//! - a field whose wire type differs from the declared one is an unknown field, not an error;
//! - unknown fields of every wire type are skipped, groups included; wire types 6 and 7 are errors;
//! - a varint has at most ten bytes and 64 bits, and longer forms than necessary are accepted; narrower integer types
//!   keep the low bits, and a bool is true when its varint is not zero;
//! - the last scalar wins, repeated occurrences of one embedded message are merged, and so are those of one oneof
//!   member while another member replaces it;
//! - strings must be UTF-8.
//!
//! Invariants:
//! - I1: the unread rest only shrinks, and every loop iteration reads at least one byte, so decoding ends.
//! - I2: every level of messages or groups costs one of `depth_max`, every repeated element one of `elements_max`.

use std::fmt;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end inside a field.
    Truncated,
    /// A varint longer than ten bytes or wider than 64 bits.
    VarintOverflow,
    /// Field number zero or above 2^29 - 1, a reserved wire type, or an end-group tag that closes nothing.
    InvalidTag,
    /// A string field that is not UTF-8.
    InvalidUtf8,
    /// Messages or groups nested deeper than `Limits::depth_max`.
    TooDeep,
    /// More repeated elements than `Limits::elements_max`.
    TooManyElements,
}

impl fmt::Display for DecodeError {
    /// The texts of Go's protobuf where it has one, since gRPC servers put them into the status message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated | Self::VarintOverflow | Self::InvalidTag => "proto: cannot parse invalid wire-format data",
            Self::InvalidUtf8 => "proto: string field contains invalid UTF-8",
            Self::TooDeep => "proto: exceeded maximum recursion depth",
            Self::TooManyElements => "proto: too many repeated elements",
        })
    }
}

impl std::error::Error for DecodeError {}

/// Bounds of one decoding. Go bounds the depth (10,000) and lets elements grow with the bytes; a two-byte element that
/// becomes a struct of more than a hundred bytes is an amplification this server does not offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nested messages and groups. One nested transaction takes two levels.
    pub depth_max: u32,
    /// Elements of all repeated fields of the message and of everything inside it.
    pub elements_max: u32,
}

impl Limits {
    /// For bytes of an untrusted sender: 100 nested transactions fit, and 2^17 operations.
    pub const DEFAULT: Self = Self { depth_max: 256, elements_max: 1 << 17 };
    /// For a client that asked for the answer: elements are bounded by the bytes alone.
    pub const RESPONSE: Self = Self { depth_max: 256, elements_max: u32::MAX };
}

/// A protobuf message that borrows from the bytes it was decoded from.
pub trait Message<'a>: Default {
    /// Full protobuf name, such as `etcdserverpb.PutRequest`.
    const NAME: &'static str;

    /// Reads fields to the end of `reader` into `self`. Fields already present are overwritten or merged.
    fn merge(&mut self, reader: &mut Reader<'a>) -> Result<(), DecodeError>;

    /// Bytes that [`Message::encode_into`] appends.
    fn encoded_len(&self) -> usize;

    /// Appends the encoding: fields in order of their numbers, defaults left out. Up to ten bytes of capacity beyond
    /// [`Message::encoded_len`] are used on the way.
    fn encode_into(&self, out: &mut Vec<u8>);

    /// Decodes within [`Limits::DEFAULT`].
    fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::decode_within(bytes, Limits::DEFAULT)
    }

    /// Decodes within the given bounds.
    fn decode_within(bytes: &'a [u8], limits: Limits) -> Result<Self, DecodeError> {
        let mut message = Self::default();
        message.merge(&mut Reader::new(bytes, limits))?;
        Ok(message)
    }

    /// The encoding in a buffer of its own.
    fn encode_to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len() + VARINT_BYTES_MAX);
        self.encode_into(&mut out);
        out
    }
}

/// Decodes a message and encodes it again: the canonical form of the same value.
pub type Reencode = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

/// See [`Reencode`].
pub fn reencode<'a, M: Message<'a>>(bytes: &'a [u8]) -> Result<Vec<u8>, DecodeError> {
    let message = M::decode(bytes)?;
    let out = message.encode_to_vec();
    assert_eq!(out.len(), message.encoded_len(), "{}: what is written is what was announced", M::NAME);
    Ok(out)
}

const WIRE_VARINT: u64 = 0;
const WIRE_FIXED64: u64 = 1;
const WIRE_LEN: u64 = 2;
const WIRE_START_GROUP: u64 = 3;
const WIRE_FIXED32: u64 = 5;

/// Bytes of 64 bits, seven a byte.
const VARINT_BYTES_MAX: usize = 10;
/// Highest field number: 2^29 - 1.
const FIELD_NUMBER_MAX: u64 = (1 << 29) - 1;
/// Highest number inside an unknown group.
const GROUP_NUMBER_MAX: u64 = (1 << 31) - 1;

/// The unread rest of one message, with what is left of the bounds.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    depth_left: u32,
    elements_left: u32,
}

impl<'a> Reader<'a> {
    /// A reader of a top-level message.
    pub fn new(bytes: &'a [u8], limits: Limits) -> Self {
        Self { rest: bytes, depth_left: limits.depth_max, elements_left: limits.elements_max }
    }

    /// The next tag (field number << 3 | wire type), or `None` at the end of the message.
    #[inline]
    pub fn tag(&mut self) -> Result<Option<u32>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number > FIELD_NUMBER_MAX {
            return Err(DecodeError::InvalidTag);
        }
        u32::try_from(tag).map(Some).map_err(|_| DecodeError::InvalidTag)
    }

    /// One varint.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        match self.rest {
            [first, rest @ ..] if *first < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*first))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().enumerate().take(VARINT_BYTES_MAX) {
            if index == VARINT_BYTES_MAX - 1 && *byte > 1 {
                return Err(DecodeError::VarintOverflow);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if *byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        // Ten continuation bytes are caught at the tenth, so only the end of the input leads here.
        Err(DecodeError::Truncated)
    }

    /// `int64`.
    #[inline]
    pub fn int64(&mut self) -> Result<i64, DecodeError> {
        self.varint().map(|value| value as i64)
    }

    /// `int32` and enums: the low 32 bits.
    #[inline]
    pub fn int32(&mut self) -> Result<i32, DecodeError> {
        self.varint().map(|value| value as i32)
    }

    /// `uint64`.
    #[inline]
    pub fn uint64(&mut self) -> Result<u64, DecodeError> {
        self.varint()
    }

    /// `uint32`: the low 32 bits.
    #[inline]
    pub fn uint32(&mut self) -> Result<u32, DecodeError> {
        self.varint().map(|value| value as u32)
    }

    /// `bool`.
    #[inline]
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        self.varint().map(|value| value != 0)
    }

    /// `bytes`, and the body of every other length-delimited field.
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
        let (body, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(body)
    }

    /// `string`.
    #[inline]
    pub fn string(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::InvalidUtf8)
    }

    /// An embedded message, merged into `target`.
    pub fn message<M: Message<'a>>(&mut self, target: &mut M) -> Result<(), DecodeError> {
        let body = self.bytes()?;
        let depth_left = self.depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let mut inner = Self { rest: body, depth_left, elements_left: self.elements_left };
        target.merge(&mut inner)?;
        self.elements_left = inner.elements_left;
        Ok(())
    }

    /// One element of a repeated message field.
    pub fn message_element<M: Message<'a>>(&mut self, elements: &mut Vec<M>) -> Result<(), DecodeError> {
        self.count_element()?;
        let mut element = M::default();
        self.message(&mut element)?;
        elements.push(element);
        Ok(())
    }

    /// All elements of one packed block of varints. `push` receives the raw varint.
    pub fn packed(&mut self, mut push: impl FnMut(u64)) -> Result<(), DecodeError> {
        let body = self.bytes()?;
        let mut inner = Self { rest: body, depth_left: self.depth_left, elements_left: self.elements_left };
        while !inner.rest.is_empty() {
            inner.count_element()?;
            push(inner.varint()?);
        }
        self.elements_left = inner.elements_left;
        Ok(())
    }

    /// Takes one repeated element from the budget; called before the element is read.
    #[inline]
    pub fn count_element(&mut self) -> Result<(), DecodeError> {
        self.elements_left = self.elements_left.checked_sub(1).ok_or(DecodeError::TooManyElements)?;
        Ok(())
    }

    /// Skips the value of an unknown field whose tag was just read.
    #[cold]
    pub fn skip(&mut self, tag: u32) -> Result<(), DecodeError> {
        self.skip_value(u64::from(tag))
    }

    fn skip_value(&mut self, tag: u64) -> Result<(), DecodeError> {
        match tag & 7 {
            WIRE_VARINT => self.varint().map(drop),
            WIRE_FIXED64 => self.skip_bytes(8),
            WIRE_LEN => self.bytes().map(drop),
            WIRE_START_GROUP => self.skip_group(tag),
            WIRE_FIXED32 => self.skip_bytes(4),
            _ => Err(DecodeError::InvalidTag),
        }
    }

    fn skip_bytes(&mut self, count: usize) -> Result<(), DecodeError> {
        self.rest = self.rest.get(count..).ok_or(DecodeError::Truncated)?;
        Ok(())
    }

    /// Skips to the end-group tag of the same field number.
    fn skip_group(&mut self, start: u64) -> Result<(), DecodeError> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let end = start + 1;
        loop {
            let tag = self.varint()?;
            // Inside a group Go lets numbers through that are too high for a field.
            if !(1..=GROUP_NUMBER_MAX).contains(&(tag >> 3)) {
                return Err(DecodeError::InvalidTag);
            }
            if tag == end {
                break;
            }
            self.skip_value(tag)?;
        }
        self.depth_left += 1;
        Ok(())
    }
}

/// Bytes of `value` as a varint: one per seven significant bits.
#[inline]
pub const fn varint_len(value: u64) -> usize {
    // (9 * bits + 64) / 64 equals the bits divided by seven, rounded up, for every count up to 64.
    let bits = 64 - (value | 1).leading_zeros() as usize;
    (9 * bits + 64) / 64
}

/// Bytes of a varint field.
#[inline]
pub const fn varint_field_len(tag: u32, value: u64) -> usize {
    varint_len(tag as u64) + varint_len(value)
}

/// Bytes of a length-delimited field with a body of `body_len` bytes.
#[inline]
pub const fn delimited_field_len(tag: u32, body_len: usize) -> usize {
    varint_len(tag as u64) + varint_len(body_len as u64) + body_len
}

/// Bytes of an embedded message field.
#[inline]
pub fn message_field_len<'a>(tag: u32, message: &impl Message<'a>) -> usize {
    delimited_field_len(tag, message.encoded_len())
}

/// Bytes of a packed field: zero when there are no values.
pub fn packed_field_len(tag: u32, values: impl Iterator<Item = u64>) -> usize {
    match values.map(varint_len).sum() {
        0 => 0,
        body_len => delimited_field_len(tag, body_len),
    }
}

/// Appends a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        out.push(value as u8);
    } else {
        put_long_varint(out, value);
    }
}

fn put_long_varint(out: &mut Vec<u8>, mut value: u64) {
    // One growth check and one copy of a fixed size are cheaper than a push a byte.
    let mut bytes = [0; VARINT_BYTES_MAX];
    let mut len = 0;
    while value >= 0x80 {
        bytes[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    bytes[len] = value as u8;
    let end = out.len() + len + 1;
    out.extend_from_slice(&bytes);
    out.truncate(end);
}

/// Appends a varint field.
#[inline]
pub fn put_varint_field(out: &mut Vec<u8>, tag: u32, value: u64) {
    put_varint(out, u64::from(tag));
    put_varint(out, value);
}

/// Appends a `bytes` or `string` field.
#[inline]
pub fn put_bytes_field(out: &mut Vec<u8>, tag: u32, body: &[u8]) {
    put_varint(out, u64::from(tag));
    put_varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

/// Appends an embedded message field.
#[inline]
pub fn put_message_field<'a>(out: &mut Vec<u8>, tag: u32, message: &impl Message<'a>) {
    put_varint(out, u64::from(tag));
    put_varint(out, message.encoded_len() as u64);
    message.encode_into(out);
}

/// Appends a packed field, or nothing when there are no values.
pub fn put_packed_field(out: &mut Vec<u8>, tag: u32, values: impl Iterator<Item = u64> + Clone) {
    let body_len: usize = values.clone().map(varint_len).sum();
    if body_len > 0 {
        put_varint(out, u64::from(tag));
        put_varint(out, body_len as u64);
        values.for_each(|value| put_varint(out, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_lengths_match_what_is_written() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value:#x}");
                assert_eq!(Reader::new(&out, Limits::DEFAULT).varint(), Ok(value));
            }
        }
    }

    #[test]
    fn varint_forms_follow_go() {
        let read = |bytes: &[u8]| Reader::new(bytes, Limits::DEFAULT).varint();
        assert_eq!(read(&[0x80, 0x80, 0x00]), Ok(0), "longer than necessary");
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Ok(u64::MAX));
        assert_eq!(
            read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]),
            Err(DecodeError::VarintOverflow),
            "bit 64"
        );
        assert_eq!(read(&[0xff; 11]), Err(DecodeError::VarintOverflow), "eleven bytes");
        assert_eq!(read(&[0x80]), Err(DecodeError::Truncated));
        assert_eq!(read(&[]), Err(DecodeError::Truncated));
    }

    #[test]
    fn tags_are_checked() {
        let read = |bytes: &[u8]| Reader::new(bytes, Limits::DEFAULT).tag();
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[0x0a]), Ok(Some(0x0a)));
        assert_eq!(read(&[0x8a, 0x00]), Ok(Some(0x0a)), "a long form of the same tag");
        assert_eq!(read(&[0x02]), Err(DecodeError::InvalidTag), "field number zero");
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(Some(u32::MAX)), "highest number, wire type 7");
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x10]), Err(DecodeError::InvalidTag), "number 2^29");
    }

    #[test]
    fn groups_are_skipped_within_the_depth_bound() {
        // Field 7: start group, varint field 1, nested group 2, end groups in order.
        let group = [0x3b, 0x08, 0x05, 0x13, 0x14, 0x3c, 0x99];
        let mut reader = Reader::new(&group, Limits::DEFAULT);
        let tag = reader.tag().unwrap().unwrap();
        assert_eq!(reader.skip(tag), Ok(()));
        assert_eq!(reader.rest, [0x99]);
        assert_eq!(reader.depth_left, Limits::DEFAULT.depth_max);

        let skip = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes, Limits::DEFAULT);
            let tag = reader.tag().unwrap().unwrap();
            reader.skip(tag)
        };
        assert_eq!(skip(&[0x3b, 0x44]), Err(DecodeError::InvalidTag), "closed by another number");
        assert_eq!(skip(&[0x3b, 0x00, 0x3c]), Err(DecodeError::InvalidTag), "number zero inside");
        assert_eq!(skip(&[0x3b, 0xf8, 0xff, 0xff, 0xff, 0x3f, 0x00, 0x3c]), Ok(()), "number 2^31 - 1 inside");
        assert_eq!(skip(&[0x3b, 0x80, 0x80, 0x80, 0x80, 0x40, 0x00, 0x3c]), Err(DecodeError::InvalidTag), "2^31");
        assert_eq!(skip(&[0x3b]), Err(DecodeError::Truncated), "never closed");
        assert_eq!(skip(&[0x3c]), Err(DecodeError::InvalidTag), "end without start");
        assert_eq!(skip(&[0x3e]), Err(DecodeError::InvalidTag), "wire type 6");

        let depth = Limits::DEFAULT.depth_max as usize;
        let nested = |levels: usize| [vec![0x0b; levels], vec![0x0c; levels]].concat();
        assert_eq!(skip(&nested(depth)), Ok(()));
        assert_eq!(skip(&nested(depth + 1)), Err(DecodeError::TooDeep));
    }

    #[test]
    fn lengths_beyond_the_input_are_truncation() {
        let read = |bytes: &'static [u8]| Reader::new(bytes, Limits::DEFAULT).bytes();
        assert_eq!(read(&[0x02, 0x61, 0x62]), Ok(&b"ab"[..]));
        assert_eq!(read(&[0x03, 0x61, 0x62]), Err(DecodeError::Truncated));
        assert_eq!(
            read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            Err(DecodeError::Truncated),
            "length 2^64 - 1"
        );
    }
}
