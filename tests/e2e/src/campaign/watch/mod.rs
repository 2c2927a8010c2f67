//! Watchers of every shape on a server that is killed again and again, and the proof that none of them was told
//! anything but what happened, all of it, in order.
//!
//! A campaign is a row of lives. In each, [`writers`] change keys, let leases end and compact, and [`watchers`] come
//! and go on many streams, some of them from life to life. The server is killed in the middle of it, or after
//! everybody was handed everything. When the next life begins, what was acknowledged, what was in doubt and what a
//! reference watcher saw are settled in the [`ledger`] and become the [`model`]; ranges at several revisions must show
//! the same; then [`judge()`] compares every word said on every stream with the model.
//!
//! I1  Events count when they were judged.
//! I2  Nothing is judged before the server has been started again and shown what it kept.

mod judge;
mod ledger;
mod model;
mod watchers;
pub(crate) mod wire;
mod writers;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::campaign::watch::judge::{Tally, Transcript, judge};
use crate::campaign::watch::ledger::{Explained, Shared};
use crate::campaign::watch::model::{Model, show};
use crate::campaign::watch::watchers::{Everything, Plan};
use crate::campaign::watch::wire::{Call, Pair};
use crate::chance::Chance;
use crate::client::{Connection, runtime};
use crate::messages::{self, Field, Message, fields};
use crate::server::{Launch, Server};

/// Events of a life of middling length.
const EVENTS_PER_LIFE: u64 = 25_000;
/// Lives of the shortest campaign.
const LIVES_MIN: u64 = 4;
/// Longest wait for the events of one life.
const LIFE_SECONDS_MAX: u64 = 120;
/// Longest wait for all watchers to come to rest, beyond their own.
const REST_SECONDS_MAX: u64 = 60;
/// Longest wait for a lease to run out.
const LEASES_SECONDS_MAX: u64 = 4;
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// Breaches that are described.
const BREACHES_SHOWN: usize = 8;

/// A campaign under way.
pub struct Campaign {
    launch: Launch,
    chance: Chance,
    shared: Arc<Shared>,
    model: Model,
    plans: Vec<Plan>,
    transcripts: Vec<Transcript>,
    tally: Tally,
    explained: Explained,
    breaches: Vec<String>,
    kills: u64,
    long_step_bytes: u64,
    rests: u64,
    compacted: u64,
    compactions: u64,
}

impl Campaign {
    /// Nothing has happened yet.
    pub fn new(launch: Launch, seed: u64) -> Self {
        Self {
            launch,
            chance: Chance::new(seed, 0),
            shared: Arc::default(),
            model: Model::default(),
            plans: watchers::plans(seed),
            transcripts: Vec::new(),
            tally: Tally::default(),
            explained: Explained::default(),
            breaches: Vec::new(),
            kills: 0,
            long_step_bytes: 0,
            rests: 0,
            compacted: 0,
            compactions: 0,
        }
    }

    /// Goes on until so many events were judged; what it came to.
    pub fn run(mut self, events: u64) -> Result<String> {
        // A short campaign has its kills, too.
        let quota = (events / LIVES_MIN).clamp(1, EVENTS_PER_LIFE);
        let mut server = self.start()?;
        while self.tally.events < events || self.kills + 1 < LIVES_MIN {
            let life = format!("life {}", self.kills + 1);
            // Short lives and long ones: a kill while everybody still catches up, and one long after.
            let quota = (quota / 4) << self.chance.below(5);
            self.live(&mut server, quota).with_context(|| life.clone())?;
            server.check(&[]).with_context(|| life.clone())?;
            server = self.start().with_context(|| life.clone())?;
            self.settle(&server).with_context(|| life.clone())?;
            if !self.breaches.is_empty() {
                bail!("{life}: {} breaches:\n{}", self.breaches.len(), self.breaches.join("\n"));
            }
        }
        let head = self.model.head();
        let hash = hash_kv(&server, head)?;
        server.stop(&[])?;
        let server = self.launch.start()?;
        if hash_kv(&server, head)? != hash {
            bail!("the hash of revision {head} changed with a restart");
        }
        server.stop(&[])?;
        self.check_variety(events)?;
        Ok(self.report())
    }

    /// Starts the server for the next life. In every other one requests are small, and so are the fragments of
    /// responses; in the rest a transaction is larger than what is handed over at once.
    fn start(&mut self) -> Result<Server> {
        self.long_step_bytes = if self.kills.is_multiple_of(2) { 70_000 } else { 18_000 };
        let mut launch = self.launch.clone();
        if self.long_step_bytes == 18_000 {
            launch.flags.push("--max-request-bytes=400000".to_owned());
        }
        launch.start()
    }

