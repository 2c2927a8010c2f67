//! The list of scenarios. Each is a function from the setup to an outcome, independent of the others.

mod clients;
mod diskfull;
mod durability;
mod errors;
mod etcdctl;
mod etcdctl_flags;
mod h2spec;
mod http;
mod kill;
mod kvdiff;
mod leases;
mod powercut;
mod process;
mod regressions;
mod residency;

use anyhow::Result;

use crate::setup::{Outcome, Setup};

/// A named check of the server from outside.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name, unique.
    pub name: &'static str,
    /// The check.
    pub run: fn(&Setup) -> Result<Outcome>,
}

/// All scenarios, quick ones first.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "etcdctl_current_keys", run: etcdctl::current_keys },
    Scenario { name: "etcdctl_current_cluster", run: etcdctl::current_cluster },
    Scenario { name: "etcdctl_3_4_keys", run: etcdctl::old_keys },
    Scenario { name: "etcdctl_3_4_cluster", run: etcdctl::old_cluster },
    Scenario { name: "etcdctl_get_flags", run: etcdctl_flags::get },
    Scenario { name: "etcdctl_get_stream", run: etcdctl_flags::get_stream },
    Scenario { name: "etcdctl_changes", run: etcdctl_flags::changes },
    Scenario { name: "etcdctl_transactions", run: etcdctl_flags::transactions },
    Scenario { name: "etcdctl_maintenance", run: etcdctl_flags::maintenance },
    Scenario { name: "etcdctl_leases", run: leases::etcdctl_leases },
    Scenario { name: "go_clientv3", run: clients::go },
    Scenario { name: "python_etcd3", run: clients::python },
    Scenario { name: "http_health_and_version", run: http::health_and_version },
    Scenario { name: "http_over_http2", run: http::over_http2 },
    Scenario { name: "unknown_methods", run: errors::unknown_methods },
    Scenario { name: "absent_methods", run: errors::absent_methods },
    Scenario { name: "malformed_calls", run: errors::malformed_calls },
    Scenario { name: "calls_to_refuse", run: errors::calls_to_refuse },
    Scenario { name: "oversized_requests", run: errors::oversized_requests },
    Scenario { name: "garbage_bytes", run: errors::garbage_bytes },
    Scenario { name: "graceful_stop", run: process::graceful_stop },
    Scenario { name: "second_daemon_on_data_dir", run: process::second_daemon_on_data_dir },
    Scenario { name: "second_daemon_on_port", run: process::second_daemon_on_port },
    Scenario { name: "foreign_data_dir", run: process::foreign_data_dir },
    Scenario { name: "bad_command_lines", run: process::bad_command_lines },
    Scenario { name: "flushes_at_depth_one", run: durability::flushes_at_depth_one },
    Scenario { name: "held_writes_hold_answers", run: durability::held_writes_hold_answers },
    Scenario { name: "h2spec_no_worse_than_etcd", run: h2spec::no_worse_than_etcd },
    Scenario { name: "lease_calls", run: leases::lease_calls },
    Scenario { name: "random_requests", run: kvdiff::random_requests },
    Scenario { name: "hash_kv", run: kvdiff::hash_kv },
    Scenario { name: "more_than_memory", run: residency::more_than_memory },
    Scenario { name: "power_cuts", run: powercut::power_cuts },
    Scenario { name: "disk_errors", run: powercut::disk_errors },
    Scenario { name: "kill_in_checkpoint", run: powercut::kill_in_checkpoint },
    Scenario { name: "kill_in_upkeep", run: powercut::kill_in_upkeep },
    Scenario { name: "power_cut_in_file_changes", run: powercut::power_cut_in_file_changes },
    Scenario { name: "power_cut_after_answers", run: regressions::power_cut_after_answers },
    Scenario { name: "tombstone_at_head_compacted", run: regressions::tombstone_at_head_compacted },
    Scenario { name: "tombstone_at_compaction", run: regressions::tombstone_at_compaction },
    Scenario { name: "deleted_keys_after_restart", run: regressions::deleted_keys_after_restart },
    Scenario { name: "disk_full", run: diskfull::disk_full },
    Scenario { name: "kill_under_load", run: kill::kill_under_load },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
