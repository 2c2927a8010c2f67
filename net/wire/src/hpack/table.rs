//! The static table (RFC 7541 appendix A) and the dynamic table (section 2.3.2).
//!
//! Owns: entries, indices, eviction. Does not know: how a field was represented on the wire.
//!
//! Invariants
//! - I1: `size` is the sum of name + value + 32 over the live entries and never exceeds `size_max`.
//! - I2: live entries lie in `bytes` in order of insertion; positions are counted from the first byte ever stored.

use std::collections::VecDeque;

use crate::hpack::decoder::Mark;

/// The bytes an entry costs beyond its name and value (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The static table; index 1 is the first element.
pub(super) const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

#[derive(Clone, Copy, Debug)]
struct Entry {
    position: u64,
    name_len: u32,
    value_len: u32,
    mark: Mark,
}

/// The dynamic table of a decoder.
#[derive(Debug)]
pub(super) struct DynamicTable {
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// Position of `bytes[0]`.
    base: u64,
    size: usize,
    size_max: usize,
}

impl DynamicTable {
    pub(super) fn new(size_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: Vec::new(), base: 0, size: 0, size_max }
    }

    /// The field at a wire index: static from 1, dynamic from 62 with the newest first.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8], Mark)> {
        if index <= STATIC.len() {
            let (name, value) = STATIC.get(index.checked_sub(1)?)?;
            return Some((name, value, Mark::default()));
        }
        let entry = self.entries.get(index - STATIC.len() - 1)?;
        let start = (entry.position - self.base) as usize;
        let name_end = start + entry.name_len as usize;
        let value = &self.bytes[name_end..name_end + entry.value_len as usize];
        Some((&self.bytes[start..name_end], value, entry.mark))
    }

    pub(super) fn set_size_max(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict(size_max);
    }

    /// Adds a field as the newest; one that is larger than the table empties it (section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8], mark: Mark) {
        let cost = name.len() + value.len() + ENTRY_OVERHEAD;
        if cost > self.size_max {
            self.evict(0);
            return;
        }
        self.evict(self.size_max - cost);
        if self.bytes.len() + cost > self.size_max * 2 {
            self.compact();
        }
        let position = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        let (name_len, value_len) = (name.len() as u32, value.len() as u32);
        self.entries.push_front(Entry { position, name_len, value_len, mark });
        self.size += cost;
        assert!(self.size <= self.size_max, "I1");
    }

    /// Evicts the oldest entries until at most `size` remains.
    fn evict(&mut self, size: usize) {
        while self.size > size {
            let entry = self.entries.pop_back().expect("I1: a size above zero has entries");
            self.size -= entry.name_len as usize + entry.value_len as usize + ENTRY_OVERHEAD;
        }
    }

    /// Drops the bytes of evicted entries.
    fn compact(&mut self) {
        let live = self.entries.back().map_or(self.bytes.len(), |oldest| (oldest.position - self.base) as usize);
        self.bytes.drain(..live);
        self.base += live as u64;
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }
}
