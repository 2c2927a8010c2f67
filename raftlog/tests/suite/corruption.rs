//! One fault anywhere: recovery returns everything acknowledged, or refuses by name; it never loses silently.
//!
//! The images' last acknowledged batch lies under a watermark, as it does 2 ms after every burst and after every stop.

use trilith_raftlog::wal::RecoverError;
use trilith_raftlog::{Entry, Index, Lsn, Options, RecoverOptions};

use crate::support::{Image, Member, Rng, leader, seeds, small_options};

/// An image with recycled slots, several lives, a dropped tail and a final watermark; with what it must return.
fn sample(seed: u64) -> (Image, Index, Vec<Entry>) {
    let mut rng = Rng::new(seed);
    let options = Options { segment_bytes: 16 * 1024, entry_bytes_max: 8_000, ..small_options() };
    let mut member = leader(options);
    let mut after = Index::ZERO;
    for life in 0..3 {
        for _ in 0..8 + rng.below(12) {
            let len = if rng.one_in(3) { rng.below(8_000) } else { rng.below(300) };
            member.propose(vec![rng.next() as u8; len]);
            if rng.one_in(2) {
                member.settle();
                member.apply();
            }
            if rng.one_in(12) {
                member.settle();
                member.apply();
                after = Index(member.raft.commit().0 - rng.below(3) as u64);
                member.raft.handle_checkpoint(after.next());
                member.pump();
            }
        }
        if life < 2 {
            member.settle();
            // A tail with a hole: the first write of two is lost.
            member.propose(vec![1; 50]);
            member.propose(vec![2; 50]);
            for flight in member.flights.split_off(1) {
                flight.land(&mut member.image);
            }
            member = Member::boot(options, member.image, after, member.committed, member.now);
            member.settle();
        }
    }
    member.settle();
    if rng.one_in(2) {
        member.raft.handle_stop(member.now);
        member.pump();
    } else {
        member.advance(2_000_000);
    }
    member.settle();
    assert_eq!(member.raft.commit(), member.raft.last().index);
    (member.image, after, member.committed)
}

/// How a refusal names the place.
fn is_named(error: &RecoverError, file: &str) -> bool {
    match error {
        RecoverError::Rot { place, .. }
        | RecoverError::BrokenChain { place, .. }
        | RecoverError::Missing { place, .. }
        | RecoverError::SegmentHeaderLost(place)
        | RecoverError::SegmentLost(place) => {
            let text = error.to_string();
            place.lsn.0 > 0
                && place.index.0 > 0
                && place.file == file
                && ["file ", "offset ", "lsn ", "index "].iter().all(|word| text.contains(word))
        }
        RecoverError::HardStateLost { file: named } => named == file,
        _ => false,
    }
}

#[derive(Default, Debug)]
struct Outcomes {
    recovered: u64,
    refused: u64,
}

fn check(image: &Image, after: Index, committed: &[Entry], file: &str, what: &str, outcomes: &mut Outcomes) {
    match image.recover(after) {
        Ok(recovered) => {
            let expected = &committed[after.0 as usize..];
            assert!(recovered.entries.len() >= expected.len(), "{what}: entries were lost silently");
            assert!(recovered.entries == *expected, "{what}: other entries");
            outcomes.recovered += 1;
        }
        Err(error) => {
            assert!(is_named(&error, file), "{what}: {error}");
            outcomes.refused += 1;
        }
    }
}

#[test]
fn one_fault_is_recovered_from_or_refused_by_name() {
    let mut outcomes = Outcomes::default();
    for seed in seeds(6) {
        let (image, after, committed) = sample(seed);
        check(&image, after, &committed, "", &format!("seed {seed} intact"), &mut outcomes);
        let mut rng = Rng::new(seed ^ 0xfa17);
        for (file, bytes) in &image.files {
            for sector in 0..bytes.len() / 512 {
                let at = sector * 512;
                for name in ["zeroed sector", "smeared sector", "bit flip", "another bit flip"] {
                    let mut rotten = image.clone();
                    let bytes = &mut rotten.files.get_mut(file).expect("exists")[at..at + 512];
                    match name {
                        "zeroed sector" => bytes.fill(0),
                        "smeared sector" => bytes.fill(0xa5),
                        _ => bytes[rng.below(512)] ^= 1 << rng.below(8),
                    }
                    let what = format!("seed {seed}: {name} in {file} at {at}");
                    check(&rotten, after, &committed, file, &what, &mut outcomes);
                }
            }
            for block in 0..bytes.len() / 4096 {
                let at = block * 4096;
                let mut rotten = image.clone();
                rotten.files.get_mut(file).expect("exists")[at..at + 4096].fill(0);
                let what = format!("seed {seed}: lost block in {file} at {at}");
                check(&rotten, after, &committed, file, &what, &mut outcomes);
            }
        }
    }
    println!("{outcomes:?}");
    assert!(outcomes.recovered > 0 && outcomes.refused > 0, "both outcomes occur: {outcomes:?}");
}

