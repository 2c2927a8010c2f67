//! A request's head: pseudo header fields and header fields, decoded once and looked up often.
//!
//! Owns: one byte arena with the fields of a request, and the places of the fields the server asks for. Does not know:
//! HPACK, HTTP/1.1 syntax.
//!
//! Invariants
//! - I1: every recorded range lies inside the arena.
//! - I2: names are lower case. A field that occurs twice is found by its first occurrence.

/// The fields with a fixed place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:path`, query included.
    Path,
    /// `:authority`, or `host`.
    Authority,
    /// `content-type`.
    ContentType,
    /// `content-length`.
    ContentLength,
    /// `grpc-timeout`.
    GrpcTimeout,
    /// `grpc-encoding`.
    GrpcEncoding,
    /// `token`.
    Token,
    /// `authorization`.
    Authorization,
    /// `hasleader`.
    HasLeader,
    /// `client-api-version`.
    ClientApiVersion,
    /// `grpcgateway-accept`.
    GatewayAccept,
}

impl Known {
    /// Every place, in order of its number.
    pub(crate) const ALL: [Self; 13] = [
        Self::Method,
        Self::Scheme,
        Self::Path,
        Self::Authority,
        Self::ContentType,
        Self::ContentLength,
        Self::GrpcTimeout,
        Self::GrpcEncoding,
        Self::Token,
        Self::Authorization,
        Self::HasLeader,
        Self::ClientApiVersion,
        Self::GatewayAccept,
    ];

    /// The place of a pseudo header field of a request, by its name.
    pub(crate) fn of_pseudo(name: &[u8]) -> Option<Self> {
        Some(match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":path" => Self::Path,
            b":authority" => Self::Authority,
            _ => return None,
        })
    }

    /// The place of a regular field, by its lower-case name.
    pub(crate) fn of_field(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"host" => Self::Authority,
            b"content-type" => Self::ContentType,
            b"content-length" => Self::ContentLength,
            b"grpc-timeout" => Self::GrpcTimeout,
            b"grpc-encoding" => Self::GrpcEncoding,
            b"token" => Self::Token,
            b"authorization" => Self::Authorization,
            b"hasleader" => Self::HasLeader,
            b"client-api-version" => Self::ClientApiVersion,
            b"grpcgateway-accept" => Self::GatewayAccept,
            _ => return None,
        })
    }
}

const KNOWN_COUNT: usize = Known::ALL.len();
const _: () = assert!(Known::ALL[KNOWN_COUNT - 1] as usize == KNOWN_COUNT - 1, "ALL is in order");

#[derive(Clone, Copy, Debug, Default)]
struct Field {
    start: u32,
    name_len: u32,
    value_len: u32,
}

/// A decoded request head.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    bytes: Vec<u8>,
    fields: Vec<Field>,
    known: [Option<(u32, u32)>; KNOWN_COUNT],
    timeout: Option<u64>,
}

impl RequestHead {
    /// Empties the head, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.known = [None; KNOWN_COUNT];
        self.timeout = None;
    }

    /// Records a pseudo header field (or a part of an HTTP/1.1 request line); false if it was there already.
    #[inline]
    pub(crate) fn push_pseudo(&mut self, field: Known, value: &[u8]) -> bool {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        self.known[field as usize].replace((start, value.len() as u32)).is_none()
    }

    /// Records a regular field by its lower-case name; `known` is its fixed place, if it has one.
    #[inline]
    pub(crate) fn push_field(&mut self, name: &[u8], value: &[u8], known: Option<Known>) {
        let start = self.bytes.len() as u32;
        self.bytes.reserve(name.len() + value.len());
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.fields.push(Field { start, name_len: name.len() as u32, value_len: value.len() as u32 });
        if let Some(field) = known {
            let place = &mut self.known[field as usize];
            place.get_or_insert((start + name.len() as u32, value.len() as u32));
        }
    }

    pub(crate) fn set_timeout(&mut self, timeout: Option<u64>) {
        self.timeout = timeout;
    }

    /// Number of regular fields.
    pub(crate) fn field_count(&self) -> usize {
        self.fields.len()
    }

    /// Memory in use, bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len() + self.fields.len() * size_of::<Field>()
    }

    /// The request method, e.g. `POST`.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.known(Known::Method).unwrap_or_default()
    }

    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        let target = self.known(Known::Path).unwrap_or_default();
        target.split(|&byte| byte == b'?').next().unwrap_or_default()
    }

    /// What follows `?` in the target; empty without one.
    #[must_use]
    pub fn query(&self) -> &[u8] {
        let target = self.known(Known::Path).unwrap_or_default();
        target.iter().position(|&byte| byte == b'?').map_or(&[], |at| &target[at + 1..])
    }

    /// One of the fields with a fixed place.
    #[must_use]
    pub fn known(&self, field: Known) -> Option<&[u8]> {
        self.known[field as usize].map(|(start, len)| &self.bytes[start as usize..(start + len) as usize])
    }

    /// The first regular field of that name (lower case). Linear; prefer [`RequestHead::known`].
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// All regular fields in order of arrival.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| {
            let name_end = (field.start + field.name_len) as usize;
            let value_end = name_end + field.value_len as usize;
            (&self.bytes[field.start as usize..name_end], &self.bytes[name_end..value_end])
        })
    }

    /// `grpc-timeout` in nanoseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        self.timeout
    }
}
