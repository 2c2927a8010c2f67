//! Exact effects of a single voter: what leaves, in which order, and what each completion releases.

use std::sync::Arc;

use trilith_raftlog::wal::RecoverError;
use trilith_raftlog::{
    Boot, EntryType, Generation, Index, Lsn, Options, ProposeError, Raft, RaftEffect, ReadError, RecoverOptions, Role,
    Term,
};

use crate::support::{Answer, IDENTITY, Image, Member, leader, small_options};

fn answers(member: &Member) -> Vec<Answer> {
    member.flights.iter().map(|flight| flight.answer.clone()).collect()
}

fn segment(sequence: u64) -> Answer {
    Answer::Segment(trilith_raftlog::SegmentSequence(sequence))
}

#[test]
fn a_first_boot_votes_durably_then_prepares_then_appends() {
    let mut member = Member::boot(small_options(), Image::default(), Index::ZERO, Vec::new(), 0);
    assert_eq!(answers(&member), [Answer::HardState(Generation(1), 0)]);
    assert_eq!((member.raft.role(), member.raft.term()), (Role::Candidate, Term(2)));
    member.complete(0);
    assert_eq!(answers(&member), [Answer::HardState(Generation(1), 1)]);
    assert_eq!(member.raft.role(), Role::Candidate, "one copy is not durable");
    member.complete(0);
    assert_eq!(member.raft.role(), Role::Leader);
    assert_eq!(answers(&member), [segment(1)]);
    member.complete(0);
    // The configuration of term 1 and the no-op of term 2 are two batches; the second segment is asked for ahead.
    assert_eq!(answers(&member), [Answer::Append(Lsn(1)), Answer::Append(Lsn(2)), segment(2)]);
    member.complete(1);
    assert_eq!(member.raft.commit(), Index::ZERO, "a hole below: nothing is durable");
    member.complete(0);
    assert_eq!(member.raft.commit(), Index(2));
    let types: Vec<EntryType> = member.committed.iter().map(|entry| entry.entry_type).collect();
    assert_eq!(types, [EntryType::Configuration, EntryType::NoOp]);
    assert_eq!((member.committed[0].term, member.committed[1].term), (Term(1), Term(2)));
    assert_eq!(*member.committed[0].payload, b"configuration");
}

#[test]
fn batches_share_a_write_while_the_queue_is_full() {
    let mut member = leader(small_options());
    assert!(member.raft.wants_entry());
    member.propose(vec![1; 10]);
    assert!(member.raft.wants_entry());
    member.propose(vec![2; 10]);
    assert!(!member.raft.wants_entry(), "two writes are in flight");
    for n in 0..20 {
        member.propose(vec![n; 10]);
    }
    assert_eq!(answers(&member), [Answer::Append(Lsn(3)), Answer::Append(Lsn(4))]);
    member.complete(1);
    assert_eq!(member.raft.commit(), Index(2), "LSN 3 is still out");
    assert_eq!(answers(&member), [Answer::Append(Lsn(3))], "the depth counts what is not contiguous");
    member.complete(0);
    assert_eq!(member.raft.commit(), Index(4));
    // Twenty entries: sixteen fit a header, four follow.
    assert_eq!(answers(&member), [Answer::Append(Lsn(5)), Answer::Append(Lsn(6))]);
    member.complete(0);
    assert_eq!(member.raft.commit(), Index(20));
    member.settle();
    assert_eq!(member.raft.commit(), Index(24));
}

#[test]
fn a_small_batch_is_one_block_and_a_large_entry_stands_alone() {
    let mut member = leader(small_options());
    member.propose(vec![1; 3072]);
    assert_eq!(member.flights[0].bytes.len(), 4096);
    member.propose(vec![1; 3073]);
    assert_eq!(member.flights[1].bytes.len(), 8192);
    member.propose(vec![3; 100]);
    member.propose(vec![4; 12_000]);
    member.settle();
    assert_eq!(member.raft.commit(), Index(6));
    assert_eq!(member.raft.propose(Arc::new(vec![0; 12_001])), Err(ProposeError::TooLarge));
}

#[test]
fn appends_wait_for_a_segment_that_is_not_ready() {
    let mut member = leader(small_options());
    // 28 KiB of room, two blocks used; LSN 5 opens segment 2, LSN 7 needs segment 3, which is not answered.
    let mut held = None;
    for n in 0..6u8 {
        member.propose(vec![n; 12_000]);
        if let Some(at) = member.flights.iter().position(|flight| flight.answer == segment(3)) {
            held = Some(member.flights.remove(at));
        }
        while !member.flights.is_empty() {
            member.complete(0);
            if let Some(at) = member.flights.iter().position(|flight| flight.answer == segment(3)) {
                held = Some(member.flights.remove(at));
            }
        }
    }
    let stuck = member.raft.commit();
    assert!(stuck < member.raft.last().index && !member.raft.wants_entry());
    member.flights.push(held.expect("segment 3 was asked for"));
    member.settle();
    assert_eq!(member.raft.commit(), member.raft.last().index);
}

