//! A checkpoint and the log of the member that took it.

use trilith_raftlog::Role;

use crate::cluster::Cluster;

/// Lets all disks but the third, and all messages, come to rest.
fn settle_without_third_disk(cluster: &mut Cluster) {
    for _ in 0..20 {
        cluster.settle_disk(1);
        cluster.settle_disk(2);
        std::mem::take(&mut cluster.network).into_iter().for_each(|message| cluster.deliver(message));
    }
}

#[test]
#[should_panic(expected = "a checkpoint needs its log durable here")]
fn a_checkpoint_stays_within_the_own_durable_log() {
    let voters = [1, 2, 3];
    let mut cluster = Cluster::default();
    voters.iter().for_each(|id| cluster.boot(*id, &voters));
    while cluster.nodes[&1].raft.role() != Role::Leader {
        cluster.tick(1, 100_000_000);
        cluster.settle();
    }
    // The other two are a quorum, so the third learns of a commit that its own disk does not hold.
    assert!(cluster.propose(1, b"on two disks"));
    settle_without_third_disk(&mut cluster);
    cluster.tick(1, 100_000_000);
    settle_without_third_disk(&mut cluster);
    let raft = &mut cluster.nodes.get_mut(&3).expect("running").raft;
    let (commit, durable) = (raft.commit(), raft.durable_index());
    assert_eq!(commit, durable.next());
    raft.handle_applied(commit);
    raft.handle_checkpoint(durable.next());
    raft.handle_checkpoint(commit.next());
}
