//! Advisory locks on a whole file: open file description locks, `F_OFD_SETLK` of fcntl(2).
//!
//! They belong to the open file, not to the process: closing another descriptor of the same file does not lose
//! them, and two opens within one process exclude each other. They conflict with the traditional record locks,
//! and with the byte locks that QEMU takes.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How a file is to be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// With other readers, but no writer. The file must be open for reading.
    Shared,
    /// With nobody who locks. The file must be open for writing.
    Exclusive,
}

/// Why a file could not be locked.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else holds it.
    Held {
        /// Who, if it is known: open file description locks do not tell.
        pid: Option<u32>,
        /// How they hold it.
        kind: LockKind,
    },
    /// It went wrong otherwise: the file system has no locks, say.
    Failed(io::Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { pid, kind } => {
                let how = match kind {
                    LockKind::Shared => "reading",
                    LockKind::Exclusive => "writing",
                };
                match pid {
                    Some(pid) => write!(f, "process {pid} holds a lock on it, for {how}"),
                    None => write!(f, "another opener holds a lock on it, for {how}"),
                }
            }
            Self::Failed(err) => write!(f, "it cannot be locked: {err}"),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Held { .. } => None,
            Self::Failed(err) => Some(err),
        }
    }
}

/// A lock that is held. Dropping it gives it up at once; closing the file alone may not, as the kernel itself
/// may hold the file for a while, for an io_uring that is being taken down.
#[derive(Debug)]
pub struct Lock(Arc<OwnedFd>);

impl Lock {
    /// Locks the whole file, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] if it conflicts with another's lock.
    pub fn take(file: &Arc<OwnedFd>, kind: LockKind) -> Result<Self, LockError> {
        let mut lock = whole_file(l_type(kind));
        match fcntl(file.as_fd(), libc::F_OFD_SETLK, &mut lock) {
            Ok(()) => Ok(Self(Arc::clone(file))),
            Err(err) if matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                Err(holder(file.as_fd(), kind))
            }
            Err(err) => Err(LockError::Failed(err)),
        }
    }
}

/// Whether another open file has a lock on this file. Asking takes none, so that it disturbs nobody.
///
/// # Errors
/// The file system has no locks.
pub fn is_held(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(lock.l_type != short(libc::F_UNLCK))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If it fails, the lock goes when the file is closed.
        let _ = fcntl(self.0.as_fd(), libc::F_OFD_SETLK, &mut whole_file(libc::F_UNLCK));
    }
}

fn l_type(kind: LockKind) -> libc::c_int {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

/// Who is in the way; by now it may be nobody.
fn holder(file: BorrowedFd<'_>, wanted: LockKind) -> LockError {
    let mut lock = whole_file(l_type(wanted));
    let asked = fcntl(file, libc::F_OFD_GETLK, &mut lock);
    let known = asked.is_ok() && lock.l_type != short(libc::F_UNLCK);
    // A process id of -1 is an open file description lock; 0 a process outside of this namespace.
    let pid = u32::try_from(lock.l_pid).ok().filter(|&pid| known && pid > 0);
    let reads = known && lock.l_type == short(libc::F_RDLCK);
    LockError::Held { pid, kind: if reads { LockKind::Shared } else { LockKind::Exclusive } }
}

fn whole_file(l_type: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: short(l_type),
        l_whence: short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The constants are ints, the fields shorts; all of them are below 4.
fn short(value: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(value).unwrap_or(libc::c_short::MAX)
}

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands that are used take a pointer to a `struct flock`, valid for the call, and write to
    // nothing else.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
