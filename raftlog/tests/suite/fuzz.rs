//! Foreign bytes: recovery parses or rejects, and what it accepts the machine can run on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use trilith_raftlog::wal::frame::{RecordHeader, SegmentHeader, SegmentSector};
use trilith_raftlog::{HardState, Index, Lsn, RecoverOptions, Role};

use crate::support::{IDENTITY, Image, Member, Rng, leader, seeds, small_options};

fn sample(rng: &mut Rng) -> Image {
    let mut member = leader(small_options());
    for _ in 0..rng.below(12) {
        member.propose(vec![rng.next() as u8; rng.below(6_000)]);
        if rng.one_in(2) {
            member.settle();
        }
    }
    if rng.one_in(2) {
        member.settle();
        member.advance(2_000_000);
        member.settle();
    }
    member.image
}

/// Sets fields to extreme values and makes the checksum right again, as a hostile or buggy writer would.
fn forge(sector: &mut [u8], rng: &mut Rng) {
    let extremes = [0, 1, 2, 16, 255, 4_096, u64::from(u32::MAX), u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for _ in 0..1 + rng.below(3) {
        let at = 4 + rng.below(60) * 8;
        let value = if rng.one_in(2) { extremes[rng.below(extremes.len())] } else { rng.next() % 40 };
        let width = [1, 4, 8][rng.below(3)];
        sector[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    let crc = crc32fast::hash(&sector[..508]);
    sector[508..].copy_from_slice(&crc.to_le_bytes());
}

fn damage(image: &mut Image, rng: &mut Rng) {
    let names: Vec<String> = image.files.keys().cloned().collect();
    for _ in 0..1 + rng.below(6) {
        let name = &names[rng.below(names.len())];
        let other = image.files[&names[rng.below(names.len())]].clone();
        let bytes = image.files.get_mut(name).expect("listed");
        if bytes.len() < 4096 {
            continue;
        }
        let blocks = bytes.len() / 4096;
        let sector = [0, 7][rng.below(2)] * 512 + rng.below(blocks.min(8)) * 4096;
        match rng.below(8) {
            0 => bytes.iter_mut().skip(sector).take(700).for_each(|byte| *byte = rng.next() as u8),
            1 => bytes.truncate(rng.below(bytes.len())),
            2 => {
                // Another block in this one's place.
                let from = rng.below(other.len() / 4096 + 1).min(other.len().saturating_sub(1) / 4096) * 4096;
                if let Some(block) = other.get(from..from + 4096) {
                    let at = sector / 4096 * 4096;
                    bytes[at..at + 4096].copy_from_slice(block);
                }
            }
            _ => forge(&mut bytes[sector..sector + 512], rng),
        }
    }
}

fn run(image: &Image, rng: &mut Rng) -> bool {
    let after = Index([0, 0, 1, 3, u64::MAX / 4][rng.below(5)]);
    let discard_from = rng.one_in(4).then(|| Lsn(rng.next() % 12));
    let Ok(recovered) = image.recover_with(RecoverOptions { after, discard_from }) else { return false };
    assert_eq!(recovered.base.index, after);
    assert!(recovered.entries.len() < 1_000);
    if recovered.hard_state.is_some_and(|state| state.identity != IDENTITY) {
        return true;
    }
    // What was accepted must carry a life: boot, elect, append, commit. Foreign segments keep their own sizes.
    let mut member = Member::boot_unchecked(small_options(), image.clone(), recovered, after);
    member.settle();
    assert_eq!(member.raft.role(), Role::Leader);
    assert_eq!(member.raft.commit(), member.raft.last().index);
    true
}

#[test]
fn damaged_images_never_panic() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in seeds(1_500) {
        let mut rng = Rng::new(seed);
        let mut image = sample(&mut rng);
        damage(&mut image, &mut rng);
        match catch_unwind(AssertUnwindSafe(|| run(&image, &mut rng))) {
            Ok(true) => accepted += 1,
            Ok(false) => refused += 1,
            Err(_) => panic!("seed {seed} panicked"),
        }
    }
    println!("accepted {accepted} refused {refused}");
    assert!(accepted > 0 && refused > 0, "both outcomes occur: {accepted} {refused}");
}

#[test]
fn random_bytes_are_nothing() {
    for seed in seeds(200) {
        let mut rng = Rng::new(seed);
        let mut image = Image::default();
        for name in ["wal/hard-state-0", "wal/hard-state-1", "wal/seg-0000", "wal/seg-0007"] {
            let len = [0, 100, 4_096, 20_000][rng.below(4)];
            let bytes = (0..len).map(|_| rng.next() as u8).collect();
            if rng.one_in(2) {
                image.files.insert(name.to_owned(), bytes);
            }
        }
        // Noise without a hard state is an unused directory, noise in its place is a lost one.
        let _ = image.recover(Index::ZERO);
        let sector: Vec<u8> = (0..512).map(|_| rng.next() as u8).collect();
        assert!(RecordHeader::decode(&sector).is_none());
        assert!(matches!(SegmentHeader::decode(&sector), SegmentSector::Invalid));
        let _ = HardState::decode(Some(&sector[..rng.below(512)]));
        assert!(RecordHeader::decode(&sector[..rng.below(511)]).is_none());
    }
}
