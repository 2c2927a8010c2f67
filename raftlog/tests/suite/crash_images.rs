//! Every state a crash can leave: recovery returns everything acknowledged, nothing that was never proposed, and the
//! next life works on it.
//!
//! At sampled moments all subsets of the writes in flight are enumerated, and torn variants of them by 512-byte sector.
//! Lives follow each other on one of those images; a killed life's appends may land late in the next one.

use std::sync::Arc;
use trilith_raftlog::wal::hard_state::HardStateCopy;
use trilith_raftlog::wal::hard_state_file_name;

use trilith_raftlog::{Entry, EntryType, HardState, Index, Lsn, MemberId, Message, MessageBody, Options, Role, Term};

use crate::cluster::Cluster;
use crate::support::{Answer, Flight, Image, Member, Rng, seeds, small_options};

/// Enumerated subsets: 2^5 of the oldest writes in flight; later ones are drawn.
const ENUMERATED_MAX: usize = 5;
const LIVES: usize = 5;
const STEPS: usize = 60;

fn random_options(rng: &mut Rng) -> Options {
    let segment_bytes = [16, 32, 64, 256][rng.below(4)] * 1024;
    let entry_bytes_max = [1_000, 6_000, 11_000][rng.below(3)];
    Options {
        segment_bytes,
        entry_bytes_max,
        batch_bytes_max: entry_bytes_max / [1, 2, 4][rng.below(3)],
        appends_in_flight_max: 1 + rng.below(4),
        ..small_options()
    }
}

/// What the outside world relies on.
struct Promise {
    committed: Vec<Entry>,
    /// The log as proposed; recovery may return a prefix of it beyond what is committed.
    log: Vec<Entry>,
    term: Term,
    /// The applied index of the oldest retained checkpoint.
    after: Index,
}

impl Promise {
    fn of(member: &Member, log: &[Entry], after: Index) -> Self {
        let mut log = log.to_vec();
        extend_log(&mut log, member);
        let term = match member.raft.role() {
            Role::Leader => member.raft.term(),
            _ => Term(0),
        };
        Self { committed: member.committed.clone(), log, term, after }
    }

    fn check(&self, image: &Image, what: &str) {
        let recovered = image.recover(self.after).unwrap_or_else(|error| panic!("{what}: refused: {error}"));
        let after = self.after.0 as usize;
        let missing = self.committed.len().saturating_sub(after);
        assert!(recovered.entries.len() >= missing, "{what}: acknowledged entries are lost");
        assert!(after + recovered.entries.len() <= self.log.len(), "{what}: entries nobody proposed");
        let same = recovered.entries == self.log[after..after + recovered.entries.len()];
        assert!(same, "{what}: other entries: {:?} dropped {:?}", recovered.last(), recovered.dropped);
        let term = recovered.hard_state.map_or(Term(0), |state| state.term);
        assert!(term >= self.term, "{what}: the term {} of an elected leader is forgotten ({term})", self.term);
    }
}

/// Adds what the member holds beyond `log`; what it holds wins.
fn extend_log(log: &mut Vec<Entry>, member: &Member) {
    for index in 1..=member.raft.last().index.0 {
        if let Some(entry) = member.raft.entry(Index(index)) {
            log.truncate(index as usize - 1);
            log.push(entry.clone());
        }
    }
}

/// All subsets of the oldest writes in flight, the younger ones drawn; then torn variants.
fn crash_images(member: &Member, rng: &mut Rng, torn: usize, mut each: impl FnMut(Image, Vec<Flight>)) {
    let enumerated = member.flights.len().min(ENUMERATED_MAX);
    for subset in 0..1usize << enumerated {
        let mut image = member.image.clone();
        let mut lost = Vec::new();
        for (n, flight) in member.flights.iter().enumerate() {
            let lands = if n < enumerated { subset >> n & 1 == 1 } else { rng.one_in(2) };
            if lands { flight.land(&mut image) } else { lost.push(flight.clone()) }
        }
        each(image, lost);
    }
    for _ in 0..torn {
        let mut image = member.image.clone();
        let mut lost = Vec::new();
        for flight in &member.flights {
            match rng.below(4) {
                0 => lost.push(flight.clone()),
                1 => flight.land(&mut image),
                _ => flight.tear(&mut image, rng),
            }
        }
        each(image, lost);
    }
}

fn step(member: &mut Member, rng: &mut Rng, options: &Options, checkpointed: &mut Index) {
    member.now += rng.next() % 1_500_000;
    match rng.below(10) {
        0..=3 if !member.flights.is_empty() => {
            let n = rng.below(member.flights.len());
            member.complete(n);
        }
        4..=6 if member.raft.role() == Role::Leader => {
            let len = if rng.one_in(3) { rng.below(options.entry_bytes_max + 1) } else { rng.below(200) };
            let byte = rng.next() as u8;
            // Several proposals before the effects are drained share a batch.
            for _ in 0..rng.below(4) {
                let _ = member.raft.propose(vec![byte; rng.below(300)].into());
            }
            let _ = member.raft.propose(vec![byte; len].into());
            member.pump();
        }
        7 => member.advance(2_000_000),
        8 => {
            member.apply();
            // Two checkpoints are retained: the log is freed behind the older one.
            if rng.one_in(2) && member.raft.commit() > *checkpointed {
                member.raft.handle_checkpoint(checkpointed.next());
                *checkpointed = member.raft.commit();
                member.pump();
            }
        }
        _ => member.settle(),
    }
}

