//! etcd's rules of watching, one by one; what watching costs.

use crate::budget::Budget;
use crate::watch::bed::{LIMITS, Message, World};
use crate::watch::{CreateWatch, ResponseHead, StreamKey, WatchLimits};

const ROOM: u64 = 1 << 40;
const KEY: CreateWatch<'static> = CreateWatch {
    key: b"k",
    range_end: b"",
    start_revision: 0,
    watch_id: 0,
    prev_kv: false,
    no_put: false,
    no_delete: false,
    fragment: false,
    progress_notify: false,
};
const ALL: CreateWatch<'static> = CreateWatch { key: b"", range_end: b"\0", ..KEY };

fn sent(world: &mut World, stream: StreamKey) -> Vec<Message> {
    world.settle().remove(&stream).unwrap()
}

fn heads(world: &mut World, stream: StreamKey) -> Vec<ResponseHead> {
    sent(world, stream).into_iter().map(|message| message.head).collect()
}

fn created(watch_id: i64, revision: i64) -> ResponseHead {
    ResponseHead { created: true, watch_id, revision, ..ResponseHead::default() }
}

fn refused(cancel_reason: &'static str, revision: i64) -> ResponseHead {
    ResponseHead { canceled: true, cancel_reason, ..created(-1, revision) }
}

fn canceled(watch_id: i64, revision: i64) -> ResponseHead {
    ResponseHead { canceled: true, watch_id, revision, ..ResponseHead::default() }
}

fn compacted(watch_id: i64, compact_revision: i64) -> ResponseHead {
    ResponseHead { compact_revision, ..canceled(watch_id, 0) }
}

fn progress(watch_id: i64, revision: i64) -> ResponseHead {
    ResponseHead { watch_id, revision, ..ResponseHead::default() }
}

/// Revisions and keys of the events that were sent.
fn events(messages: &[Message]) -> Vec<(i64, String)> {
    let events = messages.iter().flat_map(|message| &message.events);
    events.map(|event| (event.pair.modified, String::from_utf8(event.pair.key.clone()).unwrap())).collect()
}

#[test]
fn creations_are_answered_in_order_with_their_ids_or_a_reason() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    let with_id = |watch_id| CreateWatch { watch_id, ..KEY };
    for create in [
        KEY,
        with_id(2),
        KEY,
        KEY,
        with_id(2),
        with_id(-7),
        CreateWatch { range_end: b"a", ..KEY },
        CreateWatch { range_end: b"k", start_revision: -1, ..KEY },
        ALL,
    ] {
        world.create(stream, &create);
    }
    let duplicate = "mvcc: duplicate watch ID provided on the WatchStream";
    let expected = [
        created(0, 1),
        created(2, 1),
        created(1, 1),
        created(3, 1),
        refused(duplicate, 1),
        created(-7, 1),
        refused("mvcc: watcher range is empty", 1),
        refused("etcdserver: mvcc: required revision has been compacted", 1),
        created(4, 1),
    ];
    assert_eq!(heads(&mut world, stream), expected);
    world.put(b"k", b"v");
    let mut ids: Vec<_> = heads(&mut world, stream).iter().map(|head| head.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [-7, 0, 1, 2, 3, 4]);
    world.cancel(stream, 2);
    world.cancel(stream, 2);
    world.cancel(stream, 99);
    world.create(stream, &with_id(2));
    assert_eq!(heads(&mut world, stream), [canceled(2, 2), created(2, 2)]);
    world.check_complete();
}

#[test]
fn a_watcher_gets_nothing_before_its_start() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    let future = CreateWatch { start_revision: 4, progress_notify: true, ..ALL };
    world.create(stream, &future);
    world.request_progress(stream);
    assert_eq!(heads(&mut world, stream), [created(0, 1)]);
    world.put(b"a", b"2");
    world.put(b"a", b"3");
    world.request_progress(stream);
    world.now = world.watches.deadline().unwrap();
    world.watches.handle_time(world.now);
    assert_eq!(heads(&mut world, stream), []);
    world.put(b"b", b"4");
    assert_eq!(events(&sent(&mut world, stream)), [(4, "b".into())]);
    world.request_progress(stream);
    assert_eq!(heads(&mut world, stream), [progress(-1, 4)]);
}

