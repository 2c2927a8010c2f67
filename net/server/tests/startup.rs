//! The program as an operator meets it: what it says when it cannot start, and what it tells when it can.
//!
//! Each test starts `trilithd` on loopback ports of its own choosing with a data directory of its own, and ends it by
//! its process id.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test program; a panic is its failure")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_trilithd");
/// Longest wait for a start or a stop.
const PATIENCE: Duration = Duration::from_secs(45);

/// A folder that goes away with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trilith-startup-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    // Each is given once, and from below the range from which the system gives ports to outgoing connections: no client
    // gets one before its server starts.
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    std::array::from_fn(|_| {
        loop {
            let number = std::process::id().wrapping_mul(61).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
            let port = 10_000 + (number % 20_000) as u16;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                break port;
            }
        }
    })
}

/// The program without the caller's variables.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
        command.env_remove(name);
    }
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn arguments(data: &Path, client: u16, peer: u16) -> Vec<String> {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    [
        ("--data-dir", data.display().to_string()),
        ("--listen-client-urls", client.clone()),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", peer.clone()),
        ("--initial-advertise-peer-urls", peer.clone()),
        ("--initial-cluster", format!("default={peer}")),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect()
}

/// Runs to the end; what it said, with its exit code.
fn refused(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A server that serves.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(command: &mut Command, log: PathBuf) -> Self {
        command.stderr(std::fs::File::create(&log).unwrap());
        let mut server = Self { child: command.spawn().unwrap(), log };
        server.wait_for("\"msg\":\"ready to serve client requests\"");
        server
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no {text}, {ended:?}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(mut self) -> String {
        let signal = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &signal]).status().unwrap().success());
        self.child.wait().unwrap();
        self.text()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole answer to a request of one line, or what came until the connection was closed.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_node_tells_its_life() {
    let folder = Folder::new("life");
    let [client, http, metrics, peer] = free_ports();
    let socket_path = folder.0.join("notify");
    let manager = UnixDatagram::bind(&socket_path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = program();
    command.args(arguments(&folder.0.join("data"), client, peer)).env("NOTIFY_SOCKET", &socket_path);
    command.args(["--listen-client-http-urls", &format!("http://127.0.0.1:{http}")]);
    command.args(["--listen-metrics-urls", &format!("http://127.0.0.1:{metrics}"), "--metrics=extensive"]);
    let server = Server::start(&mut command, folder.0.join("log"));
    let said = |manager: &UnixDatagram| {
        let mut buffer = [0; 64];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert_eq!(said(&manager), "READY=1");

    for (port, path, start, part) in [
        (metrics, "/metrics", "HTTP/1.1 200", "\ngrpc_server_handling_seconds_count{grpc_method=\"Put\""),
        (metrics, "/health?serializable=true", "HTTP/1.1 200", "{\"health\":\"true\",\"reason\":\"\"}"),
        (metrics, "/readyz?verbose", "HTTP/1.1 200", "[+]linearizable_read ok\n"),
        (metrics, "/version", "HTTP/1.1 404", ""),
        (http, "/version", "HTTP/1.1 200", "etcdserver"),
        (http, "/metrics", "HTTP/1.1 200", "\netcd_server_healthcheck{name=\"linearizable_read\",type=\"readyz\"} 1\n"),
        (peer, "/metrics", "HTTP/1.1 404", ""),
    ] {
        let answer = get(port, path);
        assert!(answer.starts_with(start) && answer.contains(part), "{path}: {answer}");
    }
    assert_eq!(get(client, "/version"), "", "gRPC alone");
    let text = get(metrics, "/metrics");
    let value = |name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap_or_else(|| panic!("{name}"));
        line.parse::<f64>().unwrap()
    };
    for name in [
        "etcd_server_has_leader",
        "etcd_server_leader_changes_seen_total",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_server_proposals_applied_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(value(name) > 0.0, "{name}");
    }

    let log = server.stop();
    assert_eq!(said(&manager), "STOPPING=1");
    for message in [
        "Initialize and start etcd server",
        "starting an etcd server",
        "published local member to cluster through raft",
        "serving client traffic insecurely; this is strongly discouraged!",
        "successfully notified init daemon",
    ] {
        assert!(log.contains(&format!("\"msg\":\"{message}\"")), "{message} is missing in\n{log}");
    }
    assert!(log.contains("\"traffic\":\"grpc\"") && log.contains("\"traffic\":\"http\""));
}

#[test]
fn clients_come_through_a_socket_in_the_file_system() {
    let folder = Folder::new("unix");
    let [client, peer] = free_ports();
    let path = folder.0.join("client.sock");
    let mut command = program();
    command.args(arguments(&folder.0.join("data"), client, peer));
    let urls = format!("unix://{},http://127.0.0.1:{client}", path.display());
    command.args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls]);
    let server = Server::start(&mut command, folder.0.join("log"));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"health\":\"true\""), "{answer}");
    assert!(get(client, "/health").starts_with("HTTP/1.1 200"));
    server.stop();
    assert!(!path.exists(), "the socket goes with its server");
}

