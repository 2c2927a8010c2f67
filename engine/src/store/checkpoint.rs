//! The store's step machine: checkpoints, from frozen changes to a durable superblock.
//!
//! Owns: the roots in use, the extents, the running checkpoint and every effect on store files, the row log's included.
//! Does not know: when a checkpoint is due, what keys mean, files, threads, time. Algorithm and byte layout:
//! docs/format/store.md, sections 2 and 7.
//!
//! ```text
//! freeze the overlay; rows = row_log.handle_checkpoint(); store.begin_checkpoint(..)
//! every turn: handle_complete(token) per completion; step(budget, frozen, pages) while it says More; poll_effect()
//!             until None; take_published() -> install the tree, drop the frozen overlay, free the log
//! ```
//!
//! Invariants
//! - I1: a superblock leaves only after every write it depends on was completed and every file of them synced since.
//! - I2: nothing that the two newest durable checkpoints name is written to (by [`Extents`]' I1, and copies alternate).
//! - I3: one checkpoint at a time; a failure is final: no further effect, no further publication.
//! - I4: sequences and raft positions of checkpoints only grow.

mod room;
pub mod scrub;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use trilith_raftlog::{Identity, Index, LogPosition};

use crate::lease::encode_stored;
use crate::mvcc::KeyspaceState;
use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::effect::{StoreBytes, StoreEffect, StoreWrite};
use crate::store::extents::{Extents, Run};
use crate::store::key_entry::KeyEntry;
use crate::store::overlay::{Overlay, OverlayCursor};
use crate::store::page::{PageRef, UNIT_BYTES};
use crate::store::page_writer::{PageWriter, Sink};
use crate::store::row_log::{RowCheckpoint, RowEffect, RowLog, RowLogRoot};
use crate::store::superblock::Superblock;
use crate::store::tree::{Change, ChangeStream, Merge, MergeStep, Tree, TreeId, TreeRoot};
use crate::store::verified::Verified;

/// Longest block that is populated by one effect.
const POPULATE_BYTES_MAX: u32 = 1 << 20;

/// Sizes of a store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of a new store's index files, a multiple of 256 KiB (64 MiB by default); an existing store keeps its own.
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

impl StoreOptions {
    /// The longest key (and value of a small table) that an index of this geometry can hold.
    #[must_use]
    pub fn key_bytes_max(&self) -> u64 {
        self.index_file_bytes / 8 - UNIT_BYTES as u64
    }
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
    /// Changes of leases and of what is attached to them, frozen with the overlay.
    pub leases: Arc<Overlay>,
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
    /// Waits for writes to complete.
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
    /// The lease tree.
    pub leases: Tree,
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

impl RowFiles for RowLog {
    fn poll_effect(&mut self) -> Option<RowEffect> {
        Self::poll_effect(self)
    }

    fn handle_write_complete(&mut self, token: u64) {
        Self::handle_write_complete(self, token);
    }

    fn is_written_through(&self, token: u64) -> bool {
        Self::is_written_through(self, token)
    }
}

/// The persistent side of a member's state.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    identity: Identity,
    verified: Arc<Verified>,
    extents: Extents,
    /// The newest durable checkpoint.
    current: Option<Superblock>,
    /// The last index of the older retained checkpoint; zero without one.
    older_index: Index,
    /// The row log's root in the older retained checkpoint, if a start found one.
    older_rows: Option<RowLogRoot>,
    running: Option<Running>,
    published: Option<PublishedCheckpoint>,
    failed: bool,
    next_token: u64,
    in_flight: BTreeMap<u64, Purpose>,
    /// Files to remove once their discards have ended.
    removals_held: Vec<StoreFile>,
    /// All free room is given back.
    thorough_release: bool,
    /// Effects that may leave.
    queue: VecDeque<StoreEffect>,
    /// Files under creation, and the writes that wait for them.
    creating: BTreeMap<StoreFile, Vec<StoreWrite>>,
    /// Index files whose creation was asked for.
    index_files_made: u32,
}

