//! Reads that wait for the proof that this leader still leads.
//!
//! Owns: the rounds. Does not know: heartbeats, quorums, what is read.
//!
//! Invariants
//! - I1: a read joins only the round whose heartbeats are not sent yet.
//! - I2: round numbers are fresh within a term and grow; an acknowledged round confirms every earlier one.
//! - I3: a round's index is the commit index when it was formed, after a commit in the current term.

use std::collections::VecDeque;

use crate::ids::Index;

/// Rounds on the way; reads that arrive meanwhile share the next one.
const ROUNDS_MAX: usize = 8;

#[derive(Debug)]
struct Round {
    number: u64,
    index: Index,
    contexts: Vec<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    unsent: Vec<u64>,
    rounds: VecDeque<Round>,
    newest: u64,
    pending: usize,
}

impl ReadQueue {
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    pub(crate) fn push(&mut self, context: u64) {
        self.unsent.push(context);
        self.pending += 1;
    }

    /// Forms the next round, if reads wait and another round may be on the way.
    pub(crate) fn form_round(&mut self, commit: Index) -> Option<u64> {
        if self.unsent.is_empty() || self.rounds.len() == ROUNDS_MAX {
            return None;
        }
        self.newest = self.newest.checked_add(1).expect("I2: rounds never run out");
        let contexts = std::mem::take(&mut self.unsent);
        self.rounds.push_back(Round { number: self.newest, index: commit, contexts });
        Some(self.newest)
    }

    /// Number of the newest round formed.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Ends the oldest round if `confirmed` reaches it.
    pub(crate) fn confirm(&mut self, confirmed: u64) -> Option<(Index, Vec<u64>)> {
        let round = self.rounds.pop_front_if(|round| round.number <= confirmed)?;
        self.pending -= round.contexts.len();
        Some((round.index, round.contexts))
    }

    /// Takes everything that waits.
    pub(crate) fn abort(&mut self) -> Vec<u64> {
        let mut contexts: Vec<u64> = self.rounds.drain(..).flat_map(|round| round.contexts).collect();
        contexts.append(&mut self.unsent);
        self.pending = 0;
        contexts
    }
}
