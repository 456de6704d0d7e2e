//! File systems that this process serves to the kernel: the device that its requests come by, and mounts
//! (fuse(4); Documentation/filesystems/fuse of Linux).
//!
//! Nobody here looks at a path below a mount of this process: whoever waits for himself can neither end nor be killed.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::net::{Gather, Scatter};

mod fusermount;
mod mount;
mod mountinfo;

pub use mount::{MountOptions, Unmount, mount, unmount, unmount_dead};
pub use mountinfo::{MountInfo, mounts, reached};

/// Where the driver is.
const DEVICE: &str = "/dev/fuse";
/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const CLONE: u32 = 0x8004_e500;

/// One queue of a mounted file system: requests are read from it, and answered by it. It never waits, unless it is told to
/// ([`Channel::blocking`]).
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// One that belongs to no file system yet.
    ///
    /// # Errors
    /// What open(2) says: `ENOENT` where the kernel has no FUSE.
    pub(crate) fn open() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
        Ok(Self(file.into()))
    }

    /// A descriptor that carries the same messages, whole: the device as another process has opened it, or one end of a
    /// pair of sockets of the kind `SOCK_SEQPACKET`.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn of(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(fd))
    }

    /// Another queue of the same file system. A request is answered by the one that it was read from.
    ///
    /// # Errors
    /// What the driver says: descriptors are used up, say.
    pub fn another(&self) -> io::Result<Self> {
        let new = Self::open()?;
        let own = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: the command reads a number of 32 bits, which lives until the call returns.
        let done = unsafe { libc::ioctl(new.0.as_raw_fd(), CLONE as _, &raw const own) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(new) }
    }

    /// Reads wait for a request from now on. Of all who wait for one of a file system, it wakes one.
    ///
    /// # Errors
    /// What the system says.
    pub fn blocking(self) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&self.0, false)?;
        Ok(self)
    }

    /// Reads a request, whole, and says how many bytes it has.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none, `ENOENT` if the one that there was is gone, `EIO` if there is no
    /// room for it, which ends it; `ENODEV` if the file system is not mounted any more.
    pub fn read(&self, places: Scatter<'_>) -> io::Result<usize> {
        places.read(self.0.as_fd())
    }

    /// Writes an answer or a notification, whole.
    ///
    /// # Errors
    /// `ENOENT` if nobody waits for it any more, `ENODEV` if the file system is not mounted any more; `EINVAL` if it is none.
    pub fn write(&self, message: Gather<'_>) -> io::Result<()> {
        // The driver takes all or nothing.
        message.write(self.0.as_fd()).map(drop)
    }

    /// Waits until there may be a request; says whether there may be, or too much time has gone by.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        Ok(poll(&mut fds, Some(&patience))? > 0)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
