//! Power cuts and rot, enumerated in process against a whole member.
//!
//! Owns: a recording of what a member does to its medium, every image that a power cut may leave of it, every single
//! fault on a closed directory, and the judgement of what a member makes of them. Does not know: any file format; the
//! generators work on sectors, blocks, names and lengths alone.
//!
//! A trace (one geometry, one workload, several lives) is decided by a seed. [`power_cut`] takes its points one by one,
//! [`rot`] its closed images; both boot the real shell ([`member`]) and read everything back ([`ledger`]).

#![forbid(unsafe_code)]

pub mod coverage;
pub mod image;
pub mod ledger;
pub mod medium;
pub mod member;
pub mod port;
pub mod power_cut;
pub mod recording;
pub mod request;
pub mod rot;
pub mod trace;
