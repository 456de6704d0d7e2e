//! From a URI to a connection in its transmission phase, or to answers about the server.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blockyard_nbd::ErrorKind as NbdErrorKind;
use blockyard_nbd::client::{Config, Event, Handshake, Negotiated, TlsMode};
use blockyard_nbd::uri::{Transport, Uri};
use blockyard_nbd::wire::{BASE_ALLOCATION, HEARS_SHUTDOWN, HeaderStyle, Opt};
use blockyard_sys::net::Watch;

use crate::config::TlsFiles;
use crate::error::{Error, ErrorKind};
use crate::socket::prepare;
use crate::tls::{KeptSetup, Session, TlsSetup};
use crate::wire::{BOTH_WAYS, Wire, connect};

/// What is asked for beside the export: what is allocated, and to be told when the server ends.
const CONTEXTS: &[&str] = &[BASE_ALLOCATION, HEARS_SHUTDOWN];

/// How long a server may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Makes sockets that lead to servers: the kernel's, or a simulation's.
pub(crate) trait Dialer: Send + Sync + fmt::Debug {
    fn dial<'a>(&'a self, transport: &'a Transport) -> Dialing<'a>;
}

/// A socket that is being connected.
pub(crate) type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<OwnedFd>> + Send + 'a>>;

/// The kernel's sockets.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// The kernel stops to send again what arrives nowhere after so long, also when our process has died.
    pub(crate) given_up_after: Option<Duration>,
}

impl Dialer for Sockets {
    fn dial<'a>(&'a self, transport: &'a Transport) -> Dialing<'a> {
        Box::pin(async move {
            let fd = connect(transport).await?;
            prepare(fd.as_fd(), self.given_up_after)?;
            Ok(fd)
        })
    }
}

/// Where to connect to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    dialer: Arc<dyn Dialer>,
    pub(crate) uri: Uri,
    tls_files: TlsFiles,
    /// What was in these files, for all connections.
    tls_setup: Arc<KeptSetup>,
    pub(crate) best_style: HeaderStyle,
    /// The time that all of it may take.
    pub(crate) limit: Duration,
}

/// A connection that was negotiated.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) tls: Option<Box<dyn Session>>,
    pub(crate) negotiated: Negotiated,
}

impl Target {
    pub(crate) fn new(
        dialer: Arc<dyn Dialer>,
        uri: Uri,
        tls_files: TlsFiles,
        best_style: HeaderStyle,
        limit: Duration,
    ) -> Self {
        Self { dialer, uri, tls_files, tls_setup: Arc::default(), best_style, limit }
    }

    /// The same way to another export.
    pub(crate) fn to(&self, uri: Uri) -> Self {
        let dialer = Arc::clone(&self.dialer);
        Self::new(dialer, uri, self.tls_files.clone(), self.best_style, self.limit)
    }

    /// Connects and negotiates.
    pub(crate) async fn open(&self) -> Result<Opened, Error> {
        self.within_limit(self.negotiate()).await
    }

    /// What `talk` gives, if that does not take too long.
    pub(crate) async fn within_limit<T>(
        &self,
        talk: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.limit, talk).await {
            Ok(result) => result,
            Err(_) => {
                let what = format!("{} does not answer within {:?}", self.uri, self.limit);
                Err(Error::new(ErrorKind::Timeout, what))
            }
        }
    }

    /// Connects; what is to be asked is up to the caller.
    pub(crate) async fn dial(&self) -> Result<Dialog<'_>, Error> {
        let cannot = |err: io::Error| {
            Error::new(ErrorKind::Connect, format!("cannot connect to {}", self.uri)).caused_by(err)
        };
        let tls = self.load_tls().await?;
        let fd = self.dialer.dial(&self.uri.transport).await.map_err(cannot)?;
        let wire = Wire { fd: Watch::new(fd, BOTH_WAYS).map_err(cannot)?, tls: None };
        let mode = if self.uri.tls { TlsMode::Require } else { TlsMode::Off };
        let shake = Handshake::new(Config { tls: mode, best_style: self.best_style });
        Ok(Dialog { target: self, tls, wire, shake, input: Vec::new() })
    }

    /// What the files of TLS say, if the URI wants it.
    async fn load_tls(&self) -> Result<Option<TlsSetup>, Error> {
        if !self.uri.tls {
            return Ok(None);
        }
        self.tls_setup.load(&self.uri, &self.tls_files, self.limit).await.map(Some)
    }

    async fn negotiate(&self) -> Result<Opened, Error> {
        let mut dialog = self.dial().await?;
        match self.go(&mut dialog).await {
            Ok(negotiated) => dialog.end(negotiated),
            Err(err) => Err(dialog.fail(err).await),
        }
    }

    async fn go(&self, dialog: &mut Dialog<'_>) -> Result<Negotiated, Error> {
        if self.best_style.has_chunks() {
            dialog.ask(|shake| shake.set_contexts(&self.uri.export, CONTEXTS))?;
        }
        dialog.ask(|shake| shake.go(&self.uri.export))?;
        loop {
            match dialog.event().await? {
                Event::Done(negotiated) => return Ok(*negotiated),
                // Without block status there is less to tell, and nothing wrong.
                Event::Refused(err) if is_about_contexts(&err) => {}
                Event::Refused(err) => return Err(self.broken(err)),
                _ => {}
            }
        }
    }

    pub(crate) fn broken(&self, err: blockyard_nbd::Error) -> Error {
        let kind = match err.kind() {
            NbdErrorKind::Refused { .. } | NbdErrorKind::Policy(_) => ErrorKind::Refused,
            NbdErrorKind::BadParameter { .. } => ErrorKind::Config,
            _ => ErrorKind::Protocol,
        };
        Error::new(kind, format!("cannot open {}", self.uri)).caused_by(err)
    }
}

