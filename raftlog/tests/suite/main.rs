//! The crate's tests through its public interface: effects, transcripts, crash images, faults, foreign bytes.
//!
//! Campaigns: `TRILITH_RAFTLOG_SEEDS=<count>` multiplies nothing but the number of seeds;
//! `TRILITH_RAFTLOG_SEED=<first>`
//! moves them.
#![forbid(unsafe_code)]

mod checkpoints;
mod cluster;
mod corruption;
mod crash_images;
mod effects;
mod format;
mod fuzz;
mod random_cluster;
mod scrub;
mod support;
mod transcripts;
