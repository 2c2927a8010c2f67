//! What other threads read of the store: over bytes in memory, and over the real port.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use trilith_engine::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use trilith_engine::store::StoreEffect;
use trilith_reactor::{
    BootFiles, CoreLoop, Event, FileId, FileMode, GlommioPort, MappedBytes, Preparation, ReactorOptions, SharedMapping,
    Turn, run,
};

use super::residency::{CHUNK_BYTES, Residency};
use super::{Completion, Disk, Pages, SharedPages, store_file_name};

const ROWS: StoreFile = StoreFile { kind: FileKind::Rows, number: 3 };
const INDEX: StoreFile = StoreFile { kind: FileKind::Index, number: 0 };
/// Of each file: eight chunks and a half.
const FILE_BYTES: u64 = 8 * CHUNK_BYTES + CHUNK_BYTES / 2;

/// A file in memory, every byte the number of its chunk.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl MappedBytes for Bytes {
    fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

fn contents() -> Vec<u8> {
    (0..FILE_BYTES).map(|position| (position / CHUNK_BYTES) as u8).collect()
}

fn mapping(_: FileId) -> Option<SharedMapping> {
    Some(Arc::new(Bytes(contents())))
}

fn block(file: StoreFile, chunk: u64) -> Block {
    Block { file, offset: chunk * CHUNK_BYTES + 4096, len: 8192 }
}

/// The rows with their first `loaded` chunks in memory, each loaded in a turn of its own.
fn residency(loaded: u64) -> Residency {
    let mut residency = Residency::default();
    residency.add(ROWS, FileId(5), FILE_BYTES);
    for number in 0..loaded {
        residency.begin_turn();
        load(&mut residency, block(ROWS, number));
    }
    residency
}

fn load(residency: &mut Residency, block: Block) {
    residency.mark(block, residency.writes(block));
}

/// What another thread reads.
fn read_all(pages: &Arc<SharedPages>, blocks: &[Block]) -> Vec<Result<Vec<u8>, Unavailable>> {
    let (pages, blocks) = (Arc::clone(pages), blocks.to_vec());
    let read = move || blocks.into_iter().map(|block| pages.block(block).map(<[u8]>::to_vec)).collect();
    thread::spawn(read).join().unwrap()
}

/// Evicts in the next turn down to `chunks`; the chunks that left.
fn evict(residency: &mut Residency, chunks: u64) -> Vec<u64> {
    residency.begin_turn();
    let gone = residency.evict(chunks * CHUNK_BYTES, u64::MAX);
    gone.iter()
        .flat_map(|gone| (gone.offset..gone.offset + u64::from(gone.len)).step_by(CHUNK_BYTES as usize))
        .map(|offset| offset / CHUNK_BYTES)
        .collect()
}

#[test]
fn what_is_not_in_memory_is_missing_and_what_no_file_holds_corrupt() {
    let mut residency = residency(3);
    load(&mut residency, block(ROWS, 8));
    let pages = residency.share(mapping);
    let last = Block { offset: FILE_BYTES - 4096, len: 4096, ..block(ROWS, 0) };
    let at_edge = Block { offset: 3 * CHUNK_BYTES - 4096, len: 8192, ..last };
    for here in [block(ROWS, 0), block(ROWS, 2), last, Block { len: 4096, ..at_edge }, Block { len: 0, ..at_edge }] {
        let expected = vec![(here.offset / CHUNK_BYTES) as u8; here.len as usize];
        assert_eq!(read_all(&pages, &[here]), [Ok(expected)]);
    }
    for missing in [block(ROWS, 3), at_edge] {
        assert_eq!(read_all(&pages, &[missing]), [Err(Unavailable::Missing(missing))]);
    }
    for corrupt in [
        Block { len: 4097, ..last },
        Block { offset: FILE_BYTES + CHUNK_BYTES, len: 0, ..last },
        Block { offset: u64::MAX, ..last },
    ] {
        assert_eq!(read_all(&pages, &[corrupt]), [Err(Unavailable::Corrupt(corrupt))]);
    }
    assert!(residency.take_missed().is_empty(), "the lender hears of misses from the reader");
}

#[test]
fn what_is_loaded_or_written_meanwhile_comes_and_goes_for_everybody() {
    let mut residency = residency(2);
    let pages = residency.share(mapping);
    load(&mut residency, block(ROWS, 4));
    assert!(read_all(&pages, &[block(ROWS, 4)])[0].is_ok());
    residency.forget(block(ROWS, 1));
    assert_eq!(read_all(&pages, &[block(ROWS, 1)]), [Err(Unavailable::Missing(block(ROWS, 1)))]);
    assert!(!residency.holds(block(ROWS, 1)), "a look brings nothing back");
    assert_eq!(residency.bytes(), 2 * CHUNK_BYTES);
}

#[test]
fn a_snapshot_has_the_files_of_its_turn() {
    let mut residency = residency(2);
    let first = residency.share(mapping);
    residency.begin_turn();
    assert!(Arc::ptr_eq(&first, &residency.share(mapping)), "made once for the same files");
    residency.add(INDEX, FileId(6), FILE_BYTES);
    load(&mut residency, block(INDEX, 1));
    let second = residency.share(mapping);
    let blocks = [block(ROWS, 1), block(INDEX, 1)];
    let found = |pages| read_all(pages, &blocks).iter().map(Result::is_ok).collect::<Vec<_>>();
    assert_eq!((found(&first), found(&second)), (vec![true, false], vec![true, true]));
    assert_eq!(read_all(&first, &blocks)[1], Err(Unavailable::Missing(blocks[1])), "not corrupt: it may be new");
    residency.remove(ROWS);
    assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (1, 1), "the sequencer lets go of it");
    let third = residency.share(mapping);
    assert_eq!((found(&second), found(&third)), (vec![true, true], vec![false, true]));
}

