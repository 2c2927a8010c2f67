//! The data directory at run time: which effect goes to which file, and what its completion means.
//!
//! Owns: open files and outstanding submissions; [`residency`] which pages are in memory, [`loads`] which are on their
//! way, [`shared`] what other threads read, [`space`] what to do on a full disk. Does not know: raft, pages' contents,
//! when anything is written.
//!
//! Invariants
//! - I1: every submission has one purpose and is completed once.
//! - I2: a failed or short write, sync or creation is final; it is reported once as [`Completion::Failed`]. Only what
//!   finds no room, and that nothing depends on yet, is tried again: creations and store pages.
//! - I3: a block whose bytes do not carry their checksum is called corrupt only if the medium itself has these bytes.

mod direct;
mod loads;
mod marks;
mod names;
mod residency;
mod shared;
#[cfg(test)]
mod shared_tests;
mod space;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use trilith_engine::page_source::{Block, PageSource, StoreFile, Unavailable};
use trilith_engine::store::{StoreBytes, StoreEffect, StoreWrite};
use trilith_raftlog::wal::segment_file_name;
use trilith_raftlog::{AppendWrite, Generation, Lsn, PrepareSegment, SegmentSequence};
use trilith_reactor::{Event, FileId, FileMode, Port, Preparation, Token};

pub use direct::Source;
use direct::Suspects;
use loads::Loads;
use names::describe_block;
pub use names::{store_file, store_file_name};
use residency::{CHUNK_BYTES, Residency};
pub use shared::SharedPages;
pub use space::RESERVE_FILE_NAME;
use space::{Space, SpaceStep, is_full};

/// What stays in memory however much of the budget the engine takes, if the budget is that large.
const MAPPED_BYTES_MIN: u64 = 8 << 20;

/// What a submission was for.
#[derive(Debug)]
enum Purpose {
    HardState {
        generation: Generation,
        copy: u8,
    },
    Append {
        lsn: Lsn,
    },
    SegmentFile(Box<PrepareSegment>),
    SegmentHeader {
        sequence: SegmentSequence,
    },
    StoreFile {
        token: u64,
        file: StoreFile,
        bytes: u64,
    },
    StoreWrite(StoreWrite),
    StoreSync {
        token: u64,
    },
    StorePopulate {
        token: u64,
        block: Block,
        writes: u32,
    },
    StoreDiscard {
        token: u64,
        block: Block,
    },
    StoreRemoval {
        token: u64,
    },
    Load {
        block: Block,
        writes: u32,
    },
    /// A block whose checksum failed, read from the medium.
    Recheck {
        block: Block,
    },
    /// Somebody's own read of the medium.
    Direct {
        source: Source,
    },
    ReserveGone,
    Reserve,
}

/// A submission that found no room.
#[derive(Debug)]
enum Parked {
    SegmentFile(Box<PrepareSegment>),
    StoreFile { token: u64, file: StoreFile, bytes: u64 },
    StoreWrite(StoreWrite),
}

/// What an event of the port means.
#[derive(Debug)]
pub enum Completion {
    /// A hard-state copy is durable.
    HardState {
        /// Which version.
        generation: Generation,
        /// Which copy.
        copy: u8,
    },
    /// A batch is durable.
    Append {
        /// Which one.
        lsn: Lsn,
    },
    /// A segment is ready.
    Segment {
        /// Which one.
        sequence: SegmentSequence,
    },
    /// A store effect is done.
    Store {
        /// Which one.
        token: u64,
    },
    /// Pages that were missing are resident.
    Loaded,
    /// Memory held other bytes than the medium: the block is being loaded again; what was verified of it no longer is.
    Reread {
        /// Which block.
        block: Block,
    },
    /// The medium itself does not hold what belongs there.
    Corrupt {
        /// Which block.
        block: Block,
    },
    /// [`Disk::read_direct`] ended.
    Direct {
        /// The bytes of the medium.
        result: io::Result<Vec<u8>>,
    },
    /// The disk is full; what found no room waits and is tried again.
    OutOfSpace {
        /// What was tried, for the operator.
        what: String,
        /// What the environment said.
        error: io::Error,
    },
    /// The disk has room again.
    SpaceBack,
    /// Something failed for good.
    Failed {
        /// What was tried, for the operator.
        what: String,
        /// What the environment said.
        error: io::Error,
    },
    /// An intermediate step; more follows.
    Progress,
}

