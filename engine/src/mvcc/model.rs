//! The reference model of the keyspace: every version of every key in a list, everything by looking at all of it.
//!
//! Shares no code with the engine but the request types. Written from etcd's rules, for tests alone.

use std::collections::BTreeMap;

use crate::command::{
    Compare, CompareResult, CompareTarget, DeleteRange, Op, Put, RangeQuery, SortOrder, SortTarget, Txn,
};
use crate::lease::Lease;
use crate::mvcc::MvccError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kv {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) create: i64,
    pub(super) modified: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Range { revision: i64, kvs: Vec<Kv>, count: i64, more: bool },
    Put { revision: i64, prev: Option<Kv> },
    Delete { revision: i64, deleted: i64, prev: Vec<Kv> },
    Txn { revision: i64, succeeded: bool, answers: Vec<Self> },
    Compact { revision: i64 },
    Grant,
    Checkpoint,
    Revoke { revision: i64, deleted: i64 },
}

pub(super) type Answered = Result<Answer, MvccError>;

/// A version: when, as which change of its revision, and what (nothing: deleted).
type Version = (i64, u64, Option<Kv>);

/// A change: the key, and what it became.
pub(super) type Event = (Vec<u8>, Option<Kv>);

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) revision: i64,
    pub(super) compacted: i64,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// Changes of the last request.
    pub(super) events: Vec<Event>,
    /// Whether a request is under way.
    busy: bool,
    /// Leases.
    pub(super) leases: BTreeMap<i64, Lease>,
}

impl Model {
    pub(super) fn new() -> Self {
        let (keys, events, leases) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        Self { revision: 1, compacted: -1, keys, events, busy: false, leases }
    }

    pub(super) fn put(&mut self, put: &Put<'_>) -> Answered {
        self.begin();
        let answer = self.put_one(put);
        self.end(answer)
    }

    pub(super) fn delete(&mut self, del: &DeleteRange<'_>) -> Answered {
        self.begin();
        let answer = self.delete_all(del);
        self.end(Ok(answer))
    }

    pub(super) fn txn(&mut self, txn: &Txn<'_>) -> Answered {
        self.begin();
        let mut choices = Vec::new();
        self.choose(txn, &mut choices);
        let answer = self.check(txn, &mut choices.clone().into_iter());
        let answer = answer.and_then(|()| self.run(txn, &mut choices.into_iter()));
        self.end(answer)
    }

    pub(super) fn grant(&mut self, id: i64, ttl: i64) -> Answered {
        if self.leases.contains_key(&id) {
            return Err(MvccError::LeaseExists);
        }
        self.leases.insert(id, Lease::granted(ttl));
        Ok(Answer::Grant)
    }

    pub(super) fn checkpoint(&mut self, id: i64, remaining: i64) -> Answered {
        self.leases.entry(id).and_modify(|lease| lease.remaining = remaining);
        Ok(Answer::Checkpoint)
    }

    pub(super) fn revoke(&mut self, id: i64) -> Answered {
        if self.leases.remove(&id).is_none() {
            return Err(MvccError::LeaseNotFound);
        }
        self.begin();
        let keys = self.attached(id);
        keys.iter().for_each(|key| self.change(key, None));
        let answer = self.end(Ok(Answer::Grant));
        answer.map(|_| Answer::Revoke { revision: self.revision, deleted: keys.len() as i64 })
    }

    /// The keys attached to a lease.
    pub(super) fn attached(&self, id: i64) -> Vec<Vec<u8>> {
        let all = self.live(b"\0", b"\0", i64::MAX);
        all.into_iter().filter(|kv| kv.lease == id).map(|kv| kv.key).collect()
    }

    pub(super) fn compact(&mut self, revision: i64) -> Answered {
        if revision <= self.compacted {
            return Err(MvccError::Compacted);
        }
        if revision > self.revision {
            return Err(MvccError::FutureRevision);
        }
        self.compacted = revision;
        // What nobody can ask for any more is forgotten, so that reads cannot lean on it.
        for versions in self.keys.values_mut() {
            let keep = versions.iter().rposition(|(at, ..)| *at <= revision).unwrap_or(0);
            versions.drain(..keep);
        }
        Ok(Answer::Compact { revision: self.revision })
    }

