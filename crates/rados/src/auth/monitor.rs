//! How a client authenticates to a monitor.

use super::cephx::{
    Authenticate, Authorize, Blob, Challenge, GET_AUTH_SESSION_KEY, GET_PRINCIPAL_SESSION_KEY,
    TicketBlob,
};
use super::identity::Identity;
use super::key::{CryptoKey, Usage};
use super::random::Random;
use super::refusal;
use super::ticket::Tickets;
use crate::encoding::{EntityType, Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::msgr::{
    AuthBadMethod, AuthDone, AuthMethod, Authenticator, ConnectionMode, ConnectionSecret, Opening,
    Secrets, SessionKey,
};
use std::time::Instant;

/// The first byte of what a monitor gets (ceph: `src/auth/Auth.h`, `AUTH_MODE_MON`).
const MODE_MON: u8 = 10;
const DOING: &str = "authenticating to a monitor";

/// What a client brings along.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Who it is.
    pub identity: Identity,
    /// Its key, or why there is none: an error for a cluster that wants one. Without a key only the method "none" is tried.
    pub key: std::result::Result<CryptoKey, Option<Error>>,
    /// The methods to try, in order (`auth_client_required`).
    pub methods: Vec<AuthMethod>,
}

/// A client's standing with the monitors, and its attempts to get in: keep it over connections, since a monitor gives the
/// number and the tickets of before only to who shows the old ticket.
#[derive(Debug)]
pub struct MonitorAuth {
    credentials: Credentials,
    modes: Vec<ConnectionMode>,
    services: Vec<EntityType>,
    random: Random,
    attempt: Attempt,
    standing: Standing,
}

/// What was agreed on with a monitor that proved to be one. It counts for as long as nothing else is.
#[derive(Clone, Debug)]
struct Standing {
    method: AuthMethod,
    global_id: u64,
    tickets: Tickets,
}

/// What is being done on one connection.
#[derive(Debug)]
struct Attempt {
    method: AuthMethod,
    server_challenge: Option<u64>,
    /// What the peer says; it is yet to prove that it is a monitor.
    said: Option<Standing>,
}

impl MonitorAuth {
    /// A client that was not there before. `modes` are the ways to protect connections to monitors, the preferred one
    /// first; `services` those that tickets are wanted for.
    #[must_use]
    pub fn new(
        credentials: Credentials,
        modes: Vec<ConnectionMode>,
        services: Vec<EntityType>,
        random: Random,
    ) -> Self {
        let method = AuthMethod::CEPHX;
        let attempt = Attempt { method, server_challenge: None, said: None };
        let standing = Standing { method, global_id: 0, tickets: Tickets::default() };
        Self { credentials, modes, services, random, attempt, standing }
    }

    /// The number that the monitors gave; 0 before.
    #[must_use]
    pub const fn global_id(&self) -> u64 {
        self.standing.global_id
    }

    /// The method that the monitors took.
    #[must_use]
    pub const fn method(&self) -> AuthMethod {
        self.standing.method
    }

