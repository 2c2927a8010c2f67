//! etcd's key ranges.
//!
//! Owns: the reading of (key, range_end). Does not know: what is ranged over.

/// A range of keys in byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRange<'a> {
    /// One key.
    Single(&'a [u8]),
    /// All keys at or above the first, below the second. May be empty.
    Between(&'a [u8], &'a [u8]),
    /// All keys at or above.
    From(&'a [u8]),
}

impl<'a> KeyRange<'a> {
    /// Reads a request's pair: an empty end is the single key, one zero byte is no end.
    #[must_use]
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::Single(key),
            [0] => Self::From(key),
            end => Self::Between(key, end),
        }
    }

    /// The first key that may be inside.
    #[must_use]
    pub fn start(&self) -> &'a [u8] {
        match self {
            Self::Single(key) | Self::Between(key, _) | Self::From(key) => key,
        }
    }

    /// Whether `key`, which is at or above [`Self::start`], lies beyond the end.
    #[must_use]
    pub fn is_past(&self, key: &[u8]) -> bool {
        match self {
            Self::Single(only) => key > *only,
            Self::Between(_, end) => key >= *end,
            Self::From(_) => false,
        }
    }

    /// Whether `key` is inside.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start() && !self.is_past(key)
    }
}
