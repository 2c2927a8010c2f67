//! The one table of command-line options.
//!
//! Owns: every flag of etcd 3.7 and Trilith's own: name, kind, default, what Trilith does with it, help. The parser,
//! `--help` and the compatibility page read this table. Does not know: how values are combined or checked against
//! each other ([`super`]).
//!
//! Invariants
//! - I1: names are unique; every default parses as its kind (tested).
//! - I2: a flag is never ignored silently: it is used, or accepted with a stated reason, or refused with one.

use trilith_engine::shard::SHARDS_MAX;

/// What a flag's text must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Go's boolean words; alone it means true.
    Bool,
    /// A decimal integer within bounds.
    Integer {
        /// Smallest legal value.
        min: i64,
        /// Largest legal value.
        max: i64,
    },
    /// A Go duration such as `1m30s`.
    Duration,
    /// A comma-separated list of `scheme://host:port`.
    Urls,
    /// The same, or nothing.
    OptionalUrls,
    /// `Name=bool` of feature gates, comma-separated.
    Gates,
    /// One of the listed words.
    Choice(&'static [&'static str]),
}

/// What Trilith does with a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It has its effect.
    Used,
    /// Accepted at any value; the text says why it has nothing to act on here.
    Inert(&'static str),
    /// Refused at any value but its default; the text names what is absent.
    Absent(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Name without dashes; the environment variable is `ETCD_` and the name in capitals with underscores.
    pub name: &'static str,
    /// Its syntax.
    pub kind: Kind,
    /// Its default, as text.
    pub default: &'static str,
    /// What becomes of it.
    pub support: Support,
    /// One line of help.
    pub help: &'static str,
}

const fn used(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, support: Support::Used, help }
}

const fn inert(name: &'static str, kind: Kind, default: &'static str, why: &'static str) -> Flag {
    Flag { name, kind, default, support: Support::Inert(why), help: "" }
}

const fn absent(name: &'static str, kind: Kind, default: &'static str, what: &'static str) -> Flag {
    Flag { name, kind, default, support: Support::Absent(what), help: "" }
}

const COUNT: Kind = Kind::Integer { min: 0, max: i64::MAX };
const NUMBER: Kind = Kind::Integer { min: i64::MIN, max: i64::MAX };

const TLS: &str = "TLS";
const DISCOVERY: &str = "discovery";
const CLUSTER: &str = "clusters of several members";
const AUTH: &str = "authentication";
const TRACING: &str = "tracing";
const BACKEND: &str = "there is no bbolt backend";

