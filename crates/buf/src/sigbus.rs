//! Files that become shorter while they are mapped.
//!
//! Whoever touches memory past the end of its file gets SIGBUS (mmap(2)), and with it the process ends, with every disk in it. A
//! file that another process shares with us may become shorter at any time, in the middle of any copy, so that no check helps.
//! The handler here puts memory of nobody's in the place of what is gone, from the page that was touched to the end of the
//! mapping: what was interrupted goes on, with zeroes, and what is before that page is still the file's, for whoever is just
//! writing it to a disk. The mapping is marked as lost, which its owner is to look for before anything that was made from it is
//! shown to anybody; a write may have put the zeroes on its disk, which [`Segment::is_lost`](crate::Segment::is_lost) tells.
//!
//! Memory that is taken away from those who still have segments of it, while its file is as long as ever, must not become zeroes:
//! a write that waits in the kernel would go on with them, and put them over what it was to write. In its place comes a file
//! without any bytes. The kernel cannot read from that, nor write to it (`EFAULT`); our own copies get the signal, and a page of
//! nobody's each time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous};
use rustix::process::{Resource, getrlimit};

use crate::guest::Access;
use crate::segment::Segment;

/// What the kernel says in `si_code` (include/uapi/asm-generic/siginfo.h): nothing is at the address, hardware that is broken
/// where somebody touched it, or where nobody did yet.
const BUS_ADRERR: libc::c_int = 2;
const BUS_MCEERR_AR: libc::c_int = 4;
const BUS_MCEERR_AO: libc::c_int = 5;
/// What the addresses of a process are below of (x86-64 with five levels of page tables; aarch64 has fewer).
const ADDRESSES: u64 = 1 << 57;

/// All entries that there have ever been, the newest first.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
static LOSSES: AtomicU64 = AtomicU64::new(0);
/// A file in memory for what is lost, in which the memory at an address is at that offset: no two mappings share any of it.
/// Memory that is mapped from it is none of the process's data, so that neither its limit (`RLIMIT_DATA`) nor strict
/// accounting (`vm.overcommit_memory` = 2) refuses as much of it as a guest has. `None` where there is no such file.
static SPARE: OnceLock<Option<OwnedFd>> = OnceLock::new();
/// A file in memory that has no bytes, for what is taken away.
static EMPTY: OnceLock<Option<OwnedFd>> = OnceLock::new();
/// What was done about the signal before.
static PREVIOUS: OnceLock<io::Result<libc::sigaction>> = OnceLock::new();

/// How many mappings were lost in this process. Whoever has looked at a mapping need not again before this changes.
#[must_use]
#[inline]
pub fn losses() -> u64 {
    LOSSES.load(Ordering::Acquire)
}

/// A mapping that the handler knows of. It is never freed, as the handler may be looking at it, but used again.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Somebody has it.
    taken: AtomicBool,
    /// Odd while the range changes.
    version: AtomicUsize,
    base: AtomicUsize,
    len: AtomicUsize,
    /// What it is made of: bytes of a page, or of a huge one.
    page: AtomicUsize,
    /// Its file, open as long as the mapping is there, and where in that it begins.
    file: AtomicI32,
    offset: AtomicU64,
    /// The first address that is no longer of the file; [`usize::MAX`] if all are.
    lost_from: AtomicUsize,
    /// All of it was taken away: but for pages that copies of ours have touched, it is of [`EMPTY`].
    taken_away: AtomicBool,
    next: AtomicPtr<Entry>,
}

impl Entry {
    /// Watches over a mapping of whole pages of `page` bytes, which begins at `offset` in a file that its owner keeps open.
    ///
    /// # Errors
    /// What sigaction(2) says.
    pub(crate) fn watch(
        (base, len): (NonNull<u8>, usize),
        page: usize,
        (file, offset): (BorrowedFd<'_>, u64),
    ) -> io::Result<&'static Self> {
        install()?;
        let entry = Self::take();
        entry.lost_from.store(usize::MAX, Ordering::SeqCst);
        entry.taken_away.store(false, Ordering::SeqCst);
        entry.page.store(page, Ordering::SeqCst);
        entry.file.store(file.as_raw_fd(), Ordering::SeqCst);
        entry.offset.store(offset, Ordering::SeqCst);
        entry.set_range(base.as_ptr().expose_provenance(), len);
        Ok(entry)
    }

