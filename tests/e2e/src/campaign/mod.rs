//! A server under load that may stop at any moment, and the proof afterwards that nothing it said was undone.
//!
//! [`load`] drives it and notes every answer in a [`History`](crate::history::History); [`verify`] compares what a
//! restarted server shows. Neither knows what made it stop. [`watch`] does the same for what watchers are told.

pub mod load;
pub mod verify;
pub mod watch;
