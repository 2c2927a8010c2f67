//! Random requests of etcd's KV service, right and wrong, over a key space so small that they keep meeting each other.
//!
//! Owns the choice of every field; the same seed gives the same requests if the revisions it is told are the same.
//! Does not know the answers.
//!
//! I1  Every option of every request has a chance, alone and with others, with legal and illegal values.
//! I2  No transaction that deletes also puts with ignore-value or ignore-lease: etcd 3.7.3 dies of some of these.

use crate::chance::Chance;
use crate::messages::Message;

/// A request and how to show it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path of the method.
    pub path: &'static str,
    /// The encoded message.
    pub message: Vec<u8>,
    /// For reports.
    pub text: String,
    /// Whether it may change the store.
    pub is_write: bool,
}

/// What revisions a request may name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Revisions {
    /// The newest.
    pub head: u64,
    /// The compacted one.
    pub compacted: u64,
}

/// The generator.
#[derive(Debug)]
pub struct Grammar {
    chance: Chance,
    /// Revisions as last seen.
    pub revisions: Revisions,
    text: String,
    tag: u64,
}

const KEYS: &[&[u8]] =
    &[b"a", b"a\0", b"ab", b"ac", b"b", b"b/1", b"b/2", b"b/20", b"c", b"\xff", b"\xff\xff", b"z\0z"];
const ENDS: &[&[u8]] = &[b"\0", b"\0", b"b", b"b0", b"c", b"d", b"a\0", b"\xff", b"zz", b"a"];
const PATHS: [&str; 5] = [
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
];
const DEPTH_MAX: u64 = 3;

/// The number as its varint is sent.
fn signed(number: i64) -> u64 {
    number.cast_unsigned()
}

