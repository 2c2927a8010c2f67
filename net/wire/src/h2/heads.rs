//! Request heads: decoding a header block into a checked [`RequestHead`], and reusing the result for equal blocks.
//!
//! Owns: the rules of RFC 9113 section 8.2 and 8.3 for requests, the slab of heads, and a small cache. Clients repeat
//! the same few bytes for the same method, fully indexed; as long as the decoder's generation stands, equal bytes mean
//! an equal head, found by one comparison. Does not know: streams, frames.
//!
//! Invariants
//! - I1: a cached head was decoded by the present generation of the table, without changing it.
//! - I2: a slot is reused only when no stream refers to it and the cache has let it go.

use crate::connection::limits::HEADER_FIELDS_MAX;
use crate::connection::{Known, RequestHead, Route};
use crate::grpc;
use crate::hpack::{Decoder, FieldSink, HpackError, Mark};

/// Blocks remembered for reuse.
const CACHE_SLOTS: usize = 8;
/// Longest block worth remembering, bytes.
const CACHED_BLOCK_BYTES_MAX: usize = 256;

/// A head in the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadRef(u32);

/// What a head asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadKind {
    /// Breaks RFC 9113 section 8: stream error PROTOCOL_ERROR.
    Malformed,
    /// Larger than the limits: 431.
    TooLarge,
    /// A gRPC call that grpc-go refuses at its head; see [`grpc_refusal`].
    RefusedCall,
    /// A gRPC call; `None` is an unknown method.
    Call(Option<Route>),
    /// Any other request.
    Http,
}

/// A decoded head and what follows from it alone.
#[derive(Debug)]
pub(super) struct DecodedHead {
    pub(super) head: RequestHead,
    pub(super) kind: HeadKind,
    pub(super) content_length: Option<u64>,
    /// The block and generation it can be found by, if cached.
    block: Vec<u8>,
    generation: Option<u64>,
    references: u32,
    in_cache: bool,
}

/// The slab with its cache.
#[derive(Debug)]
pub(super) struct HeadStore {
    slots: Vec<DecodedHead>,
    free: Vec<u32>,
    cache: [Option<u32>; CACHE_SLOTS],
    cache_next: usize,
    route: fn(&[u8]) -> Option<Route>,
    list_bytes_max: usize,
}

impl HeadStore {
    pub(super) fn new(route: fn(&[u8]) -> Option<Route>, list_bytes_max: usize) -> Self {
        let cache = [None; CACHE_SLOTS];
        Self { slots: Vec::new(), free: Vec::new(), cache, cache_next: 0, route, list_bytes_max }
    }

    pub(super) fn get(&self, head: HeadRef) -> &DecodedHead {
        &self.slots[head.0 as usize]
    }

    /// Decodes a request's block; the caller holds one reference to the result.
    #[inline]
    pub(super) fn decode(&mut self, decoder: &mut Decoder, block: &[u8]) -> Result<HeadRef, HpackError> {
        let generation = decoder.generation();
        for slot in self.cache.iter().flatten() {
            let entry = &mut self.slots[*slot as usize];
            if entry.generation == Some(generation) && entry.block == block {
                entry.references += 1;
                return Ok(HeadRef(*slot));
            }
        }
        self.decode_anew(decoder, block)
    }

    /// Gives a reference back.
    #[inline]
    pub(super) fn release(&mut self, head: HeadRef) {
        let entry = &mut self.slots[head.0 as usize];
        assert!(entry.references > 0, "I2: a head was released twice");
        entry.references -= 1;
        if entry.references == 0 && !entry.in_cache {
            self.free.push(head.0);
        }
    }

    fn decode_anew(&mut self, decoder: &mut Decoder, block: &[u8]) -> Result<HeadRef, HpackError> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(DecodedHead {
                head: RequestHead::default(),
                kind: HeadKind::Malformed,
                content_length: None,
                block: Vec::new(),
                generation: None,
                references: 0,
                in_cache: false,
            });
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        entry.head.clear();
        entry.references = 1;
        entry.generation = None;
        let before = decoder.generation();
        let mut builder = HeadBuilder::new(&mut entry.head, self.list_bytes_max);
        decoder.decode(block, &mut builder)?;
        let verdict = builder.verdict();
        (entry.kind, entry.content_length) = classify(&mut entry.head, verdict, self.route);
        // I1: a block that changed the table would decode differently the next time.
        if decoder.generation() == before && block.len() <= CACHED_BLOCK_BYTES_MAX && verdict == Verdict::Valid {
            entry.block.clear();
            entry.block.extend_from_slice(block);
            entry.generation = Some(before);
            self.remember(slot);
        }
        Ok(HeadRef(slot))
    }

    fn remember(&mut self, slot: u32) {
        let displaced = self.cache[self.cache_next].replace(slot);
        self.cache_next = (self.cache_next + 1) % CACHE_SLOTS;
        self.slots[slot as usize].in_cache = true;
        if let Some(old) = displaced {
            let entry = &mut self.slots[old as usize];
            entry.in_cache = false;
            entry.generation = None;
            if entry.references == 0 {
                self.free.push(old);
            }
        }
    }
}

