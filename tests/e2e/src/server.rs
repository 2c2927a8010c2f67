//! A server under test: started on loopback, watched through its log, ended by its process id.
//!
//! I1  Only processes started here are ended here, and each is ended when its `Server` is dropped.
//! I2  Every line a server logs is kept; for trilithd a WARN or ERROR line that a test does not expect, and any line
//!     that is not a log record (a panic, for one), fails the test.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use crate::ports::Ports;

/// Longest wait for the ready line: a boot may wait 30 s for the locks of a killed predecessor.
const START_SECONDS_MAX: u64 = 90;
/// Longest wait for a stop that was asked for.
const STOP_SECONDS_MAX: u64 = 60;
/// Warnings that a plain start is right to print.
const WARNINGS_EXPECTED: &[&str] =
    &["serving client traffic insecurely", "request stats", "apply request took too long"];

/// Which server a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Ours.
    Trilithd,
    /// The one ours is compared with.
    Etcd,
}

impl Subject {
    /// Folder of the WAL below the data directory.
    pub fn wal_folder(self) -> &'static str {
        match self {
            Self::Trilithd => "wal",
            Self::Etcd => "member/wal",
        }
    }
}

/// How to start one member.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Which server it is.
    pub subject: Subject,
    /// The program.
    pub program: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    /// Its ports.
    pub ports: Ports,
    /// Flags beyond those every start has.
    pub flags: Vec<String>,
}

impl Launch {
    /// Starts the member and waits until it serves.
    pub fn start(&self) -> Result<Server> {
        let is_new = !self.data.exists();
        let mut server = self.spawn()?;
        server.wait_ready()?;
        if is_new && self.subject == Subject::Etcd {
            server.wait_versions()?;
        }
        Ok(server)
    }

    /// Starts the member without waiting.
    pub fn spawn(&self) -> Result<Server> {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let pipe = child.stderr.take().expect("standard error is piped above");
        let log = Arc::new(Log::default());
        let writer = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                writer.push(line);
            }
            writer.close();
        });
        Ok(Server { launch: self.clone(), child, log, reader: Some(reader), status: None })
    }

    fn command(&self) -> Command {
        let client = format!("http://127.0.0.1:{}", self.ports.client);
        let peer = format!("http://127.0.0.1:{}", self.ports.peer);
        let mut command = Command::new(&self.program);
        // Variables of the caller would be read as configuration.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
            command.env_remove(name);
        }
        command.arg("--data-dir").arg(&self.data).args(["--name", "n1"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("n1={peer}")]).args(&self.flags);
        command
    }
}

