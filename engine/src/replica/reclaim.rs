//! Driving reclaim, defragmentation and the pace of checkpoints.
//!
//! Owns: when reclaim works, when a checkpoint is taken for its sake, how far a forced defragmentation has come, how
//! much a step of a merge does. Does not know: which rows are dead (`store::reclaim`), files.
//!
//! Reclaim changes what a restart finds only through checkpoints: marks of erased keys leave the index with the next
//! one, a replaced segment's file goes with the second one after. Where nothing else calls for them, reclaim does: when
//! it cannot go on without one, and at the end. What checkpoints themselves leave behind (directories and tables) calls
//! for none.
//!
//! Invariants
//! - I1: reclaim never stops writes: it runs on budget that is left, and marks of erased keys end at the overlay's
//!   trigger.
//! - I2: a defragmentation that has rewritten what it found ends after a fixed number of checkpoints, whatever is
//!   written meanwhile.
//! - I3: reclaim that waits for room has nothing of its own that could be removed and is not on its way to be.

use std::collections::VecDeque;

use crate::budget::Budget;
use crate::page_source::PageSource;
use crate::replica::Replica;
use crate::store::overlay::Overlay;
use crate::store::{CheckpointStep, ReclaimLimits, ReclaimStep, reclaim};

/// Erased keys that are worth a checkpoint of their own.
const ERASED_WORTH_CHECKPOINT: usize = 4096;
/// Checkpoints after which no retained one names what was replaced before, or needs the log of before.
const CHECKPOINTS_TO_RELEASE: u64 = 2;

/// What reclaim remembers between steps.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    /// Tickets given out.
    requested: u64,
    /// Tickets whose defragmentation has ended.
    defragmented: u64,
    running: Option<Defragment>,
    /// Overlays that were merged, on their way back to the allocator.
    retired: VecDeque<Overlay>,
    /// Something calls for a checkpoint.
    wants_checkpoint: bool,
    /// Checkpoints still to be published until no part of today's log is needed.
    renewals: u64,
    is_short_of_room: bool,
}

/// A defragmentation under way.
#[derive(Clone, Copy, Debug)]
struct Defragment {
    /// The newest ticket that it answers.
    ticket: u64,
    /// The bound that dead rows are counted up to.
    bound: i64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Counting and rewriting what came before.
    Counting,
    /// Rewriting, the newest segment included.
    Rewriting,
    /// Checkpoints still to be published.
    Checkpointing(u64),
    /// Discards and removals under way.
    Releasing,
}

impl Reclaim {
    pub(super) fn wants_checkpoint(&self) -> bool {
        self.wants_checkpoint
    }

    pub(super) fn handle_begun(&mut self) {
        self.wants_checkpoint = false;
    }

    /// A checkpoint is durable; this overlay is in its tree.
    pub(super) fn handle_published(&mut self, merged: Option<Overlay>) {
        self.retired.extend(merged);
        self.renewals = self.renewals.saturating_sub(1);
        if let Some(Defragment { stage: Stage::Checkpointing(left), .. }) = &mut self.running {
            *left = left.saturating_sub(1);
        }
    }
}

impl Replica {
    /// Goes on with reclaim: counting dead rows, rewriting sparse segments, freeing what a checkpoint merged. To be
    /// called with budget that is left over in a turn.
    pub fn reclaim_step(&mut self, budget: &mut Budget, pages: &dyn PageSource) -> ReclaimStep {
        if self.stopping || self.raft.is_poisoned() {
            return ReclaimStep::Idle;
        }
        if let Some(overlay) = self.reclaim.retired.front_mut() {
            if overlay.free_slice() {
                self.reclaim.retired.pop_front();
            }
            return ReclaimStep::More;
        }
        if self.state.is_lent() {
            return ReclaimStep::Waiting;
        }
        self.begin_defragment();
        let bound = self.reclaim.running.map_or_else(|| self.state.keyspace.reclaim_bound(), |running| running.bound);
        let limits = ReclaimLimits {
            writes_in_flight_max: self.store.writes_in_flight_max(),
            overlay_bytes_max: self.options.checkpoint_overlay_bytes,
            thorough: self.reclaim.running.is_some_and(|running| running.stage == Stage::Rewriting),
            is_short_of_room: self.reclaim.is_short_of_room,
        };
        let step = match self.reclaim.running.map(|running| running.stage) {
            Some(Stage::Checkpointing(_) | Stage::Releasing) => ReclaimStep::Idle,
            _ => reclaim::step(&mut self.state.keyspace, bound, &limits, budget, pages),
        };
        let step = if step == ReclaimStep::Idle { self.end_reclaim() } else { step };
        // On a full disk the writes of a rewrite wait for the room of what was replaced before (I3).
        let waits_for_room =
            self.reclaim.is_short_of_room && step == ReclaimStep::Waiting && self.state.keyspace.rows().has_retired();
        // One that runs already may end before what is wanted of it.
        if (step == ReclaimStep::NeedsCheckpoint || waits_for_room) && !self.store.is_checkpointing() {
            self.reclaim.wants_checkpoint = true;
        }
        self.reclaim.wants_checkpoint |= self.reclaim.renewals > 0 && !self.store.is_checkpointing();
        self.begin_wanted_checkpoint();
        step
    }

    /// A part of the log is damaged: checkpoints are taken until none needs it, for what it holds was applied.
    pub fn renew_log(&mut self) {
        // One that runs already does not hold what was done since it began.
        self.reclaim.renewals = CHECKPOINTS_TO_RELEASE + u64::from(self.store.is_checkpointing());
    }

