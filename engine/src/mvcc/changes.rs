//! The private change list of a command under evaluation.
//!
//! Owns: what the command has changed so far, readable by its later operations. Does not know: where it is installed.
//!
//! Invariants
//! - I1: change i of a command becomes row (main, i); a key changed twice links its second row to its first.
//! - I2: nothing here borrows the keyspace, so a complete list can be installed into it.

use std::borrow::Cow;

use crate::mvcc::KeyRange;
use crate::mvcc::change_list::{ChangeList, ChangesLeft};
use crate::mvcc::key_index::{KeyIndex, Span};
use crate::store::key_entry::{Chain, KeyEntry, Revision};

/// One change, ready to be installed.
#[derive(Debug)]
pub(crate) struct Change<'c> {
    pub(crate) key: Cow<'c, [u8]>,
    pub(crate) value: Cow<'c, [u8]>,
    pub(crate) entry: KeyEntry,
    pub(crate) prev: Revision,
    pub(crate) jump: Revision,
    /// Whether the key was alive before this change.
    pub(crate) was_live: bool,
    /// The lease it was attached to.
    pub(crate) lease_before: i64,
}

impl<'c> Change<'c> {
    /// A put: the next version of the generation, or the first of a new one.
    pub(crate) fn put(
        key: &'c [u8],
        value: Cow<'c, [u8]>,
        lease: i64,
        at: Revision,
        before: Option<&KeyEntry>,
        floor: i64,
    ) -> Self {
        let link = Chain::link(before, floor);
        let live = before.filter(|entry| !entry.is_tombstone());
        let (create, version) = live.map_or((at.main, 1), |entry| (entry.create, entry.version + 1));
        let entry = KeyEntry { row: at, create, version, lease, chain: link.chain };
        let (was_live, lease_before) = (live.is_some(), live.map_or(0, |entry| entry.lease));
        Self { key: Cow::Borrowed(key), value, entry, prev: link.prev, jump: link.jump, was_live, lease_before }
    }

    /// A tombstone over a live key.
    pub(crate) fn delete(key: Cow<'c, [u8]>, at: Revision, before: &KeyEntry, floor: i64) -> Self {
        assert!(!before.is_tombstone(), "only a live key is deleted");
        let link = Chain::link(Some(before), floor);
        let entry = KeyEntry { row: at, create: 0, version: 0, lease: 0, chain: link.chain };
        let lease_before = before.lease;
        Self { key, value: Cow::Borrowed(&[]), entry, prev: link.prev, jump: link.jump, was_live: true, lease_before }
    }

    /// The same, with nothing borrowed from the command.
    pub(crate) fn into_owned(self) -> Change<'static> {
        Change {
            key: Cow::Owned(self.key.into_owned()),
            value: Cow::Owned(self.value.into_owned()),
            entry: self.entry,
            prev: self.prev,
            jump: self.jump,
            was_live: self.was_live,
            lease_before: self.lease_before,
        }
    }
}

/// The changes of a transaction so far; or of a shard's round, command after command.
#[derive(Debug)]
pub(crate) struct Changes<'c> {
    main: i64,
    /// Where the changes of revision `main` begin in the list.
    first: usize,
    list: ChangeList<'c>,
    by_key: KeyIndex,
}

impl<'c> Changes<'c> {
    /// An empty list whose changes will be of revision `main`.
    pub(crate) fn new(main: i64) -> Self {
        Self { main, first: 0, list: ChangeList::default(), by_key: KeyIndex::default() }
    }

    /// The revision a reader of this transaction stands at.
    pub(crate) fn revision(&self) -> i64 {
        self.main - i64::from(self.list.len() == self.first)
    }

    /// Where the next change goes.
    pub(crate) fn next_at(&self) -> Revision {
        next_at(self.main, self.list.len() - self.first)
    }

    /// Goes on to the next command of a round, whose changes will be of revision `main`; again for the same command
    /// means nothing.
    pub(crate) fn begin(&mut self, main: i64) {
        assert!(main >= self.main, "commands come in order");
        if main > self.main {
            (self.main, self.first) = (main, self.list.len());
        }
    }

