//! `e2e`: runs the end-to-end scenarios one after the other and sums them up in the last line.
//!
//! Flags: `--trilithd FILE --peers FOLDER --go-client FILE --python FILE --python-client FILE --subject trilithd|etcd
//! --only NAME[,NAME..] --exactly NAME --scratch FOLDER --cycles N --cuts N --events N --cores N --seed N --require-all
//! --list`. A name selects every scenario that contains it, unless it is given exactly; the list says what each asks of
//! the machine.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use trilith_e2e::scenarios::{SCENARIOS, Scenario};
use trilith_e2e::server::Subject;
use trilith_e2e::setup::{Outcome, Setup};

/// What the command line asks for.
struct Request {
    setup: Setup,
    only: Vec<String>,
    exactly: Option<String>,
    require_all: bool,
    list: bool,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|request| run(&request)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Request> {
    let scratch = std::env::current_exe()?.with_file_name(format!("e2e-run-{}", std::process::id()));
    let setup = Setup {
        subject: Subject::Trilithd,
        trilithd: std::env::var_os("TRILITHD").map(PathBuf::from),
        peers: std::env::var_os("TRILITH_PEERS").map(PathBuf::from),
        go_client: None,
        python: None,
        python_client: None,
        cycles: 5,
        cuts: 10,
        events: 20_000,
        cores: None,
        seed: 1,
        scratch,
    };
    let mut request = Request { setup, only: Vec::new(), exactly: None, require_all: false, list: false };
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--require-all" => request.require_all = true,
            "--list" => request.list = true,
            _ => {
                let value = args.next().with_context(|| format!("{flag} needs a value"))?;
                apply(&mut request, &flag, value)?;
            }
        }
    }
    if !request.list && request.setup.program(request.setup.subject).is_none() {
        bail!("there is no server to test: --trilithd FILE or TRILITHD names it");
    }
    Ok(request)
}

fn apply(request: &mut Request, flag: &str, value: String) -> Result<()> {
    let setup = &mut request.setup;
    match flag {
        "--trilithd" => setup.trilithd = Some(value.into()),
        "--peers" => setup.peers = Some(value.into()),
        "--go-client" => setup.go_client = Some(value.into()),
        "--python" => setup.python = Some(value.into()),
        "--python-client" => setup.python_client = Some(value.into()),
        "--cycles" => setup.cycles = value.parse().context("--cycles needs a number")?,
        "--cuts" => setup.cuts = value.parse().context("--cuts needs a number")?,
        "--events" => setup.events = value.parse().context("--events needs a number")?,
        "--cores" => setup.cores = Some(value.parse().context("--cores needs a number")?),
        "--seed" => setup.seed = value.parse().context("--seed needs a number")?,
        "--only" => request.only = value.split(',').map(str::to_owned).collect(),
        "--scratch" => setup.scratch = value.into(),
        "--exactly" => request.exactly = Some(value),
        "--subject" => {
            setup.subject = match value.as_str() {
                "trilithd" => Subject::Trilithd,
                "etcd" => Subject::Etcd,
                _ => bail!("unknown subject '{value}'"),
            }
        }
        _ => bail!("unknown flag '{flag}'"),
    }
    Ok(())
}

fn run(request: &Request) -> Result<bool> {
    let wanted = |scenario: &&Scenario| match &request.exactly {
        Some(name) => scenario.name == name,
        None => request.only.is_empty() || request.only.iter().any(|name| scenario.name.contains(name.as_str())),
    };
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(wanted).collect();
    if chosen.is_empty() {
        bail!("no scenario is called {}", request.exactly.clone().unwrap_or_else(|| request.only.join(", ")));
    }
    if request.list {
        chosen.iter().for_each(|scenario| println!("{:<8} {}", scenario.pace.name(), scenario.name));
        return Ok(true);
    }
    let scratch = &request.setup.scratch;
    std::fs::create_dir_all(scratch)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for scenario in chosen {
        let started = Instant::now();
        let outcome = (scenario.run)(&request.setup);
        let seconds = started.elapsed().as_secs_f64();
        let name = scenario.name;
        match outcome {
            Ok(Outcome::Passed) => {
                passed += 1;
                println!("ok       {name} ({seconds:.1} s)");
            }
            Ok(Outcome::Inapplicable(reason)) => {
                passed += 1;
                println!("ok       {name} ({seconds:.1} s; inapplicable in part: {reason})");
            }
            Ok(Outcome::Skipped(reason)) if !request.require_all => {
                skipped += 1;
                println!("skipped  {name}: {reason}");
            }
            Ok(Outcome::Skipped(reason)) => {
                failed += 1;
                println!("FAILED   {name}: skipped, but everything is required: {reason}");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED   {name} ({seconds:.1} s): {error:#}");
            }
        }
    }
    std::fs::remove_dir_all(scratch).context("cannot remove the scratch folder")?;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}
