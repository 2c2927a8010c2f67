//! Keys and values of changes.
//!
//! Owns: whose the bytes of a change are. Does not know: what they mean, how a change is evaluated or installed.
//!
//! A change that is installed at once borrows from its command. One that waits does not: what it took from the payload
//! of its entry, as puts do, it shares, so nothing is copied and no memory of its own is to be given back.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

/// An entry's payload, as one who evaluates holds it. The inner count is that of everybody who has the entry; the outer
/// one is a job's own, so that cores which share the payload's parts out do not contend for one count.
pub(crate) type Source = Arc<Arc<Vec<u8>>>;

/// A key or a value.
#[derive(Debug)]
pub(crate) enum Bytes<'c> {
    /// The command's.
    Borrowed(&'c [u8]),
    /// The change's own.
    Owned(Vec<u8>),
    /// Part of a payload.
    Part {
        /// The payload.
        source: Source,
        /// Where in it they begin.
        start: u32,
        /// How many they are.
        len: u32,
    },
}

impl Bytes<'_> {
    /// The same, with nothing borrowed from the command.
    pub(crate) fn into_owned(self) -> Bytes<'static> {
        match self {
            Self::Borrowed(bytes) => Bytes::Owned(bytes.to_vec()),
            Self::Owned(bytes) => Bytes::Owned(bytes),
            Self::Part { source, start, len } => Bytes::Part { source, start, len },
        }
    }

    /// The same; what the command borrows from `source` is shared with it.
    pub(crate) fn into_shared(self, source: &Source) -> Bytes<'static> {
        match self {
            Self::Borrowed(bytes) if let Some((start, len)) = place(source, bytes) => {
                Bytes::Part { source: Arc::clone(source), start, len }
            }
            other => other.into_owned(),
        }
    }
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Part { source, start, len } => &source[*start as usize..][..*len as usize],
        }
    }
}

impl<'c> From<Cow<'c, [u8]>> for Bytes<'c> {
    fn from(bytes: Cow<'c, [u8]>) -> Self {
        match bytes {
            Cow::Borrowed(bytes) => Self::Borrowed(bytes),
            Cow::Owned(bytes) => Self::Owned(bytes),
        }
    }
}

/// Where in `whole` the slice `part` of it begins, and its length; none if it is not one.
fn place(whole: &[u8], part: &[u8]) -> Option<(u32, u32)> {
    let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let end = start.checked_add(part.len())?;
    (end <= whole.len()).then_some((u32::try_from(start).ok()?, u32::try_from(part.len()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_payload_are_shared_and_the_rest_is_copied() {
        let source: Source = Arc::new(Arc::new(b"a payload".to_vec()));
        let elsewhere = b"payload".to_vec();
        let bytes = |start: usize, end: usize| Bytes::Borrowed(&source[start..end]).into_shared(&source);
        for (start, end) in [(0, 9), (2, 9), (0, 1), (4, 4), (9, 9)] {
            let shared = bytes(start, end);
            assert!(matches!(shared, Bytes::Part { .. }), "{start}..{end}");
            assert_eq!(*shared, source[start..end]);
            assert_eq!(*shared.into_owned(), source[start..end]);
        }
        let copied = [Bytes::Borrowed(&elsewhere).into_shared(&source), Bytes::Borrowed(&elsewhere).into_owned()];
        for copied in copied {
            assert!(matches!(&copied, Bytes::Owned(bytes) if *bytes == elsewhere));
        }
        // A slice that begins in the payload and ends behind it is none of its parts.
        let (left, _) = source.split_at(5);
        assert_eq!((place(left, &source[2..5]), place(left, &source[2..6])), (Some((2, 3)), None));
        assert_eq!(place(&source[2..], &source[1..4]), None);
    }
}
