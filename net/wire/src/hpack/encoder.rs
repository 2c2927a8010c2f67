//! Encoding of response blocks.
//!
//! Owns: the encoder's view of the peer's dynamic table, which ever holds two fields: `content-type: application/grpc`
//! and `grpc-status: 0`. Both are inserted at their first use; from then on the head and the trailers of a successful
//! call are fixed bytes. All other fields are plain literals. Does not know: frames.
//!
//! Invariants
//! - I1: the table in use never exceeds what the peer announced, and a reduction is signalled at the start of the next
//!   block before anything else (RFC 7541 section 4.2).
//! - I2: a block is complete and belongs to the wire order of its connection: whatever is encoded must be sent, and in
//!   the order of encoding.

use crate::connection::limits::HEADER_TABLE_BYTES_MAX;
use crate::hpack::table::STATIC;

const CONTENT_TYPE: (&[u8], &[u8]) = (b"content-type", b"application/grpc");
const GRPC_STATUS_OK: (&[u8], &[u8]) = (b"grpc-status", b"0");
/// Static index of `content-type`, as a name.
const CONTENT_TYPE_INDEX: u8 = 31;
/// Indexed representation of `:status: 200`.
const STATUS_200: u8 = 0x88;
/// What both fields cost in a table (section 4.1).
const TABLE_BYTES: usize =
    CONTENT_TYPE.0.len() + CONTENT_TYPE.1.len() + GRPC_STATUS_OK.0.len() + GRPC_STATUS_OK.1.len() + 2 * 32;

/// The encoding side of a server connection.
#[derive(Debug)]
pub struct ResponseEncoder {
    /// Wire index of each field once inserted.
    content_type_index: Option<u8>,
    grpc_status_index: Option<u8>,
    /// Size of the table as the peer knows it from our blocks.
    table_bytes: usize,
    /// Sizes to signal before the next block: the smallest since the last one, and the newest.
    resize: Option<(usize, usize)>,
}

impl Default for ResponseEncoder {
    fn default() -> Self {
        Self { content_type_index: None, grpc_status_index: None, table_bytes: HEADER_TABLE_BYTES_MAX, resize: None }
    }
}

impl ResponseEncoder {
    /// The peer's SETTINGS_HEADER_TABLE_SIZE, bytes.
    pub fn set_table_size(&mut self, bytes: usize) {
        let wanted = bytes.min(HEADER_TABLE_BYTES_MAX);
        let smallest = self.resize.map_or(wanted, |(smallest, _)| smallest.min(wanted));
        self.resize = (smallest < self.table_bytes || wanted != self.table_bytes).then_some((smallest, wanted));
    }

    /// The head of a gRPC response: `:status: 200`, `content-type: application/grpc`.
    #[inline]
    pub fn grpc_head(&mut self, out: &mut Vec<u8>) {
        if let (None, Some(index)) = (self.resize, self.content_type_index) {
            out.extend_from_slice(&[STATUS_200, 0x80 | index]);
            return;
        }
        self.signal_resize(out);
        out.push(STATUS_200);
        self.content_type(out);
    }

    /// The trailers of a successful call: `grpc-status: 0`.
    #[inline]
    pub fn grpc_trailers_ok(&mut self, out: &mut Vec<u8>) {
        if let (None, Some(index)) = (self.resize, self.grpc_status_index) {
            out.push(0x80 | index);
            return;
        }
        self.signal_resize(out);
        if let Some(index) = self.grpc_status_index {
            out.push(0x80 | index);
        } else if self.table_bytes < TABLE_BYTES {
            literal(out, GRPC_STATUS_OK.0, GRPC_STATUS_OK.1);
        } else {
            out.push(0x40);
            string(out, GRPC_STATUS_OK.0);
            string(out, GRPC_STATUS_OK.1);
            // The newest entry has the lowest index and pushes the other up.
            self.grpc_status_index = Some(STATIC.len() as u8 + 1);
            self.content_type_index = self.content_type_index.map(|index| index + 1);
        }
    }

