//! The ranges that are watched, found by a key inside.
//!
//! Owns: distinct ranges in order of (start, end), in a balanced tree in which every subtree knows its furthest end.
//! Does not know: who watches.
//!
//! The tree is a treap. Its priorities come from a fixed sequence: equal calls make equal trees.
//!
//! Invariants
//! - I1: a node's priority is at least its children's; `reach` names the node of the subtree with the greatest end.

use std::cmp::Ordering;

use crate::watch::slab::{NIL, Slab};

#[derive(Debug)]
struct TreeNode {
    start: Box<[u8]>,
    /// `None`: no end.
    end: Option<Box<[u8]>>,
    value: u32,
    left: u32,
    right: u32,
    priority: u32,
    reach: u32,
}

/// A map from ranges to numbers.
#[derive(Debug)]
pub(super) struct RangeTree {
    nodes: Slab<TreeNode>,
    root: u32,
    sequence: u32,
    range_bytes: usize,
}

impl Default for RangeTree {
    fn default() -> Self {
        Self { nodes: Slab::default(), root: NIL, sequence: 0, range_bytes: 0 }
    }
}

impl RangeTree {
    /// The place of a range, if it is there.
    pub(super) fn find(&self, start: &[u8], end: Option<&[u8]>) -> Option<u32> {
        let mut at = self.root;
        while let Some(node) = self.nodes.get(at) {
            match order((start, end), node.range()) {
                Ordering::Less => at = node.left,
                Ordering::Equal => return Some(at),
                Ordering::Greater => at = node.right,
            }
        }
        None
    }

    /// Adds a range that is not there; returns its place.
    pub(super) fn insert(&mut self, start: &[u8], end: Option<&[u8]>, value: u32) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut priority = self.sequence.wrapping_mul(0x9e37_79b9);
        priority = (priority ^ priority >> 15).wrapping_mul(0x85eb_ca6b);
        priority ^= priority >> 13;
        self.range_bytes += start.len() + end.map_or(0, <[u8]>::len);
        let (start, end) = (start.into(), end.map(Into::into));
        let node = TreeNode { start, end, value, left: NIL, right: NIL, priority, reach: NIL };
        let new = self.nodes.insert(node);
        self.nodes[new].reach = new;
        self.root = self.insert_below(self.root, new);
        new
    }

    /// Takes the range at a place out.
    pub(super) fn remove(&mut self, place: u32) {
        self.root = self.remove_below(self.root, place);
        let node = self.nodes.remove(place).expect("a range is removed once");
        self.range_bytes -= node.start.len() + node.end.map_or(0, |end| end.len());
    }

    pub(super) fn value(&self, place: u32) -> u32 {
        self.nodes[place].value
    }

    /// The range at a place.
    pub(super) fn range(&self, place: u32) -> (&[u8], Option<&[u8]>) {
        self.nodes[place].range()
    }

    /// Visits the value of every range that holds the key, in order of the ranges.
    pub(super) fn stab(&self, key: &[u8], visit: &mut impl FnMut(u32)) {
        self.stab_below(self.root, key, visit);
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.nodes.heap_bytes() + self.range_bytes
    }

    fn stab_below(&self, at: u32, key: &[u8], visit: &mut impl FnMut(u32)) {
        let Some(node) = self.nodes.get(at) else { return };
        if !self.nodes[node.reach].ends_above(key) {
            return;
        }
        self.stab_below(node.left, key, visit);
        if *node.start <= *key {
            if node.ends_above(key) {
                visit(node.value);
            }
            self.stab_below(node.right, key, visit);
        }
    }

    fn insert_below(&mut self, at: u32, new: u32) -> u32 {
        if at == NIL {
            return new;
        }
        if order(self.nodes[new].range(), self.nodes[at].range()) == Ordering::Less {
            let child = self.insert_below(self.nodes[at].left, new);
            if self.nodes[child].priority > self.nodes[at].priority {
                self.nodes[at].left = self.nodes[child].right;
                self.nodes[child].right = at;
                self.update(at);
                self.update(child);
                return child;
            }
            self.nodes[at].left = child;
        } else {
            let child = self.insert_below(self.nodes[at].right, new);
            if self.nodes[child].priority > self.nodes[at].priority {
                self.nodes[at].right = self.nodes[child].left;
                self.nodes[child].left = at;
                self.update(at);
                self.update(child);
                return child;
            }
            self.nodes[at].right = child;
        }
        self.update(at);
        at
    }

    fn remove_below(&mut self, at: u32, place: u32) -> u32 {
        let (left, right) = (self.nodes[at].left, self.nodes[at].right);
        if at == place {
            return self.merge(left, right);
        }
        if order(self.nodes[place].range(), self.nodes[at].range()) == Ordering::Less {
            self.nodes[at].left = self.remove_below(left, place);
        } else {
            self.nodes[at].right = self.remove_below(right, place);
        }
        self.update(at);
        at
    }

    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        let top = if self.nodes[left].priority >= self.nodes[right].priority {
            self.nodes[left].right = self.merge(self.nodes[left].right, right);
            left
        } else {
            self.nodes[right].left = self.merge(left, self.nodes[right].left);
            right
        };
        self.update(top);
        top
    }

    fn update(&mut self, at: u32) {
        let node = &self.nodes[at];
        let mut reach = at;
        for child in [node.left, node.right] {
            if let Some(child) = self.nodes.get(child) {
                let further = order_ends(self.nodes[child.reach].end.as_deref(), self.nodes[reach].end.as_deref());
                reach = if further == Ordering::Greater { child.reach } else { reach };
            }
        }
        self.nodes[at].reach = reach;
    }
}

