//! Answers: the form of what a command or a short read came to, and the ways in which it is sent.
//!
//! Owns: which response belongs to which outcome. Does not know: when something is evaluated, how a long answer is sent
//! (`steps`).

use trilith_engine::budget::{Budget, Pause};
use trilith_engine::command::Alarm;
use trilith_engine::mvcc::MvccError;
use trilith_engine::page_source::{PageSource, Unavailable};
use trilith_engine::replica::apply::{Applied, ApplyError, Outcome};
use trilith_wire::api::status::{self, Status};
use trilith_wire::proto::Message;
use trilith_wire::proto::etcdserverpb as pb;

use crate::answering::Answering as Connection;
use crate::api::parts::Answer;
use crate::api::{self, request, response};
use crate::clients::{Caller, Clients};
use crate::http::{CLUSTER_VERSION, Response, SERVER_VERSION};
use crate::service::jobs::WHOLE_BYTES_MAX;
use crate::service::reads::{Read, ReadKind};
use crate::service::{KeyspaceRows, Service, decode};

impl Service {
    /// A compaction that its caller wants carried out: answered when the room is given back, also if this revision was
    /// compacted before, as in etcd.
    pub(super) fn answer_physical(
        &mut self,
        clients: &mut Clients,
        caller: Caller,
        revision: i64,
        applied: Applied,
        now: u64,
    ) {
        let outcome = match applied.result {
            Ok(Outcome::Compact(compact)) => Ok(compact.revision),
            Err(error @ ApplyError::Mvcc(MvccError::Compacted)) => Err(api::apply_status(error)),
            Err(error) => return self.refuse_caller(clients, caller, &api::apply_status(error)),
            Ok(other) => unreachable!("{other:?} of a compaction"),
        };
        self.begin_physical(caller, revision, outcome, now);
    }

    /// `before` is the newest revision the command read.
    pub(super) fn answer_command(
        &mut self,
        clients: &mut Clients,
        caller: Caller,
        applied: Applied,
        before: i64,
        pages: &dyn PageSource,
        now: u64,
    ) {
        let Some(connection) = clients.answer(caller) else { return };
        let outcome = match applied.result {
            Ok(outcome) => outcome,
            Err(error) => return refuse(connection, caller, &api::apply_status(error)),
        };
        match outcome {
            Outcome::Put(put) if put.prev.is_none() => {
                let header = Some(self.header(put.revision));
                send(connection, caller, &pb::PutResponse { header, prev_kv: None });
            }
            Outcome::Put(put) => {
                let answer = Answer::put(self.header(put.revision), put);
                self.answer_applied(clients, caller, answer, before, pages, now);
            }
            Outcome::DeleteRange(delete) => {
                let answer = Answer::delete_range(self.header(delete.revision), delete);
                self.answer_applied(clients, caller, answer, before, pages, now);
            }
            Outcome::Txn(txn) => {
                let answer = Answer::txn(self.header(txn.revision), txn);
                self.answer_applied(clients, caller, answer, before, pages, now);
            }
            Outcome::Compact(compact) => {
                send(connection, caller, &pb::CompactionResponse { header: Some(self.header(compact.revision)) });
            }
            Outcome::Alarm { alarm, listed } => {
                let alarms = listed.then(|| alarm_member(alarm)).into_iter().collect();
                send(connection, caller, &pb::AlarmResponse { header: Some(self.current_header()), alarms });
            }
            Outcome::LeaseGrant { id, ttl } => {
                let header = Some(self.current_header());
                send(connection, caller, &pb::LeaseGrantResponse { header, id, ttl, error: "" });
            }
            Outcome::LeaseEnd { outcome, .. } => {
                send(connection, caller, &pb::LeaseRevokeResponse { header: Some(self.header(outcome.revision)) });
            }
            Outcome::LeaseCheckpoint { .. } => unreachable!("only the server itself notes what is left of leases"),
            Outcome::Published => unreachable!("only the server itself publishes"),
        }
    }

