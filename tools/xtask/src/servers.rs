//! Starting and stopping the systems that are measured, each on a data directory and free loopback ports of its own.
//!
//! I1  A server is stopped by the process id this program started, and a site's data directory goes with the site.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use trilith_ports::reserve;

use crate::workspace::Workspace;

/// Longest wait for a server that was started.
const START_SECONDS_MAX: u64 = 60;
/// What a server logs when it serves.
const READY: &str = "ready to serve client requests";
/// Sites made by this process.
static SITES: AtomicU32 = AtomicU32::new(0);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Trilith,
    Etcd,
    Floor,
}

impl System {
    /// Name in tables and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trilith => "trilith",
            Self::Etcd => "etcd",
            Self::Floor => "floor",
        }
    }
}

/// Where a server lives: its data survives the process, not the site.
pub(crate) struct Site {
    system: System,
    program: PathBuf,
    folder: PathBuf,
    client: u16,
    peer: u16,
}

impl Site {
    /// A fresh data directory below `folder`, or below the target folder.
    pub(crate) fn new(workspace: &Workspace, system: System, folder: Option<&Path>) -> Result<Self> {
        let folder = folder.map_or_else(|| workspace.target.join("compare"), Path::to_owned);
        let number = SITES.fetch_add(1, Ordering::Relaxed);
        let folder = folder.join(format!("{}-{}-{number}", system.name(), std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let program = match system {
            System::Trilith => workspace.release("trilithd"),
            System::Etcd => workspace.peers().join("etcd"),
            System::Floor => workspace.release("trilith-floor"),
        };
        Ok(Self { system, program, folder, client: reserve()?, peer: reserve()? })
    }

    /// Takes another build of the system than the one in the release folder.
    pub(crate) fn use_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.client))
    }

    /// The data directory.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the system and waits until it serves.
    pub(crate) fn start(&self, arguments: &[String]) -> Result<Server> {
        let mut server = self.spawn(arguments)?;
        server.wait_ready()?;
        Ok(server)
    }

    /// Starts the system.
    pub(crate) fn spawn(&self, arguments: &[String]) -> Result<Server> {
        let data = self.folder.join("data");
        let mut awaited = vec![READY];
        if self.system == System::Etcd && !data.exists() {
            // A new etcd decides its versions while it serves already; before, it refuses calls.
            awaited.push("updated storage version");
        }
        let mut command = Command::new(&self.program);
        if self.system == System::Floor {
            command.arg("--listen").arg(self.address().to_string()).arg("--file").arg(&data);
        } else {
            etcd_like(&mut command, self.client, self.peer, &data);
        }
        // Whatever is run on it can be run on a server of several cores.
        if let (System::Trilith, Some(cores)) = (self.system, std::env::var_os("TRILITH_TEST_CORES")) {
            command.env("ETCD_CORES", cores);
        }
        let child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", self.system.name()))?;
        let pipe = child.stderr.take().expect("standard error is piped above");
        let (sender, ready) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let before = awaited.len();
                awaited.retain(|text| !line.contains(text));
                if awaited.is_empty() && before > 0 {
                    let _ = sender.send(());
                }
            }
        });
        Ok(Server { system: self.system, child, address: self.address(), ready })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A running server; it ends with this value.
pub(crate) struct Server {
    system: System,
    child: Child,
    address: SocketAddr,
    ready: Receiver<()>,
}

impl Server {
    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process whose processor time and memory count.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            let announced = self.ready.recv_timeout(Duration::from_millis(20)).is_ok();
            if announced || (self.system == System::Floor && TcpStream::connect(self.address).is_ok()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at start ({status})", self.system.name());
            }
            if Instant::now() > limit {
                bail!("{} is not ready after {START_SECONDS_MAX} s", self.system.name());
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn etcd_like(command: &mut Command, client: u16, peer: u16, data: &Path) {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    command.arg("--data-dir").arg(data);
    for (flag, value) in [
        ("--listen-client-urls", client.as_str()),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &format!("default={peer}")),
        ("--quota-backend-bytes", "34359738368"),
    ] {
        command.args([flag, value]);
    }
}
