//! Where the store's bytes are read from.
//!
//! Owns: the names of store files and the one question the engine asks of them. Does not know: mappings, file
//! descriptors, residency policy. The shell answers from read-only mappings, the simulator from its disk.
//!
//! Invariants
//! - I1: bytes that a durable checkpoint names do not change while a reader holds them.
//! - I2: a returned block is raw: the caller verifies its checksum before the first use.

/// The families of store files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// The two alternating superblock copies.
    Superblock,
    /// Copy-on-write B+tree pages.
    Index,
    /// Row-log blocks.
    Rows,
}

/// One fixed-size file of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreFile {
    /// Its family.
    pub kind: FileKind,
    /// Its number within the family, from 0.
    pub number: u32,
}

/// A range of a store file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The file.
    pub file: StoreFile,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

/// Why a block cannot be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Not resident: ask the shell to load it (`NeedPages`), then evaluate again.
    Missing(Block),
    /// The bytes do not match their checksum, or the file does not hold them.
    Corrupt(Block),
}

impl Unavailable {
    /// Which block.
    #[must_use]
    pub fn block(self) -> Block {
        match self {
            Self::Missing(block) | Self::Corrupt(block) => block,
        }
    }
}

/// Read access to the store's blocks.
pub trait PageSource {
    /// The bytes of `block`, or why not. Never blocks.
    ///
    /// # Errors
    /// `Missing` if the pages are not known resident, `Corrupt` if the file does not hold that range.
    fn block(&self, block: Block) -> Result<&[u8], Unavailable>;
}