    /// Answers a read; returns the length of the answer, roughly.
    pub(super) fn answer_read(
        &self,
        clients: &mut Clients,
        read: &Read,
        budget: &mut Budget,
        pages: &dyn PageSource,
        now: u64,
    ) -> Result<usize, Pause> {
        let (caller, wall_now) = (read.caller, clients.wall_now);
        let Some(connection) = clients.answer(caller) else { return Ok(0) };
        let header = self.current_header();
        Ok(match &read.kind {
            ReadKind::Range => {
                let request = decode::<pb::RangeRequest<'_>>(&read.message).expect("decoded when it arrived");
                match self.replica.keyspace().range(&request::range(&request), budget, pages)? {
                    Ok(outcome) => send_whole(connection, caller, &response::range(header, &outcome))?,
                    Err(error) => {
                        refuse(connection, caller, &api::mvcc_status(error));
                        0
                    }
                }
            }
            ReadKind::RangeStream => return Err(Pause::Budget),
            ReadKind::Txn => {
                let request = decode::<pb::TxnRequest<'_>>(&read.message).expect("decoded when it arrived");
                match self.replica.keyspace().read_txn(&request::txn(&request), budget, pages)? {
                    Ok(outcome) => {
                        let rows = KeyspaceRows { replica: &self.replica, pages };
                        let mut answer = Answer::txn(self.header(outcome.revision), outcome);
                        try_whole(connection, caller, &mut answer, usize::MAX, &rows)?.ok_or(Pause::Budget)?
                    }
                    Err(error) => {
                        refuse(connection, caller, &api::mvcc_status(error));
                        0
                    }
                }
            }
            ReadKind::MemberList => send(connection, caller, &self.member_list()),
            ReadKind::TimeToLive => {
                let request = decode::<pb::LeaseTimeToLiveRequest>(&read.message).expect("decoded when it arrived");
                match self.time_to_live(request.id, now) {
                    Ok(answer) if request.keys && answer.ttl >= 0 => return Err(Pause::Budget),
                    Ok(answer) => send(connection, caller, &answer),
                    Err(status) => {
                        refuse(connection, caller, &status);
                        0
                    }
                }
            }
            ReadKind::Leases => return Err(Pause::Budget),
            ReadKind::KeepAlive(_) => unreachable!("answered where the state may change"),
            ReadKind::Alarms(kind) => {
                let wanted = |alarm: &&Alarm| *kind == 0 || alarm.alarm == *kind;
                let alarms = self.replica.tables().alarms().iter().filter(wanted).map(|a| alarm_member(*a)).collect();
                send(connection, caller, &pb::AlarmResponse { header: Some(header), alarms })
            }
            ReadKind::NoAlarms => {
                send(connection, caller, &pb::AlarmResponse { header: Some(header), alarms: Vec::new() })
            }
            ReadKind::Probe(probe) => {
                let response = probe.as_ref().clone().finish(None, wall_now);
                respond(connection, caller, &response);
                response.body.len()
            }
        })
    }

    fn member_list(&self) -> pb::MemberListResponse<'_> {
        let members = self.replica.tables().members().iter();
        pb::MemberListResponse {
            header: Some(self.header(0)),
            members: members
                .map(|(id, member)| pb::Member {
                    id: *id,
                    name: &member.name,
                    peer_urls: member.peer_urls.iter().map(String::as_str).collect(),
                    client_urls: member.client_urls.iter().map(String::as_str).collect(),
                    is_learner: false,
                })
                .collect(),
        }
    }

    pub(super) fn status(&self) -> Vec<u8> {
        let leader = self.replica.leader().map_or(0, |leader| leader.0);
        let mut errors = Vec::new();
        if leader == 0 {
            errors.push(status::NO_LEADER.message.into_owned());
        }
        for alarm in self.replica.tables().alarms() {
            let name = pb::AlarmType(i32::try_from(alarm.alarm).unwrap_or(0)).name().unwrap_or("UNKNOWN");
            errors.push(format!("memberID:{} alarm:{name}", alarm.member));
        }
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let response = pb::StatusResponse {
            header: Some(self.current_header()),
            version: SERVER_VERSION,
            db_size: size(self.replica.store_bytes()),
            leader,
            raft_index: self.replica.commit().0,
            raft_term: self.replica.term().0,
            raft_applied_index: self.replica.applied().0,
            errors: errors.iter().map(String::as_str).collect(),
            db_size_in_use: size(self.replica.store_bytes_in_use()),
            is_learner: false,
            storage_version: CLUSTER_VERSION,
            db_size_quota: self.admission.quota_bytes,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        };
        response.encode_to_vec()
    }
}

fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    pb::AlarmMember { member_id: alarm.member, alarm: pb::AlarmType(i32::try_from(alarm.alarm).unwrap_or(0)) }
}

/// Sends a unary answer; returns its length.
pub(super) fn send<'a>(mut connection: Connection<'_>, caller: Caller, message: &impl Message<'a>) -> usize {
    let len = message.encoded_len();
    connection.send_unary(caller.stream, len, |out| message.encode_into(out));
    len
}

/// Sends a unary answer unless it is too long for one step.
fn send_whole<'a>(mut connection: Connection<'_>, caller: Caller, message: &impl Message<'a>) -> Result<usize, Pause> {
    let len = message.encoded_len();
    if len > WHOLE_BYTES_MAX {
        return Err(Pause::Budget);
    }
    connection.send_unary(caller.stream, len, |out| message.encode_into(out));
    Ok(len)
}

/// Sends a unary answer, if it is short and shows at most `rows_max` rows; returns its length.
pub(super) fn try_whole(
    mut connection: Connection<'_>,
    caller: Caller,
    answer: &mut Answer,
    rows_max: usize,
    rows: &KeyspaceRows<'_>,
) -> Result<Option<usize>, Unavailable> {
    let Some(len) = answer.measure(rows_max, rows)?.filter(|&len| len <= WHOLE_BYTES_MAX) else { return Ok(None) };
    let mut parts = answer.take_parts();
    connection.send_unary(caller.stream, len, |out| {
        parts.take(len, rows, out).expect("rows that were just measured are readable");
    });
    Ok(Some(len))
}

pub(super) fn refuse(mut connection: Connection<'_>, caller: Caller, status: &Status) {
    connection.finish(caller.stream, u32::from(status.code.number()), &status.message);
}

pub(super) fn respond(mut connection: Connection<'_>, caller: Caller, response: &Response) {
    connection.respond(caller.stream, response);
}
