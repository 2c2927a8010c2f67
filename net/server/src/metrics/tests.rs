//! Tests of the text as a whole: against a reader of the exposition format, and against etcd's names.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::surface::Surface;

/// Families of etcd 3.7.3 with one member, as its `/metrics` has them, that this server has too.
const PRESENT: &[(&str, &str)] = &[
    ("etcd_cluster_version", "gauge"),
    ("etcd_debugging_lease_granted_total", "counter"),
    ("etcd_debugging_lease_renewed_total", "counter"),
    ("etcd_debugging_lease_revoked_total", "counter"),
    ("etcd_debugging_lease_ttl_total", "histogram"),
    ("etcd_debugging_mvcc_compact_revision", "gauge"),
    ("etcd_debugging_mvcc_current_revision", "gauge"),
    ("etcd_debugging_mvcc_db_compaction_last", "gauge"),
    ("etcd_debugging_mvcc_events_total", "counter"),
    ("etcd_debugging_mvcc_pending_events_total", "gauge"),
    ("etcd_debugging_mvcc_slow_watcher_total", "gauge"),
    ("etcd_debugging_mvcc_watch_stream_total", "gauge"),
    ("etcd_debugging_mvcc_watcher_total", "gauge"),
    ("etcd_debugging_server_lease_expired_total", "counter"),
    ("etcd_disk_backend_commit_duration_seconds", "histogram"),
    ("etcd_disk_backend_defrag_duration_seconds", "histogram"),
    ("etcd_disk_defrag_inflight", "gauge"),
    ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
    ("etcd_disk_wal_write_bytes_total", "gauge"),
    ("etcd_mvcc_db_open_read_transactions", "gauge"),
    ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
    ("etcd_mvcc_delete_total", "counter"),
    ("etcd_mvcc_hash_duration_seconds", "histogram"),
    ("etcd_mvcc_hash_rev_duration_seconds", "histogram"),
    ("etcd_mvcc_put_total", "counter"),
    ("etcd_mvcc_range_total", "counter"),
    ("etcd_mvcc_txn_total", "counter"),
    ("etcd_network_client_grpc_received_bytes_total", "counter"),
    ("etcd_network_client_grpc_sent_bytes_total", "counter"),
    ("etcd_server_apply_duration_seconds", "histogram"),
    ("etcd_server_client_requests_total", "counter"),
    ("etcd_server_feature_enabled", "gauge"),
    ("etcd_server_has_leader", "gauge"),
    ("etcd_server_health_failures", "counter"),
    ("etcd_server_health_success", "counter"),
    ("etcd_server_healthcheck", "gauge"),
    ("etcd_server_healthchecks_total", "counter"),
    ("etcd_server_heartbeat_send_failures_total", "counter"),
    ("etcd_server_id", "gauge"),
    ("etcd_server_is_leader", "gauge"),
    ("etcd_server_is_learner", "gauge"),
    ("etcd_server_leader_changes_seen_total", "counter"),
    ("etcd_server_learner_promote_successes", "counter"),
    ("etcd_server_proposals_applied_total", "gauge"),
    ("etcd_server_proposals_committed_total", "gauge"),
    ("etcd_server_proposals_failed_total", "counter"),
    ("etcd_server_proposals_pending", "gauge"),
    ("etcd_server_quota_backend_bytes", "gauge"),
    ("etcd_server_range_duration_seconds", "histogram"),
    ("etcd_server_read_indexes_failed_total", "counter"),
    ("etcd_server_request_duration_seconds", "histogram"),
    ("etcd_server_slow_apply_total", "counter"),
    ("etcd_server_slow_read_indexes_total", "counter"),
    ("etcd_server_snapshot_apply_in_progress_total", "gauge"),
    ("etcd_server_version", "gauge"),
    ("grpc_server_handled_total", "counter"),
    ("grpc_server_handling_seconds", "histogram"),
    ("grpc_server_msg_received_total", "counter"),
    ("grpc_server_msg_sent_total", "counter"),
    ("grpc_server_started_total", "counter"),
    ("os_fd_limit", "gauge"),
    ("os_fd_used", "gauge"),
    ("process_cpu_seconds_total", "counter"),
    ("process_max_fds", "gauge"),
    ("process_open_fds", "gauge"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_start_time_seconds", "gauge"),
    ("process_virtual_memory_bytes", "gauge"),
];

/// A reader of the text format: families by name, with their type and samples. Panics on anything malformed.
struct Families<'a>(BTreeMap<&'a str, (&'a str, Vec<Sample<'a>>)>);

/// What follows the family's name, the labels, the value.
type Sample<'a> = (&'a str, &'a str, f64);

