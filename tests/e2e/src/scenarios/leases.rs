//! Leases against etcd: every RPC with legal, odd and illegal arguments, etcdctl's commands, and the end of a lease.
//!
//! Times are not compared: what is left of a lease is written down as long as it is not more than was granted. Ids that
//! a server chooses are replaced by their place, and the keys of a lease, which etcd keeps in a hash map, are sorted.
//! Leases that end by themselves within seconds are granted where nothing that follows depends on them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::client::{Connection, frame, runtime};
use crate::differential::{self, compare};
use crate::messages::{self, Field, Message};
use crate::server::Server;
use crate::setup::{Outcome, Setup};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];
/// The lease that ends by itself lasts this long, far longer than a busy machine delays its renewal.
const TTL: Duration = Duration::from_secs(6);
/// Between renewals; three of them exceed `TTL`.
const RENEWED_EVERY: Duration = Duration::from_millis(2500);
/// Longest wait for the end of a lease that has run out.
const END_LIMIT: Duration = Duration::from_secs(40);

/// One request and how its answer is written down.
struct Call {
    path: &'static str,
    message: Vec<u8>,
}

fn grant(id: i64, ttl: i64) -> Call {
    Call { path: GRANT, message: numbers(&[(1, ttl), (2, id)]) }
}

fn revoke(id: i64) -> Call {
    Call { path: REVOKE, message: numbers(&[(1, id)]) }
}

fn time_to_live(id: i64, keys: bool) -> Call {
    Call { path: TIME_TO_LIVE, message: numbers(&[(1, id), (2, i64::from(keys))]) }
}

fn put(key: &[u8], lease: i64) -> Call {
    Call { path: PUT, message: Message::new().bytes(1, key).bytes(2, b"v").number(3, lease.cast_unsigned()).finish() }
}

fn keeping_lease(key: &[u8]) -> Call {
    Call { path: PUT, message: Message::new().bytes(1, key).bytes(2, b"w").number(6, 1).finish() }
}

fn numbers(fields: &[(u32, i64)]) -> Vec<u8> {
    let with = |message: Message, &(field, value): &(u32, i64)| message.number(field, value.cast_unsigned());
    fields.iter().fold(Message::new(), with).finish()
}

fn all_keys() -> Call {
    Call { path: RANGE, message: messages::range(b"\0", b"\0") }
}

/// Grants and their refusals, attachments and how they change, ends by revocation.
fn lives() -> Vec<Call> {
    let leases = || Call { path: LEASES, message: Vec::new() };
    vec![
        leases(),
        grant(1, 1000),
        grant(1, 1000),
        grant(1, 9_000_000_001),
        grant(2, 9_000_000_001),
        grant(2, i64::MAX),
        grant(2, 9_000_000_000),
        grant(-1, 3000),
        grant(i64::MIN, 2000),
        grant(i64::MAX, 4000),
        leases(),
        put(b"a", 1),
        put(b"b", 1),
        put(b"c", i64::MIN),
        put(b"d", 99),
        time_to_live(1, true),
        time_to_live(1, false),
        time_to_live(i64::MIN, true),
        time_to_live(99, true),
        time_to_live(0, false),
        // To another lease, to none, and kept.
        put(b"a", -1),
        put(b"b", 0),
        keeping_lease(b"a"),
        keeping_lease(b"none"),
        time_to_live(1, true),
        time_to_live(-1, true),
        revoke(1),
        revoke(1),
        revoke(0),
        all_keys(),
        Call { path: DELETE_RANGE, message: messages::delete(b"c", b"") },
        time_to_live(i64::MIN, true),
        put(b"e", -1),
        put(b"aa", -1),
        revoke(-1),
        revoke(i64::MIN),
        all_keys(),
        // An id is free again.
        grant(1, 500),
        time_to_live(1, true),
        leases(),
        Call { path: GRANT, message: vec![0x0a] },
        Call { path: KEEP_ALIVE, message: vec![0x0a] },
    ]
}

/// Commands of etcdctl; `ID` is the lease that the first one made.
const COMMANDS: &[&str] = &[
    "lease grant 9000000001",
    "lease grant x",
    "lease grant",
    "put k 1 --lease=ID",
    "put l 1 --lease=ID",
    "lease timetolive ID",
    "lease timetolive ID --keys",
    "lease timetolive ID --keys -w fields",
    "lease timetolive ID --keys -w json",
    "lease timetolive ID -w json",
    "lease keep-alive --once ID",
    "lease keep-alive --once ID -w json",
    "lease keep-alive --once 1234",
    "lease timetolive 1234",
    "lease timetolive zz",
    "lease list",
    "lease list -w json",
    "lease revoke 1234",
    "lease revoke ID",
    "lease revoke ID",
    "lease timetolive ID --keys",
    "get  --prefix -w json",
    // The shortest leases, last: they end at any moment from now on.
    "lease grant 0",
    "lease grant -- -5",
];