    /// How many changes the command at hand has made.
    pub(crate) fn of_command(&self) -> u32 {
        u32::try_from(self.list.len() - self.first).expect("a command changes fewer than 2^32 keys")
    }

    /// Takes back what the command at hand has changed.
    pub(crate) fn take_back(&mut self) {
        if self.list.len() == self.first {
            return;
        }
        self.list.truncate(self.first);
        let list = &self.list;
        self.by_key = KeyIndex::default();
        for (at, change) in list.iter().enumerate() {
            self.by_key.note(&change.key, at, &|index| &list[index].key);
        }
    }

    pub(crate) fn push(&mut self, change: Change<'c>) {
        assert_eq!(change.entry.row, self.next_at(), "I1: changes stand in order");
        let list = &self.list;
        self.by_key.note(&change.key, list.len(), &|index| &list[index].key);
        self.list.push(change);
    }

    /// The newest entry of a key this transaction changed.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyEntry> {
        self.span(key).map(|span| &self.list[span.last].entry)
    }

    fn span(&self, key: &[u8]) -> Option<Span> {
        self.by_key.get(key, &|index| &self.list[index].key)
    }

    fn walk<'s>(&'s self, from: &[u8]) -> impl Iterator<Item = (&'s [u8], Span)> + use<'s, 'c> {
        self.by_key.walk(from, &|index| &self.list[index].key)
    }

    /// A change by its future address.
    pub(crate) fn at(&self, at: Revision) -> Option<&Change<'c>> {
        if at.main == self.main {
            return self.list.get(self.first + at.sub as usize);
        }
        // Of an earlier command of the round.
        self.list.find(at)
    }

    /// Changed keys at or above `from`, in order.
    pub(crate) fn scan<'s>(&'s self, from: &[u8]) -> ChangeScan<'s> {
        Box::new(self.walk(from).map(|(key, span)| (key, &self.list[span.last].entry)))
    }

    /// Keys of the range that came alive less those that went.
    pub(crate) fn live_delta(&self, range: KeyRange<'_>) -> i64 {
        let delta = |span: Span| {
            i64::from(!self.list[span.last].entry.is_tombstone()) - i64::from(self.list[span.first].was_live)
        };
        match range {
            KeyRange::Single(key) => self.span(key).map_or(0, delta),
            range => {
                let inside = self.walk(range.start()).take_while(|(key, _)| !range.is_past(key));
                inside.map(|(_, span)| delta(span)).sum()
            }
        }
    }

    /// The same, with nothing borrowed from the command.
    pub(crate) fn into_owned(self) -> Changes<'static> {
        Changes { main: self.main, first: self.first, list: self.list.into_owned(), by_key: self.by_key }
    }

    /// How many changes there are, of all commands.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The changes in order, to be installed.
    pub(crate) fn into_rest(self) -> Rest<'c> {
        Rest { list: self.list.into_left(), by_key: self.by_key }
    }
}

/// Changes that are still to be installed. What they hold is freed as they are taken.
#[derive(Debug)]
pub(crate) struct Rest<'c> {
    list: ChangesLeft<'c>,
    by_key: KeyIndex,
}

impl<'c> Rest<'c> {
    pub(crate) fn take_next(&mut self) -> Option<Change<'c>> {
        self.by_key.free_one();
        self.list.next()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The same, with nothing borrowed from the command.
    pub(crate) fn into_owned(self) -> Rest<'static> {
        let mut list = ChangeList::default();
        self.list.for_each(|change| list.push(change.into_owned()));
        Rest { list: list.into_left(), by_key: self.by_key }
    }
}

/// A walk over changed keys.
pub(crate) type ChangeScan<'s> = Box<dyn Iterator<Item = (&'s [u8], &'s KeyEntry)> + 's>;

/// The address of change `index` of revision `main`.
pub(crate) fn next_at(main: i64, index: usize) -> Revision {
    Revision { main, sub: u32::try_from(index).expect("a command changes fewer than 2^32 keys") }
}
