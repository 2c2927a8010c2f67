//! Seeded bugs: patches under `tests/mutants` that a named harness must catch.
//!
//! Each patch opens with a line `harness: ARGUMENTS`, where the arguments are those of one of
//!   `sim --seeds N`, `e2e --only NAME` or `test PACKAGE [FILTER]`,
//! followed by prose that says what the bug is. The patch is applied to a scratch copy of the tree, never to the tree.
//!
//! I1  A mutant counts as caught only if it builds and its harness then fails: a mutant that does not build proves
//!     nothing.
//! I2  A harness must pass on the copy without a patch, so that its failure means the mutant.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::options::Options;
use crate::process::{self, Tally};
use crate::workspace::Workspace;

/// One seeded bug.
struct Mutant {
    name: String,
    patch: PathBuf,
    harness: Vec<String>,
}

/// `mutants [NAME..]`: all of them by default.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &[])?;
    let tally = hunt(&Workspace::find()?, &options.arguments)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} mutants were not caught", tally.failed);
    }
    Ok(())
}

/// Tries the named mutants and counts a caught one as passed.
pub(crate) fn hunt(workspace: &Workspace, names: &[String]) -> Result<Tally> {
    let mutants = read_mutants(&workspace.root.join("tests/mutants"))?;
    if let Some(unknown) = names.iter().find(|name| !mutants.iter().any(|mutant| &mutant.name == *name)) {
        bail!("there is no mutant '{unknown}'");
    }
    let mut tally = Tally::default();
    for mutant in mutants.iter().filter(|mutant| names.is_empty() || names.contains(&mutant.name)) {
        let verdict = try_mutant(workspace, mutant).with_context(|| format!("mutant {}", mutant.name))?;
        match verdict {
            Verdict::Caught => tally.passed += 1,
            Verdict::Survived => tally.failed += 1,
        }
        println!("mutant {}: {}", mutant.name, if verdict == Verdict::Caught { "caught" } else { "NOT CAUGHT" });
    }
    Ok(tally)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Caught,
    Survived,
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
        let harness = parse_harness(&text).with_context(|| format!("{name}.patch"))?;
        mutants.push(Mutant { name, patch, harness });
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

fn parse_harness(patch: &str) -> Result<Vec<String>> {
    let line = patch.lines().next().and_then(|line| line.strip_prefix("harness: "));
    let words: Vec<String> = line.context("the first line names no harness")?.split(' ').map(str::to_owned).collect();
    match words.first().map(String::as_str) {
        Some("sim" | "e2e" | "test") => Ok(words),
        other => bail!("unknown harness {other:?}"),
    }
}

fn try_mutant(workspace: &Workspace, mutant: &Mutant) -> Result<Verdict> {
    let copy = Copy { tree: workspace.target.join("mutants/tree"), target: workspace.target.join("mutants/target") };
    copy.refresh(&workspace.root)?;
    copy.build(&mutant.harness)?;
    if !copy.passes(&mutant.harness)? {
        bail!("its harness fails without the mutant");
    }
    let mut apply = Command::new("git");
    apply.current_dir(&copy.tree).env("GIT_CEILING_DIRECTORIES", &workspace.target);
    process::capture(apply.args(["apply", "--whitespace=nowarn"]).arg(&mutant.patch)).context("it does not apply")?;
    copy.build(&mutant.harness).context("it does not build")?;
    Ok(if copy.passes(&mutant.harness)? { Verdict::Survived } else { Verdict::Caught })
}

/// The scratch copy; its own target folder keeps what did not change compiled.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Makes the copy equal to the tree, writing only files that differ so that cargo rebuilds only those.
    fn refresh(&self, root: &Path) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        for name in process::capture(&mut git)?.split('\0').filter(|name| !name.is_empty()) {
            let Ok(wanted) = std::fs::read(root.join(name)) else { continue };
            let file = self.tree.join(name);
            if std::fs::read(&file).is_ok_and(|found| found == wanted) {
                continue;
            }
            std::fs::create_dir_all(file.parent().context("a file stands in a folder")?)?;
            std::fs::write(file, wanted)?;
        }
        Ok(())
    }

    fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    fn build(&self, harness: &[String]) -> Result<()> {
        let mut cargo = self.cargo();
        match harness[0].as_str() {
            "sim" => cargo.args(["build", "--profile", "sim", "--package", "trilith-sim"]),
            "e2e" => cargo.args(["build", "--package", "trilith-server", "--package", "trilith-e2e"]),
            _ => cargo.args(["test", "--no-run", "--package"]).args(harness.get(1)),
        };
        process::capture(cargo.args(["--locked", "--quiet"])).map(drop)
    }

    fn passes(&self, harness: &[String]) -> Result<bool> {
        let mut command = match harness[0].as_str() {
            "sim" => {
                let mut cargo = self.cargo();
                cargo.args(["run", "--quiet", "--locked", "--profile", "sim", "--package", "trilith-sim", "--"]);
                cargo
            }
            "e2e" => {
                let mut command = Command::new(self.target.join("debug/e2e"));
                command.arg("--trilithd").arg(self.target.join("debug/trilithd"));
                command
            }
            _ => {
                let mut cargo = self.cargo();
                cargo.args(["test", "--quiet", "--locked", "--package"]);
                cargo
            }
        };
        Ok(command.args(&harness[1..]).output()?.status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_names_its_harness_on_the_first_line() {
        let words = parse_harness("harness: sim --seeds 20\nbug\n--- a/x\n").unwrap();
        assert_eq!(words, ["sim", "--seeds", "20"]);
        assert!(parse_harness("--- a/x\n").is_err());
        assert!(parse_harness("harness: luck\n").is_err());
    }
}
