//! The deterministic simulator of Trilith: one node's real shell on a simulated port, disk, clock and network.
//!
//! Owns: everything around the server. Does not know: how the server keeps its promises.
//!
//! A run is decided by its seed: [`weather::Swarm`] draws latencies, stalls, fault kinds, limits and the workload;
//! [`simulation::run`] lets a process live, crash and recover several times; [`checker::Checker`] judges every answer,
//! and [`watch::ledger::Ledger`] what watchers are told.

#![forbid(unsafe_code)]

mod alarms;
pub mod arguments;
pub mod checker;
pub mod client;
mod codec;
pub mod disk;
pub mod gates;
pub mod grammar;
pub mod h2_client;
mod hash;
pub mod history;
mod leases;
pub mod model;
pub mod port;
pub mod rng;
pub mod rot;
mod settle;
pub mod simulation;
pub mod subject;
pub mod trace;
pub mod trilith;
pub mod value;
pub mod watch;
pub mod weather;
mod wgl;
