//! The keyspace against the reference model: the same random operations, every answer and every change compared, with
//! commands and reads cut into slices of any size, readers that outlive writes and compactions, checkpoints, pages that
//! are missing at first use, and restarts, also in the middle of a command. `TRILITH_MODEL_OPS` scales the run.

use std::collections::BTreeMap;

use crate::budget::{Budget, Pause};
use crate::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, Entry, Op, Put, RangeQuery, SortOrder, SortTarget,
    Txn, append_command, begin_entry,
};
use crate::lease::Lease;
use crate::mvcc::check::{check_delete_range, check_put, check_range, check_txn};
use crate::mvcc::map_tree::{Pages, Random, Warm};
use crate::mvcc::model::{Answer, Answered, Event, Kv, Model};
use crate::mvcc::model_bed::{Backing, Maps};
use crate::mvcc::{
    DeleteOutcome, HashCursor, Keyspace, MvccError, OpOutcome, Pin, PutOutcome, RangeCursor, RowView, TxnCursor,
    TxnOutcome, TxnRange,
};
use crate::page_source::Unavailable;
use crate::store::Store;
use crate::store::key_entry::Revision;
use crate::store::row_log::RowLogRoot;

/// A read that is under way while other things happen, and what it must answer.
struct Reader {
    pin: Pin,
    kind: Kind,
}

