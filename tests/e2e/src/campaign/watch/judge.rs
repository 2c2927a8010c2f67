//! The rules of watching, applied to everything that was said on a stream.
//!
//! Owns: the state of every watcher as its client may expect it, and the comparison with the model. Does not know:
//! servers, connections, time; that everything arrives at all is seen by who waits for it (`watchers`).
//!
//! Numbers in messages: 1 ordered, 2 unique, 3 atomic, 4 reliable, 5 resumable, 6 bookmarkable, 7 filtered, 8 previous
//! pairs, 9 the pair's own numbers, 10 starts in the future, 11 compacted starts, 13 progress of a whole stream, 14
//! creation first and cancellation last, 15 nothing shown that is not kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Context, Result, bail};

use crate::campaign::watch::model::{Cursor, Model, Wanted, show};
use crate::campaign::watch::wire::{Event, Pair, Response, Spec};

/// Something that happened on a stream, in the order in which its client saw it.
#[derive(Clone, Debug)]
pub(super) enum Note {
    /// A watcher was asked for; a compaction up to here was acknowledged before.
    Create { spec: Spec, compacted: u64, is_refused: bool },
    /// Its end was asked for.
    Cancel(i64),
    /// Progress was asked for.
    AskProgress,
    /// The server said something; no compaction above this revision had been asked for.
    Told { response: Response, compacted_possible: u64 },
}

/// Everything that happened on a stream in one life of the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Transcript {
    /// For messages.
    pub(super) name: String,
    /// In order.
    pub(super) notes: Vec<Note>,
}

/// What was judged and found right.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) events: u64,
    pub(super) previous_pairs: u64,
    pub(super) watchers: u64,
    pub(super) compacted: u64,
    pub(super) canceled: u64,
    pub(super) refused: u64,
    pub(super) progress_asked: u64,
    pub(super) progress_given: u64,
    pub(super) fragments: u64,
}

/// A watcher that was created.
#[derive(Debug)]
struct Held {
    spec: Spec,
    /// The first revision wanted.
    from: u64,
    cursor: Cursor,
    /// The last revision that was delivered.
    last: u64,
    progress: u64,
    /// Events of fragments whose response is not complete.
    open: Vec<Event>,
    is_open: bool,
    /// The compaction that had been acknowledged when it was asked for.
    compacted: u64,
}

struct Judge<'a> {
    model: &'a Model,
    tally: &'a mut Tally,
    pending: VecDeque<(Spec, u64, bool)>,
    held: BTreeMap<i64, Held>,
    /// Ends that were asked for and not confirmed.
    cancels: BTreeMap<i64, u32>,
    /// Ended by compaction: their ids stay taken until the client gives them back.
    compacted: BTreeSet<i64>,
    asked: u64,
    stream_progress: u64,
}

/// Applies the rules to a stream; the first breach is the error.
pub(super) fn judge(model: &Model, transcript: &Transcript, tally: &mut Tally) -> Result<()> {
    let mut judge = Judge {
        model,
        tally,
        pending: VecDeque::new(),
        held: BTreeMap::new(),
        cancels: BTreeMap::new(),
        compacted: BTreeSet::new(),
        asked: 0,
        stream_progress: 0,
    };
    for (place, note) in transcript.notes.iter().enumerate() {
        match note {
            Note::Create { spec, compacted, is_refused } => {
                judge.pending.push_back((spec.clone(), *compacted, *is_refused));
            }
            Note::Cancel(id) => *judge.cancels.entry(*id).or_default() += 1,
            Note::AskProgress => judge.asked += 1,
            Note::Told { response, compacted_possible } => {
                let told = judge.hear(response, *compacted_possible);
                told.with_context(|| format!("{}, watcher {}, note {place}", transcript.name, response.id))?;
            }
        }
    }
    Ok(())
}

