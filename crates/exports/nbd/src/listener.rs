//! Sockets that clients connect to.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use blockyard_sys::SocketFile;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::address::Address;
use crate::error::{Error, ErrorKind};

/// Connections that wait to be accepted; the system's own limit (`net.core.somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// The part of an IPv6 address that one site cannot choose (RFC 4291, section 2.5.4).
const IPV6_NETWORK: u128 = !(u64::MAX as u128);

/// Where clients connect to. Dropping it, or the server that listens to it, closes it, and removes the socket
/// file that [`bind`] made.
#[derive(Debug)]
pub struct Listener {
    pub(crate) sockets: Vec<Socket>,
    pub(crate) file: Option<SocketFile>,
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self { sockets: vec![listener.into()], file: None }
    }
}

impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Self {
        Self { sockets: vec![listener.into()], file: None }
    }
}

impl Listener {
    /// A socket that another has made and listens already, as those of systemd (`sd_listen_fds(3)`). Its file,
    /// if it has one, is left alone.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if it is no listening stream socket of the families unix, IPv4, IPv6 or vsock.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let socket = Socket::from(fd);
        let unusable = |what: &str| {
            Error::new(ErrorKind::Config, format!("the inherited file descriptor is {what}"))
                .help("pass a listening stream socket: Unix, TCP or vsock")
        };
        let address = socket.local_addr().map_err(|err| unusable("not a socket").caused_by(err))?;
        if !(address.is_unix()
            || address.is_ipv4()
            || address.is_ipv6()
            || address.as_vsock_address().is_some())
        {
            return Err(unusable("a socket of another family"));
        }
        let stream = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
        if !stream || !socket.is_listener().unwrap_or(false) {
            return Err(unusable("a socket that does not listen"));
        }
        Ok(Self { sockets: vec![socket], file: None })
    }

    /// Where it listens, with the port that the system has chosen.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        if let Some(file) = &self.file {
            // The socket itself knows the name only that it was bound to, which was a temporary one.
            return vec![Address::Unix(file.path().to_owned())];
        }
        self.sockets.iter().filter_map(|socket| local_address(socket).ok()).collect()
    }
}

fn local_address(socket: &Socket) -> io::Result<Address> {
    let address = socket.local_addr()?;
    if let Some((cid, port)) = address.as_vsock_address() {
        return Ok(Address::Vsock { cid, port });
    }
    if let Some(address) = address.as_socket() {
        return Ok(Address::Tcp { host: address.ip().to_string(), port: address.port() });
    }
    let path = address.as_pathname().map(Path::to_path_buf).unwrap_or_default();
    Ok(Address::Unix(path))
}

/// Listens at `address`. A socket file gets the permissions `mode`, if they are given.
///
/// # Errors
/// [`ErrorKind::InUse`] if somebody accepts there, [`ErrorKind::NotPermitted`], [`ErrorKind::Io`]: each says
/// what to do.
pub fn bind(address: &Address, mode: Option<u32>) -> Result<Listener, Error> {
    match address {
        Address::Unix(path) => bind_unix(path, mode),
        Address::Tcp { host, port } => bind_tcp(address, host, *port),
        Address::Vsock { cid, port } => {
            let listen = || {
                let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
                socket.bind(&SockAddr::vsock(*cid, *port))?;
                socket.listen(BACKLOG)?;
                Ok(socket)
            };
            let socket = listen().map_err(|err| failed(address, err))?;
            Ok(Listener { sockets: vec![socket], file: None })
        }
    }
}

fn failed(address: &Address, err: io::Error) -> Error {
    let (kind, problem, remedy) = match err.kind() {
        io::ErrorKind::AddrInUse => (
            ErrorKind::InUse,
            "address in use",
            "choose another address, or stop the process that listens there (see: ss -lpn)",
        ),
        io::ErrorKind::PermissionDenied => (
            ErrorKind::NotPermitted,
            "permission denied",
            match address {
                Address::Unix(_) => "choose a writable directory",
                _ => "choose a port from 1024, or run as root",
            },
        ),
        io::ErrorKind::AddrNotAvailable => (
            ErrorKind::Address,
            "not an address of this machine",
            "choose an address of this machine (see: ip address)",
        ),
        io::ErrorKind::NotFound => {
            (ErrorKind::Address, "the directory does not exist", "create the directory")
        }
        _ => {
            return Error::new(ErrorKind::Io, format!("cannot listen on {address}")).caused_by(err);
        }
    };
    Error::new(kind, format!("cannot listen on {address}: {problem}")).help(remedy).caused_by(err)
}

fn bind_unix(path: &Path, mode: Option<u32>) -> Result<Listener, Error> {
    let bound = SocketFile::bind(path, mode, BACKLOG).map_err(|err| {
        if err.kind() != io::ErrorKind::AlreadyExists {
            return failed(&Address::Unix(path.into()), err);
        }
        let what = format!(
            "cannot listen on unix:{}: the file exists and is not a socket",
            path.display()
        );
        Error::new(ErrorKind::InUse, what).help("choose another path, or remove the file")
    })?;
    let (socket, file) = bound;
    Ok(Listener { sockets: vec![socket.into()], file: Some(file) })
}

