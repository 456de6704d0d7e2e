//! TLS: how clients are authenticated, and a session over a socket that does not block.

#[cfg(feature = "psk")]
mod psk;
#[cfg(feature = "psk")]
mod psk_file;
mod renewal;
mod x509;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::Socket;

use crate::error::Error;
use renewal::{Renewal, Setup};

pub use x509::TlsFiles;

/// Bytes that wait for the socket within a session.
const SEND_BUFFER: usize = 64 << 10;

/// What the server and its clients know each other by.
#[derive(Clone, Debug)]
pub enum TlsIdentity {
    /// X.509 certificates.
    Certificate(TlsFiles),
    /// A file of users and the keys that they share with the server, as `psktool` of GnuTLS writes it: lines of
    /// `user:key`, the key in hexadecimal. Needs the feature `psk`.
    Psk(PathBuf),
}

impl TlsIdentity {
    /// Reads and checks the files. They are read again when they have changed: for the next client.
    ///
    /// # Errors
    /// [`ErrorKind::Tls`](crate::ErrorKind::Tls), which names the file and the line;
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) for keys without the feature `psk`.
    pub fn load(&self) -> Result<TlsConfig, Error> {
        Renewal::new(self.clone()).map(TlsConfig)
    }

    /// The files that there may be.
    fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Certificate(files) => files.paths(),
            Self::Psk(file) => vec![file.clone()],
        }
    }

    /// What the files say now.
    fn setup(&self) -> Result<Setup, Error> {
        match self {
            Self::Certificate(files) => files.setup(),
            #[cfg(feature = "psk")]
            Self::Psk(file) => psk::load(file),
            #[cfg(not(feature = "psk"))]
            Self::Psk(_) => Err(Error::new(
                crate::error::ErrorKind::Unavailable,
                "TLS with pre-shared keys is not in this build; add it: apt install libssl-dev pkg-config, \
                 then cargo build --release --features psk",
            )),
        }
    }
}

/// What TLS sessions are made from: loaded and checked.
#[derive(Clone)]
pub struct TlsConfig(Arc<Renewal>);

impl TlsConfig {
    /// Looks whether the files have changed.
    pub(crate) async fn renew(&self) {
        self.0.look().await;
    }

    pub(crate) fn session(&self) -> io::Result<Box<dyn Session>> {
        self.0.engine().session()
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // There are keys in it.
        f.debug_struct("TlsConfig").finish_non_exhaustive()
    }
}

/// A TLS implementation that is set up.
trait Engine: Send + Sync {
    fn session(&self) -> io::Result<Box<dyn Session>>;
}

/// Which way bytes have moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) received: bool,
    pub(crate) sent: bool,
}

/// The server's side of a TLS session. It holds some tens of KiB: records that are not complete, and those that
/// the socket had no room for.
pub(crate) trait Session: Send {
    /// Whether there are records for the socket.
    fn wants_write(&self) -> bool;

    /// Moves the TLS handshake on, as far as it goes now.
    fn shake(&mut self, socket: &Socket) -> io::Result<()>;

    /// Receives plain bytes; 0 at the end.
    fn read(&mut self, socket: &Socket, buf: &mut [u8]) -> io::Result<usize>;

    /// Takes plain bytes to send, as many as there is room for.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Hands records to the socket until there are none.
    fn flush(&mut self, socket: &Socket) -> io::Result<()>;

    /// Whether bytes of records have moved since the last time.
    fn take_moved(&mut self) -> Moved;

    /// Says goodbye.
    fn close(&mut self, socket: &Socket);
}
