//! Watches: events of this core's history for the watchers of its connections.
//!
//! Owns: streams, their watchers, and who has been handed what; etcd's rules for creating, cancelling, progress and
//! compaction. Does not know: protobuf requests, connections, sockets, clocks, where events end up.
//!
//! The rows themselves are the history. There are no queues of events: a watcher is *synced*, and then takes part in
//! the one live walk that follows the published revision, or it has a cursor and catches up. A walk ([`lane`]) reads
//! rows into a block, looks each key up in the index of what is watched ([`index`]), and encodes an event once, when
//! somebody watches it ([`block`]); a response is a head and pieces of that block. A watcher whose stream has no room
//! leaves the walk with its cursor at the first revision it was not handed; nothing is kept for it. When there is room
//! again it catches up ([`catch_up`]): along the versions of its key, or in one of a few scans that watchers share. A
//! revision too long for a block leaves in parts ([`long`]).
//!
//! ```text
//! Synced --no room--> Parked --room--> Waiting --key unchanged, or its versions handed over----------> Synced
//!    |                  ^                 |-----> Scanning --reached the live walk------------------------^
//!    |                  |---no room-----------------+ |
//!    +--long revision--> Long <------------------------+ --sent--> Synced or Waiting
//! ```
//! Behind the compacted revision, all but Synced end with a cancel.
//!
//! A turn of the shell: requests by [`Watches::create`] and its like; [`Watches::handle_writable`] for streams that
//! can take more; [`Watches::handle_time`] at [`Watches::deadline`]; then, while [`Watches::has_work`],
//! [`Watches::step`].
//!
//! Invariants
//! - I1: nobody is handed an event above the published revision, nor one twice, nor one after a later one.
//! - I2: all events of a revision that a watcher wants come in one response (cut into fragments if it asked for that).
//! - I3: an event is skipped only by ending the watcher with a compacted cancel.
//! - I4: what a step does is bounded by its budget and one row's watchers; memory by blocks, not by how far anybody is
//!   behind.
//! - I5: while somebody is synced, a pin keeps the rows that the live walk has still to read.

#[cfg(test)]
mod bed;
mod block;
mod catch_up;
mod event;
mod hub;
mod index;
mod lane;
mod long;
#[cfg(test)]
mod model_test;
mod range_tree;
#[cfg(test)]
mod rules_test;
mod slab;
mod streams;

use std::collections::BTreeSet;

use crate::budget::{Budget, Pause};
use crate::mvcc::{KeyRange, KeyTree, Keyspace};
use crate::page_source::{PageSource, Unavailable};
use catch_up::CatchUp;
use hub::{FRAGMENT, Hub, LIVE, NO_DELETE, NO_PUT, PREV_KV, PROGRESS, Stream};
use lane::{Ground, Lane};
use slab::NIL;

/// Bounds of watching.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    /// A response that would be at least so long is cut, for watchers that asked for fragments.
    pub response_bytes_max: usize,
    /// Events handed over at once; a revision with more leaves in parts.
    pub block_bytes_max: usize,
    /// Periodic progress, nanoseconds; every period is up to a tenth longer.
    pub progress_interval: u64,
    /// Seed of these differences.
    pub seed: u64,
}

/// Names a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(pub u32);

/// A request to watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateWatch<'a> {
    /// The key, or the first of a range.
    pub key: &'a [u8],
    /// The range's end, by etcd's convention.
    pub range_end: &'a [u8],
    /// The first revision wanted; 0: from now on.
    pub start_revision: i64,
    /// The client's own id; 0: the server chooses.
    pub watch_id: i64,
    /// With previous pairs.
    pub prev_kv: bool,
    /// Without puts.
    pub no_put: bool,
    /// Without deletions.
    pub no_delete: bool,
    /// Long responses may be cut.
    pub fragment: bool,
    /// Periodic progress is wanted.
    pub progress_notify: bool,
}

/// A WatchResponse without its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// The header's revision.
    pub revision: i64,
    /// The watcher; -1 for none or all.
    pub watch_id: i64,
    /// It was created, or was to be.
    pub created: bool,
    /// It ends, or was not created.
    pub canceled: bool,
    /// What it wanted is compacted up to here; 0 otherwise.
    pub compact_revision: i64,
    /// Why it was not created.
    pub cancel_reason: &'static str,
    /// More of the same response follows.
    pub fragment: bool,
}

impl ResponseHead {
    fn events(watch_id: i64, revision: i64) -> Self {
        Self { revision, watch_id, ..Self::default() }
    }

    fn progress(revision: i64) -> Self {
        Self { revision, watch_id: -1, ..Self::default() }
    }