    /// Who the client is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.credentials.identity
    }

    /// The tickets that there are.
    #[must_use]
    pub const fn tickets(&self) -> &Tickets {
        &self.standing.tickets
    }

    /// When to send [`renewal`](Self::renewal); none if nothing ends.
    #[must_use]
    pub fn renew_after(&self) -> Option<Instant> {
        self.standing.tickets.renew_after()
    }

    /// An instance of a service does not take its ticket: another one is due, at once unless this one is very new.
    pub fn doubt(&mut self, service: EntityType, now: Instant) {
        self.standing.tickets.doubt(service, now);
    }

    /// A request for new tickets, for the message MAuth on an open session; none if nothing is due.
    pub fn renewal(&mut self, now: Instant) -> Option<Vec<u8>> {
        let Standing { method, global_id, tickets } = &self.standing;
        if *method != AuthMethod::CEPHX {
            return None;
        }
        if !tickets.due(&[EntityType::AUTH], now).is_empty() {
            return self.authenticate().ok();
        }
        let due = tickets.due(&self.services, now);
        let ticket = tickets.get(EntityType::AUTH, now).filter(|_| !due.is_empty())?;
        let authorize = Authorize { nonce: self.random.u64(), challenge_plus_one: None };
        let mut writer = Writer::new();
        writer.u16(GET_PRINCIPAL_SESSION_KEY);
        writer.raw(&ticket.authorize(*global_id, &authorize, &mut self.random));
        writer.u8(1);
        writer.u32(mask(&due));
        Some(writer.into_bytes())
    }

    /// Takes the answer to [`renewal`](Self::renewal), out of MAuthReply.
    ///
    /// # Errors
    /// A refusal, a malformed answer, a wrong key.
    pub fn renewed(&mut self, now: Instant, payload: &[u8]) -> Result<()> {
        let mut tickets = self.standing.tickets.clone();
        self.take_reply(&mut tickets, now, payload)?;
        self.standing.tickets = tickets;
        Ok(())
    }

    fn opening(&self) -> Opening {
        let mut writer = Writer::new();
        writer.u8(MODE_MON);
        writer.put(&self.credentials.identity);
        writer.u64(self.standing.global_id);
        Opening {
            method: self.attempt.method,
            modes: self.modes.clone(),
            payload: writer.into_bytes(),
        }
    }

    fn can(&self, method: AuthMethod) -> bool {
        self.credentials.methods.contains(&method)
            && (method != AuthMethod::CEPHX || self.credentials.key.is_ok())
    }

    fn key(&self) -> Result<&CryptoKey> {
        self.credentials.key.as_ref().map_err(|why| {
            why.clone().unwrap_or_else(|| {
                let problem = "no key for this entity; name a keyring that has one";
                let text = self.credentials.identity.to_string();
                Error::new(DOING, ErrorKind::BadParameter { problem, text })
            })
        })
    }

    /// The answer to the monitor's challenge.
    fn authenticate(&mut self) -> Result<Vec<u8>> {
        let Some(server_challenge) = self.attempt.server_challenge else {
            return Err(Error::violation(DOING, "a challenge comes first", 0));
        };
        let client_challenge = self.random.u64();
        let proof = self.key()?.prove(server_challenge, client_challenge);
        let old_ticket = self.standing.tickets.by_service(EntityType::AUTH);
        let old_ticket = old_ticket.map_or_else(TicketBlob::default, |ticket| ticket.blob.clone());
        let services = mask(&[&[EntityType::AUTH], &self.services[..]].concat());
        let answer = Authenticate { client_challenge, proof, old_ticket, services };
        Ok(crate::encoding::encoded(&answer))
    }

    /// Takes a reply with tickets: the secret of the connection, if there is one.
    fn take_reply(&self, tickets: &mut Tickets, now: Instant, payload: &[u8]) -> Result<Vec<u8>> {
        let mut reader = Reader::new(DOING, payload);
        let (request, status) = (reader.u16()?, reader.i32()?);
        if status != 0 {
            return Err(refusal(DOING, "the monitor gives no tickets", status));
        }
        match request {
            GET_AUTH_SESSION_KEY => {
                let key = self.key()?;
                let entity = self.credentials.identity.to_string();
                tickets.take(&mut reader, key, &entity, now)?;
                if reader.is_empty() {
                    return Ok(Vec::new());
                }
                let session_key = session_key(tickets)?;
                let secret = reader.bytes()?;
                let secret = self.open_secret(&session_key, secret)?;
                let extra = reader.bytes()?;
                if !extra.is_empty() {
                    let mut extra = Reader::new(DOING, extra);
                    tickets.take(&mut extra, &session_key, "the session", now)?;
                }
                Ok(secret)
            }
            GET_PRINCIPAL_SESSION_KEY => {
                let session_key = session_key(tickets)?;
                tickets.take(&mut reader, &session_key, "the session", now)?;
                Ok(Vec::new())
            }
            other => Err(reader.violation("a monitor answers what it was asked", other.into())),
        }
    }

    fn open_secret(&self, session_key: &CryptoKey, bytes: &[u8]) -> Result<Vec<u8>> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let cipher = Reader::new(DOING, bytes).bytes()?;
        let secret = session_key.open::<Blob>(Usage::ConnectionSecret, cipher)?;
        let wrong = || {
            let entity = self.credentials.identity.to_string();
            Error::new(DOING, ErrorKind::WrongKey { entity, what: "the connection's secret" })
        };
        Ok(secret.ok_or_else(wrong)?.0)
    }
}

