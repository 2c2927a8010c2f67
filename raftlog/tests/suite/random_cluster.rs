//! Three and five members under loss, duplication, reordering, crashes and clocks that run apart: no term has two
//! leaders, no index two committed entries, no read misses a commit that preceded it; healed, everybody agrees.

use crate::cluster::Cluster;
use crate::support::{Rng, seeds};
use trilith_raftlog::{Index, Role};

struct Read {
    member: u64,
    context: u64,
    at_least: Index,
}

fn step(cluster: &mut Cluster, voters: &[u64], rng: &mut Rng, reads: &mut Vec<Read>) {
    let id = voters[rng.below(voters.len())];
    let is_up = cluster.nodes.contains_key(&id);
    match rng.below(100) {
        0..=39 if !cluster.network.is_empty() => {
            let message = cluster.network.swap_remove(rng.below(cluster.network.len()));
            if rng.one_in(12) {
                cluster.network.push(message.clone());
            }
            if !rng.one_in(10) {
                cluster.deliver(message);
            }
        }
        40..=69 if is_up && !cluster.nodes[&id].flights.is_empty() => {
            let n = rng.below(cluster.nodes[&id].flights.len());
            cluster.complete(id, n);
        }
        70..=81 if is_up => cluster.tick(id, (rng.next() % 400) * 1_000_000),
        82..=91 if is_up && cluster.nodes[&id].raft.role() == Role::Leader => {
            let byte = rng.next() as u8;
            cluster.propose(id, &vec![byte; rng.below(900)]);
        }
        92..=95 if is_up => {
            let context = reads.len() as u64;
            let at_least = cluster.committed();
            if cluster.nodes.get_mut(&id).expect("up").raft.read_index(context).is_ok() {
                reads.push(Read { member: id, context, at_least });
            }
            cluster.pump(id);
        }
        96 if is_up && cluster.nodes.len() > 1 => cluster.crash(id),
        97..=98 if !is_up => cluster.boot(id, voters),
        _ => {}
    }
}

/// All faults end: a leader must emerge, and what it commits must reach everybody.
fn heal(cluster: &mut Cluster, voters: &[u64], seed: u64) {
    for id in voters {
        if !cluster.nodes.contains_key(id) {
            cluster.boot(*id, voters);
        }
    }
    for _ in 0..200 {
        cluster.settle();
        for id in voters {
            cluster.tick(*id, 60_000_000);
        }
        cluster.settle();
        cluster.transcript.clear();
    }
    let leader = voters.iter().copied().find(|id| cluster.nodes[id].raft.role() == Role::Leader);
    let leader = leader.unwrap_or_else(|| panic!("seed {seed}: nobody leads"));
    assert!(cluster.propose(leader, b"last"));
    for _ in 0..5 {
        cluster.settle();
        for id in voters {
            cluster.tick(*id, 60_000_000);
        }
    }
    cluster.settle();
    let last = cluster.nodes[&leader].raft.last();
    for id in voters {
        let raft = &cluster.nodes[id].raft;
        assert_eq!((raft.last(), raft.commit()), (last, last.index), "seed {seed}: member {id} lags");
    }
}

fn run(seed: u64) -> (u64, usize) {
    let mut rng = Rng::new(seed);
    let voters: Vec<u64> = (1..=[3, 3, 5][rng.below(3)]).collect();
    let mut cluster = Cluster::default();
    for id in &voters {
        cluster.boot(*id, &voters);
    }
    let mut reads = Vec::new();
    for _ in 0..2_500 {
        step(&mut cluster, &voters, &mut rng, &mut reads);
        cluster.transcript.clear();
    }
    heal(&mut cluster, &voters, seed);
    for (member, context, index) in &cluster.reads {
        let read = &reads[*context as usize];
        assert_eq!(read.member, *member);
        assert!(*index >= read.at_least, "seed {seed}: read {context} is stale: {index} < {}", read.at_least);
        assert_eq!(read.context, *context);
    }
    (cluster.committed().0, cluster.reads.len())
}

#[test]
fn members_never_disagree_and_agree_when_healed() {
    let (mut commits, mut reads) = (0, 0);
    for seed in seeds(60) {
        let (committed, answered) = run(seed);
        commits += committed;
        reads += answered;
    }
    println!("{commits} commits, {reads} reads");
    assert!(commits > 500 && reads > 50, "the runs are not idle: {commits} commits, {reads} reads");
}