#[test]
fn a_quiet_log_gets_one_watermark_and_the_timer_rests() {
    let mut member = leader(small_options());
    let deadline = member.raft.deadline().expect("the quiet timer runs");
    assert_eq!(deadline, 2_000_000);
    member.advance(deadline - 1);
    assert!(member.flights.is_empty());
    member.advance(1);
    assert_eq!(answers(&member), [Answer::Append(Lsn(3))]);
    member.settle();
    assert_eq!(member.raft.deadline(), None, "a watermark does not restart the timer");
    member.advance(1_000_000_000);
    assert!(member.flights.is_empty());
    assert_eq!(member.raft.last().index, Index(2));
    member.propose(vec![1]);
    assert_eq!(member.raft.deadline(), None, "something is in flight");
    member.settle();
    assert!(member.raft.deadline().is_some());
}

#[test]
fn a_failed_write_ends_everything() {
    let mut member = leader(small_options());
    member.propose(vec![1]);
    member.propose(vec![2]);
    member.raft.read_index(9).expect("a leader reads");
    member.raft.handle_write_failed();
    assert_eq!(member.raft.poll_effect(), None);
    member.complete(1);
    member.complete(0);
    assert!(member.raft.is_poisoned());
    assert_eq!(member.raft.commit(), Index(2));
    assert_eq!(member.raft.propose(Arc::new(vec![3])), Err(ProposeError::Stopped));
    assert_eq!(member.raft.read_index(10), Err(ReadError::Stopped));
    assert_eq!(member.raft.deadline(), None);
    assert!(!member.other_effects.iter().any(|effect| matches!(effect, RaftEffect::ReadReady { .. })));
}

#[test]
fn reads_wait_for_a_commit_of_the_term() {
    let mut member = Member::boot(small_options(), Image::default(), Index::ZERO, Vec::new(), 0);
    assert_eq!(member.raft.read_index(1), Err(ReadError::NotLeader { leader: None }));
    member.complete(0);
    member.complete(0);
    member.raft.read_index(2).expect("a leader queues reads");
    member.complete(0);
    member.complete(0);
    assert!(!member.other_effects.iter().any(|effect| matches!(effect, RaftEffect::ReadReady { .. })));
    member.complete(0);
    let ready = member.other_effects.iter().filter_map(|effect| match effect {
        RaftEffect::ReadReady { context, index, .. } => Some((*context, *index)),
        _ => None,
    });
    assert_eq!(ready.collect::<Vec<_>>(), [(2, Index(2))]);
}

#[test]
fn a_graceful_stop_writes_the_last_record_and_the_log_goes_on_behind_it() {
    let mut member = leader(small_options());
    member.propose(vec![1; 10]);
    member.raft.handle_stop(5);
    assert_eq!(member.raft.propose(Arc::new(vec![3])), Err(ProposeError::Stopped));
    member.pump();
    assert_eq!(answers(&member), [Answer::Append(Lsn(3))]);
    member.complete(0);
    assert_eq!(answers(&member), [Answer::Append(Lsn(4))]);
    assert!(!member.raft.is_stopped());
    member.complete(0);
    assert!(member.raft.is_stopped());

    let mut again = Member::boot(small_options(), member.image, Index::ZERO, member.committed, 10);
    again.complete(0);
    again.complete(0);
    assert_eq!(answers(&again).last(), Some(&Answer::Append(Lsn(5))), "no segment is needed first");
    let append = again.flights.last().expect("in flight");
    assert_eq!((append.file.as_str(), append.offset), ("wal/seg-0000", 5 * 4096));
    again.settle();
    assert_eq!(again.raft.term(), Term(3));
    assert_eq!(again.raft.boot_number().0, 2);
    assert_eq!(again.raft.commit(), Index(4));

    // Killed now: the next boot seals, although nothing was torn.
    let mut third = Member::boot(small_options(), again.image, Index::ZERO, again.committed, 20);
    third.complete(0);
    third.complete(0);
    assert!(matches!(answers(&third)[0], Answer::Segment(_)));
    third.settle();
    assert_eq!(third.raft.commit(), Index(5));
}

