//! Calls that stay open: many messages in, many out.
//!
//! Owns: which calls are open and what each is. Does not know: what a message asks for, beyond its kind (`leases`,
//! `watches`).
//!
//! Invariants
//! - I1: a call is listed from its head until it ends from either side; nothing is sent to one that is not listed.
//! - I2: an open call alone keeps nobody from stopping: a drain ends it, and its client comes back elsewhere.

use std::collections::{BTreeMap, VecDeque};

use trilith_engine::watch::StreamKey;
use trilith_reactor::ConnectionId;
use trilith_wire::api::status::{self, Status};
use trilith_wire::connection::StreamId;

use crate::clients::{Caller, Clients};
use crate::service::{Service, refuse};

/// An open call.
#[derive(Debug)]
pub(super) enum OpenCall {
    /// Lease.LeaseKeepAlive.
    KeepAlive(KeepAlive),
    /// Watch.Watch.
    Watch(StreamKey),
    /// Health.Watch: nothing happens on it any more.
    Health,
}

/// What a keep-alive stream still owes.
#[derive(Debug, Default)]
pub(super) struct KeepAlive {
    /// Requests without an answer yet.
    pub(super) unanswered: usize,
    /// Those among them whose rounds are over, the oldest ones: the first waits for what becomes of its lease.
    pub(super) confirmed: VecDeque<i64>,
    /// The client sends no more: the call ends with its last answer.
    pub(super) half_closed: bool,
}

/// All open calls.
#[derive(Debug, Default)]
pub(super) struct OpenCalls {
    calls: BTreeMap<(ConnectionId, StreamId), (Caller, OpenCall)>,
}

impl OpenCalls {
    /// Lists a call.
    pub(super) fn insert(&mut self, caller: Caller, call: OpenCall) {
        let before = self.calls.insert(caller.key(), (caller, call));
        assert!(before.is_none(), "I1: a call begins once");
    }

    /// An open call.
    pub(super) fn get_mut(&mut self, caller: Caller) -> Option<&mut OpenCall> {
        self.calls.get_mut(&caller.key()).map(|(_, call)| call)
    }

    /// Strikes a call off the list.
    pub(super) fn remove(&mut self, caller: Caller) -> Option<OpenCall> {
        self.calls.remove(&caller.key()).map(|(_, call)| call)
    }

    /// Strikes off the first call of a connection.
    fn remove_first_of(&mut self, connection: ConnectionId) -> Option<OpenCall> {
        let (&key, _) = self.calls.range((connection, StreamId::default())..).next()?;
        if key.0 != connection {
            return None;
        }
        self.calls.remove(&key).map(|(_, call)| call)
    }

    /// Strikes off any call.
    fn pop(&mut self) -> Option<(Caller, OpenCall)> {
        self.calls.pop_first().map(|(_, entry)| entry)
    }
}

impl Service {
    /// Handles a further message of an open call. An error ends the call.
    pub fn handle_message(&mut self, caller: Caller, message: &[u8], now: u64) -> Result<(), Status> {
        let handled = match self.open_calls.get_mut(caller) {
            // Its end crossed the message.
            None | Some(OpenCall::Health) => Ok(()),
            Some(OpenCall::KeepAlive(_)) => self.handle_keep_alive(caller, message, now),
            Some(&mut OpenCall::Watch(stream)) => self.handle_watch(stream, message),
        };
        if handled.is_err() {
            self.handle_call_ended(caller);
        }
        handled
    }

    /// The client of an open call sends no more. True: the call ends with that.
    pub fn handle_half_close(&mut self, caller: Caller) -> bool {
        let ends = match self.open_calls.get_mut(caller) {
            Some(OpenCall::KeepAlive(call)) => {
                call.half_closed = true;
                call.unanswered == 0
            }
            // Who only listens still listens, as in etcd.
            Some(OpenCall::Watch(_) | OpenCall::Health) | None => false,
        };
        if ends {
            self.handle_call_ended(caller);
        }
        ends
    }

    /// The client gave a call up, or broke it.
    pub fn handle_reset(&mut self, caller: Caller) {
        self.handle_call_ended(caller);
        self.jobs.handle_stream(caller);
    }

    /// Bytes of a call were taken by its client.
    pub fn handle_writable(&mut self, caller: Caller) {
        self.jobs.handle_stream(caller);
        if let Some(&mut OpenCall::Watch(stream)) = self.open_calls.get_mut(caller) {
            self.watch_calls.watches.handle_writable(stream);
        }
    }

    /// Forgets what a call that has ended stood for.
    pub(super) fn handle_call_ended(&mut self, caller: Caller) {
        if let Some(call) = self.open_calls.remove(caller) {
            self.drop_call(call);
        }
    }

    /// A connection is gone.
    pub fn handle_connection_closed(&mut self, connection: ConnectionId) {
        while let Some(call) = self.open_calls.remove_first_of(connection) {
            self.drop_call(call);
        }
        self.jobs.handle_closed(connection);
    }

    /// Ends all open calls: the server stops (I2).
    pub fn end_open_calls(&mut self, clients: &mut Clients) {
        while let Some((caller, call)) = self.open_calls.pop() {
            self.drop_call(call);
            if let Some(connection) = clients.answer(caller) {
                refuse(connection, caller, &status::STOPPED);
            }
        }
    }

    fn drop_call(&mut self, call: OpenCall) {
        match call {
            OpenCall::KeepAlive(_) | OpenCall::Health => {}
            OpenCall::Watch(stream) => self.watch_calls.close(stream),
        }
    }
}
