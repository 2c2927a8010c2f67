//! One stream of watch requests, as its client sees it.
//!
//! Owns: the ids in use, the answers owed, and the checks that need nothing but the stream: forms, order, ids,
//! fragments. Does not know: connections; whether an event is right ([`super::ledger`]).
//!
//! Invariants
//! - I1: creates and cancels are answered once each, in the order of the requests; a watcher is handed nothing before
//!   the one and nothing after the other.
//! - I2: ids are those that the requests imply: the client's own, or the lowest of a counter that are not in use.
//! - I3: progress is told only to those who asked, and on request only while nobody on the stream has ended by
//!   compaction unheard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ledger::{Note, RecordId};
use super::{SeenEvent, WatchReply, WatchSpec, encode_cancel, encode_progress};
use crate::watch::client::Scene;

const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// A watcher to take up again.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) spec: WatchSpec,
    /// It had been told something before the process died.
    pub(super) is_crash_behind: bool,
}

#[derive(Debug)]
struct Watcher {
    wish: Wish,
    record: RecordId,
    /// The store's revision at its creation.
    created_at: i64,
    /// The first revision that it was not told about.
    next: i64,
    /// It ended since everything below is compacted; its id is taken until it is cancelled.
    compacted: Option<i64>,
    is_cancelled: bool,
    /// A response that is still to be completed.
    parts: Vec<SeenEvent>,
}

