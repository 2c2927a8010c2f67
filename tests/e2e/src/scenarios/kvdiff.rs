//! Random requests to both servers at once: every answer must be the same, byte for byte but for the ids in its header,
//! and so must every error's code and text. At the end the hash of the store must be the same at every revision.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use crate::client::{Connection, Reply, runtime};
use crate::differential::both;
use crate::grammar::{Grammar, Request};
use crate::messages::{self, Field, Message};
use crate::server::{Launch, Server};
use crate::setup::{Outcome, Setup};

/// Requests of the random comparison.
const REQUESTS: u64 = 20_000;
/// Of them so many before the store is started afresh on both sides.
const REQUESTS_PER_STORE: u64 = 5_000;
/// Scripts of the comparison of hashes, each on fresh stores.
const SCRIPTS: u64 = 4;
const COMPACTIONS: u64 = 3;
const CHANGES: u64 = 60;
const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";

/// Both servers and connections to them, etcd first.
struct Pair {
    launches: [Launch; 2],
    servers: Option<[Server; 2]>,
}

impl Pair {
    fn start(setup: &Setup) -> Result<Self> {
        let launches = both(setup)?;
        let mut pair = Self { launches, servers: None };
        pair.restart()?;
        Ok(pair)
    }

    fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let [etcd, subject] = &self.launches;
        self.servers = Some([etcd.start()?, subject.start()?]);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        for server in self.servers.take().into_iter().flatten() {
            server.stop(&[])?;
        }
        Ok(())
    }

    async fn connect(&self) -> Result<[Connection; 2]> {
        let address = |index: usize| -> Result<SocketAddr> {
            Ok(self.servers.as_ref().context("the servers are stopped")?[index].address())
        };
        Ok([Connection::open(address(0)?).await?, Connection::open(address(1)?).await?])
    }
}

