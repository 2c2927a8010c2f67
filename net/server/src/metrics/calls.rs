//! What the gRPC calls of a core come to: counts, latencies, those that were slow.
//!
//! Owns: counters per method, by code, by client version, and of health probes; the latency histograms fed by calls;
//! the list of slow calls to be logged. Does not know: connections ([`crate::calls`] reports), sockets, the log.
//!
//! Invariants
//! - I1: every call that began ends once, with a code.
//! - I2: whatever clients send, the memory is bounded: versions and slow calls have a greatest number.

use std::collections::BTreeMap;

use trilith_wire::api::methods::{Kind as MethodKind, Method};
use trilith_wire::api::status::Code;

use super::exposition::{Exposition, Kind, Unit, label_value};
use super::histogram::{DEFRAGMENT_BOUNDS, DISK_BOUNDS, HANDLING_BOUNDS, HASH_BOUNDS, Histogram};
use crate::http::Tally;

/// Client versions told apart; further ones count as `unknown`.
const VERSIONS_MAX: usize = 32;
/// The version of a client that states none, or none that can be taken.
const UNKNOWN: &str = "unknown";
/// Slow calls kept for the log in one turn.
const SLOW_MAX: usize = 16;

/// `grpc_code` of each code.
const CODES: [&str; Code::ALL.len()] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Calls whose duration etcd shows by type, with that type.
const REQUEST_TYPES: [(Method, &str); 13] = [
    (Method::Range, "Range"),
    (Method::Put, "Put"),
    (Method::DeleteRange, "DeleteRange"),
    (Method::Txn, "Txn"),
    (Method::Compact, "Compaction"),
    (Method::LeaseGrant, "LeaseGrant"),
    (Method::LeaseRevoke, "LeaseRevoke"),
    (Method::Alarm, "Alarm"),
    (Method::MemberList, "MemberList"),
    (Method::LeaseTimeToLive, "LeaseTimeToLive"),
    (Method::LeaseLeases, "LeaseLeases"),
    (Method::RangeStream, "RangeStream"),
    (Method::Defragment, "Defragment"),
];

/// A call that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedCall {
    /// What was called.
    pub method: Method,
    /// When it arrived.
    pub started: u64,
    /// How it ended.
    pub code: u32,
    /// Length of its request messages.
    pub request_bytes: u64,
    /// Length of its response messages.
    pub response_bytes: u64,
    /// The beginning of its first request message.
    pub beginning: [u8; Self::BEGINNING_BYTES],
}

impl EndedCall {
    /// How much of a request is kept to describe it.
    pub const BEGINNING_BYTES: usize = 48;
}

/// A unary call that took longer than `--warning-unary-request-duration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowCall {
    /// The call.
    pub call: EndedCall,
    /// How long it took, in nanoseconds.
    pub duration: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MethodCounts {
    started: u64,
    received: u64,
    sent: u64,
    handled: [u64; CODES.len()],
}

/// The calls of one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallMetrics {
    methods: Vec<MethodCounts>,
    received_bytes: u64,
    sent_bytes: u64,
    /// Whether the calls are streams, the client's version, and how many there were.
    versions: Vec<(bool, String, u64)>,
    /// `--metrics=extensive`: one per method.
    handling: Vec<Histogram>,
    /// One pair per row of [`REQUEST_TYPES`]: failed, succeeded.
    requests: Vec<[Histogram; 2]>,
    hash: Histogram,
    hash_kv: Histogram,
    defragment: Histogram,
    health: [u64; 2],
    /// By `livez` or `readyz` and check: whether it passed last, failures, successes.
    checks: BTreeMap<(&'static str, &'static str), (bool, [u64; 2])>,
    slow_after: u64,
    slow: Vec<SlowCall>,
}

