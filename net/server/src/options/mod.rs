//! The server's options: from arguments, environment or a file to checked values.
//!
//! Owns: precedence (a configuration file alone; else flag, environment, default), etcd's error texts and exit codes,
//! and the rules between options. Does not know: sockets or files (the file's text is handed in); addresses are checked
//! for form only.
//!
//! Invariants
//! - I1: a flag set together with its environment variable is fatal, as in etcd.
//! - I2: a flag whose effect is absent is refused unless it has its default value.
//! - I3: a name of an earlier release means what its successor means, and the log says so.

mod config_file;
pub mod flags;
pub mod gates;
mod log_rotation;
pub mod value;

use std::collections::BTreeMap;
use std::io;

use trilith_reactor::LogRotation;

use crate::auto_compaction::Retention;
use crate::initial::Initial;
use crate::journal::{Format, Level};
use crate::layout::Layout;
use flags::{FLAGS, Kind, LEGACY_IGNORED, OLD_NAMES, Successor, Support};
use gates::{GateSupport, Gates};
use value::Url;

/// Quota that 0 stands for: 2 GiB.
pub const QUOTA_BACKEND_BYTES_DEFAULT: i64 = 2 << 30;

/// Longest election timeout, milliseconds: etcd's.
const ELECTION_TIMEOUT_MS_MAX: u64 = 50_000;

/// What 0 stands for in `--watch-progress-notify-interval`, and the shortest, in nanoseconds: etcd's 10 min and 100 ms.
const WATCH_PROGRESS_INTERVAL_DEFAULT: u64 = 600_000_000_000;
const WATCH_PROGRESS_INTERVAL_MIN: u64 = 100_000_000;

/// Checked options of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Member name.
    pub name: String,
    /// Data directory.
    pub data_dir: String,
    /// Client listeners.
    pub listen_client_urls: Vec<Url>,
    /// Listeners of clients' HTTP; if there are any, those above serve gRPC alone.
    pub listen_client_http_urls: Vec<Url>,
    /// Listeners of metrics and health.
    pub listen_metrics_urls: Vec<Url>,
    /// Peer listeners.
    pub listen_peer_urls: Vec<Url>,
    /// Advertised client URLs, as given.
    pub advertise_client_urls: Vec<String>,
    /// What a new member is made with.
    pub initial: Initial,
    /// Heartbeat interval, milliseconds.
    pub heartbeat_interval_ms: u64,
    /// Election timeout, milliseconds.
    pub election_timeout_ms: u64,
    /// Effective quota in bytes; negative is none.
    pub quota_backend_bytes: i64,
    /// Largest request in bytes.
    pub max_request_bytes: usize,
    /// Most operations of a transaction.
    pub max_txn_ops: usize,
    /// Most concurrent streams of a connection; `u32::MAX` is not advertised.
    pub max_concurrent_streams: u32,
    /// Shortest interval between client pings, nanoseconds.
    pub keepalive_min_time: u64,
    /// Idle time after which the server pings, nanoseconds.
    pub keepalive_interval: u64,
    /// Wait for a ping's answer, nanoseconds.
    pub keepalive_timeout: u64,
    /// `SO_REUSEPORT` on listeners.
    pub socket_reuse_port: bool,
    /// Least log level.
    pub log_level: Level,
    /// Log line format.
    pub log_format: Format,
    /// Log outputs as given.
    pub log_outputs: Vec<String>,
    /// When the log file is set aside; `None`: never.
    pub log_rotation: Option<LogRotation>,
    /// `--metrics=extensive`.
    pub metrics_extensive: bool,
    /// History that automatic compaction keeps.
    pub auto_compaction: Retention,
    /// Interval of progress notifications to idle watches, nanoseconds.
    pub watch_progress_notify_interval: u64,
    /// A command that takes longer to apply is logged, nanoseconds.
    pub warning_apply_duration: u64,
    /// A unary call that takes longer is logged, nanoseconds.
    pub warning_unary_request_duration: u64,
    /// Feature gates.
    pub feature_gates: Gates,
    /// Memory for pages and rows, bytes; 0: a quarter of what is available.
    pub cache_bytes: u64,
    /// Time of one scrub of everything stored, nanoseconds; 0: none.
    pub scrub_interval: u64,
    /// Discard WAL records from this LSN on; `None` refuses a damaged log.
    pub wal_discard_from_lsn: Option<u64>,
    /// The cores of the process; `None`: as the processors at hand suggest.
    pub cores: Option<Layout>,
    /// How many shards; 0: as the cores suggest.
    pub shards: usize,
    /// Things to log once the journal exists.
    pub notes: Vec<Note>,
}