/// Every option, in the order of `--help`.
pub const FLAGS: &[Flag] = &[
    used("name", Kind::Text, "default", "Human-readable name of this member."),
    used("data-dir", Kind::Text, "${name}.trilith", "Path to the data directory."),
    absent("wal-dir", Kind::Text, "", "a WAL outside the data directory"),
    inert("snapshot-count", COUNT, "10000", "checkpoints follow the store's own byte and change budgets"),
    inert("snapshot-catchup-entries", COUNT, "5000", "the log kept behind a checkpoint is capped in bytes"),
    inert("max-snapshots", COUNT, "5", "two checkpoints are retained"),
    inert("max-wals", COUNT, "5", "WAL segments are recycled"),
    used("heartbeat-interval", COUNT, "100", "Heartbeat interval in milliseconds."),
    used("election-timeout", COUNT, "1000", "Election timeout in milliseconds."),
    inert("initial-election-tick-advance", Kind::Bool, "true", "a single member campaigns at once"),
    used("listen-peer-urls", Kind::Urls, "http://localhost:2380", "URLs to listen on for peer traffic."),
    used("listen-client-urls", Kind::Urls, "http://localhost:2379", "URLs to listen on for client traffic."),
    used(
        "listen-client-http-urls",
        Kind::OptionalUrls,
        "",
        "URLs for HTTP alone; those of --listen-client-urls then serve gRPC alone.",
    ),
    used("listen-metrics-urls", Kind::OptionalUrls, "", "URLs that serve /metrics, /health, /livez and /readyz alone."),
    used(
        "initial-advertise-peer-urls",
        Kind::Urls,
        "http://localhost:2380",
        "This member's peer URLs as the cluster sees them.",
    ),
    used(
        "advertise-client-urls",
        Kind::Urls,
        "http://localhost:2379",
        "This member's client URLs as clients see them.",
    ),
    used(
        "initial-cluster",
        Kind::Text,
        "default=http://localhost:2380",
        "Initial members as name=url[,name=url]; one member in this version.",
    ),
    used("initial-cluster-state", Kind::Choice(&["new", "existing"]), "new", "Initial cluster state."),
    used("initial-cluster-token", Kind::Text, "etcd-cluster", "Token that enters the identifiers."),
    inert("strict-reconfig-check", Kind::Bool, "true", "membership changes are not available"),
    inert("pre-vote", Kind::Bool, "true", "a single member has nobody to ask"),
    used("quota-backend-bytes", NUMBER, "0", "Size limit of the store in bytes; 0 means 2 GiB, negative none."),
    inert("backend-batch-interval", Kind::Duration, "0s", BACKEND),
    inert("backend-batch-limit", COUNT, "0", BACKEND),
    inert("backend-bbolt-freelist-type", Kind::Text, "map", BACKEND),
    used("max-txn-ops", Kind::Integer { min: 0, max: 1 << 20 }, "128", "Most operations in a transaction."),
    used("max-request-bytes", Kind::Integer { min: 1, max: 64 << 20 }, "1572864", "Largest client request in bytes."),
    used(
        "max-concurrent-streams",
        Kind::Integer { min: 0, max: 4_294_967_295 },
        "4294967295",
        "Most concurrent HTTP/2 streams of a connection; 0 means no limit.",
    ),
    used("grpc-keepalive-min-time", Kind::Duration, "5s", "Shortest interval between client pings."),
    used("grpc-keepalive-interval", Kind::Duration, "2h", "Idle time after which the server pings."),
    used("grpc-keepalive-timeout", Kind::Duration, "20s", "How long the server waits for a ping's answer."),
    used("socket-reuse-port", Kind::Bool, "false", "Set SO_REUSEPORT on listeners."),
    inert("socket-reuse-address", Kind::Bool, "false", "SO_REUSEADDR is always set"),
    inert("raft-read-timeout", Kind::Duration, "5s", "there are no peer connections"),
    inert("raft-write-timeout", Kind::Duration, "5s", "there are no peer connections"),
    used(
        "auto-compaction-mode",
        Kind::Text,
        "periodic",
        "How --auto-compaction-retention counts: periodic or revision.",
    ),
    used(
        "auto-compaction-retention",
        Kind::Text,
        "0",
        "History to keep: hours or a duration (periodic), or a number of revisions; 0 keeps all.",
    ),
    absent("cert-file", Kind::Text, "", TLS),
    absent("key-file", Kind::Text, "", TLS),
    absent("client-cert-file", Kind::Text, "", TLS),
    absent("client-key-file", Kind::Text, "", TLS),
    absent("client-cert-auth", Kind::Bool, "false", TLS),
    absent("client-crl-file", Kind::Text, "", TLS),
    absent("client-cert-allowed-hostname", Kind::Text, "", TLS),
    absent("trusted-ca-file", Kind::Text, "", TLS),
    absent("auto-tls", Kind::Bool, "false", TLS),
    absent("peer-cert-file", Kind::Text, "", TLS),
    absent("peer-key-file", Kind::Text, "", TLS),
    absent("peer-client-cert-file", Kind::Text, "", TLS),
    absent("peer-client-key-file", Kind::Text, "", TLS),
    absent("peer-client-cert-auth", Kind::Bool, "false", TLS),
    absent("peer-trusted-ca-file", Kind::Text, "", TLS),
    absent("peer-cert-allowed-cn", Kind::Text, "", TLS),
    absent("peer-cert-allowed-hostname", Kind::Text, "", TLS),
    absent("peer-auto-tls", Kind::Bool, "false", TLS),
    absent("peer-crl-file", Kind::Text, "", TLS),
    absent("peer-skip-client-san-verification", Kind::Bool, "false", TLS),
    absent("self-signed-cert-validity", COUNT, "1", TLS),
    absent("cipher-suites", Kind::Text, "", TLS),
    absent("tls-min-version", Kind::Text, "TLS1.2", TLS),
    absent("tls-max-version", Kind::Text, "", TLS),
    absent("cors", Kind::Text, "*", "the JSON gateway"),
    absent("host-whitelist", Kind::Text, "*", "the JSON gateway"),
    absent("enable-grpc-gateway", Kind::Bool, "true", "the JSON gateway"),
    absent("auth-token", Kind::Text, "simple", AUTH),
    absent("auth-token-ttl", COUNT, "300", AUTH),
    absent("bcrypt-cost", COUNT, "10", AUTH),
    absent("enable-pprof", Kind::Bool, "false", "Go's profiler"),
    used(
        "metrics",
        Kind::Choice(&["basic", "extensive"]),
        "basic",
        "extensive adds a latency histogram for each method.",
    ),
    used("logger", Kind::Text, "zap", "Name of the log format family; only zap."),
    used("log-level", Kind::Choice(&["", "debug", "info", "warn", "error", "panic", "fatal"]), "info", "Least level."),
    used("log-format", Kind::Text, "json", "Log line format: json or console."),
    used(
        "log-outputs",
        Kind::Text,
        "default",
        "Comma-separated: stderr, stdout, file paths; or default alone, which is stderr.",
    ),
    used("enable-log-rotation", Kind::Bool, "false", "Rotate the log file, of which --log-outputs names one."),
    used(
        "log-rotation-config-json",
        Kind::Text,
        "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}",
        "Rotation: maxsize in MiB, maxage in days, maxbackups in files (0: no limit), localtime in names.",
    ),
    absent("corrupt-check-time", Kind::Duration, "0s", "comparison between members"),
    inert("compact-hash-check-time", Kind::Duration, "1m", "there are no other members to compare with"),
    inert("compaction-batch-limit", COUNT, "1000", "compaction is logical: it has no batches"),
    inert("compaction-sleep-interval", Kind::Duration, "0s", "compaction is logical: it has no batches"),
    used(
        "watch-progress-notify-interval",
        Kind::Duration,
        "10m",
        "Interval of progress notifications to idle watches; at least 100ms, 0 means 10m.",
    ),
    used("warning-apply-duration", Kind::Duration, "100ms", "A command that takes longer to apply is logged."),
    used("warning-unary-request-duration", Kind::Duration, "300ms", "A unary call that takes longer is logged."),
    inert("downgrade-check-time", Kind::Duration, "5s", "Downgrade is not available"),
    inert("bootstrap-defrag-threshold-megabytes", COUNT, "0", "there is no defragmentation at start"),
    absent("max-learners", COUNT, "1", CLUSTER),
    absent("memory-mlock", Kind::Bool, "false", "locking memory"),
    used("feature-gates", Kind::Gates, "", "Feature gates as Name=bool, comma-separated."),
    absent("enable-distributed-tracing", Kind::Bool, "false", TRACING),
    absent("distributed-tracing-address", Kind::Text, "localhost:4317", TRACING),
    absent("distributed-tracing-service-name", Kind::Text, "etcd", TRACING),
    absent("distributed-tracing-instance-id", Kind::Text, "", TRACING),
    absent("distributed-tracing-sampling-rate", COUNT, "0", TRACING),
    absent("discovery-token", Kind::Text, "", DISCOVERY),
    absent("discovery-endpoints", Kind::Text, "", DISCOVERY),
    absent("discovery-dial-timeout", Kind::Duration, "2s", DISCOVERY),
    absent("discovery-request-timeout", Kind::Duration, "5s", DISCOVERY),
    absent("discovery-keepalive-time", Kind::Duration, "2s", DISCOVERY),
    absent("discovery-keepalive-timeout", Kind::Duration, "6s", DISCOVERY),
    absent("discovery-insecure-transport", Kind::Bool, "true", DISCOVERY),
    absent("discovery-insecure-skip-tls-verify", Kind::Bool, "false", DISCOVERY),
    absent("discovery-cert", Kind::Text, "", DISCOVERY),
    absent("discovery-key", Kind::Text, "", DISCOVERY),
    absent("discovery-cacert", Kind::Text, "", DISCOVERY),
    absent("discovery-user", Kind::Text, "", DISCOVERY),
    absent("discovery-password", Kind::Text, "", DISCOVERY),
    absent("discovery-srv", Kind::Text, "", DISCOVERY),
    absent("discovery-srv-name", Kind::Text, "", DISCOVERY),
    inert("discovery-fallback", Kind::Choice(&["exit", "proxy"]), "exit", "discovery is not available"),
    inert("v2-deprecation", Kind::Choice(&["write-only", "write-only-drop-data", "gone"]), "write-only", "no v2 store"),
    absent("force-new-cluster", Kind::Bool, "false", CLUSTER),
    absent("unsafe-no-fsync", Kind::Bool, "false", "running without durability"),
    used("config-file", Kind::Text, "", "YAML or JSON file with the options; flags and variables are ignored then."),
    used(
        "cores",
        Kind::Text,
        "0",
        "Threads that serve: a number, or processors to bind one each to (0,2,3); 0: by the processors at hand.",
    ),
    used(
        "shards",
        Kind::Integer { min: 0, max: SHARDS_MAX as i64 },
        "0",
        "Ranges of keys whose writes cores evaluate beside each other; 0: by the number of cores.",
    ),
    used("cache-bytes", COUNT, "0", "Memory for pages and rows in bytes; 0 means a quarter of the memory available."),
    used("scrub-interval", Kind::Duration, "24h", "Time of one background pass over everything stored; 0 is off."),
    used(
        "wal-discard-from-lsn",
        COUNT,
        "0",
        "Start although the log is damaged, discarding every record from this LSN on (0: refuse to start).",
    ),
];

