//! What the applied commands come to.
//!
//! Owns: counts by operation, the changes they made, apply's histogram. Does not know: who asked for a command.
//!
//! The CPU time of a step of apply is shared evenly among the commands applied in it: reading a clock for each would
//! cost more than a put.

use trilith_engine::mvcc::{OpOutcome, TxnOutcome};
use trilith_engine::replica::apply::{ApplyError, Outcome};

use super::exposition::{Exposition, Kind, Unit};
use super::histogram::{APPLY_BOUNDS, Histogram};
use super::streams::LeaseMetrics;

/// `op` of each kind of command; a refused one does not tell its kind.
const OPERATIONS: [&str; 9] = [
    "Put",
    "DeleteRange",
    "Txn",
    "Compaction",
    "Alarm",
    "LeaseGrant",
    "ClusterMemberAttrSet",
    "LeaseRevoke",
    "LeaseCheckpoint",
];
const REFUSED: usize = OPERATIONS.len();

/// Commands applied by one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedMetrics {
    /// Of the running step.
    step: [u64; REFUSED + 1],
    /// One per operation, and one for the refused.
    durations: Vec<Histogram>,
    puts: u64,
    deletes: u64,
    ranges: u64,
    txns: u64,
    slow: u64,
    compacted_at: u64,
    /// Leases.
    pub lease: LeaseMetrics,
}

impl Default for AppliedMetrics {
    fn default() -> Self {
        Self {
            step: [0; REFUSED + 1],
            durations: vec![Histogram::new(APPLY_BOUNDS); REFUSED + 1],
            puts: 0,
            deletes: 0,
            ranges: 0,
            txns: 0,
            slow: 0,
            compacted_at: 0,
            lease: LeaseMetrics::default(),
        }
    }
}

impl AppliedMetrics {
    /// A command was applied. `wall_now`: nanoseconds since the Unix epoch.
    pub fn observe(&mut self, result: &Result<Outcome, ApplyError>, wall_now: u64) {
        let operation = match result {
            Err(_) => REFUSED,
            Ok(Outcome::Put(_)) => {
                self.puts += 1;
                0
            }
            Ok(Outcome::DeleteRange(delete)) => {
                self.deletes += u64::from(delete.deleted > 0);
                1
            }
            Ok(Outcome::Txn(txn)) => {
                self.txns += 1;
                self.observe_txn(txn);
                2
            }
            Ok(Outcome::Compact(_)) => {
                self.compacted_at = wall_now / 1_000_000_000;
                3
            }
            Ok(Outcome::Alarm { .. }) => 4,
            Ok(Outcome::LeaseGrant { ttl, .. }) => {
                self.lease.observe_granted(*ttl);
                5
            }
            Ok(Outcome::Published) => 6,
            Ok(Outcome::LeaseEnd { .. }) => {
                self.lease.ended += 1;
                7
            }
            Ok(Outcome::LeaseCheckpoint { .. }) => 8,
        };
        self.step[operation] += 1;
    }

    fn observe_txn(&mut self, txn: &TxnOutcome) {
        for response in &txn.responses {
            match response {
                OpOutcome::Range(_) => self.ranges += 1,
                OpOutcome::Put(_) => self.puts += 1,
                OpOutcome::DeleteRange(delete) => self.deletes += u64::from(delete.deleted > 0),
                OpOutcome::Txn(nested) => self.observe_txn(nested),
            }
        }
    }

    /// The step in which those commands were applied is over; it took so much CPU time.
    pub fn handle_step_end(&mut self, nanoseconds: u64) {
        let commands: u64 = self.step.iter().sum();
        if commands == 0 {
            return;
        }
        for (histogram, count) in self.durations.iter_mut().zip(std::mem::take(&mut self.step)) {
            histogram.observe_many(nanoseconds / commands, count);
        }
    }

