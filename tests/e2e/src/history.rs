//! What clients were told, ordered by revision: the state that every later read must show.
//!
//! Owns the changes per key, the changes in doubt, and the comparison with what a server returns. Does not know how
//! requests travel or why a server stopped.
//!
//! I1  Every mutation takes one revision, so an acknowledged one is known by its revision alone.
//! I2  A mutation in doubt either explains exactly one revision that nobody was told of, or has never happened.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::messages::KeyValue;

/// A value that can be made again: a tag nobody else uses, repeated to a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Number of the mutation that wrote it.
    pub tag: u64,
    /// Bytes.
    pub length: usize,
}

impl Payload {
    /// The bytes.
    pub fn bytes(self) -> Vec<u8> {
        let word = format!("<{:x}>", self.tag);
        word.bytes().cycle().take(self.length.max(word.len())).collect()
    }
}

/// What one request changes: each key once, to a value or away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Keys and their values after it.
    pub changes: Vec<(String, Option<Payload>)>,
}

/// Something that happened to a key.
#[derive(Clone, Copy, Debug)]
struct Version {
    revision: u64,
    payload: Option<Payload>,
}

/// The oracle.
#[derive(Debug)]
pub struct History {
    keys: BTreeMap<String, Vec<Version>>,
    /// Revision -> the mutation that made it.
    told: BTreeMap<u64, Mutation>,
    doubtful: BTreeMap<u64, Mutation>,
    /// Every revision up to this one is in `keys`.
    settled: u64,
    compacted: u64,
    compaction_in_doubt: u64,
    next_tag: u64,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// An empty store, at revision 1.
    pub fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            told: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            settled: 1,
            compacted: 0,
            compaction_in_doubt: 0,
            next_tag: 0,
        }
    }

    /// A value nobody wrote before.
    pub fn payload(&mut self, length: usize) -> Payload {
        self.next_tag += 1;
        Payload { tag: self.next_tag, length }
    }

    /// The caller is about to send it; `stream` has nothing else under way.
    pub fn begin(&mut self, stream: u64, mutation: Mutation) {
        let before = self.doubtful.insert(stream, mutation);
        assert!(before.is_none(), "a stream waits for its answer");
    }

    /// The answer came: it happened, at this revision.
    pub fn acknowledge(&mut self, stream: u64, revision: u64) -> Result<()> {
        let mutation = self.doubtful.remove(&stream).expect("an answer follows its request");
        if revision <= self.settled {
            bail!("revision {revision} was acknowledged, but a revision up to {} was in use before", self.settled);
        }
        if let Some(other) = self.told.insert(revision, mutation) {
            bail!("revision {revision} was acknowledged twice, first for {:?}", other.changes);
        }
        Ok(())
    }

    /// A compaction is about to be sent.
    pub fn begin_compaction(&mut self, revision: u64) {
        self.compaction_in_doubt = self.compaction_in_doubt.max(revision);
    }

    /// A compaction was acknowledged.
    pub fn acknowledge_compaction(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision);
    }

    /// The highest revision that somebody was told of.
    pub fn told_head(&self) -> u64 {
        self.told.last_key_value().map_or(self.settled, |(revision, _)| *revision)
    }

    /// Number of acknowledgements since the last settlement.
    pub fn told_count(&self) -> usize {
        self.told.len()
    }

    /// What the acknowledged compactions left, and the highest one that may have happened.
    pub fn compactions(&self) -> (u64, u64) {
        (self.compacted, self.compacted.max(self.compaction_in_doubt))
    }

    /// The server has shown which compaction it is at.
    pub fn settle_compaction(&mut self, compacted: u64) -> Result<()> {
        let (told, possible) = self.compactions();
        if compacted != told && compacted != possible {
            bail!("the server is compacted at {compacted}; acknowledged {told}, in doubt {possible}");
        }
        self.compacted = compacted;
        self.compaction_in_doubt = 0;
        Ok(())
    }

    /// Revisions up to `head` that nobody was told of.
    pub fn unexplained(&self, head: u64) -> Result<Vec<u64>> {
        if head < self.told_head() {
            bail!("revision {} was acknowledged, the server is at {head}", self.told_head());
        }
        Ok((self.settled + 1..=head).filter(|revision| !self.told.contains_key(revision)).collect())
    }

    /// What may or may not have happened, by stream.
    pub fn doubtful(&self) -> impl Iterator<Item = (u64, &Mutation)> {
        self.doubtful.iter().map(|(stream, mutation)| (*stream, mutation))
    }

    /// That mutation happened after all, at this revision.
    pub fn explain(&mut self, stream: u64, revision: u64) -> Result<()> {
        self.acknowledge(stream, revision)
    }

    /// The rest has never happened, and every revision up to `head` is known.
    pub fn settle(&mut self, head: u64) {
        for (revision, mutation) in std::mem::take(&mut self.told) {
            for (key, payload) in mutation.changes {
                self.keys.entry(key).or_default().push(Version { revision, payload });
            }
        }
        self.doubtful.clear();
        self.settled = head;
    }

    /// Live keys of a prefix in the settled state.
    pub fn live(&self, prefix: &str) -> Vec<String> {
        let all = self.keys.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let live = all.filter(|(_, versions)| versions.last().is_some_and(|version| version.payload.is_some()));
        live.map(|(key, _)| key.clone()).collect()
    }

    /// What a range over everything must return at a settled revision.
    pub fn at(&self, revision: u64) -> Vec<KeyValue> {
        let pairs = self.keys.iter().filter_map(|(key, versions)| state(key, versions, revision));
        pairs.collect()
    }

    /// Compares a range over everything at a settled revision.
    pub fn check(&self, revision: u64, found: &[KeyValue]) -> Result<()> {
        let wanted = self.at(revision);
        let different = wanted.iter().zip(found).find(|(wanted, found)| wanted != found);
        match different {
            Some((wanted, found)) => bail!("at revision {revision}: {} instead of {}", show(found), show(wanted)),
            None if wanted.len() != found.len() => {
                let same = wanted.len().min(found.len());
                let odd = wanted.get(same).or_else(|| found.get(same)).map(show).unwrap_or_default();
                bail!("at revision {revision}: {} keys instead of {} ({odd})", found.len(), wanted.len())
            }
            None => Ok(()),
        }
    }
}

