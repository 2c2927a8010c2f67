//! What a connection reports to its owner.
//!
//! Owns: the vocabulary of events, borrowed from the connection's buffers. Does not know: the protocol version behind
//! an HTTP request, or what a method means.
//!
//! Invariants
//! - I1: a stream yields exactly one `GrpcRequest` or `HttpRequest`, before any other event of that stream.
//! - I2: after `StreamReset`, or after the owner has finished a stream, no event of that stream follows and
//!   calls with its [`StreamId`] have no effect.

use crate::connection::RequestHead;

/// A request in progress on one connection: valid until finished or reset; never confused with a later stream. The
/// default names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub(crate) number: u32,
    pub(crate) slot: u32,
}

impl StreamId {
    /// The protocol's stream number (HTTP/2) or the ordinal of the request (HTTP/1.1).
    #[must_use]
    pub fn number(self) -> u32 {
        self.number
    }

    /// A small dense index, unique among the open streams of the connection: for tables of per-stream state.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// How the request side of a method looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestShape {
    /// Exactly one request message (unary and server-streaming methods): delivered whole with `GrpcRequest`.
    Single,
    /// A sequence of messages: `GrpcRequest` at the headers, then `GrpcMessage`s, then `GrpcHalfClose`.
    Stream,
}

/// What a gRPC path resolves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The owner's number of the method, returned in the event.
    pub method: u16,
    /// Decides when the request is delivered.
    pub shape: RequestShape,
}

/// One thing that happened. Slices live until the next call that takes the connection mutably.
#[derive(Debug)]
pub enum ConnectionEvent<'a> {
    /// A gRPC call. For [`RequestShape::Single`] it is complete; for [`RequestShape::Stream`] and for unknown methods
    /// (`route` is `None`) `message` is empty.
    GrpcRequest {
        /// Where to answer.
        stream: StreamId,
        /// The resolved method; `None` when the path is well formed but unknown.
        route: Option<Route>,
        /// Path, metadata and timeout.
        head: &'a RequestHead,
        /// The request message, without the gRPC prefix.
        message: &'a [u8],
    },
    /// The next message of a [`RequestShape::Stream`] call.
    GrpcMessage {
        /// The call.
        stream: StreamId,
        /// The message, without the gRPC prefix.
        message: &'a [u8],
    },
    /// The client of a [`RequestShape::Stream`] call sends no more messages.
    GrpcHalfClose {
        /// The call.
        stream: StreamId,
    },
    /// A complete HTTP request that is not gRPC.
    HttpRequest {
        /// Where to answer.
        stream: StreamId,
        /// Method, path, query and header fields.
        head: &'a RequestHead,
        /// The whole body.
        body: &'a [u8],
    },
    /// The client gave the stream up, or broke the protocol on it. Its work may be dropped.
    StreamReset {
        /// The stream; no longer valid.
        stream: StreamId,
    },
    /// A stream whose unsent bytes had exceeded [`STREAM_BACKLOG_LOW_BYTES`](crate::connection::limits) is below again.
    StreamWritable {
        /// The stream.
        stream: StreamId,
    },
}