impl Judge<'_> {
    fn hear(&mut self, response: &Response, possible: u64) -> Result<()> {
        if response.created {
            return self.created(response);
        }
        if response.canceled {
            return self.canceled(response, possible);
        }
        if response.id == -1 {
            return self.progress_of_all(response, possible);
        }
        let Some(held) = self.held.get_mut(&response.id) else {
            bail!("14: a response for a watcher that is not there")
        };
        if held.spec.start > 0 && held.spec.start < held.compacted {
            bail!("11: a start at {} goes on behind the compaction at {}", held.spec.start, held.compacted);
        }
        if response.is_progress() {
            held.hear_progress(self.model, response.revision, possible)?;
            if !held.spec.progress {
                bail!("6: progress that nobody asked for");
            }
            self.tally.progress_given += 1;
            return Ok(());
        }
        held.hear_events(self.model, response, possible, self.tally)
    }

    fn created(&mut self, response: &Response) -> Result<()> {
        let (spec, compacted, is_refused) =
            self.pending.pop_front().context("14: more watchers than were asked for")?;
        if response.canceled != is_refused {
            bail!("14: created {spec:?}: refused {}, {}", response.canceled, response.reason);
        }
        if is_refused {
            self.tally.refused += 1;
            return Ok(());
        }
        let id = response.id;
        if spec.id != 0 && spec.id != id {
            bail!("14: id {} was asked for", spec.id);
        }
        if id < 0 || self.compacted.contains(&id) || self.held.contains_key(&id) {
            bail!("14: the id is taken");
        }
        let from = if spec.start == 0 { response.revision + 1 } else { spec.start };
        let cursor = Cursor::new(from);
        let held = Held { spec, from, cursor, last: 0, progress: 0, open: Vec::new(), is_open: false, compacted };
        self.held.insert(id, held);
        self.tally.watchers += 1;
        Ok(())
    }

    fn canceled(&mut self, response: &Response, possible: u64) -> Result<()> {
        let id = response.id;
        if response.compact_revision > 0 {
            let held = self.held.remove(&id).context("11: the end of a watcher that is not there")?;
            held.check_compacted(response, possible)?;
            self.compacted.insert(id);
            self.tally.compacted += 1;
            return Ok(());
        }
        let asked = self.cancels.get_mut(&id).filter(|count| **count > 0).context("14: an end nobody asked for")?;
        *asked -= 1;
        let held = self.held.remove(&id);
        if held.as_ref().is_some_and(|held| held.is_open) {
            bail!("3: it ends in the middle of a response");
        }
        if held.is_none() && !self.compacted.remove(&id) {
            bail!("14: the end of a watcher that is not there");
        }
        self.tally.canceled += 1;
        Ok(())
    }

    /// Progress of every watcher of the stream.
    fn progress_of_all(&mut self, response: &Response, possible: u64) -> Result<()> {
        self.asked = self.asked.checked_sub(1).context("13: more answers than requests")?;
        let revision = response.revision;
        if !response.is_progress() || revision < self.stream_progress {
            bail!("13: progress {revision} after {}", self.stream_progress);
        }
        self.stream_progress = revision;
        for (id, held) in &mut self.held {
            held.hear_progress(self.model, revision, possible).with_context(|| format!("13: {id}"))?;
        }
        self.tally.progress_asked += 1;
        Ok(())
    }
}

impl Held {
    fn hear_progress(&mut self, model: &Model, revision: u64, possible: u64) -> Result<()> {
        if self.is_open {
            bail!("3: progress in the middle of a response");
        }
        if revision + 1 < self.from {
            bail!("10: progress {revision} before the start at {}", self.from);
        }
        if revision < self.progress.max(self.last) {
            bail!("6: progress {revision} after {}", self.progress.max(self.last));
        }
        while let Some(missed) = model.peek(&self.spec, &mut self.cursor).filter(|wanted| wanted.revision <= revision) {
            let at = missed.revision;
            self.skip_undone(model, at, possible);
            if model.peek(&self.spec, &mut self.cursor).is_none_or(|wanted| wanted.revision != at) {
                continue;
            }
            bail!("6: progress {revision}, and {} of {} was not delivered", show(&missed.key), missed.revision);
        }
        if revision > model.head() {
            bail!("15: progress {revision} of a history that ends at {}", model.head());
        }
        self.progress = revision;
        Ok(())
    }

    fn hear_events(&mut self, model: &Model, response: &Response, possible: u64, tally: &mut Tally) -> Result<()> {
        if response.fragment && !self.spec.fragment {
            bail!("3: a fragment nobody asked for");
        }
        if response.events.is_empty() {
            bail!("3: a fragment without events");
        }
        self.open.extend(response.events.iter().cloned());
        self.is_open = response.fragment;
        if self.is_open {
            tally.fragments += 1;
            return Ok(());
        }
        let events = std::mem::take(&mut self.open);
        let began_behind = self.last.max(self.progress);
        for event in &events {
            if event.pair.modified <= began_behind {
                bail!("1, 2, 3: revision {} after {began_behind}", event.pair.modified);
            }
            self.hear_event(model, event, possible)?;
            tally.previous_pairs += u64::from(event.prev.is_some());
        }
        tally.events += events.len() as u64;
        if response.revision < self.last {
            bail!("6: a header of {} over events of {}", response.revision, self.last);
        }
        let last = self.last;
        self.skip_undone(model, last, possible);
        if let Some(rest) = model.peek(&self.spec, &mut self.cursor).filter(|wanted| wanted.revision == last) {
            bail!("3: revision {last} comes without {}", show(&rest.key));
        }
        Ok(())
    }