/// A running (or ended) member.
#[derive(Debug)]
pub struct Server {
    launch: Launch,
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Server {
    /// A line of the process status, in bytes: `VmRSS`, `RssFile`.
    pub fn memory(&self, line: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
        let kilobytes = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Ok(kilobytes.with_context(|| format!("no {line} in the process status"))? << 10)
    }

    /// Which server it is.
    pub fn subject(&self) -> Subject {
        self.launch.subject
    }

    /// How it was started.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.launch.data
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.launch.ports.client))
    }

    /// `host:port` for client programs.
    pub fn endpoint(&self) -> String {
        self.address().to_string()
    }

    /// Waits for the log line that says the server serves.
    pub fn wait_ready(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        match self.log.wait_for("ready to serve client requests", limit) {
            Waited::Seen => Ok(()),
            Waited::Closed => {
                let status = self.wait_exit(Duration::from_secs(STOP_SECONDS_MAX))?;
                bail!("the server ended at start ({status}):\n{}", self.log.tail(12))
            }
            Waited::Late => bail!("not ready after {START_SECONDS_MAX} s:\n{}", self.log.tail(12)),
        }
    }

    /// Waits until a new etcd has decided its versions, which it does while it serves already: it refuses calls before,
    /// and shows other versions.
    fn wait_versions(&self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        match self.log.wait_for("updated storage version", limit) {
            Waited::Seen => Ok(()),
            _ => bail!("etcd has not decided its versions:\n{}", self.log.tail(12)),
        }
    }

    /// Waits for that line as long as `gives_up` says no; false if it gave up.
    pub fn wait_ready_unless(&mut self, gives_up: impl Fn() -> bool) -> Result<bool> {
        let limit = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            let slice = Instant::now() + Duration::from_millis(2);
            match self.log.wait_for("ready to serve client requests", slice.min(limit)) {
                Waited::Seen => return Ok(true),
                _ if gives_up() => return Ok(false),
                Waited::Late if Instant::now() < limit => {}
                Waited::Late | Waited::Closed => return self.wait_ready().map(|()| true),
            }
        }
    }

    /// Ends the process as a power switch would for it: no handler runs.
    pub fn kill(&mut self) -> Result<()> {
        self.signal_kill()?;
        self.wait_exit(Duration::from_secs(STOP_SECONDS_MAX)).map(drop)
    }

    /// Sends SIGKILL without waiting for the end, which a frozen disk may delay.
    pub fn signal_kill(&mut self) -> Result<()> {
        Ok(self.child.kill()?)
    }

    /// Asks for a graceful stop and returns how the process ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let signal = format!("kill -TERM {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &signal]).status()?;
        if !sent.success() {
            bail!("the process was gone before it was asked to stop");
        }
        self.wait_exit(Duration::from_secs(STOP_SECONDS_MAX))
    }

    /// Waits for the end of the process.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.status = Some(status);
                if let Some(reader) = self.reader.take() {
                    reader.join().ok().context("the log reader panicked")?;
                }
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the process did not end in {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Everything logged so far.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// Fails if the process ended by itself or logged what no test expects (I2).
    pub fn check(&mut self, expected: &[&str]) -> Result<()> {
        if self.status.is_none()
            && let Some(status) = self.child.try_wait()?
        {
            bail!("the server ended by itself ({status}):\n{}", self.log.tail(12));
        }
        if self.subject() == Subject::Etcd {
            return Ok(());
        }
        let lines = self.log_lines();
        let surprises: Vec<&String> = lines.iter().filter(|line| is_surprise(line, expected)).collect();
        if let Some(first) = surprises.first() {
            bail!("{} unexpected log lines, the first: {first}", surprises.len());
        }
        Ok(())
    }

    /// Fails if the process, now gone, printed anything but log records: a panic, for one.
    pub fn check_records(&self) -> Result<()> {
        match self.log_lines().iter().find(|line| serde_json::from_str::<Value>(line).is_err()) {
            Some(line) if self.subject() == Subject::Trilithd => bail!("not a log record: {line}"),
            _ => Ok(()),
        }
    }

    /// The newest log lines.
    pub fn log_tail(&self, count: usize) -> String {
        self.log.tail(count)
    }

    /// Graceful stop with the checks that belong to it.
    pub fn stop(mut self, expected: &[&str]) -> Result<()> {
        self.check(expected)?;
        let status = self.terminate()?;
        if status.signal() != Some(libc::SIGTERM) {
            bail!("after SIGTERM the process ended with {status}, not by signal 15");
        }
        self.check(expected)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn is_surprise(line: &str, expected: &[&str]) -> bool {
    let Ok(record) = serde_json::from_str::<Value>(line) else { return true };
    let calm = matches!(record["level"].as_str(), Some("debug" | "info"));
    let known = WARNINGS_EXPECTED.iter().chain(expected).any(|text| line.contains(text));
    !calm && !known
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    closed: bool,
}

enum Waited {
    Seen,
    Closed,
    Late,
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        self.lock().lines.push(line);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn wait_for(&self, text: &str, deadline: Instant) -> Waited {
        let mut state = self.lock();
        loop {
            if state.lines.iter().any(|line| line.contains(text)) {
                return Waited::Seen;
            }
            if state.closed {
                return Waited::Closed;
            }
            let now = Instant::now();
            if now >= deadline {
                return Waited::Late;
            }
            state = self.changed.wait_timeout(state, deadline - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn tail(&self, count: usize) -> String {
        let state = self.lock();
        state.lines[state.lines.len().saturating_sub(count)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_errors_and_panics_are_surprises() {
        assert!(!is_surprise(r#"{"level":"info","msg":"x"}"#, &[]));
        assert!(is_surprise(r#"{"level":"warn","msg":"x"}"#, &[]));
        assert!(!is_surprise(r#"{"level":"warn","msg":"odd but known"}"#, &["odd but"]));
        assert!(is_surprise(r#"{"level":"error","msg":"x"}"#, &[]));
        assert!(is_surprise("thread 'main' panicked at x.rs", &[]));
    }
}
