//! The conformance suite: client programs that print what a server answers, run on etcd and on the subject.
//!
//! Owns the order of a run and the verdict: a part passes if its lines are the same on both. The programs and their
//! parts stand in `programs`, what is built or installed for them in `prepare`, the comparison in `verdict`.
//!
//! Does not know what the programs do; they mask what may differ (ids, times, sizes) themselves.
//!
//! I1  Every run of a program is bounded in time, and ends with all its processes.
//! I2  A part that this version of the server does not have runs too: each answer must be UNIMPLEMENTED.
//! I3  A program that cannot run here is an error that says what is missing, never a pass.
//! I4  Programs that run at once share nothing: each has an etcd and a subject of its own, on fresh data.

mod prepare;
mod programs;
mod verdict;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lanes;
use crate::options::Options;
use crate::process::{self, Tally};
use crate::servers::{Site, System};
use crate::workspace::Workspace;
use programs::{PROGRAMS, Program};
use verdict::Verdict;

/// Longest time of one part.
const SECONDS_MAX: u64 = 110;
/// Longest time of one part that is slow by nature.
const SLOW_SECONDS_MAX: u64 = 240;

/// Programs at once where each has servers of its own, on both of them at once: they mostly wait.
const LANES: usize = 2;
/// How often etcd is asked again for a part that differs: where it answers now this way, now that, either is right.
const MORE_RUNS_MAX: usize = 3;

/// How servers are started here, beyond what every start has: with more frequent news of progress.
const FLAGS: [&str; 2] = ["--watch-progress-notify-interval", "1s"];

/// What is judged.
enum Subject {
    /// The server of this tree, started here on fresh data for each program.
    Tree(PathBuf),
    /// A server that runs elsewhere.
    Endpoint(String),
}

impl Subject {
    /// Programs at once: answers name revisions, which must not move under a program by another's doing.
    fn lanes(&self) -> usize {
        match self {
            Self::Tree(_) => LANES,
            Self::Endpoint(_) => 1,
        }
    }
}

/// `conformance [--endpoints HOST:PORT] [--slow] [--list] [PROGRAM..]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &["slow", "list"], &["endpoints"])?;
    let programs = select(&options.arguments)?;
    if options.has("list") {
        for program in programs {
            println!("{:<14} {}", program.name, program.all_parts().join(" "));
        }
        return Ok(());
    }
    let workspace = Workspace::find()?;
    let subject = match options.text("endpoints") {
        Some(endpoint) => Subject::Endpoint(endpoint.to_owned()),
        None => Subject::Tree(server(&workspace)?),
    };
    let (tally, missing) = suite(&workspace, &programs, &subject, options.has("slow"))?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || !missing.is_empty() {
        bail!("{} parts differ, {} programs cannot run here", tally.failed, missing.len());
    }
    Ok(())
}

/// The whole suite on the server of this tree. A program that cannot run here counts as skipped.
pub(crate) fn test(workspace: &Workspace) -> Result<Tally> {
    if let Err(error) = prepare::peers(workspace) {
        println!("no etcd to compare with: {error:#}");
        return Ok(Tally { skipped: PROGRAMS.len() as u64, ..Tally::default() });
    }
    let subject = Subject::Tree(server(workspace)?);
    let (mut tally, missing) = suite(workspace, &select(&[])?, &subject, false)?;
    tally.skipped = missing.len() as u64;
    Ok(tally)
}

/// Builds and installs what the programs need; a line for each that cannot run here.
pub(crate) fn prepare(workspace: &Workspace) -> Result<Vec<String>> {
    prepare::peers(workspace)?;
    let missing = |program: &Program| {
        let error = prepare::command(workspace, program.client).err()?;
        Some(format!("{}: cannot run: {error:#}", program.name))
    };
    Ok(PROGRAMS.iter().filter_map(missing).collect())
}

fn select(names: &[String]) -> Result<Vec<&'static Program>> {
    if let Some(unknown) = names.iter().find(|name| !PROGRAMS.iter().any(|program| program.name == **name)) {
        let known: Vec<&str> = PROGRAMS.iter().map(|program| program.name).collect();
        bail!("there is no program '{unknown}' ({})", known.join(", "));
    }
    let wanted = |program: &&Program| names.is_empty() || names.iter().any(|name| name == program.name);
    Ok(PROGRAMS.iter().filter(wanted).collect())
}

fn server(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TRILITHD") {
        return Ok(PathBuf::from(path));
    }
    workspace.build_release(&["trilith-server"])?;
    Ok(workspace.release("trilithd"))
}

