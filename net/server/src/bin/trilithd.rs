//! trilithd: one member of a Trilith cluster.
//!
//! Owns: the process: arguments, exit codes, the threads of its cores, the reactor, the word to the service manager.
//! Does not know: anything that happens in a turn.
//!
//! Exit codes as etcd's: 2 for a malformed command line, 1 for options that contradict each other, a failed start or a
//! failed disk; ended by its signal after a graceful stop.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::exit;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use trilith_reactor::{
    CoreLoop, Event, GlommioPort, ListenAddress, ListenOptions, LogOutput, ReactorOptions, RunError, Seat, Turn,
    end_by_signal, memory_bytes, notify_service_manager, run, run_seat, seats,
};
use trilith_server::http::SERVER_VERSION;
use trilith_server::journal::{Field, Format, Journal, Level};
use trilith_server::layout::Layout;
use trilith_server::node::BIND_RETRY_MAX;
use trilith_server::options::value::Url;
use trilith_server::options::{self, Invocation, Note, Options, OptionsError};
use trilith_server::{BootError, Front, Node, NodeOptions};

/// Status with which the loop reports a graceful stop by a signal.
const SIGNAL_STATUS: i32 = 128;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match options::parse(&arguments, &environment, |path| std::fs::read_to_string(path)) {
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
            options.cores.get_or_insert_with(|| Layout::for_processors(processors()));
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
    let listeners = match listeners(options) {
        Ok(listeners) => listeners,
        Err(text) => fail("cannot resolve a listen URL", &text),
    };
    let reactor = ReactorOptions {
        data_directory: PathBuf::from(&options.data_dir),
        listeners,
        bind_retry_max: BIND_RETRY_MAX,
        log_outputs: options.log_outputs.iter().map(|output| log_output(options, output)).collect(),
        signals: true,
        spin_before_sleep: Duration::ZERO,
    };
    let make = |port: &mut GlommioPort| -> Result<Daemon, BootError> {
        let log = NodeOptions::new(options);
        log_start(options, &log, port);
        let node = Node::boot(NodeOptions::new(options), port)?;
        Ok(Daemon { node, said: Said::Nothing, log, traffic: traffic(options) })
    };
    let cpus = options.cores.as_ref().map_or(&[None][..], |layout| &layout.cpus);
    let (result, others) = match cpus {
        [None] => (run(&reactor, make), Vec::new()),
        _ => {
            let (seat, others) = start_connection_cores(options, cpus, &reactor);
            (run_seat(&reactor, seat, make), others)
        }
    };
    // After a graceful stop they were told to end; otherwise they end with the process.
    if result.as_ref().is_ok_and(|status| *status > SIGNAL_STATUS) {
        others.into_iter().for_each(|core| drop(core.join()));
    }
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

/// Starts a thread for every core but the first; the first one's seat. A core that cannot start ends the process before
/// any file is touched.
fn start_connection_cores(
    options: &Options,
    cpus: &[Option<usize>],
    reactor: &ReactorOptions,
) -> (Seat, Vec<JoinHandle<()>>) {
    let seats = seats(cpus).unwrap_or_else(|error| fail("cannot start", &error));
    let reactor = ReactorOptions { listeners: Vec::new(), log_outputs: Vec::new(), signals: false, ..reactor.clone() };
    let front = NodeOptions::new(options).front();
    let (tell, told) = mpsc::channel();
    let mut seats = seats.into_iter();
    let first = seats.next().expect("there is a first core");
    let start = |(number, seat): (usize, Seat)| {
        let (reactor, front, tell) = (reactor.clone(), front.clone(), tell.clone());
        let core = move || {
            let result = run_seat(&reactor, seat, |_| {
                let _ = tell.send(());
                Ok::<_, Infallible>(Front::new(front))
            });
            // Its connections would hang for ever.
            if let Err(RunError::Environment(error)) = result {
                fail("a connection core cannot start or go on", &error);
            }
        };
        let name = format!("trilith-core-{}", number + 1);
        thread::Builder::new().name(name).spawn(core).unwrap_or_else(|error| fail("cannot start a thread", &error))
    };
    let threads: Vec<_> = seats.enumerate().map(start).collect();
    drop(tell);
    for _ in &threads {
        told.recv().expect("a core that does not start ends the process");
    }
    (first, threads)
}

/// Processors that this process may use, with respect to its control group's quota.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// What the service manager was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Ready,
    Stopping,
}

/// The node, and the words to the service manager and the operator that its life calls for.
struct Daemon {
    node: Node,
    said: Said,
    log: NodeOptions,
    /// What clients' listeners carry, and their addresses.
    traffic: Vec<(&'static str, String)>,
}

impl CoreLoop<GlommioPort> for Daemon {
    fn handle_turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Turn {
        let turn = self.node.handle_turn(port, events);
        if self.said == Said::Nothing && self.node.is_serving() {
            self.said = Said::Ready;
            self.announce_ready(port);
        }
        if self.said != Said::Stopping && self.node.is_stopping() {
            self.said = Said::Stopping;
            self.notify(port, "STOPPING=1");
        }
        turn
    }
}

impl Daemon {
    fn announce_ready(&self, port: &mut GlommioPort) {
        for (traffic, address) in &self.traffic {
            let fields = [("traffic", Field::Text(traffic)), ("address", Field::Text(address))];
            let message = "serving client traffic insecurely; this is strongly discouraged!";
            self.log.log(port, Level::Info, message, &fields);
        }
        self.log.log(port, Level::Info, "notifying init daemon", &[]);
        if self.notify(port, "READY=1") {
            self.log.log(port, Level::Info, "successfully notified init daemon", &[]);
        }
    }

