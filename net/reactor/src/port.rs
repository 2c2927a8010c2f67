//! The completion-based port: everything the server's shell may ask of the outside world.
//!
//! Owns: the vocabulary of submissions and events between one core's loop and its backend. The real backend is
//! [`crate::glommio_port`]; the simulator has another one, so the shell's own code runs unchanged under both.
//! Does not know: raft, pages, HTTP, or what any byte means.
//!
//! Invariants
//! - I1: a submission never completes inside the call that makes it; its event arrives in a later turn.
//! - I2: every submission that carries a [`Token`] yields exactly one event with that token, in any order, unless the
//!   process stops. A failed or short write or sync is reported once and is final: the shell never retries it.
//! - I3: at most one `send` is outstanding per connection; its `Sent` event allows the next one.
//! - I4: `now` is constant within a turn and never goes backwards.
//! - I5: after `close(conn)` no event of that connection is delivered but `Closed`, exactly once, and a
//!   [`ConnectionId`] is never reused within a process.
//! - I6: within a turn, events are ordered: completions of files first, then other cores, then sockets, then the timer.
//! - I7: parcels from one core arrive in the order in which it posted them. They may wait for room at their
//!   destination; none is lost while both cores turn.
//!
//! Boot is synchronous: a [`BootFiles`] gives plain blocking calls, used before the first turn only.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use crate::mesh::CoreId;
use crate::process::ProcessStats;

/// Identifies one submission; chosen by the shell, returned in the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// An open file of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// An accepted connection; unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A bound listening socket, numbered in the order in which they were bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u32);

/// What one core's shell sends to another's: a whole turn's worth of messages. The shells agree on what is in it.
pub type Parcel = Box<dyn Any + Send>;

/// The bytes of a mapped file, for any thread.
pub trait MappedBytes: Send + Sync + Debug {
    /// The bytes of a range, or `None` if it reaches beyond the file. As with [`Port::mapped`], the call touches no
    /// page; the reader may fault if the range is not resident.
    fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]>;
}

/// A mapping that several threads read. Whoever drops the last one of an unlinked file frees its memory and its room.
pub type SharedMapping = Arc<dyn MappedBytes>;

/// How a file's writes reach the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileMode {
    /// `O_DIRECT`, and each write carries its own sync: a completed write is durable. Offsets and lengths are multiples
    /// of 4096.
    Log,
    /// `O_DIRECT`: durable after a completed sync. Offsets and lengths are multiples of 4096. Mapped read-only.
    Store,
}

/// What happens to a file's bytes when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// Space is reserved (fallocate); contents read as zeros.
    Reserve,
    /// Space is reserved and zeros are written through to the medium, so that later writes change no metadata.
    PreWrite,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed its sending half; everything it sent was delivered before.
    EndOfStream,
    /// Reset, timeout or another socket error.
    Failed,
    /// The shell asked for it.
    Requested,
}

/// What a turn brings in.
#[derive(Debug)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Event {
    /// A `write` ended. Success means all bytes were written (and are durable in [`FileMode::Log`]).
    Written { token: Token, result: io::Result<()> },
    /// A `sync` ended.
    Synced { token: Token, result: io::Result<()> },
    /// A `read` ended; the buffer has the requested length on success.
    Read { token: Token, result: io::Result<Vec<u8>> },
    /// A `create` ended: the file exists, is prepared, locked, synced, and so is its directory.
    Created { token: Token, result: io::Result<FileId> },
    /// A `rename` or `unlink` ended, directory sync included.
    Renamed { token: Token, result: io::Result<()> },
    /// A `populate` ended: the pages are resident, or could not be read.
    Populated { token: Token, result: io::Result<()> },
    /// A `discard` ended: the range reads as zeros and takes up no room. A failure leaves the range as it was.
    Discarded { token: Token, result: io::Result<()> },
    /// A connection was accepted.
    Accepted { listener: ListenerId, connection: ConnectionId, peer: String },
    /// Another core's parcel.
    Parcel { from: CoreId, parcel: Parcel },
    /// Bytes arrived. Never empty.
    Received { connection: ConnectionId, bytes: Vec<u8> },
    /// The outstanding `send` is wholly in the kernel's hands; the buffer comes back, emptied, for reuse.
    Sent { connection: ConnectionId, buffer: Vec<u8> },
    /// The connection is gone.
    Closed { connection: ConnectionId, reason: CloseReason },
    /// The deadline set by `set_deadline` has passed; it is cleared.
    Timer,
    /// SIGTERM or SIGINT arrived (the number is given); repeated signals repeat the event.
    StopRequested { signal: i32 },
}

/// One core's way to the outside. Submissions return at once; see I1 and I2.
pub trait Port {
    /// This turn's time: nanoseconds of a monotonic clock.
    fn now(&self) -> u64;
    /// Wall-clock time of the turn, nanoseconds since the Unix epoch: for log lines and generated identifiers only.
    fn wall_now(&self) -> u64;
    /// CPU time this core's thread has used so far, in nanoseconds; unlike `now` it moves within a turn. For histograms
    /// alone: nothing may depend on it. A backend without such a clock says 0.
    fn cpu_now(&self) -> u64 {
        0
    }
    /// What the operating system says of the process, for a scraper. A backend without one says nothing.
    fn process_stats(&self) -> ProcessStats {
        ProcessStats::default()
    }
    /// A random number from outside (seeded by the simulator).
    fn entropy(&mut self) -> u64;

