//! What the overlay and the key tree hold of a key.
//!
//! Owns: the entry, its binary form (the opaque value of a tree leaf), and the arithmetic of the version chain's
//! skew-binary roots. Does not know: pages, rows' bytes, or which layer an entry stands in.
//!
//! A key's rows form a chain from the newest to the oldest. Row n of a chain belongs to a forest of complete binary
//! trees whose sizes are the skew-binary digits of n (2^k - 1, only the two smallest may be equal). Appending either
//! joins the two newest trees under the new row, or starts a tree of one; the row's jump pointer is always the root
//! of the tree after its own, so key-at-revision follows O(log n) pointers. The entry carries the roots, so that
//! appending reads no row.
//!
//! Binary form (LEB128 unless said otherwise), canonical:
//! ```text
//! flags u8 (1 lease, 2 several rows, 4 tombstone)   row.main   row.sub
//! unless tombstone: version, row.main - create   if lease: i64 little-endian
//! if several: rows of the chain, number of older roots, then per root: main distance to the root before, sub
//! ```
//!
//! Invariants
//! - I1: `row` is the newest row of the key; `version == 0` exactly for a tombstone, which has no create and no lease.
//! - I2: older roots descend strictly and lie below `row`; roots at or below the compacted revision are dropped (a
//!   pointer there is never followed further), so the list is a prefix of the skew-binary one.

/// A point in the history: main revision and the position inside it. Also the address of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The revision clients see.
    pub main: i64,
    /// The position of the change inside it, from 0.
    pub sub: u32,
}

impl Revision {
    /// "No row": the end of a chain. No change has main revision 0.
    pub const NONE: Self = Self { main: 0, sub: 0 };

    /// Whether this names no row.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.main == 0
    }

    /// The smallest address above.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.sub.checked_add(1) {
            Some(sub) => Self { main: self.main, sub },
            None => Self { main: self.main + 1, sub: 0 },
        }
    }
}

/// The newest state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// The newest row; `row.main` is the modification revision.
    pub row: Revision,
    /// Creation revision of the current generation; 0 for a tombstone.
    pub create: i64,
    /// Puts in the current generation; 0 for a tombstone.
    pub version: i64,
    /// The lease, 0 for none.
    pub lease: i64,
    /// The chain this entry is the head of.
    pub chain: Chain,
}

/// The skew-binary roots of a chain; the newest root is the entry's own row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Rows counted, the newest included. Rows below the compaction that preceded the chain are not.
    rows: u64,
    older: Roots,
}

/// Roots below the newest, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    /// The usual case, in place; unused slots at the end are `NONE`.
    Inline([Revision; ROOTS_INLINE]),
    /// More than fit in place.
    Spilled(Box<[Revision]>),
}

const ROOTS_INLINE: usize = 2;

const FLAG_LEASE: u8 = 1;
const FLAG_SEVERAL: u8 = 2;
const FLAG_TOMBSTONE: u8 = 4;

/// A chain of 2^63 rows has 64 digits; no list can be longer.
const ROOTS_MAX: usize = 65;

/// What appending a row to a chain yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The chain with the new row as its newest.
    pub chain: Chain,
    /// The new row's pointer to the row before.
    pub prev: Revision,
    /// The new row's jump pointer.
    pub jump: Revision,
}

impl Chain {
    /// The chain after a row is appended to the one `before` heads.
    ///
    /// A chain whose newest row is at or below the compacted revision starts anew: nothing older can be asked for,
    /// only the pointer to that one row is kept.
    #[must_use]
    pub fn link(before: Option<&KeyEntry>, compacted: i64) -> Link {
        let Some(before) = before else {
            return Link { chain: Self::of_one(), prev: Revision::NONE, jump: Revision::NONE };
        };
        if before.row.main <= compacted {
            return Link { chain: Self::of_one(), prev: before.row, jump: Revision::NONE };
        }
        let older = before.chain.older.as_slice();
        let chain = if joins(before.chain.rows) {
            Self { rows: before.chain.rows + 1, older: Roots::new(None, older.get(1..).unwrap_or(&[]), compacted) }
        } else {
            Self { rows: before.chain.rows + 1, older: Roots::new(Some(before.row), older, compacted) }
        };
        let jump = chain.older.as_slice().first().copied().unwrap_or(Revision::NONE);
        Link { chain, prev: before.row, jump }
    }

    /// The roots below the newest, newest first.
    #[must_use]
    pub fn older(&self) -> &[Revision] {
        self.older.as_slice()
    }

    /// Heap bytes held.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.older {
            Roots::Inline(_) => 0,
            Roots::Spilled(roots) => size_of_val::<[Revision]>(roots),
        }
    }

    fn of_one() -> Self {
        Self { rows: 1, older: Roots::default() }
    }
}