/// Trailers carry nothing we need; they are decoded for the table's sake and checked. `Ok(false)`: malformed.
pub(super) fn decode_trailers(decoder: &mut Decoder, block: &[u8], list_bytes_max: usize) -> Result<bool, HpackError> {
    let mut discarded = RequestHead::default();
    let mut builder = HeadBuilder::new(&mut discarded, list_bytes_max);
    builder.regular_seen = true;
    decoder.decode(block, &mut builder)?;
    Ok(!builder.malformed)
}

/// Why grpc-go refuses a call by its head alone, and with which HTTP status. The order of checks is its own.
pub(super) fn grpc_refusal(head: &RequestHead) -> Option<(u16, grpc::Refusal)> {
    if let Some(Err(text)) = head.known(Known::GrpcTimeout).map(grpc::parse_timeout) {
        return Some((400, grpc::Refusal::new(grpc::INTERNAL, format!("malformed grpc-timeout: {text}"))));
    }
    grpc_refusal_beyond_timeout(head)
}

fn grpc_refusal_beyond_timeout(head: &RequestHead) -> Option<(u16, grpc::Refusal)> {
    if head.known(Known::Authority).is_none() {
        return Some((400, grpc::Refusal::new(grpc::INTERNAL, "no host or :authority header present")));
    }
    if head.method() != b"POST" {
        return Some((405, grpc::Refusal::wrong_method(head.method())));
    }
    let target = head.known(Known::Path).unwrap_or_default();
    (!grpc::is_method_path(target)).then(|| (200, grpc::Refusal::malformed_path(target)))
}

fn classify(head: &mut RequestHead, verdict: Verdict, route: fn(&[u8]) -> Option<Route>) -> (HeadKind, Option<u64>) {
    match verdict {
        Verdict::Malformed => return (HeadKind::Malformed, None),
        Verdict::TooLarge => return (HeadKind::TooLarge, None),
        Verdict::Valid => {}
    }
    let content_length = match head.known(Known::ContentLength).map(parse_content_length) {
        Some(None) => return (HeadKind::Malformed, None),
        Some(length) => length,
        None => None,
    };
    if !head.known(Known::ContentType).is_some_and(grpc::is_grpc_content_type) {
        return (HeadKind::Http, content_length);
    }
    let Ok(timeout) = head.known(Known::GrpcTimeout).map(grpc::parse_timeout).transpose() else {
        return (HeadKind::RefusedCall, content_length);
    };
    if grpc_refusal_beyond_timeout(head).is_some() {
        return (HeadKind::RefusedCall, content_length);
    }
    head.set_timeout(timeout);
    (HeadKind::Call(route(head.known(Known::Path).unwrap_or_default())), content_length)
}

/// Decimal digits only; `None` otherwise.
pub(crate) fn parse_content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Valid,
    Malformed,
    TooLarge,
}

/// What one field is, whatever its neighbours: the bits of a [`Mark`].
const EXAMINED: u8 = 0x80;
const MALFORMED: u8 = 0x40;
/// One more than the number of the field's fixed place, or zero.
const PLACE_BITS: u8 = 0x1f;

/// Judges a field by RFC 9113 sections 8.2.1 (characters), 8.2.2 (fields of a connection) and 8.3 (pseudo fields).
fn examine(name: &[u8], value: &[u8]) -> u8 {
    let mut malformed = value.iter().fold(false, |bad, &byte| bad | matches!(byte, 0 | b'\r' | b'\n'));
    let known = if name.first() == Some(&b':') {
        let known = Known::of_pseudo(name);
        malformed |= known.is_none();
        known
    } else {
        malformed |= name.is_empty() || !name.iter().fold(true, |valid, &byte| valid & is_name_byte(byte));
        malformed |= match name {
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => true,
            b"te" => value != b"trailers",
            _ => false,
        };
        Known::of_field(name)
    };
    EXAMINED | if malformed { MALFORMED } else { 0 } | known.map_or(0, |known| known as u8 + 1)
}

/// A token character (RFC 9110 section 5.6.2) that is not upper case.
fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\''
        | b'*' | b'+' | b'^' | b'`' | b'|' | b'~')
}

/// Collects the fields of a block and judges them by RFC 9113 section 8.
struct HeadBuilder<'a> {
    head: &'a mut RequestHead,
    list_bytes: usize,
    list_bytes_max: usize,
    malformed: bool,
    regular_seen: bool,
    host_seen: bool,
}

impl<'a> HeadBuilder<'a> {
    fn new(head: &'a mut RequestHead, list_bytes_max: usize) -> Self {
        Self { head, list_bytes: 0, list_bytes_max, malformed: false, regular_seen: false, host_seen: false }
    }

    fn is_too_large(&self) -> bool {
        self.list_bytes > self.list_bytes_max || self.head.field_count() >= HEADER_FIELDS_MAX
    }

