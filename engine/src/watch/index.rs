//! Who watches which keys.
//!
//! Owns: one node per distinct key or range, the watchers of each in two lists (synced, and scanning the history), and
//! the way from a changed key to the nodes that hold it. Does not know: streams, revisions, events.
//!
//! Single keys stand in an ordered map, ranges in a [`RangeTree`]: a key is found in O(log n) steps and what it hits.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::mvcc::KeyRange;
use crate::watch::range_tree::RangeTree;
use crate::watch::slab::{NIL, Slab};

/// A list through the watchers of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NIL, last: NIL };

    pub(super) fn is_empty(self) -> bool {
        self.first == NIL
    }
}

/// A distinct key or range.
#[derive(Debug)]
pub(super) struct Node {
    place: Place,
    users: u32,
    /// Those of them that want previous pairs.
    prev_users: u32,
    pub(super) synced: List,
    pub(super) scanning: List,
}

#[derive(Debug)]
enum Place {
    Key(Arc<[u8]>),
    /// In the tree.
    Range(u32),
}

impl Node {
    pub(super) fn is_key(&self) -> bool {
        matches!(self.place, Place::Key(_))
    }

    pub(super) fn wants_prev(&self) -> bool {
        self.prev_users > 0
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<Arc<[u8]>, u32>,
    ranges: RangeTree,
    nodes: Slab<Node>,
    key_bytes: usize,
}

impl Index {
    /// The node of a range, for one more watcher.
    pub(super) fn enter(&mut self, range: KeyRange<'_>, wants_prev: bool) -> u32 {
        let node = match range {
            KeyRange::Single(key) => self.keys.get(key).copied(),
            KeyRange::Between(start, end) => self.ranges.find(start, Some(end)).map(|place| self.ranges.value(place)),
            KeyRange::From(start) => self.ranges.find(start, None).map(|place| self.ranges.value(place)),
        };
        let node = node.unwrap_or_else(|| self.add(range));
        let entered = &mut self.nodes[node];
        entered.users += 1;
        entered.prev_users += u32::from(wants_prev);
        node
    }

    /// One watcher less.
    pub(super) fn leave(&mut self, node: u32, wanted_prev: bool) {
        let left = &mut self.nodes[node];
        left.users -= 1;
        left.prev_users -= u32::from(wanted_prev);
        if left.users > 0 {
            return;
        }
        match self.nodes.remove(node).expect("a node has users until it goes").place {
            Place::Key(key) => {
                self.key_bytes -= key.len();
                self.keys.remove(&key);
            }
            Place::Range(place) => self.ranges.remove(place),
        }
    }

    pub(super) fn get(&self, node: u32) -> Option<&Node> {
        self.nodes.get(node)
    }

    pub(super) fn node_mut(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node]
    }

    /// What the watchers of a node watch.
    pub(super) fn range(&self, node: u32) -> KeyRange<'_> {
        match &self.nodes[node].place {
            Place::Key(key) => KeyRange::Single(key),
            Place::Range(place) => match self.ranges.range(*place) {
                (start, Some(end)) => KeyRange::Between(start, end),
                (start, None) => KeyRange::From(start),
            },
        }
    }

    /// Adds the nodes that hold a key to `out`.
    pub(super) fn stab(&self, key: &[u8], out: &mut Vec<u32>) {
        out.extend(self.keys.get(key));
        self.ranges.stab(key, &mut |node| out.push(node));
    }

    /// About the heap bytes held.
    pub(super) fn heap_bytes(&self) -> usize {
        // An entry of the map, at two thirds full, and the counts before a shared key.
        let per_key = (size_of::<(Arc<[u8]>, u32)>() * 3).div_ceil(2) + 16;
        self.nodes.heap_bytes() + self.keys.len() * per_key + self.key_bytes + self.ranges.heap_bytes()
    }

    fn add(&mut self, range: KeyRange<'_>) -> u32 {
        let node = |place| Node { place, users: 0, prev_users: 0, synced: List::EMPTY, scanning: List::EMPTY };
        let (start, end) = match range {
            KeyRange::Single(key) => {
                self.key_bytes += key.len();
                let key: Arc<[u8]> = key.into();
                let added = self.nodes.insert(node(Place::Key(Arc::clone(&key))));
                self.keys.insert(key, added);
                return added;
            }
            KeyRange::Between(start, end) => (start, Some(end)),
            KeyRange::From(start) => (start, None),
        };
        let added = self.nodes.insert(node(Place::Range(NIL)));
        self.nodes[added].place = Place::Range(self.ranges.insert(start, end, added));
        added
    }
}