/// The open files and what is outstanding.
#[derive(Debug)]
pub struct Disk {
    hard_state: [Option<FileId>; 2],
    segments: BTreeMap<u32, FileId>,
    store: Residency,
    outstanding: BTreeMap<Token, Purpose>,
    loads: Loads,
    suspects: Suspects,
    space: Space<Parked>,
    /// Removals that wait for reads of the file to end.
    removals: Vec<(u64, StoreFile)>,
    cache_bytes: u64,
    last_token: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            hard_state: [None; 2],
            segments: BTreeMap::new(),
            store: Residency::default(),
            outstanding: BTreeMap::new(),
            loads: Loads::default(),
            suspects: Suspects::default(),
            space: Space::default(),
            removals: Vec::new(),
            cache_bytes: u64::MAX,
            last_token: 0,
        }
    }
}

impl Disk {
    /// A directory whose files may take up so much memory, together with what [`Self::release_cold`] is told of.
    #[must_use]
    pub fn new(cache_bytes: u64) -> Self {
        Self { cache_bytes, ..Self::default() }
    }

    /// Takes over a hard-state file opened at boot.
    pub fn add_hard_state(&mut self, copy: u8, id: FileId) {
        self.hard_state[usize::from(copy)] = Some(id);
    }

    /// Takes over a segment opened at boot.
    pub fn add_segment(&mut self, slot: u32, id: FileId) {
        self.segments.insert(slot, id);
    }

    /// Takes over a store file opened at boot; nothing of it is known resident.
    pub fn add_store_file(&mut self, file: StoreFile, id: FileId, bytes: u64) {
        self.store.add(file, id, bytes);
    }

    /// Takes over the reserve as boot left it: opened or made, or `None` if there was no room for `bytes`.
    pub fn add_reserve(&mut self, id: Option<FileId>, bytes: u64, now: u64) {
        self.space.start(id, bytes, now);
    }

    /// The store files, by kind and number.
    #[must_use]
    pub fn store_files(&self) -> Vec<StoreFile> {
        self.store.files()
    }

    /// Forgets a store file that is about to be removed; its descriptor.
    pub fn remove_store_file(&mut self, file: StoreFile) -> FileId {
        self.store.remove(file)
    }

    /// The descriptor of a segment.
    #[must_use]
    pub fn segment(&self, slot: u32) -> Option<FileId> {
        self.segments.get(&slot).copied()
    }

    /// The descriptor of a store file.
    #[must_use]
    pub fn store_file(&self, file: StoreFile) -> Option<FileId> {
        self.store.file(file).map(|open| open.id)
    }

    /// Whether any submission is outstanding.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Submits one copy of the hard state.
    pub fn write_hard_state<P: Port>(&mut self, port: &mut P, generation: Generation, copy: u8, bytes: Vec<u8>) {
        let file = self.hard_state[usize::from(copy)].expect("both hard-state files are opened at boot");
        let token = self.token(Purpose::HardState { generation, copy });
        port.write(token, file, 0, bytes);
    }

    /// Submits a batch.
    pub fn append<P: Port>(&mut self, port: &mut P, append: AppendWrite) {
        let file = self.segment(append.slot).expect("raft appends to prepared segments alone");
        let token = self.token(Purpose::Append { lsn: append.lsn });
        port.write(token, file, append.offset, append.bytes);
    }

    /// Submits the making, or the new header, of a segment.
    pub fn prepare_segment<P: Port>(&mut self, port: &mut P, prepare: PrepareSegment) {
        if prepare.create {
            let (name, bytes) = (segment_file_name(prepare.slot), prepare.file_bytes);
            let token = self.token(Purpose::SegmentFile(Box::new(prepare)));
            port.create(token, &name, bytes, FileMode::Log, Preparation::PreWrite);
        } else {
            self.write_segment_header(port, prepare);
        }
    }

