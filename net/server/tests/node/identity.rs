//! Whose data a directory holds, whatever the options say of a new member.

use std::collections::BTreeMap;

use trilith_server::initial::Initial;
use trilith_server::journal::{Format, Journal, Level};
use trilith_server::{BootError, NodeOptions};

use crate::cores::Cores;
use crate::open::World;
use crate::port::MemoryPort;
use crate::{PUT, PUT_PATH, SECOND, call, cut_starts_short, options, serving};

const DEFRAGMENT_PATH: &str = "/etcdserverpb.Maintenance/Defragment";

/// Options of another new member, which an operator may give to the one that is there.
fn others(initial: Initial) -> NodeOptions {
    NodeOptions {
        name: "renamed".to_owned(),
        client_urls: vec!["http://10.0.0.9:1".to_owned()],
        initial: Initial { peer_urls: vec!["http://10.0.0.9:2380".to_owned()], peer_urls_are_given: true, ..initial },
        journal: Journal { level_min: Level::Warn, format: Format::Json },
        ..options()
    }
}

/// A directory with a member, in a checkpoint or in the log alone.
fn used(in_checkpoint: bool) -> MemoryPort {
    let mut world = World::new();
    if in_checkpoint {
        // Two, so that the log need not hold the member any more.
        for number in 0..3 {
            world.say(call(4 * number + 1, PUT_PATH, PUT, 0));
            world.say(call(4 * number + 3, DEFRAGMENT_PATH, b"", 0));
        }
        let is_written = |name: &str| world.port.files[name].iter().any(|&byte| byte != 0);
        assert!(is_written("store/superblock-0") && is_written("store/superblock-1"));
    }
    world.port.restarted()
}

fn refusal(port: &mut MemoryPort, options: NodeOptions) -> BootError {
    Cores::boot(options, port).map(drop).expect_err("it should not start")
}

#[test]
fn a_member_stays_who_it_is_whatever_the_initial_options_say() {
    let (_, member) = options().initial.ids();
    for in_checkpoint in [false, true] {
        let initial = Initial {
            cluster: Some("renamed=http://10.0.0.7:2380".to_owned()),
            cluster_fault: Some("a reason not to begin".to_owned()),
            token: "a default".to_owned(),
            is_joining: true,
            ..Initial::default()
        };
        let mut port = used(in_checkpoint);
        let node = serving(&mut port, others(initial));
        let members = node.replica().tables().members();
        assert_eq!(members.keys().copied().collect::<Vec<_>>(), [member.0]);
        let found = &members[&member.0];
        assert_eq!(found.peer_urls, options().initial.peer_urls, "they are the data's");
        assert_eq!((found.name.as_str(), found.client_urls[0].as_str()), ("renamed", "http://10.0.0.9:1"));
        let warnings: Vec<_> = port.journal.iter().filter(|record| record.contains("\"warn\"")).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for part in [
            "--initial-advertise-peer-urls=http://10.0.0.9:2380",
            "--initial-cluster=renamed=http://10.0.0.7:2380",
            "\"member-peer-urls\":[\"http://10.0.0.1:2380\"]",
        ] {
            assert!(warnings[0].contains(part), "{part} is missing in {}", warnings[0]);
        }
    }
}

#[test]
fn connection_cores_learn_who_the_member_is() {
    let mut port = used(false);
    let changed = NodeOptions { connection_cores: 2, sequencer_serves: false, ..others(Initial::default()) };
    let node = serving(&mut port, changed);
    let (_, member) = options().initial.ids();
    assert!(node.fronts.iter().all(|front| front.member_id() == Some(member.0)));
}

#[test]
fn a_token_that_was_given_must_be_the_clusters() {
    for in_checkpoint in [false, true] {
        let mut port = used(in_checkpoint);
        // A start makes nothing of what is there already.
        let given = |token: &str| Initial { token: token.to_owned(), token_is_given: true, ..Initial::default() };
        let before = port.files.clone();
        let refused = refusal(&mut port, others(given("elsewhere")));
        assert!(matches!(refused, BootError::OtherCluster { .. }), "{refused}");
        let said = refused.to_string();
        for part in ["--initial-cluster-token=elsewhere", "http://10.0.0.1:2380", "--data-dir", "leave the token out"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(port.files == before, "a refusal changes nothing");
        serving(&mut port.restarted(), others(given("test")));
    }
}

/// Until the member is stored, its identifiers are worth as much as the options that made them.
#[test]
fn a_first_start_that_was_cut_short_binds_nothing_or_says_so() {
    let mut seen = [0; 3];
    cut_starts_short(&BTreeMap::new(), |mut port, steps| {
        match Cores::boot(others(Initial { token: "test".to_owned(), ..Initial::default() }), &mut port) {
            Ok(mut node) => {
                port.run(&mut node, 3 * SECOND);
                let (_, old) = options().initial.ids();
                let members = node.replica().tables().members();
                let is_old = members.contains_key(&old.0);
                let urls = &members.values().next().unwrap().peer_urls;
                assert_eq!(*urls == options().initial.peer_urls, is_old, "{steps} steps");
                seen[usize::from(is_old)] += 1;
            }
            Err(refused) => {
                assert!(matches!(refused, BootError::OtherMember { .. }), "{steps} steps: {refused}");
                assert!(refused.to_string().contains("--initial-advertise-peer-urls"), "{refused}");
                seen[2] += 1;
                serving(&mut port.restarted(), options());
            }
        }
    });
    assert!(seen.iter().all(|&count| count > 0), "new, old, refused: {seen:?}");
}

#[test]
fn files_of_two_directories_are_told_apart_by_name() {
    let mine = used(true).files;
    let mut elsewhere = MemoryPort::default();
    let initial = Initial { token: "elsewhere".to_owned(), ..options().initial };
    let node = serving(&mut elsewhere, NodeOptions { initial, ..options() });
    drop(node);
    let theirs = elsewhere.files;
    for name in ["wal/hard-state-0", "wal/hard-state-1", "wal/seg-0000", "store/superblock-0", "store/superblock-1"] {
        // What was never written belongs to nobody: put mine among theirs then.
        let (mut files, stray) =
            if name.starts_with("store") { (theirs.clone(), &mine) } else { (mine.clone(), &theirs) };
        files.insert(name.to_owned(), stray[name].clone());
        let mut port = MemoryPort::default();
        port.files = files;
        let before = port.files.clone();
        let said = refusal(&mut port, options()).to_string();
        assert!(said.contains("belongs to") && said.contains(name), "{name}: {said}");
        assert!(port.files == before, "{name}: a refusal changes nothing");
    }
}
