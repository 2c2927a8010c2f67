//! What a leader knows of one peer.
//!
//! Owns: match, next, the window of unacknowledged entries. Does not know: messages, commit.
//!
//! Invariants
//! - I1: `match_index < next`; what was acknowledged never goes back.
//! - I2: while probing, one message is unanswered at a time; while replicating, unacknowledged payload stays below the
//!   window (one message may exceed it).

use std::collections::VecDeque;

use crate::ids::Index;

/// Heartbeat replies without an acknowledgement after which what was sent is taken for lost.
const STALLED_REPLIES_MAX: u32 = 2;

#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) match_index: Index,
    pub(crate) next: Index,
    pub(crate) is_probing: bool,
    probe_sent: bool,
    /// Last index and payload bytes of each unacknowledged message.
    window: VecDeque<(Index, usize)>,
    window_bytes: usize,
    stalled_replies: u32,
    pub(crate) commit_sent: Index,
    pub(crate) last_heard: u64,
    pub(crate) acknowledged_round: u64,
}

impl Progress {
    pub(crate) fn new(last: Index, now: u64) -> Self {
        Self {
            match_index: Index::ZERO,
            next: last.next(),
            is_probing: true,
            probe_sent: false,
            window: VecDeque::new(),
            window_bytes: 0,
            stalled_replies: 0,
            commit_sent: Index::ZERO,
            last_heard: now,
            acknowledged_round: 0,
        }
    }

    pub(crate) fn may_send(&self, window_bytes_max: usize) -> bool {
        if self.is_probing { !self.probe_sent } else { self.window_bytes < window_bytes_max }
    }

    /// Entries up to `last` (none if `last < next`) were handed to the transport.
    pub(crate) fn note_sent(&mut self, last: Index, bytes: usize, commit: Index) {
        self.commit_sent = commit;
        if self.is_probing {
            assert!(!self.probe_sent, "I2: one probe at a time");
            self.probe_sent = true;
        } else if last >= self.next {
            self.window.push_back((last, bytes));
            self.window_bytes += bytes;
            self.next = last.next();
        }
    }

    /// The peer holds everything up to `index`.
    pub(crate) fn note_accepted(&mut self, index: Index) {
        self.stalled_replies = 0;
        self.match_index = self.match_index.max(index);
        self.next = self.next.max(self.match_index.next());
        if self.is_probing {
            self.is_probing = false;
            self.next = self.match_index.next();
        }
        while let Some((last, bytes)) = self.window.front().copied().filter(|(last, _)| *last <= self.match_index) {
            assert!(last <= self.match_index, "only acknowledged messages leave the window");
            self.window_bytes -= bytes;
            self.window.pop_front();
        }
        assert!(self.match_index < self.next, "I1");
    }

    /// The peer does not hold `previous`; it may hold something at or below `hint`.
    pub(crate) fn note_rejected(&mut self, previous: Index, hint: Index) {
        let is_stale = if self.is_probing { previous != self.next.previous() } else { previous <= self.match_index };
        if is_stale {
            return;
        }
        let next = previous.min(hint.next()).max(self.match_index.next());
        self.probe_from(next);
    }

    /// A heartbeat was answered; true if unacknowledged entries seem lost and are sent again.
    pub(crate) fn note_heartbeat_reply(&mut self, last: Index) {
        if self.match_index >= last && self.window.is_empty() && !self.probe_sent {
            return;
        }
        self.stalled_replies += 1;
        if self.stalled_replies >= STALLED_REPLIES_MAX {
            let next = if self.is_probing { self.next } else { self.match_index.next() };
            self.probe_from(next);
        }
    }

    fn probe_from(&mut self, next: Index) {
        self.is_probing = true;
        self.probe_sent = false;
        self.next = next;
        self.window.clear();
        self.window_bytes = 0;
        self.stalled_replies = 0;
        assert!(self.match_index < self.next, "I1");
    }
}
