//! Advisory locks on a whole file: open file description locks, `F_OFD_SETLK` of fcntl(2).
//!
//! They belong to the open file, not to the process: closing another descriptor of the same file does not lose
//! them, and two opens within one process exclude each other. They conflict with the traditional record locks.
//!
//! QEMU never locks for writing. It holds read locks on a byte for each permission that it has, from 100 on, and for each
//! that it does not let others have, from 200 on, and looks with `F_OFD_GETLK` who holds those that it minds
//! (block/file-posix.c, `raw_check_lock_bytes`). So do readers here: they hold QEMU's bytes of a reader, and look for its
//! writers. A writer's lock covers all of them.

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
        /// By the bytes that QEMU locks.
        qemu: bool,
    },
    /// It went wrong otherwise: the file system has no locks, say.
    Failed(io::Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { kind, qemu: true, .. } => {
                let how = match kind {
                    LockKind::Shared => "reads",
                    LockKind::Exclusive => "writes to",
                };
                write!(f, "QEMU {how} it")
            }
            Self::Held { pid, kind, qemu: false } => {
                let how = match kind {
                    LockKind::Shared => "reading",
                    LockKind::Exclusive => "writing",
                };
                match pid {
                    Some(pid) => write!(f, "process {pid} holds a lock on it, for {how}"),
                    None => write!(f, "another opener holds a lock on it, for {how}"),
                }
            }
            Self::Failed(err) => write!(f, "locking failed: {err}"),
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
    /// Locks the file, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] if it conflicts with another's lock.
    pub fn take(file: &Arc<OwnedFd>, kind: LockKind) -> Result<Self, LockError> {
        // Given up again if one of the steps fails.
        let taken = Self(Arc::clone(file));
        let ranges: &[_] = match kind {
            LockKind::Shared => &AS_A_READER,
            LockKind::Exclusive => &[WHOLE_FILE],
        };
        for &range in ranges {
            match fcntl(file.as_fd(), libc::F_OFD_SETLK, &mut lock_on(range, l_type(kind))) {
                Ok(()) => {}
                Err(err) if matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                    return Err(holder(file.as_fd(), kind));
                }
                Err(err) => return Err(LockError::Failed(err)),
            }
        }
        // As QEMU does: first locked, then looked, so that of two at once not both miss the other.
        if kind == LockKind::Shared && is_minded_by_readers(file.as_fd()) {
            return Err(LockError::Held { pid: None, kind: LockKind::Exclusive, qemu: true });
        }
        Ok(taken)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If it fails, the lock goes when the file is closed.
        let _ = fcntl(self.0.as_fd(), libc::F_OFD_SETLK, &mut whole_file(libc::F_UNLCK));
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

/// Start and length; a length of 0 reaches to the end, wherever that is.
type Bytes = (i64, i64);

const WHOLE_FILE: Bytes = (0, 0);
/// QEMU's bytes: `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE`, and the numbers of `BLK_PERM_CONSISTENT_READ`,
/// `BLK_PERM_WRITE` and `BLK_PERM_RESIZE` (include/block/block-common.h).
const HAS: i64 = 100;
const WITHHOLDS: i64 = 200;
const QEMU_END: i64 = 300;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// What a reader locks: that it reads, and lets nobody write or resize. The first range is also what a writer of ours
/// meets.
const AS_A_READER: [Bytes; 3] =
    [(0, HAS + READ + 1), (WITHHOLDS + WRITE, 1), (WITHHOLDS + RESIZE, 1)];

/// Whether QEMU writes to the file, or lets nobody read it. Whoever has locked the whole file for reading, as others do, is a
/// reader.
fn is_minded_by_readers(file: BorrowedFd<'_>) -> bool {
    let bytes = [HAS + WRITE, HAS + RESIZE, WITHHOLDS + READ];
    bytes.into_iter().any(|byte| lock_held_on(file, byte).is_some_and(|lock| is_qemus(&lock)))
}

/// Whether a lock covers bytes of QEMU's and no others.
fn is_qemus(lock: &libc::flock) -> bool {
    let end = lock.l_start.saturating_add(lock.l_len);
    lock.l_start >= HAS && lock.l_len > 0 && end <= QEMU_END
}

/// The lock of another on a byte, of either kind.
fn lock_held_on(file: BorrowedFd<'_>, byte: i64) -> Option<libc::flock> {
    let mut lock = lock_on((byte, 1), libc::F_WRLCK);
    fcntl(file, libc::F_OFD_GETLK, &mut lock).ok()?;
    (lock.l_type != short(libc::F_UNLCK)).then_some(lock)
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
    let qemu = known && is_qemus(&lock);
    let reads = if qemu {
        [HAS + WRITE, HAS + RESIZE].into_iter().all(|byte| lock_held_on(file, byte).is_none())
    } else {
        known && lock.l_type == short(libc::F_RDLCK)
    };
    LockError::Held { pid, kind: if reads { LockKind::Shared } else { LockKind::Exclusive }, qemu }
}

fn whole_file(l_type: libc::c_int) -> libc::flock {
    lock_on(WHOLE_FILE, l_type)
}

fn lock_on((l_start, l_len): Bytes, l_type: libc::c_int) -> libc::flock {
    libc::flock { l_type: short(l_type), l_whence: short(libc::SEEK_SET), l_start, l_len, l_pid: 0 }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_on_the_whole_file_for_reading_is_no_writer_of_qemus() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || Arc::new(OwnedFd::from(std::fs::File::open(file.path()).unwrap()));
        let other = open();
        let mut whole = whole_file(libc::F_RDLCK);
        fcntl(other.as_fd(), libc::F_OFD_SETLK, &mut whole).unwrap();
        Lock::take(&open(), LockKind::Shared).unwrap();
        let writes = lock_on((HAS + WRITE, 1), libc::F_RDLCK);
        fcntl(other.as_fd(), libc::F_OFD_SETLK, &mut whole_file(libc::F_UNLCK)).unwrap();
        fcntl(other.as_fd(), libc::F_OFD_SETLK, &mut { writes }).unwrap();
        let refused = Lock::take(&open(), LockKind::Shared).unwrap_err();
        assert_eq!(refused.to_string(), "QEMU writes to it");
    }
}