#[derive(Debug)]
enum Owed {
    /// A watcher with this id, or its refusal for this reason.
    Created(Box<Watcher>, Result<i64, &'static str>),
    Canceled(i64),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct WatchStream {
    next_id: i64,
    /// Ids in use, as of the requests sent.
    used: BTreeSet<i64>,
    /// Answers to come, with the times of their requests.
    owed: VecDeque<(u64, Owed)>,
    /// Watchers by id, as of the answers that came.
    watchers: BTreeMap<i64, Watcher>,
    progress_requests: u64,
    /// The highest progress that all watchers asked for made.
    progress: i64,
    pub(super) slow_until: Option<u64>,
    pub(super) half_closed: bool,
}

impl WatchStream {
    pub(super) fn len(&self) -> usize {
        self.used.len()
    }

    pub(super) fn oldest_owed_at(&self) -> Option<u64> {
        self.owed.front().map(|(asked_at, _)| *asked_at)
    }

    /// The request for a watcher.
    pub(super) fn create(&mut self, wish: Wish, scene: &mut Scene<'_>) -> Vec<u8> {
        let spec = &wish.spec;
        let id = match spec.fault() {
            Some(reason) => Err(reason),
            None if spec.watch_id != 0 && self.used.contains(&spec.watch_id) => Err(DUPLICATE_ID),
            None => Ok(self.choose_id(spec.watch_id)),
        };
        let message = spec.encode();
        let record = scene.ledger.begin(spec.clone(), scene.checker.compaction_acknowledged());
        let next = spec.start_revision;
        let watcher =
            Watcher { wish, record, created_at: 0, next, compacted: None, is_cancelled: false, parts: Vec::new() };
        self.owed.push_back((scene.now, Owed::Created(Box::new(watcher), id)));
        message
    }

    fn choose_id(&mut self, wanted: i64) -> i64 {
        let mut id = wanted;
        if wanted == 0 {
            while self.used.contains(&self.next_id) {
                self.next_id += 1;
            }
            id = self.next_id;
            self.next_id += 1;
        }
        self.used.insert(id);
        id
    }

    /// The request that ends a watcher, if there is one of that id: else nothing answers.
    pub(super) fn cancel(&mut self, id: i64, now: u64) -> Vec<u8> {
        if self.used.remove(&id) {
            self.owed.push_back((now, Owed::Canceled(id)));
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.is_cancelled = true;
            }
        }
        encode_cancel(id)
    }

    pub(super) fn request_progress(&mut self) -> Vec<u8> {
        self.progress_requests += 1;
        encode_progress()
    }

    /// Some id in use.
    pub(super) fn used_id(&self, scene: &mut Scene<'_>) -> Option<i64> {
        let position = scene.rng.index(self.used.len().max(1));
        self.used.iter().nth(position).copied()
    }

    /// From now on progress counts.
    pub(super) fn begin_catching_up(&mut self) {
        self.progress = 0;
    }

    /// The ids of those that keep progress to `target` from being answered: who has ended, or has not begun.
    pub(super) fn stuck(&self, target: i64) -> Vec<i64> {
        let stuck = self.watchers.iter().filter(|(id, watcher)| {
            self.used.contains(id) && (watcher.compacted.is_some() || watcher.wish.spec.start_revision > target)
        });
        stuck.map(|(id, _)| *id).collect()
    }

    /// Whether everybody was told everything up to `target`.
    pub(super) fn has_caught_up(&self, target: i64) -> bool {
        self.owed.is_empty() && (self.used.is_empty() || self.progress >= target)
    }

    /// What to watch elsewhere when the stream has ended.
    pub(super) fn into_wishes(self, is_crash_behind: bool) -> Vec<Wish> {
        let told = self.watchers.into_values().filter(|watcher| !watcher.is_cancelled).map(|watcher| {
            let Watcher { wish, next, compacted, .. } = watcher;
            let spec = WatchSpec { start_revision: compacted.unwrap_or(next), watch_id: 0, ..wish.spec };
            Wish { spec, is_crash_behind }
        });
        let asked = self.owed.into_iter().filter_map(|(_, owed)| match owed {
            Owed::Created(watcher, Ok(_)) => {
                let spec = WatchSpec { watch_id: 0, ..watcher.wish.spec };
                Some(Wish { spec, is_crash_behind: false })
            }
            _ => None,
        });
        told.chain(asked).collect()
    }

    /// Takes a response.
    ///
    /// # Errors
    /// It should not have come.
    pub(super) fn handle(&mut self, reply: WatchReply, scene: &mut Scene<'_>) -> Result<(), String> {
        let facts = WatchReply { events: Vec::new(), ..reply.clone() };
        let events = reply.events.len();
        scene.checker.show(reply.revision, scene.now);
        let handled = if reply.created {
            self.handle_created(&reply, scene)
        } else if reply.canceled {
            self.handle_canceled(&reply, scene)
        } else if reply.watch_id == -1 {
            self.handle_progress(&reply, scene)
        } else {
            self.handle_events(reply, scene)
        };
        handled.map_err(|why| format!("watch response {facts:?} with {events} events: {why}"))
    }

    fn handle_created(&mut self, reply: &WatchReply, scene: &mut Scene<'_>) -> Result<(), String> {
        let Some((_, Owed::Created(mut watcher, expected))) = self.owed.pop_front() else {
            return Err("nothing was to be created next".to_owned());
        };
        let spec = &watcher.wish.spec;
        let (watch_id, canceled, reason) = match expected {
            Ok(id) => (id, false, ""),
            Err(reason) => (-1, true, reason),
        };
        let seen = (reply.watch_id, reply.canceled, reply.cancel_reason.as_str());
        if seen != (watch_id, canceled, reason) || !reply.events.is_empty() || reply.compact_revision != 0 {
            return Err(format!("watcher {watch_id} of {spec:?} was to be created (refused: {reason:?})"));
        }
        if canceled {
            scene.port.cover(reason);
            return Ok(());
        }
        if spec.start_revision == 0 {
            watcher.next = reply.revision + 1;
        }
        watcher.created_at = reply.revision;
        watcher.is_cancelled = !self.used.contains(&watch_id)
            || self.owed.iter().any(|(_, owed)| matches!(owed, Owed::Canceled(id) if *id == watch_id));
        scene.ledger.note(watcher.record, Note::Created { revision: reply.revision });
        match self.watchers.insert(watch_id, *watcher) {
            Some(_) => Err("the id is taken".to_owned()),
            None => Ok(()),
        }
    }

    fn handle_canceled(&mut self, reply: &WatchReply, scene: &mut Scene<'_>) -> Result<(), String> {
        let watcher = self.watchers.get_mut(&reply.watch_id).ok_or("nobody has that id")?;
        if !reply.events.is_empty() || !reply.cancel_reason.is_empty() || !watcher.parts.is_empty() {
            return Err("a cancel with events or a reason, or within a response".to_owned());
        }
        if reply.compact_revision != 0 {
            if watcher.compacted.is_some() || reply.revision != 0 {
                return Err("ended by compaction twice, or with a revision".to_owned());
            }
            scene.port.cover("(watch ended by compaction)");
            if watcher.next > watcher.wish.spec.start_revision {
                scene.port.cover("(slow watcher overtaken by compaction)");
            }
            watcher.compacted = Some(reply.compact_revision);
            let asked = scene.checker.compaction_asked();
            scene.ledger.note(watcher.record, Note::Compacted { at: reply.compact_revision, asked });
            return Ok(());
        }
        match self.owed.pop_front() {
            Some((_, Owed::Canceled(id))) if id == reply.watch_id => {}
            other => return Err(format!("no cancel is to be answered next, but {other:?}")),
        }
        self.watchers.remove(&reply.watch_id);
        Ok(())
    }

    fn handle_progress(&mut self, reply: &WatchReply, scene: &mut Scene<'_>) -> Result<(), String> {
        if !reply.events.is_empty() || self.progress_requests == 0 {
            return Err("events for everybody, or progress that nobody asked for".to_owned());
        }
        self.progress_requests -= 1;
        for watcher in self.watchers.values_mut() {
            if watcher.compacted.is_some() && !watcher.is_cancelled {
                return Err("progress of a stream with an ended watcher".to_owned());
            }
            watcher.note_progress(reply.revision, scene)?;
        }
        if self.owed.is_empty() {
            self.progress = self.progress.max(reply.revision);
        }
        scene.port.cover("(progress answered)");
        Ok(())
    }

    fn handle_events(&mut self, reply: WatchReply, scene: &mut Scene<'_>) -> Result<(), String> {
        let watcher = self.watchers.get_mut(&reply.watch_id).ok_or("nobody has that id")?;
        if watcher.compacted.is_some() {
            return Err("the watcher had ended".to_owned());
        }
        if reply.fragment && (!watcher.wish.spec.fragment || reply.events.is_empty()) {
            return Err("a fragment that nobody asked for, or an empty one".to_owned());
        }
        if reply.events.is_empty() {
            if !watcher.wish.spec.progress_notify || !watcher.parts.is_empty() {
                return Err("progress that the watcher did not ask for, or within a response".to_owned());
            }
            scene.port.cover("(progress notice)");
            return watcher.note_progress(reply.revision, scene);
        }
        watcher.parts.extend(reply.events);
        if reply.fragment {
            scene.port.cover("(watch response in fragments)");
            return Ok(());
        }
        watcher.note_events(reply.revision, scene)
    }
}

impl Watcher {
    fn note_progress(&mut self, revision: i64, scene: &mut Scene<'_>) -> Result<(), String> {
        if revision + 1 < self.next || !self.parts.is_empty() {
            return Err(format!("progress, where {} is next, or within a response", self.next));
        }
        self.next = revision + 1;
        scene.ledger.note(self.record, Note::Progress { revision });
        Ok(())
    }

    fn note_events(&mut self, revision: i64, scene: &mut Scene<'_>) -> Result<(), String> {
        let events = std::mem::take(&mut self.parts);
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        if first.revision < self.next || !events.is_sorted_by_key(|event| event.revision) {
            return Err(format!("events from revision {} on, where {} is next", first.revision, self.next));
        }
        scene.port.cover("(events watched)");
        if self.wish.spec.start_revision > self.created_at {
            scene.port.cover("(future watch reached)");
        }
        if revision > last.revision {
            scene.port.cover("(watcher behind)");
        }
        if std::mem::take(&mut self.wish.is_crash_behind) {
            scene.port.cover("(watch resumed after a crash)");
        }
        self.next = last.revision + 1;
        let asked = scene.checker.compaction_asked();
        scene.ledger.note(self.record, Note::Events { revision, events, asked });
        Ok(())
    }
}
