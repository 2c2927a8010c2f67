//! The lease RPCs, and the ends of leases whose time is over.
//!
//! Owns: the order of checks, the answers, the clock of the member that leads and what it proposes by it. Does not
//! know: when a lease expires (`trilith_engine::lease::lessor`).
//!
//! Invariants
//! - I1: a keep-alive request is answered after a read round that began after it arrived, in the order of its stream.
//! - I2: a renewal of a lease whose time is over is answered when the lease has ended; those behind it wait.
//! - I3: the end of a lease is not proposed while a client's command about the same lease is on its way: it might be
//!   granted anew before the end arrives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use trilith_engine::budget::Budget;
use trilith_engine::command::Command;
use trilith_engine::lease::lessor::{Lessor, Renewal};
use trilith_engine::replica::apply::{Applied, Outcome};
use trilith_wire::proto::Message;
use trilith_wire::proto::etcdserverpb as pb;

use crate::clients::{Caller, Clients};
use crate::service::reads::{Read, ReadKind};
use crate::service::streams::{KeepAlive, OpenCall};
use crate::service::{Service, Status, Verdict, decode, decode_streamed, refuse, status, submit_status};

/// etcd's estimate of what a lease adds to the store, in bytes.
const LEASE_COST: u64 = 64;
/// Work units of looking at leases in one turn.
const UNITS_PER_TURN: u32 = 2_500;
/// Notes of what is left of leases in one turn.
const NOTES_PER_TURN: usize = 512;

/// What the service keeps of leases beside the replicated state.
#[derive(Debug)]
pub(super) struct LeaseWork {
    pub(super) lessor: Lessor,
    /// Leases named by commands of clients that are on their way, by sequence, and how many commands name each.
    on_their_way: VecDeque<(u64, i64)>,
    named: BTreeMap<i64, u32>,
    /// Streams whose next answer waits for the end of a lease, or for a void note.
    waiting: BTreeMap<i64, Vec<Caller>>,
    /// Leases whose note is being made void.
    voided: BTreeSet<i64>,
    /// Ids chosen in this boot.
    chosen: u32,
}

impl LeaseWork {
    pub(super) fn new(lessor: Lessor) -> Self {
        Self {
            lessor,
            on_their_way: VecDeque::new(),
            named: BTreeMap::new(),
            waiting: BTreeMap::new(),
            voided: BTreeSet::new(),
            chosen: 0,
        }
    }

    fn note_submitted(&mut self, sequence: u64, id: i64) {
        self.on_their_way.push_back((sequence, id));
        *self.named.entry(id).or_default() += 1;
    }

    fn note_applied(&mut self, sequence: u64) {
        while let Some((_, id)) = self.on_their_way.pop_front_if(|(submitted, _)| *submitted <= sequence) {
            let count = self.named.get_mut(&id).expect("counted when it was submitted");
            *count -= 1;
            if *count == 0 {
                self.named.remove(&id);
            }
        }
    }
}

impl Service {
    pub(super) fn handle_lease_grant(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::LeaseGrantRequest>(message)?;
        self.admit_growth(LEASE_COST, now)?;
        let id = if request.id == 0 { self.choose_lease_id() } else { request.id };
        let ttl = self.leases.lessor.ttl(request.ttl);
        self.submit_about_lease(caller, id, &Command::LeaseGrant { id, ttl }, now)
    }

    pub(super) fn handle_lease_revoke(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let pb::LeaseRevokeRequest { id } = decode(message)?;
        self.submit_about_lease(caller, id, &Command::LeaseRevoke { id }, now)
    }

    fn submit_about_lease(
        &mut self,
        caller: Caller,
        id: i64,
        command: &Command<'_>,
        now: u64,
    ) -> Result<Verdict, Status> {
        let sequence = self.submit_for(caller, command, now)?;
        self.leases.note_submitted(sequence, id);
        Ok(Verdict::Pending)
    }

