//! The Huffman code of RFC 7541 appendix B.
//!
//! Owns: decoding. The encoder sends plain literals: our responses are indexed after the first one, so it would save
//! nothing. Does not know: header fields.
//!
//! The code is canonical: within a length, codes count up in symbol order, and a longer code continues where the
//! shorter ones ended. So the 257 lengths say everything; the tables below are computed from them.
//!
//! Invariants
//! - I1: padding is shorter than 8 bits and all ones; EOS never occurs (section 5.2); all else is an error.

/// Code lengths in bits of symbols 0 to 255 and EOS.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const EOS: u16 = 256;
const LENGTH_MAX: usize = 30;
const FAST_BITS: usize = 8;

/// Canonical decoding tables. A code, left-aligned to 32 bits, of length n lies in `[first[n], first[n + 1])`.
struct Canonical {
    symbols: [u16; 257],
    /// Index in `symbols` of the first code of each length.
    offset: [u16; LENGTH_MAX + 2],
    /// Left-aligned first code of each length; 64 bits wide because the end of the last length is 2^32.
    first: [u64; LENGTH_MAX + 2],
}

const CANONICAL: Canonical = {
    let mut table = Canonical { symbols: [0; 257], offset: [0; LENGTH_MAX + 2], first: [0; LENGTH_MAX + 2] };
    let mut next = 0;
    let mut code = 0u64;
    let mut length = 1;
    while length <= LENGTH_MAX {
        table.offset[length] = next as u16;
        table.first[length] = code;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                table.symbols[next] = symbol as u16;
                next += 1;
                code += 1 << (32 - length);
            }
            symbol += 1;
        }
        length += 1;
    }
    table.offset[LENGTH_MAX + 1] = next as u16;
    table.first[LENGTH_MAX + 1] = code;
    table
};

const _: () = assert!(CANONICAL.first[LENGTH_MAX + 1] == 1 << 32, "the code is complete");

/// For the next 8 bits: symbol << 8 | length of a code of at most 8 bits; zero for longer ones.
static FAST: [u16; 1 << FAST_BITS] = {
    let mut fast = [0; 1 << FAST_BITS];
    let mut length = 1;
    while length <= FAST_BITS {
        let mut index = CANONICAL.offset[length] as usize;
        while index < CANONICAL.offset[length + 1] as usize {
            let rank = (index - CANONICAL.offset[length] as usize) as u64;
            let start =
                (CANONICAL.first[length] >> (32 - FAST_BITS)) as usize + ((rank as usize) << (FAST_BITS - length));
            let mut fill = 0;
            while fill < 1 << (FAST_BITS - length) {
                fast[start + fill] = (CANONICAL.symbols[index] << 8) | length as u16;
                fill += 1;
            }
            index += 1;
        }
        length += 1;
    }
    fast
};

static SLOW: Canonical = CANONICAL;

/// Appends the decoded string to `out`; `None` if the coding is invalid (I1).
#[must_use]
pub fn decode(input: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.reserve(input.len() * 8 / 5 + 1);
    let mut rest = input.iter();
    // The undecoded bits, left-aligned; zeros below.
    let mut window = 0u64;
    let mut bits = 0u32;
    loop {
        while bits <= 56 {
            let Some(&byte) = rest.next() else { break };
            window |= u64::from(byte) << (56 - bits);
            bits += 8;
        }
        let fast = FAST[(window >> (64 - FAST_BITS)) as usize];
        let (symbol, length) = if fast != 0 { (fast >> 8, u32::from(fast & 0xff)) } else { decode_slow(window) };
        if length > bits {
            break;
        }
        if symbol == EOS {
            return None;
        }
        out.push(symbol as u8);
        window <<= length;
        bits -= length;
    }
    let padding_is_ones = bits == 0 || (window >> (64 - bits)) == (1 << bits) - 1;
    (bits < 8 && padding_is_ones).then_some(())
}

fn decode_slow(window: u64) -> (u16, u32) {
    let code = window >> 32;
    let mut length = FAST_BITS + 1;
    while code >= SLOW.first[length + 1] {
        length += 1;
    }
    let rank = ((code - SLOW.first[length]) >> (32 - length)) as usize;
    (SLOW.symbols[SLOW.offset[length] as usize + rank], length as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit-by-bit encoder straight from the definition: an independent check of the tables.
    pub(crate) fn encode(input: &[u8]) -> Vec<u8> {
        let mut codes = [(0u32, 0u8); 257];
        let mut code = 0u64;
        for length in 1..=30u8 {
            for (symbol, _) in LENGTHS.iter().enumerate().filter(|(_, l)| **l == length) {
                codes[symbol] = ((code >> (32 - length)) as u32, length);
                code += 1 << (32 - length);
            }
        }
        let mut bits = Vec::new();
        for &byte in input {
            let (code, length) = codes[byte as usize];
            bits.extend((0..length).rev().map(|shift| (code >> shift) & 1 == 1));
        }
        while bits.len() % 8 != 0 {
            bits.push(true);
        }
        bits.chunks(8).map(|chunk| chunk.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
    }

    fn decoded(input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    #[test]
    fn codes_of_the_appendix() {
        // Spot values of RFC 7541 appendix B, each padded with ones to whole bytes.
        assert_eq!(encode(b"0"), [0x07]); // 00000
        assert_eq!(encode(b"&"), [0xf8]);
        assert_eq!(encode(b"\\"), [0xff, 0xfe, 0x1f]); // 1111111111111110000
        assert_eq!(encode(&[0]), [0xff, 0xc7]); // 1111111111000
        assert_eq!(encode(&[22]), [0xff, 0xff, 0xff, 0xfb]); // 30 bits, 3ffffffe
        assert_eq!(encode(&[249]), [0xff, 0xff, 0xff, 0xef]); // ffffffe
    }

    #[test]
    fn every_symbol_and_pair_round_trips() {
        for first in 0..=255u8 {
            for second in [0, b'a', b'z', 22, 255, first] {
                let text = [first, second, b'e', first];
                assert_eq!(decoded(&encode(&text)).as_deref(), Some(&text[..]));
            }
        }
    }

    #[test]
    fn bad_padding_and_eos_are_refused() {
        assert_eq!(decoded(&[]), Some(vec![]));
        assert_eq!(decoded(&[0xff]), None, "eight bits of padding");
        assert_eq!(decoded(&[0x1f, 0xff]), None, "a symbol and eleven bits of padding");
        assert_eq!(decoded(&[0x18]), None, "a symbol and zeros as padding");
        assert_eq!(decoded(&[0x1f]), Some(b"a".to_vec()));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None, "EOS");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc, 0x1f]), None, "EOS, then more");
    }
}
