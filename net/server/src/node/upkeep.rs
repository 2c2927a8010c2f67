//! What a member does for itself: checkpoints, reclaim, pages in and out, the scrubber, a full disk, automatic
//! compaction.
//!
//! Owns: how much of each a turn does, and what is told of it. Does not know: how a checkpoint is made, when a page is
//! cold; how a command gets into the log.
//!
//! Invariants
//! - I1: bytes that a checksum refuses end the process only after the medium was asked.

use trilith_engine::budget::Budget;
use trilith_engine::command::Command;
use trilith_engine::page_source::{Block, Unavailable};
use trilith_engine::replica::apply::ALARM_CORRUPT;
use trilith_engine::store::{CheckpointStep, ReclaimStep};
use trilith_raftlog::Role;
use trilith_reactor::Port;

use super::{Node, Phase};
use crate::disk::{Pages, store_file_name};
use crate::journal::{Field, Level};
use crate::metrics::StepKind;
use crate::scrub::{Loss, Rot};

/// Work units of reclaim in one turn. Each looks a key up in an index that other work has driven out of the caches,
/// which can cost thrice its price; a step stays below 500 us all the same.
const RECLAIM_UNITS_PER_TURN: u32 = 800;
/// Merge work of a checkpoint in one step, in units of about 0.2 us.
const CHECKPOINT_UNITS_PER_STEP: u32 = 1_500;
/// Pause after a step of a checkpoint that nothing presses, in nanoseconds. A step makes up to 70 KiB of pages.
const CHECKPOINT_PAUSE: u64 = 1_000_000;
/// Pause after a step of reclaim, in nanoseconds.
const RECLAIM_PAUSE: u64 = 500_000;

impl Node {
    /// Steps the running checkpoint: when nothing presses, one step at a time with a pause after it, so that its pages
    /// reach the disk in between the log's records and not in one long row.
    pub(super) fn checkpoint<P: Port>(&mut self, port: &mut P, now: u64) {
        // Looked at before the clock is, which is a system call.
        if !self.service.replica.is_checkpointing() {
            self.checkpoint_at = 0;
            return;
        }
        let steps = self.service.replica.checkpoint_steps();
        if steps == 1 && self.checkpoint_at > now {
            return;
        }
        self.checkpoint_at = now + CHECKPOINT_PAUSE;
        for _ in 0..steps {
            let pages = Pages { port: &*port, disk: &self.disk };
            let started = port.cpu_now();
            let step = self.service.replica.checkpoint_step(CHECKPOINT_UNITS_PER_STEP, &pages);
            if matches!(step, CheckpointStep::More | CheckpointStep::NeedPages(_)) {
                self.metrics.observe_step(StepKind::Checkpoint, port.cpu_now().saturating_sub(started));
            }
            match step {
                CheckpointStep::Idle | CheckpointStep::Waiting => return self.checkpoint_at = 0,
                CheckpointStep::More => {}
                CheckpointStep::NeedPages(unavailable) => {
                    self.checkpoint_at = 0;
                    return self.load(port, unavailable);
                }
            }
        }
        self.more |= steps > 1;
    }

    /// Gives back what compactions left, and the memory of merged overlays.
    pub(super) fn reclaim<P: Port>(&mut self, port: &mut P, now: u64) {
        if self.reclaim_at > now {
            return;
        }
        self.reclaim_at = 0;
        let pages = Pages { port: &*port, disk: &self.disk };
        let started = port.cpu_now();
        let step = self.service.replica.reclaim_step(&mut Budget::new(RECLAIM_UNITS_PER_TURN), &pages);
        if matches!(step, ReclaimStep::More | ReclaimStep::NeedPages(_)) {
            self.metrics.observe_step(StepKind::Reclaim, port.cpu_now().saturating_sub(started));
        }
        // Whatever it came to, who waits for what is done by now goes on.
        self.service.handle_stored();
        match step {
            ReclaimStep::Idle | ReclaimStep::Waiting | ReclaimStep::NeedsCheckpoint => {}
            ReclaimStep::More => self.reclaim_at = now + RECLAIM_PAUSE,
            ReclaimStep::NeedPages(unavailable) => self.load(port, unavailable),
        }
    }

    pub(super) fn load<P: Port>(&mut self, port: &mut P, unavailable: Unavailable) {
        match unavailable {
            Unavailable::Missing(block) => self.disk.load(port, block),
            // Not before the medium was asked.
            Unavailable::Corrupt(block) => {
                if !self.disk.recheck(port, block) {
                    self.fail_corrupt(port, block);
                }
            }
        }
    }

    pub(super) fn fail_corrupt<P: Port>(&mut self, port: &mut P, Block { file, offset, len }: Block) {
        self.service.replica.handle_write_failed();
        let name = store_file_name(file);
        let reason = format!(
            "{len} bytes at offset {offset} of {name} do not match their checksum, on the disk as in memory: restore a \
             backup, on another disk"
        );
        self.fail(port, &reason);
    }

