//! What a run of the scenarios has at hand, and how a scenario may end.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::server::{Launch, Ports, Server, Subject};

/// How a scenario ended when nothing went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every check held.
    Passed,
    /// Every check held that applies here; the text says what does not apply and why.
    Inapplicable(String),
    /// A program it needs is missing on this machine.
    Skipped(String),
}

/// Programs and choices of one run.
#[derive(Debug)]
pub struct Setup {
    /// The server the scenarios judge.
    pub subject: Subject,
    /// The trilithd program.
    pub trilithd: Option<PathBuf>,
    /// Folder with etcd and etcdctl.
    pub peers: Option<PathBuf>,
    /// The Go client program.
    pub go_client: Option<PathBuf>,
    /// A Python interpreter that can import etcd3.
    pub python: Option<PathBuf>,
    /// The Python client program.
    pub python_client: Option<PathBuf>,
    /// Cycles of the kill scenario.
    pub cycles: u64,
    /// Cycles of the power-cut scenario.
    pub cuts: u64,
    /// Watch events of the watch campaign.
    pub events: u64,
    /// Cores of trilithd, if not as many as it takes by itself.
    pub cores: Option<u64>,
    /// Seed of every random choice.
    pub seed: u64,
    /// A folder of this run for data directories.
    pub scratch: PathBuf,
}

impl Setup {
    /// The program of a server, if it is here.
    pub fn program(&self, subject: Subject) -> Option<PathBuf> {
        match subject {
            Subject::Trilithd => self.trilithd.clone(),
            Subject::Etcd => self.peer("etcd"),
        }
    }

    /// A program in the folder of peers.
    pub fn peer(&self, name: &str) -> Option<PathBuf> {
        let path = self.peers.as_ref()?.join(name);
        path.is_file().then_some(path)
    }

    /// A launch of the subject on a fresh data directory and free ports.
    pub fn launch(&self) -> Result<Launch> {
        self.launch_of(self.subject, Ports::pick()?)
    }

    /// A launch of either server on a fresh data directory.
    pub fn launch_of(&self, subject: Subject, ports: Ports) -> Result<Launch> {
        let program = self.program(subject).context("the server program is missing")?;
        let data = self.fresh_folder("data")?;
        std::fs::remove_dir(&data)?;
        let cores = self.cores.filter(|_| subject == Subject::Trilithd);
        // As many shards as there are cores to evaluate them.
        let on_cores = |cores: u64| [format!("--cores={cores}"), format!("--shards={}", cores.max(2) - 1)];
        let flags = cores.into_iter().flat_map(on_cores).collect();
        Ok(Launch { subject, program, data, ports, flags })
    }

    /// The subject, started on a fresh data directory.
    pub fn start(&self) -> Result<Server> {
        self.launch()?.start()
    }

    /// A new empty folder of this run.
    pub fn fresh_folder(&self, name: &str) -> Result<PathBuf> {
        for number in 0..u32::MAX {
            let folder = self.scratch.join(format!("{name}-{number}"));
            match std::fs::create_dir(&folder) {
                Ok(()) => return Ok(folder),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", folder.display())),
            }
        }
        unreachable!("a run makes fewer than four billion folders")
    }

    /// The first program of that name in PATH.
    pub fn in_path(name: &str) -> Option<PathBuf> {
        Self::all_in_path(name).into_iter().next()
    }

    /// Every program of that name in PATH.
    pub fn all_in_path(name: &str) -> Vec<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|file| file.is_file()).collect()
    }
}
