//! Long answers about leases: which there are, and which keys hang on one.
//!
//! Owns: both walks, slice by slice, and the encoded lists. Does not know: turns, how a list is sent.
//!
//! The keys of a lease are those attached while the walk passes them: puts and deletes go on meanwhile. Leases are
//! listed as of the walk's beginning, as far as each was still there when the walk passed it.

use std::collections::BTreeSet;

use trilith_engine::budget::{Budget, Pause};
use trilith_engine::page_source::PageSource;
use trilith_wire::proto::codec::{put_bytes_field, put_message_field};
use trilith_wire::proto::{Message, etcdserverpb as pb};

use crate::service::Service;
use crate::service::jobs::{ROW_ADDRESS_BYTES, Wait, Work};
use crate::service::steps::Next;

/// Work units of one lease that is found, sorted in or encoded.
const UNITS_PER_LEASE: u32 = 4;
/// Work units of one attached key.
const UNITS_PER_KEY: u32 = 8;
/// `LeaseTimeToLiveResponse.keys` and `LeaseLeasesResponse.leases`: the fields that a list repeats.
const KEYS_TAG: u32 = 5 << 3 | 2;
const LEASES_TAG: u32 = 2 << 3 | 2;

/// The leases in the order of what is left of them.
#[derive(Debug)]
pub(super) struct LeaseList {
    started: u64,
    /// The next to be found; `None`: all were.
    from: Option<i64>,
    found: BTreeSet<(u64, i64)>,
    encoded: Vec<u8>,
}

impl LeaseList {
    pub(super) fn new(started: u64) -> Self {
        Self { started, from: Some(i64::MIN), found: BTreeSet::new(), encoded: Vec::new() }
    }

    /// What it holds, in addresses of rows.
    pub(super) fn rows(&self) -> usize {
        self.found.len() * 2 + self.encoded.len() / ROW_ADDRESS_BYTES
    }
}

impl Service {
    /// Goes on with a list of leases.
    pub(super) fn list_leases(&self, budget: &mut Budget, list: &mut LeaseList) -> Result<Work, Pause> {
        while let Some(from) = list.from {
            let most = (budget.left() / UNITS_PER_LEASE).clamp(1, 1024) as usize;
            let leases = self.replica.keyspace().leases();
            let (mut count, mut last) = (0, from);
            for (id, lease) in leases.iter_from(from).take(most) {
                let left = self.leases.lessor.remaining(id, lease, list.started).unwrap_or(0);
                list.found.insert((left, id));
                (count, last) = (count + 1, id);
            }
            list.from = last.checked_add(1).filter(|_| count == most);
            spend(budget, count as u32 * UNITS_PER_LEASE)?;
        }
        while let Some((_, id)) = list.found.pop_first() {
            put_message_field(&mut list.encoded, LEASES_TAG, &pb::LeaseStatus { id });
            spend(budget, UNITS_PER_LEASE)?;
        }
        let head = pb::LeaseLeasesResponse { header: Some(self.current_header()), leases: Vec::new() };
        Ok(whole(&head, std::mem::take(&mut list.encoded)))
    }

    /// Goes on with the keys of a lease; `from` is the first that was not looked at.
    pub(super) fn list_lease_keys(
        &self,
        pages: &dyn PageSource,
        budget: &mut Budget,
        (id, from, encoded): (i64, &mut Vec<u8>, &mut Vec<u8>),
        now: u64,
    ) -> Result<Next, Pause> {
        let keyspace = self.replica.keyspace();
        if keyspace.is_mid_command() {
            // What it did so far is not to be seen.
            return Ok(Next::Goes(Wait::Store));
        }
        let mut attached = keyspace.leases().attached(id, from, pages)?;
        while let Some(key) = attached.next_key()? {
            put_bytes_field(encoded, KEYS_TAG, key);
            from.clear();
            from.extend_from_slice(key);
            from.push(0);
            spend(budget, UNITS_PER_KEY + (key.len() / 256) as u32)?;
        }
        match self.time_to_live(id, now) {
            // It ended meanwhile.
            Ok(head) if head.ttl < 0 => Ok(Next::Becomes(Box::new(whole(&head, Vec::new())))),
            Ok(head) => Ok(Next::Becomes(Box::new(whole(&head, std::mem::take(encoded))))),
            Err(status) => Ok(Next::Fails(status)),
        }
    }
}

/// A message: its head, and the list that follows it.
fn whole<'a>(head: &impl Message<'a>, list: Vec<u8>) -> Work {
    Work::SendBytes { parts: [head.encode_to_vec(), list], sent: None }
}

fn spend(budget: &mut Budget, units: u32) -> Result<(), Pause> {
    if budget.spend(units) { Ok(()) } else { Err(Pause::Budget) }
}
