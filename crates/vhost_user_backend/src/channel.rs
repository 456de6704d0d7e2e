//! The control socket: whole messages with their file descriptors, and a way to be woken meanwhile.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use blockyard_vhost_user::wire::{HEADER_LEN, Header, MAX_FDS, Message, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

use crate::backend::Backend;
use crate::device::CommandError;

/// After which time a signal that the kernel has refused is tried again.
const SIGNAL_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Why a session ends.
#[derive(Debug, Error)]
pub(crate) enum Close {
    /// The front-end has hung up, between messages.
    #[error("front-end disconnected")]
    Left,
    /// The server ends.
    #[error("the server is shutting down")]
    Stopped,
    /// The socket is broken, or the front-end has hung up within a message.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// A message that cannot be.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// A message that cannot be now, or not with what was set up before.
    #[error("{0}")]
    Refused(String),
    /// What it had asked for does not end.
    #[error("{0}")]
    Hangs(CommandError),
    /// Memory that it shares with us became shorter, and was needed.
    #[error(
        "the file of its memory became shorter, and what was there is gone; memory that is sealed (QEMU: \
         memory-backend-memfd,seal=on) cannot"
    )]
    MemoryLost,
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
    backend: &'a Backend,
    partial: Partial,
}

/// A message that has come in part.
#[derive(Default)]
struct Partial {
    /// Header and payload, as long as they are known to be.
    bytes: Vec<u8>,
    /// What of it is there.
    filled: usize,
    header: Option<Header>,
    fds: Vec<OwnedFd>,
}

impl<'a> Channel<'a> {
    pub(crate) fn new(socket: UnixStream, backend: &'a Backend) -> Self {
        Self { socket, backend, partial: Partial::default() }
    }

    /// Waits for the socket, or to be woken, or until signals are to be tried again. Says whether the socket is ready.
    ///
    /// # Errors
    /// [`Close::Stopped`] once the server ends.
    pub(crate) fn wait(&self, what: PollFlags) -> Result<bool, Close> {
        let mut fds = {
            let wake = self.backend.wake();
            [PollFd::new(&self.socket, what), PollFd::from_borrowed_fd(wake, PollFlags::IN)]
        };
        let timeout = self.backend.has_late_signals().then_some(&SIGNAL_AGAIN);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(Close::Io(err.into())),
        }
        // Why it was signalled, flags say; the session looks at them before it waits again.
        self.backend.awoke();
        if self.backend.is_stopping() {
            return Err(Close::Stopped);
        }
        Ok(!fds[0].revents().is_empty())
    }

    /// Receives what there is; a message once it is whole. It never waits, so that half a message keeps nothing else up.
    ///
    /// # Errors
    /// [`Close`].
    pub(crate) fn receive(&mut self) -> Result<Option<Incoming>, Close> {
        loop {
            let header = self.partial.header;
            let wanted = HEADER_LEN + header.map_or(0, |header| header.size as usize);
            self.partial.bytes.resize(wanted, 0);
            if self.partial.filled < wanted {
                if !self.receive_some()? {
                    return Ok(None);
                }
                continue;
            }
            let Some(header) = header else {
                let bytes = self.partial.bytes.first_chunk().copied().unwrap_or_default();
                self.partial.header = Some(Header::parse(&bytes)?);
                continue;
            };
            let Partial { bytes, fds, .. } = std::mem::take(&mut self.partial);
            let message = Message::parse(&header, bytes.get(HEADER_LEN..).unwrap_or_default())?;
            let (least, most) = message.fds();
            if !(least..=most).contains(&fds.len()) {
                let (request, count) = (message.request(), fds.len());
                let what = format!("request {request} came with {count} file descriptors");
                return Err(Close::Refused(what));
            }
            return Ok(Some(Incoming { message, need_reply: header.need_reply, fds }));
        }
    }

    /// Receives more of the message; says whether anything was there.
    fn receive_some(&mut self) -> Result<bool, Close> {
        let Partial { bytes, filled, fds, .. } = &mut self.partial;
        let into = bytes.get_mut(*filled..).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&self.socket, &mut [IoSliceMut::new(into)], &mut control, flags);
        let got = match got {
            Ok(got) => got,
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
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
            return Err(if *filled > 0 {
                Close::Io(io::ErrorKind::UnexpectedEof.into())
            } else {
                Close::Left
            });
        }
        *filled += got.bytes;
        Ok(true)
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
