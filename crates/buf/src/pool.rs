//! Buffers for payloads: aligned for direct I/O, kept for the next request, and bounded while they are kept.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::{PAGE_SIZE, Segment};

/// How much a [`Pool`] keeps for later. What is in use is bounded by whoever asks for it.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Bytes that are kept in free buffers, all sizes together.
    pub kept_bytes: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self { kept_bytes: 4 << 20 }
    }
}

/// Sizes are powers of two from a page on; a pool keeps those up to `PAGE_SIZE << (CLASSES - 1)`, 32 MiB.
const CLASSES: usize = 14;

/// Buffers of so many bytes come straight from the kernel, which has cleared their pages when they are touched: an allocator
/// would clear them all once more.
const MAPPED_FROM: usize = 128 << 10;

/// Keeps free buffers by size.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: PoolLimits,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    kept_bytes: usize,
    classes: [Vec<Memory>; CLASSES],
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(limits: PoolLimits) -> Self {
        Self(Arc::new(Shared { limits, free: Mutex::default() }))
    }

    /// A buffer of at least `len` bytes, page aligned, its length a power of two. Its contents are whatever an
    /// earlier user left: fill all of what is passed on.
    #[must_use]
    pub fn get(&self, len: usize) -> Buffer {
        let size = len.max(PAGE_SIZE).next_power_of_two();
        let memory = self.0.take(size).unwrap_or_else(|| Memory::zeroed(size));
        Buffer { block: Arc::new(Block { memory: Some(memory), pool: Arc::downgrade(&self.0) }) }
    }

    /// Frees all that is kept.
    pub fn trim(&self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) = Free::default();
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(PoolLimits::default())
    }
}

impl Shared {
    fn class(size: usize) -> usize {
        (size / PAGE_SIZE).trailing_zeros() as usize
    }

    fn take(&self, size: usize) -> Option<Memory> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = free.classes.get_mut(Self::class(size))?.pop()?;
        free.kept_bytes -= size;
        Some(memory)
    }

    fn keep(&self, memory: Memory) {
        let size = memory.layout.size();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.kept_bytes + size <= self.limits.kept_bytes
            && let Some(class) = free.classes.get_mut(Self::class(size))
        {
            class.push(memory);
            free.kept_bytes += size;
        }
    }
}

#[derive(Debug)]
struct Memory {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory that belongs to no thread.
unsafe impl Send for Memory {}
// SAFETY: shared access is by `&[u8]`, and by read-only segments.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(size: usize) -> Self {
        let Ok(layout) = Layout::from_size_align(size, PAGE_SIZE) else {
            panic!("a buffer of {size} bytes")
        };
        let ptr = if size >= MAPPED_FROM {
            map(size)
        } else {
            // SAFETY: the size is at least a page, not zero.
            unsafe { alloc_zeroed(layout) }
        };
        match NonNull::new(ptr) {
            Some(ptr) => Self { ptr, layout },
            None => std::alloc::handle_alloc_error(layout),
        }
    }
}

/// Zeroed pages; null if there are none.
fn map(size: usize) -> *mut u8 {
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a null hint with no MAP_FIXED cannot replace an existing mapping.
    let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, flags) };
    mapped.map_or(std::ptr::null_mut(), <*mut _>::cast)
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (ptr, size) = (self.ptr.as_ptr(), self.layout.size());
        if size >= MAPPED_FROM {
            // SAFETY: mapped in `zeroed` with this size, and owned by `self` alone. It cannot fail for a whole mapping.
            let _ = unsafe { munmap(ptr.cast(), size) };
        } else {
            // SAFETY: allocated in `zeroed` with this layout, and owned by `self` alone.
            unsafe { dealloc(ptr, self.layout) };
        }
    }
}

#[derive(Debug)]
struct Block {
    /// Always there, until the drop moves it to the pool.
    memory: Option<Memory>,
    pool: Weak<Shared>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), self.pool.upgrade()) {
            pool.keep(memory);
        }
    }
}

impl Block {
    fn raw(&self) -> (NonNull<u8>, usize) {
        self.memory.as_ref().map_or((NonNull::dangling(), 0), |m| (m.ptr, m.layout.size()))
    }
}

