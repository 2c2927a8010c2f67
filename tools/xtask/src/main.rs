//! Developer commands of Trilith, run as `cargo xtask COMMAND`.
//!
//! Owns the table of commands and the exit status. Each command lives in the module of its name and takes the
//! arguments that follow it.
//!
//! Does not know what the product does: it builds it, runs it and reads what it prints.
//!
//! I1  A command that cannot do its work ends with a non-zero status and one line that says why.
#![forbid(unsafe_code)]

mod ahead;
mod arrows;
mod attacks;
mod ci;
mod clients;
mod compare;
mod conformance;
mod dataset;
mod disturb;
mod drive;
mod e2e;
mod footprint;
mod fuzz;
mod generate;
mod lanes;
mod leases;
mod media;
mod memory;
mod mutants;
mod options;
mod peers;
mod powercut;
mod process;
mod servers;
mod sim;
mod tidy;
mod watch_campaign;
mod watchers;
mod workspace;

use std::process::ExitCode;

/// Name, synopsis and entry point of one command.
struct Command {
    name: &'static str,
    synopsis: &'static str,
    run: fn(&[String]) -> anyhow::Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "ci",
        synopsis: "[--require-all] [--only STAGE,..]  the gate: every stage, read-only",
        run: ci::run,
    },
    Command { name: "tidy", synopsis: "                        house rules that clippy does not know", run: tidy::run },
    Command { name: "generate", synopsis: "[--check]               regenerate the protobuf code", run: generate::run },
    Command { name: "arrows", synopsis: "                        direction of dependencies", run: arrows::run },
    Command {
        name: "peers",
        synopsis: "[FOLDER] [NAME..]       build etcd, etcdctl, etcdutl, benchmark, h2spec",
        run: peers::run,
    },
    Command {
        name: "compare",
        synopsis: "[--quick] [--rounds N] [--seconds N] [--only CASE,..] [--paced] [--json FILE]  speed",
        run: compare::run,
    },
    Command {
        name: "disturb",
        synopsis: "[--rounds N] [--seconds N] [--keys N] [--only KIND,..]  puts during maintenance and heavy reads",
        run: disturb::run,
    },
    Command {
        name: "footprint",
        synopsis: "[--rounds N] [--keys N]  memory and time to restart, Trilith / etcd",
        run: footprint::run,
    },
    Command {
        name: "dataset",
        synopsis: "[--gib N] [--cache-bytes N] [--folder FOLDER]  more data than memory for it",
        run: dataset::run,
    },
    Command {
        name: "prepare",
        synopsis: "[--mutants N]           builds and installs what `e2e` and `conformance` need besides the tree",
        run: ahead::run,
    },
    Command {
        name: "attacks",
        synopsis: "[--seconds N] [--rounds N] [--only NAME,..] [--peer etcd]  others' latency beside hostile clients",
        run: attacks::run,
    },
    Command { name: "sim", synopsis: "[--seed N | --seeds N]  deterministic simulation", run: sim::run },
    Command {
        name: "media",
        synopsis: "[--crash-states N] [--corruptions N] [--seed S] | --only KIND:NUMBER  power cuts and rot",
        run: media::run,
    },
    Command {
        name: "fuzz",
        synopsis: "[--minutes N] [--seed N] [TARGET]  bytes at every decoder, an hour in all by default",
        run: fuzz::run,
    },
    Command {
        name: "e2e",
        synopsis: "[--only NAME] [--cycles N] [--cores N]  real processes, real clients",
        run: e2e::run,
    },
    Command {
        name: "conformance",
        synopsis: "[--endpoints HOST:PORT] [--slow] [--list] [PROGRAM..]  the same answers as etcd to every client",
        run: conformance::run,
    },
    Command { name: "kill", synopsis: "[--cycles N]            campaign of kill -9 under load", run: e2e::run_kill },
    Command {
        name: "powercut",
        synopsis: "[--cycles N] [--seed N]  campaign of power cuts on a fault disk",
        run: powercut::run,
    },
    Command {
        name: "watchers",
        synopsis: "[--only memory|stall] [--rounds N]  memory of many watchers, a reader that stops, Trilith / etcd",
        run: watchers::run,
    },
    Command {
        name: "leases",
        synopsis: "[--leases N] [--rounds N]  leases that run out together beside puts, Trilith / etcd",
        run: leases::run,
    },
    Command {
        name: "watch-campaign",
        synopsis: "[--events N] [--seed N]  watchers under kill -9 and compactions, every event judged",
        run: watch_campaign::run,
    },
    Command { name: "mutants", synopsis: "[NAME..]                each seeded bug must be caught", run: mutants::run },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        eprint!("{}", usage());
        return ExitCode::from(2);
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("xtask: unknown command '{name}'");
        eprint!("{}", usage());
        return ExitCode::from(2);
    };
    match (command.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask COMMAND\n");
    for command in COMMANDS {
        text.push_str(&format!("  {:<11} {}\n", command.name, command.synopsis.trim_end()));
    }
    text
}
