//! Finding the newest checkpoint at boot.
//!
//! Owns: the choice of the superblock copy and the loading of the page map (docs/format/store.md section 7). Does not
//! know: the log that is replayed on top, what row files hold.
//!
//! Invariants
//! - I1: nothing is written, and no bytes make it panic.
//! - I2: the newest valid copy is used or the start is refused; a damaged copy is never taken for a blank one.

use std::fmt;

use trilith_raftlog::{Identity, Index};

use crate::page_source::{FileKind, StoreFile};
use crate::store::checkpoint::{Store, StoreOptions};
use crate::store::extents::{Extents, Run};
use crate::store::page::{PageId, UNIT_BYTES};
use crate::store::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use crate::store::verified::Verified;

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
    /// A structure that the superblock in use names is not what it names, or no copy of the superblock is whole.
    Corrupt {
        /// The file.
        file: StoreFile,
        /// Where in it.
        offset: u64,
        /// What was found.
        what: &'static str,
    },
    /// The directory belongs to another cluster, member or incarnation.
    ForeignIdentity {
        /// The file that says so.
        file: StoreFile,
        /// What it says.
        found: Identity,
    },
    /// The store was written by a newer version.
    UnknownFormat(u16),
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Media(file, reason) => write!(f, "{:?} file {}: {reason}", file.kind, file.number),
            Self::Corrupt { file, offset, what } => {
                write!(f, "{:?} file {} is corrupt at offset {offset}: {what}", file.kind, file.number)
            }
            Self::ForeignIdentity { file, found } => write!(
                f,
                "{:?} file {} belongs to cluster {}, member {}, incarnation {}",
                file.kind, file.number, found.cluster_id, found.member_id, found.incarnation
            ),
            Self::UnknownFormat(format) => write!(f, "the store has format {format}, which is newer than this program"),
        }
    }
}

impl std::error::Error for RecoverError {}

/// Opens the store of a directory that is bound to `identity`: the newest valid checkpoint, or an empty store if there
/// never was one. The row log is opened by the caller, from [`Superblock::rows`].
///
/// # Errors
/// See [`RecoverError`].
pub fn recover(options: StoreOptions, identity: Identity, media: &mut dyn StoreMedia) -> Result<Store, RecoverError> {
    let copies = [read_copy(0, identity, media)?, read_copy(1, identity, media)?];
    let newest = copies.iter().filter_map(|copy| copy.as_ref().ok()).max_by_key(|superblock| superblock.sequence);
    let Some(&current) = newest else {
        return match copies.iter().position(|copy| *copy == Err(SuperblockError::Damaged)) {
            None => Ok(Store::new(options, identity)),
            Some(damaged) => {
                let file = StoreFile { kind: FileKind::Superblock, number: damaged as u32 };
                Err(RecoverError::Corrupt { file, offset: 0, what: "no copy of the superblock is whole" })
            }
        };
    };
    // Only a copy one behind is the older retained checkpoint; without one, nothing older can be fallen back to.
    let older =
        copies.iter().filter_map(|copy| copy.as_ref().ok()).find(|other| other.sequence + 1 == current.sequence);
    let first_one = current.sequence == 1;
    let older_index = older.map_or(if first_one { Index::ZERO } else { current.position.index }, |o| o.position.index);
    let (options, extents) = load_map(options, &current, media)?;
    let mut store = Store::with_extents(options, identity, extents);
    store.resume(current, older_index.min(current.position.index), older.map(|older| older.rows));
    Ok(store)
}

fn read_copy(
    number: u32,
    identity: Identity,
    media: &mut dyn StoreMedia,
) -> Result<Result<Superblock, SuperblockError>, RecoverError> {
    let file = StoreFile { kind: FileKind::Superblock, number };
    let bytes = media.read(file, 0, SUPERBLOCK_BYTES as usize).map_err(|reason| RecoverError::Media(file, reason))?;
    // A missing file is a copy that was never written.
    let copy = Superblock::decode(bytes.as_deref().unwrap_or_default(), number);
    match copy {
        Ok(superblock) if superblock.identity != identity => {
            Err(RecoverError::ForeignIdentity { file, found: superblock.identity })
        }
        Err(SuperblockError::UnknownFormat(format)) => Err(RecoverError::UnknownFormat(format)),
        copy => Ok(copy),
    }
}

/// The extents that the superblock's map describes, and the options with the store's own geometry.
fn load_map(
    options: StoreOptions,
    current: &Superblock,
    media: &mut dyn StoreMedia,
) -> Result<(StoreOptions, Extents), RecoverError> {
    let superblock = StoreFile { kind: FileKind::Superblock, number: current.copy() };
    let refuse = |what| RecoverError::Corrupt { file: superblock, offset: 0, what };
    let unit = UNIT_BYTES as u64;
    let file_units = u32::try_from(current.index_file_bytes / unit)
        .ok()
        .filter(|&units| units > 0 && units.is_multiple_of(64) && u64::from(units) * unit == current.index_file_bytes)
        .ok_or_else(|| refuse("impossible length of index files"))?;
    let files_max = options.index_files_max.min(u32::MAX / file_units).max(current.index_files);
    let total = u64::from(file_units) * u64::from(files_max);
    if total > u64::from(u32::MAX)
        || !is_in_a_file(current.map.page, current.map.units, file_units, current.index_files)
    {
        return Err(refuse("the page map lies outside the index files"));
    }
    let verified = Verified::new(file_units, files_max);
    let block = verified.block(current.map.page, u32::from(current.map.units));
    let (file, offset) = (block.file, block.offset);
    let bytes = media
        .read(file, offset, block.len as usize)
        .map_err(|reason| RecoverError::Media(file, reason))?
        .filter(|bytes| crc32fast::hash(bytes) == current.map.checksum)
        .ok_or(RecoverError::Corrupt { file, offset, what: "the page map does not match its checksum" })?;
    let extents =
        Extents::decode_map(file_units, files_max, current.map, current.index_files, current.sequence, &bytes)
            .ok_or(RecoverError::Corrupt { file, offset, what: "the page map is malformed" })?;
    for root in [current.keys, current.leases, current.tables].into_iter().flatten() {
        if !extents.holds(Run { page: root.page.page, units: u32::from(root.page.units) }) {
            return Err(refuse("the root of a tree lies outside the pages in use"));
        }
    }
    let options = StoreOptions { index_file_bytes: current.index_file_bytes, index_files_max: files_max, ..options };
    Ok((options, extents))
}

fn is_in_a_file(page: PageId, units: u16, file_units: u32, files: u32) -> bool {
    units > 0 && page.0 / file_units < files && page.0 % file_units + u32::from(units) <= file_units
}
