//! File operations on the core's ring: reads, writes, syncs and discards.
//!
//! glommio's `DmaFile` can neither adopt a descriptor that carries our lock nor refuse polled I/O (it spins while a
//! write is in flight on a device that allows it).
//!
//! A durable write is a direct write with a linked `fdatasync`. With `O_DSYNC` the kernel would complete an
//! asynchronous write on a worker bound to the processor of the interrupt; while another thread has that processor, the
//! write waits out its time slice (4 ms at the median on two busy processors, against 0.13 ms this way).
//!
//! Owns: operations in flight and their buffers, write-before-sync order.
//! Does not know: names, locks, sockets.
//!
//! Invariants
//! - I1: memory given to the kernel stays allocated and untouched until its completion was seen; the port waits for all
//!   of it before it drops this table.
//! - I2: every operation yields exactly one event; a short write or read is an error.
//! - I3: a sync reaches the kernel only after every earlier write of its file has completed.

use crate::aligned::{AlignedBuffer, BLOCK_BYTES, BufferPool};
use crate::port::{Event, FileId, Token};
use crate::ring::{Completion, OperationId, Origin, Ring, target};
use io_uring::{opcode, squeue, types};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

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

/// The file operations of one core.
pub(crate) struct FileIo {
    operations: Vec<Option<Operation>>,
    free: Vec<u32>,
    pool: BufferPool,
    activity: BTreeMap<FileId, FileActivity>,
    write_sequence: u64,
}

impl FileIo {
    pub(crate) fn new() -> Self {
        Self {
            operations: Vec::new(),
            free: Vec::new(),
            pool: BufferPool::new(),
            activity: BTreeMap::new(),
            write_sequence: 0,
        }
    }

    /// Whether nothing is under way on `file`.
    pub(crate) fn is_idle(&self, file: FileId) -> bool {
        !self.activity.contains_key(&file)
    }

    /// Writes `bytes`; its event comes when they are written and, if the file is `durable` by write, synced.
    pub(crate) fn write(
        &mut self,
        ring: &mut Ring,
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
        let write = opcode::Write::new(target(descriptor), start, io_len(len)).offset(offset).build();
        // SAFETY: the buffer is owned by `operations` until the completion of the write (I1); the descriptor stays open
        // while its file has activity.
        unsafe {
            if durable {
                let first = OperationId::new(Origin::File, slot | FIRST_HALF);
                ring.prepare_linked([(first, write), (user_data(slot), data_sync(descriptor))]);
            } else {
                ring.prepare(user_data(slot), write);
            }
        }
    }

    pub(crate) fn read(
        &mut self,
        ring: &mut Ring,
        token: Token,
        (file, descriptor): (FileId, RawFd),
        offset: u64,
        len: usize,
    ) {
        assert_aligned(offset, len);
        let mut buffer = self.pool.take(len);
        let start = buffer.bytes_mut(len).as_mut_ptr();
        self.activity.entry(file).or_default().others += 1;
        let entry = opcode::Read::new(target(descriptor), start, io_len(len)).offset(offset).build();
        let slot = self.occupy(Operation::Read { token, file, buffer, len });
        // SAFETY: as in `write`.
        unsafe { ring.prepare(user_data(slot), entry) };
    }

    /// Punches a hole; the kernel does it on a worker of its own.
    pub(crate) fn discard(
        &mut self,
        ring: &mut Ring,
        token: Token,
        (file, descriptor): (FileId, RawFd),
        offset: u64,
        len: u64,
    ) {
        assert!(len > 0, "a range that is discarded has a length");
        self.activity.entry(file).or_default().others += 1;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(target(descriptor), len).offset(offset).mode(mode).build();
        let slot = self.occupy(Operation::Discard { token, file });
        // SAFETY: no memory is named; the descriptor stays open while its file has activity.
        unsafe { ring.prepare(user_data(slot), entry) };
    }

    pub(crate) fn sync(&mut self, ring: &mut Ring, token: Token, file: FileId, descriptor: RawFd) {
        let barrier = self.write_sequence;
        self.activity.entry(file).or_default().waiting_syncs.push(WaitingSync { token, descriptor, barrier });
        self.release_syncs(ring, file);
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

    /// Takes a completion of an operation of this table, and what follows from it to `events`.
    pub(crate) fn complete(&mut self, ring: &mut Ring, completion: &Completion, events: &mut Vec<Event>) {
        let number = completion.user_data.number();
        let slot = (number & !FIRST_HALF) as u32;
        let place = &mut self.operations[slot as usize];
        let first_half = number & FIRST_HALF != 0;
        if let Some(Operation::Write { halves, durable: true, .. }) = place {
            halves[usize::from(!first_half)] = Some(completion.result);
            if halves.contains(&None) {
                return;
            }
        }
        let operation = place.take().expect("I2: one completion per operation");
        self.free.push(slot);
        events.push(self.finish(ring, operation, completion.result));
    }

    /// Gives up: memory that the kernel may still write to is leaked, not freed (I1).
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.operations));
    }

    fn finish(&mut self, ring: &mut Ring, operation: Operation, result: i32) -> Event {
        match operation {
            Operation::Write { token, file, sequence, buffer, len, halves, .. } => {
                self.pool.put_back(buffer);
                let activity = self.activity.get_mut(&file).expect("a write is under way");
                activity.writes.retain(|&earlier| earlier != sequence);
                self.release_syncs(ring, file);
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
    fn release_syncs(&mut self, ring: &mut Ring, file: FileId) {
        let Some(activity) = self.activity.get_mut(&file) else { return };
        let oldest_write = activity.writes.iter().min().copied().unwrap_or(u64::MAX);
        let ready: Vec<_> = activity.waiting_syncs.extract_if(.., |sync| sync.barrier <= oldest_write).collect();
        activity.others += ready.len();
        if activity.is_idle() {
            self.activity.remove(&file);
        }
        for WaitingSync { token, descriptor, .. } in ready {
            let slot = self.occupy(Operation::Sync { token, file });
            // SAFETY: no memory is named; the descriptor stays open while its file has activity.
            unsafe { ring.prepare(user_data(slot), data_sync(descriptor)) };
        }
    }
}

fn user_data(slot: u64) -> OperationId {
    OperationId::new(Origin::File, slot)
}

fn data_sync(descriptor: RawFd) -> squeue::Entry {
    opcode::Fsync::new(target(descriptor)).flags(types::FsyncFlags::DATASYNC).build()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn syncs_handed_over(io: &FileIo) -> usize {
        io.operations.iter().flatten().filter(|operation| matches!(operation, Operation::Sync { .. })).count()
    }

    #[test]
    fn a_sync_is_handed_over_after_the_last_write_before_it() {
        // Nothing is submitted, so the kernel sees neither descriptor nor memory.
        let (mut ring, mut io, mut events) = (Ring::new().unwrap(), FileIo::new(), Vec::new());
        let (file, descriptor) = (FileId(1), -1);
        for number in 0..3 {
            io.write(&mut ring, Token(number), (file, descriptor, false), number * 4096, &[0; 4096]);
            if number == 1 {
                io.sync(&mut ring, Token(100), file, descriptor);
            }
        }
        let written = |slot| Completion { user_data: user_data(slot), result: 4096, buffer: None, more: false };
        assert_eq!(syncs_handed_over(&io), 0);
        io.complete(&mut ring, &written(1), &mut events);
        assert_eq!(syncs_handed_over(&io), 0, "a write before it is under way");
        io.complete(&mut ring, &written(0), &mut events);
        assert_eq!(syncs_handed_over(&io), 1, "the third write came after it");
    }
}
