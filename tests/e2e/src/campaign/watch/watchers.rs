//! Clients that watch: streams full of watchers of every shape, and the reference watcher of everything.
//!
//! Owns: what they ask for, when they do not read, and what they write down. Does not know: what they should be told.
//!
//! I1  What is sent is noted before what it brings about can arrive.
//! I2  A lasting watcher goes on in the next life one revision behind the last that it was told of.
//! I3  Who is asked to come to rest fails if it has not been handed everything within [`QUIET_SECONDS_MAX`].

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

use crate::campaign::watch::judge::{Note, Transcript};
use crate::campaign::watch::ledger::Shared;
use crate::campaign::watch::wire::{self, Call, Event, Response, Spec};
use crate::campaign::watch::writers::{KEYS, WRITERS, end_of, key_of, prefix_of};
use crate::chance::Chance;
use crate::client::runtime;

const CONNECTIONS: usize = 4;
/// Lasting watchers of a mixed stream.
const LASTING: usize = 5;
/// Short-lived watchers of a stream at a time.
const PASSING_MAX: usize = 6;
/// Watchers of the crowded stream.
const CROWD: u64 = 1000;
/// Longest wait for everything that has happened.
const QUIET_SECONDS_MAX: u64 = 30;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Watchers come and go.
    Mixed,
    /// So they do, and now and then nothing is read for a while.
    Slow,
    /// A thousand watchers of single keys.
    Crowded,
}

/// A stream that every life has.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    name: String,
    kind: Kind,
    lasting: Vec<Spec>,
}

/// The streams of a campaign.
pub(super) fn plans(seed: u64) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (number, kind) in (0..).zip([[Kind::Mixed; 13].as_slice(), &[Kind::Slow; 3], &[Kind::Crowded]].concat()) {
        let mut chance = Chance::new(seed, 1000 + number);
        let lasting = match kind {
            Kind::Crowded => (0..CROWD).map(|place| single(place, &mut chance)).collect(),
            _ => (0..LASTING).map(|_| any(&mut chance)).collect(),
        };
        plans.push(Plan { name: format!("{kind:?} stream {number}"), kind, lasting });
    }
    plans
}

fn single(place: u64, chance: &mut Chance) -> Spec {
    Spec { key: key_of(place % WRITERS, place / WRITERS % KEYS), prev_kv: chance.percent(20), ..Spec::default() }
}

/// A watcher of any shape, from now on.
fn any(chance: &mut Chance) -> Spec {
    let (one, other) = (chance.below(WRITERS), chance.below(WRITERS));
    let (from, to) = (key_of(one.min(other), chance.below(KEYS)), key_of(one.max(other), chance.below(KEYS)));
    let (key, end) = match chance.below(20) {
        0..3 => (vec![0], vec![0]),
        3..5 => (prefix_of(one), vec![0]),
        5..10 => (prefix_of(one), end_of(one)),
        10..15 => (from, Vec::new()),
        15..18 if from < to => (from, to),
        18 => (b"never".to_vec(), Vec::new()),
        _ => (b"x/".to_vec(), b"x0".to_vec()),
    };
    let (prev_kv, fragment, progress) = (chance.percent(40), chance.percent(40), chance.percent(30));
    let (no_put, no_delete) = (chance.percent(12), chance.percent(12));
    Spec { key, end, start: 0, id: 0, prev_kv, no_put, no_delete, fragment, progress }
}

/// Starts all watchers on a thread; it ends with their server, and yields what they wrote down and how they go on.
pub(super) fn start(
    shared: &Arc<Shared>,
    address: SocketAddr,
    plans: Vec<Plan>,
    seed: u64,
) -> JoinHandle<Result<Vec<(Plan, Transcript)>>> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || runtime()?.block_on(watch_all(shared, address, plans, seed)))
}

async fn watch_all(
    shared: Arc<Shared>,
    address: SocketAddr,
    plans: Vec<Plan>,
    seed: u64,
) -> Result<Vec<(Plan, Transcript)>> {
    let reference = tokio::spawn(follow(Arc::clone(&shared), address));
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        senders.push(wire::connect(address).await?);
    }
    let mut tasks = Vec::new();
    for (number, plan) in plans.into_iter().enumerate() {
        let call = Call::open(&senders[number % CONNECTIONS], &address.to_string()).await?;
        let driver = Driver::new(Arc::clone(&shared), Chance::new(seed, 2000 + number as u64), plan, call);
        tasks.push(tokio::spawn(driver.run()));
    }
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await??);
    }
    reference.await??;
    Ok(done)
}

