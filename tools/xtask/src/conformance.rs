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

mod prepare;
mod programs;
mod verdict;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::options::Options;
use crate::process::{self, Tally};
use crate::servers::{Site, System};
use crate::workspace::Workspace;
use programs::{PROGRAMS, Program};
use verdict::Verdict;

/// Longest time of one part.
const SECONDS_MAX: u64 = 70;
/// Longest time of one part that is slow by nature.
const SLOW_SECONDS_MAX: u64 = 240;

/// How servers are started here, beyond what every start has: with more frequent news of progress.
const FLAGS: [&str; 2] = ["--watch-progress-notify-interval", "1s"];

/// What is judged.
enum Subject {
    /// The server of this tree, started here on fresh data for each program.
    Tree(PathBuf),
    /// A server that runs elsewhere.
    Endpoint(String),
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
    let (mut tally, mut missing) = (Tally::default(), Vec::new());
    for program in programs {
        match prepare::command(workspace, program.client) {
            Ok(command) => tally.add(judge(workspace, program, &command, subject, slow)?),
            Err(error) => {
                println!("{}: cannot run: {error:#}", program.name);
                missing.push(program.name.to_owned());
            }
        }
    }
    Ok((tally, missing))
}

/// One program on etcd, then on the subject, each with fresh data.
fn judge(workspace: &Workspace, program: &Program, words: &[String], subject: &Subject, slow: bool) -> Result<Tally> {
    let started = Instant::now();
    let parts = program.parts_to_run(matches!(subject, Subject::Tree(_)), slow);
    let bench = Bench { folder: prepare::folder(workspace)?.join("transcripts"), program, words, parts: &parts };
    std::fs::create_dir_all(&bench.folder)?;
    let expected = bench.on_site(workspace, System::Etcd, None)?;
    let found = match subject {
        Subject::Tree(server) => bench.on_site(workspace, System::Trilith, Some(server))?,
        Subject::Endpoint(endpoint) => bench.transcript(endpoint, "endpoint")?,
    };
    let mut tally = Tally::default();
    for part in &parts {
        let absent = program.absent.contains(part);
        let strict = matches!(subject, Subject::Tree(_));
        match verdict::judge(part, &expected, &found, absent, strict) {
            Verdict::Same => tally.passed += 1,
            Verdict::Different(text) => {
                tally.failed += 1;
                println!("{} {part}: differs (- etcd, + subject)\n{text}", program.name);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{}: {} parts same, {} differ ({seconds:.0} s)", program.name, tally.passed, tally.failed);
    Ok(tally)
}

/// A program with what it needs to run.
struct Bench<'a> {
    /// Where transcripts are left for a closer look.
    folder: PathBuf,
    program: &'a Program,
    /// The words of the command, to which the endpoint and the parts are added.
    words: &'a [String],
    parts: &'a [&'static str],
}

impl Bench<'_> {
    fn on_site(&self, workspace: &Workspace, system: System, server: Option<&Path>) -> Result<String> {
        let mut site = Site::new(workspace, system, Some(&prepare::folder(workspace)?.join("data")))?;
        if let Some(server) = server {
            site.use_program(server);
        }
        let running = site.start(&FLAGS.map(str::to_owned))?;
        self.transcript(&running.address().to_string(), system.name())
    }

    /// What the program prints, part by part, each in a process of its own.
    fn transcript(&self, endpoint: &str, name: &str) -> Result<String> {
        let path = self.folder.join(format!("{}.{name}.txt", self.program.name));
        let errors = File::create(path.with_extension("log"))?;
        let mut text = String::new();
        for part in self.parts {
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
        let end = bounded(&mut command, Duration::from_secs(seconds))?;
        let mut text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
        if end != "exit status: 0" {
            text.push_str(&format!("ended with {end}\n"));
        }
        Ok(text)
    }
}

/// Runs the command in a process group of its own, which ends with it or when time is up (I1).
fn bounded(command: &mut Command, limit: Duration) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.process_group(0).spawn().with_context(|| format!("cannot start {name}"))?;
    let deadline = Instant::now() + limit;
    let end = loop {
        if let Some(status) = child.try_wait()? {
            break status.to_string();
        }
        if Instant::now() > deadline {
            break format!("not done after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // What the program started and left behind is in its group, whose number is that of the program.
    let group = format!("-{}", child.id());
    let _ = process::capture(Command::new("kill").args(["-s", "KILL", "--", &group]));
    child.wait()?;
    Ok(end)
}