    /// Ends that. To be called while the mapping is still there, so that no other can be at its place.
    pub(crate) fn forget(&self) {
        if self.is_lost()
            && let Some(Some(spare)) = SPARE.get()
        {
            let [base, len] = [&self.base, &self.len].map(|n| n.load(Ordering::SeqCst) as u64);
            // What was written there is nobody's. It is no less so if it cannot be given back.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(spare, hole, base, len);
        }
        self.set_range(0, 0);
        self.taken.store(false, Ordering::Release);
    }

    /// Its file became shorter, and some of the mapping is no longer of that file.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost_from.load(Ordering::Acquire) != usize::MAX
    }

    /// Takes the mapping away from all who have segments of it: what they read from it and write to it from now on fails, or is
    /// nobody's. To be called while the mapping is there. Says whether it could be done.
    pub(crate) fn take_away(&self) -> bool {
        let Some(Some(empty)) = EMPTY.get() else { return false };
        let [base, len] = [&self.base, &self.len].map(|n| n.load(Ordering::SeqCst));
        // First: who sees the new memory sees this, too.
        self.taken_away.store(true, Ordering::SeqCst);
        self.lost_from.fetch_min(base, Ordering::SeqCst);
        LOSSES.fetch_add(1, Ordering::SeqCst);
        put_in_place(base, len, Some((empty, 0)))
    }

    fn take() -> &'static Self {
        let free = all().find(|entry| !entry.taken.swap(true, Ordering::Acquire));
        free.unwrap_or_else(|| {
            let entry: &'static Self = Box::leak(Box::new(Self {
                taken: AtomicBool::new(true),
                version: AtomicUsize::new(0),
                base: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                page: AtomicUsize::new(crate::PAGE_SIZE),
                file: AtomicI32::new(-1),
                offset: AtomicU64::new(0),
                lost_from: AtomicUsize::new(usize::MAX),
                taken_away: AtomicBool::new(false),
                next: AtomicPtr::default(),
            }));
            let address = std::ptr::from_ref(entry).cast_mut();
            let push = |head| {
                entry.next.store(head, Ordering::Release);
                Some(address)
            };
            // It never gives up: there is always a new head.
            let _ = ENTRIES.fetch_update(Ordering::AcqRel, Ordering::Acquire, push);
            entry
        })
    }

    fn set_range(&self, base: usize, len: usize) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.base.store(base, Ordering::SeqCst);
        self.len.store(len, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Its range, if that holds the address. Whoever touches a mapping keeps it, so that an entry which changes just now is not
    /// the one that is looked for.
    fn holds(&self, address: usize) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::SeqCst);
        let (base, len) = (self.base.load(Ordering::SeqCst), self.len.load(Ordering::SeqCst));
        let whole = version.is_multiple_of(2) && version == self.version.load(Ordering::SeqCst);
        (whole && address.wrapping_sub(base) < len).then_some((base, len))
    }

    /// The entry of the mapping that holds an address, and its range.
    fn find(address: usize) -> Option<(&'static Self, (usize, usize))> {
        all().find_map(|entry| entry.holds(address).map(|range| (entry, range)))
    }
}

/// What [`Segment::is_lost`] says of a segment of a shared mapping.
pub(crate) fn is_lost(segment: &Segment) -> bool {
    let address = segment.as_ptr().addr();
    Entry::find(address).is_some_and(|(entry, _)| {
        entry.lost_from.load(Ordering::Acquire) < address.saturating_add(segment.len())
    })
}

fn all() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries are leaked, and changed by atomics only.
    let follow = |at: &AtomicPtr<Entry>| unsafe { at.load(Ordering::Acquire).as_ref() };
    std::iter::successors(follow(&ENTRIES), move |entry| follow(&entry.next))
}

fn install() -> io::Result<()> {
    SPARE.get_or_init(spare);
    EMPTY.get_or_init(|| memfd_create("blockyard-no-memory", MemfdFlags::CLOEXEC).ok());
    let done = PREVIOUS.get_or_init(|| set_action(Some(&ours())));
    match done {
        Ok(_) => Ok(()),
        Err(err) => Err(io::Error::from(err.kind())),
    }
}

fn spare() -> Option<OwnedFd> {
    // A size past this is answered by a signal that ends the process (setrlimit(2)).
    if getrlimit(Resource::Fsize).current.is_some_and(|limit| limit < ADDRESSES) {
        return None;
    }
    let file = memfd_create("blockyard-lost-memory", MemfdFlags::CLOEXEC).ok()?;
    ftruncate(&file, ADDRESSES).ok()?;
    Some(file)
}

/// No action at all: the default one.
fn default_action() -> libc::sigaction {
    // SAFETY: plain numbers and function pointers that may be null.
    unsafe { std::mem::zeroed() }
}

