//! Sorting rows in steps.
//!
//! Owns: a heap of row addresses by any sort target, with the worst row on top, that can be left in the middle of any
//! operation. Does not know: requests, budgets of a step beyond paying for comparisons.
//!
//! A heap and not sorted runs, because its unit of work is one comparison whatever the number of rows, and because with
//! a limit it holds no more rows than the limit. Values are held by their first bytes only; longer ones are read again
//! when those are equal.
//!
//! Invariants
//! - I1: only the place of a sift under way may violate the heap's order; it is settled before anything else.
//! - I2: rows with equal keys stand in the order in which they were pushed.

use std::cmp::Ordering;

use crate::budget::{Budget, Pause, price};
use crate::command::SortTarget;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::outcome::RowView;
use crate::mvcc::view::View;
use crate::store::key_entry::Revision;

/// Rows by sort key.
#[derive(Debug)]
pub(crate) struct SortHeap {
    target: SortTarget,
    descending: bool,
    /// Best rows to keep.
    rows_max: usize,
    heap: Vec<Item>,
    pushed: u64,
    sift: Option<Sift>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    /// Orders like the target, up to ties: an integer in offset form, or the first bytes of the value.
    head: [u64; 2],
    at: Revision,
    order: u64,
}

/// An item on its way.
#[derive(Clone, Copy, Debug)]
enum Sift {
    Up(usize),
    Down(usize),
}

impl SortHeap {
    pub(crate) fn new(target: SortTarget, descending: bool, rows_max: usize) -> Self {
        Self { target, descending, rows_max, heap: Vec::new(), pushed: 0, sift: None }
    }

    /// Makes room for so many rows.
    pub(crate) fn make_room(&mut self, rows: usize) {
        self.heap.reserve_exact(rows.saturating_sub(self.heap.len()));
    }

    /// Takes a row in; `view` holds what the target needs. The worst row leaves if there is one too many.
    /// [`Self::settle`] must follow.
    pub(crate) fn push(&mut self, at: Revision, view: &RowView<'_>) {
        assert!(self.sift.is_none(), "I1: settled before the next push");
        let item = Item { head: head(self.target, view), at, order: self.pushed };
        self.pushed += 1;
        self.sift = Some(Sift::Up(self.heap.len()));
        self.heap.push(item);
    }

    /// Rows inside.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Takes the worst row out. [`Self::settle`] must follow.
    pub(crate) fn pop(&mut self) -> Option<Revision> {
        assert!(self.sift.is_none(), "I1: settled before the next pop");
        if self.heap.is_empty() {
            return None;
        }
        let worst = self.heap.swap_remove(0);
        self.sift = Some(Sift::Down(0));
        Some(worst.at)
    }

    /// Brings the heap in order again.
    pub(crate) fn settle<T: KeyTree>(&mut self, view: &View<'_, T>, budget: &mut Budget) -> Result<(), Pause> {
        while let Some(sift) = self.sift {
            self.sift = match sift {
                Sift::Up(at) => self.sift_up(at, view, budget)?,
                Sift::Down(at) => self.sift_down(at, view, budget)?,
            };
            if self.sift.is_none() && self.heap.len() > self.rows_max {
                let _: Option<Revision> = self.pop();
            }
        }
        Ok(())
    }

    /// One level up.
    fn sift_up<T: KeyTree>(
        &mut self,
        at: usize,
        view: &View<'_, T>,
        budget: &mut Budget,
    ) -> Result<Option<Sift>, Pause> {
        let Some(parent) = at.checked_sub(1).map(|before| before / 2) else { return Ok(None) };
        if !self.is_worse(at, parent, view, budget)? {
            return Ok(None);
        }
        self.heap.swap(at, parent);
        Ok(Some(Sift::Up(parent)))
    }

    /// One level down.
    fn sift_down<T: KeyTree>(
        &mut self,
        at: usize,
        view: &View<'_, T>,
        budget: &mut Budget,
    ) -> Result<Option<Sift>, Pause> {
        let left = 2 * at + 1;
        if left >= self.heap.len() {
            return Ok(None);
        }
        let right_is_worse = left + 1 < self.heap.len() && self.is_worse(left + 1, left, view, budget)?;
        let child = left + usize::from(right_is_worse);
        if !self.is_worse(child, at, view, budget)? {
            return Ok(None);
        }
        self.heap.swap(at, child);
        Ok(Some(Sift::Down(child)))
    }

    /// Whether one item stands behind another in the answer.
    fn is_worse<T: KeyTree>(
        &self,
        left: usize,
        right: usize,
        view: &View<'_, T>,
        budget: &mut Budget,
    ) -> Result<bool, Pause> {
        let (left, right) = (&self.heap[left], &self.heap[right]);
        budget.spend(price::COMPARISON);
        let mut order = left.head.cmp(&right.head);
        if order.is_eq() && self.target == SortTarget::Value {
            let values = [view.value(left.at)?, view.value(right.at)?];
            budget.spend(2 * price::ROW);
            budget.spend_bytes(values[0].len().min(values[1].len()));
            order = values[0].cmp(values[1]);
        }
        let order = if self.descending { order.reverse() } else { order };
        Ok(order.then(left.order.cmp(&right.order)) == Ordering::Greater)
    }
}

fn head(target: SortTarget, view: &RowView<'_>) -> [u64; 2] {
    let number = match target {
        SortTarget::Version => view.version,
        SortTarget::Create => view.create,
        SortTarget::Mod => view.modified,
        SortTarget::Value => return first_bytes(view.value),
        SortTarget::Key | SortTarget::Unknown => unreachable!("keys come in order"),
    };
    [number.cast_unsigned() ^ (1 << 63), 0]
}

/// The first sixteen bytes, zero-padded: orders values up to ties.
fn first_bytes(value: &[u8]) -> [u64; 2] {
    let mut bytes = [0; 16];
    let len = value.len().min(16);
    bytes[..len].copy_from_slice(&value[..len]);
    let bytes = u128::from_be_bytes(bytes);
    [(bytes >> 64) as u64, bytes as u64]
}
