//! Scenarios as readable transcripts: testdata/*.txt holds commands and everything that followed from each.
//!
//! `TRILITH_REWRITE=1` rewrites the expectations; read the difference before believing it.
//!
//! ```text
//! > boot ID voters=A,B     start (or restart) a member      > crash ID      kill it; writes in flight are lost
//! > disk ID|all [N]        complete writes, oldest first    > tick ID MS    advance its clock
//! > deliver [A->B]         hand over the queued messages    > drop A->B     lose them; * is anybody
//! > propose ID TEXT   > read ID CONTEXT   > applied ID   > stop ID   > fail ID   > settle   > quietly settle   >
//! status
//! ```

use std::fmt::Write as _;
use std::path::Path;

use crate::cluster::Cluster;

fn matches_route(message: &trilith_raftlog::Message, route: Option<&str>) -> bool {
    let Some((from, to)) = route.and_then(|route| route.split_once("->")) else { return true };
    (from == "*" || from == message.from.0.to_string()) && (to == "*" || to == message.to.0.to_string())
}

fn execute(cluster: &mut Cluster, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let number = |n: usize| words[n].parse::<u64>().expect("a number");
    match words[0] {
        "boot" => {
            let voters = words[2].strip_prefix("voters=").expect("voters=");
            let voters: Vec<u64> = voters.split(',').map(|voter| voter.parse().expect("a member")).collect();
            cluster.boot(number(1), &voters);
        }
        "crash" => cluster.crash(number(1)),
        "disk" if words[1] == "all" => {
            for id in cluster.nodes.keys().copied().collect::<Vec<_>>() {
                cluster.settle_disk(id);
            }
        }
        "disk" => match words.get(2) {
            None => cluster.settle_disk(number(1)),
            Some(_) => (0..number(2)).for_each(|_| cluster.complete(number(1), 0)),
        },
        "deliver" | "drop" => {
            let route = words.get(1).copied();
            let queued = std::mem::take(&mut cluster.network);
            let (chosen, rest) = queued.into_iter().partition(|message| matches_route(message, route));
            cluster.network = rest;
            let chosen: Vec<_> = chosen;
            if words[0] == "deliver" {
                chosen.into_iter().for_each(|message| cluster.deliver(message));
            } else {
                let _ = writeln!(cluster.transcript, "{} lost", chosen.len());
            }
        }
        "tick" => cluster.tick(number(1), number(2) * 1_000_000),
        "propose" => {
            cluster.propose(number(1), words[2].as_bytes());
        }
        "read" => {
            let id = number(1);
            let raft = &mut cluster.nodes.get_mut(&id).expect("running").raft;
            if let Err(error) = raft.read_index(number(2)) {
                let _ = writeln!(cluster.transcript, "{id}: refused {error:?}");
            }
            cluster.pump(id);
        }
        "applied" => {
            let raft = &mut cluster.nodes.get_mut(&number(1)).expect("running").raft;
            raft.handle_applied(raft.commit());
            cluster.pump(number(1));
        }
        "stop" => {
            let node = cluster.nodes.get_mut(&number(1)).expect("running");
            node.raft.handle_stop(node.now);
            cluster.pump(number(1));
        }
        "fail" => {
            let node = cluster.nodes.get_mut(&number(1)).expect("running");
            node.flights.clear();
            node.raft.handle_write_failed();
            cluster.pump(number(1));
        }
        "settle" => cluster.settle(),
        "quietly" => {
            let before = cluster.transcript.len();
            execute(cluster, &words[1..].join(" "));
            cluster.transcript.truncate(before);
        }
        "status" => cluster.status(),
        other => panic!("unknown command {other}"),
    }
}

/// Runs a scenario; returns the file as it should read.
fn play(text: &str) -> String {
    let mut cluster = Cluster::default();
    let mut played = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            cluster.transcript.clear();
            execute(&mut cluster, command);
            let _ = writeln!(played, "{line}");
            played.push_str(&cluster.transcript);
        } else if line.is_empty() || line.starts_with('#') {
            let _ = writeln!(played, "{line}");
        }
    }
    played
}

#[test]
fn scenarios_read_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .expect("testdata exists")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 8, "the scenarios are there");
    let rewrite = std::env::var_os("TRILITH_REWRITE").is_some();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("readable");
        let played = play(&text);
        if rewrite {
            std::fs::write(&path, &played).expect("writable");
        }
        let differs = text.lines().zip(played.lines()).enumerate().find(|(_, (old, new))| old != new);
        if let (Some((number, (old, new))), false) = (differs, rewrite) {
            panic!("{} line {}:\n  written: {old}\n  played:  {new}", path.display(), number + 1);
        }
        assert!(rewrite || text == played, "{}: the transcript ends early or late", path.display());
    }
}
