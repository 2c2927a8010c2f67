//! System calls that the standard library does not offer, each behind a safe face.
//!
//! Owns: event descriptors, file locks, space reservation and cache advice, process limits, entropy, the stop-signal
//! handler.
//! Does not know: rings, files of the product, events.
//!
//! Invariant I1: the signal handler only touches atomics and calls write(2) on an event descriptor that lives as long
//! as the process once it is installed (it is leaked on purpose).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A kernel counter that makes its readers wake up; safe to signal from any thread.
pub(crate) struct EventFd(File);

impl EventFd {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; a non-negative result is a fresh descriptor that nobody else owns.
        // It is blocking: who reads it waits.
        unsafe { Ok(Self(File::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC))?))) }
    }

    /// Adds one to the counter, which wakes the reader.
    pub(crate) fn signal(&self) {
        signal_descriptor(self.0.as_raw_fd());
    }

    /// Waits until the counter is not zero, and resets it.
    #[cfg(test)]
    pub(crate) fn wait(&self) -> io::Result<()> {
        io::Read::read_exact(&mut &self.0, &mut [0; size_of::<u64>()])
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn signal_descriptor(descriptor: RawFd) {
    // SAFETY: eventfd_write takes a descriptor and a number. The counter cannot overflow in practice (2^64 - 2), and
    // a failure would mean a closed descriptor, which ownership excludes.
    unsafe { libc::eventfd_write(descriptor, 1) };
}

/// Tries to take the exclusive lock of an open file description. `Ok(false)`: another description holds it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: flock takes a descriptor and flags; the descriptor is open for as long as `file` is borrowed.
    let result = check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) });
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reserves the first `bytes` bytes of the file and sets its length; they read as zeros.
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        // SAFETY: fallocate takes numbers only; the descriptor is open for as long as `file` is borrowed.
        match check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) }) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Asks the kernel to forget what it caches of a range of the file. Pages in use stay; that is no error.
pub(crate) fn drop_cached(file: &File, offset: u64, len: usize) {
    let (Ok(offset), Ok(len)) = (libc::off_t::try_from(offset), libc::off_t::try_from(len)) else { return };
    // SAFETY: posix_fadvise takes numbers only; the descriptor is open for as long as `file` is borrowed. It is advice:
    // its result tells nothing that anybody could act on.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) };
}

/// A random number from the kernel.
pub(crate) fn entropy() -> u64 {
    let mut value = 0_u64;
    // SAFETY: the pointer and the length describe `value`, which outlives the call. Requests of up to 256 bytes are
    // neither interrupted nor cut short once the kernel's generator is ready.
    let got = unsafe { libc::getrandom((&raw mut value).cast(), size_of::<u64>(), 0) };
    assert_eq!(got, 8, "the kernel's random number generator answers");
    value
}

/// CPU time the calling thread has used, in nanoseconds.
pub(crate) fn thread_cpu_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer names `time`, which outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "every thread has a CPU clock");
    let part = |value: i64| u64::try_from(value).expect("CPU time is not negative");
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// How far local time is ahead of UTC at a time since the Unix epoch, in seconds; 0 if that cannot be told.
pub(crate) fn local_time_offset(seconds: i64) -> i64 {
    let mut broken_down = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers name memory that outlives the call, the reentrant form touches nothing else of ours, and it
    // has filled the value whenever it does not answer null.
    unsafe {
        let filled = libc::localtime_r(&raw const seconds, broken_down.as_mut_ptr());
        if filled.is_null() { 0 } else { broken_down.assume_init().tm_gmtoff }
    }
}

/// A process limit: what is in force and how far this process may raise it.
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The limits this crate depends on.
#[derive(Clone, Copy)]
pub(crate) enum Resource {
    LockedMemory,
    OpenFiles,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::LockedMemory => libc::RLIMIT_MEMLOCK,
            Self::OpenFiles => libc::RLIMIT_NOFILE,
        }
    }
}

pub(crate) fn limit(resource: Resource) -> io::Result<Limit> {
    let mut value = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `value` is a valid, writable rlimit for the whole call.
    check(unsafe { libc::getrlimit(resource.number(), &raw mut value) })?;
    Ok(Limit { soft: value.rlim_cur, hard: value.rlim_max })
}

/// Raises the soft limit to the hard one.
pub(crate) fn raise_limit(resource: Resource) -> io::Result<()> {
    let hard = limit(resource)?.hard;
    let value = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    // SAFETY: `value` is a valid rlimit for the whole call.
    check(unsafe { libc::setrlimit(resource.number(), &raw const value) }).map(|_| ())
}

static STOP_DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);
static TERMINATES: AtomicU32 = AtomicU32::new(0);
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

extern "C" fn note_stop_signal(signal: libc::c_int) {
    let counter = if signal == libc::SIGTERM { &TERMINATES } else { &INTERRUPTS };
    counter.fetch_add(1, Ordering::Relaxed);
    let descriptor = STOP_DESCRIPTOR.load(Ordering::Acquire);
    if descriptor >= 0 {
        signal_descriptor(descriptor);
    }
}

/// Makes SIGTERM and SIGINT count up and signal `event` instead of ending the process.
pub(crate) fn catch_stop_signals(event: &Arc<EventFd>) -> io::Result<()> {
    let descriptor = event.as_raw_fd();
    // The handler may run until the process ends, so must its descriptor (I1).
    std::mem::forget(Arc::clone(event));
    STOP_DESCRIPTOR.store(descriptor, Ordering::Release);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: an all-zero sigaction is a valid value: no flags, empty mask, default action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = note_stop_signal as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is a valid sigaction whose handler is async-signal-safe (I1); the old one is not asked for.
        check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

/// The stop signals that arrived since the last call, as (SIGTERM, SIGINT) counts.
pub(crate) fn take_stop_signals() -> (u32, u32) {
    (TERMINATES.swap(0, Ordering::Relaxed), INTERRUPTS.swap(0, Ordering::Relaxed))
}

/// Ends the process the way `signal` would have ended it, so that a supervisor sees the signal as the cause. Returns
/// only where a signal cannot end the process (PID 1 of a container).
pub fn end_by_signal(signal: i32) {
    // SAFETY: signal and raise take numbers; the default action is a valid disposition.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}
