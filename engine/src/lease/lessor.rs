//! When leases expire: the leader's clock.
//!
//! Owns: a deadline for each lease while this member leads, which of them have passed, and what must be noted in the
//! log for the next leader. Does not know: clocks (the time is handed in), the log, who asks.
//!
//! Time is counted from when the leader applied the grant, by its monotonic clock. That clock stands still while the
//! process is paused: who was not looked at for longer than an election timeout could not have heard its clients, so
//! the gap counts for nobody. A new leader gives every lease its whole time and an election timeout more, or what was
//! noted of it and as much more: no lease ends early, some end late.
//!
//! A renewal only moves the lease's deadline. Its place in the queue is looked at when its time has come, and moved
//! then: once in a time to live, however often the lease is renewed.
//!
//! Invariants
//! - I1: a lease is handed out as expired only if its deadline has passed; from then on it is not renewed, until it has
//!   ended or another term begins.
//! - I2: a timer that was not handed out stands in the queue exactly once, at the latest one [`TICK`] after its
//!   deadline.
//! - I3: at most [`PROPOSED_MIN`] leases are handed out and have not ended, so that puts wait behind few of them; more,
//!   up to [`PROPOSED_MAX`], the later the first of those is that wait for their end.
//! - I4: every call does work for a bounded number of leases.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::budget::{Budget, price};
use crate::lease::{Lease, Leases};
use crate::mvcc::key_tree::KeyTree;

const SECOND: u64 = 1_000_000_000;
/// Deadlines are looked at in steps of so much, in nanoseconds: thousands of renewals need few wake-ups.
pub const TICK: u64 = SECOND / 16;
/// Leases whose end is on its way through the log at one time, while none is late: they are applied in well under a
/// millisecond, and a put waits for no more of them than for the sync of the log.
pub const PROPOSED_MIN: usize = 128;
/// The same when the first of them should have ended most of a second ago: slow disks take long over every entry.
pub const PROPOSED_MAX: usize = 2048;
/// With every such time that the first is late, twice as many are on their way, in nanoseconds.
const LATE: u64 = SECOND / 5;
/// Leases that get their timers in one step after an election.
const LOADED_PER_STEP: usize = 4096;

/// How time is counted.
#[derive(Clone, Copy, Debug)]
pub struct LessorOptions {
    /// No lease lives shorter, in seconds.
    pub ttl_min: i64,
    /// Time that every lease gets beside its own after an election, and the gap that counts as a pause, in nanoseconds.
    pub election_timeout: u64,
    /// An end that was proposed and not applied for so long is proposed again, in nanoseconds.
    pub retry: u64,
    /// How often to note in the log how much is left of leases that live longer than this; `None`: never.
    pub checkpoint_interval: Option<u64>,
}

impl LessorOptions {
    /// etcd's rules: no lease lives shorter than one and a half election timeouts, in ticks of a heartbeat interval
    /// (nanoseconds), rounded up to seconds.
    #[must_use]
    pub fn new(election_timeout: u64, heartbeat_interval: u64, retry: u64) -> Self {
        let ticks = 3 * (election_timeout / heartbeat_interval.max(1)) / 2;
        let ttl_min = ticks.saturating_mul(heartbeat_interval).div_ceil(SECOND).cast_signed();
        Self { ttl_min, election_timeout, retry, checkpoint_interval: None }
    }
}

/// What a renewal comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It lives for its whole time from now on.
    Renewed {
        /// That time, in seconds.
        ttl: i64,
        /// What was noted of it in the log is void: that must be replicated before the client is told.
        is_noted: bool,
    },
    /// Its time is over, and its end on its way: what the client is told depends on which of both comes about.
    Expired,
    /// There is no such lease.
    Unknown,
    /// Another member leads.
    NotLeading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the queue at this time.
    Waiting(u64),
    /// Handed out; to be handed out again at this time.
    Proposed(u64),
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    deadline: u64,
    state: State,
    /// When to note how much is left; 0: never.
    note: u64,
}

/// A term of leadership.
#[derive(Debug)]
struct Leading {
    term: u64,
    /// Deadlines of leases from before count from here.
    since: u64,
    /// Leases from this id on may have no timer yet.
    unloaded: Option<i64>,
}

/// The deadlines of all leases, on the member that leads.
#[derive(Debug)]
pub struct Lessor {
    options: LessorOptions,
    leading: Option<Leading>,
    timers: BTreeMap<i64, Timer>,
    queue: BTreeSet<(u64, i64)>,
    /// What was handed out, in the order of the times at which it is handed out again. Those that ended meanwhile are
    /// passed over.
    proposed: VecDeque<(u64, i64)>,
    proposed_count: usize,
    /// Leases of which to note how much is left, by time.
    notes: BTreeSet<(u64, i64)>,
    /// When this was last looked at, and the sum of all gaps.
    seen: u64,
    lost: u64,
}

