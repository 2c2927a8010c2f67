//! Leases as replicated state: which exist, and which keys are attached to them.
//!
//! Owns: the table of granted leases, the attachments, and their form in the lease tree of a checkpoint. Does not know:
//! time. When a lease expires is its leader's business ([`lessor`]); here it ends by a command like everything else.
//!
//! The tree holds `0x00 id` -> TTL in seconds (i64, little-endian), and the noted rest if there is one (i64), for each
//! lease and `0x01 id key` -> nothing for each attachment, ids as big-endian numbers with the sign bit turned, so that
//! leases stand together and the keys of one lease stand in order. Leases are held in memory, too; attachments only as
//! far as they changed since the last checkpoint, so that a start reads the leases alone.
//!
//! Invariants
//! - I1: a key is attached to at most one lease: the one that its newest row names, and only while the key is alive.
//! - I2: an attachment's lease exists.

pub mod lessor;
#[cfg(test)]
mod lessor_test;

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::mvcc::key_tree::{KeyScan, KeyTree};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::{Chain, KeyEntry, Revision};
use crate::store::overlay::{Overlay, OverlayCursor};

const LEASE: u8 = 0;
const ATTACHMENT: u8 = 1;
const ID_BYTES: usize = 9;

/// The longest time to live that can be granted, in seconds (etcd's limit).
pub const TTL_MAX: i64 = 9_000_000_000;

/// A lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Granted time to live, in seconds.
    pub ttl: i64,
    /// What was left of it when that was last noted in the log, in seconds: a new leader counts from there. 0: nothing
    /// was noted, or the lease was renewed since.
    pub remaining: i64,
}

impl Lease {
    /// A lease as it is granted.
    #[must_use]
    pub fn granted(ttl: i64) -> Self {
        Self { ttl, remaining: 0 }
    }
}

/// The leases of a keyspace.
#[derive(Debug)]
pub struct Leases<T> {
    granted: BTreeMap<i64, Lease>,
    /// The sum of hashes of all leases.
    sum: u64,
    /// Changes of the tree are numbered, for the overlay's sake.
    changes: i64,
    fresh: Overlay,
    frozen: Option<Arc<Overlay>>,
    tree: Option<T>,
}

impl<T> Default for Leases<T> {
    fn default() -> Self {
        Self { granted: BTreeMap::new(), sum: 0, changes: 0, fresh: Overlay::new(), frozen: None, tree: None }
    }
}

impl<T: KeyTree> Leases<T> {
    /// The leases that a checkpoint's tree holds. To be repeated while pages are missing.
    ///
    /// # Errors
    /// A page is not usable now. What is no lease under a right checksum is left out: nothing was ever attached to it.
    pub fn open(tree: T, pages: &dyn PageSource) -> Result<Self, Unavailable> {
        let mut leases = Self::default();
        let mut scan = tree.scan(&[LEASE], pages)?;
        while let Some((key, value)) = scan.next_raw()?.filter(|(key, _)| key.first() == Some(&LEASE)) {
            if let Some((id, lease)) = decode(key, value) {
                leases.sum = leases.sum.wrapping_add(digest(id, lease));
                leases.granted.insert(id, lease);
            }
        }
        drop(scan);
        leases.tree = Some(tree);
        Ok(leases)
    }

    /// A lease, if it exists.
    #[must_use]
    pub fn get(&self, id: i64) -> Option<Lease> {
        self.granted.get(&id).copied()
    }

    /// All leases, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (i64, Lease)> {
        self.granted.iter().map(|(&id, &lease)| (id, lease))
    }

    /// The leases from an id on, in order of their ids.
    pub fn iter_from(&self, id: i64) -> impl Iterator<Item = (i64, Lease)> {
        self.granted.range(id..).map(|(&id, &lease)| (id, lease))
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.granted.len()
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.granted.is_empty()
    }

    /// The sum of hashes of all leases: equal on members that hold the same.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Adds a lease that does not exist.
    pub(crate) fn grant(&mut self, id: i64, lease: Lease) {
        let before = self.granted.insert(id, lease);
        assert_eq!(before, None, "a lease is granted once");
        self.sum = self.sum.wrapping_add(digest(id, lease));
        self.write(&key_of_lease(id), lease);
    }

    /// Notes how much of a lease is left; 0 forgets what was noted. False: there is no such lease.
    pub(crate) fn checkpoint(&mut self, id: i64, remaining: i64) -> bool {
        let Some(lease) = self.granted.get_mut(&id) else { return false };
        lease.remaining = remaining;
        let lease = *lease;
        self.write(&key_of_lease(id), lease);
        true
    }

    /// Removes a lease without attachments.
    pub(crate) fn remove(&mut self, id: i64) {
        let lease = self.granted.remove(&id).expect("a lease that ends exists");
        self.sum = self.sum.wrapping_sub(digest(id, lease));
        self.write(&key_of_lease(id), NOTHING);
    }

    /// A key moves from one lease to another; 0 is none.
    pub(crate) fn attach(&mut self, key: &[u8], before: i64, after: i64) {
        if before == after {
            return;
        }
        if before != 0 {
            self.write(&key_of_attachment(before, key), NOTHING);
        }
        if after != 0 {
            self.write(&key_of_attachment(after, key), Lease::granted(1));
        }
    }

    /// Starts a walk over the keys attached to a lease, from one on.
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn attached<'a>(
        &'a self,
        id: i64,
        from: &[u8],
        pages: &'a dyn PageSource,
    ) -> Result<Attached<'a, T>, Unavailable> {
        let from = key_of_attachment(id, from);
        let mut tree = self.tree.as_ref().map(|tree| tree.scan(&from, pages)).transpose()?;
        let tree_head = tree.as_mut().map(next_key).transpose()?.flatten();
        let walk = |overlay: &'a Overlay| Walk { overlay, head: overlay.next(overlay.seek(&from)) };
        let frozen = self.frozen.as_deref().map(walk);
        Ok(Attached { prefix: key_of_attachment(id, b""), fresh: walk(&self.fresh), frozen, tree, tree_head })
    }

    /// Starts a checkpoint: the changes since the one before, which are merged from here on.
    pub(crate) fn freeze(&mut self) {
        assert!(self.frozen.is_none(), "one checkpoint at a time");
        self.frozen = Some(Arc::new(std::mem::take(&mut self.fresh)));
    }

    /// The changes that the running checkpoint merges.
    #[must_use]
    pub fn frozen(&self) -> Option<&Arc<Overlay>> {
        self.frozen.as_ref()
    }

    /// Ends a checkpoint: `tree` holds the old one and the frozen changes.
    pub(crate) fn install_tree(&mut self, tree: T) {
        (self.tree, self.frozen) = (Some(tree), None);
    }

    /// Heap bytes of the changes since the last checkpoint began.
    #[must_use]
    pub fn overlay_bytes(&self) -> u64 {
        self.fresh.bytes()
    }

    /// A lease's numbers stand in the fields of the same width that a key's entry has for version and lease.
    fn write(&mut self, key: &[u8], Lease { ttl: version, remaining: lease }: Lease) {
        self.changes += 1;
        let row = Revision { main: self.changes, sub: 0 };
        let create = row.main * i64::from(version != 0);
        self.fresh.put(key, KeyEntry { row, create, version, lease, chain: Chain::default() }, false);
    }
}

