//! The scrubber: in the background, everything stored is read from the medium once per interval and checked.
//!
//! Owns: when a pass begins, how fast it goes, the one read in flight. Does not know: what a pass reads and how it is
//! judged (`trilith_engine::store::Scrub`, `trilith_raftlog::wal::LogScrub`), what is done about rot.
//!
//! A pass reads the two copies of the hard state, the log, and all that the newest checkpoint names.
//!
//! One read of at most 256 KiB (or one longer block) is in flight, at a pace that makes a pass last about the interval,
//! and when the server has nothing to do; under constant load it waits a second for that and then goes on.
//!
//! Invariants
//! - I1: at most one read is in flight, and never two within [`PAUSE_MIN`]: 32 MiB a second at most.

use trilith_engine::page_source::{Block, FileKind, Unavailable};
use trilith_engine::replica::Replica;
use trilith_engine::store::{Scrub, ScrubStep};
use trilith_raftlog::wal::hard_state::{HardState, HardStateCopy};
use trilith_raftlog::wal::{LogScrub, LogSpan, segment_file_name};
use trilith_reactor::Port;

use crate::disk::{Disk, Pages, Source, store_file_name};

/// Between two reads at least.
const PAUSE_MIN: u64 = 8_000_000;
/// Between two reads at most.
const PAUSE_MAX: u64 = 60_000_000_000;
/// How long a read waits for a quiet turn.
const PATIENCE: u64 = 1_000_000_000;
/// Until a checkpoint or a load has ended.
const WAIT: u64 = 50_000_000;
const HARD_STATE_BYTES: usize = 4096;

/// Something on the medium that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// Name of the file below the data directory.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
    /// What it means.
    pub loss: Loss,
}

/// What rot costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing yet: there is another copy.
    None,
    /// Nothing while the process lives: what the log holds was applied, and checkpoints make it superfluous.
    UntilCheckpoints,
    /// What stood there.
    Data,
}

impl Rot {
    fn of_block(Block { file, offset, len }: Block) -> Self {
        let loss = if file.kind == FileKind::Superblock { Loss::None } else { Loss::Data };
        Self { file: store_file_name(file), offset, len, loss }
    }

    fn of_log(LogSpan { slot, offset, bytes }: LogSpan) -> Self {
        let len = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { file: segment_file_name(slot), offset, len, loss: Loss::UntilCheckpoints }
    }
}

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    HardState { copy: u8, is_second: bool },
    Log { len: u32 },
    Blocks { len: u32 },
}

/// The scrubber of a data directory.
#[derive(Debug)]
pub struct Scrubber {
    /// Of a pass, nanoseconds; 0: never.
    interval: u64,
    pass: Scrub,
    log: LogScrub,
    log_is_done: bool,
    pass_began: u64,
    passes: u64,
    /// The next hard-state copy to look at in this pass.
    copy: u8,
    /// It failed before.
    is_suspect: bool,
    reading: Option<Reading>,
    due: u64,
}

impl Scrubber {
    /// A scrubber whose first pass begins soon after `now`.
    #[must_use]
    pub fn new(interval: u64, now: u64) -> Self {
        let due = now.saturating_add(interval / 1000);
        Self {
            interval,
            pass: Scrub::default(),
            log: LogScrub::default(),
            log_is_done: false,
            pass_began: due,
            passes: 0,
            copy: 0,
            is_suspect: false,
            reading: None,
            due,
        }
    }

    /// Passes that were completed.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// When [`Self::poll`] is due.
    #[must_use]
    pub fn deadline(&self, now: u64) -> Option<u64> {
        let at = if now < self.due { self.due } else { self.due + PATIENCE };
        (self.interval > 0 && self.reading.is_none()).then_some(at)
    }