/// The key that the client shares with the authentication service.
fn session_key(tickets: &Tickets) -> Result<CryptoKey> {
    let ticket = tickets.by_service(EntityType::AUTH);
    let missing = Error::new(DOING, ErrorKind::NoTicket(EntityType::AUTH.name()));
    ticket.map(|ticket| ticket.session_key.clone()).ok_or(missing)
}

/// The services as a mask.
fn mask(services: &[EntityType]) -> u32 {
    services.iter().fold(0, |mask, service| mask | u32::from(service.0))
}

/// The secret of a connection, if one came.
pub(super) fn connection_secret(bytes: &[u8]) -> Result<Option<ConnectionSecret>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    ConnectionSecret::parse(bytes).map(Some)
}

impl Authenticator for MonitorAuth {
    fn start(&mut self, _now: Instant) -> Result<Opening> {
        (self.attempt.server_challenge, self.attempt.said) = (None, None);
        let methods = self.credentials.methods.clone();
        match methods.into_iter().find(|&method| self.can(method)) {
            Some(method) => self.attempt.method = method,
            None => {
                self.key()?;
                let problem = "no method to authenticate is left: cephx and none can be used";
                let text = format!("{:?}", self.credentials.methods);
                return Err(Error::new(DOING, ErrorKind::BadParameter { problem, text }));
            }
        }
        Ok(self.opening())
    }

    fn more(&mut self, _now: Instant, payload: &[u8]) -> Result<Vec<u8>> {
        let mut reader = Reader::new(DOING, payload);
        let Attempt { method, server_challenge, .. } = &self.attempt;
        if *method != AuthMethod::CEPHX || server_challenge.is_some() {
            return Err(reader.violation("a monitor challenges once, and for cephx", 0));
        }
        self.attempt.server_challenge = Some(reader.get::<Challenge>()?.0);
        self.authenticate()
    }

    fn done(&mut self, now: Instant, done: &AuthDone) -> Result<Secrets> {
        let (method, global_id) = (self.attempt.method, done.global_id);
        let mut tickets = self.standing.tickets.clone();
        let secrets = if method == AuthMethod::NONE {
            Secrets::default()
        } else {
            let secret = self.take_reply(&mut tickets, now, &done.payload)?;
            let session_key = Some(SessionKey::new(session_key(&tickets)?.secret()));
            Secrets { session_key, connection: connection_secret(&secret)? }
        };
        self.attempt.said = Some(Standing { method, global_id, tickets });
        Ok(secrets)
    }

    fn proved(&mut self) {
        if let Some(said) = self.attempt.said.take() {
            self.standing = said;
        }
    }

    fn refused(&mut self, _now: Instant, refused: &AuthBadMethod) -> Result<Opening> {
        if super::is_transient(refused.result) {
            return Err(refusal(DOING, "the monitor accepts no clients now", refused.result));
        }
        let other = self.credentials.methods.iter().copied().find(|&method| {
            method != refused.method && refused.methods.contains(&method) && self.can(method)
        });
        let Some(other) = other else {
            super::check_modes(DOING, "ms_mon_client_mode", &self.modes, refused)?;
            let takes_keys = refused.methods.contains(&AuthMethod::CEPHX);
            if takes_keys && self.credentials.methods.contains(&AuthMethod::CEPHX) {
                self.key()?;
            }
            let reason = if refused.methods.contains(&refused.method) {
                format!("unknown client {}, or wrong key", self.credentials.identity)
            } else {
                let wanted = refused.methods.iter().map(ToString::to_string).collect::<Vec<_>>();
                format!("the cluster does not take {}, but {}", refused.method, wanted.join(", "))
            };
            return Err(refusal(DOING, &reason, refused.result));
        };
        self.attempt.method = other;
        Ok(self.opening())
    }
}