#[test]
fn history_is_replayed_from_the_compacted_revision_on_and_not_below() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    for key in [b"a", b"k", b"k", b"b"] {
        world.put(key, b"v");
    }
    world.delete(b"k", b"");
    world.compact(4);
    world.reclaim();
    for start_revision in [4, 3, 6] {
        world.create(stream, &CreateWatch { start_revision, prev_kv: true, ..ALL });
    }
    let got = sent(&mut world, stream);
    assert_eq!(got[..2].iter().map(|message| message.head).collect::<Vec<_>>(), [created(0, 6), created(1, 6)]);
    assert_eq!(got[2].head, compacted(1, 4));
    assert_eq!(got[3].head, created(2, 6));
    let of = |id| got.iter().filter(|message| message.head.watch_id == id).cloned().collect::<Vec<_>>();
    assert_eq!(events(&of(0)), [(4, "k".into()), (5, "b".into()), (6, "k".into())]);
    assert_eq!(events(&of(2)), [(6, "k".into())]);
    // The pair before revision 4 is compacted, that before 6 is not.
    let prevs: Vec<_> = of(0).iter().flat_map(|message| message.events.clone()).map(|event| event.prev).collect();
    assert!(prevs[0].is_none() && prevs[1].is_none() && prevs[2].as_ref().unwrap().modified == 4);
    world.check_complete();
}

#[test]
fn a_compacted_watcher_stays_in_the_table_until_the_client_cancels_it() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    for _ in 0..5 {
        world.put(b"k", b"v");
    }
    world.compact(5);
    world.create(stream, &CreateWatch { start_revision: 2, watch_id: 9, ..KEY });
    world.create(stream, &KEY);
    assert_eq!(heads(&mut world, stream), [created(9, 6), compacted(9, 5), created(0, 6)]);
    world.request_progress(stream);
    world.create(stream, &CreateWatch { watch_id: 9, ..KEY });
    world.put(b"k", b"v");
    let expected = [refused("mvcc: duplicate watch ID provided on the WatchStream", 6), progress(0, 7)];
    assert_eq!(heads(&mut world, stream), expected);
    world.cancel(stream, 9);
    world.request_progress(stream);
    assert_eq!(heads(&mut world, stream), [canceled(9, 7), progress(-1, 7)]);
}

#[test]
fn progress_is_for_all_watchers_of_a_stream_and_never_ahead() {
    let mut world = World::new();
    let (stream, other) = (world.open(ROOM), world.open(2));
    world.request_progress(stream);
    assert_eq!(heads(&mut world, stream), [], "a stream without watchers gets nothing");
    world.create(stream, &KEY);
    world.create(other, &KEY);
    world.create(other, &ALL);
    world.settle();
    world.put(b"k", b"v");
    // Asked before the event was handed over: the answer follows it.
    world.request_progress(stream);
    world.request_progress(other);
    assert_eq!(heads(&mut world, stream), [progress(0, 2), progress(-1, 2)]);
    world.read(other, 2);
    let got = sent(&mut world, other);
    assert_eq!(got.iter().map(|message| message.head.watch_id).collect::<Vec<_>>(), [0, 1], "who was behind gets none");
    world.read(other, ROOM);
    world.request_progress(other);
    assert_eq!(heads(&mut world, other), [progress(-1, 2)]);
}

#[test]
fn periodic_progress_goes_to_idle_watchers_that_want_it() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    world.create(stream, &CreateWatch { progress_notify: true, ..ALL });
    world.create(stream, &KEY);
    world.create(stream, &CreateWatch { progress_notify: true, ..KEY });
    world.settle();
    let first = world.watches.deadline().unwrap();
    let interval = LIMITS.progress_interval;
    assert!((interval..=interval + interval / 10).contains(&first));
    world.put(b"a", b"v");
    world.settle();
    world.watches.handle_time(first - 1);
    assert_eq!(heads(&mut world, stream), []);
    world.now = first;
    world.watches.handle_time(first);
    assert_eq!(heads(&mut world, stream), [progress(2, 2)]);
    let second = world.watches.deadline().unwrap();
    assert!((first + interval..=first + interval + interval / 10).contains(&second));
    world.now = second;
    world.watches.handle_time(second);
    assert_eq!(heads(&mut world, stream), [progress(0, 2), progress(2, 2)]);
    world.close(stream);
    world.settle();
    assert_eq!(world.watches.deadline(), None);
}

#[test]
fn headers_name_the_events_revision_live_and_the_current_one_behind() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    world.create(stream, &KEY);
    world.settle();
    world.put(b"k", b"2");
    world.put(b"a", b"3");
    assert_eq!(heads(&mut world, stream), [progress(0, 2)]);
    world.create(stream, &CreateWatch { start_revision: 1, ..KEY });
    world.create(stream, &CreateWatch { start_revision: 2, range_end: b"l", ..KEY });
    let got = heads(&mut world, stream);
    assert_eq!(got, [created(1, 3), created(2, 3), progress(1, 3), progress(2, 3)]);
}