/// Flags of early releases that etcd still accepts and does nothing with.
pub const LEGACY_IGNORED: &[&str] = &[
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
];

/// What a name of an earlier release stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Successor {
    /// The flag of this name.
    Flag(&'static str),
    /// The feature gate of this name.
    Gate(&'static str),
    /// Nothing any more: accepted with one of these values, refused with others, because the thing is absent.
    Gone(&'static [&'static str], &'static str),
}

use Successor::{Flag as Renamed, Gate as Gated, Gone};

const V2: &str = "the v2 API";

/// Names of earlier releases that unit files and manifests still carry, and what each stands for.
pub const OLD_NAMES: &[(&str, Successor)] = &[
    ("experimental-initial-corrupt-check", Gated("InitialCorruptCheck")),
    ("experimental-compact-hash-check-enabled", Gated("CompactHashCheck")),
    ("experimental-enable-lease-checkpoint", Gated("LeaseCheckpoint")),
    ("experimental-enable-lease-checkpoint-persist", Gated("LeaseCheckpointPersist")),
    ("experimental-txn-mode-write-with-shared-buffer", Gated("TxnModeWriteWithSharedBuffer")),
    ("experimental-stop-grpc-service-on-defrag", Gated("StopGRPCServiceOnDefrag")),
    ("experimental-snapshot-catchup-entries", Renamed("snapshot-catchup-entries")),
    ("experimental-snapshot-catch-up-entries", Renamed("snapshot-catchup-entries")),
    ("experimental-corrupt-check-time", Renamed("corrupt-check-time")),
    ("experimental-compact-hash-check-time", Renamed("compact-hash-check-time")),
    ("experimental-compaction-batch-limit", Renamed("compaction-batch-limit")),
    ("experimental-compaction-sleep-interval", Renamed("compaction-sleep-interval")),
    ("experimental-watch-progress-notify-interval", Renamed("watch-progress-notify-interval")),
    ("experimental-warning-apply-duration", Renamed("warning-apply-duration")),
    ("experimental-warning-unary-request-duration", Renamed("warning-unary-request-duration")),
    ("experimental-memory-mlock", Renamed("memory-mlock")),
    ("experimental-downgrade-check-time", Renamed("downgrade-check-time")),
    ("experimental-bootstrap-defrag-threshold-megabytes", Renamed("bootstrap-defrag-threshold-megabytes")),
    ("experimental-peer-skip-client-san-verification", Renamed("peer-skip-client-san-verification")),
    ("experimental-max-learners", Renamed("max-learners")),
    ("experimental-enable-distributed-tracing", Renamed("enable-distributed-tracing")),
    ("experimental-distributed-tracing-address", Renamed("distributed-tracing-address")),
    ("experimental-distributed-tracing-service-name", Renamed("distributed-tracing-service-name")),
    ("experimental-distributed-tracing-instance-id", Renamed("distributed-tracing-instance-id")),
    ("experimental-distributed-tracing-sampling-rate", Renamed("distributed-tracing-sampling-rate")),
    ("experimental-backend-bbolt-freelist-type", Renamed("backend-bbolt-freelist-type")),
    ("enable-v2", Gone(&["false"], V2)),
    ("experimental-enable-v2v3", Gone(&[""], V2)),
    ("proxy", Gone(&["off"], V2)),
    ("proxy-failure-wait", Gone(&["5000"], V2)),
    ("proxy-refresh-interval", Gone(&["30000"], V2)),
    ("proxy-dial-timeout", Gone(&["1000"], V2)),
    ("proxy-write-timeout", Gone(&["5000"], V2)),
    ("proxy-read-timeout", Gone(&["0"], V2)),
    ("discovery", Gone(&[""], DISCOVERY)),
    ("discovery-proxy", Gone(&[""], DISCOVERY)),
    ("debug", Gone(&["false"], "--debug: say --log-level=debug")),
    ("log-package-levels", Gone(&[""], "log levels of single packages: say --log-level")),
];

/// What an old name stands for, if it is one.
#[must_use]
pub fn successor(name: &str) -> Option<Successor> {
    OLD_NAMES.iter().find(|(old, _)| *old == name).map(|(_, successor)| *successor)
}

/// The table's row of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The environment variable of a flag.
#[must_use]
pub fn environment_name(flag: &str) -> String {
    format!("ETCD_{}", flag.to_uppercase().replace('-', "_"))
}
