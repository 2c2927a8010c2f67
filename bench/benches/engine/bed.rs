//! A keyspace over files in memory: what the micro-benchmarks of the engine work on.
//!
//! Owns: one replicated state and its store, the bytes of its files, and the sequence of calls a checkpoint consists
//! of. Does not know: the log, threads, the clock of a benchmark, what is measured.
//!
//! Invariants
//! - I1: every effect completes at once and whole, so nothing here waits and no disk is in the figures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trilith_engine::budget::Budget;
use trilith_engine::command::Put;
use trilith_engine::mvcc::{Keyspace, KeyspaceState, PutOutcome};
use trilith_engine::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use trilith_engine::replica::apply::State;
use trilith_engine::shard::ShardOptions;
use trilith_engine::store::row_log::{RowLog, RowLogOptions};
use trilith_engine::store::verified::Verified;
use trilith_engine::store::{
    CheckpointRequest, CheckpointStep, SUPERBLOCK_BYTES, Store, StoreEffect, StoreOptions, Tree, TreeId,
};
use trilith_engine::tables::Tables;
use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, Index, LogPosition, MemberId, Term};

/// Bytes of a key, as in the figures this project compares itself by.
pub(crate) const KEY_BYTES: usize = 64;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 256;

const IDENTITY: Identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(1), incarnation: Incarnation(1) };

const STORE: StoreOptions = StoreOptions {
    index_file_bytes: 64 << 20,
    index_files_max: 1024,
    row_segment_bytes: ROWS.segment_bytes,
    write_bytes_max: 256 << 10,
    writes_in_flight_max: 4,
};

/// Sizes of the row log, as the server has them.
pub(crate) const ROWS: RowLogOptions = RowLogOptions {
    segment_bytes: 64 << 20,
    block_bytes: 32 << 10,
    rows_resident_bytes_max: 64 << 20,
    write_bytes_max: 256 << 10,
};

/// A fresh overlay after so many changes, as a checkpoint would give one.
pub(crate) const OVERLAY_CHANGES: usize = 350_000;

/// Merge work of one step, as the server's loop asks for it.
const STEP_UNITS: u32 = 5_000;

/// Files in memory, by family and number.
#[derive(Debug)]
pub(crate) struct Files {
    superblocks: Vec<Vec<u8>>,
    index: Vec<Vec<u8>>,
    rows: Vec<Vec<u8>>,
}

impl Files {
    fn new() -> Self {
        Self { superblocks: vec![vec![0; SUPERBLOCK_BYTES as usize]; 2], index: Vec::new(), rows: Vec::new() }
    }

    fn family(&self, kind: FileKind) -> &[Vec<u8>] {
        match kind {
            FileKind::Superblock => &self.superblocks,
            FileKind::Index => &self.index,
            FileKind::Rows => &self.rows,
        }
    }

    fn create(&mut self, file: StoreFile, bytes: u64) {
        let family = match file.kind {
            FileKind::Superblock => &mut self.superblocks,
            FileKind::Index => &mut self.index,
            FileKind::Rows => &mut self.rows,
        };
        let number = file.number as usize;
        family.resize_with(family.len().max(number + 1), Vec::new);
        family[number] = vec![0; usize::try_from(bytes).expect("a file fits memory")];
    }

    fn write(&mut self, file: StoreFile, offset: u64, bytes: &[u8]) {
        let family = match file.kind {
            FileKind::Superblock => &mut self.superblocks,
            FileKind::Index => &mut self.index,
            FileKind::Rows => &mut self.rows,
        };
        let start = usize::try_from(offset).expect("a file fits memory");
        family[file.number as usize][start..start + bytes.len()].copy_from_slice(bytes);
    }
}

impl PageSource for Files {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        let file = self.family(block.file.kind).get(block.file.number as usize);
        let start = usize::try_from(block.offset).expect("a file fits memory");
        file.and_then(|file| file.get(start..start + block.len as usize)).ok_or(Unavailable::Corrupt(block))
    }
}

/// A state and its files.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) state: State<Tree>,
    /// Whoever evaluates elsewhere reads them too; they change when nobody does.
    pub(crate) files: Arc<Files>,
    store: Store,
}

impl Bed {
    /// A fresh store.
    pub(crate) fn new() -> Self {
        let store = Store::new(STORE, IDENTITY);
        let keyspace = Keyspace::new(store.keys(), RowLog::new(ROWS), KeyspaceState::FRESH, 0);
        let state = State::new(keyspace, Tables::default(), Index::ZERO, ShardOptions::default());
        Self { state, files: Arc::new(Files::new()), store }
    }