    fn hear_event(&mut self, model: &Model, event: &Event, possible: u64) -> Result<()> {
        let (key, revision) = (&event.pair.key, event.pair.modified);
        let told = format!("{} of {revision}", show(key));
        if !self.spec.holds(key) || if event.is_delete { self.spec.no_delete } else { self.spec.no_put } {
            bail!("7: {told} is not watched");
        }
        if revision < self.from {
            bail!("10: {told} before the start at {}", self.from);
        }
        if revision > model.head() {
            bail!("15: {told} in a history that ends at {}", model.head());
        }
        let mut wanted = model.peek(&self.spec, &mut self.cursor);
        if wanted.is_some_and(|wanted| wanted.key != *key || wanted.pair.is_none() != event.is_delete) {
            self.skip_undone(model, revision, possible);
            wanted = model.peek(&self.spec, &mut self.cursor);
        }
        let Some(wanted) = wanted else { bail!("4: {told} where nothing is left") };
        if (wanted.revision, &wanted.key, wanted.pair.is_none()) != (revision, key, event.is_delete) {
            bail!("4, 5: {told} instead of {} of {}", show(&wanted.key), wanted.revision);
        }
        let gone = || Pair { key: key.clone(), modified: revision, ..Pair::default() };
        if wanted.pair.as_deref().map_or_else(|| event.pair == gone(), |pair| event.pair == *pair) {
            self.check_previous(wanted, event, possible)?;
            self.cursor.advance();
            self.last = revision;
            return Ok(());
        }
        bail!("9: {told} is shown as {:?} instead of {:?}", event.pair, wanted.pair);
    }

    /// Of what one transaction did to a key, a compaction at its revision leaves the last step: nothing to who does not
    /// want that one. Skips such steps up to a revision.
    fn skip_undone(&mut self, model: &Model, revision: u64, possible: u64) {
        while let Some(wanted) = model.peek(&self.spec, &mut self.cursor) {
            if wanted.revision > revision.min(possible) || !self.cursor.is_undone(model) {
                return;
            }
            self.cursor.advance();
        }
    }

    fn check_previous(&self, wanted: &Wanted, event: &Event, possible: u64) -> Result<()> {
        let (revision, key) = (wanted.revision, show(&wanted.key));
        let is_right = match (&event.prev, &wanted.prev) {
            _ if !self.spec.prev_kv => event.prev.is_none(),
            (None, None) => true,
            (None, Some(_)) => revision - 1 < possible,
            (Some(shown), Some(before)) => *shown == **before && revision > self.compacted,
            (Some(_), None) => false,
        };
        if !is_right {
            bail!("8: {key} of {revision} comes with {:?} instead of {:?}", event.prev, wanted.prev);
        }
        Ok(())
    }

