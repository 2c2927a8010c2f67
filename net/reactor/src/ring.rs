//! The file ring: reads, writes, syncs, discards and the one timer, on an io_uring of our own.
//!
//! glommio's `DmaFile` can neither adopt a descriptor that carries our lock nor refuse polled I/O (it spins while a
//! write is in flight on a device that allows it), so file I/O has its own small ring. Its completions signal an event
//! descriptor on which glommio sleeps.
//!
//! A durable write is a direct write with a linked `fdatasync`. With `O_DSYNC` the kernel would complete an
//! asynchronous write on a worker bound to the processor of the interrupt; while another thread has that processor, the
//! write waits out its time slice (4 ms at the median on two busy processors, against 0.13 ms this way).
//!
//! Owns: operations in flight and their buffers, write-before-sync order, the timer.
//! Does not know: names, locks, sockets.
//!
//! Invariants
//! - I1: memory given to the kernel stays allocated and untouched until its completion was seen; dropping the ring
//!   waits for all of it.
//! - I2: every operation yields exactly one event; a short write or read is an error.
//! - I3: a sync reaches the kernel only after every earlier write of its file has completed.

use crate::aligned::{AlignedBuffer, BLOCK_BYTES, BufferPool};
use crate::port::{Event, FileId, Token};
use crate::sys::EventFd;
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::RawFd;

const SUBMISSION_ENTRIES: u32 = 256;
/// Completions never overflow: no more operations than this are in the kernel at once, the rest waits here.
const IN_KERNEL_MAX: usize = 512;
/// Marks the completion of a timer, which owns no slot.
const TIMER: u64 = u64::MAX;

/// In the user data: the first half of a durable write. The rest of the number is a slot.
const FIRST_HALF: u64 = 1 << 32;