/// A remark of the parser, logged at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// This variable set a flag.
    EnvironmentUsed {
        /// Variable.
        variable: String,
        /// Its value.
        value: String,
    },
    /// An `ETCD_` variable that names no flag: `NAME=value`.
    EnvironmentUnknown(String),
    /// A flag, or a feature gate, that is accepted and has nothing to act on.
    Inert {
        /// Its name.
        flag: &'static str,
        /// Reason.
        why: &'static str,
    },
    /// A name of an earlier release.
    Renamed {
        /// As given.
        old: &'static str,
        /// What to say instead; nothing if it has no successor.
        new: String,
    },
    /// The options come from this file alone.
    ConfigFile(String),
    /// A key of that file that names nothing.
    UnknownKey(String),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run a server.
    Serve(Box<Options>),
    /// Print the help text and exit 0.
    Help,
    /// Print the version and exit 0.
    Version,
}

/// Why the command line cannot be used, with etcd's exit code.
#[derive(Debug, PartialEq, Eq)]
pub enum OptionsError {
    /// Printed as it is, followed by the usage; exit code 2.
    Usage(String),
    /// Logged as `failed to verify flags`; exit code 1.
    Invalid(String),
    /// A flag and its variable are both set; logged at fatal level, exit code 1.
    Shadowed(String),
}

/// Reads arguments (without the program's name) and environment. `read_file` reads a configuration file.
///
/// # Errors
/// See [`OptionsError`].
pub fn parse(
    arguments: &[String],
    environment: &[(String, String)],
    read_file: impl FnOnce(&str) -> io::Result<String>,
) -> Result<Invocation, OptionsError> {
    let mut given = Given::default();
    match read_arguments(arguments, &mut given)? {
        Asked::Help => return Ok(Invocation::Help),
        Asked::Version => return Ok(Invocation::Version),
        Asked::Serve => {}
    }
    let path = given.values.remove("config-file").filter(|path| !path.is_empty()).or_else(|| {
        let variable = environment.iter().find(|(name, _)| name == "ETCD_CONFIG_FILE");
        variable.map(|(_, path)| path.clone()).filter(|path| !path.is_empty())
    });
    let is_file = path.is_some();
    if let Some(path) = path {
        given = read_config_file(path, read_file).map_err(OptionsError::Invalid)?;
    } else {
        read_environment(environment, &mut given)?;
    }
    let Given { values, mut notes, gates } = given;
    for (name, text) in &values {
        let flag = flags::find(name).expect("only table names are collected");
        match flag.support {
            Support::Absent(what) if text != flag.default => {
                return Err(OptionsError::Invalid(format!(
                    "--{name}={text} is refused: this version of trilithd has no support for {what}"
                )));
            }
            Support::Inert(why) => notes.push(Note::Inert { flag: flag.name, why }),
            _ => {}
        }
    }
    let gates = merge_gates(&values, &gates, &mut notes).map_err(OptionsError::Invalid)?;
    build(&values, gates, is_file, notes)
        .map(|options| Invocation::Serve(Box::new(options)))
        .map_err(OptionsError::Invalid)
}

fn read_config_file(path: String, read_file: impl FnOnce(&str) -> io::Result<String>) -> Result<Given, String> {
    let text = read_file(&path).map_err(|error| match error.kind() {
        // Go's words, without the number that Rust adds.
        io::ErrorKind::NotFound => format!("open {path}: no such file or directory"),
        io::ErrorKind::PermissionDenied => format!("open {path}: permission denied"),
        _ => format!("open {path}: {error}"),
    })?;
    let (values, unknown) = config_file::read(&text)?;
    let mut notes = vec![Note::ConfigFile(path)];
    notes.extend(unknown.into_iter().map(Note::UnknownKey));
    Ok(Given { values, notes, gates: BTreeMap::new() })
}

