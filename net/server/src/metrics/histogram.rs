//! Histograms with fixed bounds.
//!
//! Owns: the counts of a histogram and etcd's bucket bounds. Does not know: names, labels, the text form.
//!
//! Invariants
//! - I1: a histogram's buckets plus its overflow are its count.

/// CPU time, around the budgets of a step (500 us) and of a turn (10 ms), in nanoseconds.
pub const CPU_BOUNDS: &[u64] = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    750_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];
/// Syncs, commits and answers in etcd: 1 ms, doubled 13 times.
pub const DISK_BOUNDS: &[u64] = &doubled::<14>(1_000_000);
/// Applications and ranges in etcd: 100 us, doubled 19 times.
pub const APPLY_BOUNDS: &[u64] = &doubled::<20>(100_000);
/// Hashes in etcd: 10 ms, doubled 14 times.
pub const HASH_BOUNDS: &[u64] = &doubled::<15>(10_000_000);
/// Defragmentations in etcd: 100 ms, doubled 12 times.
pub const DEFRAGMENT_BOUNDS: &[u64] = &doubled::<13>(100_000_000);
/// Times to live of leases in etcd, in seconds: 1, doubled 23 times.
pub const LEASE_TTL_BOUNDS: &[u64] = &doubled::<24>(1);
/// The usual bounds of gRPC latency: 5 ms to 10 s.
pub const HANDLING_BOUNDS: &[u64] = &[
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

const fn doubled<const COUNT: usize>(first: u64) -> [u64; COUNT] {
    let mut bounds = [first; COUNT];
    let mut position = 1;
    while position < COUNT {
        bounds[position] = bounds[position - 1] * 2;
        position += 1;
    }
    bounds
}

/// Counts of values by upper bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    bounds: &'static [u64],
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, buckets: vec![0; bounds.len()], count: 0, sum: 0, max: 0 }
    }

    /// Counts one value.
    pub fn observe(&mut self, value: u64) {
        self.observe_many(value, 1);
    }

    /// Counts the same value several times.
    pub fn observe_many(&mut self, value: u64, times: u64) {
        if times == 0 {
            return;
        }
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            *bucket += times;
        }
        self.count += times;
        self.sum = self.sum.wrapping_add(value.wrapping_mul(times));
        self.max = self.max.max(value);
    }

    /// Adds the values of another one, of the same bounds.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.bounds, other.bounds, "only what is counted alike is added");
        for (bucket, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += count;
        }
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Values so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The greatest value.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Upper bounds with the number of values up to each.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut total = 0;
        self.bounds.iter().zip(&self.buckets).map(move |(&bound, &count)| {
            total += count;
            (bound, total)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_counts_cumulative() {
        let mut histogram = Histogram::new(CPU_BOUNDS);
        for value in [0, 10_000, 10_001, 700_000, 2_000_000_000] {
            histogram.observe(value);
        }
        histogram.observe_many(25_000, 3);
        histogram.observe_many(1, 0);
        let at: Vec<(u64, u64)> = histogram.cumulative().collect();
        assert_eq!(&at[..2], [(10_000, 2), (25_000, 6)]);
        assert_eq!(at.last(), Some(&(100_000_000, 7)), "one is beyond every bound");
        assert_eq!((histogram.count(), histogram.max()), (8, 2_000_000_000));
        assert_eq!(histogram.sum(), 2_000_000_000 + 700_000 + 20_001 + 75_000);
    }

    #[test]
    fn two_are_added() {
        let (mut both, mut one, mut other) =
            (Histogram::new(CPU_BOUNDS), Histogram::new(CPU_BOUNDS), Histogram::new(CPU_BOUNDS));
        for value in [3, 20_000, u64::from(u32::MAX)] {
            one.observe(value);
            other.observe_many(2 * value, 2);
            both.observe(value);
            both.observe_many(2 * value, 2);
        }
        one.merge(&other);
        assert_eq!(one, both);
    }

    #[test]
    fn etcds_bounds() {
        assert_eq!((DISK_BOUNDS[0], DISK_BOUNDS[13]), (1_000_000, 8_192_000_000));
        assert_eq!(APPLY_BOUNDS[19], 52_428_800_000);
        assert_eq!(LEASE_TTL_BOUNDS[23], 8_388_608);
    }
}
