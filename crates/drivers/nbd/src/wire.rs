//! A socket before its transmission phase: connected, and asked and answered without blocking.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use blockyard_nbd::uri::Transport;
use blockyard_nbd::wire::HeaderStyle;
use blockyard_sys::net::Watch;
use socket2::{Domain, SockAddr, SockRef, Type};
use tokio::io::Interest;

use crate::commands;
use crate::socket::Plain;
use crate::tls::Session;

/// Bytes that are received at a time before the transmission phase.
const RECEIVE_LEN: usize = 4096;

/// `connect(2)` goes on by itself (`include/uapi/asm-generic/errno.h`).
const EINPROGRESS: i32 = 115;

/// What a socket is waited for.
pub(crate) const BOTH_WAYS: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Connects.
pub(super) async fn connect(transport: &Transport) -> io::Result<OwnedFd> {
    match transport {
        Transport::Tcp { host, port } => {
            let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
            Ok(stream.into_std()?.into())
        }
        Transport::Unix { socket } => {
            // Which may be longer than an address can be.
            let path = blockyard_sys::ShortPath::of(socket)?;
            let stream = tokio::net::UnixStream::connect(&path).await?;
            Ok(stream.into_std()?.into())
        }
        Transport::Vsock { cid, port } => connect_vsock(*cid, *port).await,
    }
}

async fn connect_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = socket2::Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::vsock(cid, port)) {
        Err(err) if err.raw_os_error() != Some(EINPROGRESS) => return Err(err),
        _ => {}
    }
    let fd = Watch::new(socket.into(), BOTH_WAYS)?;
    drop(fd.writable().await?);
    match SockRef::from(fd.get_ref()).take_error()? {
        Some(err) => Err(err),
        None => Ok(fd.into_inner()),
    }
}

/// A socket before its transmission phase.
pub(super) struct Wire {
    pub(super) fd: Watch,
    pub(super) tls: Option<Box<dyn Session>>,
}

impl Wire {
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            let sent = ready.try_io(|fd| {
                let plain = Plain(fd.get_ref().as_fd());
                match &mut self.tls {
                    Some(tls) => tls.write(plain, bytes),
                    None => { plain }.write(bytes),
                }
            });
            match sent {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => bytes = &bytes[sent?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    pub(super) async fn receive(&mut self, input: &mut Vec<u8>) -> io::Result<()> {
        let mut buf = [0; RECEIVE_LEN];
        loop {
            let mut ready = self.fd.readable().await?;
            let got = ready.try_io(|fd| {
                let plain = Plain(fd.get_ref().as_fd());
                match &mut self.tls {
                    Some(tls) => tls.read(plain, &mut buf),
                    None => { plain }.read(&mut buf),
                }
            });
            match got {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    input.extend_from_slice(&buf[..got?]);
                    return Ok(());
                }
                Err(_would_block) => {}
            }
        }
    }

    /// Says goodbye in the transmission phase, in which nothing was asked.
    pub(super) async fn leave(mut self, style: HeaderStyle) {
        if let Some(head) = commands::goodbye(style) {
            // There is no reply, and a server that has left needs no goodbye.
            let _ = self.send(&head).await;
        }
        self.close();
    }

    /// Says goodbye in TLS.
    pub(super) fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close(Plain(self.fd.as_fd()));
        }
    }

    pub(super) async fn shake(&mut self, mut session: Box<dyn Session>) -> io::Result<()> {
        loop {
            let mut ready = if session.wants_write() {
                self.fd.writable().await?
            } else {
                self.fd.readable().await?
            };
            match ready.try_io(|fd| session.shake(Plain(fd.get_ref().as_fd()))) {
                Ok(result) => {
                    result?;
                    self.tls = Some(session);
                    return Ok(());
                }
                Err(_would_block) => {}
            }
        }
    }
}