/// The gates of `--feature-gates` and of old flags, which must not name the same.
fn merge_gates(values: &Values, old: &BTreeMap<&'static str, bool>, notes: &mut Vec<Note>) -> Result<Gates, String> {
    let mut list = text_of(values, "feature-gates").to_owned();
    for (gate, is_on) in old {
        if list.split(',').any(|pair| pair.split('=').next().map(str::trim) == Some(gate)) {
            return Err(format!("cannot specify both the feature gate {gate} and the old flag that stands for it"));
        }
        list.push_str(&format!(",{gate}={is_on}"));
    }
    let gates = Gates::parse(&list)?;
    gates.check()?;
    for (gate, _) in gates.all().filter(|(gate, is_on)| *is_on != gate.default) {
        if let GateSupport::Inert(why) = gate.support {
            notes.push(Note::Inert { flag: gate.name, why });
        }
    }
    Ok(gates)
}

/// The text of `--help`.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "Usage:\n\n  trilithd [flags]\n    Start a Trilith server.\n\n  trilithd --version\n    Show the version.\n\n  \
         trilithd -h | --help\n    Show this help.\n\nFlags (also as environment variables: --data-dir is \
         ETCD_DATA_DIR):\n",
    );
    for flag in FLAGS {
        text.push_str(&format!("  --{} '{}'\n", flag.name, flag.default));
        match flag.support {
            Support::Used => text.push_str(&format!("    {}\n", flag.help)),
            Support::Inert(why) => text.push_str(&format!("    Accepted without effect: {why}.\n")),
            Support::Absent(what) => text.push_str(&format!("    Refused unless default: no support for {what}.\n")),
        }
    }
    text.push_str("\nNames of earlier releases:\n");
    for (old, successor) in OLD_NAMES {
        text.push_str(&match successor {
            Successor::Flag(new) => format!("  --{old}\n    Now --{new}.\n"),
            Successor::Gate(gate) => format!("  --{old}\n    Now --feature-gates={gate}=true.\n"),
            Successor::Gone(_, what) => format!("  --{old}\n    Refused unless default: no support for {what}.\n"),
        });
    }
    text
}

/// The lines printed after a usage error.
#[must_use]
pub fn usage() -> &'static str {
    "Usage:\n\n  trilithd [flags]\n    Start a Trilith server.\n\n  trilithd --version\n    Show the version.\n\n  \
     trilithd -h | --help\n    Show the help information about trilithd.\n"
}

enum Asked {
    Serve,
    Help,
    Version,
}

type Values = BTreeMap<&'static str, String>;

/// What was given, before the rules between options.
#[derive(Debug, Default)]
struct Given {
    values: Values,
    /// Gates set by old flags.
    gates: BTreeMap<&'static str, bool>,
    notes: Vec<Note>,
}

/// Go's flag syntax: `-x` or `--x`, `=value` or the next argument, booleans alone mean true, `--` ends flags.
fn read_arguments(arguments: &[String], given: &mut Given) -> Result<Asked, OptionsError> {
    let mut rest = arguments.iter();
    let mut version = false;
    while let Some(argument) = rest.next() {
        let short = || argument.strip_prefix('-').filter(|body| !body.is_empty());
        let Some(body) = argument.strip_prefix("--").or_else(short) else {
            return Err(OptionsError::Invalid(format!("{argument:?} is not a valid flag")));
        };
        if body.is_empty() {
            return match rest.next() {
                Some(extra) => Err(OptionsError::Invalid(format!("{extra:?} is not a valid flag"))),
                None => Ok(Asked::Serve),
            };
        }
        let (name, attached) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        match name {
            "h" | "help" => return Ok(Asked::Help),
            "version" => {
                version = boolean_of("version", attached.unwrap_or("true"))?;
                continue;
            }
            _ => {}
        }
        let legacy = LEGACY_IGNORED.contains(&name);
        let kind = kind_of(name);
        if kind.is_none() && !legacy {
            return Err(OptionsError::Usage(format!("flag provided but not defined: -{name}")));
        }
        let text = match (attached, kind) {
            (Some(text), _) => text.to_owned(),
            // What is ignored takes no argument, as in etcd.
            (None, Some(Kind::Bool) | None) => "true".to_owned(),
            (None, Some(_)) => {
                rest.next().cloned().ok_or_else(|| OptionsError::Usage(format!("flag needs an argument: -{name}")))?
            }
        };
        if kind == Some(Kind::Bool) {
            boolean_of(name, &text)?;
        }
        if !legacy {
            insert(given, name, text, &format!("flag -{name}"))?;
        }
    }
    Ok(if version { Asked::Version } else { Asked::Serve })
}