#[test]
fn a_client_without_room_costs_itself() {
    let mut world = World::new();
    let (slow, fast) = (world.open(0), world.open(ROOM));
    world.read(slow, 1);
    world.create(slow, &ALL);
    world.create(fast, &ALL);
    world.settle();
    for index in 0..50 {
        world.put(&[b'a' + index % 3], b"v");
        assert_eq!(sent(&mut world, fast).len(), 1);
    }
    assert_eq!(world.watches.counts().slow, 1);
    assert_eq!(world.space.oldest_pin(), Some(51), "it holds nothing");
    world.read(slow, ROOM);
    assert_eq!(events(&sent(&mut world, slow)).len(), 50);
    world.check_complete();
    // The same, with what it wants next compacted.
    world.clients.0.get_mut(&slow).unwrap().room = 0;
    for _ in 0..5 {
        world.put(b"a", b"v");
        world.settle();
    }
    world.compact(53);
    world.reclaim();
    world.read(slow, ROOM);
    assert_eq!(heads(&mut world, slow), [compacted(0, 53)]);
}

#[test]
fn the_live_walk_is_ahead_of_no_compaction() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    world.create(stream, &CreateWatch { prev_kv: true, ..ALL });
    world.settle();
    for _ in 0..300 {
        world.put(b"k", &[b'v'; 60]);
    }
    world.compact(301);
    world.reclaim();
    assert_eq!(events(&sent(&mut world, stream)).len(), 300, "published before anybody looked");
    assert_eq!(world.space.oldest_pin(), Some(301));
}

/// The pair before is that of the revision before: nobody saw what one transaction put and deleted.
#[test]
fn what_a_transaction_put_and_deleted_is_no_previous_pair() {
    let mut world = World::new();
    let live = world.open(ROOM);
    world.create(live, &CreateWatch { prev_kv: true, ..ALL });
    world.put(b"k", b"first");
    world.change_in_turn(b"k", &[Some(b"second"), None]);
    world.change_in_turn(b"new", &[Some(b"only"), None]);
    let late = world.open(ROOM);
    world.create(late, &CreateWatch { prev_kv: true, start_revision: 2, ..ALL });
    let single = world.open(ROOM);
    world.create(single, &CreateWatch { prev_kv: true, start_revision: 2, ..KEY });
    let got = world.settle();
    for (stream, events) in [(live, 5), (late, 5), (single, 3)] {
        let seen: usize = got[&stream].iter().map(|message| message.events.len()).sum();
        assert_eq!(seen, events, "{stream:?}");
    }
    world.check_complete();
}

/// Every deletion shows the pair of the revision before, and every creation none, whatever the transaction did before.
#[test]
fn each_deletion_of_a_transaction_shows_what_was_seen_before_it() {
    let mut world = World::new();
    let live = world.open(ROOM);
    world.create(live, &CreateWatch { prev_kv: true, ..ALL });
    world.put(b"k", b"first");
    world.change_in_turn(b"k", &[None, Some(b"second"), None, Some(b"third")]);
    world.change_in_turn(b"k", &[None, Some(b"fourth"), None]);
    let mut streams = vec![live];
    for create in [KEY, ALL] {
        let stream = world.open(ROOM);
        world.create(stream, &CreateWatch { prev_kv: true, start_revision: 2, ..create });
        streams.push(stream);
    }
    let got = world.settle();
    let shown = [(2, None), (3, Some(2)), (3, None), (3, Some(2)), (3, None), (4, Some(3)), (4, None), (4, Some(3))];
    for stream in streams {
        let events = got[&stream].iter().flat_map(|message| &message.events);
        let prevs: Vec<_> =
            events.map(|event| (event.pair.modified, event.prev.as_ref().map(|prev| prev.modified))).collect();
        assert_eq!(prevs, shown, "{stream:?}");
    }
    world.check_complete();
}

