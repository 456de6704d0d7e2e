//! Signals events of other processes without ever waiting for them.
//!
//! A write to an eventfd(2) waits while its count is full, unless its description is non-blocking. Count and flags are shared
//! with whoever passed it to us, who may fill it and clear the flag between any two instructions of ours: no check helps, and
//! no write can be told not to wait (RWF_NOWAIT is refused). The kernel's own way to signal an eventfd neither waits nor looks
//! at flags; it is taken when an asynchronous operation with `IOCB_FLAG_RESFD` ends (io_submit(2)). So nothing is read here, and
//! the event is signalled about that.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::PeerEvent;

/// Operations that the context is to hold, of which the system has a limited number (`fs.aio-max-nr`). The kernel makes room for
/// some more, four for each processor at least (fs/aio.c, `ioctx_alloc`).
const CONTEXT_EVENTS: libc::c_long = 1;
/// Operations that have ended, as many as are taken off the context at a time.
const REAPED: usize = 64;
/// How often an operation is tried for which there was no room, or no memory.
const TRIES: usize = 4;

/// Those that several share, by their threads.
static SHARED: Mutex<BTreeMap<Option<usize>, Weak<Signaller>>> = Mutex::new(BTreeMap::new());

/// `struct iocb` (include/uapi/linux/aio_abi.h). Which of the first two words is the key depends on the byte order.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key_and_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}
const _: () = assert!(size_of::<Iocb>() == 64);

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent([u64; 4]);
const _: () = assert!(size_of::<IoEvent>() == 32);

/// See the module. One may be used by several threads, which then share a cache line.
#[derive(Debug)]
pub struct Signaller {
    context: libc::c_ulong,
    /// An empty file, to read nothing from.
    file: OwnedFd,
}

impl Signaller {
    /// The one of a queue thread, by its number, or the one for all other threads: however many signal there share it, as the
    /// system has a limited number.
    ///
    /// # Errors
    /// As [`Signaller::new`].
    pub fn of_thread(number: Option<usize>) -> io::Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shared.get(&number).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let made = Arc::new(Self::new()?);
        shared.insert(number, Arc::downgrade(&made));
        Ok(made)
    }

    /// Makes one.
    ///
    /// # Errors
    /// What io_setup(2) says, with what to do about it: all contexts of the system are used up, or the kernel has none.
    pub fn new() -> io::Result<Self> {
        let file = memfd_create("blockyard-signaller", MemfdFlags::CLOEXEC)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes a number to `context`, which lives until the call returns.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, CONTEXT_EVENTS, &raw mut context) };
        if done == 0 {
            Ok(Self { context, file })
        } else {
            Err(explain(io::Error::last_os_error()))
        }
    }

    /// Makes an event happen. It never waits. `false`: the kernel refuses it now, for lack of memory, and it is to be
    /// tried again.
    #[must_use]
    pub fn signal(&self, event: &PeerEvent) -> bool {
        self.submit(event)
            || (0..TRIES).any(|_| {
                // The context may be full of what has ended; others may fill it again.
                self.reap();
                self.submit(event)
            })
    }

    fn submit(&self, event: &PeerEvent) -> bool {
        let number = |fd: &dyn AsRawFd| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX);
        let mut operation = Iocb {
            opcode: IOCB_CMD_PREAD,
            file: number(&self.file),
            flags: IOCB_FLAG_RESFD,
            event: number(event),
            ..Iocb::default()
        };
        let mut list = [&raw mut operation];
        let one: libc::c_long = 1;
        // SAFETY: the list and the operation live until the call returns, and the kernel needs neither later: it reads no bytes
        // into no buffer. The context is one of io_setup(2).
        let taken =
            unsafe { libc::syscall(libc::SYS_io_submit, self.context, one, list.as_mut_ptr()) };
        taken == 1
    }

    fn reap(&self) {
        let mut ended = [IoEvent::default(); REAPED];
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes that many entries at most, and both live until the call returns.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                REAPED,
                ended.as_mut_ptr(),
                &raw mut now,
            )
        };
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        // SAFETY: the context is one of io_setup(2), and is used no more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn explain(err: io::Error) -> io::Error {
    let what = match err.raw_os_error() {
        Some(libc::EAGAIN) => {
            "the system's contexts for asynchronous I/O are used up, of which signals to guests need one for each thread; allow \
             more: sysctl fs.aio-max-nr=1048576"
        }
        Some(libc::ENOSYS) => {
            "this kernel has no asynchronous I/O (CONFIG_AIO), which signals to guests need"
        }
        _ => return err,
    };
    io::Error::new(err.kind(), what)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

    use super::*;

    fn count(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn every_signal_counts() {
        let signaller = Signaller::new().unwrap();
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        let ours = PeerEvent::from_fd(theirs.try_clone().unwrap()).unwrap();
        let many = 100 * REAPED;
        (0..many).for_each(|_| assert!(signaller.signal(&ours)));
        assert_eq!(count(&theirs), many as u64);
    }

    /// Its maker has filled it, and made it block: a write would never return.
    #[test]
    fn one_that_is_full_and_blocks_keeps_nobody() {
        let signaller = Signaller::new().unwrap();
        let theirs = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let ours = PeerEvent::from_fd(theirs.try_clone().unwrap()).unwrap();
        assert!(signaller.signal(&ours));
        rustix::fs::fcntl_setfl(&theirs, rustix::fs::OFlags::empty()).unwrap();
        rustix::io::write(&theirs, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        (0..3).for_each(|_| assert!(signaller.signal(&ours)));
        let mut fds = [PollFd::new(&theirs, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec::default())).unwrap(), 1);
        assert!(count(&theirs) >= u64::MAX - 1);
        assert!(signaller.signal(&ours));
        assert_eq!(count(&theirs), 1, "it is usable afterwards");
    }

    #[test]
    fn several_threads_share_one() {
        let signaller = Signaller::of_thread(Some(usize::MAX)).unwrap();
        let again = Signaller::of_thread(Some(usize::MAX)).unwrap();
        assert!(Arc::ptr_eq(&signaller, &again));
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        let ours = PeerEvent::from_fd(theirs.try_clone().unwrap()).unwrap();
        let refused: usize = std::thread::scope(|scope| {
            let signal = || (0..2000).filter(|_| !signaller.signal(&ours)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(signal)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // One that others keep from the context is told of it.
        assert_eq!(count(&theirs), 8000 - refused as u64);
    }

    #[test]
    fn who_is_refused_is_told() {
        let signaller = Signaller::new().unwrap();
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        let ours = PeerEvent::from_fd(theirs.try_clone().unwrap()).unwrap();
        // SAFETY: the context is one of io_setup(2); what uses it later is told that there is none.
        unsafe { libc::syscall(libc::SYS_io_destroy, signaller.context) };
        assert!(!signaller.signal(&ours));
        let said = explain(io::Error::from_raw_os_error(libc::EAGAIN)).to_string();
        assert!(said.contains("sysctl fs.aio-max-nr="), "{said}");
    }
}
