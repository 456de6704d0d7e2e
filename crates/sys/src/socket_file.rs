//! Files of unix sockets: what a server that was killed has left goes, and what was made is removed in the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// A socket file that is removed in the end, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// The file of a socket that was just bound to `path`.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }

    /// Removes the socket of a server that is gone. One that is alive stays, so that binding to it fails.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] for a file of any other kind, which stays; what removing it says.
    pub fn remove_stale(path: &Path) -> io::Result<()> {
        let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
        if !found.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is no socket"));
        }
        match try_connect(path) {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
            }
            // Accepted, or nobody knows: binding says that it is in use.
            _ => Ok(()),
        }
    }
}

/// Never waits: a server that is alive but busy has a full queue.
fn try_connect(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(connect(&socket, &SocketAddrUnix::new(path)?)?)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Whoever was faster has removed it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_goes_with_its_server_or_after_it_but_no_other_file_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        SocketFile::remove_stale(&path).unwrap();
        assert!(path.exists(), "somebody listens");
        drop(listener);
        SocketFile::remove_stale(&path).unwrap();
        assert!(!path.exists());
        let listener = UnixListener::bind(&path).unwrap();
        let file = SocketFile::new(&path).unwrap();
        let other = dir.path().join("other");
        std::fs::write(&other, b"data").unwrap();
        std::fs::rename(&other, &path).unwrap();
        drop((file, listener));
        let error = SocketFile::remove_stale(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"data", "it is another");
    }
}