/// Every call of [`lives`], keep-alive streams, and the end of a lease that nobody renews.
pub(super) fn lease_calls(setup: &Setup) -> Result<Outcome> {
    compare(setup, |server| {
        runtime()?.block_on(async {
            let client = Connection::open(server.address()).await?;
            let mut text = String::new();
            for call in lives() {
                text.push_str(&ask(&client, &call).await?);
            }
            text.push_str(&renewals(&client).await?);
            text.push_str(&expiry(&client).await?);
            Ok(text)
        })
    })
}

/// etcdctl's lease commands.
pub(super) fn etcdctl_leases(setup: &Setup) -> Result<Outcome> {
    let Some(etcdctl) = setup.peer("etcdctl") else {
        return Ok(Outcome::Skipped("no etcdctl of the wanted release".to_owned()));
    };
    compare(setup, |server| commands(&etcdctl, server))
}

fn commands(etcdctl: &Path, server: &Server) -> Result<String> {
    let made = differential::etcdctl(etcdctl, server, &["lease", "grant", "300"], None)?;
    let id = made.split(' ').nth(1).context("a lease was granted")?.to_owned();
    let decimal = u64::from_str_radix(&id, 16)?.to_string();
    let mut text = String::new();
    for command in COMMANDS {
        let spelled = command.replace("ID", &id);
        let words: Vec<&str> = spelled.split(' ').collect();
        let said = differential::etcdctl(etcdctl, server, &words, None)?.replace(&id, "ID").replace(&decimal, "ID");
        let said: Vec<String> = said.lines().map(without_times).collect();
        let said = if command.contains("--keys") { keys_in_order(said) } else { said };
        text.push_str(&format!("$ {command}\n{}\n", said.join("\n")));
    }
    Ok(text)
}

/// Lines about a lease with its keys sorted, however they are printed: in one line, as JSON, as a line each.
fn keys_in_order(lines: Vec<String>) -> Vec<String> {
    let lists = [("attached keys([", " "), ("\"keys\":[", ",")];
    let sorted = |line: String| lists.iter().fold(line, |line, (mark, separator)| sorted_list(&line, mark, separator));
    let mut lines: Vec<String> = lines.into_iter().map(sorted).collect();
    let is_key = |line: &String| line.starts_with("\"Key\" : ");
    for run in lines.chunk_by_mut(|one, next| is_key(one) && is_key(next)) {
        run.sort_unstable();
    }
    lines
}

/// A line with the items sorted that stand between `mark` and the next bracket.
fn sorted_list(line: &str, mark: &str, separator: &str) -> String {
    let Some((before, rest)) = line.split_once(mark) else { return line.to_owned() };
    let Some((list, after)) = rest.split_once(']') else { return line.to_owned() };
    let mut items: Vec<&str> = list.split(separator).collect();
    items.sort_unstable();
    format!("{before}{mark}{}]{after}", items.join(separator))
}

/// A line without chosen ids and what is left of leases.
fn without_times(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.split_once("remaining(") {
        Some((before, _)) => format!("{before}remaining(T)"),
        None if word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) => "ID".to_owned(),
        None => word.to_owned(),
    });
    let line = words.collect::<Vec<_>>().join(" ");
    ["\"ttl\":", "\"TTL\" : ", "\"id\":", "\"ID\":"].iter().fold(line, |line, mark| {
        let mut pieces = line.split(mark);
        let first = pieces.next().unwrap_or_default().to_owned();
        pieces.fold(first, |text, piece| text + mark + piece.trim_start_matches(|it: char| it.is_ascii_digit()))
    })
}

/// Makes a call and writes down what came of it.
async fn ask(client: &Connection, call: &Call) -> Result<String> {
    let reply = client.send(call.path, GRPC, frame(&call.message)).await?;
    let mut text = format!("$ {} {:?}\n", call.path, call.message);
    if reply.grpc_status != "0" {
        let message = reply.grpc_message.split(": proto").next().unwrap_or_default();
        let message = if message.starts_with("grpc: ") { "grpc" } else { message };
        return Ok(format!("{text}status {} {message}\n", reply.grpc_status));
    }
    for message in split(&reply.body)? {
        text.push_str(&written(call.path, message)?);
    }
    Ok(text)
}

