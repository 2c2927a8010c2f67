//! A port over memory: everything completes in the next turn, unless the test says otherwise. A mapped page that is
//! read without being resident fails the test.
//!
//! Owns: files, connections' output, virtual time. Does not know: the server. Crashes, reordering and damage are the
//! simulator's business.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use trilith_reactor::{
    BootFiles, CloseReason, ConnectionId, CoreId, CoreLoop, Event, FileId, FileMode, ListenerId, Parcel, Port,
    Preparation, Token, Turn,
};
use trilith_server::front::message::Answers;

#[derive(Debug, Default)]
pub(crate) struct MemoryPort {
    /// What survives a process.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    handles: Vec<Option<String>>,
    events: Vec<Event>,
    /// File completions that wait for the end of a stall.
    held: Vec<Event>,
    pub(crate) is_stalled: bool,
    pub(crate) now: u64,
    deadline: Option<u64>,
    pub(crate) sent: BTreeMap<ConnectionId, Vec<u8>>,
    /// So many changes of files until the process dies.
    pub(crate) changes_left: Option<usize>,
    entropy: u64,
    /// Log records.
    pub(crate) journal: Vec<String>,
    /// Bytes that all files together may have.
    pub(crate) capacity: Option<usize>,
    /// What mappings show in place of a file's bytes, until pages of it are released.
    pub(crate) memory: BTreeMap<String, Vec<u8>>,
    /// Pages in memory.
    pub(crate) resident: BTreeSet<(String, u64)>,
    /// The core whose turn it is.
    pub(crate) turning: CoreId,
    /// Cores that connections were given to.
    pub(crate) owners: BTreeMap<ConnectionId, CoreId>,
    /// What waits for a core.
    freight: BTreeMap<CoreId, Vec<Event>>,
    /// Bytes of messages that went to connection cores.
    pub(crate) freight_bytes: usize,
}

impl MemoryPort {
    /// The directory under a new process.
    pub(crate) fn restarted(self) -> Self {
        Self { files: self.files, now: self.now, capacity: self.capacity, ..Self::default() }
    }

    /// Whether the process has died.
    pub(crate) fn is_dead(&self) -> bool {
        self.changes_left == Some(0)
    }

    fn change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("dead")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn complete(&mut self, event: Event) {
        if self.is_stalled { self.held.push(event) } else { self.events.push(event) }
    }

    /// Ends a stall of the disk.
    pub(crate) fn end_stall(&mut self) {
        self.is_stalled = false;
        self.events.append(&mut self.held);
    }

