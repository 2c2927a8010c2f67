//! etcdctl, current and 3.4: the same commands against etcd and against the subject must print the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::differential::{self, compare};
use crate::server::Server;
use crate::setup::{Outcome, Setup};

/// Commands on keys; words are separated by single spaces, `_` inside a word stands for a space.
const KEYS: &[&str] = &[
    "put alpha one",
    "put alpha two --prev-kv",
    "put beta b1",
    "put gamma g1",
    "put dir/a 1",
    "put dir/b 2",
    "put dir/c 3",
    "put dir0 after",
    "put empty -- ",
    "put alpha --ignore-value",
    "put missing --ignore-value",
    "put alpha three --ignore-lease",
    "put missing x --ignore-lease",
    "put alpha x --lease=7b",
    "put spaced two_words -w json",
    "get alpha",
    "get alpha -w json",
    "get alpha -w fields",
    "get alpha --print-value-only",
    "get alpha --hex",
    "get alpha --rev=2",
    "get alpha --rev=3 -w json",
    "get beta --rev=2",
    "get alpha --rev=1",
    "get alpha --rev=999",
    "get alpha --rev=-1",
    "get absent",
    "get absent -w json",
    "get dir/ --prefix",
    "get dir/ --prefix -w json",
    "get dir/ --prefix --limit=2 -w json",
    "get dir/ --prefix --limit=3 -w json",
    "get dir/ --prefix --keys-only",
    "get dir/ --prefix --keys-only -w json",
    "get dir/ --prefix --count-only",
    "get dir/ --prefix --count-only -w json",
    "get dir/ --prefix --count-only -w fields",
    "get dir/ --prefix --limit=1 --count-only -w json",
    "get dir/ --prefix --order=DESCEND",
    "get dir/ --prefix --sort-by=VALUE --order=DESCEND",
    "get dir/ --prefix --sort-by=CREATE --order=DESCEND --limit=2 -w json",
    "get dir/ --prefix --sort-by=VERSION",
    "get dir/ --prefix --rev=6 -w json",
    "get dir/ --prefix --consistency=s",
    "get dir/a dir/c",
    "get dir/c dir/a",
    "get gamma --from-key",
    "get gamma --from-key --limit=1 -w json",
    "get  --prefix --keys-only",
    "get  --prefix --sort-by=MODIFY --order=ASCEND --keys-only",
    "get --prefix",
    "del absent",
    "del alpha --prev-kv",
    "del alpha",
    "get alpha -w json",
    "get alpha --rev=3",
    "put alpha again",
    "get alpha -w json",
    "del dir/ --prefix --prev-kv",
    "del dir/ --prefix -w json",
    "get dir/ --prefix --rev=9 -w json",
    "del dir0 gamma -w json",
    "del beta --from-key --prev-kv -w json",
    "get  --prefix -w json",
];

/// Commands on the cluster. Output formats that align columns to the width of sizes are left out.
const CLUSTER: &[&str] = &[
    "member list",
    "member list -w json",
    "member list -w table",
    "member list -w fields",
    "endpoint health",
    "endpoint health -w json",
    "endpoint status -w json",
    "endpoint status -w fields",
    "put k v",
    "endpoint status -w json",
    "alarm list",
    "endpoint health --cluster",
    "endpoint status --cluster -w json",
    "move-leader 7",
];

/// Keys with the etcdctl of the compared release.
pub(super) fn current_keys(setup: &Setup) -> Result<Outcome> {
    with(setup, setup.peer("etcdctl"), KEYS)
}

/// Cluster with the etcdctl of the compared release.
pub(super) fn current_cluster(setup: &Setup) -> Result<Outcome> {
    with(setup, setup.peer("etcdctl"), CLUSTER)
}

/// Keys with etcdctl 3.4.
pub(super) fn old_keys(setup: &Setup) -> Result<Outcome> {
    with(setup, find_old(), KEYS)
}

/// Cluster with etcdctl 3.4.
pub(super) fn old_cluster(setup: &Setup) -> Result<Outcome> {
    with(setup, find_old(), CLUSTER)
}

/// An etcdctl of release 3.4 in PATH (Debian's package etcd-client).
fn find_old() -> Option<PathBuf> {
    Setup::all_in_path("etcdctl").into_iter().find(|program| {
        let version = Command::new(program).arg("version").output();
        version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("etcdctl version: 3.4."))
    })
}

fn with(setup: &Setup, etcdctl: Option<PathBuf>, commands: &[&str]) -> Result<Outcome> {
    let Some(etcdctl) = etcdctl else {
        return Ok(Outcome::Skipped("no etcdctl of the wanted release".to_owned()));
    };
    compare(setup, |server| run(&etcdctl, server, commands))
}

fn run(etcdctl: &Path, server: &Server, commands: &[&str]) -> Result<String> {
    let mut text = String::new();
    for command in commands {
        text.push_str(&format!("$ {command}\n"));
        let words: Vec<String> = command.split(' ').map(|word| word.replace('_', " ")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        text.push_str(&differential::etcdctl(etcdctl, server, &words, None)?);
    }
    Ok(text)
}