    /// One life: clients at work until enough was told, and a kill.
    fn live(&mut self, server: &mut Server, quota: u64) -> Result<()> {
        let shared = &self.shared;
        shared.stopping.store(false, Ordering::Relaxed);
        for counter in [&shared.events, &shared.quiet_at, &shared.quiet_streams] {
            counter.store(0, Ordering::Relaxed);
        }
        let (address, seed) = (server.address(), self.chance.bits());
        let streams = self.plans.len() as u64;
        let watchers = watchers::start(shared, address, std::mem::take(&mut self.plans), seed);
        let writers = writers::start(shared, address, &self.model, self.long_step_bytes, seed);
        let comes_to_rest = self.chance.percent(30);
        let lives = || !watchers.is_finished() && !writers.is_finished();
        let in_time = wait_until(LIFE_SECONDS_MAX, || shared.events.load(Ordering::Relaxed) >= quota || !lives());
        let lived = lives();
        if comes_to_rest && lived && in_time {
            shared.stopping.store(true, Ordering::Relaxed);
            wait_until(LIFE_SECONDS_MAX, || writers.is_finished());
            shared.quiet_at.store(head_of(server)?, Ordering::Relaxed);
            let is_over = || shared.quiet_streams.load(Ordering::Relaxed) == streams || watchers.is_finished();
            let at_rest = wait_until(REST_SECONDS_MAX, is_over) && !watchers.is_finished();
            // Leases run out meanwhile, if any are left.
            let rested_at = shared.quiet_at.load(Ordering::Relaxed);
            wait_until(LEASES_SECONDS_MAX, || shared.ledger().seen_to() > rested_at);
            server.kill()?;
            writers.join().ok().context("the writers panicked")??;
            let told = watchers.join().ok().context("the watchers panicked")??;
            (self.plans, self.transcripts) = told.into_iter().unzip();
            if !at_rest {
                bail!("not every stream came to rest");
            }
            self.rests += 1;
        } else {
            server.kill()?;
            shared.stopping.store(true, Ordering::Relaxed);
            writers.join().ok().context("the writers panicked")??;
            let told = watchers.join().ok().context("the watchers panicked")??;
            (self.plans, self.transcripts) = told.into_iter().unzip();
        }
        if !lived || !in_time {
            let lost = shared.ledger().take_lost();
            bail!("the clients had to stop before the kill, or came to nothing: {lost:?}");
        }
        shared.ledger().take_lost();
        self.kills += 1;
        Ok(())
    }

    /// What the last life came to, by what the server shows now.
    fn settle(&mut self, server: &Server) -> Result<()> {
        let (head, compacted) = runtime()?.block_on(self.see_the_rest(server))?;
        self.compactions += u64::from(compacted > self.compacted);
        self.compacted = compacted;
        let explained = self.shared.ledger().settle(&mut self.model, head)?;
        self.explained.doubtful += explained.doubtful;
        self.explained.expired += explained.expired;
        let mut revisions = vec![head, compacted.max(1)];
        let span = head - compacted.max(1) + 1;
        revisions.extend((0..2).map(|_| compacted.max(1) + self.chance.below(span)));
        runtime()?.block_on(check_ranges(server, &self.model, &revisions))?;
        for transcript in std::mem::take(&mut self.transcripts) {
            if let Err(breach) = judge(&self.model, &transcript, &mut self.tally)
                && self.breaches.len() < BREACHES_SHOWN
            {
                self.breaches.push(format!("{breach:#}"));
            }
        }
        Ok(())
    }

    /// Reads what the reference watcher was not handed any more; the server's head and compacted revision.
    async fn see_the_rest(&self, server: &Server) -> Result<(u64, u64)> {
        let client = Connection::open(server.address()).await?;
        let reply = client.call("/etcdserverpb.KV/Range", &messages::range(b"head", b"")).await?;
        let head = messages::header_revision(reply.message()?)?;
        let (seen_to, (told, possible)) = {
            let ledger = self.shared.ledger();
            (ledger.seen_to().max(1), ledger.compactions())
        };
        let compacted = compacted_at(&client, told, possible).await?;
        self.shared.ledger().settle_compaction(compacted);
        if seen_to < head {
            let sender = wire::connect(server.address()).await?;
            let mut call = Call::open(&sender, &server.endpoint()).await?;
            let mut reader = Everything::begin(&mut call, seen_to + 1)?;
            while self.shared.ledger().seen_to() < head {
                let next = tokio::time::timeout(Duration::from_secs(20), call.next()).await;
                let response = next.context("the history does not come")??.context("the call ended")?;
                if let Some(events) = reader.take(response)? {
                    self.shared.ledger().see(&events)?;
                }
            }
        }
        Ok((head, compacted))
    }

