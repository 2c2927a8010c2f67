//! The real backend of [`Port`]: one glommio executor, one file ring, one helper thread.
//!
//! Owns: the turn. Everything that is ready is collected, the clock is read, the shell runs, then all it submitted
//! leaves: file operations in one system call, one write per connection, log records in one write.
//! Does not know: what the shell does.
//!
//! The loop is a glommio task. It sleeps until a socket task leaves an event or the event descriptor is signalled (by
//! the file ring, the helper thread or a stop signal).

use crate::files::{self, Directory, OpenFile};
use crate::helper::{FileThread, Reply, Request};
use crate::inbox::Inbox;
use crate::log::{LogSink, in_context};
use crate::options::ReactorOptions;
use crate::port::{
    BootFiles, ConnectionId, CoreLoop, Event, FileId, FileMode, ListenerId, Port, Preparation, Token, Turn,
};
use crate::process::{self, ProcessStats};
use crate::ring::FileRing;
use crate::sockets::{Sockets, accept_all};
use crate::start;
use crate::sys::{self, EventFd};
use crate::wake::WakeUp;
use crate::watch::Watch;
use glommio::net::TcpListener;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, Task};
use socket2::Socket;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Entries of each glommio ring: a burst of ready sockets fits without extra system calls.
const RING_DEPTH: usize = 2048;
/// glommio's preemption timer, in effect off: tasks of ours give way by themselves, see I2 of `inbox.rs`.
const PREEMPT: Duration = Duration::from_secs(365 * 24 * 3600);
/// Turns in a row before the rings are looked at.
const TURNS_PER_IO_ROUND_MAX: u32 = 16;

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
    // Dropped before `files`: the ring waits for operations that use their descriptors.
    ring: FileRing,
    helper: FileThread,
    directory: Directory,
    files: Vec<Option<OpenFile>>,
    owner_locks: Vec<File>,
    event: Arc<EventFd>,
    inbox: Rc<Inbox>,
    sockets: Rc<Sockets>,
    addresses: Vec<SocketAddr>,
    accepting: Vec<Task<()>>,
    deadline: Option<u64>,
    log: LogSink,
    signals: bool,
}

impl GlommioPort {
    fn new(options: &ReactorOptions, addresses: Vec<SocketAddr>) -> io::Result<Self> {
        let event = Arc::new(EventFd::new()?);
        if options.signals {
            sys::catch_stop_signals(&event)?;
        }
        let directory = Directory::new(options.data_directory.clone());
        let inbox = Rc::new(Inbox::new(Arc::clone(&event)));
        Ok(Self {
            clock: Clock::start(),
            ring: FileRing::new(&event).map_err(start::explain_ring_error)?,
            helper: FileThread::start(directory.clone(), Arc::clone(&event))?,
            directory,
            files: Vec::new(),
            owner_locks: Vec::new(),
            event,
            sockets: Rc::new(Sockets::new(Rc::clone(&inbox))),
            inbox,
            addresses,
            accepting: Vec::new(),
            deadline: None,
            log: LogSink::open(&options.log_outputs)?,
            signals: options.signals,
        })
    }

    /// The address a listener is bound to (tells the port where port 0 was asked for).
    pub fn listener_address(&self, listener: ListenerId) -> SocketAddr {
        self.addresses[listener.0 as usize]
    }

    fn start_accepting(&mut self, listeners: Vec<Socket>) {
        for (number, socket) in listeners.into_iter().enumerate() {
            let id = ListenerId(u32::try_from(number).expect("listeners are few"));
            // SAFETY: the descriptor was just taken out of its owner, so the listener becomes its only owner.
            let listener = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
            self.accepting.push(glommio::spawn_local(accept_all(Rc::clone(&self.sockets), id, listener)));
        }
    }

    fn register(&mut self, file: OpenFile) -> FileId {
        self.files.push(Some(file));
        FileId(u32::try_from(self.files.len() - 1).expect("files opened by one process are far fewer than 2^32"))
    }

    fn file(&self, id: FileId) -> &OpenFile {
        self.files[id.0 as usize].as_ref().expect("a file is not used after its unlink")
    }

    fn take_file(&mut self, id: FileId) -> OpenFile {
        assert!(self.ring.is_idle(id), "a file is unlinked only when nothing is under way on it");
        self.files[id.0 as usize].take().expect("a file is unlinked once")
    }