fn ours() -> libc::sigaction {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
    let mut ours = default_action();
    ours.sa_sigaction = handler as *const () as libc::sighandler_t;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    ours
}

/// Sets what is done about SIGBUS, if it is to be set, and says what was done before.
fn set_action(new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = default_action();
    // SAFETY: both live until the call returns; a handler of ours does only what a handler may (see `handle`), and any other was
    // there before.
    let done = unsafe { libc::sigaction(libc::SIGBUS, new, &raw mut old) };
    if done == 0 { Ok(old) } else { Err(io::Error::last_os_error()) }
}

/// The handler: it allocates nothing, locks nothing, and does not panic.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t` to a handler that was installed with `SA_SIGINFO`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let replaced = match code {
        BUS_ADRERR => replace(address, Extent::Fault),
        // What is behind a broken page is as good as it was. One that nobody touches stays (`BUS_MCEERR_AO`): nobody keeps its
        // mapping either, and whatever is at the address when this comes would be replaced.
        BUS_MCEERR_AR => replace(address, Extent::OnePage),
        _ => false,
    };
    if !replaced {
        // SAFETY: these are the arguments of the handler.
        unsafe { pass_on(signal, code, info, context) };
    }
}

/// How much of a mapping is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    OnePage,
    ToTheEnd,
    /// All behind it, too, unless the mapping was taken away: the next page may be what a write waits to read.
    Fault,
}

/// What [`Segment::probe`] does for a segment of a shared mapping.
pub(crate) fn probe(segment: &Segment, access: Access) -> bool {
    let address = segment.as_ptr().addr();
    let Some((entry, range)) = Entry::find(address) else { return false };
    is_cut_off(segment, entry, range) | is_not_there(segment, access)
}

/// What [`Segment::lose`] does for a segment of a shared mapping.
pub(crate) fn lose(segment: &Segment) -> bool {
    replace(segment.as_ptr().addr(), Extent::ToTheEnd)
}

/// Whether the file of a segment's mapping has become shorter than that since somebody looked: it is lost from there on, which
/// costs no look at the memory itself.
fn is_cut_off(_alive: &Segment, entry: &Entry, (base, len): (usize, usize)) -> bool {
    // SAFETY: the mapping keeps its file open, and the segment keeps the mapping.
    let file = unsafe { BorrowedFd::borrow_raw(entry.file.load(Ordering::SeqCst)) };
    // A file whose size is not told is not known to be shorter.
    let Ok(size) = fstat(file).map(|stat| u64::try_from(stat.st_size).unwrap_or(0)) else {
        return false;
    };
    let left = size.saturating_sub(entry.offset.load(Ordering::SeqCst));
    // A page in whose midst the file ends is there.
    let left =
        usize::try_from(left).ok().and_then(|left| left.checked_next_multiple_of(crate::PAGE_SIZE));
    let Some(left) = left.filter(|left| *left < len) else { return false };
    let end = base + left;
    end < entry.lost_from.load(Ordering::SeqCst) && replace(end, Extent::ToTheEnd)
}

/// Brings the memory in, and says whether some of it cannot be: its mapping is lost from there on.
fn is_not_there(segment: &Segment, access: Access) -> bool {
    // Linux 5.14. What is not in a file any more, or not to be had for lack of space, is an error, and no signal (madvise(2)).
    let advice = match access {
        Access::Read => Advice::LinuxPopulateRead,
        Access::Write => Advice::LinuxPopulateWrite,
    };
    let (address, len) = (segment.as_ptr().addr(), segment.len());
    let start = address - address % crate::PAGE_SIZE;
    let are_there = |page: usize, pages: usize| {
        let at = std::ptr::with_exposed_provenance_mut(start + page * crate::PAGE_SIZE);
        // SAFETY: the advice brings pages in, and changes nothing of what is in them.
        let done = unsafe { madvise(at, pages * crate::PAGE_SIZE, advice) };
        // Other errors are of the kernel, which does not know the advice or has no memory now, and say nothing of this.
        !matches!(done, Err(Errno::FAULT | Errno::HWPOISON))
    };
    let pages = (address - start + len).div_ceil(crate::PAGE_SIZE);
    if len == 0 || are_there(0, pages) {
        return false;
    }
    // All before the first of these is there, all up to the second is not.
    let (mut there, mut gone) = (0, pages);
    while gone - there > 1 {
        let middle = there + (gone - there) / 2;
        if are_there(there, middle - there) {
            there = middle;
        } else {
            gone = middle;
        }
    }
    // Another thread may have lost it meanwhile.
    !are_there(there, 1) && replace(start + there * crate::PAGE_SIZE, Extent::ToTheEnd)
}