fn boolean_of(name: &str, text: &str) -> Result<bool, OptionsError> {
    let malformed = || OptionsError::Usage(format!("invalid boolean value {text:?} for -{name}: parse error"));
    value::boolean(text).ok_or_else(malformed)
}

/// The syntax of a present or old name.
fn kind_of(name: &str) -> Option<Kind> {
    if let Some(flag) = flags::find(name) {
        return Some(flag.kind);
    }
    Some(match flags::successor(name)? {
        Successor::Flag(new) => flags::find(new)?.kind,
        Successor::Gate(_) => Kind::Bool,
        // Alone it means true, which is not one of the values accepted, unless it is a word that stands for a boolean.
        Successor::Gone(accepted, _) if accepted == ["false"] => Kind::Bool,
        Successor::Gone(..) => Kind::Text,
    })
}

/// Takes the value of a present or old name; `source` says where it stands.
fn insert(given: &mut Given, name: &str, text: String, source: &str) -> Result<(), OptionsError> {
    let kind = kind_of(name).expect("the caller looked it up");
    value::check(kind, &text)
        .map_err(|reason| OptionsError::Usage(format!("invalid value {text:?} for {source}: {reason}")))?;
    if let Some(flag) = flags::find(name) {
        given.values.insert(flag.name, text);
        return Ok(());
    }
    let (old, successor) = OLD_NAMES.iter().find(|(old, _)| *old == name).expect("the caller looked it up");
    match *successor {
        Successor::Flag(new) => {
            if given.values.insert(new, text).is_some() {
                return Err(OptionsError::Invalid(format!("cannot specify both --{new} and its old name --{old}")));
            }
            given.notes.push(Note::Renamed { old, new: format!("--{new}") });
        }
        Successor::Gate(gate) => {
            let is_on = value::boolean(&text) == Some(true);
            given.gates.insert(gate, is_on);
            given.notes.push(Note::Renamed { old, new: format!("--feature-gates={gate}={is_on}") });
        }
        Successor::Gone(accepted, what) => {
            if !accepted.contains(&text.as_str()) && (kind != Kind::Bool || value::boolean(&text) == Some(true)) {
                return Err(OptionsError::Invalid(format!(
                    "--{old}={text} is refused: this version of trilithd has no support for {what}"
                )));
            }
            given.notes.push(Note::Renamed { old, new: String::new() });
        }
    }
    Ok(())
}

fn read_environment(environment: &[(String, String)], given: &mut Given) -> Result<(), OptionsError> {
    let from_arguments: Vec<&'static str> = given.values.keys().copied().collect();
    let names = FLAGS.iter().map(|flag| flag.name).chain(OLD_NAMES.iter().map(|(old, _)| *old));
    let variables: BTreeMap<String, &'static str> = names.map(|name| (flags::environment_name(name), name)).collect();
    for (variable, text) in environment {
        if !variable.starts_with("ETCD_") || variable == "ETCD_VERSION" {
            continue;
        }
        let Some(name) = variables.get(variable) else {
            given.notes.push(Note::EnvironmentUnknown(format!("{variable}={text}")));
            continue;
        };
        if text.is_empty() {
            continue;
        }
        if from_arguments.contains(name) {
            return Err(OptionsError::Shadowed(variable.clone()));
        }
        insert(given, name, text.clone(), variable).map_err(|error| match error {
            // Unlike a malformed flag, it does not end in the usage.
            OptionsError::Usage(text) => OptionsError::Invalid(text),
            error => error,
        })?;
        given.notes.push(Note::EnvironmentUsed { variable: variable.clone(), value: text.clone() });
    }
    Ok(())
}

