//! Descriptors that a runtime waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Lets the runtime that this is called in wait for a descriptor, which must not block.
///
/// # Errors
/// The runtime cannot wait for such a descriptor, as for a regular file.
///
/// # Panics
/// Outside of a runtime with I/O enabled.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same descriptor, and keeps it open until it is dropped; `AsyncFd` owns
    // it, and takes it off the runtime before it gives it back or drops it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_waited_for_and_a_file_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let near = register(near.into()).unwrap();
            far.write_all(b"x").unwrap();
            drop(near.readable().await.unwrap());
            let mut near = UnixStream::from(near.into_inner());
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
            assert!(register(std::fs::File::open("/proc/self/exe").unwrap().into()).is_err());
        });
    }
}
