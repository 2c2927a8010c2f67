//! What has happened, revision by revision: the measure of every event.
//!
//! Owns: the changes of every settled revision, the versions of every key, and from them what a watcher must be handed
//! and what a range must show. Does not know: who said so, compactions.
//!
//! I1  Revisions are added in order, none twice, none left out.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Result, bail};

use crate::campaign::watch::wire::{Event, Pair, Spec};

/// One change of one key: to a value and a lease, or away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Vec<u8>,
    pub(super) put: Option<(Vec<u8>, u64)>,
}

impl Change {
    /// What an event shows of it.
    pub(super) fn of(event: &Event) -> Self {
        let pair = &event.pair;
        let put = (!event.is_delete).then(|| (pair.value.clone(), pair.lease));
        Self { key: pair.key.clone(), put }
    }
}

#[derive(Debug)]
struct Version {
    revision: u64,
    pair: Option<Rc<Pair>>,
}

/// An event as a watcher must be handed it, with the pair that was seen before its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) revision: u64,
    pub(super) key: Vec<u8>,
    /// `None`: a deletion.
    pub(super) pair: Option<Rc<Pair>>,
    pub(super) prev: Option<Rc<Pair>>,
}

/// The settled history.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// That of revision 2 first.
    revisions: Vec<Vec<Wanted>>,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
}

impl Model {
    /// The newest settled revision.
    pub(super) fn head(&self) -> u64 {
        1 + self.revisions.len() as u64
    }

    /// Adds the next revision.
    pub(super) fn add(&mut self, changes: &[Change]) -> Result<()> {
        let revision = self.head() + 1;
        let mut wanted = Vec::new();
        for change in changes {
            let before = self.at(&change.key, revision - 1).cloned();
            let versions = self.keys.entry(change.key.clone()).or_default();
            let last = versions.last().and_then(|version| version.pair.clone());
            let pair = change.put.as_ref().map(|(value, lease)| {
                let (create, version) = last.as_ref().map_or((revision, 1), |last| (last.create, last.version + 1));
                let (key, value) = (change.key.clone(), value.clone());
                Rc::new(Pair { key, value, create, modified: revision, version, lease: *lease })
            });
            if pair.is_none() && last.is_none() {
                bail!("revision {revision} deletes {}, which is not there", show(&change.key));
            }
            versions.push(Version { revision, pair: pair.clone() });
            // A put that creates its key shows nothing before it.
            let prev = before.filter(|_| pair.as_ref().is_none_or(|pair| pair.create != revision));
            wanted.push(Wanted { revision, key: change.key.clone(), pair, prev });
        }
        if wanted.is_empty() {
            bail!("revision {revision} changes nothing");
        }
        self.revisions.push(wanted);
        Ok(())
    }

    /// What is seen of a key at a revision.
    pub(super) fn at(&self, key: &[u8], revision: u64) -> Option<&Rc<Pair>> {
        let versions = self.keys.get(key)?;
        let seen = &versions[..versions.partition_point(|version| version.revision <= revision)];
        seen.last()?.pair.as_ref()
    }

    /// Everything that is seen at a revision, by key.
    pub(super) fn everything(&self, revision: u64) -> Vec<&Pair> {
        self.keys.keys().filter_map(|key| self.at(key, revision)).map(Rc::as_ref).collect()
    }

    /// The newest keys and pairs that begin with a prefix.
    pub(super) fn live<'m>(&'m self, prefix: &'m [u8]) -> impl Iterator<Item = &'m Rc<Pair>> {
        let all = self.keys.range(prefix.to_vec()..).take_while(move |(key, _)| key.starts_with(prefix));
        all.filter_map(|(_, versions)| versions.last()?.pair.as_ref())
    }

