//! The one table of command-line options.
//!
//! Owns: every flag of etcd 3.7 and Trilith's own: name, kind, default, what Trilith does with it, help. The parser,
//! `--help` and the compatibility page read this table. Does not know: how values are combined or checked against
//! each other ([`super`]).
//!
//! Invariants
//! - I1: names are unique; every default parses as its kind (tested).
//! - I2: a flag is never ignored silently: it is used, or accepted with a stated reason, or refused with one.

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
const METRICS: &str = "the metrics endpoint";
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
    used("heartbeat-interval", Kind::Integer { min: 1, max: 10_000 }, "100", "Heartbeat interval in milliseconds."),
    used("election-timeout", Kind::Integer { min: 5, max: 50_000 }, "1000", "Election timeout in milliseconds."),
    inert("initial-election-tick-advance", Kind::Bool, "true", "a single member campaigns at once"),
    used("listen-peer-urls", Kind::Urls, "http://localhost:2380", "URLs to listen on for peer traffic."),
    used("listen-client-urls", Kind::Urls, "http://localhost:2379", "URLs to listen on for client traffic."),
    absent("listen-client-http-urls", Kind::Text, "", "a separate HTTP listener"),
    absent("listen-metrics-urls", Kind::Text, "", METRICS),
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
    inert("backend-bbolt-freelist-type", Kind::Choice(&["map", "array"]), "map", BACKEND),
    used("max-txn-ops", Kind::Integer { min: 0, max: 1 << 20 }, "128", "Most operations in a transaction."),
    used("max-request-bytes", Kind::Integer { min: 1, max: 64 << 20 }, "1572864", "Largest client request in bytes."),
    used(
        "max-concurrent-streams",
        Kind::Integer { min: 1, max: 4_294_967_295 },
        "4294967295",
        "Most concurrent HTTP/2 streams of a connection.",
    ),
    used("grpc-keepalive-min-time", Kind::Duration, "5s", "Shortest interval between client pings."),
    used("grpc-keepalive-interval", Kind::Duration, "2h", "Idle time after which the server pings."),
    used("grpc-keepalive-timeout", Kind::Duration, "20s", "How long the server waits for a ping's answer."),
    used("socket-reuse-port", Kind::Bool, "false", "Set SO_REUSEPORT on listeners."),
    inert("socket-reuse-address", Kind::Bool, "false", "SO_REUSEADDR is always set"),
    inert("raft-read-timeout", Kind::Duration, "5s", "there are no peer connections"),
    inert("raft-write-timeout", Kind::Duration, "5s", "there are no peer connections"),
    absent("auto-compaction-mode", Kind::Choice(&["periodic", "revision"]), "periodic", "automatic compaction"),
    absent("auto-compaction-retention", Kind::Text, "0", "automatic compaction"),
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
    absent("tls-min-version", Kind::Choice(&["TLS1.2", "TLS1.3"]), "TLS1.2", TLS),
    absent("tls-max-version", Kind::Choice(&["", "TLS1.2", "TLS1.3"]), "", TLS),
    absent("cors", Kind::Text, "*", "the JSON gateway"),
    absent("host-whitelist", Kind::Text, "*", "the JSON gateway"),
    absent("enable-grpc-gateway", Kind::Bool, "true", "the JSON gateway"),
    absent("auth-token", Kind::Text, "simple", AUTH),
    absent("auth-token-ttl", COUNT, "300", AUTH),
    absent("bcrypt-cost", COUNT, "10", AUTH),
    absent("enable-pprof", Kind::Bool, "false", "Go's profiler"),
    absent("metrics", Kind::Choice(&["basic", "extensive"]), "basic", METRICS),
    used("logger", Kind::Choice(&["zap"]), "zap", "Name of the log format family; only zap."),
    used("log-level", Kind::Choice(&["debug", "info", "warn", "error", "panic", "fatal"]), "info", "Least level."),
    used("log-format", Kind::Choice(&["json", "console"]), "json", "Log line format."),
    used("log-outputs", Kind::Text, "default", "Comma-separated: default, stderr, stdout or file paths."),
    absent("enable-log-rotation", Kind::Bool, "false", "log rotation"),
    inert(
        "log-rotation-config-json",
        Kind::Text,
        "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}",
        "log rotation cannot be enabled",
    ),
    absent("corrupt-check-time", Kind::Duration, "0s", "comparison between members"),
    inert("compact-hash-check-time", Kind::Duration, "1m", "there are no other members to compare with"),
    inert("compaction-batch-limit", COUNT, "1000", "compaction is logical: it has no batches"),
    inert("compaction-sleep-interval", Kind::Duration, "0s", "compaction is logical: it has no batches"),
    inert("watch-progress-notify-interval", Kind::Duration, "10m", "Watch is not available"),
    inert("warning-apply-duration", Kind::Duration, "100ms", "apply is not timed in this version"),
    inert("warning-unary-request-duration", Kind::Duration, "300ms", "requests are not timed in this version"),
    inert("downgrade-check-time", Kind::Duration, "5s", "Downgrade is not available"),
    inert("bootstrap-defrag-threshold-megabytes", COUNT, "0", "there is no defragmentation at start"),
    absent("max-learners", COUNT, "1", CLUSTER),
    absent("memory-mlock", Kind::Bool, "false", "locking memory"),
    absent("feature-gates", Kind::Text, "", "feature gates"),
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
    inert("discovery-fallback", Kind::Choice(&["exit"]), "exit", "discovery is not available"),
    inert("v2-deprecation", Kind::Choice(&["write-only", "write-only-drop-data", "gone"]), "write-only", "no v2 store"),
    absent("force-new-cluster", Kind::Bool, "false", CLUSTER),
    absent("unsafe-no-fsync", Kind::Bool, "false", "running without durability"),
    absent("config-file", Kind::Text, "", "configuration files"),
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
