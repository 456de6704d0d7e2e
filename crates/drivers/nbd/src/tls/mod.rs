//! TLS: how the server is known, and a session over a socket that does not block.

mod kept;
#[cfg(feature = "psk")]
mod psk;
mod x509;

use std::io;

use blockyard_nbd::uri::{TlsKind, Uri};

use crate::config::TlsFiles;
use crate::error::{Error, ErrorKind};
use crate::outbox::Unsent;
use crate::socket::Plain;

pub(crate) use kept::KeptSetup;

/// Bytes that are encrypted at a time.
const RECORD_LEN: usize = 16 << 10;
/// Bytes that wait for the socket within a session.
const SEND_BUFFER: usize = 256 << 10;

/// How to speak TLS with a server.
#[derive(Clone, Debug)]
pub(crate) enum TlsSetup {
    Certificates(x509::Setup),
    #[cfg(feature = "psk")]
    Keys(psk::Setup),
}

impl TlsSetup {
    /// Reads the files that are named, or those that the URI names. `before`: what was made of them the last time.
    pub(crate) fn load(uri: &Uri, files: &TlsFiles, before: Option<&Self>) -> Result<Self, Error> {
        match (uri.tls_params.kind, &uri.tls_params.psk_file) {
            (Some(TlsKind::Anonymous), _) => {
                let what = "TLS with no authentication is not supported: use certificates \
                            (tls-type=x509&tls-certificates=DIRECTORY)";
                Err(Error::new(ErrorKind::Unsupported, what))
            }
            (Some(TlsKind::Psk), None) => {
                let what = "TLS with pre-shared keys needs the file of the key: tls-psk-file=FILE";
                Err(Error::new(ErrorKind::Config, what))
            }
            (Some(TlsKind::Psk) | None, Some(file)) => Self::load_keys(uri, file.as_ref()),
            (Some(TlsKind::X509), _) | (None, None) => {
                let before = before.and_then(Self::certificates);
                x509::Setup::load(uri, files, before).map(Self::Certificates)
            }
        }
    }

    fn certificates(&self) -> Option<&x509::Setup> {
        match self {
            Self::Certificates(setup) => Some(setup),
            #[cfg(feature = "psk")]
            Self::Keys(_) => None,
        }
    }

    #[cfg(feature = "psk")]
    fn load_keys(uri: &Uri, file: &std::path::Path) -> Result<Self, Error> {
        psk::Setup::load(uri, file).map(Self::Keys)
    }

    #[cfg(not(feature = "psk"))]
    fn load_keys(_uri: &Uri, _file: &std::path::Path) -> Result<Self, Error> {
        let what = "TLS with pre-shared keys is not in this build; add it: apt install libssl-dev pkg-config, \
                    then cargo build --release --features psk";
        Err(Error::new(ErrorKind::Unsupported, what))
    }

    pub(crate) fn session(&self) -> Result<Box<dyn Session>, Error> {
        match self {
            Self::Certificates(setup) => setup.session(),
            #[cfg(feature = "psk")]
            Self::Keys(setup) => setup.session(),
        }
    }
}

/// A TLS session.
pub(crate) trait Session: Send {
    /// Moves the handshake on, as far as it goes now.
    fn shake(&mut self, socket: Plain<'_>) -> io::Result<()>;

    /// Whether the handshake waits for room in the socket, rather than for the server.
    fn wants_write(&self) -> bool;

    /// Receives plain bytes; 0 at the end.
    fn read(&mut self, socket: Plain<'_>, buf: &mut [u8]) -> io::Result<usize>;

    /// Sends plain bytes; says how many were taken. What was taken is sent before any more is.
    fn write(&mut self, socket: Plain<'_>, bytes: &[u8]) -> io::Result<usize>;

    /// Sends what waits to be sent, as far as it goes.
    fn send(&mut self, socket: Plain<'_>, unsent: &mut dyn Unsent) -> io::Result<()>;

    /// Says goodbye in TLS.
    fn close(&mut self, socket: Plain<'_>);
}
