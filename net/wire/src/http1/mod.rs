//! HTTP/1.1 for servers (RFC 9112), as much as health checks, metrics and the JSON gateway need.
//!
//! Owns: request heads, bodies by length or in chunks, keep-alive, pipelining one request at a time, the written form
//! of responses. Does not know: paths, sockets, HTTP/2.

mod chunked;
mod request;
mod server;

pub use request::{RequestError, RequestLine, parse_head};
pub(crate) use server::Server;
