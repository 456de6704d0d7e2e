//! Addresses of entities (ceph: `src/msg/msg_types.h`, `entity_addr_t` and `entity_addrvec_t`).

use super::{Decode, Encode, Reader, Writer};
use crate::error::{Error, Result};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::fmt;

/// Most addresses of one entity that are taken.
pub const MAX_ADDRS: usize = 64;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Bytes of a `sockaddr_in` and a `sockaddr_in6`.
const SOCKADDR_IN_LEN: u32 = 16;
const SOCKADDR_IN6_LEN: u32 = 28;
/// Bytes of the `sockaddr_storage` in the encoding from before messenger 2.
const SOCKADDR_STORAGE_LEN: usize = 128;
/// First byte of an encoding: an old address, an address, a vector of addresses.
const MARK_LEGACY: u8 = 0;
const MARK_ADDR: u8 = 1;
const MARK_VECTOR: u8 = 2;

/// What listens at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrType(pub u32);

impl AddrType {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Messenger 1.
    pub const LEGACY: Self = Self(1);
    /// Messenger 2.
    pub const MSGR2: Self = Self(2);
    /// Either, as in a client's address or a blocklist.
    pub const ANY: Self = Self(3);
    /// A network, in a blocklist.
    pub const CIDR: Self = Self(4);
}

/// Where an instance of an entity is, or was: instances at the same address differ by their nonce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityAddr {
    /// What listens there.
    pub kind: AddrType,
    /// The instance's number: a process id or chance.
    pub nonce: u32,
    /// The socket's address; none for a blank address.
    pub socket: Option<SocketAddr>,
}

impl fmt::Display for EntityAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            AddrType::LEGACY => "v1:",
            AddrType::MSGR2 => "v2:",
            AddrType::ANY => "any:",
            AddrType::CIDR => "cidr:",
            _ => "-",
        };
        match self.socket {
            Some(socket) => write!(f, "{kind}{socket}/{}", self.nonce),
            None => write!(f, "{kind}/{}", self.nonce),
        }
    }
}

impl EntityAddr {
    /// A messenger 2 address.
    #[must_use]
    pub const fn msgr2(socket: SocketAddr, nonce: u32) -> Self {
        Self { kind: AddrType::MSGR2, nonce, socket: Some(socket) }
    }

    /// The fields behind the first byte of an encoding.
    fn decode_modern(reader: &mut Reader<'_>) -> Result<Self> {
        let mut fields = reader.versioned(1)?.fields;
        let (kind, nonce) = (AddrType(fields.u32()?), fields.u32()?);
        let socket = match fields.u32()? {
            0 => None,
            len @ (SOCKADDR_IN_LEN..=128) => {
                let mut socket = Reader::new(fields.doing(), fields.raw(len as usize)?);
                let family = socket.u16()?;
                read_socket(&mut socket, family)?
            }
            len => {
                return Err(
                    fields.violation("a socket address has 0 or 16 to 128 bytes", len.into())
                );
            }
        };
        Ok(Self { kind, nonce, socket })
    }

    fn decode_legacy(reader: &mut Reader<'_>) -> Result<Self> {
        // The mark was the first of the four bytes of the type, which was always 0.
        reader.raw(3)?;
        let nonce = reader.u32()?;
        let mut socket = Reader::new(reader.doing(), reader.raw(SOCKADDR_STORAGE_LEN)?);
        let family = u16::from_be_bytes(socket.array()?);
        Ok(Self { kind: AddrType::LEGACY, nonce, socket: read_socket(&mut socket, family)? })
    }
}

/// Reads a socket's address behind its family; none for families without an Internet address.
fn read_socket(reader: &mut Reader<'_>, family: u16) -> Result<Option<SocketAddr>> {
    let port = match family {
        AF_INET | AF_INET6 => u16::from_be_bytes(reader.array()?),
        _ => return Ok(None),
    };
    if family == AF_INET {
        let ip = Ipv4Addr::from(reader.array::<4>()?);
        return Ok(Some(SocketAddr::new(IpAddr::V4(ip), port)));
    }
    let flow = u32::from_be_bytes(reader.array()?);
    let ip = Ipv6Addr::from(reader.array::<16>()?);
    let scope = reader.u32()?;
    Ok(Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope))))
}