    fn write_segment_header<P: Port>(&mut self, port: &mut P, prepare: PrepareSegment) {
        let file = self.segment(prepare.slot).expect("the file was opened at boot or just created");
        let token = self.token(Purpose::SegmentHeader { sequence: prepare.sequence });
        port.write(token, file, 0, prepare.header);
    }

    /// Submits a store effect.
    pub fn store<P: Port>(&mut self, port: &mut P, effect: StoreEffect) {
        match effect {
            StoreEffect::CreateFile { token, file, bytes } => self.create_store_file(port, token, file, bytes),
            StoreEffect::Write(StoreWrite { token, file, offset, bytes }) => {
                // Kept for the case that there is no room for them.
                let bytes = match bytes {
                    StoreBytes::Owned(bytes) => {
                        let len = bytes.len();
                        StoreBytes::Shared(Arc::new(bytes), 0..len)
                    }
                    shared @ StoreBytes::Shared(..) => shared,
                };
                self.write_store(port, StoreWrite { token, file, offset, bytes });
            }
            StoreEffect::Sync { token, file } => {
                let submission = self.token(Purpose::StoreSync { token });
                port.sync(submission, self.id_of(file));
            }
            StoreEffect::Populate { token, block } => {
                let writes = self.store.writes(block);
                let submission = self.token(Purpose::StorePopulate { token, block, writes });
                self.populate(port, submission, block);
            }
            StoreEffect::Discard { token, file, offset, len } => {
                let block_len = u32::try_from(len).expect("a store file is below 4 GiB");
                let block = Block { file, offset, len: block_len };
                let submission = self.token(Purpose::StoreDiscard { token, block });
                port.discard(submission, self.id_of(file), offset, len);
            }
            StoreEffect::RemoveFile { token, file } => {
                self.removals.push((token, file));
                self.remove_unread_files(port);
            }
        }
    }

    fn create_store_file<P: Port>(&mut self, port: &mut P, token: u64, file: StoreFile, bytes: u64) {
        let submission = self.token(Purpose::StoreFile { token, file, bytes });
        port.create(submission, &store_file_name(file), bytes, FileMode::Store, Preparation::Reserve);
    }

    fn write_store<P: Port>(&mut self, port: &mut P, write: StoreWrite) {
        let (id, offset, bytes) = (self.id_of(write.file), write.offset, write.bytes.as_slice().to_vec());
        let submission = self.token(Purpose::StoreWrite(write));
        port.write(submission, id, offset, bytes);
    }

    /// Removes the files that wait for it and that nobody reads any more.
    fn remove_unread_files<P: Port>(&mut self, port: &mut P) {
        let is_read = |file: StoreFile| {
            self.outstanding.values().any(|purpose| match purpose {
                Purpose::Recheck { block } => block.file == file,
                Purpose::Direct { source } => *source == Source::Store(file),
                _ => false,
            })
        };
        let (ready, waiting) = std::mem::take(&mut self.removals).into_iter().partition(|(_, file)| !is_read(*file));
        self.removals = waiting;
        let ready: Vec<(u64, StoreFile)> = ready;
        for (token, file) in ready {
            let submission = self.token(Purpose::StoreRemoval { token });
            let id = self.store.remove(file);
            port.unlink(submission, id, &store_file_name(file));
        }
    }

    /// Loads the pages of a missing block, unless that is under way; and those that the evaluation looked for beyond.
    pub fn load<P: Port>(&mut self, port: &mut P, block: Block) {
        let missed = self.store.take_missed();
        self.request(block);
        missed.into_iter().for_each(|ahead| self.request(ahead));
        self.submit_loads(port);
    }

    fn request(&mut self, block: Block) {
        let store = &self.store;
        let chunks = store.file(block.file).map_or(0, |open| open.bytes.div_ceil(CHUNK_BYTES));
        self.loads.request(block, store.turn(), chunks, |chunk| store.holds_chunk(chunk));
    }

