//! The log form of commands: an entry's payload, which every member applies.

use trilith_engine::command::{
    Alarm, Command, Compare, CompareResult, CompareTarget, DeleteRange, Entry, Op, PublishMember, Put, RangeQuery, Txn,
    append_command, begin_entry, decode_command,
};

use crate::Target;
use crate::targets::no_repair;

pub(crate) const TARGET: Target = Target { name: "command", run, seeds, repair: no_repair, cost: 1 };

/// A checked entry yields exactly the commands its header counts; any other must end its iteration cleanly.
fn run(input: &[u8]) -> bool {
    let _ = decode_command(input);
    let Ok(mut entry) = Entry::decode(input) else { return false };
    let checked = entry.check().is_ok();
    let mut commands = 0u32;
    while let Some(command) = entry.next_command() {
        commands += 1;
        assert!(command.is_ok() || !checked, "a checked entry holds commands only");
        assert!(commands as usize <= input.len(), "every command takes bytes");
    }
    assert!(commands == entry.header.count || !checked, "a checked entry holds what it counts");
    checked
}

fn seeds() -> Vec<Vec<u8>> {
    let put = Put { key: b"key", value: b"value", lease: 7, prev_kv: true, ..Put::default() };
    let del = DeleteRange { key: b"a", range_end: b"\0", prev_kv: false };
    let query = RangeQuery { key: b"a", range_end: b"b", limit: 3, ..RangeQuery::default() };
    let compare =
        Compare { key: b"k", range_end: b"", result: CompareResult::Less, target: CompareTarget::Value(b"v") };
    let inner = Txn { success: vec![Op::DeleteRange(del)], ..Txn::default() };
    let txn =
        Txn { compares: vec![compare], success: vec![Op::Put(put), Op::Range(query)], failure: vec![Op::Txn(inner)] };
    let alarm = Alarm { member: 1, alarm: 1 };
    let member = PublishMember { member: 5, name: b"default", client_urls: vec![b"http://localhost:2379", b""] };
    let commands = [
        Command::Put(put),
        Command::DeleteRange(del),
        Command::Txn(txn),
        Command::Compact { revision: 9 },
        Command::AlarmActivate(alarm),
        Command::AlarmDeactivate(alarm),
        Command::PublishMember(member),
    ];
    let entry = |commands: &[Command<'_>]| {
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 2, 3);
        for command in commands {
            append_command(&mut payload, command);
        }
        payload
    };
    let mut seeds: Vec<Vec<u8>> = commands.iter().map(|command| entry(std::slice::from_ref(command))).collect();
    seeds.push(entry(&commands));
    seeds.push(entry(&[]));
    seeds
}