    fn compacted(watch_id: i64, compact_revision: i64) -> Self {
        Self { watch_id, canceled: true, compact_revision, ..Self::default() }
    }
}

/// Where responses go.
pub trait Outlet {
    /// Whether a stream takes another response, or another part of one. If not, [`Watches::handle_writable`] follows
    /// when it does.
    fn has_room(&mut self, stream: StreamKey) -> bool;

    /// A whole response. Each slice holds whole events as fields of a WatchResponse, ready for the wire.
    fn send(&mut self, stream: StreamKey, head: &ResponseHead, events: &[&[u8]]);

    /// A long response begins, with so many bytes of events, which follow in parts; nothing else on its stream does
    /// before they are complete.
    fn begin(&mut self, stream: StreamKey, head: &ResponseHead, events_bytes: usize);

    /// Whole events of the response that has begun.
    fn part(&mut self, stream: StreamKey, events: &[u8]);
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStep {
    /// Everything possible is done.
    Idle,
    /// The budget is used up.
    More,
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchCounts {
    /// Open streams.
    pub streams: usize,
    /// Watchers.
    pub watchers: usize,
    /// Those of them that are behind.
    pub slow: usize,
    /// Events handed over since the start.
    pub events: u64,
}

/// All watches of one core.
#[derive(Debug)]
pub struct Watches {
    limits: WatchLimits,
    hub: Hub,
    live: Lane,
    catch_up: CatchUp,
    /// Streams with requests for progress that wait for the live walk.
    requested: BTreeSet<u32>,
    /// Periodic progress: (due, stream), and streams whose first period has not begun.
    due: BTreeSet<(u64, u32)>,
    undated: BTreeSet<u32>,
    random: u64,
}

/// etcd's reasons for not creating a watcher.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

impl Watches {
    /// Nobody watches.
    #[must_use]
    pub fn new(limits: WatchLimits) -> Self {
        Self {
            hub: Hub::new(),
            live: Lane::new(LIVE, 0),
            catch_up: CatchUp::new(),
            requested: BTreeSet::new(),
            due: BTreeSet::new(),
            undated: BTreeSet::new(),
            random: limits.seed | 1,
            limits,
        }
    }

    /// Whether there is no stream: then there is nothing to do, whatever is published.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hub.streams.len() == 0 && self.hub.released.is_empty()
    }

    /// Opens a stream.
    pub fn open_stream(&mut self) -> StreamKey {
        StreamKey(self.hub.streams.insert(Stream::default()))
    }

    /// Closes a stream: nothing is sent to it any more. Its name is free when its watchers are taken apart.
    pub fn close_stream(&mut self, StreamKey(stream): StreamKey) {
        let held = &mut self.hub.streams[stream];
        held.closed = true;
        held.answers.clear();
        if let Some(due) = held.due.take() {
            self.due.remove(&(due, stream));
        }
        self.requested.remove(&stream);
        self.undated.remove(&stream);
        self.hub.runnable.remove(&stream);
        self.hub.closing.insert(stream);
    }

    /// Creates a watcher; the answer, positive or not, goes to the stream in order of the requests.
    pub fn create<T: KeyTree>(&mut self, stream: StreamKey, create: &CreateWatch<'_>, keyspace: &mut Keyspace<T>) {
        let revision = keyspace.published().revision;
        let key = if create.key.is_empty() { b"\0" } else { create.key };
        let range = KeyRange::new(key, create.range_end);
        let held = &self.hub.streams[stream.0];
        let is_empty = matches!(range, KeyRange::Between(start, end) if start >= end);
        let refusal = match create {
            _ if create.start_revision < 0 => Some(COMPACTED),
            _ if is_empty => Some(EMPTY_RANGE),
            _ if create.watch_id != 0 && held.watchers.contains_key(&create.watch_id) => Some(DUPLICATE_ID),
            _ => None,
        };
        if let Some(reason) = refusal {
            return self.refuse(stream, reason, keyspace);
        }
        let id = self.choose_id(stream.0, create.watch_id);
        self.hub.answer(stream.0, ResponseHead { created: true, ..ResponseHead::events(id, revision) });
        let compacted = keyspace.state().compacted;
        if create.start_revision > 0 && create.start_revision < compacted {
            let held = &mut self.hub.streams[stream.0];
            held.watchers.insert(id, NIL);
            held.unsynced += 1;
            self.hub.answer(stream.0, ResponseHead::compacted(id, compacted));
            return;
        }
        self.rest_at_published(keyspace);
        let next = if create.start_revision == 0 { revision + 1 } else { create.start_revision };
        let watcher = self.hub.add(stream.0, id, range, next, flags(create));
        let front = self.hub.front;
        let held = &mut self.hub.streams[stream.0];
        if create.start_revision > front {
            while held.future.first().is_some_and(|&(start, _)| start <= front) {
                held.future.pop_first();
            }
            held.future.insert((next, watcher));
        }
        if held.requests > 0 {
            // Progress is not behind what the client was told here.
            held.requested_at = revision;
        }
        if create.progress_notify && held.due.is_none() {
            self.undated.insert(stream.0);
        }
        self.hold(keyspace);
    }

    /// Answers a request to create a watcher with a refusal.
    pub fn refuse<T: KeyTree>(&mut self, stream: StreamKey, reason: &'static str, keyspace: &Keyspace<T>) {
        let head = ResponseHead::progress(keyspace.published().revision);
        self.hub.answer(stream.0, ResponseHead { created: true, canceled: true, cancel_reason: reason, ..head });
    }

    /// Ends a watcher; an unknown id means nothing.
    pub fn cancel<T: KeyTree>(&mut self, stream: StreamKey, id: i64, keyspace: &Keyspace<T>) {
        let Some(&watcher) = self.hub.streams[stream.0].watchers.get(&id) else { return };
        if watcher != NIL {
            self.hub.remove(watcher);
        }
        let held = &mut self.hub.streams[stream.0];
        held.watchers.remove(&id);
        // A watcher that was taken out is unsynced until its id goes, too.
        held.unsynced -= 1;
        let head = ResponseHead::events(id, keyspace.published().revision);
        self.hub.answer(stream.0, ResponseHead { canceled: true, ..head });
    }

    /// Asks for progress: one answer if then, when the live walk has come to what is published now, every watcher of
    /// the stream is synced; otherwise none.
    pub fn request_progress<T: KeyTree>(&mut self, stream: StreamKey, keyspace: &Keyspace<T>) {
        self.rest_at_published(keyspace);
        let held = &mut self.hub.streams[stream.0];
        held.requests += 1;
        held.requested_at = keyspace.published().revision;
        if self.hub.front >= self.hub.streams[stream.0].requested_at {
            self.requested.remove(&stream.0);
            self.hub.answer_requests(stream.0);
        } else {
            self.requested.insert(stream.0);
        }
    }

    /// A stream that had no room has some.
    pub fn handle_writable(&mut self, StreamKey(stream): StreamKey) {
        if self.hub.streams.get(stream).is_some_and(|held| !held.closed) {
            self.hub.runnable.insert(stream);
        }
    }

    /// Begins periodic progress where it is due.
    pub fn handle_time(&mut self, now: u64) {
        while let Some(&(due, stream)) = self.due.first().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, stream));
            self.hub.streams[stream].due = None;
            if self.hub.streams[stream].progress_watchers == 0 {
                continue;
            }
            self.hub.streams[stream].tick_from = Some(i64::MIN);
            self.hub.runnable.insert(stream);
            self.undated.insert(stream);
        }
        self.date(now);
    }

    /// When [`Self::handle_time`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.due.first().map(|&(due, _)| due)
    }

    /// Control answers that wait on a stream for room: while there are many, its requests should wait.
    #[must_use]
    pub fn answers_waiting(&self, StreamKey(stream): StreamKey) -> usize {
        self.hub.streams.get(stream).map_or(0, |held| held.answers.len())
    }

    /// Figures for metrics.
    #[must_use]
    pub fn counts(&self) -> WatchCounts {
        let hub = &self.hub;
        let (watchers, slow) = (hub.watchers.len(), hub.watchers.len() - hub.synced);
        WatchCounts { streams: hub.streams.len(), watchers, slow, events: hub.events }
    }

    /// About the heap bytes held for streams and watchers.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.hub.heap_bytes()
    }

    /// Whether a step would find something to do, or waits for pages.
    #[must_use]
    pub fn has_work<T: KeyTree>(&self, keyspace: &Keyspace<T>) -> bool {
        let hub = &self.hub;
        (hub.synced > 0 && hub.front < keyspace.published().revision)
            || !hub.released.is_empty()
            || !hub.runnable.is_empty()
            || !hub.closing.is_empty()
            || !hub.keys_waiting.is_empty()
            || !hub.ranges_waiting.is_empty()
            || !self.requested.is_empty()
            || !self.undated.is_empty()
            || !self.live.is_resting()
            || self.catch_up.is_scanning()
    }

    /// Hands over what can be.
    ///
    /// # Errors
    /// Something waits for a page; whatever does not was gone on with. Call again when it is loaded, or for any other
    /// reason before: at once if the budget is used up, as then there may be more to do for those who wait for nothing.
    /// The page source has been asked for more of the pages that will be needed.
    pub fn step<T: KeyTree>(
        &mut self,
        keyspace: &mut Keyspace<T>,
        pages: &dyn PageSource,
        budget: &mut Budget,
        now: u64,
        outlet: &mut dyn Outlet,
    ) -> Result<WatchStep, Unavailable> {
        self.date(now);
        self.rest_at_published(keyspace);
        // Those that are behind get a quarter first, and what is left at the end: a steady stream of writes would leave
        // them nothing.
        let share = budget.left() / 4;
        let mut first = Budget::new(share);
        let ground = Ground { keyspace, pages, budget: &mut first, outlet, limits: self.limits };
        let mut waits = None;
        let _ = note(background(&mut self.hub, &mut self.catch_up, ground), &mut waits);
        budget.spend(share - first.left());
        let ground = Ground { keyspace, pages, budget, outlet, limits: self.limits };
        let stepped = self.step_whole(ground, &mut waits);
        self.rest_at_published(keyspace);
        self.hold(keyspace);
        self.hub.released.drain(..).for_each(|pin| keyspace.unpin(pin));
        match (waits, stepped) {
            (Some(missing), _) => Err(missing),
            (None, Err(_)) => Ok(WatchStep::More),
            (None, Ok(())) if self.has_work(keyspace) => Ok(WatchStep::More),
            (None, Ok(())) => Ok(WatchStep::Idle),
        }
    }

    fn step_whole<T: KeyTree>(
        &mut self,
        mut ground: Ground<'_, T>,
        waits: &mut Option<Unavailable>,
    ) -> Result<(), Pause> {
        let target = ground.keyspace.published().revision;
        while (self.hub.synced > 0 && self.hub.front < target) || !self.live.is_resting() {
            if let Err(pause) = self.live.advance(&mut self.hub, target, &mut ground) {
                note(Err(pause), waits)?;
                break;
            }
        }
        self.rest_at_published(ground.keyspace);
        while let Some(&stream) = self.requested.first() {
            if self.hub.front < self.hub.streams[stream].requested_at {
                break;
            }
            self.requested.remove(&stream);
            self.hub.answer_requests(stream);
        }
        note(background(&mut self.hub, &mut self.catch_up, ground), waits)
    }

    /// While nobody is synced, nothing is read: the live walk stands at what is published.
    fn rest_at_published<T: KeyTree>(&mut self, keyspace: &Keyspace<T>) {
        let revision = keyspace.published().revision;
        if self.hub.synced == 0 && self.live.is_resting() {
            self.live.release(&mut self.hub.released);
            self.live.jump(revision);
            (self.hub.front, self.hub.claimed) = (revision, revision);
        }
    }

    /// I5. In the middle of a block the pin is that of its beginning.
    fn hold<T: KeyTree>(&mut self, keyspace: &mut Keyspace<T>) {
        if self.hub.synced > 0 && self.live.is_resting() {
            self.live.hold(keyspace);
        }
    }

    fn choose_id(&mut self, stream: u32, wanted: i64) -> i64 {
        let held = &mut self.hub.streams[stream];
        if wanted != 0 {
            return wanted;
        }
        while held.watchers.contains_key(&held.next_id) {
            held.next_id += 1;
        }
        held.next_id += 1;
        held.next_id - 1
    }

    /// Settles when periodic progress is due on streams that want it.
    fn date(&mut self, now: u64) {
        while let Some(stream) = self.undated.pop_first() {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let jitter = self.random % (self.limits.progress_interval / 10 + 1);
            let due = now.saturating_add(self.limits.progress_interval + jitter);
            self.hub.streams[stream].due = Some(due);
            self.due.insert((due, stream));
        }
    }
}

fn flags(create: &CreateWatch<'_>) -> u8 {
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    flag(create.prev_kv, PREV_KV)
        | flag(create.no_put, NO_PUT)
        | flag(create.no_delete, NO_DELETE)
        | flag(create.fragment, FRAGMENT)
        | flag(create.progress_notify, PROGRESS)
}

/// Everything but the live walk.
fn background<T: KeyTree>(hub: &mut Hub, catch_up: &mut CatchUp, mut ground: Ground<'_, T>) -> Result<(), Pause> {
    hub.dismantle(&mut ground)?;
    let mut waits = hub.step_streams(&mut ground)?;
    waits = catch_up.step(hub, &mut ground)?.or(waits);
    // What has just been caught up with may have left answers.
    waits = hub.step_streams(&mut ground)?.or(waits);
    waits.map_or(Ok(()), |missing| Err(Pause::Pages(missing)))
}

/// A missing page is noted, and the rest goes on.
fn note(paused: Result<(), Pause>, waits: &mut Option<Unavailable>) -> Result<(), Pause> {
    match paused {
        Err(Pause::Pages(missing)) => {
            waits.get_or_insert(missing);
            Ok(())
        }
        other => other,
    }
}
