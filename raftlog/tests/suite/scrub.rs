//! A scrubber's walk over a log in use.

use trilith_raftlog::Index;
use trilith_raftlog::wal::{LogScrub, LogSpan, segment_file_name};

use crate::support::{Image, Member, leader, small_options};

/// What one pass over the member's log finds on `image`, and every span it read.
fn pass(member: &Member, image: &Image) -> (Vec<LogSpan>, Vec<LogSpan>) {
    let (mut scrub, mut rot, mut read) = (LogScrub::default(), Vec::new(), Vec::new());
    while let Some(span) = scrub.next(&member.raft.durable_segments()) {
        let bytes = &image.files[&segment_file_name(span.slot)];
        let bytes = bytes.get(span.offset as usize..(span.offset + span.bytes) as usize);
        rot.extend(scrub.handle_read(&member.raft.durable_segments(), bytes));
        read.push(span);
        assert!(read.len() < 1000, "a pass ends");
    }
    (rot, read)
}

/// A member that wrote several segments, some records longer than a read.
fn writer() -> Member {
    let mut options = small_options();
    (options.segment_bytes, options.entry_bytes_max, options.log_bytes_max) = (1 << 20, 600 << 10, 8 << 20);
    let mut member = leader(options);
    for bytes in [10, 5000, 400 << 10, 10, 300 << 10, 500 << 10, 600 << 10, 70, 4000] {
        member.propose(vec![7; bytes]);
        member.settle();
    }
    member
}

#[test]
fn a_sound_log_is_read_to_its_durable_end() {
    let mut member = writer();
    let (rot, read) = pass(&member, &member.image);
    assert!(rot.is_empty(), "{rot:?}");
    let segments = member.raft.durable_segments();
    assert!(segments.len() > 1);
    for segment in &segments {
        let ends = read.iter().filter(|span| span.slot == segment.slot).map(|span| span.offset + span.bytes);
        assert_eq!(ends.max(), Some(segment.end), "all of it, and nothing behind it");
    }
    // What is in flight is nobody's to read, and what follows it neither.
    let end = segments[segments.len() - 1].end;
    member.propose(vec![1; 10]);
    member.propose(vec![2; 10]);
    member.complete(1);
    assert_eq!(member.raft.durable_segments().last().map(|segment| segment.end), Some(end));
}

#[test]
fn every_byte_that_a_start_may_need_is_looked_at() {
    let member = writer();
    let segments = member.raft.durable_segments();
    let padding = |file: &str, at: usize| member.image.files[file][at] == 0;
    let mut damaged = 0;
    for segment in &segments {
        let file = segment_file_name(segment.slot);
        for at in (0..segment.end as usize).step_by(2003).filter(|&at| !padding(&file, at)) {
            let mut image = member.image.clone();
            image.files.get_mut(&file).expect("a file")[at] ^= 4;
            let (rot, read) = pass(&member, &image);
            let here = |span: &&LogSpan| (span.slot, span.offset <= at as u64) == (segment.slot, true);
            assert_eq!(rot.iter().filter(here).count(), 1, "byte {at} of {file}");
            assert_eq!(rot.len(), 1);
            let covers = |span: &&LogSpan| {
                span.slot == segment.slot && (span.offset..span.offset + span.bytes).contains(&rot[0].offset)
            };
            assert!(read.iter().filter(covers).count() >= 2, "rot is read twice before it is believed");
            damaged += 1;
        }
    }
    assert!(damaged > 300);
}

#[test]
fn a_segment_that_is_recycled_under_a_read_is_left() {
    let mut member = writer();
    let mut scrub = LogScrub::default();
    let first = scrub.next(&member.raft.durable_segments()).expect("a log");
    member.apply();
    member.raft.handle_checkpoint(Index(8));
    member.pump();
    let live = member.raft.durable_segments();
    assert!(live.iter().all(|segment| segment.slot != first.slot), "the first segment was freed");
    assert_eq!(scrub.handle_read(&live, Some(&vec![0xff; first.bytes as usize])), None);
    assert_eq!(scrub.next(&live).map(|span| (span.slot, span.offset)), Some((live[0].slot, 0)));
}

#[test]
fn what_cannot_be_read_is_rotten() {
    let member = writer();
    let live = member.raft.durable_segments();
    let mut scrub = LogScrub::default();
    let span = scrub.next(&live).expect("a log");
    assert_eq!(scrub.handle_read(&live, None), None);
    assert_eq!(scrub.next(&live), Some(span), "once more");
    assert_eq!(scrub.handle_read(&live, None).map(|rot| (rot.slot, rot.offset)), Some((span.slot, 0)));
}
