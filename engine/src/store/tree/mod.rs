//! The copy-on-write B+tree of the index files.
//!
//! Owns: reading a tree: lookup, counts, ascending walks, verification at the first use of a page. Does not know: what
//! a value means beyond "live or not", who writes pages ([`merge`] makes them), residency.
//!
//! A [`Tree`] is one checkpoint's tree: immutable, cheap to clone. Reads borrow keys and values from the page source
//! and allocate nothing (a walk: one small stack).
//!
//! Invariants
//! - I1: a page is used only if its checksum, as its parent names it, and its whole structure were verified since its
//!   bytes were last read from the file; what is malformed under a right checksum is `Corrupt` too.
//! - I2: a read that meets an unusable page has no effect and may be repeated.

pub(crate) mod builder;
pub(crate) mod merge;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use crate::mvcc::{KeyRange, KeyScan, KeyTree};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::KeyEntry;
use crate::store::page::{Page, PageExpected, PageRef};
use crate::store::verified::Verified;

pub use merge::{Change, ChangeStream, Merge, MergeStep};

/// Which tree a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum TreeId {
    /// Key -> entry.
    Keys = 1,
    /// (lease, key) -> nothing.
    Leases = 2,
    /// Small tables: members, alarms and the like.
    Tables = 3,
}

impl TreeId {
    /// All of them, in the order in which a checkpoint writes them.
    pub const ALL: [Self; 3] = [Self::Keys, Self::Leases, Self::Tables];

    /// How an entry of this tree is weighed: live or not. `None`: malformed.
    #[must_use]
    pub fn weigh(self) -> fn(&[u8]) -> Option<bool> {
        match self {
            Self::Keys => KeyEntry::decode_is_live,
            Self::Leases | Self::Tables => |_| Some(true),
        }
    }
}

/// What a superblock names of a tree that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRoot {
    /// The root page.
    pub page: PageRef,
    /// Levels above the leaves; 0 if the root is a leaf.
    pub height: u8,
    /// Entries of the tree, live or not.
    pub entries: u64,
}

/// A tree of one checkpoint, for reading. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tree {
    id: TreeId,
    root: Option<TreeRoot>,
    verified: Arc<Verified>,
}

impl Tree {
    /// The tree a superblock names.
    #[must_use]
    pub fn new(id: TreeId, root: Option<TreeRoot>, verified: Arc<Verified>) -> Self {
        Self { id, root, verified }
    }

    /// What names it.
    #[must_use]
    pub fn root(&self) -> Option<TreeRoot> {
        self.root
    }

    /// Entries, live or not.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.root.map_or(0, |root| root.entries)
    }

    /// Live entries.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.root.map_or(0, |root| root.page.live)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn get<'a>(&self, key: &[u8], pages: &'a dyn PageSource) -> Result<Option<&'a [u8]>, Unavailable> {
        let Some(root) = self.root else { return Ok(None) };
        let mut at = root.page;
        for level in (1..=root.height).rev() {
            let page = self.page(at, level, pages)?;
            at = page.child_index(key).and_then(|index| page.child(index)).ok_or_else(|| self.corrupt(at))?;
        }
        let page = self.page(at, 0, pages)?;
        match page.search(key) {
            Some((index, true)) => Ok(Some(page.entry(index).ok_or_else(|| self.corrupt(at))?.1)),
            Some((_, false)) => Ok(None),
            None => Err(self.corrupt(at)),
        }
    }

    /// The number of live entries in `range`: O(log n).
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn count_live(&self, range: KeyRange<'_>, pages: &dyn PageSource) -> Result<u64, Unavailable> {
        match range {
            KeyRange::Single(key) => {
                let live = self.get(key, pages)?.and_then(self.id.weigh());
                Ok(u64::from(live.unwrap_or(false)))
            }
            KeyRange::Between(start, end) if end <= start => Ok(0),
            KeyRange::Between(start, end) => {
                let below = self.live_below(start, pages)?;
                Ok(self.live_below(end, pages)?.saturating_sub(below))
            }
            KeyRange::From(start) => Ok(self.live().saturating_sub(self.live_below(start, pages)?)),
        }
    }

    /// The number of live entries below `key`.
    fn live_below(&self, key: &[u8], pages: &dyn PageSource) -> Result<u64, Unavailable> {
        let Some(root) = self.root else { return Ok(0) };
        let (mut at, mut live) = (root.page, 0_u64);
        for level in (1..=root.height).rev() {
            let page = self.page(at, level, pages)?;
            let index = page.child_index(key).ok_or_else(|| self.corrupt(at))?;
            for before in 0..index {
                live = live.saturating_add(page.child(before).ok_or_else(|| self.corrupt(at))?.live);
            }
            at = page.child(index).ok_or_else(|| self.corrupt(at))?;
        }
        let page = self.page(at, 0, pages)?;
        let (end, _) = page.search(key).ok_or_else(|| self.corrupt(at))?;
        for index in 0..end {
            let (_, value) = page.entry(index).ok_or_else(|| self.corrupt(at))?;
            live += u64::from(self.id.weigh()(value).ok_or_else(|| self.corrupt(at))?);
        }
        Ok(live)
    }

    /// Starts at the first key at or above `from`.
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn scan<'a>(&'a self, from: &[u8], pages: &'a dyn PageSource) -> Result<TreeScan<'a>, Unavailable> {
        let mut scan = TreeScan { tree: self, pages, path: Vec::new() };
        let Some(root) = self.root else { return Ok(scan) };
        let mut at = root.page;
        for level in (1..=root.height).rev() {
            let page = self.page(at, level, pages)?;
            let index = page.child_index(from).ok_or_else(|| self.corrupt(at))?;
            scan.path.push(Position { page, at, level, next: index + 1 });
            at = page.child(index).ok_or_else(|| self.corrupt(at))?;
        }
        let page = self.page(at, 0, pages)?;
        let (next, _) = page.search(from).ok_or_else(|| self.corrupt(at))?;
        scan.path.push(Position { page, at, level: 0, next });
        Ok(scan)
    }

    /// Calls `visit` with every page of the tree, parents first: for checks of a whole store. Any number of pages is
    /// read.
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn visit_pages(&self, pages: &dyn PageSource, visit: &mut dyn FnMut(PageRef)) -> Result<(), Unavailable> {
        let Some(root) = self.root else { return Ok(()) };
        let mut pending = vec![(root.page, root.height)];
        while let Some((at, level)) = pending.pop() {
            visit(at);
            let page = self.page(at, level, pages)?;
            for index in 0..if level > 0 { page.count() } else { 0 } {
                pending.push((page.child(index).ok_or_else(|| self.corrupt(at))?, level - 1));
            }
        }
        Ok(())
    }

    /// A page, verified (I1).
    #[inline]
    fn page<'a>(&self, at: PageRef, level: u8, pages: &'a dyn PageSource) -> Result<Page<'a>, Unavailable> {
        open_page(self.id, at, level, &self.verified, pages)
    }

    #[cold]
    fn corrupt(&self, at: PageRef) -> Unavailable {
        Unavailable::Corrupt(self.verified.block(at.page, u32::from(at.units)))
    }
}