    fn check_compacted(&self, response: &Response, possible: u64) -> Result<()> {
        let at = response.compact_revision;
        if at < self.compacted || at > possible {
            bail!("11: compacted at {at}, which was {} to {possible}", self.compacted);
        }
        let next = self.from.max(self.last + 1).max(self.progress + 1);
        if next >= at || self.is_open {
            bail!("11: ended by the compaction at {at}, where {next} was to come");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::watch::model::Change;

    /// Revision 2 puts a, 3 puts a and b, 4 puts and deletes c, 5 deletes a.
    fn model() -> Model {
        let put = |key: &str, value: &str| Change { key: key.into(), put: Some((value.into(), 0)) };
        let gone = |key: &str| Change { key: key.into(), put: None };
        let mut model = Model::default();
        for changes in
            [vec![put("a", "1")], vec![put("a", "2"), put("b", "1")], vec![put("c", "1"), gone("c")], vec![gone("a")]]
        {
            model.add(&changes).unwrap();
        }
        model
    }

    fn pair(key: &str, value: &str, create: u64, modified: u64, version: u64) -> Pair {
        Pair { key: key.into(), value: value.into(), create, modified, version, lease: 0 }
    }

    fn put(key: &str, value: &str, create: u64, modified: u64, version: u64) -> Event {
        Event { is_delete: false, pair: pair(key, value, create, modified, version), prev: None }
    }

    fn gone(key: &str, modified: u64) -> Event {
        let pair = Pair { key: key.into(), modified, ..Pair::default() };
        Event { is_delete: true, pair, prev: None }
    }

    fn told(revision: u64, id: i64, events: &[Event]) -> Response {
        Response { revision, id, events: events.to_vec(), ..Response::default() }
    }

    fn everything(start: u64) -> Spec {
        Spec { key: vec![0], end: vec![0], start, progress: true, ..Spec::default() }
    }

    fn all() -> Vec<Event> {
        let c = [put("c", "1", 4, 4, 1), gone("c", 4)];
        [vec![put("a", "1", 2, 2, 1), put("a", "2", 2, 3, 2), put("b", "1", 3, 3, 1)], c.into(), vec![gone("a", 5)]]
            .concat()
    }

    /// What is wrong with a watcher that was created at revision 5 and told this, while no compaction beyond
    /// `possible` was under way.
    fn fault(spec: &Spec, compacted: u64, possible: u64, responses: &[Response]) -> String {
        let created = Response { revision: 5, created: true, ..Response::default() };
        let note = |response| Note::Told { response, compacted_possible: possible };
        let mut notes = vec![Note::Create { spec: spec.clone(), compacted, is_refused: false }, Note::AskProgress];
        notes.push(note(created));
        notes.extend(responses.iter().cloned().map(note));
        let transcript = Transcript { name: "stream".to_owned(), notes };
        match judge(&model(), &transcript, &mut Tally::default()) {
            Ok(()) => String::new(),
            Err(error) => error.root_cause().to_string(),
        }
    }

    fn progress(revision: u64, id: i64) -> Response {
        told(revision, id, &[])
    }

    #[test]
    fn the_whole_history_in_any_cut_is_right() {
        let events = all();
        for cut in [0, 1, 3, 5] {
            let parts = [told(5, 0, &events[..cut]), told(5, 0, &events[cut..]), progress(5, 0), progress(5, -1)];
            let parts: Vec<Response> = parts.into_iter().filter(|it| it.id < 0 || it.revision > 0).collect();
            let parts = if cut == 0 { &parts[1..] } else { &parts[..] };
            assert_eq!(fault(&everything(2), 0, 0, parts), "", "{cut}");
        }
        assert_eq!(fault(&everything(0), 0, 0, &[progress(5, 0)]), "", "nothing since");
    }

    #[test]
    fn every_breach_is_named() {
        let all = all();
        let without = |place: usize| [&all[..place], &all[place + 1..]].concat();
        let swapped = [&all[1..3], &all[..1], &all[3..]].concat();
        let other = |place: usize, event: Event| [&all[..place], &[event], &all[place + 1..]].concat();
        for (rule, responses) in [
            ("4", vec![told(5, 0, &without(0))]),
            ("4", vec![told(5, 0, &without(1))]),
            ("4", vec![told(5, 0, &without(3))]),
            ("4", vec![told(5, 0, &swapped)]),
            ("4", vec![told(5, 0, &[&all[..1], &all[..]].concat())]),
            ("1", vec![told(5, 0, &all), told(5, 0, &all[5..])]),
            ("3", vec![told(5, 0, &all[..2]), told(5, 0, &all[2..])]),
            ("3", vec![Response { fragment: true, ..told(5, 0, &all[..2]) }]),
            ("6", vec![told(5, 0, &all[..3]), progress(4, 0)]),
            ("6", vec![told(5, 0, &all[..5]), progress(3, 0)]),
            ("6", vec![told(5, 0, &all[..3]), progress(4, -1)]),
            ("15", vec![told(6, 0, &all), progress(6, 0)]),
            ("15", vec![told(6, 0, &[&all[..], &[put("d", "1", 6, 6, 1)]].concat())]),
            ("8", vec![told(5, 0, &other(1, Event { prev: Some(pair("a", "1", 2, 2, 1)), ..all[1].clone() }))]),
            ("9", vec![told(5, 0, &other(1, put("a", "2", 2, 3, 1)))]),
            ("9", vec![told(5, 0, &other(1, put("a", "x", 2, 3, 2)))]),
            ("14", vec![told(5, 1, &all)]),
            ("14", vec![Response { canceled: true, ..told(5, 0, &[]) }]),
            ("13", vec![told(5, 0, &all), progress(5, -1), progress(5, -1)]),
        ] {
            let fault = fault(&everything(2), 0, 0, &responses);
            assert!(fault.starts_with(rule), "{rule}: {fault:?} of {responses:?}");
        }
    }

    #[test]
    fn previous_pairs_are_there_unless_they_are_compacted() {
        let spec = Spec { key: b"a".to_vec(), start: 3, prev_kv: true, ..Spec::default() };
        let second = put("a", "2", 2, 3, 2);
        let with = Event { prev: Some(pair("a", "1", 2, 2, 1)), ..second.clone() };
        assert_eq!(fault(&spec, 0, 0, &[told(5, 0, std::slice::from_ref(&with))]), "");
        assert!(fault(&spec, 0, 2, &[told(5, 0, std::slice::from_ref(&second))]).starts_with('8'));
        assert_eq!(fault(&spec, 0, 3, &[told(5, 0, &[second])]), "", "a compaction at 3 may have been first");
        assert!(fault(&spec, 3, 3, &[told(5, 0, &[with])]).starts_with('8'), "it was first");
    }

    #[test]
    fn a_compaction_ends_those_that_want_what_is_below_it() {
        let end = |at| Response { canceled: true, compact_revision: at, ..told(0, 0, &[]) };
        assert_eq!(fault(&everything(2), 4, 4, &[end(4)]), "");
        assert_eq!(fault(&everything(2), 3, 4, &[end(4)]), "");
        assert!(fault(&everything(2), 4, 4, &[end(3)]).starts_with("11"));
        assert!(fault(&everything(2), 4, 4, &[end(5)]).starts_with("11"));
        assert!(fault(&everything(4), 4, 4, &[end(4)]).starts_with("11"), "a start at it is none below it");
        assert!(fault(&everything(2), 4, 4, &[end(4), end(4)]).starts_with("11"), "once");
        assert!(fault(&everything(2), 4, 4, &[told(5, 0, &all())]).starts_with("11"), "and surely");
        let all = all();
        assert!(fault(&everything(2), 0, 4, &[told(5, 0, &all[..3]), end(4)]).starts_with("11"), "it had all below");
        // At the compacted revision the last step of a transaction is left, and before it everything.
        assert_eq!(fault(&everything(4), 4, 4, &[told(5, 0, &all[4..])]), "");
        assert_eq!(fault(&everything(4), 4, 4, &[told(5, 0, &all[3..])]), "");
        assert!(fault(&everything(4), 0, 3, &[told(5, 0, &all[4..])]).starts_with('4'));
    }

    #[test]
    fn of_a_step_that_was_undone_a_filter_may_leave_nothing() {
        let change = |key: &str, put: Option<&str>| Change { key: key.into(), put: put.map(|value| (value.into(), 0)) };
        let mut model = Model::default();
        for changes in [vec![change("a", Some("1"))], vec![change("c", Some("1")), change("c", None)]] {
            model.add(&changes).unwrap();
        }
        model.add(&[change("d", Some("1"))]).unwrap();
        let spec = Spec { no_delete: true, ..everything(3) };
        let right = |possible| {
            let created = Response { revision: 4, created: true, ..Response::default() };
            let note = |response| Note::Told { response, compacted_possible: possible };
            let create = Note::Create { spec: spec.clone(), compacted: 0, is_refused: false };
            let notes = vec![create, note(created), note(told(4, 0, &[put("d", "1", 4, 4, 1)]))];
            judge(&model, &Transcript { name: "stream".to_owned(), notes }, &mut Tally::default()).is_ok()
        };
        assert!(right(3) && right(4), "of revision 3 a delete is left, which is filtered");
        assert!(!right(2), "it was not compacted");
    }

    #[test]
    fn a_start_to_come_is_waited_for() {
        assert!(fault(&everything(5), 0, 0, &[told(5, 0, &all()[3..])]).starts_with("10"));
        assert!(fault(&everything(6), 0, 0, &[progress(4, 0)]).starts_with("10"));
        assert_eq!(fault(&everything(6), 0, 0, &[progress(5, 0)]), "");
    }

    #[test]
    fn filters_and_ranges_hold() {
        let puts = Spec { no_delete: true, ..everything(2) };
        let events = [&all()[..4]].concat();
        assert_eq!(fault(&puts, 0, 0, &[told(5, 0, &events), progress(5, 0)]), "");
        assert!(fault(&puts, 0, 0, &[told(5, 0, &all())]).starts_with('7'));
        let of_b = Spec { key: b"b".to_vec(), ..everything(2) };
        let of_b = Spec { end: Vec::new(), ..of_b };
        assert_eq!(fault(&of_b, 0, 0, &[told(5, 0, &all()[2..3])]), "");
        assert!(fault(&of_b, 0, 0, &[told(5, 0, &all()[..1])]).starts_with('7'));
    }
}
