//! Protobuf messages of the etcd v3 API.
//!
//! Owns: one module per protobuf package, generated from `net/wire/proto/*.proto` by `cargo xtask generate` and
//! committed, and [`codec`], the hand-written rules of the encoding that the generated code is made of.
//!
//! Does not know: gRPC framing, which method carries which message, or what any field means.
//!
//! Shape. Every message is a plain struct that borrows from the bytes it was decoded from: `bytes` is `&'a [u8]`,
//! `string` is `&'a str`, a sub-message is `Option<Message<'a>>`, `repeated` is `Vec`, a oneof is an `Option` of an
//! enum, and an enum is a newtype over `i32` with constants, because proto3 enums are open and an unknown number
//! must survive decoding. Decode and encode through [`Message`]:
//!
//! ```
//! use trilith_wire::proto::{Message, etcdserverpb::PutRequest};
//!
//! let request = PutRequest { key: b"k", value: b"v", ..PutRequest::default() };
//! let mut bytes = Vec::new();
//! request.encode_into(&mut bytes);
//! assert_eq!(bytes.len(), request.encoded_len());
//! assert_eq!(PutRequest::decode(&bytes), Ok(request));
//! ```
//!
//! Messages with repeated sub-messages also have one `write_<field>` function per field, so that a response can be
//! written element by element straight from storage: `RangeResponse::write_header`, `write_kvs` for each pair,
//! `write_more`, `write_count`. Nothing is length-prefixed at the top level, so no size is needed beforehand.
//!
//! Invariants:
//! - I1: decoding never panics and never allocates more than [`Limits`] allows, whatever the bytes.
//! - I2: `encode_into` appends exactly `encoded_len` bytes.
//! - I3: `decode(encode(m)) == m` for every message value.
//! - I4: what Go's protobuf accepts is accepted with the same meaning, up to the bounds in [`Limits`].
//!
//! Tests: `net/wire/tests/proto.rs`; bytes fuzzer: `tests/fuzz`.

pub mod codec;

#[rustfmt::skip]
pub mod authpb;
#[rustfmt::skip]
pub mod etcdserverpb;
#[rustfmt::skip]
pub mod health;
#[rustfmt::skip]
pub mod mvccpb;
#[rustfmt::skip]
pub mod v3electionpb;
#[rustfmt::skip]
pub mod v3lockpb;

pub use codec::{DecodeError, Limits, Message};
