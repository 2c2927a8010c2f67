//! Each rule of the judgement, by notes that break it and it alone.

use super::*;
use crate::history::{Delete, Put, Request, Txn};
use crate::model::KeyRange;

fn put(key: &str, value: &str) -> Request {
    Request::Put(Put { key: key.into(), value: value.into(), ..Put::default() })
}

fn delete(key: &str, range_end: &[u8]) -> Request {
    Request::Delete(Delete { range: KeyRange { key: key.into(), range_end: range_end.to_vec() }, prev_kv: false })
}

/// Revision 2 puts a; 3 a again; 4 a and b; 5 deletes both; 6 puts c; 7 deletes c and puts it again.
fn model() -> Model {
    let txn = |success| Request::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() });
    let mut model = Model::new();
    for request in [
        put("a", "1"),
        put("a", "2"),
        txn(vec![put("b", "3"), put("a", "4")]),
        delete("a", b"c"),
        put("c", "5"),
        txn(vec![delete("c", b"\0"), put("c", "6")]),
    ] {
        model.apply(&request, -1).expect("nothing is wrong with it");
    }
    assert_eq!(model.revision(), 7);
    model
}

fn spec(start_revision: i64) -> WatchSpec {
    WatchSpec {
        range: KeyRange::everything(),
        start_revision,
        watch_id: 0,
        prev_kv: true,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    }
}

/// What a correct server hands over of these revisions, in one response.
fn events(spec: &WatchSpec, revisions: &[i64]) -> Note {
    let model = model();
    let mut events = Vec::new();
    for &revision in revisions {
        for (key, pair) in model.changes_at(revision).filter(|(key, pair)| spec.wants(key, pair.is_some())) {
            let is_creation = pair.is_some_and(|pair| pair.create_revision == revision);
            let previous = model.get(key, revision - 1).filter(|_| spec.prev_kv && !is_creation).cloned();
            events.push(SeenEvent { revision, key: key.to_vec(), pair: pair.cloned(), previous });
        }
    }
    Note::Events { revision: *revisions.last().expect("some revision"), events, asked: -1 }
}

fn created(revision: i64) -> Note {
    Note::Created { revision }
}

fn judge(spec: &WatchSpec, compacted: i64, notes: Vec<Note>) -> Result<(), String> {
    let mut ledger = Ledger::default();
    let record = ledger.begin(spec.clone(), compacted);
    notes.into_iter().for_each(|note| ledger.note(record, note));
    ledger.settle(&model(), &BTreeMap::new())
}

#[test]
fn whole_histories_pass() {
    let all = spec(2);
    let notes = vec![created(4), events(&all, &[2, 3, 4]), Note::Progress { revision: 4 }, events(&all, &[5, 6, 7])];
    assert_eq!(judge(&all, -1, notes), Ok(()));
    assert_eq!(judge(&spec(0), -1, vec![created(5), events(&all, &[6])]), Ok(()), "the end may be missing");
    let puts = WatchSpec { no_delete: true, ..spec(4) };
    assert_eq!(judge(&puts, -1, vec![created(7), events(&puts, &[4, 6, 7])]), Ok(()));
    assert_eq!(judge(&spec(2), 4, vec![created(7), Note::Compacted { at: 4, asked: 5 }]), Ok(()));
    let none = WatchSpec { prev_kv: false, ..spec(3) };
    assert_eq!(judge(&none, 3, vec![created(7), events(&none, &[3])]), Ok(()));
}

/// A change of the events of a note.
fn bent(note: Note, bend: impl FnOnce(&mut Vec<SeenEvent>)) -> Note {
    let Note::Events { revision, mut events, asked } = note else { unreachable!("a note of events") };
    bend(&mut events);
    Note::Events { revision, events, asked }
}

#[track_caller]
fn refused(spec: &WatchSpec, compacted: i64, notes: Vec<Note>, why: &str) {
    let judged = judge(spec, compacted, notes).expect_err(why);
    assert!(judged.contains(why), "{judged}");
}

#[test]
fn what_is_left_out_doubled_split_or_changed_is_refused() {
    let all = spec(2);
    refused(&all, -1, vec![created(7), events(&all, &[3])], "revision 2 was left out");
    refused(&all, -1, vec![created(7), events(&all, &[2, 4])], "revision 3 was left out");
    refused(&all, -1, vec![created(7), events(&all, &[2]), events(&all, &[2])], "handed revision 2");
    let half = bent(events(&all, &[2, 3, 4]), |events| drop(events.pop()));
    refused(&all, -1, vec![created(7), half], "is missing");
    let swapped = bent(events(&all, &[2, 3, 4]), |events| events.swap(2, 3));
    refused(&all, -1, vec![created(7), swapped], "where the model has");
    let late = bent(events(&all, &[2]), |events| events[0].pair.as_mut().expect("a put").version = 2);
    refused(&all, -1, vec![created(7), late], "where the model has");
    let once = bent(events(&spec(7), &[7]), |events| drop(events.remove(0)));
    refused(&spec(7), -1, vec![created(7), once], "where the model has");
    let keys = WatchSpec { range: KeyRange::single(b"b".to_vec()), ..spec(2) };
    refused(&keys, -1, vec![created(7), events(&all, &[4])], "beyond what the model has");
}

