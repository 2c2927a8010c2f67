//! trilithd: one member of a Trilith cluster.
//!
//! Owns: the process: arguments, exit codes, the reactor, the word to the service manager. Does not know: anything that
//! happens in a turn.
//!
//! Exit codes as etcd's: 2 for a malformed command line, 1 for options that contradict each other, a failed start or a
//! failed disk; ended by its signal after a graceful stop.

#![forbid(unsafe_code)]

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::exit;
use std::time::{Duration, SystemTime};

use trilith_reactor::{
    CoreLoop, Event, GlommioPort, ListenOptions, LogOutput, ReactorOptions, RunError, Turn, end_by_signal,
    memory_bytes, run,
};
use trilith_server::http::SERVER_VERSION;
use trilith_server::journal::{Field, Format, Journal, Level};
use trilith_server::node::BIND_RETRY_MAX;
use trilith_server::options::value::Url;
use trilith_server::options::{self, Invocation, Note, Options, OptionsError};
use trilith_server::{BootError, Node, NodeOptions};

/// Status with which the loop reports a graceful stop by a signal.
const SIGNAL_STATUS: i32 = 128;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match options::parse(&arguments, &environment) {
        Ok(Invocation::Help) => print!("{}", options::help()),
        Ok(Invocation::Version) => println!(
            "etcd Version: {SERVER_VERSION}\nTrilith Version: {}\nRust Edition: 2024\nOS/Arch: {}/{}",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH
        ),
        Ok(Invocation::Serve(mut options)) => {
            if options.cache_bytes == 0 {
                options.cache_bytes = memory_bytes() / 4;
            }
            serve(&options);
        }
        Err(OptionsError::Usage(text)) => {
            eprintln!("{text}\n{}", options::usage());
            exit(2);
        }
        Err(OptionsError::Invalid(text)) => {
            early_log(Level::Warn, "failed to verify flags", &[("error", Field::Text(&text))]);
            exit(1);
        }
        Err(OptionsError::Shadowed(variable)) => {
            let message = "conflicting environment variable is shadowed by corresponding command-line flag (either \
                           unset environment variable or disable flag))";
            early_log(Level::Fatal, message, &[("environment-variable", Field::Text(&variable))]);
            exit(1);
        }
    }
}

fn serve(options: &Options) {
    log_notes(options);
    let listeners = match listeners(options) {
        Ok(listeners) => listeners,
        Err(text) => fail("cannot resolve a listen URL", &text),
    };
    let reactor = ReactorOptions {
        data_directory: PathBuf::from(&options.data_dir),
        listeners,
        bind_retry_max: BIND_RETRY_MAX,
        log_outputs: options.log_outputs.iter().map(|output| log_output(output)).collect(),
        signals: true,
        spin_before_sleep: Duration::ZERO,
    };
    let result = run(&reactor, |port: &mut GlommioPort| -> Result<Daemon, BootError> {
        Ok(Daemon { node: Node::boot(NodeOptions::new(options), port)?, announced: false })
    });
    match result {
        Ok(status) if status > SIGNAL_STATUS => {
            end_by_signal(status - SIGNAL_STATUS);
            exit(0);
        }
        Ok(status) => exit(status),
        Err(RunError::Environment(error)) => fail("cannot start", &error),
        Err(RunError::Shell(error)) => fail("cannot start", &error),
    }
}

/// The node, and the one message the service manager waits for.
struct Daemon {
    node: Node,
    announced: bool,
}

impl CoreLoop<GlommioPort> for Daemon {
    fn handle_turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Turn {
        let turn = self.node.handle_turn(port, events);
        if !self.announced && self.node.is_serving() {
            self.announced = true;
            announce_ready();
        }
        turn
    }
}

/// sd_notify(3): one datagram to the socket named by the environment; an abstract address starts with `@`.
fn announce_ready() {
    use std::os::linux::net::SocketAddrExt as _;
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = name.to_string_lossy().into_owned();
    let sent = UnixDatagram::unbound().and_then(|socket| match name.strip_prefix('@') {
        Some(abstract_name) => {
            socket.send_to_addr(b"READY=1", &std::os::unix::net::SocketAddr::from_abstract_name(abstract_name)?)
        }
        None => socket.send_to(b"READY=1", &name),
    });
    match sent {
        Ok(_) => early_log(Level::Info, "successfully notified init daemon", &[]),
        Err(error) => {
            early_log(Level::Error, "failed to notify init daemon", &[("error", Field::Text(&error.to_string()))]);
        }
    }
}

fn listeners(options: &Options) -> Result<Vec<ListenOptions>, String> {
    let urls = options.listen_client_urls.iter().chain(&options.listen_peer_urls);
    urls.map(|url| Ok(ListenOptions { address: address(url)?, reuse_port: options.socket_reuse_port })).collect()
}

fn address(url: &Url) -> Result<SocketAddr, String> {
    let host = if url.host == "localhost" {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        url.host.parse().map_err(|_| format!("{} is not an IP address", url.host))?
    };
    Ok(SocketAddr::new(host, url.port))
}

fn log_output(name: &str) -> LogOutput {
    match name {
        "default" | "stderr" => LogOutput::Stderr,
        "stdout" => LogOutput::Stdout,
        path => LogOutput::File(PathBuf::from(path)),
    }
}

fn log_notes(options: &Options) {
    let journal = Journal { level_min: options.log_level, format: options.log_format };
    for note in &options.notes {
        match note {
            Note::EnvironmentUsed { variable, value } => {
                let fields = [("variable-name", Field::Text(variable)), ("variable-value", Field::Text(value))];
                log_with(journal, Level::Info, "recognized and used environment variable", &fields);
            }
            Note::EnvironmentUnknown(text) => {
                let fields = [("environment-variable", Field::Text(text))];
                log_with(journal, Level::Warn, "unrecognized environment variable", &fields);
            }
            Note::Inert { flag, why } => {
                let fields = [("flag", Field::Text(flag)), ("reason", Field::Text(why))];
                log_with(journal, Level::Info, "flag is accepted without effect", &fields);
            }
        }
    }
    let warn = "serving client traffic insecurely; this is strongly discouraged!";
    for url in &options.listen_client_urls {
        let address = format!("{}:{}", url.host, url.port);
        let fields = [("traffic", Field::Text("grpc+http")), ("address", Field::Text(&address))];
        log_with(journal, Level::Info, warn, &fields);
    }
}

fn fail(message: &str, error: &dyn Display) -> ! {
    early_log(Level::Fatal, message, &[("error", Field::Text(&error.to_string()))]);
    exit(1);
}

/// A record before or beside the reactor's outputs: to standard error, where etcd's early records go.
fn early_log(level: Level, message: &str, fields: &[(&str, Field<'_>)]) {
    log_with(Journal { level_min: Level::Info, format: Format::Json }, level, message, fields);
}

fn log_with(journal: Journal, level: Level, message: &str, fields: &[(&str, Field<'_>)]) {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
    if let Some(record) = journal.render(nanos, level, message, fields) {
        eprintln!("{record}");
    }
}