/// A page of a tree, verified (I1).
#[inline]
pub(crate) fn open_page<'a>(
    tree: TreeId,
    at: PageRef,
    level: u8,
    verified: &Verified,
    pages: &'a dyn PageSource,
) -> Result<Page<'a>, Unavailable> {
    let block = verified.block(at.page, u32::from(at.units));
    let bytes = pages.block(block)?;
    if !verified.is_marked(at.page) {
        let expected = PageExpected { page: at.page, tree: tree as u8, level, live: at.live };
        verify_page(bytes, at, &expected, tree.weigh()).ok_or(Unavailable::Corrupt(block))?;
        verified.mark(at.page);
    }
    Page::new(bytes).ok_or(Unavailable::Corrupt(block))
}

#[cold]
fn verify_page(bytes: &[u8], at: PageRef, expected: &PageExpected, weigh: fn(&[u8]) -> Option<bool>) -> Option<()> {
    let whole = bytes.len() == at.len() && crc32fast::hash(bytes) == at.checksum;
    (whole && Page::new(bytes)?.check(expected, weigh)).then_some(())
}

/// A key and its value.
pub type TreeEntry<'a> = (&'a [u8], &'a [u8]);

/// An ascending walk over a tree.
pub struct TreeScan<'a> {
    tree: &'a Tree,
    pages: &'a dyn PageSource,
    /// From the root to a leaf.
    path: Vec<Position<'a>>,
}

/// A page on the way down, and its next entry.
struct Position<'a> {
    page: Page<'a>,
    at: PageRef,
    level: u8,
    next: usize,
}

impl<'a> TreeScan<'a> {
    /// The next key and value.
    ///
    /// # Errors
    /// A page is not usable now; the walk stays where it is and the call may be repeated.
    pub fn next_entry(&mut self) -> Result<Option<TreeEntry<'a>>, Unavailable> {
        while let Some(position) = self.path.last_mut() {
            let (at, level) = (position.at, position.level);
            if position.next == position.page.count() {
                self.path.pop();
            } else if level == 0 {
                let entry = position.page.entry(position.next).ok_or_else(|| self.tree.corrupt(at))?;
                position.next += 1;
                return Ok(Some(entry));
            } else {
                let child = position.page.child(position.next).ok_or_else(|| self.tree.corrupt(at))?;
                let page = self.tree.page(child, level - 1, self.pages)?;
                position.next += 1;
                self.path.push(Position { page, at: child, level: level - 1, next: 0 });
            }
        }
        Ok(None)
    }
}

impl KeyTree for Tree {
    type Scan<'a> = TreeScan<'a>;

    fn get(&self, key: &[u8], pages: &dyn PageSource) -> Result<Option<KeyEntry>, Unavailable> {
        let Some(value) = Self::get(self, key, pages)? else { return Ok(None) };
        // The page is verified, so only a writer's fault ends here; it is reported as the damage it is.
        KeyEntry::decode(value).map(Some).ok_or_else(|| self.corrupt_root())
    }

    fn count_live(&self, range: KeyRange<'_>, pages: &dyn PageSource) -> Result<u64, Unavailable> {
        Self::count_live(self, range, pages)
    }

    fn scan<'a>(&'a self, from: &[u8], pages: &'a dyn PageSource) -> Result<TreeScan<'a>, Unavailable> {
        Self::scan(self, from, pages)
    }
}

impl Tree {
    #[cold]
    fn corrupt_root(&self) -> Unavailable {
        let root = self.root.expect("an entry was read, so the tree has a root");
        self.corrupt(root.page)
    }
}

impl<'a> KeyScan<'a> for TreeScan<'a> {
    fn next(&mut self) -> Result<Option<(&'a [u8], KeyEntry)>, Unavailable> {
        let Some((key, value)) = self.next_entry()? else { return Ok(None) };
        let entry = KeyEntry::decode(value).ok_or_else(|| self.tree.corrupt_root())?;
        Ok(Some((key, entry)))
    }

    fn next_raw(&mut self) -> Result<Option<(&'a [u8], &'a [u8])>, Unavailable> {
        self.next_entry()
    }
}
