//! Several members in one thread: their disks, their messages, and the invariants that hold between them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use trilith_raftlog::wal::frame::RecordHeader;
use trilith_raftlog::wal::{hard_state_file_name, segment_file_name};
use trilith_raftlog::{
    Boot, ClusterId, Digest, Durability, Generation, Identity, Incarnation, Index, Lsn, MemberId, Message, MessageBody,
    Raft, RaftEffect, Role, Term,
};

use crate::support::{Answer, Flight, Image, small_options};

pub(crate) struct Node {
    pub(crate) raft: Raft,
    pub(crate) image: Image,
    pub(crate) flights: Vec<Flight>,
    reached: Durability,
    completed: Vec<Lsn>,
    pub(crate) now: u64,
}

#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<u64, Node>,
    /// Disks of members that are down.
    pub(crate) images: BTreeMap<u64, Image>,
    pub(crate) network: Vec<Message>,
    pub(crate) transcript: String,
    voters: Vec<MemberId>,
    leaders: BTreeMap<Term, u64>,
    committed: BTreeMap<Index, Digest>,
    clocks: BTreeMap<u64, u64>,
    pub(crate) reads: Vec<(u64, u64, Index)>,
}

impl Cluster {
    pub(crate) fn boot(&mut self, id: u64, voters: &[u64]) {
        self.voters = voters.iter().copied().map(MemberId).collect();
        let image = self.images.remove(&id).unwrap_or_default();
        let recovered = image.recover(Index::ZERO).unwrap_or_else(|error| panic!("member {id}: {error}"));
        let _ = write!(self.transcript, "{id}: recovered last {}", position(recovered.last()));
        match recovered.hard_state {
            Some(state) => {
                let vote = state.vote.map_or_else(|| "nobody".to_owned(), |vote| vote.to_string());
                let _ = writeln!(self.transcript, ", term {}, vote {vote}, boot {}", state.term, state.boot_number);
            }
            None => self.transcript.push_str(", unused\n"),
        }
        let reached = Durability { lsn: recovered.last_lsn, generation: Generation::ZERO };
        let identity =
            Identity { cluster_id: ClusterId(9), member_id: MemberId(id), incarnation: Incarnation(id * 1_000) };
        let now = self.clocks.get(&id).copied().unwrap_or(0);
        let boot = Boot {
            identity,
            voters: self.voters.clone(),
            configuration: b"the same everywhere".to_vec(),
            applied: Index::ZERO,
            recovered,
            seed: id,
            now,
        };
        let raft = Raft::boot(small_options(), boot);
        self.nodes.insert(id, Node { raft, image, flights: Vec::new(), reached, completed: Vec::new(), now });
        self.pump(id);
    }

    /// The process dies; what was in flight is lost.
    pub(crate) fn crash(&mut self, id: u64) {
        let node = self.nodes.remove(&id).expect("a running member");
        self.clocks.insert(id, node.now);
        self.images.insert(id, node.image);
    }

    pub(crate) fn pump(&mut self, id: u64) {
        while let Some(effect) = self.nodes.get_mut(&id).expect("running").raft.poll_effect() {
            self.take(id, effect);
        }
        self.check(id);
    }

    fn take(&mut self, id: u64, effect: RaftEffect) {
        let node = self.nodes.get_mut(&id).expect("running");
        let line = &mut self.transcript;
        let _ = write!(line, "{id}: ");
        let met = |after: Durability| assert!(after.is_met_by(node.reached), "{after:?} at {:?}", node.reached);
        match effect {
            RaftEffect::WriteHardState { generation, copy, bytes } => {
                let _ = writeln!(line, "write hard state {generation} copy {copy}");
                node.fly(Answer::HardState(generation, copy), hard_state_file_name(copy), 0, bytes, None);
            }
            RaftEffect::PrepareSegment(prepare) => {
                met(prepare.after);
                let verb = if prepare.create { "create" } else { "recycle" };
                let _ = writeln!(line, "{verb} slot {} as segment {}", prepare.slot, prepare.sequence);
                let create = prepare.create.then_some(prepare.file_bytes as usize);
                let file = segment_file_name(prepare.slot);
                node.fly(Answer::Segment(prepare.sequence), file, 0, prepare.header, create);
            }
            RaftEffect::Append(append) => {
                met(append.after);
                let header = RecordHeader::decode(&append.bytes[..512]).expect("a record");
                let _ = writeln!(
                    line,
                    "append lsn {} {:?} {}..={} term {} watermark {} commit {}",
                    append.lsn,
                    header.record_type,
                    header.first_index(),
                    header.last_index(),
                    header.term,
                    header.watermark,
                    header.commit_hint
                );
                let file = segment_file_name(append.slot);
                node.fly(Answer::Append(append.lsn), file, append.offset, append.bytes, None);
            }
            RaftEffect::Commit { up_to, after } => {
                met(after);
                let _ = writeln!(line, "commit {up_to}");
            }
            RaftEffect::ReadReady { context, index, after } => {
                met(after);
                let _ = writeln!(line, "read {context} ready at {index}");
                self.reads.push((id, context, index));
            }
            RaftEffect::ReadAborted { context } => {
                let _ = writeln!(line, "read {context} aborted");
            }
            RaftEffect::Send { message, after } => {
                met(after);
                let _ = writeln!(line, "send {}", describe(&message));
                self.network.push(message);
            }
            RaftEffect::RoleChanged { role, term, leader } => {
                let leader = leader.map_or_else(|| "unknown".to_owned(), |leader| leader.to_string());
                let _ = writeln!(line, "{role:?} term {term} leader {leader}");
            }
        }
    }

