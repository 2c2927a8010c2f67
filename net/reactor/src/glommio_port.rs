//! The real backend of [`Port`]: one ring, one helper thread, on a glommio executor's thread.
//!
//! Owns: the turn. Everything that is ready is collected, the clock is read, the shell runs, then all it submitted
//! leaves: file operations and sends in one system call, log records in one write.
//! Does not know: what the shell does.
//!
//! The loop is the executor's only task, so it may sleep in the ring: until an operation completes (a signal of the
//! event descriptor by the helper thread or a signal handler is one, and of the mesh's by another core), or the
//! earliest deadline has passed.
//!
//! A process of several cores runs one such loop on each of as many threads, and every one has a seat in the mesh
//! ([`seats`]). One of them has the files and the listeners.

use crate::file_io::FileIo;
use crate::files::{self, Directory, OpenFile};
use crate::helper::{FileThread, Reply, Request};
use crate::listeners::Listeners;
use crate::log::LogSink;
use crate::mesh::{self, Batch, CoreId, MeshEnd};
use crate::options::ReactorOptions;
use crate::port::{
    BootFiles, ConnectionId, CoreLoop, Event, FileId, FileMode, ListenerId, MappedBytes, Parcel, Port, Preparation,
    SharedMapping, Token, Turn,
};
use crate::process::{self, ProcessStats};
use crate::ring::{Completion, OperationId, Origin, Ring, target};
use crate::sockets::Sockets;
use crate::start;
use crate::sys::{self, EventFd};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use io_uring::opcode;
use socket2::Socket;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Which event descriptor a signal is of: the port's own, or the one by which other cores wake this one.
const OWN_EVENT: u64 = 0;
const MESH_EVENT: u64 = 1;
/// How long the last parcels of a core may wait for room at one that is slow, and may have to be told to end; for one
/// that has left they do not wait.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// Entries of each ring of the executor, which has nothing to do with them.
const EXECUTOR_RING_DEPTH: usize = 32;

/// How long a parcel that found its destination's queue full waits for the next try.
const MESH_RETRY: Duration = Duration::from_micros(50);
/// Batches that a core's queue holds for each other core.
const BATCHES_PER_CORE: usize = 8;

/// What travels between cores.
enum Freight {
    Parcel(Parcel),
    Connection { listener: ListenerId, stream: Socket },
}

/// A core's place among the cores of its process; moves to the core's thread.
pub struct Seat {
    mesh: MeshEnd<Freight>,
    cpu: Option<usize>,
}

/// Seats for as many cores as `cpus` has entries. A core is bound to the processor named, or goes where the scheduler
/// likes.
///
/// # Errors
/// No descriptors are left.
pub fn seats(cpus: &[Option<usize>]) -> io::Result<Vec<Seat>> {
    let ends = mesh::mesh(cpus.len(), BATCHES_PER_CORE * cpus.len())?;
    Ok(ends.into_iter().zip(cpus).map(|(mesh, &cpu)| Seat { mesh, cpu }).collect())
}

/// Why a reactor did not start or did not go on.
#[derive(Debug)]
pub enum RunError<E> {
    /// Something in the environment; the text says what to do.
    Environment(io::Error),
    /// The shell's `make` refused.
    Shell(E),
}

/// The time of the turn.
struct Clock {
    origin: Instant,
    start: SystemTime,
    now: u64,
    wall_now: u64,
}

impl Clock {
    fn start() -> Self {
        let mut clock = Self { origin: Instant::now(), start: SystemTime::now(), now: 0, wall_now: 0 };
        clock.read();
        clock
    }

