//! The data directory over the port in memory: the memory budget, rereads, a full disk.

use trilith_engine::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use trilith_engine::store::{StoreBytes, StoreEffect, StoreWrite};
use trilith_raftlog::wal::{hard_state_file_name, segment_file_name};
use trilith_raftlog::{AppendWrite, Durability, Generation, Lsn, PrepareSegment, SegmentSequence};
use trilith_reactor::{BootFiles, Event, FileMode, Preparation};
use trilith_server::disk::{Completion, Disk, Pages, RESERVE_FILE_NAME, Source, store_file_name};

use crate::open::World;
use crate::port::MemoryPort;
use crate::{PUT, PUT_PATH, SECOND, answer, call, cut_starts_short, greeting, options, serving};

const CHUNK: u64 = 64 << 10;
const FILE: StoreFile = StoreFile { kind: FileKind::Rows, number: 0 };

fn block(chunk: u64) -> Block {
    Block { file: FILE, offset: chunk * CHUNK + 8192, len: 12_288 }
}

/// A disk of one file of `chunks` chunks; every byte is its chunk's number.
fn disk(port: &mut MemoryPort, chunks: u64, cache_bytes: u64) -> Disk {
    let mut disk = Disk::new(cache_bytes);
    let id = BootFiles::create(port, &store_file_name(FILE), chunks * CHUNK, FileMode::Store, Preparation::Reserve);
    disk.add_store_file(FILE, id.unwrap(), chunks * CHUNK);
    for (position, byte) in port.files.get_mut(&store_file_name(FILE)).unwrap().iter_mut().enumerate() {
        *byte = (position as u64 / CHUNK) as u8;
    }
    disk
}

/// Hands in every event until none comes.
fn settle(port: &mut MemoryPort, disk: &mut Disk) -> Vec<Completion> {
    let mut completions = Vec::new();
    loop {
        let events: Vec<Event> = port.take_events();
        if events.is_empty() {
            return completions;
        }
        disk.begin_turn();
        completions.extend(events.into_iter().map(|event| disk.handle_event(port, event).unwrap()));
    }
}

/// Reads a block as an evaluation does: again and again until its pages have come.
fn read(port: &mut MemoryPort, disk: &mut Disk, block: Block) -> Vec<u8> {
    for _ in 0..2 {
        match (Pages { port: &*port, disk: &*disk }).block(block) {
            Ok(bytes) => return bytes.to_vec(),
            Err(Unavailable::Missing(missing)) => disk.load(port, missing),
            Err(error) => panic!("{error:?}"),
        }
        assert!(disk.awaits(block));
        settle(port, disk);
        assert!(!disk.awaits(block));
    }
    panic!("{block:?} never comes");
}

#[test]
fn reads_of_more_than_the_budget_are_right_and_stay_within_it() {
    const CHUNKS: u64 = 300;
    const BUDGET: u64 = 12 << 20;
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, CHUNKS, BUDGET);
    let mut released = 0;
    for round in 0..4 * CHUNKS {
        // The first chunk is read over and over.
        for chunk in [round * 7 % CHUNKS, 0] {
            assert_eq!(read(&mut port, &mut disk, block(chunk)), vec![chunk as u8; 12_288]);
        }
        let gone = disk.release_cold(&mut port, 0);
        assert!(gone.iter().all(|gone| gone.offset > 0), "what is read all the time stays: {gone:?}");
        released += gone.iter().map(|gone| u64::from(gone.len) / CHUNK).sum::<u64>();
        assert_eq!(port.resident.len() as u64 * 4096, disk.mapped_bytes(), "the port knows the same");
        assert!(disk.mapped_bytes() <= BUDGET + CHUNK, "{} bytes", disk.mapped_bytes());
    }
    assert!(released > 3 * CHUNKS - BUDGET / CHUNK, "only {released} released");
    // What the engine holds counts, down to a floor.
    for _ in 0..3 {
        disk.begin_turn();
        disk.release_cold(&mut port, 1 << 20);
    }
    assert_eq!(disk.mapped_bytes(), BUDGET - (1 << 20));
    for _ in 0..3 {
        disk.begin_turn();
        disk.release_cold(&mut port, 1 << 30);
    }
    assert_eq!(disk.mapped_bytes(), 8 << 20);
}

