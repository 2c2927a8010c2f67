//! The sequencer and the shards: which core evaluates a job.
//!
//! Owns: the choice of a core. Does not know: what a job evaluates, how it travels. That nothing a job reads leaves
//! memory meanwhile is `upkeep`'s.
//!
//! Shards belong to connection cores, one after the other; without those the sequencer evaluates every job itself.

use trilith_engine::shard::ShardId;
use trilith_reactor::Port;

use super::Node;
use crate::front::errands::Errand;

impl Node {
    /// Gives the jobs of a round to the cores of their shards.
    pub(super) fn send_jobs<P: Port>(&mut self, port: &P) {
        while let Some(job) = self.service.replica.poll_job() {
            let ShardId(shard) = job.shard();
            let remotes = self.clients.remotes();
            if remotes.is_empty() {
                self.service.replica.handle_job(job);
            } else {
                let pages = self.disk.share(port);
                remotes[usize::from(shard) % remotes.len()].send_job(Errand { job, pages });
            }
        }
    }
}
