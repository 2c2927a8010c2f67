//! The server's options: from arguments and environment to checked values.
//!
//! Owns: precedence (flag, then environment, then default), etcd's error texts and exit codes, and the rules between
//! options. Does not know: sockets or files; addresses are checked for form only.
//!
//! Invariants
//! - I1: a flag set together with its environment variable is fatal, as in etcd.
//! - I2: a flag whose effect is absent is refused unless it has its default value.

pub mod flags;
pub mod value;

use std::collections::BTreeMap;

use crate::journal::{Format, Level};
use flags::{FLAGS, Flag, Kind, LEGACY_IGNORED, Support};
use value::Url;

/// Quota that 0 stands for: 2 GiB.
pub const QUOTA_BACKEND_BYTES_DEFAULT: i64 = 2 << 30;

/// Checked options of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Member name.
    pub name: String,
    /// Data directory.
    pub data_dir: String,
    /// Client listeners.
    pub listen_client_urls: Vec<Url>,
    /// Peer listeners.
    pub listen_peer_urls: Vec<Url>,
    /// Advertised client URLs, as given.
    pub advertise_client_urls: Vec<String>,
    /// Advertised peer URLs, as given.
    pub initial_advertise_peer_urls: Vec<String>,
    /// Cluster token.
    pub initial_cluster_token: String,
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
    /// Memory for pages and rows, bytes; 0: a quarter of what is available.
    pub cache_bytes: u64,
    /// Time of one scrub of everything stored, nanoseconds; 0: none.
    pub scrub_interval: u64,
    /// Discard WAL records from this LSN on; `None` refuses a damaged log.
    pub wal_discard_from_lsn: Option<u64>,
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
    /// A flag that is accepted and has nothing to act on.
    Inert {
        /// Flag name.
        flag: &'static str,
        /// Reason.
        why: &'static str,
    },
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

/// Reads arguments (without the program's name) and environment.
///
/// # Errors
/// See [`OptionsError`].
pub fn parse(arguments: &[String], environment: &[(String, String)]) -> Result<Invocation, OptionsError> {
    let mut values = BTreeMap::new();
    match read_arguments(arguments, &mut values)? {
        Asked::Help => return Ok(Invocation::Help),
        Asked::Version => return Ok(Invocation::Version),
        Asked::Serve => {}
    }
    let mut notes = Vec::new();
    read_environment(environment, &mut values, &mut notes)?;
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
    build(&values, notes).map(|options| Invocation::Serve(Box::new(options))).map_err(OptionsError::Invalid)
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

/// Go's flag syntax: `-x` or `--x`, `=value` or the next argument, booleans alone mean true, `--` ends flags.
fn read_arguments(arguments: &[String], values: &mut Values) -> Result<Asked, OptionsError> {
    let mut rest = arguments.iter();
    let mut version = false;
    while let Some(argument) = rest.next() {
        let Some(body) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
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
                version = attached.is_none_or(|text| value::boolean(text) == Some(true));
                continue;
            }
            _ => {}
        }
        let known = flags::find(name);
        let legacy = LEGACY_IGNORED.contains(&name);
        if known.is_none() && !legacy {
            return Err(OptionsError::Usage(format!("flag provided but not defined: -{name}")));
        }
        let text = match (attached, known.map(|flag| flag.kind)) {
            (Some(text), _) => text.to_owned(),
            (None, Some(Kind::Bool)) => "true".to_owned(),
            (None, _) => {
                rest.next().cloned().ok_or_else(|| OptionsError::Usage(format!("flag needs an argument: -{name}")))?
            }
        };
        if let Some(flag) = known {
            insert(values, flag, text, &format!("flag -{name}"))?;
        }
    }
    Ok(if version { Asked::Version } else { Asked::Serve })
}

fn insert(values: &mut Values, flag: &'static Flag, text: String, source: &str) -> Result<(), OptionsError> {
    value::check(flag.kind, &text)
        .map_err(|reason| OptionsError::Usage(format!("invalid value {text:?} for {source}: {reason}")))?;
    values.insert(flag.name, text);
    Ok(())
}

