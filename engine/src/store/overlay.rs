//! The ordered changes since the last checkpoint.
//!
//! Owns: an in-memory B-tree from key to [`KeyEntry`], its memory account, and what each change adds to the number of
//! live keys. Does not know: rows' bytes, pages, or the merge into the key tree.
//!
//! A node holds up to `FANOUT` sorted slots. Beside each slot stands a *head*: the eight bytes of its key after the
//! bytes that all keys of the node share. Most comparisons end there, inside the node; only equal heads read a key.
//! A node knows the separators around it; what these share, every key that comes down to the node shares too, so an
//! inner node compares no prefix. Only nodes at the edges (and the root) share what their present keys do, and compare.
//! Leaves are linked for walks; a branch's slot is a bound of its child's keys from below. Keys lie in
//! chunks, so a frozen overlay of 350,000 keys is freed by the chunk ([`Overlay::free_slice`]), not by the key.
//!
//! Invariants
//! - I1: a key enters once and never leaves (a delete is a tombstone entry, a key that leaves the index has an entry
//!   that says so), so node and entry ids stay valid for the
//!   overlay's life and a cursor into a frozen overlay may be kept between steps.
//! - I2: a slot's `delta` is live(now) - live(below) of its key, or the sum over its child; so what a layer adds to the
//!   count of a range costs O(log n).
//! - I3: `bytes` counts what the overlay holds on the heap, including the slack of its chunks.
//! - I4: slots of a node ascend; heads are those of the node's shared prefix; every node but the root has a slot.

use std::cmp::Ordering;

use crate::mvcc::KeyRange;
use crate::store::key_entry::KeyEntry;

/// Slots of a node.
const FANOUT: usize = 64;
/// Entries of one chunk.
const CHUNK_ENTRIES: usize = 1024;
/// Key bytes of one chunk; a longer key gets its own.
const CHUNK_KEY_BYTES: usize = 64 * 1024;
/// Nodes that are freed in the time of a chunk.
const NODES_FREED_AT_ONCE: usize = 512;
/// "No node".
const NIL: u32 = u32::MAX;

/// The changes since a checkpoint, by key.
#[derive(Debug)]
pub struct Overlay {
    #[expect(clippy::vec_box, reason = "growing must not move megabytes of nodes in one step")]
    nodes: Vec<Box<Node>>,
    root: u32,
    entries: Vec<Vec<Slot>>,
    keys: Vec<Vec<u8>>,
    bytes: u64,
    len: usize,
    erased: usize,
}

/// A place in an overlay that stays good as long as no key enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayCursor {
    node: u32,
    slot: u32,
}

/// A key's place and its entry.
#[derive(Debug)]
struct Slot {
    chunk: u32,
    offset: u32,
    len: u32,
    entry: KeyEntry,
}

#[derive(Debug)]
struct Node {
    heads: [u64; FANOUT],
    /// The entry whose key bounds the slot from below (a leaf: the slot's own).
    entries: [u32; FANOUT],
    /// A branch's children; unused in a leaf.
    children: [u32; FANOUT],
    deltas: [i32; FANOUT],
    len: u32,
    /// How many bytes all keys of the node share, as far as the heads know.
    shared: u32,
    /// The entries whose keys bound the node: at or above `low`, below `high`. `NIL` is no bound.
    low: u32,
    high: u32,
    /// The leaf to the right, or `NIL`.
    next: u32,
    leaf: bool,
}

impl Default for Overlay {
    fn default() -> Self {
        Self::new()
    }
}

impl Overlay {
    /// An empty overlay.
    #[must_use]
    pub fn new() -> Self {
        let bytes = size_of::<Node>() as u64;
        Self {
            nodes: vec![Box::new(Node::new(true))],
            root: 0,
            entries: Vec::new(),
            keys: Vec::new(),
            bytes,
            len: 0,
            erased: 0,
        }
    }

