//! What the tests of watches run over: a keyspace with a history of its own, and clients that check all they are sent.
//!
//! Owns: the model of the history, decoding of events, the expectations of every watcher, room that comes and goes.
//! Does not know: which operations a test carries out.
//!
//! A watcher's expectations are those of reliability: events are exactly the history from its cursor on, in order, each
//! revision whole; progress covers everything before it; cancelled means silence.

use std::collections::{BTreeMap, BTreeSet};

use crate::budget::Budget;
use crate::command::{DeleteRange, Op, Put, Txn};
use crate::mvcc::map_tree::{MapTree, Pages, Warm};
use crate::mvcc::{KeyRange, Keyspace, KeyspaceState};
use crate::page_source::Unavailable;
use crate::store::reclaim::{self, ReclaimLimits, ReclaimStep};
use crate::store::row_log::{RowLog, RowLogOptions};
use crate::watch::{CreateWatch, Outlet, ResponseHead, StreamKey, WatchLimits, WatchStep, Watches};

pub(super) const LIMITS: WatchLimits =
    WatchLimits { response_bytes_max: 600, block_bytes_max: 400, progress_interval: 1000, seed: 3 };

const ROWS: RowLogOptions =
    RowLogOptions { segment_bytes: 16 * 1024, block_bytes: 4096, rows_resident_bytes_max: 4096, write_bytes_max: 8192 };

/// A pair as an event shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) key: Vec<u8>,
    create: i64,
    pub(super) modified: i64,
    version: i64,
    pub(super) value: Vec<u8>,
    lease: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) delete: bool,
    pub(super) pair: Pair,
    pub(super) prev: Option<Pair>,
}

/// A response as a client puts it together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) head: ResponseHead,
    pub(super) events: Vec<Event>,
}

/// A watcher as its client knows it.
#[derive(Clone, Debug)]
struct Wanted {
    key: Vec<u8>,
    range_end: Vec<u8>,
    create: (bool, bool, bool, bool, bool),
    start: i64,
    /// Everything below was received, or is not wanted.
    cursor: i64,
    compacted: bool,
}

#[derive(Debug, Default)]
pub(super) struct Client {
    /// Responses, or parts, that fit.
    pub(super) room: u64,
    was_refused: bool,
    /// A long response under way: head and bytes that are missing.
    long: Option<(ResponseHead, usize, Vec<u8>)>,
    /// Fragments of a response.
    fragments: BTreeMap<i64, Vec<Event>>,
    arrived: Vec<Message>,
    watchers: BTreeMap<i64, Wanted>,
    /// Requests not answered yet: creations in order.
    creations: Vec<(Wanted, i64)>,
    cancels: BTreeSet<i64>,
    /// Revisions that were published when progress was asked for.
    progress: Vec<i64>,
    pub(super) fragments_seen: u64,
    pub(super) longs_seen: u64,
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients(pub(super) BTreeMap<StreamKey, Client>);

impl Client {
    fn take(&mut self, head: ResponseHead, bytes: &[u8]) {
        let mut events = self.fragments.remove(&head.watch_id).unwrap_or_default();
        events.extend(decode(bytes));
        if head.fragment {
            assert!(!events.is_empty() && !head.created && !head.canceled);
            self.fragments_seen += 1;
            self.fragments.insert(head.watch_id, events);
            return;
        }
        self.arrived.push(Message { head, events });
    }
}

impl Outlet for Clients {
    fn has_room(&mut self, stream: StreamKey) -> bool {
        let client = self.0.get_mut(&stream).expect("nothing is sent to a closed stream");
        client.was_refused |= client.room == 0;
        client.room > 0
    }

    fn send(&mut self, stream: StreamKey, head: &ResponseHead, events: &[&[u8]]) {
        let client = self.0.get_mut(&stream).expect("nothing is sent to a closed stream");
        assert!(client.long.is_none(), "a long response is sent whole");
        client.room = client.room.saturating_sub(1);
        let bytes = events.concat();
        let single = decode(&bytes).len() == 1;
        assert!(!head.fragment || single || bytes.len() < LIMITS.response_bytes_max, "a fragment is short");
        client.take(*head, &bytes);
    }

    fn begin(&mut self, stream: StreamKey, head: &ResponseHead, events_bytes: usize) {
        let client = self.0.get_mut(&stream).expect("nothing is sent to a closed stream");
        assert!(client.long.is_none() && events_bytes > 0, "one after the other");
        client.room = client.room.saturating_sub(1);
        client.longs_seen += 1;
        client.long = Some((*head, events_bytes, Vec::new()));
    }

