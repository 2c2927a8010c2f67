//! The data directory at run time: which effect goes to which file, and what its completion means.
//!
//! Owns: open files, outstanding submissions and the residency of store pages. Does not know: raft, pages' contents,
//! when anything is written.
//!
//! Invariants
//! - I1: every submission has one purpose and is completed once.
//! - I2: a failed or short write, sync or creation is final; it is reported once as [`Completion::Failed`].
//! - I3: a block is given out only from chunks that were populated and not overwritten since.
//! - I4: a store file has one descriptor from its opening or creation on: a name is not created twice in a process.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use trilith_engine::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use trilith_engine::store::{StoreEffect, StoreWrite};
use trilith_raftlog::wal::segment_file_name;
use trilith_raftlog::{AppendWrite, Generation, Lsn, PrepareSegment, SegmentSequence};
use trilith_reactor::{Event, FileId, FileMode, Port, Preparation, Token};

/// Residency is tracked, and pages are loaded, in chunks of this size.
const CHUNK_BYTES: u64 = 64 << 10;

/// Name of a store file below the data directory.
#[must_use]
pub fn store_file_name(file: StoreFile) -> String {
    let number = file.number;
    match file.kind {
        FileKind::Superblock => format!("store/superblock-{number}"),
        FileKind::Index => format!("store/index-{number:04}"),
        FileKind::Rows => format!("store/rows-{number:04}"),
    }
}

/// The store file a name below the data directory stands for.
#[must_use]
pub fn store_file(name: &str) -> Option<StoreFile> {
    let (family, number) = name.strip_prefix("store/")?.rsplit_once('-')?;
    let kind = match family {
        "superblock" => FileKind::Superblock,
        "index" => FileKind::Index,
        "rows" => FileKind::Rows,
        _ => return None,
    };
    let file = StoreFile { kind, number: number.parse().ok()? };
    (store_file_name(file) == name).then_some(file)
}

/// What a submission was for.
#[derive(Debug)]
enum Purpose {
    HardState { generation: Generation, copy: u8 },
    Append { lsn: Lsn },
    SegmentFile(Box<PrepareSegment>),
    SegmentHeader { sequence: SegmentSequence },
    StoreFile { token: u64, file: StoreFile, bytes: u64 },
    StoreWrite { token: u64, block: Block },
    StoreSync { token: u64 },
    StorePopulate { token: u64, block: Block, writes: u32 },
    Load { block: Block, writes: u32 },
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

/// One open store file.
#[derive(Debug)]
struct OpenStoreFile {
    id: FileId,
    bytes: u64,
    /// One bit per chunk: known resident.
    resident: Vec<u64>,
    /// Completed writes per chunk, wrapping: a populate counts only if none ended while it was under way.
    writes: Vec<u32>,
}

/// The open files and what is outstanding.
#[derive(Debug, Default)]
pub struct Disk {
    hard_state: [Option<FileId>; 2],
    segments: BTreeMap<u32, FileId>,
    superblocks: Vec<Option<OpenStoreFile>>,
    index: Vec<Option<OpenStoreFile>>,
    rows: Vec<Option<OpenStoreFile>>,
    outstanding: BTreeMap<Token, Purpose>,
    loading: BTreeSet<(StoreFile, u64)>,
    last_token: u64,
}

impl Disk {
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
        let chunks = usize::try_from(bytes.div_ceil(CHUNK_BYTES)).expect("a file's chunks fit memory");
        let family = self.family_mut(file.kind);
        let number = file.number as usize;
        if family.len() <= number {
            family.resize_with(number + 1, || None);
        }
        assert!(family[number].is_none(), "I4: {file:?} is opened or created once");
        family[number] =
            Some(OpenStoreFile { id, bytes, resident: vec![0; chunks.div_ceil(64)], writes: vec![0; chunks] });
    }

    /// The store files, by kind and number.
    #[must_use]
    pub fn store_files(&self) -> Vec<StoreFile> {
        let kinds = [FileKind::Superblock, FileKind::Index, FileKind::Rows];
        let numbers = |kind| (0..).zip(self.family(kind)).filter(|(_, open)| open.is_some()).map(|(number, _)| number);
        kinds.iter().flat_map(|&kind| numbers(kind).map(move |number| StoreFile { kind, number })).collect()
    }

    /// Forgets a store file that is about to be removed; its descriptor.
    pub fn remove_store_file(&mut self, file: StoreFile) -> FileId {
        let open = self.family_mut(file.kind).get_mut(file.number as usize).and_then(Option::take);
        open.expect("only an open file is removed").id
    }