impl Roots {
    fn new(first: Option<Revision>, rest: &[Revision], compacted: i64) -> Self {
        let keep = rest.partition_point(|root| root.main > compacted);
        let roots = first.into_iter().chain(rest[..keep].iter().copied());
        let len = usize::from(first.is_some()) + keep;
        if len > ROOTS_INLINE {
            return Self::Spilled(roots.collect());
        }
        let mut inline = [Revision::NONE; ROOTS_INLINE];
        for (slot, root) in inline.iter_mut().zip(roots) {
            *slot = root;
        }
        Self::Inline(inline)
    }

    fn as_slice(&self) -> &[Revision] {
        match self {
            Self::Inline(roots) => &roots[..roots.iter().take_while(|root| !root.is_none()).count()],
            Self::Spilled(roots) => roots,
        }
    }
}

impl Default for Roots {
    fn default() -> Self {
        Self::Inline([Revision::NONE; ROOTS_INLINE])
    }
}

/// Whether the two smallest skew-binary digits of `rows` are equal: then the next row joins their trees.
fn joins(rows: u64) -> bool {
    let (mut rest, mut last) = (rows, 0);
    while rest > 0 {
        // The largest 2^k - 1 that fits: all ones below the top bit of rest + 1.
        let digit = (1_u64 << (63 - (rest + 1).leading_zeros())) - 1;
        rest -= digit;
        if rest == 0 {
            return digit == last;
        }
        last = digit;
    }
    false
}

impl KeyEntry {
    /// What an overlay holds of a key that leaves the index: its tombstone is compacted. Reads as a tombstone, as its
    /// newest row is below every revision; the merge of a checkpoint removes the key.
    pub const ERASED: Self = Self {
        row: Revision::NONE,
        create: 0,
        version: 0,
        lease: 0,
        chain: Chain { rows: 0, older: Roots::Inline([Revision::NONE; ROOTS_INLINE]) },
    };

    /// Whether the key leaves the index; see [`Self::ERASED`].
    #[must_use]
    pub fn is_erased(&self) -> bool {
        self.row.is_none()
    }

    /// The same entry after rows and revisions got other numbers; `row` and `revision` keep their order.
    pub(crate) fn renumbered(&self, row: &dyn Fn(Revision) -> Revision, revision: &dyn Fn(i64) -> i64) -> Self {
        let mut older = self.chain.older.clone();
        match &mut older {
            Roots::Inline(roots) => roots.iter_mut().filter(|root| !root.is_none()).for_each(|root| *root = row(*root)),
            Roots::Spilled(roots) => roots.iter_mut().for_each(|root| *root = row(*root)),
        }
        Self {
            row: row(self.row),
            create: revision(self.create),
            chain: Chain { rows: self.chain.rows, older },
            ..*self
        }
    }

    /// Whether the key is deleted.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Appends the binary form.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let tombstone = self.is_tombstone();
        assert!(!self.is_erased(), "a key that leaves the index has no form in it");
        assert!(!tombstone || (self.create == 0 && self.lease == 0), "I1: a tombstone has no create and no lease");
        let mut flags = 0;
        flags |= if self.lease != 0 { FLAG_LEASE } else { 0 };
        flags |= if self.chain.rows > 1 { FLAG_SEVERAL } else { 0 };
        flags |= if tombstone { FLAG_TOMBSTONE } else { 0 };
        out.push(flags);
        put_varint(out, self.row.main.cast_unsigned());
        put_varint(out, u64::from(self.row.sub));
        if !tombstone {
            put_varint(out, self.version.cast_unsigned());
            put_varint(out, (self.row.main - self.create).cast_unsigned());
        }
        if self.lease != 0 {
            out.extend_from_slice(&self.lease.to_le_bytes());
        }
        if self.chain.rows > 1 {
            let older = self.chain.older();
            put_varint(out, self.chain.rows);
            put_varint(out, older.len() as u64);
            let mut above = self.row.main;
            for root in older {
                put_varint(out, (above - root.main).cast_unsigned());
                put_varint(out, u64::from(root.sub));
                above = root.main;
            }
        }
    }

    /// Reads the binary form, which must fill `bytes`. `None`: malformed.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = bytes;
        let flags = take_byte(&mut input)?;
        if flags & !(FLAG_LEASE | FLAG_SEVERAL | FLAG_TOMBSTONE) != 0 {
            return None;
        }
        let row = Revision { main: take_positive(&mut input)?, sub: take_u32(&mut input)? };
        let (mut version, mut create, mut lease) = (0, 0, 0);
        if flags & FLAG_TOMBSTONE == 0 {
            version = take_positive(&mut input)?;
            create = row.main.checked_sub(i64::try_from(take_varint(&mut input)?).ok()?).filter(|&at| at > 0)?;
        }
        if flags & FLAG_LEASE != 0 {
            let (bytes, rest) = input.split_first_chunk::<8>()?;
            lease = i64::from_le_bytes(*bytes);
            input = rest;
            if lease == 0 || version == 0 {
                return None;
            }
        }
        let chain = if flags & FLAG_SEVERAL != 0 { take_chain(&mut input, row)? } else { Chain::of_one() };
        input.is_empty().then_some(Self { row, create, version, lease, chain })
    }

    /// Whether the binary form is of a live key, without decoding it; for subtree counts. `None`: malformed.
    #[must_use]
    pub fn decode_is_live(bytes: &[u8]) -> Option<bool> {
        bytes.first().map(|flags| flags & FLAG_TOMBSTONE == 0)
    }
}

