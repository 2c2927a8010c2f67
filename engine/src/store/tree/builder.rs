//! Entries of one level on their way into new pages.
//!
//! Owns: where a page ends, separators, fill. Does not know: the old tree, changes, where pages go.
//!
//! A builder collects the entries that one old page (a *region*) turns into. At the region's end they become one page,
//! or two even halves, so that a page keeps room for the next checkpoint's inserts; within a long run of new entries
//! pages are filled to the brim. What is too little for a page is carried into the next region, which the merge then
//! opens.
//!
//! Invariants
//! - I1: keys ascend strictly within a level, over the whole merge.
//! - I2: the separator of a page is above every key before it on its level and at or below every key in it.
//! - I3: a page longer than a unit is a leaf of one entry or a branch of fewer than eight (docs/format/store.md
//!   section 5).

use crate::store::page::{
    PAGE_REF_BYTES_MAX, PageHeader, PageId, PageRef, PageType, UNIT_BYTES, append_page, put_varint, used_bytes,
};
use crate::store::tree::TreeId;

/// Below this a region's rest is carried on.
const UNDERFULL_BYTES: usize = UNIT_BYTES / 3;
/// Entries of a branch that closes for length, so that a tree of long keys narrows too.
const BRANCH_ENTRIES_MIN: usize = 4;

/// Where new pages go.
pub(crate) trait PageSink {
    /// Takes a run of units.
    fn allocate(&mut self, units: u16) -> PageId;
    /// Takes the bytes of the run allocated last.
    fn write(&mut self, page: PageId, encode: &mut dyn FnMut(&mut Vec<u8>)) -> u32;
    /// Gives back a page of the old tree.
    fn free(&mut self, page: PageRef);
    /// The checkpoint's sequence.
    fn generation(&self) -> u64;
}

/// The entries of one level that are not in pages yet.
#[derive(Debug)]
pub(crate) struct Builder {
    tree: TreeId,
    level: u8,
    /// Entries as they stand in a page.
    entries: Vec<u8>,
    /// Their places in `entries`, with the place of the key and the live weight.
    slots: Vec<Pending>,
    /// Leaves: the separator of the next page, known when it has an entry.
    separator: Vec<u8>,
    /// Leaves: the last key of the page before, if the next entry must be separated from it.
    separate_from: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    start: usize,
    key_start: usize,
    key_len: usize,
    live: u64,
}

/// A page that was made.
#[derive(Debug)]
pub(crate) struct Made {
    /// Its separator.
    pub(crate) key: Vec<u8>,
    /// What its parent holds.
    pub(crate) page: PageRef,
}

