//! etcdctl of the compared release with every flag of its KV and maintenance commands, and transactions from standard
//! input: both servers must make it print the same.
//!
//! Tables are compared cell by cell, without the widths that sizes give them.

use std::path::Path;

use anyhow::{Context, Result};

use crate::differential::{self, compare};
use crate::server::Server;
use crate::setup::{Outcome, Setup};

/// Makes a history with overwritten, deleted, empty and binary-looking keys; words are separated by single spaces.
const SEED: &[&str] = &[
    "put k/1 delta",
    "put k/2 alpha",
    "put k/3 charlie",
    "put k/2 beta",
    "put k/4 -- ",
    "put k/5 echo",
    "del k/5",
    "put k/2 gamma",
    "put k/6 alpha",
    "put l after",
    "put k0 after-too",
];
/// Ways to name keys.
const SELECTORS: &[&str] = &["k/2", "k/ --prefix", "k/2 k/6", "k/3 --from-key", " --prefix", " --from-key", "none"];
/// Every flag, with legal and illegal values, and some together.
const OPTIONS: &[&str] = &[
    "--limit=2",
    "--limit=5",
    "--limit=0",
    "--limit=-1",
    "--order=ASCEND",
    "--order=DESCEND",
    "--order=SIDEWAYS",
    "--sort-by=CREATE",
    "--sort-by=KEY",
    "--sort-by=MODIFY",
    "--sort-by=VALUE",
    "--sort-by=VERSION",
    "--sort-by=WEIGHT",
    "--sort-by=VERSION --order=DESCEND",
    "--sort-by=VALUE --order=DESCEND --limit=2",
    "--sort-by=MODIFY --order=ASCEND --rev=9",
    "--rev=4",
    "--rev=7 --limit=1",
    "--rev=8",
    "--rev=99",
    "--consistency=s",
    "--consistency=l",
    "--consistency=x",
    "--keys-only",
    "--keys-only --limit=2 --order=DESCEND",
    "--count-only",
    "--count-only --limit=1",
    "--print-value-only",
    "--print-value-only --hex",
    "--hex",
    "--keys-only --count-only",
    "--min-mod-rev=5",
    "--max-mod-rev=5",
    "--min-create-rev=4",
    "--max-create-rev=4",
    "--min-mod-rev=3 --max-mod-rev=9 --min-create-rev=3 --max-create-rev=6",
    "--min-mod-rev=5 --limit=1",
    "--max-create-rev=4 --count-only",
    "--from-key --prefix",
];
/// Output formats; the last is none.
const FORMATS: &[&str] = &["json", "fields", "table", "weird"];
/// Other commands that change keys.
const CHANGES: &[&str] = &[
    "put k/1 new --prev-kv",
    "put k/1 new --prev-kv -w json",
    "put k/9 first --prev-kv -w fields",
    "put k/1 --ignore-value --prev-kv -w json",
    "put k/1 other --ignore-value",
    "put k/none --ignore-value",
    "put k/1 leased --ignore-lease --prev-kv",
    "put k/none leased --ignore-lease",
    "put k/1 v --lease=1234",
    "put k/1 v --lease=zz",
    "put k/1",
    "put",
    "put  empty-key",
    "get k/1 -w json",
    "del k/9 --prev-kv",
    "del k/2 --prev-kv -w json",
    "del k/3 k/5 --prev-kv -w fields",
    "del k/3 k/5",
    "del l --range",
    "del k/6 k/7 --range --prev-kv",
    "del k0 --from-key --prev-kv",
    "del  --prefix --from-key",
    "del --prefix",
    "del",
    "del  --prefix -w json",
    "put k/1 back",
    "compaction 0",
    "compaction x",
    "compaction -1",
    "compaction 5",
    "compaction 5",
    "compaction 4",
    "compaction 9 --physical",
    "compaction 999",
    "compaction 10 --physical -w json",
    "get k/1 --rev=9",
    "get k/1 --rev=10",
    "get k/ --prefix --rev=12",
];
/// Standard input of `txn`: comparisons, requests if they hold, requests if not, each part ended by an empty line.
/// (Of a comparison of leases, or by an unknown sign, etcdctl 3.7.3 dies before it asks the server.)
const TRANSACTIONS: &[&str] = &[
    "mod(\"k/1\") > \"0\"\n\nput t/1 \"two words\"\nget t/1\n\nget none\n\n",
    "mod(\"k/1\") = \"0\"\n\nput t/1 no\n\nget t/1\nget k/ --prefix\n\n",
    "create(\"t/1\") < \"3\"\n\nget t/1\n\nput t/2 else\n\n",
    "create(\"t/none\") = \"0\"\n\nput t/none made --prev-kv\n\n\n",
    "c(\"t/1\") > \"1\"\nm(\"t/1\") > \"1\"\n\nget t/1 --rev=3\n\n\n",
    "version(\"t/1\") = \"1\"\n\nput t/1 \"again\" --prev-kv\ndel t/2 --prev-kv\n\n\n",
    "ver(\"t/1\") > \"1\"\nval(\"t/1\") = \"again\"\n\nget t/ --prefix --keys-only\n\nget t/1\n\n",
    "value(\"t/1\") < \"b\"\n\nget t/1\n\nget t/2\n\n",
    "value(\"t/1\") > \"b\"\n\nget t/1\n\nget t/ --prefix --count-only\n\n",
    "val(\"t/1\") != \"again\"\n\nget t/1\n\nget t/2\n\n",
    "\nput t/3 x\nput t/4 y\ndel t/3\n\n\n",
    "\nput t/5 x\nput t/5 y\n\n\n",
    "\nput t/6 --ignore-value\n\n\n",
    "\nget t/1 --rev=999\n\n\n",
    "\ndel t/ --prefix --prev-kv\n\n\n",
    "\n\n\n",
    "nonsense\n\n\n\n",
    "mod(\"k/1\") > \"x\"\n\n\n\n",
    "size(\"k/1\") > \"1\"\n\n\n\n",
    "\nfly t/1\n\n\n",
    "",
];
/// Commands of the maintenance service; between them keys change.
const MAINTENANCE: &[&str] = &[
    "endpoint hashkv",
    "endpoint hashkv -w json",
    "endpoint hashkv -w fields",
    "endpoint hashkv -w table",
    "endpoint hashkv --rev=5 -w json",
    "endpoint hashkv --rev=999",
    "endpoint hashkv --cluster",
    "put k/1 changed",
    "endpoint hashkv -w json",
    "endpoint hashkv --rev=11 -w json",
    "defrag",
    "defrag -w json",
    "defrag --cluster",
    "endpoint hashkv -w json",
    "get  --prefix -w json",
];
const STATUS: &[&str] = &[
    "endpoint status",
    "endpoint status -w json",
    "endpoint status -w fields",
    "endpoint status -w table",
    "endpoint status --cluster",
    "endpoint status --cluster -w table",
    "endpoint health -w table",
];
/// Columns of a table, and members of a line, that are the implementation's own.
const MASKED_COLUMNS: &[&str] =
    &["DB SIZE", "IN USE", "PERCENTAGE NOT IN USE", "RAFT INDEX", "RAFT APPLIED INDEX", "TOOK"];