/// The messages of a body.
fn split(mut body: &[u8]) -> Result<Vec<&[u8]>> {
    let mut messages = Vec::new();
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let (message, rest) = rest.split_at_checked(len).context("a message is cut")?;
        messages.push(message);
        body = rest;
    }
    Ok(messages)
}

fn written(path: &str, message: &[u8]) -> Result<String> {
    let mut fields = messages::fields(message)?;
    if path == TIME_TO_LIVE {
        let number = |wanted| {
            let found = fields.iter().find(|(field, _)| *field == wanted);
            found.map_or(0, |(_, field)| if let Field::Number(value) = field { value.cast_signed() } else { 0 })
        };
        let (left, granted) = (number(3), number(4));
        if granted > 0 && !(granted - 10..=granted).contains(&left) {
            bail!("{left} s are left of {granted} s");
        }
        fields.retain(|(field, _)| *field != 3 || granted == 0);
        // etcd's order of keys is that of a hash map.
        fields.sort_by_key(|(field, value)| {
            (*field, if let Field::Bytes(bytes) = value { bytes.to_vec() } else { vec![] })
        });
    }
    Ok(format!("{fields:?}\n"))
}

/// Streams of several requests; the client half-closes behind the last.
async fn renewals(client: &Connection) -> Result<String> {
    let mut text = ask(client, &grant(70, 700)).await?;
    for ids in [&[70][..], &[70, 71, 70, 0, -1]] {
        let body: Vec<u8> = ids.iter().flat_map(|id| frame(&numbers(&[(1, *id)])).to_vec()).collect();
        let reply = client.send(KEEP_ALIVE, GRPC, Bytes::from(body)).await?;
        text.push_str(&format!("$ renew {ids:?}\nstatus {} {}\n", reply.grpc_status, reply.grpc_message));
        for message in split(&reply.body)? {
            text.push_str(&written(KEEP_ALIVE, message)?);
        }
    }
    Ok(text)
}

/// A lease that is renewed beyond its first end, and then not.
async fn expiry(client: &Connection) -> Result<String> {
    let mut text = String::new();
    for call in [grant(80, TTL.as_secs().cast_signed()), put(b"x", 80), put(b"w", 80), all_keys()] {
        text.push_str(&ask(client, &call).await?);
    }
    let renewal = Call { path: KEEP_ALIVE, message: numbers(&[(1, 80)]) };
    let mut renewed = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep_until((renewed + RENEWED_EVERY).into()).await;
        renewed = Instant::now();
        text.push_str(&ask(client, &renewal).await?);
    }
    text.push_str(&ask(client, &all_keys()).await?);
    while !client.range(b"w", b"y").await?.is_empty() {
        if renewed.elapsed() > END_LIMIT {
            bail!("a lease of {} s has not ended {} s after its last renewal", TTL.as_secs(), END_LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if renewed.elapsed() < TTL {
        bail!("a lease of {} s ended {} ms after its last renewal", TTL.as_secs(), renewed.elapsed().as_millis());
    }
    for call in [all_keys(), time_to_live(80, true), revoke(80)] {
        text.push_str(&ask(client, &call).await?);
    }
    text.push_str(&ask(client, &renewal).await?);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_order_of_a_leases_keys_is_free_in_every_format() {
        for (one, other) in [
            ("lease ID, attached keys([k l])", "lease ID, attached keys([l k])"),
            ("{\"ttl\":,\"keys\":[\"aw==\",\"bA==\"]}", "{\"ttl\":,\"keys\":[\"bA==\",\"aw==\"]}"),
            ("\"TTL\" : \n\"Key\" : \"k\"\n\"Key\" : \"l\"", "\"TTL\" : \n\"Key\" : \"l\"\n\"Key\" : \"k\""),
        ] {
            assert_eq!(keys_in_order(lines(one)), lines(one));
            assert_eq!(keys_in_order(lines(other)), lines(one));
        }
    }

    #[test]
    fn nothing_else_is_moved() {
        for text in ["b\na\n", "\"Key\" : \"k\"\n\"Value\" : \"b\"\n\"Key\" : \"a\"\n", "keys([l k])"] {
            assert_eq!(keys_in_order(lines(text)), lines(text));
        }
        assert_ne!(keys_in_order(lines("attached keys([k])")), keys_in_order(lines("attached keys([k l])")));
    }
}
