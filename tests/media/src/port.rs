//! The server's port over an image in memory, recording every step.
//!
//! Owns: what the process sees of its files, completions under way, virtual time, connections' bytes. Does not know:
//! what survives a power cut ([`crate::medium`]), the server.
//!
//! Invariants
//! - I1: a completion comes in a later turn than its submission, in any order if the pace is drawn.
//! - I2: a write is visible once it ended, as bytes past every cache are.
//! - I3: everything done to the medium is in the trace, in order.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use trilith_reactor::{
    BootFiles, CloseReason, ConnectionId, CoreLoop, Event, FileId, FileMode, Port, Preparation, Token, Turn,
};
use trilith_sim::rng::Rng;

use crate::image::{Image, overlay};
use crate::medium::{Medium, draw_sectors};
use crate::trace::{FileNumber, Landed, Mark, Step, Ticket};

/// Turns without end, whatever the time: a loop.
const TURNS_MAX: u64 = 20_000;
const BLOCK_BYTES: usize = 4096;

/// How long submissions take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Done in the next turn.
    AtOnce,
    /// Drawn for each, so that they end in any order.
    Drawn,
}

#[derive(Clone, Debug)]
struct Handle {
    name: String,
    mode: FileMode,
}

#[derive(Debug)]
enum Pending {
    Write { token: Token, ticket: Ticket, name: String, offset: usize, bytes: Rc<Vec<u8>>, is_discard: bool },
    Sync { token: Token, ticket: Ticket },
    Create { token: Token, ticket: Ticket, name: String, bytes: usize, mode: FileMode },
    Unlink { token: Token, ticket: Ticket, name: String },
    Other(Event),
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing is due before the time given.
    Idle,
    /// The server stopped with this status.
    Stopped(i32),
    /// It turns without end.
    Loops,
}

/// One process's way to the outside.
#[derive(Debug)]
pub struct MediaPort {
    files: Image,
    numbers: BTreeMap<String, FileNumber>,
    handles: Vec<Option<Handle>>,
    /// By time and order of submission.
    pending: BTreeMap<(u64, u64), Pending>,
    arrived: Vec<Event>,
    pace: Pace,
    rng: Rng,
    now: u64,
    deadline: Option<u64>,
    last_number: u32,
    submissions: u64,
    sent: Vec<u8>,
    /// What was done to the medium.
    pub steps: Vec<Step>,
    /// Log records, newest last.
    pub journal: Vec<String>,
    /// Turns so far.
    pub turns: u64,
}

fn drawn_delay(rng: &mut Rng) -> u64 {
    rng.log_between(5_000, 400_000)
}

impl MediaPort {
    /// A process that finds `image`.
    #[must_use]
    pub fn new(image: Image, pace: Pace, seed: u64) -> Self {
        let mut port = Self {
            files: Image::default(),
            numbers: BTreeMap::new(),
            handles: Vec::new(),
            pending: BTreeMap::new(),
            arrived: Vec::new(),
            pace,
            rng: Rng::new(seed),
            now: 1_000_000_000,
            deadline: None,
            last_number: 0,
            submissions: 0,
            sent: Vec::new(),
            steps: Vec::new(),
            journal: Vec::new(),
            turns: 0,
        };
        port.mount(image);
        port
    }

    fn mount(&mut self, image: Image) {
        let mut numbers = Vec::new();
        self.numbers.clear();
        for name in image.files.keys() {
            self.last_number += 1;
            numbers.push(FileNumber(self.last_number));
            self.numbers.insert(name.clone(), FileNumber(self.last_number));
        }
        self.files = image.clone();
        self.steps.push(Step::Mounted(image, numbers));
    }

    fn forget_process(&mut self) {
        (self.pending, self.deadline) = (BTreeMap::new(), None);
        self.handles.clear();
        self.arrived.clear();
        self.sent.clear();
        self.journal.clear();
        self.turns = 0;
    }

    /// The power failed and left `image`.
    pub fn lose_power(&mut self, image: Image) {
        self.forget_process();
        self.mount(image);
    }

