//! The seeded generator of election timeouts (SplitMix64).
//!
//! Owns: one 64-bit state. Does not know: what is drawn. Invariant I1: the same seed gives the same sequence
//! everywhere.

#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number in `0..bound`; the bias is at most `bound` / 2^64.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let scaled = (u128::from(z) * u128::from(bound)) >> 64;
        u64::try_from(scaled).expect("below a 64-bit bound")
    }
}