    fn submit_loads<P: Port>(&mut self, port: &mut P) {
        while let Some(block) = self.loads.poll() {
            if self.store.file(block.file).is_none() {
                // Its file was removed: whoever waits evaluates again and finds that it is not needed.
                self.loads.handle_loaded(block);
                continue;
            }
            let writes = self.store.writes(block);
            let submission = self.token(Purpose::Load { block, writes });
            self.populate(port, submission, block);
        }
    }

    /// Asks for the chunks around a block, as far as the file goes.
    fn populate<P: Port>(&self, port: &mut P, submission: Token, block: Block) {
        let open = self.store.file(block.file).expect("only blocks of open files are missing");
        let (offset, len) = whole_chunks(block, open.bytes);
        port.populate(submission, open.id, offset, len);
    }

    /// Whether loads are under way.
    #[must_use]
    pub fn is_loading(&self) -> bool {
        !self.loads.is_empty()
    }

    /// Whether who lacks this block has to wait: part of it is still to come, or is being read again.
    #[must_use]
    pub fn awaits(&self, block: Block) -> bool {
        self.loads.awaits(block) || self.suspects.is_being_read(block)
    }

    /// A turn begins.
    pub fn begin_turn(&mut self) {
        self.store.begin_turn();
    }

    /// Bytes of store files that are in memory.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Between steps: takes what is cold out of memory until everything fits the budget, `other_bytes` of the engine's
    /// own included. What was verified of the ranges named no longer is. Not while another thread reads what
    /// [`Self::share`] gave it.
    pub fn release_cold<P: Port>(&mut self, port: &mut P, other_bytes: u64) -> Vec<Block> {
        let bytes_max = self.cache_bytes.saturating_sub(other_bytes).max(MAPPED_BYTES_MIN.min(self.cache_bytes));
        if self.store.bytes() <= bytes_max {
            return Vec::new();
        }
        let protected_since = self.loads.oldest().unwrap_or(u64::MAX).min(self.store.turn());
        let released = self.store.evict(bytes_max, protected_since);
        for &block in &released {
            self.suspects.forget(block);
            port.release(self.id_of(block.file), block.offset, block.len as usize);
        }
        released
    }

    /// Says what an event of the port means; `None` for events that are not about files.
    ///
    /// # Errors
    /// The event is not about files.
    pub fn handle_event<P: Port>(&mut self, port: &mut P, event: Event) -> Result<Completion, Event> {
        let (token, result) = match event {
            Event::Written { token, result }
            | Event::Synced { token, result }
            | Event::Populated { token, result }
            | Event::Discarded { token, result }
            | Event::Renamed { token, result } => (token, result.map(|()| Outcome::Done)),
            Event::Created { token, result } => (token, result.map(Outcome::Made)),
            Event::Read { token, result } => (token, result.map(Outcome::Bytes)),
            other => return Err(other),
        };
        let purpose = self.outstanding.remove(&token).expect("I1: a completion has its submission");
        Ok(match result {
            Ok(outcome) => self.complete(port, purpose, outcome),
            Err(error) => self.handle_error(port, purpose, error),
        })
    }

