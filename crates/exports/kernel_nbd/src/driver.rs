//! The driver by generic netlink: the family `nbd` (`linux/nbd-netlink.h`).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use blockyard_sys::net::Watch;
use blockyard_sys::netlink::GenericSocket;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;

use crate::device;
use crate::error::{Error, ErrorKind};
use crate::genl::{Attributes, Message, Request, messages};

/// How long the kernel may take to answer. Connecting waits for nobody but the kernel itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the longest answer that is read: the state of some hundreds of devices.
const ANSWER: usize = 32 << 10;
/// `NBD_GENL_VERSION`.
const VERSION: u8 = 1;
/// The driver of all generic netlink (`GENL_ID_CTRL`), and how a family is asked for.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const MCAST_GROUPS: u16 = 7;
const MCAST_NAME: u16 = 1;
const MCAST_ID: u16 = 2;

/// `NBD_CMD_*`.
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const LINK_DEAD: u8 = 4;
    pub(super) const STATUS: u8 = 5;
}

/// `NBD_ATTR_*`, and what is within them.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    pub(super) const SOCK_ITEM: u16 = 1;
    pub(super) const SOCK_FD: u16 = 1;
    pub(super) const DEVICE_ITEM: u16 = 1;
    pub(super) const DEVICE_INDEX: u16 = 1;
    pub(super) const DEVICE_CONNECTED: u16 = 2;
}

/// How a device is to be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its number; the kernel chooses without.
    pub index: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// The unit of its addresses, in bytes: a power of two from 512 to a page.
    pub block_size: u32,
    /// The transmission flags that the server gave.
    pub server_flags: u16,
    /// A request that takes longer ends its connection, and is sent on another. At least a second.
    pub timeout: Duration,
    /// How long what is asked of the device waits for a new connection when none is left.
    pub dead_conn_timeout: Duration,
    /// A mark by which its maker knows it again. It is asked for whenever the device is reconfigured.
    pub identifier: String,
}

/// The kernel's NBD driver.
pub struct Driver {
    socket: GenericSocket,
    family: u16,
    group: Option<u32>,
    sequence: u32,
}

impl Driver {
    /// The driver, if it speaks netlink here (Linux 4.12 or newer).
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where it is not there.
    pub fn open() -> Result<Self, Error> {
        let failed = |err| Error::io("cannot reach the NBD driver of the kernel by netlink", err);
        let socket = GenericSocket::new().map_err(failed)?;
        socket.set_patience(PATIENCE).map_err(failed)?;
        let mut driver = Self { socket, family: CONTROL, group: None, sequence: 0 };
        let (family, group) = match driver.find_family("nbd") {
            Ok(Some(found)) => found,
            Err(err) if err.raw_os_error() != Some(Errno::NOENT.raw_os_error()) => {
                return Err(failed(err));
            }
            _ => {
                return Err(if device::any() {
                    let what = "the NBD driver of this kernel has no netlink interface";
                    Error::new(ErrorKind::Unavailable, what)
                } else {
                    not_loaded()
                });
            }
        };
        (driver.family, driver.group) = (family, group);
        Ok(driver)
    }

    fn find_family(&mut self, name: &str) -> io::Result<Option<(u16, Option<u32>)>> {
        let request = self.request(CONTROL, GET_FAMILY, 1).text(FAMILY_NAME, name);
        self.ask(request, |attributes| {
            let group = attributes.nested(MCAST_GROUPS).and_then(|groups| {
                // Each is in an attribute of its own number.
                let mut groups = groups.map(|(_, group)| Attributes::within(group));
                groups
                    .find(|group| group.text(MCAST_NAME) == Some("nbd_mc_group"))
                    .and_then(|group| group.u32(MCAST_ID))
            });
            attributes.u16(FAMILY_ID).map(|family| (family, group))
        })
    }

    /// Makes a device of connections, each past its handshake; says its number. The kernel keeps the sockets.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the number is in use, [`ErrorKind::NotPermitted`], or what else the driver says.
    pub fn connect(&mut self, setup: &Setup, sockets: &[BorrowedFd<'_>]) -> Result<u32, Error> {
        let mut request = self.request(self.family, command::CONNECT, VERSION);
        if let Some(index) = setup.index {
            request = request.u32(attribute::INDEX, index);
        }
        let request = request
            .u64(attribute::SIZE_BYTES, setup.size)
            .u64(attribute::BLOCK_SIZE_BYTES, setup.block_size.into())
            .u64(attribute::TIMEOUT, setup.timeout.as_secs().max(1))
            .u64(attribute::DEAD_CONN_TIMEOUT, setup.dead_conn_timeout.as_secs())
            .u64(attribute::SERVER_FLAGS, setup.server_flags.into())
            .text(attribute::BACKEND_IDENTIFIER, &setup.identifier);
        let request = with_sockets(request, sockets);
        let failed = |err| Error::io("the NBD driver of the kernel refused the connections", err);
        let index = self.ask(request, |attributes| attributes.u32(attribute::INDEX));
        index
            .map_err(failed)?
            .or(setup.index)
            .ok_or_else(|| failed(io::Error::other("the kernel named no device")))
    }

    /// Ends a device: what is asked of it fails. What it had asked and got no answer to does, too.
    ///
    /// # Errors
    /// What the driver says.
    pub fn disconnect(&mut self, index: u32) -> Result<(), Error> {
        let request = self.request(self.family, command::DISCONNECT, VERSION);
        let request = request.u32(attribute::INDEX, index);
        self.ask(request, |_| None::<()>)
            .map(drop)
            .map_err(|err| failed(index, "disconnected", err))
    }

    /// Gives a device connections in the place of dead ones; as many as are dead are taken.
    ///
    /// # Errors
    /// What the driver says: it is not connected, or not that one.
    pub fn reconnect(
        &mut self,
        index: u32,
        identifier: &str,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let request = self.request(self.family, command::RECONFIGURE, VERSION);
        let request =
            request.u32(attribute::INDEX, index).text(attribute::BACKEND_IDENTIFIER, identifier);
        self.ask(with_sockets(request, sockets), |_| None::<()>)
            .map(drop)
            .map_err(|err| failed(index, "given new connections", err))
    }

    /// Changes the size of a device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn resize(&mut self, index: u32, identifier: &str, bytes: u64) -> Result<(), Error> {
        let request = self.request(self.family, command::RECONFIGURE, VERSION);
        let request = request
            .u32(attribute::INDEX, index)
            .u64(attribute::SIZE_BYTES, bytes)
            .text(attribute::BACKEND_IDENTIFIER, identifier);
        self.ask(request, |_| None::<()>).map(drop).map_err(|err| failed(index, "resized", err))
    }