#[test]
fn a_configuration_file_and_a_rotated_log() {
    let folder = Folder::new("file");
    let [client, peer] = free_ports();
    let config = folder.0.join("config.yaml");
    let (data, log) = (folder.0.join("data"), folder.0.join("trilith.log"));
    let text = format!(
        "name: n1\ndata-dir: {}\nlisten-client-urls: http://127.0.0.1:{client}\nlisten-peer-urls: \
         http://127.0.0.1:{peer}\nlog-outputs: [{}]\nenable-log-rotation: true\nlog-level: debug\nbogus: 1\n",
        data.display(),
        log.display()
    );
    std::fs::write(&config, text).unwrap();
    std::fs::write(&log, "").unwrap();
    let mut command = program();
    command.args(["--config-file", &config.display().to_string(), "--name", "ignored"]);
    let mut server = Server { child: command.stderr(Stdio::null()).spawn().unwrap(), log };
    server.wait_for("ready to serve client requests");
    let log = server.stop();
    assert!(log.contains("loaded server configuration") && log.contains("\"name\":\"n1\""), "{log}");
    assert!(log.contains("\"key\":\"bogus\""), "{log}");
}

#[test]
fn refusals_say_what_to_do() {
    let folder = Folder::new("refusals");
    let [client, peer] = free_ports();
    let data = folder.0.join("data");
    let run = |arguments: &[String]| refused(&program().args(arguments).output().unwrap());

    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, client)).unwrap();
    let (code, said) = run(&arguments(&data, client, peer));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another process has the port") && said.contains(&client.to_string()), "{said}");
    assert!(!data.exists(), "nothing was made");
    drop(taken);

    std::fs::write(&data, "").unwrap();
    let (code, said) = run(&arguments(&data.join("below"), client, peer));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("choose another --data-dir"), "{said}");
    std::fs::remove_file(&data).unwrap();

    // Twice: what the first attempt made is no member either.
    for _ in 0..2 {
        let mut words = arguments(&data, client, peer);
        words.push("--initial-cluster-state=existing".to_owned());
        let (code, said) = run(&words);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("cannot fetch cluster info from peer urls"), "{said}");
    }

    let (code, said) = run(&["--no-such-flag".to_owned()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("flag provided but not defined: -no-such-flag\nUsage:"), "{said}");
}

#[test]
fn low_limits_are_named_with_their_cure() {
    let folder = Folder::new("limits");
    let [client, peer] = free_ports();
    let words: Vec<String> = arguments(&folder.0.join("data"), client, peer);
    for (limit, cure) in [("-l 64", "LimitMEMLOCK="), ("-n 256", "LimitNOFILE=")] {
        let script = format!("ulimit {limit}; exec {PROGRAM} {}", words.join(" "));
        let output = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
        let (code, said) = refused(&output);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(cure) && said.contains("ulimit"), "{said}");
    }
}

