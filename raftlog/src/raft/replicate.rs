//! How entries travel and commit.
//!
//! Owns: a leader's sending and counting, a follower's accepting and acknowledging, read rounds over heartbeats.
//! Does not know: elections.
//!
//! The invariants are those of the parent module, I4 and I5 above all.

use super::{MemberId, MessageBody, Raft, RaftEffect, Role};
use crate::entry::{Entry, LogPosition};
use crate::ids::{Index, Term};

impl Raft {
    /// A leader's clock: heartbeats, and whether a quorum still answers.
    pub(super) fn lead_on(&mut self) {
        if self.is_single() {
            return;
        }
        if self.election_deadline <= self.now {
            let heard_since = self.now.saturating_sub(self.options.election_timeout);
            let heard = self.peers.values().filter(|peer| peer.last_heard >= heard_since).count();
            if heard + 1 < self.quorum() {
                return self.become_follower(self.term, None);
            }
            self.election_deadline = self.now.saturating_add(self.options.election_timeout);
        }
        if self.heartbeat_deadline <= self.now {
            self.heartbeat_deadline = self.now.saturating_add(self.options.heartbeat_interval);
            self.broadcast_heartbeat(self.reads.newest());
        }
    }

    pub(super) fn broadcast_heartbeat(&mut self, round: u64) {
        let commits: Vec<(MemberId, Index)> =
            self.peers.iter().map(|(id, peer)| (*id, self.commit.min(peer.match_index))).collect();
        for (to, commit) in commits {
            self.send(to, self.term, MessageBody::Heartbeat { commit, round });
        }
    }

    /// Sends every peer what its window admits.
    pub(super) fn produce_replication(&mut self) {
        if self.role != Role::Leader {
            return;
        }
        for to in self.others() {
            while let Some((term, body)) = self.next_append(to) {
                self.send(to, term, body);
            }
        }
    }

    /// The next message of entries or news of the commit index for a peer; `None` if there is none, its window is full,
    /// or what it needs has left memory.
    fn next_append(&mut self, to: MemberId) -> Option<(Term, MessageBody)> {
        let last = self.log.last().index;
        let peer = self.peers.get_mut(&to)?;
        let has_news = peer.next <= last || peer.commit_sent < self.commit || peer.is_probing;
        if !has_news || !peer.may_send(self.options.peer_window_bytes_max) {
            return None;
        }
        let previous = self.log.position(peer.next.previous())?;
        let entries = self.log.slice(peer.next, self.options.batch_bytes_max);
        let bytes = entries.iter().map(|entry| entry.payload.len()).sum();
        peer.note_sent(entries.last().map_or(previous.index, |entry| entry.index), bytes, self.commit);
        Some((self.term, MessageBody::Append { previous, entries, commit: self.commit }))
    }

    pub(super) fn handle_accepted(&mut self, from: MemberId, match_index: Index) {
        let (last, now) = (self.log.last().index, self.now);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.last_heard = now;
        if match_index <= last {
            peer.note_accepted(match_index);
            self.advance_commit();
        }
    }

    pub(super) fn handle_rejected(&mut self, from: MemberId, previous: Index, hint: Index, hint_term: Term) {
        let now = self.now;
        // Skip back over what is newer than the peer's entry: it cannot be there.
        let mut index = hint.min(self.log.last().index);
        while self.log.position(index).is_some_and(|own| own.term > hint_term) {
            index = index.previous();
        }
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.last_heard = now;
        if previous > Index::ZERO && hint < previous {
            peer.note_rejected(previous, index);
        }
    }

    pub(super) fn handle_heartbeat_reply(&mut self, from: MemberId, round: u64) {
        let (last, now) = (self.log.last().index, self.now);
        let newest = self.reads.newest();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.last_heard = now;
        peer.note_heartbeat_reply(last);
        if round <= newest {
            peer.acknowledged_round = peer.acknowledged_round.max(round);
            self.confirm_reads();
        }
    }

    /// Commits what a quorum of disks holds, the own one among them, if it is of this term (I4).
    pub(super) fn advance_commit(&mut self) {
        assert_eq!(self.role, Role::Leader, "only a leader counts");
        let mut matches: Vec<Index> = self.peers.values().map(|peer| peer.match_index).collect();
        matches.push(self.wal.durable_index());
        matches.sort_unstable_by(|a, b| b.cmp(a));
        let agreed = matches[self.quorum() - 1];
        let is_own = self.log.position(agreed).is_some_and(|position| position.term == self.term);
        if agreed > self.commit && is_own {
            assert!(agreed <= self.log.last().index, "I4: commit stays within the log");
            self.commit = agreed;
        }
    }

