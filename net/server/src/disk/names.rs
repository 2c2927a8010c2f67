//! Names of store files below the data directory.

use trilith_engine::page_source::{Block, FileKind, StoreFile};

/// Name of a store file below the data directory.
#[must_use]
pub fn store_file_name(file: StoreFile) -> String {
    let number = file.number;
    match file.kind {
        FileKind::Superblock => format!("store/superblock-{number}"),
        FileKind::Index => format!("store/index-{number:04}"),
        FileKind::Rows => format!("store/rows-{number:04}"),
    }
}

/// The store file a name below the data directory stands for.
#[must_use]
pub fn store_file(name: &str) -> Option<StoreFile> {
    let (family, number) = name.strip_prefix("store/")?.rsplit_once('-')?;
    let kind = match family {
        "superblock" => FileKind::Superblock,
        "index" => FileKind::Index,
        "rows" => FileKind::Rows,
        _ => return None,
    };
    let file = StoreFile { kind, number: number.parse().ok()? };
    (store_file_name(file) == name).then_some(file)
}

/// A block in the operator's terms.
pub(super) fn describe_block(verb: &str, block: Block) -> String {
    format!("{verb} {} bytes at offset {} of {}", block.len, block.offset, store_file_name(block.file))
}
