//! Leases over the RPCs: their lives, ends in crowds, renewals that wait, restarts.

use trilith_wire::proto::{Message, etcdserverpb as pb};

use crate::open::{World, encoded};
use crate::{SECOND, SETTINGS, WINDOW_UPDATE, call, frame, has, head};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const PUT: &str = "/etcdserverpb.KV/Put";

/// How late an end may come: two steps of the leader's clock, and some turns.
const LATE: u64 = SECOND / 4;

/// A world and the number of its next call.
struct Desk {
    world: World,
    stream: u32,
}

impl Desk {
    fn new() -> Self {
        Self::over(World::new())
    }

    /// A client that takes long answers.
    fn over(mut world: World) -> Self {
        world.say(frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0, 0]));
        world.say(frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()));
        Self { world, stream: 1 }
    }

    fn restarted(self) -> Self {
        Self::over(self.world.restarted())
    }

    fn next(&mut self) -> u32 {
        self.stream += 2;
        self.stream - 2
    }

    /// Begins a call.
    fn begin<'a>(&mut self, path: &str, message: &impl Message<'a>) -> u32 {
        let stream = self.next();
        self.world.say(call(stream, path, &encoded(message), 0));
        stream
    }

    fn ask<'a>(&mut self, path: &str, message: &impl Message<'a>) -> Vec<u8> {
        let stream = self.begin(path, message);
        let answer = self.world.answer(stream);
        assert!(has(&answer, "grpc-status: 0"), "{path}: {answer:?}");
        self.world.messages(stream).remove(0)
    }

    fn grant(&mut self, id: i64, ttl: i64) -> i64 {
        let bytes = self.ask(GRANT, &pb::LeaseGrantRequest { id, ttl });
        let answer = pb::LeaseGrantResponse::decode(&bytes).unwrap();
        assert!(id == answer.id || id == 0 && answer.id > 0);
        answer.id
    }

    fn put(&mut self, key: &[u8], lease: i64) -> i64 {
        let bytes = self.ask(PUT, &pb::PutRequest { key, lease, ..pb::PutRequest::default() });
        pb::PutResponse::decode(&bytes).unwrap().header.unwrap().revision
    }

    /// Seconds left, seconds granted, keys.
    fn look(&mut self, id: i64) -> (i64, i64, Vec<Vec<u8>>) {
        let bytes = self.ask(TIME_TO_LIVE, &pb::LeaseTimeToLiveRequest { id, keys: true });
        let answer = pb::LeaseTimeToLiveResponse::decode(&bytes).unwrap();
        (answer.ttl, answer.granted_ttl, answer.keys.iter().map(|key| key.to_vec()).collect())
    }

    fn leases(&mut self) -> Vec<i64> {
        let bytes = self.ask(LEASES, &pb::LeaseLeasesRequest {});
        pb::LeaseLeasesResponse::decode(&bytes).unwrap().leases.iter().map(|lease| lease.id).collect()
    }

    fn revision(&self) -> i64 {
        self.world.node.replica().keyspace().published().revision
    }

    fn leases_held(&self) -> usize {
        self.world.node.replica().keyspace().leases().len()
    }
}

