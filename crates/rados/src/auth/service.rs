//! How a client authenticates to a service, such as an OSD.

use super::cephx::{Authorize, AuthorizeReply, Challenge};
use super::identity::Identity;
use super::key::Usage;
use super::monitor::{MonitorAuth, connection_secret};
use super::random::Random;
use super::refusal;
use super::ticket::Ticket;
use crate::encoding::{EntityType, Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::msgr::{
    AuthBadMethod, AuthDone, AuthMethod, Authenticator, ConnectionMode, Opening, Secrets,
    SessionKey,
};
use std::time::Instant;

/// The first byte of what a service gets (ceph: `src/auth/Auth.h`, `AUTH_MODE_AUTHORIZER`). An authorizer of cephx
/// starts with its version instead, which is 1 as well.
const MODE_AUTHORIZER: u8 = 1;
const DOING: &str = "authenticating to a service";

/// One attempt to open a session with a service.
#[derive(Debug)]
pub struct ServiceAuth {
    identity: Identity,
    global_id: u64,
    ticket: Option<Ticket>,
    modes: Vec<ConnectionMode>,
    random: Random,
    nonce: u64,
    challenged: bool,
}

impl ServiceAuth {
    /// Uses what a monitor gave. `modes` are the ways to protect the connection, the preferred one first.
    ///
    /// # Errors
    /// [`ErrorKind::NoTicket`] if the method is cephx, and there is no ticket that is still valid.
    pub fn new(
        monitor: &MonitorAuth,
        service: EntityType,
        modes: Vec<ConnectionMode>,
        random: Random,
        now: Instant,
    ) -> Result<Self> {
        let ticket = match monitor.method() {
            AuthMethod::CEPHX => {
                let missing = Error::new(DOING, ErrorKind::NoTicket(service.name()));
                Some(monitor.tickets().get(service, now).cloned().ok_or(missing)?)
            }
            _ => None,
        };
        let (identity, global_id) = (monitor.identity().clone(), monitor.global_id());
        Ok(Self { identity, global_id, ticket, modes, random, nonce: 0, challenged: false })
    }

    fn authorizer(&mut self, challenge_plus_one: Option<u64>) -> Vec<u8> {
        let Some(ticket) = &self.ticket else {
            let mut writer = Writer::new();
            writer.u8(MODE_AUTHORIZER);
            writer.put(&self.identity);
            writer.u64(self.global_id);
            return writer.into_bytes();
        };
        let authorize = Authorize { nonce: self.nonce, challenge_plus_one };
        ticket.authorize(self.global_id, &authorize, &mut self.random)
    }

    fn wrong_key(&self, what: &'static str) -> Error {
        let entity = format!("{}'s ticket", self.identity);
        Error::new(DOING, ErrorKind::WrongKey { entity, what })
    }
}

impl Authenticator for ServiceAuth {
    fn start(&mut self, now: Instant) -> Result<Opening> {
        if let Some(ticket) = self.ticket.as_ref().filter(|ticket| !ticket.is_valid(now)) {
            return Err(Error::new(DOING, ErrorKind::NoTicket(ticket.service().name())));
        }
        self.nonce = self.random.u64();
        let method = if self.ticket.is_some() { AuthMethod::CEPHX } else { AuthMethod::NONE };
        Ok(Opening { method, modes: self.modes.clone(), payload: self.authorizer(None) })
    }

    fn more(&mut self, _now: Instant, payload: &[u8]) -> Result<Vec<u8>> {
        let ticket = match &self.ticket {
            Some(ticket) if !self.challenged => ticket,
            _ => {
                return Err(Error::violation(DOING, "a service challenges once, and for cephx", 0));
            }
        };
        self.challenged = true;
        let challenge = ticket
            .session_key
            .open::<Challenge>(Usage::AuthorizeChallenge, payload)?
            .ok_or_else(|| self.wrong_key("the service's challenge"))?;
        Ok(self.authorizer(Some(challenge.0.wrapping_add(1))))
    }

    fn done(&mut self, _now: Instant, done: &AuthDone) -> Result<Secrets> {
        let Some(ticket) = &self.ticket else { return Ok(Secrets::default()) };
        let cipher = Reader::new(DOING, &done.payload).bytes()?;
        let reply = ticket
            .session_key
            .open::<AuthorizeReply>(Usage::AuthorizeReply, cipher)?
            .ok_or_else(|| self.wrong_key("the service's answer"))?;
        if reply.nonce_plus_one != self.nonce.wrapping_add(1) {
            let kind = ErrorKind::Impostor("replayed answer to another client");
            return Err(Error::new(DOING, kind));
        }
        Ok(Secrets {
            session_key: Some(SessionKey::new(ticket.session_key.secret())),
            connection: connection_secret(&reply.connection_secret)?,
        })
    }

    fn refused(&mut self, _now: Instant, refused: &AuthBadMethod) -> Result<Opening> {
        super::check_modes(DOING, "ms_client_mode", &self.modes, refused)?;
        let reason = format!("the service does not take the ticket of {}", self.identity);
        Err(refusal(DOING, &reason, refused.result))
    }
}
