//! End-to-end tests: a real trilithd process, real clients, a real disk.
//!
//! Owns the harness (starting and watching servers, an own gRPC client, file systems that hold writes and lose power)
//! and the list of [`scenarios`]. The program `e2e` runs them.
//!
//! Does not know anything of the server's inside but the names of its folders `wal` and `store`. Most scenarios run
//! the same script against etcd and compare what clients saw, so that etcd itself is the specification; all of them
//! can be run against etcd (`--subject etcd`), which tests the tests.
//!
//! I1  Every wait has a limit, and no sleep stands in for a condition.
//! I2  Servers listen on 127.0.0.1 only, and only processes started here are ended.
#![forbid(unsafe_code)]

pub mod campaign;
pub mod chance;
pub mod client;
pub mod differential;
pub mod faultfs;
pub mod grammar;
pub mod history;
pub mod holdfs;
pub mod messages;
pub mod ports;
pub mod scenarios;
pub mod server;
pub mod setup;
