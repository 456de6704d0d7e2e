//! A small NBD client: the protocol of [`blockyard_nbd::client`] over a blocking socket. It serves `info`,
//! `list` and `bench`.

mod socket;
mod tls;

use std::io::{Read, Write};
use std::path::PathBuf;

use blockyard_nbd::ExportInfo;
use blockyard_nbd::client::{Config, Event, Handshake, ListedExport, Negotiated, TlsMode};
use blockyard_nbd::uri::{TlsKind, Uri};
use blockyard_nbd::wire::{BASE_ALLOCATION, Command, CommandFlags, HeaderStyle, Request};

pub use socket::{Socket, Transport};

use crate::error::{Error, ErrorKind, Result};

/// Bytes that are read at a time during a handshake.
const CHUNK: usize = 4096;

/// What the user says about TLS, beside what is in the URI.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Whom to trust, in PEM.
    pub ca: Option<PathBuf>,
    /// Who we are, in PEM.
    pub certificate: Option<PathBuf>,
    /// The key of that.
    pub key: Option<PathBuf>,
}

/// A connection before its transmission phase.
pub struct Client {
    transport: Transport,
    handshake: Handshake,
    input: Vec<u8>,
    uri: Uri,
}

/// A connection in its transmission phase, and what was agreed on.
pub struct Connection {
    /// The bytes.
    pub transport: Transport,
    /// What was agreed on.
    pub negotiated: Box<Negotiated>,
    /// What the server has sent already.
    pub input: Vec<u8>,
}

impl Connection {
    /// Says goodbye, once nothing is in flight.
    pub fn close(mut self) {
        say_goodbye(&mut self.transport, self.negotiated.style);
    }
}

/// Says goodbye, once nothing is in flight.
pub fn say_goodbye(transport: &mut Transport, style: HeaderStyle) {
    let (command, flags) = (Command::Disc, CommandFlags::empty());
    let request = Request { command, flags, cookie: 0, offset: 0, length: 0 };
    if let Ok(head) = request.encode(style) {
        // There is no reply, and a server that has left needs no goodbye.
        let _ = transport.write_all(&head).and_then(|()| transport.flush());
    }
}

impl Client {
    /// Connects, and speaks TLS if the URI wants that. The best headers that are agreed on are `style`.
    ///
    /// # Errors
    /// Nobody is there, or does not speak NBD, or TLS fails.
    pub fn connect(uri: &Uri, options: &TlsOptions, style: HeaderStyle) -> Result<Self> {
        let failed = |err: Error| Error::failed(format!("cannot connect to {uri}")).caused_by(err);
        let socket = Socket::connect(&uri.transport).map_err(failed)?;
        let tls = if uri.tls { TlsMode::Require } else { TlsMode::Off };
        if uri.tls && matches!(uri.tls_params.kind, Some(TlsKind::Psk | TlsKind::Anonymous)) {
            let what = "TLS with pre-shared keys or without authentication is not in this build";
            return Err(Error::new(ErrorKind::Unavailable, what).help("use tls-type=x509"));
        }
        let handshake = Handshake::new(Config { tls, best_style: style });
        let transport = Transport::plain(socket);
        let mut client = Self { transport, handshake, input: Vec::new(), uri: uri.clone() };
        if uri.tls {
            client.start_tls(options).map_err(failed)?;
        }
        Ok(client)
    }

    /// Speaks over a socket that is connected already, with simple headers, and no TLS. `uri` names the export,
    /// and the server for messages.
    #[must_use]
    pub fn over(stream: std::os::unix::net::UnixStream, uri: Uri) -> Self {
        let config = Config { tls: TlsMode::Off, best_style: HeaderStyle::Simple };
        let transport = Transport::plain(Socket::from(stream));
        Self { transport, handshake: Handshake::new(config), input: Vec::new(), uri }
    }

    fn start_tls(&mut self, options: &TlsOptions) -> Result<()> {
        match self.event()? {
            Event::StartTls => {}
            other => return Err(Error::failed(format!("unexpected before TLS: {other:?}"))),
        }
        let config = tls::client_config(&self.uri.tls_params, options)?;
        let name = tls::server_name(&self.uri)?;
        self.transport.start_tls(config, name)?;
        self.handshake.tls_started();
        Ok(())
    }

