//! The lessor against a table that is searched whole, and its rules one by one.

use std::collections::BTreeMap;

use crate::budget::Budget;
use crate::lease::lessor::{Lessor, LessorOptions, PROPOSED_MAX, PROPOSED_MIN, Renewal, TICK};
use crate::lease::{Lease, Leases};
use crate::mvcc::map_tree::{MapTree, Random};

const SECOND: u64 = 1_000_000_000;
const RETRY: u64 = 7 * SECOND;

fn options() -> LessorOptions {
    LessorOptions::new(SECOND, SECOND / 10, RETRY)
}

fn leading() -> Lessor {
    let mut lessor = Lessor::new(options(), 0);
    lessor.promote(2, 0);
    assert!(!lessor.load_step(&Leases::<MapTree>::default()));
    lessor
}

fn expired(lessor: &mut Lessor, now: u64) -> Vec<i64> {
    std::iter::from_fn(|| lessor.poll_expired(now, &mut Budget::unlimited())).collect()
}

/// Looks at it as often as it asks for until `until`; what expired, and when.
fn run(lessor: &mut Lessor, mut now: u64, until: u64) -> Vec<(i64, u64)> {
    let mut found = Vec::new();
    while let Some(next) = lessor.deadline().filter(|next| *next <= until) {
        now = next.max(now);
        lessor.handle_time(now);
        found.extend(expired(lessor, now).into_iter().map(|id| (id, now)));
    }
    found
}

/// Time passes without a pause.
fn watched(lessor: &mut Lessor, mut now: u64, until: u64) -> u64 {
    while now < until {
        now += SECOND / 2;
        lessor.handle_time(now);
    }
    now
}

#[test]
fn the_shortest_life_is_etcds() {
    let shortest =
        |election, heartbeat| LessorOptions::new(election * SECOND / 1000, heartbeat * SECOND / 1000, 0).ttl_min;
    assert_eq!([shortest(1000, 100), shortest(5000, 500), shortest(1500, 300), shortest(50, 10)], [2, 8, 3, 1]);
    let lessor = Lessor::new(options(), 0);
    assert_eq!([i64::MIN, 0, 1, 2, 3].map(|ttl| lessor.ttl(ttl)), [2, 2, 2, 2, 3]);
}

#[test]
fn nothing_expires_before_its_time_nor_long_after() {
    let mut lessor = leading();
    lessor.handle_granted(1, 10, 123);
    lessor.handle_granted(-2, 6, 124);
    let found = run(&mut lessor, 124, 12 * SECOND);
    let ids: Vec<i64> = found.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [-2, 1]);
    for ((_, at), deadline) in found.iter().zip([6 * SECOND + 124, 10 * SECOND + 123]) {
        assert!((deadline..deadline + TICK).contains(at), "{at} for {deadline}");
    }
}

#[test]
fn a_renewed_lease_lives_on_and_an_expired_one_is_not_renewed() {
    let (mut lessor, lease) = (leading(), Lease::granted(4));
    lessor.handle_granted(1, 4, 0);
    for second in 1..=20 {
        assert!(run(&mut lessor, 0, second * SECOND).is_empty());
        lessor.handle_time(second * SECOND);
        let renewed = Renewal::Renewed { ttl: 4, is_noted: false };
        assert_eq!(lessor.renew(1, Some(lease), second * SECOND), renewed);
        assert_eq!(lessor.remaining(1, lease, second * SECOND), Some(4 * SECOND));
    }
    let after = 24 * SECOND;
    let _: Vec<_> = run(&mut lessor, 20 * SECOND, after - 1);
    lessor.handle_time(after);
    assert_eq!(lessor.renew(1, Some(lease), after), Renewal::Expired, "though it was not handed out yet");
    assert_eq!(expired(&mut lessor, after + TICK), [1]);
    lessor.handle_refused(1, after + TICK);
    assert_eq!(lessor.renew(1, Some(lease), after + TICK), Renewal::Expired, "though its end was refused");
    assert_eq!(expired(&mut lessor, after + 4 * TICK), [1]);
    lessor.handle_ended(1);
    assert_eq!(lessor.renew(1, None, after), Renewal::Unknown);
    lessor.demote();
    assert_eq!(lessor.renew(1, Some(lease), after), Renewal::NotLeading);
    assert_eq!((lessor.remaining(1, lease, after), lessor.deadline()), (None, None));
}

