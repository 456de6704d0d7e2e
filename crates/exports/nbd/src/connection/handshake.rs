//! The handshake of a connection: the protocol's state machine, driven by the socket.

use std::future::poll_fn;

use blockyard_nbd::server::{
    self, Event, Export, Exports, Handshake, Negotiated, Refusal, TlsPolicy,
};

use super::close::Close;
use super::wire::{Received, Wire};
use crate::catalogue::Catalogue;
use crate::config::TlsMode;
use crate::server::{Registration, Stage};

/// Bytes that are received at a time: more than any usual handshake has.
const STEP: usize = 4 << 10;

/// A connection that has not chosen its export yet.
pub(super) struct Opening<'a> {
    registration: &'a Registration,
    wire: Wire,
    protocol: Handshake,
    /// Received, but not taken by the protocol yet: [`STEP`] at most.
    input: Vec<u8>,
    /// Not sent yet: the replies to an option.
    output: Vec<u8>,
    tls: bool,
}

/// The exports as one client asks for them: what it is refused is logged.
struct Asked<'a> {
    catalogue: &'a Catalogue,
    peer: &'a str,
    tls: bool,
}

impl Exports for Asked<'_> {
    fn list(&self, tls: bool, visit: &mut dyn FnMut(&str, &str)) {
        self.catalogue.list(tls, visit);
    }

    fn find(&self, name: &str) -> Result<Export, Refusal> {
        let found = self.catalogue.find(name);
        let reason = match &found {
            Err(Refusal::Unknown) => Some("no such export"),
            Err(_) => Some("not allowed for this client"),
            Ok(export) if export.tls_only && !self.tls => Some("TLS required"),
            Ok(_) => None,
        };
        if let Some(reason) = reason {
            tracing::info!(peer = self.peer, export = name, reason, "export refused");
        }
        found
    }
}

impl<'a> Opening<'a> {
    pub(super) fn new(registration: &'a Registration, wire: Wire) -> Self {
        let config = &registration.server.config;
        let tls = match config.tls {
            TlsMode::Off => TlsPolicy::Off,
            TlsMode::Allow(_) => TlsPolicy::Allow,
            TlsMode::Require(_) => TlsPolicy::Require,
        };
        let best_style = config.limits.best_style;
        let protocol = Handshake::new(server::Config { tls, best_style });
        let (input, output) = (Vec::new(), Vec::new());
        Self { registration, wire, protocol, input, output, tls: false }
    }

    /// Until the client has chosen.
    pub(super) async fn run(&mut self) -> Result<Box<Negotiated>, Close> {
        loop {
            let took = self.advance().await?;
            match self.protocol.poll_event() {
                Some(Event::Done(negotiated)) => return Ok(negotiated),
                Some(Event::Aborted) => return Err(Close::Left),
                Some(Event::StartTls) => self.start_tls().await?,
                None if took => {}
                None => self.receive().await?,
            }
        }
    }

    /// Gives the protocol what was received, and the client what the protocol says. Whether there was any.
    async fn advance(&mut self) -> Result<bool, Close> {
        let Registration { server, client } = self.registration;
        if server.stage() > Stage::Serving {
            self.protocol.shut_down();
        }
        let asked = Asked { catalogue: &server.catalogue, peer: &client.peer, tls: self.tls };
        let taken = self.protocol.receive(&asked, &self.input);
        if let Ok(len) = taken {
            self.input.drain(..len);
        }
        let said = self.protocol.poll_transmit(&mut self.output);
        self.flush().await?;
        Ok(taken? > 0 || said)
    }

    async fn flush(&mut self) -> Result<(), Close> {
        while !self.output.is_empty() {
            let sent = self.wire.send_bytes(&self.output)?;
            self.output.drain(..sent);
            if sent == 0 {
                poll_fn(|cx| self.wire.poll_writable(cx)).await?;
            }
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), Close> {
        loop {
            let start = self.input.len();
            self.input.resize(start + STEP, 0);
            let received = self.wire.receive(&mut self.input[start..]);
            let len = if let Ok(Received::Bytes(len)) = received { len } else { 0 };
            self.input.truncate(start + len);
            match received? {
                Received::Bytes(_) => return Ok(()),
                Received::End => return Err(Close::Left),
                Received::Nothing => {
                    self.input.shrink_to(0);
                    poll_fn(|cx| self.wire.poll_readable(cx)).await?;
                }
            }
        }
    }

    async fn start_tls(&mut self) -> Result<(), Close> {
        if !self.input.is_empty() {
            return Err(Close::NotTls);
        }
        let Some(config) = self.registration.server.config.tls.sessions() else {
            unreachable!("the protocol was told that there is no TLS");
        };
        config.renew().await;
        self.wire.start_tls(config)?;
        let workers = &self.registration.server.tls_workers;
        self.wire.shake_tls(workers).await.map_err(Close::Tls)?;
        self.protocol.tls_started();
        self.tls = true;
        Ok(())
    }

    /// The socket, and what came behind the handshake.
    pub(super) fn into_parts(self) -> (Wire, Vec<u8>) {
        (self.wire, self.input)
    }

    pub(super) fn into_wire(self) -> Wire {
        self.wire
    }
}
