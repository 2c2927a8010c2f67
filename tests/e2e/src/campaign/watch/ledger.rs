//! What writers were told and what was seen, until both are settled into the model.
//!
//! Owns: acknowledged and doubtful changes, the changes that the reference watcher saw, compactions told and possible,
//! and the rule that explains every revision. Does not know: connections, watchers under test.
//!
//! I1  A revision is settled only with a reason: its writer's acknowledgement, a request in doubt with exactly these
//!     changes, or the end of a lease whose time was over with exactly its keys.
//! I2  No compaction is asked for above what the reference watcher has seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use crate::campaign::watch::model::{Change, Model, show};
use crate::campaign::watch::wire::Event;

/// Keys that are put once, with a lease nobody renews.
pub(super) const EXPIRING: &[u8] = b"x/";

/// What the clients of one campaign share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    ledger: Mutex<Ledger>,
    /// Nobody writes any more.
    pub(super) stopping: AtomicBool,
    /// Events that watchers under test received in this life.
    pub(super) events: AtomicU64,
    /// Every watcher shall be handed everything up to here; 0: no such wish.
    pub(super) quiet_at: AtomicU64,
    /// Streams on which that has happened.
    pub(super) quiet_streams: AtomicU64,
    /// Numbers for values, leases and names that nobody uses twice.
    numbers: AtomicU64,
}

/// Changes that are not settled yet, and compactions.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    told: BTreeMap<u64, Vec<Change>>,
    doubtful: BTreeMap<u64, Vec<Change>>,
    seen: BTreeMap<u64, Vec<Change>>,
    seen_to: u64,
    compacted_told: u64,
    compacted_possible: u64,
    /// Why the first client ended.
    lost: Option<String>,
}

/// How unacknowledged revisions were explained.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Explained {
    pub(super) doubtful: u64,
    pub(super) expired: u64,
}

impl Shared {
    /// What is not settled yet.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number nobody had before.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether writers shall stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A client ended that was not asked to.
    pub(super) fn note_lost(&self, why: &anyhow::Error) {
        self.ledger().lost.get_or_insert_with(|| format!("{why:#}"));
    }
}

impl Ledger {
    /// A writer, who has nothing else under way, is about to ask for these changes.
    pub(super) fn begin(&mut self, writer: u64, changes: Vec<Change>) {
        let before = self.doubtful.insert(writer, changes);
        assert!(before.is_none(), "a writer waits for its answer");
    }

    /// They happened, at this revision.
    pub(super) fn acknowledge(&mut self, writer: u64, revision: u64) -> Result<()> {
        let changes = self.doubtful.remove(&writer).context("an answer follows its request")?;
        match self.told.insert(revision, changes) {
            Some(other) => bail!("revision {revision} was acknowledged twice, first for {other:?}"),
            None => Ok(()),
        }
    }

    /// They were refused, and that for certain.
    pub(super) fn forget(&mut self, writer: u64) {
        self.doubtful.remove(&writer);
    }

    /// The reference watcher was handed whole revisions.
    pub(super) fn see(&mut self, events: &[Event]) -> Result<()> {
        for event in events {
            let revision = event.pair.modified;
            if revision <= self.seen_to {
                bail!("the reference watcher was handed revision {revision} after {}", self.seen_to);
            }
            self.seen.entry(revision).or_default().push(Change::of(event));
        }
        self.seen_to = events.last().map_or(self.seen_to, |event| event.pair.modified);
        Ok(())
    }

    /// The last revision that the reference watcher was handed.
    pub(super) fn seen_to(&self) -> u64 {
        self.seen_to
    }

    /// Asks for a compaction `behind` what was seen; `None`: there is nothing to compact.
    pub(super) fn begin_compaction(&mut self, behind: u64) -> Option<u64> {
        let revision = self.seen_to.checked_sub(behind).filter(|&revision| revision > self.compacted_possible)?;
        self.compacted_possible = revision;
        Some(revision)
    }

    /// A compaction was acknowledged.
    pub(super) fn acknowledge_compaction(&mut self, revision: u64) {
        self.compacted_told = self.compacted_told.max(revision);
    }

    /// The compaction that was acknowledged, and the one that may have happened.
    pub(super) fn compactions(&self) -> (u64, u64) {
        (self.compacted_told, self.compacted_possible)
    }

    /// A restarted server has shown where it is.
    pub(super) fn settle_compaction(&mut self, compacted: u64) {
        (self.compacted_told, self.compacted_possible) = (compacted, compacted);
    }

    /// Why the first client ended, if one did.
    pub(super) fn take_lost(&mut self) -> Option<String> {
        self.lost.take()
    }