    /// Collects what is ready, in the order of the port's I6, and reads the clock.
    fn begin_turn(&mut self, events: &mut Vec<Event>) {
        self.ring.collect(events);
        while let Some(reply) = self.helper.poll_reply() {
            events.extend(self.reply_event(reply));
        }
        self.inbox.drain_into(events);
        self.clock.read();
        if self.deadline.is_some_and(|deadline| deadline <= self.clock.now) {
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

    /// Lets everything leave that the turn submitted. Sends leave when the loop's task goes to sleep.
    fn end_turn(&mut self) -> io::Result<()> {
        if let Some(deadline) = self.deadline {
            self.ring.arm_timer(self.clock.now, deadline);
        }
        if !self.ring.submit()? {
            self.event.signal();
        }
        self.log.flush();
        Ok(())
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
        self.ring.write(token, target, offset, &bytes);
    }

    fn sync(&mut self, token: Token, file: FileId) {
        let descriptor = self.file(file).file.as_raw_fd();
        self.ring.sync(token, file, descriptor);
    }

    fn read(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        let descriptor = self.file(file).file.as_raw_fd();
        self.ring.read(token, file, descriptor, offset, len);
    }

    fn create(&mut self, token: Token, name: &str, bytes: u64, mode: FileMode, preparation: Preparation) {
        self.helper.request(Request::Create { token, name: name.to_owned(), bytes, mode, preparation });
    }

    fn unlink(&mut self, token: Token, file: FileId, name: &str) {
        let file = self.take_file(file);
        self.helper.request(Request::Unlink { token, name: name.to_owned(), file });
    }

    fn populate(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        let mapping = self.file(file).mapping.as_ref().expect("only mapped files are populated");
        self.helper.request(Request::Populate { token, mapping: Arc::clone(mapping), offset, len });
    }

    fn discard(&mut self, token: Token, file: FileId, offset: u64, len: u64) {
        let descriptor = self.file(file).file.as_raw_fd();
        self.ring.discard(token, file, descriptor, offset, len);
    }

    fn release(&mut self, file: FileId, offset: u64, len: usize) {
        let open = self.file(file);
        let mapping = Arc::clone(open.mapping.as_ref().expect("only mapped files are released"));
        let file = Arc::clone(&open.file);
        self.helper.request(Request::Release { file, mapping, offset, len });
    }

    fn mapped(&self, file: FileId, offset: u64, len: usize) -> Option<&[u8]> {
        self.file(file).mapping.as_ref()?.bytes(offset, len)
    }

    fn send(&mut self, connection: ConnectionId, bytes: Vec<u8>) {
        self.sockets.send(connection, bytes);
    }

    fn set_receiving(&mut self, connection: ConnectionId, receiving: bool) {
        self.sockets.set_receiving(connection, receiving);
    }

    fn close(&mut self, connection: ConnectionId) {
        self.sockets.close(connection);
    }

    fn close_listeners(&mut self) {
        // Dropping a task cancels it; its listener closes with it.
        self.accepting.clear();
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

/// Runs one core on the calling thread until its loop stops; answers the number given to [`Turn::Stop`].
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
    start::check_limits().map_err(RunError::Environment)?;
    let executor = make_executor(options).map_err(RunError::Environment)?;
    executor.run(async {
        let listen = |listener| start::listen(listener, options.bind_retry_max);
        let listeners: Vec<_> =
            options.listeners.iter().map(listen).collect::<io::Result<_>>().map_err(RunError::Environment)?;
        let addresses = listeners.iter().map(local_address).collect::<io::Result<_>>();
        let mut port =
            addresses.and_then(|addresses| GlommioPort::new(options, addresses)).map_err(RunError::Environment)?;
        let mut core = make(&mut port).map_err(RunError::Shell)?;
        port.start_accepting(listeners);
        let waking = spawn_wake_up(&port).map_err(RunError::Environment)?;
        let watch = Watch::start().map_err(RunError::Environment)?;
        let watched = glommio::spawn_local(watch.watched().run());
        let result = turn(&mut port, &mut core, &watch).await;
        waking.cancel().await;
        watched.cancel().await;
        result.map_err(RunError::Environment)
    })
}

fn make_executor(options: &ReactorOptions) -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(Placement::Unbound)
        .name("trilith-core")
        .ring_depth(RING_DEPTH)
        // Our own ring does file I/O; glommio needs next to no registered memory.
        .io_memory(64 << 10)
        .preempt_timer(PREEMPT)
        .spin_before_park(options.spin_before_sleep)
        .make()
        .map_err(|error| start::explain_ring_error(error.into()))
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?;
    address.as_socket().ok_or_else(|| io::Error::other("a listener has an IP address"))
}

/// A task that turns signals of the event descriptor into wake-ups of the loop.
fn spawn_wake_up(port: &GlommioPort) -> io::Result<Task<()>> {
    let wake_up = WakeUp::new(&port.event).map_err(|error| in_context(error, "cannot wait for events"))?;
    let inbox = Rc::clone(&port.inbox);
    Ok(glommio::spawn_local(async move {
        // A failed read of an event descriptor is impossible while we own it; without it the core would sleep for good.
        while wake_up.wait().await.is_ok() {
            inbox.end_io_round();
        }
        std::process::abort();
    }))
}

/// Turns the loop until it stops.
async fn turn<L: CoreLoop<GlommioPort>>(port: &mut GlommioPort, core: &mut L, watch: &Watch) -> io::Result<i32> {
    let mut events = Vec::new();
    let inbox = Rc::clone(&port.inbox);
    let mut turns = 0_u32;
    port.clock.read();
    loop {
        watch.count_turn();
        let next = core.handle_turn(port, &mut events);
        assert!(events.is_empty(), "the loop takes every event of its turn");
        port.end_turn()?;
        if let Turn::Stop(status) = next {
            return Ok(status);
        }
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(TURNS_PER_IO_ROUND_MAX) {
            inbox.io_round().await;
        }
        while events.is_empty() {
            inbox.wait().await;
            port.begin_turn(&mut events);
            if events.is_empty() {
                // Woken in vain, perhaps by a timer that was armed for an earlier deadline: arm the next one.
                port.end_turn()?;
            }
        }
    }
}
