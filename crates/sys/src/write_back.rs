//! A process that the kernel writes back through: it serves a disk of the very machine that it runs on.
//!
//! When memory is short, the kernel writes to that disk to get some back, and waits for the process. If the process then
//! asked for memory in a way that waits for such a write, or for a page of its own that was taken from it, both would wait for
//! ever.

use std::io;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// `linux/prctl.h`, Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
const PR_GET_IO_FLUSHER: libc::c_int = 58;

/// The calling thread, and all that are started from it, get memory without waiting for writes.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`, `EINVAL` before Linux 5.6.
pub fn set_io_flusher() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no memory is involved.
    let set = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether that is so for the calling thread.
///
/// # Errors
/// As those of [`set_io_flusher`].
pub fn is_io_flusher() -> io::Result<bool> {
    let unused: libc::c_ulong = 0;
    // SAFETY: no memory is involved.
    let is = unsafe { libc::prctl(PR_GET_IO_FLUSHER, unused, unused, unused, unused) };
    if is < 0 { Err(io::Error::last_os_error()) } else { Ok(is == 1) }
}

/// Keeps all pages of the process in memory: those that it has, and others from their first use on.
///
/// # Errors
/// `EPERM` without `CAP_IPC_LOCK` where there is a limit (`RLIMIT_MEMLOCK`): what is mapped later would fail at that.
pub fn lock_memory() -> io::Result<()> {
    let may = capabilities(None)?.effective.contains(CapabilitySet::IPC_LOCK);
    if !may && getrlimit(Resource::Memlock).current.is_some() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: no memory is read or written, and nothing that is mapped changes.
    let locked = unsafe { libc::mlockall(flags) };
    if locked < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the right to it, as in many containers, all say so.
    #[test]
    fn threads_inherit_it_and_those_that_were_there_before_do_not_have_it() {
        let may = capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE);
        let now = || is_io_flusher().map_err(|err| err.raw_os_error());
        let inherited = std::thread::spawn(move || {
            assert_eq!(set_io_flusher().is_ok(), may);
            (now(), std::thread::spawn(now).join().unwrap())
        });
        let inherited = inherited.join().unwrap();
        if may {
            assert_eq!((inherited, now()), ((Ok(true), Ok(true)), Ok(false)));
        } else {
            let refused = Err(Some(libc::EPERM));
            assert_eq!((inherited, now()), ((refused, refused), refused));
        }
    }
}