    /// Moves the handshake on until something is answered.
    fn event(&mut self) -> Result<Event> {
        let failed = |what: &str| Error::failed(format!("{what} {}", self.uri));
        let mut output = Vec::new();
        loop {
            if let Some(event) = self.handshake.poll_event() {
                // What was put to the server with it, as the answer to STARTTLS is not.
                return Ok(event);
            }
            output.clear();
            if self.handshake.poll_transmit(&mut output) {
                let sent = self.transport.write_all(&output).and_then(|()| self.transport.flush());
                sent.map_err(|err| failed("cannot send to").caused_by(err))?;
            }
            let taken = self
                .handshake
                .receive(&self.input)
                .map_err(|err| failed("negotiation failed with").caused_by(err))?;
            self.input.drain(..taken);
            if taken > 0 {
                continue;
            }
            let mut chunk = [0; CHUNK];
            let got = self
                .transport
                .read(&mut chunk)
                .map_err(|err| failed("cannot receive from").caused_by(err))?;
            if got == 0 {
                let what = failed("the connection was closed during negotiation by");
                return Err(what.help("the server's own log says why; it may want TLS (nbds://)"));
            }
            self.input.extend_from_slice(&chunk[..got]);
        }
    }

    /// The exports on offer.
    ///
    /// # Errors
    /// The server does not tell.
    pub fn list(&mut self) -> Result<Vec<ListedExport>> {
        self.handshake.list();
        match self.event()? {
            Event::Exports(exports) => Ok(exports),
            other => Err(self.unexpected("list the exports of", other)),
        }
    }

    /// What the server says of an export.
    ///
    /// # Errors
    /// There is none of that name, or the server does not tell.
    pub fn info(&mut self, export: &str) -> Result<ExportInfo> {
        self.handshake.info(export).map_err(|err| self.bad_name(err))?;
        match self.event()? {
            Event::Info(info) => Ok(*info),
            other => Err(self.unexpected("ask about the export of", other)),
        }
    }

    /// The names of the metadata contexts of an export; none if the server has none.
    ///
    /// # Errors
    /// The connection failed.
    pub fn contexts(&mut self, export: &str) -> Result<Vec<String>> {
        self.handshake.list_contexts(export, &[]).map_err(|err| self.bad_name(err))?;
        match self.event()? {
            Event::Contexts(names) => Ok(names),
            Event::Refused(_) => Ok(Vec::new()),
            other => Err(self.unexpected("ask for the contexts of", other)),
        }
    }

    /// Opens the export that the URI names; with `allocation`, its `base:allocation` context is asked for.
    ///
    /// # Errors
    /// There is none of that name, or the server refuses.
    pub fn open(mut self, allocation: bool) -> Result<Connection> {
        let export = self.uri.export.clone();
        if allocation {
            let asked = self.handshake.set_contexts(&export, &[BASE_ALLOCATION]);
            asked.map_err(|err| self.bad_name(err))?;
            match self.event()? {
                Event::ContextsSet(_) | Event::Refused(_) => {}
                other => return Err(self.unexpected("set the contexts of", other)),
            }
        }
        self.handshake.go(&export).map_err(|err| self.bad_name(err))?;
        match self.event()? {
            Event::Done(negotiated) => {
                Ok(Connection { transport: self.transport, negotiated, input: self.input })
            }
            other => Err(self.unexpected("open", other)),
        }
    }

    /// Says goodbye.
    pub fn close(mut self) {
        self.handshake.abort();
        // A server need not answer.
        let _ = self.event();
    }

    fn bad_name(&self, err: blockyard_nbd::Error) -> Error {
        Error::usage(format!("{} names an impossible export", self.uri)).caused_by(err)
    }

    fn unexpected(&self, doing: &str, event: Event) -> Error {
        let what = format!("cannot {doing} {}", self.uri);
        match event {
            Event::Refused(err) => {
                let mut list = self.uri.clone();
                list.export.clear();
                let help = format!("see what is on offer: blockyard list '{list}'");
                Error::failed(what).caused_by(err).help(help)
            }
            other => Error::failed(format!("{what}: the server answered {other:?}")),
        }
    }
}