    /// Begins any other block.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        self.signal_resize(out);
    }

    /// `:status`, which must be the first field of its block.
    pub fn status(&mut self, out: &mut Vec<u8>, status: u16) {
        if status == 200 {
            out.push(STATUS_200);
            return;
        }
        // Literal without indexing, name by static index 8.
        out.push(0x08);
        string(out, decimal(u64::from(status), &mut [0; 20]));
    }

    /// `content-type: application/grpc`.
    pub fn content_type(&mut self, out: &mut Vec<u8>) {
        if let Some(index) = self.content_type_index {
            out.push(0x80 | index);
        } else if self.table_bytes < TABLE_BYTES {
            // Literal without indexing: the index continues after a full 4-bit prefix.
            out.extend_from_slice(&[0x0f, CONTENT_TYPE_INDEX - 15]);
            string(out, CONTENT_TYPE.1);
        } else {
            out.push(0x40 | CONTENT_TYPE_INDEX);
            string(out, CONTENT_TYPE.1);
            self.content_type_index = Some(STATIC.len() as u8 + 1);
            self.grpc_status_index = self.grpc_status_index.map(|index| index + 1);
        }
    }

    /// Any field, as a literal without indexing. The name is in lower case.
    pub fn field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
        literal(out, name, value);
    }

    fn signal_resize(&mut self, out: &mut Vec<u8>) {
        let Some((smallest, current)) = self.resize.take() else { return };
        if smallest < self.table_bytes {
            integer(out, 0x20, 5, smallest);
            if smallest < TABLE_BYTES {
                self.content_type_index = None;
                self.grpc_status_index = None;
            }
        }
        if current != smallest || smallest >= self.table_bytes {
            integer(out, 0x20, 5, current);
        }
        self.table_bytes = current;
    }
}

/// Writes `number` in decimal into `buffer` and returns the digits.
pub(crate) fn decimal(number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut rest = number;
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &buffer[start..];
        }
    }
}

fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    string(out, name);
    string(out, value);
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    integer(out, 0, 7, bytes.len());
    out.extend_from_slice(bytes);
}

fn integer(out: &mut Vec<u8>, pattern: u8, prefix_bits: u32, value: usize) {
    let mask = (1usize << prefix_bits) - 1;
    if value < mask {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hpack::{Decoder, FieldSink, Mark};

    #[derive(Default)]
    struct Text(String);

    impl FieldSink for Text {
        fn field(&mut self, name: &[u8], value: &[u8], _: Mark) -> Mark {
            let line = format!("{}={};", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
            self.0.push_str(&line);
            Mark::default()
        }
    }

    const HEAD: &str = ":status=200;content-type=application/grpc;";

    fn decode(decoder: &mut Decoder, block: &[u8]) -> String {
        let mut text = Text::default();
        decoder.decode(block, &mut text).unwrap();
        text.0
    }

    fn head(encoder: &mut ResponseEncoder) -> Vec<u8> {
        let mut block = Vec::new();
        encoder.grpc_head(&mut block);
        block
    }

    fn trailers(encoder: &mut ResponseEncoder) -> Vec<u8> {
        let mut block = Vec::new();
        encoder.grpc_trailers_ok(&mut block);
        block
    }

    #[test]
    fn both_fields_are_indexed_once_in_either_order() {
        for trailers_first in [false, true] {
            let (mut encoder, mut decoder) = (ResponseEncoder::default(), Decoder::new(4096));
            for round in 0..3 {
                if trailers_first {
                    let block = trailers(&mut encoder);
                    assert_eq!(decode(&mut decoder, &block), "grpc-status=0;");
                    assert!(round == 0 || block.len() == 1);
                }
                let block = head(&mut encoder);
                assert_eq!(decode(&mut decoder, &block), HEAD);
                assert!(round == 0 || block.len() == 2);
                assert_eq!(decode(&mut decoder, &trailers(&mut encoder)), "grpc-status=0;");
            }
        }
    }

    /// Whatever sizes the peer announces, a decoder of exactly that size understands every block.
    #[test]
    fn the_peers_table_size_is_respected() {
        let sizes = [4096, 0, 4096, 103, 104, 65_536, 50, 4095, 200, 0, 0, 4096];
        let (mut encoder, mut decoder) = (ResponseEncoder::default(), Decoder::new(4096));
        for (round, pair) in sizes.windows(2).enumerate() {
            // Two changes between blocks: the smaller one must be signalled as well.
            encoder.set_table_size(pair[0]);
            encoder.set_table_size(pair[1]);
            let blocks: [fn(&mut ResponseEncoder) -> Vec<u8>; 2] = [head, trailers];
            for index in [round % 2, 1 - round % 2, 0, 1] {
                let block = blocks[index](&mut encoder);
                let expected = [HEAD, "grpc-status=0;"][index];
                assert_eq!(decode(&mut decoder, &block), expected, "sizes {pair:?}");
            }
        }
        encoder.set_table_size(0);
        assert_eq!(head(&mut encoder)[0], 0x20, "a table of size zero is signalled");
    }

    #[test]
    fn other_statuses_and_fields_are_literals() {
        let (mut encoder, mut decoder) = (ResponseEncoder::default(), Decoder::new(4096));
        let mut block = Vec::new();
        encoder.begin(&mut block);
        encoder.status(&mut block, 404);
        encoder.field(&mut block, b"x", "v".repeat(300).as_bytes());
        assert_eq!(decode(&mut decoder, &block), format!(":status=404;x={};", "v".repeat(300)));
    }
}