    fn read(&mut self) {
        self.now = nanoseconds(self.origin.elapsed());
        self.wall_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanoseconds);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One core's [`Port`]; before the first turn also its [`BootFiles`].
pub struct GlommioPort {
    clock: Clock,
    // Idle once the port is dropped, hence before what its operations use.
    ring: Ring,
    file_io: FileIo,
    sockets: Sockets,
    listeners: Listeners,
    /// Cores without listeners and files have none.
    helper: Option<FileThread>,
    mesh: Option<MeshEnd<Freight>>,
    directory: Directory,
    files: Vec<Option<OpenFile>>,
    owner_locks: Vec<File>,
    event: Arc<EventFd>,
    /// Of listeners on TCP.
    addresses: Vec<Option<SocketAddr>>,
    deadline: Option<u64>,
    spin_before_sleep: Duration,
    log: LogSink,
    signals: bool,
    stopping: bool,
}

impl GlommioPort {
    fn new(
        options: &ReactorOptions,
        addresses: Vec<Option<SocketAddr>>,
        mesh: Option<MeshEnd<Freight>>,
    ) -> io::Result<Self> {
        let event = Arc::new(EventFd::new()?);
        if options.signals {
            sys::catch_stop_signals(&event)?;
        }
        let directory = Directory::new(options.data_directory.clone());
        let ring = Ring::new().map_err(start::explain_ring_error)?;
        let core = mesh.as_ref().map_or(CoreId(0), MeshEnd::own);
        let sockets = Sockets::new(&ring, core).map_err(start::explain_ring_error)?;
        // The files belong to the first core.
        let helper =
            (core == CoreId(0)).then(|| FileThread::start(directory.clone(), Arc::clone(&event))).transpose()?;
        let mut port = Self {
            clock: Clock::start(),
            ring,
            file_io: FileIo::new(),
            sockets,
            listeners: Listeners::default(),
            helper,
            mesh,
            directory,
            files: Vec::new(),
            owner_locks: Vec::new(),
            event,
            addresses,
            deadline: None,
            spin_before_sleep: options.spin_before_sleep,
            log: LogSink::open(&options.log_outputs)?,
            signals: options.signals,
            stopping: false,
        };
        port.watch_event(OWN_EVENT);
        if port.mesh.is_some() {
            port.watch_event(MESH_EVENT);
        }
        Ok(port)
    }

    /// Makes every signal of an event descriptor a completion. Nobody reads the counter: each signal counts.
    fn watch_event(&mut self, number: u64) {
        let descriptor = match &self.mesh {
            Some(mesh) if number == MESH_EVENT => mesh.descriptor(),
            _ => self.event.as_raw_fd(),
        };
        let entry = opcode::PollAdd::new(target(descriptor), libc::POLLIN as u32).multi(true).build();
        // SAFETY: no memory is named; the descriptor is the port's or its mesh's, which are dropped after the port's
        // operations have ended.
        unsafe { self.ring.prepare(OperationId::new(Origin::Signal, number), entry) };
    }

    fn helper(&mut self) -> &mut FileThread {
        self.helper.as_mut().expect("only the first core has files")
    }

    fn mesh(&mut self) -> &mut MeshEnd<Freight> {
        self.mesh.as_mut().expect("a core of several has a seat")
    }

    /// Takes what other cores have sent, no more than a full queue at once.
    fn take_freight(&mut self, events: &mut Vec<Event>) {
        let Some(mesh) = &self.mesh else { return };
        for _ in 0..mesh.batches_max() {
            let Some(Batch { from, messages }) = mesh.receive() else { return };
            for freight in messages {
                match freight {
                    Freight::Parcel(parcel) => events.push(Event::Parcel { from, parcel }),
                    Freight::Connection { listener, stream } => self.sockets.adopt(listener, stream),
                }
            }
        }
    }

    /// The address a listener on TCP is bound to (tells the port where port 0 was asked for).
    pub fn listener_address(&self, listener: ListenerId) -> Option<SocketAddr> {
        self.addresses[listener.0 as usize]
    }

    fn register(&mut self, file: OpenFile) -> FileId {
        self.files.push(Some(file));
        FileId(u32::try_from(self.files.len() - 1).expect("files opened by one process are far fewer than 2^32"))
    }

    fn file(&self, id: FileId) -> &OpenFile {
        self.files[id.0 as usize].as_ref().expect("a file is not used after its unlink")
    }

    fn take_file(&mut self, id: FileId) -> OpenFile {
        assert!(self.file_io.is_idle(id), "a file is unlinked only when nothing is under way on it");
        self.files[id.0 as usize].take().expect("a file is unlinked once")
    }