/// Follows everything from behind what was seen, until the server is gone.
async fn follow(shared: Arc<Shared>, address: SocketAddr) -> Result<()> {
    let sender = wire::connect(address).await?;
    let mut call = Call::open(&sender, &address.to_string()).await?;
    let from = shared.ledger().seen_to().max(1) + 1;
    let mut reader = Everything::begin(&mut call, from)?;
    while let Ok(Some(response)) = call.next().await {
        if let Some(events) = reader.take(response)? {
            shared.ledger().see(&events)?;
        }
    }
    Ok(())
}

/// A watcher of every key.
pub(super) struct Everything {
    open: Vec<Event>,
}

impl Everything {
    /// Asks for everything from a revision on.
    pub(super) fn begin(call: &mut Call, from: u64) -> Result<Self> {
        call.send(&Spec { key: vec![0], end: vec![0], start: from, ..Spec::default() }.encode())?;
        Ok(Self { open: Vec::new() })
    }

    /// Takes a response in; whole revisions, if there are any.
    pub(super) fn take(&mut self, response: Response) -> Result<Option<Vec<Event>>> {
        if response.canceled {
            bail!("the watcher of everything was ended: {response:?}");
        }
        self.open.extend(response.events);
        Ok((!response.fragment && !self.open.is_empty()).then(|| std::mem::take(&mut self.open)))
    }
}

/// A watcher from its client's side.
#[derive(Clone, Debug)]
struct Session {
    spec: Spec,
    /// Where it would go on.
    next: u64,
    is_lasting: bool,
}

struct Driver {
    shared: Arc<Shared>,
    chance: Chance,
    plan: Plan,
    call: Call,
    notes: Vec<Note>,
    /// Asked for and not confirmed; `None`: to be refused.
    pending: VecDeque<Option<Session>>,
    active: BTreeMap<i64, Session>,
    is_quiet: bool,
    quiet_since: Option<Instant>,
}

impl Driver {
    fn new(shared: Arc<Shared>, chance: Chance, plan: Plan, call: Call) -> Self {
        let (notes, pending, active) = (Vec::new(), VecDeque::new(), BTreeMap::new());
        Self { shared, chance, plan, call, notes, pending, active, is_quiet: false, quiet_since: None }
    }

    async fn run(mut self) -> Result<(Plan, Transcript)> {
        let name = self.plan.name.clone();
        for spec in std::mem::take(&mut self.plan.lasting) {
            self.create(Session { next: spec.start, spec, is_lasting: true }, false);
        }
        let mut due = Instant::now();
        loop {
            if Instant::now() >= due {
                self.act().await.with_context(|| name.clone())?;
                due = Instant::now() + Duration::from_millis(1 + self.chance.below(40));
            }
            match timeout_at(due, self.call.next()).await {
                Err(_) => {}
                Ok(Ok(Some(response))) => self.hear(response),
                // The server is gone; whether that was meant is for the campaign to know.
                Ok(_) => break,
            }
        }
        let unconfirmed = self.pending.into_iter().flatten();
        let sessions = unconfirmed.chain(self.active.into_values()).filter(|session| session.is_lasting);
        // I2.
        let lasting = sessions.map(|session| Spec { start: session.next, id: 0, ..session.spec });
        self.plan.lasting = lasting.collect();
        Ok((self.plan, Transcript { name, notes: self.notes }))
    }

    fn send(&mut self, note: Note, request: &[u8]) {
        self.notes.push(note);
        // A call that has ended says so when it is read.
        let _ = self.call.send(request);
    }

    fn create(&mut self, session: Session, is_refused: bool) {
        let (spec, compacted) = (session.spec.clone(), self.shared.ledger().compactions().0);
        let request = spec.encode();
        self.pending.push_back((!is_refused).then_some(session));
        self.send(Note::Create { spec, compacted, is_refused }, &request);
    }

    fn cancel(&mut self, id: i64) {
        self.send(Note::Cancel(id), &wire::cancel(id));
    }

    fn hear(&mut self, response: Response) {
        let compacted_possible = self.shared.ledger().compactions().1;
        self.shared.events.fetch_add(response.events.len() as u64, Ordering::Relaxed);
        self.learn(&response);
        self.notes.push(Note::Told { response, compacted_possible });
    }

