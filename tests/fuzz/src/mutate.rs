//! The mutator: changes that break decoders, chosen by a seed.
//!
//! Owns: the random numbers and the kinds of change. Does not know: any format; a target's `repair` knows its
//! checksums, and lengths are found by trying.

/// Numbers at which decoders tend to break.
const EDGES: &[u64] =
    &[0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
/// Longest input made; formats repeat themselves long before.
pub const INPUT_BYTES_MAX: usize = 1 << 18;

/// A stream of numbers from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`; equal seeds give equal streams.
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give neighbouring streams, and the state must not be zero.
        let mut random = Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1);
        random.next();
        random
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "an endless stream of plain numbers is not worth an Option")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, or 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        match bound {
            0 => 0,
            _ => ((self.next() >> 32) as usize) % bound,
        }
    }
}

/// Applies one to eight changes to `input`. `other` is another input of the same target, to splice from.
pub fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    let changes = 1 << random.below(4);
    for _ in 0..changes {
        change(random, input, other);
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn change(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(input.len());
    match random.below(12) {
        0 | 1 => flip_bit(random, input, at),
        2 => set_byte(random, input, at),
        3 | 4 => set_number(random, input, at),
        5 => nudge_number(random, input, at),
        6 => drop(input.drain(at..(at + short_len(random)).min(input.len()))),
        7 => {
            let bytes: Vec<u8> = (0..short_len(random)).map(|_| random.next() as u8).collect();
            input.splice(at..at, bytes);
        }
        8 => {
            let end = (at + short_len(random)).min(input.len());
            let copy = input[at..end].to_vec();
            let to = random.below(input.len());
            input.splice(to..to, copy);
        }
        9 => input.truncate(at),
        10 => {
            let from = random.below(other.len());
            let end = (from + 1 + random.below(other.len())).min(other.len());
            let to = random.below(input.len() + 1);
            input.splice(to..to, other[from..end].iter().copied());
        }
        _ => {
            let from = random.below(other.len());
            let len = (other.len() - from).min(input.len() - at);
            input[at..at + len].copy_from_slice(&other[from..from + len]);
        }
    }
}

/// Mostly short, sometimes long.
fn short_len(random: &mut Random) -> usize {
    let bound = 1 << random.below(10);
    1 + random.below(bound)
}

fn flip_bit(random: &mut Random, input: &mut [u8], at: usize) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn set_byte(random: &mut Random, input: &mut [u8], at: usize) {
    if let Some(byte) = input.get_mut(at) {
        *byte = random.next() as u8;
    }
}

/// Overwrites one to eight bytes with an edge number, in either order of bytes.
fn set_number(random: &mut Random, input: &mut [u8], at: usize) {
    let number = EDGES[random.below(EDGES.len())].wrapping_add((random.below(3) as u64).wrapping_sub(1));
    let width = 1usize << random.below(4);
    let little = number.to_le_bytes();
    let big_from_end = random.below(2) == 0;
    for index in 0..width {
        let digit = if big_from_end { little[width - 1 - index] } else { little[index] };
        if let Some(byte) = input.get_mut(at + index) {
            *byte = digit;
        }
    }
}

/// Adds or subtracts a little: lengths and counts that are off by one.
fn nudge_number(random: &mut Random, input: &mut [u8], at: usize) {
    if let Some(byte) = input.get_mut(at) {
        *byte = byte.wrapping_add(random.below(5) as u8).wrapping_sub(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_inputs_and_different_seeds_do_not() {
        let made = |seed| {
            let mut random = Random::new(seed);
            let mut input = b"a rather short input".to_vec();
            mutate(&mut random, &mut input, b"another input to splice from");
            input
        };
        assert_eq!(made(7), made(7));
        let distinct: std::collections::BTreeSet<_> = (0..100).map(made).collect();
        assert!(distinct.len() > 80);
    }

    #[test]
    fn empty_inputs_grow_again() {
        let mut random = Random::new(1);
        let mut longest = 0;
        for _ in 0..200 {
            let mut input = Vec::new();
            mutate(&mut random, &mut input, b"");
            longest = longest.max(input.len());
        }
        assert!(longest > 0);
    }
}