fn text_of<'a>(values: &'a Values, name: &str) -> &'a str {
    values.get(name).map_or_else(|| flags::find(name).expect("a table name").default, String::as_str)
}

fn integer_of(values: &Values, name: &str) -> i64 {
    text_of(values, name).parse().expect("checked when it was read")
}

fn unsigned_of(values: &Values, name: &str) -> u64 {
    u64::try_from(integer_of(values, name)).expect("the table's bounds exclude negative values")
}

fn duration_of(values: &Values, name: &str) -> u64 {
    value::duration(text_of(values, name)).expect("checked when it was read")
}

fn strings(list: &str) -> Vec<String> {
    list.split(',').map(|item| item.trim().to_owned()).collect()
}

/// The rules between options, in etcd's order.
fn build(values: &Values, gates: Gates, is_file: bool, notes: Vec<Note>) -> Result<Options, String> {
    let name = text_of(values, "name").to_owned();
    let is_advertised = is_file || values.contains_key("advertise-client-urls");
    if values.contains_key("listen-client-urls") && !is_advertised {
        return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned());
    }
    let (heartbeat_interval_ms, election_timeout_ms) = raft_times(values)?;
    let auto_compaction = retention(values)?;
    if duration_of(values, "compact-hash-check-time") == 0 {
        return Err("--compact-hash-check-time must be >0 (set to 0s)".to_owned());
    }
    let log_format = log_format(values)?;
    if text_of(values, "discovery-fallback") == "proxy" {
        return Err("v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"".to_owned());
    }
    let (log_outputs, log_rotation) = log_outputs(values)?;
    let (listen_client_urls, listen_client_http_urls) = client_urls(values)?;
    let data_dir = values.get("data-dir").filter(|path| !path.is_empty()).cloned();
    let data_dir = data_dir.unwrap_or_else(|| format!("{name}.trilith"));
    let quota = integer_of(values, "quota-backend-bytes");
    let discard = unsigned_of(values, "wal-discard-from-lsn");
    Ok(Options {
        data_dir,
        listen_client_urls,
        listen_client_http_urls,
        listen_metrics_urls: optional_listen_urls(text_of(values, "listen-metrics-urls"))?,
        listen_peer_urls: listen_urls(text_of(values, "listen-peer-urls"))?,
        advertise_client_urls: strings(text_of(values, "advertise-client-urls")),
        initial: initial(values, &name),
        heartbeat_interval_ms,
        election_timeout_ms,
        quota_backend_bytes: if quota == 0 { QUOTA_BACKEND_BYTES_DEFAULT } else { quota },
        max_request_bytes: usize::try_from(unsigned_of(values, "max-request-bytes")).expect("bounded by the table"),
        max_txn_ops: usize::try_from(unsigned_of(values, "max-txn-ops")).expect("bounded by the table"),
        max_concurrent_streams: match unsigned_of(values, "max-concurrent-streams") {
            0 => u32::MAX,
            streams => u32::try_from(streams).expect("bounded by the table"),
        },
        keepalive_min_time: duration_of(values, "grpc-keepalive-min-time"),
        keepalive_interval: duration_of(values, "grpc-keepalive-interval"),
        keepalive_timeout: duration_of(values, "grpc-keepalive-timeout"),
        socket_reuse_port: value::boolean(text_of(values, "socket-reuse-port")) == Some(true),
        log_level: Level::parse(text_of(values, "log-level")).unwrap_or(Level::Info),
        log_format,
        log_outputs,
        log_rotation,
        metrics_extensive: text_of(values, "metrics") == "extensive",
        auto_compaction,
        watch_progress_notify_interval: match duration_of(values, "watch-progress-notify-interval") {
            0 => WATCH_PROGRESS_INTERVAL_DEFAULT,
            interval => interval.max(WATCH_PROGRESS_INTERVAL_MIN),
        },
        warning_apply_duration: duration_of(values, "warning-apply-duration"),
        warning_unary_request_duration: duration_of(values, "warning-unary-request-duration"),
        feature_gates: gates,
        cache_bytes: unsigned_of(values, "cache-bytes"),
        scrub_interval: duration_of(values, "scrub-interval"),
        wal_discard_from_lsn: (discard > 0).then_some(discard),
        cores: Layout::parse(text_of(values, "cores"))?,
        shards: usize::try_from(unsigned_of(values, "shards")).map_err(|_| "--shards: too many".to_owned())?,
        name,
        notes,
    })
}

