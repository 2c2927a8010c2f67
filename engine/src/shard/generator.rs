//! Random commands and reads over a small key space, for tests.

use crate::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, Op, Put, RangeQuery, SortOrder, SortTarget, Txn,
};
use crate::mvcc::check::{check_put, check_txn};
use crate::mvcc::map_tree::Random;

pub(super) const KEYS: [&[u8]; 22] = [
    b"a",
    b"a\0",
    b"ab",
    b"abc",
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

pub(super) const LEASES: [i64; 4] = [1, 2, 3, -4];

/// What a generator goes by.
pub(super) struct Generator<'r> {
    pub(super) random: &'r mut Random,
    /// About the newest revision.
    pub(super) revision: i64,
    /// The compacted revision.
    pub(super) compacted: i64,
}

impl Generator<'_> {
    pub(super) fn command(&mut self) -> Command<'static> {
        loop {
            match self.random.below(100) {
                0..50 => {
                    let put = self.put();
                    if check_put(&put).is_ok() {
                        return Command::Put(put);
                    }
                }
                50..60 => return Command::DeleteRange(self.delete()),
                60..93 => {
                    let txn = self.txn(1);
                    if check_txn(&txn, 128).is_ok() {
                        return Command::Txn(txn);
                    }
                }
                93..95 => return Command::LeaseGrant { id: self.lease(), ttl: 60 },
                95..97 => return Command::LeaseRevoke { id: self.lease() },
                97 => return Command::LeaseCheckpoint { id: self.lease(), remaining: self.random.below(3) as i64 },
                _ => return Command::Compact { revision: self.revision() },
            }
        }
    }

    fn txn(&mut self, depth: u64) -> Txn<'static> {
        if depth == 1 && self.random.one_in(2) {
            return self.guarded_write();
        }
        if depth == 1 && self.random.one_in(20) {
            return self.failing_write();
        }
        let compares = (0..self.random.below(3)).map(|_| self.compare()).collect();
        Txn { compares, success: self.ops(depth), failure: self.ops(depth) }
    }

    /// What most clients send: one key compared and written.
    fn guarded_write(&mut self) -> Txn<'static> {
        let key = self.key();
        let compare = Compare { key, range_end: b"", ..self.compare() };
        let success = if self.random.one_in(4) {
            Op::DeleteRange(DeleteRange { key, range_end: b"", prev_kv: true })
        } else {
            Op::Put(Put { key, value: self.value(), ..Put::default() })
        };
        let failure = Op::Range(RangeQuery { key, revision: self.asked_revision(), ..RangeQuery::default() });
        Txn { compares: vec![compare], success: vec![success], failure: vec![failure] }
    }

    /// A put that can fail only after the delete before it ran.
    fn failing_write(&mut self) -> Txn<'static> {
        let key = self.key();
        let delete = Op::DeleteRange(DeleteRange { key: self.key(), range_end: b"\0", prev_kv: true });
        let put = Op::Put(Put { key, ignore_value: true, ..Put::default() });
        Txn { success: vec![Op::Range(self.query()), delete, put], ..Txn::default() }
    }

    fn ops(&mut self, depth: u64) -> Vec<Op<'static>> {
        let mut ops = Vec::new();
        for _ in 0..self.random.below(5) {
            let op = match self.random.below(if depth < 4 { 10 } else { 8 }) {
                0..3 => Op::Range(self.query()),
                3..6 => Op::Put(self.put()),
                6..8 => Op::DeleteRange(self.delete()),
                _ => Op::Txn(self.txn(depth + 1)),
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
            result: self.random.pick(&[Equal, Greater, Less, NotEqual, Equal, Less, Greater, NotEqual, Unknown]),
            target: match self.random.below(11) {
                0..2 => CompareTarget::Version(self.random.below(4) as i64),
                2..4 => CompareTarget::Create(self.revision()),
                4..7 => CompareTarget::Mod(self.revision()),
                7..9 => CompareTarget::Value(self.value()),
                9 => CompareTarget::Lease(self.lease()),
                _ => CompareTarget::Unknown,
            },
        }
    }

    pub(super) fn query(&mut self) -> RangeQuery<'static> {
        use SortTarget::{Create, Key, Mod, Value, Version};
        let mut query = RangeQuery { key: self.key(), range_end: self.range_end(), ..RangeQuery::default() };
        if self.random.one_in(2) {
            query.limit = self.random.pick(&[-1, 1, 2, 3, 5, 8, i64::MAX]);
        }
        query.revision = self.asked_revision();
        if self.random.one_in(2) {
            query.sort_order = self.random.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
            query.sort_target = self.random.pick(&[Key, Version, Create, Mod, Value]);
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
                    *bound = self.revision + 2 - self.random.below(60) as i64;
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
            lease: if self.random.one_in(6) { self.lease() } else { 0 },
            prev_kv: self.random.one_in(3),
            ignore_value,
            ignore_lease: self.random.one_in(10),
        }
    }

    fn delete(&mut self) -> DeleteRange<'static> {
        DeleteRange { key: self.key(), range_end: self.range_end(), prev_kv: self.random.one_in(2) }
    }

    fn key(&mut self) -> &'static [u8] {
        self.random.pick(&KEYS)
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

    fn lease(&mut self) -> i64 {
        self.random.pick(&LEASES)
    }

    fn value(&mut self) -> &'static [u8] {
        const BIG: &[u8] = &[b'v'; 5000];
        self.random.pick(&[b"".as_slice(), b"1", b"2", b"22", &BIG[..300], &BIG[..700], BIG])
    }

    fn asked_revision(&mut self) -> i64 {
        if self.random.one_in(3) { self.revision() } else { 0 }
    }

    /// Mostly a revision that can be read, often one of the batch at hand; some that cannot.
    fn revision(&mut self) -> i64 {
        let (low, high) = (self.compacted, self.revision);
        match self.random.below(20) {
            0 => high + 1,
            1 => low - 1,
            2 => 0,
            3 => low,
            4..6 => high,
            6 => -self.random.below(3).cast_signed(),
            7..12 => high - self.random.below(6) as i64,
            _ => low.max(high - 300) + self.random.below((high - low.max(high - 300) + 1).cast_unsigned()) as i64,
        }
    }
}