#[test]
fn what_was_proposed_in_vain_is_proposed_again() {
    let mut lessor = leading();
    lessor.handle_granted(1, 2, 0);
    let times: Vec<u64> = run(&mut lessor, 0, 20 * SECOND).into_iter().map(|(_, at)| at).collect();
    assert_eq!(times, [2 * SECOND, 2 * SECOND + RETRY, 2 * SECOND + 2 * RETRY]);
    lessor.handle_ended(1);
    assert!(run(&mut lessor, 20 * SECOND, 60 * SECOND).is_empty());
    assert_eq!(lessor.deadline(), None, "who holds no lease sleeps");
}

#[test]
fn a_new_leader_gives_whole_lives_and_what_was_noted() {
    let mut leases = Leases::<MapTree>::default();
    leases.grant(1, Lease::granted(10));
    leases.grant(2, Lease::granted(1));
    leases.grant(3, Lease { ttl: 1000, remaining: 5 });
    let mut lessor = Lessor::new(options(), 50 * SECOND);
    lessor.promote(7, 50 * SECOND);
    // Known before it has a timer.
    let asked = leases.get(3).unwrap();
    assert_eq!(lessor.remaining(3, asked, 51 * SECOND), Some(5 * SECOND));
    assert_eq!(lessor.renew(3, Some(asked), 51 * SECOND), Renewal::Renewed { ttl: 1000, is_noted: true });
    assert!(!lessor.load_step(&leases));
    assert_eq!(
        run(&mut lessor, 51 * SECOND, 70 * SECOND),
        [(2, 53 * SECOND), (2, 60 * SECOND), (1, 61 * SECOND), (2, 67 * SECOND), (1, 68 * SECOND)]
    );
    lessor.promote(8, 70 * SECOND);
    assert_eq!((lessor.term(), lessor.load_step(&leases)), (Some(8), false));
    assert_eq!(run(&mut lessor, 70 * SECOND, 75 * SECOND), [(2, 73 * SECOND)], "a new term begins anew");
}

#[test]
fn a_pause_counts_for_nobody() {
    let mut lessor = leading();
    lessor.handle_granted(1, 10, 0);
    assert!(run(&mut lessor, 0, 4 * SECOND).is_empty());
    lessor.handle_time(4 * SECOND);
    lessor.handle_time(34 * SECOND);
    assert_eq!(lessor.remaining(1, Lease::granted(10), 34 * SECOND), Some(6 * SECOND));
    assert!(run(&mut lessor, 34 * SECOND, 40 * SECOND - 1).is_empty());
    assert_eq!(run(&mut lessor, 40 * SECOND - 1, 41 * SECOND), [(1, 40 * SECOND)]);
}

#[test]
fn a_crowd_is_handed_out_in_parts_and_each_call_does_little() {
    let (mut lessor, count) = (leading(), 20_000);
    let crowd = || 0..count;
    crowd().for_each(|id| lessor.handle_granted(id, 5, 0));
    // Renewed but one in ten: the others move in the queue, at the cost of the budget.
    let mut now = watched(&mut lessor, 0, 4 * SECOND);
    for id in crowd().filter(|id| id % 10 != 0) {
        assert!(matches!(lessor.renew(id, Some(Lease::granted(5)), now), Renewal::Renewed { .. }));
    }
    now = watched(&mut lessor, now, 5 * SECOND);
    let (mut found, mut calls) = (Vec::new(), 0);
    while lessor.deadline().is_some_and(|at| at <= now) {
        let mut budget = Budget::new(1000);
        while let Some(id) = lessor.poll_expired(now, &mut budget) {
            found.push(id);
            lessor.handle_ended(id);
        }
        calls += 1;
    }
    assert_eq!(found, crowd().step_by(10).collect::<Vec<_>>());
    assert!(calls >= 20_000 * 20 / 1000, "{calls} calls for a queue of 20,000");
    now = watched(&mut lessor, now, 9 * SECOND);
    let mut ended = 0;
    loop {
        let part = expired(&mut lessor, now);
        assert!(part.len() <= PROPOSED_MIN);
        if part.is_empty() {
            break;
        }
        assert!(lessor.deadline().unwrap() > now || part.len() < PROPOSED_MIN, "what is on its way comes first");
        ended += part.len();
        part.into_iter().for_each(|id| lessor.handle_ended(id));
    }
    assert_eq!(ended, 18_000);
}

