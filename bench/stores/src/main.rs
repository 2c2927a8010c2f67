//! `trilith-stores`: Trilith's log, key index and row log beside LMDB and redb, in one process, without a network.
//!
//! Owns: the command line, the order of rounds, the table. Does not know: how a store does its work.
//!
//! The stores take turns, round by round, each on a fresh folder that is removed afterwards. What they are asked, and
//! what an answer must be, stands in `work.rs`.

mod lmdb;
mod redb_store;
mod trilith;
mod work;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use work::{Figures, Work};

const HELP: &str = "\
trilith-stores: bulk load, lookups, scan and durable updates on Trilith's storage, LMDB and redb

  --folder FOLDER       where the stores lie (a folder below the system's temporary one); on the disk to be measured
  --keys N              number of keys (1000000)
  --commits N           durable commits of each kind of update (2000)
  --rounds N            rounds; the table shows medians (3)
  --only NAME,..        trilith, lmdb, redb
  --json                print the rounds as JSON too
";

/// A store's name and how it does the work in a folder.
type Contender = (&'static str, fn(&Path, &Work) -> Result<Figures>);

const CONTENDERS: &[Contender] = &[("trilith", trilith::run), ("lmdb", lmdb::run), ("redb", redb_store::run)];

struct Options {
    folder: PathBuf,
    work: Work,
    rounds: usize,
    only: Vec<String>,
    json: bool,
}

fn main() -> Result<()> {
    let Some(options) = parse(std::env::args().skip(1))? else {
        print!("{HELP}");
        return Ok(());
    };
    let chosen: Vec<&Contender> = CONTENDERS
        .iter()
        .filter(|(name, _)| options.only.is_empty() || options.only.iter().any(|it| it == name))
        .collect();
    let mut runs: Vec<(&str, Figures)> = Vec::new();
    for round in 1..=options.rounds {
        for (name, run) in &chosen {
            let folder = options.folder.join(name);
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            let figures = run(&folder, &options.work).with_context(|| format!("{name}, round {round}"));
            std::fs::remove_dir_all(&folder)?;
            let figures = figures?;
            eprintln!("round {round}: {name:<8} {}", figures.json());
            runs.push((name, figures));
        }
    }
    // Only if nothing else lies there.
    let _ = std::fs::remove_dir(&options.folder);
    print!("{}", table(&chosen, &runs));
    if options.json {
        let rounds: Vec<Value> =
            runs.iter().map(|(name, figures)| json!({ "store": name, "figures": figures.json() })).collect();
        println!("{}", Value::from(rounds));
    }
    Ok(())
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let folder = std::env::temp_dir().join(format!("trilith-stores-{}", std::process::id()));
    let mut options =
        Options { folder, work: Work { keys: 1_000_000, commits: 2_000 }, rounds: 3, only: Vec::new(), json: false };
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--json" => options.json = true,
            "--folder" => options.folder = PathBuf::from(value()?),
            "--keys" => options.work.keys = value()?.parse().context("--keys is a number")?,
            "--commits" => options.work.commits = value()?.parse().context("--commits is a number")?,
            "--rounds" => options.rounds = value()?.parse().context("--rounds is a number")?,
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            _ => bail!("unknown flag {name}; --help lists the flags"),
        }
    }
    if options.work.keys < work::KEYS_MIN || options.work.commits == 0 || options.rounds == 0 {
        bail!("--keys is at least {}, --commits and --rounds at least 1", work::KEYS_MIN);
    }
    if let Some(unknown) = options.only.iter().find(|name| !CONTENDERS.iter().any(|(it, _)| it == name)) {
        bail!("there is no store {unknown}");
    }
    Ok(Some(options))
}

/// Medians, one row per figure.
fn table(chosen: &[&Contender], runs: &[(&str, Figures)]) -> String {
    let mut text = String::from("| figure |");
    for (name, _) in chosen {
        text.push_str(&format!(" {name} |"));
    }
    text.push_str(&format!("\n|---|{}\n", "---|".repeat(chosen.len())));
    for (index, label) in Figures::LABELS.iter().enumerate() {
        text.push_str(&format!("| {label} |"));
        for (name, _) in chosen {
            let of_store = runs.iter().filter(|(store, _)| store == name);
            text.push_str(&format!(
                " {} |",
                grouped(median(of_store.map(|(_, figures)| figures.values()[index]).collect()))
            ));
        }
        text.push('\n');
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// A whole number with commas.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_the_median_ignores_order() {
        assert_eq!(grouped(1_234_567.4), "1,234,567");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![1.0, 3.0]), 2.0);
    }

    #[test]
    fn every_store_does_the_whole_work_and_answers_right() {
        let options = |line: &str| parse(line.split_whitespace().map(str::to_owned)).unwrap().unwrap();
        let work = options("--keys 20000 --commits 30").work;
        for (name, run) in CONTENDERS {
            let folder = std::env::temp_dir().join(format!("trilith-stores-test-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let figures = run(&folder, &work);
            std::fs::remove_dir_all(&folder).unwrap();
            // Every answer was checked on the way; here only that nothing was left out.
            let figures = figures.unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert!(figures.values().iter().all(|&value| value > 0.0), "{name}: {}", figures.json());
        }
    }
}
