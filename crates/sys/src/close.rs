//! The end of a descriptor, and what comes of it.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};

/// Closes a descriptor, and says what close(2) says: some file systems only find out then that what was written is lost, or has
/// no room. It is closed in any case.
///
/// # Errors
/// Those of close(2), but for `EINTR`: nothing is lost with that.
pub fn close(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: it was owned, so that it is open and nobody else closes or uses it.
    if unsafe { libc::close(fd.into_raw_fd()) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        err if err.kind() == io::ErrorKind::Interrupted => Ok(()),
        err => Err(err),
    }
}
