//! Terms, votes and who leads.
//!
//! Owns: PreVote, Vote, stickiness, stepping down. Does not know: how entries travel.
//!
//! The invariants are those of the parent module, I3 and I6 above all.

use super::{MemberId, Message, MessageBody, Progress, Raft, Role};
use crate::entry::EntryType;
use crate::ids::{Index, Term};

impl Raft {
    pub(super) fn reset_election_timer(&mut self) {
        let timeout = self.options.election_timeout;
        let drawn = timeout + self.random.below(timeout / 2);
        self.election_deadline = self.now.saturating_add(drawn);
    }

    /// Asks everybody, itself first, whether an election would be won.
    pub(super) fn campaign(&mut self) {
        assert_ne!(self.role, Role::Leader, "a leader does not campaign");
        self.role = Role::PreCandidate;
        self.leader = None;
        self.reset_election_timer();
        self.votes.clear();
        self.votes.insert(self.id, true);
        let last = self.log.last();
        for to in self.others() {
            let body = MessageBody::PreVote { last_index: last.index, last_term: last.term };
            self.send(to, self.term.next(), body);
        }
        self.tally();
    }

    fn become_candidate(&mut self) {
        self.role = Role::Candidate;
        self.term = self.term.next();
        self.vote = Some(self.id);
        self.votes.clear();
        self.has_requested_votes = false;
        self.reset_election_timer();
    }

    /// The hard state is durable: the own vote counts, and the others may be asked (I3).
    pub(super) fn settle_votes(&mut self) {
        if self.role != Role::Candidate || self.has_requested_votes {
            return;
        }
        assert_eq!(self.vote, Some(self.id), "a candidate votes for itself");
        self.has_requested_votes = true;
        self.votes.insert(self.id, true);
        let last = self.log.last();
        for to in self.others() {
            self.send(to, self.term, MessageBody::Vote { last_index: last.index, last_term: last.term });
        }
        self.tally();
    }

    fn tally(&mut self) {
        let granted = self.votes.values().filter(|granted| **granted).count();
        let refused = self.votes.len() - granted;
        if granted >= self.quorum() {
            match self.role {
                Role::PreCandidate => self.become_candidate(),
                Role::Candidate => self.become_leader(),
                Role::Follower | Role::Leader => {}
            }
        } else if refused >= self.quorum() {
            self.become_follower(self.term, None);
        }
    }

    fn become_leader(&mut self) {
        assert!(self.role == Role::Candidate && self.has_requested_votes, "I3: a leader's own vote is durable");
        self.role = Role::Leader;
        self.leader = Some(self.id);
        let last = self.log.last().index;
        let now = self.now;
        self.peers = self.others().into_iter().map(|peer| (peer, Progress::new(last, now))).collect();
        self.heartbeat_deadline = now.saturating_add(self.options.heartbeat_interval);
        self.election_deadline = now.saturating_add(self.options.election_timeout);
        self.term_start = self.append_own(EntryType::NoOp, std::sync::Arc::default());
        assert!(
            self.term_start > last && self.term > Term(1),
            "a term begins with a no-op; the first leader has term 2"
        );
    }

    pub(super) fn become_follower(&mut self, term: Term, leader: Option<MemberId>) {
        assert!(term >= self.term, "a term never goes back");
        if term > self.term {
            self.term = term;
            self.vote = None;
        }
        self.role = Role::Follower;
        self.leader = leader;
        self.peers.clear();
        self.verified = self.commit;
        self.acknowledged = Index::ZERO;
        self.acknowledgement_due = false;
        self.abort_reads();
        self.reset_election_timer();
    }

    /// True while this member hears from a leader, or is one: others' candidacies are then ignored.
    fn is_sticky(&self) -> bool {
        let heard = self.leader.is_some() && self.now.saturating_sub(self.leader_heard) < self.options.election_timeout;
        self.role == Role::Leader || heard
    }

    fn is_up_to_date(&self, last_index: Index, last_term: Term) -> bool {
        let own = self.log.last();
        (last_term, last_index) >= (own.term, own.index)
    }

