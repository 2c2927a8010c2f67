//! Builds the programs Trilith is compared with, from Go modules, into a folder that serves as a cache.
//!
//! Owns the versions. Builds happen in a scratch module, so neither the tree nor the user's Go workspace changes.
//!
//! I1  A program is moved into the folder only after its build succeeded, and a stamp names its version: a cache of
//!     another version is rebuilt.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::options::Options;
use crate::process;
use crate::workspace::Workspace;

/// Programs that come from one version of one release.
struct Peer {
    name: &'static str,
    version: &'static str,
    /// Package path and name of the program.
    programs: &'static [(&'static str, &'static str)],
}

const PEERS: &[Peer] = &[
    Peer {
        name: "etcd",
        version: "v3.7.3",
        programs: &[
            ("go.etcd.io/etcd/server/v3", "etcd"),
            ("go.etcd.io/etcd/etcdctl/v3", "etcdctl"),
            ("go.etcd.io/etcd/etcdutl/v3", "etcdutl"),
        ],
    },
    Peer { name: "benchmark", version: "v3.6.8", programs: &[("go.etcd.io/etcd/v3/tools/benchmark", "benchmark")] },
    Peer {
        name: "h2spec",
        version: "v2.2.1+incompatible",
        programs: &[("github.com/summerwind/h2spec/cmd/h2spec", "h2spec")],
    },
];

/// `peers [FOLDER] [NAME..]`: all of them by default.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &[])?;
    let workspace = Workspace::find()?;
    let (folder, names) = match options.arguments.split_first() {
        Some((folder, names)) => (PathBuf::from(folder), names.to_vec()),
        None => (workspace.peers(), Vec::new()),
    };
    if let Some(unknown) = names.iter().find(|name| !PEERS.iter().any(|peer| peer.name == name.as_str())) {
        bail!("unknown program '{unknown}' (etcd, benchmark, h2spec)");
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    ensure(&folder, &names)?;
    println!("{}", folder.display());
    Ok(())
}

/// Builds what is missing in `folder`; an empty list of names means all.
pub(crate) fn ensure(folder: &Path, names: &[&str]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    for peer in PEERS.iter().filter(|peer| names.is_empty() || names.contains(&peer.name)) {
        if !is_cached(&folder, peer) {
            println!("building {} {} from Go modules", peer.name, peer.version);
            build(&folder, peer).with_context(|| format!("cannot build {}", peer.name))?;
        }
    }
    Ok(())
}

/// A folder filled by hand carries no stamp and is trusted; a stamp of another version is not.
fn is_cached(folder: &Path, peer: &Peer) -> bool {
    let complete = peer.programs.iter().all(|(_, program)| folder.join(program).is_file());
    let stamp = std::fs::read_to_string(stamp(folder, peer));
    complete && stamp.map_or(true, |version| version.trim() == peer.version)
}

fn stamp(folder: &Path, peer: &Peer) -> PathBuf {
    folder.join(format!("{}.version", peer.name))
}

fn build(folder: &Path, peer: &Peer) -> Result<()> {
    let go = process::find_program("go").context("Go is not installed")?;
    let work = folder.join(format!(".{}-{}", peer.name, std::process::id()));
    std::fs::create_dir_all(&work)?;
    std::fs::write(work.join("go.mod"), "module peers\n\ngo 1.26\n")?;
    let built = build_in(&go, &work, peer).and_then(|()| {
        for (_, program) in peer.programs {
            std::fs::rename(work.join(program), folder.join(program))?;
        }
        std::fs::write(stamp(folder, peer), peer.version)?;
        Ok(())
    });
    std::fs::remove_dir_all(&work)?;
    built
}

fn build_in(go: &Path, work: &Path, peer: &Peer) -> Result<()> {
    for (package, _) in peer.programs {
        let wanted = format!("{package}@{}", peer.version);
        process::capture(Command::new(go).current_dir(work).args(["get", &wanted]))?;
    }
    for (package, program) in peer.programs {
        process::capture(Command::new(go).current_dir(work).args(["build", "-o", program, package]))?;
    }
    Ok(())
}
