//! Messages that a client compressed with gzip, the one encoding that etcd takes.
//!
//! Owns: expanding them up to the limit of messages, with grpc-go's texts. Does not know: calls, nor how much of it a
//! client may ask for. Answers are never compressed: no client may depend on it.

use std::io::{ErrorKind, Read as _};

use flate2::read::MultiGzDecoder;

use crate::grpc::{INTERNAL, RESOURCE_EXHAUSTED, Refusal};

/// Bytes of the fixed part of a gzip header: magic number, method, flags, time, level, system.
const HEADER_BYTES: usize = 10;
const HEADER_START: &[u8] = &[0x1f, 0x8b, 8];

/// Puts what `packed` stands for into `out`.
pub(crate) fn expand(packed: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let header = match packed {
        [] => Err("EOF"),
        _ if packed.len() < HEADER_BYTES => Err("unexpected EOF"),
        _ if !packed.starts_with(HEADER_START) => Err("gzip: invalid header"),
        _ => Ok(()),
    };
    header.map_err(|why| Refusal::new(INTERNAL, format!("grpc: failed to decompress the message: {why}")))?;
    out.clear();
    // One byte more, so that going over the bound shows.
    MultiGzDecoder::new(packed).take(bytes_max as u64 + 1).read_to_end(out).map_err(|error| {
        let why = if error.kind() == ErrorKind::UnexpectedEof { "unexpected EOF" } else { "gzip: corrupt input" };
        Refusal::new(INTERNAL, format!("grpc: failed to read decompressed data: {why}"))
    })?;
    if out.len() > bytes_max {
        let text = format!("grpc: received message after decompression larger than max {bytes_max}");
        return Err(Refusal::new(RESOURCE_EXHAUSTED, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn expanded(packed: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = b"old".to_vec();
        expand(packed, 1 << 20, &mut out).map_err(|refusal| refusal.message)?;
        Ok(out)
    }

    #[test]
    fn members_are_put_together() {
        let two = [packed(b"one "), packed(b"two")].concat();
        assert_eq!(expanded(&two), Ok(b"one two".to_vec()));
        assert_eq!(expanded(&packed(b"")), Ok(Vec::new()));
    }

    #[test]
    fn what_is_broken_is_refused_with_its_reason() {
        let whole = packed(b"some text, some text, some text");
        let with = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let head = "grpc: failed to decompress the message: ";
        let body = "grpc: failed to read decompressed data: ";
        for (bytes, start, why) in [
            (Vec::new(), head, "EOF"),
            (whole[..5].to_vec(), head, "unexpected EOF"),
            (with(0), head, "gzip: invalid header"),
            (whole[..whole.len() - 3].to_vec(), body, "unexpected EOF"),
            (with(whole.len() - 6), body, "gzip: corrupt input"),
            ([&whole[..], b"x"].concat(), body, "unexpected EOF"),
        ] {
            assert_eq!(expanded(&bytes), Err(format!("{start}{why}")));
        }
    }

    #[test]
    fn the_limit_is_that_of_messages() {
        assert_eq!(expanded(&packed(&vec![7; 1 << 20])), Ok(vec![7; 1 << 20]));
        let text = "grpc: received message after decompression larger than max 1048576";
        for len in [(1 << 20) + 1, 8 << 20] {
            assert_eq!(expanded(&packed(&vec![7; len])), Err(text.to_owned()));
        }
    }
}
