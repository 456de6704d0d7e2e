//! Files that become shorter while they are mapped.
//!
//! Whoever touches memory past the end of its file gets SIGBUS (mmap(2)), and with it the process ends, with every disk in it. A
//! file that another process shares with us may become shorter at any time, in the middle of any copy, so that no check helps.
//! The handler here puts memory of nobody's in the place of such a mapping, as a whole: what was interrupted goes on, with
//! zeroes. The mapping is marked as lost, which its owner is to look for before anything that was made from it is shown to
//! anybody.

use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// What the kernel says in `si_code` (include/uapi/asm-generic/siginfo.h): nothing is at the address, or hardware that is broken.
const BUS_ADRERR: libc::c_int = 2;
const BUS_MCEERR_AR: libc::c_int = 4;

/// All entries that there have ever been, the newest first.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
static LOSSES: AtomicU64 = AtomicU64::new(0);
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
    lost: AtomicBool,
    next: AtomicPtr<Entry>,
}

impl Entry {
    /// Watches over a mapping.
    ///
    /// # Errors
    /// What sigaction(2) says.
    pub(crate) fn watch(base: NonNull<u8>, len: usize) -> io::Result<&'static Self> {
        install()?;
        let entry = Self::take();
        entry.lost.store(false, Ordering::SeqCst);
        entry.set_range(base.as_ptr().expose_provenance(), len);
        Ok(entry)
    }

    /// Ends that. To be called while the mapping is still there, so that no other can be at its place.
    pub(crate) fn forget(&self) {
        self.set_range(0, 0);
        self.taken.store(false, Ordering::Release);
    }

    /// Its file became shorter, and the mapping is no longer of that file.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn take() -> &'static Self {
        let free = all().find(|entry| !entry.taken.swap(true, Ordering::Acquire));
        free.unwrap_or_else(|| {
            let entry: &'static Self = Box::leak(Box::new(Self {
                taken: AtomicBool::new(true),
                version: AtomicUsize::new(0),
                base: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                lost: AtomicBool::new(false),
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
}

fn all() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries are leaked, and changed by atomics only.
    let follow = |at: &AtomicPtr<Entry>| unsafe { at.load(Ordering::Acquire).as_ref() };
    std::iter::successors(follow(&ENTRIES), move |entry| follow(&entry.next))
}

fn install() -> io::Result<()> {
    let done = PREVIOUS.get_or_init(|| {
        // SAFETY: plain numbers and function pointers that may be null.
        let (mut old, mut new): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
        new.sa_sigaction = handler as *const () as libc::sighandler_t;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both live until the call returns; the handler does only what a handler may (see `handle`).
        let done = unsafe { libc::sigaction(libc::SIGBUS, &raw const new, &raw mut old) };
        if done == 0 { Ok(old) } else { Err(io::Error::last_os_error()) }
    });
    match done {
        Ok(_) => Ok(()),
        Err(err) => Err(io::Error::from(err.kind())),
    }
}

/// The handler: it allocates nothing, locks nothing, and does not panic.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t` to a handler that was installed with `SA_SIGINFO`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let of_memory = code == BUS_ADRERR || code == BUS_MCEERR_AR;
    if !of_memory || !replace(address) {
        // SAFETY: these are the arguments of the handler.
        unsafe { pass_on(signal, code, info, context) };
    }
}

/// Puts other memory in the place of the mapping that holds the address. Says whether there was one, and it could be done.
fn replace(address: usize) -> bool {
    let Some((entry, (base, len))) =
        all().find_map(|entry| entry.holds(address).map(|range| (entry, range)))
    else {
        return false;
    };
    // First: who sees the new memory sees this, too.
    entry.lost.store(true, Ordering::SeqCst);
    LOSSES.fetch_add(1, Ordering::SeqCst);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    let place = std::ptr::with_exposed_provenance_mut(base);
    // SAFETY: the range is a mapping of a `SharedMapping`, which the interrupted thread keeps alive as it touches it, and
    // whose memory nobody borrows as a reference: its contents may change at any time. The new memory is as long, and as
    // writable.
    unsafe { mmap_anonymous(place, len, ProtFlags::READ | ProtFlags::WRITE, flags) }.is_ok()
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
    match previous {
        Some(previous) if action != libc::SIG_DFL && action != libc::SIG_IGN => {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: what was installed with `SA_SIGINFO` is such a function.
                let handler = unsafe {
                    std::mem::transmute::<*const (), Handler>(std::ptr::with_exposed_provenance(
                        action,
                    ))
                };
                handler(signal, info, context);
            } else {
                // SAFETY: what was installed without it is such a function.
                let handler = unsafe {
                    std::mem::transmute::<*const (), extern "C" fn(libc::c_int)>(
                        std::ptr::with_exposed_provenance(action),
                    )
                };
                handler(signal);
            }
        }
        _ => {
            // SAFETY: plain numbers, and a function pointer that may be null: the default action.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: the action lives until the call returns. What has raised the signal raises it again after the handler; one
            // that somebody has sent has to be sent again.
            unsafe {
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
    }
}