    fn complete<P: Port>(&mut self, port: &mut P, purpose: Purpose, outcome: Outcome) -> Completion {
        match (purpose, outcome) {
            (Purpose::HardState { generation, copy }, _) => Completion::HardState { generation, copy },
            (Purpose::Append { lsn }, _) => Completion::Append { lsn },
            (Purpose::SegmentHeader { sequence }, _) => Completion::Segment { sequence },
            (Purpose::SegmentFile(prepare), Outcome::Made(id)) => {
                self.segments.insert(prepare.slot, id);
                self.write_segment_header(port, *prepare);
                Completion::Progress
            }
            (Purpose::StoreFile { token, file, bytes }, Outcome::Made(id)) => {
                self.store.add(file, id, bytes);
                Completion::Store { token }
            }
            (Purpose::StoreWrite(write), _) => self.end_store_write(write),
            (Purpose::StoreSync { token } | Purpose::StoreRemoval { token }, _) => Completion::Store { token },
            (Purpose::StoreDiscard { token, block }, _) => {
                self.store.forget(block);
                Completion::Store { token }
            }
            (Purpose::StorePopulate { token, block, writes }, _) => {
                self.store.mark(block, writes);
                Completion::Store { token }
            }
            (Purpose::Load { block, writes }, _) => {
                self.loads.handle_loaded(block);
                self.store.mark(block, writes);
                self.submit_loads(port);
                Completion::Loaded
            }
            (Purpose::Recheck { block }, Outcome::Bytes(bytes)) => self.compare(port, block, &bytes),
            (Purpose::Direct { .. }, Outcome::Bytes(bytes)) => {
                self.remove_unread_files(port);
                Completion::Direct { result: Ok(bytes) }
            }
            (Purpose::ReserveGone, _) => {
                self.space.handle_reserve_gone(port.now());
                self.seek_space(port);
                Completion::Progress
            }
            (Purpose::Reserve, Outcome::Made(id)) => self.end_reserve(port, Some(id)),
            (purpose, outcome) => unreachable!("{purpose:?} does not complete as {outcome:?}"),
        }
    }

    /// A store file has all its room from its making on. One that is written beyond its end was cut off while nobody
    /// ran: what comes to stand there could not be read before it is opened anew.
    fn end_store_write(&mut self, write: StoreWrite) -> Completion {
        let len = u32::try_from(write.bytes.as_slice().len()).expect("a store write is far below 4 GiB");
        let file_bytes = self.store.file(write.file).map_or(u64::MAX, |open| open.bytes);
        if write.offset + u64::from(len) > file_bytes {
            let error = format!("the file was cut off at byte {file_bytes}, nothing in use is lost yet; start again");
            return Completion::Failed { what: describe(&Purpose::StoreWrite(write)), error: io::Error::other(error) };
        }
        self.store.forget(Block { file: write.file, offset: write.offset, len });
        Completion::Store { token: write.token }
    }

    fn handle_error<P: Port>(&mut self, port: &mut P, purpose: Purpose, error: io::Error) -> Completion {
        let what = describe(&purpose);
        let parked = match purpose {
            Purpose::SegmentFile(prepare) if is_full(&error) => Parked::SegmentFile(prepare),
            Purpose::StoreFile { token, file, bytes } if is_full(&error) => Parked::StoreFile { token, file, bytes },
            // The room of a discarded range is taken again by the write itself, which may end short of it.
            Purpose::StoreWrite(write) if is_full(&error) || error.kind() == io::ErrorKind::WriteZero => {
                Parked::StoreWrite(write)
            }
            Purpose::Reserve if is_full(&error) => return self.end_reserve(port, None),
            // The room stays taken, no more.
            Purpose::StoreDiscard { token, .. } if is_full(&error) || error.kind() == io::ErrorKind::Unsupported => {
                return Completion::Store { token };
            }
            Purpose::Direct { .. } => {
                self.remove_unread_files(port);
                return Completion::Direct { result: Err(error) };
            }
            _ => return Completion::Failed { what, error },
        };
        let is_news = self.space.park(parked, port.now());
        self.seek_space(port);
        if is_news { Completion::OutOfSpace { what, error } } else { Completion::Progress }
    }

    fn end_reserve<P: Port>(&mut self, port: &mut P, made: Option<FileId>) -> Completion {
        let is_back = self.space.handle_reserve_made(made, port.now());
        self.seek_space(port);
        if is_back { Completion::SpaceBack } else { Completion::Progress }
    }

    /// Whether the disk was found full and is not known to have room again.
    #[must_use]
    pub fn is_short_of_space(&self) -> bool {
        self.space.is_short()
    }

    /// Whether the log waits for room for a segment.
    #[must_use]
    pub fn log_waits_for_room(&self) -> bool {
        self.space.parked().any(|parked| matches!(parked, Parked::SegmentFile(_)))
    }

