//! HTTP/2 for servers (RFC 9113), with gRPC's message framing on top of its DATA frames.
//!
//! Owns: frames, stream states, both directions of flow control, limits against abuse. Does not know: sockets, what a
//! method does, HTTP/1.1.
//!
//! Where things are: `frame` bytes; `heads` header blocks to request heads; `streams` the open streams; `server` the
//! connection and its control frames; `receive` HEADERS and DATA; `respond` everything that is sent; `timers` deadlines
//! and the graceful stop; `meter` allowances against floods.

pub mod frame;
pub(crate) mod heads;
mod meter;
mod receive;
mod respond;
mod server;
mod streams;
mod timers;

pub(crate) use server::{Event, Place, Server};