impl CallMetrics {
    /// Counts calls; those longer than `slow_after` nanoseconds are to be logged.
    #[must_use]
    pub fn new(is_extensive: bool, slow_after: u64) -> Self {
        let handling = if is_extensive { Method::COUNT } else { 0 };
        let durations = || Histogram::new(DISK_BOUNDS);
        Self {
            methods: vec![MethodCounts::default(); Method::COUNT],
            received_bytes: 0,
            sent_bytes: 0,
            versions: Vec::new(),
            handling: vec![Histogram::new(HANDLING_BOUNDS); handling],
            requests: REQUEST_TYPES.iter().map(|_| [durations(), durations()]).collect(),
            hash: Histogram::new(HASH_BOUNDS),
            hash_kv: Histogram::new(HASH_BOUNDS),
            defragment: Histogram::new(DEFRAGMENT_BOUNDS),
            health: [0; 2],
            checks: BTreeMap::new(),
            slow_after,
            slow: Vec::new(),
        }
    }

    /// Calls began, by a client of this version (nothing: it did not say).
    pub fn observe_start(&mut self, method: Method, version: &[u8], times: u64) {
        self.methods[method as usize].started += times;
        let is_stream = method.kind() != MethodKind::Unary;
        let is_sane = (1..=32).contains(&version.len()) && version.iter().all(u8::is_ascii_graphic);
        let version = std::str::from_utf8(version).ok().filter(|_| is_sane).unwrap_or(UNKNOWN);
        self.observe_version(is_stream, version, times);
    }

    fn observe_version(&mut self, is_stream: bool, version: &str, times: u64) {
        let place = |versions: &[(bool, String, u64)], version: &str| {
            versions.iter().position(|(stream, known, _)| *stream == is_stream && known == version)
        };
        let found = place(&self.versions, version).or_else(|| {
            let is_full = self.versions.len() >= VERSIONS_MAX;
            place(&self.versions, UNKNOWN).filter(|_| is_full)
        });
        match found {
            Some(position) => self.versions[position].2 += times,
            None if self.versions.len() >= VERSIONS_MAX => self.versions.push((is_stream, UNKNOWN.to_owned(), times)),
            None => self.versions.push((is_stream, version.to_owned(), times)),
        }
    }

    /// Messages arrived.
    pub fn observe_received(&mut self, method: Method, messages: u64, bytes: u64) {
        self.methods[method as usize].received += messages;
        self.received_bytes += bytes;
    }

    /// Messages were handed to the connection.
    pub fn observe_sent(&mut self, method: Method, messages: u64, bytes: u64) {
        self.methods[method as usize].sent += messages;
        self.sent_bytes += bytes;
    }

    /// A call is over.
    pub fn observe_end(&mut self, call: &EndedCall, now: u64) {
        let duration = now.saturating_sub(call.started);
        let code = usize::try_from(call.code).unwrap_or(usize::MAX);
        let handled = &mut self.methods[call.method as usize].handled;
        handled[if code < CODES.len() { code } else { Code::Unknown as usize }] += 1;
        if let Some(histogram) = self.handling.get_mut(call.method as usize) {
            histogram.observe(duration);
        }
        let succeeded = code == Code::Ok as usize;
        if let Some(row) = REQUEST_TYPES.iter().position(|(method, _)| *method == call.method) {
            self.requests[row][usize::from(succeeded)].observe(duration);
        }
        match call.method {
            Method::Hash if succeeded => self.hash.observe(duration),
            Method::HashKv if succeeded => self.hash_kv.observe(duration),
            Method::Defragment if succeeded => self.defragment.observe(duration),
            _ => {}
        }
        let is_unary = call.method.kind() == MethodKind::Unary;
        if is_unary && duration > self.slow_after && self.slow.len() < SLOW_MAX {
            self.slow.push(SlowCall { call: *call, duration });
        }
    }

    /// A health probe was answered.
    pub fn observe_probe(&mut self, tally: &Tally) {
        match tally {
            Tally::Nothing => {}
            Tally::Health { ok } => self.health[usize::from(*ok)] += 1,
            Tally::Checks { kind, results } => {
                for (name, ok) in results {
                    let (last, counts) = self.checks.entry((kind, name)).or_default();
                    *last = *ok;
                    counts[usize::from(*ok)] += 1;
                }
            }
        }
    }

