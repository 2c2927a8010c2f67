//! Scrubbing: everything the newest checkpoint names is read from the medium and compared with its checksum.
//!
//! Owns: the order of a pass, where it stands, and the verdict on what was read. Does not know: when and how fast
//! blocks are read, who hears of rot.
//!
//! A pass: superblock copies, the map of used units, each tree from its first key on, the row log's table and
//! directories, its blocks in revision order. It keeps nothing alive. Trees are entered anew by key for every slice of
//! a few hundred leaves; what was overwritten or removed since a slice was listed is no longer named, and passes.
//! Branches are found through the page source, and read from the medium with their leaves.
//!
//! Invariants
//! - I1: a block is rotten only if it was read twice, carried a wrong checksum both times, and was named all along.

use std::collections::VecDeque;

use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::checkpoint::Store;
use crate::store::key_entry::Revision;
use crate::store::page::PageRef;
use crate::store::row_block;
use crate::store::row_log::{RowLog, scrub::WrittenBlock};
use crate::store::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use crate::store::tree::{TreeId, open_page};

/// Longest read, unless one block is longer.
const READ_BYTES_MAX: u32 = 256 << 10;
/// Rows listed at a time.
const SLICE_BYTES: u64 = 1 << 20;

/// What a pass wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubStep {
    /// Read this from the medium, then [`Scrub::handle_read`].
    Read(Block),
    /// A page is needed first.
    NeedPages(Unavailable),
    /// A checkpoint runs; ask again when it has ended.
    Wait,
    /// The pass is complete.
    Done,
}

/// What a block must carry.
#[derive(Clone, Copy, Debug)]
enum Check {
    Superblock,
    /// A page's CRC-32, as its parent (or the superblock) names it.
    Page(u32),
    Rows(WrittenBlock),
}

#[derive(Clone, Copy, Debug)]
struct Item {
    block: Block,
    check: Check,
    /// It failed before.
    is_suspect: bool,
}

#[derive(Clone, Debug)]
enum Place {
    Superblocks,
    Map,
    /// A tree of [`TreeId::ALL`], from this key on.
    Tree(usize, Vec<u8>),
    RowDirectories,
    Rows(Revision),
    End,
}

/// One pass over a store.
#[derive(Debug)]
pub struct Scrub {
    place: Place,
    /// The checkpoint that `pending` was listed from.
    sequence: u64,
    pending: VecDeque<Item>,
    reading: Vec<Item>,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { place: Place::Superblocks, sequence: 0, pending: VecDeque::new(), reading: Vec::new() }
    }
}

impl Scrub {
    /// What to do next; the read before must have ended.
    pub fn next(&mut self, store: &Store, rows: &RowLog, pages: &dyn PageSource) -> ScrubStep {
        assert!(self.reading.is_empty(), "one read at a time");
        while self.pending.is_empty() {
            if matches!(self.place, Place::End) {
                return ScrubStep::Done;
            }
            if store.is_checkpointing() && matches!(self.place, Place::Superblocks | Place::RowDirectories) {
                return ScrubStep::Wait;
            }
            if let Err(unavailable) = self.list(store, rows, pages) {
                self.pending.clear();
                return ScrubStep::NeedPages(unavailable);
            }
        }
        ScrubStep::Read(self.take_run())
    }

    /// Lists the next slice.
    fn list(&mut self, store: &Store, rows: &RowLog, pages: &dyn PageSource) -> Result<(), Unavailable> {
        let Some(current) = store.current else {
            self.place = Place::End;
            return Ok(());
        };
        self.sequence = current.sequence;
        let mut items = Vec::new();
        let mut push = |block, check| items.push(Item { block, check, is_suspect: false });
        let next = match &self.place {
            Place::Superblocks => {
                for number in 0..2 {
                    let file = StoreFile { kind: FileKind::Superblock, number };
                    push(Block { file, offset: 0, len: SUPERBLOCK_BYTES as u32 }, Check::Superblock);
                }
                Place::Map
            }
            Place::Map => {
                push(store.page_block(current.map), Check::Page(current.map.checksum));
                Place::Tree(0, Vec::new())
            }
            Place::Tree(index, from) => {
                let after = match TreeId::ALL.get(*index) {
                    Some(&tree) => store.list_slice(tree, from, pages, &mut |page| {
                        push(store.page_block(page), Check::Page(page.checksum));
                    })?,
                    None => None,
                };
                match after {
                    Some(key) => Place::Tree(*index, key),
                    None if index + 1 < TreeId::ALL.len() => Place::Tree(index + 1, Vec::new()),
                    None => Place::RowDirectories,
                }
            }
            Place::RowDirectories => {
                let table = (current.rows.len > 0).then(|| WrittenBlock::table(current.rows));
                table.into_iter().chain(rows.written_directories()).for_each(|written| {
                    push(written.block, Check::Rows(written));
                });
                Place::Rows(Revision::NONE)
            }
            Place::Rows(from) => {
                let mut blocks = Vec::new();
                let after = rows.written_blocks(*from, SLICE_BYTES, &mut blocks);
                blocks.into_iter().for_each(|written| push(written.block, Check::Rows(written)));
                after.map_or(Place::End, Place::Rows)
            }
            Place::End => Place::End,
        };
        items.sort_unstable_by_key(|item| item.block);
        self.pending = items.into();
        self.place = next;
        Ok(())
    }