/// A late write of a killed process lands; only where its file's name still means the same segment.
fn land_late(member: &mut Member, late: &mut Vec<Flight>, rng: &mut Rng, headers: &Image) {
    // Before the first append the sealing header may not be durable; nothing depends yet on what lands late.
    if late.is_empty() || !member.has_appended() || !rng.one_in(4) {
        return;
    }
    let flight = late.swap_remove(rng.below(late.len()));
    let same = |image: &Image| image.files.get(&flight.file).map(|bytes| bytes[..512.min(bytes.len())].to_vec());
    let recycling = member.flights.iter().any(|f| f.file == flight.file && matches!(f.answer, Answer::Segment(_)));
    if matches!(flight.answer, Answer::Append(_)) && !recycling && same(&member.image) == same(headers) {
        flight.land(&mut member.image);
    }
}

fn run(seed: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let mut options = random_options(&mut rng);
    let mut images = 0;
    let (mut image, mut log, mut late) = (Image::default(), Vec::new(), Vec::new());
    let (mut committed, mut after, mut now) = (Vec::new(), Index::ZERO, 0);
    for life in 0..LIVES {
        let at_boot = image.clone();
        let mut member = Member::boot(options, image, after, committed, now);
        let mut checkpointed = after;
        let mut next = None;
        let mut proposed: Vec<Entry> = log.clone();
        for step_number in 0..STEPS {
            let before = checkpointed;
            step(&mut member, &mut rng, &options, &mut checkpointed);
            if checkpointed != before {
                after = before;
            }
            land_late(&mut member, &mut late, &mut rng, &at_boot);
            extend_log(&mut proposed, &member);
            if step_number % 6 != 5 && step_number != STEPS - 1 {
                continue;
            }
            let what = format!("seed {seed} life {life} step {step_number}");
            let promise = Promise::of(&member, &proposed, after);
            let mut drawn = Rng::new(rng.next());
            crash_images(&member, &mut rng, 12, |crashed, lost| {
                images += 1;
                promise.check(&crashed, &what);
                if next.is_none() || drawn.one_in(8) {
                    next = Some((crashed, lost));
                }
            });
        }
        if rng.one_in(4) {
            member.raft.handle_stop(member.now);
            member.pump();
            member.settle();
            assert!(member.raft.is_stopped(), "seed {seed}: a stop ends");
            extend_log(&mut proposed, &member);
            let promise = Promise::of(&member, &proposed, after);
            assert_eq!(promise.committed.len(), promise.log.len(), "seed {seed}: a stop leaves nothing open");
            promise.check(&member.image, "after a stop");
            next = Some((member.image.clone(), Vec::new()));
        } else {
            // Only an image of the last moment goes with what was acknowledged by then.
            let mut last = None;
            crash_images(&member, &mut rng, 8, |crashed, lost| {
                if last.is_none() || rng_pick(&crashed, lost.len()) {
                    last = Some((crashed, lost));
                }
            });
            next = last;
        }
        (image, late) = next.expect("some image was drawn");
        let recovered = image.recover(after).expect("checked above");
        log = proposed[..(recovered.last().index.0 as usize)].to_vec();
        (committed, now) = (member.committed, member.now);
        if rng.one_in(3) {
            // An operator may change the sizes between lives; entries already written still fit.
            options = Options { appends_in_flight_max: 1 + rng.below(3), segment_bytes: 64 * 1024, ..options };
        }
    }
    images
}

/// A cheap choice that does not borrow the generator.
fn rng_pick(image: &Image, lost: usize) -> bool {
    let sum: u64 = image.files.values().map(|bytes| u64::from(crc32fast::hash(&bytes[..bytes.len().min(8192)]))).sum();
    (sum + lost as u64).is_multiple_of(3)
}

#[test]
fn every_crash_image_keeps_what_was_acknowledged() {
    let mut images = 0;
    for seed in seeds(20) {
        images += run(seed);
    }
    println!("{images} crash images");
    assert!(images > 1_000, "the enumeration is not empty: {images}");
}

