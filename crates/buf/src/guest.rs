//! The memory of a virtual machine, or of another process that shares it by file descriptors.
//!
//! It is made of regions, each a mapping of a file. A region has two addresses: that of the guest ("guest physical"), which
//! descriptors of virtqueues hold, and that of the process which runs the guest, which is how vhost-user names the rings.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SealFlags, fcntl_add_seals, fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::segment::Owner;
use crate::sigbus::Entry;
use crate::{PAGE_SIZE, Segment};

/// The most bytes that all such mappings of a process have together: half of the addresses that x86-64 and most of aarch64 give
/// to a process. Whoever shares memory says how long it is, and need not have any of it.
const MAX_SHARED_BYTES: u64 = 64 << 40;
static SHARED_BYTES: AtomicU64 = AtomicU64::new(0);

/// File systems (include/uapi/linux/magic.h) whose pages another process or another machine brings, or never does: FUSE, NFS, SMB
/// (three), 9P, Ceph, AFS. Whoever touches such memory waits for that.
const REMOTE_FILE_SYSTEMS: [u32; 8] =
    [0x6573_5546, 0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f];
const HUGETLBFS: u32 = 0x9584_58f6;

/// Where a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Its address in the guest.
    pub guest_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Its address in the process that shares it.
    pub user_addr: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
}

/// Memory that several processes share by a file, mapped whole.
#[derive(Debug)]
pub struct SharedMapping {
    base: NonNull<u8>,
    /// Bytes from `base` on, whole pages.
    mapped: usize,
    /// Bytes from `base` to what was asked for.
    lead: usize,
    /// Bytes that were asked for.
    len: usize,
    /// What the handler of SIGBUS knows of it.
    watched: &'static Entry,
    /// Told of how long it is.
    _file: OwnedFd,
}

// SAFETY: the mapping is plain memory, reached through raw pointers only (see `Segment`); it belongs to no thread.
unsafe impl Send for SharedMapping {}
// SAFETY: as above; all access is by raw copies or atomics, whose races concern bytes and not references.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps `len` bytes of `file` from `offset` on, for reading and writing. They have to be in the file. If it becomes shorter
    /// later, which it is sealed against where that can be, the mapping [is lost](Self::is_lost).
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a range that is empty, too long, or not in the file, and for a file of FUSE or another
    /// machine; [`io::ErrorKind::OutOfMemory`] if all mappings would be too long; what mmap(2) says.
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Arc<Self>> {
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let end = end.filter(|_| len > 0).ok_or_else(|| invalid("no range of a file"))?;
        let page = page_size(file)?;
        // Only files that were made to be sealed can be.
        let _ = fcntl_add_seals(file, SealFlags::SHRINK);
        let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        if end > size {
            return Err(invalid("a range past the end of its file"));
        }
        let start = offset - offset % page;
        let too_long = || invalid("a range that is longer than the address space");
        let bytes = (end - start).checked_next_multiple_of(page).ok_or_else(too_long)?;
        let [lead, len, mapped] = [offset - start, len, bytes].map(usize::try_from);
        let (Ok(lead), Ok(len), Ok(mapped)) = (lead, len, mapped) else { return Err(too_long()) };
        let counted = Counted::new(mapped)?;
        let kept = file.try_clone_to_owned()?;
        // SAFETY: a null hint with no MAP_FIXED cannot replace an existing mapping.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                start,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned a null pointer"))?;
        // A core dump of this process has no business with the memory of guests. It is no less usable without.
        // SAFETY: the advice changes nothing of the memory itself.
        let _ = unsafe { madvise(base.as_ptr().cast(), mapped, Advice::LinuxDontDump) };
        let page = usize::try_from(page).unwrap_or(PAGE_SIZE);
        match Entry::watch((base, mapped), page, (kept.as_fd(), start)) {
            Ok(watched) => {
                std::mem::forget(counted);
                Ok(Arc::new(Self { base, mapped, lead, len, watched, _file: kept }))
            }
            Err(err) => {
                // SAFETY: the range is what `mmap` returned, and nobody knows of it.
                let _ = unsafe { munmap(base.as_ptr().cast(), mapped) };
                Err(err)
            }
        }
    }

    /// Its file became shorter, which somebody noticed by touching what was gone: that, and what is behind it, is memory of
    /// nobody's now. Or [it was taken away](GuestMemory::lose).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.watched.is_lost()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: what is empty cannot be mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` bytes at `offset`, readable and writable, which keep the mapping alive.
    ///
    /// # Panics
    /// If the range is not inside the mapping: that is a bug of the caller.
    #[must_use]
    pub fn segment(self: &Arc<Self>, offset: usize, len: usize) -> Segment {
        // SAFETY: the Arc is of this mapping itself.
        unsafe { self.part(offset, len, true, Arc::<Self>::clone(self)) }
    }

    /// Where `len` bytes at `offset` are.
    ///
    /// # Panics
    /// If they are not all inside.
    #[inline]
    fn raw(&self, offset: usize, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len()), "range past the end of the mapping");
        // SAFETY: `lead + offset` is at most the length of the mapping.
        unsafe { self.base.add(self.lead + offset) }
    }

    /// # Safety
    /// `owner` must keep this mapping alive.
    unsafe fn part(&self, offset: usize, len: usize, writable: bool, owner: Owner) -> Segment {
        let ptr = self.raw(offset, len);
        // SAFETY: `raw` checked the range; the owner keeps it mapped, as the caller promises; it was mapped writable.
        unsafe { Segment::from_raw(ptr, len, writable, Some(owner)) }.of_shared_mapping()
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        self.watched.forget();
        drop(Counted(self.mapped as u64));
        // SAFETY: the range is what `mmap` returned, and nothing refers to it: every segment of it holds its owner.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// Bytes of [`SHARED_BYTES`], which are given back.
struct Counted(u64);

impl Counted {
    fn new(len: usize) -> io::Result<Self> {
        let len = len as u64;
        let add = |all: u64| all.checked_add(len).filter(|all| *all <= MAX_SHARED_BYTES);
        match SHARED_BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Self(len)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                "all guests of this process would have more than 64 TiB",
            )),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        SHARED_BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// What mappings of a file are made of.
fn page_size(file: BorrowedFd<'_>) -> io::Result<u64> {
    let system = fstatfs(file)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "magic numbers have 32 bits, whatever the type that has them"
    )]
    let kind = system.f_type as u32;
    if REMOTE_FILE_SYSTEMS.contains(&kind) {
        return Err(invalid("a file of FUSE or of another machine, which may keep us waiting"));
    }
    let page = PAGE_SIZE as u64;
    let huge = if kind == HUGETLBFS { u64::try_from(system.f_bsize).unwrap_or(page) } else { page };
    Ok(huge.max(page))
}