#[test]
fn what_was_recovered_as_committed_can_be_applied_at_once() {
    let mut member = leader(small_options());
    member.propose(vec![1; 10]);
    member.settle();
    member.propose(vec![2; 10]);
    member.settle();
    let recovered = member.image.recover(Index::ZERO).expect("sound");
    assert_eq!(recovered.hard_state.map(|state| state.commit), Some(Index(3)), "the last batch hints at index 3");
    let boot = Boot {
        identity: IDENTITY,
        voters: vec![IDENTITY.member_id],
        configuration: Vec::new(),
        applied: Index::ZERO,
        recovered,
        seed: 1,
        now: 0,
    };
    let mut raft = Raft::boot(small_options(), boot);
    let effects: Vec<RaftEffect> = std::iter::from_fn(|| raft.poll_effect()).collect();
    let commits = effects.iter().filter(|effect| matches!(effect, RaftEffect::Commit { up_to: Index(3), .. }));
    assert_eq!(commits.count(), 1, "{effects:?}");
}

#[test]
fn a_checkpoint_recycles_slots_and_recovery_starts_behind_it() {
    let mut member = leader(small_options());
    for n in 0..200u8 {
        member.propose(vec![n; 3_000]);
        member.settle();
        member.apply();
        if n % 10 == 9 {
            member.raft.handle_checkpoint(Index(member.raft.commit().0 - 3));
            member.pump();
            member.settle();
        }
    }
    assert!(member.image.files.len() <= 2 + 4, "slots are recycled: {:?}", member.image.files.keys());
    assert!(member.raft.log_file_bytes() <= 3 * 32 * 1024);
    assert_eq!(member.raft.log_memory_bytes(), 0, "nothing is kept after it is applied");
    let after = Index(member.raft.commit().0 - 3);
    let recovered = member.image.recover(after).expect("sound");
    assert_eq!(recovered.base, member.committed[after.0 as usize - 1].position());
    assert!(recovered.entries == member.committed[after.0 as usize..]);
    // What a checkpoint never covered, or a checkpoint the log never reached, is refused by name.
    let early = member.image.recover(Index(5));
    assert!(matches!(early, Err(RecoverError::Missing { needed: Index(5), .. })), "{early:?}");
    assert!(matches!(member.image.recover(Index::ZERO), Err(RecoverError::Rot { .. })));
    let late = member.image.recover(Index(10_000));
    assert!(matches!(late, Err(RecoverError::Missing { needed: Index(10_000), .. })), "{late:?}");
}

#[test]
fn the_operator_may_discard_from_a_named_lsn() {
    let mut member = leader(small_options());
    for n in 0..5u8 {
        member.propose(vec![n; 100]);
        member.settle();
    }
    member.advance(2_000_000);
    member.settle();
    // LSN 5 (index 5) rots: block 5 of the first segment.
    let mut image = member.image.clone();
    image.files.get_mut("wal/seg-0000").expect("exists")[5 * 4096 + 600] ^= 1;
    let Err(RecoverError::Rot { place, watermark }) = image.recover(Index::ZERO) else { panic!("rot is refused") };
    assert_eq!((place.file.as_str(), place.offset), ("wal/seg-0000", 5 * 4096));
    assert_eq!((place.lsn, place.index, watermark), (Lsn(5), Index(5), Lsn(7)));
    let text = RecoverError::Rot { place, watermark }.to_string();
    assert!(text.contains("file wal/seg-0000 offset 20480 lsn 5 index 5"), "{text}");

    for other in [1, 4, 6, 7, 100] {
        let options = RecoverOptions { after: Index::ZERO, discard_from: Some(Lsn(other)) };
        assert!(image.recover_with(options).is_err(), "only the LSN named may be given up, not {other}");
    }
    let options = RecoverOptions { after: Index::ZERO, discard_from: Some(Lsn(5)) };
    let recovered = image.recover_with(options).expect("told to");
    assert_eq!((recovered.last_lsn, recovered.last().index), (Lsn(4), Index(4)));
    assert_eq!(recovered.dropped.map(|tail| (tail.first_lsn, tail.records)), Some((Lsn(5), 4)));
    let kept = member.committed[..4].to_vec();
    let mut again = Member::boot_recovered(small_options(), image, recovered, Index::ZERO, kept, 0);
    again.settle();
    again.propose(vec![9; 9]);
    again.settle();
    // The order is needed once: the sealing header voids what was given up; left in place, it does nothing.
    let recovered = again.image.recover_with(options).expect("sealed");
    assert!(recovered == again.image.recover(Index::ZERO).expect("sealed"));
    assert!(recovered.entries == again.committed);
    assert_eq!(recovered.last().index, Index(6));
}

#[test]
fn proposals_are_refused_when_too_much_waits() {
    let options = Options { log_bytes_max: 30_000, ..small_options() };
    let mut member = leader(options);
    while member.raft.propose(Arc::new(vec![1; 10_000])).is_ok() {}
    assert_eq!(member.raft.propose(Arc::new(vec![1])), Err(ProposeError::Full));
    member.pump();
    member.settle();
    assert_eq!(member.raft.propose(Arc::new(vec![1])), Err(ProposeError::Full), "committed is not applied");
    member.apply();
    member.propose(vec![1]);
}