/// Written where a lease or an attachment ends.
const NOTHING: Lease = Lease { ttl: 0, remaining: 0 };

/// What the lease tree holds under a key of the overlay: false if nothing.
pub(crate) fn encode_stored(key: &[u8], entry: &KeyEntry, out: &mut Vec<u8>) -> bool {
    if key.first() == Some(&LEASE) {
        out.extend_from_slice(&entry.version.to_le_bytes());
        if entry.lease != 0 {
            out.extend_from_slice(&entry.lease.to_le_bytes());
        }
    }
    entry.version != 0
}

fn decode(key: &[u8], value: &[u8]) -> Option<(i64, Lease)> {
    let (&LEASE, id) = key.split_first()? else { return None };
    let id = u64::from_be_bytes(id.try_into().ok()?) ^ 1 << 63;
    let (ttl, rest) = value.split_first_chunk::<8>()?;
    let remaining = match rest {
        [] => 0,
        noted => i64::from_le_bytes(noted.try_into().ok()?),
    };
    Some((id.cast_signed(), Lease { ttl: i64::from_le_bytes(*ttl), remaining }))
}

fn digest(id: i64, lease: Lease) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8..].copy_from_slice(&lease.ttl.to_le_bytes());
    xxh3_64(&bytes)
}

fn key_of_lease(id: i64) -> [u8; ID_BYTES] {
    let mut key = [LEASE; ID_BYTES];
    key[1..].copy_from_slice(&(id.cast_unsigned() ^ 1 << 63).to_be_bytes());
    key
}

fn key_of_attachment(id: i64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ID_BYTES + key.len());
    out.extend_from_slice(&key_of_lease(id));
    out[0] = ATTACHMENT;
    out.extend_from_slice(key);
    out
}

/// An ascending walk over the keys attached to a lease.
pub struct Attached<'a, T: KeyTree + 'a> {
    prefix: Vec<u8>,
    fresh: Walk<'a>,
    frozen: Option<Walk<'a>>,
    tree: Option<T::Scan<'a>>,
    tree_head: Option<&'a [u8]>,
}

impl<'a, T: KeyTree> Attached<'a, T> {
    /// The next key.
    ///
    /// # Errors
    /// A page is not usable now; the walk is then abandoned.
    pub fn next_key(&mut self) -> Result<Option<&'a [u8]>, Unavailable> {
        loop {
            let heads = [self.fresh.key(), self.frozen.as_ref().and_then(Walk::key), self.tree_head];
            let Some(key) = heads.into_iter().flatten().min() else { return Ok(None) };
            let Some(attached) = key.strip_prefix(self.prefix.as_slice()) else { return Ok(None) };
            let [fresh, frozen, tree] = heads.map(|head| head == Some(key));
            let mut holds = None;
            if fresh {
                holds = self.fresh.advance();
            }
            if frozen {
                let below = self.frozen.as_mut().and_then(Walk::advance);
                holds = holds.or(below);
            }
            if tree {
                holds = holds.or(Some(true));
                self.tree_head = self.tree.as_mut().map(next_key).transpose()?.flatten();
            }
            if holds == Some(true) {
                return Ok(Some(attached));
            }
        }
    }
}

fn next_key<'a>(scan: &mut impl KeyScan<'a>) -> Result<Option<&'a [u8]>, Unavailable> {
    Ok(scan.next_raw()?.map(|(key, _)| key))
}

/// A walk over the changes of one overlay.
struct Walk<'a> {
    overlay: &'a Overlay,
    head: Option<(&'a [u8], &'a KeyEntry, OverlayCursor)>,
}

impl<'a> Walk<'a> {
    fn key(&self) -> Option<&'a [u8]> {
        self.head.map(|(key, ..)| key)
    }

    /// Whether the change at hand attaches.
    fn advance(&mut self) -> Option<bool> {
        let (_, entry, after) = self.head?;
        self.head = self.overlay.next(after);
        Some(!entry.is_tombstone())
    }
}