impl Builder {
    pub(crate) fn new(tree: TreeId, level: u8) -> Self {
        Self { tree, level, entries: Vec::new(), slots: Vec::new(), separator: Vec::new(), separate_from: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The only entry, if there is only one.
    pub(crate) fn single_child(&self) -> Option<PageRef> {
        let [only] = self.slots[..] else { return None };
        let value = &self.entries[only.key_start + only.key_len..];
        Some(PageRef::decode(value).expect("a branch's builder holds references"))
    }

    /// The entries of an old page follow, whose separator this is.
    pub(crate) fn start_region(&mut self, separator: &[u8]) {
        if self.is_empty() {
            self.separate_from = None;
            self.separator.clear();
            self.separator.extend_from_slice(separator);
        }
    }

    /// An entry as it stood in an old page.
    pub(crate) fn push_raw(&mut self, raw: &[u8], key_len: usize, value_len: usize, live: u64) {
        let start = self.entries.len();
        self.entries.extend_from_slice(raw);
        let key_start = start + raw.len() - key_len - value_len;
        self.push_slot(Pending { start, key_start, key_len, live });
    }

    /// A new entry.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8], live: u64) {
        let start = self.entries.len();
        put_varint(&mut self.entries, key.len() as u64);
        put_varint(&mut self.entries, value.len() as u64);
        let key_start = self.entries.len();
        self.entries.extend_from_slice(key);
        self.entries.extend_from_slice(value);
        self.push_slot(Pending { start, key_start, key_len: key.len(), live });
    }

    /// A page of the level below.
    pub(crate) fn push_child(&mut self, key: &[u8], page: PageRef) {
        let mut value = Vec::with_capacity(PAGE_REF_BYTES_MAX);
        page.encode_into(&mut value);
        self.push(key, &value, page.live);
    }

    fn push_slot(&mut self, slot: Pending) {
        if let Some(before) = self.slots.last() {
            assert!(self.key(before) < self.key(&slot), "I1: keys ascend");
        } else if let Some(last) = self.separate_from.take() {
            assert!(last.as_slice() < self.key(&slot), "I1: keys ascend");
            self.separator = shortest_separator(&last, self.key(&slot)).to_vec();
        }
        self.slots.push(slot);
    }

    fn key(&self, slot: &Pending) -> &[u8] {
        &self.entries[slot.key_start..slot.key_start + slot.key_len]
    }

    fn used(&self, from: usize, to: usize) -> usize {
        let end = self.slots.get(to).map_or(self.entries.len(), |slot| slot.start);
        used_bytes(to - from, end - self.slots.get(from).map_or(end, |slot| slot.start))
    }

    fn used_all(&self) -> usize {
        self.used(0, self.slots.len())
    }

    /// Whether the entries at hand should not become a page of their own.
    pub(crate) fn is_underfull(&self) -> bool {
        let few = self.level > 0 && self.slots.len() < 2;
        !self.is_empty() && (few || self.used_all() < UNDERFULL_BYTES)
    }

    /// Makes full pages while more than two are at hand.
    pub(crate) fn spill(&mut self, sink: &mut dyn PageSink, made: &mut Vec<Made>) {
        let rest_min = if self.level == 0 { 1 } else { 2 * BRANCH_ENTRIES_MIN };
        while self.used_all() > 2 * UNIT_BYTES && self.slots.len() > rest_min {
            let count = self.bounded(self.fitting(UNIT_BYTES));
            self.make_page(count, sink, made);
        }
    }

    /// Makes pages of everything at hand, of even length.
    pub(crate) fn flush(&mut self, sink: &mut dyn PageSink, made: &mut Vec<Made>) {
        while !self.is_empty() {
            let count = self.even_count();
            self.make_page(count, sink, made);
        }
    }

    /// Makes pages of everything at hand, full ones first: at the tree's right edge, where the next keys may go on.
    pub(crate) fn flush_last(&mut self, sink: &mut dyn PageSink, made: &mut Vec<Made>) {
        while !self.is_empty() {
            let count = self.bounded(self.fitting(UNIT_BYTES));
            self.make_page(count, sink, made);
        }
    }

    /// How many entries from the front fit a page of `bytes`.
    fn fitting(&self, bytes: usize) -> usize {
        let (mut low, mut high) = (0, self.slots.len());
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.used(0, middle) <= bytes {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    fn even_count(&self) -> usize {
        let len = self.slots.len();
        let total = self.used_all();
        if total <= UNIT_BYTES {
            return len;
        }
        let mut count = self.fitting(total / 2).max(1);
        if total <= 2 * UNIT_BYTES && count < len && self.used(count, len) > UNIT_BYTES {
            // The rest would not fit although both halves might.
            count = if self.used(0, count + 1) <= UNIT_BYTES { count + 1 } else { self.fitting(UNIT_BYTES) };
        }
        self.bounded(count.min(self.fitting(UNIT_BYTES)))
    }

    /// A possible number of entries of the next page, near `count` (I3).
    fn bounded(&self, count: usize) -> usize {
        let len = self.slots.len();
        if self.level == 0 {
            return count.clamp(1, len);
        }
        if count >= len || len < 2 * BRANCH_ENTRIES_MIN {
            return len;
        }
        count.clamp(BRANCH_ENTRIES_MIN, len - BRANCH_ENTRIES_MIN)
    }

    /// Turns the first `count` entries into a page.
    fn make_page(&mut self, count: usize, sink: &mut dyn PageSink, made: &mut Vec<Made>) {
        assert!(count > 0 && count <= self.slots.len(), "a page has entries");
        let end = self.slots.get(count).map_or(self.entries.len(), |slot| slot.start);
        let first = self.slots[0];
        let branch = self.level > 0;
        let first_end = self.slots.get(1).map_or(end, |slot| slot.start);
        let mut keyless = Vec::new();
        // The first key of a branch stands in its parent.
        let (head, tail_start) = if branch {
            let value = &self.entries[first.key_start + first.key_len..first_end];
            put_varint(&mut keyless, 0);
            put_varint(&mut keyless, value.len() as u64);
            keyless.extend_from_slice(value);
            (keyless.as_slice(), first_end)
        } else {
            (&[][..], first.start)
        };
        let tail = &self.entries[tail_start..end];
        let used = used_bytes(count, head.len() + tail.len());
        let units = u16::try_from(used.div_ceil(UNIT_BYTES)).expect("admission bounds the length of keys");
        let page = sink.allocate(units);
        let header = PageHeader {
            page_type: if branch { PageType::Branch } else { PageType::Leaf },
            tree: self.tree as u8,
            level: self.level,
            page,
            generation: sink.generation(),
            count: count as u32,
            used: 0,
        };
        let starts = self.slots[..count]
            .iter()
            .map(|slot| if slot.start < tail_start { 0 } else { head.len() + slot.start - tail_start });
        let checksum = sink.write(page, &mut |out| append_page(out, &header, &[head, tail], starts.clone()));
        let live = self.slots[..count].iter().map(|slot| slot.live).sum();
        made.push(Made { key: self.take_separator(count), page: PageRef { page, units, checksum, live } });
        self.drop_front(count, end);
    }

    /// The separator of the page of the first `count` entries; prepares the next page's.
    fn take_separator(&mut self, count: usize) -> Vec<u8> {
        if self.level > 0 {
            return self.key(&self.slots[0]).to_vec();
        }
        let last = &self.slots[count - 1];
        let next = match self.slots.get(count) {
            Some(slot) => shortest_separator(self.key(last), self.key(slot)).to_vec(),
            None => {
                self.separate_from = Some(self.key(last).to_vec());
                Vec::new()
            }
        };
        std::mem::replace(&mut self.separator, next)
    }

    fn drop_front(&mut self, count: usize, end: usize) {
        self.entries.drain(..end);
        self.slots.drain(..count);
        for slot in &mut self.slots {
            slot.start -= end;
            slot.key_start -= end;
        }
    }
}

/// The shortest key above `last` and at or below `first`.
fn shortest_separator<'a>(last: &[u8], first: &'a [u8]) -> &'a [u8] {
    let shared = last.iter().zip(first).take_while(|(a, b)| a == b).count();
    &first[..(shared + 1).min(first.len())]
}

#[cfg(test)]
mod tests {
    use super::shortest_separator;

    #[test]
    fn separators_are_short_and_between() {
        for (last, first, separator) in
            [("", "a", "a"), ("a", "ab", "ab"), ("abc", "abd", "abd"), ("abcx", "b", "b"), ("a", "a\0", "a\0")]
        {
            assert_eq!(shortest_separator(last.as_bytes(), first.as_bytes()), separator.as_bytes());
        }
    }
}