enum Operation {
    /// `halves` are the results of a durable write and its sync so far; they come in any order.
    Write {
        token: Token,
        file: FileId,
        sequence: u64,
        buffer: AlignedBuffer,
        len: usize,
        durable: bool,
        halves: [Option<i32>; 2],
    },
    Read {
        token: Token,
        file: FileId,
        buffer: AlignedBuffer,
        len: usize,
    },
    Sync {
        token: Token,
        file: FileId,
    },
    Discard {
        token: Token,
        file: FileId,
    },
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

struct WaitingSync {
    token: Token,
    descriptor: RawFd,
    /// Writes with a lower sequence must complete first (I3).
    barrier: u64,
}

/// What is under way on one file; absent when nothing is.
#[derive(Default)]
struct FileActivity {
    writes: Vec<u64>,
    waiting_syncs: Vec<WaitingSync>,
    others: usize,
}

impl FileActivity {
    fn is_idle(&self) -> bool {
        self.writes.is_empty() && self.waiting_syncs.is_empty() && self.others == 0
    }
}

/// One ring, used by the thread that made it.
pub(crate) struct FileRing {
    ring: IoUring,
    operations: Vec<Option<Operation>>,
    free: Vec<u32>,
    /// Prepared entries that are not yet in the submission queue.
    prepared: VecDeque<Prepared>,
    in_kernel: usize,
    pool: BufferPool,
    activity: BTreeMap<FileId, FileActivity>,
    write_sequence: u64,
    /// Expiry times (nanoseconds of the port's clock) of the timers in the kernel, ascending.
    timers: Vec<u64>,
    /// Read by the kernel when the timer entry is submitted, hence at a stable address until then.
    timespec: Box<types::Timespec>,
}

impl FileRing {
    /// A ring whose completions signal `event`.
    pub(crate) fn new(event: &EventFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_cqsize(4 * SUBMISSION_ENTRIES)
            .build(SUBMISSION_ENTRIES)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            operations: Vec::new(),
            free: Vec::new(),
            prepared: VecDeque::new(),
            in_kernel: 0,
            pool: BufferPool::new(),
            activity: BTreeMap::new(),
            write_sequence: 0,
            timers: Vec::new(),
            timespec: Box::new(types::Timespec::new()),
        })
    }

    /// Whether nothing is under way on `file`.
    pub(crate) fn is_idle(&self, file: FileId) -> bool {
        !self.activity.contains_key(&file)
    }

    /// Writes `bytes`; its event comes when they are written and, if the file is `durable` by write, synced.
    pub(crate) fn write(
        &mut self,
        token: Token,
        (file, descriptor, durable): (FileId, RawFd, bool),
        offset: u64,
        bytes: &[u8],
    ) {
        assert_aligned(offset, bytes.len());
        let mut buffer = self.pool.take(bytes.len());
        buffer.bytes_mut(bytes.len()).copy_from_slice(bytes);
        let (start, len) = (buffer.bytes(bytes.len()).as_ptr(), bytes.len());
        let sequence = self.write_sequence;
        self.write_sequence += 1;
        self.activity.entry(file).or_default().writes.push(sequence);
        let slot = self.occupy(Operation::Write { token, file, sequence, buffer, len, durable, halves: [None; 2] });
        let write = opcode::Write::new(types::Fd(descriptor), start, io_len(len)).offset(offset).build();
        self.prepared.push_back(if durable {
            let write = write.flags(squeue::Flags::IO_LINK).user_data(slot | FIRST_HALF);
            Prepared::Linked([write, data_sync(descriptor).user_data(slot)])
        } else {
            Prepared::One(write.user_data(slot))
        });
    }

    pub(crate) fn read(&mut self, token: Token, file: FileId, descriptor: RawFd, offset: u64, len: usize) {
        assert_aligned(offset, len);
        let mut buffer = self.pool.take(len);
        let start = buffer.bytes_mut(len).as_mut_ptr();
        self.activity.entry(file).or_default().others += 1;
        let entry = opcode::Read::new(types::Fd(descriptor), start, io_len(len)).offset(offset).build();
        let slot = self.occupy(Operation::Read { token, file, buffer, len });
        self.prepared.push_back(Prepared::One(entry.user_data(slot)));
    }

    /// Punches a hole; the kernel does it on a worker of its own.
    pub(crate) fn discard(&mut self, token: Token, file: FileId, descriptor: RawFd, offset: u64, len: u64) {
        assert!(len > 0, "a range that is discarded has a length");
        self.activity.entry(file).or_default().others += 1;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(types::Fd(descriptor), len).offset(offset).mode(mode).build();
        let slot = self.occupy(Operation::Discard { token, file });
        self.prepared.push_back(Prepared::One(entry.user_data(slot)));
    }

    pub(crate) fn sync(&mut self, token: Token, file: FileId, descriptor: RawFd) {
        let barrier = self.write_sequence;
        self.activity.entry(file).or_default().waiting_syncs.push(WaitingSync { token, descriptor, barrier });
        self.release_syncs(file);
    }

    /// Makes the ring signal its event descriptor at `deadline` at the latest, if it will not do so earlier anyway.
    /// A later deadline costs nothing: the earlier timer fires in vain and this is called again.
    pub(crate) fn arm_timer(&mut self, now: u64, deadline: u64) {
        if self.timers.first().is_some_and(|&armed| armed <= deadline) {
            return;
        }
        self.timers.insert(0, deadline);
        let wait = deadline.saturating_sub(now);
        *self.timespec = types::Timespec::new().sec(wait / 1_000_000_000).nsec((wait % 1_000_000_000) as u32);
        let entry = opcode::Timeout::new(&raw const *self.timespec).build().user_data(TIMER);
        // The timespec is read on submission; one timer per submission keeps it stable.
        self.prepared.push_front(Prepared::One(entry));
    }

    /// Stores an operation until its completion; answers its slot.
    fn occupy(&mut self, operation: Operation) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            u32::try_from(self.operations.len() - 1).expect("operations in flight are far fewer than 2^32")
        });
        let place = &mut self.operations[slot as usize];
        assert!(place.is_none(), "I1: a free slot owns no buffer");
        *place = Some(operation);
        u64::from(slot)
    }

    /// Hands everything prepared to the kernel. `Ok(false)`: the kernel wants completions to be taken first; try again.
    pub(crate) fn submit(&mut self) -> io::Result<bool> {
        while !self.prepared.is_empty() && self.in_kernel < IN_KERNEL_MAX {
            let mut queue = self.ring.submission();
            while self.in_kernel < IN_KERNEL_MAX
                && let Some(prepared) = self.prepared.front()
            {
                let entries = prepared.entries();
                // SAFETY: the entry's buffer is owned by `operations` until its completion (I1), the timespec by
                // `self` until the submission below; descriptors stay open while their file has activity.
                if unsafe { queue.push_multiple(entries) }.is_err() {
                    break;
                }
                self.in_kernel += entries.len();
                self.prepared.pop_front();
            }
            drop(queue);
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(self.ring.submission().is_empty())
    }

    /// Moves finished operations to `events`. `true`: a timer fired.
    pub(crate) fn collect(&mut self, events: &mut Vec<Event>) -> bool {
        let mut fired = false;
        // One at a time: finishing an operation may prepare another (a sync that waited).
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return fired };
            self.in_kernel -= 1;
            if entry.user_data() == TIMER {
                // Expiry order equals the order of the list, and the clock's rounding does not matter: whoever asked
                // for the deadline compares it with the time of the turn.
                self.timers.remove(0);
                fired = true;
                continue;
            }
            let slot = (entry.user_data() & !FIRST_HALF) as u32;
            let place = &mut self.operations[slot as usize];
            let first_half = entry.user_data() & FIRST_HALF != 0;
            if let Some(Operation::Write { halves, durable: true, .. }) = place {
                halves[usize::from(!first_half)] = Some(entry.result());
                if halves.contains(&None) {
                    continue;
                }
            }
            let operation = place.take().expect("I2: one completion per operation");
            self.free.push(slot);
            events.push(self.finish(operation, entry.result()));
        }
    }

    fn finish(&mut self, operation: Operation, result: i32) -> Event {
        match operation {
            Operation::Write { token, file, sequence, buffer, len, halves, .. } => {
                self.pool.put_back(buffer);
                let activity = self.activity.get_mut(&file).expect("a write is under way");
                activity.writes.retain(|&earlier| earlier != sequence);
                self.release_syncs(file);
                let result = match halves {
                    // A write that failed cancelled its sync, and says more.
                    [Some(written), Some(synced)] => whole(written, len, io::ErrorKind::WriteZero)
                        .and_then(|()| whole(synced, 0, io::ErrorKind::Other)),
                    _ => whole(result, len, io::ErrorKind::WriteZero),
                };
                Event::Written { token, result }
            }
            Operation::Read { token, file, buffer, len } => {
                let result = whole(result, len, io::ErrorKind::UnexpectedEof).map(|()| buffer.bytes(len).to_vec());
                self.pool.put_back(buffer);
                self.end_other(file);
                Event::Read { token, result }
            }
            Operation::Sync { token, file } => {
                self.end_other(file);
                Event::Synced { token, result: whole(result, 0, io::ErrorKind::Other) }
            }
            Operation::Discard { token, file } => {
                self.end_other(file);
                Event::Discarded { token, result: whole(result, 0, io::ErrorKind::Other) }
            }
        }
    }

    fn end_other(&mut self, file: FileId) {
        let activity = self.activity.get_mut(&file).expect("an operation is under way");
        activity.others -= 1;
        if activity.is_idle() {
            self.activity.remove(&file);
        }
    }

    /// Prepares the syncs of `file` whose earlier writes have all completed (I3).
    fn release_syncs(&mut self, file: FileId) {
        let Some(activity) = self.activity.get_mut(&file) else { return };
        let oldest_write = activity.writes.iter().min().copied().unwrap_or(u64::MAX);
        let ready: Vec<_> = activity.waiting_syncs.extract_if(.., |sync| sync.barrier <= oldest_write).collect();
        activity.others += ready.len();
        if activity.is_idle() {
            self.activity.remove(&file);
        }
        for WaitingSync { token, descriptor, .. } in ready {
            let slot = self.occupy(Operation::Sync { token, file });
            self.prepared.push_back(Prepared::One(data_sync(descriptor).user_data(slot)));
        }
    }
}

