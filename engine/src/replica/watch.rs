//! Watches over this replica's keyspace.
//!
//! Owns: the loan of the keyspace, for the pins that walks hold. Does not know: who watches what.

use crate::budget::Budget;
use crate::page_source::{PageSource, Unavailable};
use crate::replica::Replica;
use crate::watch::{CreateWatch, Outlet, StreamKey, WatchStep, Watches};

impl Replica {
    /// See [`Watches::create`].
    pub fn create_watch(&mut self, watches: &mut Watches, stream: StreamKey, create: &CreateWatch<'_>) {
        watches.create(stream, create, &mut self.state.keyspace);
    }

    /// See [`Watches::step`].
    ///
    /// # Errors
    /// See there.
    pub fn step_watches(
        &mut self,
        watches: &mut Watches,
        pages: &dyn PageSource,
        budget: &mut Budget,
        now: u64,
        outlet: &mut dyn Outlet,
    ) -> Result<WatchStep, Unavailable> {
        watches.step(&mut self.state.keyspace, pages, budget, now, outlet)
    }
}
