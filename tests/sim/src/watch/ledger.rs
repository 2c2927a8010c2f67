//! What every watcher was told, judged against the model once the history is settled.
//!
//! Owns: the notes of each watcher in order of arrival, and their judgement. Does not know: connections, ids, requests
//! under way.
//!
//! Invariants
//! - I1: from its first revision on, what a watcher was handed is exactly what the model's history has for it: nothing
//!   left out, doubled, split, out of order or changed, up to the last revision that it was told about.
//! - I2: progress claims no more than was handed over, and never less than before.
//! - I3: whatever a watcher was shown is part of the settled history: no crash takes it back.
//! - I4: a watcher ends by compaction only if what it needs next is compacted, and one that needs more at its creation
//!   is handed nothing else.
//! - I5: a previous pair is that of the revision before, and is missing only if there is none or it may be compacted.

use std::collections::BTreeMap;
use std::fmt;

use super::{SeenEvent, WatchSpec};
use crate::model::{Changes, KeyValue, Model};

/// Something that a watcher was told.
#[derive(Debug)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Note {
    /// It exists, and the store was at this revision.
    Created { revision: i64 },
    /// These changes, in one response; the header's revision, and the highest compaction that was asked for.
    Events { revision: i64, events: Vec<SeenEvent>, asked: i64 },
    /// Everything up to this revision was handed over.
    Progress { revision: i64 },
    /// It ended, since everything below `at` is compacted.
    Compacted { at: i64, asked: i64 },
}

/// Names a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordId(usize);

#[derive(Debug)]
struct Record {
    spec: WatchSpec,
    /// The highest compaction acknowledged when it was asked for.
    compacted: i64,
    notes: Vec<Note>,
}

/// All watchers since the last settlement.
#[derive(Debug, Default)]
pub struct Ledger {
    records: Vec<Record>,
}

impl Ledger {
    /// Somebody asks for a watcher, where `compacted` is known to be compacted.
    pub fn begin(&mut self, spec: WatchSpec, compacted: i64) -> RecordId {
        self.records.push(Record { spec, compacted, notes: Vec::new() });
        RecordId(self.records.len() - 1)
    }

    /// A watcher was told something.
    pub fn note(&mut self, RecordId(record): RecordId, note: Note) {
        self.records[record].notes.push(note);
    }

    /// Judges everything; nobody watches now, and the store is at `model`'s revision. Of `ambiguous` revisions nobody
    /// knows which of several ways led to what the model has.
    ///
    /// # Errors
    /// A watcher was told what is not true.
    pub fn settle(&mut self, model: &Model, ambiguous: &BTreeMap<i64, Vec<Changes>>) -> Result<(), String> {
        for record in std::mem::take(&mut self.records) {
            let next = record.spec.start_revision;
            let mut replay = Replay { model, ambiguous, record: &record, next, is_fresh: true };
            for note in &record.notes {
                replay.judge(note).map_err(|why| format!("watcher of {:?}: {why}", record.spec))?;
            }
        }
        Ok(())
    }
}

/// One watcher's notes, one after the other.
struct Replay<'a> {
    model: &'a Model,
    ambiguous: &'a BTreeMap<i64, Vec<Changes>>,
    record: &'a Record,
    /// The first revision it was not told about.
    next: i64,
    /// It was told nothing yet but that it exists.
    is_fresh: bool,
}

