//! What the row log has on its files, for the scrubber.
//!
//! Owns: which blocks are on the medium for certain, and whether one that was is still the log's. Does not know: how
//! they are read.

use crate::page_source::Block;
use crate::store::key_entry::Revision;
use crate::store::row_block::BlockKind;
use crate::store::row_log::{RowLog, RowLogRoot, place, row_file};

/// A block of the row log and what it must carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrittenBlock {
    pub(crate) block: Block,
    pub(crate) kind: BlockKind,
    pub(crate) checksum: u32,
}

impl WrittenBlock {
    pub(crate) fn table(root: RowLogRoot) -> Self {
        Self { block: place(root), kind: BlockKind::Table, checksum: root.checksum }
    }
}

impl RowLog {
    /// Directories that a checkpoint wrote. Not while one runs: it may be writing others.
    pub(crate) fn written_directories(&self) -> impl Iterator<Item = WrittenBlock> {
        let written = self.segments.iter().filter(|segment| !segment.dirty && segment.directory.len > 0);
        written.map(|segment| {
            let root = segment.directory;
            WrittenBlock { block: place(root), kind: BlockKind::Directory, checksum: root.checksum }
        })
    }

    /// Hands out blocks of rows from `from` on, of one segment and at least `bytes` of them if there are as many;
    /// answers where to go on. Blocks that are still in memory are left for later: they may be on their way to the
    /// file.
    pub(crate) fn written_blocks(&self, from: Revision, bytes: u64, out: &mut Vec<WrittenBlock>) -> Option<Revision> {
        let limit = self.resident.front().map(|block| block.first);
        let is_written = |first: Revision| limit.is_none_or(|limit| first < limit);
        let mut taken = 0;
        for segment in &self.segments {
            let start = segment.blocks.partition_point(|entry| entry.first() < from);
            for entry in segment.blocks[start..].iter().take_while(|entry| is_written(entry.first())) {
                if taken >= bytes {
                    return Some(entry.first());
                }
                taken += entry.len();
                let block = Block { file: row_file(segment.file), offset: entry.offset(), len: entry.len() as u32 };
                out.push(WrittenBlock { block, kind: BlockKind::Rows, checksum: entry.checksum });
            }
            if taken > 0 {
                // The next segment's first block, if any, is above every row of this one.
                return Some(segment.blocks.last()?.first().next());
            }
        }
        None
    }

    /// Whether a block that was handed out is still the log's.
    pub(crate) fn has_block(&self, written: &WrittenBlock) -> bool {
        let Some(segment) = self.segments.iter().find(|segment| row_file(segment.file) == written.block.file) else {
            return self.written_directories().any(|other| other == *written);
        };
        match written.kind {
            BlockKind::Rows => {
                let index = segment.blocks.partition_point(|entry| entry.offset() < written.block.offset);
                let entry = segment.blocks.get(index);
                entry.is_some_and(|entry| entry.offset() == written.block.offset && entry.checksum == written.checksum)
            }
            _ => self.written_directories().any(|other| other == *written),
        }
    }
}
