//! Header compression (RFC 7541) of the load generator: a complete decoder, and an encoder for one fixed request.
//!
//! Independent of the server's codec on purpose: a mistake there must not be made twice.
//! Does not know: frames, streams.

use std::collections::VecDeque;

/// Largest dynamic table either side of ours uses: the default of RFC 9113.
pub const TABLE_BYTES_MAX: usize = 4096;
/// What an entry costs beyond its text (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;

type Field = (Vec<u8>, Vec<u8>);

/// A static table without the values nobody asks for: (name, value) per index (RFC 7541, appendix A).
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Code lengths of the symbols 0..=256 (RFC 7541, appendix B); the code is canonical, so the lengths are enough.
const CODE_BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
const CODE_BITS_MAX: usize = 30;

/// Decodes the header blocks of one connection, in order.
pub struct Decoder {
    dynamic: VecDeque<Field>,
    bytes: usize,
    bytes_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { dynamic: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES_MAX }
    }
}

impl Decoder {
    /// Hands each field of a block to `field`. `None`: the block is broken.
    pub fn decode(&mut self, mut block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Option<()> {
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.entry(index)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                self.bytes_max = integer(&mut block, 5)?;
                if self.bytes_max > TABLE_BYTES_MAX {
                    return None;
                }
                self.evict(0);
            } else {
                let keep = first & 0x40 != 0;
                let index = integer(&mut block, if keep { 6 } else { 4 })?;
                let name = if index == 0 { text(&mut block)? } else { self.entry(index)?.0.to_vec() };
                let value = text(&mut block)?;
                field(&name, &value);
                if keep {
                    self.insert(name, value);
                }
            }
        }
        Some(())
    }

    fn entry(&self, index: usize) -> Option<(&[u8], &[u8])> {
        if let Some((name, value)) = STATIC.get(index.checked_sub(1)?) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let (name, value) = self.dynamic.get(index - 1 - STATIC.len())?;
        Some((name, value))
    }

    fn insert(&mut self, name: Vec<u8>, value: Vec<u8>) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        self.evict(size);
        if size <= self.bytes_max {
            self.bytes += size;
            self.dynamic.push_front((name, value));
        }
    }

    fn evict(&mut self, room: usize) {
        while self.bytes + room > self.bytes_max
            && let Some((name, value)) = self.dynamic.pop_back()
        {
            self.bytes -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }
}

/// An integer with a prefix of `bits` bits (RFC 7541, 5.1).
fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let (&first, rest) = block.split_first()?;
    *block = rest;
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(first) & mask;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let (&next, rest) = block.split_first()?;
        *block = rest;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A string literal (RFC 7541, 5.2).
fn text(block: &mut &[u8]) -> Option<Vec<u8>> {
    let coded = block.first()? & 0x80 != 0;
    let len = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(len)?;
    *block = rest;
    if coded { huffman(bytes) } else { Some(bytes.to_vec()) }
}

/// Decodes bit by bit: for each length the canonical code knows its first code and how many there are.
fn huffman(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut bits, mut first) = (0_u32, 0, 0_u32);
    for byte in bytes {
        for shift in (0..8).rev() {
            code = (code << 1) | u32::from((byte >> shift) & 1);
            bits += 1;
            first <<= 1;
            let mut of_this_length = CODE_BITS.iter().enumerate().filter(|(_, len)| usize::from(**len) == bits);
            let count = of_this_length.clone().count() as u32;
            if code - first < count {
                let (symbol, _) = of_this_length.nth((code - first) as usize)?;
                // Symbol 256 ends a string and never appears in one.
                text.push(u8::try_from(symbol).ok()?);
                (code, bits, first) = (0, 0, 0);
                continue;
            }
            first += count;
            if bits > CODE_BITS_MAX {
                return None;
            }
        }
    }
    // Padding is at most seven bits, all ones.
    (bits < 8 && code == (1 << bits) - 1).then_some(text)
}