impl Lessor {
    /// The lessor of a member that does not lead.
    #[must_use]
    pub fn new(options: LessorOptions, now: u64) -> Self {
        Self {
            options,
            leading: None,
            timers: BTreeMap::new(),
            queue: BTreeSet::new(),
            proposed: VecDeque::new(),
            proposed_count: 0,
            notes: BTreeSet::new(),
            seen: now,
            lost: 0,
        }
    }

    /// Seconds that a lease lives for which `ttl` was asked.
    #[must_use]
    pub fn ttl(&self, ttl: i64) -> i64 {
        ttl.max(self.options.ttl_min)
    }

    /// The term in which it decides on leases.
    #[must_use]
    pub fn term(&self) -> Option<u64> {
        self.leading.as_ref().map(|leading| leading.term)
    }

    /// The clock without the gaps.
    fn clock(&self, now: u64) -> u64 {
        now.saturating_sub(self.lost)
    }

    /// Time has come to `now`. Before anything else of a turn is handed in.
    pub fn handle_time(&mut self, now: u64) {
        let gap = now.saturating_sub(self.seen);
        if gap > self.options.election_timeout {
            self.lost += gap;
        }
        self.seen = now;
    }

    /// This member leads in `term`, and has applied an entry of it.
    pub fn promote(&mut self, term: u64, now: u64) {
        self.demote();
        let since = self.clock(now).saturating_add(self.options.election_timeout);
        self.leading = Some(Leading { term, since, unloaded: Some(i64::MIN) });
    }

    /// Another member may lead.
    pub fn demote(&mut self) {
        *self = Self { seen: self.seen, lost: self.lost, ..Self::new(self.options, 0) };
    }

    /// Gives leases from before this term their timers, some at a time. False: all have theirs.
    pub fn load_step<T: KeyTree>(&mut self, leases: &Leases<T>) -> bool {
        let Some(leading) = &self.leading else { return false };
        let (Some(from), since) = (leading.unloaded, leading.since) else { return false };
        let (mut count, mut last) = (0, from);
        for (id, lease) in leases.iter_from(from).take(LOADED_PER_STEP) {
            if !self.timers.contains_key(&id) {
                self.load(id, lease, since);
                self.plan_note(id, self.seen);
            }
            (count, last) = (count + 1, id);
        }
        let next = last.checked_add(1).filter(|_| count == LOADED_PER_STEP);
        self.leading.as_mut().expect("present above").unloaded = next;
        next.is_some()
    }

    fn load(&mut self, id: i64, lease: Lease, since: u64) {
        let seconds = if lease.remaining > 0 { lease.remaining } else { self.ttl(lease.ttl) };
        self.start(id, since.saturating_add(nanoseconds(seconds)));
    }

    /// A lease begins.
    pub fn handle_granted(&mut self, id: i64, ttl: i64, now: u64) {
        if self.leading.is_some() {
            self.start(id, self.clock(now).saturating_add(nanoseconds(self.ttl(ttl))));
            self.plan_note(id, now);
        }
    }

    fn start(&mut self, id: i64, deadline: u64) {
        let at = tick(deadline);
        let earlier = self.timers.insert(id, Timer { deadline, state: State::Waiting(at), note: 0 });
        assert!(earlier.is_none(), "I2: one timer for a lease");
        self.queue.insert((at, id));
    }

    /// A lease has ended.
    pub fn handle_ended(&mut self, id: i64) {
        let Some(timer) = self.timers.remove(&id) else { return };
        self.notes.remove(&(timer.note, id));
        match timer.state {
            State::Waiting(at) => drop(self.queue.remove(&(at, id))),
            State::Proposed(_) => self.proposed_count -= 1,
        }
    }

    /// The end of a lease could not be proposed, or was refused: it is tried again a little later.
    pub fn handle_refused(&mut self, id: i64, now: u64) {
        let at = tick(self.clock(now) + TICK);
        let Some(timer) = self.timers.get_mut(&id) else { return };
        if let State::Proposed(_) = timer.state {
            timer.state = State::Waiting(at);
            self.proposed_count -= 1;
            self.queue.insert((at, id));
        }
    }

    /// Renews a lease, which is `lease` in the replicated state.
    pub fn renew(&mut self, id: i64, lease: Option<Lease>, now: u64) -> Renewal {
        let Some(since) = self.leading.as_ref().map(|leading| leading.since) else { return Renewal::NotLeading };
        let Some(lease) = lease else { return Renewal::Unknown };
        if !self.timers.contains_key(&id) {
            self.load(id, lease, since);
        }
        let (clock, ttl) = (self.clock(now), self.ttl(lease.ttl));
        let timer = self.timers.get_mut(&id).expect("started above");
        if timer.deadline <= clock || matches!(timer.state, State::Proposed(_)) {
            return Renewal::Expired;
        }
        // What a new leader added stays.
        timer.deadline = timer.deadline.max(clock.saturating_add(nanoseconds(ttl)));
        Renewal::Renewed { ttl, is_noted: lease.remaining > 0 }
    }

