//! Unary calls: arguments are checked in etcd's order; then each becomes a command, a read, a job or an answer.
//!
//! Owns: the order of checks of each method. Does not know: what becomes of a command or a read. Leases and open calls
//! have files of their own (`leases`, `streams`).

use trilith_engine::command::{Alarm, Command, Op, SortOrder, SortTarget, Txn};
use trilith_engine::mvcc::{HashCursor, check};
use trilith_raftlog::Role;
use trilith_wire::api::status::{self, Status};
use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::{Message, health};

use crate::api::{self, request};
use crate::clients::Caller;
use crate::service::jobs::{Job, Wait, Work};
use crate::service::reads::ReadKind;
use crate::service::streams::OpenCall;
use crate::service::{Service, Verdict, admission, decode};

impl Service {
    pub(super) fn handle_put(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::PutRequest<'_>>(message)?;
        let put = request::put(&request);
        self.admit_growth(admission::put_cost(&put), now)?;
        check::check_put(&put).map_err(api::mvcc_status)?;
        self.admission.check_size(message.len())?;
        self.submit(caller, &Command::Put(put), now)
    }

    /// The only member leads already; there is nobody else to take over.
    pub(super) fn move_leader(&self, message: &[u8]) -> Result<Verdict, Status> {
        let request = decode::<pb::MoveLeaderRequest>(message)?;
        if self.replica.role() != Role::Leader {
            return Err(status::NOT_LEADER);
        }
        if request.target_id != self.member_id {
            return Err(status::BAD_LEADER_TRANSFEREE);
        }
        // etcd's answer has no header.
        Ok(Verdict::Message(pb::MoveLeaderResponse::default().encode_to_vec()))
    }

    pub(super) fn handle_delete_range(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::DeleteRangeRequest<'_>>(message)?;
        let delete = request::delete_range(&request);
        check::check_delete_range(&delete).map_err(api::mvcc_status)?;
        self.admission.check_size(message.len())?;
        self.admit_answer(delete.prev_kv && !delete.range_end.is_empty())?;
        self.submit(caller, &Command::DeleteRange(delete), now)
    }

    pub(super) fn handle_txn(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::TxnRequest<'_>>(message)?;
        let txn = request::txn(&request);
        if txn.has_put() {
            self.admit_growth(admission::txn_cost(&txn), now)?;
        }
        check::check_txn(&txn, self.admission.txn_ops_max).map_err(api::mvcc_status)?;
        if txn.is_read_only() {
            let serializable = txn.is_serializable();
            return self.start_read(caller, ReadKind::Txn, message.to_vec(), serializable, now);
        }
        self.admission.check_size(message.len())?;
        self.admit_answer(shows_ranges(&txn))?;
        let asked = oldest_asked(&txn);
        let sequence = self.submit_for(caller, &Command::Txn(txn), now)?;
        self.asked.extend(asked.map(|revision| (sequence, revision)));
        Ok(Verdict::Pending)
    }

    pub(super) fn handle_compact(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::CompactionRequest>(message)?;
        let sequence = self.submit_for(caller, &Command::Compact { revision: request.revision }, now)?;
        if request.physical {
            self.physical.insert(sequence, request.revision);
        }
        Ok(Verdict::Pending)
    }

    pub(super) fn handle_range(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::RangeRequest<'_>>(message)?;
        check::check_range(&request::range(&request)).map_err(api::mvcc_status)?;
        self.start_read(caller, ReadKind::Range, message.to_vec(), request.serializable, now)
    }

    pub(super) fn handle_range_stream(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::RangeRequest<'_>>(message)?;
        let query = request::range(&request);
        check::check_range(&query).map_err(api::mvcc_status)?;
        let by_key = query.sort_target == SortTarget::Key && query.sort_order == SortOrder::Ascend;
        if query.sort_order != SortOrder::None && !by_key {
            return Err(status::RANGE_STREAM_SORT);
        }
        let filters =
            [query.min_mod_revision, query.max_mod_revision, query.min_create_revision, query.max_create_revision];
        if filters != [0; 4] {
            return Err(status::RANGE_STREAM_REVISION_FILTER);
        }
        self.start_read(caller, ReadKind::RangeStream, message.to_vec(), request.serializable, now)
    }

    pub(super) fn handle_hash(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        decode::<pb::HashRequest>(message)?;
        self.admit_whole_store()?;
        let cursor = HashCursor::whole(self.replica.keyspace());
        self.begin_hash(caller, cursor, false, now);
        Ok(Verdict::Pending)
    }

    pub(super) fn handle_hash_kv(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::HashKVRequest>(message)?;
        let cursor = HashCursor::new(self.replica.keyspace(), request.revision).map_err(api::mvcc_status)?;
        self.admit_whole_store()?;
        self.begin_hash(caller, cursor, true, now);
        Ok(Verdict::Pending)
    }