    /// Moves everything up to the server's head into the model (I1). What is left in doubt has never happened.
    pub(super) fn settle(&mut self, model: &mut Model, head: u64) -> Result<Explained> {
        let mut explained = Explained::default();
        let known = model.head().max(self.told.last_key_value().map_or(0, |(revision, _)| *revision));
        if head < known.max(self.seen_to) {
            bail!("revision {known} was acknowledged, {} was seen, the server is at {head}", self.seen_to);
        }
        for revision in model.head() + 1..=head {
            let Some(seen) = self.seen.remove(&revision) else {
                bail!("the reference watcher was not handed revision {revision} of {head}")
            };
            match self.told.remove(&revision) {
                Some(told) if told == seen => {}
                Some(told) => bail!("revision {revision} was acknowledged for {told:?} and shows {seen:?}"),
                None => self.explain(model, revision, &seen, &mut explained)?,
            }
            model.add(&seen)?;
        }
        if let Some(revision) = self.told.keys().next() {
            bail!("revision {revision} was acknowledged a second time");
        }
        self.doubtful.clear();
        Ok(explained)
    }

    fn explain(&mut self, model: &Model, revision: u64, seen: &[Change], explained: &mut Explained) -> Result<()> {
        let writer = self.doubtful.iter().find(|(_, changes)| *changes == seen).map(|(&writer, _)| writer);
        if let Some(writer) = writer {
            self.doubtful.remove(&writer);
            explained.doubtful += 1;
            return Ok(());
        }
        let [first, ..] = seen else { bail!("revision {revision} changes nothing") };
        let lease = model.at(&first.key, revision - 1).map_or(0, |pair| pair.lease);
        let keys = model.live(EXPIRING).filter(|pair| lease != 0 && pair.lease == lease).map(|pair| &pair.key);
        let ends = keys.map(|key| Change { key: key.clone(), put: None });
        if ends.ne(seen.iter().cloned()) {
            bail!(
                "nobody was told of revision {revision}, and nothing explains {} and what it did to it",
                show(&first.key)
            );
        }
        explained.expired += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::watch::wire::Pair;

    fn put(key: &str, lease: u64) -> Change {
        Change { key: key.into(), put: Some((b"v".to_vec(), lease)) }
    }

    fn gone(key: &str) -> Change {
        Change { key: key.into(), put: None }
    }

    fn see(ledger: &mut Ledger, revision: u64, changes: &[Change]) -> Result<()> {
        let event = |change: &Change| {
            let (value, lease) = change.put.clone().unwrap_or_default();
            let pair = Pair { key: change.key.clone(), value, lease, modified: revision, ..Pair::default() };
            Event { is_delete: change.put.is_none(), pair, prev: None }
        };
        ledger.see(&changes.iter().map(event).collect::<Vec<_>>())
    }

    #[test]
    fn every_revision_needs_its_reason() {
        let (mut ledger, mut model) = (Ledger::default(), Model::default());
        for (revision, changes) in [(2, vec![put("x/1", 7), put("x/2", 7)]), (3, vec![put("a", 0)])] {
            ledger.begin(1, changes.clone());
            ledger.acknowledge(1, revision).unwrap();
            see(&mut ledger, revision, &changes).unwrap();
        }
        assert!(see(&mut ledger, 3, &[put("a", 0)]).is_err());
        ledger.begin(1, vec![put("b", 0)]);
        see(&mut ledger, 4, &[put("b", 0)]).unwrap();
        see(&mut ledger, 5, &[gone("x/1"), gone("x/2")]).unwrap();
        let explained = ledger.settle(&mut model, 5).unwrap();
        assert_eq!((explained.doubtful, explained.expired, model.head()), (1, 1, 5));
        // Nobody asked for that.
        see(&mut ledger, 6, &[gone("a")]).unwrap();
        assert!(ledger.settle(&mut model, 6).is_err());
    }

    #[test]
    fn what_was_told_must_be_there_and_be_what_was_told() {
        let told = |changes: &[Change], seen: &[Change], head| {
            let (mut ledger, mut model) = (Ledger::default(), Model::default());
            ledger.begin(1, changes.to_vec());
            ledger.acknowledge(1, 2).unwrap();
            if !seen.is_empty() {
                see(&mut ledger, 2, seen).unwrap();
            }
            ledger.settle(&mut model, head).map(drop)
        };
        assert!(told(&[put("a", 0)], &[put("a", 0)], 2).is_ok());
        assert!(told(&[put("a", 0)], &[], 1).is_err());
        assert!(told(&[put("a", 0)], &[], 2).is_err());
        assert!(told(&[put("a", 0)], &[put("a", 1)], 2).is_err());
    }

    #[test]
    fn the_end_of_a_lease_takes_all_its_keys() {
        let (mut ledger, mut model) = (Ledger::default(), Model::default());
        ledger.begin(1, vec![put("x/1", 7), put("x/2", 7)]);
        ledger.acknowledge(1, 2).unwrap();
        see(&mut ledger, 2, &[put("x/1", 7), put("x/2", 7)]).unwrap();
        see(&mut ledger, 3, &[gone("x/2")]).unwrap();
        assert!(ledger.settle(&mut model, 3).is_err());
    }
}
