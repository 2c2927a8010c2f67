//! Commands on their way through the log, and who waits for each.
//!
//! Owns: the pairing of outcomes with callers, by sequence. Does not know: answers.
//!
//! Invariants
//! - I1: outcomes come in the order of the sequences, so one always belongs to the first command.
//! - I2: a caller is handed out once, for the outcome or for the refusal.

use std::collections::VecDeque;

use crate::clients::Caller;

#[derive(Debug)]
struct Waiter {
    sequence: u64,
    /// Nobody: the caller was refused already, or the command is the server's own.
    caller: Option<Caller>,
    submitted: u64,
}

/// Commands without an outcome.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// In the order of submission.
    queue: VecDeque<Waiter>,
    /// So many at the head have nobody to refuse, so that a long stall is not walked over turn by turn.
    passed: usize,
}

impl Waiters {
    /// How many outcomes are awaited.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no outcome is awaited.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A command was submitted, for a caller or for the server itself.
    pub(super) fn push(&mut self, sequence: u64, caller: Option<Caller>, now: u64) {
        self.queue.push_back(Waiter { sequence, caller, submitted: now });
    }

    /// The command of this sequence has its outcome; who waits for it.
    pub(super) fn complete(&mut self, sequence: u64) -> Option<Caller> {
        let waiter = self.queue.pop_front().expect("I1: every own command waits here");
        assert_eq!(waiter.sequence, sequence, "I1: outcomes in the order of the sequences");
        self.passed = self.passed.saturating_sub(1);
        waiter.caller
    }

    /// Someone who waits for a command submitted before `time`, to be refused.
    pub(super) fn take_submitted_before(&mut self, time: u64) -> Option<Caller> {
        while let Some(waiter) = self.queue.get_mut(self.passed).filter(|waiter| waiter.submitted < time) {
            self.passed += 1;
            if let Some(caller) = waiter.caller.take() {
                return Some(caller);
            }
        }
        None
    }

    /// When the oldest command was submitted that somebody may still wait for.
    #[must_use]
    pub(super) fn oldest(&self) -> Option<u64> {
        self.queue.get(self.passed).map(|waiter| waiter.submitted)
    }
}

#[cfg(test)]
mod tests {
    use trilith_reactor::ConnectionId;
    use trilith_wire::connection::StreamId;

    use super::*;

    fn caller(number: u64) -> Caller {
        Caller::new(0, ConnectionId(number), StreamId::default())
    }

    #[test]
    fn a_refused_caller_does_not_get_the_outcome_too() {
        let mut waiters = Waiters::default();
        for (sequence, submitted) in [(1, 10), (2, 10), (3, 30)] {
            waiters.push(sequence, (sequence != 2).then(|| caller(sequence)), submitted);
        }
        assert_eq!(waiters.oldest(), Some(10));
        assert_eq!(waiters.take_submitted_before(10), None);
        assert_eq!(waiters.take_submitted_before(20), Some(caller(1)));
        assert_eq!(waiters.take_submitted_before(20), None);
        assert_eq!(waiters.oldest(), Some(30), "the refused and the server's own need no timer");
        assert_eq!([1, 2].map(|sequence| waiters.complete(sequence)), [None, None]);
        assert_eq!(waiters.oldest(), Some(30));
        assert_eq!(waiters.complete(3), Some(caller(3)));
        assert_eq!((waiters.oldest(), waiters.is_empty()), (None, true));
        waiters.push(4, Some(caller(4)), 40);
        assert_eq!(waiters.take_submitted_before(u64::MAX), Some(caller(4)));
    }
}
