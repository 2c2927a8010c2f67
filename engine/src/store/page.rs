//! The page of the index files: sorted (key, value) entries behind a directory of slots.
//!
//! Owns: page numbers, references to pages, the bytes of a page. Does not know: what a value means, how pages form a
//! tree, where the bytes come from.

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