/// The scenario of random requests; the seed is `--seed`.
pub(super) fn random_requests(setup: &Setup) -> Result<Outcome> {
    if setup.peer("etcd").is_none() {
        return Ok(Outcome::Skipped("no etcd to compare with".to_owned()));
    }
    let mut tally = Tally::default();
    for store in 0..REQUESTS / REQUESTS_PER_STORE {
        let mut pair = Pair::start(setup)?;
        let mut grammar = Grammar::new(setup.seed, store);
        runtime()?.block_on(async {
            let connections = pair.connect().await?;
            for number in 0..REQUESTS_PER_STORE {
                let context = || format!("request {number} of store {store}, seed {}", setup.seed);
                ask_both(&connections, &mut grammar, &mut tally).await.with_context(context)?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        pair.stop()?;
    }
    println!("         {REQUESTS} requests, {} changed something, {} errors alike", tally.changes, tally.errors);
    // Random requests that hardly do anything would compare nothing.
    if tally.changes < REQUESTS / 10 || tally.errors < REQUESTS / 100 {
        bail!("the requests are too much alike: {tally:?}");
    }
    Ok(Outcome::Passed)
}

#[derive(Debug, Default)]
struct Tally {
    changes: u64,
    errors: u64,
}

async fn ask_both(connections: &[Connection; 2], grammar: &mut Grammar, tally: &mut Tally) -> Result<()> {
    let request = grammar.request();
    let [etcd, subject] = send_both(connections, &request).await?;
    tally.errors += u64::from(etcd.grpc_status != "0");
    if etcd.grpc_status == "0" {
        let revision = messages::header_revision(etcd.message()?)?;
        tally.changes += u64::from(revision > grammar.revisions.head);
        grammar.revisions.head = revision;
        note_compaction(&request, grammar)?;
    }
    let (wanted, found) = (essence(&etcd)?, essence(&subject)?);
    if wanted != found {
        bail!("{}\n- {}\n+ {}", request.text, wanted.escape_ascii(), found.escape_ascii());
    }
    Ok(())
}

fn note_compaction(request: &Request, grammar: &mut Grammar) -> Result<()> {
    if request.path.ends_with("/Compact")
        && let Some((1, Field::Number(revision))) = messages::fields(&request.message)?.first()
    {
        grammar.revisions.compacted = *revision;
    }
    Ok(())
}

async fn send_both(connections: &[Connection; 2], request: &Request) -> Result<[Reply; 2]> {
    let [etcd, subject] = connections;
    let theirs = {
        let (etcd, path, message) = (etcd.clone(), request.path, request.message.clone());
        tokio::spawn(async move { etcd.call(path, &message).await })
    };
    let ours = subject.call(request.path, &request.message).await;
    let theirs = theirs.await?;
    Ok([
        theirs.with_context(|| format!("etcd: {}", request.text))?,
        ours.with_context(|| format!("subject: {}", request.text))?,
    ])
}

/// What must agree: everything but ids, term and the order of fields' absence in the header.
fn essence(reply: &Reply) -> Result<Vec<u8>> {
    let mut kept = format!(
        "HTTP {} {} status {} '{}' ",
        reply.http_status, reply.content_type, reply.grpc_status, reply.grpc_message
    )
    .into_bytes();
    if reply.grpc_status != "0" {
        kept.extend_from_slice(&reply.body);
        return Ok(kept);
    }
    for (field, value) in messages::fields(reply.message()?)? {
        match value {
            Field::Bytes(_) if field == 1 => {
                kept.extend(format!("revision {} ", messages::header_revision(reply.message()?)?).into_bytes());
            }
            Field::Bytes(bytes) => {
                kept.extend(format!("{field}: ").into_bytes());
                kept.extend_from_slice(bytes);
            }
            Field::Number(number) => kept.extend(format!("{field}: {number} ").into_bytes()),
        }
    }
    Ok(kept)
}

/// HashKV at every revision from the compacted one on, after random changes, compactions at tombstones, at the newest
/// revision and anywhere, and restarts: etcd answers with hashes it kept from compactions until it restarts.
pub(super) fn hash_kv(setup: &Setup) -> Result<Outcome> {
    if setup.peer("etcd").is_none() {
        return Ok(Outcome::Skipped("no etcd to compare with".to_owned()));
    }
    let mut compared = 0;
    for script in 0..SCRIPTS {
        let mut pair = Pair::start(setup)?;
        let mut grammar = Grammar::new(setup.seed, 1000 + script);
        for round in 0..=COMPACTIONS {
            let context = || format!("script {script}, round {round}, seed {}", setup.seed);
            let step = runtime()?.block_on(change_and_compact(&pair, &mut grammar, round));
            step.with_context(context)?;
            if round > 0 {
                pair.restart()?;
            }
            compared += runtime()?.block_on(compare_hashes(&pair, &grammar)).with_context(context)?;
        }
        pair.stop()?;
    }
    println!("         {compared} hashes alike");
    Ok(Outcome::Passed)
}

/// Changes both stores alike and, but for round 0, compacts them.
async fn change_and_compact(pair: &Pair, grammar: &mut Grammar, round: u64) -> Result<()> {
    let connections = pair.connect().await?;
    let mut tombstone = 0;
    for number in 0..CHANGES {
        // The last change before a compaction at the newest revision is a deletion in every third round.
        let request = if number + 1 == CHANGES && round == 2 { delete_all() } else { grammar.change() };
        let [etcd, subject] = send_both(&connections, &request).await?;
        if essence(&etcd)? != essence(&subject)? {
            bail!("{}: the answers differ", request.text);
        }
        let Ok(answer) = etcd.message() else { continue };
        let revision = messages::header_revision(answer)?;
        if request.path.ends_with("/DeleteRange") && revision > grammar.revisions.head {
            tombstone = revision;
        }
        grammar.revisions.head = revision;
    }
    let revision = match round {
        0 => return Ok(()),
        1 if tombstone > 0 => tombstone,
        2 => grammar.revisions.head,
        _ => grammar.revisions.head - CHANGES / 4,
    };
    let message = messages::compaction(revision, true);
    let text = format!("compact to {revision}");
    let request = Request { path: "/etcdserverpb.KV/Compact", message, text, is_write: true };
    for reply in send_both(&connections, &request).await? {
        reply.message().context("compaction")?;
    }
    grammar.revisions.compacted = revision;
    Ok(())
}

fn delete_all() -> Request {
    let (path, text) = ("/etcdserverpb.KV/DeleteRange", "delete everything".to_owned());
    Request { path, message: messages::delete(b"\0", b"\0"), text, is_write: true }
}

/// The number of hashes that agree, those of revisions that are compacted or to come included.
async fn compare_hashes(pair: &Pair, grammar: &Grammar) -> Result<u64> {
    let connections = pair.connect().await?;
    let first = grammar.revisions.compacted.saturating_sub(1);
    for revision in first..=grammar.revisions.head + 1 {
        let message = Message::new().number(1, revision).finish();
        let text = format!("hash at {revision}");
        let request = Request { path: HASH_KV, message, text, is_write: false };
        let [etcd, subject] = send_both(&connections, &request).await?;
        let (wanted, found) = (essence(&etcd)?, essence(&subject)?);
        if wanted != found {
            let compacted = grammar.revisions.compacted;
            bail!(
                "hash at {revision}, compacted at {compacted}\n- {}\n+ {}",
                wanted.escape_ascii(),
                found.escape_ascii()
            );
        }
    }
    Ok(grammar.revisions.head + 2 - first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::frame;

    fn reply(member: u64, revision: u64, rest: u64) -> Reply {
        let header = Message::new().number(2, member).number(3, revision).finish();
        Reply {
            http_status: 200,
            content_type: "application/grpc".to_owned(),
            grpc_status: "0".to_owned(),
            grpc_message: String::new(),
            body: frame(&Message::new().bytes(1, &header).number(4, rest).finish()).to_vec(),
        }
    }

    #[test]
    fn ids_may_differ_and_nothing_else() {
        let base = essence(&reply(1, 2, 3)).unwrap();
        assert_eq!(base, essence(&reply(9, 2, 3)).unwrap());
        assert_ne!(base, essence(&reply(1, 3, 3)).unwrap());
        assert_ne!(base, essence(&reply(1, 2, 4)).unwrap());
        let refused = |text: &str| {
            let mut reply = reply(1, 2, 3);
            (reply.grpc_status, reply.grpc_message) = ("3".to_owned(), text.to_owned());
            essence(&reply).unwrap()
        };
        assert_ne!(refused("a"), refused("b"));
        assert_ne!(refused("a"), base);
    }
}
