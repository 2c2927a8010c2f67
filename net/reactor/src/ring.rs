//! The core's io_uring: one ring for files, sockets and wake-ups, in which the core's thread also sleeps.
//!
//! Everything a turn prepared enters the kernel with one system call, and the same call waits for what comes next.
//! Completions are made by this thread, inside that call (`DEFER_TASKRUN`), so none interrupts a turn.
//!
//! Owns: the queues, what is prepared but not yet submitted, the count of operations under way.
//! Does not know: what an operation is for; whoever prepares one keeps its memory and descriptor.
//!
//! Invariants
//! - I1: every operation has exactly one last completion, and `in_flight` counts those that are still missing.
//! - I2: operations enter the kernel in the order in which they were prepared.

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// A turn that answers a thousand connections fits.
const SUBMISSION_ENTRIES: u32 = 2048;
/// A burst beyond it waits in the kernel; nothing is lost.
const COMPLETION_ENTRIES: u32 = 8192;
/// `IORING_ENTER_GETEVENTS`: make completions now.
const ENTER_GETEVENTS: u32 = 1;

/// Who prepared an operation; the top of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    File,
    Signal,
    Accept,
    Receive,
    Send,
    /// The end of a connection's receiving was asked for.
    Pause,
    /// The end of something else was asked for; only that operation's own completion tells anything.
    Cancel,
}

const ORIGINS: [Origin; 7] =
    [Origin::File, Origin::Signal, Origin::Accept, Origin::Receive, Origin::Send, Origin::Pause, Origin::Cancel];
const ORIGIN_SHIFT: u32 = 60;

/// Names an operation towards the kernel: its origin and 60 bits of the origin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OperationId(u64);

impl OperationId {
    pub(crate) fn new(origin: Origin, number: u64) -> Self {
        assert!(number >> ORIGIN_SHIFT == 0, "the number {number:#x} leaves room for its origin");
        Self(((origin as u64) << ORIGIN_SHIFT) | number)
    }

    pub(crate) fn origin(self) -> Origin {
        ORIGINS[(self.0 >> ORIGIN_SHIFT) as usize]
    }

    pub(crate) fn number(self) -> u64 {
        self.0 & ((1 << ORIGIN_SHIFT) - 1)
    }
}

/// What the kernel says of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) user_data: OperationId,
    pub(crate) result: i32,
    /// The provided buffer that was filled.
    pub(crate) buffer: Option<u16>,
    /// The operation goes on: more completions follow.
    pub(crate) more: bool,
}

enum Prepared {
    One(squeue::Entry),
    /// The second starts when the first has succeeded in full; both go in together.
    Linked([squeue::Entry; 2]),
}

impl Prepared {
    fn entries(&self) -> &[squeue::Entry] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Linked(entries) => entries,
        }
    }
}

/// One ring, used by the thread that made it.
pub(crate) struct Ring {
    ring: IoUring,
    prepared: VecDeque<Prepared>,
    in_flight: usize,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETION_ENTRIES)
            .build(SUBMISSION_ENTRIES)?;
        Ok(Self { ring, prepared: VecDeque::new(), in_flight: 0 })
    }

    /// Prepares an operation; it enters the kernel with the next [`Ring::submit`] or [`Ring::wait`].
    ///
    /// # Safety
    /// What the entry points to, and its descriptor, stay in place until the operation's last completion.
    pub(crate) unsafe fn prepare(&mut self, user_data: OperationId, entry: squeue::Entry) {
        self.in_flight += 1;
        self.prepared.push_back(Prepared::One(entry.user_data(user_data.0)));
    }

    /// Prepares two operations; the second starts once the first has succeeded in full, and is cancelled otherwise.
    ///
    /// # Safety
    /// As for [`Ring::prepare`], for both.
    pub(crate) unsafe fn prepare_linked(&mut self, [first, second]: [(OperationId, squeue::Entry); 2]) {
        self.in_flight += 2;
        let first = first.1.user_data(first.0.0).flags(squeue::Flags::IO_LINK);
        self.prepared.push_back(Prepared::Linked([first, second.1.user_data(second.0.0)]));
    }

    /// Asks for the end of `target`, which completes either way. The request itself completes as `user_data`.
    pub(crate) fn cancel(&mut self, user_data: OperationId, target: OperationId) {
        let entry = opcode::AsyncCancel::new(target.0).build();
        // SAFETY: a cancellation has neither memory nor a descriptor.
        unsafe { self.prepare(user_data, entry) };
    }

    /// Operations whose last completion was not taken yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Lets the kernel fill buffers of the ring of buffers at `start`, as group `group`.
    ///
    /// # Safety
    /// The memory is page-aligned, holds `entries` entries and stays in place until `self` is dropped.
    pub(crate) unsafe fn register_buffers(&self, start: *const u8, entries: u16, group: u16) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submitter().register_buf_ring_with_flags(start.addr() as u64, entries, group, 0) }
    }

    /// Hands everything prepared to the kernel, and makes what has ended meanwhile complete.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.fill()?;
        self.enter().map(|_| ())
    }

    /// Submits, and sleeps until a completion is there or `timeout` is over; spins for up to `spin` before it sleeps.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>, spin: Duration) -> io::Result<()> {
        self.fill()?;
        if !spin.is_zero() && !self.enter()? {
            return Ok(());
        }
        if !spin.is_zero() && self.spin(timeout.map_or(spin, |timeout| timeout.min(spin))) {
            return self.enter().map(|_| ());
        }
        let result = match timeout {
            Some(Duration::ZERO) => return self.enter().map(|_| ()),
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
            }
        };
        accepted(result).map(|_| ())
    }

    /// Whether something came to be completed within `spin`.
    fn spin(&mut self, spin: Duration) -> bool {
        let start = Instant::now();
        while self.ring.completion().is_empty() && !self.ring.submission().taskrun() {
            if start.elapsed() >= spin {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }

    /// Moves what is prepared into the submission queue, in several rounds if it is more than the queue holds.
    fn fill(&mut self) -> io::Result<()> {
        while let Some(prepared) = self.prepared.front() {
            // SAFETY: whoever prepared the entry keeps what it points to until its last completion.
            if unsafe { self.ring.submission().push_multiple(prepared.entries()) }.is_ok() {
                self.prepared.pop_front();
            } else if !self.enter()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Submits without sleeping. `Ok(false)`: the kernel wants completions to be taken first.
    fn enter(&mut self) -> io::Result<bool> {
        let entries = u32::try_from(self.ring.submission().len()).expect("a queue has thousands of entries");
        // SAFETY: the queue holds that many entries, and no argument is passed.
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(entries, 0, ENTER_GETEVENTS, None) };
        accepted(result)
    }

    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let more = cqueue::more(entry.flags());
        if !more {
            self.in_flight -= 1;
        }
        Some(Completion {
            user_data: OperationId(entry.user_data()),
            result: entry.result(),
            buffer: cqueue::buffer_select(entry.flags()),
            more,
        })
    }
}

/// Sorts out what is no failure of a submission: an interruption, a timeout, a kernel that wants to be asked again.
fn accepted(result: io::Result<usize>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME) => Ok(true),
            Some(libc::EBUSY | libc::EAGAIN) => Ok(false),
            _ => Err(error),
        },
    }
}

/// A descriptor as an operation names it.
pub(crate) fn target(descriptor: RawFd) -> types::Fd {
    types::Fd(descriptor)
}