    /// The descriptor of a segment.
    #[must_use]
    pub fn segment(&self, slot: u32) -> Option<FileId> {
        self.segments.get(&slot).copied()
    }

    /// The descriptor of a store file.
    #[must_use]
    pub fn store_file(&self, file: StoreFile) -> Option<FileId> {
        self.open(file).map(|open| open.id)
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
            StoreEffect::CreateFile { token, file, bytes } => {
                let submission = self.token(Purpose::StoreFile { token, file, bytes });
                port.create(submission, &store_file_name(file), bytes, FileMode::Store, Preparation::Reserve);
            }
            StoreEffect::Write(StoreWrite { token, file, offset, bytes }) => {
                let bytes = bytes.into_vec();
                let len = u32::try_from(bytes.len()).expect("a store write is far below 4 GiB");
                let block = Block { file, offset, len };
                let submission = self.token(Purpose::StoreWrite { token, block });
                port.write(submission, self.id_of(file), offset, bytes);
            }
            StoreEffect::Sync { token, file } => {
                let submission = self.token(Purpose::StoreSync { token });
                port.sync(submission, self.id_of(file));
            }
            StoreEffect::Populate { token, block } => {
                let submission = self.token(Purpose::StorePopulate { token, block, writes: self.writes(block) });
                self.populate(port, submission, block);
            }
        }
    }

    /// Loads the pages of a missing block, unless that is under way.
    pub fn load<P: Port>(&mut self, port: &mut P, block: Block) {
        if self.loading.insert((block.file, whole_chunks(block).0)) {
            let submission = self.token(Purpose::Load { block, writes: self.writes(block) });
            self.populate(port, submission, block);
        }
    }

    /// Asks for the chunks around a block, as far as the file goes.
    fn populate<P: Port>(&self, port: &mut P, submission: Token, block: Block) {
        let open = self.open(block.file).expect("only blocks of open files are missing");
        let (offset, len) = whole_chunks(block);
        let rest = usize::try_from(open.bytes.saturating_sub(offset)).expect("a file's length fits memory");
        port.populate(submission, open.id, offset, len.min(rest));
    }

    /// Whether loads are under way.
    #[must_use]
    pub fn is_loading(&self) -> bool {
        !self.loading.is_empty()
    }

    /// Says what an event of the port means; `None` for events that are not about files.
    pub fn handle_event<P: Port>(&mut self, port: &mut P, event: Event) -> Result<Completion, Event> {
        match event {
            Event::Written { token, result } | Event::Synced { token, result } | Event::Populated { token, result } => {
                let purpose = self.outstanding.remove(&token).expect("I1: a completion has its submission");
                Ok(match result {
                    Ok(()) => self.complete(purpose),
                    Err(error) => Completion::Failed { what: describe(&purpose), error },
                })
            }
            Event::Created { token, result } => {
                let purpose = self.outstanding.remove(&token).expect("I1: a completion has its submission");
                Ok(match result {
                    Ok(id) => self.complete_creation(port, purpose, id),
                    Err(error) => Completion::Failed { what: describe(&purpose), error },
                })
            }
            other => Err(other),
        }
    }

    fn complete(&mut self, purpose: Purpose) -> Completion {
        match purpose {
            Purpose::HardState { generation, copy } => Completion::HardState { generation, copy },
            Purpose::Append { lsn } => Completion::Append { lsn },
            Purpose::SegmentHeader { sequence } => Completion::Segment { sequence },
            Purpose::StoreWrite { token, block } => {
                self.forget(block);
                Completion::Store { token }
            }
            Purpose::StoreSync { token } => Completion::Store { token },
            Purpose::StorePopulate { token, block, writes } => {
                self.mark(block, writes);
                Completion::Store { token }
            }
            Purpose::Load { block, writes } => {
                self.loading.remove(&(block.file, whole_chunks(block).0));
                self.mark(block, writes);
                Completion::Loaded
            }
            Purpose::SegmentFile(_) | Purpose::StoreFile { .. } => unreachable!("creations complete as Created"),
        }
    }

    fn complete_creation<P: Port>(&mut self, port: &mut P, purpose: Purpose, id: FileId) -> Completion {
        match purpose {
            Purpose::SegmentFile(prepare) => {
                self.segments.insert(prepare.slot, id);
                self.write_segment_header(port, *prepare);
                Completion::Progress
            }
            Purpose::StoreFile { token, file, bytes } => {
                self.add_store_file(file, id, bytes);
                Completion::Store { token }
            }
            other => unreachable!("{other:?} does not complete as Created"),
        }
    }

    /// The chunks a block touches are resident, unless one was written since `writes` was read.
    fn mark(&mut self, block: Block, writes: u32) {
        if self.writes(block) != writes {
            return;
        }
        let Some(open) = self.open_mut(block.file) else { return };
        for chunk in chunks(block) {
            let (word, bit) = place(chunk);
            if let Some(word) = open.resident.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// The chunks a block touches were written: what the mapping held of them is gone.
    fn forget(&mut self, block: Block) {
        let Some(open) = self.open_mut(block.file) else { return };
        for chunk in chunks(block) {
            let (word, bit) = place(chunk);
            if let Some(word) = open.resident.get_mut(word) {
                *word &= !bit;
            }
            if let Some(writes) = usize::try_from(chunk).ok().and_then(|chunk| open.writes.get_mut(chunk)) {
                *writes = writes.wrapping_add(1);
            }
        }
    }

    /// Writes so far to the chunks a block touches; differs before and after any of them was written.
    fn writes(&self, block: Block) -> u32 {
        let Some(open) = self.open(block.file) else { return 0 };
        let of_chunk = |chunk: u64| usize::try_from(chunk).ok().and_then(|chunk| open.writes.get(chunk)).copied();
        chunks(block).filter_map(of_chunk).fold(0, u32::wrapping_add)
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

    fn open(&self, file: StoreFile) -> Option<&OpenStoreFile> {
        self.family(file.kind).get(file.number as usize)?.as_ref()
    }

    fn family(&self, kind: FileKind) -> &[Option<OpenStoreFile>] {
        match kind {
            FileKind::Superblock => &self.superblocks,
            FileKind::Index => &self.index,
            FileKind::Rows => &self.rows,
        }
    }

    fn open_mut(&mut self, file: StoreFile) -> Option<&mut OpenStoreFile> {
        self.family_mut(file.kind).get_mut(file.number as usize)?.as_mut()
    }

    fn family_mut(&mut self, kind: FileKind) -> &mut Vec<Option<OpenStoreFile>> {
        match kind {
            FileKind::Superblock => &mut self.superblocks,
            FileKind::Index => &mut self.index,
            FileKind::Rows => &mut self.rows,
        }
    }
}

fn place(chunk: u64) -> (usize, u64) {
    (usize::try_from(chunk / 64).expect("a file's chunks fit memory"), 1 << (chunk % 64))
}

/// The numbers of the chunks a block touches.
fn chunks(block: Block) -> Range<u64> {
    let (offset, len) = whole_chunks(block);
    offset / CHUNK_BYTES..(offset + len as u64) / CHUNK_BYTES
}

/// The chunk-aligned range around a block: first byte and length.
fn whole_chunks(block: Block) -> (u64, usize) {
    let first = block.offset / CHUNK_BYTES * CHUNK_BYTES;
    let end = (block.offset + u64::from(block.len)).next_multiple_of(CHUNK_BYTES);
    (first, usize::try_from(end - first).expect("a block is far below the address space"))
}

fn describe(purpose: &Purpose) -> String {
    match purpose {
        Purpose::HardState { generation, copy } => format!("writing generation {generation} of hard state copy {copy}"),
        Purpose::Append { lsn } => format!("appending LSN {lsn} to the log"),
        Purpose::SegmentFile(prepare) => format!("creating {}", segment_file_name(prepare.slot)),
        Purpose::SegmentHeader { sequence } => format!("writing the header of log segment {sequence}"),
        Purpose::StoreFile { file, .. } => format!("creating {}", store_file_name(*file)),
        Purpose::StoreWrite { block, .. } => describe_block("writing", *block),
        Purpose::StoreSync { .. } => "syncing a store file".to_owned(),
        Purpose::StorePopulate { block, .. } | Purpose::Load { block, .. } => describe_block("reading", *block),
    }
}

fn describe_block(verb: &str, block: Block) -> String {
    format!("{verb} {} bytes at offset {} of {}", block.len, block.offset, store_file_name(block.file))
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
        let open = self.disk.open(block.file).ok_or(Unavailable::Corrupt(block))?;
        let end = block.offset.checked_add(u64::from(block.len)).ok_or(Unavailable::Corrupt(block))?;
        for chunk in block.offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES) {
            let (word, bit) = place(chunk);
            let word = open.resident.get(word).ok_or(Unavailable::Corrupt(block))?;
            if word & bit == 0 {
                return Err(Unavailable::Missing(block));
            }
        }
        self.port.mapped(open.id, block.offset, block.len as usize).ok_or(Unavailable::Corrupt(block))
    }
}
