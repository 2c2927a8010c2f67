//! A connection that counts its gRPC calls.
//!
//! Owns: which calls are open on a connection, and what happened since the core's counters last asked. Does not know:
//! what a call means. Whatever ends a call goes through here, so no handler has to think of it.
//!
//! Invariants
//! - I1: every call of a known method that the connection delivered ends once: answered, given up, or cut off with the
//!   connection.
//! - I2: an answer to a stream that is over counts nothing, as it has no effect.

use std::ops::{Deref, DerefMut};

use trilith_wire::api::methods::Method;
use trilith_wire::api::status::Code;
use trilith_wire::connection::{
    AssemblyBudget, Connection, ConnectionEvent, ConnectionLimits, Known, RequestHead, Route, StreamId,
};

use crate::api;
use crate::http::{Response, Tally};
use crate::metrics::calls::{CallMetrics, EndedCall};

/// Ended calls of a turn for which a connection keeps memory.
const ENDED_KEPT_MAX: usize = 256;

#[derive(Clone, Copy, Debug)]
struct OpenCall {
    stream: StreamId,
    call: EndedCall,
}

/// Messages of one method since the counters last asked.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    method: Method,
    started: u64,
    received: u64,
    received_bytes: u64,
    sent: u64,
    sent_bytes: u64,
}

#[derive(Debug, Default)]
struct Account {
    /// By the slots of the streams.
    open: Vec<Option<OpenCall>>,
    /// The API version of the client, as its last call stated it.
    version: Vec<u8>,
    traffic: Vec<Traffic>,
    ended: Vec<EndedCall>,
    probes: Vec<Tally>,
}

/// A [`Connection`] with its account. Methods that are not here are the connection's own.
#[derive(Debug)]
pub struct CountedConnection {
    inner: Connection,
    account: Account,
}

impl Deref for CountedConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.inner
    }
}

impl DerefMut for CountedConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.inner
    }
}

impl CountedConnection {
    /// A connection accepted at `now`.
    #[must_use]
    pub fn new(limits: &ConnectionLimits, now: u64) -> Self {
        Self { inner: Connection::new(limits, now), account: Account::default() }
    }

    /// [`Connection::poll_event`].
    #[inline]
    pub fn poll_event(&mut self, budget: &mut AssemblyBudget, now: u64) -> Option<ConnectionEvent<'_>> {
        let event = self.inner.poll_event(budget, now)?;
        match &event {
            ConnectionEvent::GrpcRequest { stream, route: Some(route), head, message } => {
                self.account.begin(*stream, *route, head, message, now);
            }
            ConnectionEvent::GrpcMessage { stream, message } => self.account.receive(*stream, message),
            ConnectionEvent::StreamReset { stream } => self.account.end(*stream, Code::Canceled as u32),
            _ => {}
        }
        Some(event)
    }

    /// [`Connection::send_unary`].
    #[inline]
    pub fn send_unary(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.inner.send_unary(stream, len, encode);
        self.account.send(stream, len);
        self.account.end(stream, Code::Ok as u32);
    }

    /// [`Connection::send_message`].
    pub fn send_message(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.inner.send_message(stream, len, encode);
        self.account.send(stream, len);
    }

    /// [`Connection::begin_message`].
    pub fn begin_message(&mut self, stream: StreamId, len: usize) {
        self.inner.begin_message(stream, len);
        self.account.send(stream, len);
    }

    /// [`Connection::finish`].
    pub fn finish(&mut self, stream: StreamId, code: u32, message: &str) {
        self.inner.finish(stream, code, message);
        self.account.end(stream, code);
    }

    /// [`Connection::reset`].
    pub fn reset(&mut self, stream: StreamId) {
        self.inner.reset(stream);
        self.account.end(stream, Code::Canceled as u32);
    }

    /// Answers an HTTP request, and counts what the answer adds to the counters.
    pub fn respond(&mut self, stream: StreamId, response: &Response) {
        let headers: Vec<(&str, &str)> = response.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.inner.send_http(stream, response.status, &headers, &response.body);
        if response.tally != Tally::Nothing {
            self.account.probes.push(response.tally.clone());
        }
    }

    /// Hands over what happened since the last time.
    #[inline]
    pub fn settle(&mut self, metrics: &mut CallMetrics, now: u64) {
        let account = &mut self.account;
        if account.traffic.is_empty() && account.ended.is_empty() && account.probes.is_empty() {
            return;
        }
        account.settle(metrics, now);
    }

    /// The connection is gone, and its calls with it.
    pub fn settle_closed(mut self, metrics: &mut CallMetrics, now: u64) {
        self.account.settle(metrics, now);
        for open in self.account.open.iter().flatten() {
            metrics.observe_end(&EndedCall { code: Code::Canceled as u32, ..open.call }, now);
        }
    }
}

impl Account {
    fn begin(&mut self, stream: StreamId, route: Route, head: &RequestHead, message: &[u8], now: u64) {
        let method = api::method(route);
        let version = head.known(Known::ClientApiVersion).unwrap_or_default();
        if self.version != version {
            version.clone_into(&mut self.version);
        }
        let mut call = EndedCall {
            method,
            started: now,
            code: 0,
            request_bytes: 0,
            response_bytes: 0,
            beginning: [0; EndedCall::BEGINNING_BYTES],
        };
        let kept = message.len().min(EndedCall::BEGINNING_BYTES);
        call.beginning[..kept].copy_from_slice(&message[..kept]);
        if self.open.len() <= stream.slot() {
            self.open.resize(stream.slot() + 1, None);
        }
        // A call whose end the connection kept to itself.
        if let Some(earlier) = self.open[stream.slot()].replace(OpenCall { stream, call }) {
            self.ended.push(EndedCall { code: Code::Canceled as u32, ..earlier.call });
        }
        self.traffic_of(method).started += 1;
        if trilith_wire::connection::RequestShape::Single == route.shape {
            self.receive(stream, message);
        }
    }