    /// The entry of a key that changed.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&KeyEntry> {
        let mut id = self.root;
        loop {
            let node = self.node(id);
            match self.search(node, key) {
                (slot, true) if node.leaf => return Some(&self.slot(node.entries[slot]).entry),
                (_, false) if node.leaf => return None,
                (slot, true) => id = node.children[slot],
                (slot, false) => id = node.children[slot.saturating_sub(1)],
            }
        }
    }

    /// Installs a key's newest entry. `live_below` says whether the layers below hold the key alive; it is used when
    /// the key enters and ignored later.
    pub fn put(&mut self, key: &[u8], entry: KeyEntry, live_below: bool) {
        let (change, split) = self.put_below(self.root, key, entry, live_below);
        if let Some(right) = split {
            let left = self.root;
            let mut root = Node::new(false);
            for (slot, child) in [left, right].into_iter().enumerate() {
                root.entries[slot] = self.node(child).entries[0];
                root.children[slot] = child;
                root.deltas[slot] = self.node(child).delta();
            }
            root.len = 2;
            self.root = self.push_node(root);
            self.rehead(self.root);
        }
        debug_assert!(change.abs() <= 1, "one key changes the count by one");
    }

    /// Lets a deleted key leave the index with the next merge: its tombstone, here or below, is compacted.
    pub fn erase(&mut self, key: &[u8]) {
        assert!(self.get(key).is_none_or(KeyEntry::is_tombstone), "only a deleted key is erased");
        self.put(key, KeyEntry::ERASED, false);
        self.erased += 1;
    }

    /// How many keys were erased, those put again included.
    #[must_use]
    pub fn erased(&self) -> usize {
        self.erased
    }

    /// The first key at or above `from`.
    #[must_use]
    pub fn seek(&self, from: &[u8]) -> OverlayCursor {
        let mut id = self.root;
        loop {
            let node = self.node(id);
            let (slot, found) = self.search(node, from);
            if node.leaf {
                return OverlayCursor { node: id, slot: slot as u32 };
            }
            id = node.children[if found { slot } else { slot.saturating_sub(1) }];
        }
    }

    /// The key and entry at a cursor, and the cursor after it.
    #[must_use]
    pub fn next(&self, at: OverlayCursor) -> Option<(&[u8], &KeyEntry, OverlayCursor)> {
        let mut at = at;
        loop {
            let node = self.nodes.get(at.node as usize)?;
            if at.slot < node.len {
                let slot = self.slot(node.entries[at.slot as usize]);
                return Some((self.key(slot), &slot.entry, OverlayCursor { node: at.node, slot: at.slot + 1 }));
            }
            at = OverlayCursor { node: node.next, slot: 0 };
        }
    }

    /// What this layer adds to the number of live keys in `range`: O(log n).
    #[must_use]
    pub fn live_delta(&self, range: KeyRange<'_>) -> i64 {
        match range {
            KeyRange::Single(key) => {
                let cursor = self.seek(key);
                match self.next(cursor) {
                    Some((found, _, after)) if found == key => {
                        i64::from(self.node(after.node).deltas[after.slot as usize - 1])
                    }
                    _ => 0,
                }
            }
            KeyRange::Between(from, to) if from < to => self.delta_below(to) - self.delta_below(from),
            KeyRange::Between(..) => 0,
            KeyRange::From(from) => i64::from(self.node(self.root).delta()) - self.delta_below(from),
        }
    }

    /// Heap bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keys held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Frees a part of a retired overlay, some 100 us: a whole one at once would hold the core for tens of
    /// milliseconds. Returns whether all is freed; nothing may be read in between.
    pub fn free_slice(&mut self) -> bool {
        if self.entries.pop().is_none() && self.keys.pop().is_none() {
            self.nodes.truncate(self.nodes.len().saturating_sub(NODES_FREED_AT_ONCE));
        }
        self.entries.is_empty() && self.keys.is_empty() && self.nodes.is_empty()
    }

    /// The sum of deltas of all keys below `key`.
    fn delta_below(&self, key: &[u8]) -> i64 {
        let (mut id, mut sum) = (self.root, 0);
        loop {
            let node = self.node(id);
            let (slot, found) = self.search(node, key);
            let whole = if node.leaf || found { slot } else { slot.saturating_sub(1) };
            sum += node.deltas[..whole].iter().map(|&delta| i64::from(delta)).sum::<i64>();
            if node.leaf {
                return sum;
            }
            id = node.children[whole];
        }
    }

    /// Puts below a node. Returns how the node's delta changed and the node that was split off to its right.
    fn put_below(&mut self, id: u32, key: &[u8], entry: KeyEntry, live_below: bool) -> (i32, Option<u32>) {
        let node = &self.nodes[id as usize];
        let (slot, found) = self.search(node, key);
        if node.leaf {
            if found {
                return (self.replace(id, slot, entry), None);
            }
            let delta = i32::from(!entry.is_tombstone()) - i32::from(live_below);
            let entry = self.push_entry(key, entry);
            return (delta, self.insert(id, slot, key, entry, NIL, delta));
        }
        let lowest = slot == 0 && !found;
        let slot = if found { slot } else { slot.saturating_sub(1) };
        let child = node.children[slot];
        let (change, split) = self.put_below(child, key, entry, live_below);
        self.nodes[id as usize].deltas[slot] += change;
        if lowest {
            self.lower_bound(id);
        }
        let Some(right) = split else { return (change, None) };
        let delta = self.node(right).delta();
        self.nodes[id as usize].deltas[slot] -= delta;
        let bound = self.node(right).low;
        (change, self.insert_child(id, slot + 1, bound, right, delta))
    }

    /// A key already here gets a newer entry.
    fn replace(&mut self, id: u32, slot: usize, entry: KeyEntry) -> i32 {
        let index = self.nodes[id as usize].entries[slot] as usize;
        let held = &mut self.entries[index / CHUNK_ENTRIES][index % CHUNK_ENTRIES];
        assert!(entry.row > held.entry.row || entry.is_erased(), "entries of a key ascend in revision");
        let change = i32::from(!entry.is_tombstone()) - i32::from(!held.entry.is_tombstone());
        self.bytes += entry.chain.heap_bytes() as u64;
        self.bytes -= held.entry.chain.heap_bytes() as u64;
        held.entry = entry;
        self.nodes[id as usize].deltas[slot] += change;
        change
    }

    /// The key put last went below a branch's first slot, at the left edge: it is the new bound of that slot. With the
    /// old bound, a later split of the child would set a smaller separator behind a greater one.
    fn lower_bound(&mut self, id: u32) {
        let newest = u32::try_from(self.len - 1).expect("entries are numbered in 32 bits");
        self.nodes[id as usize].entries[0] = newest;
        self.rehead(id);
    }

    fn insert_child(&mut self, id: u32, slot: usize, bound: u32, child: u32, delta: i32) -> Option<u32> {
        // The bound's key is copied out of the chunk to keep the borrow of the node simple; splits are rare.
        let key = self.key(self.slot(bound)).to_vec();
        self.insert(id, slot, &key, bound, child, delta)
    }

    /// Inserts a slot, splitting the node first if it is full. Returns the node split off.
    fn insert(&mut self, id: u32, slot: usize, key: &[u8], entry: u32, child: u32, delta: i32) -> Option<u32> {
        if (self.nodes[id as usize].len as usize) < FANOUT {
            self.insert_here(id, slot, key, entry, child, delta);
            return None;
        }
        // Ascending loads fill nodes: a split at the right edge leaves the left one full.
        let node = &self.nodes[id as usize];
        let at_end = slot == FANOUT && node.next == NIL;
        let cut = if at_end { FANOUT - 1 } else { FANOUT / 2 };
        let right = self.split(id, cut);
        if slot > cut {
            self.insert_here(right, slot - cut, key, entry, child, delta);
        } else {
            self.insert_here(id, slot, key, entry, child, delta);
        }
        Some(right)
    }

    fn insert_here(&mut self, id: u32, slot: usize, key: &[u8], entry: u32, child: u32, delta: i32) {
        let node = &self.nodes[id as usize];
        let shared = if node.len == 0 {
            key.len()
        } else if node.is_inner() {
            node.shared as usize
        } else {
            common_prefix(self.key(self.slot(node.entries[0])), key).min(node.shared as usize)
        };
        let narrower = shared < node.shared as usize;
        let node = &mut self.nodes[id as usize];
        let len = node.len as usize;
        assert!(len < FANOUT && slot <= len, "a slot goes into a node with room");
        node.heads.copy_within(slot..len, slot + 1);
        node.entries.copy_within(slot..len, slot + 1);
        node.children.copy_within(slot..len, slot + 1);
        node.deltas.copy_within(slot..len, slot + 1);
        node.heads[slot] = head(key, shared);
        node.entries[slot] = entry;
        node.children[slot] = child;
        node.deltas[slot] = delta;
        node.len += 1;
        if len == 0 || narrower {
            self.rehead(id);
        }
    }

    fn split(&mut self, id: u32, cut: usize) -> u32 {
        let right = self.nodes.len() as u32;
        let node = &mut self.nodes[id as usize];
        let mut sibling = Node::new(node.leaf);
        let moved = node.len as usize - cut;
        sibling.heads[..moved].copy_from_slice(&node.heads[cut..cut + moved]);
        sibling.entries[..moved].copy_from_slice(&node.entries[cut..cut + moved]);
        sibling.children[..moved].copy_from_slice(&node.children[cut..cut + moved]);
        sibling.deltas[..moved].copy_from_slice(&node.deltas[cut..cut + moved]);
        (sibling.len, sibling.shared) = (moved as u32, node.shared);
        sibling.low = sibling.entries[0];
        sibling.high = std::mem::replace(&mut node.high, sibling.low);
        node.len = cut as u32;
        if node.leaf {
            sibling.next = node.next;
            node.next = right;
        }
        assert_eq!(self.push_node(sibling), right, "nodes are numbered in order");
        for half in [id, right] {
            // Often it shares no more than the whole did: then its heads are right, and its keys need not be read.
            if self.shared_by_bounds(self.node(half)) != self.node(half).shared as usize {
                self.rehead(half);
            }
        }
        right
    }

    /// How many bytes a node's keys share, by its bounds.
    fn shared_by_bounds(&self, node: &Node) -> usize {
        let last = node.len as usize - 1;
        let bounds = if node.is_inner() { [node.low, node.high] } else { [node.entries[0], node.entries[last]] };
        let [low, high] = bounds.map(|entry| self.key(self.slot(entry)));
        common_prefix(low, high)
    }

    /// Recomputes a node's shared prefix and heads.
    fn rehead(&mut self, id: u32) {
        let node = self.node(id);
        let len = node.len as usize;
        let shared = self.shared_by_bounds(node);
        let mut heads = [0; FANOUT];
        for (slot, head_out) in heads[..len].iter_mut().enumerate() {
            *head_out = head(self.key(self.slot(node.entries[slot])), shared);
        }
        let node = &mut self.nodes[id as usize];
        node.heads = heads;
        node.shared = shared as u32;
    }

    /// The first slot whose key is at or above `key`, and whether it is equal.
    fn search(&self, node: &Node, key: &[u8]) -> (usize, bool) {
        let len = node.len as usize;
        if len == 0 {
            return (0, false);
        }
        let shared = node.shared as usize;
        if !node.is_inner() {
            let prefix = &self.key(self.slot(node.entries[0]))[..shared];
            match key[..key.len().min(shared)].cmp(prefix) {
                Ordering::Less => return (0, false),
                Ordering::Greater => return (len, false),
                Ordering::Equal => {}
            }
        }
        let wanted = head(key, shared);
        let heads = &node.heads[..len];
        let mut low = heads.partition_point(|&head| head < wanted);
        let mut high = low + heads[low..].partition_point(|&head| head == wanted);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key(self.slot(node.entries[middle])).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return (middle, true),
                Ordering::Greater => high = middle,
            }
        }
        (low, false)
    }

    fn push_entry(&mut self, key: &[u8], entry: KeyEntry) -> u32 {
        let fits = self.keys.last().is_some_and(|chunk| chunk.capacity() - chunk.len() >= key.len());
        if !fits {
            let chunk = Vec::with_capacity(key.len().max(CHUNK_KEY_BYTES));
            self.bytes += chunk.capacity() as u64;
            self.keys.push(chunk);
        }
        let chunk = self.keys.last_mut().expect("a chunk was just made");
        let offset = chunk.len() as u32;
        chunk.extend_from_slice(key);
        let slot = Slot { chunk: self.keys.len() as u32 - 1, offset, len: key.len() as u32, entry };
        if self.entries.last().is_none_or(|chunk| chunk.len() == CHUNK_ENTRIES) {
            self.entries.push(Vec::with_capacity(CHUNK_ENTRIES));
            self.bytes += (CHUNK_ENTRIES * size_of::<Slot>()) as u64;
        }
        self.bytes += slot.entry.chain.heap_bytes() as u64;
        self.entries.last_mut().expect("a chunk was just made").push(slot);
        let index = self.len as u32;
        self.len += 1;
        index
    }

    fn push_node(&mut self, node: Node) -> u32 {
        self.bytes += size_of::<Node>() as u64;
        self.nodes.push(Box::new(node));
        self.nodes.len() as u32 - 1
    }

    fn node(&self, id: u32) -> &Node {
        &self.nodes[id as usize]
    }

    fn slot(&self, index: u32) -> &Slot {
        let index = index as usize;
        &self.entries[index / CHUNK_ENTRIES][index % CHUNK_ENTRIES]
    }

    fn key(&self, slot: &Slot) -> &[u8] {
        &self.keys[slot.chunk as usize][slot.offset as usize..(slot.offset + slot.len) as usize]
    }
}

