//! Decoding of header blocks (RFC 7541 section 6).
//!
//! Owns: the representations and the decoder's dynamic table. Does not know: what the fields mean.
//!
//! Invariants
//! - I1: an error is final for the connection (COMPRESSION_ERROR).
//! - I2: `generation` changes exactly when a later block could decode differently: on insertion and on resizing.

use crate::hpack::huffman;
use crate::hpack::table::DynamicTable;

/// What a sink has found out about a field. It is kept with the field's table entry and comes back with it, so that a
/// field that is sent again by its index need not be examined again. Zero: nothing known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u8);

/// Receives the fields of a block in order.
pub trait FieldSink {
    /// One field; returns its mark. The slices are gone after the call.
    fn field(&mut self, name: &[u8], value: &[u8], mark: Mark) -> Mark;
}

/// The block does not follow RFC 7541.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HpackError;

/// The decoding side of one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    table: DynamicTable,
    size_limit: usize,
    generation: u64,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// A decoder that announced (or left at its default) `size_limit` as SETTINGS_HEADER_TABLE_SIZE, bytes.
    #[must_use]
    pub fn new(size_limit: usize) -> Self {
        Self { table: DynamicTable::new(size_limit), size_limit, generation: 0, name: Vec::new(), value: Vec::new() }
    }

    /// Two equal blocks decode to equal fields while this number stays the same (I2).
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Decodes one whole header block.
    pub fn decode(&mut self, block: &[u8], sink: &mut impl FieldSink) -> Result<(), HpackError> {
        let mut input = Input { bytes: block };
        let mut at_start = true;
        while let Some(&first) = input.bytes.first() {
            if first & 0x80 != 0 {
                let index = if first == 0xff {
                    input.integer(7)?
                } else {
                    input.bytes = &input.bytes[1..];
                    usize::from(first & 0x7f)
                };
                let (name, value, mark) = self.table.get(index).ok_or(HpackError)?;
                sink.field(name, value, mark);
            } else if first & 0xe0 == 0x20 {
                let size = input.integer(5)?;
                // Section 4.2: only at the beginning of a block and never above what we announced.
                if !at_start || size > self.size_limit {
                    return Err(HpackError);
                }
                self.table.set_size_max(size);
                self.generation += 1;
                continue;
            } else {
                let insert = first & 0x40 != 0;
                self.literal(&mut input, if insert { 6 } else { 4 })?;
                let mark = sink.field(&self.name, &self.value, Mark::default());
                if insert {
                    self.table.insert(&self.name, &self.value, mark);
                    self.generation += 1;
                }
            }
            at_start = false;
        }
        Ok(())
    }

    /// Reads a literal representation into `name` and `value`.
    fn literal(&mut self, input: &mut Input<'_>, prefix_bits: u32) -> Result<(), HpackError> {
        let index = input.integer(prefix_bits)?;
        self.name.clear();
        self.value.clear();
        if index == 0 {
            input.string(&mut self.name)?;
        } else {
            let (name, ..) = self.table.get(index).ok_or(HpackError)?;
            self.name.extend_from_slice(name);
        }
        input.string(&mut self.value)
    }
}

