//! Byte fuzzers of every decoder, on the stable toolchain.
//!
//! Owns: the list of targets, a seeded mutator that knows about lengths and checksums, and the loop that drives one
//! with the other. A target is a plain function over bytes that must return, whatever the bytes; it may also assert
//! what holds between a decoder and its encoder.
//!
//! Does not know: what a finding means. A panic is a finding, and so is an arithmetic overflow: checks are on in every
//! profile.
//!
//! Invariants:
//! - I1: a run depends on target, seed and round alone, so that a finding can be repeated from its report.
//! - I2: a target's seeds are valid input: the replay test holds each target to having accepted them.
//!
//! Inputs that once failed, and some that are hard to find, stand in `corpus/<target>/`. The replay runs on every
//! `cargo test`; `TRILITH_FUZZ_ROUNDS` scales it. A long run:
//! `cargo run --release -p trilith-fuzz -- TARGET --rounds N`.

#![forbid(unsafe_code)]

pub mod mutate;
pub mod run;
mod targets;

/// One decoder under test.
#[derive(Debug)]
pub struct Target {
    /// Name, also of its corpus folder.
    pub name: &'static str,
    /// Takes any bytes and returns. True if they were accepted as valid.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Restores checksums after a mutation, so that what lies behind them is reached.
    pub repair: fn(&mut [u8]),
    /// How many rounds cost as much as one of the cheapest target.
    pub cost: u64,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::proto::TARGET,
    targets::hpack::BLOCKS,
    targets::hpack::HUFFMAN,
    targets::connection::HTTP2,
    targets::connection::HTTP1,
    targets::command::TARGET,
    targets::wal::HARD_STATE,
    targets::wal::SECTOR,
    targets::wal::RECOVERY,
    targets::page::TARGET,
    targets::store::SUPERBLOCK,
    targets::store::RECOVERY,
];