/// Heartbeat interval and election timeout in milliseconds, within etcd's limits.
fn raft_times(values: &Values) -> Result<(u64, u64), String> {
    let heartbeat_interval_ms = unsigned_of(values, "heartbeat-interval");
    let election_timeout_ms = unsigned_of(values, "election-timeout");
    for (flag, milliseconds) in
        [("heartbeat-interval", heartbeat_interval_ms), ("election-timeout", election_timeout_ms)]
    {
        if milliseconds == 0 {
            return Err(format!("--{flag} must be >0 (set to 0ms)"));
        }
    }
    if heartbeat_interval_ms.saturating_mul(5) > election_timeout_ms {
        return Err(format!(
            "--election-timeout[{election_timeout_ms}ms] should be at least as 5 times as \
             --heartbeat-interval[{heartbeat_interval_ms}ms]"
        ));
    }
    if election_timeout_ms > ELECTION_TIMEOUT_MS_MAX {
        return Err(format!(
            "--election-timeout[{election_timeout_ms}ms] is too long, and should be set less than \
             {ELECTION_TIMEOUT_MS_MAX}ms"
        ));
    }
    Ok((heartbeat_interval_ms, election_timeout_ms))
}

/// `--auto-compaction-retention`: a bare number is hours, or revisions; all else a duration, whose nanoseconds are
/// revisions in etcd too.
fn retention(values: &Values) -> Result<Retention, String> {
    let mode = text_of(values, "auto-compaction-mode");
    if mode != "periodic" && mode != "revision" {
        return Err(format!("unknown auto-compaction-mode {mode:?}"));
    }
    let text = text_of(values, "auto-compaction-retention");
    // Nothing given is nothing kept beyond need, as in etcd.
    let number: Option<u64> = if text.is_empty() { Some(0) } else { text.parse().ok() };
    let malformed = |what: &str| format!("error parsing CompactionRetention: time: {what} {text:?}");
    let amount = match number {
        Some(hours) if mode == "periodic" => {
            hours.checked_mul(3_600_000_000_000).ok_or_else(|| malformed("too long a"))?
        }
        Some(revisions) => revisions,
        None => value::duration(text).ok_or_else(|| match text.parse::<f64>() {
            Ok(_) => malformed("missing unit in duration"),
            Err(_) => malformed("invalid duration"),
        })?,
    };
    Ok(match (amount, mode) {
        (0, _) => Retention::All,
        (_, "periodic") => Retention::Period(amount),
        _ => Retention::Revisions(amount),
    })
}

/// `--logger` and `--log-format`, with etcd's words where they say what is not.
fn log_format(values: &Values) -> Result<Format, String> {
    match text_of(values, "logger") {
        "zap" => {}
        "capnslog" => return Err("--logger=capnslog is removed in v3.5".to_owned()),
        other => return Err(format!("unknown logger option {other:?}")),
    }
    match text_of(values, "log-format") {
        "" | "json" => Ok(Format::Json),
        "console" => Ok(Format::Console),
        other => Err(format!("unknown log format: {other}, supported values json, console")),
    }
}

/// Where records go, and when a file is set aside.
fn log_outputs(values: &Values) -> Result<(Vec<String>, Option<LogRotation>), String> {
    let outputs = strings(text_of(values, "log-outputs"));
    let is_file = |output: &String| !matches!(output.as_str(), "default" | "stderr" | "stdout");
    if let Some(journal) = outputs.iter().find(|output| output.as_str() == "systemd/journal") {
        return Err(format!(
            "--log-outputs={journal} is refused: a service's standard error goes to the journal, say stderr"
        ));
    }
    if outputs.len() > 1 && outputs.iter().any(|output| output == "default") {
        return Err("multi logoutput for \"default\" is not supported yet".to_owned());
    }
    if outputs.iter().any(String::is_empty) {
        return Err("--log-outputs names an empty path".to_owned());
    }
    if value::boolean(text_of(values, "enable-log-rotation")) != Some(true) {
        return Ok((outputs, None));
    }
    if outputs.iter().filter(|output| is_file(output)).count() != 1 || outputs.len() != 1 {
        return Err("--log-outputs requires a single file path when --log-rotate-config-json is defined".to_owned());
    }
    let rotation = log_rotation::parse(text_of(values, "log-rotation-config-json"))?;
    Ok((outputs, Some(rotation)))
}