    /// The process was killed, or ended. Of what is under way, drawn parts still reach the medium.
    pub fn end_process(&mut self) {
        let mut landed = Vec::new();
        for pending in std::mem::take(&mut self.pending).into_values() {
            let is_lost = self.rng.chance(250);
            match pending {
                Pending::Write { ticket, name, offset, bytes, .. } if !is_lost => {
                    let sectors = bytes.len().div_ceil(512);
                    let all = self.rng.chance(600);
                    let sectors = if all { vec![true; sectors] } else { draw_sectors(&mut self.rng, sectors) };
                    if let Some(contents) = self.files.contents_mut(&name) {
                        for (sector, chunk) in bytes.chunks(512).enumerate().filter(|(sector, _)| sectors[*sector]) {
                            overlay(contents, offset + sector * 512, chunk);
                        }
                    }
                    landed.push((ticket, Landed::Sectors(sectors)));
                }
                Pending::Create { ticket, name, bytes, .. } if !is_lost => {
                    self.files.files.insert(name, Rc::new(vec![0; bytes]));
                    landed.push((ticket, self.draw_name_fate()));
                }
                Pending::Unlink { ticket, name, .. } if !is_lost => {
                    self.files.files.remove(&name);
                    landed.push((ticket, self.draw_name_fate()));
                }
                _ => {}
            }
        }
        self.steps.push(Step::Killed { landed });
        self.renumber();
        self.forget_process();
    }

    fn draw_name_fate(&mut self) -> Landed {
        if self.rng.chance(500) { Landed::Name } else { Landed::NameAndDirectory }
    }

    /// Which file each name stands for, from the trace: a killed creation may or may not have given its name.
    fn renumber(&mut self) {
        let mut medium = Medium::default();
        self.steps.iter().for_each(|step| medium.take(step));
        self.numbers = medium.visible_numbers();
        debug_assert_eq!(medium.visible(), self.files, "the process and the medium agree on what is visible");
    }

    /// What a successor sees.
    #[must_use]
    pub fn visible(&self) -> &Image {
        &self.files
    }

    /// Adds a mark to the trace.
    pub fn mark(&mut self, mark: Mark) {
        self.steps.push(Step::Mark(mark));
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Whether a completion is outstanding.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Something arrives.
    pub fn push(&mut self, event: Event) {
        self.arrived.push(event);
    }

    /// Bytes that the server sent since the last call.
    pub fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    /// The next turn, if one is due until `until`. `None`: it happened.
    pub fn turn<L: CoreLoop<Self>>(&mut self, core: &mut L, until: u64) -> Option<Rest> {
        let mut events = self.due(until)?;
        self.turns += 1;
        if self.turns > TURNS_MAX {
            return Some(Rest::Loops);
        }
        match core.handle_turn(self, &mut events) {
            Turn::Stop(status) => Some(Rest::Stopped(status)),
            Turn::Continue => None,
        }
    }

    /// Turns until nothing is due before `until`.
    pub fn run<L: CoreLoop<Self>>(&mut self, core: &mut L, until: u64) -> Rest {
        loop {
            if !self.is_due(until) {
                return Rest::Idle;
            }
            if let Some(rest) = self.turn(core, until) {
                return rest;
            }
        }
    }

    /// Whether a turn is due until `until`.
    #[must_use]
    pub fn is_due(&self, until: u64) -> bool {
        !self.arrived.is_empty() || self.next_time().is_some_and(|at| at <= until) || self.turns == 0
    }

    fn next_time(&self) -> Option<u64> {
        let completion = self.pending.keys().next().map(|(at, _)| *at);
        completion.into_iter().chain(self.deadline).min()
    }

    /// The events of the next turn, completions first.
    fn due(&mut self, until: u64) -> Option<Vec<Event>> {
        if !self.is_due(until) {
            return None;
        }
        if self.arrived.is_empty() && self.turns > 0 {
            self.now = self.now.max(self.next_time()?);
        }
        let mut events = Vec::new();
        while let Some(entry) = self.pending.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let pending = entry.remove();
            let event = self.complete(pending);
            events.push(event);
        }
        events.append(&mut self.arrived);
        if self.deadline.is_some_and(|at| at <= self.now) {
            self.deadline = None;
            events.push(Event::Timer);
        }
        Some(events)
    }

    fn complete(&mut self, pending: Pending) -> Event {
        match pending {
            Pending::Write { token, ticket, name, offset, bytes, is_discard } => {
                self.end_write(ticket, &name, offset, &bytes);
                let result = Ok(());
                if is_discard { Event::Discarded { token, result } } else { Event::Written { token, result } }
            }
            Pending::Sync { token, ticket } => {
                self.steps.push(Step::SyncEnded { ticket });
                Event::Synced { token, result: Ok(()) }
            }
            Pending::Create { token, ticket, name, bytes, mode } => {
                self.end_create(ticket, &name, bytes);
                Event::Created { token, result: Ok(self.open_handle(&name, mode)) }
            }
            Pending::Unlink { token, ticket, name } => {
                self.end_unlink(ticket, &name);
                Event::Renamed { token, result: Ok(()) }
            }
            Pending::Other(event) => event,
        }
    }

