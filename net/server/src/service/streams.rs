//! Calls that stay open: many messages in, many out.
//!
//! Owns: which calls are open and what each is. Does not know: what a message asks for, beyond its kind (`leases`,
//! `watches`).
//!
//! Invariants
//! - I1: a call is listed from its head until it ends from either side; nothing is sent to one that is not listed.
//! - I2: an open call alone keeps nobody from stopping: a drain ends it, and its client comes back elsewhere.
//! - I3: calls of a connection that is gone are struck off some at a time: there may be a hundred thousand. Until then
//!   what is sent to them has no effect.

use std::collections::{BTreeMap, VecDeque};

use trilith_engine::watch::StreamKey;
use trilith_reactor::ConnectionId;
use trilith_wire::api::status::{self, Status};
use trilith_wire::connection::StreamId;

use crate::clients::{Caller, Clients};
use crate::service::{Service, refuse};

/// Calls of connections that are gone which are struck off at a time: half a millisecond.
const FORGOTTEN_AT_A_TIME: usize = 1_024;

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
    /// Connections that are gone and may have calls here.
    gone: VecDeque<ConnectionId>,
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
        self.remove_key(caller.key())
    }

    fn remove_key(&mut self, key: (ConnectionId, StreamId)) -> Option<OpenCall> {
        self.calls.remove(&key).map(|(_, call)| call)
    }

    /// Strikes off a call of a connection that is gone.
    fn remove_gone(&mut self) -> Option<OpenCall> {
        loop {
            let connection = *self.gone.front()?;
            let first = self.calls.range((connection, StreamId::default())..).next();
            let Some(key) = first.map(|(&key, _)| key).filter(|key| key.0 == connection) else {
                self.gone.pop_front();
                continue;
            };
            return self.remove_key(key);
        }
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

    /// A connection is gone, and by and by its calls with it ([`Self::forget_calls`]).
    pub fn handle_connection_closed(&mut self, connection: ConnectionId) {
        self.open_calls.gone.push_back(connection);
        self.jobs.handle_closed(connection);
    }

    /// Forgets calls of connections that are gone, a number of them (I3). Whether there may be more.
    pub fn forget_calls(&mut self) -> bool {
        for _ in 0..FORGOTTEN_AT_A_TIME {
            let Some(call) = self.open_calls.remove_gone() else { break };
            self.drop_call(call);
        }
        !self.open_calls.gone.is_empty()
    }

    /// Open calls that are listed, for inspection.
    #[must_use]
    pub fn calls_kept(&self) -> usize {
        self.open_calls.calls.len()
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