    /// The disk was found full, or has room again.
    pub fn set_short_of_room(&mut self, is_short: bool) {
        self.reclaim.is_short_of_room = is_short;
    }

    /// Nothing is left to count or to rewrite: the defragmentation goes on, and checkpoints let go of what was
    /// replaced.
    fn end_reclaim(&mut self) -> ReclaimStep {
        let keyspace = &self.state.keyspace;
        let Some(running) = self.reclaim.running.as_mut() else {
            self.reclaim.wants_checkpoint |= !self.store.is_checkpointing()
                && (keyspace.rows().has_retired() || keyspace.overlay().erased() >= ERASED_WORTH_CHECKPOINT);
            return ReclaimStep::Idle;
        };
        match running.stage {
            Stage::Counting => {
                self.state.keyspace.rows_mut().roll();
                running.stage = Stage::Rewriting;
                ReclaimStep::More
            }
            Stage::Rewriting => {
                // One that runs already does not hold what was done since it began.
                let runs = u64::from(self.store.is_checkpointing());
                running.stage = Stage::Checkpointing(CHECKPOINTS_TO_RELEASE + runs);
                self.store.set_thorough_release(true);
                self.reclaim.wants_checkpoint = true;
                ReclaimStep::More
            }
            Stage::Checkpointing(0) => {
                running.stage = Stage::Releasing;
                ReclaimStep::More
            }
            Stage::Checkpointing(_) => {
                self.reclaim.wants_checkpoint |= !self.store.is_checkpointing();
                ReclaimStep::Waiting
            }
            Stage::Releasing if self.store.is_releasing() => ReclaimStep::Waiting,
            Stage::Releasing => {
                self.reclaim.defragmented = running.ticket;
                self.reclaim.running = None;
                self.store.set_thorough_release(false);
                ReclaimStep::More
            }
        }
    }

    fn begin_defragment(&mut self) {
        if self.reclaim.running.is_none() && self.reclaim.requested > self.reclaim.defragmented {
            let (ticket, bound) = (self.reclaim.requested, self.state.keyspace.reclaim_bound());
            self.reclaim.running = Some(Defragment { ticket, bound, stage: Stage::Counting });
        }
    }

    /// A checkpoint for reclaim's sake needs no entry to end first, but must not fall into one.
    fn begin_wanted_checkpoint(&mut self) {
        if self.reclaim.wants_checkpoint && self.state.is_between_entries() && !self.store.is_checkpointing() {
            self.begin_checkpoint();
        }
    }

    /// Asks for everything that compaction left dead to be given back to the file system: counted, rewritten,
    /// checkpointed, discarded. Returns a ticket for [`Self::is_defragmented`].
    pub fn defragment(&mut self) -> u64 {
        self.reclaim.requested += 1;
        self.reclaim.requested
    }

    /// Whether the defragmentation asked for with this ticket has ended. It goes on by [`Self::reclaim_step`].
    #[must_use]
    pub fn is_defragmented(&self, ticket: u64) -> bool {
        self.reclaim.defragmented >= ticket
    }

    /// Whether what a compaction at `revision` left dead is counted, unindexed and, where it was worth it, rewritten:
    /// all of it but what a reader still holds, for whom nobody waits.
    #[must_use]
    pub fn is_reclaimed(&self, revision: i64) -> bool {
        let possible = revision.min(self.state.keyspace.reclaim_bound());
        self.reclaimed_revision().is_some_and(|reclaimed| reclaimed >= possible)
    }

    /// The newest revision that [`Self::is_reclaimed`]; `None` while anything is under way.
    #[must_use]
    pub fn reclaimed_revision(&self) -> Option<i64> {
        let rows = self.state.keyspace.rows();
        let cursor = rows.reclaim_cursor();
        (!cursor.is_walking() && !rows.is_rewriting() && rows.is_dense()).then_some(cursor.to)
    }

    /// Works on the running checkpoint, if any. `work_units` is what a step may do at most: while the overlay is far
    /// from holding up writes a quarter of it is done. Near that, [`Self::checkpoint_steps`] are due in a turn.
    pub fn checkpoint_step(&mut self, work_units: u32, pages: &dyn PageSource) -> CheckpointStep {
        if !self.store.is_checkpointing() {
            return CheckpointStep::Idle;
        }
        let work_units = self.paced(work_units);
        let frozen = self.state.keyspace.frozen().expect("a running checkpoint has its frozen overlay");
        self.store.step(work_units, frozen, pages)
    }

    /// Whether a checkpoint is under way.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.store.is_checkpointing()
    }

    /// How many steps of the running checkpoint are due in a turn.
    #[must_use]
    pub fn checkpoint_steps(&self) -> u32 {
        match self.written_eighths() {
            0..=7 => 1,
            8..=11 => 2,
            _ => 4,
        }
    }

    pub(super) fn paced(&self, work_units: u32) -> u32 {
        let waited_for = self.reclaim.running.is_some_and(|running| running.stage != Stage::Counting);
        match self.written_eighths() {
            0..=1 if !waited_for => work_units / 4,
            2..=3 if !waited_for => work_units / 2,
            _ => work_units,
        }
    }

    /// What is written since the running checkpoint began, in eighths of what would call for the next one. Writes are
    /// held up at sixteen.
    fn written_eighths(&self) -> u64 {
        let overlay = self.state.keyspace.overlay();
        let eighths = |now: u64, trigger: u64| now.saturating_mul(8) / trigger.max(1);
        eighths(overlay.bytes(), self.options.checkpoint_overlay_bytes)
            .max(eighths(overlay.len() as u64, self.options.checkpoint_changes as u64))
            .max(eighths(self.log_bytes_since_checkpoint, self.options.checkpoint_log_bytes))
    }
}
