//! The lease RPCs.
//!
//! Owns: the order of checks and the answers. Does not know: when a lease expires (`trilith_engine::lease`).
//!
//! Invariants
//! - I1: a keep-alive request is answered after a read round that began after it arrived, in the order of its stream.

use trilith_wire::proto::Message;
use trilith_wire::proto::etcdserverpb as pb;

use crate::clients::{Caller, Clients};
use crate::service::reads::{Read, ReadKind};
use crate::service::streams::{KeepAlive, OpenCall};
use crate::service::{Service, Status, Verdict, decode_streamed};

impl Service {
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

    /// Answers one request whose round is over.
    pub(super) fn answer_keep_alive(&mut self, clients: &mut Clients, caller: Caller, id: i64) {
        let Some(OpenCall::KeepAlive(call)) = self.open_calls.get_mut(caller) else { return };
        call.unanswered -= 1;
        let ends = call.half_closed && call.unanswered == 0;
        let Some(connection) = clients.answer(caller) else { return };
        // No lease is granted in this version: 0 tells the client that there is none.
        let answer = pb::LeaseKeepAliveResponse { header: Some(self.current_header()), id, ttl: 0 };
        connection.send_message(caller.stream, answer.encoded_len(), |out| answer.encode_into(out));
        if ends {
            connection.finish(caller.stream, 0, "");
            self.handle_call_ended(caller);
        }
    }
}
