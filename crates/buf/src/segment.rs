//! Runs of bytes that others may change while we hold them.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock};

use smallvec::SmallVec;

use crate::{Access, Mapping};

/// The longest run of zeroes that one segment can be: longer ones are made of several.
pub const ZERO_RUN: usize = 1 << 20;

/// Keeps the memory of a [`Segment`] alive. Blanket: anything that can be shared can own memory.
pub(crate) type Owner = Arc<dyn Sync + Send>;

/// A list of segments, in order. One is kept in place.
pub type Segments = SmallVec<[Segment; 1]>;

/// A run of bytes, shared: cloning it shares the same bytes.
///
/// Somebody else (another request, a guest, the kernel) may read or write them at any time, so they are never
/// lent out as a slice: they are copied in or out, or their address is handed to the kernel. What a racing copy
/// reads is some mix of old and new bytes, as on any disk.
#[derive(Clone)]
pub struct Segment {
    ptr: NonNull<u8>,
    len: u32,
    writable: bool,
    /// It is of a mapping that the handler of SIGBUS knows of.
    shared: bool,
    owner: Option<Owner>,
}

// SAFETY: the memory belongs to `owner`, which is Send + Sync, or is static; access is by raw copies (see the
// type's docs).
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// The longest segment, in bytes.
    pub const MAX_LEN: usize = 1 << 31;

    /// `len` bytes at `ptr`, kept alive by `owner`.
    ///
    /// # Panics
    /// If `len` is over [`Segment::MAX_LEN`].
    ///
    /// # Safety
    /// The memory must stay mapped, readable, and writable if `writable`, until `owner` is dropped (for ever if
    /// there is none), and no Rust reference that promises it unchanged (or, if `writable`, unshared) may be
    /// used meanwhile.
    #[must_use]
    pub unsafe fn from_raw(
        ptr: NonNull<u8>,
        len: usize,
        writable: bool,
        owner: Option<Owner>,
    ) -> Self {
        assert!(len <= Self::MAX_LEN, "a segment of {len} bytes");
        #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_LEN")]
        let len = len as u32;
        Self { ptr, len, writable, shared: false, owner }
    }

    /// The same bytes, which are of a [`SharedMapping`](crate::SharedMapping).
    pub(crate) fn of_shared_mapping(self) -> Self {
        Self { shared: true, ..self }
    }

    /// `len` zeroes, which cost no memory.
    ///
    /// # Panics
    /// If `len` is over [`ZERO_RUN`]; [`Segment::zeroes`] makes a list of any length.
    #[must_use]
    pub fn zero_run(len: usize) -> Self {
        // Without an owner, as it is never dropped: handing it out counts no reference that all CPUs would write to.
        static ZEROES: LazyLock<Option<Segment>> = LazyLock::new(|| {
            let map = ManuallyDrop::new(Mapping::new(ZERO_RUN).ok()?);
            Some(Segment { writable: false, owner: None, ..map.segment(0, ZERO_RUN) })
        });
        assert!(len <= ZERO_RUN, "a run of {len} zeroes");
        match &*ZEROES {
            Some(zeroes) => zeroes.slice(0, len),
            None => Self::from_vec(vec![0; len]),
        }
    }

    /// Whether it was made by [`Segment::zero_run`]: it is known to be zeroes without looking.
    #[must_use]
    pub fn is_zero_run(&self) -> bool {
        self.owner.is_none() && !self.writable && self.len > 0
    }

    /// Appends `len` zeroes to `list`.
    pub fn zeroes(list: &mut Segments, mut len: usize) {
        while len > 0 {
            let run = len.min(ZERO_RUN);
            list.push(Self::zero_run(run));
            len -= run;
        }
    }

    /// A copy of nothing: takes the bytes of `vec` over. For tests and what is not in a hurry.
    #[must_use]
    pub fn from_vec(mut vec: Vec<u8>) -> Self {
        let len = vec.len();
        let ptr = NonNull::new(vec.as_mut_ptr()).unwrap_or(NonNull::dangling());
        // SAFETY: a Vec's memory does not move with the Vec; the Arc owns it, and nobody borrows it any more.
        unsafe { Self::from_raw(ptr, len, true, Some(Arc::new(vec))) }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the bytes may be changed through this segment.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Where the bytes are, for the kernel. Using it is the caller's `unsafe`.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// `len` bytes of it from `offset` on.
    ///
    /// # Panics
    /// If they are not all inside.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        self.clone().into_slice(offset, len)
    }

    /// As [`Segment::slice`], without a second reference to the owner.
    ///
    /// # Panics
    /// If they are not all inside.
    #[must_use]
    pub fn into_slice(mut self, offset: usize, len: usize) -> Self {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len()), "slice past the end of a segment");
        // SAFETY: `offset` is at most the segment's length.
        self.ptr = unsafe { self.ptr.add(offset) };
        #[expect(clippy::cast_possible_truncation, reason = "no longer than the u32 it was")]
        let len = len as u32;
        self.len = len;
        self
    }

    /// Copies the first `dst.len()` bytes out.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn copy_to(&self, dst: &mut [u8]) {
        assert!(dst.len() <= self.len(), "copy past the end of a segment");
        // SAFETY: valid for that many bytes; `dst` is unshared, so that the ranges do not overlap. The copy is
        // libc's, a call the compiler cannot look into, as the source may change meanwhile.
        unsafe { libc::memcpy(dst.as_mut_ptr().cast(), self.ptr.as_ptr().cast(), dst.len()) };
    }

    /// Copies `src` in, to its start.
    ///
    /// # Panics
    /// If it does not fit, or the segment is not writable.
    pub fn copy_from(&self, src: &[u8]) {
        assert!(self.writable, "write to a read-only segment");
        assert!(src.len() <= self.len(), "copy past the end of a segment");
        // SAFETY: valid and writable for that many bytes. `src` is a reference, so that no segment overlaps it.
        unsafe { libc::memcpy(self.ptr.as_ptr().cast(), src.as_ptr().cast(), src.len()) };
    }

    /// Copies all of `src` in, to its start.
    ///
    /// # Panics
    /// If it does not fit, or the segment is not writable.
    pub fn copy_from_segment(&self, src: &Self) {
        assert!(self.writable, "write to a read-only segment");
        assert!(src.len <= self.len, "copy past the end of a segment");
        // SAFETY: both are valid for `src.len()` bytes, and may overlap: they are moved.
        unsafe { libc::memmove(self.ptr.as_ptr().cast(), src.ptr.as_ptr().cast(), src.len()) };
    }

    /// Sets all of it to zero.
    ///
    /// # Panics
    /// If the segment is not writable.
    pub fn fill_zero(&self) {
        assert!(self.writable, "write to a read-only segment");
        // SAFETY: valid and writable for its length.
        unsafe { libc::memset(self.ptr.as_ptr().cast(), 0, self.len()) };
    }

    /// Whether another process may take its memory away: it is of a [`SharedMapping`](crate::SharedMapping).
    #[must_use]
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Asks the kernel whether its file became shorter, and whether all of it can be read, or read and written, as it would for
    /// a system call that uses it: for those to whom it has said that something is wrong with memory (`EFAULT`), or with
    /// whatever. Its mapping is lost from the first page that is gone. Says whether any was lost that was not before. Memory
    /// that is there, or can be, is brought in: how much of it is for the caller to limit; none is for an empty segment. What
    /// [is not shared](Self::is_shared) is always there.
    pub fn probe(&self, access: Access) -> bool {
        self.shared && crate::sigbus::probe(self, access)
    }

    /// Its mapping is lost from it on. Says whether there is one. For those to whom the kernel says that something is wrong
    /// with memory, again, where a [`probe`](Self::probe) finds nothing.
    pub fn lose(&self) -> bool {
        self.shared && crate::sigbus::lose(self)
    }

    /// Whether any of it is gone, with the file that it was of. To be asked when [`losses`](crate::losses) have become more: what
    /// was taken from it since may be zeroes, or not.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.shared && crate::sigbus::is_lost(self)
    }

    /// A copy of its bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(&mut bytes);
        bytes
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} bytes{})", self.len, if self.writable { ", writable" } else { "" })
    }
}