/// Corners and the bar with which etcdctl draws tables.
const TABLE_EDGES: [char; 3] = ['\u{250c}', '\u{251c}', '\u{2514}'];
const TABLE_BAR: char = '\u{2502}';
const MASKED_MEMBERS: &[usize] = &[4, 5, 6, 11, 12];

/// `get` with every flag, alone and together, in every format.
pub(super) fn get(setup: &Setup) -> Result<Outcome> {
    with(setup, |etcdctl, server| {
        let mut text = seed(etcdctl, server)?;
        for selector in SELECTORS {
            for option in OPTIONS {
                text.push_str(&run(etcdctl, server, &format!("get {selector} {option}"))?);
            }
        }
        for option in [""].iter().chain(OPTIONS) {
            for format in FORMATS {
                let space = if option.is_empty() { "" } else { " " };
                text.push_str(&run(etcdctl, server, &format!("get k/ --prefix{space}{option} -w {format}"))?);
            }
        }
        Ok(text)
    })
}

/// `put`, `del` and `compaction` with every flag.
pub(super) fn changes(setup: &Setup) -> Result<Outcome> {
    with(setup, |etcdctl, server| {
        let mut text = seed(etcdctl, server)?;
        for command in CHANGES.iter().chain(STATUS) {
            text.push_str(&run(etcdctl, server, command)?);
        }
        text.push_str(&feed(etcdctl, server, "put from-input", "a value\nof two lines")?);
        text.push_str(&run(etcdctl, server, "get from-input")?);
        Ok(text)
    })
}

/// `txn` from standard input, interactive or not, in every format.
pub(super) fn transactions(setup: &Setup) -> Result<Outcome> {
    with(setup, |etcdctl, server| {
        let mut text = seed(etcdctl, server)?;
        for command in ["txn", "txn -w json", "txn -w fields", "txn -w table", "txn -i", "txn -i -w json"] {
            for input in TRANSACTIONS {
                text.push_str(&feed(etcdctl, server, command, input)?);
            }
        }
        text.push_str(&run(etcdctl, server, "get  --prefix -w json")?);
        Ok(text)
    })
}