    /// Adds the calls of another core, but for those to be logged.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.methods.iter_mut().zip(&other.methods) {
            own.started += more.started;
            own.received += more.received;
            own.sent += more.sent;
            own.handled.iter_mut().zip(&more.handled).for_each(|(count, more)| *count += more);
        }
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        for (is_stream, version, count) in &other.versions {
            self.observe_version(*is_stream, version, *count);
        }
        let pairs = self.requests.iter_mut().zip(&other.requests);
        let requests = pairs.flat_map(|(own, more)| own.iter_mut().zip(more));
        for (own, more) in self.handling.iter_mut().zip(&other.handling).chain(requests) {
            own.merge(more);
        }
        self.hash.merge(&other.hash);
        self.hash_kv.merge(&other.hash_kv);
        self.defragment.merge(&other.defragment);
        self.health.iter_mut().zip(other.health).for_each(|(count, more)| *count += more);
        for (&check, (passed, counts)) in &other.checks {
            // Which core's was the last is not known: a failure is shown rather than a success.
            let (last, own) = self.checks.entry(check).or_insert((true, [0; 2]));
            *last &= passed;
            own.iter_mut().zip(counts).for_each(|(count, more)| *count += more);
        }
    }

    /// The slow calls since the last time.
    pub fn take_slow(&mut self) -> Vec<SlowCall> {
        std::mem::take(&mut self.slow)
    }

    /// Calls that took a sync of the log or a read round and failed for it, as etcd counts failed proposals: commands
    /// that timed out or were refused by the log.
    #[must_use]
    pub fn failed_commands(&self) -> u64 {
        let commands = [Method::Put, Method::DeleteRange, Method::Txn, Method::Compact, Method::Alarm];
        let leases = [Method::LeaseGrant, Method::LeaseRevoke];
        let codes = [Code::Unavailable as usize, Code::ResourceExhausted as usize];
        let of = |method: &Method| codes.iter().map(|&code| self.methods[*method as usize].handled[code]).sum::<u64>();
        commands.iter().chain(&leases).map(of).sum()
    }

    fn is_defragmenting(&self) -> bool {
        let counts = &self.methods[Method::Defragment as usize];
        counts.started > counts.handled.iter().sum()
    }

    pub(crate) fn render(&self, out: &mut Exposition) {
        self.render_grpc(out);
        self.render_durations(out);
        self.render_probes(out);
        let name = "etcd_server_client_requests_total";
        out.family(name, Kind::Counter, "Calls by the API version that the client states.");
        for (is_stream, version, count) in &self.versions {
            let kind = if *is_stream { "stream" } else { "unary" };
            out.sample(name, &format!("client_api_version=\"{}\",type=\"{kind}\"", label_value(version)), count);
        }
        let name = "etcd_network_client_grpc_received_bytes_total";
        out.counter(name, "Bytes of request messages.", self.received_bytes);
        let name = "etcd_network_client_grpc_sent_bytes_total";
        out.counter(name, "Bytes of response messages.", self.sent_bytes);
    }

    fn render_grpc(&self, out: &mut Exposition) {
        let labels: Vec<String> = Method::all().map(labels).collect();
        let mut plain = |name: &str, help: &str, value: fn(&MethodCounts) -> u64| {
            out.family(name, Kind::Counter, help);
            for (labels, counts) in labels.iter().zip(&self.methods) {
                out.sample(name, labels, value(counts));
            }
        };
        plain("grpc_server_started_total", "Calls that began.", |counts| counts.started);
        plain("grpc_server_msg_received_total", "Request messages.", |counts| counts.received);
        plain("grpc_server_msg_sent_total", "Response messages.", |counts| counts.sent);
        let name = "grpc_server_handled_total";
        out.family(name, Kind::Counter, "Calls that ended, by code.");
        let mut with_code = String::new();
        for (labels, counts) in labels.iter().zip(&self.methods) {
            for (code, count) in CODES.iter().zip(counts.handled) {
                with_code.clear();
                for part in ["grpc_code=\"", code, "\",", labels] {
                    with_code.push_str(part);
                }
                out.sample(name, &with_code, count);
            }
        }
        if !self.handling.is_empty() {
            let name = "grpc_server_handling_seconds";
            out.family(name, Kind::Histogram, "Time from a call's arrival to its end.");
            for (labels, histogram) in labels.iter().zip(&self.handling) {
                out.buckets(name, labels, Unit::Seconds, histogram);
            }
        }
    }

    fn render_durations(&self, out: &mut Exposition) {
        let name = "etcd_server_request_duration_seconds";
        out.family(name, Kind::Histogram, "Time from a request's arrival to its answer, by type.");
        for ((_, kind), both) in REQUEST_TYPES.iter().zip(&self.requests) {
            for (success, histogram) in [false, true].into_iter().zip(both) {
                if histogram.count() > 0 {
                    let labels = format!("success=\"{success}\",type=\"{kind}\"");
                    out.buckets(name, &labels, Unit::Seconds, histogram);
                }
            }
        }
        let name = "etcd_mvcc_hash_duration_seconds";
        out.histogram(name, "Time of Hash calls.", Unit::Seconds, &self.hash);
        let name = "etcd_mvcc_hash_rev_duration_seconds";
        out.histogram(name, "Time of HashKV calls.", Unit::Seconds, &self.hash_kv);
        let name = "etcd_disk_backend_defrag_duration_seconds";
        out.histogram(name, "Time of Defragment calls.", Unit::Seconds, &self.defragment);
        let name = "etcd_disk_defrag_inflight";
        out.gauge(name, "1 while a Defragment call is open.", u8::from(self.is_defragmenting()));
    }

    fn render_probes(&self, out: &mut Exposition) {
        out.counter("etcd_server_health_success", "Answers of /health that said yes.", self.health[1]);
        out.counter("etcd_server_health_failures", "Answers of /health that said no.", self.health[0]);
        let name = "etcd_server_healthcheck";
        out.family(name, Kind::Gauge, "The last result of each check of /livez and /readyz; 1 is success.");
        for ((kind, check), (last, _)) in &self.checks {
            out.sample(name, &format!("name=\"{check}\",type=\"{kind}\""), u8::from(*last));
        }
        let name = "etcd_server_healthchecks_total";
        out.family(name, Kind::Counter, "Results of the checks of /livez and /readyz.");
        for ((kind, check), (_, counts)) in &self.checks {
            for (status, count) in ["error", "success"].into_iter().zip(counts).filter(|(_, count)| **count > 0) {
                out.sample(name, &format!("name=\"{check}\",status=\"{status}\",type=\"{kind}\""), count);
            }
        }
    }
}