#[test]
fn what_an_evaluation_looked_for_comes_along() {
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, 100, u64::MAX);
    let pages = Pages { port: &port, disk: &disk };
    let missed = [90, 3, 40].map(|chunk| pages.block(block(chunk)).unwrap_err());
    disk.load(&mut port, missed[0].block());
    settle(&mut port, &mut disk);
    let pages = Pages { port: &port, disk: &disk };
    assert!([90, 3, 40].iter().all(|&chunk| pages.block(block(chunk)).is_ok()));
    assert_eq!(disk.mapped_bytes(), 3 * CHUNK);
}

#[test]
fn a_wrong_checksum_is_looked_into_before_it_is_believed() {
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, 8, u64::MAX);
    let name = store_file_name(FILE);
    read(&mut port, &mut disk, block(5));
    port.memory.insert(name.clone(), vec![0xee; 8 * CHUNK as usize]);
    assert_eq!(read(&mut port, &mut disk, block(5)), [0xee; 12_288], "memory is wrong");
    assert!(disk.recheck(&mut port, block(5)) && disk.recheck(&mut port, block(5)), "asked for once");
    assert!(disk.awaits(block(5)) && port.resident.len() == 16, "until the medium has answered, it stays as it is");
    let completions = settle(&mut port, &mut disk);
    let whole = Block { offset: 5 * CHUNK, len: CHUNK as u32, ..block(5) };
    assert!(
        matches!(completions[..], [Completion::Reread { block }, Completion::Loaded] if block == whole),
        "{completions:?}"
    );
    assert_eq!(read(&mut port, &mut disk, block(5)), [5; 12_288]);
    // Now the medium is.
    port.files.get_mut(&name).unwrap().fill(0xdd);
    assert!(disk.recheck(&mut port, block(5)));
    assert!(matches!(settle(&mut port, &mut disk)[..], [Completion::Corrupt { block: bad }] if bad == block(5)));
    assert!(!disk.recheck(&mut port, Block { offset: 8 * CHUNK - 4096, ..block(5) }), "beyond the file");
    assert!(!disk.recheck(&mut port, Block { file: StoreFile { number: 1, ..FILE }, ..block(5) }), "of no file");
}

#[test]
fn memory_that_never_agrees_with_the_medium_is_given_up() {
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, 8, u64::MAX);
    let mut rereads = 0;
    read(&mut port, &mut disk, block(2));
    loop {
        port.memory.insert(store_file_name(FILE), vec![rereads; 8 * CHUNK as usize]);
        if !disk.recheck(&mut port, block(2)) {
            break;
        }
        settle(&mut port, &mut disk);
        rereads += 1;
    }
    assert_eq!(rereads, 3);
}

#[test]
fn creations_and_pages_that_find_no_room_get_that_of_the_reserve() {
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, 4, u64::MAX);
    let reserve = BootFiles::create(&mut port, RESERVE_FILE_NAME, 1 << 20, FileMode::Log, Preparation::Reserve);
    disk.add_reserve(Some(reserve.unwrap()), 1 << 20, 0);
    port.capacity = Some(port.used_bytes());
    let other = StoreFile { number: 1, ..FILE };
    let create = |token, file| StoreEffect::CreateFile { token, file, bytes: 1 << 20 };
    disk.store(&mut port, create(1, other));
    let completions = settle(&mut port, &mut disk);
    let [Completion::OutOfSpace { what, .. }, Completion::Progress, Completion::Store { token: 1 }] = &completions[..]
    else {
        panic!("{completions:?}")
    };
    assert_eq!(what, "creating store/rows-0001");
    assert!(disk.is_short_of_space() && !port.files.contains_key(RESERVE_FILE_NAME));
    // Nothing is left to give up: it is tried again as time passes.
    disk.store(&mut port, create(2, StoreFile { number: 2, ..FILE }));
    assert!(matches!(settle(&mut port, &mut disk)[..], [Completion::Progress]), "it is no news");
    for _ in 0..3 {
        port.now = disk.deadline().unwrap();
        disk.handle_time(&mut port);
        assert!(matches!(settle(&mut port, &mut disk)[..], [Completion::Progress]));
    }
    port.capacity = None;
    port.now = disk.deadline().unwrap();
    disk.handle_time(&mut port);
    assert!(matches!(settle(&mut port, &mut disk)[..], [Completion::Store { token: 2 }]));
    assert!(disk.is_short_of_space(), "until the reserve is back");
    port.now = disk.deadline().unwrap();
    disk.handle_time(&mut port);
    assert!(matches!(settle(&mut port, &mut disk)[..], [Completion::SpaceBack]));
    assert!(!disk.is_short_of_space() && disk.deadline().is_none());
    assert_eq!(port.files[RESERVE_FILE_NAME].len(), 1 << 20);

    // The room of a page: whether the file system says so or writes less than all of it.
    for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded, std::io::ErrorKind::WriteZero] {
        let bytes = StoreBytes::Owned(vec![7; 8192]);
        disk.store(&mut port, StoreEffect::Write(StoreWrite { token: 3, file: other, offset: 4096, bytes }));
        let written = port.take_events().pop().unwrap();
        let Event::Written { token, .. } = written else { panic!("{written:?}") };
        port.push(Event::Written { token, result: Err(kind.into()) });
        let completions = settle(&mut port, &mut disk);
        assert!(matches!(completions.last(), Some(Completion::Store { token: 3 })), "{kind}: {completions:?}");
        assert_eq!(port.files["store/rows-0001"][4096..12_288], [7; 8192]);
        while disk.is_short_of_space() {
            port.now = disk.deadline().unwrap();
            disk.handle_time(&mut port);
            settle(&mut port, &mut disk);
        }
    }
    // Any other error is final.
    disk.store(&mut port, StoreEffect::Sync { token: 4, file: other });
    let Some(Event::Synced { token, .. }) = port.take_events().pop() else { panic!("a sync") };
    port.push(Event::Synced { token, result: Err(std::io::ErrorKind::StorageFull.into()) });
    assert!(matches!(settle(&mut port, &mut disk)[..], [Completion::Failed { .. }]));
}