    fn schedule(&mut self, pending: Pending) {
        let delay = match self.pace {
            Pace::AtOnce => 1,
            Pace::Drawn => drawn_delay(&mut self.rng),
        };
        self.submissions += 1;
        self.pending.insert((self.now + delay, self.submissions), pending);
    }

    fn ticket(&mut self) -> Ticket {
        self.last_number += 1;
        Ticket(self.last_number)
    }

    fn handle(&self, file: FileId) -> &Handle {
        self.handles[file.0 as usize].as_ref().expect("the file is open")
    }

    fn open_handle(&mut self, name: &str, mode: FileMode) -> FileId {
        assert!(!self.handles.iter().flatten().any(|open| open.name == name), "{name} is opened once");
        self.handles.push(Some(Handle { name: name.to_owned(), mode }));
        FileId(self.handles.len() as u32 - 1)
    }

    fn close_handle(&mut self, file: FileId, name: &str) {
        let handle = self.handles[file.0 as usize].take().expect("the file is open");
        assert_eq!(handle.name, name, "a file is removed under its own name");
    }

    fn contents(&self, file: FileId) -> &[u8] {
        self.files.files.get(&self.handle(file).name).map_or(&[], |contents| contents.as_slice())
    }

    fn range(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]> {
        let offset = usize::try_from(offset).ok()?;
        self.contents(file).get(offset..offset.checked_add(len)?)
    }

    fn begin_write(&mut self, file: FileId, offset: u64, bytes: Vec<u8>) -> (Ticket, String, usize, Rc<Vec<u8>>) {
        let Handle { name, mode } = self.handle(file).clone();
        let offset = usize::try_from(offset).expect("files are small");
        assert!(
            offset.is_multiple_of(BLOCK_BYTES) && bytes.len().is_multiple_of(BLOCK_BYTES),
            "writes are whole blocks"
        );
        let end = offset + bytes.len();
        let overlapping = self.pending.values().any(|pending| {
            matches!(pending, Pending::Write { name: other, offset: start, bytes, .. }
                if *other == name && *start < end && offset < start + bytes.len())
        });
        assert!(!overlapping, "no two writes of one place are under way");
        let (ticket, bytes) = (self.ticket(), Rc::new(bytes));
        let (file, syncs_itself) = (self.numbers[&name], mode == FileMode::Log);
        self.steps.push(Step::WriteBegun { ticket, file, offset, bytes: Rc::clone(&bytes), syncs_itself });
        (ticket, name, offset, bytes)
    }

    fn end_write(&mut self, ticket: Ticket, name: &str, offset: usize, bytes: &[u8]) {
        if let Some(contents) = self.files.contents_mut(name) {
            overlay(contents, offset, bytes);
        }
        self.steps.push(Step::WriteEnded { ticket });
    }

    fn begin_sync(&mut self, file: FileId) -> Ticket {
        let file = self.numbers[&self.handle(file).name];
        let ticket = self.ticket();
        self.steps.push(Step::SyncBegun { ticket, file });
        ticket
    }

    fn begin_create(&mut self, name: &str, bytes: u64) -> (Ticket, usize) {
        let bytes = usize::try_from(bytes).expect("files are small");
        let ticket = self.ticket();
        let file = FileNumber(ticket.0);
        self.numbers.insert(name.to_owned(), file);
        self.steps.push(Step::CreateBegun { ticket, file, name: name.to_owned(), bytes });
        (ticket, bytes)
    }

    fn end_create(&mut self, ticket: Ticket, name: &str, bytes: usize) {
        // An older file of that name has none any more, whoever has it open.
        self.handles
            .iter_mut()
            .filter(|handle| handle.as_ref().is_some_and(|open| open.name == name))
            .for_each(|handle| *handle = None);
        self.files.files.insert(name.to_owned(), Rc::new(vec![0; bytes]));
        self.steps.push(Step::CreateEnded { ticket });
    }

    fn begin_unlink(&mut self, file: FileId, name: &str) -> Ticket {
        self.close_handle(file, name);
        let ticket = self.ticket();
        self.steps.push(Step::UnlinkBegun { ticket, name: name.to_owned() });
        ticket
    }

    fn end_unlink(&mut self, ticket: Ticket, name: &str) {
        self.files.files.remove(name);
        self.steps.push(Step::UnlinkEnded { ticket });
    }
}

impl Port for MediaPort {
    fn now(&self) -> u64 {
        self.now
    }

    fn wall_now(&self) -> u64 {
        self.now
    }

    fn entropy(&mut self) -> u64 {
        self.rng.bits()
    }