#[test]
fn a_hole_above_every_watermark_is_dropped_and_sealed() {
    let options = Options { appends_in_flight_max: 3, ..small_options() };
    let mut member = crate::support::leader(options);
    member.propose(vec![1; 100]);
    member.settle();
    for n in 0..3 {
        member.propose(vec![n; 100]);
    }
    // LSN 4 never lands, 5 and 6 do.
    let lost = member.flights.remove(0);
    for flight in member.flights.drain(..) {
        flight.land(&mut member.image);
    }
    let recovered = member.image.recover(Index::ZERO).expect("a tear");
    assert_eq!(recovered.dropped.map(|tail| (tail.first_lsn.0, tail.records)), Some((4, 2)));
    assert_eq!(recovered.last().index, Index(3));

    let committed = member.committed.clone();
    let mut next = Member::boot(options, member.image, Index::ZERO, committed, 0);
    next.settle();
    next.propose(vec![7; 7]);
    next.settle();
    // The lost write lands after all; with 5 and 6 behind it the old tail would now look whole.
    lost.land(&mut next.image);
    let recovered = next.image.recover(Index::ZERO).expect("voided");
    assert!(recovered.entries == next.committed);
    assert_eq!(recovered.dropped, None);
    assert_eq!(*recovered.entries[4].payload, [7; 7]);
}

#[test]
fn the_copy_that_may_be_lost_is_written_first() {
    let member = crate::support::leader(small_options());
    for stale in 0..2u8 {
        let mut image = member.image.clone();
        let name = hard_state_file_name(stale);
        let HardStateCopy::Valid(mut older) = HardState::decode(image.files.get(&name).map(Vec::as_slice)) else {
            panic!("both copies are valid")
        };
        older.generation = older.generation.previous();
        let newest = older.generation.next();
        image.files.insert(name.clone(), older.encode());
        let recovered = image.recover(Index::ZERO).expect("one copy is a generation behind");
        assert_eq!(recovered.hard_state.map(|state| state.generation), Some(newest));
        let next = Member::boot(small_options(), image, Index::ZERO, member.committed.clone(), 0);
        assert_eq!(next.flights[0].file, name);
    }
}

#[test]
fn the_last_durable_record_is_never_freed() {
    let mut member = crate::support::leader(small_options());
    // 28 KiB of records: two blocks are used, four more and one fill the segment.
    for len in [12_000, 3_000] {
        member.propose(vec![1; len]);
        member.settle();
    }
    member.apply();
    let after = member.raft.commit();
    // Two records in two further segments, both in flight, and the segment after them asked for.
    member.propose(vec![2; 12_000]);
    member.complete(1);
    member.raft.handle_checkpoint(after.next());
    member.propose(vec![3; 12_000]);
    let files: Vec<&str> = member.flights.iter().map(|flight| flight.file.as_str()).collect();
    assert_eq!(files, ["wal/seg-0001", "wal/seg-0002", "wal/seg-0003"], "slot 0 is not recycled yet");
    // Should the preparation land alone, the checkpoint's position must still be found.
    let mut image = member.image.clone();
    member.flights[2].land(&mut image);
    let recovered = image.recover(after).expect("the log still begins at or before the checkpoint");
    assert_eq!(recovered.base, member.committed[after.0 as usize - 1].position());
    // Once the next segment holds a durable record, the slot is recycled.
    member.settle();
    member.apply();
    member.raft.handle_checkpoint(after.next());
    member.propose(vec![4; 12_000]);
    assert_eq!(member.flights.last().map(|flight| flight.file.as_str()), Some("wal/seg-0000"));
}

#[test]
fn what_is_kept_does_not_depend_on_the_checkpoint() {
    let mut cluster = Cluster::default();
    (1..=3).for_each(|id| cluster.boot(id, &[1, 2, 3]));
    cluster.settle();
    cluster.tick(1, 1_500_000_000);
    cluster.settle();
    assert_eq!(cluster.nodes[&1].raft.commit(), Index(2));
    // A leader cut off: index 3 is durable, index 4 in flight when a new leader replaces both.
    cluster.propose(1, b"a");
    cluster.complete(1, 0);
    cluster.propose(1, b"b");
    let previous = cluster.nodes[&1].raft.entry(Index(2)).expect("in memory").position();
    let noop = Entry::new(previous.digest, Index(3), Term(3), EntryType::NoOp, Arc::default());
    let body = MessageBody::Append { previous, entries: vec![noop], commit: Index(2) };
    cluster.deliver(Message { from: MemberId(2), to: MemberId(1), term: Term(3), body });
    cluster.complete(1, 1);
    cluster.complete(1, 1);
    // Index 4's write is lost, the one that supersedes it lands: a hole above every watermark.
    let node = &cluster.nodes[&1];
    let lsns: Vec<&Answer> = node.flights.iter().map(|flight| &flight.answer).collect();
    assert_eq!(lsns, [&Answer::Append(Lsn(5)), &Answer::Append(Lsn(6))]);
    let mut image = node.image.clone();
    node.flights[1].land(&mut image);
    for after in 0..=2 {
        let recovered = image.recover(Index(after)).expect("a tear");
        assert_eq!((recovered.last_lsn, recovered.last().index), (Lsn(4), Index(3)), "after {after}");
        assert_eq!(recovered.dropped.map(|tail| tail.records), Some(1));
    }
}
