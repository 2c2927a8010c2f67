//! The scrubber's way to store and row log.

use crate::page_source::{Block, PageSource};
use crate::replica::Replica;
use crate::store::{Scrub, ScrubStep};

impl Replica {
    /// What a scrub of the newest checkpoint wants next.
    pub fn scrub_next(&self, scrub: &mut Scrub, pages: &dyn PageSource) -> ScrubStep {
        scrub.next(&self.store, self.state.keyspace.rows(), pages)
    }

    /// What the medium holds where the scrub asked; `None` if it cannot be read. Answers what is rotten.
    pub fn handle_scrubbed(&self, scrub: &mut Scrub, bytes: Option<&[u8]>) -> Vec<Block> {
        scrub.handle_read(&self.store, self.state.keyspace.rows(), bytes)
    }
}