    /// Reads the clock and collects what is ready, in the order of the port's I6.
    fn begin_turn(&mut self, events: &mut Vec<Event>) {
        self.clock.read();
        let now = self.clock.now;
        self.sockets.deliver_held(&mut self.ring, now);
        while let Some(completion) = self.ring.next_completion() {
            self.complete(&completion, events);
        }
        while let Some(reply) = self.helper.as_mut().and_then(FileThread::poll_reply) {
            events.extend(self.reply_event(reply));
        }
        self.take_freight(events);
        self.listeners.end_pauses(&mut self.ring, now);
        self.sockets.finish_turn(&mut self.ring, now, events);
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            events.push(Event::Timer);
        }
        if self.signals {
            let (terminates, interrupts) = sys::take_stop_signals();
            for (count, signal) in [(terminates, libc::SIGTERM), (interrupts, libc::SIGINT)] {
                events.extend((0..count).map(|_| Event::StopRequested { signal }));
            }
        }
    }

    /// Gives a completion to whoever made the operation. Only files put their events in at once.
    fn complete(&mut self, completion: &Completion, events: &mut Vec<Event>) {
        let (ring, now) = (&mut self.ring, self.clock.now);
        match completion.user_data.origin() {
            Origin::File => self.file_io.complete(ring, completion, events),
            Origin::Receive => self.sockets.complete_receive(ring, completion, now),
            Origin::Send => self.sockets.complete_send(ring, completion, now),
            Origin::Pause => self.sockets.complete_pause(ring, completion, now),
            Origin::Accept => {
                if let Some((listener, stream)) = self.listeners.complete(ring, completion, now) {
                    self.sockets.adopt(listener, stream);
                }
            }
            Origin::Signal if !completion.more && !self.stopping => self.watch_event(completion.user_data.number()),
            Origin::Signal | Origin::Cancel => {}
        }
    }

    fn reply_event(&mut self, reply: Reply) -> Option<Event> {
        Some(match reply {
            Reply::Created { token, result } => {
                Event::Created { token, result: result.map(|file| self.register(file)) }
            }
            Reply::Unlinked { token, result } => Event::Renamed { token, result },
            Reply::Populated { token, result } => Event::Populated { token, result },
            Reply::Released => return None,
        })
    }

    /// Lets everything leave that the turn submitted, and sleeps until something comes.
    fn wait(&mut self) -> io::Result<()> {
        self.log.flush();
        self.sockets.start_fresh(&mut self.ring, self.clock.now);
        let all_left = self.mesh.as_mut().is_none_or(MeshEnd::flush);
        let has_freight = self.mesh.as_ref().is_some_and(|mesh| !mesh.begin_sleep());
        let timeout = if has_freight || self.sockets.is_due() {
            Some(Duration::ZERO)
        } else {
            let deadlines = [self.deadline, self.sockets.deadline(), self.listeners.deadline()];
            // The turn may have been long: its time is not the time.
            let now = nanoseconds(self.clock.origin.elapsed());
            deadlines.into_iter().flatten().min().map(|deadline| Duration::from_nanos(deadline.saturating_sub(now)))
        };
        let timeout = if all_left { timeout } else { Some(timeout.map_or(MESH_RETRY, |time| time.min(MESH_RETRY))) };
        let result = self.ring.wait(timeout, self.spin_before_sleep);
        if let Some(mesh) = &self.mesh {
            mesh.end_sleep();
        }
        result
    }

    /// Lets everything leave that the last turn submitted.
    fn end(&mut self) -> io::Result<()> {
        self.log.flush();
        let give_up = Instant::now() + FAREWELL_MAX;
        while !self.mesh.as_mut().is_none_or(MeshEnd::flush) && Instant::now() < give_up {
            thread::sleep(MESH_RETRY);
        }
        self.ring.submit()
    }

    /// Ends every operation; their memory and descriptors are free then.
    fn end_operations(&mut self) -> io::Result<()> {
        self.stopping = true;
        for number in [OWN_EVENT, MESH_EVENT] {
            self.ring.cancel(OperationId::new(Origin::Cancel, number), OperationId::new(Origin::Signal, number));
        }
        self.listeners.close(&mut self.ring);
        self.sockets.abandon(&mut self.ring, self.clock.now);
        let mut ignored = Vec::new();
        while self.ring.in_flight() > 0 {
            self.ring.wait(None, Duration::ZERO)?;
            while let Some(completion) = self.ring.next_completion() {
                self.complete(&completion, &mut ignored);
            }
        }
        Ok(())
    }
}

