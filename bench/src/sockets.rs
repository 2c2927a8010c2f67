//! TCP sockets and file writes on one raw io_uring, for the floor and the load generator.
//!
//! Owns: descriptors, buffers in flight, one receive and at most one send per socket. All bytes that were queued for a
//! socket since the last wait leave in one send.
//! Does not know: what the bytes mean.
//!
//! Invariants
//! - I1: memory given to the kernel is owned by `slots` or `writes` until its completion; if the ring is dropped with
//!   operations in flight that memory is leaked, not freed.
//! - I2: a slot is reused only when nothing of its socket is in flight.

use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};
use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

const RECEIVE_BYTES: usize = 64 << 10;
const ENTRIES: u32 = 1024;
const KIND_SHIFT: u32 = 56;
const INDEX_MASK: u64 = (1 << KIND_SHIFT) - 1;
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const WRITE: u64 = 4;
const SYNC: u64 = 5;

/// What a wait brought.
#[derive(Debug)]
pub enum Completion {
    /// A connection was accepted into this slot; it is being received from.
    Accepted(usize),
    /// Bytes arrived; give the buffer back with [`Sockets::receive_again`].
    Received(usize, Vec<u8>),
    /// The peer is gone. The slot is free afterwards.
    Closed(usize),
    /// A durable file write with this number ended.
    Written(u64, io::Result<()>),
}

struct Slot {
    stream: TcpStream,
    receiving: bool,
    /// The kernel's receive buffer while `receiving`.
    receive: Vec<u8>,
    queued: Vec<u8>,
    sending: Vec<u8>,
    sent: usize,
    dirty: bool,
    gone: bool,
}

struct FileWrite {
    number: u64,
    buffer: Block,
    len: usize,
    result: io::Result<()>,
}

/// Page-aligned bytes for `O_DIRECT`.
pub struct Block {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Block {
    /// Zeroed, `len` bytes long.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }

    /// The aligned bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The aligned bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// One thread's sockets.
pub struct Sockets {
    ring: IoUring,
    listener: Option<TcpListener>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    dirty: Vec<usize>,
    writes: Vec<Option<FileWrite>>,
    free_blocks: Vec<Block>,
    backlog: VecDeque<io_uring::squeue::Entry>,
}

impl Sockets {
    /// A ring without sockets.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(16 * ENTRIES)
            .build(ENTRIES)?;
        Ok(Self {
            ring,
            listener: None,
            slots: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            writes: Vec::new(),
            free_blocks: Vec::new(),
            backlog: VecDeque::new(),
        })
    }

    /// Accepts from `listener` from now on.
    pub fn listen(&mut self, listener: TcpListener) {
        self.listener = Some(listener);
        self.accept();
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let descriptor = types::Fd(listener.as_raw_fd());
        let entry = opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut()).build();
        self.push(entry.user_data(ACCEPT << KIND_SHIFT));
    }

    /// Takes a connected socket in and starts receiving.
    pub fn add(&mut self, stream: TcpStream) -> io::Result<usize> {
        stream.set_nodelay(true)?;
        let slot = Slot {
            stream,
            receiving: false,
            receive: Vec::new(),
            queued: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            dirty: false,
            gone: false,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(slot);
        self.receive_again(index, vec![0; RECEIVE_BYTES]);
        Ok(index)
    }

    fn slot(&mut self, index: usize) -> &mut Slot {
        self.slots[index].as_mut().expect("the slot is in use")
    }

    /// Gives a receive buffer back and receives more.
    pub fn receive_again(&mut self, index: usize, mut buffer: Vec<u8>) {
        buffer.resize(RECEIVE_BYTES, 0);
        let slot = self.slot(index);
        if slot.gone {
            return;
        }
        assert!(!slot.receiving, "one receive at a time");
        slot.receiving = true;
        slot.receive = buffer;
        let descriptor = types::Fd(slot.stream.as_raw_fd());
        let entry = opcode::Recv::new(descriptor, slot.receive.as_mut_ptr(), RECEIVE_BYTES as u32).build();
        self.push(entry.user_data((RECEIVE << KIND_SHIFT) | index as u64));
    }

    /// Where to append bytes for this socket; they leave with the next wait.
    pub fn queue(&mut self, index: usize) -> &mut Vec<u8> {
        if !std::mem::replace(&mut self.slot(index).dirty, true) {
            self.dirty.push(index);
        }
        &mut self.slot(index).queued
    }

    /// Ends a connection; `Closed` follows.
    pub fn close(&mut self, index: usize) {
        // Receives and sends in flight end with it.
        let _ = self.slot(index).stream.shutdown(std::net::Shutdown::Both);
    }

    fn send_dirty(&mut self) {
        for index in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.slots[index].as_mut() else { continue };
            slot.dirty = false;
            if slot.sending.is_empty() && !slot.gone && !slot.queued.is_empty() {
                std::mem::swap(&mut slot.sending, &mut slot.queued);
                slot.sent = 0;
                self.send_rest(index);
            }
        }
    }

    fn send_rest(&mut self, index: usize) {
        let slot = self.slot(index);
        let rest = &slot.sending[slot.sent..];
        let (start, len) = (rest.as_ptr(), rest.len() as u32);
        let descriptor = types::Fd(slot.stream.as_raw_fd());
        let entry = opcode::Send::new(descriptor, start, len).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
        self.push(entry.user_data((SEND << KIND_SHIFT) | index as u64));
    }