enum Kind {
    Range { query: RangeQuery<'static>, cursor: RangeCursor, shown: Vec<Kv>, wanted: Answered },
    Txn { txn: Txn<'static>, cursor: TxnCursor, wanted: Answered },
    Hash { cursor: HashCursor, wanted: u32 },
}

/// What a command answered, the addresses in it not resolved yet.
enum Outcome {
    Op(OpOutcome),
    Plain(Answer),
}

struct Machine<B: Backing> {
    random: Random,
    space: Keyspace<B::Tree>,
    pages: Pages,
    model: Model,
    backing: B,
    readers: Vec<Reader>,
    /// Payloads of everything ever applied.
    log: Vec<Vec<u8>>,
    applied: u64,
    tally: BTreeMap<&'static str, u64>,
}

impl<B: Backing> Machine<B> {
    fn new(seed: u64) -> Self {
        let mut pages = Pages::default();
        let mut backing = B::new(&mut pages);
        let found = backing.restart(&mut pages);
        assert_eq!((found.rows, found.applied), (RowLogRoot::EMPTY, 0));
        Self {
            random: Random(seed),
            space: found.open(&pages.disk),
            pages,
            model: Model::new(),
            backing,
            readers: Vec::new(),
            log: Vec::new(),
            applied: 0,
            tally: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..4 => self.begin_checkpoint(),
            4..8 => self.restart(),
            8..300 => self.between(),
            _ => self.write(),
        }
    }

    /// What may happen in the middle of a command, too: readers see the state before it.
    fn between(&mut self) {
        match self.random.below(100) {
            0..3 => self.go_on(),
            3..9 => self.pages.resident.borrow_mut().clear(),
            9..15 => self.pages.disk.drain(self.space.rows_mut()),
            15..45 => self.read(),
            45..60 => self.begin_reader(),
            60..62 => self.check_leases(),
            _ => self.advance_reader(),
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// A budget for a slice.
    fn slice(&mut self) -> Budget {
        match self.random.below(3) {
            0 => Budget::new(self.random.below(20) as u32),
            1 => Budget::new(20 + self.random.below(500) as u32),
            _ => Budget::unlimited(),
        }
    }

    /// A range in one step; a small budget may say that it is too large.
    fn read(&mut self) {
        let query = self.query();
        check_range(&query).unwrap();
        let wanted = self.model.range(&query);
        let revision = self.space.published().revision;
        let mut budget = self.slice();
        let got = loop {
            match self.space.range(&query, &mut budget, &self.pages) {
                Ok(answer) => break answer,
                Err(Pause::Pages(Unavailable::Missing(_))) => {}
                Err(Pause::Budget) => {
                    assert!(budget.is_used_up());
                    budget = Budget::unlimited();
                }
                Err(error) => panic!("{error:?}"),
            }
        };
        let got = got.map(|outcome| Answer::Range {
            revision,
            kvs: outcome.rows.iter().map(kv).collect(),
            count: outcome.count,
            more: outcome.more,
        });
        assert_eq!(got, wanted, "{query:?}");
        self.note(if wanted.is_ok() { "range" } else { "range error" });
    }

    fn begin_reader(&mut self) {
        if self.readers.len() > 8 {
            return;
        }
        let (revision, kind) = match self.random.below(10) {
            0..6 => {
                let query = self.query();
                let wanted = self.model.range(&query);
                let cursor = match RangeCursor::new(&self.space, &query) {
                    Ok(cursor) => cursor,
                    Err(error) => return assert_eq!(Err(error), wanted, "{query:?}"),
                };
                (cursor.revision(), Kind::Range { query, cursor, shown: Vec::new(), wanted })
            }
            6..8 => {
                let (success, failure) = (self.ranges(), self.ranges());
                let txn =
                    Txn { compares: (0..self.random.below(3)).map(|_| self.compare()).collect(), success, failure };
                let wanted = self.model.clone().txn(&txn);
                let cursor = TxnCursor::new(&self.space);
                (cursor.revision_held(&self.space, &txn), Kind::Txn { txn, cursor, wanted })
            }
            8 => {
                let revision = self.revision();
                let compacted = revision > 0 && revision < self.model.compacted;
                let cursor = match HashCursor::new(&self.space, revision) {
                    Ok(cursor) => cursor,
                    Err(MvccError::FutureRevision) => return assert!(revision > self.model.revision),
                    Err(error) => return assert!(error == MvccError::Compacted && compacted),
                };
                assert!(!compacted && revision <= self.model.revision, "what was read can be read");
                let wanted = self.model.hash_kv(if revision == 0 { self.model.revision } else { revision });
                (cursor.revision_held(), Kind::Hash { cursor, wanted })
            }
            _ => {
                let mut cursor = HashCursor::whole(&self.space);
                let wanted = self.space.hash_kv_step(&mut cursor, &mut Budget::unlimited(), &Warm(&self.pages.disk));
                let cursor = HashCursor::whole(&self.space);
                (cursor.revision_held(), Kind::Hash { cursor, wanted: wanted.unwrap() })
            }
        };
        let pin = self.space.pin_at(revision);
        self.readers.push(Reader { pin, kind });
    }

    fn ranges(&mut self) -> Vec<Op<'static>> {
        (0..self.random.below(4)).map(|_| Op::Range(self.query())).collect()
    }

    /// A slice of one of the reads under way.
    fn advance_reader(&mut self) {
        if self.readers.is_empty() {
            return;
        }
        let index = self.random.below(self.readers.len() as u64) as usize;
        let mut budget = self.slice();
        let Reader { pin, mut kind } = self.readers.swap_remove(index);
        let paused = match &mut kind {
            Kind::Range { query, cursor, shown, wanted } => {
                let show = &mut |row: RowView<'_>| shown.push(kv(&row));
                self.space.range_step(query, cursor, &mut budget, &self.pages, show).map(|list| {
                    let resolved = list.rows.iter().map(|at| kv(&list.shape.show(self.row(*at))));
                    assert_eq!(&resolved.collect::<Vec<_>>(), shown, "each row is shown once and in order");
                    let bytes = shown.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum::<u64>();
                    assert_eq!(list.key_value_bytes, bytes);
                    let (revision, kvs) = (list.revision, std::mem::take(shown));
                    let got = Ok(Answer::Range { revision, kvs, count: list.count, more: list.more });
                    assert_eq!(&got, wanted, "{query:?}");
                    "range reader"
                })
            }
            Kind::Txn { txn, cursor, wanted } => {
                self.space.read_txn_step(txn, cursor, &mut budget, &self.pages).map(|got| {
                    let got = got.map(|outcome| self.resolve(&OpOutcome::Txn(outcome)));
                    assert_eq!(&got, wanted, "{txn:?} without the log");
                    "txn reader"
                })
            }
            Kind::Hash { cursor, wanted } => self.space.hash_kv_step(cursor, &mut budget, &self.pages).map(|got| {
                assert_eq!(got, *wanted, "HashKV at {}, compacted {}", cursor.revision(), cursor.compacted());
                "hash reader"
            }),
        };
        match paused {
            Ok(what) => {
                self.space.unpin(pin);
                self.note(what);
            }
            Err(Pause::Budget | Pause::Pages(Unavailable::Missing(_))) => self.readers.push(Reader { pin, kind }),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn check_leases(&self) {
        if self.space.is_mid_command() {
            return;
        }
        let leases: BTreeMap<i64, Lease> = self.space.leases().iter().collect();
        assert_eq!(leases, self.model.leases);
        let pages = Warm(&self.pages.disk);
        for &id in leases.keys() {
            let mut attached = self.space.leases().attached(id, b"", &pages).unwrap();
            let keys = std::iter::from_fn(|| attached.next_key().unwrap().map(<[u8]>::to_vec)).collect::<Vec<_>>();
            assert_eq!(keys, self.model.attached(id), "keys of lease {id}");
        }
    }

    fn write(&mut self) {
        let command = self.command();
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 1, self.applied);
        append_command(&mut payload, &command);
        let got = self.apply(&payload, true);
        let before = self.model.revision;
        let wanted = match &command {
            Command::Put(put) => self.model.put(put),
            Command::DeleteRange(del) => self.model.delete(del),
            Command::Txn(txn) => self.model.txn(txn),
            Command::Compact { revision } => self.model.compact(*revision),
            Command::LeaseGrant { id, ttl } => self.model.grant(*id, *ttl),
            Command::LeaseRevoke { id } => self.model.revoke(*id),
            Command::LeaseCheckpoint { id, remaining } => self.model.checkpoint(*id, *remaining),
            other => unreachable!("{other:?} is not generated"),
        };
        assert_eq!(got, wanted, "{command:?}");
        let revision = self.space.state().revision;
        assert_eq!((revision, self.space.state().compacted), (self.model.revision, self.model.compacted));
        assert!(revision == before || self.events(revision) == self.model.events, "events of {command:?}");
        let what = match (&command, &wanted) {
            (Command::Put(_), Ok(_)) => "put",
            (Command::DeleteRange(_), Ok(_)) => "delete",
            (Command::Txn(_), Ok(_)) => "txn",
            (Command::Txn(_), Err(_)) => "txn error",
            (Command::Compact { .. }, Ok(_)) => "compact",
            (Command::LeaseGrant { .. }, Ok(_)) => "grant",
            (Command::LeaseRevoke { .. }, Ok(_)) => "revoke",
            (Command::LeaseCheckpoint { .. }, Ok(_)) => "checkpoint",
            _ => "error",
        };
        self.note(what);
        self.log.push(payload);
    }

    /// The changes of a revision, in order.
    fn events(&self, revision: i64) -> Vec<Event> {
        let (mut events, mut next) = (Vec::new(), Revision { main: revision, sub: 0 });
        while let Some(row) = self.space.rows().row_from(next, &self.pages.disk).unwrap() {
            assert_eq!((row.at.main, row.at.sub as usize), (revision, events.len()), "subs without a gap");
            let view = RowView {
                key: row.key,
                value: row.value,
                create: row.create,
                modified: row.at.main,
                version: row.version,
                lease: row.lease,
            };
            events.push((row.key.to_vec(), (!row.is_tombstone()).then(|| kv(&view))));
            next.sub += 1;
        }
        events
    }

    /// Applies a payload as a replica does, in slices, and resolves the addresses of its answer.
    fn apply(&mut self, payload: &[u8], live: bool) -> Answered {
        let before = (self.space.state().revision, self.space.published());
        let got = loop {
            let mut budget = if live { self.slice() } else { Budget::unlimited() };
            let mut entry = Entry::decode(payload).unwrap();
            let command = entry.next_command().unwrap().unwrap();
            match self.apply_slice(&command, &mut budget) {
                Ok(got) => break got,
                Err(Pause::Budget) => assert!(self.space.is_mid_command() && budget.is_used_up()),
                Err(Pause::Pages(Unavailable::Missing(_))) => {}
                Err(error) => panic!("{error:?}"),
            }
            let after = (self.space.state().revision, self.space.published());
            assert_eq!(before, after, "nothing of a command that paused is visible");
            if live {
                self.note("pause");
                match self.random.below(100) {
                    0 => self.restart(),
                    _ => self.between(),
                }
            }
        };
        assert!(!self.space.is_mid_command());
        self.applied += 1;
        self.space.publish(self.applied);
        got.map(|outcome| match outcome {
            Outcome::Op(outcome) => self.resolve(&outcome),
            Outcome::Plain(answer) => answer,
        })
    }

    fn apply_slice(&mut self, command: &Command<'_>, budget: &mut Budget) -> Result<Result<Outcome, MvccError>, Pause> {
        let (space, pages) = (&mut self.space, &self.pages);
        let op = Outcome::Op;
        Ok(match command {
            Command::Put(put) => space.apply_put(put, budget, pages)?.map(OpOutcome::Put).map(op),
            Command::DeleteRange(del) => {
                space.apply_delete_range(del, budget, pages)?.map(OpOutcome::DeleteRange).map(op)
            }
            Command::Txn(txn) => space.apply_txn(txn, budget, pages)?.map(OpOutcome::Txn).map(op),
            Command::Compact { revision } => space
                .apply_compact(*revision)
                .map(|outcome| Outcome::Plain(Answer::Compact { revision: outcome.revision })),
            Command::LeaseGrant { id, ttl } => {
                space.apply_lease_grant(*id, *ttl).map(|()| Outcome::Plain(Answer::Grant))
            }
            Command::LeaseCheckpoint { id, remaining } => {
                space.apply_lease_checkpoint(*id, *remaining);
                Ok(Outcome::Plain(Answer::Checkpoint))
            }
            Command::LeaseRevoke { id } => space
                .apply_lease_revoke(*id, budget, pages)?
                .map(|outcome| Outcome::Plain(Answer::Revoke { revision: outcome.revision, deleted: outcome.deleted })),
            other => unreachable!("{other:?} is not generated"),
        })
    }

    fn row(&self, at: Revision) -> RowView<'_> {
        self.space.row(at, &self.pages.disk).unwrap()
    }

    fn resolve(&self, outcome: &OpOutcome) -> Answer {
        match outcome {
            OpOutcome::Range(TxnRange { revision, rows, count, more, shape }) => Answer::Range {
                revision: *revision,
                kvs: rows.iter().map(|at| kv(&shape.show(self.row(*at)))).collect(),
                count: *count,
                more: *more,
            },
            OpOutcome::Put(PutOutcome { revision, prev }) => {
                Answer::Put { revision: *revision, prev: prev.map(|at| kv(&self.row(at))) }
            }
            OpOutcome::DeleteRange(DeleteOutcome { revision, deleted, prev }) => Answer::Delete {
                revision: *revision,
                deleted: *deleted,
                prev: prev.iter().map(|at| kv(&self.row(*at))).collect(),
            },
            OpOutcome::Txn(TxnOutcome { revision, succeeded, responses }) => Answer::Txn {
                revision: *revision,
                succeeded: *succeeded,
                answers: responses.iter().map(|outcome| self.resolve(outcome)).collect(),
            },
        }
    }

    fn begin_checkpoint(&mut self) {
        if self.space.frozen().is_some() {
            return;
        }
        self.space.freeze();
        let rows = self.space.rows_mut().handle_checkpoint();
        self.pages.disk.drain(self.space.rows_mut());
        assert!(self.space.rows().is_written_through(rows.last_token));
        self.backing.begin(&mut self.space, rows, self.applied, &mut self.random);
    }

    fn go_on(&mut self) {
        for _ in 0..self.random.below(200) {
            if self.space.frozen().is_none() {
                return;
            }
            if let Some((keys, leases)) = self.backing.go_on(&mut self.space, &mut self.pages) {
                let mut retired = self.space.install_trees(keys, leases).unwrap();
                while !retired.free_slice() {}
                self.note("checkpoint");
            }
        }
    }

    /// A crash: the last durable checkpoint and the log after it yield the same state.
    fn restart(&mut self) {
        let before = (self.space.published().revision, self.applied);
        let whole = (!self.space.is_mid_command()).then(|| self.space.state());
        self.readers.clear();
        if self.random.one_in(2) {
            self.pages.disk.drain(self.space.rows_mut());
        }
        self.pages.resident.borrow_mut().clear();
        let found = self.backing.restart(&mut self.pages);
        let applied = found.applied;
        self.space = found.open(&self.pages.disk);
        self.applied = applied;
        let log = std::mem::take(&mut self.log);
        for payload in &log[applied as usize..] {
            // What it answers was compared when it was first applied.
            let _: Answered = self.apply(payload, false);
        }
        self.log = log;
        assert_eq!((self.space.published().revision, self.applied), before, "what was applied survives a restart");
        assert!(whole.is_none_or(|state| state == self.space.state()), "so do compaction and digest");
        self.check_leases();
        self.note("restart");
    }

    fn command(&mut self) -> Command<'static> {
        loop {
            match self.random.below(100) {
                0..50 => {
                    let put = self.put();
                    if check_put(&put).is_ok() {
                        return Command::Put(put);
                    }
                }
                50..65 => {
                    let del = self.delete();
                    check_delete_range(&del).unwrap();
                    return Command::DeleteRange(del);
                }
                65..93 => {
                    let txn = self.transaction(1);
                    if check_txn(&txn, 128).is_ok() {
                        return Command::Txn(txn);
                    }
                }
                93..95 => return Command::LeaseGrant { id: self.lease(), ttl: 1 + self.random.below(9) as i64 },
                95..97 => return Command::LeaseRevoke { id: self.lease() },
                97 => return Command::LeaseCheckpoint { id: self.lease(), remaining: self.random.below(3) as i64 },
                _ => return Command::Compact { revision: self.revision() },
            }
        }
    }

    fn transaction(&mut self, depth: u64) -> Txn<'static> {
        let compares = (0..self.random.below(3)).map(|_| self.compare()).collect();
        Txn { compares, success: self.ops(depth), failure: self.ops(depth) }
    }

    fn ops(&mut self, depth: u64) -> Vec<Op<'static>> {
        let mut ops = Vec::new();
        for _ in 0..self.random.below(5) {
            let op = match self.random.below(if depth < 4 { 10 } else { 8 }) {
                0..3 => Op::Range(self.query()),
                3..6 => Op::Put(self.put()),
                6..8 => Op::DeleteRange(self.delete()),
                _ => Op::Txn(self.transaction(depth + 1)),
            };
            ops.push(op);
        }
        ops
    }