#[test]
fn a_shortened_segment_is_refused() {
    let (mut image, after, _) = sample(1);
    let bytes = image.files.get_mut("wal/seg-0001").expect("exists");
    let len = bytes.len();
    bytes.truncate(len - 4096);
    let error = image.recover(after).expect_err("shorter than its header says");
    assert!(matches!(error, RecoverError::Truncated { bytes: 12_288, expected: 16_384, .. }), "{error}");
}

#[test]
fn a_segment_that_is_not_there_is_not_needed_or_named() {
    let mut outcomes = Outcomes::default();
    for seed in seeds(12) {
        let (image, after, committed) = sample(seed);
        let segments = image.files.keys().filter(|name| name.starts_with("wal/seg"));
        for file in segments {
            for len in [None, Some(0), Some(512), Some(4_095)] {
                let mut rotten = image.clone();
                match len {
                    None => drop(rotten.files.remove(file)),
                    Some(len) => rotten.files.get_mut(file).expect("exists").truncate(len),
                }
                let what = format!("seed {seed}: {file} ends at {len:?}");
                check(&rotten, after, &committed, file, &what, &mut outcomes);
            }
        }
    }
    assert!(outcomes.recovered > 0 && outcomes.refused > 0, "both outcomes occur: {outcomes:?}");
}

#[test]
fn a_lost_segment_can_be_given_up() {
    let mut member = leader(small_options());
    member.propose(vec![1; 50]);
    member.settle();
    let mut image = member.image.clone();
    image.files.remove("wal/seg-0000");
    let error = image.recover(Index::ZERO).expect_err("the segment made ready names it");
    let place = error.place().expect("a place").clone();
    assert!(matches!(error, RecoverError::SegmentLost(_)), "{error}");
    assert_eq!((place.file.as_str(), place.lsn), ("wal/seg-0000", Lsn(1)));
    let order = RecoverOptions { after: Index::ZERO, discard_from: Some(place.lsn) };
    assert_eq!(image.recover_with(order).map(|recovered| recovered.entries), Ok(Vec::new()));
}

#[test]
fn a_file_under_another_name_is_refused() {
    let (mut image, after, _) = sample(1);
    let bytes = image.files["wal/seg-0001"].clone();
    image.files.insert("wal/seg-0000".to_owned(), bytes);
    assert_eq!(image.recover(after), Err(RecoverError::Foreign { file: "wal/seg-0000".to_owned() }));
}

#[test]
fn both_hard_states_lost_is_refused() {
    let (mut image, after, _) = sample(1);
    image.files.remove("wal/hard-state-0");
    image.files.remove("wal/hard-state-1");
    let error = image.recover(after).expect_err("the segments show use");
    assert!(matches!(error, RecoverError::HardStateLost { .. }), "{error}");
}

#[test]
fn either_copy_of_a_header_is_enough() {
    let mut member = leader(small_options());
    member.propose(vec![1; 5_000]);
    member.settle();
    let (start, end) = (3 * 4096, 5 * 4096);
    for at in [0, 3584, start, end - 512] {
        let mut image = member.image.clone();
        image.files.get_mut("wal/seg-0000").expect("exists")[at..at + 512].fill(0);
        let recovered = image.recover(Index::ZERO).expect("one copy is left");
        assert!(recovered.entries == member.committed, "sector at {at}");
        assert_eq!(recovered.dropped, None);
    }
}

#[test]
fn a_lost_hard_state_copy_is_made_up_by_the_other() {
    let mut member = leader(small_options());
    member.propose(vec![1; 50]);
    member.settle();
    for copy in ["wal/hard-state-0", "wal/hard-state-1"] {
        let mut image = member.image.clone();
        image.files.get_mut(copy).expect("exists")[100] ^= 4;
        let mut next = Member::boot(small_options(), image, Index::ZERO, member.committed.clone(), 0);
        assert_eq!(next.flights[0].file, copy, "the damaged copy is written first");
        next.settle();
        assert!(next.image.files["wal/hard-state-0"] == next.image.files["wal/hard-state-1"]);
        assert_eq!(next.raft.commit(), Index(4));
    }
}
