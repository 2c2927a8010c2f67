//! The buffers that received bytes land in: one pool for all connections of a core, lent to the kernel.
//!
//! The kernel takes a buffer when bytes arrive, so an idle connection holds none. Whoever takes the completion copies
//! the bytes out and gives the buffer back. When none is left, receiving ends with `ENOBUFS`, and the sender waits.
//!
//! Owns: the buffers and the ring through which the kernel is handed them. Does not know: connections.
//!
//! Invariants
//! - I1: the pool outlives the kernel's use of it: the port drops its ring of operations first.
//! - I2: a buffer is either with the kernel or between its completion and [`ReceiveBuffers::give_back`]; never both.

use crate::aligned::{AlignedBuffer, BLOCK_BYTES};
use crate::ring::Ring;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// The group all receive operations name.
pub(crate) const GROUP: u16 = 0;
/// Length of one buffer, and so the most bytes of one completion.
const BUFFER_BYTES: usize = 16 << 10;
/// Number of buffers, a power of two. With their length it bounds what waits between the kernel and a turn: 8 MiB.
const BUFFERS: u16 = 512;
const ENTRY_BYTES: usize = size_of::<BufRingEntry>();

pub(crate) struct ReceiveBuffers {
    /// Keep the memory; it is used through the pointers below alone, since the kernel uses it at the same time.
    memory: Vec<AlignedBuffer>,
    entries: *mut BufRingEntry,
    buffers: *mut u8,
    tail: u16,
}

impl ReceiveBuffers {
    /// Makes the pool and lends all of it to the kernel.
    pub(crate) fn new(ring: &Ring) -> io::Result<Self> {
        let entry_bytes = (usize::from(BUFFERS) * ENTRY_BYTES).next_multiple_of(BLOCK_BYTES);
        let buffer_bytes = usize::from(BUFFERS) * BUFFER_BYTES;
        let mut memory = vec![AlignedBuffer::new(entry_bytes), AlignedBuffer::new(buffer_bytes)];
        let entries = memory[0].bytes_mut(entry_bytes).as_mut_ptr().cast::<BufRingEntry>();
        let buffers = memory[1].bytes_mut(buffer_bytes).as_mut_ptr();
        // SAFETY: the memory is page-aligned, holds `BUFFERS` entries and outlives the ring (I1).
        unsafe { ring.register_buffers(entries.cast_const().cast(), BUFFERS, GROUP)? };
        let mut pool = Self { memory, entries, buffers, tail: 0 };
        for id in 0..BUFFERS {
            pool.give_back(id);
        }
        pool.publish();
        Ok(pool)
    }

    /// The first `len` bytes of a buffer that a completion named and that was not given back yet.
    pub(crate) fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < BUFFERS && len <= BUFFER_BYTES, "{len} bytes of buffer {id}");
        // SAFETY: the range lies inside the pool, whose bytes are initialised from the start. The kernel is done with
        // this buffer (I2), and giving it back takes an exclusive borrow.
        unsafe { std::slice::from_raw_parts(self.buffers.add(usize::from(id) * BUFFER_BYTES), len) }
    }

    /// Gives a buffer back; the kernel sees it with the next [`ReceiveBuffers::publish`].
    pub(crate) fn give_back(&mut self, id: u16) {
        assert!(id < BUFFERS, "buffer {id}");
        // SAFETY: the buffer and the entry lie inside the pool's memory. The kernel does not read an entry beyond the
        // published tail, and there are as many entries as buffers, so this one is free (I2). The first entry shares
        // its last two bytes with the tail; only the other fields are written.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail & (BUFFERS - 1)));
            entry.set_addr(self.buffers.add(usize::from(id) * BUFFER_BYTES).addr() as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was given back.
    pub(crate) fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, is aligned for its type and is written by this side alone.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Gives up: the memory, which the kernel may still write to, is never freed.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.memory));
    }
}