    pub(super) fn range(&self, query: &RangeQuery<'_>) -> Answered {
        let now = self.now();
        if query.revision > now {
            return Err(MvccError::FutureRevision);
        }
        let at = if query.revision > 0 { query.revision } else { now };
        if at < self.compacted {
            return Err(MvccError::Compacted);
        }
        let all = self.live(query.key, query.range_end, at);
        let count = all.len() as i64;
        if query.count_only {
            return Ok(Answer::Range { revision: now, kvs: Vec::new(), count, more: false });
        }
        let filtered =
            query.min_mod_revision | query.max_mod_revision | query.min_create_revision | query.max_create_revision
                != 0;
        let mut kvs = all;
        if query.limit > 0 && query.sort_order == SortOrder::None && !filtered {
            kvs.truncate(usize::try_from(query.limit).unwrap().saturating_add(1));
        }
        kvs.retain(|kv| query.min_mod_revision == 0 || kv.modified >= query.min_mod_revision);
        kvs.retain(|kv| query.max_mod_revision == 0 || kv.modified <= query.max_mod_revision);
        kvs.retain(|kv| query.min_create_revision == 0 || kv.create >= query.min_create_revision);
        kvs.retain(|kv| query.max_create_revision == 0 || kv.create <= query.max_create_revision);
        kvs.sort_by(|a, b| {
            let order = match query.sort_target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create.cmp(&b.create),
                SortTarget::Mod => a.modified.cmp(&b.modified),
                SortTarget::Value => a.value.cmp(&b.value),
                SortTarget::Unknown => unreachable!("not generated"),
            };
            if query.sort_order == SortOrder::Descend { order.reverse() } else { order }
        });
        let mut more = false;
        if query.limit > 0 && kvs.len() as i64 > query.limit {
            kvs.truncate(query.limit as usize);
            more = true;
        }
        if query.keys_only {
            for kv in &mut kvs {
                kv.value.clear();
                kv.lease = if query.sort_target == SortTarget::Value { kv.lease } else { 0 };
            }
        }
        Ok(Answer::Range { revision: now, kvs, count, more })
    }

    /// HashKV at a revision that can be read.
    pub(super) fn hash_kv(&self, at: i64) -> u32 {
        let all = self.live(b"\0", b"\0", at);
        let mut rows = Vec::new();
        for (key, versions) in &self.keys {
            for (main, sub, kv) in versions.iter().filter(|(main, ..)| *main <= at) {
                let stands = kv.as_ref().is_some_and(|kv| all.is_empty() || all.contains(kv));
                if *main > self.compacted || stands {
                    rows.push((*main, *sub, key, kv));
                }
            }
        }
        rows.sort_by_key(|&(main, sub, ..)| (main, sub));
        let mut bytes = b"key".to_vec();
        for (main, sub, key, kv) in rows {
            bytes.extend([&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat());
            let Some(kv) = kv else {
                bytes.extend([b"t\x0a", &varint(key.len() as u64)[..], key].concat());
                continue;
            };
            bytes.extend([b"\x0a", &varint(key.len() as u64)[..], key].concat());
            for (tag, number) in [(0x10, kv.create), (0x18, kv.modified), (0x20, kv.version)] {
                bytes.push(tag);
                bytes.extend(varint(number as u64));
            }
            if !kv.value.is_empty() {
                bytes.extend([b"\x2a", &varint(kv.value.len() as u64)[..], &kv.value].concat());
            }
            if kv.lease != 0 {
                bytes.push(0x30);
                bytes.extend(varint(kv.lease as u64));
            }
        }
        castagnoli(&bytes)
    }

    /// The revision a reader stands at: inside a request that changed something, already the next.
    fn now(&self) -> i64 {
        self.revision + i64::from(self.busy && !self.events.is_empty())
    }

    fn begin(&mut self) {
        self.events.clear();
        self.busy = true;
    }

    fn end(&mut self, answer: Answered) -> Answered {
        if answer.is_err() {
            let revision = self.revision;
            self.keys.values_mut().for_each(|versions| versions.retain(|(at, ..)| *at <= revision));
            self.keys.retain(|_, versions| !versions.is_empty());
            self.events.clear();
        } else if !self.events.is_empty() {
            self.revision += 1;
        }
        self.busy = false;
        answer
    }

    fn live(&self, key: &[u8], range_end: &[u8], at: i64) -> Vec<Kv> {
        let inside = |candidate: &[u8]| match range_end {
            [] => candidate == key,
            [0] => candidate >= key,
            end => candidate >= key && candidate < end,
        };
        let seen = |versions: &Vec<Version>| versions.iter().rev().find(|(when, ..)| *when <= at).cloned();
        let keys = self.keys.iter().filter(|(candidate, _)| inside(candidate));
        keys.filter_map(|(_, versions)| seen(versions)?.2).collect()
    }

    fn change(&mut self, key: &[u8], kv: Option<Kv>) {
        let sub = self.events.len() as u64;
        self.events.push((key.to_vec(), kv.clone()));
        self.keys.entry(key.to_vec()).or_default().push((self.revision + 1, sub, kv));
    }

    fn put_one(&mut self, put: &Put<'_>) -> Answered {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(MvccError::LeaseNotFound);
        }
        let prev = self.live(put.key, b"", i64::MAX).pop();
        if (put.ignore_value || put.ignore_lease) && prev.is_none() {
            return Err(MvccError::KeyNotFound);
        }
        let mut kv = Kv {
            key: put.key.to_vec(),
            value: put.value.to_vec(),
            create: self.revision + 1,
            modified: self.revision + 1,
            version: 1,
            lease: put.lease,
        };
        if let Some(prev) = &prev {
            kv.create = prev.create;
            kv.version = prev.version + 1;
            if put.ignore_value {
                kv.value.clone_from(&prev.value);
            }
            if put.ignore_lease {
                kv.lease = prev.lease;
            }
        }
        self.change(put.key, Some(kv));
        Ok(Answer::Put { revision: self.now(), prev: prev.filter(|_| put.prev_kv) })
    }

    fn delete_all(&mut self, del: &DeleteRange<'_>) -> Answer {
        let prev = self.live(del.key, del.range_end, i64::MAX);
        prev.iter().for_each(|kv| self.change(&kv.key, None));
        let deleted = prev.len() as i64;
        Answer::Delete { revision: self.now(), deleted, prev: if del.prev_kv { prev } else { Vec::new() } }
    }

    fn choose(&self, txn: &Txn<'_>, choices: &mut Vec<bool>) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        choices.push(succeeded);
        for op in if succeeded { &txn.success } else { &txn.failure } {
            if let Op::Txn(nested) = op {
                self.choose(nested, choices);
            }
        }
    }

    fn holds(&self, compare: &Compare<'_>) -> bool {
        let mut kvs = self.live(compare.key, compare.range_end, i64::MAX);
        if kvs.is_empty() {
            if matches!(compare.target, CompareTarget::Value(_)) {
                return false;
            }
            kvs.push(Kv { key: vec![], value: vec![], create: 0, modified: 0, version: 0, lease: 0 });
        }
        kvs.iter().all(|kv| {
            let difference = match compare.target {
                CompareTarget::Version(number) => kv.version.cmp(&number) as i64,
                CompareTarget::Create(number) => kv.create.cmp(&number) as i64,
                CompareTarget::Mod(number) => kv.modified.cmp(&number) as i64,
                CompareTarget::Lease(number) => kv.lease.cmp(&number) as i64,
                CompareTarget::Value(value) => kv.value.as_slice().cmp(value) as i64,
                CompareTarget::Unknown => 0,
            };
            match compare.result {
                CompareResult::Equal => difference == 0,
                CompareResult::Greater => difference > 0,
                CompareResult::Less => difference < 0,
                CompareResult::NotEqual => difference != 0,
                CompareResult::Unknown => true,
            }
        })
    }

    fn check(&self, txn: &Txn<'_>, choices: &mut dyn Iterator<Item = bool>) -> Result<(), MvccError> {
        for op in if choices.next().unwrap() { &txn.success } else { &txn.failure } {
            match op {
                Op::Txn(nested) => self.check(nested, choices)?,
                Op::Put(put) if put.lease != 0 && !self.leases.contains_key(&put.lease) => {
                    return Err(MvccError::LeaseNotFound);
                }
                Op::Put(put)
                    if (put.ignore_value || put.ignore_lease) && self.live(put.key, b"", i64::MAX).is_empty() =>
                {
                    return Err(MvccError::KeyNotFound);
                }
                Op::Range(query) if query.revision > self.revision => return Err(MvccError::FutureRevision),
                Op::Range(query) if query.revision != 0 && query.revision < self.compacted => {
                    return Err(MvccError::Compacted);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, txn: &Txn<'_>, choices: &mut dyn Iterator<Item = bool>) -> Answered {
        let succeeded = choices.next().unwrap();
        let mut answers = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            answers.push(match op {
                Op::Range(query) => self.range(query)?,
                Op::Put(put) => self.put_one(put)?,
                Op::DeleteRange(del) => self.delete_all(del),
                Op::Txn(nested) => self.run(nested, choices)?,
                Op::Unset => unreachable!("not generated"),
            });
        }
        Ok(Answer::Txn { revision: self.now(), succeeded, answers })
    }
}

fn varint(number: u64) -> Vec<u8> {
    let mut groups: Vec<u8> = (0..10).map(|group| (number >> (7 * group)) as u8 & 0x7f).collect();
    while groups.len() > 1 && groups.last() == Some(&0) {
        groups.pop();
    }
    let last = groups.len() - 1;
    groups[..last].iter_mut().for_each(|group| *group |= 0x80);
    groups
}

/// CRC-32C, a bit at a time.
fn castagnoli(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}