    /// Whether a device is connected; none if there is no such device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn status(&mut self, index: u32) -> Result<Option<bool>, Error> {
        let request = self.request(self.family, command::STATUS, VERSION);
        let request = request.u32(attribute::INDEX, index);
        let connected = self.ask(request, |attributes| {
            let mut items = attributes.nested(attribute::DEVICE_LIST)?.all(attribute::DEVICE_ITEM);
            items.find_map(|item| {
                let item = Attributes::within(item);
                (item.u32(attribute::DEVICE_INDEX)? == index)
                    .then(|| item.u8(attribute::DEVICE_CONNECTED).unwrap_or(0) != 0)
            })
        });
        connected.map_err(|err| failed(index, "asked for its state", err))
    }

    /// Listens for connections that die from now on. Must be called on a runtime that does I/O.
    ///
    /// # Errors
    /// What the system says.
    pub fn links(&self) -> Result<Links, Error> {
        let listen = || {
            let socket = GenericSocket::new()?;
            let none = || io::Error::other("the driver has no multicast group");
            socket.join(self.group.ok_or_else(none)?)?;
            let socket = socket.into_fd();
            rustix::io::ioctl_fionbio(&socket, true)?;
            Watch::new(socket, Interest::READABLE)
        };
        let socket =
            listen().map_err(|err| Error::io("cannot subscribe to dead connections", err))?;
        Ok(Links { socket, family: self.family })
    }

    fn request(&mut self, family: u16, command: u8, version: u8) -> Request {
        self.sequence = self.sequence.wrapping_add(1);
        Request::new(family, command, version, self.sequence)
    }

    /// Sends a request, and reads until it has ended; `answer` looks at what comes before that.
    fn ask<T>(
        &mut self,
        request: Request,
        answer: impl Fn(Attributes<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        self.socket.send(&request.build())?;
        let mut buffer = vec![0; ANSWER];
        let mut found = None;
        loop {
            let count = self.socket.receive(&mut buffer)?;
            for message in messages(&buffer[..count]) {
                match message {
                    Message::Ended { sequence, errno } if sequence == self.sequence => {
                        return match errno {
                            0 => Ok(found),
                            errno => Err(io::Error::from_raw_os_error(errno)),
                        };
                    }
                    Message::Family { sequence, attributes, .. } if sequence == self.sequence => {
                        found = answer(attributes).or(found);
                    }
                    // An answer to one that was given up.
                    _ => {}
                }
            }
        }
    }
}

fn with_sockets(request: Request, sockets: &[BorrowedFd<'_>]) -> Request {
    let mut request = request.open(attribute::SOCKETS);
    for socket in sockets {
        let number = socket.as_raw_fd().unsigned_abs();
        request = request.open(attribute::SOCK_ITEM).u32(attribute::SOCK_FD, number).close();
    }
    request.close()
}

/// There is no driver at all.
pub(crate) fn not_loaded() -> Error {
    Error::new(ErrorKind::Unavailable, "this kernel has no NBD driver loaded")
        .help("run: modprobe nbd")
}

fn failed(index: u32, what: &str, err: io::Error) -> Error {
    Error::io(format!("{} cannot be {what}", device::path(index)), err)
}

/// News of connections that died.
#[derive(Debug)]
pub struct Links {
    socket: Watch,
    family: u16,
}

impl Links {
    /// Waits for the next; says of which device. None: news were lost, so that any may be.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn dead(&self) -> io::Result<Option<u32>> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| {
                Ok(recv(socket.get_ref().as_fd(), &mut buffer, RecvFlags::empty())?.0)
            });
            let count = match received {
                Ok(Ok(count)) => count,
                Ok(Err(err)) if err.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    return Ok(None);
                }
                Ok(Err(err)) => return Err(err),
                Err(_would_block) => continue,
            };
            let dead = messages(&buffer[..count]).find_map(|message| match message {
                Message::Family { family, command: command::LINK_DEAD, attributes, .. }
                    if family == self.family =>
                {
                    attributes.u32(attribute::INDEX)
                }
                _ => None,
            });
            if dead.is_some() {
                return Ok(dead);
            }
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("family", &self.family).finish_non_exhaustive()
    }
}