/// Memory from a [`Pool`]: borrowed as bytes, written while nobody else holds a part of it, handed on as
/// segments.
#[derive(Debug)]
pub struct Buffer {
    block: Arc<Block>,
}

impl Buffer {
    /// The bytes to write to, unless a segment of the buffer is still held somewhere.
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        let (ptr, len) = Arc::get_mut(&mut self.block)?.raw();
        // SAFETY: `get_mut` has shown that no segment of the memory exists, and `&mut self` that no borrow
        // does.
        Some(unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), len) })
    }

    /// A part of it, read-only: while it lives, [`Buffer::get_mut`] says `None`.
    ///
    /// # Panics
    /// If the part is not all inside.
    #[must_use]
    pub fn segment(&self, offset: usize, len: usize) -> Segment {
        let (ptr, size) = self.block.raw();
        // SAFETY: the Arc keeps the memory; the segment is read-only, so that `Deref`'s slices stay true.
        unsafe { Segment::from_raw(ptr, size, false, Some(Arc::<Block>::clone(&self.block))) }
            .into_slice(offset, len)
    }

    /// The first `len` bytes of it, writable: the buffer itself is given up, so that no slice of it is left.
    ///
    /// # Panics
    /// If there are fewer bytes, or a segment of it is still held.
    #[must_use]
    pub fn into_segment_mut(mut self, len: usize) -> Segment {
        assert!(Arc::get_mut(&mut self.block).is_some(), "a segment of the buffer is still held");
        let (ptr, size) = self.block.raw();
        // SAFETY: the Arc keeps the memory; there is no other segment, and no slice of it once `self` is gone.
        unsafe { Segment::from_raw(ptr, size, true, Some(self.block)) }.into_slice(0, len)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let (ptr, len) = self.block.raw();
        // SAFETY: initialised from the start, and never written while it can be borrowed: `get_mut` needs `&mut
        // self`, and writable segments need the buffer itself.
        unsafe { std::slice::from_raw_parts(ptr.as_ptr(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_page_aligned_and_kept_for_the_next() {
        let pool = Pool::default();
        let first = pool.get(5000);
        assert_eq!(first.len(), 8192);
        assert_eq!(first.as_ptr().addr() % PAGE_SIZE, 0);
        let at = first.as_ptr();
        drop(first);
        assert_eq!(pool.get(8000).as_ptr(), at);
    }

    #[test]
    fn large_buffers_are_zeroes_at_first_and_page_aligned() {
        let pool = Pool::new(PoolLimits { kept_bytes: MAPPED_FROM });
        for len in [MAPPED_FROM - 1, MAPPED_FROM, MAPPED_FROM + 1] {
            let mut buffer = pool.get(len);
            assert_eq!(buffer.as_ptr().addr() % PAGE_SIZE, 0);
            assert!(buffer.len() >= len && buffer.iter().all(|byte| *byte == 0));
            buffer.get_mut().unwrap().fill(1);
            drop(buffer);
            pool.trim();
        }
    }

    #[test]
    fn cannot_be_written_while_a_part_is_held() {
        let mut buffer = Pool::default().get(10);
        buffer.get_mut().unwrap()[..3].copy_from_slice(b"abc");
        let part = buffer.segment(1, 2);
        assert!(buffer.get_mut().is_none());
        assert_eq!(part.to_vec(), b"bc");
        drop(part);
        assert!(buffer.get_mut().is_some());
    }

    #[test]
    fn keeps_no_more_than_its_limit() {
        let pool = Pool::new(PoolLimits { kept_bytes: 2 * PAGE_SIZE });
        drop([pool.get(1), pool.get(1), pool.get(1)]);
        assert_eq!(pool.0.free.lock().unwrap().kept_bytes, 2 * PAGE_SIZE);
        pool.trim();
        assert_eq!(pool.0.free.lock().unwrap().kept_bytes, 0);
    }

    #[test]
    fn a_segment_may_outlive_buffer_and_pool() {
        let segment = Pool::default().get(4).into_segment_mut(4);
        segment.copy_from(b"wxyz");
        assert_eq!(segment.to_vec(), b"wxyz");
    }
}