fn labels(method: Method) -> String {
    let (name, service, kind) = (method.name(), method.service(), method.kind().label());
    format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(method: Method, code: Code) -> EndedCall {
        let beginning = [0; EndedCall::BEGINNING_BYTES];
        EndedCall { method, started: 10, code: code as u32, request_bytes: 1, response_bytes: 2, beginning }
    }

    fn text(metrics: &CallMetrics) -> String {
        let mut out = Exposition::default();
        metrics.render(&mut out);
        out.finish()
    }

    #[test]
    fn every_method_stands_there_before_its_first_call() {
        let text = text(&CallMetrics::new(false, 0));
        let labels = "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"";
        assert!(text.contains(&format!("grpc_server_started_total{{{labels}}} 0\n")));
        assert!(text.contains(&format!("grpc_server_handled_total{{grpc_code=\"DataLoss\",{labels}}} 0\n")));
        assert!(!text.contains("grpc_server_handling_seconds"), "only when they are asked for");
    }

    #[test]
    fn a_call_counts_by_method_code_and_version() {
        let mut metrics = CallMetrics::new(true, 1_000_000_000);
        metrics.observe_start(Method::Put, b"3.7", 1);
        metrics.observe_received(Method::Put, 1, 20);
        metrics.observe_sent(Method::Put, 1, 30);
        metrics.observe_end(&ended(Method::Put, Code::Ok), 3_000_010);
        metrics.observe_start(Method::Watch, b"", 1);
        metrics.observe_end(&ended(Method::Watch, Code::Canceled), u64::MAX);
        metrics.observe_end(&ended(Method::Range, Code::OutOfRange), 20);
        let text = text(&metrics);
        for line in [
            "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1\n",
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",",
            "{grpc_code=\"OutOfRange\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1\n",
            "{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\",le=\"0.005\"} 1\n",
            "etcd_server_client_requests_total{client_api_version=\"3.7\",type=\"unary\"} 1\n",
            "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"stream\"} 1\n",
            "etcd_network_client_grpc_received_bytes_total 20\n",
            "etcd_network_client_grpc_sent_bytes_total 30\n",
            "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"} 1\n",
            "etcd_server_request_duration_seconds_bucket{success=\"true\",type=\"Put\",le=\"0.004\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} is missing");
        }
        assert_eq!(metrics.take_slow(), [], "a stream may last");
        metrics.observe_end(&ended(Method::Put, Code::Unavailable), 1_000_000_011);
        let slow = metrics.take_slow();
        assert_eq!(slow.iter().map(|slow| slow.duration).collect::<Vec<_>>(), [1_000_000_001]);
        assert_eq!(metrics.failed_commands(), 1);
    }

    #[test]
    fn clients_cannot_fill_memory_with_versions() {
        let mut metrics = CallMetrics::new(false, 0);
        for number in 0..1_000 {
            metrics.observe_start(Method::Put, format!("3.{number}").as_bytes(), 1);
        }
        metrics.observe_start(Method::Put, &[b'x'; 33], 1);
        metrics.observe_start(Method::Put, b"3 7", 1);
        assert!(metrics.versions.len() <= VERSIONS_MAX + 2);
        let unknown = metrics.versions.iter().find(|(_, version, _)| version == UNKNOWN);
        assert_eq!(unknown.map(|(_, _, count)| *count), Some(1_002 - VERSIONS_MAX as u64));
    }

    #[test]
    fn the_calls_of_two_cores_are_added() {
        let (mut one, mut other) = (CallMetrics::new(true, u64::MAX), CallMetrics::new(true, u64::MAX));
        let mut both = one.clone();
        for (metrics, method) in [(&mut one, Method::Put), (&mut other, Method::HashKv), (&mut both, Method::Put)] {
            metrics.observe_start(method, b"3.7", 2);
            metrics.observe_received(method, 2, 20);
            metrics.observe_sent(method, 3, 30);
            metrics.observe_end(&ended(method, Code::Ok), 3_000_010);
            metrics.observe_probe(&Tally::Health { ok: method == Method::Put });
            metrics.observe_probe(&Tally::Checks { kind: "livez", results: vec![("a", method == Method::Put)] });
        }
        both.observe_start(Method::HashKv, b"3.7", 2);
        both.observe_received(Method::HashKv, 2, 20);
        both.observe_sent(Method::HashKv, 3, 30);
        both.observe_end(&ended(Method::HashKv, Code::Ok), 3_000_010);
        both.observe_probe(&Tally::Health { ok: false });
        both.observe_probe(&Tally::Checks { kind: "livez", results: vec![("a", false)] });
        one.merge(&other);
        assert_eq!(one, both);
    }

    #[test]
    fn probes_and_defragmentation() {
        let mut metrics = CallMetrics::new(false, u64::MAX);
        metrics.observe_probe(&Tally::Health { ok: true });
        metrics.observe_probe(&Tally::Health { ok: false });
        metrics.observe_probe(&Tally::Checks { kind: "readyz", results: vec![("data_corruption", false)] });
        metrics.observe_start(Method::Defragment, b"", 1);
        let before = text(&metrics);
        for line in [
            "etcd_server_health_success 1\n",
            "etcd_server_health_failures 1\n",
            "etcd_server_healthcheck{name=\"data_corruption\",type=\"readyz\"} 0\n",
            "etcd_server_healthchecks_total{name=\"data_corruption\",status=\"error\",type=\"readyz\"} 1\n",
            "etcd_disk_defrag_inflight 1\n",
        ] {
            assert!(before.contains(line), "{line} is missing");
        }
        metrics.observe_end(&ended(Method::Defragment, Code::Ok), 400_000_000);
        let after = text(&metrics);
        assert!(after.contains("etcd_disk_defrag_inflight 0\n"));
        assert!(after.contains("etcd_disk_backend_defrag_duration_seconds_bucket{le=\"0.4\"} 1\n"));
    }
}
