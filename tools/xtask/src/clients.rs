//! Prepares the client programs of the end-to-end tests: the Go one is built, the Python one gets its packages.
//!
//! Owns what stands in `target/e2e`. What cannot be prepared because a language is missing is reported, not hidden:
//! the caller decides whether that is a skip or a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

/// Programs the end-to-end tests may use; `None` is missing on this machine, with the reason in `missing`.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// Folder with etcd, etcdctl, etcdutl and h2spec.
    pub(crate) peers: Option<PathBuf>,
    /// The compiled Go client.
    pub(crate) go: Option<PathBuf>,
    /// A Python interpreter that can import etcd3.
    pub(crate) python: Option<PathBuf>,
    /// One line per thing that is not there.
    pub(crate) missing: Vec<String>,
}

/// Prepares whatever the machine allows.
pub(crate) fn prepare(workspace: &Workspace) -> Result<Clients> {
    let mut clients = Clients::default();
    let folder = workspace.target.join("e2e");
    std::fs::create_dir_all(&folder)?;
    let peers = workspace.peers();
    if process::find_program("go").is_none() && !peers.join("etcd").is_file() {
        clients.missing.push("Go is not installed: no etcd to compare with, no Go client".to_owned());
    } else {
        crate::peers::ensure(&peers, &["etcd", "h2spec"])?;
        clients.peers = Some(peers.canonicalize()?);
    }
    match process::find_program("go") {
        Some(go) => clients.go = Some(build_go(workspace, &go, &folder)?),
        None => clients.missing.push("Go is not installed: the Go client is skipped".to_owned()),
    }
    match process::find_program("python3") {
        Some(python) => clients.python = Some(install_python(workspace, &python, &folder)?),
        None => clients.missing.push("Python is not installed: the Python client is skipped".to_owned()),
    }
    Ok(clients)
}

fn build_go(workspace: &Workspace, go: &Path, folder: &Path) -> Result<PathBuf> {
    let program = folder.join("go-client");
    let mut command = Command::new(go);
    command.current_dir(workspace.root.join("tests/e2e/clients/go"));
    command.args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".");
    process::capture(&mut command).context("the Go client does not build")?;
    Ok(program)
}

fn install_python(workspace: &Workspace, python: &Path, folder: &Path) -> Result<PathBuf> {
    let wanted_path = workspace.root.join("tests/e2e/clients/python/requirements.txt");
    let wanted = std::fs::read_to_string(&wanted_path).context("requirements of the Python client")?;
    let environment = folder.join("python");
    let interpreter = environment.join("bin/python");
    let stamp = environment.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    process::capture(Command::new(python).args(["-m", "venv", "--clear"]).arg(&environment))?;
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&wanted_path);
    process::capture(&mut pip).context("the packages of the Python client do not install")?;
    std::fs::write(&stamp, wanted)?;
    Ok(interpreter)
}
