//! Where the load falls, and the boundaries that would share it evenly.
//!
//! Owns: a sample of the keys that commands touched, each with a weight. Does not know: what shards do, when
//! boundaries move.
//!
//! Every so many-th operation is kept, so the sample follows the load and costs nothing between; when it is full,
//! every second entry goes and the stride doubles, so it covers everything since the last boundaries alike. No chance
//! is involved: the same operations leave the same sample.

use crate::shard::map::ShardMap;

/// Entries at most; halved when reached.
const SAMPLE_MAX: usize = 2048;
/// A sampled key is cut to this length: a boundary may be any string of bytes.
const KEY_BYTES_MAX: usize = 256;
/// What an operation weighs beside its bytes: about the bytes that copying costs as much as finding the key.
const OPERATION_BYTES: u64 = 512;
/// Fewer entries than this a shard say nothing.
pub(super) const SAMPLE_MIN_PER_SHARD: usize = 16;

/// A sample of the load since boundaries were last computed.
#[derive(Debug)]
pub(super) struct LoadSample {
    entries: Vec<(Vec<u8>, u64)>,
    /// With which a new sample begins.
    first_stride: u64,
    stride: u64,
    until_next: u64,
    /// Bytes of operations since the last entry: its weight.
    bytes: u64,
}

impl LoadSample {
    /// An empty sample that keeps every `stride`-th operation at first.
    pub(super) fn new(stride: u64) -> Self {
        Self { entries: Vec::with_capacity(SAMPLE_MAX), first_stride: stride, stride, until_next: stride, bytes: 0 }
    }

    /// Notes an operation on `key` that carries so many bytes.
    pub(super) fn note(&mut self, key: &[u8], bytes: usize) {
        self.bytes += bytes as u64 + OPERATION_BYTES;
        self.until_next -= 1;
        if self.until_next > 0 {
            return;
        }
        if self.entries.len() == SAMPLE_MAX {
            let mut index = 0;
            self.entries.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            self.stride *= 2;
        }
        let key = key[..key.len().min(KEY_BYTES_MAX)].to_vec();
        self.entries.push((key, std::mem::take(&mut self.bytes)));
        self.until_next = self.stride;
    }

    /// The map that would have shared the sampled load evenly, as far as single keys allow; starts a new sample.
    /// `None` if too little was seen.
    pub(super) fn take_map(&mut self, shards: usize) -> Option<ShardMap> {
        if self.entries.len() < SAMPLE_MIN_PER_SHARD * shards {
            return None;
        }
        let mut entries = std::mem::replace(self, Self::new(self.first_stride)).entries;
        entries.sort();
        let total: u64 = entries.iter().map(|(_, weight)| weight).sum();
        let mut boundaries: Vec<Vec<u8>> = Vec::new();
        let mut below = 0;
        for (key, weight) in &entries {
            // The boundary stands at the key that crosses the shard's share, so that key belongs to the next shard.
            while boundaries.len() + 1 < shards
                && (below + weight) * shards as u64 > total * (boundaries.len() as u64 + 1)
            {
                boundaries.push(key.clone());
            }
            below += weight;
        }
        boundaries.resize(shards - 1, vec![u8::MAX]);
        boundaries.sort();
        Some(ShardMap::with_boundaries(boundaries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(shards: usize, loads: impl Iterator<Item = (Vec<u8>, usize)> + Clone) -> Vec<u64> {
        let mut sample = LoadSample::new(8);
        loads.clone().for_each(|(key, bytes)| sample.note(&key, bytes));
        let map = sample.take_map(shards).unwrap();
        assert_eq!(map.shards(), shards);
        let mut shares = vec![0; shards];
        loads.for_each(|(key, bytes)| shares[usize::from(map.owner(&key).0)] += bytes as u64 + OPERATION_BYTES);
        shares
    }

    #[test]
    fn boundaries_share_the_load() {
        // 100,000 operations over 50,000 keys; every fourth key carries large values.
        let key = |index: u64| format!("/registry/pods/{:08}", index * 7919 % 50_000).into_bytes();
        let loads = (0..100_000).map(|index| (key(index), if index * 7919 % 4 == 0 { 8192 } else { 100 }));
        for shards in [2, 4, 8] {
            let shares = shares(shards, loads.clone());
            let total: u64 = shares.iter().sum();
            for share in &shares {
                let even = total / shards as u64;
                assert!((even * 3 / 4..even * 5 / 4).contains(share), "{shares:?}");
            }
        }
    }

    #[test]
    fn one_hot_key_stays_with_one_shard_and_little_load_moves_nothing() {
        let loads = (0..10_000_u64)
            .map(|index| (if index % 10 > 0 { b"hot".to_vec() } else { vec![b'a' + (index / 10 % 26) as u8] }, 0));
        let shares = shares(4, loads);
        assert!(shares.iter().max().unwrap() >= &(9000 * OPERATION_BYTES), "{shares:?}");
        let mut sample = LoadSample::new(8);
        (0..100).for_each(|_| sample.note(b"k", 1));
        assert_eq!(sample.take_map(2), None);
    }

    #[test]
    fn the_sample_stays_small() {
        let mut sample = LoadSample::new(8);
        for index in 0..1_000_000_u64 {
            sample.note(&[(index % 251) as u8; 1000], 10);
        }
        assert!(sample.entries.len() <= SAMPLE_MAX && sample.entries.len() > SAMPLE_MAX / 4);
        assert!(sample.entries.iter().all(|(key, _)| key.len() == KEY_BYTES_MAX));
    }
}
