//! A server connection against a naive client model: calls, flow control, limits, HTTP/1.1, hostile input.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod client;
mod harness;

mod calls;
mod flow;
mod hostile;
mod http1;
mod limits;
mod memory;
