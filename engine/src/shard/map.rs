//! Which shard owns which keys.
//!
//! Owns: the boundaries between shards and how a range of keys falls into parts. Does not know: what a shard holds,
//! why a boundary stands where it does (`load`).
//!
//! Invariants
//! - I1: every key has exactly one owner; owners ascend with keys. A shard may own nothing: boundaries may coincide.
//! - I2: the parts of a range, in shard order, are the range: disjoint, complete, in key order.
//! - I3: no boundary is the single zero byte, which as the end of a range would mean "no end". Keys are not empty, so
//!   the empty boundary says the same.

use crate::mvcc::KeyRange;

/// The most shards there can be: a set of them is 64 bits.
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
        let mut map = Self { boundaries };
        map.boundaries.iter_mut().filter(|boundary| **boundary == [0]).for_each(Vec::clear);
        assert!(map.boundaries.is_sorted(), "I1: boundaries ascend");
        map
    }

    /// The number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.boundaries.len() + 1
    }

    /// All shards, in key order.
    pub fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards() as u8).map(ShardId)
    }

    /// The boundaries, ascending.
    #[must_use]
    pub fn boundaries(&self) -> &[Vec<u8>] {
        &self.boundaries
    }

    /// The owner of a key.
    #[must_use]
    pub fn owner(&self, key: &[u8]) -> ShardId {
        ShardId(self.boundaries.partition_point(|boundary| boundary.as_slice() <= key) as u8)
    }

    /// The part of a request's range (key, range end) that a shard owns, as such a pair; `None` if it owns nothing of
    /// it.
    #[must_use]
    pub fn part<'a>(&'a self, shard: ShardId, key: &'a [u8], range_end: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let end = match KeyRange::new(key, range_end) {
            KeyRange::Single(key) => return (self.owner(key) == shard).then_some((key, range_end)),
            KeyRange::Between(_, end) => Some(end),
            KeyRange::From(_) => None,
        };
        let (low, high) = self.bounds(shard);
        let from = key.max(low);
        // An absent end lies above every present one.
        match [end, high].into_iter().flatten().min() {
            Some(to) => (from < to).then_some((from, to)),
            None => Some((from, range_end)),
        }
    }

    /// The shards that own a part of a range, in key order.
    #[must_use]
    pub fn owners(&self, key: &[u8], range_end: &[u8]) -> ShardSet {
        if range_end.is_empty() {
            return ShardSet::of(self.owner(key));
        }
        self.ids().filter(|&shard| self.part(shard, key, range_end).is_some()).collect()
    }

    /// Moves one boundary, not past its neighbours.
    pub(super) fn move_boundary(&mut self, index: usize, to: Vec<u8>) {
        self.boundaries[index] = to;
        assert!(self.boundaries.is_sorted(), "I1: boundaries ascend");
    }

    /// First key of a shard, and the first key beyond it unless it is the last.
    pub(super) fn bounds(&self, shard: ShardId) -> (&[u8], Option<&[u8]>) {
        let index = usize::from(shard.0);
        let low = index.checked_sub(1).map_or(&[][..], |below| &self.boundaries[below]);
        (low, self.boundaries.get(index).map(Vec::as_slice))
    }
}

/// A set of shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet(u64);

impl ShardSet {
    /// The set of one.
    #[must_use]
    pub fn of(shard: ShardId) -> Self {
        Self(1 << shard.0)
    }

    /// Both sets.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// How many.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set but for one.
    #[must_use]
    pub fn without(self, shard: ShardId) -> Self {
        Self(self.0 & !(1 << shard.0))
    }

    /// Whether a shard is in it.
    #[must_use]
    pub fn contains(self, shard: ShardId) -> bool {
        self.0 & (1 << shard.0) != 0
    }

    /// Them, in key order.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..SHARDS_MAX as u8).map(ShardId).filter(move |&shard| self.contains(shard))
    }
}

impl FromIterator<ShardId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> Self {
        shards.into_iter().fold(Self::default(), |set, shard| set.union(Self::of(shard)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_range_are_the_range() {
        let edges: [&[u8]; 8] = [b"\0", b"a", b"a\0", b"b", b"bb", b"c", b"z", b"\xff"];
        for boundaries in [vec![], vec![1], vec![1, 1], vec![0, 3, 3, 5], vec![2, 4, 6, 7, 7, 7, 7]] {
            let map = ShardMap::with_boundaries(boundaries.iter().map(|&edge: &usize| edges[edge].to_vec()).collect());
            for key in edges {
                for end in edges.into_iter().chain([&b""[..]]) {
                    check_parts(&map, key, end, &edges);
                }
            }
        }
    }

    fn check_parts(map: &ShardMap, key: &[u8], end: &[u8], keys: &[&[u8]]) {
        let part = |shard| map.part(shard, key, end).map(|(key, end)| (shard, KeyRange::new(key, end)));
        let parts: Vec<_> = map.ids().filter_map(part).collect();
        let owners: Vec<_> = parts.iter().map(|part| part.0).collect();
        assert_eq!(map.owners(key, end).iter().collect::<Vec<_>>(), owners);
        assert!(parts.is_sorted_by(|left, right| left.1.start() < right.1.start()));
        for candidate in keys {
            let inside = parts.iter().filter(|part| part.1.contains(candidate));
            let holders: Vec<_> = inside.map(|part| part.0).collect();
            let is_wanted = KeyRange::new(key, end).contains(candidate);
            let wanted = if is_wanted { vec![map.owner(candidate)] } else { vec![] };
            assert_eq!(holders, wanted, "{candidate:?} of {key:?} to {end:?} in {map:?}");
        }
    }
}