    /// Time has come to the port's `now`: what found no room is tried again.
    pub fn handle_time<P: Port>(&mut self, port: &mut P) {
        self.seek_space(port);
    }

    /// When [`Self::handle_time`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.space.deadline()
    }

    fn seek_space<P: Port>(&mut self, port: &mut P) {
        match self.space.poll(port.now()) {
            None => {}
            Some(SpaceStep::GiveUpReserve(id)) => {
                let submission = self.token(Purpose::ReserveGone);
                port.unlink(submission, id, RESERVE_FILE_NAME);
            }
            Some(SpaceStep::MakeReserve(bytes)) => {
                let submission = self.token(Purpose::Reserve);
                port.create(submission, RESERVE_FILE_NAME, bytes, FileMode::Log, Preparation::Reserve);
            }
            Some(SpaceStep::Retry(parked)) => {
                for submission in parked {
                    match submission {
                        Parked::SegmentFile(prepare) => self.prepare_segment(port, *prepare),
                        Parked::StoreFile { token, file, bytes } => self.create_store_file(port, token, file, bytes),
                        Parked::StoreWrite(write) => self.write_store(port, write),
                    }
                }
            }
        }
    }

    fn token(&mut self, purpose: Purpose) -> Token {
        self.last_token += 1;
        let token = Token(self.last_token);
        self.outstanding.insert(token, purpose);
        token
    }

    fn id_of(&self, file: StoreFile) -> FileId {
        self.store_file(file).expect("the store writes to files it created or found")
    }
}

/// What a submission brought.
#[derive(Debug)]
enum Outcome {
    Done,
    Made(FileId),
    Bytes(Vec<u8>),
}

/// The chunk-aligned range around a block, as far as the file goes: first byte and length.
fn whole_chunks(block: Block, file_bytes: u64) -> (u64, usize) {
    let first = block.offset / CHUNK_BYTES * CHUNK_BYTES;
    let end = (block.offset + u64::from(block.len)).next_multiple_of(CHUNK_BYTES).min(file_bytes);
    (first, usize::try_from(end - first).expect("a block is far below the address space"))
}

fn describe(purpose: &Purpose) -> String {
    match purpose {
        Purpose::HardState { generation, copy } => format!("writing generation {generation} of hard state copy {copy}"),
        Purpose::Append { lsn } => format!("appending LSN {lsn} to the log"),
        Purpose::SegmentFile(prepare) => format!("creating {}", segment_file_name(prepare.slot)),
        Purpose::SegmentHeader { sequence } => format!("writing the header of log segment {sequence}"),
        Purpose::StoreFile { file, .. } => format!("creating {}", store_file_name(*file)),
        Purpose::StoreWrite(StoreWrite { file, offset, bytes, .. }) => {
            format!("writing {} bytes at offset {offset} of {}", bytes.as_slice().len(), store_file_name(*file))
        }
        Purpose::StoreSync { .. } => "syncing a store file".to_owned(),
        Purpose::StoreDiscard { block, .. } => describe_block("giving back the room of", *block),
        Purpose::StoreRemoval { .. } => "removing a store file".to_owned(),
        Purpose::StorePopulate { block, .. } | Purpose::Load { block, .. } | Purpose::Recheck { block } => {
            describe_block("reading", *block)
        }
        Purpose::Direct { source } => format!("reading {source}"),
        Purpose::ReserveGone => format!("removing {RESERVE_FILE_NAME}"),
        Purpose::Reserve => format!("creating {RESERVE_FILE_NAME}"),
    }
}

/// The store's blocks, as far as they are resident in the mappings of a port.
#[derive(Debug)]
pub struct Pages<'a, P> {
    /// The mappings.
    pub port: &'a P,
    /// What is known of them.
    pub disk: &'a Disk,
}

impl<P: Port> PageSource for Pages<'_, P> {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        let id = self.disk.store.touch(block)?;
        self.port.mapped(id, block.offset, block.len as usize).ok_or(Unavailable::Corrupt(block))
    }
}
