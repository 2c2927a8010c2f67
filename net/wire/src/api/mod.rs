//! The tables of the etcd v3 API: what can be called and how a call can fail.
//!
//! Owns: [`methods`], every RPC with its path, kind and REST paths, and [`status`], every error with its gRPC code and
//! its exact text.
//!
//! Does not know: how a method is carried out or which of its errors applies.

pub mod methods;
pub mod status;

pub use methods::{Kind, Method};
pub use status::{Code, Status};
