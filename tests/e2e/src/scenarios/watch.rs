//! Watches from outside: the campaign of every shape, kill and compaction, and what a start at a compacted revision
//! shows, against etcd.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::campaign::watch::Campaign;
use crate::campaign::watch::wire::{Call, Event, Spec, connect};
use crate::client::{Connection, runtime};
use crate::differential::compare;
use crate::messages::{self, Message};
use crate::server::Server;
use crate::setup::{Outcome, Setup};

/// The scenario; `--events` says how long it goes on.
pub(super) fn watch_campaign(setup: &Setup) -> Result<Outcome> {
    let mut launch = setup.launch()?;
    launch.flags.push("--watch-progress-notify-interval=100ms".to_owned());
    let report = Campaign::new(launch, setup.seed).run(setup.events)?;
    println!("         {report}");
    Ok(Outcome::Passed)
}

/// A watcher may start at the compacted revision, and then sees of it what the compaction left: of a key that one
/// transaction changed twice, the last step; of a deletion, the deletion.
pub(super) fn watch_from_compacted(setup: &Setup) -> Result<Outcome> {
    compare(setup, |server| runtime()?.block_on(watch_behind_compactions(server)))
}

async fn watch_behind_compactions(server: &Server) -> Result<String> {
    let client = Connection::open(server.address()).await?;
    let delete = |key: &[u8]| Message::new().bytes(3, &messages::delete(key, b"")).finish();
    let put = |key: &[u8]| Message::new().bytes(2, &messages::put(key, b"in a transaction")).finish();
    client.put(b"a", b"1").await?;
    // Twice a key that was there, and twice one that was not.
    transact(&client, &[&put(b"a"), &delete(b"a"), &put(b"b")]).await?;
    client.put(b"c", b"1").await?;
    let mut text = compact_and_watch(server, &client, 3).await?;
    let revision = transact(&client, &[&put(b"d"), &delete(b"d"), &delete(b"c")]).await?;
    client.put(b"e", b"1").await?;
    text.push_str(&compact_and_watch(server, &client, revision).await?);
    let reply = client.call("/etcdserverpb.KV/DeleteRange", &messages::delete(b"b", b"")).await?;
    let revision = messages::header_revision(reply.message()?)?;
    text.push_str(&compact_and_watch(server, &client, revision).await?);
    Ok(text)
}

/// Each step in a transaction of its own, so that a key may be changed by several.
async fn transact(client: &Connection, steps: &[&[u8]]) -> Result<u64> {
    let message = steps.iter().fold(Message::new(), |message, step| {
        let inner = Message::new().bytes(2, step).finish();
        message.bytes(2, &Message::new().bytes(4, &inner).finish())
    });
    let reply = client.call("/etcdserverpb.KV/Txn", &message.finish()).await?;
    messages::header_revision(reply.message()?)
}

/// Compacts until it is done, and writes down what watchers see that start there, one below and one above.
async fn compact_and_watch(server: &Server, client: &Connection, revision: u64) -> Result<String> {
    let reply = client.call("/etcdserverpb.KV/Compact", &messages::compaction(revision, true)).await?;
    reply.message()?;
    let mut text = format!("compacted at {revision}\n");
    for start in [revision - 1, revision, revision + 1] {
        for prev_kv in [false, true] {
            let spec = Spec { key: vec![0], end: vec![0], start, prev_kv, ..Spec::default() };
            text.push_str(&format!("from {start}, previous pairs {prev_kv}:"));
            text.push_str(&watch(server, client, &spec).await?);
            text.push('\n');
        }
    }
    Ok(text)
}

/// What a watcher is told until it sees a put that follows its creation, or ends.
async fn watch(server: &Server, client: &Connection, spec: &Spec) -> Result<String> {
    let sender = connect(server.address()).await?;
    let mut call = Call::open(&sender, &server.endpoint()).await?;
    call.send(&spec.encode())?;
    let mut text = String::new();
    let mut last = None;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), call.next()).await;
        let response = next.context("no response")??.context("the call ended")?;
        if response.created {
            last = Some(client.put(b"z", b"last").await?);
        } else if response.canceled {
            text.push_str(&format!(" ended, compacted at {}", response.compact_revision));
            return Ok(text);
        } else if response.events.is_empty() {
            bail!("a response without events");
        }
        for event in &response.events {
            // What earlier watchers waited for is no part of it.
            if event.pair.key != b"z" {
                text.push_str(&shown(event));
            }
        }
        if last.is_some() && response.events.last().map(|event| event.pair.modified) == last {
            return Ok(text);
        }
    }
}

fn shown(event: &Event) -> String {
    let Event { is_delete, pair, prev } = event;
    let kind = if *is_delete { "delete" } else { "put" };
    let prev = prev.as_ref().map(|prev| format!(" before {}", prev.modified)).unwrap_or_default();
    format!(" {kind} {} {}.{}{prev};", pair.key.escape_ascii(), pair.modified, pair.version)
}
