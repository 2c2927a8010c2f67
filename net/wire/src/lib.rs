//! Sans-IO codecs of Trilith: HTTP/2 with HPACK, HTTP/1.1, gRPC framing, protobuf, and the tables of the etcd API.
//!
//! Owns: bytes to requests and responses to bytes. Does not know: sockets, clocks, threads, storage, raft.
//! Everything here is a pure function or a step machine; time enters as `now`, nanoseconds of a monotonic clock.

#![forbid(unsafe_code)]

pub mod api;
pub mod connection;
pub mod grpc;
pub mod h2;
pub mod hpack;
pub mod http1;
pub mod proto;
