//! Locks on objects: what the methods of the class `lock` take and give (ceph: `src/cls/lock/cls_lock_types.h`,
//! `cls_lock_ops.h`).

use blockyard_rados::Result;
use blockyard_rados::encoding::{Decode, Encode, EntityAddr, EntityName, Reader, Utime, Writer};
use std::collections::BTreeMap;

/// In front of the attributes that are locks.
pub const PREFIX: &str = "lock.";
/// A flag of [`LockOp`]: who has the lock already takes it anew.
pub const MAY_RENEW: u8 = 1;
/// A flag of [`LockOp`]: who does not have the lock does not take it.
pub const MUST_RENEW: u8 = 2;

/// How many may have a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockType(pub u8);

impl LockType {
    /// Nobody has it.
    pub const NONE: Self = Self(0);
    /// One.
    pub const EXCLUSIVE: Self = Self(1);
    /// Several, of one tag.
    pub const SHARED: Self = Self(2);
    /// One, and nothing is kept of the lock when it is gone.
    pub const EXCLUSIVE_EPHEMERAL: Self = Self(3);

    /// Whether a lock can be of it.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        matches!(self, Self::EXCLUSIVE | Self::SHARED | Self::EXCLUSIVE_EPHEMERAL)
    }
}

/// Who has a lock (`locker_id_t`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockerId {
    /// The client.
    pub client: EntityName,
    /// What it calls its lock.
    pub cookie: String,
}

impl Encode for LockerId {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| {
            w.put(&self.client);
            w.string(&self.cookie);
        });
    }
}

impl Decode for LockerId {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut r = reader.versioned(1)?.fields;
        Ok(Self { client: r.get()?, cookie: r.string()? })
    }
}

/// What is known of one who has a lock (`locker_info_t`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockerInfo {
    /// When the lock ends; zero for never.
    pub expiration: Utime,
    /// Where the client is.
    pub addr: EntityAddr,
    /// What it says of it.
    pub description: String,
}

impl Encode for LockerInfo {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| {
            w.put(&self.expiration);
            w.put(&self.addr);
            w.string(&self.description);
        });
    }
}

impl Decode for LockerInfo {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut r = reader.versioned(1)?.fields;
        Ok(Self { expiration: r.get()?, addr: r.get()?, description: r.string()? })
    }
}

/// A lock, as its attribute has it and the method `get_info` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockInfo {
    /// Who has it.
    pub lockers: BTreeMap<LockerId, LockerInfo>,
    /// How many may.
    pub kind: LockType,
    /// Who takes part gives the same tag.
    pub tag: String,
}

impl Encode for LockInfo {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| {
            let lockers: Vec<_> = self.lockers.iter().collect();
            w.vec(&lockers, |w, (id, info)| {
                w.put(*id);
                w.put(*info);
            });
            w.u8(self.kind.0);
            w.string(&self.tag);
        });
    }
}

/// Bytes of the smallest locker: headers, name, cookie, time, address, description.
const MIN_LOCKER: usize = 6 + 9 + 4 + 6 + 8 + 1 + 4;

impl Decode for LockInfo {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut r = reader.versioned(1)?.fields;
        let lockers = r.map(MIN_LOCKER, |r| Ok((r.get()?, r.get()?)))?;
        Ok(Self { lockers, kind: LockType(r.u8()?), tag: r.string()? })
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty = $put:ident),* $(,)? })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind),* }

        impl Encode for $name {
            fn encode(&self, writer: &mut Writer) {
                writer.versioned(1, 1, |w| { $(Field::$put(w, &self.$field);)* });
            }
        }

        impl Decode for $name {
            fn decode(reader: &mut Reader<'_>) -> Result<Self> {
                let mut r = reader.versioned(1)?.fields;
                Ok(Self { $($field: r.get()?),* })
            }
        }
    )* };
}

/// How the fields of the operations are written.
struct Field;

impl Field {
    fn text(w: &mut Writer, text: &str) {
        w.string(text);
    }

    fn value(w: &mut Writer, value: &impl Encode) {
        w.put(value);
    }
}

impl Encode for LockType {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(self.0);
    }
}

impl Decode for LockType {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        reader.u8().map(Self)
    }
}

operations! {
    /// Takes a lock (`lock`).
    LockOp {
        /// The lock.
        name: String = text,
        /// How many may have it.
        kind: LockType = value,
        /// What the client calls it.
        cookie: String = text,
        /// Who takes part.
        tag: String = text,
        /// What the client says of it.
        description: String = text,
        /// It ends after this time; zero for never.
        duration: Utime = value,
        /// [`MAY_RENEW`], [`MUST_RENEW`].
        flags: u8 = value,
    }
    /// Gives a lock of one's own back (`unlock`).
    UnlockOp {
        /// The lock.
        name: String = text,
        /// What the client calls it.
        cookie: String = text,
    }
    /// Takes a lock from somebody (`break_lock`).
    BreakOp {
        /// The lock.
        name: String = text,
        /// Who.
        locker: EntityName = value,
        /// What that client calls it.
        cookie: String = text,
    }
    /// Asks for a lock (`get_info`).
    GetInfoOp {
        /// The lock.
        name: String = text,
    }
    /// EBUSY if the client does not have the lock (`assert_locked`).
    AssertOp {
        /// The lock.
        name: String = text,
        /// How many may have it.
        kind: LockType = value,
        /// What the client calls it.
        cookie: String = text,
        /// Who takes part.
        tag: String = text,
    }
    /// Calls a lock of one's own something else (`set_cookie`).
    SetCookieOp {
        /// The lock.
        name: String = text,
        /// How many may have it.
        kind: LockType = value,
        /// What the client calls it.
        cookie: String = text,
        /// Who takes part.
        tag: String = text,
        /// What it is called from now on.
        new_cookie: String = text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rados::encoding::{EntityType, encoded};

    /// `cls_lock_ops.h`, `cls_lock_lock_op::encode`.
    #[test]
    fn golden_lock() {
        let op = LockOp {
            name: "rbd_lock".into(),
            kind: LockType::EXCLUSIVE,
            cookie: "auto 1".into(),
            tag: "internal".into(),
            description: String::new(),
            duration: Utime::default(),
            flags: MAY_RENEW,
        };
        let bytes =
            b"\x01\x01\x30\0\0\0\x08\0\0\0rbd_lock\x01\x06\0\0\0auto 1\x08\0\0\0internal\0\0\0\0\
            \0\0\0\0\0\0\0\0\x01";
        assert_eq!(encoded(&op), bytes);
        assert_eq!(Reader::new("testing", bytes).get::<LockOp>().unwrap(), op);
    }

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let client = EntityName { kind: EntityType::CLIENT, number: 4711 };
        let id = LockerId { client, cookie: "auto 5".into() };
        let info = LockerInfo {
            expiration: Utime::default(),
            addr: EntityAddr::default(),
            description: "d".into(),
        };
        let lock = LockInfo {
            lockers: BTreeMap::from([(id, info)]),
            kind: LockType::EXCLUSIVE,
            tag: "internal".into(),
        };
        let bytes = encoded(&lock);
        assert_eq!(Reader::new("testing", &bytes).get::<LockInfo>().unwrap(), lock);
        for cut in 0..bytes.len() {
            assert!(Reader::new("testing", &bytes[..cut]).get::<LockInfo>().is_err(), "{cut}");
        }
    }
}
