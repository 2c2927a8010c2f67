//! Deadlines that clients set for their calls (`grpc-timeout`).
//!
//! Owns: which calls have one, and when. Does not know: what the calls wait for; whether one was answered meanwhile is
//! asked of its connection.
//!
//! Most calls are answered long before, and nobody takes them off here: from time to time those that are over are swept
//! out, at a cost that is constant for each call.
//!
//! Invariants
//! - I1: at most [`SWEEP_MIN`] calls, or twice those that were open at the last sweep, are kept.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use trilith_wire::api::status;

use crate::clients::{Caller, Clients};
use crate::service::{Service, refuse};

/// Calls kept without looking for those that are over.
const SWEEP_MIN: usize = 1_024;

/// Calls with a deadline.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    calls: BinaryHeap<Reverse<(u64, Caller)>>,
    sweep_at: usize,
}

impl Deadlines {
    /// A call must be over by `deadline`.
    pub(super) fn insert(&mut self, deadline: u64, caller: Caller) {
        self.calls.push(Reverse((deadline, caller)));
    }

    /// The earliest.
    pub(super) fn first(&self) -> Option<u64> {
        self.calls.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Drops calls that are over, if there are many.
    fn sweep(&mut self, clients: &Clients) {
        if self.calls.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.calls.retain(|Reverse((_, caller))| clients.is_open(*caller));
            self.sweep_at = 2 * self.calls.len();
        }
    }

    fn take_due(&mut self, now: u64) -> Option<Caller> {
        self.first().filter(|&deadline| deadline <= now)?;
        self.calls.pop().map(|Reverse((_, caller))| caller)
    }
}

impl Service {
    /// Calls that are remembered for their deadlines.
    #[must_use]
    pub fn deadlines_kept(&self) -> usize {
        self.deadlines.calls.len()
    }

    /// Ends calls whose clients wanted an answer by now. What they asked for may still happen, as in etcd.
    pub(super) fn end_overdue(&mut self, clients: &mut Clients, now: u64) {
        self.deadlines.sweep(clients);
        while let Some(caller) = self.deadlines.take_due(now) {
            if !clients.is_open(caller) {
                continue;
            }
            self.handle_call_ended(caller);
            if let Some(connection) = clients.answer(caller) {
                refuse(connection, caller, &status::CONTEXT_DEADLINE_EXCEEDED);
            }
        }
    }
}