impl Encode for EntityAddr {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(MARK_ADDR);
        writer.versioned(1, 1, |w| {
            w.u32(self.kind.0);
            w.u32(self.nonce);
            match self.socket {
                None => w.u32(0),
                Some(SocketAddr::V4(socket)) => {
                    w.u32(SOCKADDR_IN_LEN);
                    w.u16(AF_INET);
                    w.raw(&socket.port().to_be_bytes());
                    w.raw(&socket.ip().octets());
                    w.raw(&[0; 8]);
                }
                Some(SocketAddr::V6(socket)) => {
                    w.u32(SOCKADDR_IN6_LEN);
                    w.u16(AF_INET6);
                    w.raw(&socket.port().to_be_bytes());
                    w.raw(&socket.flowinfo().to_be_bytes());
                    w.raw(&socket.ip().octets());
                    w.u32(socket.scope_id());
                }
            }
        });
    }
}

impl Decode for EntityAddr {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        match reader.u8()? {
            MARK_LEGACY => Self::decode_legacy(reader),
            MARK_ADDR => Self::decode_modern(reader),
            mark => Err(reader.violation("an address starts with 0 or 1", mark.into())),
        }
    }
}

/// All addresses of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityAddrs(pub Vec<EntityAddr>);

impl EntityAddrs {
    /// The first messenger 2 address.
    #[must_use]
    pub fn msgr2(&self) -> Option<EntityAddr> {
        self.0.iter().copied().find(|addr| addr.kind == AddrType::MSGR2)
    }
}

impl fmt::Display for EntityAddrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, addr) in self.0.iter().enumerate() {
            write!(f, "{}{addr}", if index == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

impl Encode for EntityAddrs {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(MARK_VECTOR);
        writer.vec(&self.0, Writer::put);
    }
}

impl Decode for EntityAddrs {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        match reader.u8()? {
            MARK_LEGACY => Ok(Self(vec![EntityAddr::decode_legacy(reader)?])),
            MARK_ADDR => Ok(Self(vec![EntityAddr::decode_modern(reader)?])),
            MARK_VECTOR => {
                let addrs = reader.vec(7, EntityAddr::decode)?;
                if addrs.len() > MAX_ADDRS {
                    let (got, limit) = (addrs.len() as u64, MAX_ADDRS as u64);
                    return Err(Error::too_big(
                        reader.doing(),
                        "addresses of an entity",
                        got,
                        limit,
                    ));
                }
                Ok(Self(addrs))
            }
            mark => Err(reader.violation("addresses start with 0, 1 or 2", mark.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::encoded;
    use proptest::prelude::*;

    /// The address list of a SERVER_IDENT frame of a monitor of 16.2.15.
    const MONITOR: &[u8] = b"\x02\x02\0\0\0\
        \x01\x01\x01\x1c\0\0\0\x02\0\0\0\0\0\0\0\x10\0\0\0\x02\0\x0c\xe4\x7f\0\0\x01\0\0\0\0\0\0\0\0\
        \x01\x01\x01\x1c\0\0\0\x01\0\0\0\0\0\0\0\x10\0\0\0\x02\0\x1a\x85\x7f\0\0\x01\0\0\0\0\0\0\0\0";

    #[test]
    fn a_monitors_addresses_are_read_and_written() {
        let mut reader = Reader::new("testing", MONITOR);
        let addrs: EntityAddrs = reader.get().unwrap();
        assert!(reader.is_empty());
        assert_eq!(addrs.to_string(), "[v2:127.0.0.1:3300/0,v1:127.0.0.1:6789/0]");
        assert_eq!(addrs.msgr2(), Some(addrs.0[0]));
        assert_eq!(encoded(&addrs), MONITOR);
    }

    #[test]
    fn an_address_from_before_messenger_2_is_read() {
        let mut bytes = vec![0, 0, 0, 0, 7, 0, 0, 0, 0, 2, 0x1a, 0x85, 10, 0, 0, 1];
        bytes.resize(4 + 4 + SOCKADDR_STORAGE_LEN, 0);
        for addrs in [
            EntityAddrs::decode(&mut Reader::new("testing", &bytes)).unwrap(),
            EntityAddrs(vec![EntityAddr::decode(&mut Reader::new("testing", &bytes)).unwrap()]),
        ] {
            assert_eq!(addrs.to_string(), "[v1:10.0.0.1:6789/7]");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bytes in [&[3_u8][..], &[1, 1, 1, 12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0]] {
            assert!(EntityAddr::decode(&mut Reader::new("testing", bytes)).is_err());
        }
    }

    proptest! {
        #[test]
        fn every_address_comes_back(kind in 0_u32..5, nonce: u32, socket: Option<SocketAddr>) {
            let addr = EntityAddr { kind: AddrType(kind), nonce, socket };
            let bytes = encoded(&addr);
            prop_assert_eq!(EntityAddr::decode(&mut Reader::new("testing", &bytes)).unwrap(), addr);
        }
    }
}
