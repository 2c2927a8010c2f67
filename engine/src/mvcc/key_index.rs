//! Where in a list of changes a key's are.
//!
//! Owns: each changed key's first and last change, found by the key and walked in key order. Does not know: what a
//! change is; its callers say which key an index of their list has.
//!
//! As long as keys are few, they are found by their hashes, and the order of keys is made when somebody first walks it:
//! puts and reads of single keys never do. Beyond `HASHED_MAX` keys all of them are in a tree, so that no step has to
//! move many. So they are as well when a key finds no free slot near its place: hashes that were chosen to collide
//! gain nothing.
//!
//! Invariants
//! - I1: while there is a table, it has every key, within `PROBES_MAX` slots of its place; without one the tree has.
//! - I2: the tree, once made, has every key.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Bound;

use xxhash_rust::xxh3::xxh3_64;

/// More keys are not kept by hash.
const HASHED_MAX: usize = 1024;
/// Slots of the first table; a power of two, as all sizes are.
const SLOTS_MIN: usize = 16;
/// How far from its place a key may stand.
const PROBES_MAX: usize = 32;

/// The first and the last change of a key, as indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// Changed keys.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    table: Table,
    /// Whether the keys became too many for the table, or too crowded.
    is_tree: bool,
    tree: OnceCell<Tree>,
}

type Tree = BTreeMap<Vec<u8>, Span>;

impl KeyIndex {
    /// Change `at` is of `key`; `key_of` says whose the earlier ones are.
    pub(crate) fn note<'l>(&mut self, key: &[u8], at: usize, key_of: &dyn Fn(usize) -> &'l [u8]) {
        if let Some(tree) = self.tree.get_mut() {
            if let Some(span) = tree.get_mut(key) {
                span.last = at;
            } else {
                tree.insert(key.to_vec(), Span { first: at, last: at });
            }
        }
        if !self.is_tree && !self.table.note(key, at, key_of) {
            let table = std::mem::take(&mut self.table);
            self.is_tree = true;
            if self.tree.get().is_none() {
                let mut tree = table.sorted(key_of);
                tree.entry(key.to_vec()).or_insert(Span { first: at, last: at }).last = at;
                self.tree = OnceCell::from(tree);
            }
        }
    }

    /// The changes of a key.
    pub(crate) fn get<'l>(&self, key: &[u8], key_of: &dyn Fn(usize) -> &'l [u8]) -> Option<Span> {
        if self.is_tree { self.tree.get()?.get(key).copied() } else { self.table.get(key, key_of) }
    }

    /// Changed keys at or above `from`, in order.
    pub(crate) fn walk<'l, 's>(
        &'s self,
        from: &[u8],
        key_of: &dyn Fn(usize) -> &'l [u8],
    ) -> impl Iterator<Item = (&'s [u8], Span)> + use<'s> {
        let tree = self.tree.get_or_init(|| self.table.sorted(key_of));
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

/// A hash table of few keys; open addressing, at most half full.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    keys: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    /// `None`: free.
    span: Option<Span>,
}

impl Slot {
    const FREE: Self = Self { hash: 0, span: None };
}

/// What stands where a key belongs.
enum Found {
    Key(usize, Span),
    Free(usize),
    /// Others, as far as one looks.
    Others,
}

impl Table {
    fn get<'l>(&self, key: &[u8], key_of: &dyn Fn(usize) -> &'l [u8]) -> Option<Span> {
        match self.find(xxh3_64(key), |at| key_of(at) == key) {
            Found::Key(_, span) => Some(span),
            Found::Free(_) | Found::Others => None,
        }
    }

    /// False: there is no room for the key.
    fn note<'l>(&mut self, key: &[u8], at: usize, key_of: &dyn Fn(usize) -> &'l [u8]) -> bool {
        let hash = xxh3_64(key);
        if let Found::Key(slot, span) = self.find(hash, |at| key_of(at) == key) {
            self.slots[slot].span = Some(Span { last: at, ..span });
            return true;
        }
        self.keys < HASHED_MAX && self.has_grown() && self.enter(hash, Span { first: at, last: at })
    }

    /// Makes room for a further key. False: the keys are too crowded.
    fn has_grown(&mut self) -> bool {
        if self.keys * 2 < self.slots.len() {
            return true;
        }
        let slots = vec![Slot::FREE; (self.slots.len() * 2).max(SLOTS_MIN)];
        let old = std::mem::replace(self, Self { slots, keys: 0 });
        let mut left = old.slots.iter().filter_map(|slot| Some((slot.hash, slot.span?)));
        let has_room = left.all(|(hash, span)| self.enter(hash, span));
        if !has_room {
            // Nothing is lost: the tree is made of it.
            *self = old;
        }
        has_room
    }

    /// A key that is not here enters. False: there is no free slot near its place.
    fn enter(&mut self, hash: u64, span: Span) -> bool {
        let Found::Free(slot) = self.find(hash, |_| false) else { return false };
        self.slots[slot] = Slot { hash, span: Some(span) };
        self.keys += 1;
        true
    }

    fn find(&self, hash: u64, is_key: impl Fn(usize) -> bool) -> Found {
        let Some(mask) = self.slots.len().checked_sub(1) else { return Found::Others };
        for probe in 0..PROBES_MAX.min(self.slots.len()) {
            let slot = (hash as usize).wrapping_add(probe) & mask;
            match self.slots[slot] {
                Slot { span: None, .. } => return Found::Free(slot),
                Slot { hash: held, span: Some(span) } if held == hash && is_key(span.last) => {
                    return Found::Key(slot, span);
                }
                _ => {}
            }
        }
        Found::Others
    }

    fn sorted<'l>(&self, key_of: &dyn Fn(usize) -> &'l [u8]) -> Tree {
        let spans = self.slots.iter().filter_map(|slot| slot.span);
        spans.map(|span| (key_of(span.last).to_vec(), span)).collect()
    }
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
                assert_eq!(bed.index.is_tree, keys > HASHED_MAX, "{keys} keys");
                bed.check();
                bed.check_walk(b"/registry/05");
                bed.note(&key(keys / 2));
                bed.check();
                bed.check_walk(b"");
            }
        }
    }

    #[test]
    fn keys_that_were_chosen_to_collide_are_kept_in_order() {
        let collide = |key: &Vec<u8>| xxh3_64(key) as usize % (2 * HASHED_MAX) == 7;
        let mut bed = Bed::default();
        let keys = (0..1_000_000_u32).map(|number| number.to_be_bytes().to_vec()).filter(collide);
        for (count, key) in keys.take(2 * PROBES_MAX).enumerate() {
            bed.note(&key);
            bed.check();
            assert_eq!(bed.index.is_tree, count >= PROBES_MAX, "{count}");
        }
        bed.check_walk(b"");
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