    /// A message of a voter arrived. Messages to or from anybody else are dropped.
    pub fn handle_message(&mut self, message: Message, now: u64) {
        self.advance_time(now);
        let is_ours = message.to == self.id && message.from != self.id && self.voters.contains(&message.from);
        if self.is_poisoned || self.is_stopping || !is_ours || message.term.0 >= u64::MAX / 2 {
            return;
        }
        if message.term < self.term {
            return self.answer_old_term(&message);
        }
        if message.term > self.term {
            let leader = match message.body {
                // Neither a question about a future term nor the promise to it makes that term begin.
                MessageBody::PreVote { .. } | MessageBody::PreVoteReply { granted: true } => None,
                MessageBody::Vote { .. } if self.is_sticky() => return,
                MessageBody::Append { .. } | MessageBody::Heartbeat { .. } => Some(Some(message.from)),
                _ => Some(None),
            };
            if let Some(leader) = leader {
                self.become_follower(message.term, leader);
            }
        }
        self.dispatch(message);
    }

    fn dispatch(&mut self, message: Message) {
        let (from, term) = (message.from, message.term);
        match message.body {
            MessageBody::PreVote { last_index, last_term } => {
                let granted = term > self.term && !self.is_sticky() && self.is_up_to_date(last_index, last_term);
                let reply_term = if granted { term } else { self.term };
                self.send(from, reply_term, MessageBody::PreVoteReply { granted });
            }
            MessageBody::PreVoteReply { granted } => {
                let asked = if granted { self.term.next() } else { self.term };
                if self.role == Role::PreCandidate && term == asked {
                    self.votes.insert(from, granted);
                    self.tally();
                }
            }
            MessageBody::Vote { last_index, last_term } => self.handle_vote(from, last_index, last_term),
            MessageBody::VoteReply { granted } => {
                if self.role == Role::Candidate && self.has_requested_votes {
                    self.votes.insert(from, granted);
                    self.tally();
                }
            }
            MessageBody::Append { previous, entries, commit } => {
                if self.hear_leader(from) {
                    self.handle_append(previous, entries, commit);
                }
            }
            MessageBody::Heartbeat { commit, round } => {
                if self.hear_leader(from) {
                    self.follow_commit(commit);
                    self.defer(from, MessageBody::HeartbeatReply { round });
                }
            }
            MessageBody::AppendAccepted { match_index } => self.handle_accepted(from, match_index),
            MessageBody::AppendRejected { previous_index, hint_index, hint_term } => {
                self.handle_rejected(from, previous_index, hint_index, hint_term);
            }
            MessageBody::HeartbeatReply { round } => self.handle_heartbeat_reply(from, round),
        }
    }

    /// A sender behind in term learns the present one, which deposes a stale leader.
    fn answer_old_term(&mut self, message: &Message) {
        match message.body {
            MessageBody::PreVote { .. } => self.defer(message.from, MessageBody::PreVoteReply { granted: false }),
            MessageBody::Append { .. } | MessageBody::Heartbeat { .. } => {
                self.defer(message.from, MessageBody::HeartbeatReply { round: 0 });
            }
            _ => {}
        }
    }

    fn handle_vote(&mut self, from: MemberId, last_index: Index, last_term: Term) {
        let free = self.vote.is_none_or(|vote| vote == from) && self.leader.is_none();
        let granted = free && self.is_up_to_date(last_index, last_term);
        if granted {
            self.vote = Some(from);
            self.reset_election_timer();
        }
        self.defer(from, MessageBody::VoteReply { granted });
    }

    /// Takes a message of this term's leader; false if this member itself leads the term, which a sound peer never
    /// causes (I6).
    fn hear_leader(&mut self, from: MemberId) -> bool {
        if self.role == Role::Leader || self.leader.is_some_and(|leader| leader != from) {
            return false;
        }
        if self.role != Role::Follower || self.leader.is_none() {
            self.become_follower(self.term, Some(from));
        }
        self.leader_heard = self.now;
        self.reset_election_timer();
        true
    }

    /// Sends in this term, once the hard state holds it.
    pub(super) fn defer(&mut self, to: MemberId, body: MessageBody) {
        self.deferred.push(Message { from: self.id, to, term: self.term, body });
    }
}