impl Replay<'_> {
    fn judge(&mut self, note: &Note) -> Result<(), String> {
        match note {
            Note::Created { revision } => {
                if self.record.spec.start_revision == 0 {
                    self.next = revision + 1;
                }
                self.check_settled(*revision)
            }
            Note::Events { revision, events, asked } => self.judge_events(*revision, events, *asked),
            Note::Progress { revision } => self.judge_progress(*revision),
            Note::Compacted { at, asked } => {
                if self.next >= *at || *at > *asked || *at < self.record.compacted {
                    let known = format!("{} was compacted and {asked} asked for", self.record.compacted);
                    return Err(format!("ended as compacted at {at}, where {} is next, {known}", self.next));
                }
                Ok(())
            }
        }
    }

    fn check_settled(&self, revision: i64) -> Result<(), String> {
        let newest = self.model.revision();
        if revision > newest {
            return Err(format!("shown revision {revision}, which is lost: the store is at {newest}"));
        }
        Ok(())
    }

    /// A watcher that begins below what is compacted is told so first.
    fn check_begin(&mut self) -> Result<(), String> {
        if self.is_fresh && self.next < self.record.compacted {
            return Err(format!("goes on at {}, though {} was compacted", self.next, self.record.compacted));
        }
        self.is_fresh = false;
        Ok(())
    }

    fn judge_events(&mut self, revision: i64, events: &[SeenEvent], asked: i64) -> Result<(), String> {
        self.check_begin()?;
        let last = events.last().map_or(0, |event| event.revision);
        if revision < last {
            return Err(format!("a response of revision {revision} has events of {last}"));
        }
        self.check_settled(revision)?;
        for group in events.chunk_by(|left, right| left.revision == right.revision) {
            let at = group[0].revision;
            if at < self.next {
                return Err(format!("handed revision {at}, where {} is next", self.next));
            }
            self.check_nothing_in(self.next, at - 1)?;
            self.judge_group(at, group, asked).map_err(|why| format!("revision {at}: {why}"))?;
            self.next = at + 1;
        }
        Ok(())
    }

    fn judge_progress(&mut self, revision: i64) -> Result<(), String> {
        self.check_begin()?;
        self.check_settled(revision)?;
        if revision < self.record.spec.start_revision || revision + 1 < self.next {
            return Err(format!("progress at {revision}, where {} is next", self.next));
        }
        self.check_nothing_in(self.next, revision).map_err(|why| format!("progress at {revision}, but {why}"))?;
        self.next = revision + 1;
        Ok(())
    }

    /// Nothing in these revisions is wanted.
    fn check_nothing_in(&self, from: i64, to: i64) -> Result<(), String> {
        let has_some = |revision: &i64| match self.ambiguous.get(revision) {
            Some(ways) => ways.iter().all(|way| self.wanted(changes_of(way)).next().is_some()),
            None => self.wanted(self.model.changes_at(*revision)).next().is_some(),
        };
        match (from..=to).find(has_some) {
            Some(revision) => Err(format!("revision {revision} was left out")),
            None => Ok(()),
        }
    }

    fn wanted<'c>(&self, changes: impl Iterator<Item = Change<'c>>) -> impl Iterator<Item = Change<'c>> {
        changes.filter(|(key, pair)| self.record.spec.wants(key, pair.is_some()))
    }

    /// All that one revision has for the watcher.
    fn judge_group(&self, at: i64, group: &[SeenEvent], asked: i64) -> Result<(), String> {
        let own: Vec<Change<'_>> = self.model.changes_at(at).collect();
        let others = self.ambiguous.get(&at).into_iter().flatten();
        let mut judged = Err(String::new());
        for way in [own].into_iter().chain(others.map(|way| changes_of(way).collect())) {
            judged = judged.or_else(|_| self.judge_way(at, &way, group, asked));
            if at <= asked {
                // A compaction at this very revision keeps the last row of each key alone.
                let is_last = |position: usize| way[position + 1..].iter().all(|(key, _)| *key != way[position].0);
                let last: Vec<_> = (0..way.len()).filter(|position| is_last(*position)).map(|at| way[at]).collect();
                judged = judged.or_else(|why| self.judge_way(at, &last, group, asked).map_err(|_| why));
            }
        }
        judged
    }

    fn judge_way(&self, at: i64, changes: &[Change<'_>], group: &[SeenEvent], asked: i64) -> Result<(), String> {
        let mut seen = group.iter();
        for (key, pair) in self.wanted(changes.iter().copied()) {
            let Some(event) = seen.next() else { return Err(format!("{} is missing", show(key, pair))) };
            if (event.key.as_slice(), event.pair.as_ref()) != (key, pair) {
                let shown = show(&event.key, event.pair.as_ref());
                return Err(format!("handed {shown}, where the model has {}", show(key, pair)));
            }
            self.judge_previous(at, event, asked)?;
        }
        match seen.next() {
            Some(event) => Err(format!("handed {} beyond what the model has", show(&event.key, event.pair.as_ref()))),
            None => Ok(()),
        }
    }

    fn judge_previous(&self, at: i64, event: &SeenEvent, asked: i64) -> Result<(), String> {
        let is_creation = event.pair.as_ref().is_some_and(|pair| pair.create_revision == at);
        let expected = self.model.get(&event.key, at - 1).filter(|_| self.record.spec.prev_kv && !is_creation);
        let is_right = match &event.previous {
            // Once it is known to be compacted, nobody sees it.
            Some(previous) => expected == Some(previous) && at > self.record.compacted,
            None => expected.is_none() || at - 1 < asked,
        };
        if is_right {
            return Ok(());
        }
        let (seen, expected) = (show(&event.key, event.previous.as_ref()), show(&event.key, expected));
        Err(format!("before it {seen}, where the model has {expected}"))
    }
}

/// A key and what became of it.
type Change<'c> = (&'c [u8], Option<&'c KeyValue>);

fn changes_of(way: &Changes) -> impl Iterator<Item = Change<'_>> {
    way.iter().map(|(key, pair)| (key.as_slice(), pair.as_ref()))
}

/// A change for a report.
fn show<'a>(key: &'a [u8], pair: Option<&'a KeyValue>) -> impl fmt::Display {
    let key = key.escape_ascii();
    match pair {
        Some(KeyValue { value, create_revision, mod_revision, version, .. }) => {
            let value = value.show();
            format!("{key} = {value} create {create_revision} mod {mod_revision} version {version}")
        }
        None => format!("no {key}"),
    }
}

#[cfg(test)]
mod tests;