    /// A positive id that no lease has: it begins with the low bits of the member, as in etcd, and goes on with those
    /// of the boot.
    fn choose_lease_id(&mut self) -> i64 {
        loop {
            self.leases.chosen = self.leases.chosen.wrapping_add(1);
            let boot = self.replica.boot_number().0 & 0xffff;
            let id = (self.member_id & 0x7fff) << 48 | boot << 32 | u64::from(self.leases.chosen);
            let id = id.cast_signed();
            if id != 0 && self.replica.keyspace().leases().get(id).is_none() && !self.leases.named.contains_key(&id) {
                return id;
            }
        }
    }

    pub(super) fn handle_time_to_live(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        decode::<pb::LeaseTimeToLiveRequest>(message)?;
        self.start_read(caller, ReadKind::TimeToLive, message.to_vec(), false, now)
    }

    pub(super) fn handle_leases(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        decode::<pb::LeaseLeasesRequest>(message)?;
        self.start_read(caller, ReadKind::Leases, Vec::new(), true, now)
    }

    /// What is left of a lease, without its keys.
    ///
    /// # Errors
    /// Another member leads.
    pub(super) fn time_to_live(&self, id: i64, now: u64) -> Result<pb::LeaseTimeToLiveResponse<'static>, Status> {
        let header = Some(self.current_header());
        let Some(lease) = self.replica.keyspace().leases().get(id) else {
            return Ok(pb::LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::new() });
        };
        let lessor = &self.leases.lessor;
        let left = lessor.remaining(id, lease, now).ok_or(status::LEADER_CHANGED)?;
        let ttl = (left / 1_000_000_000).cast_signed();
        Ok(pb::LeaseTimeToLiveResponse { header, id, ttl, granted_ttl: lessor.ttl(lease.ttl), keys: Vec::new() })
    }

    /// Lets the leader's clock go on, and proposes the ends of leases whose time is over.
    pub(super) fn step_leases(&mut self, clients: &mut Clients, now: u64) {
        self.leases.lessor.handle_time(now);
        let led = self.replica.settled_term().map(|term| term.0);
        if led != self.leases.lessor.term() {
            self.change_lease_term(clients, led, now);
        }
        self.leases.lessor.load_step(self.replica.keyspace().leases());
        let Some(term) = led else { return };
        let mut budget = Budget::new(UNITS_PER_TURN);
        while let Some(id) = self.leases.lessor.poll_expired(now, &mut budget) {
            let is_free = !self.leases.named.contains_key(&id);
            if is_free && self.submit_own(&Command::LeaseExpire { id, term }, now).is_ok() {
                self.applied.lease.expired += 1;
            } else {
                self.leases.lessor.handle_refused(id, now);
            }
        }
        for _ in 0..NOTES_PER_TURN {
            let Some((id, remaining)) = self.leases.lessor.poll_note(now) else { break };
            let ttl = self.replica.keyspace().leases().get(id).map_or(0, |lease| lease.ttl);
            if (1..ttl).contains(&remaining) {
                // One that is not taken is made up for by the next.
                let _: Result<u64, _> = self.submit_own(&Command::LeaseCheckpoint { id, remaining }, now);
            }
        }
    }

    /// Who waited for the end of a lease waited for this leader's word.
    fn change_lease_term(&mut self, clients: &mut Clients, led: Option<u64>, now: u64) {
        match led {
            Some(term) => self.leases.lessor.promote(term, now),
            None => self.leases.lessor.demote(),
        }
        self.leases.voided.clear();
        for caller in std::mem::take(&mut self.leases.waiting).into_values().flatten() {
            self.end_keep_alive(clients, caller, &status::NOT_PRIMARY_LESSOR);
        }
    }

    /// When [`Self::step_leases`] is due.
    pub(super) fn lease_deadline(&self) -> Option<u64> {
        self.leases.lessor.deadline()
    }

    /// Takes note of what a command did to leases.
    pub(super) fn note_lease_outcome(&mut self, clients: &mut Clients, applied: &Applied, now: u64) {
        if self.replica.is_own(applied.id) {
            self.leases.note_applied(applied.id.sequence);
        }
        match applied.result {
            Ok(Outcome::LeaseGrant { id, ttl }) => self.leases.lessor.handle_granted(id, ttl, now),
            Ok(Outcome::LeaseEnd { id, .. }) => {
                self.leases.lessor.handle_ended(id);
                self.go_on_with_keep_alives(clients, id, now);
            }
            Ok(Outcome::LeaseCheckpoint { id }) => {
                self.leases.voided.remove(&id);
                self.go_on_with_keep_alives(clients, id, now);
            }
            _ => {}
        }
    }

    /// Begins a stream of keep-alive requests.
    pub(super) fn open_keep_alive(&mut self, caller: Caller) -> Verdict {
        self.open_calls.insert(caller, OpenCall::KeepAlive(KeepAlive::default()));
        Verdict::Pending
    }

    /// One request of such a stream.
    pub(super) fn handle_keep_alive(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<(), Status> {
        let request = decode_streamed::<pb::LeaseKeepAliveRequest>(message)?;
        if let Some(OpenCall::KeepAlive(call)) = self.open_calls.get_mut(caller) {
            call.unanswered += 1;
        }
        self.reads.start(Read { caller, kind: ReadKind::KeepAlive(request.id), message: Vec::new(), started: now });
        Ok(())
    }

    /// Answers one request whose round is over, unless it has to wait (I2).
    pub(super) fn answer_keep_alive(&mut self, clients: &mut Clients, caller: Caller, id: i64, now: u64) {
        let Some(OpenCall::KeepAlive(call)) = self.open_calls.get_mut(caller) else { return };
        call.confirmed.push_back(id);
        if call.confirmed.len() == 1 {
            self.answer_confirmed(clients, caller, now);
        }
    }

    /// Answers what a stream may be answered now, in its order.
    fn answer_confirmed(&mut self, clients: &mut Clients, caller: Caller, now: u64) {
        while let Some(OpenCall::KeepAlive(call)) = self.open_calls.get_mut(caller) {
            let Some(&id) = call.confirmed.front() else { return };
            match self.renew(id, now) {
                Ok(Some(ttl)) => self.send_keep_alive(clients, caller, id, ttl),
                Ok(None) => return self.leases.waiting.entry(id).or_default().push(caller),
                Err(status) => return self.end_keep_alive(clients, caller, &status),
            }
        }
    }

    /// Renews a lease; its time to live, 0 if there is no such lease. `None`: that is not known yet.
    fn renew(&mut self, id: i64, now: u64) -> Result<Option<i64>, Status> {
        let lease = self.replica.keyspace().leases().get(id);
        match self.leases.lessor.renew(id, lease, now) {
            Renewal::Renewed { ttl, is_noted: false } => {
                self.applied.lease.renewed += 1;
                Ok(Some(ttl))
            }
            Renewal::Renewed { is_noted: true, .. } => {
                // A leader that comes next must not count from the note.
                if !self.leases.voided.contains(&id) {
                    let void = Command::LeaseCheckpoint { id, remaining: 0 };
                    self.submit_own(&void, now).map_err(submit_status)?;
                    self.leases.voided.insert(id);
                }
                Ok(None)
            }
            Renewal::Expired => Ok(None),
            Renewal::Unknown => Ok(Some(0)),
            Renewal::NotLeading => Err(status::NOT_PRIMARY_LESSOR),
        }
    }

    fn send_keep_alive(&mut self, clients: &mut Clients, caller: Caller, id: i64, ttl: i64) {
        let answer = pb::LeaseKeepAliveResponse { header: Some(self.current_header()), id, ttl };
        let Some(OpenCall::KeepAlive(call)) = self.open_calls.get_mut(caller) else { return };
        call.confirmed.pop_front();
        call.unanswered -= 1;
        let ends = call.half_closed && call.unanswered == 0;
        let Some(mut connection) = clients.answer(caller) else { return };
        connection.send_message(caller.stream, answer.encoded_len(), |out| answer.encode_into(out));
        if ends {
            connection.finish(caller.stream, 0, "");
            self.handle_call_ended(caller);
        }
    }

    fn go_on_with_keep_alives(&mut self, clients: &mut Clients, id: i64, now: u64) {
        for caller in self.leases.waiting.remove(&id).unwrap_or_default() {
            self.answer_confirmed(clients, caller, now);
        }
    }

    fn end_keep_alive(&mut self, clients: &mut Clients, caller: Caller, status: &Status) {
        self.handle_call_ended(caller);
        if let Some(connection) = clients.answer(caller) {
            refuse(connection, caller, status);
        }
    }
}
