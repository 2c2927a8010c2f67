//! Automatic compaction (`--auto-compaction-mode`, `--auto-compaction-retention`).
//!
//! Owns: when to compact, and at which revision, as etcd decides it. Does not know: how a compaction is carried out, or
//! who leads. Time and revisions come in, revisions to compact at go out.
//!
//! *Periodic* keeps samples of the revision, a tenth of the interval apart; the oldest is a period and one sample old
//! when it is used. The first compaction comes after one period, the next ones every interval, which is the period or
//! an hour, whichever is shorter. *Revision* looks every five minutes and keeps the newest so many revisions.
//!
//! Invariants
//! - I1: at most one compaction is on its way; while it is, no sample is taken.
//! - I2: the same revision is not compacted at twice.

use std::collections::VecDeque;

const HOUR: u64 = 3_600_000_000_000;
/// Samples of the periodic mode in one interval.
const SAMPLES_PER_INTERVAL: u64 = 10;
/// How often the revision mode looks.
const REVISION_INTERVAL: u64 = 300_000_000_000;

/// What is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Everything: automatic compaction is off.
    All,
    /// The history of this many nanoseconds.
    Period(u64),
    /// This many revisions.
    Revisions(u64),
}

/// The state of automatic compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoCompaction {
    retention: Retention,
    /// When to look next.
    next_at: u64,
    /// Revisions sampled, the oldest first; periodic mode only.
    samples: VecDeque<i64>,
    /// The last revision that was compacted at.
    last: i64,
    last_success: u64,
    /// How long after the last success the next compaction is due.
    pause: u64,
    /// A compaction on its way.
    pending: Option<i64>,
}

impl AutoCompaction {
    /// Begins at `now`, when `revision` is the newest; `None`: it is off.
    #[must_use]
    pub fn new(retention: Retention, revision: i64, now: u64) -> Option<Self> {
        let pause = match retention {
            Retention::All | Retention::Period(0) | Retention::Revisions(0) => return None,
            Retention::Period(period) => period,
            Retention::Revisions(_) => 0,
        };
        let (samples, last_success) = (VecDeque::new(), now);
        let mut this = Self { retention, next_at: 0, samples, last: 0, last_success, pause, pending: None };
        this.wait(revision, now);
        Some(this)
    }

    /// When [`Self::handle_time`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.pending.is_none().then_some(self.next_at)
    }

    /// The mode's name.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        if matches!(self.retention, Retention::Revisions(_)) { "revision" } else { "periodic" }
    }

    /// The revision of the compaction on its way.
    #[must_use]
    pub fn pending(&self) -> Option<i64> {
        self.pending
    }

    /// The revision to compact at, if it is time. `can_compact`: this member leads. Then [`Self::handle_outcome`].
    pub fn handle_time(&mut self, revision: i64, can_compact: bool, now: u64) -> Option<i64> {
        if self.pending.is_some() || now < self.next_at {
            return None;
        }
        let target = match self.retention {
            Retention::Revisions(kept) => {
                Some(revision.saturating_sub_unsigned(kept)).filter(|&target| target > 0 && target != self.last)
            }
            _ if now - self.last_success < self.pause => None,
            _ => self.samples.front().copied().filter(|&target| target != self.last),
        };
        match target.filter(|_| can_compact) {
            Some(target) => {
                if let Retention::Period(period) = self.retention {
                    self.pause = interval(period);
                }
                self.pending = Some(target);
                Some(target)
            }
            None => {
                self.wait(revision, now);
                None
            }
        }
    }

    /// The compaction is done, or was before; or it failed, and is tried again when the next sample is due. The
    /// revision it was for.
    pub fn handle_outcome(&mut self, succeeded: bool, revision: i64, now: u64) -> Option<i64> {
        let target = self.pending.take()?;
        if succeeded {
            self.last = target;
            self.last_success = now;
        }
        self.wait(revision, now);
        Some(target)
    }

    /// Takes a sample, and sets the time of the next look.
    fn wait(&mut self, revision: i64, now: u64) {
        let Retention::Period(period) = self.retention else {
            self.next_at = now.saturating_add(REVISION_INTERVAL);
            return;
        };
        let step = (interval(period) / SAMPLES_PER_INTERVAL).max(1);
        let kept = usize::try_from(period / step + 1).unwrap_or(usize::MAX);
        self.samples.push_back(revision);
        while self.samples.len() > kept {
            self.samples.pop_front();
        }
        self.next_at = now.saturating_add(step);
    }
}