/// What an effect in flight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Create(StoreFile),
    PageWrite,
    RowWrite(u64),
    Discard {
        file: StoreFile,
        offset: u64,
        len: u64,
    },
    Remove,
    /// Sync, populate or superblock: the running phase waits for all of its own.
    Phase,
}

/// Where a checkpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Trees up to this one of [`TreeId::ALL`] are being merged.
    Merging(usize),
    /// All pages are made; waits for writes.
    Writing,
    Syncing,
    Populating,
    SuperblockWrite,
    SuperblockSync,
}

#[derive(Debug)]
struct Running {
    request: CheckpointRequest,
    sequence: u64,
    phase: Phase,
    merge: Merge,
    /// The next change of the overlay; `None` before the first.
    at: Option<OverlayCursor>,
    /// The next change of the leases; `None` before the first.
    lease_at: Option<OverlayCursor>,
    next_table: usize,
    /// Results, by [`TreeId::ALL`].
    roots: [Option<TreeRoot>; 3],
    writer: PageWriter,
    map: Option<PageRef>,
    /// Page writes not completed.
    page_writes: u32,
    /// Effects the phase waits for.
    pending: u32,
}

impl Store {
    /// The store of a directory that never saw a checkpoint. Both superblock files exist,
    /// [`crate::store::SUPERBLOCK_BYTES`] of zeros each.
    #[must_use]
    pub fn new(options: StoreOptions, identity: Identity) -> Self {
        let file_units = u32::try_from(options.index_file_bytes / UNIT_BYTES as u64).expect("a file has 32-bit units");
        assert_eq!(u64::from(file_units) * UNIT_BYTES as u64, options.index_file_bytes, "a file is whole units");
        Self::with_extents(options, identity, Extents::new(file_units, options.index_files_max))
    }

    pub(crate) fn with_extents(options: StoreOptions, identity: Identity, extents: Extents) -> Self {
        assert!(options.writes_in_flight_max > 0, "a checkpoint writes");
        Self {
            options,
            identity,
            verified: Arc::new(Verified::new(extents.file_units(), extents.files_max())),
            index_files_made: extents.files(),
            extents,
            current: None,
            older_index: Index::ZERO,
            older_rows: None,
            running: None,
            published: None,
            failed: false,
            next_token: 1,
            in_flight: BTreeMap::new(),
            removals_held: Vec::new(),
            thorough_release: false,
            queue: VecDeque::new(),
            creating: BTreeMap::new(),
        }
    }

    /// Takes up from a durable checkpoint.
    pub(crate) fn resume(&mut self, current: Superblock, older_index: Index, older_rows: Option<RowLogRoot>) {
        assert!(self.current.is_none() && older_index <= current.position.index, "I4");
        (self.current, self.older_index, self.older_rows) = (Some(current), older_index, older_rows);
    }

    /// The row log's root in the older checkpoint that a start found: its files must be kept until the next one.
    #[must_use]
    pub fn older_rows(&self) -> Option<RowLogRoot> {
        self.older_rows.filter(|root| root.len > 0)
    }

    /// Writes of a checkpoint in flight at once.
    #[must_use]
    pub fn writes_in_flight_max(&self) -> u32 {
        self.options.writes_in_flight_max
    }

