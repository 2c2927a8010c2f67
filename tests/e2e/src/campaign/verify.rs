//! What a server shows after a restart, compared with what its clients were told.
//!
//! I1  Every revision the server claims is one that was acknowledged or that one request in doubt explains.
//! I2  The whole store is compared at the newest revision, at the compacted one, and at revisions chosen by lot.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use crate::chance::Chance;
use crate::client::{Connection, Reply, runtime};
use crate::history::{History, Mutation};
use crate::messages::{self, KeyValue};

/// Revisions at which everything is read back.
const OLD_REVISIONS: u64 = 4;
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// Compares, decides what was in doubt, and leaves the history settled at the server's revision, which is returned.
pub fn verify(address: SocketAddr, history: &mut History, chance: &mut Chance) -> Result<u64> {
    runtime()?.block_on(async {
        let reader = Reader { client: Connection::open(address).await? };
        let head = reader.head().await?;
        let compacted = reader.compacted(history).await?;
        history.settle_compaction(compacted)?;
        for revision in history.unexplained(head)? {
            let stream = reader.explanation(history, revision, compacted).await?;
            history.explain(stream, revision)?;
        }
        history.settle(head);
        history.check(head, &reader.everything(head).await?)?;
        if compacted > 0 {
            history.check(compacted, &reader.everything(compacted).await?)?;
        }
        for _ in 0..OLD_REVISIONS {
            let revision = compacted.max(1) + chance.below(head - compacted.max(1) + 1);
            history.check(revision, &reader.everything(revision).await?)?;
        }
        Ok(head)
    })
}

struct Reader {
    client: Connection,
}

impl Reader {
    async fn range(&self, message: &[u8]) -> Result<Reply> {
        self.client.call("/etcdserverpb.KV/Range", message).await
    }

    async fn head(&self) -> Result<u64> {
        let reply = self.range(&messages::range(b"head", b"")).await?;
        messages::header_revision(reply.message()?)
    }

    async fn everything(&self, revision: u64) -> Result<Vec<KeyValue>> {
        let reply = self.range(&messages::range_at(b"\0", b"\0", revision)).await?;
        let answer = reply.message().with_context(|| format!("everything at revision {revision}"))?;
        messages::range_response(answer)
    }

    async fn one(&self, key: &str, revision: u64) -> Result<Option<KeyValue>> {
        let reply = self.range(&messages::range_at(key.as_bytes(), b"", revision)).await?;
        let answer = reply.message().with_context(|| format!("{key} at revision {revision}"))?;
        Ok(messages::range_response(answer)?.pop())
    }

    /// The compaction the server is at: the highest one in doubt, or the one acknowledged, and no other.
    async fn compacted(&self, history: &History) -> Result<u64> {
        let (told, possible) = history.compactions();
        for revision in [possible, told] {
            // Revision 0 in a request means the newest, and there is no revision below 1 to ask for.
            if revision < 2 {
                return Ok(revision);
            }
            let below = self.range(&messages::range_at(b"k", b"", revision - 1)).await?;
            let at = self.range(&messages::range_at(b"k", b"", revision)).await?;
            if below.grpc_message == COMPACTED && at.message().is_ok() {
                return Ok(revision);
            }
        }
        bail!("the compaction at {told} was acknowledged and is gone, or one beyond {possible} has happened")
    }

    /// The stream whose request in doubt made this revision.
    async fn explanation(&self, history: &History, revision: u64, compacted: u64) -> Result<u64> {
        for (stream, mutation) in history.doubtful() {
            if self.made(mutation, revision, compacted).await? {
                return Ok(stream);
            }
        }
        bail!("nobody was told of revision {revision}, and no request in doubt explains it")
    }

    /// Whether the revision shows the mutation, which it does wholly or not at all.
    async fn made(&self, mutation: &Mutation, revision: u64, compacted: u64) -> Result<bool> {
        // A request in doubt is its stream's last: nothing changed its keys after it.
        let when = revision.max(compacted);
        let (mut shown, mut puts_shown) = (0, 0);
        for (key, payload) in &mutation.changes {
            let after = self.one(key, when).await?;
            let is_shown = match payload {
                Some(payload) => {
                    after.is_some_and(|pair| pair.mod_revision == revision && pair.value == payload.bytes())
                }
                None if after.is_some() => false,
                None if revision > compacted.max(1) => self.one(key, revision - 1).await?.is_some(),
                None => true,
            };
            shown += usize::from(is_shown);
            puts_shown += usize::from(is_shown && payload.is_some());
        }
        // A value is nobody else's, so one that is there proves the request.
        if puts_shown > 0 && shown < mutation.changes.len() {
            bail!("revision {revision} shows {shown} of {} changes: {:?}", mutation.changes.len(), mutation.changes);
        }
        Ok(shown == mutation.changes.len())
    }
}