/// A deletion that is compacted and reclaimed is no pair before either, though the row behind it names it.
#[test]
fn a_deletion_that_is_gone_is_no_previous_pair() {
    let mut world = World::new();
    world.put(b"k", b"first");
    world.delete(b"k", b"");
    world.put(b"other", b"v");
    world.change_in_turn(b"k", &[Some(b"second"), None]);
    world.compact(4);
    world.reclaim();
    for create in [KEY, ALL] {
        let stream = world.open(ROOM);
        world.create(stream, &CreateWatch { prev_kv: true, start_revision: 5, ..create });
        let got = sent(&mut world, stream);
        let prevs: Vec<_> = got.iter().flat_map(|message| &message.events).map(|event| event.prev.is_some()).collect();
        assert_eq!(prevs, [false, false]);
    }
    world.check_complete();
}

/// However long a revision's events are, a single key's are handed over together: to who is live and to who is behind.
#[test]
fn what_one_transaction_did_to_a_key_is_never_split() {
    let mut world = World::new();
    let live = world.open(ROOM);
    world.create(live, &KEY);
    world.settle();
    let long = [b'v'; 500];
    world.put(b"k", b"v");
    world.change_in_turn(b"k", &[Some(&long), None, Some(&long), None]);
    let late = world.open(ROOM);
    world.create(late, &CreateWatch { start_revision: 2, ..KEY });
    let got = world.settle();
    for stream in [live, late] {
        let revisions: Vec<_> = got[&stream]
            .iter()
            .map(|message| message.events.iter().map(|event| event.pair.modified).collect::<Vec<_>>())
            .filter(|revisions| !revisions.is_empty())
            .collect();
        assert!(
            [vec![vec![2], vec![3; 4]], vec![vec![2, 3, 3, 3, 3]]].contains(&revisions),
            "{stream:?}: {revisions:?}"
        );
    }
    world.check_complete();
}

/// A compaction keeps, of what one transaction did to a key at the compacted revision, the last step. Who starts there
/// is shown that alone, by the key's versions and by a scan, before the rows are gone and after.
#[test]
fn of_the_compacted_revision_each_key_has_its_last_step() {
    for is_reclaimed in [false, true] {
        for create in [KEY, ALL, CreateWatch { prev_kv: true, ..ALL }] {
            let mut world = World::new();
            world.put(b"k", b"v");
            world.change_in_turn(b"k", &[Some(b"w"), None]);
            world.change_in_turn(b"k", &[Some(b"w"), None]);
            world.compact(3);
            if is_reclaimed {
                world.reclaim();
            }
            let stream = world.open(ROOM);
            world.create(stream, &CreateWatch { start_revision: 3, ..create });
            let messages = sent(&mut world, stream);
            let deletes: Vec<_> = messages.iter().flat_map(|message| &message.events).map(|it| it.delete).collect();
            assert_eq!(events(&messages), [3, 4, 4].map(|revision| (revision, "k".to_owned())), "{create:?}");
            assert_eq!(deletes, [true, false, true]);
        }
    }
}

/// A page that is missing in the middle of a revision leaves that revision for later, whole: here the first event needs
/// no pair before it, and to know that the second has none an old page is read.
#[test]
fn a_page_that_is_missing_splits_no_revision() {
    let mut world = World::new();
    world.put(b"k", b"v");
    world.delete(b"k", b"");
    for _ in 0..8 {
        world.put(b"other", &[b'v'; 5000]);
    }
    world.change_in_turn(b"k", &[Some(b"v"), None]);
    world.reclaim();
    world.pages.resident.borrow_mut().clear();
    let late = world.open(ROOM);
    world.create(late, &CreateWatch { start_revision: world.revision(), prev_kv: true, ..KEY });
    let got = world.settle();
    assert_eq!(got[&late].iter().map(|message| message.events.len()).sum::<usize>(), 2);
    world.check_complete();
}

#[test]
fn a_long_revision_leaves_in_parts_and_whole() {
    let mut world = World::new();
    let (slow, fast, single) = (world.open(ROOM), world.open(ROOM), world.open(ROOM));
    let keys: Vec<_> = (0..300).map(|index| format!("key/{index:04}").into_bytes()).collect();
    for key in &keys {
        world.put(key, &[b'v'; 30]);
    }
    world.create(slow, &CreateWatch { prev_kv: true, ..ALL });
    world.create(slow, &KEY);
    world.create(fast, &CreateWatch { fragment: true, key: b"key/01", range_end: b"key/02", ..KEY });
    world.create(single, &CreateWatch { key: &keys[7], ..KEY });
    world.settle();
    world.clients.0.get_mut(&slow).unwrap().room = 1;
    world.delete(b"key/", b"key0");
    let got = world.settle();
    assert_eq!((got[&slow].len(), got[&fast].len(), got[&single].len()), (0, 1, 1));
    assert_eq!(got[&fast][0].events.len(), 100);
    assert!(world.clients.0[&fast].fragments_seen > 3);
    assert_eq!(world.clients.0[&slow].longs_seen, 1);
    // It has begun: whatever is compacted, it comes to its end as it was announced; and nothing else comes before.
    world.put(b"k", b"v");
    world.cancel(slow, 1);
    world.compact(world.revision());
    world.reclaim();
    world.settle();
    world.read(slow, ROOM);
    let got = sent(&mut world, slow);
    assert_eq!(got[0].events.len(), 300);
    assert!(got[0].events.iter().all(|event| event.prev.is_some()));
    assert_eq!(got.len(), 3, "then the answer to the cancel, and the end of what fell behind: {got:?}");
}