impl Grammar {
    /// Requests of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { chance: Chance::new(seed, stream), revisions: Revisions::default(), text: String::new(), tag: 0 }
    }

    /// The next request of any kind; compactions are rare.
    pub fn request(&mut self) -> Request {
        match self.chance.below(200) {
            0..70 => self.finish(0),
            70..120 => self.finish(1),
            120..145 => self.finish(2),
            145..199 => self.finish(3),
            _ => self.finish(4),
        }
    }

    /// The next request that is meant to change something; no compaction.
    pub fn change(&mut self) -> Request {
        match self.chance.below(10) {
            0..6 => self.finish(0),
            6..8 => self.finish(2),
            _ => self.finish(3),
        }
    }

    fn finish(&mut self, kind: usize) -> Request {
        self.text.clear();
        let message = match kind {
            0 => self.put(true),
            1 => self.range(),
            2 => self.delete(),
            3 => self.txn(0),
            _ => self.compaction(),
        };
        let text = std::mem::take(&mut self.text);
        Request { path: PATHS[kind], message: message.finish(), text, is_write: kind != 1 }
    }

    fn say(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push(' ');
    }

    fn key(&mut self) -> &'static [u8] {
        if self.chance.percent(1) {
            return b"";
        }
        let key: &&[u8] = self.chance.pick(KEYS);
        key
    }

    fn with_key(&mut self, verb: &str) -> Message {
        let key = self.key();
        self.say(&format!("{verb} {}", key.escape_ascii()));
        Message::new().bytes(1, key)
    }

    /// Sometimes a range end; field numbers differ.
    fn with_end(&mut self, message: Message, field: u32) -> Message {
        if !self.chance.percent(55) {
            return message;
        }
        let end = *self.chance.pick(ENDS);
        self.say(&format!("..{}", end.escape_ascii()));
        message.bytes(field, end)
    }

    fn with_number(&mut self, message: Message, name: &str, field: u32, number: i64) -> Message {
        self.say(&format!("{name}={number}"));
        message.number(field, signed(number))
    }

    fn with_flag(&mut self, message: Message, name: &str, field: u32, percent: u64) -> Message {
        if self.chance.percent(percent) { self.with_number(message, name, field, 1) } else { message }
    }

    fn revision(&mut self) -> i64 {
        let Revisions { head, compacted } = self.revisions;
        let near = |base: u64, off: u64| base as i64 + off as i64 - 2;
        match self.chance.below(12) {
            0 => near(compacted, self.chance.below(5)),
            1 => near(head, self.chance.below(5)),
            2 => [-1, 0, 1, i64::MAX, i64::MIN][self.chance.below(5) as usize],
            _ => (compacted + self.chance.below(head.saturating_sub(compacted) + 1)) as i64,
        }
    }

    fn put(&mut self, may_ignore: bool) -> Message {
        let mut message = self.with_key("put");
        let ignores_value = may_ignore && self.chance.percent(8);
        if !ignores_value || self.chance.percent(15) {
            self.tag += 1;
            let length = [0, 1, 5, 40][self.chance.below(4) as usize];
            let value = format!("{:0length$}", self.tag % 7);
            self.say(&format!("= {value}"));
            message = message.bytes(2, value.as_bytes());
        }
        if self.chance.percent(3) {
            message = self.with_number(message, "lease", 3, 77);
        }
        message = self.with_flag(message, "prev_kv", 4, 25);
        if ignores_value {
            message = self.with_number(message, "ignore_value", 5, 1);
        }
        if may_ignore { self.with_flag(message, "ignore_lease", 6, 6) } else { message }
    }

    fn range(&mut self) -> Message {
        let message = self.with_key("get");
        let mut message = self.with_end(message, 2);
        if self.chance.percent(25) {
            let limit = self.chance.below(6) as i64 - 1;
            message = self.with_number(message, "limit", 3, limit);
        }
        if self.chance.percent(30) {
            let revision = self.revision();
            message = self.with_number(message, "rev", 4, revision);
        }
        if self.chance.percent(30) {
            let order = self.chance.below(4) as i64;
            message = self.with_number(message, "order", 5, order);
        }
        if self.chance.percent(30) {
            let target = self.chance.below(6) as i64;
            message = self.with_number(message, "target", 6, target);
        }
        message = self.with_flag(message, "serializable", 7, 20);
        message = self.with_flag(message, "keys_only", 8, 15);
        message = self.with_flag(message, "count_only", 9, 12);
        for (name, field) in [("min_mod", 10), ("max_mod", 11), ("min_create", 12), ("max_create", 13)] {
            if self.chance.percent(7) {
                let revision = self.revision();
                message = self.with_number(message, name, field, revision);
            }
        }
        message
    }

    fn delete(&mut self) -> Message {
        let message = self.with_key("delete");
        // A range end empties much of the store, so it is rarer here.
        let message = if self.chance.percent(40) { self.with_end(message, 2) } else { message };
        self.with_flag(message, "prev_kv", 3, 30)
    }

    fn compare(&mut self) -> Message {
        let (result, target) = (self.chance.below(4), self.chance.below(5));
        self.say(&format!("if target {target} result {result}"));
        let message = Message::new().number(1, result).number(2, target);
        let key = self.key();
        self.say(&format!("of {}", key.escape_ascii()));
        let message = message.bytes(3, key);
        // Mostly the member that belongs to the target, at times another or none.
        let member = if self.chance.percent(5) { self.chance.below(6) } else { target };
        let message = match member {
            0 => {
                let version = self.chance.below(4) as i64;
                self.with_number(message, "version", 4, version)
            }
            1 | 2 => {
                let revision = self.revision();
                self.with_number(message, "revision", 4 + u32::try_from(member).expect("1 or 2"), revision)
            }
            3 => {
                let value = [b"0", b"3", b"6"][self.chance.below(3) as usize];
                self.say(&format!("value {}", value.escape_ascii()));
                message.bytes(7, value)
            }
            4 => {
                let lease = [0, 77][self.chance.below(2) as usize];
                self.with_number(message, "lease", 8, lease)
            }
            _ => message,
        };
        if self.chance.percent(25) { self.with_end(message, 64) } else { message }
    }

    fn txn(&mut self, depth: u64) -> Message {
        self.say("txn {");
        let mut message = Message::new();
        for _ in 0..self.chance.below(3) {
            let compare = self.compare().finish();
            message = message.bytes(1, &compare);
        }
        let may_ignore = self.chance.percent(30);
        for field in [2, 3] {
            self.say(if field == 2 { "then" } else { "else" });
            let long = depth == 0 && self.chance.percent(1);
            let count = if long { 120 + self.chance.below(15) } else { self.chance.below(4) };
            for _ in 0..count {
                let operation = self.operation(depth, may_ignore).finish();
                message = message.bytes(field, &operation);
            }
        }
        self.say("}");
        message
    }

    /// I2: what may delete does not ignore, at any depth, as nested transactions choose by the flag of the outermost.
    fn operation(&mut self, depth: u64, may_ignore: bool) -> Message {
        let (field, inner) = match self.chance.below(20) {
            0..6 => (1, self.range()),
            6..14 => (2, self.put(may_ignore)),
            14..17 if !may_ignore => (3, self.delete()),
            17..19 if !may_ignore && depth < DEPTH_MAX => (4, self.txn_without_ignore(depth + 1)),
            19 if self.chance.percent(3) => {
                self.say("nothing");
                return Message::new();
            }
            _ => (1, self.range()),
        };
        Message::new().bytes(field, &inner.finish())
    }

    fn txn_without_ignore(&mut self, depth: u64) -> Message {
        self.say("txn {");
        let mut message = Message::new();
        for _ in 0..self.chance.below(2) {
            let compare = self.compare().finish();
            message = message.bytes(1, &compare);
        }
        for field in [2, 3] {
            self.say(if field == 2 { "then" } else { "else" });
            for _ in 0..self.chance.below(3) {
                let operation = self.operation(depth, false).finish();
                message = message.bytes(field, &operation);
            }
        }
        self.say("}");
        message
    }

    fn compaction(&mut self) -> Message {
        let Revisions { head, compacted } = self.revisions;
        let revision = match self.chance.below(6) {
            0 => self.revision(),
            1 => head as i64,
            _ => (compacted + self.chance.below((head - compacted) / 2 + 1)) as i64,
        };
        self.say("compact");
        let message = self.with_number(Message::new(), "to", 1, revision);
        self.with_flag(message, "physical", 2, 50)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Field, fields};

    fn requests(seed: u64) -> Vec<Request> {
        let mut grammar = Grammar::new(seed, 0);
        grammar.revisions = Revisions { head: 100, compacted: 50 };
        (0..3_000).map(|_| grammar.request()).collect()
    }

    #[test]
    fn a_seed_repeats_itself() {
        let bytes = |seed| requests(seed).into_iter().map(|request| request.message).collect::<Vec<_>>();
        assert_eq!(bytes(5), bytes(5));
        assert_ne!(bytes(5), bytes(6));
    }

    #[test]
    fn every_option_of_a_range_comes_up() {
        let mut seen = std::collections::BTreeSet::new();
        for request in requests(1).iter().filter(|request| request.path.ends_with("/Range")) {
            seen.extend(fields(&request.message).unwrap().into_iter().map(|(field, _)| field));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..=13).collect::<Vec<_>>());
    }

    /// Whether a transaction deletes, and whether it ignores, at any depth.
    fn habits(txn: &[u8]) -> (bool, bool) {
        let (mut deletes, mut ignores) = (false, false);
        for (field, value) in fields(txn).unwrap() {
            let (2 | 3, Field::Bytes(operation)) = (field, value) else { continue };
            for (kind, inner) in fields(operation).unwrap() {
                let Field::Bytes(inner) = inner else { continue };
                match kind {
                    2 => ignores |= fields(inner).unwrap().iter().any(|(field, _)| matches!(field, 5 | 6)),
                    3 => deletes = true,
                    4 => {
                        let (nested_deletes, nested_ignores) = habits(inner);
                        deletes |= nested_deletes;
                        ignores |= nested_ignores;
                    }
                    _ => {}
                }
            }
        }
        (deletes, ignores)
    }

    #[test]
    fn no_transaction_both_deletes_and_ignores() {
        let mut seen = std::collections::BTreeSet::new();
        for request in requests(2).iter().filter(|request| request.path.ends_with("/Txn")) {
            seen.insert(habits(&request.message));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(false, false), (false, true), (true, false)]);
    }
}