/// What a new member is made with; whether there is one already shows later.
fn initial(values: &Values, name: &str) -> Initial {
    let peer_urls = strings(text_of(values, "initial-advertise-peer-urls"));
    Initial {
        cluster_fault: check_initial_cluster(values, name, &peer_urls).err(),
        peer_urls,
        peer_urls_are_given: values.contains_key("initial-advertise-peer-urls"),
        cluster: values.get("initial-cluster").cloned(),
        token: text_of(values, "initial-cluster-token").to_owned(),
        token_is_given: values.contains_key("initial-cluster-token"),
        is_joining: text_of(values, "initial-cluster-state") == "existing",
    }
}

/// `--initial-cluster` must name this member, and its URLs must be the advertised ones. Its default follows the name.
fn check_initial_cluster(values: &Values, name: &str, peer_urls: &[String]) -> Result<(), String> {
    let Some(cluster) = values.get("initial-cluster") else {
        return Ok(());
    };
    let mut own = Vec::new();
    for pair in cluster.split(',') {
        let (member, url) = pair.split_once('=').ok_or_else(|| {
            format!("error setting up initial cluster: expected name=url in --initial-cluster, got {pair:?}")
        })?;
        if member.trim() == name {
            own.push(url.trim().to_owned());
        } else if own.is_empty() && !cluster.split(',').any(|p| p.split('=').next().map(str::trim) == Some(name)) {
            return Err(format!("couldn't find local name \"{name}\" in the initial cluster configuration"));
        } else {
            return Err(format!(
                "--initial-cluster names {member:?} beside {name:?}: this version of trilithd has no support for \
                 clusters of several members"
            ));
        }
    }
    own.sort_unstable();
    let mut advertised = peer_urls.to_vec();
    advertised.sort_unstable();
    if own != advertised {
        return Err(format!(
            "--initial-cluster has {name}={} but missing from --initial-advertise-peer-urls={}",
            own.join(","),
            advertised.join(",")
        ));
    }
    Ok(())
}

/// The listeners of clients, and of their HTTP.
fn client_urls(values: &Values) -> Result<(Vec<Url>, Vec<Url>), String> {
    let mut clients = Vec::new();
    for url in listen_urls(text_of(values, "listen-client-urls"))? {
        // One given twice is one listener.
        if !clients.contains(&url) {
            clients.push(url);
        }
    }
    let http = optional_listen_urls(text_of(values, "listen-client-http-urls"))?;
    match http.iter().find(|url| clients.contains(url)) {
        Some(url) => {
            Err(format!("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"))
        }
        None => Ok((clients, http)),
    }
}

fn optional_listen_urls(list: &str) -> Result<Vec<Url>, String> {
    if list.is_empty() { Ok(Vec::new()) } else { listen_urls(list) }
}

/// Listeners take addresses only: an IP or `localhost`, or a path, over plain HTTP.
fn listen_urls(list: &str) -> Result<Vec<Url>, String> {
    let urls = value::urls(list)?;
    for url in &urls {
        if matches!(url.scheme.as_str(), "https" | "unixs") {
            return Err(format!("cannot listen on {url}: this version of trilithd has no support for TLS"));
        }
        if url.is_unix() && url.host.is_empty() {
            return Err(format!("cannot listen on {url}: the path of the socket is missing"));
        }
        if !url.is_unix() && url.host != "localhost" && url.host.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("expected IP in URL for binding ({url})"));
        }
        if url.port > u32::from(u16::MAX) {
            return Err(format!("listen tcp: address {}: invalid port", url.port));
        }
    }
    Ok(urls)
}

#[cfg(test)]
mod tests;
