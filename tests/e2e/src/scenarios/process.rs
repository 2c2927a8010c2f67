//! Starting and stopping as an operator sees it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client::{Connection, runtime};
use crate::differential::{self, compare};
use crate::server::{Launch, Ports, Server, Subject};
use crate::setup::{Outcome, Setup};

/// Longest wait for a start that must fail.
const REFUSAL_SECONDS_MAX: u64 = 90;

/// SIGTERM ends the process by that signal, and the data is there at the next start.
pub(super) fn graceful_stop(setup: &Setup) -> Result<Outcome> {
    let launch = setup.launch()?;
    let mut last = 0;
    for round in 0..3_u64 {
        let server = launch.start()?;
        for number in 0..50 {
            last = put(&server, &format!("round/{round}/{number:02}"))?;
        }
        server.stop(&[])?;
    }
    let server = launch.start()?;
    let pairs = runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        client.range(b"round/", b"round0").await
    })?;
    let newest = pairs.iter().map(|pair| pair.mod_revision).max();
    if pairs.len() != 150 || newest != Some(last) {
        bail!("{} of 150 keys are there, the newest at {newest:?} instead of {last}", pairs.len());
    }
    if put(&server, "after")? != last + 1 {
        bail!("the revision does not continue at {}", last + 1);
    }
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

/// A second daemon on a data directory in use exits with a reason, and the first does not notice.
pub(super) fn second_daemon_on_data_dir(setup: &Setup) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd waits for the lock for ever".to_owned()));
    }
    let first = setup.start()?;
    let second = Launch { ports: Ports::pick()?, ..first.launch().clone() };
    expect_refusal(&second, &["data directory", "in use"])?;
    put(&first, "still here")?;
    first.stop(&[])?;
    Ok(Outcome::Passed)
}

/// A second daemon on a port in use exits with a reason, and the first does not notice.
pub(super) fn second_daemon_on_port(setup: &Setup) -> Result<Outcome> {
    let first = setup.start()?;
    let ports = Ports { peer: Ports::pick()?.peer, ..first.launch().ports };
    let second = setup.launch_of(setup.subject, ports)?;
    expect_refusal(&second, &["in use", &ports.client.to_string()])?;
    put(&first, "still here")?;
    first.stop(&[])?;
    Ok(Outcome::Passed)
}

/// Flags of later starts: what a new member is made with says nothing any more, name and client URLs do.
const LATER_FLAGS: &[&[&str]] = &[
    &["--initial-cluster-state=existing"],
    &["--initial-advertise-peer-urls=http://127.0.0.1:9"],
    &["--initial-cluster=nonsense"],
    &["--initial-cluster=n1=http://127.0.0.1:9,n2=http://127.0.0.1:10"],
    &["--name=renamed", "--initial-advertise-peer-urls=http://127.0.0.1:9"],
    &["--name=renamed", "--advertise-client-urls=http://127.0.0.1:11,http://127.0.0.1:12"],
    &[],
];

/// A member that is started again with other flags is who it was, and shows what etcd shows.
pub(super) fn other_flags_later(setup: &Setup) -> Result<Outcome> {
    let Some(etcdctl) = setup.peer("etcdctl") else {
        return Ok(Outcome::Skipped("no etcdctl".to_owned()));
    };
    let ports = Ports::pick()?;
    compare(setup, |running| {
        let launch = setup.launch_of(running.subject(), ports)?;
        let token = "--initial-cluster-token=t".to_owned();
        let first = Launch { flags: launch.flags.iter().cloned().chain([token]).collect(), ..launch.clone() };
        first.start()?.stop(&[])?;
        let mut text = String::new();
        for flags in LATER_FLAGS {
            let later = flags.iter().map(|&flag| flag.to_owned());
            let server =
                Launch { flags: launch.flags.iter().cloned().chain(later).collect(), ..first.clone() }.start()?;
            text.push_str(&format!("$ {flags:?}\n"));
            for words in [&["member", "list", "-w", "json"][..], &["endpoint", "status", "-w", "json"]] {
                text.push_str(&differential::etcdctl(&etcdctl, &server, words, None)?);
            }
            server.stop(&["flags of a new member are ignored"])?;
        }
        Ok(text)
    })
}

/// A data directory of etcd is refused and left as it is, to the last byte.
pub(super) fn foreign_data_dir(setup: &Setup) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd opens its own".to_owned()));
    }
    if setup.peer("etcd").is_none() {
        return Ok(Outcome::Skipped("no etcd to make the directory".to_owned()));
    }
    let ports = Ports::pick()?;
    let etcd = setup.launch_of(Subject::Etcd, ports)?.start()?;
    put(&etcd, "theirs")?;
    let launch = Launch { subject: setup.subject, program: trilithd(setup)?, ..etcd.launch().clone() };
    etcd.stop(&[])?;
    let before = content(&launch.data)?;
    expect_refusal(&launch, &["member"])?;
    if content(&launch.data)? != before {
        bail!("the refused directory was changed");
    }
    Ok(Outcome::Passed)
}

/// What the parser refuses exits with 2, what the checks after it refuse with 1, both with a reason; --version exits
/// with 0.
pub(super) fn bad_command_lines(setup: &Setup) -> Result<Outcome> {
    let program = setup.program(setup.subject).context("the server program is missing")?;
    for (arguments, code, text) in [
        (&["--no-such-flag"][..], 2, "no-such-flag"),
        (
            &["--listen-client-urls", "http://example.com:1", "--advertise-client-urls", "http://127.0.0.1:1"],
            1,
            "example.com",
        ),
        (&["--listen-client-urls", "nonsense", "--advertise-client-urls", "http://127.0.0.1:1"], 2, "nonsense"),
        (&["--listen-client-urls", "http://127.0.0.1:1"], 1, "advertise-client-urls"),
        (&["--version"], 0, "etcd Version: 3.7.3"),
    ] {
        let data = setup.fresh_folder("refused")?;
        let output = Command::new(&program).args(arguments).current_dir(&data).output()?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.code() != Some(code) || !said.contains(text) {
            bail!("{arguments:?}: {} instead of code {code}, saying: {said}", output.status);
        }
    }
    Ok(Outcome::Passed)
}

fn trilithd(setup: &Setup) -> Result<PathBuf> {
    setup.program(Subject::Trilithd).context("the server program is missing")
}

/// Starts a server that must exit with code 1 and say why.
fn expect_refusal(launch: &Launch, reasons: &[&str]) -> Result<()> {
    let mut server = launch.spawn()?;
    let status = server.wait_exit(Duration::from_secs(REFUSAL_SECONDS_MAX)).context("the start was not refused")?;
    let said = server.log_lines().join("\n");
    if status.code() != Some(1) {
        bail!("refused with {status} instead of code 1, saying: {said}");
    }
    match reasons.iter().find(|reason| !said.contains(**reason)) {
        Some(reason) => bail!("the refusal does not name '{reason}': {said}"),
        None => Ok(()),
    }
}

fn put(server: &Server, key: &str) -> Result<u64> {
    runtime()?.block_on(async { Connection::open(server.address()).await?.put(key.as_bytes(), b"value").await })
}

/// Names and bytes of every file below the folder.
fn content(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                found.push((entry.path(), Vec::new()));
            } else {
                found.push((entry.path(), std::fs::read(entry.path())?));
            }
        }
    }
    found.sort();
    Ok(found)
}
