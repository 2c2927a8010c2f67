//! Starting and stopping the systems that are compared, each on a fresh data directory and free loopback ports.
//!
//! I1  A server is stopped by the process id this program started, and its data directory goes with it.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Longest wait for a server that was started.
const START_SECONDS_MAX: u64 = 30;

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

/// A running server.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Server {
    /// Starts the system and waits until it serves.
    pub(crate) fn start(workspace: &Workspace, system: System) -> Result<Self> {
        let folder = workspace.target.join("compare").join(format!("{}-{}", system.name(), std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let (client, peer) = (free_port()?, free_port()?);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, client));
        let data = folder.join("data");
        let mut command = match system {
            System::Floor => {
                let mut command = Command::new(workspace.release("trilith-floor"));
                command.arg("--listen").arg(address.to_string()).arg("--file").arg(&data);
                command
            }
            System::Trilith => etcd_like(workspace.release("trilithd"), client, peer, &data),
            System::Etcd => etcd_like(workspace.peers().join("etcd"), client, peer, &data),
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("cannot start {}", system.name()))?;
        let mut server = Self { child, address, folder };
        server.wait_ready(system)?;
        Ok(server)
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process whose processor time counts.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&mut self, system: System) -> Result<()> {
        let pipe = self.child.stderr.take().expect("standard error is piped above");
        let (sender, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if line.contains("ready to serve client requests") {
                    let _ = sender.send(());
                }
            }
        });
        let limit = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            let announced = ready.recv_timeout(Duration::from_millis(20)).is_ok();
            if announced || (system == System::Floor && TcpStream::connect(self.address).is_ok()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at start ({status})", system.name());
            }
            if Instant::now() > limit {
                bail!("{} is not ready after {START_SECONDS_MAX} s", system.name());
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn etcd_like(program: PathBuf, client: u16, peer: u16, data: &std::path::Path) -> Command {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(data);
    for (flag, value) in [
        ("--listen-client-urls", client.as_str()),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &format!("default={peer}")),
        ("--quota-backend-bytes", "8589934592"),
    ] {
        command.args([flag, value]);
    }
    command
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