    fn call(&mut self, stream: StreamId) -> Option<&mut EndedCall> {
        let open = self.open.get_mut(stream.slot())?.as_mut().filter(|open| open.stream == stream)?;
        Some(&mut open.call)
    }

    fn receive(&mut self, stream: StreamId, message: &[u8]) {
        let bytes = message.len() as u64;
        let Some(call) = self.call(stream) else { return };
        call.request_bytes += bytes;
        let method = call.method;
        let traffic = self.traffic_of(method);
        traffic.received += 1;
        traffic.received_bytes += bytes;
    }

    fn send(&mut self, stream: StreamId, len: usize) {
        let bytes = len as u64;
        let Some(call) = self.call(stream) else { return };
        call.response_bytes += bytes;
        let method = call.method;
        let traffic = self.traffic_of(method);
        traffic.sent += 1;
        traffic.sent_bytes += bytes;
    }

    fn end(&mut self, stream: StreamId, code: u32) {
        let Some(call) = self.call(stream) else { return };
        let ended = EndedCall { code, ..*call };
        self.open[stream.slot()] = None;
        self.ended.push(ended);
    }

    /// Most of what a connection does in a turn is of one method.
    fn traffic_of(&mut self, method: Method) -> &mut Traffic {
        let position = self.traffic.iter().rposition(|traffic| traffic.method == method).unwrap_or_else(|| {
            self.traffic.push(Traffic { method, started: 0, received: 0, received_bytes: 0, sent: 0, sent_bytes: 0 });
            self.traffic.len() - 1
        });
        &mut self.traffic[position]
    }

    fn settle(&mut self, metrics: &mut CallMetrics, now: u64) {
        for traffic in self.traffic.drain(..) {
            if traffic.started > 0 {
                metrics.observe_start(traffic.method, &self.version, traffic.started);
            }
            metrics.observe_received(traffic.method, traffic.received, traffic.received_bytes);
            metrics.observe_sent(traffic.method, traffic.sent, traffic.sent_bytes);
        }
        for call in self.ended.drain(..) {
            metrics.observe_end(&call, now);
        }
        if self.ended.capacity() > ENDED_KEPT_MAX {
            self.ended = Vec::new();
        }
        for tally in self.probes.drain(..) {
            metrics.observe_probe(&tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exposition::Exposition;

    fn stream(slot: usize) -> StreamId {
        // Ids are made by connections alone; the default stands at slot 0.
        assert_eq!(slot, 0);
        StreamId::default()
    }

    fn account_with(method: Method) -> Account {
        let mut account = Account::default();
        let route = api::route(method.path().as_bytes()).expect("a table path");
        account.begin(stream(0), route, &RequestHead::default(), b"12345", 100);
        account
    }

    fn text(metrics: &CallMetrics) -> String {
        let mut out = Exposition::default();
        metrics.render(&mut out);
        out.finish()
    }

    fn handled(code: &str, method: Method) -> String {
        let (name, service, kind) = (method.name(), method.service(), method.kind().label());
        format!(
            "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"{name}\",grpc_service=\"{service}\",\
             grpc_type=\"{kind}\"}} 1\n"
        )
    }

    #[test]
    fn a_call_ends_once() {
        let mut account = account_with(Method::Put);
        account.send(stream(0), 7);
        account.end(stream(0), 0);
        account.end(stream(0), 14);
        account.send(stream(0), 7);
        let mut metrics = CallMetrics::new(false, 0);
        account.settle(&mut metrics, 200);
        let text = text(&metrics);
        assert!(text.contains(&handled("OK", Method::Put)) && !text.contains(&handled("Unavailable", Method::Put)));
        assert!(text.contains("etcd_network_client_grpc_received_bytes_total 5\n"));
        assert!(text.contains("etcd_network_client_grpc_sent_bytes_total 7\n"));
        let slow = metrics.take_slow();
        assert_eq!(slow.len(), 1);
        assert_eq!((slow[0].duration, &slow[0].call.beginning[..6]), (100, &b"12345\0"[..]));
    }

    #[test]
    fn a_connection_takes_its_calls_with_it() {
        let mut metrics = CallMetrics::new(false, 0);
        let account = account_with(Method::Watch);
        let connection = CountedConnection { inner: Connection::new(&ConnectionLimits::new(api::route), 0), account };
        connection.settle_closed(&mut metrics, 200);
        let text = text(&metrics);
        assert!(text.contains(&handled("Canceled", Method::Watch)));
        assert!(text.contains("etcd_network_client_grpc_received_bytes_total 0\n"), "a stream's head is no message");
    }

    #[test]
    fn a_call_whose_end_was_not_told_is_ended_by_the_next_in_its_place() {
        let mut account = account_with(Method::Range);
        let route = api::route(Method::Put.path().as_bytes()).expect("a table path");
        account.begin(stream(0), route, &RequestHead::default(), b"", 150);
        let mut metrics = CallMetrics::new(false, 0);
        account.settle(&mut metrics, 200);
        assert!(text(&metrics).contains(&handled("Canceled", Method::Range)));
        assert!(account.call(stream(0)).is_some(), "the put is open");
    }
}
