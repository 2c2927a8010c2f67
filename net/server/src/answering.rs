//! A connection that is being answered, wherever it is.
//!
//! Owns: the choice between a connection of this core and one of another. Does not know: what either does with an
//! answer. A connection of this core is called directly: nothing stands between but a branch.

use trilith_wire::connection::StreamId;

use crate::calls::CountedConnection;
use crate::http::Response;
use crate::remote::RemoteConnection;

/// The connection of a caller. The methods are those of a connection; on a stream that is over they have no effect.
#[derive(Debug)]
pub enum Answering<'a> {
    /// It is this core's.
    Local(&'a mut CountedConnection),
    /// It is another core's.
    Remote(RemoteConnection<'a>),
}

/// Calls one method on whichever it is.
macro_rules! dispatch {
    ($self:ident, $connection:ident => $call:expr) => {
        match $self {
            Answering::Local($connection) => $call,
            Answering::Remote($connection) => $call,
        }
    };
}

impl Answering<'_> {
    /// Answers a call with its only message.
    #[inline]
    pub fn send_unary(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        dispatch!(self, connection => connection.send_unary(stream, len, encode));
    }

    /// Sends one message of a call.
    #[inline]
    pub fn send_message(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        dispatch!(self, connection => connection.send_message(stream, len, encode));
    }

    /// Begins a message that follows in parts.
    pub fn begin_message(&mut self, stream: StreamId, len: usize) {
        dispatch!(self, connection => connection.begin_message(stream, len));
    }

    /// The next part.
    pub fn send_part(&mut self, stream: StreamId, bytes: &[u8]) {
        dispatch!(self, connection => connection.send_part(stream, bytes));
    }

    /// Ends a call with a status.
    pub fn finish(&mut self, stream: StreamId, code: u32, message: &str) {
        dispatch!(self, connection => connection.finish(stream, code, message));
    }

    /// Gives a stream up.
    pub fn reset(&mut self, stream: StreamId) {
        dispatch!(self, connection => connection.reset(stream));
    }

    /// Answers an HTTP request, and counts what the answer adds to the counters.
    pub fn respond(&mut self, stream: StreamId, response: &Response) {
        dispatch!(self, connection => connection.respond(stream, response));
    }

    /// Whether a call still takes an answer.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        dispatch!(self, connection => connection.is_open(stream))
    }

    /// Bytes of a call that wait for its client.
    #[must_use]
    pub fn backlog_bytes(&self, stream: StreamId) -> usize {
        dispatch!(self, connection => connection.backlog_bytes(stream))
    }
}
