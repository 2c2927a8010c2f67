//! A native snapshot under way.
//!
//! Owns: the order of chunks, where one ends, the limits of age and growth. Does not know: who takes the chunks,
//! clocks.
//!
//! Invariants
//! - I1: what is written from the first chunk to the catalogue belongs to one applied index, whatever is applied
//!   meanwhile.
//! - I2: at most one step's rows wait as finished chunks.

use std::collections::VecDeque;

use trilith_raftlog::LogPosition;

use crate::budget::{Budget, Pause};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::{Keyspace, LogicalRows, Pin};
use crate::page_source::PageSource;
use crate::snapshot::catalogue::Catalogue;
use crate::snapshot::chunk::{Chunk, ChunkKind, OpenChunk, SnapshotRow};
use crate::store::row_log::Row;
use crate::tables::Tables;

/// How long a snapshot may hold on to its revision.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotLimits {
    /// Nanoseconds from the first step.
    pub age_max: u64,
    /// Bytes by which the row log may grow meanwhile: what compaction cannot give back.
    pub growth_bytes_max: u64,
}

/// Why a snapshot ended early: it is to be begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// It took longer than the limit of age.
    TooOld,
    /// More was written meanwhile than the limit of growth.
    Outgrown,
}

/// What a step of a snapshot came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotStep {
    /// The next chunk.
    Chunk(Chunk),
    /// Every chunk was handed out; this names them all.
    End(Catalogue),
    /// It cannot go on.
    Failed(SnapshotError),
}

/// A snapshot under way. Its pin is given back by whoever drives it ([`Self::into_pin`]).
#[derive(Debug)]
pub struct SnapshotStream {
    pin: Pin,
    limits: SnapshotLimits,
    started: u64,
    /// Bytes of the row log at the start.
    row_bytes: u64,
    rows: Option<LogicalRows>,
    leases: Vec<(i64, i64)>,
    tables: Option<Vec<u8>>,
    chunks: Chunks,
}

/// The chunk under construction and those that are finished.
#[derive(Debug)]
struct Chunks {
    open: OpenChunk,
    sealed: VecDeque<Chunk>,
    catalogue: Catalogue,
}

impl Chunks {
    fn push_row(&mut self, row: &Row<'_>) {
        let is_tombstone = row.is_tombstone();
        let Row { at, key, value, create, version, lease, .. } = *row;
        let row = SnapshotRow { at, is_tombstone, create, version, lease, key, value };
        if self.open.closes_before_row(&row) {
            self.begin(ChunkKind::Rows);
        }
        self.open.push_row(&row);
    }

    /// Closes the open chunk, unless it is empty, and begins another one.
    fn begin(&mut self, kind: ChunkKind) {
        let finished = std::mem::replace(&mut self.open, OpenChunk::new(kind));
        if !finished.is_empty() {
            let number = u32::try_from(self.catalogue.chunks.len()).expect("chunks are fewer than 2^32");
            let chunk = finished.seal(number);
            self.catalogue.push(&chunk);
            self.sealed.push_back(chunk);
        }
    }
}

impl SnapshotStream {
    /// Begins a snapshot of everything published. `position` is that of the entry published last; `pin` holds
    /// [`LogicalRows::revision_held`] of the published revision.
    pub(crate) fn new<T: KeyTree>(
        keyspace: &Keyspace<T>,
        tables: &Tables,
        position: LogPosition,
        cluster_id: u64,
        pin: Pin,
        limits: SnapshotLimits,
        now: u64,
    ) -> Self {
        let state = keyspace.state();
        let rows = LogicalRows::new(keyspace, state.revision);
        assert!(pin.revision() <= rows.revision_held(), "what a snapshot reads is held");
        Self {
            pin,
            limits,
            started: now,
            row_bytes: keyspace.rows().used_bytes(),
            rows: Some(rows),
            leases: keyspace.leases().iter().map(|(id, lease)| (id, lease.ttl)).collect(),
            tables: Some(tables.encode()),
            chunks: Chunks {
                open: OpenChunk::new(ChunkKind::Rows),
                sealed: VecDeque::new(),
                catalogue: Catalogue::new(cluster_id, position, state),
            },
        }
    }

    /// Goes on: the next chunk, or the end.
    ///
    /// # Errors
    /// The budget is used up, or a page is needed first: call again.
    pub fn step<T: KeyTree>(
        &mut self,
        keyspace: &Keyspace<T>,
        budget: &mut Budget,
        pages: &dyn PageSource,
        now: u64,
    ) -> Result<SnapshotStep, Pause> {
        if let Some(chunk) = self.chunks.sealed.pop_front() {
            return Ok(SnapshotStep::Chunk(chunk));
        }
        if now.saturating_sub(self.started) > self.limits.age_max {
            return Ok(SnapshotStep::Failed(SnapshotError::TooOld));
        }
        // Rewritten segments may make it shrink.
        if keyspace.rows().used_bytes().saturating_sub(self.row_bytes) > self.limits.growth_bytes_max {
            return Ok(SnapshotStep::Failed(SnapshotError::Outgrown));
        }
        let Some(rows) = &mut self.rows else { return Ok(self.finish()) };
        let chunks = &mut self.chunks;
        let walked = rows.step(keyspace, budget, pages, &mut |row| chunks.push_row(row));
        if walked.is_ok() {
            self.rows = None;
            self.push_rest();
        }
        match self.chunks.sealed.pop_front() {
            Some(chunk) => Ok(SnapshotStep::Chunk(chunk)),
            None => walked.map(|()| self.finish()),
        }
    }

    /// Behind the rows: leases and tables.
    fn push_rest(&mut self) {
        for (id, ttl) in std::mem::take(&mut self.leases) {
            if self.chunks.open.closes_before_lease() {
                self.chunks.begin(ChunkKind::Leases);
            }
            self.chunks.open.push_lease(id, ttl);
        }
        self.chunks.begin(ChunkKind::Tables);
        self.chunks.open.push_tables(&self.tables.take().expect("the tables stand at the end once"));
        self.chunks.begin(ChunkKind::Tables);
    }

    fn finish(&self) -> SnapshotStep {
        SnapshotStep::End(self.chunks.catalogue.clone())
    }

    /// Ends the snapshot, wherever it stands.
    pub fn into_pin(self) -> Pin {
        self.pin
    }
}
