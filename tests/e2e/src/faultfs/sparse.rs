//! Bytes of a file of which most may never have been written: unwritten parts take no memory and read as zeros.

use std::collections::BTreeMap;

/// What a disk writes wholly or not at all.
pub(super) const SECTOR_BYTES: u64 = 512;
const CHUNK_BYTES: u64 = 64 << 10;

/// The bytes.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    chunks: BTreeMap<u64, Box<[u8]>>,
}

/// The part of a range that lies in one chunk: the chunk, the place in it, and its length.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (chunk, inside) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
        let count = (CHUNK_BYTES - inside).min(end - at);
        at += count;
        Some((chunk, small(inside), small(count)))
    })
}

fn small(number: u64) -> usize {
    usize::try_from(number).expect("at most a chunk")
}

impl Sparse {
    /// The bytes of a range.
    pub(super) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        for (chunk, inside, count) in pieces(offset, length) {
            match self.chunks.get(&chunk) {
                Some(chunk) => bytes.extend_from_slice(&chunk[inside..inside + count]),
                None => bytes.resize(bytes.len() + count, 0),
            }
        }
        bytes
    }

    /// Replaces a range.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (chunk, inside, count) in pieces(offset, bytes.len()) {
            let (piece, tail) = rest.split_at(count);
            rest = tail;
            let chunk = self.chunks.entry(chunk).or_insert_with(|| vec![0; small(CHUNK_BYTES)].into());
            chunk[inside..inside + count].copy_from_slice(piece);
        }
    }

    /// Zeros from `length` on.
    pub(super) fn cut_off(&mut self, length: u64) {
        self.chunks.split_off(&length.div_ceil(CHUNK_BYTES));
        if let Some(last) = self.chunks.get_mut(&(length / CHUNK_BYTES)) {
            last[small(length % CHUNK_BYTES)..].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_chunks_are_whole() {
        let mut sparse = Sparse::default();
        let bytes: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0] | 1).collect();
        sparse.write(65_000, &bytes);
        assert_eq!(sparse.read(65_000, bytes.len()), bytes);
        assert_eq!(sparse.read(64_999, 3), [0, bytes[0], bytes[1]]);
        sparse.cut_off(65_002);
        assert_eq!(sparse.read(65_000, 4), [bytes[0], bytes[1], 0, 0]);
        assert_eq!(sparse.read(131_072, 2), [0, 0]);
    }
}
