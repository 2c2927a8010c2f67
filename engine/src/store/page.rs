//! The page of the index files: sorted (key, value) entries behind a directory of slots.
//!
//! Owns: page numbers, references to pages, the bytes of a page (docs/format/store.md section 3). Does not know: what a
//! leaf's value means, how pages form a tree, where the bytes come from.
//!
//! Invariants
//! - I1: no bytes make a reader panic: every access is checked, `None` means malformed.
//! - I2: [`Page::check`] accepts only what [`append_page`] makes, so a page has one binary form.

use std::cmp::Ordering;

/// Bytes of a unit; a page is a run of units.
pub const UNIT_BYTES: usize = 4096;
/// Bytes before the slots.
pub const HEADER_BYTES: usize = 24;
/// Longest binary form of a [`PageRef`].
pub const PAGE_REF_BYTES_MAX: usize = 4 + 4 + 2 + 10;

/// Pages up to this long have slots of two bytes.
const NARROW_BYTES_MAX: usize = 1 << 16;

/// Number of a 4096-byte unit of the index files: file `id / units per file`, place `id % units per file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// What a parent (or the superblock) knows of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// Its first unit.
    pub page: PageId,
    /// Its length in units of 4096 bytes; one, but for pages with long keys.
    pub units: u16,
    /// CRC-32 of all its bytes.
    pub checksum: u32,
    /// Entries below it that count as live.
    pub live: u64,
}

impl PageRef {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.units) * UNIT_BYTES
    }

    /// Never: a page has at least one unit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.units == 0
    }

    /// The form in which a branch holds it.
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.page.0.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        out.extend_from_slice(&self.units.to_le_bytes());
        put_varint(out, self.live);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (page, rest) = bytes.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        let (units, rest) = rest.split_first_chunk::<2>()?;
        let (live, len) = varint_at(rest, 0)?;
        let units = u16::from_le_bytes(*units);
        (len == rest.len() && units > 0).then_some(Self {
            page: PageId(u32::from_le_bytes(*page)),
            units,
            checksum: u32::from_le_bytes(*checksum),
            live,
        })
    }
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageType {
    /// Entries of a tree.
    Leaf = 1,
    /// References to the pages of the level below.
    Branch = 2,
    /// The map of used units.
    Map = 3,
}

/// The fields before the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// What it is.
    pub page_type: PageType,
    /// The tree it belongs to, 0 for a map.
    pub tree: u8,
    /// Levels above the leaves.
    pub level: u8,
    /// Its own first unit.
    pub page: PageId,
    /// The checkpoint that wrote it.
    pub generation: u64,
    /// Number of entries.
    pub count: u32,
    /// Bytes in use from the start.
    pub used: u32,
}

impl PageHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.page_type as u8;
        bytes[1] = self.tree;
        bytes[2] = self.level;
        bytes[4..8].copy_from_slice(&self.page.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.used.to_le_bytes());
        bytes
    }

    /// Reads a header. `None`: malformed.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let page_type = match *bytes.first()? {
            1 => PageType::Leaf,
            2 => PageType::Branch,
            3 => PageType::Map,
            _ => return None,
        };
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let generation = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        (*bytes.get(3)? == 0).then_some(Self {
            page_type,
            tree: *bytes.get(1)?,
            level: *bytes.get(2)?,
            page: PageId(u32_at(4)?),
            generation,
            count: u32_at(16)?,
            used: u32_at(20)?,
        })
    }
}

/// A page whose checksum was verified, for reading.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    bytes: &'a [u8],
    count: usize,
    narrow: bool,
}

