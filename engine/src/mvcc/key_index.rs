//! Where in a list of changes a key's are.
//!
//! Owns: each changed key's first and last change, found by the key and walked in key order. Does not know: what a
//! change is; its callers say which key an index of their list has.
//!
//! As long as keys are few, they are found by their hashes, and the order of keys is made when somebody first walks it:
//! puts and reads of single keys never do. Beyond `HASHED_MAX` keys all of them are in a tree, so that no step has to
//! move many; and hashes that were chosen to collide cost no more than so many comparisons.
//!
//! Invariants
//! - I1: the table has every key; if they are too many for it, the tree has.
//! - I2: the tree, once made, has every key.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Bound;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// More keys are not kept by hash.
const HASHED_MAX: usize = 1024;

/// The first and the last change of a key, as indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// Changed keys.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    table: HashTable<Span>,
    /// Whether the keys became too many for the table.
    is_tree: bool,
    tree: OnceCell<Tree>,
}

type Tree = BTreeMap<Vec<u8>, Span>;

impl KeyIndex {
    /// Change `at` is of `key`; `key_of` says whose the earlier ones are.
    pub(crate) fn note<'l>(&mut self, key: &[u8], at: usize, key_of: &dyn Fn(usize) -> &'l [u8]) {
        if self.table.len() == HASHED_MAX {
            self.tree.get_or_init(|| sorted(&self.table, key_of));
            (self.is_tree, self.table) = (true, HashTable::new());
        }
        let new = Span { first: at, last: at };
        if let Some(tree) = self.tree.get_mut() {
            if let Some(span) = tree.get_mut(key) {
                span.last = at;
            } else {
                tree.insert(key.to_vec(), new);
            }
        }
        if !self.is_tree {
            let hash = |span: &Span| xxh3_64(key_of(span.last));
            let entry = self.table.entry(xxh3_64(key), |span| key_of(span.last) == key, hash);
            entry.and_modify(|span| span.last = at).or_insert(new);
        }
    }

    /// The changes of a key.
    pub(crate) fn get<'l>(&self, key: &[u8], key_of: &dyn Fn(usize) -> &'l [u8]) -> Option<Span> {
        if self.is_tree {
            self.tree.get()?.get(key).copied()
        } else if self.table.is_empty() {
            None
        } else {
            self.table.find(xxh3_64(key), |span| key_of(span.last) == key).copied()
        }
    }

    /// Changed keys at or above `from`, in order.
    pub(crate) fn walk<'l, 's>(
        &'s self,
        from: &[u8],
        key_of: &dyn Fn(usize) -> &'l [u8],
    ) -> impl Iterator<Item = (&'s [u8], Span)> + use<'s> {
        let tree = self.tree.get_or_init(|| sorted(&self.table, key_of));
        let range = (Bound::Included(from), Bound::Unbounded);
        tree.range::<[u8], _>(range).map(|(key, span)| (key.as_slice(), *span))
    }

    /// Frees a key's memory, if there is any left.
    pub(crate) fn free_one(&mut self) {
        if let Some(tree) = self.tree.get_mut() {
            drop(tree.pop_first());
        }
    }
}

fn sorted<'l>(table: &HashTable<Span>, key_of: &dyn Fn(usize) -> &'l [u8]) -> Tree {
    table.iter().map(|span| (key_of(span.last).to_vec(), *span)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index of a list of keys beside a map of them.
    #[derive(Default)]
    struct Bed {
        index: KeyIndex,
        list: Vec<Vec<u8>>,
        model: Tree,
    }

    impl Bed {
        fn note(&mut self, key: &[u8]) {
            let (at, list) = (self.list.len(), &self.list);
            self.index.note(key, at, &|index| &list[index]);
            self.list.push(key.to_vec());
            self.model.entry(key.to_vec()).or_insert(Span { first: at, last: at }).last = at;
        }

        fn check(&self) {
            let key_of = |index: usize| self.list[index].as_slice();
            for (key, span) in &self.model {
                assert_eq!(self.index.get(key, &key_of), Some(*span));
                let longer = [key, &b"\0"[..]].concat();
                assert_eq!(self.index.get(&longer, &key_of), self.model.get(&longer).copied());
            }
        }

        fn check_walk(&self, from: &[u8]) {
            let walked = self.index.walk(from, &|index| &self.list[index]);
            let range = (Bound::Included(from), Bound::Unbounded);
            assert!(walked.eq(self.model.range::<[u8], _>(range).map(|(key, span)| (key.as_slice(), *span))));
        }
    }

    fn key(number: usize) -> Vec<u8> {
        format!("/registry/{:05}", number * 7919 % 10_007).into_bytes()
    }

    #[test]
    fn few_keys_and_many_are_found_and_walked() {
        for keys in [0, 1, 8, 9, 100, HASHED_MAX, HASHED_MAX + 1, 3 * HASHED_MAX] {
            // Walked never, from the start, in the middle.
            for walked_at in [usize::MAX, 0, keys / 2] {
                let mut bed = Bed::default();
                for number in 0..keys {
                    if number == walked_at {
                        bed.check_walk(b"");
                    }
                    bed.note(&key(number));
                    bed.note(&key(number / 3));
                }
                assert_eq!(bed.index.is_tree, keys >= HASHED_MAX, "{keys} keys");
                bed.check();
                bed.check_walk(b"/registry/05");
                bed.note(&key(keys / 2));
                bed.check();
                bed.check_walk(b"");
            }
        }
    }

    #[test]
    fn what_is_taken_is_freed() {
        let mut bed = Bed::default();
        (0..2).for_each(|number| bed.note(&key(number)));
        bed.check_walk(b"");
        bed.index.free_one();
        assert_eq!(bed.index.tree.get().map(Tree::len), Some(1));
    }
}
