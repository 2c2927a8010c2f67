//! The end of a lease: a delete of single keys in any shard, at one revision.
//!
//! Owns: the keys attached to the lease, by owner, and what the owners have done. Does not know: the lease table's
//! form.

use std::collections::BTreeMap;

use crate::budget::{Budget, Pause, price};
use crate::lease::Leases;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::range_walk::key_after;
use crate::mvcc::{LeaseRevokeOutcome, MvccError};
use crate::page_source::PageSource;
use crate::shard::answer::Answer;
use crate::shard::append::{Answering, Append, Content, number_spanning};
use crate::shard::map::{ShardId, ShardMap};
use crate::shard::message::{ChangeList, Part, PartResult};

/// A lease that ends.
#[derive(Debug)]
pub(super) struct Revoke {
    pub(super) id: u64,
    pub(super) lease: i64,
    /// Where the walk over the attached keys goes on.
    from: Vec<u8>,
    /// By owner, in key order.
    keys: BTreeMap<ShardId, Vec<Vec<u8>>>,
    /// Whether the owners were asked.
    pub(super) is_sent: bool,
    ran: BTreeMap<ShardId, (Vec<Part>, ChangeList)>,
}

impl Revoke {
    pub(super) fn new(id: u64, lease: i64) -> Self {
        Self { id, lease, from: Vec::new(), keys: BTreeMap::new(), is_sent: false, ran: BTreeMap::new() }
    }

    /// Goes on looking up the attached keys; all are known at the end.
    pub(super) fn find_keys<T: KeyTree>(
        &mut self,
        leases: &Leases<T>,
        map: &ShardMap,
        pages: &dyn PageSource,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        budget.spend(price::SEEK);
        let mut attached = leases.attached(self.lease, &self.from, pages)?;
        while let Some(key) = attached.next_key()? {
            self.keys.entry(map.owner(key)).or_default().push(key.to_vec());
            self.from = key_after(key);
            budget.charge(price::ENTRY)?;
        }
        Ok(())
    }

    /// The keys to delete, for those that own them.
    pub(super) fn send(&mut self) -> BTreeMap<ShardId, Vec<Vec<u8>>> {
        self.is_sent = true;
        self.keys.clone()
    }

    pub(super) fn handle_ran(&mut self, from: ShardId, result: PartResult, changes: ChangeList) {
        let parts = result.expect("deleting cannot fail");
        self.ran.insert(from, (parts, changes));
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.is_sent && self.ran.len() < self.keys.len()
    }

    /// All keys are deleted: they stand in key order.
    pub(super) fn number(self, base: i64) -> Append {
        let order: Vec<(ShardId, u32)> =
            self.ran.iter().map(|(&shard, (parts, _))| (shard, parts.iter().map(Part::changes).sum())).collect();
        let deleted = order.iter().map(|&(_, count)| i64::from(count)).sum();
        let numbers = number_spanning(base, order, self.ran);
        let outcome = LeaseRevokeOutcome { revision: numbers.newest, deleted };
        let content = Content::Whole(Ok(Answer::LeaseRevoke(outcome)));
        let answers = [Answering { id: self.id, content }].into();
        let ends = Some(self.lease);
        Append { runs: numbers.runs, lists: numbers.lists, newest: numbers.newest, answers, ends }
    }
}

/// What is wrong with ending a lease.
pub(super) fn revoke_error<T: KeyTree>(leases: &Leases<T>, lease: i64) -> Option<MvccError> {
    leases.get(lease).is_none().then_some(MvccError::LeaseNotFound)
}