impl Drop for FileRing {
    fn drop(&mut self) {
        let mut ignored = Vec::new();
        while self.operations.iter().any(Option::is_some) {
            if self.submit().and_then(|_| self.ring.submit_and_wait(1)).is_err() {
                // I1 above all: memory that the kernel may still write to is leaked, not freed.
                std::mem::forget(std::mem::take(&mut self.operations));
                return;
            }
            self.collect(&mut ignored);
        }
    }
}

fn data_sync(descriptor: RawFd) -> squeue::Entry {
    opcode::Fsync::new(types::Fd(descriptor)).flags(types::FsyncFlags::DATASYNC).build()
}

fn assert_aligned(offset: u64, len: usize) {
    assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "offset {offset} is a multiple of {BLOCK_BYTES}");
    assert!(len > 0 && len.is_multiple_of(BLOCK_BYTES), "length {len} is a multiple of {BLOCK_BYTES}");
}

fn io_len(len: usize) -> u32 {
    let len = u32::try_from(len).expect("one operation is far below 4 GiB");
    assert!(len <= 1 << 30, "the kernel cuts operations of 2 GiB short");
    len
}

/// Success only if the kernel moved exactly `len` bytes.
fn whole(result: i32, len: usize, short: io::ErrorKind) -> io::Result<()> {
    match usize::try_from(result) {
        Ok(moved) if moved == len => Ok(()),
        Ok(moved) => Err(io::Error::new(short, format!("only {moved} of {len} bytes"))),
        Err(_) => Err(io::Error::from_raw_os_error(-result)),
    }
}