    /// What must hold between members.
    fn check(&mut self, id: u64) {
        let raft = &self.nodes[&id].raft;
        if raft.role() == Role::Leader {
            let known = *self.leaders.entry(raft.term()).or_insert(id);
            assert_eq!(known, id, "two leaders in term {}", raft.term());
        }
        for index in (1..=raft.commit().0).map(Index) {
            let Some(entry) = raft.entry(index) else { continue };
            let known = *self.committed.entry(index).or_insert(entry.digest);
            assert_eq!(known, entry.digest, "member {id} committed another entry at {index}");
        }
    }

    /// The highest index any member committed.
    pub(crate) fn committed(&self) -> Index {
        self.committed.last_key_value().map_or(Index::ZERO, |(index, _)| *index)
    }

    pub(crate) fn complete(&mut self, id: u64, n: usize) {
        let node = self.nodes.get_mut(&id).expect("running");
        assert!(n < node.flights.len(), "member {id} has no write in flight");
        let flight = node.flights.remove(n);
        flight.land(&mut node.image);
        let now = node.now;
        match flight.answer {
            Answer::Append(lsn) => {
                node.completed.push(lsn);
                while node.completed.contains(&node.reached.lsn.next()) {
                    node.reached.lsn = node.reached.lsn.next();
                }
                node.raft.handle_append_complete(lsn, now);
            }
            Answer::HardState(generation, copy) => {
                let twin = node.image.files.get(&hard_state_file_name(1 - copy));
                if twin == node.image.files.get(&hard_state_file_name(copy)) {
                    node.reached.generation = generation;
                }
                node.raft.handle_hard_state_complete(generation, copy, now);
            }
            Answer::Segment(sequence) => node.raft.handle_segment_prepared(sequence, now),
        }
        self.pump(id);
    }

    pub(crate) fn settle_disk(&mut self, id: u64) {
        while !self.nodes[&id].flights.is_empty() {
            self.complete(id, 0);
        }
    }

    pub(crate) fn deliver(&mut self, message: Message) {
        let id = message.to.0;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.raft.handle_message(message, node.now);
            self.pump(id);
        }
    }

    pub(crate) fn tick(&mut self, id: u64, nanoseconds: u64) {
        let node = self.nodes.get_mut(&id).expect("running");
        node.now += nanoseconds;
        node.raft.handle_tick(node.now);
        self.pump(id);
    }

    pub(crate) fn propose(&mut self, id: u64, payload: &[u8]) -> bool {
        let result = self.nodes.get_mut(&id).expect("running").raft.propose(Arc::new(payload.to_vec()));
        let _ = match result {
            Ok(index) => writeln!(self.transcript, "{id}: proposed {index}"),
            Err(error) => writeln!(self.transcript, "{id}: refused {error:?}"),
        };
        self.pump(id);
        result.is_ok()
    }

    /// Disks and network until nothing moves.
    pub(crate) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1_000, "the cluster never comes to rest");
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            for id in ids {
                self.settle_disk(id);
            }
            if self.network.is_empty() {
                break;
            }
            for message in std::mem::take(&mut self.network) {
                self.deliver(message);
            }
        }
    }

    pub(crate) fn status(&mut self) {
        for (id, node) in &self.nodes {
            let raft = &node.raft;
            let leader = raft.leader().map_or_else(|| "unknown".to_owned(), |leader| leader.to_string());
            let _ = writeln!(
                self.transcript,
                "{id}: {:?} term {} leader {leader} commit {} last {} durable {}",
                raft.role(),
                raft.term(),
                raft.commit(),
                position(raft.last()),
                raft.durable_index()
            );
        }
    }
}

impl Node {
    fn fly(&mut self, answer: Answer, file: String, offset: u64, bytes: Vec<u8>, create: Option<usize>) {
        self.flights.push(Flight { answer, file, offset: offset as usize, bytes, create });
    }
}

fn position(position: trilith_raftlog::LogPosition) -> String {
    format!("{}@{}", position.index, position.term)
}

fn describe(message: &Message) -> String {
    let body = match &message.body {
        MessageBody::PreVote { last_index, last_term } => format!("PreVote last {last_index}@{last_term}"),
        MessageBody::PreVoteReply { granted } => format!("PreVoteReply granted {granted}"),
        MessageBody::Vote { last_index, last_term } => format!("Vote last {last_index}@{last_term}"),
        MessageBody::VoteReply { granted } => format!("VoteReply granted {granted}"),
        MessageBody::Append { previous, entries, commit } => {
            format!("Append after {} entries {} commit {commit}", position(*previous), entries.len())
        }
        MessageBody::AppendAccepted { match_index } => format!("AppendAccepted {match_index}"),
        MessageBody::AppendRejected { previous_index, hint_index, hint_term } => {
            format!("AppendRejected {previous_index} hint {hint_index}@{hint_term}")
        }
        MessageBody::Heartbeat { commit, round } => format!("Heartbeat commit {commit} round {round}"),
        MessageBody::HeartbeatReply { round } => format!("HeartbeatReply round {round}"),
    };
    format!("{}->{} term {} {body}", message.from, message.to, message.term)
}