    pub(super) fn log_block<P: Port>(&self, port: &mut P, level: Level, message: &str, block: Block) {
        let name = store_file_name(block.file);
        let offset = Field::Number(i64::try_from(block.offset).unwrap_or(i64::MAX));
        let fields = [("file", Field::Text(&name)), ("offset", offset), ("bytes", Field::Number(block.len.into()))];
        self.options.log(port, level, message, &fields);
    }

    /// Keeps memory within its budget; between steps, since nobody reads a page then.
    pub(super) fn release_cold<P: Port>(&mut self, port: &mut P) {
        let replica = &mut self.service.replica;
        if replica.is_lent() {
            return;
        }
        for range in self.disk.release_cold(port, replica.memory_bytes()) {
            replica.handle_released(range);
        }
    }

    /// Lets the scrubber read on where there is nothing else to do.
    pub(super) fn scrub<P: Port>(&mut self, port: &mut P, now: u64) {
        if self.phase != Phase::Serving {
            return;
        }
        let is_quiet = !self.more && self.service.is_idle();
        let passes = self.scrubber.passes();
        let rot = self.scrubber.poll(port, &mut self.disk, &self.service.replica, now, is_quiet);
        if let Some(rot) = rot {
            self.report_rot(port, &rot, now);
        }
        if self.scrubber.passes() > passes {
            self.options.log(port, Level::Info, "scrubbed the data directory", &[]);
        }
    }

    /// What is served still is, until it is read; but the operator has to know.
    pub(super) fn report_rot<P: Port>(&mut self, port: &mut P, rot: &Rot, now: u64) {
        let offset = Field::Number(i64::try_from(rot.offset).unwrap_or(i64::MAX));
        let fields = [("file", Field::Text(&rot.file)), ("offset", offset), ("bytes", Field::Number(rot.len.into()))];
        let message = match rot.loss {
            Loss::None => "the scrubber found a damaged copy; the other one is used: replace the disk",
            Loss::UntilCheckpoints => {
                "the scrubber found a damaged record of the log; checkpoints make it superfluous: replace the disk"
            }
            Loss::Data => "the scrubber found damaged data: restore a backup, on another disk",
        };
        self.options.log(port, Level::Error, message, &fields);
        match rot.loss {
            Loss::None => {}
            Loss::UntilCheckpoints => self.service.replica.renew_log(),
            Loss::Data => self.service.raise_alarm(ALARM_CORRUPT, now),
        }
        self.more = true;
    }

    /// Tries again what found no room, and makes it known.
    pub(super) fn mind_space<P: Port>(&mut self, port: &mut P, now: u64) {
        self.disk.handle_time(port);
        let is_short = self.disk.is_short_of_space();
        self.service.replica.set_short_of_room(is_short);
        self.service.handle_space(is_short, now);
    }

    /// Compacts by itself when the time has come.
    pub(super) fn compact_automatically<P: Port>(&mut self, port: &mut P, now: u64) {
        let Some(machine) = self.auto_compaction.as_mut().filter(|_| self.phase == Phase::Serving) else { return };
        let revision = self.service.replica.keyspace().published().revision;
        let leads = self.service.replica.role() == Role::Leader;
        let Some(target) = machine.handle_time(revision, leads, now) else { return };
        let message = format!("starting auto {} compaction", machine.mode());
        self.options.log(port, Level::Info, &message, &[("revision", Field::Number(target))]);
        match self.service.submit_own(&Command::Compact { revision: target }, now) {
            Ok(sequence) => self.compacting = Some(sequence),
            Err(_) => self.end_compaction(port, now),
        }
        self.more = true;
    }

    /// A command of this member was applied: the automatic compaction, perhaps.
    pub(super) fn note_compacted<P: Port>(&mut self, port: &mut P, sequence: u64, now: u64) {
        if self.compacting == Some(sequence) {
            self.compacting = None;
            self.end_compaction(port, now);
        }
    }

    /// The automatic compaction has its outcome: what is compacted tells which.
    fn end_compaction<P: Port>(&mut self, port: &mut P, now: u64) {
        let keyspace = self.service.replica.keyspace();
        let (revision, compacted) = (keyspace.published().revision, keyspace.state().compacted);
        let Some(machine) = &mut self.auto_compaction else { return };
        let succeeded = machine.pending().is_some_and(|target| target <= compacted);
        let Some(target) = machine.handle_outcome(succeeded, revision, now) else { return };
        let mode = machine.mode();
        let fields = [("revision", Field::Number(target))];
        let (level, message) = match succeeded {
            true => (Level::Info, format!("completed auto {mode} compaction")),
            false => (Level::Warn, format!("failed auto {mode} compaction")),
        };
        self.options.log(port, level, &message, &fields);
    }
}