impl<'a> Families<'a> {
    fn read(text: &'a str) -> Self {
        let mut families = BTreeMap::new();
        let mut current = "";
        let mut series = BTreeSet::new();
        assert!(text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && !families.contains_key(name), "{line}");
                current = name;
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(name, current, "the type follows the help");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                families.insert(name, (kind, Vec::new()));
                continue;
            }
            let (name_and_labels, value) = line.rsplit_once(' ').expect("a value");
            assert!(series.insert(name_and_labels), "{line} stands twice");
            let (name, labels) = match name_and_labels.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
                None => (name_and_labels, ""),
            };
            check_labels(labels);
            let (kind, samples) = families.get_mut(current).expect("a family before its samples");
            let suffix = name.strip_prefix(current).expect("a sample of the family");
            let allowed: &[&str] = if *kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(allowed.contains(&suffix), "{line}");
            samples.push((suffix, labels, value.parse().expect("a number")));
        }
        Self(families)
    }

    /// Buckets grow, end with the infinite one, and that one is the count.
    fn check_histograms(&self) {
        for (name, (kind, samples)) in &self.0 {
            if *kind != "histogram" {
                continue;
            }
            let mut last: Option<(f64, f64)> = None;
            for (suffix, labels, value) in samples {
                if *suffix != "_bucket" {
                    let (bound, count) = last.expect("buckets before the sum");
                    assert!(bound.is_infinite(), "{name} ends with the infinite bucket");
                    assert!(*suffix == "_sum" || count == *value, "{name}: I1 of histograms");
                    continue;
                }
                let bound = labels.rsplit_once("le=\"").expect("a bound").1.trim_end_matches('"');
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a number") };
                if let Some((earlier, count)) = last.filter(|(earlier, _)| earlier.is_finite()) {
                    assert!(earlier < bound && count <= *value, "{name} {labels}");
                }
                last = Some((bound, *value));
            }
        }
    }
}

fn check_labels(labels: &str) {
    let mut rest = labels;
    while !rest.is_empty() {
        let (name, tail) = rest.split_once("=\"").expect("a quoted value");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{labels}");
        let mut end = None;
        let mut escaped = false;
        for (position, byte) in tail.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    end = Some(position);
                    break;
                }
                _ => {}
            }
        }
        rest = &tail[end.expect("a closing quote") + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

fn text() -> String {
    let mut metrics = Metrics::new(true, 0);
    metrics.turn.observe(700_000);
    metrics.observe_step(StepKind::Reclaim, 400_000);
    let moment = Moment { member_id: 0xab, alarms: vec![(0xab, "NOSPACE")], quota_bytes: -1, ..Moment::default() };
    metrics.render(&FrontMetrics::new(&Surface::default()), &AppliedMetrics::default(), &moment)
}

#[test]
fn the_text_is_well_formed() {
    let text = text();
    let families = Families::read(&text);
    families.check_histograms();
    for line in [
        "etcd_server_id{server_id=\"ab\"} 1\n",
        "etcd_cluster_version{cluster_version=\"3.7\"} 1\n",
        "etcd_debugging_server_alarms{alarm_type=\"NOSPACE\",server_id=\"ab\"} 1\n",
        "etcd_server_quota_backend_bytes 0\n",
        "trilith_turn_cpu_seconds_bucket{le=\"0.00075\"} 1\n",
        "trilith_step_cpu_seconds_bucket{kind=\"reclaim\",le=\"0.0005\"} 1\n",
        "trilith_step_cpu_seconds_count{kind=\"apply\"} 0\n",
        "trilith_turn_cpu_seconds_max 0.0007\n",
    ] {
        assert!(text.contains(line), "{line} is missing");
    }
}

#[test]
fn etcds_families_have_etcds_types() {
    let text = text();
    let families = Families::read(&text);
    for (name, kind) in PRESENT {
        assert_eq!(families.0.get(name).map(|(kind, _)| *kind), Some(*kind), "{name}");
    }
    let ours: Vec<&&str> = families
        .0
        .keys()
        .filter(|name| !name.starts_with("trilith_") && !PRESENT.iter().any(|(known, _)| known == *name))
        .collect();
    assert_eq!(ours, [&"etcd_debugging_server_alarms"], "a family that etcd has only while an alarm is on");
}

#[test]
fn durable_writes_are_timed_from_submission_to_completion() {
    let mut metrics = Metrics::new(false, 0);
    metrics.observe_append(Lsn(7), 4_096, 1_000_000);
    metrics.observe_append(Lsn(8), 8_192, 2_000_000);
    metrics.observe_appended(Lsn(8), 3_000_000);
    metrics.observe_appended(Lsn(7), 6_000_000);
    metrics.observe_appended(Lsn(7), 9_000_000);
    metrics.observe_sync(5, 0);
    metrics.observe_stored(4, 1);
    metrics.observe_stored(5, 1_000_001);
    let text = metrics.render(&FrontMetrics::new(&Surface::default()), &AppliedMetrics::default(), &Moment::default());
    for line in [
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 1\n",
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.008\"} 2\n",
        "etcd_disk_wal_fsync_duration_seconds_sum 0.006\n",
        "etcd_disk_wal_write_bytes_total 12288\n",
        "etcd_disk_backend_commit_duration_seconds_bucket{le=\"0.001\"} 0\n",
        "etcd_disk_backend_commit_duration_seconds_count 1\n",
    ] {
        assert!(text.contains(line), "{line} is missing");
    }
}

#[test]
fn kinds_stand_in_their_own_place() {
    for (position, (kind, _)) in StepKind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, position);
    }
}
