//! Page-aligned memory for `O_DIRECT`, kept in size classes for reuse.
//!
//! Owns: allocation, alignment and the bound on what is kept. Does not know: files or rings.
//!
//! Invariants
//! - I1: a buffer starts on a 4096-byte boundary, and its capacity is a multiple of 4096.
//! - I2: its bytes are initialised from the start (zeroed once), so handing out a slice never reveals foreign memory.
//! - I3: the pool keeps at most [`KEPT_PER_CLASS_MAX`] buffers of each power of two up to [`KEPT_BYTES_MAX`].

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Unit of direct I/O: offsets, lengths and addresses are multiples of it.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Larger buffers are freed instead of being kept.
const KEPT_BYTES_MAX: usize = 4 << 20;
const KEPT_PER_CLASS_MAX: usize = 8;
const CLASSES: usize = (KEPT_BYTES_MAX / BLOCK_BYTES).ilog2() as usize + 1;

/// Owned, page-aligned bytes.
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    capacity: usize,
}

impl AlignedBuffer {
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity > 0 && capacity.is_multiple_of(BLOCK_BYTES), "I1: capacity {capacity}");
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a non-zero size, asserted above.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES).expect("a capacity below isize::MAX is a valid layout")
    }

    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        assert!(len <= self.capacity, "I2: {len} of {} bytes", self.capacity);
        // SAFETY: the allocation is `capacity` initialised bytes (I2), owned by `self` and borrowed with it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), len) }
    }

    pub(crate) fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.capacity, "I2: {len} of {} bytes", self.capacity);
        // SAFETY: as in `bytes`; the exclusive borrow of `self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), len) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) };
    }
}

// SAFETY: the buffer owns its memory and has no interior mutability; the pointer is not shared.
unsafe impl Send for AlignedBuffer {}

/// Free buffers by power of two.
pub(crate) struct BufferPool {
    classes: [Vec<AlignedBuffer>; CLASSES],
}

impl BufferPool {
    pub(crate) fn new() -> Self {
        Self { classes: [const { Vec::new() }; CLASSES] }
    }

    fn class(capacity: usize) -> usize {
        (capacity / BLOCK_BYTES).ilog2() as usize
    }

    /// A buffer of at least `len` bytes; what it holds is left over from earlier use.
    pub(crate) fn take(&mut self, len: usize) -> AlignedBuffer {
        let capacity = len.max(BLOCK_BYTES).next_power_of_two();
        let kept = self.classes.get_mut(Self::class(capacity)).and_then(Vec::pop);
        kept.unwrap_or_else(|| AlignedBuffer::new(capacity))
    }

    pub(crate) fn put_back(&mut self, buffer: AlignedBuffer) {
        if let Some(class) = self.classes.get_mut(Self::class(buffer.capacity))
            && class.len() < KEPT_PER_CLASS_MAX
        {
            class.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let mut pool = BufferPool::new();
        for len in [1, 4096, 4097, 1 << 20, 5 << 20] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.bytes(len).as_ptr().addr() % BLOCK_BYTES, 0);
            buffer.bytes_mut(len).fill(7);
            let address = buffer.bytes(len).as_ptr();
            pool.put_back(buffer);
            let again = pool.take(len);
            if len <= KEPT_BYTES_MAX {
                assert_eq!(again.bytes(len).as_ptr(), address, "a kept buffer is handed out again");
                assert_eq!(again.bytes(len)[len - 1], 7);
            }
        }
    }

    #[test]
    fn the_pool_is_bounded() {
        let mut pool = BufferPool::new();
        let buffers: Vec<_> = (0..KEPT_PER_CLASS_MAX + 3).map(|_| pool.take(8192)).collect();
        for buffer in buffers {
            pool.put_back(buffer);
        }
        assert_eq!(pool.classes[1].len(), KEPT_PER_CLASS_MAX);
    }
}
