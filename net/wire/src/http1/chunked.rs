//! The chunked transfer coding (RFC 9112 section 7.1), decoded incrementally.
//!
//! Owns: chunk framing. Does not know: how large a body may be; the caller looks after each call.
//!
//! Invariants
//! - I1: a line is bounded; extensions and trailers are skipped, not kept.

use crate::connection::limits::{HTTP1_CHUNK_LINE_BYTES_MAX, HTTP1_HEAD_BYTES_MAX};

/// Where in the coding the decoder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// In the line that gives a chunk's size.
    Size,
    /// In a chunk, with that many bytes to come.
    Chunk(u64),
    /// In the line end after a chunk.
    ChunkEnd,
    /// In the trailers, of which that many bytes were skipped.
    Trailers(usize),
    Done,
}

/// The coding was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadChunk;

/// A decoder for one body.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkedDecoder {
    position: Position,
}

impl ChunkedDecoder {
    pub(super) fn new() -> Self {
        Self { position: Position::Size }
    }

    pub(super) fn is_done(&self) -> bool {
        self.position == Position::Done
    }

    /// Decodes from the front of `input`, appending to `body`; returns the bytes consumed. Lines are consumed whole
    /// only. Stops at the end of the body, or when `body` exceeds `body_bytes_max`.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        body_bytes_max: usize,
    ) -> Result<usize, BadChunk> {
        let mut at = 0;
        while !self.is_done() && body.len() <= body_bytes_max {
            let rest = &input[at..];
            if let Position::Chunk(left) = self.position {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                if take == 0 {
                    break;
                }
                body.extend_from_slice(&rest[..take]);
                at += take;
                let left = left - take as u64;
                self.position = if left == 0 { Position::ChunkEnd } else { Position::Chunk(left) };
                continue;
            }
            let Some(end) = rest.iter().take(HTTP1_CHUNK_LINE_BYTES_MAX).position(|&byte| byte == b'\n') else {
                if rest.len() >= HTTP1_CHUNK_LINE_BYTES_MAX {
                    return Err(BadChunk);
                }
                break;
            };
            at += end + 1;
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            self.position = self.after_line(line)?;
        }
        Ok(at)
    }

    fn after_line(&self, line: &[u8]) -> Result<Position, BadChunk> {
        match self.position {
            Position::Size => match chunk_size(line)? {
                0 => Ok(Position::Trailers(0)),
                size => Ok(Position::Chunk(size)),
            },
            Position::ChunkEnd if line.is_empty() => Ok(Position::Size),
            Position::Trailers(_) if line.is_empty() => Ok(Position::Done),
            Position::Trailers(skipped) if skipped + line.len() <= HTTP1_HEAD_BYTES_MAX => {
                Ok(Position::Trailers(skipped + line.len() + 1))
            }
            _ => Err(BadChunk),
        }
    }
}

/// Hexadecimal, up to a `;`.
fn chunk_size(line: &[u8]) -> Result<u64, BadChunk> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 {
        return Err(BadChunk);
    }
    digits.iter().try_fold(0, |size, &digit| {
        let value = char::from(digit).to_digit(16).ok_or(BadChunk)?;
        Ok(size * 16 + u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pieces: &[&str]) -> Result<(String, bool), BadChunk> {
        let (mut decoder, mut body, mut input) = (ChunkedDecoder::new(), Vec::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece.as_bytes());
            let consumed = decoder.decode(&input, &mut body, 100)?;
            input.drain(..consumed);
        }
        Ok((String::from_utf8(body).unwrap(), decoder.is_done()))
    }

    #[test]
    fn bodies_in_chunks_however_cut() {
        let text = "5\r\nhello\r\nB;x=y\r\n, the world\r\n0\r\nTrailer: z\r\n\r\n";
        let expected = Ok(("hello, the world".to_owned(), true));
        assert_eq!(decode(&[text]), expected);
        for cut in 1..text.len() {
            assert_eq!(decode(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
        }
        assert_eq!(decode(&["5\r\nhel"]), Ok(("hel".to_owned(), false)));
    }

    #[test]
    fn violations() {
        for text in ["\r\n", "x\r\n", "-1\r\n", "1\r\nab\r\n", "1234567890123456\r\n", "1 2\r\na"] {
            assert_eq!(decode(&[text]), Err(BadChunk), "{text:?}");
        }
        assert_eq!(decode(&[&"1;".repeat(HTTP1_CHUNK_LINE_BYTES_MAX)]), Err(BadChunk));
    }
}