    /// Writes all of `bytes` at `offset`.
    fn write(&mut self, token: Token, file: FileId, offset: u64, bytes: Vec<u8>);
    /// Makes everything written to `file` before this call durable (fdatasync).
    fn sync(&mut self, token: Token, file: FileId);
    /// Reads exactly `len` bytes at `offset` from the medium, past any cache (`O_DIRECT`).
    fn read(&mut self, token: Token, file: FileId, offset: u64, len: usize);
    /// Creates `name` (relative to the data directory, `/`-separated) of `bytes` bytes, off the core loop. An older
    /// file of that name, left over from a crash, is replaced.
    fn create(&mut self, token: Token, name: &str, bytes: u64, mode: FileMode, preparation: Preparation);
    /// Closes `file` and removes its name, off the core loop; for this port its mapping lives until the call and is
    /// gone after it. Who has a [`SharedMapping`] of it may read on; until the last one is dropped it keeps its room.
    fn unlink(&mut self, token: Token, file: FileId, name: &str);
    /// Makes a range of a [`FileMode::Store`] file resident in its mapping (`MADV_POPULATE_READ`), off the core loop.
    fn populate(&mut self, token: Token, file: FileId, offset: u64, len: usize);
    /// Gives the room of a range back to the file system (a punched hole; the file's length stays), off the core loop.
    /// Nobody reads or writes the range before the event. A later write takes room again, which may be missing then.
    fn discard(&mut self, token: Token, file: FileId, offset: u64, len: u64);
    /// Takes a range of a [`FileMode::Store`] file out of the mapping and out of the kernel's cache, off the core loop
    /// and without an event. A `populate` that is submitted later reads the medium again. Nobody reads the range
    /// between the two; doing so would stall the core, no more. Offset and length are multiples of 4096.
    fn release(&mut self, file: FileId, offset: u64, len: usize);
    /// The bytes of a mapped range. `None` beyond the file's end or for a file that is not mapped. The call itself
    /// touches no page; the reader may fault if the range is not resident.
    fn mapped(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]>;
    /// The mapping of a file, to be read by other threads. What is released leaves it as well. `None` for a file that
    /// is not mapped, and always from a backend of one core, which shares with nobody.
    fn shared_mapping(&self, _file: FileId) -> Option<SharedMapping> {
        None
    }

    /// Hands `bytes` to the connection; one coalesced write a turn. See I3.
    fn send(&mut self, connection: ConnectionId, bytes: Vec<u8>);
    /// Stops or resumes delivering `Received` (bytes already read may still arrive once).
    fn set_receiving(&mut self, connection: ConnectionId, receiving: bool);
    /// Ends a connection after its outstanding send, if any. See I5.
    fn close(&mut self, connection: ConnectionId);
    /// Stops accepting on every listener.
    fn close_listeners(&mut self);

    /// Sends a parcel to another core; it leaves at the end of the turn. A backend of one core has nobody to send to.
    fn post(&mut self, to: CoreId, parcel: Parcel) {
        unreachable!("this backend has one core: {parcel:?} for {to:?}");
    }
    /// Gives a connection to another core, which gets an `Accepted` of its own with another id. Only in the turn of the
    /// connection's `Accepted`, and before anything else was asked of it; no event of the old id follows.
    fn hand_over(&mut self, connection: ConnectionId, listener: ListenerId, to: CoreId) {
        unreachable!("this backend has one core: {connection:?} of {listener:?} for {to:?}");
    }

    /// Asks for a `Timer` event at or after `deadline` (nanoseconds of `now`); replaces the earlier deadline.
    fn set_deadline(&mut self, deadline: Option<u64>);
    /// Writes one log record (no newline at its end) to the log outputs.
    fn log(&mut self, record: &[u8]);
}

/// Blocking file calls for boot, before the first turn. Names are relative to the data directory.
pub trait BootFiles {
    /// Names of the regular files in `directory` ("" is the data directory itself), sorted; empty if it is missing.
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>>;
    /// Creates a directory (mode 0700) and its parents if missing, syncing each parent. One that exists is synced, and
    /// so is its parent: every name that is found in it afterwards survives a power loss.
    fn create_directory(&mut self, directory: &str) -> io::Result<()>;
    /// Try-locks `name` (created if missing, mode 0600), a file that no I/O uses. `Ok(false)`: a live owner holds it.
    fn lock_owner(&mut self, name: &str) -> io::Result<bool>;
    /// Opens a file in `mode` and takes its lock on the very description its I/O uses, waiting up to
    /// `wait_max` nanoseconds for a killed predecessor's in-flight writes to end.
    fn open(&mut self, name: &str, mode: FileMode, wait_max: u64) -> io::Result<FileId>;
    /// Creates, prepares, locks and syncs a file and its directory; an older file of that name is replaced.
    fn create(&mut self, name: &str, bytes: u64, mode: FileMode, preparation: Preparation) -> io::Result<FileId>;
    /// Length in bytes.
    fn len(&mut self, file: FileId) -> io::Result<u64>;
    /// Reads exactly `len` bytes from the medium; offset and length are multiples of 4096.
    fn read(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Writes all of `bytes`; durable at once in [`FileMode::Log`].
    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes earlier writes of `file` durable.
    fn sync(&mut self, file: FileId) -> io::Result<()>;
    /// Closes a file and removes its name, syncing its directory.
    fn unlink(&mut self, file: FileId, name: &str) -> io::Result<()>;
}

/// What the shell wants after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Wait for the next events.
    Continue,
    /// Leave the loop; the number becomes the result of the backend's `run` (a process exit status).
    Stop(i32),
}

/// One core's shell, driven by a backend of [`Port`].
///
/// The backend calls it once with no events before anything arrived (so that it may set its deadline and submit its
/// first work) and then once whenever at least one event is there, with all events that are ready.
pub trait CoreLoop<P: Port> {
    /// Handles one turn. `events` is emptied by the callee (`drain`); its allocation is reused.
    fn handle_turn(&mut self, port: &mut P, events: &mut Vec<Event>) -> Turn;
}
