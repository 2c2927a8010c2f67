//! How much work a step may do, and why one stopped before its end.
//!
//! Owns: the account of work units and the prices of the usual pieces of work. Does not know: clocks, what is done.
//!
//! The core has no clock, so a step is bounded by units; one is worth about 0.1 us of CPU on the reference machine.
//! Work is paid for after it is done and in pieces of at most one row, so a step exceeds its budget by at most the work
//! of one row, and a step with any budget gets at least one row further.

use crate::page_source::Unavailable;

/// Prices, in units.
pub(crate) mod price {
    /// An entry of the key index that a walk passes.
    pub(crate) const ENTRY: u32 = 4;
    /// A row read by its address: a lookup in the directory or a step along a key's chain.
    pub(crate) const ROW: u32 = 10;
    /// The row behind another one.
    pub(crate) const NEXT_ROW: u32 = 4;
    /// The way down to a key through all layers.
    pub(crate) const SEEK: u32 = 20;
    /// The number of live keys of a range, from the subtree counts of all layers.
    pub(crate) const COUNT: u32 = 40;
    /// A change: evaluated, appended to the row log, installed in the overlay.
    pub(crate) const CHANGE: u32 = 15;
    /// A command of a batch that is given to its shard.
    pub(crate) const PLACE: u32 = 1;
    /// A comparison while sorting.
    pub(crate) const COMPARISON: u32 = 1;
    /// Bytes copied, hashed or compared for one unit.
    pub(crate) const BYTES: usize = 256;
}

/// Work left in a step.
#[derive(Clone, Debug)]
pub struct Budget {
    units: u32,
}

impl Budget {
    /// A budget of so many units; 5,000 are about 500 us.
    #[must_use]
    pub fn new(units: u32) -> Self {
        Self { units: units.min(u32::MAX - 1) }
    }

    /// A budget that is never used up: for recovery and tests.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { units: u32::MAX }
    }

    /// Pays for work done. False: the budget is used up.
    #[inline]
    pub fn spend(&mut self, units: u32) -> bool {
        if self.units != u32::MAX {
            self.units = self.units.saturating_sub(units);
        }
        self.units > 0
    }

    /// Pays for bytes copied, hashed or compared. False: the budget is used up.
    #[inline]
    pub fn spend_bytes(&mut self, bytes: usize) -> bool {
        self.spend(u32::try_from(bytes / price::BYTES).unwrap_or(u32::MAX))
    }

    /// What is left.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.units
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.units == 0
    }

    /// Pays like [`Self::spend`].
    ///
    /// # Errors
    /// The budget is used up.
    #[inline]
    pub(crate) fn charge(&mut self, units: u32) -> Result<(), Pause> {
        if self.spend(units) { Ok(()) } else { Err(Pause::Budget) }
    }
}

/// Why an evaluation stopped before its end; call again with the same arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The budget is used up.
    Budget,
    /// A page is not usable now. The evaluation looked ahead: a page source that takes note of the blocks it answers
    /// `Missing` for knows more of those that will be needed.
    Pages(Unavailable),
}

impl From<Unavailable> for Pause {
    fn from(unavailable: Unavailable) -> Self {
        Self::Pages(unavailable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_and_an_unlimited_one_does_not() {
        let mut budget = Budget::new(5);
        assert!(budget.spend(4) && budget.spend_bytes(255));
        assert!(!budget.spend_bytes(256) && budget.is_used_up());
        assert!(!budget.spend(7), "debts are not kept");
        assert_eq!(Budget::new(u32::MAX).left(), u32::MAX - 1);
        let mut unlimited = Budget::unlimited();
        assert!(unlimited.spend(u32::MAX) && unlimited.spend(u32::MAX));
        assert_eq!(unlimited.charge(u32::MAX), Ok(()));
    }
}