impl Drop for GlommioPort {
    fn drop(&mut self) {
        if self.end_operations().is_err() {
            self.file_io.leak();
            self.sockets.leak();
        }
    }
}

impl Port for GlommioPort {
    fn now(&self) -> u64 {
        self.clock.now
    }

    fn wall_now(&self) -> u64 {
        self.clock.wall_now
    }

    fn cpu_now(&self) -> u64 {
        sys::thread_cpu_time()
    }

    fn process_stats(&self) -> ProcessStats {
        process::read(self.clock.start)
    }

    fn entropy(&mut self) -> u64 {
        sys::entropy()
    }

    fn write(&mut self, token: Token, file: FileId, offset: u64, bytes: Vec<u8>) {
        let open = self.file(file);
        let target = (file, open.file.as_raw_fd(), open.mode == FileMode::Log);
        self.file_io.write(&mut self.ring, token, target, offset, &bytes);
    }

    fn sync(&mut self, token: Token, file: FileId) {
        let descriptor = self.file(file).file.as_raw_fd();
        self.file_io.sync(&mut self.ring, token, file, descriptor);
    }

    fn read(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        let descriptor = self.file(file).file.as_raw_fd();
        self.file_io.read(&mut self.ring, token, (file, descriptor), offset, len);
    }

    fn create(&mut self, token: Token, name: &str, bytes: u64, mode: FileMode, preparation: Preparation) {
        self.helper().request(Request::Create { token, name: name.to_owned(), bytes, mode, preparation });
    }

    fn unlink(&mut self, token: Token, file: FileId, name: &str) {
        let file = self.take_file(file);
        self.helper().request(Request::Unlink { token, name: name.to_owned(), file });
    }

    fn populate(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        let mapping = Arc::clone(self.file(file).mapping.as_ref().expect("only mapped files are populated"));
        self.helper().request(Request::Populate { token, mapping, offset, len });
    }

    fn discard(&mut self, token: Token, file: FileId, offset: u64, len: u64) {
        let descriptor = self.file(file).file.as_raw_fd();
        self.file_io.discard(&mut self.ring, token, (file, descriptor), offset, len);
    }

    fn release(&mut self, file: FileId, offset: u64, len: usize) {
        let open = self.file(file);
        let mapping = Arc::clone(open.mapping.as_ref().expect("only mapped files are released"));
        let file = Arc::clone(&open.file);
        self.helper().request(Request::Release { file, mapping, offset, len });
    }

    fn mapped(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]> {
        self.file(file).mapping.as_ref()?.bytes(offset, len)
    }

    fn shared_mapping(&self, file: FileId) -> Option<SharedMapping> {
        let mapping = Arc::clone(self.file(file).mapping.as_ref()?);
        Some(mapping)
    }

    fn send(&mut self, connection: ConnectionId, bytes: Vec<u8>) {
        self.sockets.send(&mut self.ring, connection, bytes);
    }

    fn set_receiving(&mut self, connection: ConnectionId, receiving: bool) {
        self.sockets.set_receiving(&mut self.ring, connection, receiving, self.clock.now);
    }

    fn close(&mut self, connection: ConnectionId) {
        self.sockets.close(&mut self.ring, connection, self.clock.now);
    }

    fn close_listeners(&mut self) {
        self.listeners.close(&mut self.ring);
    }

    fn post(&mut self, to: CoreId, parcel: Parcel) {
        self.mesh().post(to, Freight::Parcel(parcel));
    }

    fn hand_over(&mut self, connection: ConnectionId, listener: ListenerId, to: CoreId) {
        let stream = self.sockets.give_away(connection);
        self.mesh().post(to, Freight::Connection { listener, stream });
    }

    fn set_deadline(&mut self, deadline: Option<u64>) {
        self.deadline = deadline;
    }

    fn log(&mut self, record: &[u8]) {
        self.log.append(record);
    }
}

impl BootFiles for GlommioPort {
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>> {
        self.directory.list(directory)
    }

    fn create_directory(&mut self, directory: &str) -> io::Result<()> {
        self.directory.create_directory(directory)
    }

    fn lock_owner(&mut self, name: &str) -> io::Result<bool> {
        let lock = self.directory.lock_owner(name)?;
        let taken = lock.is_some();
        self.owner_locks.extend(lock);
        Ok(taken)
    }

