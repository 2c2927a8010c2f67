//! Benchmarks of Trilith: the load generator, the hardware floor and the cost of single parts.
//!
//! Owns: what the binaries under `src/bin` share. Does not know: the server's code; everything here speaks the public
//! protocol (only `append` looks at one part, the reactor, by itself).

pub mod arguments;
pub mod attack;
pub mod board;
pub mod calls;
pub mod client;
pub mod feeds;
pub mod h2;
pub mod hpack;
pub mod messages;
pub mod options;
pub mod sockets;
pub mod unsent;
pub mod watch_messages;
pub mod worker;