fn state(key: &str, versions: &[Version], revision: u64) -> Option<KeyValue> {
    let visible = &versions[..versions.partition_point(|version| version.revision <= revision)];
    let last = visible.last()?;
    let payload = last.payload?;
    let life = visible.iter().rev().take_while(|version| version.payload.is_some());
    let (count, first) = life.fold((0, last), |(count, _), version| (count + 1, version));
    Some(KeyValue {
        key: key.as_bytes().to_vec(),
        value: payload.bytes(),
        mod_revision: last.revision,
        create_revision: first.revision,
        version: count,
    })
}

/// A key without most of its value.
fn show(pair: &KeyValue) -> String {
    let start = &pair.value[..pair.value.len().min(12)];
    format!(
        "{} = {}.. ({} bytes) created {} modified {} version {}",
        String::from_utf8_lossy(&pair.key),
        String::from_utf8_lossy(start),
        pair.value.len(),
        pair.create_revision,
        pair.mod_revision,
        pair.version
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(history: &mut History, key: &str) -> Mutation {
        let payload = history.payload(8);
        Mutation { changes: vec![(key.to_owned(), Some(payload))] }
    }

    /// a@2, a@3, a deleted @4, a@5 and b@5.
    fn sample() -> History {
        let mut history = History::new();
        for revision in 2..=5 {
            let mut mutation = put(&mut history, "a");
            if revision == 4 {
                mutation.changes[0].1 = None;
            }
            if revision == 5 {
                mutation.changes.extend(put(&mut history, "b").changes);
            }
            history.begin(0, mutation);
            history.acknowledge(0, revision).unwrap();
        }
        history.settle(5);
        history
    }

    #[test]
    fn states_carry_creation_and_version() {
        let history = sample();
        let facts = |revision| {
            let pairs = history.at(revision);
            pairs.iter().map(|pair| (pair.create_revision, pair.mod_revision, pair.version)).collect::<Vec<_>>()
        };
        assert_eq!(facts(1), []);
        assert_eq!(facts(3), [(2, 3, 2)]);
        assert_eq!(facts(4), []);
        assert_eq!(facts(5), [(5, 5, 1), (5, 5, 1)]);
    }

    #[test]
    fn every_difference_is_found() {
        let history = sample();
        let right = history.at(5);
        assert!(history.check(5, &right).is_ok());
        assert!(history.check(4, &right).is_err());
        assert!(history.check(5, &right[..1]).is_err());
        assert!(history.check(3, &[]).is_err());
        for spoil in [
            |pair: &mut KeyValue| pair.value[3] ^= 1,
            |pair: &mut KeyValue| pair.mod_revision -= 1,
            |pair: &mut KeyValue| pair.create_revision -= 1,
            |pair: &mut KeyValue| pair.version += 1,
        ] {
            let mut wrong = right.clone();
            spoil(&mut wrong[1]);
            assert!(history.check(5, &wrong).is_err());
        }
    }

    #[test]
    fn revisions_are_told_once_and_never_go_back() {
        let mut history = sample();
        assert!(history.unexplained(4).is_err(), "an acknowledged revision is gone");
        let mutation = put(&mut history, "c");
        history.begin(1, mutation.clone());
        history.begin(2, mutation.clone());
        history.begin(3, mutation);
        history.acknowledge(1, 8).unwrap();
        assert!(history.acknowledge(2, 8).is_err(), "twice");
        assert!(history.acknowledge(3, 5).is_err(), "used before");
        assert_eq!(history.unexplained(9).unwrap(), [6, 7, 9]);
    }

    #[test]
    fn a_compaction_is_the_told_one_or_the_doubtful_one() {
        let mut history = History::new();
        history.acknowledge_compaction(3);
        history.begin_compaction(7);
        assert!(history.settle_compaction(5).is_err());
        history.settle_compaction(7).unwrap();
        history.begin_compaction(9);
        assert!(history.settle_compaction(3).is_err());
        history.settle_compaction(7).unwrap();
        assert_eq!(history.compactions(), (7, 7));
    }
}
