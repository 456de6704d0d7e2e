//! File descriptors that whoever started this process has passed to it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The first number that is not one of the standard streams'.
const FIRST: RawFd = 3;

/// A descriptor of its own for what was passed under `number`; that one stays as it is.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a standard stream, what fcntl(2) says for a number that is not open.
pub fn passed_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a standard stream, or no number of one",
        ));
    }
    // SAFETY: duplicating a number that is not open fails, and changes nothing.
    let own = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_is_open_is_found_and_stays() {
        let file = tempfile::tempfile().unwrap();
        let own = File::from(passed_fd(file.as_raw_fd()).unwrap());
        drop(own);
        file.metadata().unwrap();
        assert!(passed_fd(0).is_err() && passed_fd(-1).is_err() && passed_fd(1 << 20).is_err());
    }
}