#[test]
fn the_later_the_first_the_more_are_on_their_way() {
    for (late, wanted) in [(0, 128), (199, 128), (200, 256), (400, 512), (600, 1024), (800, 2048), (60_000, 2048)] {
        let mut lessor = leading();
        (0..5000).for_each(|id| lessor.handle_granted(id, 5, 0));
        let end = 5 * SECOND + late * SECOND / 1000;
        let mut now = watched(&mut lessor, 0, 5 * SECOND);
        while now < end {
            now = end.min(now + SECOND / 2);
            lessor.handle_time(now);
        }
        assert_eq!(expired(&mut lessor, now).len(), wanted, "{late} ms late");
        assert!(lessor.deadline().unwrap() > now, "what is on its way comes first");
    }
    assert_eq!((PROPOSED_MIN, PROPOSED_MAX), (128, 2048));
}

#[test]
fn long_lives_are_noted_now_and_then() {
    let interval = Some(300 * SECOND);
    let mut lessor = Lessor::new(LessorOptions { checkpoint_interval: interval, ..options() }, 0);
    lessor.promote(2, 0);
    let mut leases = Leases::<MapTree>::default();
    leases.grant(9, Lease::granted(1000));
    assert!(!lessor.load_step(&leases));
    lessor.handle_granted(1, 700, 0);
    lessor.handle_granted(2, 300, 0);
    lessor.handle_granted(3, 700, 0);
    lessor.handle_ended(3);
    let (mut notes, mut now) = (Vec::new(), 0);
    while now < 800 * SECOND {
        now += SECOND / 2;
        lessor.handle_time(now);
        expired(&mut lessor, now).into_iter().for_each(|id| lessor.handle_ended(id));
        notes.extend(std::iter::from_fn(|| lessor.poll_note(now)).map(|(id, left)| (id, left, now / SECOND)));
    }
    assert_eq!(notes, [(1, 400, 300), (9, 701, 300), (1, 100, 600), (9, 401, 600)]);
}

/// What a table that is searched whole says.
#[derive(Clone, Copy, Debug)]
struct Known {
    lease: Lease,
    deadline: u64,
    handed_out: Option<u64>,
    /// Not to be handed out again before this.
    refused_until: u64,
}

struct Bed {
    random: Random,
    lessor: Lessor,
    leases: Leases<MapTree>,
    known: BTreeMap<i64, Known>,
    now: u64,
    lost: u64,
    term: u64,
    counts: BTreeMap<&'static str, u32>,
}

impl Bed {
    fn new(seed: u64) -> Self {
        let mut lessor = Lessor::new(options(), 0);
        lessor.promote(1, 0);
        Self {
            random: Random(seed),
            lessor,
            leases: Leases::default(),
            known: BTreeMap::new(),
            now: 0,
            lost: 0,
            term: 1,
            counts: BTreeMap::new(),
        }
    }

    fn clock(&self) -> u64 {
        self.now - self.lost
    }

    fn id(&mut self) -> i64 {
        self.random.below(24) as i64 - 8
    }

    fn step(&mut self) {
        let what = match self.random.below(100) {
            0..20 => self.grant(),
            20..26 => self.end(),
            26..50 => self.renew(),
            50..75 => self.wait(),
            75..95 => self.poll(),
            95..96 => self.lead(),
            _ => {
                self.lessor.load_step(&self.leases);
                "load"
            }
        };
        *self.counts.entry(what).or_default() += 1;
        self.check();
    }

