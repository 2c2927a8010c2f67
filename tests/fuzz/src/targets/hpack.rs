//! Header blocks, decoded one after the other by one decoder: each is preceded by its length in one byte.

use trilith_wire::hpack::{Decoder, FieldSink, Mark, ResponseEncoder, decode_huffman};

use crate::Target;
use crate::targets::no_repair;

pub(crate) const BLOCKS: Target = Target { name: "hpack", run: run_blocks, seeds, repair: no_repair, cost: 1 };
pub(crate) const HUFFMAN: Target =
    Target { name: "huffman", run: run_huffman, seeds: huffman_seeds, repair: no_repair, cost: 1 };

/// Counts what a block holds.
#[derive(Default)]
struct Counter {
    fields: usize,
    bytes: usize,
}

impl FieldSink for Counter {
    fn field(&mut self, name: &[u8], value: &[u8], mark: Mark) -> Mark {
        self.fields += 1;
        self.bytes += name.len() + value.len();
        let own = Mark(name.iter().chain(value).fold(1, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(*byte)) | 1);
        assert!(mark == own || mark == Mark::default(), "a mark comes back with its own field");
        own
    }
}

fn run_blocks(input: &[u8]) -> bool {
    let mut decoder = Decoder::new(4096);
    let mut rest = input;
    while let Some((len, bytes)) = rest.split_first() {
        let (block, after) = bytes.split_at(usize::from(*len).min(bytes.len()));
        let mut counter = Counter::default();
        if decoder.decode(block, &mut counter).is_err() {
            return false;
        }
        // A field takes at least a byte of the block and comes from a table of 4096 bytes or from the block itself,
        // where Huffman coding saves less than half.
        assert!(counter.fields <= block.len());
        assert!(counter.bytes <= counter.fields * 4096 + 2 * block.len());
        rest = after;
    }
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let mut encoder = ResponseEncoder::default();
    let (mut head, mut trailers, mut other) = (Vec::new(), Vec::new(), Vec::new());
    encoder.grpc_head(&mut head);
    encoder.grpc_trailers_ok(&mut trailers);
    encoder.begin(&mut other);
    encoder.status(&mut other, 404);
    encoder.content_type(&mut other);
    encoder.field(&mut other, b"x-name", b"value");
    let join = |blocks: &[&[u8]]| -> Vec<u8> {
        let prefixed = blocks.iter().map(|block| [&[block.len() as u8][..], block].concat());
        prefixed.collect::<Vec<_>>().concat()
    };
    // RFC 7541 appendix C.4 and C.5: requests with Huffman coding, responses with eviction.
    let requests: [&[u8]; 3] = [
        b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
        b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
        b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
    ];
    vec![join(&requests), join(&[&head, &trailers, &other]), join(&[b"\x20\x3f\xe1\x1f\x82", b"\x10\x01a\x01b"])]
}

fn run_huffman(input: &[u8]) -> bool {
    let mut out = Vec::new();
    let accepted = decode_huffman(input, &mut out).is_some();
    // The shortest code has five bits.
    assert!(out.len() <= input.len() * 8 / 5);
    accepted
}

fn huffman_seeds() -> Vec<Vec<u8>> {
    let www_example_com = b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    vec![
        www_example_com.to_vec(),
        b"\xa8\xeb\x10\x64\x9c\xbf".to_vec(),
        b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f".to_vec(),
        vec![],
    ]
}
