//! Small structures: names of entities, times, identifiers.

use super::{Decode, Encode, Reader, Writer};
use crate::error::Result;
use std::fmt;
use std::time::Duration;

/// A kind of entity (ceph: `src/include/msgr.h`, `CEPH_ENTITY_TYPE_*`). Services are bits of a mask of tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityType(pub u8);

impl EntityType {
    /// A monitor.
    pub const MON: Self = Self(0x01);
    /// A metadata server.
    pub const MDS: Self = Self(0x02);
    /// An object storage daemon.
    pub const OSD: Self = Self(0x04);
    /// A client.
    pub const CLIENT: Self = Self(0x08);
    /// A manager.
    pub const MGR: Self = Self(0x10);
    /// The authentication service of the monitors.
    pub const AUTH: Self = Self(0x20);

    /// The name that configuration files and messages use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MON => "mon",
            Self::MDS => "mds",
            Self::OSD => "osd",
            Self::CLIENT => "client",
            Self::MGR => "mgr",
            Self::AUTH => "auth",
            _ => "unknown",
        }
    }

    /// The kind with a name, the inverse of [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::MON, Self::MDS, Self::OSD, Self::CLIENT, Self::MGR, Self::AUTH]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// The name of an instance in messages: its kind and a number (ceph: `src/msg/msg_types.h`, `entity_name_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityName {
    /// Its kind.
    pub kind: EntityType,
    /// A daemon's rank, a client's global id, or -1 for "to be assigned".
    pub number: i64,
}

impl fmt::Display for EntityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind.name(), self.number)
    }
}

impl Encode for EntityName {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(self.kind.0);
        writer.i64(self.number);
    }
}

impl Decode for EntityName {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { kind: EntityType(reader.u8()?), number: reader.i64()? })
    }
}

/// A time or a duration (ceph: `src/include/utime.h`): u32 seconds, u32 nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Utime {
    /// Seconds, since 1970 for a time.
    pub seconds: u32,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

impl Utime {
    /// It as a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.seconds.into()) + Duration::from_nanos(self.nanoseconds.into())
    }
}

impl From<Duration> for Utime {
    /// Durations beyond the format's end become its last second.
    fn from(duration: Duration) -> Self {
        let seconds = u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        Self { seconds, nanoseconds: duration.subsec_nanos() }
    }
}

impl Encode for Utime {
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.seconds);
        writer.u32(self.nanoseconds);
    }
}

impl Decode for Utime {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { seconds: reader.u32()?, nanoseconds: reader.u32()? })
    }
}

/// The identifier of a cluster or a daemon (ceph: `src/include/uuid.h`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fsid(pub [u8; 16]);

impl fmt::Display for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fsid({self})")
    }
}

impl Encode for Fsid {
    fn encode(&self, writer: &mut Writer) {
        writer.raw(&self.0);
    }
}

impl Decode for Fsid {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self(reader.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::encoded;

    #[test]
    fn names_print_as_ceph_prints_them() {
        assert_eq!(EntityName { kind: EntityType::OSD, number: 3 }.to_string(), "osd.3");
        assert_eq!(EntityType::from_name("mgr"), Some(EntityType::MGR));
        assert_eq!(EntityType::from_name("nobody"), None);
        let fsid = Fsid([
            0x0a, 0x79, 0xf0, 0x8a, 0x05, 0x6a, 0x46, 0xed, 0xb3, 0x1a, 0x23, 0x3f, 0x3a, 0xfa,
            0x53, 0xf6,
        ]);
        assert_eq!(fsid.to_string(), "0a79f08a-056a-46ed-b31a-233f3afa53f6");
    }

    #[test]
    fn times_are_seconds_and_nanoseconds() {
        let time = Utime::from(Duration::new(5, 7));
        assert_eq!(encoded(&time), [5, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(time.duration(), Duration::new(5, 7));
        assert_eq!(Utime::from(Duration::MAX).seconds, u32::MAX);
    }
}
