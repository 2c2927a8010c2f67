//! Round trips, and bytes that are none.

use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    fn number(&mut self) -> i64 {
        [i64::MIN, -1, 0, 1, 77, i64::MAX][self.below(6) as usize]
    }

    fn bytes(&mut self) -> &'static [u8] {
        [b"".as_slice(), b"a", b"\0", b"\xff\xff", b"a long enough key", &[7; 300]][self.below(6) as usize]
    }

    fn put(&mut self) -> Put<'static> {
        Put {
            key: self.bytes(),
            value: self.bytes(),
            lease: self.number(),
            prev_kv: self.flag(),
            ignore_value: self.flag(),
            ignore_lease: self.flag(),
        }
    }

    fn delete_range(&mut self) -> DeleteRange<'static> {
        DeleteRange { key: self.bytes(), range_end: self.bytes(), prev_kv: self.flag() }
    }

    fn range(&mut self) -> RangeQuery<'static> {
        use SortTarget::{Create, Key, Mod, Value, Version};
        RangeQuery {
            key: self.bytes(),
            range_end: self.bytes(),
            limit: self.number(),
            revision: self.number(),
            sort_order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.below(3) as usize],
            sort_target: [Key, Version, Create, Mod, Value][self.below(5) as usize],
            serializable: false,
            keys_only: self.flag(),
            count_only: self.flag(),
            min_mod_revision: self.number(),
            max_mod_revision: self.number(),
            min_create_revision: self.number(),
            max_create_revision: self.number(),
        }
    }

    fn compare(&mut self) -> Compare<'static> {
        use CompareResult::{Equal, Greater, Less, NotEqual, Unknown};
        Compare {
            key: self.bytes(),
            range_end: self.bytes(),
            result: [Equal, Greater, Less, NotEqual, Unknown][self.below(5) as usize],
            target: match self.below(6) {
                0 => CompareTarget::Version(self.number()),
                1 => CompareTarget::Create(self.number()),
                2 => CompareTarget::Mod(self.number()),
                3 => CompareTarget::Value(self.bytes()),
                4 => CompareTarget::Lease(self.number()),
                _ => CompareTarget::Unknown,
            },
        }
    }

    fn ops(&mut self, depth: usize) -> Vec<Op<'static>> {
        let count = self.below(4);
        let op = |random: &mut Self| match random.below(if depth < 4 { 4 } else { 3 }) {
            0 => Op::Range(random.range()),
            1 => Op::Put(random.put()),
            2 => Op::DeleteRange(random.delete_range()),
            _ => Op::Txn(random.txn(depth + 1)),
        };
        (0..count).map(|_| op(self)).collect()
    }

    fn txn(&mut self, depth: usize) -> Txn<'static> {
        let compares = (0..self.below(3)).map(|_| self.compare()).collect();
        Txn { compares, success: self.ops(depth), failure: self.ops(depth) }
    }

    fn command(&mut self) -> Command<'static> {
        match self.below(11) {
            0 => Command::Put(self.put()),
            1 => Command::DeleteRange(self.delete_range()),
            2 => Command::Txn(self.txn(1)),
            3 => Command::Compact { revision: self.number() },
            4 => Command::AlarmActivate(Alarm { member: self.below(9), alarm: 1 }),
            5 => Command::AlarmDeactivate(Alarm { member: self.below(9), alarm: 2 }),
            6 => Command::LeaseGrant { id: self.number() | 1, ttl: self.number().max(1) },
            7 => Command::LeaseRevoke { id: self.number() },
            8 => Command::LeaseExpire { id: self.number(), term: self.below(9) },
            9 => Command::LeaseCheckpoint { id: self.number(), remaining: self.number().max(0) },
            _ => {
                let client_urls = (0..self.below(3)).map(|_| self.bytes()).collect();
                Command::PublishMember(PublishMember { member: self.below(9), name: self.bytes(), client_urls })
            }
        }
    }
}

fn read_all(payload: &[u8]) -> Result<Vec<Command<'_>>, CommandError> {
    let mut entry = Entry::decode(payload)?;
    entry.check()?;
    std::iter::from_fn(|| entry.next_command()).collect()
}

#[test]
fn entries_round_trip_and_every_cut_is_rejected() {
    let mut random = Random(42);
    let mut payload = Vec::new();
    for _ in 0..300 {
        let commands: Vec<_> = (0..random.below(5)).map(|_| random.command()).collect();
        begin_entry(&mut payload, 7, 8, 9);
        for command in &commands {
            let before = payload.len();
            append_command(&mut payload, command);
            assert_eq!(payload.len() - before, command_len(command));
        }
        let count = u32::try_from(commands.len()).unwrap();
        let header = EntryHeader { member: 7, boot: 8, first_sequence: 9, count };
        assert_eq!(Entry::decode(&payload).unwrap().header, header);
        assert_eq!(read_all(&payload).unwrap(), commands);
        for cut in (0..payload.len()).step_by(1 + payload.len() / 100) {
            assert!(read_all(&payload[..cut]).is_err(), "cut at {cut} of {}", payload.len());
        }
        payload.push(0);
        assert_eq!(read_all(&payload), Err(CommandError::TrailingBytes));
    }
}

#[test]
fn damaged_bytes_are_rejected_or_have_one_form() {
    let mut random = Random(43);
    let (mut payload, mut again) = (Vec::new(), Vec::new());
    let mut accepted = 0;
    for _ in 0..20_000 {
        begin_entry(&mut payload, 7, 8, 9);
        append_command(&mut payload, &random.command());
        for _ in 0..=random.below(2) {
            let position = random.below(payload.len() as u64) as usize;
            payload[position] = random.below(256) as u8;
        }
        let Ok(commands) = read_all(&payload) else { continue };
        let header = Entry::decode(&payload).unwrap().header;
        begin_entry(&mut again, header.member, header.boot, header.first_sequence);
        commands.iter().for_each(|command| append_command(&mut again, command));
        assert_eq!(again, payload);
        accepted += 1;
    }
    assert!(accepted > 1000, "damage to keys and numbers is no syntax error: {accepted}");
}

#[test]
fn nesting_is_bounded() {
    let nest = |depth: usize| {
        let nested = |inner, _| Txn { success: vec![Op::Txn(inner)], ..Txn::default() };
        (1..depth).fold(Txn::default(), nested)
    };
    let mut payload = Vec::new();
    begin_entry(&mut payload, 1, 1, 1);
    append_command(&mut payload, &Command::Txn(nest(TXN_DEPTH_MAX)));
    assert_eq!(read_all(&payload).unwrap(), [Command::Txn(nest(TXN_DEPTH_MAX))]);
    // The same bytes with one level more, written by hand: the encoder refuses.
    let mut body = vec![KIND_TXN, 0, 0, 0, 0, 1, 0, 0, 0];
    body.extend_from_slice(&payload[ENTRY_HEADER_BYTES + 4..]);
    body.extend_from_slice(&[0; 4]);
    assert_eq!(decode_command(&body), Err(CommandError::TooDeep));
}
