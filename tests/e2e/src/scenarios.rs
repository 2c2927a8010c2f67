//! The list of scenarios. Each is a function from the setup to an outcome, independent of the others: its servers have
//! ports and folders of their own.

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
mod shards;
mod watch;

use anyhow::Result;

use crate::setup::{Outcome, Setup};

/// What a scenario asks of the machine, for whoever runs several at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing may run beside it: it counts what the whole machine does, or its load needs all of it.
    Alone,
    /// Others may run beside it; it takes long.
    Long,
    /// Others may run beside it.
    Short,
}

impl Pace {
    /// How it is written in the list of scenarios.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Long => "long",
            Self::Short => "short",
        }
    }
}

/// A named check of the server from outside.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name, unique.
    pub name: &'static str,
    /// What it asks of the machine.
    pub pace: Pace,
    /// The check.
    pub run: fn(&Setup) -> Result<Outcome>,
}

const fn alone(name: &'static str, run: fn(&Setup) -> Result<Outcome>) -> Scenario {
    Scenario { name, pace: Pace::Alone, run }
}

const fn long(name: &'static str, run: fn(&Setup) -> Result<Outcome>) -> Scenario {
    Scenario { name, pace: Pace::Long, run }
}

const fn short(name: &'static str, run: fn(&Setup) -> Result<Outcome>) -> Scenario {
    Scenario { name, pace: Pace::Short, run }
}

/// All scenarios, quick ones first.
pub const SCENARIOS: &[Scenario] = &[
    short("etcdctl_current_keys", etcdctl::current_keys),
    short("etcdctl_current_cluster", etcdctl::current_cluster),
    short("etcdctl_3_4_keys", etcdctl::old_keys),
    short("etcdctl_3_4_cluster", etcdctl::old_cluster),
    long("etcdctl_get_flags", etcdctl_flags::get),
    long("etcdctl_get_stream", etcdctl_flags::get_stream),
    short("etcdctl_changes", etcdctl_flags::changes),
    long("etcdctl_transactions", etcdctl_flags::transactions),
    short("etcdctl_maintenance", etcdctl_flags::maintenance),
    short("etcdctl_leases", leases::etcdctl_leases),
    short("go_clientv3", clients::go),
    short("python_etcd3", clients::python),
    short("http_health_and_version", http::health_and_version),
    short("http_over_http2", http::over_http2),
    short("unknown_methods", errors::unknown_methods),
    short("absent_methods", errors::absent_methods),
    short("malformed_calls", errors::malformed_calls),
    short("calls_to_refuse", errors::calls_to_refuse),
    short("oversized_requests", errors::oversized_requests),
    short("garbage_bytes", errors::garbage_bytes),
    short("graceful_stop", process::graceful_stop),
    short("second_daemon_on_data_dir", process::second_daemon_on_data_dir),
    short("second_daemon_on_port", process::second_daemon_on_port),
    short("foreign_data_dir", process::foreign_data_dir),
    short("other_flags_later", process::other_flags_later),
    short("bad_command_lines", process::bad_command_lines),
    alone("flushes_at_depth_one", durability::flushes_at_depth_one),
    short("held_writes_hold_answers", durability::held_writes_hold_answers),
    long("h2spec_no_worse_than_etcd", h2spec::no_worse_than_etcd),
    long("lease_calls", leases::lease_calls),
    long("random_requests", kvdiff::random_requests),
    long("hash_kv", kvdiff::hash_kv),
    long("more_than_memory", residency::more_than_memory),
    long("power_cuts", powercut::power_cuts),
    long("disk_errors", powercut::disk_errors),
    long("kill_in_checkpoint", powercut::kill_in_checkpoint),
    long("kill_in_upkeep", powercut::kill_in_upkeep),
    long("power_cut_in_file_changes", powercut::power_cut_in_file_changes),
    short("power_cut_after_answers", regressions::power_cut_after_answers),
    short("tombstone_at_head_compacted", regressions::tombstone_at_head_compacted),
    short("tombstone_at_compaction", regressions::tombstone_at_compaction),
    short("deleted_keys_after_restart", regressions::deleted_keys_after_restart),
    short("disk_full", diskfull::disk_full),
    long("kill_under_load", kill::kill_under_load),
    long("writes_by_shards", shards::writes_by_shards),
    short("watch_from_compacted", watch::watch_from_compacted),
    long("watch_campaign", watch::watch_campaign),
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