    fn write(&mut self, token: Token, file: FileId, offset: u64, bytes: Vec<u8>) {
        let (ticket, name, offset, bytes) = self.begin_write(file, offset, bytes);
        self.schedule(Pending::Write { token, ticket, name, offset, bytes, is_discard: false });
    }

    fn sync(&mut self, token: Token, file: FileId) {
        let ticket = self.begin_sync(file);
        self.schedule(Pending::Sync { token, ticket });
    }

    fn read(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        let bytes = self.range(file, offset, len).map(<[u8]>::to_vec);
        let result = bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        self.schedule(Pending::Other(Event::Read { token, result }));
    }

    fn create(&mut self, token: Token, name: &str, bytes: u64, mode: FileMode, _: Preparation) {
        let (ticket, bytes) = self.begin_create(name, bytes);
        self.schedule(Pending::Create { token, ticket, name: name.to_owned(), bytes, mode });
    }

    fn unlink(&mut self, token: Token, file: FileId, name: &str) {
        let ticket = self.begin_unlink(file, name);
        self.schedule(Pending::Unlink { token, ticket, name: name.to_owned() });
    }

    fn populate(&mut self, token: Token, _: FileId, _: u64, _: usize) {
        self.schedule(Pending::Other(Event::Populated { token, result: Ok(()) }));
    }

    fn discard(&mut self, token: Token, file: FileId, offset: u64, len: u64) {
        let zeros = vec![0; usize::try_from(len).expect("files are small")];
        let (ticket, name, offset, bytes) = self.begin_write(file, offset, zeros);
        self.schedule(Pending::Write { token, ticket, name, offset, bytes, is_discard: true });
    }

    fn release(&mut self, _: FileId, _: u64, _: usize) {}

    fn mapped(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]> {
        self.range(file, offset, len).filter(|_| self.handle(file).mode == FileMode::Store)
    }

    fn send(&mut self, connection: ConnectionId, mut bytes: Vec<u8>) {
        self.sent.append(&mut bytes);
        self.arrived.push(Event::Sent { connection, buffer: bytes });
    }

    fn set_receiving(&mut self, _: ConnectionId, _: bool) {}

    fn close(&mut self, connection: ConnectionId) {
        self.arrived.push(Event::Closed { connection, reason: CloseReason::Requested });
    }

    fn close_listeners(&mut self) {}

    fn set_deadline(&mut self, deadline: Option<u64>) {
        self.deadline = deadline;
    }

    fn log(&mut self, record: &[u8]) {
        self.journal.push(String::from_utf8_lossy(record).into_owned());
    }
}

impl BootFiles for MediaPort {
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>> {
        let inside = |name: &String| {
            let (parent, last) = name.rsplit_once('/').unwrap_or(("", name));
            (parent == directory).then(|| last.to_owned())
        };
        Ok(self.files.files.keys().filter_map(inside).collect())
    }

    fn create_directory(&mut self, directory: &str) -> io::Result<()> {
        self.steps.push(Step::DirectorySynced { directory: directory.to_owned() });
        Ok(())
    }

    fn lock_owner(&mut self, name: &str) -> io::Result<bool> {
        if !self.files.files.contains_key(name) {
            let (ticket, bytes) = self.begin_create(name, 0);
            self.files.files.insert(name.to_owned(), Rc::new(vec![0; bytes]));
            // Nobody syncs its directory.
            self.steps.push(Step::Named { ticket });
        }
        Ok(true)
    }

    fn open(&mut self, name: &str, mode: FileMode, _: u64) -> io::Result<FileId> {
        if !self.files.files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(self.open_handle(name, mode))
    }

    fn create(&mut self, name: &str, bytes: u64, mode: FileMode, _: Preparation) -> io::Result<FileId> {
        let (ticket, bytes) = self.begin_create(name, bytes);
        self.end_create(ticket, name, bytes);
        Ok(self.open_handle(name, mode))
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        Ok(self.contents(file).len() as u64)
    }

    fn read(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let bytes = self.range(file, offset, len).map(<[u8]>::to_vec);
        bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (ticket, name, offset, bytes) = self.begin_write(file, offset, bytes.to_vec());
        self.end_write(ticket, &name, offset, &bytes);
        Ok(())
    }

    fn sync(&mut self, file: FileId) -> io::Result<()> {
        let ticket = self.begin_sync(file);
        self.steps.push(Step::SyncEnded { ticket });
        Ok(())
    }

    fn unlink(&mut self, file: FileId, name: &str) -> io::Result<()> {
        let ticket = self.begin_unlink(file, name);
        self.end_unlink(ticket, name);
        Ok(())
    }
}