impl Opened {
    /// Says goodbye in the transmission phase, in which nothing was asked.
    pub(crate) async fn leave(self) {
        let Ok(fd) = Watch::new(self.fd, BOTH_WAYS) else { return };
        Wire { fd, tls: self.tls }.leave(self.negotiated.style).await;
    }
}

fn is_about_contexts(err: &blockyard_nbd::Error) -> bool {
    matches!(err.kind(), NbdErrorKind::Refused { option: Opt::SET_META_CONTEXT, .. })
}

/// A connection before its transmission phase.
pub(crate) struct Dialog<'a> {
    target: &'a Target,
    tls: Option<TlsSetup>,
    wire: Wire,
    shake: Handshake,
    input: Vec<u8>,
}

impl Dialog<'_> {
    /// Puts a question; [`Dialog::event`] gives the answer.
    pub(crate) fn ask(
        &mut self,
        question: impl FnOnce(&mut Handshake) -> Result<(), blockyard_nbd::Error>,
    ) -> Result<(), Error> {
        question(&mut self.shake).map_err(|err| self.target.broken(err))
    }

    /// Moves the handshake on until something is answered.
    pub(crate) async fn event(&mut self) -> Result<Event, Error> {
        let lost = |err: io::Error| {
            let uri = &self.target.uri;
            let what = format!("lost the connection to {uri} before it was used");
            Error::new(ErrorKind::Connect, what).caused_by(err)
        };
        let mut output = Vec::new();
        loop {
            output.clear();
            if self.shake.poll_transmit(&mut output) {
                self.wire.send(&output).await.map_err(lost)?;
            }
            match self.shake.poll_event() {
                Some(Event::StartTls) => {
                    self.start_tls().await?;
                    continue;
                }
                Some(event) => return Ok(event),
                None => {}
            }
            let taken = self.shake.receive(&self.input);
            let taken = taken.map_err(|err| self.target.broken(err))?;
            self.input.drain(..taken);
            if taken == 0 {
                self.wire.receive(&mut self.input).await.map_err(lost)?;
            }
        }
    }

    async fn start_tls(&mut self) -> Result<(), Error> {
        let uri = &self.target.uri;
        let Some(setup) = self.tls.as_ref().filter(|_| self.input.is_empty()) else {
            let what = format!("{uri} sent data before the TLS handshake");
            return Err(Error::new(ErrorKind::Protocol, what));
        };
        self.wire.shake(setup.session()?).await.map_err(|err| {
            Error::new(ErrorKind::Tls, format!("TLS with {uri} failed")).caused_by(err)
        })?;
        self.shake.tls_started();
        Ok(())
    }

    /// The transmission phase begins.
    fn end(self, negotiated: Negotiated) -> Result<Opened, Error> {
        if self.input.is_empty() {
            return Ok(Opened { fd: self.wire.fd.into_inner(), tls: self.wire.tls, negotiated });
        }
        let what = format!("{} sent unexpected replies", self.target.uri);
        Err(Error::new(ErrorKind::Protocol, what))
    }

    /// Says goodbye in the transmission phase, in which nothing was asked.
    pub(crate) async fn leave(self, style: HeaderStyle) {
        self.wire.leave(style).await;
    }

    /// Says goodbye. A server need not answer.
    pub(crate) async fn close(mut self) {
        self.shake.abort();
        let _ = tokio::time::timeout(GOODBYE, self.event()).await;
        self.wire.close();
    }

    /// Says goodbye after a refusal; after other errors there is nobody who would understand.
    pub(crate) async fn fail(self, err: Error) -> Error {
        if err.kind() == ErrorKind::Refused {
            self.close().await;
        }
        err
    }
}