/// What is left of the block.
struct Input<'a> {
    bytes: &'a [u8],
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (&first, rest) = self.bytes.split_first().ok_or(HpackError)?;
        self.bytes = rest;
        Ok(first)
    }

    /// Section 5.1. No meaningful integer exceeds 2^28; larger ones are refused before they could overflow.
    fn integer(&mut self, prefix_bits: u32) -> Result<usize, HpackError> {
        let mask = (1usize << prefix_bits) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = usize::from(self.byte()?);
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(HpackError)
    }

    /// Section 5.2, appended to `out`.
    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), HpackError> {
        let huffman_coded = self.bytes.first().ok_or(HpackError)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (string, rest) = self.bytes.split_at_checked(length).ok_or(HpackError)?;
        self.bytes = rest;
        if huffman_coded {
            huffman::decode(string, out).ok_or(HpackError)
        } else {
            out.extend_from_slice(string);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fields(Vec<(String, String)>);

    impl FieldSink for Fields {
        fn field(&mut self, name: &[u8], value: &[u8], _: Mark) -> Mark {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("the vectors are ASCII");
            self.0.push((text(name), text(value)));
            Mark(7)
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    /// Decodes and compares with lines of `name: value`; `table_size` is what the RFC states after the block.
    fn check(decoder: &mut Decoder, hex: &str, expected: &[(&str, &str)], table_size: usize) {
        let mut fields = Fields::default();
        decoder.decode(&bytes(hex), &mut fields).unwrap();
        let found: Vec<(&str, &str)> = fields.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
        assert_eq!(decoder.table.size(), table_size);
    }

    fn rejects(hex: &str) -> bool {
        Decoder::new(4096).decode(&bytes(hex), &mut Fields::default()).is_err()
    }

    #[test]
    fn c1_integers() {
        let integer = |hex: &str, prefix| Input { bytes: &bytes(hex) }.integer(prefix);
        assert_eq!(integer("0a", 5), Ok(10));
        assert_eq!(integer("1f9a0a", 5), Ok(1337));
        assert_eq!(integer("2a", 8), Ok(42));
        assert_eq!(integer("ffffffffff01", 7), Err(HpackError));
        assert_eq!(integer("ff", 7), Err(HpackError));
    }

    #[test]
    fn c2_representations() {
        let custom = "400a637573746f6d2d6b65790d637573746f6d2d686561646572";
        check(&mut Decoder::new(4096), custom, &[("custom-key", "custom-header")], 55);
        check(&mut Decoder::new(4096), "040c2f73616d706c652f70617468", &[(":path", "/sample/path")], 0);
        check(&mut Decoder::new(4096), "100870617373776f726406736563726574", &[("password", "secret")], 0);
        check(&mut Decoder::new(4096), "82", &[(":method", "GET")], 0);
    }

    const FIRST: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
    const SECOND: [(&str, &str); 5] = [FIRST[0], FIRST[1], FIRST[2], FIRST[3], ("cache-control", "no-cache")];
    const THIRD: [(&str, &str); 5] =
        [FIRST[0], (":scheme", "https"), (":path", "/index.html"), FIRST[3], ("custom-key", "custom-value")];

    #[test]
    fn c3_requests_without_huffman() {
        let mut decoder = Decoder::new(4096);
        check(&mut decoder, "828684410f7777772e6578616d706c652e636f6d", &FIRST, 57);
        check(&mut decoder, "828684be58086e6f2d6361636865", &SECOND, 110);
        check(&mut decoder, "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565", &THIRD, 164);
    }

    #[test]
    fn c4_requests_with_huffman() {
        let mut decoder = Decoder::new(4096);
        check(&mut decoder, "828684418cf1e3c2e5f23a6ba0ab90f4ff", &FIRST, 57);
        check(&mut decoder, "828684be5886a8eb10649cbf", &SECOND, 110);
        check(&mut decoder, "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", &THIRD, 164);
    }

    const DATE: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    const LOCATION: (&str, &str) = ("location", "https://www.example.com");
    const PRIVATE: (&str, &str) = ("cache-control", "private");

    fn responses() -> [Vec<(&'static str, &'static str)>; 3] {
        let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
        let later = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
        [
            vec![(":status", "302"), PRIVATE, DATE, LOCATION],
            vec![(":status", "307"), PRIVATE, DATE, LOCATION],
            vec![(":status", "200"), PRIVATE, later, LOCATION, ("content-encoding", "gzip"), ("set-cookie", cookie)],
        ]
    }

    #[test]
    fn c5_responses_without_huffman_evict() {
        let mut decoder = Decoder::new(256);
        let [first, second, third] = responses();
        check(
            &mut decoder,
            "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17\
             68747470733a2f2f7777772e6578616d706c652e636f6d",
            &first,
            222,
        );
        check(&mut decoder, "4803333037c1c0bf", &second, 222);
        check(
            &mut decoder,
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d41\
             53444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
            &third,
            215,
        );
    }

    #[test]
    fn c6_responses_with_huffman_evict() {
        let mut decoder = Decoder::new(256);
        let [first, second, third] = responses();
        check(
            &mut decoder,
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae\
             82ae43d3",
            &first,
            222,
        );
        check(&mut decoder, "4883640effc1c0bf", &second, 222);
        check(
            &mut decoder,
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960\
             d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            &third,
            215,
        );
    }

    #[test]
    fn malformed_blocks_are_refused() {
        assert!(rejects("80"), "index 0");
        assert!(rejects("be"), "beyond the dynamic table");
        assert!(rejects("828220"), "a size update after a field");
        assert!(rejects("3fe21f"), "a size above the announced one");
        assert!(rejects("400a6375"), "a cut string");
        assert!(rejects("4081ff"), "a name of padding only");
        assert!(rejects("7f"), "a cut integer");
        assert!(!rejects("3fe11f2082"), "two size updates at the start");
    }

    #[test]
    fn the_generation_tells_when_equal_blocks_may_differ() {
        let mut decoder = Decoder::new(4096);
        let mut decode = |hex: &str| {
            decoder.decode(&bytes(hex), &mut Fields::default()).unwrap();
            decoder.generation()
        };
        let start = decode("82");
        assert_eq!(decode("828684"), start);
        assert_ne!(decode("400a637573746f6d2d6b65790d637573746f6d2d686561646572"), start);
    }

    #[test]
    fn insertions_far_beyond_the_table_keep_it_bounded() {
        let mut decoder = Decoder::new(256);
        for round in 0..2_000u32 {
            let value = round.to_string().repeat(1 + round as usize % 20);
            let mut block = vec![0x40, 1, b'k', value.len() as u8];
            block.extend_from_slice(value.as_bytes());
            let newest = 0x80 | 62;
            block.push(newest);
            let fits = value.len() + 33 <= 256;
            let mut fields = Fields::default();
            assert_eq!(decoder.decode(&block, &mut fields).is_ok(), fits);
            if !fits {
                decoder = Decoder::new(256);
                continue;
            }
            assert_eq!(fields.0[1], ("k".to_owned(), value));
            assert!(decoder.table.size() <= 256);
        }
    }
}