    /// A zero-filled-at-least-once block of `len` bytes; what it holds is left over from earlier use.
    pub fn block(&mut self, len: usize) -> Block {
        match self.free_blocks.pop() {
            Some(block) if block.len >= len => block,
            _ => Block::new(len.next_power_of_two()),
        }
    }

    /// Writes the first `len` bytes of `buffer` and makes them durable; `Written(number, ..)` follows.
    ///
    /// A write and a linked `fdatasync`: with `O_DSYNC` the kernel completes an asynchronous write on a worker bound to
    /// the processor of the interrupt, which waits there for its turn while another one may be idle.
    pub fn write(&mut self, file: &std::fs::File, number: u64, offset: u64, buffer: Block, len: usize) {
        let start = buffer.bytes()[..len].as_ptr();
        let index = self.writes.iter().position(Option::is_none).unwrap_or_else(|| {
            self.writes.push(None);
            self.writes.len() - 1
        });
        self.writes[index] = Some(FileWrite { number, buffer, len, result: Ok(()) });
        let descriptor = types::Fd(file.as_raw_fd());
        let entry = opcode::Write::new(descriptor, start, len as u32).offset(offset).build().flags(Flags::IO_LINK);
        self.push(entry.user_data((WRITE << KIND_SHIFT) | index as u64));
        let entry = opcode::Fsync::new(descriptor).flags(types::FsyncFlags::DATASYNC).build();
        self.push(entry.user_data((SYNC << KIND_SHIFT) | index as u64));
    }

    fn push(&mut self, entry: io_uring::squeue::Entry) {
        self.backlog.push_back(entry);
    }

    /// Sends what is queued, waits for at least one completion or `timeout`, and appends what is ready.
    pub fn wait(&mut self, timeout: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.send_dirty();
        self.submit_backlog()?;
        let result = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                let arguments = types::SubmitArgs::new().timespec(&timespec);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match result {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => {
                return Err(error);
            }
            _ => {}
        }
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return Ok(()) };
            self.complete(entry.user_data(), entry.result(), completions)?;
        }
    }

    fn submit_backlog(&mut self) -> io::Result<()> {
        while let Some(entry) = self.backlog.front() {
            // The two halves of a durable write go in together: a link ends with its submission.
            let room = {
                let queue = self.ring.submission();
                queue.capacity() - queue.len()
            };
            if room < 2 {
                self.ring.submit()?;
            }
            // SAFETY: buffers and descriptors of the entry are owned by `slots`, `writes` or `listener` until its
            // completion, and are leaked with the ring otherwise (I1).
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else {
                self.ring.submit()?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, user_data: u64, result: i32, completions: &mut Vec<Completion>) -> io::Result<()> {
        let index = (user_data & INDEX_MASK) as usize;
        match user_data >> KIND_SHIFT {
            ACCEPT => {
                self.accept();
                if result < 0 {
                    return Err(io::Error::from_raw_os_error(-result));
                }
                // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
                let stream = unsafe { TcpStream::from_raw_fd(result) };
                completions.push(Completion::Accepted(self.add(stream)?));
            }
            RECEIVE => {
                let slot = self.slot(index);
                slot.receiving = false;
                let mut buffer = std::mem::take(&mut slot.receive);
                if result > 0 {
                    buffer.truncate(result as usize);
                    completions.push(Completion::Received(index, buffer));
                } else {
                    slot.gone = true;
                }
            }
            SEND => {
                let slot = self.slot(index);
                slot.sent += usize::try_from(result).unwrap_or(0);
                if result > 0 && slot.sent < slot.sending.len() {
                    self.send_rest(index);
                } else {
                    slot.sending.clear();
                    if result > 0 && !slot.queued.is_empty() && !std::mem::replace(&mut slot.dirty, true) {
                        self.dirty.push(index);
                    }
                }
            }
            WRITE => {
                let write = self.writes[index].as_mut().expect("the write is in flight");
                write.result = match usize::try_from(result) {
                    Ok(written) if written == write.len => Ok(()),
                    Ok(written) => Err(io::Error::other(format!("only {written} of {} bytes written", write.len))),
                    Err(_) => Err(io::Error::from_raw_os_error(-result)),
                };
                return Ok(());
            }
            _ => {
                let write = self.writes[index].take().expect("the write is in flight");
                self.free_blocks.push(write.buffer);
                // A failed write cancels its sync; the write's own error says more.
                let synced = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
                completions.push(Completion::Written(write.number, write.result.and(synced)));
                return Ok(());
            }
        }
        self.retire_if_over(index, completions);
        Ok(())
    }

    /// Frees a slot whose peer is gone once nothing is in flight (I2).
    fn retire_if_over(&mut self, index: usize, completions: &mut Vec<Completion>) {
        let Some(slot) = self.slots.get(index).and_then(Option::as_ref) else { return };
        if slot.gone && !slot.receiving && slot.sending.is_empty() {
            self.slots[index] = None;
            self.free.push(index);
            completions.push(Completion::Closed(index));
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // I1: the kernel may still hold these buffers.
        std::mem::forget(std::mem::take(&mut self.slots));
        std::mem::forget(std::mem::take(&mut self.writes));
    }
}
