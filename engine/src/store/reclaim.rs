//! Reclaim: what compaction leaves dead is counted, unindexed and finally left behind.
//!
//! Owns: which rows are dead, and the order of the work. Does not know: when it is due, checkpoints, files. Rows and
//! their counts are the row log's, index entries the keyspace's.
//!
//! A row is dead once the bound (the compacted revision, or the oldest pin below it) has reached the next row of its
//! key, or has passed it if it is a tombstone. One *walk* looks at the rows between the bound before and the bound,
//! each once: a row's predecessor dies with it, unless that is a tombstone, which dies by itself; a tombstone below the
//! bound is dead and leaves the index if it is its key's newest row. Then sparse segments are rewritten: a row stays if
//! it is above the bound of the last walk or the newest of its key at that bound.
//!
//! Invariants
//! - I1: work of a step that meets an unusable page is as if that row had not been reached.
//! - I2: what a reader at or above the bound can see is neither counted nor left out.
//! - I3: the bound of rewrites is that of the last finished walk, so a rewritten segment holds no row that is counted.
//! - I4: what was replaced and waits to be removed is bounded: above, no row is copied before checkpoints let go of it.

use crate::budget::Budget;
use crate::mvcc::{KeyTree, Keyspace};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::Revision;
use crate::store::overlay::Overlay;
use crate::store::row_log::{Rewrite, Row, RowLog};

/// Units for a row that a walk or a rewrite passes.
const ROW_UNITS: u32 = 4;
/// Units for a lookup in the key index.
const LOOKUP_UNITS: u32 = 12;
/// Marks of erased keys that an overlay takes in whatever its size.
const ERASED_MIN: usize = 256;
/// Bytes copied for a unit.
const COPY_BYTES_PER_UNIT: usize = 256;

/// What a step of reclaim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimStep {
    /// Nothing is left to do.
    Idle,
    /// The budget is used up: call again.
    More,
    /// Waits for writes.
    Waiting,
    /// Waits for a checkpoint, which is to begin as soon as none runs.
    NeedsCheckpoint,
    /// Waits for this page (`Missing`), or can never go on (`Corrupt`).
    NeedPages(Unavailable),
}

/// How far reclaim may go at a time.
#[derive(Clone, Copy, Debug)]
pub struct ReclaimLimits {
    /// Writes of a rewrite in flight at once.
    pub writes_in_flight_max: u32,
    /// Marks of erased keys are added up to this much overlay, in bytes.
    pub overlay_bytes_max: u64,
    /// Segments with few dead rows are rewritten too.
    pub thorough: bool,
    /// The disk is full: what needs no room comes first, and a rewrite waits until all that was replaced is removed.
    pub is_short_of_room: bool,
}

/// Goes on with reclaim up to `bound`.
pub fn step<T: KeyTree>(
    keyspace: &mut Keyspace<T>,
    bound: i64,
    limits: &ReclaimLimits,
    budget: &mut Budget,
    pages: &dyn PageSource,
) -> ReclaimStep {
    loop {
        let worked = if keyspace.rows().is_rewriting() {
            rewrite(keyspace, limits, budget, pages)
        } else if keyspace.rows().reclaim_cursor().is_walking() {
            walk(keyspace, limits, budget, pages)
        } else {
            Ok(begin_next(keyspace.rows_mut(), bound, limits))
        };
        match worked {
            Ok(Some(step)) => return step,
            Ok(None) if budget.left() == 0 => return ReclaimStep::More,
            Ok(None) => {}
            Err(unavailable) => return ReclaimStep::NeedPages(unavailable),
        }
    }
}

/// Begins the next walk or rewrite, or says why it cannot.
fn begin_next(rows: &mut RowLog, bound: i64, limits: &ReclaimLimits) -> Option<ReclaimStep> {
    let is_counted = bound <= rows.reclaim_cursor().to;
    let run = rows.next_run(limits.thorough).map(|run| (rows.has_live_rows(&run), run));
    match run {
        // Short of room: not before it is known what can go without a copy.
        Some((true, _)) if limits.is_short_of_room && !is_counted => rows.begin_walk(bound),
        Some((true, _)) if rows.has_much_retired(limits.is_short_of_room) => return Some(ReclaimStep::NeedsCheckpoint),
        Some((_, run)) => return (!rows.begin_rewrite(run)).then_some(ReclaimStep::Waiting),
        None if is_counted => return Some(ReclaimStep::Idle),
        None => rows.begin_walk(bound),
    }
    None
}

/// Whether marks of erased keys have to wait for a checkpoint. However small the overlay may be, some fit: a checkpoint
/// for each of them would be no progress worth the name.
fn is_overlay_full(overlay: &Overlay, bytes_max: u64) -> bool {
    overlay.bytes() >= bytes_max && overlay.erased() >= ERASED_MIN
}