    fn compare(&mut self) -> Compare<'static> {
        use CompareResult::{Equal, Greater, Less, NotEqual, Unknown};
        Compare {
            key: self.key(),
            range_end: self.range_end(),
            result: [Equal, Greater, Less, NotEqual, Equal, Less, Greater, NotEqual, Unknown]
                [self.random.below(9) as usize],
            target: match self.random.below(11) {
                0..2 => CompareTarget::Version(self.random.below(4) as i64),
                2..4 => CompareTarget::Create(self.revision()),
                4..6 => CompareTarget::Mod(self.revision()),
                6..9 => CompareTarget::Value(self.value()),
                9 => CompareTarget::Lease(self.random.below(2) as i64 * self.lease()),
                _ => CompareTarget::Unknown,
            },
        }
    }

    fn query(&mut self) -> RangeQuery<'static> {
        use SortTarget::{Create, Key, Mod, Value, Version};
        let mut query = RangeQuery { key: self.key(), range_end: self.range_end(), ..RangeQuery::default() };
        if self.random.one_in(3) {
            query.limit = [-1, 1, 2, 3, 5, 8, i64::MAX][self.random.below(7) as usize];
        }
        if self.random.one_in(3) {
            query.revision = self.revision();
        }
        if self.random.one_in(3) {
            query.sort_order = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.random.below(3) as usize];
            query.sort_target = [Key, Version, Create, Mod, Value][self.random.below(5) as usize];
        }
        query.keys_only = self.random.one_in(5);
        query.count_only = self.random.one_in(6);
        if self.random.one_in(4) {
            for bound in [
                &mut query.min_mod_revision,
                &mut query.max_mod_revision,
                &mut query.min_create_revision,
                &mut query.max_create_revision,
            ] {
                if self.random.one_in(2) {
                    *bound = self.model.revision - self.random.below(60) as i64;
                }
            }
        }
        query
    }

    fn put(&mut self) -> Put<'static> {
        let ignore_value = self.random.one_in(8);
        Put {
            key: self.key(),
            value: if ignore_value { b"" } else { self.value() },
            lease: if self.random.one_in(5) { self.lease() } else { 0 },
            prev_kv: self.random.one_in(3),
            ignore_value,
            ignore_lease: self.random.one_in(10),
        }
    }

    fn lease(&mut self) -> i64 {
        [i64::MIN, -2, 1, 2, 3, i64::MAX][self.random.below(6) as usize]
    }

    fn delete(&mut self) -> DeleteRange<'static> {
        DeleteRange { key: self.key(), range_end: self.range_end(), prev_kv: self.random.one_in(2) }
    }

    fn key(&mut self) -> &'static [u8] {
        const KEYS: [&[u8]; 24] = [
            b"a",
            b"a\0",
            b"a\0\0",
            b"ab",
            b"abc",
            b"abd",
            b"b",
            b"\0",
            b"\xff",
            b"\xff\xff",
            b"/r/pods/1",
            b"/r/pods/2",
            b"/r/pods/20",
            b"/r/pods/3",
            b"/r/svc/1",
            b"/r/svc/2",
            b"/r/svc/2/x",
            b"/s",
            b"m",
            b"n",
            b"o",
            b"p",
            b"q",
            b"z",
        ];
        KEYS[self.random.below(24) as usize]
    }

    fn range_end(&mut self) -> &'static [u8] {
        match self.random.below(10) {
            0..4 => b"",
            4 => b"\0",
            5 => b"/r/pods0",
            6 => b"/s",
            _ => self.key(),
        }
    }

    fn value(&mut self) -> &'static [u8] {
        const BIG: &[u8] = &[b'v'; 9000];
        [b"".as_slice(), b"1", b"2", b"22", &BIG[..300], &BIG[..700], &BIG[..700], BIG][self.random.below(8) as usize]
    }

    /// Mostly a revision that can be read; some that cannot.
    fn revision(&mut self) -> i64 {
        let (low, high) = (self.model.compacted, self.model.revision);
        match self.random.below(20) {
            0 => high + 1,
            1 => low - 1,
            2 => 0,
            3 => low,
            4 => high,
            5 => -self.random.below(3).cast_signed(),
            _ => low.max(high - 300) + self.random.below((high - low.max(high - 300) + 1).cast_unsigned()) as i64,
        }
    }
}