    pub(super) fn handle_defragment(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        decode::<pb::DefragmentRequest>(message)?;
        self.admit_whole_store()?;
        let work = Work::Defragment { ticket: self.replica.defragment() };
        self.jobs.push(Job { caller, pin: None, started: now, work }, Wait::Turn);
        Ok(Verdict::Pending)
    }

    /// Refuses work on the whole store while much of it is under way.
    fn admit_whole_store(&self) -> Result<(), Status> {
        if self.jobs.has_room_for_whole_store() { Ok(()) } else { Err(status::TOO_MANY_REQUESTS) }
    }

    pub(super) fn handle_member_list(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::MemberListRequest>(message)?;
        self.start_read(caller, ReadKind::MemberList, Vec::new(), !request.linearizable, now)
    }

    pub(super) fn handle_alarm(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<Verdict, Status> {
        let request = decode::<pb::AlarmRequest>(message)?;
        let number = u32::try_from(request.alarm.0).unwrap_or(0);
        let alarm = Alarm { member: request.member_id, alarm: number };
        match request.action {
            pb::AlarmAction::GET => self.start_read(caller, ReadKind::Alarms(number), Vec::new(), false, now),
            // Naming no alarm changes nothing, as in etcd.
            pb::AlarmAction::ACTIVATE | pb::AlarmAction::DEACTIVATE if number == 0 => {
                self.start_read(caller, ReadKind::NoAlarms, Vec::new(), false, now)
            }
            pb::AlarmAction::ACTIVATE => self.submit(caller, &Command::AlarmActivate(alarm), now),
            pb::AlarmAction::DEACTIVATE => self.submit(caller, &Command::AlarmDeactivate(alarm), now),
            _ => self.start_read(caller, ReadKind::NoAlarms, Vec::new(), false, now),
        }
    }

    /// Authentication is off, and nothing has changed it since the cluster began.
    pub(super) fn auth_status(&self, message: &[u8]) -> Result<Verdict, Status> {
        decode::<pb::AuthStatusRequest>(message)?;
        let header = Some(self.current_header());
        let response = pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 };
        Ok(Verdict::Message(response.encode_to_vec()))
    }

    /// Health of a service until it changes, which it does with the end of the process alone.
    pub(super) fn open_health_watch(&mut self, caller: Caller, message: &[u8]) -> Result<Verdict, Status> {
        let request = decode::<health::HealthCheckRequest<'_>>(message)?;
        let status = health_of(request.service).unwrap_or(health::ServingStatus::SERVICE_UNKNOWN);
        self.open_calls.insert(caller, OpenCall::Health);
        Ok(Verdict::Begun(health::HealthCheckResponse { status }.encode_to_vec()))
    }
}

/// The oldest revision that a range of a transaction asks for, at any depth; `None`: all read the newest.
fn oldest_asked(txn: &Txn<'_>) -> Option<i64> {
    let of_op = |op: &Op<'_>| match op {
        Op::Range(query) => Some(query.revision).filter(|&revision| revision > 0),
        Op::Txn(nested) => oldest_asked(nested),
        Op::Put(_) | Op::DeleteRange(_) | Op::Unset => None,
    };
    txn.success.iter().chain(&txn.failure).filter_map(of_op).min()
}

/// Whether the answer of a transaction shows ranges, of what it reads or of what it deletes, at any depth.
fn shows_ranges(txn: &Txn<'_>) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Range(query) => !query.range_end.is_empty() && !query.count_only,
        Op::DeleteRange(delete) => !delete.range_end.is_empty() && delete.prev_kv,
        Op::Txn(nested) => shows_ranges(nested),
        Op::Put(_) | Op::Unset => false,
    })
}

/// What health checks say of a service: of the server as a whole it is the empty name, and no other is known.
fn health_of(service: &str) -> Option<health::ServingStatus> {
    service.is_empty().then_some(health::ServingStatus::SERVING)
}

/// A client that was given a name and a password goes on without a token when it is told that none is needed.
pub(super) fn authenticate(message: &[u8]) -> Result<Verdict, Status> {
    decode::<pb::AuthenticateRequest<'_>>(message)?;
    Err(status::AUTH_NOT_ENABLED)
}

pub(super) fn health_check(message: &[u8]) -> Result<Verdict, Status> {
    let request = decode::<health::HealthCheckRequest<'_>>(message)?;
    let status = health_of(request.service).ok_or(status::UNKNOWN_HEALTH_SERVICE)?;
    Ok(Verdict::Message(health::HealthCheckResponse { status }.encode_to_vec()))
}

/// Every service whose health is known: the server as a whole.
pub(super) fn health_list(message: &[u8]) -> Result<Verdict, Status> {
    decode::<health::HealthListRequest>(message)?;
    let status = Some(health::HealthCheckResponse { status: health::ServingStatus::SERVING });
    let statuses = vec![health::HealthListEntry { service: "", status }];
    Ok(Verdict::Message(health::HealthListResponse { statuses }.encode_to_vec()))
}