impl Node {
    fn new(leaf: bool) -> Self {
        Self {
            heads: [0; FANOUT],
            entries: [0; FANOUT],
            children: [NIL; FANOUT],
            deltas: [0; FANOUT],
            len: 0,
            shared: 0,
            low: NIL,
            high: NIL,
            next: NIL,
            leaf,
        }
    }

    /// Whether every key that comes down here is known to share what the bounds share.
    fn is_inner(&self) -> bool {
        self.low != NIL && self.high != NIL
    }

    fn delta(&self) -> i32 {
        self.deltas[..self.len as usize].iter().sum()
    }
}

/// The eight bytes after the shared ones, zero-padded: orders keys up to ties.
fn head(key: &[u8], shared: usize) -> u64 {
    let tail = &key[shared.min(key.len())..];
    if let Some(bytes) = tail.first_chunk::<8>() {
        return u64::from_be_bytes(*bytes);
    }
    let mut bytes = [0; 8];
    bytes[..tail.len()].copy_from_slice(tail);
    u64::from_be_bytes(bytes)
}

fn common_prefix(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::key_entry::{Chain, Revision};

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
        }
    }

    fn entry(main: i64, live: bool) -> KeyEntry {
        let chain = Chain::link(None, 0).chain;
        let version = i64::from(live);
        KeyEntry { row: Revision { main, sub: 0 }, create: version * main, version, lease: 0, chain }
    }

    /// Keys that share long prefixes, are prefixes of each other and contain zero bytes.
    fn key(random: &mut Random) -> Vec<u8> {
        let mut key = b"/registry/"[..random.below(11) as usize].to_vec();
        for _ in 0..random.below(9) {
            key.push([0, 1, b'a', b'b', 255][random.below(5) as usize]);
        }
        if random.below(50) == 0 {
            key.extend_from_slice(&vec![b'x'; 70_000]);
        }
        key
    }

    fn compare_with_model(overlay: &Overlay, model: &BTreeMap<Vec<u8>, (KeyEntry, bool)>, random: &mut Random) {
        let from = key(random);
        let mut cursor = overlay.seek(&from);
        for (wanted, (entry, _)) in model.range(from.clone()..).take(100) {
            let (key, held, after) = overlay.next(cursor).unwrap();
            assert_eq!((key, held), (wanted.as_slice(), entry));
            cursor = after;
        }
        assert_eq!(overlay.get(&from), model.get(&from).map(|(entry, _)| entry));
        let to = key(random);
        for range in [KeyRange::Single(&from), KeyRange::Between(&from, &to), KeyRange::From(&from)] {
            let inside = model.iter().filter(|(key, _)| range.contains(key));
            let wanted: i64 =
                inside.map(|(_, (entry, below))| i64::from(!entry.is_tombstone()) - i64::from(*below)).sum();
            assert_eq!(overlay.live_delta(range), wanted, "{range:?}");
        }
    }

    /// I4; and a node whose bounds are known compares by all that they share.
    fn check_heads(overlay: &Overlay) {
        for node in &overlay.nodes {
            let shared = overlay.shared_by_bounds(node);
            assert!(node.shared as usize == shared || !node.is_inner() && (node.shared as usize) < shared);
            for (head_held, entry) in node.heads.iter().zip(node.entries).take(node.len as usize) {
                assert_eq!(*head_held, head(overlay.key(overlay.slot(entry)), node.shared as usize));
            }
        }
    }

    #[test]
    fn agrees_with_an_ordered_map() {
        for seed in 1..5 {
            let mut random = Random(seed);
            let (mut overlay, mut model) = (Overlay::new(), BTreeMap::new());
            for main in 2..20_000 {
                let key = key(&mut random);
                let (live, below) = (random.below(3) > 0, random.below(2) == 0);
                overlay.put(&key, entry(main, live), below);
                let slot = model.entry(key).or_insert_with(|| (entry(main, live), below));
                slot.0 = entry(main, live);
                if main % 100 == 0 {
                    compare_with_model(&overlay, &model, &mut random);
                }
            }
            assert_eq!(overlay.len(), model.len());
            check_heads(&overlay);
            let mut cursor = overlay.seek(&[]);
            for key in model.keys() {
                let (found, _, after) = overlay.next(cursor).unwrap();
                assert_eq!(found, key);
                cursor = after;
            }
            assert!(overlay.next(cursor).is_none());
            while !overlay.free_slice() {}
        }
    }

    /// Numbers as Go's benchmark client writes them (LEB128, zero-padded): no early key is the smallest, so the left
    /// edge keeps growing downwards at every level.
    #[test]
    fn the_left_edge_grows_downwards() {
        let mut random = Random(12_345);
        let (mut overlay, mut model) = (Overlay::new(), BTreeMap::new());
        for main in 2..400_002 {
            let mut number = random.below(1_000_000) << 1;
            let mut key = vec![0; 32];
            for byte in &mut key[..3] {
                *byte = (number & 0x7f) as u8 | if number >= 0x80 { 0x80 } else { 0 };
                number >>= 7;
            }
            assert_eq!(overlay.get(&key).map(|held| held.row.main), model.get(&key).copied());
            overlay.put(&key, entry(main, true), false);
            model.insert(key, main);
        }
        let mut cursor = overlay.seek(&[]);
        for (key, main) in &model {
            let (found, held, after) = overlay.next(cursor).unwrap();
            assert_eq!((found, held.row.main), (key.as_slice(), *main));
            cursor = after;
        }
        assert!(overlay.next(cursor).is_none());
    }

    #[test]
    fn ascending_keys_fill_their_nodes_and_memory_is_counted() {
        let mut overlay = Overlay::new();
        for main in 2..100_002_i64 {
            overlay.put(format!("/registry/pods/{main:017}").as_bytes(), entry(main, true), false);
        }
        assert_eq!(overlay.live_delta(KeyRange::From(b"")), 100_000);
        check_heads(&overlay);
        let each = overlay.bytes() / 100_000;
        assert!((100..160).contains(&each), "{each} bytes a key of 32");
    }
}
