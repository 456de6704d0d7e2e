//! Where front-ends connect to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use blockyard_sys::SocketFile;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

use crate::error::{Error, ErrorKind};

/// Connections that wait to be accepted: one is served at a time.
const BACKLOG: i32 = 128;

/// A socket for front-ends. Dropping it, or the server that has it, removes the file that [`bind`] made.
#[derive(Debug)]
pub struct Listener {
    pub(crate) source: Source,
    pub(crate) path: Option<PathBuf>,
    pub(crate) _file: Option<SocketFile>,
}

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// One after the other.
    Listening(UnixListener),
    /// There is one only.
    Connected(Option<UnixStream>),
}

impl Listener {
    /// A socket that was passed to this process under a number, as [`Listener::from_fd`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`].
    pub fn from_passed(number: i32) -> Result<Self, Error> {
        let fd = blockyard_sys::passed_fd(number).map_err(|err| {
            let what = format!("no inherited file descriptor {number}");
            Error::new(ErrorKind::Config, what).caused_by(err)
        })?;
        Self::from_fd(fd)
    }

    /// A socket that another has made: one that listens, or one that a front-end is connected to already.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if it is no unix socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let unusable = |err: io::Error| {
            Error::new(ErrorKind::Config, "the inherited file descriptor is not a Unix socket")
                .caused_by(err)
        };
        let domain = socket_domain(&fd).map_err(|err| unusable(err.into()))?;
        if domain != AddressFamily::UNIX {
            return Err(unusable(io::ErrorKind::InvalidInput.into()));
        }
        let listens = socket_acceptconn(fd.as_fd()).map_err(|err| unusable(err.into()))?;
        let source =
            if listens { Source::Listening(fd.into()) } else { Source::Connected(Some(fd.into())) };
        Ok(Self { source, path: None, _file: None })
    }
}

/// Listens at a path. The file of a server that was killed is replaced; the new one gets the permissions `mode`, if they are
/// given.
///
/// # Errors
/// [`ErrorKind::InUse`] if somebody listens there, or it is no socket; [`ErrorKind::NotPermitted`], [`ErrorKind::Io`].
pub fn bind(path: &Path, mode: Option<u32>) -> Result<Listener, Error> {
    let failed = |err: io::Error| {
        let (kind, problem, remedy) = match err.kind() {
            io::ErrorKind::AlreadyExists => (
                ErrorKind::InUse,
                "the file exists and is not a socket",
                "choose another path, or remove the file",
            ),
            io::ErrorKind::AddrInUse => (
                ErrorKind::InUse,
                "address in use",
                "choose another path, or stop the process that listens there (see: ss -lpn)",
            ),
            io::ErrorKind::PermissionDenied => {
                (ErrorKind::NotPermitted, "permission denied", "choose a writable directory")
            }
            io::ErrorKind::NotFound => {
                (ErrorKind::Config, "the directory does not exist", "create the directory")
            }
            _ => {
                let what = format!("cannot listen on {}", path.display());
                return Error::new(ErrorKind::Io, what).caused_by(err);
            }
        };
        let what = format!("cannot listen on {}: {problem}", path.display());
        Error::new(kind, what).help(remedy).caused_by(err)
    };
    let (socket, file) = SocketFile::bind(path, mode, BACKLOG).map_err(failed)?;
    Ok(Listener {
        source: Source::Listening(socket.into()),
        path: Some(path.to_owned()),
        _file: Some(file),
    })
}
