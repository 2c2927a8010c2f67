//! Values of the workload: unique to the operation that wrote them, and remembered without their bytes.
//!
//! Owns: their making and their short form. Does not know: who compares them.
//!
//! Invariants
//! - I1: two values of the workload are equal if and only if their short forms are (up to a collision of hashes), and
//!   they are in the same order: the name of the operation leads, and one operation's values differ in length only.

use std::cmp::Ordering;
use std::fmt;

/// Numbers the operations of a run from 0.
pub type OperationId = u64;

/// The name of an operation at the beginning of its values.
const NAME_BYTES: usize = 11;
/// What of a value stays readable.
const HEAD_BYTES: usize = 16;

/// The short form of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Value {
    len: u32,
    head: [u8; HEAD_BYTES],
    hash: u64,
}

impl Value {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut head = [0; HEAD_BYTES];
        let kept = bytes.len().min(HEAD_BYTES);
        head[..kept].copy_from_slice(&bytes[..kept]);
        let hash = if bytes.len() > HEAD_BYTES { xxhash_rust::xxh3::xxh3_64(bytes) } else { 0 };
        Self { len: bytes.len() as u32, head, hash }
    }

    /// The operation that wrote it, if it is long enough to say.
    #[must_use]
    pub fn operation(&self) -> Option<OperationId> {
        let name = self.head.get(2..NAME_BYTES - 1).filter(|_| self.len as usize >= NAME_BYTES)?;
        std::str::from_utf8(name).ok()?.parse().ok()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Its bytes again, if an operation of the workload made it.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let bytes = match self.operation() {
            Some(operation) => unique_value(operation, self.len()),
            None => self.head[..self.len().min(HEAD_BYTES)].to_vec(),
        };
        (Self::of(&bytes) == *self).then_some(bytes)
    }

    /// Its beginning, for a report.
    #[must_use]
    pub fn show(&self) -> String {
        let shown = self.len().min(NAME_BYTES);
        format!("{} ({} bytes)", self.head[..shown].escape_ascii(), self.len)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.show())
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then(self.len.cmp(&other.len))
    }
}

/// A value of `len` bytes, unique to its operation if that is enough for its name.
#[must_use]
pub fn unique_value(operation: OperationId, len: usize) -> Vec<u8> {
    const FILL: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    let mut value = format!("op{operation:08}.").into_bytes();
    let turn = (operation % 26) as usize;
    while value.len() < len {
        let from = (turn + value.len()) % FILL.len();
        let take = (len - value.len()).min(FILL.len() - from);
        value.extend_from_slice(&FILL[from..from + take]);
    }
    value.truncate(len);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_compare_as_their_values_do() {
        let mut values: Vec<Vec<u8>> = Vec::new();
        for operation in [0, 7, 8, 12_345] {
            values.extend([0, 11, 12, 15, 16, 17, 40, 700].map(|len| unique_value(operation, len)));
        }
        for left in &values {
            for right in &values {
                assert_eq!(Value::of(left).cmp(&Value::of(right)), left.cmp(right));
                assert_eq!(Value::of(left) == Value::of(right), left == right);
            }
            assert_eq!(Value::of(left).bytes().as_ref(), Some(left));
        }
        assert_eq!(Value::of(&unique_value(7, 700)).operation(), Some(7));
        assert_eq!(Value::of(&unique_value(7, 3)).operation(), None);
    }
}
