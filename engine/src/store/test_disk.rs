//! A disk for tests: what was written to each store file, read back as blocks.

use std::collections::BTreeMap;

use crate::page_source::{Block, PageSource, StoreFile, Unavailable};
use crate::store::row_log::{RowEffect, RowLog};

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) files: BTreeMap<StoreFile, Vec<u8>>,
    /// Nothing is resident: every read is `Missing`.
    pub(crate) cold: bool,
}

impl Disk {
    pub(crate) fn write(&mut self, file: StoreFile, offset: u64, bytes: &[u8]) {
        let held = self.files.get_mut(&file).expect("a file is created before it is written");
        let end = offset as usize + bytes.len();
        if held.len() < end {
            held.resize(end, 0xee);
        }
        held[offset as usize..end].copy_from_slice(bytes);
    }

    /// Carries out every effect, completing the writes newest first.
    pub(crate) fn drain(&mut self, rows: &mut RowLog) {
        let mut tokens = Vec::new();
        while let Some(effect) = rows.poll_effect() {
            match effect {
                RowEffect::CreateSegment(file) => drop(self.files.entry(file).or_default()),
                RowEffect::Write(write) => {
                    assert!(write.part.start.is_multiple_of(4096) && write.part.end.is_multiple_of(4096));
                    self.write(write.file, write.offset, &write.bytes[write.part.clone()]);
                    tokens.push(write.token);
                }
                RowEffect::DiscardTail { file, offset, len } => {
                    let held = self.files.get_mut(&file).expect("only an existing file gives back room");
                    assert!(held.len() as u64 <= offset && len > 0, "nothing was written there");
                }
                RowEffect::RemoveSegment(file) => {
                    assert!(self.files.remove(&file).is_some(), "{file:?} is removed once");
                }
            }
        }
        tokens.into_iter().rev().for_each(|token| rows.handle_write_complete(token));
    }
}

impl PageSource for Disk {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        if self.cold {
            return Err(Unavailable::Missing(block));
        }
        let start = usize::try_from(block.offset).unwrap();
        let bytes = self.files.get(&block.file).and_then(|bytes| bytes.get(start..start + block.len as usize));
        bytes.ok_or(Unavailable::Corrupt(block))
    }
}