#[test]
fn a_page_beyond_the_end_of_a_file_that_was_cut_off_is_not_taken_for_stored() {
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, 2, u64::MAX);
    let page = |token, offset| {
        let bytes = StoreBytes::Owned(vec![7; 4096]);
        StoreEffect::Write(StoreWrite { token, file: FILE, offset, bytes })
    };
    disk.store(&mut port, page(1, 2 * CHUNK - 4096));
    assert!(matches!(settle(&mut port, &mut disk)[..], [Completion::Store { token: 1 }]));
    disk.store(&mut port, page(2, 2 * CHUNK));
    let completions = settle(&mut port, &mut disk);
    let [Completion::Failed { what, error }] = &completions[..] else { panic!("{completions:?}") };
    assert!(what.contains(&store_file_name(FILE)) && what.contains("offset 131072"), "{what}");
    assert!(error.to_string().contains("cut off at byte 131072"), "{error}");
}

#[test]
fn a_file_is_removed_when_nobody_reads_it_any_more() {
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, 4, u64::MAX);
    read(&mut port, &mut disk, block(1));
    assert!(disk.read_direct(&mut port, Source::Store(FILE), CHUNK, 4096));
    disk.store(&mut port, StoreEffect::RemoveFile { token: 9, file: FILE });
    assert!(port.files.contains_key(&store_file_name(FILE)), "a read is under way");
    let completions = settle(&mut port, &mut disk);
    let [Completion::Direct { result: Ok(bytes) }, Completion::Store { token: 9 }] = &completions[..] else {
        panic!("{completions:?}")
    };
    assert_eq!(bytes, &[1; 4096]);
    assert!(port.files.is_empty() && disk.mapped_bytes() == 0);
    assert!(!disk.read_direct(&mut port, Source::Store(FILE), 0, 4096));
}

/// One write or sync of each kind, on a disk of their files.
fn submit(kind: usize, port: &mut MemoryPort, disk: &mut Disk) {
    let (after, slot) = (Durability::default(), 1);
    match kind {
        0 => disk.append(port, AppendWrite { lsn: Lsn(1), slot, offset: 4096, bytes: vec![1; 4096], after }),
        1 => disk.write_hard_state(port, Generation(1), 0, vec![1; 4096]),
        2 => {
            let (sequence, file_bytes, header) = (SegmentSequence(1), 8192, vec![1; 4096]);
            disk.prepare_segment(port, PrepareSegment { slot, sequence, create: false, file_bytes, header, after });
        }
        3 => disk.store(port, StoreEffect::Sync { token: 1, file: FILE }),
        _ => {
            let bytes = StoreBytes::Owned(vec![1; 4096]);
            disk.store(port, StoreEffect::Write(StoreWrite { token: 1, file: FILE, offset: 0, bytes }));
        }
    }
}

