//! The operations of a command, flat.
//!
//! Owns: the orders in which all shards and the coordinator walk a command, so that answers need no names: the leaves
//! of the taken branches in the order of execution, the probes of all branches in the order of the text. Does not
//! know: shards, state.

use std::sync::Arc;

use crate::command::{Command, Compare, CompareTarget, DeleteRange, Op, Put, RangeQuery, Txn};
use crate::mvcc::MvccError;
use crate::mvcc::compare::Compared;
use crate::mvcc::txn::check_range;
use crate::shard::message::Gathered;

/// An operation that is no transaction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leaf<'c> {
    Range(&'c RangeQuery<'c>),
    Put(&'c Put<'c>),
    Delete(&'c DeleteRange<'c>),
}

impl<'c> Leaf<'c> {
    /// Its keys, as a request's pair.
    pub(super) fn range(self) -> (&'c [u8], &'c [u8]) {
        match self {
            Self::Range(query) => (query.key, query.range_end),
            Self::Put(put) => (put.key, b""),
            Self::Delete(del) => (del.key, del.range_end),
        }
    }
}

/// The leaves that run, in order, given the branch each transaction reached takes (in the order they are reached).
pub(super) fn leaves<'c>(command: &'c Command<'c>, path: &[bool]) -> Vec<Leaf<'c>> {
    let mut leaves = Vec::new();
    match command {
        Command::Put(put) => leaves.push(Leaf::Put(put)),
        Command::DeleteRange(del) => leaves.push(Leaf::Delete(del)),
        Command::Txn(txn) => txn_leaves(txn, &mut path.iter().copied(), &mut leaves),
        other => unreachable!("{other:?} has no ops"),
    }
    leaves
}

fn txn_leaves<'c>(txn: &'c Txn<'c>, path: &mut dyn Iterator<Item = bool>, leaves: &mut Vec<Leaf<'c>>) {
    for op in branch(txn, path) {
        match op {
            Op::Range(query) => leaves.push(Leaf::Range(query)),
            Op::Put(put) => leaves.push(Leaf::Put(put)),
            Op::DeleteRange(del) => leaves.push(Leaf::Delete(del)),
            Op::Txn(nested) => txn_leaves(nested, path, leaves),
            Op::Unset => unreachable!("the argument check rejects it"),
        }
    }
}

/// The ops of the branch a transaction takes.
pub(super) fn branch<'t, 'c>(txn: &'t Txn<'c>, path: &mut dyn Iterator<Item = bool>) -> &'t [Op<'c>] {
    let succeeded = path.next().expect("the path has one choice for each transaction reached");
    if succeeded { &txn.success } else { &txn.failure }
}

/// What has to be known of the state before a transaction to say which branches it takes and whether it may.
#[derive(Clone, Copy, Debug)]
pub(super) enum Probe<'c> {
    Compare(&'c Compare<'c>),
    Put(&'c Put<'c>),
}

/// All compares and puts, of every level and both branches: a transaction's compares, its success branch, its failure
/// branch.
pub(super) fn probes<'c>(txn: &'c Txn<'c>, probes_out: &mut Vec<Probe<'c>>) {
    probes_out.extend(txn.compares.iter().map(Probe::Compare));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put(put) => probes_out.push(Probe::Put(put)),
            Op::Txn(nested) => probes(nested, probes_out),
            Op::Range(_) | Op::DeleteRange(_) | Op::Unset => {}
        }
    }
}

/// Puts together what shards found of the same probes.
pub(super) fn join(gathered: &mut Gathered, other: &Gathered) {
    if gathered.compares.is_empty() && gathered.puts.is_empty() {
        gathered.clone_from(other);
        return;
    }
    for (seen, other) in gathered.compares.iter_mut().zip(&other.compares) {
        *seen = Compared { found: seen.found || other.found, all: seen.all && other.all };
    }
    for (error, other) in gathered.puts.iter_mut().zip(&other.puts) {
        // A key has one owner, and the others find nothing wrong.
        *error = error.or(*other);
    }
}

/// What there is to gather of a transaction that touches no shard's keys.
pub(super) fn nothing_gathered(txn: &Txn<'_>) -> Gathered {
    let mut all = Vec::new();
    probes(txn, &mut all);
    let compares = all.iter().filter(|probe| matches!(probe, Probe::Compare(_)));
    Gathered { compares: compares.map(|_| Compared::NOTHING).collect(), puts: Vec::new() }
}

