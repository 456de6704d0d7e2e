//! The ioctls of the kernel's NBD client (`linux/nbd.h`). Each concerns a device file, `/dev/nbdN`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(0xab, number)`.
const fn io(number: u32) -> libc::Ioctl {
    #[allow(clippy::cast_lossless, reason = "another type with another libc")]
    let command = (0xab << 8 | number) as libc::Ioctl;
    command
}

const SET_SOCK: libc::Ioctl = io(0);
const SET_BLKSIZE: libc::Ioctl = io(1);
const DO_IT: libc::Ioctl = io(3);
const CLEAR_SOCK: libc::Ioctl = io(4);
const CLEAR_QUE: libc::Ioctl = io(5);
const SET_SIZE_BLOCKS: libc::Ioctl = io(7);
const DISCONNECT: libc::Ioctl = io(8);
const SET_TIMEOUT: libc::Ioctl = io(9);
const SET_FLAGS: libc::Ioctl = io(10);

/// Gives it a connection that is past its handshake.
///
/// # Errors
/// `EBUSY` if another sets the device up.
pub fn set_socket(device: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    call(device, SET_SOCK, u64::from(socket.as_raw_fd().unsigned_abs()))
}

/// Sets the unit of its size, in bytes.
///
/// # Errors
/// `EINVAL` for one that cannot be.
pub fn set_block_size(device: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    call(device, SET_BLKSIZE, bytes.into())
}

/// Sets its size in those units.
///
/// # Errors
/// What the driver says.
pub fn set_size_blocks(device: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    call(device, SET_SIZE_BLOCKS, blocks)
}

/// Sets how long a request may take.
///
/// # Errors
/// What the driver says.
pub fn set_timeout(device: BorrowedFd<'_>, seconds: u64) -> io::Result<()> {
    call(device, SET_TIMEOUT, seconds)
}

/// Says what the server can do: the transmission flags of the protocol.
///
/// # Errors
/// What the driver says.
pub fn set_flags(device: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    call(device, SET_FLAGS, flags)
}

/// Runs the connection: returns when it has ended.
///
/// # Errors
/// Why it ended, if nobody asked for it.
pub fn do_it(device: BorrowedFd<'_>) -> io::Result<()> {
    call(device, DO_IT, 0)
}

/// Forgets its connections: what is asked of it fails.
///
/// # Errors
/// What the driver says.
pub fn clear_socket(device: BorrowedFd<'_>) -> io::Result<()> {
    call(device, CLEAR_SOCK, 0)
}

/// Fails what has been asked and not answered.
///
/// # Errors
/// What the driver says.
pub fn clear_queue(device: BorrowedFd<'_>) -> io::Result<()> {
    call(device, CLEAR_QUE, 0)
}

/// Says goodbye to the server.
///
/// # Errors
/// What the driver says.
pub fn disconnect(device: BorrowedFd<'_>) -> io::Result<()> {
    call(device, DISCONNECT, 0)
}

fn call(device: BorrowedFd<'_>, command: libc::Ioctl, argument: u64) -> io::Result<()> {
    let argument = libc::c_ulong::try_from(argument)
        .map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: none of these commands touches memory of ours: the argument is a number.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), command, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `linux/nbd.h` has them.
    #[test]
    fn commands_have_the_numbers_of_the_header() {
        let numbers = [SET_SOCK, SET_BLKSIZE, DO_IT, CLEAR_SOCK, CLEAR_QUE, SET_SIZE_BLOCKS];
        assert_eq!(numbers, [0xab00, 0xab01, 0xab03, 0xab04, 0xab05, 0xab07]);
        assert_eq!([DISCONNECT, SET_TIMEOUT, SET_FLAGS], [0xab08, 0xab09, 0xab0a]);
    }
}