    fn part(&mut self, stream: StreamKey, events: &[u8]) {
        let client = self.0.get_mut(&stream).expect("nothing is sent to a closed stream");
        client.room = client.room.saturating_sub(1);
        let (head, missing, mut bytes) = client.long.take().expect("a part is of something");
        decode(events);
        bytes.extend_from_slice(events);
        match missing.checked_sub(events.len()).expect("no more than was announced") {
            0 => client.take(head, &bytes),
            missing => client.long = Some((head, missing, bytes)),
        }
    }
}

/// A change of the history.
#[derive(Clone, Debug)]
struct Change {
    revision: i64,
    event: Event,
}

pub(super) struct World {
    pub(super) space: Keyspace<MapTree>,
    pub(super) pages: Pages,
    pub(super) watches: Watches,
    pub(super) clients: Clients,
    pub(super) now: u64,
    history: Vec<Change>,
    live: BTreeMap<Vec<u8>, Pair>,
    closed: BTreeSet<StreamKey>,
    pub(super) compacted_cancels: u64,
    pub(super) progress_seen: u64,
    pub(super) ticks_seen: u64,
    pub(super) events_seen: u64,
    pub(super) hidden_prevs: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with_limits(LIMITS)
    }

    pub(super) fn with_limits(limits: WatchLimits) -> Self {
        let space = Keyspace::new(MapTree::default(), RowLog::new(ROWS), KeyspaceState::FRESH, 0);
        Self {
            space,
            pages: Pages::default(),
            watches: Watches::new(limits),
            clients: Clients::default(),
            now: 0,
            history: Vec::new(),
            live: BTreeMap::new(),
            closed: BTreeSet::new(),
            compacted_cancels: 0,
            progress_seen: 0,
            ticks_seen: 0,
            events_seen: 0,
            hidden_prevs: 0,
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.space.published().revision
    }

    fn note_put(&mut self, revision: i64, key: &[u8], value: &[u8]) {
        let prev = self.live.get(key).cloned();
        let (create, version) = prev.as_ref().map_or((revision, 1), |prev| (prev.create, prev.version + 1));
        let pair = Pair { key: key.to_vec(), create, modified: revision, version, value: value.to_vec(), lease: 0 };
        self.live.insert(key.to_vec(), pair.clone());
        self.history.push(Change { revision, event: Event { delete: false, pair, prev } });
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        let put = Put { key, value, ..Put::default() };
        let done = self.space.apply_put(&put, &mut Budget::unlimited(), &Warm(&self.pages.disk)).unwrap().unwrap();
        self.note_put(done.revision, key, value);
        self.publish();
    }

    /// Puts of several keys at one revision.
    pub(super) fn put_all(&mut self, keys: &[Vec<u8>], value: &[u8]) {
        let put = |key| Op::Put(Put { key, value, ..Put::default() });
        let txn =
            Txn { compares: vec![], success: keys.iter().map(|key| put(key.as_slice())).collect(), failure: vec![] };
        let done = self.space.apply_txn(&txn, &mut Budget::unlimited(), &Warm(&self.pages.disk)).unwrap().unwrap();
        for key in keys {
            self.note_put(done.revision, key, value);
        }
        self.publish();
    }

    pub(super) fn delete(&mut self, key: &[u8], range_end: &[u8]) {
        let del = DeleteRange { key, range_end, prev_kv: false };
        let warm = Warm(&self.pages.disk);
        let done = self.space.apply_delete_range(&del, &mut Budget::unlimited(), &warm).unwrap().unwrap();
        let range = KeyRange::new(key, range_end);
        let gone: Vec<_> = self.live.keys().filter(|key| range.contains(key)).cloned().collect();
        assert_eq!(gone.len() as i64, done.deleted);
        for key in gone {
            let prev = self.live.remove(&key);
            let pair = Pair { key, modified: done.revision, ..Pair::default() };
            self.history.push(Change { revision: done.revision, event: Event { delete: true, pair, prev } });
        }
        self.publish();
    }

    /// Puts a key and deletes it in turn, at one revision: a value, or `None` for a deletion.
    pub(super) fn change_in_turn(&mut self, key: &[u8], values: &[Option<&[u8]>]) {
        self.change_steps(&values.iter().map(|value| (key, *value)).collect::<Vec<_>>());
    }

    /// Puts keys and deletes them in this order, at one revision.
    pub(super) fn change_steps(&mut self, steps: &[(&[u8], Option<&[u8]>)]) {
        let op = |&(key, value): &(_, Option<_>)| match value {
            Some(value) => Op::Put(Put { key, value, ..Put::default() }),
            None => Op::DeleteRange(DeleteRange { key, range_end: b"", prev_kv: false }),
        };
        let nested = |step| Op::Txn(Txn { compares: vec![], success: vec![op(step)], failure: vec![] });
        let txn = Txn { compares: vec![], success: steps.iter().map(nested).collect(), failure: vec![] };
        let seen_before = self.live.clone();
        let done = self.space.apply_txn(&txn, &mut Budget::unlimited(), &Warm(&self.pages.disk)).unwrap().unwrap();
        for &(key, value) in steps {
            let seen_before = seen_before.get(key);
            if let Some(value) = value {
                self.note_put(done.revision, key, value);
                let Event { pair, prev, .. } = &mut self.history.last_mut().unwrap().event;
                *prev = seen_before.cloned().filter(|_| pair.create < done.revision);
            } else if self.live.remove(key).is_some() {
                let pair = Pair { key: key.to_vec(), modified: done.revision, ..Pair::default() };
                let event = Event { delete: true, pair, prev: seen_before.cloned() };
                self.history.push(Change { revision: done.revision, event });
            }
        }
        self.publish();
    }

    /// Whether a key was changed several times at a revision: a compaction at that revision itself keeps, as etcd's
    /// does, the last of its rows alone.
    pub(super) fn has_changed_in_turn(&self, revision: i64) -> bool {
        let mut keys = BTreeSet::new();
        let first = self.history.partition_point(|change| change.revision < revision);
        let mut changes = self.history[first..].iter().take_while(|change| change.revision == revision);
        !changes.all(|change| keys.insert(&change.event.pair.key))
    }

    pub(super) fn compact(&mut self, revision: i64) {
        self.space.apply_compact(revision).unwrap();
        self.publish();
    }

    fn publish(&mut self) {
        self.space.publish(self.space.published().applied + 1);
    }

    /// Rows go to files, and what is dead leaves them.
    pub(super) fn reclaim(&mut self) {
        let limits = ReclaimLimits {
            writes_in_flight_max: 4,
            overlay_bytes_max: u64::MAX,
            thorough: true,
            is_short_of_room: false,
        };
        for _ in 0..3 {
            self.space.rows_mut().handle_checkpoint();
            self.pages.disk.drain(self.space.rows_mut());
            self.space.rows_mut().handle_published();
            for _ in 0..50 {
                let bound = self.space.reclaim_bound();
                let step = reclaim::step(
                    &mut self.space,
                    bound,
                    &limits,
                    &mut Budget::unlimited(),
                    &Warm(&self.pages.disk.clone()),
                );
                self.pages.disk.drain(self.space.rows_mut());
                assert!(!matches!(step, ReclaimStep::NeedPages(_)), "{step:?}");
                if step == ReclaimStep::Idle {
                    break;
                }
            }
        }
    }

    pub(super) fn open(&mut self, room: u64) -> StreamKey {
        let stream = self.watches.open_stream();
        self.closed.remove(&stream);
        self.clients.0.insert(stream, Client { room, ..Client::default() });
        stream
    }

    pub(super) fn close(&mut self, stream: StreamKey) {
        self.watches.close_stream(stream);
        self.clients.0.remove(&stream);
        self.closed.insert(stream);
    }

    pub(super) fn create(&mut self, stream: StreamKey, create: &CreateWatch<'_>) {
        let wanted = Wanted {
            key: if create.key.is_empty() { vec![0] } else { create.key.to_vec() },
            range_end: create.range_end.to_vec(),
            create: (create.prev_kv, create.no_put, create.no_delete, create.fragment, create.progress_notify),
            start: create.start_revision,
            cursor: if create.start_revision == 0 { self.revision() + 1 } else { create.start_revision },
            compacted: false,
        };
        let client = self.clients.0.get_mut(&stream).unwrap();
        client.creations.push((wanted, self.space.published().revision));
        self.watches.create(stream, create, &mut self.space);
    }

    pub(super) fn cancel(&mut self, stream: StreamKey, id: i64) {
        self.clients.0.get_mut(&stream).unwrap().cancels.insert(id);
        self.watches.cancel(stream, id, &self.space);
    }

    pub(super) fn request_progress(&mut self, stream: StreamKey) {
        let revision = self.revision();
        self.clients.0.get_mut(&stream).unwrap().progress.push(revision);
        self.watches.request_progress(stream, &self.space);
    }

    /// A client reads: so much more fits.
    pub(super) fn read(&mut self, stream: StreamKey, room: u64) {
        let client = self.clients.0.get_mut(&stream).unwrap();
        client.room += room;
        if std::mem::take(&mut client.was_refused) {
            self.watches.handle_writable(stream);
        }
    }

    /// One step; true if there is more to do now.
    pub(super) fn step(&mut self, budget: &mut Budget) -> bool {
        match self.watches.step(&mut self.space, &self.pages, budget, self.now, &mut self.clients) {
            Ok(WatchStep::Idle) => false,
            Ok(WatchStep::More) | Err(Unavailable::Missing(_)) => true,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Steps until nothing is left; checks what arrived.
    pub(super) fn settle(&mut self) -> BTreeMap<StreamKey, Vec<Message>> {
        for _ in 0..100_000 {
            if !self.step(&mut Budget::unlimited()) {
                return self.check();
            }
        }
        panic!("no end: {:?}", self.watches);
    }

    /// Checks what arrived.
    pub(super) fn check(&mut self) -> BTreeMap<StreamKey, Vec<Message>> {
        let streams: Vec<_> = self.clients.0.keys().copied().collect();
        let mut all = BTreeMap::new();
        for stream in streams {
            let mut client = self.clients.0.remove(&stream).unwrap();
            let arrived = std::mem::take(&mut client.arrived);
            for message in &arrived {
                self.check_message(&mut client, message);
            }
            self.clients.0.insert(stream, client);
            all.insert(stream, arrived);
        }
        all
    }

    fn check_message(&mut self, client: &mut Client, message: &Message) {
        let head = &message.head;
        assert!(head.revision <= self.revision());
        if head.created {
            return self.check_created(client, message);
        }
        if head.canceled {
            assert!(message.events.is_empty() && head.cancel_reason.is_empty());
            if head.compact_revision == 0 {
                assert!(client.cancels.remove(&head.watch_id), "nobody asked for it");
                assert!(client.watchers.remove(&head.watch_id).is_some(), "an unknown id is cancelled in silence");
                client.fragments.remove(&head.watch_id);
                return;
            }
            let wanted = client.watchers.get_mut(&head.watch_id).expect("created first");
            assert!(!wanted.compacted && head.revision == 0, "once");
            assert!(wanted.cursor < head.compact_revision, "what it wants is compacted");
            assert!(head.compact_revision <= self.space.state().compacted);
            wanted.compacted = true;
            self.compacted_cancels += 1;
            return;
        }
        if head.watch_id == -1 && !client.watchers.contains_key(&-1) {
            let asked = client.progress.iter().position(|&asked| asked <= head.revision);
            client.progress.remove(asked.expect("progress that nobody asked for"));
            assert!(!client.watchers.is_empty());
            client.watchers.values_mut().for_each(|wanted| self.check_progress(wanted, head.revision));
            self.progress_seen += 1;
            return;
        }
        let wanted = client.watchers.get_mut(&head.watch_id).expect("created first");
        assert!(!wanted.compacted, "cancelled means silence");
        if message.events.is_empty() {
            assert!(wanted.create.4, "progress that nobody asked for");
            self.check_progress(wanted, head.revision);
            self.ticks_seen += 1;
            return;
        }
        self.check_events(wanted, message);
    }

    fn check_created(&self, client: &mut Client, message: &Message) {
        let head = &message.head;
        assert!(message.events.is_empty() && head.compact_revision == 0);
        let (wanted, revision) = client.creations.remove(0);
        assert_eq!(head.revision, revision, "the revision at creation");
        if head.canceled {
            assert!(head.watch_id == -1 && !head.cancel_reason.is_empty());
            return;
        }
        let before = client.watchers.insert(head.watch_id, wanted);
        assert!(before.is_none_or(|_| client.cancels.contains(&head.watch_id)), "ids are unique");
    }

    fn check_progress(&self, wanted: &mut Wanted, revision: i64) {
        assert!(!wanted.compacted, "progress for all means for all");
        assert!(wanted.start <= revision, "none before the beginning");
        assert!(revision + 1 >= wanted.cursor, "progress never goes back");
        let missing = self.expected(wanted, wanted.cursor, revision);
        assert!(missing.is_empty(), "progress ahead of {missing:?}");
        wanted.cursor = wanted.cursor.max(revision + 1);
    }

    /// What a watcher should get of these revisions.
    fn expected(&self, wanted: &Wanted, from: i64, to: i64) -> Vec<Event> {
        let (prev_kv, no_put, no_delete, ..) = wanted.create;
        let range = KeyRange::new(&wanted.key, &wanted.range_end);
        let first = self.history.partition_point(|change| change.revision < from);
        let changes = self.history[first..].iter().take_while(|change| change.revision <= to);
        let of_it = changes.filter(|change| {
            range.contains(&change.event.pair.key) && !(if change.event.delete { no_delete } else { no_put })
        });
        of_it
            .map(|change| Event { prev: change.event.prev.clone().filter(|_| prev_kv), ..change.event.clone() })
            .collect()
    }

    /// Whether the transaction that made an event changed its key once more.
    fn is_changed_later(&self, event: &Event) -> bool {
        let of_key = |change: &&Change| change.event.pair.key == event.pair.key;
        let first = self.history.partition_point(|change| change.revision < event.pair.modified);
        let changes = self.history[first..].iter().take_while(|change| change.revision == event.pair.modified);
        changes
            .filter(of_key)
            .last()
            .is_some_and(|last| (last.event.delete, &last.event.pair) != (event.delete, &event.pair))
    }

    fn check_events(&mut self, wanted: &mut Wanted, message: &Message) {
        let last = message.events.last().unwrap().pair.modified;
        assert!(message.head.revision >= last, "the header is not behind the events");
        let mut expected = self.expected(wanted, wanted.cursor, last);
        let compacted = self.space.state().compacted;
        if expected.len() > message.events.len() {
            let is_last = |at: &Event| !self.is_changed_later(at);
            expected.retain(|event| event.pair.modified != compacted || is_last(event));
        }
        for (expected, got) in expected.iter_mut().zip(&message.events) {
            if got.prev.is_none() && got.pair.modified - 1 < compacted && expected.prev.is_some() {
                expected.prev = None;
                self.hidden_prevs += 1;
            }
        }
        assert_eq!(message.events, expected, "from {} to {last}: {wanted:?}", wanted.cursor);
        wanted.cursor = last + 1;
        self.events_seen += expected.len() as u64;
    }

    /// Nothing may be missing, with room for everything and all steps taken.
    pub(super) fn check_complete(&self) {
        let to = self.revision();
        for client in self.clients.0.values() {
            assert!(client.creations.is_empty() && client.cancels.iter().all(|id| !client.watchers.contains_key(id)));
            assert!(client.fragments.is_empty() && client.long.is_none());
            for wanted in client.watchers.values().filter(|wanted| !wanted.compacted) {
                let missing = self.expected(wanted, wanted.cursor, to);
                assert!(missing.is_empty(), "{missing:?} for {wanted:?}");
            }
        }
        let counts = self.watches.counts();
        assert_eq!(counts.slow, 0, "{:?}", self.watches);
        let held = (counts.watchers > 0).then_some(to);
        assert_eq!(self.space.oldest_pin(), held, "nothing but the live walk's pin is held");
    }

    pub(super) fn ids(&self, stream: StreamKey) -> Vec<i64> {
        self.clients.0[&stream].watchers.keys().copied().collect()
    }
}

/// Events as fields of a response.
pub(super) fn decode(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let (field, event) = bytes_field(&mut bytes);
        assert_eq!(field, 11);
        events.push(decode_event(event));
    }
    events
}

fn decode_event(mut bytes: &[u8]) -> Event {
    let mut event = Event::default();
    while !bytes.is_empty() {
        if bytes[0] == 8 {
            assert_eq!(bytes[1], 1);
            event.delete = true;
            bytes = &bytes[2..];
            continue;
        }
        match bytes_field(&mut bytes) {
            (2, pair) => event.pair = decode_pair(pair),
            (3, pair) => event.prev = Some(decode_pair(pair)),
            other => panic!("{other:?}"),
        }
    }
    event
}

fn decode_pair(mut bytes: &[u8]) -> Pair {
    let mut pair = Pair::default();
    while !bytes.is_empty() {
        if bytes[0] & 7 == 2 {
            match bytes_field(&mut bytes) {
                (1, key) => pair.key = key.to_vec(),
                (5, value) => pair.value = value.to_vec(),
                other => panic!("{other:?}"),
            }
            continue;
        }
        let field = varint(&mut bytes) >> 3;
        let number = varint(&mut bytes).cast_signed();
        match field {
            2 => pair.create = number,
            3 => pair.modified = number,
            4 => pair.version = number,
            6 => pair.lease = number,
            other => panic!("{other}"),
        }
    }
    pair
}

fn bytes_field<'b>(bytes: &mut &'b [u8]) -> (u64, &'b [u8]) {
    let tag = varint(bytes);
    assert_eq!(tag & 7, 2);
    let len = varint(bytes) as usize;
    let (field, rest) = bytes.split_at(len);
    *bytes = rest;
    (tag >> 3, field)
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}
