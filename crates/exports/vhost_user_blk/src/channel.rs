//! The control socket: whole messages with their file descriptors, and a way to be woken meanwhile.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use blockyard_vhost_user::wire::{HEADER_LEN, Header, MAX_FDS, Message, WireError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

use crate::device::Device;

/// Why a session ends.
#[derive(Debug, Error)]
pub(crate) enum Close {
    /// The front-end has hung up, between messages.
    #[error("the front-end has left")]
    Left,
    /// The server ends.
    #[error("the server ends")]
    Stopped,
    /// The socket is broken, or the front-end has hung up within a message.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// A message that cannot be.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// A message that cannot be now, or not with what was set up before.
    #[error("{0}")]
    Refused(String),
}

/// A message, and what came with it.
pub(crate) struct Incoming {
    pub(crate) message: Message,
    pub(crate) need_reply: bool,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The socket of a front-end.
pub(crate) struct Channel<'a> {
    socket: UnixStream,
    device: &'a Device,
}

impl<'a> Channel<'a> {
    pub(crate) fn new(socket: UnixStream, device: &'a Device) -> Self {
        Self { socket, device }
    }

    /// Waits for the socket, or to be woken. Says whether the socket is ready.
    ///
    /// # Errors
    /// [`Close::Stopped`] once the server ends.
    pub(crate) fn wait(&self, what: PollFlags) -> Result<bool, Close> {
        let mut fds =
            [PollFd::new(&self.socket, what), PollFd::new(&self.device.wake, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(Close::Io(err.into())),
        }
        // Why it was signalled, flags say.
        self.device.wake.clear();
        if self.device.is_stopping() {
            return Err(Close::Stopped);
        }
        Ok(!fds[0].revents().is_empty())
    }

    /// Receives the message that has begun to arrive.
    ///
    /// # Errors
    /// [`Close`].
    pub(crate) fn receive(&self) -> Result<Incoming, Close> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER_LEN];
        self.receive_all(&mut header, &mut fds)?;
        let header = Header::parse(&header)?;
        let mut payload = vec![0; header.size as usize];
        self.receive_all(&mut payload, &mut fds).map_err(|close| match close {
            Close::Left => Close::Io(io::ErrorKind::UnexpectedEof.into()),
            close => close,
        })?;
        let message = Message::parse(&header, &payload)?;
        let (least, most) = message.fds();
        if !(least..=most).contains(&fds.len()) {
            let (request, count) = (message.request(), fds.len());
            let what = format!("request {request} came with {count} file descriptors");
            return Err(Close::Refused(what));
        }
        Ok(Incoming { message, need_reply: header.need_reply, fds })
    }

    fn receive_all(&self, mut into: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<(), Close> {
        let mut begun = false;
        while !into.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let got = recvmsg(&self.socket, &mut [IoSliceMut::new(into)], &mut control, flags);
            let got = match got {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    // What is to be done for the one who woke us is done between messages.
                    self.wait(PollFlags::IN)?;
                    continue;
                }
                Err(err) => return Err(Close::Io(err.into())),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    fds.extend(passed);
                }
            }
            if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
                return Err(Close::Refused("a message with too many file descriptors".into()));
            }
            if got.bytes == 0 {
                return Err(if begun {
                    Close::Io(io::ErrorKind::UnexpectedEof.into())
                } else {
                    Close::Left
                });
            }
            begun = true;
            into = &mut into[got.bytes..];
        }
        Ok(())
    }

    /// Sends a message, and a file descriptor with it.
    ///
    /// # Errors
    /// [`Close`].
    pub(crate) fn send(&self, mut bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Close> {
        let mut fd = fd;
        while !bytes.is_empty() {
            match send_some(self.socket.as_fd(), bytes, fd) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    fd = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => _ = self.wait(PollFlags::OUT)?,
                Err(err) => return Err(Close::Io(err.into())),
            }
        }
        Ok(())
    }
}

/// Sends what there is room for.
pub(crate) fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}