    /// The first pending blocks that stand side by side.
    fn take_run(&mut self) -> Block {
        let first = self.pending.pop_front().expect("the caller has seen one");
        let mut run = first.block;
        self.reading.push(first);
        while let Some(item) = self.pending.pop_front_if(|item| {
            item.block.file == run.file
                && item.block.offset == run.offset + u64::from(run.len)
                && run.len + item.block.len <= READ_BYTES_MAX
        }) {
            run.len += item.block.len;
            self.reading.push(item);
        }
        run
    }

    /// What the medium holds where [`ScrubStep::Read`] asked; `None` if it cannot be read. Answers what is rotten.
    pub fn handle_read(&mut self, store: &Store, rows: &RowLog, bytes: Option<&[u8]>) -> Vec<Block> {
        let (mut rotten, mut again) = (Vec::new(), Vec::new());
        let mut at = 0;
        for item in std::mem::take(&mut self.reading) {
            let len = item.block.len as usize;
            let held = bytes.and_then(|bytes| bytes.get(at..at + len));
            at += len;
            if held.is_some_and(|held| item.is_right(held, store)) || !self.is_named(&item, store, rows) {
                continue;
            }
            if item.is_suspect {
                rotten.push(item.block);
            } else {
                again.push(Item { is_suspect: true, ..item });
            }
        }
        again.into_iter().rev().for_each(|item| self.pending.push_front(item));
        rotten
    }

    /// Whether a block that was listed still has to be what it was.
    fn is_named(&self, item: &Item, store: &Store, rows: &RowLog) -> bool {
        let current = store.current.map_or(0, |current| current.sequence);
        match &item.check {
            // The older copy is being overwritten, or was.
            Check::Superblock => !store.is_checkpointing() && current == self.sequence,
            // Pages of the older retained checkpoint are not reused either.
            Check::Page(_) => current <= self.sequence + 1,
            Check::Rows(written) if written.kind == row_block::BlockKind::Table => current <= self.sequence + 1,
            Check::Rows(written) => rows.has_block(written),
        }
    }
}

impl Item {
    fn is_right(&self, bytes: &[u8], store: &Store) -> bool {
        match &self.check {
            Check::Superblock => match Superblock::decode(bytes, self.block.file.number) {
                Ok(_) => true,
                Err(SuperblockError::Blank) => store.current.is_none_or(|current| current.sequence < 2),
                Err(_) => false,
            },
            Check::Page(checksum) => crc32fast::hash(bytes) == *checksum,
            Check::Rows(written) => row_block::verify(bytes, written.kind, written.checksum).is_some(),
        }
    }
}

impl Store {
    fn page_block(&self, page: PageRef) -> Block {
        self.verified.block(page.page, u32::from(page.units))
    }

    /// Lists the pages on the way to the leaves from `from` on, and those leaves that share their parent. Answers the
    /// first key beyond.
    fn list_slice(
        &self,
        tree: TreeId,
        from: &[u8],
        pages: &dyn PageSource,
        list: &mut dyn FnMut(PageRef),
    ) -> Result<Option<Vec<u8>>, Unavailable> {
        let Some(root) = self.root(tree) else { return Ok(None) };
        let mut after = None;
        let mut at = root.page;
        list(at);
        for level in (1..=root.height).rev() {
            let corrupt = Unavailable::Corrupt(self.page_block(at));
            let page = open_page(tree, at, level, &self.verified, pages)?;
            let index = page.child_index(from).ok_or(corrupt)?;
            let children = if level == 1 { index..page.count() } else { index..index + 1 };
            if let Some(key) = (children.end < page.count()).then(|| page.key(children.end)).flatten() {
                after = Some(key.to_vec());
            }
            for child in children {
                at = page.child(child).ok_or(corrupt)?;
                list(at);
            }
        }
        Ok(after)
    }
}