#[test]
fn a_lease_lives_while_it_is_renewed_and_takes_its_keys_along() {
    let mut desk = Desk::new();
    let (chosen, other) = (desk.grant(0, 3), desk.grant(-7, 100));
    desk.put(b"b", chosen);
    desk.put(b"a", chosen);
    let revision = desk.put(b"c", other);
    assert_eq!(desk.look(chosen), (2, 3, vec![b"a".to_vec(), b"b".to_vec()]));
    let stream = desk.next();
    desk.world.say(head(stream, KEEP_ALIVE, &[]));
    for _ in 0..4 {
        desk.world.wait(2 * SECOND);
        desk.world.message(stream, &encoded(&pb::LeaseKeepAliveRequest { id: chosen }));
    }
    let renewed = desk.world.messages(stream);
    let renewed: Vec<_> = renewed.iter().map(|bytes| pb::LeaseKeepAliveResponse::decode(bytes).unwrap().ttl).collect();
    assert_eq!((renewed, desk.revision()), (vec![3; 4], revision));
    desk.world.wait(3 * SECOND - SECOND / 10 - 1);
    assert_eq!(desk.revision(), revision, "not before its time");
    desk.world.wait(LATE);
    assert_eq!(desk.revision(), revision + 1, "both keys at one revision");
    assert_eq!((desk.look(chosen), desk.leases()), ((-1, 0, vec![]), vec![-7]));
    let refused = desk.begin(REVOKE, &pb::LeaseRevokeRequest { id: chosen });
    assert!(has(&desk.world.answer(refused), "grpc-message: etcdserver: requested lease not found"));
    desk.world.message(stream, &encoded(&pb::LeaseKeepAliveRequest { id: chosen }));
    let last = desk.world.messages(stream).pop().unwrap();
    assert_eq!(pb::LeaseKeepAliveResponse::decode(&last).unwrap().ttl, 0);
}

#[test]
fn a_crowd_ends_soon_after_its_time_and_in_few_entries() {
    const CROWD: u32 = 3_000;
    let mut desk = Desk::new();
    let mut bytes = Vec::new();
    for id in 1..=CROWD {
        let request = pb::LeaseGrantRequest { id: id.into(), ttl: 60 };
        let stream = desk.next();
        bytes.extend(call(stream, GRANT, &encoded(&request), 0));
        let (key, lease) = (id.to_be_bytes(), id.into());
        let stream = desk.next();
        bytes.extend(call(stream, PUT, &encoded(&pb::PutRequest { key: &key, lease, ..pb::PutRequest::default() }), 0));
    }
    let began = desk.world.port.now;
    bytes.chunks(64 << 10).for_each(|part| desk.world.say(part.to_vec()));
    let revision = 1 + i64::from(CROWD);
    assert_eq!((desk.leases_held(), desk.revision()), (CROWD as usize, revision));
    let took = desk.world.port.now - began;
    assert!(took < 30 * SECOND, "all live at one time: {took}");
    desk.world.wait(59 * SECOND - took);
    assert_eq!(desk.leases_held(), CROWD as usize);
    let entries = desk.world.node.replica().applied().0;
    desk.world.wait(SECOND + took + LATE);
    assert_eq!((desk.leases_held(), desk.revision()), (0, revision + i64::from(CROWD)));
    let entries = desk.world.node.replica().applied().0 - entries;
    assert!(entries < 50, "{entries} entries for {CROWD} ends");
}

#[test]
fn a_renewal_of_what_has_run_out_waits_for_its_end_and_others_behind_it() {
    let mut desk = Desk::new();
    desk.grant(1, 2);
    desk.grant(2, 100);
    let stream = desk.next();
    desk.world.say(head(stream, KEEP_ALIVE, &[]));
    desk.world.port.is_stalled = true;
    desk.world.wait(3 * SECOND);
    for id in [1, 2] {
        desk.world.message(stream, &encoded(&pb::LeaseKeepAliveRequest { id }));
    }
    assert!(desk.world.messages(stream).is_empty(), "its end is not durable");
    desk.world.port.end_stall();
    desk.world.wait(SECOND);
    let answers = desk.world.messages(stream);
    let answers: Vec<_> = answers.iter().map(|bytes| pb::LeaseKeepAliveResponse::decode(bytes).unwrap()).collect();
    assert_eq!(answers.iter().map(|answer| (answer.id, answer.ttl)).collect::<Vec<_>>(), [(1, 0), (2, 100)]);
}

