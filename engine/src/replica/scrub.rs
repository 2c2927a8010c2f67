//! The scrubber's way to log, store and row log.

use trilith_raftlog::wal::{LogScrub, LogSpan};

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

    /// What a pass reads, in bytes, nearly.
    #[must_use]
    pub fn scrubbed_bytes(&self) -> u64 {
        self.store_bytes() + self.raft.log_file_bytes()
    }

    /// What a scrub of the log wants next; `None` at its end.
    pub fn scrub_log_next(&self, scrub: &mut LogScrub) -> Option<LogSpan> {
        scrub.next(&self.raft.durable_segments())
    }

    /// What the medium holds where the scrub of the log asked; `None` if it cannot be read. Answers what is rotten; the
    /// remedy is [`Self::renew_log`].
    pub fn handle_log_scrubbed(&self, scrub: &mut LogScrub, bytes: Option<&[u8]>) -> Option<LogSpan> {
        scrub.handle_read(&self.raft.durable_segments(), bytes)
    }
}