    /// The next event that a watcher must be handed; the cursor comes to stand at it.
    pub(super) fn peek(&self, spec: &Spec, cursor: &mut Cursor) -> Option<&Wanted> {
        loop {
            match self.revisions.get(cursor.revision)?.get(cursor.place) {
                None => *cursor = Cursor { revision: cursor.revision + 1, place: 0 },
                Some(wanted) if wanted.is_wanted(spec) => return Some(wanted),
                Some(_) => cursor.place += 1,
            }
        }
    }
}

/// A place in the history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    revision: usize,
    place: usize,
}

impl Cursor {
    /// Before a revision.
    pub(super) fn new(revision: u64) -> Self {
        Self { revision: usize::try_from(revision.max(2) - 2).unwrap_or(usize::MAX), place: 0 }
    }

    /// Behind the event at which it stands.
    pub(super) fn advance(&mut self) {
        self.place += 1;
    }

    /// Whether the same transaction changed the key of the event at which it stands once more.
    pub(super) fn is_undone(&self, model: &Model) -> bool {
        let rest = model.revisions.get(self.revision).and_then(|events| events.get(self.place..)).unwrap_or(&[]);
        rest.split_first().is_some_and(|(first, later)| later.iter().any(|wanted| wanted.key == first.key))
    }
}

impl Wanted {
    fn is_wanted(&self, spec: &Spec) -> bool {
        let filtered = if self.pair.is_some() { spec.no_put } else { spec.no_delete };
        !filtered && spec.holds(&self.key)
    }
}

/// A key for a message.
pub(super) fn show(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Change {
        Change { key: key.into(), put: Some((value.into(), 0)) }
    }

    fn gone(key: &str) -> Change {
        Change { key: key.into(), put: None }
    }

    fn wanted<'m>(model: &'m Model, spec: &Spec, from: u64) -> Vec<&'m Wanted> {
        let mut cursor = Cursor::new(from);
        std::iter::from_fn(|| {
            let wanted = model.peek(spec, &mut cursor);
            cursor.advance();
            wanted
        })
        .collect()
    }

    #[test]
    fn versions_and_what_was_before_them() {
        let mut model = Model::default();
        for changes in [
            vec![put("a", "1")],
            vec![put("a", "2"), put("b", "1")],
            vec![put("c", "1"), gone("c")],
            vec![gone("a")],
            vec![put("a", "3"), gone("a")],
            vec![put("a", "4")],
        ] {
            model.add(&changes).unwrap();
        }
        assert!(model.add(&[gone("x")]).is_err());
        assert!(model.add(&[]).is_err());
        assert_eq!(model.head(), 7);
        let spec = Spec { key: b"a".to_vec(), end: vec![0], ..Spec::default() };
        let told = |event: &Wanted| {
            let value = |pair: &Option<Rc<Pair>>| {
                pair.as_ref().map_or_else(
                    || "-".to_owned(),
                    |pair| format!("{}.{}", String::from_utf8_lossy(&pair.value), pair.version),
                )
            };
            format!("{} {} {} {}", event.revision, show(&event.key), value(&event.pair), value(&event.prev))
        };
        let all: Vec<String> = wanted(&model, &spec, 0).into_iter().map(told).collect();
        assert_eq!(
            all,
            [
                "2 a 1.1 -",
                "3 a 2.2 1.1",
                "3 b 1.1 -",
                "4 c 1.1 -",
                "4 c - -",
                "5 a - 2.2",
                "6 a 3.1 -",
                "6 a - -",
                "7 a 4.1 -"
            ]
        );
        let puts = Spec { no_delete: true, ..spec.clone() };
        assert_eq!(wanted(&model, &puts, 5).iter().map(|event| event.revision).collect::<Vec<_>>(), [6, 7]);
        let live = |revision| model.everything(revision).iter().map(|pair| show(&pair.key)).collect::<Vec<_>>();
        assert_eq!(
            (live(3), live(6), live(7)),
            (vec!["a".into(), "b".into()], vec!["b".into()], vec!["a".into(), "b".into()])
        );
        assert_eq!(model.live(b"a").count(), 1);
    }
}