    /// The same, whose batches are evaluated by so many shards.
    pub(crate) fn with_shards(self, shards: usize) -> Self {
        let (applied, options) = (self.state.applied(), ShardOptions { shards, ..ShardOptions::default() });
        Self { state: State::new(self.state.keyspace, Tables::default(), applied, options), ..self }
    }

    /// A store of `keys` keys, all of them in the index.
    pub(crate) fn filled(keys: u64) -> Self {
        let mut bed = Self::new();
        let mut random = Random::new(1);
        // A stride prime to the number of keys visits each once, out of order.
        let stride = (keys / 2 + 1..).find(|stride| gcd(*stride, keys) == 1).expect("numbers prime to keys exist");
        let mut number = random.below(keys);
        for _ in 0..keys {
            bed.put(&key(number));
            number = (number + stride) % keys;
            bed.checkpoint_if_due();
        }
        bed.checkpoint();
        bed
    }

    /// A put, published at once.
    pub(crate) fn put(&mut self, key: &[u8]) -> PutOutcome {
        let value = [b'v'; VALUE_BYTES];
        let put = Put { key, value: &value, ..Put::default() };
        let outcome = self.state.keyspace.apply_put(&put, &mut Budget::unlimited(), &*self.files);
        let outcome = outcome.expect("all is in memory").expect("a plain put");
        self.publish();
        outcome
    }

    /// Makes what was applied visible.
    pub(crate) fn publish(&mut self) {
        self.state.keyspace.publish(self.state.applied().0);
        self.write_ahead();
    }

    /// Writes full blocks of rows, if they are many.
    pub(crate) fn write_ahead(&mut self) {
        if self.state.keyspace.rows().unwritten_bytes() > 1 << 20 {
            self.carry_out();
        }
    }

    /// Takes a checkpoint where the server's trigger would ask for one. Returns the time all of it took.
    pub(crate) fn checkpoint_if_due(&mut self) -> Duration {
        let started = Instant::now();
        if self.state.keyspace.overlay().len() >= OVERLAY_CHANGES {
            self.checkpoint();
        }
        started.elapsed()
    }

    /// Merges the overlay into a new tree. Returns the time the merge itself took.
    pub(crate) fn checkpoint(&mut self) -> Duration {
        let (index, keyspace) = (self.state.applied(), &mut self.state.keyspace);
        keyspace.freeze();
        let rows = keyspace.rows_mut().handle_checkpoint();
        self.store.begin_checkpoint(CheckpointRequest {
            position: LogPosition { index, term: Term(2), digest: Digest(1) },
            keyspace: keyspace.state(),
            rows,
            leases: Arc::default(),
            tables: Vec::new(),
        });
        let mut took = Duration::ZERO;
        loop {
            let frozen = self.state.keyspace.frozen().expect("frozen above");
            let started = Instant::now();
            let step = self.store.step(STEP_UNITS, frozen, &*self.files);
            took += started.elapsed();
            assert!(!matches!(step, CheckpointStep::NeedPages(_)), "all is in memory");
            self.carry_out();
            if let Some(published) = self.store.take_published() {
                drop(self.state.keyspace.install_trees(published.keys, published.leases));
                return took;
            }
        }
    }

    fn carry_out(&mut self) {
        let files = Arc::get_mut(&mut self.files).expect("nobody evaluates elsewhere while files change");
        while let Some(effect) = self.store.poll_effect(self.state.keyspace.rows_mut()) {
            match &effect {
                StoreEffect::CreateFile { file, bytes, .. } => files.create(*file, *bytes),
                StoreEffect::Write(write) => files.write(write.file, write.offset, write.bytes.as_slice()),
                _ => {}
            }
            self.store.handle_complete(effect.token(), self.state.keyspace.rows_mut());
        }
    }

    /// The newest tree with marks of its own: after [`Verified::clear_all`] every page on a path is verified again.
    pub(crate) fn unverified_tree(&self) -> (Tree, Arc<Verified>) {
        let units = u32::try_from(STORE.index_file_bytes / 4096).expect("a file has 32-bit units");
        let verified = Arc::new(Verified::new(units, STORE.index_files_max));
        (Tree::new(TreeId::Keys, self.store.keys().root(), Arc::clone(&verified)), verified)
    }
}

fn gcd(left: u64, right: u64) -> u64 {
    if right == 0 { left } else { gcd(right, left % right) }
}

/// The key of a number: decimal digits, as the load generator writes them.
pub(crate) fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = [b'0'; KEY_BYTES];
    let mut rest = number;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * u128::from(bound)) >> 64) as u64
    }
}