fn kv(row: &RowView<'_>) -> Kv {
    Kv {
        key: row.key.to_vec(),
        value: row.value.to_vec(),
        create: row.create,
        modified: row.modified,
        version: row.version,
        lease: row.lease,
    }
}

fn run<B: Backing>(ops: u64) {
    let ops = std::env::var("TRILITH_MODEL_OPS").map_or(ops, |ops| ops.parse().unwrap());
    // Nothing is reclaimed here: a run ends before its rows fill the table of small segments.
    let seeds = (ops / 200_000).max(5);
    let mut tally = BTreeMap::new();
    for seed in 1..=seeds {
        let mut machine = Machine::<B>::new(seed * 7919);
        for _ in 0..ops / seeds {
            machine.step();
        }
        machine.restart();
        assert!(machine.pages.misses.get() > 100, "pages were missing at times");
        for (what, count) in machine.tally {
            *tally.entry(what).or_insert(0) += count;
        }
    }
    const ALL: [&str; 16] = [
        "range",
        "range error",
        "put",
        "delete",
        "txn",
        "txn error",
        "compact",
        "grant",
        "revoke",
        "error",
        "pause",
        "range reader",
        "txn reader",
        "hash reader",
        "checkpoint",
        "restart",
    ];
    for what in ALL {
        assert!(tally.get(what).is_some_and(|&count| count >= 10), "{what} is exercised: {tally:?}");
    }
}

#[test]
fn answers_like_the_model_over_an_ordered_map() {
    run::<Maps>(50_000);
}

#[test]
fn answers_like_the_model_over_the_store() {
    run::<Store>(50_000);
}