    /// A range outside of a writing transaction was evaluated.
    pub fn observe_ranges(&mut self, ranges: u64) {
        self.ranges += ranges;
    }

    /// A command took longer than `--warning-apply-duration`.
    pub fn observe_slow(&mut self) {
        self.slow += 1;
    }

    pub(super) fn render(&self, out: &mut Exposition) {
        let name = "etcd_server_apply_duration_seconds";
        out.family(name, Kind::Histogram, "CPU time of applying a command, shared evenly within a step.");
        let operations = OPERATIONS.iter().chain(&["Unknown"]);
        for (position, (operation, histogram)) in operations.zip(&self.durations).enumerate() {
            if histogram.count() > 0 {
                let success = position != REFUSED;
                let labels = format!("op=\"{operation}\",success=\"{success}\",version=\"v3\"");
                out.buckets(name, &labels, Unit::Seconds, histogram);
            }
        }
        out.counter("etcd_server_slow_apply_total", "Commands that took too long to apply.", self.slow);
        out.counter("etcd_mvcc_put_total", "Puts applied, in transactions too.", self.puts);
        out.counter("etcd_mvcc_delete_total", "Deletes applied that found something.", self.deletes);
        out.counter("etcd_mvcc_range_total", "Ranges evaluated.", self.ranges);
        out.counter("etcd_mvcc_txn_total", "Writing transactions applied.", self.txns);
        let name = "etcd_debugging_mvcc_db_compaction_last";
        out.gauge(name, "Unix time of the last compaction since the start; 0 before.", self.compacted_at);
        self.lease.render(out);
    }
}

#[cfg(test)]
mod tests {
    use trilith_engine::mvcc::{DeleteOutcome, MvccError, PutOutcome};

    use super::*;

    #[test]
    fn a_step_is_shared_among_its_commands() {
        let mut metrics = AppliedMetrics::default();
        let put = PutOutcome { revision: 2, prev: None };
        let delete = |deleted| DeleteOutcome { revision: 3, deleted, prev: Vec::new() };
        let nested = TxnOutcome { revision: 0, succeeded: true, responses: vec![OpOutcome::DeleteRange(delete(2))] };
        let txn =
            TxnOutcome { revision: 4, succeeded: true, responses: vec![OpOutcome::Put(put), OpOutcome::Txn(nested)] };
        metrics.observe(&Ok(Outcome::Put(put)), 0);
        metrics.observe(&Ok(Outcome::DeleteRange(delete(0))), 0);
        metrics.observe(&Ok(Outcome::Txn(txn)), 0);
        metrics.observe(&Err(ApplyError::Mvcc(MvccError::KeyNotFound)), 0);
        metrics.handle_step_end(800_000);
        metrics.handle_step_end(1);
        let mut out = Exposition::default();
        metrics.render(&mut out);
        let text = out.finish();
        for line in [
            "seconds_bucket{op=\"Put\",success=\"true\",version=\"v3\",le=\"0.0001\"} 0\n",
            "seconds_bucket{op=\"Put\",success=\"true\",version=\"v3\",le=\"0.0002\"} 1\n",
            "seconds_sum{op=\"Txn\",success=\"true\",version=\"v3\"} 0.0002\n",
            "seconds_count{op=\"Unknown\",success=\"false\",version=\"v3\"} 1\n",
            "etcd_mvcc_put_total 2\n",
            "etcd_mvcc_delete_total 1\n",
            "etcd_mvcc_txn_total 1\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn the_last_compaction_has_its_time() {
        let mut metrics = AppliedMetrics::default();
        let compact = trilith_engine::mvcc::CompactOutcome { revision: 9 };
        metrics.observe(&Ok(Outcome::Compact(compact)), 1_700_000_000_999_999_999);
        let mut out = Exposition::default();
        metrics.render(&mut out);
        let text = out.finish();
        assert!(text.contains("etcd_debugging_mvcc_db_compaction_last 1700000000\n"), "{text}");
    }
}
