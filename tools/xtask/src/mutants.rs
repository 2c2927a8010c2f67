//! Seeded bugs: patches under `tests/mutants` that a named harness must catch.
//!
//! Each patch opens with lines `harness: ARGUMENTS`, where the arguments are those of one of
//!   `sim --seeds N`, `media --corruptions N`, `e2e --only NAME` or `test PACKAGE [FILTER]`,
//! followed by prose that says what the bug is. Every harness it names must catch it. The patch is
//! applied to a scratch copy of the tree, never to the tree.
//!
//! I1  A mutant counts as caught only if it builds and its harnesses then fail: a mutant that does not build proves
//!     nothing.
//! I2  A harness must pass without a patch, so that its failure means the mutant. Where the tests of the tree have just
//!     passed, those of the copy are not run once more.
//! I3  Every run of a harness is bounded in time; a mutant under which it does not end is caught.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::options::Options;
use crate::process::{self, End, Tally};
use crate::workspace::Workspace;

/// Longest time of one run of a harness.
const HARNESS_SECONDS_MAX: u64 = 300;

/// A command line of a harness, in words.
type Harness = Vec<String>;

/// One seeded bug.
struct Mutant {
    name: String,
    patch: PathBuf,
    harnesses: Vec<Harness>,
}

/// `mutants [NAME..]`: all of them by default.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &[])?;
    let workspace = Workspace::find()?;
    let (mutants, names) = (read_mutants(&workspace.root.join("tests/mutants"))?, &options.arguments);
    if let Some(unknown) = names.iter().find(|name| !mutants.iter().any(|mutant| &mutant.name == *name)) {
        bail!("there is no mutant '{unknown}'");
    }
    let mutants: Vec<Mutant> = mutants.into_iter().filter(|it| names.is_empty() || names.contains(&it.name)).collect();
    let tally = hunt(&workspace, &mutants, false)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} mutants were not caught", tally.failed);
    }
    Ok(())
}

/// Tries a few of them. `tests_passed` says that the tests of the tree did.
pub(crate) fn hunt_some(workspace: &Workspace, count: usize, tests_passed: bool) -> Result<Tally> {
    let (mutants, all) = some(workspace, count)?;
    let names: Vec<&str> = mutants.iter().map(|mutant| mutant.name.as_str()).collect();
    println!("of {all} mutants: {}; all: cargo xtask mutants", names.join(", "));
    hunt(workspace, &mutants, tests_passed)
}

/// Builds the copy of the tree with the harnesses of those that [`hunt_some`] tries.
pub(crate) fn prepare_some(workspace: &Workspace, count: usize) -> Result<()> {
    let copy = Copy::of(workspace)?;
    for mutant in some(workspace, count)?.0 {
        mutant.harnesses.iter().try_for_each(|harness| copy.build(harness))?;
    }
    Ok(())
}

/// A few of those that tests alone catch, which are built soonest, and the number of all mutants: others at each
/// commit, so that a run of the gate stays short and all of these have their turn.
fn some(workspace: &Workspace, count: usize) -> Result<(Vec<Mutant>, usize)> {
    let mutants = read_mutants(&workspace.root.join("tests/mutants"))?;
    let mut git = Command::new("git");
    let commit = process::capture(git.current_dir(&workspace.root).args(["rev-parse", "HEAD"])).unwrap_or_default();
    let all = mutants.len();
    let quick = |mutant: &Mutant| mutant.harnesses.iter().all(|words| words[0] == "test");
    let names: Vec<String> = mutants.iter().filter(|mutant| quick(mutant)).map(|it| it.name.clone()).collect();
    let names = rotation(&names, &commit, count);
    Ok((mutants.into_iter().filter(|mutant| names.contains(&mutant.name)).collect(), all))
}

/// The names whose turn it is at a commit.
fn rotation(names: &[String], commit: &str, count: usize) -> Vec<String> {
    let start = usize::from_str_radix(commit.get(..8).unwrap_or("0"), 16).unwrap_or(0);
    (0..count.min(names.len())).map(|step| names[(start + step) % names.len()].clone()).collect()
}

/// Tries the mutants; each harness that catches its mutant counts as passed.
fn hunt(workspace: &Workspace, mutants: &[Mutant], tests_passed: bool) -> Result<Tally> {
    let copy = Copy::of(workspace)?;
    check_harnesses(&copy, mutants, tests_passed)?;
    let mut tally = Tally::default();
    for mutant in mutants {
        copy.refresh(&workspace.root)?;
        copy.apply(&mutant.patch).with_context(|| format!("{} does not apply", mutant.name))?;
        for harness in &mutant.harnesses {
            copy.build(harness).with_context(|| format!("{} does not build", mutant.name))?;
            let end = copy.run(harness)?;
            let caught = !end.is_success();
            if caught {
                tally.passed += 1;
            } else {
                tally.failed += 1;
            }
            let verdict = if caught { "caught" } else { "NOT CAUGHT" };
            println!("{} {verdict} by {} ({end})", mutant.name, harness.join(" "));
        }
    }
    copy.refresh(&workspace.root)?;
    Ok(tally)
}

/// Every harness passes on the unchanged copy (I2).
fn check_harnesses(copy: &Copy, mutants: &[Mutant], tests_passed: bool) -> Result<()> {
    let mut harnesses: Vec<&Harness> = mutants.iter().flat_map(|mutant| &mutant.harnesses).collect();
    harnesses.sort();
    harnesses.dedup();
    harnesses.retain(|words| words[0] != "test" || !tests_passed);
    for harness in harnesses {
        copy.build(harness)?;
        let end = copy.run(harness)?;
        if !end.is_success() {
            bail!("{} fails without any mutant ({end})", harness.join(" "));
        }
    }
    Ok(())
}

