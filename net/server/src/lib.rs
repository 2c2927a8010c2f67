//! trilithd: the shell around the replica.
//!
//! Owns: options, boot, the turns of the sequencer and of connection cores, the data directory at run time, connections
//! and RPCs. Does not know: which port it runs on: everything here is generic over [`trilith_reactor::Port`], so the
//! simulator runs the same code.
//!
//! Start with [`node::Node::boot`], then drive the node as a [`trilith_reactor::CoreLoop`]; where it has connection
//! cores, drive a [`front::Front`] on each.

#![forbid(unsafe_code)]

pub mod answering;
pub mod api;
pub mod auto_compaction;
pub mod boot;
pub mod calls;
pub mod clients;
pub mod disk;
pub mod front;
pub mod http;
pub mod identity;
pub mod initial;
pub mod journal;
pub mod layout;
pub mod metrics;
pub mod node;
pub mod options;
pub mod remote;
pub mod scrub;
pub mod service;
pub mod surface;
pub mod turns;

pub use boot::BootError;
pub use front::Front;
pub use node::{Node, NodeOptions};