    /// Nanoseconds that are left of a lease, which is `lease` in the replicated state. `None`: another member leads.
    #[must_use]
    pub fn remaining(&self, id: i64, lease: Lease, now: u64) -> Option<u64> {
        let since = self.leading.as_ref()?.since;
        let seconds = if lease.remaining > 0 { lease.remaining } else { self.ttl(lease.ttl) };
        let unloaded = || since.saturating_add(nanoseconds(seconds));
        let deadline = self.timers.get(&id).map_or_else(unloaded, |timer| timer.deadline);
        Some(deadline.saturating_sub(self.clock(now)))
    }

    /// The next lease whose time is over, to be ended in the term that leads. It is handed out again if it has not
    /// ended within the time for that. `None`: there is none now, too many are on their way (I3), or the budget is used
    /// up.
    pub fn poll_expired(&mut self, now: u64, budget: &mut Budget) -> Option<i64> {
        let clock = self.clock(now);
        if let Some(id) = self.poll_again(clock) {
            return Some(id);
        }
        while self.proposed_count < self.proposed_max(clock) && !budget.is_used_up() {
            let &(at, id) = self.queue.first().filter(|(at, _)| *at <= clock)?;
            budget.spend(price::SEEK);
            self.queue.remove(&(at, id));
            let timer = self.timers.get_mut(&id).expect("I2: who stands in the queue has a timer");
            if timer.deadline > clock {
                let at = tick(timer.deadline);
                timer.state = State::Waiting(at);
                self.queue.insert((at, id));
                continue;
            }
            self.proposed_count += 1;
            self.propose(id, clock);
            return Some(id);
        }
        None
    }

    /// How many may be on their way (I3).
    fn proposed_max(&self, clock: u64) -> usize {
        let late = self.queue.first().map_or(0, |&(at, _)| clock.saturating_sub(at));
        let doublings = u32::try_from(late / LATE).unwrap_or(u32::MAX).min(PROPOSED_MAX.ilog2());
        (PROPOSED_MIN << doublings).min(PROPOSED_MAX)
    }

    /// One that was handed out and has not ended for too long.
    fn poll_again(&mut self, clock: u64) -> Option<i64> {
        while let Some(&(at, id)) = self.proposed.front() {
            let is_same = self.timers.get(&id).is_some_and(|timer| timer.state == State::Proposed(at));
            if is_same && at > clock {
                return None;
            }
            self.proposed.pop_front();
            if is_same {
                self.propose(id, clock);
                return Some(id);
            }
        }
        None
    }

    fn propose(&mut self, id: i64, clock: u64) {
        let again = clock.saturating_add(self.options.retry);
        self.timers.get_mut(&id).expect("who is proposed has a timer").state = State::Proposed(again);
        self.proposed.push_back((again, id));
    }

    /// The next lease of which to note in the log how much is left, and how many seconds that are: 0 if it is over.
    pub fn poll_note(&mut self, now: u64) -> Option<(i64, i64)> {
        let clock = self.clock(now);
        let &(at, id) = self.notes.first().filter(|(at, _)| *at <= clock)?;
        self.notes.remove(&(at, id));
        let left = self.timers[&id].deadline.saturating_sub(clock).div_ceil(SECOND).cast_signed();
        self.plan_note(id, now);
        Some((id, left))
    }

    /// Plans the next note of a lease that lives long enough for one.
    fn plan_note(&mut self, id: i64, now: u64) {
        let clock = self.clock(now);
        let (Some(interval), Some(timer)) = (self.options.checkpoint_interval, self.timers.get_mut(&id)) else {
            return;
        };
        timer.note = 0;
        if timer.deadline.saturating_sub(clock) > interval {
            timer.note = tick(clock.saturating_add(interval));
            self.notes.insert((timer.note, id));
        }
    }

    /// When [`Self::handle_time`] and the polls are due. Also often enough for a pause to be noticed.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let leading = self.leading.as_ref()?;
        if leading.unloaded.is_some() {
            return Some(self.seen);
        }
        if self.timers.is_empty() {
            return None;
        }
        let first = |queue: &BTreeSet<(u64, i64)>| queue.first().map(|&(at, _)| at);
        let has_room = self.proposed_count < self.proposed_max(self.clock(self.seen));
        let waiting = first(&self.queue).filter(|_| has_room);
        let again = self.proposed.front().map(|&(at, _)| at);
        let due = [waiting, again, first(&self.notes)].into_iter().flatten().min();
        let look = self.seen.saturating_add(self.options.election_timeout / 2);
        Some(due.map_or(look, |due| due.saturating_add(self.lost).min(look)))
    }
}

fn nanoseconds(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(SECOND)
}

fn tick(time: u64) -> u64 {
    time.checked_next_multiple_of(TICK).unwrap_or(u64::MAX)
}
