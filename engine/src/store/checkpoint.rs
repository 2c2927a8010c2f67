//! The store's step machine: checkpoints, from frozen changes to a durable superblock.
//!
//! Owns: the roots in use, the allocator, the running checkpoint and every effect on store files, the row log's
//! included. Does not know: when a checkpoint is due, what keys mean, files, threads, time.

use std::collections::BTreeSet;

use trilith_raftlog::{Identity, Index, LogPosition};

use crate::mvcc::KeyspaceState;
use crate::page_source::{Block, PageSource, StoreFile, Unavailable};
use crate::store::effect::StoreEffect;
use crate::store::overlay::Overlay;
use crate::store::row_log::{RowCheckpoint, RowEffect, RowLog};
use crate::store::superblock::Superblock;
use crate::store::tree::Tree;

/// Bytes of a superblock file.
pub const SUPERBLOCK_BYTES: u64 = 4096;

/// Sizes of a store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of a new store's index files, a multiple of 4096 (64 MiB by default); an existing store keeps its own.
    pub index_file_bytes: u64,
    /// Index files at most.
    pub index_files_max: u32,
    /// Bytes of a row-log segment, as in the row log's options.
    pub row_segment_bytes: u64,
    /// Longest single write of index pages, a multiple of 4096 (256 KiB by default).
    pub write_bytes_max: u32,
    /// Writes of a checkpoint in flight at once; the merge pauses above.
    pub writes_in_flight_max: u32,
}

/// What a checkpoint includes. The overlay was frozen and the row log's checkpoint was taken in the same step.
#[derive(Clone, Debug)]
pub struct CheckpointRequest {
    /// The last raft entry applied; durable in this member's own log.
    pub position: LogPosition,
    /// The keyspace's scalars as of it.
    pub keyspace: KeyspaceState,
    /// The row log's part.
    pub rows: RowCheckpoint,
    /// Changes of the small tables, strictly ascending by key; `None` removes.
    pub tables: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What a step of the merge came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointStep {
    /// No merge work remains (or no checkpoint runs).
    Idle,
    /// Budget used up: call again.
    More,
    /// Waits for completions.
    Waiting,
    /// Waits for this page (`Missing`), or can never end (`Corrupt`).
    NeedPages(Unavailable),
}

/// A checkpoint that is durable and now the newest.
#[derive(Clone, Debug)]
pub struct PublishedCheckpoint {
    /// Its number.
    pub sequence: u64,
    /// The key tree that holds the frozen overlay's changes.
    pub keys: Tree,
    /// The last raft entry it includes.
    pub position: LogPosition,
    /// The log is needed above this index: that of the older retained checkpoint.
    pub retain_from: Index,
}

/// The row log, as far as its files are concerned.
pub trait RowFiles {
    /// The next thing to do with row files.
    fn poll_effect(&mut self) -> Option<RowEffect>;
    /// A write is on the file.
    fn handle_write_complete(&mut self, token: u64);
    /// Whether every write up to this token has completed.
    fn is_written_through(&self, token: u64) -> bool;
}

/// The persistent side of a member's state.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// The store of a directory that never saw a checkpoint. Both superblock files exist, [`SUPERBLOCK_BYTES`] of
    /// zeros each.
    #[must_use]
    pub fn new(options: StoreOptions, identity: Identity) -> Self {
        todo!()
    }

    /// The newest durable checkpoint.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        todo!()
    }

    /// The key tree of the newest durable checkpoint.
    #[must_use]
    pub fn keys(&self) -> Tree {
        todo!()
    }

    /// The small tables of the newest durable checkpoint.
    #[must_use]
    pub fn tables(&self) -> Tree {
        todo!()
    }

    /// The log is needed above this index.
    #[must_use]
    pub fn retain_from(&self) -> Index {
        todo!()
    }

    /// Starts a checkpoint; none may be running.
    pub fn begin_checkpoint(&mut self, request: CheckpointRequest) {
        todo!()
    }

    /// Whether a checkpoint runs.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        todo!()
    }

    /// Merges up to `work_units` changes or old entries of `frozen` into new pages. One unit is about 0.1 us.
    pub fn step(&mut self, work_units: u32, frozen: &Overlay, pages: &dyn PageSource) -> CheckpointStep {
        todo!()
    }

    /// The next thing to do with store files, row files included. `None` at rest and after a failure.
    pub fn poll_effect(&mut self, rows: &mut dyn RowFiles) -> Option<StoreEffect> {
        todo!()
    }

    /// The effect of this token is done, whole.
    pub fn handle_complete(&mut self, token: u64, rows: &mut dyn RowFiles) {
        todo!()
    }

    /// An effect failed or was short: final. No further effect is yielded and no checkpoint ends.
    pub fn handle_failed(&mut self) {
        todo!()
    }

    /// The checkpoint that ended since the last call.
    pub fn take_published(&mut self) -> Option<PublishedCheckpoint> {
        todo!()
    }

    /// Keeps the pages of the newest durable checkpoint readable until [`Self::unpin`] of the returned sequence.
    pub fn pin(&mut self) -> u64 {
        todo!()
    }

    /// Gives up a pin.
    pub fn unpin(&mut self, sequence: u64) {
        todo!()
    }

    /// Forgets that pages of this range were verified: it was released from memory.
    pub fn handle_released(&self, range: Block) {
        todo!()
    }

    /// Bytes of index pages in use or not yet reusable.
    #[must_use]
    pub fn index_bytes(&self) -> u64 {
        todo!()
    }
}