fn bind_tcp(address: &Address, host: &str, port: u16) -> Result<Listener, Error> {
    let mut wanted = if host.is_empty() {
        vec![SocketAddr::from(([0_u16; 8], port))]
    } else {
        let resolved = (host, port).to_socket_addrs().map_err(|err| {
            let what = format!("cannot listen on {address}: unknown host {host:?}");
            Error::new(ErrorKind::Address, what).caused_by(err)
        })?;
        resolved.collect()
    };
    wanted.dedup();
    let mut sockets: Vec<Socket> = Vec::new();
    let mut problem = None;
    for mut wanted in wanted {
        // All addresses of a name have the same port.
        if port == 0
            && let Some(chosen) = sockets.first().and_then(|socket| socket.local_addr().ok())
        {
            wanted.set_port(chosen.as_socket().map_or(0, |chosen| chosen.port()));
        }
        match listen_tcp(wanted).or_else(|err| without_ipv6(host, port, err)) {
            Ok(socket) => sockets.push(socket),
            Err(err) => problem = Some(err),
        }
    }
    match problem {
        Some(err) if sockets.is_empty() || err.kind() == io::ErrorKind::AddrInUse => {
            Err(failed(address, err))
        }
        _ => Ok(Listener { sockets, file: None }),
    }
}

/// A machine without IPv6 has only the other addresses to listen at.
fn without_ipv6(host: &str, port: u16, err: io::Error) -> io::Result<Socket> {
    if host.is_empty() && err.kind() != io::ErrorKind::AddrInUse {
        listen_tcp(SocketAddr::from(([0_u8; 4], port)))
    } else {
        Err(err)
    }
}

fn listen_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart need not wait for connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        // The unspecified address stands for IPv4 too.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Who is at the other end, for people.
pub(crate) fn peer_name(socket: &Socket) -> String {
    let Ok(address) = socket.peer_addr() else { return "disconnected client".into() };
    if let Some(address) = address.as_socket() {
        return format!("tcp:{address}");
    }
    if let Some((cid, port)) = address.as_vsock_address() {
        return format!("vsock:{cid}:{port}");
    }
    match rustix::net::sockopt::socket_peercred(socket) {
        Ok(peer) => format!("unix:pid={},uid={}", peer.pid.as_raw_pid(), peer.uid.as_raw()),
        Err(_) => "unix".into(),
    }
}

/// Whose connections count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerHost {
    /// An address. Of IPv6 the network, as a host has all addresses of its own.
    Ip(IpAddr),
    /// A guest of this machine.
    Guest(u32),
    /// A user of this machine.
    User(u32),
}

impl PeerHost {
    pub(crate) fn of(socket: &Socket) -> Option<Self> {
        let address = socket.peer_addr().ok()?;
        if let Some(address) = address.as_socket() {
            return Some(Self::of_ip(address.ip()));
        }
        if let Some((cid, _)) = address.as_vsock_address() {
            return Some(Self::Guest(cid));
        }
        let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
        Some(Self::User(peer.uid.as_raw()))
    }

    fn of_ip(ip: IpAddr) -> Self {
        Self::Ip(match ip.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & IPV6_NETWORK).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Prepares a connection: nothing blocks, and on TCP nothing waits to be sent, and a peer that is gone is found
/// out.
pub(crate) fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if socket.domain().is_ok_and(|domain| domain == Domain::IPV4 || domain == Domain::IPV6) {
        let socket = SockRef::from(socket);
        socket.set_tcp_nodelay(true)?;
        socket.set_keepalive(true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn temp() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_socket_file_has_its_mode_and_goes_with_its_listener() {
        let dir = temp();
        let path = dir.path().join("s");
        let listener = bind(&Address::Unix(path.clone()), Some(0o600)).unwrap();
        assert_eq!(listener.addresses(), [Address::Unix(path.clone())]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_host_is_one_by_all_its_addresses() {
        let host = |ip: &str| PeerHost::of_ip(ip.parse().unwrap());
        assert_eq!(host("::ffff:192.0.2.1"), host("192.0.2.1"));
        assert_ne!(host("192.0.2.1"), host("192.0.2.2"));
        assert_eq!(host("2001:db8::1:2:3:4"), host("2001:db8::ffff"));
        assert_ne!(host("2001:db8:0:1::1"), host("2001:db8::1"));
        let (one, _other) = UnixStream::pair().unwrap();
        let user = PeerHost::of(&Socket::from(std::os::fd::OwnedFd::from(one)));
        assert_eq!(user, Some(PeerHost::User(rustix::process::getuid().as_raw())));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_in_use() {
        let dir = temp();
        let path = dir.path().join("s");
        let address = Address::Unix(path.clone());
        // Nothing removes the file when this one is closed.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let alive = bind(&address, None).unwrap();
        let error = bind(&address, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("in use"), "{error}");
        assert!(path.exists());
        drop(alive);
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let dir = temp();
        let path = dir.path().join("s");
        let old = bind(&Address::Unix(path.clone()), None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _successor = bind(&Address::Unix(path.clone()), None).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = temp();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = bind(&Address::Unix(path.clone()), None).unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let error = bind(&Address::Unix(dir.path().join("no/such/s")), None).unwrap_err();
        assert!(error.to_string().contains("directory does not exist"), "{error}");
    }

    #[test]
    fn a_port_in_use_says_what_to_do() {
        let first = bind(&"tcp:127.0.0.1:0".parse().unwrap(), None).unwrap();
        let taken = first.addresses().remove(0);
        let error = bind(&taken, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.remedy().is_some_and(|it| it.contains("choose another")), "{error}");
        let error = bind(&"tcp:no-such-host.invalid:0".parse().unwrap(), None).unwrap_err();
        assert!(error.to_string().contains("unknown host"), "{error}");
    }

    #[test]
    fn a_passed_socket_must_listen() {
        let dir = temp();
        let path = dir.path().join("s");
        let listening = UnixListener::bind(&path).unwrap();
        let listener = Listener::from_fd(listening.into()).unwrap();
        drop(listener);
        assert!(path.exists(), "it belongs to whoever made it");
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Listener::from_fd(file.into()).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        let (one, _other) = UnixStream::pair().unwrap();
        let error = Listener::from_fd(one.into()).unwrap_err();
        assert!(error.to_string().contains("does not listen"), "{error}");
    }
}