#[test]
fn other_clusters_data_and_data_in_use_are_refused() {
    let folder = Folder::new("foreign");
    let [client, peer, client_other, peer_other] = free_ports();
    let data = folder.0.join("data");
    let server = Server::start(program().args(arguments(&data, client, peer)), folder.0.join("log"));
    let second = refused(&program().args(arguments(&data, client_other, peer_other)).output().unwrap());
    assert_eq!(second.0, Some(1));
    assert!(second.1.contains("in use by another process: stop it, or choose another --data-dir"), "{}", second.1);
    server.stop();
    // By flag or variable, it says the same.
    for words in [["ETCD_INITIAL_CLUSTER_TOKEN=other", PROGRAM], [PROGRAM, "--initial-cluster-token=other"]] {
        let (code, said) = refused(&through_env(&words, &arguments(&data, client, peer)));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("did not make with --initial-cluster-token=other: check --data-dir"), "{said}");
    }
}

/// Runs `env`, whose words may set variables before they name the program.
fn through_env(words: &[&str], arguments: &[String]) -> Output {
    Command::new("env").args(words).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Operators drop the flags of a first start, or change them later.
#[test]
fn a_restart_needs_none_of_the_first_starts_flags() {
    let folder = Folder::new("restart");
    let [client, peer] = free_ports();
    let data = folder.0.join("data");
    let urls = [client, peer].map(|port| format!("http://127.0.0.1:{port}"));
    let start = |further: &[&str]| {
        let mut command = program();
        command.args(["--data-dir", &data.display().to_string(), "--listen-client-urls", &urls[0]]);
        command.args(["--advertise-client-urls", &urls[0], "--listen-peer-urls", &urls[1]]);
        Server::start(command.args(further), folder.0.join("log"))
    };
    let cluster = format!("n1={}", urls[1]);
    let first = ["--name=n1", "--initial-cluster-token=t", "--initial-advertise-peer-urls", &urls[1]];
    start(&[&first[..], &["--initial-cluster", &cluster]].concat()).stop();
    for (flags, name, warns) in [
        (&["--name=n1"][..], "n1", false),
        (&["--name=n2", "--initial-cluster-state=existing"][..], "n2", false),
        (&["--name=n3", "--initial-advertise-peer-urls=http://127.0.0.1:9"][..], "n3", true),
        (&["--name=n4", "--initial-cluster=nonsense", "--initial-cluster-token=t"][..], "n4", true),
    ] {
        let server = start(flags);
        let members = get(peer, "/members");
        let said = server.stop();
        let parts = [format!("\"peerURLs\":[\"{}\"]", urls[1]), format!("\"name\":\"{name}\"")];
        assert!(parts.iter().all(|part| members.contains(part)), "{flags:?}: {members}");
        assert_eq!(said.contains("flags of a new member are ignored"), warns, "{flags:?}: {said}");
    }
}

#[test]
fn several_cores_serve_together_and_stop_together() {
    let folder = Folder::new("cores");
    let [client, peer] = free_ports();
    let words = arguments(&folder.0.join("data"), client, peer);
    let server = Server::start(program().args(&words).arg("--cores=3"), folder.0.join("log"));
    // They stay open together, so that every core has some.
    let mut streams: Vec<TcpStream> =
        (0..9).map(|_| TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, client))).unwrap()).collect();
    let mut ask = |path: &str, body: &str| {
        for stream in &mut streams {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        }
        for stream in &mut streams {
            let mut answer = Vec::new();
            let is_whole = |answer: &[u8]| {
                let text = String::from_utf8_lossy(answer);
                text.split_once("\r\n\r\n").is_some_and(|(_, found)| found.contains(body))
            };
            while !is_whole(&answer) {
                let mut part = [0; 4096];
                let len = stream.read(&mut part).unwrap();
                assert!(len > 0, "{path}: {}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&part[..len]);
            }
        }
    };
    ask("/health", "{\"health\":\"true\",\"reason\":\"\"}");
    ask("/metrics", "\netcd_server_health_success 9\n");
    let log = server.stop();
    assert!(log.contains("\"cores\":3") && log.contains("closed trilith server"), "{log}");
}