#[test]
fn what_failed_or_was_short_is_neither_done_nor_tried_again() {
    let mut port = MemoryPort::default();
    let mut disk = disk(&mut port, 1, u64::MAX);
    let mut make = |name: String| BootFiles::create(&mut port, &name, 8192, FileMode::Log, Preparation::PreWrite);
    disk.add_hard_state(0, make(hard_state_file_name(0)).unwrap());
    disk.add_segment(1, make(segment_file_name(1)).unwrap());
    let (other, short) = (std::io::ErrorKind::Other, std::io::ErrorKind::WriteZero);
    // A page of the store that was cut short lacks room; it is written whole when there is some.
    let failures = (0..5).map(|kind| (kind, other)).chain((0..3).map(|kind| (kind, short)));
    for (kind, error) in failures {
        submit(kind, &mut port, &mut disk);
        let failed = match port.take_events().pop() {
            Some(Event::Written { token, .. }) => Event::Written { token, result: Err(error.into()) },
            Some(Event::Synced { token, .. }) => Event::Synced { token, result: Err(error.into()) },
            event => panic!("{event:?}"),
        };
        let completion = disk.handle_event(&mut port, failed).unwrap();
        assert!(matches!(completion, Completion::Failed { .. }), "{kind}, {error}: {completion:?}");
        assert!(port.take_events().is_empty() && disk.is_idle() && disk.deadline().is_none(), "{kind}, {error}");
    }
}

#[test]
fn a_put_whose_append_fails_is_never_answered_and_ends_the_process() {
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options());
    let connection = port.accept(1);
    port.is_stalled = true;
    port.push(Event::Received { connection, bytes: [greeting(), call(1, PUT_PATH, PUT, 0)].concat() });
    let until = port.now + SECOND;
    assert_eq!(port.run(&mut node, until), None);
    port.fail_stall();
    let until = port.now + 3 * SECOND;
    assert_eq!(port.run(&mut node, until), Some(1));
    assert_eq!(answer(&port, connection, 1), [""; 0]);
}

fn segments(port: &MemoryPort) -> usize {
    port.files.keys().filter(|name| name.starts_with("wal/seg-")).count()
}

/// Every start after a kill goes on in a fresh segment; the old ones are given back all the same, however little is
/// written.
#[test]
fn starts_that_are_killed_pile_up_no_segments() {
    let mut world = World::new();
    world.say(call(1, PUT_PATH, PUT, 0));
    let mut port = world.port.restarted();
    let a_checkpoint = options().replica.checkpoint_log_bytes / options().replica.log.segment_bytes;
    let mut most = 0;
    for _ in 0..8 * a_checkpoint {
        let node = serving(&mut port, options());
        assert_eq!(node.replica().keyspace().published().revision, 2);
        most = most.max(segments(&port));
        port = port.restarted();
    }
    // Of two checkpoints, which do not count the segments' headers, and those that are written to, made ready, and left
    // behind while a checkpoint is made.
    let bound = 2 * (usize::try_from(a_checkpoint).unwrap() + 2) + 5;
    assert!(most <= bound, "{most} segments, {bound} at most");
}

/// The start that gives them back may die anywhere, too.
#[test]
fn a_start_that_gives_segments_back_may_die_between_any_two_steps() {
    let mut world = World::new();
    world.say(call(1, PUT_PATH, PUT, 0));
    let mut port = world.port.restarted();
    let superblocks =
        |port: &MemoryPort| [0, 1].map(|number| port.files[&format!("store/superblock-{number}")].clone());
    let mut dying = Vec::new();
    // The first checkpoint gives nothing back, the second does.
    let mut checkpoints = 0;
    while checkpoints < 2 {
        let before = (port.files.clone(), superblocks(&port));
        serving(&mut port, options());
        if superblocks(&port) != before.1 {
            checkpoints += 1;
            dying.push(before.0);
        }
        port = port.restarted();
    }
    for files in dying {
        let steps = cut_starts_short(&files, |mut port, steps| {
            let node = serving(&mut port, options());
            assert_eq!(node.replica().keyspace().published().revision, 2, "{steps} steps");
        });
        assert!(steps > 20, "{steps} steps");
    }
}