/// Which way the bytes of a descriptor go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// They are only read.
    Read,
    /// They may be written.
    Write,
}

#[derive(Clone, Debug)]
struct Region {
    spec: RegionSpec,
    mapping: Arc<SharedMapping>,
}

/// All of a guest's memory at a time: a list of regions that do not overlap. It does not change; a guest whose memory does
/// gets a new one.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    /// Sorted by the guest's address.
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Maps a region of `file` and adds it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for one that overlaps another or cannot be; what mmap(2) says.
    pub fn add(&mut self, spec: RegionSpec, file: BorrowedFd<'_>) -> io::Result<()> {
        if spec.guest_addr.checked_add(spec.size).is_none()
            || spec.user_addr.checked_add(spec.size).is_none()
        {
            return Err(invalid("a region past the end of all addresses"));
        }
        let apart = |a: u64, b: u64, other: &RegionSpec| {
            a.saturating_add(spec.size) <= b || b.saturating_add(other.size) <= a
        };
        if self.regions.iter().any(|region| {
            let other = &region.spec;
            !apart(spec.guest_addr, other.guest_addr, other)
                || !apart(spec.user_addr, other.user_addr, other)
        }) {
            return Err(invalid("a region that overlaps another"));
        }
        let mapping = SharedMapping::new(file, spec.mmap_offset, spec.size)?;
        let at = self.regions.partition_point(|region| region.spec.guest_addr < spec.guest_addr);
        self.regions.insert(at, Region { spec, mapping });
        Ok(())
    }

    /// Takes a region away, which is named by its addresses and its size. Whoever has segments of it keeps them. Says
    /// whether it was there.
    pub fn remove(&mut self, spec: &RegionSpec) -> bool {
        let before = self.regions.len();
        self.regions.retain(|Region { spec: known, .. }| {
            (known.guest_addr, known.user_addr, known.size)
                != (spec.guest_addr, spec.user_addr, spec.size)
        });
        self.regions.len() < before
    }

    /// Some of it [is lost](SharedMapping::is_lost).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_lost())
    }

    /// All of it is lost from now on, for those who still have segments of it. Nothing that they do reaches the guest, and the
    /// kernel writes nothing that comes from there (`EFAULT`). Whoever copies from it asks [`Segment::is_lost`] afterwards. Says
    /// whether all of it could be taken away.
    #[must_use]
    pub fn lose(&self) -> bool {
        let kept = self.regions.iter().filter(|region| !region.mapping.watched.take_away());
        kept.count() == 0
    }

    /// How many regions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether the guest has no memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// `len` bytes at an address of the process that shares the memory; `None` if they are not all in one region.
    #[must_use]
    pub fn user_range(&self, addr: u64, len: usize) -> Option<Segment> {
        let region = self.regions.iter().find(|region| {
            addr >= region.spec.user_addr && addr - region.spec.user_addr < region.spec.size
        })?;
        let offset = usize::try_from(addr - region.spec.user_addr).ok()?;
        let fits = offset.checked_add(len).is_some_and(|end| end <= region.mapping.len());
        (fits && len <= Segment::MAX_LEN).then(|| region.mapping.segment(offset, len))
    }

    /// The region that holds the guest's address, the address in it, and how many bytes of it follow.
    #[inline]
    fn find(&self, addr: u64) -> Option<(&Region, usize, usize)> {
        let after = self.regions.partition_point(|region| region.spec.guest_addr <= addr);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = usize::try_from(addr - region.spec.guest_addr).ok()?;
        let left = region.mapping.len().checked_sub(offset).filter(|left| *left > 0)?;
        Some((region, offset, left))
    }
}