    /// Whose state it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The newest durable checkpoint.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.current.as_ref()
    }

    /// The key tree of the newest durable checkpoint.
    #[must_use]
    pub fn keys(&self) -> Tree {
        self.tree(TreeId::Keys)
    }

    /// The small tables of the newest durable checkpoint.
    #[must_use]
    pub fn tables(&self) -> Tree {
        self.tree(TreeId::Tables)
    }

    /// A tree of the newest durable checkpoint.
    #[must_use]
    pub fn tree(&self, id: TreeId) -> Tree {
        Tree::new(id, self.root(id), Arc::clone(&self.verified))
    }

    fn root(&self, id: TreeId) -> Option<TreeRoot> {
        let current = self.current.as_ref()?;
        match id {
            TreeId::Keys => current.keys,
            TreeId::Leases => current.leases,
            TreeId::Tables => current.tables,
        }
    }

    /// The log is needed above this index: that of the older retained checkpoint, zero if there is none.
    #[must_use]
    pub fn retain_from(&self) -> Index {
        self.older_index
    }

    /// Index files that exist at the start: numbers below this. Any other index file is left over from a crash.
    #[must_use]
    pub fn index_files(&self) -> u32 {
        self.current.map_or(0, |current| current.index_files)
    }

    /// The longest key that the geometry in force can hold.
    #[must_use]
    pub fn key_bytes_max(&self) -> u64 {
        self.options.key_bytes_max()
    }

    /// The geometry in force.
    #[must_use]
    pub fn index_file_bytes(&self) -> u64 {
        self.options.index_file_bytes
    }

    /// Starts a checkpoint; none may be running.
    pub fn begin_checkpoint(&mut self, request: CheckpointRequest) {
        assert!(self.running.is_none() && self.published.is_none(), "I3: one checkpoint at a time");
        let last = self.current.map_or(Index::ZERO, |current| current.position.index);
        assert!(request.position.index >= last, "I4: positions grow");
        let sequence = self.current.map_or(1, |current| current.sequence + 1);
        self.running = Some(Running {
            request,
            sequence,
            phase: Phase::Merging(0),
            merge: Merge::new(TreeId::ALL[0], self.root(TreeId::ALL[0])),
            at: None,
            lease_at: None,
            next_table: 0,
            roots: [None; 3],
            writer: PageWriter::new(self.options.write_bytes_max, self.extents.file_units()),
            map: None,
            page_writes: 0,
            pending: 0,
        });
    }

    /// Whether a checkpoint runs or waits to be taken.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.running.is_some() || self.published.is_some()
    }

    /// Merges up to `work_units` changes or old entries into new pages. `frozen` is the overlay as of
    /// [`Self::begin_checkpoint`]. A unit costs about 0.2 us; a very long key costs more.
    pub fn step(&mut self, work_units: u32, frozen: &Overlay, pages: &dyn PageSource) -> CheckpointStep {
        let mut budget = work_units;
        while let Some(running) = self.running.as_mut().filter(|_| !self.failed) {
            let Phase::Merging(index) = running.phase else { return CheckpointStep::Idle };
            if running.page_writes >= self.options.writes_in_flight_max {
                return CheckpointStep::Waiting;
            }
            // The budget is given out in parts, so that writes are handed over and counted on the way.
            let mut part = budget.min(STEP_PART_UNITS);
            budget -= part;
            let step =
                running.merge_part(&mut part, TreeId::ALL[index], frozen, pages, &mut self.extents, &self.verified);
            budget += part;
            match step {
                Ok(MergeStep::Done(root)) => self.end_tree(index, root),
                Ok(MergeStep::More) if budget == 0 => {
                    self.hand_over_writes();
                    return CheckpointStep::More;
                }
                Ok(MergeStep::More) => {}
                Err(unavailable) => {
                    self.hand_over_writes();
                    return CheckpointStep::NeedPages(unavailable);
                }
            }
            self.hand_over_writes();
        }
        CheckpointStep::Idle
    }

    fn end_tree(&mut self, index: usize, root: Option<TreeRoot>) {
        let next = TreeId::ALL.get(index + 1).map(|&id| Merge::new(id, self.root(id)));
        let running = self.running.as_mut().expect("the caller merges");
        running.roots[index] = root;
        if let Some(merge) = next {
            (running.merge, running.phase) = (merge, Phase::Merging(index + 1));
            return;
        }
        if let Some(current) = self.current {
            self.extents.free(Run { page: current.map.page, units: u32::from(current.map.units) });
        }
        let (page, units) = self.extents.allocate_map();
        let map = self.extents.encode_map(page, running.sequence);
        let checksum = running.writer.write(page, &mut |out| out.extend_from_slice(&map));
        running.map = Some(PageRef { page, units, checksum, live: 0 });
        running.writer.seal();
        running.phase = Phase::Writing;
    }

    /// Turns sealed page writes into effects, behind the creation of their files.
    fn hand_over_writes(&mut self) {
        while self.index_files_made < self.extents.files() {
            let file = StoreFile { kind: FileKind::Index, number: self.index_files_made };
            self.create_file(file, self.options.index_file_bytes);
            self.index_files_made += 1;
        }
        while let Some((page, bytes)) = self.running.as_mut().and_then(|running| running.writer.pop()) {
            let Block { file, offset, .. } = self.verified.block(page, 1);
            self.write(Purpose::PageWrite, file, offset, StoreBytes::Owned(bytes));
            self.running.as_mut().expect("it just made a write").page_writes += 1;
        }
    }

    fn token(&mut self, purpose: Purpose) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.in_flight.insert(token, purpose);
        token
    }

    fn create_file(&mut self, file: StoreFile, bytes: u64) {
        let token = self.token(Purpose::Create(file));
        let before = self.creating.insert(file, Vec::new());
        assert!(before.is_none(), "a file is created once");
        self.queue.push_back(StoreEffect::CreateFile { token, file, bytes });
    }

    fn write(&mut self, purpose: Purpose, file: StoreFile, offset: u64, bytes: StoreBytes) {
        let len = bytes.as_slice().len();
        assert!(len > 0 && len.is_multiple_of(UNIT_BYTES) && offset.is_multiple_of(UNIT_BYTES as u64), "whole units");
        let write = StoreWrite { token: self.token(purpose), file, offset, bytes };
        match self.creating.get_mut(&file) {
            Some(held) => held.push(write),
            None => self.queue.push_back(StoreEffect::Write(write)),
        }
    }

    /// The next thing to do with store files, row files included. `None` at rest and after a failure.
    pub fn poll_effect(&mut self, rows: &mut dyn RowFiles) -> Option<StoreEffect> {
        while !self.failed {
            self.advance(rows);
            if let Some(effect) = self.queue.pop_front() {
                return Some(effect);
            }
            match rows.poll_effect()? {
                RowEffect::CreateSegment(file) => self.create_file(file, self.options.row_segment_bytes),
                RowEffect::DiscardTail { file, offset, len } => self.discard(file, offset, len),
                RowEffect::RemoveSegment(file) => self.remove_file(file),
                RowEffect::Write(write) => {
                    let bytes = StoreBytes::Shared(write.bytes, write.part);
                    self.write(Purpose::RowWrite(write.token), write.file, write.offset, bytes);
                }
            }
        }
        None
    }

    /// The effect of this token is done, whole.
    pub fn handle_complete(&mut self, token: u64, rows: &mut dyn RowFiles) {
        let purpose = self.in_flight.remove(&token).expect("an effect completes once");
        match purpose {
            Purpose::Create(file) => {
                let held = self.creating.remove(&file).expect("it was under creation");
                self.queue.extend(held.into_iter().map(StoreEffect::Write));
            }
            Purpose::Discard { file, offset, len } => self.end_discard(file, offset, len),
            Purpose::Remove => {}
            Purpose::RowWrite(row_token) => rows.handle_write_complete(row_token),
            Purpose::PageWrite => self.running.as_mut().expect("I3: its checkpoint runs").page_writes -= 1,
            Purpose::Phase => self.running.as_mut().expect("I3: its checkpoint runs").pending -= 1,
        }
        if !self.failed {
            self.advance(rows);
        }
    }

    /// An effect failed or was short: final. No further effect is yielded and no checkpoint ends.
    pub fn handle_failed(&mut self) {
        self.failed = true;
        self.queue.clear();
    }

    /// The checkpoint that ended since the last call.
    pub fn take_published(&mut self) -> Option<PublishedCheckpoint> {
        self.published.take()
    }

    /// Goes on to the next phase when nothing of this one is left (I1).
    fn advance(&mut self, rows: &dyn RowFiles) {
        let Some(running) = &self.running else { return };
        if running.pending > 0 {
            return;
        }
        match running.phase {
            Phase::Merging(_) => {}
            Phase::Writing => {
                if running.page_writes == 0 && rows.is_written_through(running.request.rows.last_token) {
                    self.begin_syncs();
                }
            }
            Phase::Syncing => self.begin_populates(),
            Phase::Populating => {
                let superblock = self.new_superblock();
                let file = StoreFile { kind: FileKind::Superblock, number: superblock.copy() };
                self.begin_phase(Phase::SuperblockWrite, 1);
                self.write(Purpose::Phase, file, 0, StoreBytes::Owned(superblock.encode()));
            }
            Phase::SuperblockWrite => {
                let number = self.new_superblock().copy();
                self.begin_phase(Phase::SuperblockSync, 1);
                let token = self.token(Purpose::Phase);
                let file = StoreFile { kind: FileKind::Superblock, number };
                self.queue.push_back(StoreEffect::Sync { token, file });
            }
            Phase::SuperblockSync => self.publish(),
        }
    }

    fn begin_phase(&mut self, phase: Phase, pending: u32) {
        let running = self.running.as_mut().expect("a phase belongs to a checkpoint");
        assert_eq!(running.pending, 0, "I1: a phase ends before the next begins");
        (running.phase, running.pending) = (phase, pending);
    }

    fn begin_syncs(&mut self) {
        let running = self.running.as_ref().expect("a phase belongs to a checkpoint");
        let mut files: BTreeSet<StoreFile> = running.request.rows.files.iter().copied().collect();
        files.extend(running.writer.written().iter().map(|run| self.verified.block(run.page, run.units).file));
        assert!(files.iter().all(|file| !self.creating.contains_key(file)), "I1: written files exist");
        self.begin_phase(Phase::Syncing, files.len() as u32);
        for file in files {
            let token = self.token(Purpose::Phase);
            self.queue.push_back(StoreEffect::Sync { token, file });
        }
    }

    fn begin_populates(&mut self) {
        let running = self.running.as_ref().expect("a phase belongs to a checkpoint");
        let mut blocks = Vec::new();
        for run in running.writer.written() {
            let mut rest = self.verified.block(run.page, run.units);
            while rest.len > 0 {
                let len = rest.len.min(POPULATE_BYTES_MAX);
                blocks.push(Block { len, ..rest });
                rest = Block { offset: rest.offset + u64::from(len), len: rest.len - len, ..rest };
            }
        }
        self.begin_phase(Phase::Populating, blocks.len() as u32);
        for block in blocks {
            let token = self.token(Purpose::Phase);
            self.queue.push_back(StoreEffect::Populate { token, block });
        }
    }

    fn new_superblock(&self) -> Superblock {
        let running = self.running.as_ref().expect("a phase belongs to a checkpoint");
        Superblock {
            sequence: running.sequence,
            identity: self.identity,
            position: running.request.position,
            keyspace: running.request.keyspace,
            index_file_bytes: self.options.index_file_bytes,
            index_files: self.extents.files(),
            keys: running.roots[0],
            leases: running.roots[1],
            tables: running.roots[2],
            map: running.map.expect("the map was written after the merge"),
            rows: running.request.rows.root,
        }
    }

    fn publish(&mut self) {
        let superblock = self.new_superblock();
        self.running = None;
        self.older_index = self.current.map_or(Index::ZERO, |current| current.position.index);
        self.current = Some(superblock);
        self.extents.publish(superblock.sequence);
        self.discard_extents();
        self.published = Some(PublishedCheckpoint {
            sequence: superblock.sequence,
            keys: self.keys(),
            leases: self.tree(TreeId::Leases),
            position: superblock.position,
            retain_from: self.older_index,
        });
    }

    /// Keeps the pages of the newest durable checkpoint readable until [`Self::unpin`] of the returned sequence.
    pub fn pin(&mut self) -> u64 {
        let sequence = self.current.map_or(0, |current| current.sequence);
        self.extents.pin(sequence);
        sequence
    }

    /// Gives up a pin.
    pub fn unpin(&mut self, sequence: u64) {
        self.extents.unpin(sequence);
    }

    /// Forgets that pages of this range of an index file were verified: it was released from memory.
    pub fn handle_released(&self, range: Block) {
        self.verified.clear_block(range);
    }

    /// Bytes of index pages in use or not yet reusable.
    #[must_use]
    pub fn index_bytes(&self) -> u64 {
        self.extents.taken_units() * UNIT_BYTES as u64
    }

    /// Bytes of index pages that the newest durable checkpoint uses.
    #[must_use]
    pub fn index_bytes_in_use(&self) -> u64 {
        self.extents.used_units() * UNIT_BYTES as u64
    }

    #[cfg(test)]
    pub(crate) fn extents(&self) -> &Extents {
        &self.extents
    }
}