    fn grant(&mut self) -> &'static str {
        let (id, ttl) = (self.id(), self.random.below(20) as i64);
        if self.leases.get(id).is_some() {
            return "exists";
        }
        let lease = Lease::granted(ttl.max(2));
        self.leases.grant(id, lease);
        self.lessor.handle_granted(id, ttl, self.now);
        let deadline = self.clock() + ttl.max(2) as u64 * SECOND;
        self.known.insert(id, Known { lease, deadline, handed_out: None, refused_until: 0 });
        "grant"
    }

    fn end(&mut self) -> &'static str {
        let id = self.id();
        if self.known.remove(&id).is_none() {
            return "no lease";
        }
        self.leases.remove(id);
        self.lessor.handle_ended(id);
        "end"
    }

    fn renew(&mut self) -> &'static str {
        let (id, clock) = (self.id(), self.clock());
        let found = self.lessor.renew(id, self.leases.get(id), self.now);
        let (wanted, what) = match self.known.get_mut(&id) {
            None => (Renewal::Unknown, "renew nothing"),
            Some(known) if known.deadline <= clock => (Renewal::Expired, "renew expired"),
            Some(known) => {
                known.deadline = known.deadline.max(clock + known.lease.ttl as u64 * SECOND);
                (Renewal::Renewed { ttl: known.lease.ttl, is_noted: known.lease.remaining > 0 }, "renew")
            }
        };
        assert_eq!(found, wanted);
        what
    }

    fn wait(&mut self) -> &'static str {
        if self.random.one_in(30) {
            let gap = SECOND + 1 + self.random.below(30 * SECOND);
            (self.now, self.lost) = (self.now + gap, self.lost + gap);
            self.lessor.handle_time(self.now);
            return "pause";
        }
        self.now += self.random.below(SECOND);
        self.lessor.handle_time(self.now);
        "wait"
    }

    fn poll(&mut self) -> &'static str {
        let is_whole = !self.random.one_in(4);
        let mut budget = if is_whole { Budget::unlimited() } else { Budget::new(1 + self.random.below(60) as u32) };
        let clock = self.clock();
        while let Some(id) = self.lessor.poll_expired(self.now, &mut budget) {
            let known = self.known.get_mut(&id).expect("a lease that exists");
            assert!(known.deadline <= clock && known.refused_until <= clock, "{id} is early: {known:?} at {clock}");
            assert!(known.handed_out.is_none_or(|at| at + RETRY <= clock), "{id} is on its way: {known:?}");
            known.handed_out = Some(clock);
            if self.random.one_in(5) {
                known.handed_out = None;
                known.refused_until = clock + 1;
                self.lessor.handle_refused(id, self.now);
                *self.counts.entry("refused").or_default() += 1;
            } else if self.random.one_in(2) {
                self.known.remove(&id);
                self.leases.remove(id);
                self.lessor.handle_ended(id);
                *self.counts.entry("expired").or_default() += 1;
            }
        }
        if is_whole {
            self.assert_none_is_late();
        }
        "poll"
    }

    fn assert_none_is_late(&mut self) {
        while self.lessor.load_step(&self.leases) {}
        let _: Option<i64> = self.lessor.poll_expired(self.now, &mut Budget::new(0));
        let clock = self.clock();
        for (id, known) in &self.known {
            let due = known.deadline.max(known.refused_until) + 2 * TICK;
            let is_late = match known.handed_out {
                None => due <= clock && self.lessor.deadline().is_none_or(|at| at > self.now),
                Some(at) => at + RETRY <= clock,
            };
            assert!(!is_late, "{id} is late: {known:?} at {clock}");
        }
    }

    fn lead(&mut self) -> &'static str {
        for (&id, known) in &mut self.known {
            if self.random.one_in(3) {
                self.leases.checkpoint(id, self.random.below(3) as i64);
            }
            known.lease = self.leases.get(id).unwrap();
        }
        self.term += 1;
        self.lessor.promote(self.term, self.now);
        let clock = self.clock();
        for known in self.known.values_mut() {
            let seconds = if known.lease.remaining > 0 { known.lease.remaining } else { known.lease.ttl };
            let deadline = clock + (1 + seconds as u64) * SECOND;
            *known = Known { deadline, handed_out: None, refused_until: 0, ..*known };
        }
        "lead"
    }

    fn check(&self) {
        let clock = self.clock();
        for (&id, known) in &self.known {
            let left = self.lessor.remaining(id, known.lease, self.now);
            assert_eq!(left, Some(known.deadline.saturating_sub(clock)), "{id}: {known:?}");
        }
        // Nobody is slept over.
        let waiting = self.known.values().filter(|known| known.handed_out.is_none());
        if let Some(first) = waiting.map(|known| known.deadline.max(known.refused_until)).min() {
            let asked = self.lessor.deadline().expect("there are leases");
            let latest = self.now.max(first + self.lost + 2 * TICK);
            assert!(asked <= latest, "asked for {asked}, latest {latest}");
        }
    }
}

#[test]
fn a_lessor_is_a_table_that_is_searched_whole() {
    let mut counts = BTreeMap::<&str, u32>::new();
    for seed in 1..=20 {
        let mut bed = Bed::new(seed);
        for _ in 0..3000 {
            bed.step();
        }
        bed.counts.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
    }
    let seen = ["grant", "end", "renew", "renew expired", "pause", "poll", "refused", "expired", "lead", "load"];
    for what in seen {
        assert!(counts.get(what).is_some_and(|count| *count > 100), "{what} is too rare: {counts:?}");
    }
}
