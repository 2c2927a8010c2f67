//! Which shard owns which keys.
//!
//! Owns: the boundaries between shards. Does not know: what a shard does, why a boundary stands where it does (`load`).
//!
//! Invariants
//! - I1: every key has exactly one owner; owners ascend with keys. A shard may own nothing: boundaries may coincide.

/// The most shards there can be.
pub const SHARDS_MAX: usize = 64;

/// Names a shard; they ascend in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardId(pub u8);

/// The boundaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    /// Shard i owns the keys at or above boundary i - 1 and below boundary i.
    boundaries: Vec<Vec<u8>>,
}

impl ShardMap {
    /// `shards` shards of which the first owns nearly every key: before any load was seen.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        assert!((1..=SHARDS_MAX).contains(&shards), "{shards} shards");
        Self { boundaries: vec![vec![u8::MAX]; shards - 1] }
    }

    /// A map with these boundaries, which ascend (not strictly).
    #[must_use]
    pub fn with_boundaries(boundaries: Vec<Vec<u8>>) -> Self {
        assert!(boundaries.len() < SHARDS_MAX, "{} boundaries", boundaries.len());
        assert!(boundaries.is_sorted(), "I1: boundaries ascend");
        Self { boundaries }
    }

    /// The number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.boundaries.len() + 1
    }

    /// The owner of a key.
    #[must_use]
    pub fn owner(&self, key: &[u8]) -> ShardId {
        ShardId(self.boundaries.partition_point(|boundary| boundary.as_slice() <= key) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_one_owner_and_owners_ascend() {
        let keys: [&[u8]; 8] = [b"\0", b"a", b"a\0", b"b", b"bb", b"c", b"z", b"\xff"];
        let owners = |map: &ShardMap| keys.map(|key| map.owner(key).0);
        assert_eq!(owners(&ShardMap::new(1)), [0; 8]);
        assert_eq!(owners(&ShardMap::new(4)), [0, 0, 0, 0, 0, 0, 0, 3]);
        let map = ShardMap::with_boundaries([&b"a\0"[..], b"c", b"c"].map(<[u8]>::to_vec).to_vec());
        assert_eq!((map.shards(), owners(&map)), (4, [0, 0, 1, 1, 1, 3, 3, 3]));
    }
}