/// `defrag` and `endpoint hashkv`.
pub(super) fn maintenance(setup: &Setup) -> Result<Outcome> {
    with(setup, |etcdctl, server| {
        let mut text = seed(etcdctl, server)?;
        for command in MAINTENANCE {
            text.push_str(&run(etcdctl, server, command)?);
        }
        Ok(text)
    })
}

/// `get --stream`.
pub(super) fn get_stream(setup: &Setup) -> Result<Outcome> {
    with(setup, |etcdctl, server| {
        let mut text = seed(etcdctl, server)?;
        for selector in SELECTORS {
            for option in [""].iter().chain(OPTIONS) {
                let space = if option.is_empty() { "" } else { " " };
                text.push_str(&run(etcdctl, server, &format!("get {selector} --stream{space}{option}"))?);
            }
        }
        Ok(text)
    })
}

fn with(setup: &Setup, script: impl Fn(&Path, &Server) -> Result<String>) -> Result<Outcome> {
    let Some(etcdctl) = setup.peer("etcdctl") else {
        return Ok(Outcome::Skipped("no etcdctl of the wanted release".to_owned()));
    };
    compare(setup, |server| script(&etcdctl, server))
}

fn seed(etcdctl: &Path, server: &Server) -> Result<String> {
    SEED.iter().map(|command| run(etcdctl, server, command)).collect()
}

fn words(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}

fn run(etcdctl: &Path, server: &Server, command: &str) -> Result<String> {
    let text = differential::etcdctl(etcdctl, server, &words(command), None)?;
    Ok(format!("$ {command}\n{}", own_figures_masked(command, &text)))
}

fn feed(etcdctl: &Path, server: &Server, command: &str, input: &str) -> Result<String> {
    let text = differential::etcdctl(etcdctl, server, &words(command), Some(input))
        .with_context(|| format!("{command} with {input:?}"))?;
    Ok(format!("$ {command} {input:?}\n{text}"))
}

/// Masks what the general rules do not see: sizes in tables and in the lines of `endpoint status`.
fn own_figures_masked(command: &str, text: &str) -> String {
    let mut masked = String::new();
    let mut columns: Vec<&str> = Vec::new();
    for line in text.lines() {
        if line.starts_with(TABLE_EDGES) {
            continue;
        }
        let line = if let Some(row) = line.strip_prefix(TABLE_BAR) {
            let cells: Vec<&str> = row.trim_end_matches(TABLE_BAR).split(TABLE_BAR).map(str::trim).collect();
            if columns.is_empty() {
                columns.clone_from(&cells);
            }
            let is_own = |column: usize| columns.get(column).is_some_and(|name| MASKED_COLUMNS.contains(name));
            let mask = |(column, cell)| if is_own(column) && columns != cells { "MASKED" } else { cell };
            cells.iter().copied().enumerate().map(mask).collect::<Vec<_>>().join(" | ")
        } else if command.starts_with("endpoint status") && line.split(", ").count() > 12 {
            let mask = |(number, member)| if MASKED_MEMBERS.contains(&number) { "MASKED" } else { member };
            line.split(", ").enumerate().map(mask).collect::<Vec<_>>().join(", ")
        } else {
            line.to_owned()
        };
        masked.push_str(&line);
        masked.push('\n');
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_cells_of_a_table_are_masked() {
        let table = |size: &str, version: &str| {
            let text = format!("[--]\n| VERSION | DB SIZE |\n>--<\n| {version} |  {size} |\n(--)\nexit 0\n");
            let [top, middle, bottom] = TABLE_EDGES;
            let text = text.replace('[', &top.to_string()).replace('>', &middle.to_string());
            let text = text.replace('(', &bottom.to_string()).replace('|', &TABLE_BAR.to_string());
            own_figures_masked("endpoint status -w table", &text)
        };
        assert_eq!(table("20 kB", "3.7.3"), "VERSION | DB SIZE\n3.7.3 | MASKED\nexit 0\n");
        assert_eq!(table("20 kB", "3.7.3"), table("1 MB", "3.7.3"));
        assert_ne!(table("20 kB", "3.7.3"), table("20 kB", "3.7.4"));
    }

    #[test]
    fn only_own_members_of_a_status_line_are_masked() {
        let line = "h:1, 2e, 3.7.3, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 7, 7, , , false\n";
        let masked =
            "h:1, 2e, 3.7.3, 3.7.0, MASKED, MASKED, MASKED, 2.1 GB, true, false, 2, MASKED, MASKED, , , false\n";
        assert_eq!(own_figures_masked("endpoint status", line), masked);
        assert_eq!(own_figures_masked("get k", line), line);
    }
}
