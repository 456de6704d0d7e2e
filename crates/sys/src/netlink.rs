//! Generic netlink sockets (netlink(7)): messages to the kernel and from it. What is in them is for others.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, sockopt};

/// `SOL_NETLINK`.
const LEVEL: libc::c_int = 270;
/// `linux/netlink.h`.
const ADD_MEMBERSHIP: libc::c_int = 1;

/// A socket of the family `NETLINK_GENERIC`.
#[derive(Debug)]
pub struct GenericSocket(OwnedFd);

impl GenericSocket {
    /// A socket that the kernel answers on.
    ///
    /// # Errors
    /// What socket(2) and bind(2) say.
    pub fn new() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_GENERIC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else knows.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: all zeroes is an address: the kernel chooses the port, and no groups are joined.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = u16::try_from(libc::AF_NETLINK).unwrap_or(0);
        let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_nl>()).unwrap_or(0);
        // SAFETY: `address` is of that length, and valid for the call.
        let bound = unsafe { libc::bind(fd, std::ptr::from_ref(&address).cast(), len) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    /// Receives what the kernel tells a group.
    ///
    /// # Errors
    /// `EINVAL` if there is no such group, `EPERM` if not all may.
    pub fn join(&self, group: u32) -> io::Result<()> {
        let len = libc::socklen_t::try_from(size_of::<u32>()).unwrap_or(0);
        // SAFETY: the option reads one integer of that length, valid for the call.
        let joined = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                LEVEL,
                ADD_MEMBERSHIP,
                std::ptr::from_ref(&group).cast(),
                len,
            )
        };
        if joined < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// How long [`GenericSocket::receive`] waits.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(patience))?)
    }

    /// Sends messages to the kernel.
    ///
    /// # Errors
    /// What send(2) says.
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        // All or nothing.
        Ok(rustix::net::send(&self.0, messages, SendFlags::empty()).map(drop)?)
    }

    /// Receives messages: as many bytes of `buffer` as are said.
    ///
    /// # Errors
    /// What recv(2) says: `EAGAIN` after too long, `ENOBUFS` if some were lost.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty())
        })
        .map(|(count, _)| count)?)
    }

    /// The descriptor, to be watched.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for GenericSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