    /// Ends a stall of the disk: no write that it held back was done.
    pub(crate) fn fail_stall(&mut self) {
        for event in &mut self.held {
            if let Event::Written { result, .. } = event {
                *result = Err(io::ErrorKind::Other.into());
            }
        }
        self.end_stall();
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    pub(crate) fn accept(&mut self, number: u64) -> ConnectionId {
        let connection = ConnectionId(number);
        self.push(Event::Accepted { listener: ListenerId(0), connection, peer: "test".to_owned() });
        connection
    }

    /// Turns until nothing is left to do at once; advances time to deadlines up to `until`.
    pub(crate) fn run<L: CoreLoop<Self>>(&mut self, core: &mut L, until: u64) -> Option<i32> {
        for _ in 0..100_000 {
            let mut events = std::mem::take(&mut self.events);
            if let Turn::Stop(status) = core.handle_turn(self, &mut events) {
                return Some(status);
            }
            if self.events.is_empty() {
                let deadline = self.deadline.take().filter(|deadline| *deadline <= until)?;
                self.now = self.now.max(deadline);
                self.events.push(Event::Timer);
            }
        }
        panic!("the loop never rests");
    }

    fn add(&mut self, name: &str, bytes: u64) -> io::Result<FileId> {
        let bytes = usize::try_from(bytes).unwrap();
        self.files.remove(name);
        if self.capacity.is_some_and(|capacity| self.used_bytes() + bytes > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files.insert(name.to_owned(), vec![0; bytes]);
        Ok(self.handle(name))
    }

    /// Bytes of all files.
    pub(crate) fn used_bytes(&self) -> usize {
        self.files.values().map(Vec::len).sum()
    }

    fn set_resident(&mut self, file: FileId, offset: u64, len: u64, resident: bool) {
        let name = self.name(file).to_owned();
        for page in offset / 4096..(offset + len).div_ceil(4096) {
            if resident {
                self.resident.insert((name.clone(), page));
            } else {
                self.resident.remove(&(name.clone(), page));
            }
        }
    }

    /// Takes what other cores have sent to this one.
    pub(crate) fn take_freight(&mut self, core: CoreId) -> Vec<Event> {
        self.freight.remove(&core).unwrap_or_default()
    }

    /// Whether there is any.
    pub(crate) fn has_freight(&self, core: CoreId) -> bool {
        self.freight.contains_key(&core)
    }

    /// Parcels and connections that wait for a core.
    pub(crate) fn freight_len(&self, core: CoreId) -> usize {
        self.freight.get(&core).map_or(0, Vec::len)
    }

    /// Takes the deadline that was set last.
    pub(crate) fn take_deadline(&mut self) -> Option<u64> {
        self.deadline.take()
    }

    /// Takes the events that are due.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn handle(&mut self, name: &str) -> FileId {
        self.handles.push(Some(name.to_owned()));
        FileId(u32::try_from(self.handles.len() - 1).unwrap())
    }

    fn name(&self, file: FileId) -> &str {
        self.handles[file.0 as usize].as_deref().expect("an open file")
    }

    fn put(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let name = self.name(file).to_owned();
        let offset = usize::try_from(offset).unwrap();
        let (file, end) = (self.files.get_mut(&name).unwrap(), offset + bytes.len());
        // A write beyond the end makes a file longer.
        file.resize(file.len().max(end), 0);
        file[offset..end].copy_from_slice(bytes);
    }

    fn get(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]> {
        let offset = usize::try_from(offset).ok()?;
        self.files.get(self.name(file))?.get(offset..offset.checked_add(len)?)
    }
}

impl Port for MemoryPort {
    fn now(&self) -> u64 {
        self.now
    }
    fn wall_now(&self) -> u64 {
        self.now
    }
    fn entropy(&mut self) -> u64 {
        self.entropy += 2;
        self.entropy
    }
    fn write(&mut self, token: Token, file: FileId, offset: u64, bytes: Vec<u8>) {
        if self.change().is_ok() {
            self.put(file, offset, &bytes);
            self.set_resident(file, offset, bytes.len() as u64, false);
            self.complete(Event::Written { token, result: Ok(()) });
        }
    }
    fn sync(&mut self, token: Token, _: FileId) {
        self.complete(Event::Synced { token, result: Ok(()) });
    }
    fn read(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        let result = BootFiles::read(self, file, offset, len);
        self.complete(Event::Read { token, result });
    }
    fn create(&mut self, token: Token, name: &str, bytes: u64, _: FileMode, _: Preparation) {
        if self.change().is_ok() {
            let result = self.add(name, bytes);
            self.complete(Event::Created { token, result });
        }
    }
    fn unlink(&mut self, token: Token, file: FileId, name: &str) {
        if let Ok(()) = BootFiles::unlink(self, file, name) {
            self.complete(Event::Renamed { token, result: Ok(()) });
        }
    }
    fn populate(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        assert!(self.get(file, offset, len).is_some(), "a range of the file");
        self.set_resident(file, offset, len as u64, true);
        self.complete(Event::Populated { token, result: Ok(()) });
    }
    fn discard(&mut self, token: Token, file: FileId, offset: u64, len: u64) {
        if self.change().is_ok() {
            let zeros = vec![0; usize::try_from(len).unwrap()];
            self.put(file, offset, &zeros);
            self.set_resident(file, offset, len, false);
            self.complete(Event::Discarded { token, result: Ok(()) });
        }
    }
    fn release(&mut self, file: FileId, offset: u64, len: usize) {
        assert!(self.get(file, offset, len).is_some(), "a range of the file");
        self.set_resident(file, offset, len as u64, false);
        let name = self.name(file).to_owned();
        self.memory.remove(&name);
    }
    fn mapped(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]> {
        let name = self.name(file);
        for page in offset / 4096..(offset + len as u64).div_ceil(4096) {
            assert!(self.resident.contains(&(name.to_owned(), page)), "page {page} of {name} would stall the core");
        }
        let start = usize::try_from(offset).unwrap();
        self.memory.get(name).map_or_else(|| self.get(file, offset, len), |memory| memory.get(start..start + len))
    }
    fn send(&mut self, connection: ConnectionId, mut bytes: Vec<u8>) {
        self.sent.entry(connection).or_default().append(&mut bytes);
        self.events.push(Event::Sent { connection, buffer: bytes });
    }
    fn set_receiving(&mut self, _: ConnectionId, _: bool) {}
    fn close(&mut self, connection: ConnectionId) {
        self.events.push(Event::Closed { connection, reason: CloseReason::Requested });
    }
    fn close_listeners(&mut self) {}
    fn post(&mut self, to: CoreId, parcel: Parcel) {
        assert_ne!(to, self.turning, "a core does not write to itself");
        self.freight_bytes += parcel.downcast_ref::<Answers>().map_or(0, Answers::message_bytes);
        self.freight.entry(to).or_default().push(Event::Parcel { from: self.turning, parcel });
    }
    fn hand_over(&mut self, connection: ConnectionId, listener: ListenerId, to: CoreId) {
        assert!(self.owners.insert(connection, to).is_none(), "{connection:?} is given away once");
        let accepted = Event::Accepted { listener, connection, peer: "test".to_owned() };
        self.freight.entry(to).or_default().push(accepted);
    }
    fn set_deadline(&mut self, deadline: Option<u64>) {
        self.deadline = deadline;
    }
    fn log(&mut self, record: &[u8]) {
        self.journal.push(String::from_utf8_lossy(record).into_owned());
    }
}

impl BootFiles for MemoryPort {
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>> {
        let inside = |name: &String| {
            let rest = if directory.is_empty() {
                Some(name.as_str())
            } else {
                name.strip_prefix(directory)?.strip_prefix('/')
            };
            rest.filter(|rest| !rest.contains('/')).map(str::to_owned)
        };
        Ok(self.files.keys().filter_map(inside).collect())
    }
    fn create_directory(&mut self, _: &str) -> io::Result<()> {
        self.change()
    }
    fn lock_owner(&mut self, name: &str) -> io::Result<bool> {
        self.change()?;
        self.files.entry(name.to_owned()).or_default();
        Ok(true)
    }
    fn open(&mut self, name: &str, _: FileMode, _: u64) -> io::Result<FileId> {
        assert!(!self.handles.iter().flatten().any(|open| open == name), "{name} is opened twice");
        Ok(self.handle(name))
    }
    fn create(&mut self, name: &str, bytes: u64, _: FileMode, _: Preparation) -> io::Result<FileId> {
        self.change()?;
        self.add(name, bytes)
    }
    fn len(&mut self, file: FileId) -> io::Result<u64> {
        Ok(self.files[self.name(file)].len() as u64)
    }
    fn read(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.get(file, offset, len).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change()?;
        self.put(file, offset, bytes);
        Ok(())
    }
    fn sync(&mut self, _: FileId) -> io::Result<()> {
        self.change()
    }
    fn unlink(&mut self, file: FileId, name: &str) -> io::Result<()> {
        self.change()?;
        assert_eq!(self.handles[file.0 as usize].take().as_deref(), Some(name));
        self.files.remove(name);
        Ok(())
    }
}
