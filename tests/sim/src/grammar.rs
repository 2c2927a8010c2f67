//! The workload's grammar: draws requests of every shape that the API has, right and wrong ones.
//!
//! Owns: shapes and their frequencies. Does not know: connections, whether answers are right.
//!
//! Invariants
//! - I1: a compaction never reaches a revision whose maker may be in doubt, unless it is certain to be refused.

use crate::arguments::{TTL_MAX, TXN_OPS_MAX};
use crate::checker::{Checker, FAR_FUTURE};
use crate::history::{
    AlarmAction, CORRUPT, Compare, Delete, NOSPACE, Put, Range, Relation, Request, SortOrder, SortTarget, Target, Txn,
};
use crate::model::KeyRange;
use crate::rng::Rng;
use crate::value::unique_value;
use crate::watch::WatchSpec;
use crate::weather::{LARGE_EVERY, Workload, draw_weighted};

/// Values in transactions are shorter, so that several of them fit a request.
const TXN_VALUE_BYTES_MAX: u64 = 600;
/// Nested transactions go so deep.
const DEPTH_MAX: u64 = 3;
/// Digits of a key's number.
const KEY_DIGITS: usize = 5;
/// Ids that clients choose for their leases.
const LEASE_IDS: [i64; 5] = [7, 40, -1, i64::MIN, i64::MAX];
/// Beyond so many keys, reads of all are rare.
const MANY_KEYS: u64 = 200;

/// Draws from one workload with what the checker knows.
#[derive(Debug)]
pub struct Grammar<'a> {
    /// The shapes and sizes.
    pub workload: &'a Workload,
    /// Revisions and operation numbers.
    pub checker: &'a Checker,
    /// Luck.
    pub rng: &'a mut Rng,
}