    /// Ends the rounds that a quorum has answered.
    pub(super) fn confirm_reads(&mut self) {
        let mut rounds: Vec<u64> = self.peers.values().map(|peer| peer.acknowledged_round).collect();
        rounds.push(self.reads.newest());
        rounds.sort_unstable_by(|a, b| b.cmp(a));
        let confirmed = rounds[self.quorum() - 1];
        while let Some((index, contexts)) = self.reads.confirm(confirmed) {
            assert!(self.role == Role::Leader && index >= self.term_start, "a read follows a commit of the term");
            let after = self.rests_on(index);
            let ready = contexts.into_iter().map(|context| RaftEffect::ReadReady { context, index, after });
            self.effects.extend(ready);
        }
    }

    pub(super) fn abort_reads(&mut self) {
        let aborted = self.reads.abort().into_iter().map(|context| RaftEffect::ReadAborted { context });
        self.effects.extend(aborted);
    }

    pub(super) fn follow_commit(&mut self, commit: Index) {
        assert_ne!(self.role, Role::Leader, "a leader counts for itself");
        self.commit = self.commit.max(commit.min(self.verified));
    }

    /// Entries of this term's leader.
    pub(super) fn handle_append(&mut self, previous: LogPosition, entries: Vec<Entry>, commit: Index) {
        let is_small = |entry: &Entry| entry.payload.len() <= self.options.entry_bytes_max;
        if !is_sound(previous, &entries, self.term) || !entries.iter().all(is_small) {
            return;
        }
        let end = entries.last().map_or(previous.index, |entry| entry.index);
        if end > self.commit {
            let has_previous = previous.index < self.commit || self.log.position(previous.index) == Some(previous);
            if !has_previous {
                return self.reject(previous.index);
            }
            // What is committed here is equal there; the rest is compared entry by entry.
            let commit = self.commit;
            for entry in entries.into_iter().skip_while(|entry| entry.index <= commit) {
                if !self.take_entry(entry) {
                    return;
                }
            }
        }
        self.verified = self.verified.max(end);
        self.acknowledgement_due = true;
        self.follow_commit(commit);
    }

    /// Holds `entry` from now on; false if it does not continue the log by digest.
    fn take_entry(&mut self, entry: Entry) -> bool {
        match self.log.position(entry.index) {
            Some(own) if own == entry.position() => return true,
            Some(_) => {
                assert!(entry.index > self.commit, "I5: committed entries are never truncated");
                self.log.truncate_from(entry.index);
                self.wal.supersede_from(entry.index);
                self.verified = self.verified.min(entry.index.previous());
            }
            None => {}
        }
        let last = self.log.last();
        if entry.index != last.index.next() || !entry.follows(last.digest) {
            return false;
        }
        self.log.push(entry);
        true
    }

    fn reject(&mut self, previous_index: Index) {
        let Some(leader) = self.leader else { return };
        let hint = self.log.last().index.min(previous_index.previous());
        let hint_term = self.log.position(hint).map_or(Term::ZERO, |position| position.term);
        self.defer(leader, MessageBody::AppendRejected { previous_index, hint_index: hint, hint_term });
    }

    /// Tells the leader what is both equal and durable here.
    pub(super) fn produce_acknowledgement(&mut self) {
        let (Role::Follower, Some(leader)) = (self.role, self.leader) else { return };
        let match_index = self.verified.min(self.wal.durable_index());
        // What is still on the way to the disk is acknowledged when it arrives there.
        let is_answer = self.acknowledgement_due && match_index == self.verified;
        if !is_answer && match_index <= self.acknowledged {
            return;
        }
        self.acknowledgement_due = false;
        self.acknowledged = self.acknowledged.max(match_index);
        let after = self.rests_on(match_index);
        let message = super::Message {
            from: self.id,
            to: leader,
            term: self.term,
            body: MessageBody::AppendAccepted { match_index },
        };
        self.effects.push_back(RaftEffect::Send { message, after });
    }
}

/// A peer's entries are consecutive, of no later term than its own, in order of terms.
fn is_sound(previous: LogPosition, entries: &[Entry], term: Term) -> bool {
    let mut last = (previous.index, previous.term);
    for entry in entries {
        let follows = last.0.0.checked_add(1) == Some(entry.index.0) && entry.term >= last.1 && entry.term <= term;
        if !follows {
            return false;
        }
        last = (entry.index, entry.term);
    }
    last.0.0 < u64::MAX / 2
}