/// Work units between two looks at the writes in flight.
const STEP_PART_UNITS: u32 = 4096;

impl Running {
    fn merge_part(
        &mut self,
        budget: &mut u32,
        tree: TreeId,
        frozen: &Overlay,
        pages: &dyn PageSource,
        extents: &mut Extents,
        verified: &Verified,
    ) -> Result<MergeStep, Unavailable> {
        let sink = &mut Sink { extents, verified, writer: &mut self.writer, generation: self.sequence };
        match tree {
            TreeId::Keys => {
                let at = self.at.unwrap_or_else(|| frozen.seek(b""));
                let mut changes = FrozenChanges::new(frozen, at, key_form);
                let step = self.merge.step(budget, &mut changes, verified, pages, sink);
                self.at = Some(changes.at);
                step
            }
            TreeId::Leases => {
                let frozen = &self.request.leases;
                let at = self.lease_at.unwrap_or_else(|| frozen.seek(b""));
                let mut changes = FrozenChanges::new(frozen, at, encode_stored);
                let step = self.merge.step(budget, &mut changes, verified, pages, sink);
                self.lease_at = Some(changes.at);
                step
            }
            TreeId::Tables => {
                let mut changes = TableChanges { changes: &self.request.tables, next: self.next_table };
                let step = self.merge.step(budget, &mut changes, verified, pages, sink);
                self.next_table = changes.next;
                step
            }
        }
    }
}

