//! Where things are: the root of the tree, cargo's target folder, built programs, the cache of peers.
//!
//! Nothing here names a machine: every path is derived from cargo or from the environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// The places one command needs.
pub(crate) struct Workspace {
    /// Root of the source tree.
    pub(crate) root: PathBuf,
    /// Cargo's target folder; everything that is built or downloaded goes below it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the tree this program was built from.
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.ancestors().nth(2).context("xtask stands two levels below the root")?.to_owned();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => root.join(folder),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// A cargo command at the root, with the cargo that runs this program.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// The folder that holds etcd and the other programs built from Go modules.
    pub(crate) fn peers(&self) -> PathBuf {
        match std::env::var_os("TRILITH_PEERS") {
            Some(folder) => PathBuf::from(folder),
            None => self.target.join("peers"),
        }
    }

    /// A program of the release profile.
    pub(crate) fn release(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// Builds packages in the release profile.
    pub(crate) fn build_release(&self, packages: &[&str]) -> Result<()> {
        let mut command = self.cargo();
        command.args(["build", "--release", "--locked", "--quiet"]);
        for package in packages {
            command.args(["--package", package]);
        }
        process::run(&mut command)
    }
}