#[test]
fn a_lease_that_is_granted_anew_does_not_end_for_the_one_before() {
    let mut desk = Desk::new();
    desk.grant(1, 2);
    desk.world.port.is_stalled = true;
    let ended = desk.begin(REVOKE, &pb::LeaseRevokeRequest { id: 1 });
    let granted = desk.begin(GRANT, &pb::LeaseGrantRequest { id: 1, ttl: 100 });
    desk.world.wait(4 * SECOND);
    desk.world.port.end_stall();
    desk.world.wait(SECOND);
    assert!([ended, granted].iter().all(|stream| has(&desk.world.answer(*stream), "grpc-status: 0")));
    assert_eq!(desk.look(1).1, 100);
}

#[test]
fn a_new_process_gives_every_lease_its_whole_time() {
    let mut desk = Desk::new();
    desk.grant(i64::MIN, 5);
    desk.grant(i64::MAX, 50);
    desk.put(b"k", i64::MIN);
    desk.world.wait(4 * SECOND);
    let mut desk = desk.restarted();
    let (left, granted, keys) = desk.look(i64::MIN);
    assert!((3..=5).contains(&left) && granted == 5, "{left} of {granted}");
    assert_eq!((keys, desk.leases()), (vec![b"k".to_vec()], vec![i64::MIN, i64::MAX]));
    desk.world.wait(7 * SECOND);
    assert_eq!((desk.leases(), desk.revision()), (vec![i64::MAX], 3));
}

#[test]
fn time_that_the_process_did_not_see_counts_for_nobody() {
    let mut desk = Desk::new();
    desk.grant(1, 5);
    desk.world.port.now += 60 * SECOND;
    let (left, ..) = desk.look(1);
    assert!((4..=5).contains(&left), "{left}");
    desk.world.wait(6 * SECOND);
    assert!(desk.leases().is_empty());
}

#[test]
fn long_lists_are_whole_and_in_order() {
    let mut desk = Desk::new();
    let mut bytes = Vec::new();
    for id in 1..=3_000 {
        // The later ids live shorter.
        let stream = desk.next();
        bytes.extend(call(stream, GRANT, &encoded(&pb::LeaseGrantRequest { id, ttl: 10_000 - id }), 0));
    }
    desk.world.say(bytes);
    assert!(desk.leases().into_iter().eq((1..=3_000).rev()));
    let (filler, mut bytes) = ([b'x'; 200], Vec::new());
    for number in 0..3_000_u32 {
        let key = [&number.to_be_bytes()[..], &filler].concat();
        let stream = desk.next();
        let put = pb::PutRequest { key: &key, lease: 9, ..pb::PutRequest::default() };
        bytes.extend(call(stream, PUT, &encoded(&put), 0));
    }
    bytes.chunks(64 << 10).for_each(|part| desk.world.say(part.to_vec()));
    let (_, granted, keys) = desk.look(9);
    assert_eq!((granted, keys.len()), (9_991, 3_000));
    assert!(keys.is_sorted() && keys.iter().all(|key| key.len() == 204));
    assert!(desk.look(8).2.is_empty());
}

#[test]
fn what_cannot_be_granted_is_refused_in_etcds_words() {
    let mut desk = Desk::new();
    desk.grant(5, 0);
    assert_eq!(desk.look(5).1, 2, "the shortest life");
    for (id, ttl, message) in [
        (5, 10, "etcdserver: lease already exists"),
        (5, 9_000_000_001, "etcdserver: too large lease TTL"),
        (6, i64::MAX, "etcdserver: too large lease TTL"),
    ] {
        let stream = desk.begin(GRANT, &pb::LeaseGrantRequest { id, ttl });
        let answer = desk.world.answer(stream);
        assert!(has(&answer, &format!("grpc-message: {message}")), "{answer:?}");
    }
    desk.grant(6, 9_000_000_000);
    let revoked = desk.ask(REVOKE, &pb::LeaseRevokeRequest { id: 6 });
    assert_eq!(pb::LeaseRevokeResponse::decode(&revoked).unwrap().header.unwrap().revision, 1);
}