    fn notify(&self, port: &mut GlommioPort, state: &str) -> bool {
        notify_service_manager(state).unwrap_or_else(|error| {
            let error = error.to_string();
            self.log.log(port, Level::Error, "failed to notify init daemon", &[("error", Field::Text(&error))]);
            false
        })
    }
}

fn traffic(options: &Options) -> Vec<(&'static str, String)> {
    let shared = if options.listen_client_http_urls.is_empty() { "grpc+http" } else { "grpc" };
    let both = options.listen_client_urls.iter().map(|url| (shared, url));
    let http = options.listen_client_http_urls.iter().map(|url| ("http", url));
    both.chain(http).map(|(traffic, url)| (traffic, url.address())).collect()
}

fn listeners(options: &Options) -> Result<Vec<ListenOptions>, String> {
    // In the order that `Surface` numbers them.
    let clients = options.listen_client_urls.iter().chain(&options.listen_client_http_urls);
    let urls = clients.chain(&options.listen_metrics_urls).chain(&options.listen_peer_urls);
    urls.map(|url| Ok(ListenOptions { address: address(url)?, reuse_port: options.socket_reuse_port })).collect()
}

fn address(url: &Url) -> Result<ListenAddress, String> {
    if url.is_unix() {
        return Ok(ListenAddress::Unix(PathBuf::from(&url.host)));
    }
    let host = if url.host == "localhost" {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        url.host.parse().map_err(|_| format!("{} is not an IP address", url.host))?
    };
    let port = u16::try_from(url.port).map_err(|_| format!("{} is not a port", url.port))?;
    Ok(SocketAddr::new(host, port).into())
}

fn log_output(options: &Options, name: &str) -> LogOutput {
    match name {
        "default" | "stderr" => LogOutput::Stderr,
        "stdout" => LogOutput::Stdout,
        path => LogOutput::File { path: PathBuf::from(path), rotation: options.log_rotation },
    }
}

/// The first records: what the options came from, and what they are.
fn log_start(options: &Options, log: &NodeOptions, port: &mut GlommioPort) {
    for note in &options.notes {
        log_note(note, log, port);
    }
    let arguments: Vec<String> = std::env::args().collect();
    log.log(port, Level::Info, "Running: ", &[("args", Field::List(&arguments))]);
    let data_dir = ("data-dir", Field::Text(&options.data_dir));
    log.log(port, Level::Info, "Initialize and start etcd server", &[data_dir]);
    let texts = |urls: &[Url]| -> Vec<String> { urls.iter().map(Url::to_string).collect() };
    let (clients, http) = (texts(&options.listen_client_urls), texts(&options.listen_client_http_urls));
    let (metrics, peers) = (texts(&options.listen_metrics_urls), texts(&options.listen_peer_urls));
    let fields = [
        ("etcd-version", Field::Text(SERVER_VERSION)),
        ("trilith-version", Field::Text(env!("CARGO_PKG_VERSION"))),
        ("name", Field::Text(&options.name)),
        data_dir,
        ("initial-advertise-peer-urls", Field::List(&options.initial.peer_urls)),
        ("listen-peer-urls", Field::List(&peers)),
        ("advertise-client-urls", Field::List(&options.advertise_client_urls)),
        ("listen-client-urls", Field::List(&clients)),
        ("listen-client-http-urls", Field::List(&http)),
        ("listen-metrics-urls", Field::List(&metrics)),
        ("quota-backend-bytes", Field::Number(options.quota_backend_bytes)),
        ("cache-bytes", Field::Number(i64::try_from(options.cache_bytes).unwrap_or(i64::MAX))),
        (
            "cores",
            Field::Number(i64::try_from(options.cores.as_ref().map_or(1, |it| it.cpus.len())).unwrap_or(i64::MAX)),
        ),
    ];
    log.log(port, Level::Info, "starting an etcd server", &fields);
}

fn log_note(note: &Note, log: &NodeOptions, port: &mut GlommioPort) {
    let mut say = |level, message: &str, fields: &[(&str, Field<'_>)]| log.log(port, level, message, fields);
    match note {
        Note::EnvironmentUsed { variable, value } => {
            let fields = [("variable-name", Field::Text(variable)), ("variable-value", Field::Text(value))];
            say(Level::Info, "recognized and used environment variable", &fields);
        }
        Note::EnvironmentUnknown(text) => {
            say(Level::Warn, "unrecognized environment variable", &[("environment-variable", Field::Text(text))]);
        }
        Note::Inert { flag, why } => {
            let fields = [("flag", Field::Text(flag)), ("reason", Field::Text(why))];
            say(Level::Info, "flag is accepted without effect", &fields);
        }
        Note::Renamed { old, new } if new.is_empty() => {
            say(Level::Warn, "a flag of an earlier release has no effect", &[("flag", Field::Text(old))]);
        }
        Note::Renamed { old, new } => {
            let fields = [("flag", Field::Text(old)), ("instead", Field::Text(new))];
            say(Level::Warn, "a flag of an earlier release has a new name", &fields);
        }
        Note::ConfigFile(path) => {
            let message = "loaded server configuration, other configuration command line flags and environment \
                           variables will be ignored if provided";
            say(Level::Info, message, &[("path", Field::Text(path))]);
        }
        Note::UnknownKey(key) => {
            let message = "a key of the configuration file is unknown and ignored";
            say(Level::Warn, message, &[("key", Field::Text(key))]);
        }
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