    /// A campaign of some length must have met everything it is for.
    fn check_variety(&self, events: u64) -> Result<()> {
        let tally = &self.tally;
        let met = [
            ("previous pairs", tally.previous_pairs),
            ("ends by compaction", tally.compacted),
            ("cancelled watchers", tally.canceled),
            ("refused watchers", tally.refused),
            ("progress of a stream", tally.progress_asked),
            ("progress of a watcher", tally.progress_given),
            ("compactions", self.compactions),
            ("fragments", tally.fragments),
            ("requests in doubt that happened", self.explained.doubtful),
            ("leases that ran out", self.explained.expired),
            ("lives that came to rest", self.rests),
        ];
        // Rare ones need a long campaign.
        let common = if events >= 500_000 { met.len() } else { 6 };
        match met[..common].iter().find(|(_, count)| *count == 0) {
            Some((what, _)) => bail!("the campaign has met no {what}: {}", self.report()),
            None => Ok(()),
        }
    }

    fn report(&self) -> String {
        let Self { tally, explained, model, kills, rests, compactions, .. } = self;
        format!(
            "{} events to {} watchers judged, 0 breaches; {} revisions, {kills} kills, {rests} of them at rest; \
             compactions in {compactions} lives, {} watchers ended by them; {} previous pairs, {} fragments, \
             {} + {} notices of progress, {} cancelled, {} refused; {} revisions of requests in doubt, {} of leases \
             that ran out",
            tally.events,
            tally.watchers,
            model.head(),
            tally.compacted,
            tally.previous_pairs,
            tally.fragments,
            tally.progress_asked,
            tally.progress_given,
            tally.canceled,
            tally.refused,
            explained.doubtful,
            explained.expired,
        )
    }
}

/// Waits for something; false if it does not come about in time.
fn wait_until(seconds: u64, is_there: impl Fn() -> bool) -> bool {
    let limit = Instant::now() + Duration::from_secs(seconds);
    while !is_there() {
        if Instant::now() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

fn head_of(server: &Server) -> Result<u64> {
    runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        let reply = client.call("/etcdserverpb.KV/Range", &messages::range(b"head", b"")).await?;
        messages::header_revision(reply.message()?)
    })
}

/// The compaction the server is at: the one in doubt, or the one acknowledged, and no other.
async fn compacted_at(client: &Connection, told: u64, possible: u64) -> Result<u64> {
    for revision in [possible, told] {
        if revision < 2 {
            return Ok(revision);
        }
        let ask = |revision| messages::range_at(b"k", b"", revision);
        let below = client.call("/etcdserverpb.KV/Range", &ask(revision - 1)).await?;
        let at = client.call("/etcdserverpb.KV/Range", &ask(revision)).await?;
        if below.grpc_message == COMPACTED && at.message().is_ok() {
            return Ok(revision);
        }
    }
    bail!("the compaction at {told} was acknowledged and is gone, or one beyond {possible} has happened")
}

/// Compares everything at some revisions with the model.
async fn check_ranges(server: &Server, model: &Model, revisions: &[u64]) -> Result<()> {
    let client = Connection::open(server.address()).await?;
    for &revision in revisions {
        let reply = client.call("/etcdserverpb.KV/Range", &messages::range_at(b"\0", b"\0", revision)).await?;
        let mut found = Vec::new();
        for field in fields(reply.message().with_context(|| format!("everything at {revision}"))?)? {
            if let (2, Field::Bytes(pair)) = field {
                found.push(Pair::decode(pair)?);
            }
        }
        let wanted = model.everything(revision);
        if let Some((found, wanted)) = found.iter().zip(&wanted).find(|(found, wanted)| *found != **wanted) {
            bail!("at {revision}: {found:?} instead of {wanted:?}");
        }
        if found.len() != wanted.len() {
            let place = found.len().min(wanted.len());
            let odd = found.get(place).or_else(|| wanted.get(place).copied()).map(|pair| show(&pair.key));
            bail!("at {revision}: {} keys instead of {}: {odd:?}", found.len(), wanted.len());
        }
    }
    Ok(())
}

/// HashKV at a revision.
fn hash_kv(server: &Server, revision: u64) -> Result<u64> {
    runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        let request = Message::new().number(1, revision).finish();
        let reply = client.call("/etcdserverpb.Maintenance/HashKV", &request).await?;
        let hash = fields(reply.message()?)?.into_iter().find_map(|field| match field {
            (2, Field::Number(hash)) => Some(hash),
            _ => None,
        });
        hash.context("an answer without a hash")
    })
}