/// A guest's memory as one queue sees it. What it hands out is counted by the queue alone, so that queues on several CPUs
/// share nothing that they write.
#[derive(Clone)]
#[expect(clippy::redundant_allocation, reason = "the outer count is the queue's own")]
pub struct GuestView(Arc<Arc<GuestMemory>>);

impl GuestView {
    /// A view of its own.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self(Arc::new(memory))
    }

    /// What it is a view of.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.0
    }

    /// Whether all of the `len` bytes at the guest's address `addr` are there, in one region.
    #[must_use]
    #[inline]
    pub fn contains(&self, addr: u64, len: usize) -> bool {
        self.0.find(addr).is_some_and(|(_, _, left)| left >= len)
    }

    /// Hands the `len` bytes at the guest's address `addr` to `take`, piece by piece: there is more than one where they lie
    /// across regions. `None` if they are not all in the guest's memory; some pieces may have been handed out then.
    #[must_use]
    #[inline]
    pub fn pieces(
        &self,
        mut addr: u64,
        mut len: usize,
        access: Access,
        mut take: impl FnMut(Segment),
    ) -> Option<()> {
        while len > 0 {
            let (region, offset, left) = self.0.find(addr)?;
            let run = len.min(left).min(Segment::MAX_LEN);
            let owner: Owner = Arc::<Arc<GuestMemory>>::clone(&self.0);
            // SAFETY: the owner holds the guest's memory, which holds the region's mapping.
            take(unsafe { region.mapping.part(offset, run, access == Access::Write, owner) });
            len -= run;
            addr = addr.checked_add(run as u64)?;
        }
        Some(())
    }

    /// Copies the bytes at the guest's address `addr` to `dst`; `None` if they are not all in the guest's memory.
    #[must_use]
    #[inline]
    pub fn read(&self, mut addr: u64, mut dst: &mut [u8]) -> Option<()> {
        while !dst.is_empty() {
            let (region, offset, left) = self.0.find(addr)?;
            let (now, later) = dst.split_at_mut(dst.len().min(left));
            let at = region.mapping.raw(offset, now.len());
            // SAFETY: `raw` checked the range, which stays mapped while the region is borrowed; `now` is unshared. The copy is
            // libc's, a call the compiler cannot look into, as the source may change meanwhile.
            unsafe { libc::memcpy(now.as_mut_ptr().cast(), at.as_ptr().cast(), now.len()) };
            addr = addr.checked_add(now.len() as u64)?;
            dst = later;
        }
        Some(())
    }

    /// Copies `src` to the guest's address `addr`; `None` if that is not all in the guest's memory.
    #[must_use]
    #[inline]
    pub fn write(&self, mut addr: u64, mut src: &[u8]) -> Option<()> {
        while !src.is_empty() {
            let (region, offset, left) = self.0.find(addr)?;
            let (now, later) = src.split_at(src.len().min(left));
            let at = region.mapping.raw(offset, now.len());
            // SAFETY: as for reading; the region was mapped writable, and no reference overlaps it.
            unsafe { libc::memcpy(at.as_ptr().cast(), now.as_ptr().cast(), now.len()) };
            addr = addr.checked_add(now.len() as u64)?;
            src = later;
        }
        Some(())
    }
}

impl fmt::Debug for GuestView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestView({} regions)", self.0.len())
    }
}

#[cfg(test)]
mod tests;