    fn verdict(&self) -> Verdict {
        let absent = |field| self.head.known(field).is_none_or(<[u8]>::is_empty);
        if self.is_too_large() {
            Verdict::TooLarge
        } else if self.malformed || absent(Known::Method) || absent(Known::Scheme) || absent(Known::Path) {
            Verdict::Malformed
        } else {
            Verdict::Valid
        }
    }
}

impl FieldSink for HeadBuilder<'_> {
    #[inline]
    fn field(&mut self, name: &[u8], value: &[u8], mark: Mark) -> Mark {
        let bits = if mark.0 & EXAMINED != 0 { mark.0 } else { examine(name, value) };
        self.list_bytes += name.len() + value.len() + 32;
        self.malformed |= bits & MALFORMED != 0;
        if self.malformed || self.is_too_large() {
            return Mark(bits);
        }
        let known = usize::from(bits & PLACE_BITS).checked_sub(1).map(|number| Known::ALL[number]);
        match known {
            Some(known) if name.first() == Some(&b':') => {
                // Section 8.3: once each, before the regular fields.
                self.malformed |= self.regular_seen || !self.head.push_pseudo(known, value);
            }
            known => {
                if known == Some(Known::Authority) {
                    self.malformed |= std::mem::replace(&mut self.host_seen, true);
                }
                self.regular_seen = true;
                self.head.push_field(name, value, known);
            }
        }
        Mark(bits)
    }
}

const _: () = assert!(Known::ALL.len() < PLACE_BITS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in fields {
            out.extend_from_slice(&[0, name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
            out.push(value.len() as u8);
            out.extend_from_slice(value.as_bytes());
        }
        out
    }

    const CALL: [(&str, &str); 5] = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a.B/C"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
    ];

    fn kind(fields: &[(&str, &str)]) -> HeadKind {
        let mut store = HeadStore::new(|_| None, 16_384);
        let head = store.decode(&mut Decoder::new(4096), &block(fields)).unwrap();
        store.get(head).kind
    }

    fn with(changes: &[(usize, &'static str, &'static str)], extra: &[(&'static str, &'static str)]) -> HeadKind {
        let mut fields = CALL.to_vec();
        for (index, name, value) in changes {
            fields[*index] = (name, value);
        }
        fields.extend_from_slice(extra);
        kind(&fields)
    }

    #[test]
    fn heads_are_judged() {
        use HeadKind::{Call, Http, Malformed, RefusedCall, TooLarge};
        assert_eq!(with(&[], &[]), Call(None));
        assert_eq!(with(&[(4, "content-type", "application/json")], &[]), Http);
        assert_eq!(with(&[(0, ":method", "GET")], &[]), RefusedCall);
        assert_eq!(with(&[(2, ":path", "a.B/C")], &[]), RefusedCall);
        assert_eq!(with(&[(3, "x", "y")], &[]), RefusedCall, "no authority");
        assert_eq!(with(&[(3, "host", "y")], &[]), Call(None), "host stands for authority");
        assert_eq!(with(&[], &[("grpc-timeout", "abc")]), RefusedCall);
        assert_eq!(with(&[], &[("te", "trailers")]), Call(None));
        for extra in [
            ("Upper", "x"),
            ("te", "gzip"),
            ("connection", "close"),
            (":path", "/again"),
            (":status", "200"),
            ("a b", "x"),
            ("x", "line\nfeed"),
            ("content-length", "1x"),
        ] {
            assert_eq!(with(&[], &[extra]), Malformed, "{extra:?}");
        }
        assert_eq!(with(&[(2, "x", "y")], &[]), Malformed, "no path");
        assert_eq!(with(&[], &[("host", "a"), ("host", "b")]), Malformed);
        assert_eq!(with(&[], &[("x", "y"); 300]), TooLarge);
    }

    #[test]
    fn equal_blocks_share_a_head_until_the_table_changes() {
        let mut store = HeadStore::new(|_| None, 16_384);
        let mut decoder = Decoder::new(4096);
        let bytes = block(&CALL);
        let first = store.decode(&mut decoder, &bytes).unwrap();
        let second = store.decode(&mut decoder, &bytes).unwrap();
        assert_eq!(first, second);
        // 0x40: inserts a field. The block after it means the same here, but that is for the decoder to say.
        store.decode(&mut decoder, &[&[0x40, 1, b'x', 1, b'y'][..]].concat()).unwrap();
        let third = store.decode(&mut decoder, &bytes).unwrap();
        assert_ne!(first, third);
        assert_eq!(store.get(third).head.path(), b"/a.B/C");
    }

    #[test]
    fn slots_are_reused() {
        let mut store = HeadStore::new(|_| None, 16_384);
        let mut decoder = Decoder::new(4096);
        for round in 0..1_000 {
            let mut fields = CALL.to_vec();
            let number = (round % 100).to_string();
            fields.push(("x", &number));
            let head = store.decode(&mut decoder, &block(&fields)).unwrap();
            assert_eq!(store.get(head).head.get(b"x"), Some(number.as_bytes()));
            store.release(head);
        }
        assert!(store.slots.len() <= CACHE_SLOTS + 1);
    }
}
