//! Header compression for HTTP/2 (RFC 7541).
//!
//! Owns: the static and dynamic tables, Huffman coding, the decoder of request blocks and the encoder of our few
//! response blocks. Does not know: frames, streams, which header fields a request needs.
//!
//! Invariants
//! - I1: a block that fails to decode leaves the table unusable: the connection must end (RFC 7541 section 2.2).
//! - I2: the dynamic table never exceeds the size we announced, whatever the peer sends.

mod decoder;
mod encoder;
mod huffman;
mod table;

pub use decoder::{Decoder, FieldSink, HpackError, Mark};
pub use encoder::ResponseEncoder;
pub(crate) use encoder::decimal;
pub use huffman::decode as decode_huffman;