    /// What a response means for where watchers go on. Whether it is right is judged later.
    fn learn(&mut self, response: &Response) {
        if response.created {
            if let Some(mut session) = self.pending.pop_front().flatten() {
                if session.next == 0 {
                    session.next = response.revision + 1;
                }
                self.active.insert(response.id, session);
            }
        } else if response.canceled {
            let Some(mut session) = self.active.remove(&response.id) else { return };
            if response.compact_revision > 0 {
                // The id is taken until it is given back.
                self.cancel(response.id);
                session.next = response.compact_revision;
            }
            if session.is_lasting {
                session.spec = Spec { start: session.next, id: 0, ..session.spec };
                self.create(session, false);
            }
        } else if response.id == -1 {
            self.active.values_mut().for_each(|session| session.next = session.next.max(response.revision + 1));
            let wanted = self.shared.quiet_at.load(Ordering::Relaxed);
            if wanted > 0 && response.revision >= wanted && !std::mem::replace(&mut self.is_quiet, true) {
                self.shared.quiet_streams.fetch_add(1, Ordering::Relaxed);
            }
        } else if let Some(session) = self.active.get_mut(&response.id) {
            let told = if response.is_progress() { Some(response.revision) } else { last_of(&response.events) };
            if let Some(told) = told.filter(|_| !response.fragment) {
                session.next = session.next.max(told + 1);
            }
        }
    }

    async fn act(&mut self) -> Result<()> {
        if self.shared.quiet_at.load(Ordering::Relaxed) > 0 {
            return self.come_to_rest();
        }
        match self.chance.below(100) {
            0..12 => self.send(Note::AskProgress, &wire::progress()),
            _ if self.plan.kind == Kind::Crowded => {}
            12..45 if self.passing().count() + self.pending.len() < PASSING_MAX => {
                let session = self.passing_one();
                self.create(session, false);
            }
            45..70 => {
                let passing: Vec<i64> = self.passing().collect();
                if !passing.is_empty() {
                    let id = *self.chance.pick(&passing);
                    self.cancel(id);
                }
            }
            70..73 => self.cancel(1 << 40),
            73..77 => self.ask_in_vain(),
            77..90 if self.plan.kind == Kind::Slow => sleep(Duration::from_millis(self.chance.below(500))).await,
            _ => {}
        }
        Ok(())
    }

    fn passing(&self) -> impl Iterator<Item = i64> {
        self.active.iter().filter(|(_, session)| !session.is_lasting).map(|(&id, _)| id)
    }

    /// A watcher that starts anywhere, compacted or to come.
    fn passing_one(&mut self) -> Session {
        let mut spec = any(&mut self.chance);
        let (seen, compacted) = {
            let ledger = self.shared.ledger();
            (ledger.seen_to().max(1), ledger.compactions().0)
        };
        spec.start = match self.chance.below(10) {
            0..2 => 0,
            2..4 => compacted,
            4 => compacted.saturating_sub(1 + self.chance.below(5)),
            5..8 => seen - self.chance.below((seen - compacted.min(seen)).clamp(1, 3000)),
            _ => seen + 1 + self.chance.below(400),
        };
        if self.chance.percent(15) {
            spec.id = (1 << 50 | self.shared.number()).cast_signed();
        }
        Session { next: spec.start, spec, is_lasting: false }
    }

    /// Asks for a watcher that cannot be.
    fn ask_in_vain(&mut self) {
        let lasting = self.active.iter().find(|(id, session)| session.is_lasting && **id > 0).map(|(&id, _)| id);
        let spec = match lasting.filter(|_| self.chance.percent(50)) {
            Some(id) => Spec { key: b"k".to_vec(), id, ..Spec::default() },
            None => Spec { key: b"b".to_vec(), end: b"a".to_vec(), ..Spec::default() },
        };
        self.create(Session { next: 0, spec, is_lasting: false }, true);
    }

    /// Asks for progress until everything has come.
    fn come_to_rest(&mut self) -> Result<()> {
        let since = *self.quiet_since.get_or_insert_with(Instant::now);
        if self.is_quiet {
            return Ok(());
        }
        if since.elapsed() > Duration::from_secs(QUIET_SECONDS_MAX) {
            bail!("16: not everything was handed over in {QUIET_SECONDS_MAX} s");
        }
        let wanted = self.shared.quiet_at.load(Ordering::Relaxed);
        // Those that begin later would keep the rest from saying that it is there.
        let later = self
            .active
            .iter()
            .filter(|(_, session)| !session.is_lasting && session.spec.start > wanted)
            .map(|(&id, _)| id);
        for id in later.collect::<Vec<_>>() {
            self.cancel(id);
        }
        self.send(Note::AskProgress, &wire::progress());
        Ok(())
    }
}

fn last_of(events: &[Event]) -> Option<u64> {
    events.last().map(|event| event.pair.modified)
}