fn take_chain(input: &mut &[u8], row: Revision) -> Option<Chain> {
    let rows = take_varint(input)?;
    let len = usize::try_from(take_varint(input)?).ok()?;
    if rows < 2 || len > ROOTS_MAX {
        return None;
    }
    let mut roots = [Revision::NONE; ROOTS_MAX];
    let mut above = row;
    for slot in &mut roots[..len] {
        let main = above.main.checked_sub(i64::try_from(take_varint(input)?).ok()?)?;
        let root = Revision { main, sub: take_u32(input)? };
        if main <= 0 || root >= above {
            return None;
        }
        *slot = root;
        above = root;
    }
    Some(Chain { rows, older: Roots::new(None, &roots[..len], 0) })
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_byte(input: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = input.split_first()?;
    *input = rest;
    Some(first)
}

/// A minimal LEB128 number: an entry has one binary form.
fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(input)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return (byte != 0 || shift == 0).then_some(value);
        }
    }
    None
}

fn take_positive(input: &mut &[u8]) -> Option<i64> {
    i64::try_from(take_varint(input)?).ok().filter(|&value| value > 0)
}

fn take_u32(input: &mut &[u8]) -> Option<u32> {
    u32::try_from(take_varint(input)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(row: Revision, chain: Chain) -> KeyEntry {
        KeyEntry { row, create: 2, version: 3, lease: 0, chain }
    }

    /// A chain of `len` rows, compacted on the way at `compacted`; returns the head and each row's pointers by main.
    fn build(len: i64, compact_at: i64, compacted: i64) -> (KeyEntry, Vec<(Revision, Revision)>) {
        let mut head: Option<KeyEntry> = None;
        let mut pointers = vec![(Revision::NONE, Revision::NONE); 2];
        for main in 2..2 + len {
            let link = Chain::link(head.as_ref(), if main >= compact_at { compacted } else { -1 });
            pointers.push((link.prev, link.jump));
            head = Some(entry(Revision { main, sub: 0 }, link.chain));
        }
        (head.unwrap(), pointers)
    }

    #[test]
    fn key_at_revision_takes_logarithmic_steps() {
        let (head, pointers) = build(10_000, i64::MAX, 0);
        for target in 2..10_002 {
            let (mut at, mut steps) = (head.row, 0);
            while at.main > target {
                let (prev, jump) = pointers[at.main as usize];
                at = if jump.main > target { jump } else { prev };
                steps += 1;
            }
            assert_eq!(at.main, target, "every row is reachable");
            assert!(steps <= 3 * 14, "{steps} steps to {target}");
        }
    }

    #[test]
    fn roots_below_the_compaction_are_dropped_and_the_rest_stay_reachable() {
        let (head, pointers) = build(3000, 2000, 1500);
        assert!(head.chain.older().iter().all(|root| root.main > 1500));
        for target in 1500..3002 {
            let (mut at, mut steps) = (head.row, 0);
            while at.main > target {
                let (prev, jump) = pointers[at.main as usize];
                at = if jump.main > target { jump } else { prev };
                steps += 1;
            }
            assert_eq!(at.main, target);
            assert!(steps <= 3 * 12, "{steps} steps to {target}");
        }
        let idle = Chain::link(Some(&head), head.row.main);
        assert_eq!(idle, Link { chain: Chain::of_one(), prev: head.row, jump: Revision::NONE });
    }

    #[test]
    fn binary_form_round_trips_and_damage_is_rejected_or_canonical() {
        let (deep, _) = build(1000, i64::MAX, 0);
        let tombstone = KeyEntry { create: 0, version: 0, ..deep.clone() };
        let leased = KeyEntry { lease: -7, chain: Chain::of_one(), ..deep.clone() };
        for entry in [deep, tombstone, leased] {
            let mut bytes = Vec::new();
            entry.encode_into(&mut bytes);
            assert_eq!(KeyEntry::decode(&bytes).as_ref(), Some(&entry));
            assert_eq!(KeyEntry::decode_is_live(&bytes), Some(!entry.is_tombstone()));
            for cut in 0..bytes.len() {
                assert_eq!(KeyEntry::decode(&bytes[..cut]), None);
            }
            for position in 0..bytes.len() {
                for value in 0..=255 {
                    let mut damaged = bytes.clone();
                    damaged[position] = value;
                    if let Some(read) = KeyEntry::decode(&damaged) {
                        let mut again = Vec::new();
                        read.encode_into(&mut again);
                        assert_eq!(again, damaged, "one binary form per entry");
                    }
                }
            }
        }
    }
}
