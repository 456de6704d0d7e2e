//! What a disk is made from.

use std::path::PathBuf;
use std::time::Duration;

use blockyard_nbd::uri::Uri;
use blockyard_nbd::wire::HeaderStyle;

use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind};
use crate::queue::Policy;

/// The most connections to one server.
pub const MAX_CONNECTIONS: usize = 64;
/// A connection that was not written on for so long is flushed.
const DEFAULT_FLUSH_AFTER: Duration = Duration::from_secs(1);
/// Replies to other requests excuse a request for so many timeouts.
const PATIENCE: u32 = 8;

/// Files of TLS in PEM, in place of those in the URI's directory. They are read for each connection anew, as they may be renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Whom to trust.
    pub ca: Option<PathBuf>,
    /// Who we are; needs `key`.
    pub certificate: Option<PathBuf>,
    /// The key of that.
    pub key: Option<PathBuf>,
}

/// An NBD export, and how to treat the connections to it.
#[derive(Clone, Debug)]
pub struct NbdConfig {
    /// Where it is. The parameters of TLS are part of it.
    pub uri: Uri,
    /// Files of TLS in place of those of the URI.
    pub tls_files: TlsFiles,
    /// Connections, one hardware queue each: as many as queue threads unless told otherwise. More than one only
    /// where the server says that its flushes cover all (`CAN_MULTI_CONN`).
    pub connections: Option<usize>,
    /// A connection on which nothing comes for so long, though something is waited for, is dead.
    pub timeout: Duration,
    /// The time that connecting may take, with the handshake and the files of TLS. `None`: as `timeout`.
    pub connect_timeout: Option<Duration>,
    /// Requests wait so long for a connection before they fail.
    pub dead_conn_timeout: Duration,
    /// A server that neither answers nor closes a connection is taken to be through with it after so long:
    /// until then, what it may still write to is not written to by another connection (`docs/nbd-fencing.md`).
    pub fence_timeout: Duration,
    /// A restart of the server loses nothing that it has acknowledged: without that, a lost connection on which
    /// something was written and not flushed makes flushes fail until the disk is opened anew.
    pub trust_server: bool,
    /// What was written is flushed when no write has been answered on the connection for so long, so that a server that is
    /// started anew then has nothing to lose. `None`: when somebody asks for it. A trusted server is not.
    pub flush_after: Option<Duration>,
    /// When to try to connect again.
    pub backoff: Backoff,
    /// Never write, even where the server lets us.
    pub read_only: bool,
    /// The best headers to ask for.
    pub best_style: HeaderStyle,
}

impl NbdConfig {
    /// The export that `uri` names, with the usual patience.
    #[must_use]
    pub fn new(uri: Uri) -> Self {
        Self {
            uri,
            tls_files: TlsFiles::default(),
            connections: None,
            timeout: Duration::from_secs(30),
            connect_timeout: None,
            dead_conn_timeout: Duration::from_secs(120),
            fence_timeout: Duration::from_secs(60),
            trust_server: false,
            flush_after: Some(DEFAULT_FLUSH_AFTER),
            backoff: Backoff::default(),
            read_only: false,
            best_style: HeaderStyle::Extended,
        }
    }

    /// # Errors
    /// [`ErrorKind::Config`]: a setting that cannot be.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |what: &str| Err(Error::new(ErrorKind::Config, what));
        if self.connections.is_some_and(|count| count == 0 || count > MAX_CONNECTIONS) {
            return bad("the number of connections must be from 1 to 64");
        }
        if self.timeout.is_zero() || self.connect_limit().is_zero() || self.fence_timeout.is_zero()
        {
            return bad("the timeouts of an NBD disk must be greater than 0");
        }
        Ok(())
    }

    pub(crate) fn connect_limit(&self) -> Duration {
        self.connect_timeout.unwrap_or(self.timeout)
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy {
            timeout: self.timeout,
            patience: PATIENCE,
            dead_conn_timeout: self.dead_conn_timeout,
            fence_timeout: self.fence_timeout,
            flush_after: self.flush_after.filter(|_| !self.trust_server),
        }
    }
}
