//! The messages of cephx (ceph: `doc/dev/cephx_protocol.rst`, `src/auth/cephx/CephxProtocol.h`).

use super::key::CryptoKey;
use crate::encoding::{Decode, Encode, Reader, Utime, Writer};
use crate::error::Result;

/// The version byte in front of most of them.
const VERSION: u8 = 1;

/// Requests to a monitor (`CEPHX_GET_*`): who am I, and which services may I talk to.
pub(super) const GET_AUTH_SESSION_KEY: u16 = 0x0100;
pub(super) const GET_PRINCIPAL_SESSION_KEY: u16 = 0x0200;

/// A random number of the peer's, which is to be encrypted: `CephXServerChallenge`, `CephXAuthorizeChallenge`.
pub(super) struct Challenge(pub u64);

impl Decode for Challenge {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        reader.u8()?;
        Ok(Self(reader.u64()?))
    }
}

/// What only a service can read: `CephXTicketBlob`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TicketBlob {
    pub secret_id: u64,
    pub blob: Vec<u8>,
}

impl Encode for TicketBlob {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(VERSION);
        writer.u64(self.secret_id);
        writer.bytes(&self.blob);
    }
}

impl Decode for TicketBlob {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        reader.u8()?;
        Ok(Self { secret_id: reader.u64()?, blob: reader.bytes()?.to_vec() })
    }
}

/// The answer to a monitor's challenge: `CephXAuthenticate`. Version 3 says that an old ticket is always shown, and asks
/// for tickets of services in the same trip.
pub(super) struct Authenticate {
    pub client_challenge: u64,
    pub proof: u64,
    pub old_ticket: TicketBlob,
    pub services: u32,
}

impl Encode for Authenticate {
    fn encode(&self, writer: &mut Writer) {
        writer.u16(GET_AUTH_SESSION_KEY);
        writer.u8(3);
        writer.u64(self.client_challenge);
        writer.u64(self.proof);
        writer.put(&self.old_ticket);
        writer.u32(self.services);
    }
}

/// What in a ticket is for the client: `CephXServiceTicket`.
pub(super) struct ServiceTicket {
    pub session_key: CryptoKey,
    pub validity: Utime,
}

impl Decode for ServiceTicket {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        reader.u8()?;
        Ok(Self { session_key: reader.get()?, validity: reader.get()? })
    }
}

/// Bytes behind their count, inside of an envelope: a connection's secret, or a ticket for the authentication service.
pub(super) struct Blob(pub Vec<u8>);

impl Decode for Blob {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self(reader.bytes()?.to_vec()))
    }
}

/// What proves to a service that the ticket's session key is known: `CephXAuthorize`.
pub(super) struct Authorize {
    pub nonce: u64,
    pub challenge_plus_one: Option<u64>,
}

impl Encode for Authorize {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(2);
        writer.u64(self.nonce);
        writer.bool(self.challenge_plus_one.is_some());
        writer.u64(self.challenge_plus_one.unwrap_or(0));
    }
}

/// The service's proof of the same: `CephXAuthorizeReply`.
pub(super) struct AuthorizeReply {
    pub nonce_plus_one: u64,
    pub connection_secret: Vec<u8>,
}

impl Decode for AuthorizeReply {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let version = reader.u8()?;
        let nonce_plus_one = reader.u64()?;
        let connection_secret = if version >= 2 { reader.bytes()?.to_vec() } else { Vec::new() };
        Ok(Self { nonce_plus_one, connection_secret })
    }
}