impl TreeNode {
    fn range(&self) -> (&[u8], Option<&[u8]>) {
        (&self.start, self.end.as_deref())
    }

    fn ends_above(&self, key: &[u8]) -> bool {
        self.end.as_deref().is_none_or(|end| key < end)
    }
}

fn order(a: (&[u8], Option<&[u8]>), b: (&[u8], Option<&[u8]>)) -> Ordering {
    a.0.cmp(b.0).then_with(|| order_ends(a.1, b.1))
}

fn order_ends(a: Option<&[u8]>, b: Option<&[u8]>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::map_tree::Random;

    fn key(random: &mut Random) -> Vec<u8> {
        (0..=random.below(2)).map(|_| b'a' + random.below(5) as u8).collect()
    }

    #[test]
    fn stabbing_finds_what_a_search_through_all_finds() {
        let mut random = Random(7);
        let mut tree = RangeTree::default();
        let mut all: Vec<(Vec<u8>, Option<Vec<u8>>, u32)> = Vec::new();
        for value in 0..4000 {
            let (start, end) = (key(&mut random), (!random.one_in(5)).then(|| key(&mut random)));
            match tree.find(&start, end.as_deref()) {
                Some(place) => {
                    let held = tree.value(place);
                    assert!(all.contains(&(start.clone(), end.clone(), held)));
                    assert_eq!(tree.range(place), (start.as_slice(), end.as_deref()));
                    tree.remove(place);
                    all.retain(|&(.., value)| value != held);
                }
                None => {
                    assert!(all.iter().all(|range| (&range.0, &range.1) != (&start, &end)));
                    tree.insert(&start, end.as_deref(), value);
                    all.push((start, end, value));
                }
            }
            let probe = key(&mut random);
            let inside = |end: &Option<Vec<u8>>| end.as_ref().is_none_or(|end| probe < *end);
            let mut expected: Vec<_> = all.iter().filter(|range| range.0 <= probe && inside(&range.1)).collect();
            expected.sort_by(|a, b| order((&a.0, a.1.as_deref()), (&b.0, b.1.as_deref())));
            let mut found = Vec::new();
            tree.stab(&probe, &mut |value| found.push(value));
            assert_eq!(found, expected.iter().map(|range| range.2).collect::<Vec<_>>());
        }
        assert!(all.len() > 200);
        let mut depths = vec![(tree.root, 0)];
        let mut deepest = 0;
        while let Some((at, depth)) = depths.pop() {
            let Some(node) = tree.nodes.get(at) else { continue };
            deepest = deepest.max(depth);
            depths.extend([(node.left, depth + 1), (node.right, depth + 1)]);
        }
        assert!(deepest < 40, "{deepest} levels for {} ranges", all.len());
    }
}