/// Runs the programs; the second result names those that cannot run here.
fn suite(workspace: &Workspace, programs: &[&Program], subject: &Subject, slow: bool) -> Result<(Tally, Vec<String>)> {
    prepare::peers(workspace)?;
    let folder = prepare::folder(workspace)?;
    std::fs::create_dir_all(folder.join("transcripts"))?;
    let (mut benches, mut missing) = (Vec::new(), Vec::new());
    for program in programs {
        match prepare::command(workspace, program.client) {
            Ok(words) => {
                let parts = program.parts_to_run(matches!(subject, Subject::Tree(_)), slow);
                benches.push(Bench { workspace, folder: &folder, program, words, parts });
            }
            Err(error) => {
                println!("{}: cannot run: {error:#}", program.name);
                missing.push(program.name.to_owned());
            }
        }
    }
    let tally = lanes::run(subject.lanes(), &benches, |bench| bench.judge(subject).context(bench.program.name))?;
    Ok((tally, missing))
}

/// A program with what it needs to run.
struct Bench<'a> {
    workspace: &'a Workspace,
    /// The suite's own folder.
    folder: &'a Path,
    program: &'a Program,
    /// The words of the command, to which the endpoint and the parts are added.
    words: Vec<String>,
    parts: Vec<&'static str>,
}

impl Bench<'_> {
    /// Runs the program on etcd and on the subject and compares part by part.
    fn judge(&self, subject: &Subject) -> Result<Tally> {
        let started = Instant::now();
        let (expected, found) = std::thread::scope(|scope| {
            let expected = scope.spawn(|| self.on_site(System::Etcd, None, &self.parts, "etcd"));
            let found = match subject {
                Subject::Tree(server) => self.on_site(System::Trilith, Some(server), &self.parts, "trilith"),
                Subject::Endpoint(endpoint) => self.transcript(endpoint, &self.parts, "endpoint"),
            };
            (expected.join(), found)
        });
        let (expected, found) = (expected.ok().context("a run of etcd panicked")??, found?);
        let strict = matches!(subject, Subject::Tree(_));
        let mut tally = Tally::default();
        let mut text = String::new();
        for part in &self.parts {
            match self.judge_part(part, &expected, &found, strict)? {
                Verdict::Same => tally.passed += 1,
                Verdict::Different(difference) => {
                    tally.failed += 1;
                    text += &format!("{} {part}: differs (- etcd, + subject)\n{difference}\n", self.program.name);
                }
            }
        }
        let (Tally { passed, failed, .. }, seconds) = (tally, started.elapsed().as_secs_f64());
        println!("{text}{}: {passed} parts same, {failed} differ ({seconds:.0} s)", self.program.name);
        Ok(tally)
    }

    /// The verdict on one part, for which etcd is asked again before it is a bad one.
    fn judge_part(&self, part: &'static str, expected: &str, found: &str, strict: bool) -> Result<Verdict> {
        let absent = self.program.absent.contains(&part);
        let verdict = verdict::judge(part, expected, found, absent, strict);
        if verdict == Verdict::Same || absent {
            return Ok(verdict);
        }
        for run in 1..=MORE_RUNS_MAX {
            let again = self.on_site(System::Etcd, None, &[part], &format!("etcd-{part}-{run}"))?;
            if verdict::judge(part, &again, found, absent, strict) == Verdict::Same {
                println!("{} {part}: etcd answers in more than one way, of which this is one", self.program.name);
                return Ok(Verdict::Same);
            }
        }
        Ok(verdict)
    }

    /// What the program prints on a server that is started for it.
    fn on_site(&self, system: System, server: Option<&Path>, parts: &[&str], name: &str) -> Result<String> {
        let mut site = Site::new(self.workspace, system, Some(&self.folder.join("data")))?;
        if let Some(server) = server {
            site.use_program(server);
        }
        let running = site.start(&FLAGS.map(str::to_owned))?;
        self.transcript(&running.address().to_string(), parts, name)
    }

    /// What the program prints, part by part, each in a process of its own.
    fn transcript(&self, endpoint: &str, parts: &[&str], name: &str) -> Result<String> {
        let path = self.folder.join(format!("transcripts/{}.{name}.txt", self.program.name));
        let errors = File::create(path.with_extension("log"))?;
        let mut text = String::new();
        for part in parts {
            text.push_str(&self.part(part, endpoint, &path, errors.try_clone()?)?);
        }
        std::fs::write(&path, &text)?;
        Ok(text)
    }

    /// What the program prints of one part, and how it ended if it did not end well.
    fn part(&self, part: &str, endpoint: &str, path: &Path, errors: File) -> Result<String> {
        let (program, arguments) = self.words.split_first().context("a program has a name")?;
        let mut command = Command::new(program);
        command.args(arguments).args([endpoint, part]);
        command.stdin(Stdio::null()).stdout(File::create(path)?).stderr(errors);
        let seconds = if self.program.slow.contains(&part) { SLOW_SECONDS_MAX } else { SECONDS_MAX };
        let end = process::bounded(&mut command, Duration::from_secs(seconds))?;
        let mut text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
        if !end.is_success() {
            text.push_str(&format!("ended with {end}\n"));
        }
        Ok(text)
    }
}