fn read_mutants(folder: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for entry in std::fs::read_dir(folder).context("tests/mutants")? {
        let patch = entry?.path();
        if patch.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&patch)?;
        let harnesses = parse_harnesses(&text).with_context(|| format!("{name}.patch"))?;
        mutants.push(Mutant { name, patch, harnesses });
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

fn parse_harnesses(patch: &str) -> Result<Vec<Harness>> {
    let lines = patch.lines().map_while(|line| line.strip_prefix("harness: "));
    let harnesses: Vec<Harness> = lines.map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    if harnesses.is_empty() {
        bail!("the first line names no harness");
    }
    match harnesses.iter().find(|words| !matches!(words[0].as_str(), "sim" | "media" | "e2e" | "test")) {
        Some(words) => bail!("unknown harness '{}'", words[0]),
        None => Ok(harnesses),
    }
}

/// The scratch copy; its own target folder keeps what did not change compiled.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// The copy, as the tree is now.
    fn of(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("mutants");
        let copy = Self { tree: folder.join("tree"), target: folder.join("target") };
        copy.refresh(&workspace.root)?;
        Ok(copy)
    }

    /// Makes the copy equal to the tree, writing only files that differ so that cargo rebuilds only those.
    fn refresh(&self, root: &Path) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let mut files = BTreeSet::new();
        for name in process::capture(&mut git)?.split('\0').filter(|name| !name.is_empty()) {
            let Ok(wanted) = std::fs::read(root.join(name)) else { continue };
            let file = self.tree.join(name);
            if std::fs::read(&file).map_or(true, |found| found != wanted) {
                std::fs::create_dir_all(file.parent().context("a file stands in a folder")?)?;
                std::fs::write(&file, wanted)?;
            }
            files.insert(file);
        }
        remove_others(&self.tree, &files)
    }

    fn apply(&self, patch: &Path) -> Result<()> {
        let mut git = Command::new("git");
        // The copy may stand inside the tree's own repository, which must not be looked at.
        git.current_dir(&self.tree).env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree));
        process::capture(git.args(["apply", "--whitespace=nowarn"]).arg(patch)).map(drop)
    }

    fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        // Each patch changes little of what was built before it.
        command.env("CARGO_INCREMENTAL", "1");
        command
    }

    fn build(&self, harness: &[String]) -> Result<()> {
        let mut cargo = self.cargo();
        match harness[0].as_str() {
            "sim" => cargo.args(["build", "--profile", "sim", "--package", "trilith-sim"]),
            "media" => cargo.args(["build", "--profile", "sim", "--package", "trilith-media"]),
            "e2e" => {
                cargo.args(["build", "--profile", "sim", "--package", "trilith-server", "--package", "trilith-e2e"])
            }
            _ => cargo.args(["test", "--no-run", "--package"]).args(&harness[1..]),
        };
        process::capture(cargo.args(["--locked", "--quiet"])).map(drop)
    }

    /// Runs a harness that is built, for a limited time (I3).
    fn run(&self, harness: &[String]) -> Result<End> {
        let built = self.target.join("sim");
        let mut command = match harness[0].as_str() {
            "sim" => Command::new(built.join("trilith-sim")),
            "media" => Command::new(built.join("trilith-media")),
            "e2e" => {
                let mut command = Command::new(built.join("e2e"));
                command.args(["--require-all", "--trilithd"]).arg(built.join("trilithd"));
                command
            }
            _ => {
                let mut cargo = self.cargo();
                cargo.args(["test", "--quiet", "--locked", "--package"]);
                cargo
            }
        };
        command.args(&harness[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        process::bounded(&mut command, Duration::from_secs(HARNESS_SECONDS_MAX))
    }
}

/// Removes what stands below a folder and is not among the files: renamed or removed in the tree, or made by a patch.
/// A module that stood in two places would keep the copy from building.
fn remove_others(folder: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(&path, files)?;
        } else if !files.contains(&path) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_loses_what_the_tree_has_lost() {
        let copy = std::env::temp_dir().join(format!("trilith-mutants-{}", std::process::id()));
        let [kept, lost, lost_below] = ["a/kept.rs", "lost.rs", "a/b/lost.rs"].map(|name| copy.join(name));
        std::fs::create_dir_all(copy.join("a/b")).unwrap();
        for file in [&kept, &lost, &lost_below] {
            std::fs::write(file, "").unwrap();
        }
        remove_others(&copy, &BTreeSet::from([kept.clone()])).unwrap();
        let left = [&kept, &lost, &lost_below].map(|file| file.exists());
        std::fs::remove_dir_all(copy).unwrap();
        assert_eq!(left, [true, false, false]);
    }

    #[test]
    fn every_name_has_its_turn() {
        let names: Vec<String> = (0..7).map(|number| number.to_string()).collect();
        let at = |commit: u32| rotation(&names, &format!("{commit:08x}0123"), 3);
        assert_eq!(at(5), ["5", "6", "0"]);
        assert_eq!(rotation(&names, "no commit", 9).len(), 7);
        let mut seen: Vec<String> = (0..7).flat_map(at).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, names);
    }

    #[test]
    fn a_patch_opens_with_its_harnesses() {
        let harnesses = parse_harnesses("harness: sim --seeds 20\nharness: e2e --only x\nbug\n--- a/x\n").unwrap();
        assert_eq!(harnesses, [vec!["sim", "--seeds", "20"], vec!["e2e", "--only", "x"]]);
        assert!(parse_harnesses("--- a/x\n").is_err());
        assert!(parse_harnesses("harness: luck\n").is_err());
    }
}