/// When watchers ask for a long revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Live,
    Behind,
    /// It is compacted when they do.
    Compacted,
}

/// Many keys at one revision: some change once, some once more, some come and go.
fn long_steps(keys: &[Vec<u8>]) -> Vec<(&[u8], Option<&'static [u8]>)> {
    const LONG: &[u8] = &[b'v'; 40];
    assert!(LONG.len() * keys.len() > LIMITS.block_bytes_max);
    let first = keys.iter().map(|key| (key.as_slice(), Some(LONG)));
    let second = keys.iter().step_by(2).map(|key| (key.as_slice(), None));
    let third = keys.iter().step_by(6).map(|key| (key.as_slice(), Some(&LONG[..9])));
    first.chain(second).chain(third).collect()
}

/// Two watchers want a long revision; the first one's response begins, and the second waits for its end. Meanwhile the
/// revision is compacted, or the one behind it. Answers with what they were sent of that revision, and the cancels.
fn compact_while_one_waits(create: &CreateWatch<'_>, start: Start, beyond: i64) -> ([usize; 2], usize) {
    let keys: Vec<_> = (0..120).map(|index| format!("key/{index:04}").into_bytes()).collect();
    let mut world = World::new();
    let stream = world.open(ROOM);
    world.put_all(&keys[..60], b"v");
    let create_both = |world: &mut World, start_revision| {
        world.create(stream, &CreateWatch { start_revision, ..ALL });
        world.create(stream, &CreateWatch { start_revision, ..*create });
        world.settle();
    };
    if start == Start::Live {
        create_both(&mut world, 0);
    }
    world.clients.0.get_mut(&stream).unwrap().room = if start == Start::Live { 0 } else { 2 };
    world.change_steps(&long_steps(&keys));
    let revision = world.revision();
    world.put(b"other", b"v");
    if start == Start::Compacted {
        world.compact(revision);
    }
    if start != Start::Live {
        create_both(&mut world, revision);
    }
    world.settle();
    if start != Start::Compacted {
        world.compact(revision + beyond);
    }
    // The first response ends where the room does, and an answer waits before the second.
    world.create(stream, &CreateWatch { key: b"nothing", ..KEY });
    let mut got = Vec::new();
    while !got.iter().any(|message: &Message| message.head.watch_id == 0 && !message.events.is_empty()) {
        world.read(stream, 1);
        got.extend(sent(&mut world, stream));
    }
    // Nothing holds what is dead at the compacted revision.
    world.reclaim();
    world.read(stream, ROOM);
    got.extend(sent(&mut world, stream));
    world.check_complete();
    let count = |id| {
        let of_it = got.iter().filter(|message| message.head.watch_id == id).flat_map(|message| &message.events);
        of_it.filter(|event| event.pair.modified == revision).count()
    };
    ([count(0), count(1)], got.iter().filter(|message| message.head.canceled).count())
}

/// Who waits for the long events of a revision that is compacted meanwhile, exactly, is not behind: it is shown what
/// the compaction leaves, as who starts there, once and whole. Behind the revision it is told so, and no event comes.
#[test]
fn a_long_revision_that_is_compacted_before_it_begins() {
    // Of every six keys, two end with a deletion.
    let (all, left, deleted) = (200, 120, 40);
    let prev = CreateWatch { prev_kv: true, fragment: true, ..ALL };
    for (create, start, expected) in [
        (ALL, Start::Live, [all, left]),
        (ALL, Start::Behind, [all, left]),
        (ALL, Start::Compacted, [left, left]),
        (CreateWatch { fragment: false, ..prev }, Start::Live, [all, left]),
        (CreateWatch { no_delete: true, ..prev }, Start::Live, [all, left - deleted]),
        (prev, Start::Behind, [all, left]),
        (CreateWatch { no_put: true, ..prev }, Start::Compacted, [left, deleted]),
    ] {
        assert_eq!(compact_while_one_waits(&create, start, 0), (expected, 0), "{create:?} {start:?}");
    }
    for start in [Start::Live, Start::Behind] {
        assert_eq!(compact_while_one_waits(&ALL, start, 1), ([all, 0], 1), "{start:?}");
    }
}

