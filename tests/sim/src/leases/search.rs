//! The judge of one lease: searches for a linear order of what was done to it and seen of it, in which it ends by
//! itself only when its time is over.
//!
//! Owns: the steps, the rule of when a lease may end, the search (Wing and Gong's algorithm with Lowe's memory of
//! visited states). Does not know: revisions, requests, keys.
//!
//! Invariants
//! - I1: only what is certain counts against the server: an operation of unknown outcome may take effect at any time
//!   after its beginning or never.

use std::collections::HashSet;

const SECOND: u64 = 1_000_000_000;
/// States visited before the search gives up, which is a failure.
const STATES_MAX: usize = 500_000;

/// A lease that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held {
    /// Granted, in seconds.
    pub(super) ttl: i64,
    /// It does not end by itself before this time, as long as the process lives.
    pub(super) not_before: u64,
    /// Pauses of the process from here on do not count.
    pub(super) since: u64,
}

type State = Option<Held>;

/// One thing that happened to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It was seen not to exist.
    SeeNone,
    /// It was seen.
    See,
    /// It was seen to be granted for so many seconds, of which less than so many nanoseconds were left.
    SeeRest { ttl: i64, left_max: u64 },
    /// It was granted for so many seconds.
    Grant { ttl: i64 },
    /// It was renewed for so many seconds.
    Renew { ttl: i64 },
    /// It was revoked.
    End,
}

/// A step and when it was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) invoked: u64,
    /// `None`: nobody knows whether it was.
    pub(super) completed: Option<u64>,
    pub(super) step: Step,
}

/// The lives of the process, from the one in which the calls begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lives<'a> {
    /// Beginning and end of each.
    pub(super) spans: &'a [(u64, u64)],
    /// Pauses beyond an election timeout: when each began and how long it was, in order.
    pub(super) pauses: &'a [(u64, u64)],
    /// What every lease gets after a start beside its whole time.
    pub(super) election_timeout: u64,
}

impl Lives<'_> {
    /// A lease of so many seconds does not end before this time in a life that begins then.
    pub(super) fn not_before(&self, began: u64, ttl: i64) -> u64 {
        began.saturating_add(nanoseconds(ttl)).saturating_add(self.election_timeout)
    }

    /// When a lease ends at the earliest, as far as pauses until `limit` tell: time in which nobody could be heard.
    fn earliest(&self, held: Held, limit: u64) -> u64 {
        let Held { not_before, since, .. } = held;
        let pauses = self.pauses.iter().filter(|(began, _)| (since..limit).contains(began));
        pauses.fold(not_before, |at, (began, length)| if *began < at { at.saturating_add(*length) } else { at })
    }

    /// Whether a lease may have ended by itself until `limit`.
    fn may_end(&self, held: Held, limit: u64) -> bool {
        self.spans.iter().enumerate().any(|(position, &(began, ended))| {
            let from = if position == 0 { self.earliest(held, limit) } else { self.not_before(began, held.ttl) };
            from <= limit.min(ended)
        })
    }
}

pub(super) fn nanoseconds(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(SECOND)
}

/// The state after a call, if it can have gone so.
fn after(call: &Call, state: State, lives: Lives<'_>) -> Option<State> {
    let since = call.completed.unwrap_or(u64::MAX);
    match (call.step, state) {
        (Step::SeeNone, None) => Some(None),
        (Step::See, Some(held)) => Some(Some(held)),
        (Step::SeeRest { ttl, left_max }, Some(held)) => {
            let latest = since.saturating_add(left_max);
            (held.ttl == ttl && lives.earliest(held, since) <= latest).then_some(Some(held))
        }
        (Step::Grant { ttl }, None) => {
            Some(Some(Held { ttl, not_before: call.invoked.saturating_add(nanoseconds(ttl)), since }))
        }
        (Step::Renew { ttl }, Some(held)) if held.ttl == ttl => {
            let not_before = call.invoked.saturating_add(nanoseconds(ttl));
            let is_later = not_before > lives.earliest(held, since);
            Some(Some(if is_later { Held { ttl, not_before, since } } else { held }))
        }
        (Step::End, Some(_)) => Some(None),
        _ => None,
    }
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An order, in which the lease ended by itself so many times.
    Order { ends: u32 },
    /// There is none.
    Nothing,
    /// None was found in time.
    TooMuch,
}

