//! From provisional revisions to final ones.
//!
//! Owns: the arithmetic. Does not know: what was changed, messages.
//!
//! Shards evaluate a round without knowing which commands of other shards change something. So they number as if
//! every command did: command i of a round over revision `base` (i from 0) reads at `base + i` and writes at `base +
//! i + 1`. The final number of `base + i` is `base` plus the commands below i that changed something: this keeps the
//! order of all rows, is never above the provisional one, and maps a header's revision by the same rule.
//!
//! A command of several shards stands alone in its round, so its revision is final; its subs are not, as each shard
//! counts its own changes from 0. The final subs are prefix sums over (op, shard in key order).
//!
//! Invariants
//! - I1: the map is strictly monotone over the rows of a shard's round, so what was sorted stays sorted.

use std::sync::Arc;

use crate::store::key_entry::Revision;

/// The final numbers of one round, for one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbering {
    base: i64,
    /// For every command of the round: how many before it changed something. One more at the end: how many in all.
    changed_before: Arc<[u32]>,
    /// Runs of subs in one command: the first provisional one of each run and its final number. Empty: they are
    /// final.
    subs: Vec<(u32, u32)>,
}

impl Numbering {
    /// Of a round over `base` whose commands changed something or not.
    pub(super) fn new(base: i64, changed: impl Iterator<Item = bool>) -> Self {
        let mut before = vec![0];
        let mut sum = 0;
        before.extend(changed.map(|changed| {
            sum += u32::from(changed);
            sum
        }));
        Self { base, changed_before: before.into(), subs: Vec::new() }
    }

    /// The same, for a shard whose changes of the round's only command fall into these runs: length and final first
    /// sub.
    pub(super) fn with_runs(&self, runs: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut local = 0;
        let subs = runs.map(|(len, first)| {
            local += len;
            (local - len, first)
        });
        Self { subs: subs.collect(), ..self.clone() }
    }

    /// The newest revision after the round.
    pub(super) fn newest(&self) -> i64 {
        self.revision(self.base + self.changed_before.len() as i64 - 1)
    }

    /// The final number of a provisional revision; those of earlier rounds stay.
    pub(super) fn revision(&self, provisional: i64) -> i64 {
        if provisional <= self.base {
            return provisional;
        }
        let index = usize::try_from(provisional - self.base).expect("a revision above the base");
        self.base + i64::from(self.changed_before[index])
    }

    /// The final address of a row.
    pub(super) fn row(&self, at: Revision) -> Revision {
        if at.main <= self.base {
            return at;
        }
        let run = self.subs.partition_point(|&(local, _)| local <= at.sub).checked_sub(1);
        let sub = run.map_or(at.sub, |run| self.subs[run].1 + (at.sub - self.subs[run].0));
        Revision { main: self.revision(at.main), sub }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_without_changes_take_no_number() {
        let numbering = Numbering::new(10, [true, false, true, false].into_iter());
        let finals: Vec<i64> = (8..=14).map(|provisional| numbering.revision(provisional)).collect();
        assert_eq!(finals, [8, 9, 10, 11, 11, 12, 12]);
        assert_eq!(numbering.newest(), 12);
        assert_eq!(numbering.row(Revision { main: 13, sub: 4 }), Revision { main: 12, sub: 4 });
    }

    #[test]
    fn subs_follow_the_runs() {
        // Ops of this shard changed 2, 0 and 3 keys; others' changes stand between.
        let numbering = Numbering::new(10, [true].into_iter()).with_runs([(2, 5), (0, 7), (3, 9)].into_iter());
        let finals: Vec<u32> = (0..5).map(|sub| numbering.row(Revision { main: 11, sub }).sub).collect();
        assert_eq!(finals, [5, 6, 9, 10, 11]);
        assert_eq!(numbering.row(Revision { main: 10, sub: 1 }).sub, 1, "an earlier round's row stays");
    }
}
