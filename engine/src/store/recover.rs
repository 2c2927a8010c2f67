//! Finding the newest checkpoint at boot.
//!
//! Owns: the choice of the superblock copy and the loading of the page map. Does not know: the log that is replayed
//! on top, what row files hold.

use trilith_raftlog::Identity;

use crate::page_source::StoreFile;
use crate::store::checkpoint::{Store, StoreOptions};

/// Synchronous access to the store's files at boot, past any cache.
pub trait StoreMedia {
    /// Exactly `len` bytes at `offset`; `None` if there is no such file or it ends before.
    ///
    /// # Errors
    /// What the environment said.
    fn read(&mut self, file: StoreFile, offset: u64, len: usize) -> Result<Option<Vec<u8>>, String>;
}

/// Why the store cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoverError {
    /// The environment failed a read.
    Media(StoreFile, String),
    /// A structure that the superblock in use names is not what it names.
    Corrupt {
        /// The file.
        file: StoreFile,
        /// Where in it.
        offset: u64,
        /// What was found.
        what: &'static str,
    },
    /// The directory belongs to another cluster, member or incarnation.
    ForeignIdentity(Identity),
    /// The store was written by a newer version.
    UnknownFormat(u16),
}

/// Opens the store of a directory that is bound to `identity`: the newest valid checkpoint, or an empty store if there
/// never was one. Nothing is written.
///
/// # Errors
/// See [`RecoverError`].
pub fn recover(
    options: StoreOptions,
    identity: Identity,
    media: &mut dyn StoreMedia,
) -> Result<Store, RecoverError> {
    todo!()
}
