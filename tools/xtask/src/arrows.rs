//! The direction of dependencies, checked against cargo's own view of the workspace.
//!
//! Owns two tables: which of our crates may name which, and where an external crate may be imported.
//!
//! I1  A dependency that stands in neither table is an error, so every new one is a decision.
//! I2  Every external crate has a row in docs/dependencies.md.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::options::Options;
use crate::process;
use crate::workspace::Workspace;

/// Our crates and the ones of ours they may depend on.
const INTERNAL: &[(&str, &[&str])] = &[
    ("trilith-raftlog", &[]),
    ("trilith-engine", &["trilith-raftlog"]),
    ("trilith-wire", &[]),
    ("trilith-reactor", &[]),
    ("trilith-server", &["trilith-raftlog", "trilith-engine", "trilith-wire", "trilith-reactor"]),
    ("trilith-bench", &["trilith-raftlog", "trilith-engine", "trilith-wire", "trilith-reactor"]),
    ("trilith-bench-stores", &["trilith-raftlog", "trilith-engine", "trilith-reactor", "trilith-server"]),
    ("trilith-sim", &["trilith-raftlog", "trilith-engine", "trilith-wire", "trilith-reactor", "trilith-server"]),
    ("trilith-media", &["trilith-wire", "trilith-reactor", "trilith-server", "trilith-sim"]),
    ("trilith-ports", &[]),
    ("trilith-e2e", &["trilith-ports"]),
    ("trilith-fuzz", &["trilith-raftlog", "trilith-engine", "trilith-wire"]),
    ("trilith-xtask", &["trilith-ports"]),
];

/// External crates and the crates of ours that may import them.
const EXTERNAL: &[(&str, &[&str])] = &[
    (
        "anyhow",
        &[
            "trilith-bench",
            "trilith-bench-stores",
            "trilith-sim",
            "trilith-ports",
            "trilith-e2e",
            "trilith-fuzz",
            "trilith-xtask",
        ],
    ),
    ("bytes", &["trilith-e2e"]),
    ("crc32c", &["trilith-engine"]),
    ("crc32fast", &["trilith-raftlog", "trilith-engine", "trilith-wire", "trilith-fuzz"]),
    ("criterion", &["trilith-bench"]),
    ("crossbeam", &["trilith-reactor"]),
    ("fuser", &["trilith-e2e"]),
    ("flate2", &["trilith-reactor", "trilith-wire"]),
    ("glommio", &["trilith-reactor"]),
    ("h2", &["trilith-e2e"]),
    ("hashbrown", &["trilith-engine"]),
    ("hdrhistogram", &["trilith-bench"]),
    ("heed", &["trilith-bench-stores"]),
    ("http", &["trilith-e2e"]),
    ("io-uring", &["trilith-reactor", "trilith-bench"]),
    ("libc", &["trilith-reactor", "trilith-server", "trilith-bench", "trilith-e2e"]),
    ("memmap2", &["trilith-reactor"]),
    ("redb", &["trilith-bench-stores"]),
    ("rkyv", &["trilith-engine"]),
    ("serde_json", &["trilith-bench", "trilith-bench-stores", "trilith-sim", "trilith-e2e", "trilith-xtask"]),
    ("sha1", &["trilith-server"]),
    ("socket2", &["trilith-reactor", "trilith-bench"]),
    ("tokio", &["trilith-e2e"]),
    ("xxhash-rust", &["trilith-raftlog", "trilith-engine", "trilith-sim"]),
    ("yaml-rust2", &["trilith-server"]),
];

/// Checks the whole workspace and prints every violation.
pub(crate) fn run(args: &[String]) -> Result<()> {
    Options::parse(args, &[], &[])?.no_arguments()?;
    let workspace = Workspace::find()?;
    let mut cargo = workspace.cargo();
    let text = process::capture(cargo.args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is JSON")?;
    let page = std::fs::read_to_string(workspace.root.join("docs/dependencies.md")).context("docs/dependencies.md")?;
    let violations = violations(&dependencies(&metadata), &page);
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} dependencies against the rules", violations.len());
    }
    Ok(())
}

/// Direct dependencies by crate of ours, of all kinds (normal, dev, build).
fn dependencies(metadata: &Value) -> BTreeMap<String, Vec<String>> {
    let mut map = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let names = package["dependencies"].as_array().into_iter().flatten();
        let mut names: Vec<String> = names.filter_map(|it| it["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        names.dedup();
        map.insert(package["name"].as_str().unwrap_or_default().to_owned(), names);
    }
    map
}

fn violations(dependencies: &BTreeMap<String, Vec<String>>, page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (package, names) in dependencies {
        let Some((_, allowed)) = INTERNAL.iter().find(|(name, _)| name == package) else {
            found.push(format!("{package}: not in the table of our crates"));
            continue;
        };
        for name in names {
            let legal = if INTERNAL.iter().any(|(ours, _)| ours == name) {
                allowed.contains(&name.as_str())
            } else {
                EXTERNAL.iter().any(|(external, users)| external == name && users.contains(&package.as_str()))
            };
            if !legal {
                found.push(format!("{package}: may not depend on {name}"));
            }
            if !name.starts_with("trilith-") && !page.contains(&format!("| {name} |")) {
                found.push(format!("{package}: {name} has no row in docs/dependencies.md"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(package: &str, dependency: &str) -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([(package.to_owned(), vec![dependency.to_owned()])])
    }

    #[test]
    fn an_arrow_against_the_design_is_named() {
        let page = "| glommio | x |\n| anyhow | x |";
        assert!(violations(&graph("trilith-engine", "trilith-raftlog"), page).is_empty());
        for (package, dependency) in [
            ("trilith-raftlog", "trilith-engine"),
            ("trilith-wire", "trilith-engine"),
            ("trilith-engine", "glommio"),
            ("trilith-server", "anyhow"),
            ("trilith-reactor", "left-pad"),
        ] {
            assert!(!violations(&graph(package, dependency), page).is_empty(), "{package} -> {dependency}");
        }
    }

    #[test]
    fn an_external_crate_without_its_row_is_named() {
        assert!(violations(&graph("trilith-reactor", "glommio"), "| glommio | x |").is_empty());
        assert_eq!(violations(&graph("trilith-reactor", "glommio"), "").len(), 1);
    }
}