/// A frozen overlay as changes of its tree.
struct FrozenChanges<'a> {
    overlay: &'a Overlay,
    /// Where the change at hand stands.
    at: OverlayCursor,
    next: Option<(&'a [u8], OverlayCursor)>,
    value: Vec<u8>,
    /// The change at hand removes its key.
    removes: bool,
    form: Form,
}

/// Appends what a tree holds of an entry. False: nothing, the key leaves the tree.
type Form = fn(&[u8], &KeyEntry, &mut Vec<u8>) -> bool;

/// In the key tree tombstones are entries too; erased keys leave it.
fn key_form(_: &[u8], entry: &KeyEntry, out: &mut Vec<u8>) -> bool {
    if !entry.is_erased() {
        entry.encode_into(out);
    }
    !entry.is_erased()
}

impl<'a> FrozenChanges<'a> {
    fn new(overlay: &'a Overlay, at: OverlayCursor, form: Form) -> Self {
        let mut changes = Self { overlay, at, next: None, value: Vec::new(), removes: false, form };
        changes.load();
        changes
    }

    fn load(&mut self) {
        self.value.clear();
        self.next = self.overlay.next(self.at).map(|(key, entry, after)| {
            self.removes = !(self.form)(key, entry, &mut self.value);
            (key, after)
        });
    }
}

impl ChangeStream for FrozenChanges<'_> {
    fn peek(&self) -> Option<Change<'_>> {
        self.next.map(|(key, _)| Change { key, value: (!self.removes).then_some(&self.value) })
    }

    fn advance(&mut self) {
        let (_, after) = self.next.expect("the change at hand is consumed");
        self.at = after;
        self.load();
    }
}

/// Changes in a slice.
struct TableChanges<'a> {
    changes: &'a [(Vec<u8>, Option<Vec<u8>>)],
    next: usize,
}

impl ChangeStream for TableChanges<'_> {
    fn peek(&self) -> Option<Change<'_>> {
        let (key, value) = self.changes.get(self.next)?;
        Some(Change { key, value: value.as_deref() })
    }

    fn advance(&mut self) {
        self.next += 1;
    }
}