#[test]
fn what_cannot_be_shared_is_missing() {
    let mut residency = residency(2);
    let superblock = StoreFile { kind: FileKind::Superblock, ..ROWS };
    residency.add(superblock, FileId(6), FILE_BYTES);
    load(&mut residency, block(superblock, 0));
    let pages = residency.share(|_| None);
    assert_eq!(read_all(&pages, &[block(ROWS, 1)]), [Err(Unavailable::Missing(block(ROWS, 1)))]);
    residency.add(INDEX, FileId(7), FILE_BYTES);
    let pages = residency.share(mapping);
    assert!(read_all(&pages, &[block(ROWS, 1)])[0].is_ok());
    let missing = block(superblock, 0);
    assert_eq!(read_all(&pages, &[missing]), [Err(Unavailable::Missing(missing))], "no lent tree names it");
}

#[test]
fn what_another_thread_read_since_the_last_look_stays() {
    let mut residency = residency(6);
    assert_eq!(evict(&mut residency, 4), [0_u64; 0], "the first look at each gives it its chance");
    residency.begin_turn();
    let pages = residency.share(mapping);
    assert!(read_all(&pages, &[0, 1, 4].map(|chunk| block(ROWS, chunk))).iter().all(Result::is_ok));
    assert_eq!(evict(&mut residency, 4), [2, 3]);
    assert_eq!(evict(&mut residency, 3), [5]);
    assert_eq!(residency.bytes(), 3 * CHUNK_BYTES);
    // The same snapshot, lent again: what is read through it now is newer.
    for chunk in [0, 1, 4] {
        residency.touch(block(ROWS, chunk)).unwrap();
    }
    assert_eq!(evict(&mut residency, 2), [0_u64; 0], "a second look at each");
    residency.begin_turn();
    let pages = residency.share(mapping);
    assert!(read_all(&pages, &[block(ROWS, 0)])[0].is_ok());
    assert_eq!(evict(&mut residency, 1), [1, 4]);
}

/// A directory of a test's own, removed at its end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Loads two chunks of a file, reads it as pages and as a snapshot, removes it, and reads the snapshot again.
struct Reading {
    disk: Disk,
    pages: Option<Arc<SharedPages>>,
}

impl Reading {
    fn blocks() -> Vec<Block> {
        let (file, at_edge) = (ROWS, 3 * CHUNK_BYTES - 4096);
        let places = [(at_edge, 4096), (at_edge, 8192), (at_edge, 0), (FILE_BYTES - 1, 2), (u64::MAX, 1)];
        let odd = places.into_iter().map(|(offset, len)| Block { file, offset, len });
        (0..9).map(|chunk| block(file, chunk)).chain(odd).collect()
    }

    fn handle(&mut self, port: &mut GlommioPort, event: Event) -> Turn {
        match self.disk.handle_event(port, event).expect("only files are used") {
            Completion::Loaded if self.disk.is_loading() => Turn::Continue,
            Completion::Loaded => {
                let pages = self.disk.share(port);
                let at_home = Pages { port: &*port, disk: &self.disk };
                let blocks = Self::blocks();
                let expected: Vec<_> = blocks.iter().map(|&block| at_home.block(block).map(<[u8]>::to_vec)).collect();
                assert_eq!(expected.iter().filter(|read| read.is_ok()).count(), 4);
                assert_eq!(read_all(&pages, &blocks), expected);
                self.pages = Some(pages);
                self.disk.store(port, StoreEffect::RemoveFile { token: 1, file: ROWS });
                Turn::Continue
            }
            Completion::Store { token: 1 } => {
                let (pages, blocks) = (self.pages.take().unwrap(), [block(ROWS, 2)]);
                assert_eq!(read_all(&pages, &blocks), [Ok(vec![2; 8192])], "removed, and still there");
                let next = self.disk.share(port);
                assert_eq!(read_all(&next, &blocks), [Err(Unavailable::Missing(blocks[0]))]);
                Turn::Stop(0)
            }
            other => panic!("{other:?}"),
        }
    }
}

impl CoreLoop<GlommioPort> for Reading {
    fn handle_turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Turn {
        self.disk.begin_turn();
        if events.is_empty() && !self.disk.is_loading() {
            [2, 5].iter().for_each(|&chunk| self.disk.load(port, block(ROWS, chunk)));
        }
        for event in std::mem::take(events) {
            if let Turn::Stop(status) = self.handle(port, event) {
                return Turn::Stop(status);
            }
        }
        Turn::Continue
    }
}

#[test]
fn another_thread_reads_what_the_sequencer_reads_and_on_when_it_was_removed() {
    let scratch = Scratch(std::env::temp_dir().join(format!("trilith-shared-{}", std::process::id())));
    fs::create_dir_all(&scratch.0).unwrap();
    let options = ReactorOptions {
        data_directory: scratch.0.clone(),
        listeners: Vec::new(),
        bind_retry_max: Duration::ZERO,
        log_outputs: Vec::new(),
        signals: false,
        spin_before_sleep: Duration::ZERO,
    };
    let status = run(&options, |port: &mut GlommioPort| {
        let (files, name): (&mut dyn BootFiles, String) = (port, store_file_name(ROWS));
        files.create_directory("store").unwrap();
        let id = files.create(&name, FILE_BYTES, FileMode::Store, Preparation::Reserve).unwrap();
        files.write(id, 0, &contents()).unwrap();
        let mut disk = Disk::default();
        disk.add_store_file(ROWS, id, FILE_BYTES);
        Ok::<_, String>(Reading { disk, pages: None })
    });
    assert_eq!(status.unwrap(), 0);
    assert!(!scratch.0.join(store_file_name(ROWS)).exists());
}
