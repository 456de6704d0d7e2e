//! Tickets for services.

use super::cephx::{Authorize, Blob, ServiceTicket, TicketBlob};
use super::key::{CryptoKey, Usage};
use super::random::Random;
use crate::encoding::{EntityType, Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Most tickets of one reply.
const MAX_TICKETS: u32 = 64;
/// A ticket that is refused is renewed when it is so old: OSDs that refuse whatever there is are not asked all the time.
const DOUBT_PAUSE: Duration = Duration::from_secs(10);
/// The version of an authorizer.
const AUTHORIZER_VERSION: u8 = 1;

/// A ticket for the instances of one service.
#[derive(Clone, Debug)]
pub struct Ticket {
    service: EntityType,
    pub(super) session_key: CryptoKey,
    pub(super) blob: TicketBlob,
    taken: Instant,
    renew_after: Option<Instant>,
    expires: Option<Instant>,
}

impl Ticket {
    /// Whom it is for.
    #[must_use]
    pub const fn service(&self) -> EntityType {
        self.service
    }

    /// When to ask for another one: when a quarter of its time is left. None if it does not end.
    #[must_use]
    pub const fn renew_after(&self) -> Option<Instant> {
        self.renew_after
    }

    /// Whether services still take it.
    #[must_use]
    pub fn is_valid(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// Reads the ticket for `service` in a reply that was encrypted with `key`. A ticket for the authentication service
    /// may be encrypted once more, with the session key of the one before.
    fn read(
        reader: &mut Reader<'_>,
        service: EntityType,
        key: &CryptoKey,
        before: Option<&Self>,
        now: Instant,
    ) -> Result<Option<Self>> {
        reader.u8()?;
        let Some(ticket) = key.open::<ServiceTicket>(Usage::TicketSessionKey, reader.bytes()?)?
        else {
            return Ok(None);
        };
        let encrypted = reader.bool()?;
        let bytes = reader.bytes()?;
        let bytes = match (encrypted, before) {
            (false, _) => bytes.to_vec(),
            (true, None) => return Ok(None),
            (true, Some(before)) => {
                let Some(blob) = before.session_key.open::<Blob>(Usage::TicketBlob, bytes)? else {
                    return Ok(None);
                };
                blob.0
            }
        };
        let blob = Reader::new(reader.doing(), &bytes).get()?;
        let validity = ticket.validity.duration();
        let expires = (!validity.is_zero()).then(|| now + validity);
        let renew_after = expires.map(|expires| expires - validity / 4);
        Ok(Some(Self {
            service,
            session_key: ticket.session_key,
            blob,
            taken: now,
            renew_after,
            expires,
        }))
    }

    /// The bytes of an authorizer for this ticket, without the proof.
    fn authorizer(&self, global_id: u64) -> Writer {
        let mut writer = Writer::new();
        writer.u8(AUTHORIZER_VERSION);
        writer.u64(global_id);
        writer.u32(self.service.0.into());
        writer.put(&self.blob);
        writer
    }

    /// An authorizer: the ticket, and a proof that its session key is known.
    pub(super) fn authorize(
        &self,
        global_id: u64,
        authorize: &Authorize,
        random: &mut Random,
    ) -> Vec<u8> {
        let mut writer = self.authorizer(global_id);
        writer.bytes(&self.session_key.seal(Usage::Authorize, random, authorize));
        writer.into_bytes()
    }
}

/// The tickets of a client.
#[derive(Clone, Debug, Default)]
pub struct Tickets {
    by_service: BTreeMap<EntityType, Ticket>,
}

impl Tickets {
    /// The ticket for a service, if there is one that did not end.
    #[must_use]
    pub fn get(&self, service: EntityType, now: Instant) -> Option<&Ticket> {
        self.by_service.get(&service).filter(|ticket| ticket.is_valid(now))
    }

    /// The ticket for a service, valid or not.
    pub(super) fn by_service(&self, service: EntityType) -> Option<&Ticket> {
        self.by_service.get(&service)
    }

    /// When the first of them should be renewed.
    #[must_use]
    pub fn renew_after(&self) -> Option<Instant> {
        self.by_service.values().filter_map(Ticket::renew_after).min()
    }

    /// A ticket is not taken: it is to be renewed, at once unless it is very new.
    pub(super) fn doubt(&mut self, service: EntityType, now: Instant) {
        if let Some(ticket) = self.by_service.get_mut(&service) {
            let renew = now.max(ticket.taken + DOUBT_PAUSE);
            ticket.renew_after = Some(ticket.renew_after.map_or(renew, |at| at.min(renew)));
        }
    }

    /// The services of `wanted` for which there is no ticket, or one that should be renewed.
    pub(super) fn due(&self, wanted: &[EntityType], now: Instant) -> Vec<EntityType> {
        let fresh = |service| {
            self.get(service, now)
                .is_some_and(|ticket| ticket.renew_after.is_none_or(|renew| now < renew))
        };
        wanted.iter().copied().filter(|&service| !fresh(service)).collect()
    }

    /// Takes a reply with tickets, which was encrypted with the key of `entity`.
    pub(super) fn take(
        &mut self,
        reader: &mut Reader<'_>,
        key: &CryptoKey,
        entity: &str,
        now: Instant,
    ) -> Result<()> {
        reader.u8()?;
        let count = reader.u32()?;
        if count > MAX_TICKETS {
            let (got, limit) = (count.into(), MAX_TICKETS.into());
            return Err(Error::too_big(reader.doing(), "tickets of a reply", got, limit));
        }
        for _ in 0..count {
            let service = reader.u32()?;
            let Ok(service) = u8::try_from(service).map(EntityType) else {
                return Err(reader.violation("services have numbers below 256", service.into()));
            };
            let before = self.by_service.get(&service);
            let Some(ticket) = Ticket::read(reader, service, key, before, now)? else {
                let kind = ErrorKind::WrongKey { entity: entity.to_owned(), what: "a ticket" };
                return Err(Error::new(reader.doing(), kind));
            };
            self.by_service.insert(service, ticket);
        }
        Ok(())
    }
}