#[test]
fn a_fragment_is_no_longer_than_allowed_and_one_event_is_never_cut() {
    let limits = WatchLimits { block_bytes_max: 1 << 20, ..LIMITS };
    let mut world = World::with_limits(limits);
    let stream = world.open(ROOM);
    world.create(stream, &CreateWatch { fragment: true, ..ALL });
    world.create(stream, &ALL);
    world.settle();
    let keys: Vec<_> = (0..8).map(|index| vec![b'a' + index]).collect();
    world.put_all(&keys, &[b'v'; 250]);
    world.settle();
    assert_eq!(world.clients.0[&stream].fragments_seen, 7, "two events do not fit, so there are eight pieces");
    world.put(b"a", &[b'v'; 2000]);
    world.settle();
    assert_eq!(world.clients.0[&stream].fragments_seen, 7);
    world.check_complete();
}

#[test]
fn nothing_is_read_while_nobody_watches() {
    let mut world = World::new();
    assert!(world.watches.is_empty() && !world.watches.has_work(&world.space));
    let stream = world.open(ROOM);
    world.put(b"k", b"v");
    assert!(!world.watches.has_work(&world.space), "a stream alone is no watcher");
    world.create(stream, &KEY);
    world.settle();
    world.cancel(stream, 0);
    world.settle();
    for _ in 0..100 {
        world.put(b"k", &[b'v'; 100]);
    }
    world.reclaim();
    let asked = world.pages.asked.get();
    assert!(!world.watches.has_work(&world.space) && !world.step(&mut Budget::unlimited()));
    assert_eq!((world.pages.asked.get(), world.space.oldest_pin()), (asked, None));
    world.create(stream, &KEY);
    world.settle();
    world.put(b"k", b"v");
    assert_eq!(events(&sent(&mut world, stream)), [(103, "k".into())]);
}

/// Blocks of rows asked for while watchers from revision 2 on catch up.
fn asked_to_catch_up(count: usize, create: &CreateWatch<'_>) -> u64 {
    let mut world = World::new();
    let stream = world.open(ROOM);
    for index in 0..2000 {
        let key = if index % 100 == 0 { b"k".to_vec() } else { format!("x{index}").into_bytes() };
        world.put(&key, b"value");
    }
    world.reclaim();
    for _ in 0..count {
        world.create(stream, &CreateWatch { start_revision: 2, ..*create });
    }
    let asked = world.pages.asked.get();
    world.settle();
    world.check_complete();
    world.pages.asked.get() - asked
}

#[test]
fn those_that_catch_up_share_a_scan_and_single_keys_take_none() {
    let range = CreateWatch { range_end: b"l", ..KEY };
    let (one, many) = (asked_to_catch_up(1, &range), asked_to_catch_up(50, &range));
    assert!(one > 1000 && many < one + one / 10, "{one} for one, {many} for fifty");
    let single = asked_to_catch_up(1, &KEY);
    assert!(single < 500, "{single} blocks for 20 versions");
}

#[test]
fn a_key_with_many_versions_is_scanned() {
    let mut world = World::new();
    let stream = world.open(ROOM);
    for _ in 0..500 {
        world.put(b"k", b"v");
    }
    world.create(stream, &CreateWatch { start_revision: 2, prev_kv: true, ..KEY });
    world.create(stream, &CreateWatch { start_revision: 450, ..KEY });
    assert_eq!(events(&sent(&mut world, stream)).len(), 500 + 52);
    world.check_complete();
}

#[test]
fn a_hundred_thousand_watchers_are_small() {
    let mut world = World::new();
    let streams: Vec<_> = (0..100).map(|_| world.open(ROOM)).collect();
    let key = |index: usize| format!("registry/watched/{index:015}").into_bytes();
    for index in 0..100_000 {
        let create = CreateWatch { key: &key(index), ..KEY };
        world.watches.create(streams[index % 100], &create, &mut world.space);
    }
    let each = world.watches.heap_bytes() / 100_000;
    assert!((100..300).contains(&each), "{each} bytes a watcher");
    assert_eq!(world.watches.counts().watchers, 100_000);
}
