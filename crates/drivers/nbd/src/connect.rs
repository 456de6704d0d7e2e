//! From a URI to a connection in its transmission phase.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use blockyard_nbd::ErrorKind as NbdErrorKind;
use blockyard_nbd::client::{Config, Event, Handshake, Negotiated, TlsMode};
use blockyard_nbd::uri::{Transport, Uri};
use blockyard_nbd::wire::{BASE_ALLOCATION, HeaderStyle, Opt};
use blockyard_sys::net::Watch;
use socket2::{Domain, SockAddr, SockRef, Type};
use tokio::io::Interest;

use crate::error::{Error, ErrorKind};
use crate::socket::{Plain, prepare};
use crate::tls::{Session, TlsSetup};

/// Bytes that are received at a time before the transmission phase.
const RECEIVE_LEN: usize = 4096;

/// `connect(2)` goes on by itself (`include/uapi/asm-generic/errno.h`).
const EINPROGRESS: i32 = 115;

/// What a socket is waited for.
pub(crate) const BOTH_WAYS: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Where to connect to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) uri: Uri,
    pub(crate) tls: Option<TlsSetup>,
    pub(crate) best_style: HeaderStyle,
    /// The time that all of it may take.
    pub(crate) limit: Duration,
}

/// A connection that was negotiated.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) tls: Option<Session>,
    pub(crate) negotiated: Negotiated,
}

impl Target {
    /// Reads the files of TLS, if the URI wants it.
    pub(crate) fn new(uri: Uri, best_style: HeaderStyle, limit: Duration) -> Result<Self, Error> {
        let tls = if uri.tls { Some(TlsSetup::load(&uri)?) } else { None };
        Ok(Self { uri, tls, best_style, limit })
    }

    /// Connects and negotiates.
    pub(crate) async fn open(&self) -> Result<Opened, Error> {
        match tokio::time::timeout(self.limit, self.negotiate()).await {
            Ok(result) => result,
            Err(_) => {
                let what = format!("{} does not answer within {:?}", self.uri, self.limit);
                Err(Error::new(ErrorKind::Timeout, what))
            }
        }
    }

    async fn negotiate(&self) -> Result<Opened, Error> {
        let cannot = |err: io::Error| {
            Error::new(ErrorKind::Connect, format!("cannot connect to {}", self.uri)).caused_by(err)
        };
        let fd = connect(&self.uri.transport).await.map_err(cannot)?;
        prepare(fd.as_fd()).map_err(cannot)?;
        let mut wire = Wire { fd: Watch::new(fd, BOTH_WAYS).map_err(cannot)?, tls: None };
        let negotiated = self.handshake(&mut wire).await?;
        Ok(Opened { fd: wire.fd.into_inner(), tls: wire.tls, negotiated })
    }

    async fn handshake(&self, wire: &mut Wire) -> Result<Negotiated, Error> {
        let broken = |err: blockyard_nbd::Error| {
            let kind = match err.kind() {
                NbdErrorKind::Refused { .. } | NbdErrorKind::Policy(_) => ErrorKind::Refused,
                NbdErrorKind::BadParameter { .. } => ErrorKind::Config,
                _ => ErrorKind::Protocol,
            };
            Error::new(kind, format!("cannot open {}", self.uri)).caused_by(err)
        };
        let lost = |err: io::Error| {
            let what = format!("the connection to {} was lost before it could be used", self.uri);
            Error::new(ErrorKind::Connect, what).caused_by(err)
        };
        let tls = if self.uri.tls { TlsMode::Require } else { TlsMode::Off };
        let mut shake = Handshake::new(Config { tls, best_style: self.best_style });
        if self.best_style.has_chunks() {
            shake.set_contexts(&self.uri.export, &[BASE_ALLOCATION]).map_err(broken)?;
        }
        shake.go(&self.uri.export).map_err(broken)?;
        let (mut input, mut output) = (Vec::new(), Vec::new());
        loop {
            output.clear();
            if shake.poll_transmit(&mut output) {
                wire.send(&output).await.map_err(lost)?;
            }
            match shake.poll_event() {
                Some(Event::StartTls) => {
                    self.start_tls(wire, &input).await?;
                    shake.tls_started();
                    continue;
                }
                Some(Event::Done(negotiated)) if input.is_empty() => return Ok(*negotiated),
                Some(Event::Done(_)) => {
                    let what = format!("{} sent replies to no requests", self.uri);
                    return Err(Error::new(ErrorKind::Protocol, what));
                }
                // Without block status there is less to tell, and nothing wrong.
                Some(Event::Refused(err)) if is_about_contexts(&err) => continue,
                Some(Event::Refused(err)) => return Err(broken(err)),
                Some(_) => continue,
                None => {}
            }
            let taken = shake.receive(&input).map_err(broken)?;
            input.drain(..taken);
            if taken == 0 {
                wire.receive(&mut input).await.map_err(lost)?;
            }
        }
    }

    async fn start_tls(&self, wire: &mut Wire, early: &[u8]) -> Result<(), Error> {
        let Some(setup) = self.tls.as_ref().filter(|_| early.is_empty()) else {
            let what = format!("{} sent bytes in between its consent to TLS and TLS", self.uri);
            return Err(Error::new(ErrorKind::Protocol, what));
        };
        let session = setup.session()?;
        wire.shake(session).await.map_err(|err| {
            Error::new(ErrorKind::Tls, format!("TLS with {} failed", self.uri)).caused_by(err)
        })
    }
}

fn is_about_contexts(err: &blockyard_nbd::Error) -> bool {
    matches!(err.kind(), NbdErrorKind::Refused { option: Opt::SET_META_CONTEXT, .. })
}

async fn connect(transport: &Transport) -> io::Result<OwnedFd> {
    match transport {
        Transport::Tcp { host, port } => {
            let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
            Ok(stream.into_std()?.into())
        }
        Transport::Unix { socket } => {
            let stream = tokio::net::UnixStream::connect(socket).await?;
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
struct Wire {
    fd: Watch,
    tls: Option<Session>,
}

impl Wire {
    async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
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

    async fn receive(&mut self, input: &mut Vec<u8>) -> io::Result<()> {
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

    async fn shake(&mut self, mut session: Session) -> io::Result<()> {
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
