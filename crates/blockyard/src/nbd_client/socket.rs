//! The bytes of a connection: a socket, maybe with TLS around it.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use blockyard_nbd::uri;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, SockAddr, Type};

use crate::error::{Error, Result};

/// How long to wait for a connection, and for each answer during negotiation.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connected stream socket of any family.
#[derive(Debug)]
pub struct Socket(socket2::Socket);

impl Socket {
    /// Connects.
    ///
    /// # Errors
    /// What the system says, and what to do.
    pub fn connect(to: &uri::Transport) -> Result<Self> {
        let socket = match to {
            uri::Transport::Tcp { host, port } => tcp(host, *port)?,
            uri::Transport::Unix { socket } => connect(Domain::UNIX, || SockAddr::unix(socket))
                .map_err(|err| {
                    let help = match err.kind() {
                        io::ErrorKind::NotFound => {
                            "there is no such socket; is the server running?"
                        }
                        io::ErrorKind::ConnectionRefused => {
                            "nobody listens to the socket any more; start the server"
                        }
                        _ => "see that the socket may be used (ls -l)",
                    };
                    Error::failed(format!("connecting to the socket {socket}"))
                        .caused_by(err)
                        .help(help)
                })?,
            uri::Transport::Vsock { cid, port } => {
                connect(Domain::VSOCK, || Ok(SockAddr::vsock(*cid, *port))).map_err(|err| {
                    Error::failed(format!("connecting to vsock {cid}:{port}")).caused_by(err).help(
                    "the module vhost_vsock (host) or vmw_vsock_virtio_transport (guest) is needed",
                )
                })?
            }
        };
        Ok(Self(socket))
    }

    /// Whether calls wait.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.set_nonblocking(nonblocking)?;
        if nonblocking {
            self.0.set_read_timeout(None)?;
        }
        Ok(())
    }
}

fn connect(
    domain: Domain,
    address: impl Fn() -> io::Result<SockAddr>,
) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(domain, Type::STREAM, None)?;
    let address = address()?;
    if domain == Domain::UNIX {
        socket.connect(&address)?;
    } else {
        socket.connect_timeout(&address, PATIENCE)?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn tcp(host: &str, port: u16) -> Result<socket2::Socket> {
    let unknown = |err: io::Error| {
        Error::failed(format!("looking up the host {host:?}"))
            .caused_by(err)
            .help("check the name, or write its address")
    };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(unknown)?.collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match connect(Domain::for_address(address), || Ok(address.into())) {
            Ok(socket) => {
                // Only speed is lost without it.
                let _ = socket.set_tcp_nodelay(true);
                return Ok(socket);
            }
            Err(err) => last = err,
        }
    }
    let help = match last.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there; is the server running, on that port?"
        }
        _ => "check the host, the port, and the way there (firewall)",
    };
    Err(Error::failed(format!("connecting to {host} port {port}")).caused_by(last).help(help))
}

impl From<std::os::unix::net::UnixStream> for Socket {
    fn from(stream: std::os::unix::net::UnixStream) -> Self {
        Self(stream.into())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The bytes of a connection, plain or within TLS.
pub struct Transport {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
}

impl Transport {
    pub(super) fn plain(socket: Socket) -> Self {
        Self { socket, tls: None }
    }

    /// The socket, to wait for.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The socket, for another to speak on; none if there is TLS around it.
    #[must_use]
    pub fn into_socket(self) -> Option<OwnedFd> {
        self.tls.is_none().then(|| self.socket.0.into())
    }

    /// Whether TLS has records that the socket had no room for.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    pub(super) fn start_tls(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<()> {
        let failed = |err: Box<dyn std::error::Error + Send + Sync>| {
            Error::failed("the TLS handshake failed")
                .caused_by(err)
                .help("name the authority of the server's certificate: --tls-ca FILE, or tls-certificates=DIR in the URI")
        };
        let mut tls = ClientConnection::new(config, name).map_err(|err| failed(err.into()))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut self.socket.0).map_err(|err| failed(err.into()))?;
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }
}

impl Read for Transport {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.0.read(buf) };
        loop {
            match tls.reader().read(buf) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if tls.read_tls(&mut self.socket.0)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets()
                .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))?;
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.0.write_vectored(bufs) };
        let taken = tls.writer().write_vectored(bufs)?;
        match self.flush() {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock && taken > 0 => Ok(taken),
            Err(err) => Err(err),
            Ok(()) => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.socket.0)?;
            }
        }
        Ok(())
    }
}