/// Bytes in a list of segments.
#[must_use]
pub fn total_len(segments: &[Segment]) -> usize {
    segments.iter().map(Segment::len).sum()
}

/// Copies from one list to another until either ends; says how many bytes that were.
///
/// # Panics
/// If a destination is not writable.
pub fn copy_segments(dst: &[Segment], src: &[Segment]) -> usize {
    let (mut to, mut from) = (dst.iter(), src.iter());
    let (mut to_now, mut from_now) = (to.next().cloned(), from.next().cloned());
    let mut copied = 0;
    while let (Some(d), Some(s)) = (to_now.take(), from_now.take()) {
        let run = d.len().min(s.len());
        d.copy_from_segment(&s.slice(0, run));
        copied += run;
        to_now = if run < d.len() { Some(d.slice(run, d.len() - run)) } else { to.next().cloned() };
        from_now =
            if run < s.len() { Some(s.slice(run, s.len() - run)) } else { from.next().cloned() };
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_the_same_bytes() {
        let whole = Segment::from_vec(b"0123456789".to_vec());
        whole.slice(2, 3).copy_from(b"abc");
        assert_eq!(whole.to_vec(), b"01abc56789");
        assert_eq!(whole.into_slice(8, 2).to_vec(), b"89");
    }

    #[test]
    fn zeroes_of_any_length_are_runs_that_cannot_be_written() {
        let mut list = Segments::new();
        Segment::zeroes(&mut list, 2 * ZERO_RUN + 5);
        assert_eq!(list.iter().map(Segment::len).collect::<Vec<_>>(), [ZERO_RUN, ZERO_RUN, 5]);
        assert!(list.iter().all(|s| s.is_zero_run() && s.to_vec().iter().all(|&b| b == 0)));
        assert!(!Segment::from_vec(vec![0; 5]).is_zero_run());
    }

    #[test]
    fn lists_cut_in_different_places_copy_whole() {
        let src = [Segment::from_vec(b"abc".to_vec()), Segment::from_vec(b"defgh".to_vec())];
        let dst = [5, 1, 9].map(|n| Segment::from_vec(vec![b'.'; n]));
        assert_eq!(copy_segments(&dst, &src), 8);
        assert_eq!(
            dst.map(|s| s.to_vec()),
            [b"abcde".to_vec(), b"f".to_vec(), b"gh.......".to_vec()]
        );
    }

    #[test]
    #[should_panic(expected = "read-only")]
    fn writing_zeroes_over_is_a_bug() {
        Segment::zero_run(8).copy_from(b"x");
    }

    #[test]
    #[should_panic(expected = "past the end")]
    fn a_slice_past_the_end_is_a_bug() {
        let _ = Segment::zero_run(8).slice(7, 2);
    }
}