    fn open(&mut self, name: &str, mode: FileMode, wait_max: u64) -> io::Result<FileId> {
        let file = self.directory.open(name, mode, Duration::from_nanos(wait_max))?;
        Ok(self.register(file))
    }

    fn create(&mut self, name: &str, bytes: u64, mode: FileMode, preparation: Preparation) -> io::Result<FileId> {
        let file = self.directory.create(name, bytes, mode, preparation, &mut || {})?;
        Ok(self.register(file))
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        Ok(self.file(file).bytes)
    }

    fn read(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        files::read_direct(&self.file(file).file, offset, len)
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        files::write_direct(self.file(file), offset, bytes)
    }

    fn sync(&mut self, file: FileId) -> io::Result<()> {
        self.file(file).file.sync_data()
    }

    fn unlink(&mut self, file: FileId, name: &str) -> io::Result<()> {
        drop(self.take_file(file));
        self.directory.unlink(name)
    }
}

/// Runs the only core of a process on the calling thread until its loop stops; answers the number given to
/// [`Turn::Stop`].
///
/// The listeners are bound first (a taken port ends the start before any file is touched); connections are accepted
/// once `make` has returned.
pub fn run<L, E>(
    options: &ReactorOptions,
    make: impl FnOnce(&mut GlommioPort) -> Result<L, E>,
) -> Result<i32, RunError<E>>
where
    L: CoreLoop<GlommioPort>,
{
    run_core(options, None, make)
}

/// Runs one core of several, as [`run`] does with the only one. The seat of core 0 is for the core that has the files.
pub fn run_seat<L, E>(
    options: &ReactorOptions,
    seat: Seat,
    make: impl FnOnce(&mut GlommioPort) -> Result<L, E>,
) -> Result<i32, RunError<E>>
where
    L: CoreLoop<GlommioPort>,
{
    run_core(options, Some(seat), make)
}

fn run_core<L, E>(
    options: &ReactorOptions,
    seat: Option<Seat>,
    make: impl FnOnce(&mut GlommioPort) -> Result<L, E>,
) -> Result<i32, RunError<E>>
where
    L: CoreLoop<GlommioPort>,
{
    start::check_limits().map_err(RunError::Environment)?;
    let (mesh, cpu) = seat.map_or((None, None), |Seat { mesh, cpu }| (Some(mesh), cpu));
    let executor = make_executor(cpu).map_err(RunError::Environment)?;
    executor.run(async {
        let listen = |listener| start::listen(listener, options.bind_retry_max);
        let listeners: Vec<_> =
            options.listeners.iter().map(listen).collect::<io::Result<_>>().map_err(RunError::Environment)?;
        let addresses = listeners.iter().map(local_address).collect::<io::Result<_>>();
        let mut port = addresses
            .and_then(|addresses| GlommioPort::new(options, addresses, mesh))
            .map_err(RunError::Environment)?;
        let mut core = make(&mut port).map_err(RunError::Shell)?;
        for listener in listeners {
            port.listeners.add(&mut port.ring, listener);
        }
        let result = turn(&mut port, &mut core).map_err(RunError::Environment);
        start::remove_sockets(&options.listeners);
        result
    })
}

fn make_executor(cpu: Option<usize>) -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
        .name("trilith-core")
        .ring_depth(EXECUTOR_RING_DEPTH)
        // Our own ring does the I/O; glommio needs next to no registered memory.
        .io_memory(64 << 10)
        .make()
        .map_err(|error| start::explain_executor_error(error.into(), cpu))
}

fn local_address(socket: &Socket) -> io::Result<Option<SocketAddr>> {
    Ok(socket.local_addr()?.as_socket())
}

/// Turns the loop until it stops.
fn turn<L: CoreLoop<GlommioPort>>(port: &mut GlommioPort, core: &mut L) -> io::Result<i32> {
    let mut events = Vec::new();
    port.clock.read();
    loop {
        let next = core.handle_turn(port, &mut events);
        assert!(events.is_empty(), "the loop takes every event of its turn");
        if let Turn::Stop(status) = next {
            port.end()?;
            return Ok(status);
        }
        // A wake-up may come in vain.
        while events.is_empty() {
            port.wait()?;
            port.begin_turn(&mut events);
        }
    }
}