/// Nobody knows which of two writes made the last revision: what either would have done may be seen, and nothing else.
#[test]
fn what_either_of_two_makers_did_passes() {
    let deletion = (b"c".to_vec(), None);
    let ways = vec![vec![deletion.clone(), (b"c".to_vec(), model().get(b"c", 7).cloned())], vec![deletion]];
    let ambiguous = BTreeMap::from([(7, ways)]);
    let judge = |spec: WatchSpec, notes: Vec<Note>| {
        let mut ledger = Ledger::default();
        let record = ledger.begin(spec, -1);
        notes.into_iter().for_each(|note| ledger.note(record, note));
        ledger.settle(&model(), &ambiguous)
    };
    let both = events(&spec(7), &[7]);
    assert_eq!(judge(spec(7), vec![created(7), both]), Ok(()));
    let one = bent(events(&spec(7), &[7]), |events| drop(events.pop()));
    assert_eq!(judge(spec(7), vec![created(7), one]), Ok(()));
    let puts = WatchSpec { no_delete: true, ..spec(7) };
    assert_eq!(judge(puts, vec![created(7), Note::Progress { revision: 7 }]), Ok(()));
    assert!(judge(spec(7), vec![created(7), Note::Progress { revision: 7 }]).is_err());
    let neither = bent(events(&spec(7), &[7]), |events| drop(events.remove(0)));
    assert!(judge(spec(7), vec![created(7), neither]).is_err());
}

/// Once it is compacted itself, a revision may show the last of what it did to each key alone.
#[test]
fn the_compacted_revision_shows_the_last_change_of_each_key() {
    let last = |asked| {
        let note = bent(events(&spec(7), &[7]), |events| drop(events.remove(0)));
        let Note::Events { revision, events, .. } = note else { unreachable!("a note of events") };
        vec![created(7), Note::Events { revision, events, asked }]
    };
    assert_eq!(judge(&spec(7), 7, last(7)), Ok(()));
    refused(&spec(7), -1, last(6), "where the model has");
}

#[test]
fn claims_beyond_what_was_handed_over_are_refused() {
    let all = spec(2);
    let progress = |revision| Note::Progress { revision };
    refused(&all, -1, vec![created(7), events(&all, &[2]), progress(3)], "revision 3 was left out");
    refused(&all, -1, vec![created(7), events(&all, &[2, 3]), progress(2)], "where 4 is next");
    refused(&all, -1, vec![created(7), events(&all, &[2, 3]), progress(3), events(&all, &[3])], "where 4 is next");
    refused(&spec(6), -1, vec![created(4), progress(5)], "where 6 is next");
    refused(&spec(6), -1, vec![created(4), events(&all, &[5])], "where 6 is next");
    refused(&spec(0), -1, vec![created(8)], "which is lost");
    refused(&spec(8), -1, vec![created(7), progress(8)], "which is lost");
    let Note::Events { events, asked, .. } = events(&all, &[2]) else { unreachable!("a note of events") };
    refused(&all, -1, vec![created(7), Note::Events { revision: 1, events, asked }], "has events of 2");
}

#[test]
fn compaction_ends_those_alone_who_need_it() {
    let all = spec(3);
    let ended = |at| Note::Compacted { at, asked: 5 };
    refused(&all, -1, vec![created(7), ended(3)], "ended as compacted at 3");
    refused(&all, -1, vec![created(7), events(&all, &[3, 4]), ended(5)], "ended as compacted at 5");
    refused(&all, -1, vec![created(7), ended(6)], "ended as compacted at 6");
    refused(&all, 5, vec![created(7), ended(4)], "ended as compacted at 4");
    refused(&all, 4, vec![created(7), events(&all, &[3])], "though 4 was compacted");
}

#[test]
fn previous_pairs_are_those_of_the_revision_before() {
    let all = spec(3);
    let without = |asked| {
        let Note::Events { revision, mut events, .. } = events(&all, &[3]) else { unreachable!("a note of events") };
        events[0].previous = None;
        vec![created(7), Note::Events { revision, events, asked }]
    };
    refused(&all, -1, without(2), "before it");
    assert_eq!(judge(&all, -1, without(3)), Ok(()));
    refused(&all, 3, vec![created(7), events(&all, &[3])], "before it");
    let none = WatchSpec { prev_kv: false, ..spec(3) };
    refused(&none, -1, vec![created(7), events(&all, &[3])], "before it");
    let wrong = bent(events(&all, &[3]), |events| events[0].previous.as_mut().expect("there is one").version = 7);
    refused(&all, -1, vec![created(7), wrong], "before it");
}