impl Grammar<'_> {
    /// The next request.
    pub fn request(&mut self) -> Request {
        match draw_weighted(self.rng, &self.workload.weights) {
            0 => Request::Put(self.put()),
            1 => Request::Range(self.read()),
            2 => Request::Delete(self.delete()),
            3 => {
                let lease = self.lease_to_attach();
                Request::Txn(self.txn((0, lease), &mut Vec::new()))
            }
            4 => self.compaction(),
            5 => self.mistake(),
            6 => self.maintenance(),
            7 => self.bulk(),
            8 => self.alarm(),
            _ => self.lease(),
        }
    }

    /// The next watcher.
    pub fn watch(&mut self) -> WatchSpec {
        let key = self.key();
        // Who watches everything is told everything: few do.
        let range = match self.rng.below(16) {
            0..7 => KeyRange::single(key),
            7..10 => prefix_range(&key),
            10 => KeyRange { key, range_end: vec![0] },
            11 => KeyRange { key: Vec::new(), range_end: vec![0] },
            12 => KeyRange { key: Vec::new(), range_end: key },
            _ => KeyRange { key, range_end: self.key() },
        };
        let newest = self.checker.highest_returned().max(1);
        let start_revision = match self.rng.below(20) {
            0..8 => 0,
            8..11 => newest + self.rng.log_between(1, 200) as i64,
            11 => -(self.rng.between(1, 2) as i64),
            12..14 => (self.checker.compaction_asked() - 1 + self.rng.below(3) as i64).max(0),
            14 => self.rng.between(1, newest as u64) as i64,
            _ => (newest - self.rng.log_between(1, 300) as i64).max(1),
        };
        WatchSpec {
            range,
            start_revision,
            watch_id: if self.rng.chance(150) { self.rng.between(1, 6) as i64 } else { 0 },
            prev_kv: self.rng.chance(400),
            no_put: self.rng.chance(100),
            no_delete: self.rng.chance(150),
            fragment: self.rng.chance(300),
            progress_notify: self.rng.chance(400),
        }
    }

    fn key(&mut self) -> Vec<u8> {
        let number = self.rng.below(self.workload.keys);
        format!("k{number:0KEY_DIGITS$}").into_bytes()
    }

    fn range(&mut self) -> KeyRange {
        let key = self.key();
        // With many keys, most reads are of few.
        let kinds = if self.workload.keys > MANY_KEYS && !self.rng.chance(30) { 2 } else { 7 };
        let range_end = match self.rng.below(kinds) {
            0 if kinds == 2 => return prefix_range(&key),
            0 | 1 => Vec::new(),
            2 => self.key(),
            3 => vec![0],
            4 => return prefix_range(&key),
            5 => key.clone(),
            _ => return KeyRange::everything(),
        };
        KeyRange { key, range_end }
    }

    fn value(&mut self, len_max: u64) -> Vec<u8> {
        let len = match self.rng.below(20) {
            0 => self.rng.below(12),
            1..6 => 12,
            _ => self.rng.log_between(12, len_max.max(12)),
        };
        unique_value(self.checker.next_operation(), len as usize)
    }

    fn put(&mut self) -> Put {
        let key = self.key();
        let large = self.workload.large_value_bytes_max;
        let value = if large > 0 && self.rng.below(LARGE_EVERY) == 0 {
            let len = self.rng.log_between(self.workload.value_bytes_max, large) as usize;
            unique_value(self.checker.next_operation(), len)
        } else {
            self.value(self.workload.value_bytes_max)
        };
        let mut put = Put { key, value, prev_kv: self.rng.chance(200), ..Put::default() };
        self.keep_something(&mut put);
        let lease = self.lease_to_attach();
        self.attach(&mut put, lease);
        put
    }

    /// Some puts attach their key to a lease, where there are any; those of a transaction to the same.
    fn attach(&mut self, put: &mut Put, lease: i64) {
        if self.workload.leases_max > 0 {
            put.lease = 0;
            if !put.ignore_lease && self.rng.chance(self.workload.attach_per_mille) {
                put.lease = lease;
            }
        }
    }

    fn lease_to_attach(&mut self) -> i64 {
        if self.workload.leases_max > 0 { self.lease_id() } else { 0 }
    }

    /// A lease that somebody may take to be alive, or one of few ids that clients choose.
    fn lease_id(&mut self) -> i64 {
        let alive = self.checker.leases_alive();
        // Who comes when a lease is about to end meets it half gone.
        if let Some(id) = self.checker.lease_next_to_end().filter(|_| self.rng.chance(250)) {
            return id;
        }
        if !alive.is_empty() && !self.rng.chance(80) {
            let position = self.rng.index(alive.len());
            return *alive.iter().nth(position).expect("a position in it");
        }
        LEASE_IDS[self.rng.index(LEASE_IDS.len())]
    }

    fn lease(&mut self) -> Request {
        let has_room = self.checker.leases_alive().len() < self.workload.leases_max;
        match self.rng.below(20) {
            0..6 if has_room => {
                let id = if self.rng.chance(300) { LEASE_IDS[self.rng.index(LEASE_IDS.len())] } else { 0 };
                Request::LeaseGrant { id, ttl: self.time_to_live() }
            }
            0..9 => Request::LeaseKeepAlive { id: self.lease_id(), is_alone: self.rng.chance(200) },
            9..12 => Request::LeaseTimeToLive { id: self.lease_id(), keys: self.rng.chance(600) },
            12..14 => Request::LeaseLeases,
            14..16 => Request::LeaseRevoke { id: self.lease_id() },
            _ => {
                let mut put = self.put();
                if !put.ignore_lease {
                    put.lease = self.lease_id();
                }
                Request::Put(put)
            }
        }
    }

    /// Mostly short, so that leases end; in seconds.
    fn time_to_live(&mut self) -> i64 {
        match self.rng.below(24) {
            0 => 0,
            1 => -5,
            2 => TTL_MAX + 1,
            3 => TTL_MAX,
            4..6 => 60,
            _ => self.rng.log_between(1, 4) as i64,
        }
    }

    /// Some puts keep what is there; few name a lease, which does not exist.
    fn keep_something(&mut self, put: &mut Put) {
        match self.rng.below(60) {
            0..3 => {
                put.ignore_value = true;
                put.value.clear();
            }
            3..6 => put.ignore_lease = true,
            6 => {
                (put.ignore_value, put.ignore_lease) = (true, true);
                put.value.clear();
            }
            7 => put.lease = 7,
            _ => {}
        }
    }

    fn delete(&mut self) -> Delete {
        let range = if self.rng.chance(700) { KeyRange::single(self.key()) } else { self.range() };
        Delete { range, prev_kv: self.rng.chance(300) }
    }

    fn read(&mut self) -> Range {
        let revision = if self.rng.chance(300) { self.past_revision() } else { 0 };
        let mut range = self.read_of(revision);
        range.serializable = self.rng.chance(300);
        range
    }

    /// A revision that was, or nearly: around the newest, around the compacted one, or any.
    fn past_revision(&mut self) -> i64 {
        let newest = self.checker.highest_returned().max(1);
        match self.rng.below(8) {
            0 => newest + self.rng.between(1, 3) as i64,
            1 => -(self.rng.below(3) as i64),
            2 => self.checker.compaction_asked() - 1 + self.rng.below(3) as i64,
            3..6 => (newest - self.rng.below(20) as i64).max(1),
            _ => self.rng.between(self.checker.compaction_asked().clamp(1, newest) as u64, newest as u64) as i64,
        }
    }

    fn read_of(&mut self, revision: i64) -> Range {
        let mut read = Range::whole(self.range(), revision);
        if self.rng.chance(300) {
            read.limit = self.rng.between(1, 5) as i64;
        }
        read.keys_only = self.rng.chance(100);
        read.count_only = self.rng.chance(100);
        if self.rng.chance(250) {
            let targets =
                [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
            read.target = targets[self.rng.index(targets.len())];
            read.order = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.rng.index(3)];
        }
        if self.rng.chance(100) {
            let newest = self.checker.highest_returned().max(1) as u64;
            for bound in [&mut read.min_mod, &mut read.max_mod, &mut read.min_create, &mut read.max_create] {
                if self.rng.chance(400) {
                    *bound = self.rng.below(newest + 1) as i64;
                }
            }
        }
        read
    }

    fn compare(&mut self) -> Compare {
        let relations = [
            Relation::Equal,
            Relation::Greater,
            Relation::Less,
            Relation::NotEqual,
            Relation::Equal,
            Relation::Equal,
            Relation::Unknown,
        ];
        let relation = relations[self.rng.index(relations.len())];
        let revision = self.rng.below(self.checker.highest_returned().max(1) as u64 + 2) as i64;
        let target = match self.rng.below(20) {
            0..5 => Target::Version(self.rng.below(4) as i64),
            5..8 => Target::Create(if self.rng.chance(500) { 0 } else { revision }),
            8..12 => Target::Mod(revision),
            12 if self.workload.leases_max > 0 => Target::Lease(self.lease_id()),
            12 => Target::Lease(self.rng.below(2) as i64),
            13 => Target::VersionMismatched,
            14 => Target::ValueMismatched,
            15 => Target::Unknown,
            _ => Target::Value(unique_value(self.rng.below(self.checker.next_operation() + 1), 12)),
        };
        let range = if self.rng.chance(850) { KeyRange::single(self.key()) } else { self.range() };
        Compare { range, relation, target }
    }

    /// Rarely is a key put twice, or both put and deleted, which is refused.
    fn txn(&mut self, (depth, lease): (u64, i64), written: &mut Vec<Vec<u8>>) -> Txn {
        let compares = (0..self.rng.below(3)).map(|_| self.compare()).collect();
        let reads_only = depth == 0 && self.rng.chance(150);
        let mut branch = |grammar: &mut Self| {
            (0..grammar.rng.below(5)).map(|_| grammar.txn_operation((depth, lease), reads_only, written)).collect()
        };
        let success = branch(self);
        let failure = branch(self);
        Txn { compares, success, failure }
    }

    fn txn_operation(&mut self, (depth, lease): (u64, i64), reads_only: bool, written: &mut Vec<Vec<u8>>) -> Request {
        let key = self.key();
        let is_again = written.contains(&key) && !self.rng.chance(20);
        if reads_only || is_again || self.rng.chance(350) {
            let revision = if self.rng.chance(100) { self.past_revision() } else { 0 };
            let mut read = self.read_of(revision);
            read.serializable = self.rng.chance(300);
            return Request::Range(read);
        }
        if depth + 1 < DEPTH_MAX && self.rng.chance(150) {
            return Request::Txn(self.txn((depth + 1, lease), written));
        }
        if self.rng.chance(400) {
            let range = if self.rng.chance(800) { KeyRange::single(key.clone()) } else { self.range() };
            written.push(key);
            return Request::Delete(Delete { range, prev_kv: self.rng.chance(300) });
        }
        written.push(key.clone());
        let value = self.value(self.workload.value_bytes_max.min(TXN_VALUE_BYTES_MAX));
        let mut put = Put { key, value, prev_kv: self.rng.chance(200), ..Put::default() };
        if self.rng.chance(200) {
            self.keep_something(&mut put);
        }
        self.attach(&mut put, lease);
        Request::Put(put)
    }

    /// As many keys as fit one transaction.
    fn bulk(&mut self) -> Request {
        let first = self.rng.below(self.workload.keys);
        let count = TXN_OPS_MAX as u64 / 2 + self.rng.below(TXN_OPS_MAX as u64 / 2 + 1);
        let puts = (first..(first + count).min(self.workload.keys)).map(|number| {
            let key = format!("k{number:0KEY_DIGITS$}").into_bytes();
            Request::Put(Put { key, value: unique_value(self.checker.next_operation(), 20), ..Put::default() })
        });
        Request::Txn(Txn { compares: Vec::new(), success: puts.collect(), failure: Vec::new() })
    }

    fn compaction(&mut self) -> Request {
        let newest = self.checker.contiguous_revision();
        let physical = self.rng.chance(200);
        if self.rng.chance(80) {
            return Request::Compact { revision: FAR_FUTURE, physical };
        }
        let revision = match self.rng.below(9) {
            1 => self.checker.compaction_asked(),
            2 => -(self.rng.below(2) as i64),
            0 | 3..7 => newest - self.rng.below(4) as i64,
            _ => newest - self.rng.log_between(1, newest.max(2) as u64) as i64,
        };
        Request::Compact { revision: revision.min(newest), physical }
    }

    fn maintenance(&mut self) -> Request {
        match self.rng.below(12) {
            0..2 => Request::Status,
            2..4 => Request::MemberList { linearizable: self.rng.chance(500) },
            4 => Request::Hash,
            5 => Request::Defragment,
            6 => Request::Alarm { action: AlarmAction::Get, member: 0, kind: 0 },
            _ => Request::HashKv { revision: if self.rng.chance(500) { 0 } else { self.past_revision().max(0) } },
        }
    }

    /// Alarms are raised now and then and cleared often, so that most writes pass.
    fn alarm(&mut self) -> Request {
        let kind = if self.rng.chance(700) { NOSPACE } else { CORRUPT };
        let (action, kind) = match self.rng.below(12) {
            0 => (AlarmAction::Activate, kind),
            1 => (AlarmAction::Get, if self.rng.chance(500) { 0 } else { kind }),
            2 => (AlarmAction::Activate, 0),
            3..8 => (AlarmAction::Deactivate, NOSPACE),
            _ => (AlarmAction::Deactivate, CORRUPT),
        };
        Request::Alarm { action, member: self.checker.member(), kind }
    }

    /// A request that has to be refused for its arguments.
    fn mistake(&mut self) -> Request {
        let key = self.key();
        let value = self.value(40);
        let put = Put { key: key.clone(), value, ..Put::default() };
        let alone = |operation| Txn { compares: Vec::new(), success: vec![operation], failure: Vec::new() };
        match self.rng.below(12) {
            0 => Request::Put(Put { key: Vec::new(), ..put }),
            1 => Request::Range(Range::whole(KeyRange::single(Vec::new()), 0)),
            2 => Request::Delete(Delete { range: KeyRange::single(Vec::new()), prev_kv: false }),
            3 => Request::Put(Put { ignore_value: true, value: b"v".to_vec(), ..put }),
            4 => Request::Put(Put { ignore_lease: true, lease: 5, ..put }),
            5 => Request::Range(Range { order: SortOrder::Unknown, ..Range::whole(KeyRange::single(key), 0) }),
            6 => Request::Txn(alone(Request::Unset)),
            7 => {
                let twice = vec![Request::Put(put.clone()), Request::Put(put)];
                Request::Txn(Txn { compares: Vec::new(), success: Vec::new(), failure: twice })
            }
            8 => {
                let many = (0..=TXN_OPS_MAX).map(|_| self.compare()).collect();
                Request::Txn(Txn { compares: many, success: Vec::new(), failure: Vec::new() })
            }
            9 => {
                let len = self.workload.request_bytes_max;
                let value = unique_value(self.checker.next_operation(), len);
                Request::Put(Put { value, ..put })
            }
            10 => {
                let compare = Compare {
                    range: KeyRange::single(Vec::new()),
                    relation: Relation::Equal,
                    target: Target::Version(0),
                };
                Request::Txn(Txn { compares: vec![compare], ..alone(Request::Put(put)) })
            }
            _ => {
                // A delete without an end takes the pair away that the put wants to keep.
                let range = KeyRange { key: b"k".to_vec(), range_end: vec![0] };
                let delete = Request::Delete(Delete { range, prev_kv: false });
                let kept = Request::Put(Put { ignore_value: true, value: Vec::new(), ..put });
                Request::Txn(Txn { compares: Vec::new(), success: vec![delete, kept], failure: Vec::new() })
            }
        }
    }
}

/// The keys that share all but the last digit.
fn prefix_range(key: &[u8]) -> KeyRange {
    let prefix = key[..KEY_DIGITS].to_vec();
    let mut end = prefix.clone();
    *end.last_mut().expect("not empty") += 1;
    KeyRange { key: prefix, range_end: end }
}