/// The header block of one kind of request, for one connection.
pub struct RequestHeaders {
    first: Vec<u8>,
    later: Vec<u8>,
    sent_first: bool,
}

impl RequestHeaders {
    /// `dynamic`: the server keeps at least the default table. Only one kind of request may be sent on a connection
    /// then, since `later` names entries by their distance.
    pub fn new(path: &str, authority: &str, dynamic: bool) -> Self {
        // :method POST and :scheme http stand in the static table.
        let mut first = vec![0x83, 0x86];
        let pattern = if dynamic { 0x40 } else { 0x00 };
        put_named(&mut first, pattern, 4, path);
        put_named(&mut first, pattern, 1, authority);
        put_named(&mut first, pattern, 31, "application/grpc");
        first.push(pattern);
        put_text(&mut first, "te");
        put_text(&mut first, "trailers");
        // Newest first: te is 62, content-type 63, authority 64, path 65.
        let later = if dynamic { vec![0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62] } else { first.clone() };
        Self { first, later, sent_first: false }
    }

    /// The block of the next request.
    pub fn next_block(&mut self) -> &[u8] {
        if std::mem::replace(&mut self.sent_first, true) { &self.later } else { &self.first }
    }
}

fn put_named(out: &mut Vec<u8>, pattern: u8, name_index: u8, value: &str) {
    let mask = if pattern == 0x40 { 0x3f } else { 0x0f };
    if name_index < mask {
        out.push(pattern | name_index);
    } else {
        out.extend_from_slice(&[pattern | mask, name_index - mask]);
    }
    put_text(out, value);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127, "short texts only");
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("tests use text");
        decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
        Some(fields)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |byte: u8| (byte as char).to_digit(16).expect("a hex digit") as u8;
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    /// RFC 7541, appendix C.6: responses with Huffman coding and a table of 256 bytes.
    #[test]
    fn the_examples_of_the_rfc_decode() {
        let mut decoder = Decoder { bytes_max: 256, ..Decoder::default() };
        let first = bytes(
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
             63c7 8f0b 97c8 e9ae 82ae 43d3",
        );
        let fields = decode(&mut decoder, &first).unwrap();
        assert_eq!(fields[0], (":status".into(), "302".into()));
        assert_eq!(fields[1], ("cache-control".into(), "private".into()));
        assert_eq!(fields[2], ("date".into(), "Mon, 21 Oct 2013 20:13:21 GMT".into()));
        assert_eq!(fields[3], ("location".into(), "https://www.example.com".into()));
        let fields = decode(&mut decoder, &bytes("4883 640e ffc1 c0bf")).unwrap();
        assert_eq!(fields[0], (":status".into(), "307".into()));
        assert_eq!(fields[3], ("location".into(), "https://www.example.com".into()));
        assert_eq!(decoder.bytes, 222, "the oldest entry was evicted");
    }

    #[test]
    fn our_requests_decode_to_themselves() {
        for dynamic in [false, true] {
            let mut headers = RequestHeaders::new("/etcdserverpb.KV/Put", "127.0.0.1:2379", dynamic);
            let mut decoder = Decoder::default();
            for _ in 0..3 {
                let fields = decode(&mut decoder, headers.next_block()).unwrap();
                let expected = [
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", "/etcdserverpb.KV/Put"),
                    (":authority", "127.0.0.1:2379"),
                    ("content-type", "application/grpc"),
                    ("te", "trailers"),
                ];
                assert!(fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected));
            }
            assert_eq!(headers.next_block().len() == 6, dynamic);
        }
    }

    #[test]
    fn broken_blocks_are_refused() {
        for block in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x40, 0x05, 1], &[0x3f, 0xff, 0x7f]] {
            assert!(decode(&mut Decoder::default(), block).is_none(), "{block:?}");
        }
        assert!(huffman(&[0xff, 0xff, 0xff, 0xff]).is_none(), "the end symbol");
    }
}
