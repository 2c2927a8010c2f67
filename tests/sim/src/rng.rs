//! The one source of randomness: a seeded xoshiro256** generator.
//!
//! Owns: the sequence and a few draws (range, chance, latency). Does not know: what is drawn for.
//!
//! Invariants
//! - I1: the sequence depends on the seed and the calls alone; [`Rng::fork`] gives streams that do not disturb each
//!   other, so that a draw added to one part leaves the rest of a seed's history alone.

/// A deterministic generator.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014): spreads a seed over the generator's state.
fn split_mix(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Rng {
    /// A generator whose sequence is given by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self { state: [split_mix(&mut state), split_mix(&mut state), split_mix(&mut state), split_mix(&mut state)] }
    }

    /// A stream of its own for one purpose; advances `self` by one draw.
    pub fn fork(&mut self, purpose: u64) -> Self {
        Self::new(self.bits() ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits (xoshiro256**, Blackman and Vigna 2018).
    pub fn bits(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number in `0..bound`. The modulo bias is below 2^-40 for every bound used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no element");
        self.bits() % bound
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A number in `low..=high`, spread evenly over orders of magnitude: mostly small, sometimes large.
    pub fn log_between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low > 0 && low <= high, "a logarithmic range starts above zero");
        let bits = (high / low).ilog2() + 1;
        let scale = low.saturating_mul(1 << self.below(u64::from(bits)));
        self.between(scale, scale.saturating_mul(2)).min(high)
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// A position in a collection of `len` elements.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for position in (1..items.len()).rev() {
            items.swap(position, self.index(position + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_depends_on_the_seed_alone() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..8).map(|_| rng.bits()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn draws_stay_in_range() {
        let mut rng = Rng::new(3);
        let mut items: Vec<u64> = (0..50).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        for _ in 0..10_000 {
            assert!((5..=9).contains(&rng.between(5, 9)));
            assert!((20..=5_000).contains(&rng.log_between(20, 5_000)));
            assert!((1..=1).contains(&rng.log_between(1, 1)));
        }
    }
}