    /// Begins the next read if it is due and the turn is quiet. Answers rot that came to light without one.
    pub fn poll<P: Port>(
        &mut self,
        port: &mut P,
        disk: &mut Disk,
        replica: &Replica,
        now: u64,
        is_quiet: bool,
    ) -> Option<Rot> {
        let is_due = now >= self.due && (is_quiet || now >= self.due + PATIENCE);
        if self.interval == 0 || self.reading.is_some() || !is_due {
            return None;
        }
        if self.copy < 2 {
            let reading = Reading::HardState { copy: self.copy, is_second: self.is_suspect };
            let is_open = disk.read_direct(port, Source::HardState(self.copy), 0, HARD_STATE_BYTES);
            self.reading = is_open.then_some(reading);
            return None;
        }
        if !self.log_is_done {
            self.poll_log(port, disk, replica);
            return None;
        }
        let step = replica.scrub_next(&mut self.pass, &Pages { port: &*port, disk: &*disk });
        match step {
            ScrubStep::Read(block) => {
                if disk.read_direct(port, Source::Store(block.file), block.offset, block.len as usize) {
                    self.reading = Some(Reading::Blocks { len: block.len });
                } else {
                    // The file was removed: the verdict will be that nothing names it.
                    let rotten = replica.handle_scrubbed(&mut self.pass, None);
                    return rotten.into_iter().next().map(Rot::of_block);
                }
            }
            ScrubStep::NeedPages(Unavailable::Missing(block)) => {
                disk.load(port, block);
                self.due = now + WAIT;
            }
            ScrubStep::NeedPages(Unavailable::Corrupt(block)) => {
                self.end_pass(now);
                return Some(Rot::of_block(block));
            }
            ScrubStep::Wait => self.due = now + WAIT,
            ScrubStep::Done => {
                self.passes += 1;
                self.end_pass(now);
            }
        }
        None
    }

    /// Begins the next read of the log, or ends with it.
    fn poll_log<P: Port>(&mut self, port: &mut P, disk: &mut Disk, replica: &Replica) {
        let Some(LogSpan { slot, offset, bytes }) = replica.scrub_log_next(&mut self.log) else {
            return self.log_is_done = true;
        };
        let len = u32::try_from(bytes).expect("a record is far shorter than 4 GiB");
        if disk.read_direct(port, Source::Segment(slot), offset, len as usize) {
            self.reading = Some(Reading::Log { len });
        } else {
            // No file, no verdict: it was recycled.
            self.log_is_done = true;
        }
    }

    fn end_pass(&mut self, now: u64) {
        self.due = (self.pass_began + self.interval).max(now + PAUSE_MIN);
        (self.pass_began, self.pass) = (self.due, Scrub::default());
        (self.log, self.log_is_done) = (LogScrub::default(), false);
        self.copy = 0;
    }

    /// The read in flight has ended; `None` if the medium could not be read. Answers what is rotten.
    pub fn handle_read(&mut self, replica: &Replica, bytes: Option<&[u8]>, now: u64) -> Vec<Rot> {
        match self.reading.take() {
            Some(Reading::HardState { copy, is_second }) => {
                let is_right = bytes.is_some() && matches!(HardState::decode(bytes), HardStateCopy::Valid(_));
                self.is_suspect = !is_right && !is_second;
                // A copy that fails may be one that is being written: it is read again a while later.
                self.due = now + if self.is_suspect { PATIENCE } else { PAUSE_MIN };
                if self.is_suspect {
                    return Vec::new();
                }
                self.copy += 1;
                let file = trilith_raftlog::wal::hard_state_file_name(copy);
                let rot = Rot { file, offset: 0, len: HARD_STATE_BYTES as u32, loss: Loss::None };
                (!is_right).then_some(rot).into_iter().collect()
            }
            Some(Reading::Log { len }) => {
                self.due = now + self.pause_after(len, replica.scrubbed_bytes());
                replica.handle_log_scrubbed(&mut self.log, bytes).map(Rot::of_log).into_iter().collect()
            }
            Some(Reading::Blocks { len }) => {
                self.due = now + self.pause_after(len, replica.scrubbed_bytes());
                replica.handle_scrubbed(&mut self.pass, bytes).into_iter().map(Rot::of_block).collect()
            }
            None => Vec::new(),
        }
    }

    /// So that all bytes take the interval, a tenth of it left over.
    fn pause_after(&self, len: u32, stored_bytes: u64) -> u64 {
        let share = u128::from(self.interval) * 9 / 10 * u128::from(len) / u128::from(stored_bytes.max(1));
        u64::try_from(share).unwrap_or(u64::MAX).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_makes_a_pass_last_its_interval() {
        const SECOND: u64 = 1_000_000_000;
        let day = Scrubber::new(86_400 * SECOND, 0);
        let reads = (10 << 30) / (256 << 10);
        let pass = day.pause_after(256 << 10, 10 << 30) * reads;
        assert_eq!(pass / SECOND, 86_400 * 9 / 10);
        assert_eq!(day.pause_after(256 << 10, 1 << 20), PAUSE_MAX, "a small store is not waited for all day");
        let hasty = Scrubber::new(SECOND, 0);
        assert_eq!(hasty.pause_after(256 << 10, 10 << 30), PAUSE_MIN, "32 MiB a second at most");
        assert_eq!(hasty.pause_after(256 << 10, 0), PAUSE_MAX.min(SECOND * 9 / 10 * (256 << 10)));
    }
}