fn interval(period: u64) -> u64 {
    period.min(HOUR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    /// Runs for so many minutes in which the revision grows by one a minute; when it compacted at what.
    fn run(retention: Retention, minutes: u64, can_compact: impl Fn(u64) -> bool) -> Vec<(u64, i64)> {
        let mut machine = AutoCompaction::new(retention, 1, 0).expect("on");
        let mut done = Vec::new();
        let mut now = 0;
        while let Some(deadline) = machine.deadline().filter(|&deadline| deadline <= minutes * MINUTE) {
            assert!(deadline > now, "it never looks twice at a time");
            now = deadline;
            let revision = i64::try_from(now / MINUTE).unwrap() + 1;
            if let Some(target) = machine.handle_time(revision, can_compact(now), now) {
                assert_eq!(machine.deadline(), None, "I1");
                assert_eq!(machine.handle_outcome(true, revision, now), Some(target));
                done.push((now / MINUTE, target));
            }
        }
        done
    }

    #[test]
    fn a_short_period_compacts_once_a_period() {
        // Samples every minute; the oldest of eleven is used a minute after the newest.
        let done = run(Retention::Period(10 * MINUTE), 40, |_| true);
        assert_eq!(done, [(10, 1), (20, 10), (30, 20), (40, 30)]);
    }

    #[test]
    fn a_long_period_compacts_once_an_hour_after_the_first() {
        // Samples every six minutes; 21 of them span two hours.
        let done = run(Retention::Period(120 * MINUTE), 300, |_| true);
        assert_eq!(done, [(120, 1), (180, 55), (240, 115), (300, 175)]);
    }

    #[test]
    fn revisions_are_counted_every_five_minutes() {
        let done = run(Retention::Revisions(12), 30, |_| true);
        // After 10 minutes the revision is 11: nothing is old enough.
        assert_eq!(done, [(15, 4), (20, 9), (25, 14), (30, 19)]);
    }

    #[test]
    fn who_does_not_lead_samples_and_does_not_compact() {
        let done = run(Retention::Period(10 * MINUTE), 40, |now| now >= 25 * MINUTE);
        assert_eq!(done, [(25, 15), (35, 25)]);
    }

    #[test]
    fn nothing_new_is_nothing_to_do() {
        let mut machine = AutoCompaction::new(Retention::Revisions(2), 9, 0).expect("on");
        assert_eq!(machine.handle_time(9, true, REVISION_INTERVAL - 1), None);
        assert_eq!(machine.handle_time(9, true, REVISION_INTERVAL), Some(7));
        assert_eq!(machine.handle_time(9, true, REVISION_INTERVAL), None, "I1");
        machine.handle_outcome(true, 9, REVISION_INTERVAL);
        assert_eq!(machine.handle_time(9, true, 2 * REVISION_INTERVAL), None, "I2");
        assert_eq!(machine.handle_time(10, true, 3 * REVISION_INTERVAL), Some(8));
        machine.handle_outcome(false, 10, 3 * REVISION_INTERVAL);
        assert_eq!(machine.handle_time(10, true, 4 * REVISION_INTERVAL), Some(8), "a failure is tried again");
        assert_eq!(machine.handle_outcome(true, 10, 4 * REVISION_INTERVAL), Some(8));
        assert_eq!(machine.handle_outcome(true, 10, 4 * REVISION_INTERVAL), None);
    }

    #[test]
    fn a_failed_periodic_compaction_is_tried_a_sample_later() {
        let mut machine = AutoCompaction::new(Retention::Period(10 * MINUTE), 1, 0).expect("on");
        for minute in 1..10 {
            assert_eq!(machine.handle_time(minute, true, minute.cast_unsigned() * MINUTE), None);
        }
        assert_eq!(machine.handle_time(10, true, 10 * MINUTE), Some(1));
        machine.handle_outcome(false, 10, 10 * MINUTE);
        assert_eq!(machine.deadline(), Some(11 * MINUTE));
        assert_eq!(machine.handle_time(11, true, 11 * MINUTE), Some(1));
    }

    #[test]
    fn zero_is_off() {
        for retention in [Retention::All, Retention::Period(0), Retention::Revisions(0)] {
            assert_eq!(AutoCompaction::new(retention, 1, 0), None);
        }
        assert!(AutoCompaction::new(Retention::Period(1), 1, 0).is_some(), "the shortest period does not spin");
    }
}