/// Searches for an order of `calls`, which are sorted by the times of their beginning.
pub(super) fn search(begin: State, calls: &[Call], lives: Lives<'_>) -> Found {
    let mut visited: HashSet<(Vec<u64>, State)> = HashSet::new();
    let mut stack = vec![(vec![0_u64; calls.len().div_ceil(64)], begin, 0)];
    while let Some((done, state, ends)) = stack.pop() {
        let open = || calls.iter().enumerate().filter(|(at, _)| done[at / 64] & 1 << (at % 64) == 0);
        // Nothing that began after another had ended can come before it.
        let Some(limit) = open().filter_map(|(_, call)| call.completed).min() else { return Found::Order { ends } };
        let mut visit = |position: Option<usize>, state, ends| {
            let mut done = done.clone();
            if let Some(at) = position {
                done[at / 64] |= 1 << (at % 64);
            }
            if visited.insert((done.clone(), state)) {
                stack.push((done, state, ends));
            }
        };
        let next = || open().take_while(|(_, call)| call.invoked <= limit);
        // A call that only looks and sees what is there is best ended at once: waiting gains nothing.
        let is_look = |call: &Call| matches!(call.step, Step::SeeNone | Step::See | Step::SeeRest { .. });
        if let Some((at, _)) = next().find(|(_, call)| is_look(call) && after(call, state, lives) == Some(state)) {
            visit(Some(at), state, ends);
            continue;
        }
        if state.is_some_and(|held| lives.may_end(held, limit)) {
            visit(None, None, ends + 1);
        }
        for (at, call) in next() {
            if let Some(state) = after(call, state, lives) {
                visit(Some(at), state, ends);
            }
        }
        if visited.len() > STATES_MAX {
            return Found::TooMuch;
        }
    }
    Found::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVES: Lives<'static> =
        Lives { spans: &[(0, 20 * SECOND), (30 * SECOND, u64::MAX)], pauses: &[], election_timeout: SECOND };

    fn call(invoked: u64, step: Step) -> Call {
        Call { invoked: invoked * SECOND, completed: Some((invoked + 1) * SECOND - 1), step }
    }

    fn explains(calls: &[Call]) -> bool {
        matches!(search(None, calls, LIVES), Found::Order { .. })
    }

    #[test]
    fn a_lease_ends_when_its_time_is_over_and_not_before() {
        let grant = call(1, Step::Grant { ttl: 3 });
        assert!(explains(&[grant, call(2, Step::See), call(4, Step::SeeNone)]));
        assert!(!explains(&[grant, call(2, Step::SeeNone)]));
        assert!(!explains(&[grant, call(4, Step::SeeNone), call(5, Step::See)]));
        let renew = call(3, Step::Renew { ttl: 3 });
        assert!(!explains(&[grant, renew, call(5, Step::SeeNone)]));
        assert!(explains(&[grant, renew, call(6, Step::SeeNone)]));
        assert!(!explains(&[grant, call(3, Step::Renew { ttl: 4 })]));
        assert_eq!(search(None, &[grant, call(9, Step::SeeNone)], LIVES), Found::Order { ends: 1 });
    }

    #[test]
    fn a_lease_ends_when_it_is_revoked_once() {
        let (grant, end) = (call(1, Step::Grant { ttl: 9 }), call(3, Step::End));
        assert!(explains(&[grant, end, call(5, Step::SeeNone)]));
        assert!(!explains(&[grant, end, call(5, Step::See)]));
        assert!(!explains(&[grant, end, call(5, Step::End)]));
        assert!(explains(&[grant, end, call(5, Step::Grant { ttl: 1 }), call(7, Step::End)]));
        let unknown = Call { completed: None, ..end };
        assert!(explains(&[grant, unknown, call(5, Step::See)]) && explains(&[grant, unknown, call(5, Step::SeeNone)]));
    }

    #[test]
    fn a_start_gives_it_its_whole_time_and_an_election_timeout() {
        let grant = call(18, Step::Grant { ttl: 3 });
        assert!(!explains(&[grant, call(33, Step::SeeNone)]), "neither before the crash nor so soon after");
        assert!(explains(&[grant, call(34, Step::SeeNone)]));
        assert!(explains(&[call(16, Step::Grant { ttl: 3 }), call(32, Step::SeeNone)]), "before the crash");
    }

    #[test]
    fn a_pause_counts_for_nobody() {
        let lives = Lives { pauses: &[(3 * SECOND, 5 * SECOND)], ..LIVES };
        let explains = |calls: &[Call]| matches!(search(None, calls, lives), Found::Order { .. });
        let grant = call(1, Step::Grant { ttl: 3 });
        assert!(!explains(&[grant, call(7, Step::SeeNone)]) && explains(&[grant, call(9, Step::SeeNone)]));
        // Who is answered behind a pause may have been granted behind it.
        let grant = Call { completed: Some(8 * SECOND), ..grant };
        assert!(explains(&[grant, call(7, Step::SeeNone)]));
    }

    #[test]
    fn what_is_left_is_no_less_than_was_promised() {
        let rest = |seconds| Step::SeeRest { ttl: 3, left_max: seconds * SECOND };
        let grant = call(1, Step::Grant { ttl: 3 });
        assert!(explains(&[grant, call(2, rest(2))]) && !explains(&[grant, call(2, rest(1))]));
    }
}