impl<'a> Page<'a> {
    /// A page over a whole run of units.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let count = u32::from_le_bytes(*bytes.get(16..)?.first_chunk()?) as usize;
        Some(Self { bytes, count, narrow: bytes.len() <= NARROW_BYTES_MAX })
    }

    /// Number of entries.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    fn slot(&self, index: usize) -> Option<usize> {
        if index >= self.count {
            return None;
        }
        if self.narrow {
            let at = HEADER_BYTES + 2 * index;
            Some(usize::from(u16::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?)))
        } else {
            let at = HEADER_BYTES + 4 * index;
            Some(u32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?) as usize)
        }
    }

    /// Key, value and their place: start of the entry, end of the entry.
    fn entry_at(&self, index: usize) -> Option<(&'a [u8], &'a [u8], usize, usize)> {
        let start = self.slot(index)?;
        let (key_len, at) = varint_at(self.bytes, start)?;
        let (value_len, at) = varint_at(self.bytes, at)?;
        let value_at = at.checked_add(usize::try_from(key_len).ok()?)?;
        let end = value_at.checked_add(usize::try_from(value_len).ok()?)?;
        Some((self.bytes.get(at..value_at)?, self.bytes.get(value_at..end)?, start, end))
    }

    /// Key and value of an entry. `None`: malformed, or beyond the last.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<(&'a [u8], &'a [u8])> {
        self.entry_at(index).map(|(key, value, ..)| (key, value))
    }

    /// Key, value and the whole entry as it stands in the page.
    pub(crate) fn raw_entry(&self, index: usize) -> Option<(&'a [u8], &'a [u8], &'a [u8])> {
        let (key, value, start, end) = self.entry_at(index)?;
        Some((key, value, self.bytes.get(start..end)?))
    }

    /// The key of an entry.
    #[must_use]
    pub fn key(&self, index: usize) -> Option<&'a [u8]> {
        self.entry_at(index).map(|(key, ..)| key)
    }

    /// The first entry whose key is at or above `key`, and whether it is equal.
    #[must_use]
    pub fn search(&self, key: &[u8]) -> Option<(usize, bool)> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key(middle)?.cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some((middle, true)),
                Ordering::Greater => high = middle,
            }
        }
        Some((low, false))
    }

    /// The child of a branch whose range holds `key`.
    #[must_use]
    pub fn child_index(&self, key: &[u8]) -> Option<usize> {
        let (index, equal) = self.search(key)?;
        // The first key is empty, so only a damaged page has no child at or below.
        if equal { Some(index) } else { index.checked_sub(1) }
    }

    /// A child of a branch.
    #[must_use]
    pub fn child(&self, index: usize) -> Option<PageRef> {
        PageRef::decode(self.entry(index)?.1)
    }

    /// Checks the whole structure of a tree page (I2): that it is the page expected, and that every access will
    /// succeed. `weigh` says what an entry counts; the sum must be `live`.
    #[must_use]
    pub fn check(&self, expected: &PageExpected, weigh: fn(&[u8]) -> Option<bool>) -> bool {
        self.checked_live(expected, weigh) == Some(expected.live)
    }

    fn checked_live(&self, expected: &PageExpected, weigh: fn(&[u8]) -> Option<bool>) -> Option<u64> {
        let header = PageHeader::decode(self.bytes)?;
        let branch = expected.level > 0;
        let page_type = if branch { PageType::Branch } else { PageType::Leaf };
        let found = (header.page_type, header.tree, header.level, header.page);
        let used = header.used as usize;
        if found != (page_type, expected.tree, expected.level, expected.page) || self.count == 0 {
            return None;
        }
        if self.bytes.get(used..)?.iter().any(|&byte| byte != 0) {
            return None;
        }
        let slots = self.count.checked_mul(if self.narrow { 2 } else { 4 })?;
        let mut at = HEADER_BYTES.checked_add(slots)?;
        let (mut live, mut before) = (0_u64, None);
        for index in 0..self.count {
            let (key, value, start, end) = self.entry_at(index)?;
            if start != at || before.is_some_and(|before| before >= key) {
                return None;
            }
            if branch {
                live = live.checked_add(PageRef::decode(value)?.live)?;
            } else {
                live += u64::from(weigh(value)?);
            }
            (at, before) = (end, Some(key));
        }
        let first_is_right = !branch || self.key(0)?.is_empty();
        (at == used && first_is_right && used <= self.bytes.len()).then_some(live)
    }
}

/// What a page must be.
#[derive(Clone, Copy, Debug)]
pub struct PageExpected {
    /// Its number.
    pub page: PageId,
    /// Its tree.
    pub tree: u8,
    /// Its level.
    pub level: u8,
    /// Its live entries.
    pub live: u64,
}

/// Bytes of a page's header, slots and entries, before padding.
#[must_use]
pub(crate) fn used_bytes(count: usize, entries_bytes: usize) -> usize {
    let narrow = HEADER_BYTES + 2 * count + entries_bytes;
    if narrow.next_multiple_of(UNIT_BYTES) <= NARROW_BYTES_MAX { narrow } else { narrow + 2 * count }
}

/// Appends a page to `out`, padded to whole units. `starts` are the places of the entries in `entries`.
pub(crate) fn append_page(
    out: &mut Vec<u8>,
    header: &PageHeader,
    entries: &[&[u8]],
    starts: impl Iterator<Item = usize>,
) {
    let count = header.count as usize;
    let begin = out.len();
    let entries_bytes: usize = entries.iter().map(|part| part.len()).sum();
    let used = used_bytes(count, entries_bytes);
    let first = used - entries_bytes;
    let narrow = used.next_multiple_of(UNIT_BYTES) <= NARROW_BYTES_MAX;
    out.reserve(used.next_multiple_of(UNIT_BYTES));
    out.extend_from_slice(&PageHeader { used: used as u32, ..*header }.encode());
    for start in starts {
        if narrow {
            let slot = u16::try_from(first + start).expect("a narrow page's offsets fit two bytes");
            out.extend_from_slice(&slot.to_le_bytes());
        } else {
            let slot = u32::try_from(first + start).expect("a page is shorter than a file");
            out.extend_from_slice(&slot.to_le_bytes());
        }
    }
    assert_eq!(out.len() - begin, first, "one slot per entry");
    for part in entries {
        out.extend_from_slice(part);
    }
    out.resize(begin + used.next_multiple_of(UNIT_BYTES), 0);
}

/// Appends a LEB128 number.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A minimal LEB128 number at `at`, and the place after it.
#[inline]
fn varint_at(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let first = *bytes.get(at)?;
    if first < 0x80 {
        return Some((u64::from(first), at + 1));
    }
    long_varint_at(bytes, at)
}

#[cold]
fn long_varint_at(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(at)?;
        at += 1;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return (byte != 0 || shift == 0).then_some((value, at));
        }
    }
    None
}
