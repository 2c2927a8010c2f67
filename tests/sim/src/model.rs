//! The reference model: what a correct server would answer, written as plainly as possible.
//!
//! Owns: every version of every key, and the revision rules of etcd's key-value API. Does not know: the engine, whose
//! code it must not share.
//!
//! Invariants
//! - I1: one changing request takes exactly one revision; a request that changes nothing takes none.
//! - I2: versions count puts since the key was last created; a delete ends the count.

use std::collections::BTreeMap;

/// One version of a key, as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// Revision at which this life of the key began.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// Puts since the key was created, from 1.
    pub version: i64,
    /// Lease, 0 for none.
    pub lease: i64,
}

/// A key range in etcd's encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub key: Vec<u8>,
    /// Empty: that key alone. One zero byte: no end. Otherwise the first key beyond.
    pub range_end: Vec<u8>,
}

impl KeyRange {
    /// All keys.
    #[must_use]
    pub fn everything() -> Self {
        Self { key: vec![0], range_end: vec![0] }
    }

    /// Whether `key` is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.range_end.as_slice() {
            [] => key == self.key,
            [0] => key >= self.key.as_slice(),
            end => key >= self.key.as_slice() && key < end,
        }
    }
}

/// All revisions of a store.
#[derive(Clone, Debug)]
pub struct Model {
    revision: i64,
    /// Per key, its changes in order of revision; `None` is a deletion.
    keys: BTreeMap<Vec<u8>, Vec<(i64, Option<KeyValue>)>>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty store, at revision 1.
    #[must_use]
    pub fn new() -> Self {
        Self { revision: 1, keys: BTreeMap::new() }
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    fn version_at(changes: &[(i64, Option<KeyValue>)], revision: i64) -> Option<&KeyValue> {
        let later = changes.partition_point(|(changed, _)| *changed <= revision);
        changes[..later].last()?.1.as_ref()
    }

    /// The pairs of `range` as of `revision`, by key.
    #[must_use]
    pub fn range(&self, range: &KeyRange, revision: i64) -> Vec<&KeyValue> {
        let in_range = self.keys.iter().filter(|(key, _)| range.contains(key));
        in_range.filter_map(|(_, changes)| Self::version_at(changes, revision)).collect()
    }

    /// Puts a pair; returns the version before.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Option<KeyValue> {
        self.revision += 1;
        let changes = self.keys.entry(key.to_vec()).or_default();
        let previous = changes.last().and_then(|(_, version)| version.clone());
        let (create_revision, version) =
            previous.as_ref().map_or((self.revision, 1), |before| (before.create_revision, before.version + 1));
        let after = KeyValue {
            key: key.to_vec(),
            value: value.to_vec(),
            create_revision,
            mod_revision: self.revision,
            version,
            lease: 0,
        };
        changes.push((self.revision, Some(after)));
        previous
    }

    /// Deletes a range; returns what was there, by key.
    pub fn delete_range(&mut self, range: &KeyRange) -> Vec<KeyValue> {
        let deleted: Vec<KeyValue> = self.range(range, self.revision).into_iter().cloned().collect();
        if !deleted.is_empty() {
            self.revision += 1;
            for pair in &deleted {
                self.keys.get_mut(&pair.key).expect("the pair was found").push((self.revision, None));
            }
        }
        deleted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_of_a_key() {
        let mut model = Model::new();
        assert_eq!(model.put(b"k", b"1"), None);
        assert_eq!(model.put(b"k", b"2").map(|before| before.version), Some(1));
        assert_eq!(model.delete_range(&KeyRange { key: b"k".to_vec(), range_end: vec![] }).len(), 1);
        assert_eq!(model.delete_range(&KeyRange::everything()).len(), 0);
        assert_eq!((model.revision(), model.put(b"k", b"3")), (4, None));
        let at = |revision| {
            let pairs = model.range(&KeyRange::everything(), revision);
            pairs.first().map(|pair| (pair.create_revision, pair.mod_revision, pair.version, pair.value.clone()))
        };
        assert_eq!(at(1), None);
        assert_eq!(at(2), Some((2, 2, 1, b"1".to_vec())));
        assert_eq!(at(3), Some((2, 3, 2, b"2".to_vec())));
        assert_eq!(at(4), None);
        assert_eq!(at(5), Some((5, 5, 1, b"3".to_vec())));
    }

    #[test]
    fn ranges_as_etcd_encodes_them() {
        let range = |key: &[u8], end: &[u8]| KeyRange { key: key.to_vec(), range_end: end.to_vec() };
        assert!(range(b"b", b"").contains(b"b") && !range(b"b", b"").contains(b"ba"));
        assert!(range(b"b", b"\0").contains(b"z") && !range(b"b", b"\0").contains(b"a"));
        assert!(range(b"b", b"c").contains(b"bz") && !range(b"b", b"c").contains(b"c"));
        assert!(!range(b"b", b"b").contains(b"b") && !range(b"c", b"b").contains(b"b"));
    }
}