/// Why a part of the work ended early, if it did.
type Worked = Result<Option<ReclaimStep>, Unavailable>;

fn walk<T: KeyTree>(
    keyspace: &mut Keyspace<T>,
    limits: &ReclaimLimits,
    budget: &mut Budget,
    pages: &dyn PageSource,
) -> Worked {
    let cursor = keyspace.rows().reclaim_cursor();
    let mut next = cursor.next;
    loop {
        if is_overlay_full(keyspace.overlay(), limits.overlay_bytes_max) {
            return Ok(Some(ReclaimStep::NeedsCheckpoint));
        }
        let Some(row) = keyspace.rows().row_from(next, pages)?.filter(|row| row.at.main <= cursor.to) else {
            keyspace.rows_mut().end_walk();
            return Ok(None);
        };
        let at = row.at;
        let passed = row.is_tombstone() && at.main < cursor.to;
        let erased = if passed { erased_key(keyspace, &row, pages)? } else { None };
        let predecessor = replaced_row(&row).filter(|_| at.main > cursor.from);
        if let Some(key) = erased {
            keyspace.erase(&key);
        }
        let rows = keyspace.rows_mut();
        for dead in predecessor.into_iter().chain(passed.then_some(at)) {
            rows.note_dead(dead);
        }
        next = at.next();
        rows.advance_walk(next);
        if !budget.spend(ROW_UNITS + if passed { LOOKUP_UNITS } else { 0 }) {
            return Ok(None);
        }
    }
}

/// The row that this one replaced, unless it is a tombstone.
fn replaced_row(row: &Row<'_>) -> Option<Revision> {
    // The first row of a generation has a tombstone before it, or nothing.
    let replaces = row.is_tombstone() || row.version > 1;
    (replaces && !row.prev.is_none()).then_some(row.prev)
}

/// The key of a compacted tombstone, if it is still indexed by it.
fn erased_key<T: KeyTree>(
    keyspace: &Keyspace<T>,
    row: &Row<'_>,
    pages: &dyn PageSource,
) -> Result<Option<Vec<u8>>, Unavailable> {
    let newest = keyspace.newest_entry(row.key, pages)?;
    Ok(newest.filter(|entry| entry.row == row.at).map(|_| row.key.to_vec()))
}

fn rewrite<T: KeyTree>(
    keyspace: &mut Keyspace<T>,
    limits: &ReclaimLimits,
    budget: &mut Budget,
    pages: &dyn PageSource,
) -> Worked {
    let mut rewrite = keyspace.rows_mut().take_rewrite().expect("the caller saw one");
    let bound = keyspace.rows().reclaim_cursor().to;
    let copied = copy(keyspace, &mut rewrite, bound, limits, budget, pages);
    if let Ok(Copied::All) = copied {
        rewrite.end();
    }
    keyspace.rows_mut().resume_rewrite(rewrite);
    match copied? {
        Copied::All if keyspace.rows().rewrite_writes() == 0 => {
            keyspace.rows_mut().end_rewrite();
            Ok(None)
        }
        Copied::All | Copied::Much => Ok(Some(ReclaimStep::Waiting)),
        Copied::Part => Ok(None),
    }
}

/// How far a copy came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    All,
    /// As much as may be in flight.
    Much,
    /// As much as the budget allowed.
    Part,
}

fn copy<T: KeyTree>(
    keyspace: &Keyspace<T>,
    rewrite: &mut Rewrite,
    bound: i64,
    limits: &ReclaimLimits,
    budget: &mut Budget,
    pages: &dyn PageSource,
) -> Result<Copied, Unavailable> {
    loop {
        if rewrite.writes_in_flight() >= limits.writes_in_flight_max as usize {
            return Ok(Copied::Much);
        }
        let Some(row) = rewrite.next_row(keyspace.rows(), pages)? else { return Ok(Copied::All) };
        let mut units = ROW_UNITS + if row.at.main > bound { 0 } else { LOOKUP_UNITS };
        if is_live(keyspace, &row, bound, pages)? {
            rewrite.keep(&row);
            units += u32::try_from((row.key.len() + row.value.len()) / COPY_BYTES_PER_UNIT).unwrap_or(u32::MAX);
        }
        rewrite.advance(row.at);
        if !budget.spend(units) {
            return Ok(Copied::Part);
        }
    }
}

/// Whether a reader at or above the bound may need the row (I2).
fn is_live<T: KeyTree>(
    keyspace: &Keyspace<T>,
    row: &Row<'_>,
    bound: i64,
    pages: &dyn PageSource,
) -> Result<bool, Unavailable> {
    if row.at.main > bound {
        return Ok(true);
    }
    if row.is_tombstone() && row.at.main < bound {
        return Ok(false);
    }
    Ok(keyspace.newest_row_at(row.key, bound, pages)? == Some(row.at))
}
