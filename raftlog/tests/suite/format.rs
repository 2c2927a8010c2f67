//! docs/format/wal.md, byte by byte: the layout is written down here a second time, by hand.

use trilith_raftlog::wal::frame::{PreviousSegment, Seal, SegmentHeader, SegmentSector, record_bytes};
use trilith_raftlog::wal::hard_state::HardStateCopy;
use trilith_raftlog::{
    BootNumber, Digest, EntryType, Generation, HardState, Index, Lsn, MemberId, Options, SegmentSequence, Term,
};
use xxhash_rust::xxh3::xxh3_128;

use crate::support::{IDENTITY, leader, small_options};

/// Bytes put at offsets, then the checksum.
fn sector(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    for (at, field) in fields {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn identity() -> Vec<u8> {
    [0xc1u64, 1, 0x1_5eed].iter().flat_map(|id| id.to_le_bytes()).collect()
}

#[test]
fn a_record_is_laid_out_as_documented() {
    let mut member = leader(small_options());
    member.propose(b"hello".to_vec());
    let record = member.flights[0].bytes.clone();
    assert_eq!(record.len(), 4096);

    // Entries 1 and 2 by the documented digest: previous, term, index, type, payload.
    let digest = |previous: u128, term: u64, index: u64, entry_type: u8, payload: &[u8]| {
        let parts: [&[u8]; 5] =
            [&previous.to_le_bytes(), &term.to_le_bytes(), &index.to_le_bytes(), &[entry_type], payload];
        xxh3_128(&parts.concat())
    };
    let first = digest(0, 1, 1, EntryType::Configuration as u8, b"configuration");
    let second = digest(first, 2, 2, EntryType::NoOp as u8, b"");
    let third = digest(second, 2, 3, EntryType::Commands as u8, b"hello");
    // The record before, as it lies on the disk: its local digest is over its first 508 bytes.
    let previous = &member.image.files["wal/seg-0000"][8192..8192 + 508];
    let expected = sector(&[
        (0, b"TRWR"),
        (4, &[1, 1]),
        (8, &1u64.to_le_bytes()),
        (16, &12_288u64.to_le_bytes()),
        (24, &3u64.to_le_bytes()),
        (32, &1u64.to_le_bytes()),
        (40, &identity()),
        (64, &3u64.to_le_bytes()),
        (72, &3u64.to_le_bytes()),
        (80, &2u64.to_le_bytes()),
        (88, &2u64.to_le_bytes()),
        (96, &second.to_le_bytes()),
        (112, &2u64.to_le_bytes()),
        (120, &2u64.to_le_bytes()),
        (128, &xxh3_128(previous).to_le_bytes()),
        (144, &4096u32.to_le_bytes()),
        (148, &5u32.to_le_bytes()),
        (152, &crc32fast::hash(b"hello").to_le_bytes()),
        (160, &5u32.to_le_bytes()),
        (164, &third.to_le_bytes()),
    ]);
    assert_eq!(record[..512], expected);
    assert_eq!(record[3584..], expected, "the trailer repeats the header");
    assert_eq!(&record[512..517], b"hello");
    assert!(record[517..3584].iter().all(|byte| *byte == 0));
}

#[test]
fn a_segment_header_is_laid_out_as_documented() {
    let header = SegmentHeader {
        identity: IDENTITY,
        slot: 7,
        sequence: SegmentSequence(9),
        file_bytes: 32_768,
        boot_number: BootNumber(3),
        seal: Some(Seal { after: Lsn(40), digest: Digest(0xd1) }),
        previous: Some(PreviousSegment { sequence: SegmentSequence(8), slot: 5 }),
    };
    let expected = sector(&[
        (0, b"TRILWSEG"),
        (8, &1u32.to_le_bytes()),
        (12, &1u32.to_le_bytes()),
        (16, &identity()),
        (40, &7u32.to_le_bytes()),
        (48, &9u64.to_le_bytes()),
        (56, &32_768u64.to_le_bytes()),
        (64, &3u64.to_le_bytes()),
        (72, &40u64.to_le_bytes()),
        (80, &0xd1u128.to_le_bytes()),
        (96, &8u64.to_le_bytes()),
        (104, &5u32.to_le_bytes()),
    ]);
    let block = header.encode();
    assert_eq!((block.len(), &block[..512], &block[3584..]), (4096, &expected[..], &expected[..]));
    assert!(block[512..3584].iter().all(|byte| *byte == 0));
    assert_eq!(SegmentHeader::decode(&expected), SegmentSector::Valid(header));
    let newer = sector(&[(0, b"TRILWSEG"), (8, &2u32.to_le_bytes())]);
    assert_eq!(SegmentHeader::decode(&newer), SegmentSector::OtherVersion(2));
}

#[test]
fn a_hard_state_is_laid_out_as_documented() {
    let state = HardState {
        generation: Generation(5),
        identity: IDENTITY,
        term: Term(6),
        vote: Some(MemberId(2)),
        commit: Index(8),
        boot_number: BootNumber(3),
    };
    let expected = sector(&[
        (0, b"TRILHARD"),
        (8, &1u32.to_le_bytes()),
        (16, &5u64.to_le_bytes()),
        (24, &identity()),
        (48, &6u64.to_le_bytes()),
        (56, &2u64.to_le_bytes()),
        (64, &8u64.to_le_bytes()),
        (72, &3u64.to_le_bytes()),
    ]);
    let block = state.encode();
    assert_eq!((block.len(), &block[..512]), (4096, &expected[..]));
    assert!(block[512..].iter().all(|byte| *byte == 0));
    assert_eq!(HardState::decode(Some(&block)), HardStateCopy::Valid(state));
    assert_eq!(HardState::decode(Some(&[0; 4096])), HardStateCopy::Absent);
    assert_eq!(HardState::decode(None), HardStateCopy::Absent);
    assert_eq!(HardState::decode(Some(&block[..100])), HardStateCopy::Damaged);
}

#[test]
fn lengths_are_whole_blocks() {
    for (payload, expected) in [(0, 4096), (3072, 4096), (3073, 8192), (7168, 8192), (7169, 12_288)] {
        assert_eq!(record_bytes(payload), expected, "payload {payload}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    assert_eq!(Options::standard().check(), Ok(()));
    assert_eq!(small_options().check(), Ok(()));
    let refused = [
        Options { segment_bytes: 32 * 1024 + 512, ..small_options() },
        Options { segment_bytes: 8192, ..small_options() },
        Options { segment_bytes: 2 << 30, ..small_options() },
        Options { batch_bytes_max: 12_001, ..small_options() },
        Options { entry_bytes_max: 30_000, ..small_options() },
        Options { appends_in_flight_max: 0, ..small_options() },
        Options { log_bytes_max: 11_999, ..small_options() },
        Options { election_timeout: 100_000_000, ..small_options() },
        Options { heartbeat_interval: 0, ..small_options() },
    ];
    for options in refused {
        assert!(options.check().is_err(), "{options:?}");
    }
}