/// Puts other memory in the place of what is lost of the mapping that holds the address. Says whether there was one, and it could
/// be done. Several threads may do it at once: what one has written there meanwhile is nobody's.
fn replace(address: usize, extent: Extent) -> bool {
    let Some((entry, (base, len))) = Entry::find(address) else { return false };
    let was_taken_away = entry.taken_away.load(Ordering::SeqCst);
    // What was taken away is of ordinary pages, and is not given to the kernel again.
    let page = match (was_taken_away, extent) {
        (true, Extent::ToTheEnd) => return false,
        (true, _) => crate::PAGE_SIZE,
        (false, _) => entry.page.load(Ordering::SeqCst).max(1),
    };
    let start = address - (address - base) % page;
    let is_one_page = was_taken_away || extent == Extent::OnePage;
    let len = if is_one_page { page } else { base + len - start };
    // First: who sees the new memory sees this, too.
    entry.lost_from.fetch_min(start, Ordering::SeqCst);
    LOSSES.fetch_add(1, Ordering::SeqCst);
    let spare = SPARE.get().and_then(Option::as_ref);
    let is_replaced = put_in_place(start, len, spare.map(|spare| (spare, start as u64)));
    if !was_taken_away && entry.taken_away.load(Ordering::SeqCst) {
        // It was in between, and this may have come last.
        return put_in_place(
            start,
            len,
            EMPTY.get().and_then(Option::as_ref).map(|file| (file, 0)),
        );
    }
    is_replaced
}

/// Maps memory of a file, from an offset on, or of none, over a range of a mapping of a `SharedMapping`, which whoever calls
/// keeps alive. Says whether it could be done.
fn put_in_place(start: usize, len: usize, file: Option<(&OwnedFd, u64)>) -> bool {
    let place = std::ptr::with_exposed_provenance_mut(start);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the range is of a mapping of a `SharedMapping` that is alive, and whose memory nobody borrows as a reference: its
    // contents may change at any time. The new memory is as long, and as writable: what the file does not have, a signal is
    // about, which the handler answers.
    let replaced = unsafe {
        match file {
            Some((file, at)) => mmap(place, len, access, flags | MapFlags::SHARED, file, at),
            None => mmap_anonymous(place, len, access, flags | MapFlags::PRIVATE),
        }
    };
    if replaced.is_ok() {
        // As for the memory that was there.
        // SAFETY: the advice changes nothing of the memory itself.
        let _ = unsafe { madvise(place, len, Advice::LinuxDontDump) };
    }
    replaced.is_ok()
}

/// Does what was done before there was a handler.
///
/// # Safety
/// To be called with the arguments of a handler, in it.
unsafe fn pass_on(
    signal: libc::c_int,
    code: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let previous = PREVIOUS.get().and_then(|previous| previous.as_ref().ok());
    let action = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    let is_ignored = action == libc::SIG_IGN && code <= 0;
    match previous {
        Some(previous) if action != libc::SIG_DFL && action != libc::SIG_IGN => {
            // SAFETY: these are the arguments of the handler.
            unsafe { call(previous, signal, info, context) };
            // A handler that wants nothing of it, as that of Rust's runtime, takes all handlers away, and counts on the fault to
            // happen again.
            if set_action(None).is_ok_and(|now| now.sa_sigaction != libc::SIG_DFL) {
                return;
            }
        }
        _ => {}
    }
    // What nobody has touched yet raises a fault of its own when somebody does.
    if is_ignored || code == BUS_MCEERR_AO {
        let _ = set_action(Some(&ours()));
        return;
    }
    // That may not happen again, and without a handler the next guest whose memory is gone would end this process: it ends
    // now, as it would have without us. The signal is held back until the handler returns.
    let _ = set_action(Some(&default_action()));
    // SAFETY: it concerns no memory.
    unsafe { libc::raise(signal) };
}

/// Calls another's handler.
///
/// # Safety
/// To be called with what sigaction(2) gave, which is a handler, and the arguments of a handler, in it.
unsafe fn call(
    action: &libc::sigaction,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let address = std::ptr::with_exposed_provenance::<()>(action.sa_sigaction);
    if action.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        // SAFETY: what was installed with `SA_SIGINFO` is such a function.
        let handler = unsafe { std::mem::transmute::<*const (), Handler>(address) };
        handler(signal, info, context);
    } else {
        // SAFETY: what was installed without it is such a function.
        let handler =
            unsafe { std::mem::transmute::<*const (), extern "C" fn(libc::c_int)>(address) };
        handler(signal);
    }
}