fn read_environment(
    environment: &[(String, String)],
    values: &mut Values,
    notes: &mut Vec<Note>,
) -> Result<(), OptionsError> {
    let from_arguments: Vec<&'static str> = values.keys().copied().collect();
    for (variable, text) in environment {
        if !variable.starts_with("ETCD_") || variable == "ETCD_VERSION" {
            continue;
        }
        let Some(flag) = FLAGS.iter().find(|flag| flags::environment_name(flag.name) == *variable) else {
            notes.push(Note::EnvironmentUnknown(format!("{variable}={text}")));
            continue;
        };
        if text.is_empty() {
            continue;
        }
        if from_arguments.contains(&flag.name) {
            return Err(OptionsError::Shadowed(variable.clone()));
        }
        insert(values, flag, text.clone(), &format!("environment variable {variable}"))?;
        notes.push(Note::EnvironmentUsed { variable: variable.clone(), value: text.clone() });
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
fn build(values: &Values, notes: Vec<Note>) -> Result<Options, String> {
    let name = text_of(values, "name").to_owned();
    if values.contains_key("listen-client-urls") && !values.contains_key("advertise-client-urls") {
        return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned());
    }
    let heartbeat_interval_ms = unsigned_of(values, "heartbeat-interval");
    let election_timeout_ms = unsigned_of(values, "election-timeout");
    if 5 * heartbeat_interval_ms > election_timeout_ms {
        return Err(format!(
            "--election-timeout[{election_timeout_ms}ms] should be at least as 5 times as \
             --heartbeat-interval[{heartbeat_interval_ms}ms]"
        ));
    }
    let peer_urls = strings(text_of(values, "initial-advertise-peer-urls"));
    check_initial_cluster(values, &name, &peer_urls)?;
    let quota = integer_of(values, "quota-backend-bytes");
    let discard = unsigned_of(values, "wal-discard-from-lsn");
    Ok(Options {
        data_dir: values.get("data-dir").cloned().unwrap_or_else(|| format!("{name}.trilith")),
        listen_client_urls: listen_urls(text_of(values, "listen-client-urls"))?,
        listen_peer_urls: listen_urls(text_of(values, "listen-peer-urls"))?,
        advertise_client_urls: strings(text_of(values, "advertise-client-urls")),
        initial_advertise_peer_urls: peer_urls,
        initial_cluster_token: text_of(values, "initial-cluster-token").to_owned(),
        heartbeat_interval_ms,
        election_timeout_ms,
        quota_backend_bytes: if quota == 0 { QUOTA_BACKEND_BYTES_DEFAULT } else { quota },
        max_request_bytes: usize::try_from(unsigned_of(values, "max-request-bytes")).expect("bounded by the table"),
        max_txn_ops: usize::try_from(unsigned_of(values, "max-txn-ops")).expect("bounded by the table"),
        max_concurrent_streams: u32::try_from(unsigned_of(values, "max-concurrent-streams"))
            .expect("bounded by the table"),
        keepalive_min_time: duration_of(values, "grpc-keepalive-min-time"),
        keepalive_interval: duration_of(values, "grpc-keepalive-interval"),
        keepalive_timeout: duration_of(values, "grpc-keepalive-timeout"),
        socket_reuse_port: value::boolean(text_of(values, "socket-reuse-port")) == Some(true),
        log_level: Level::parse(text_of(values, "log-level")).expect("checked against the choices"),
        log_format: if text_of(values, "log-format") == "console" { Format::Console } else { Format::Json },
        log_outputs: strings(text_of(values, "log-outputs")),
        cache_bytes: unsigned_of(values, "cache-bytes"),
        scrub_interval: duration_of(values, "scrub-interval"),
        wal_discard_from_lsn: (discard > 0).then_some(discard),
        name,
        notes,
    })
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

/// Listeners take addresses only: an IP or `localhost`, over plain HTTP.
fn listen_urls(list: &str) -> Result<Vec<Url>, String> {
    let urls = value::urls(list)?;
    for url in &urls {
        let text = format!("{}://{}:{}", url.scheme, url.host, url.port);
        if url.scheme != "http" {
            return Err(format!("cannot listen on {text}: this version of trilithd has no support for {}", {
                if url.scheme == "https" { "TLS" } else { "unix sockets" }
            }));
        }
        if url.host != "localhost" && url.host.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("expected IP in URL for binding ({text})"));
        }
    }
    Ok(urls)
}

#[cfg(test)]
mod tests;