/// The branches a transaction takes, one for each transaction it reaches in the order in which it reaches them; or
/// the first precondition on that way that does not hold. `revision` and `compacted` are those before the
/// transaction.
pub(super) fn decide(
    txn: &Txn<'_>,
    gathered: &Gathered,
    revision: i64,
    compacted: i64,
) -> Result<Arc<[bool]>, MvccError> {
    let compares = &mut gathered.compares.iter().copied();
    let mut decision = Decision { compares, puts: &mut gathered.puts.iter().copied(), path: Vec::new(), failed: None };
    decision.visit(txn, true, &|query| check_range(query, revision, compacted));
    match decision.failed {
        Some(error) => Err(error),
        None => Ok(decision.path.into()),
    }
}

struct Decision<'g> {
    compares: &'g mut dyn Iterator<Item = Compared>,
    puts: &'g mut dyn Iterator<Item = Option<MvccError>>,
    path: Vec<bool>,
    failed: Option<MvccError>,
}

impl Decision<'_> {
    /// Consumes the probes of a transaction, and goes by them if it is `reached`.
    fn visit(&mut self, txn: &Txn<'_>, reached: bool, check: &dyn Fn(&RangeQuery<'_>) -> Result<(), MvccError>) {
        let mut succeeded = true;
        for compare in &txn.compares {
            let seen = self.compares.next().expect("one answer for each compare");
            succeeded &= seen.holds(compare);
        }
        if reached {
            self.path.push(succeeded);
        }
        for (ops, is_success) in [(&txn.success, true), (&txn.failure, false)] {
            let is_taken = reached && succeeded == is_success;
            for op in ops {
                let error = match op {
                    Op::Put(_) => self.puts.next().expect("one answer for each put"),
                    Op::Range(query) => check(query).err(),
                    Op::Txn(nested) => {
                        self.visit(nested, is_taken, check);
                        None
                    }
                    Op::DeleteRange(_) | Op::Unset => None,
                };
                if is_taken && self.failed.is_none() {
                    self.failed = error;
                }
            }
        }
    }
}

/// Calls `touch` with every range of keys that a command may read or write, whichever branches it takes.
pub(super) fn touched<'c>(command: &'c Command<'c>, touch: &mut dyn FnMut(&'c [u8], &'c [u8])) {
    match command {
        Command::Put(put) => touch(put.key, b""),
        Command::DeleteRange(del) => touch(del.key, del.range_end),
        Command::Txn(txn) => txn_touched(txn, touch),
        other => unreachable!("{other:?} has no ops"),
    }
}

fn txn_touched<'c>(txn: &'c Txn<'c>, touch: &mut dyn FnMut(&'c [u8], &'c [u8])) {
    txn.compares.iter().for_each(|compare| touch(compare.key, compare.range_end));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(query) => touch(query.key, query.range_end),
            Op::Put(put) => touch(put.key, b""),
            Op::DeleteRange(del) => touch(del.key, del.range_end),
            Op::Txn(nested) => txn_touched(nested, touch),
            Op::Unset => {}
        }
    }
}

/// Whether a command names a revision for which `named` holds: to compare with, to read at, to filter by.
pub(super) fn names_revision(command: &Command<'_>, named: &dyn Fn(i64) -> bool) -> bool {
    match command {
        Command::Txn(txn) => txn_names_revision(txn, named),
        _ => false,
    }
}

fn txn_names_revision(txn: &Txn<'_>, named: &dyn Fn(i64) -> bool) -> bool {
    let in_compare = |compare: &Compare<'_>| match compare.target {
        CompareTarget::Create(revision) | CompareTarget::Mod(revision) => named(revision),
        _ => false,
    };
    let in_op = |op: &Op<'_>| match op {
        Op::Range(query) => [
            query.revision,
            query.min_mod_revision,
            query.max_mod_revision,
            query.min_create_revision,
            query.max_create_revision,
        ]
        .into_iter()
        .any(named),
        Op::Txn(nested) => txn_names_revision(nested, named),
        Op::Put(_) | Op::DeleteRange(_) | Op::Unset => false,
    };
    txn.compares.iter().any(in_compare) || txn.success.iter().chain(&txn.failure).any(in_op)
}
