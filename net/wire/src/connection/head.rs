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

const KNOWN_COUNT: usize = Known::GatewayAccept as usize + 1;

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
