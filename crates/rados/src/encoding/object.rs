//! Names of objects and placement groups.

use super::{Decode, Encode, EntityName, ObjectName, Reader, Writer};
use crate::error::Result;
use std::cmp::Ordering;
use std::fmt;

/// The snapshot id of the head of an object: no snapshot (ceph: `src/include/rados.h`, `CEPH_NOSNAP`).
pub const NOSNAP: u64 = u64::MAX - 1;
/// The snapshot id that stands for an object with all of its clones (`CEPH_SNAPDIR`).
pub const SNAPDIR: u64 = u64::MAX;
/// The pool of names that are in none.
pub const NO_POOL: i64 = -1;

/// A placement group (ceph: `src/osd/osd_types.h`, `pg_t`): 17 bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgId {
    /// The pool.
    pub pool: i64,
    /// Which of the pool's groups; before it is taken modulo their number, a hash.
    pub seed: u32,
}

impl PgId {
    /// Bytes of one on the wire: version, pool, seed, preferred OSD.
    pub const LEN: usize = 1 + 8 + 4 + 4;
    const VERSION: u8 = 1;
    /// The field of preferred OSDs, a feature that is gone.
    const NO_PREFERRED: i32 = -1;
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool, self.seed)
    }
}

impl Encode for PgId {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(Self::VERSION);
        writer.i64(self.pool);
        writer.u32(self.seed);
        writer.i32(Self::NO_PREFERRED);
    }
}

impl Decode for PgId {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        match reader.u8()? {
            Self::VERSION => {}
            version => {
                return Err(reader.violation("a placement group has version 1", version.into()));
            }
        }
        let pg = Self { pool: reader.i64()?, seed: reader.u32()? };
        reader.i32()?;
        Ok(pg)
    }
}

/// A placement group and, in erasure-coded pools, a shard of it (`spg_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgShard {
    /// The group.
    pub pg: PgId,
    /// The shard's position; -1 in replicated pools.
    pub shard: i8,
}

impl Default for PgShard {
    fn default() -> Self {
        Self { pg: PgId::default(), shard: Self::NO_SHARD }
    }
}

impl PgShard {
    /// The shard of replicated pools.
    pub const NO_SHARD: i8 = -1;
}

impl Encode for PgShard {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| {
            w.put(&self.pg);
            w.i8(self.shard);
        });
    }
}

impl Decode for PgShard {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut fields = reader.versioned(1)?.fields;
        Ok(Self { pg: fields.get()?, shard: fields.i8()? })
    }
}

/// What, beside its name, says where an object is (`object_locator_t`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectLocator {
    /// The pool.
    pub pool: i64,
    /// If not empty, hashed instead of the object's name.
    pub key: ObjectName,
    /// The namespace in the pool; empty for the default one.
    pub namespace: ObjectName,
    /// If not -1, the hash itself, as in listings. Never together with a key.
    pub hash: i64,
}

impl ObjectLocator {
    const NO_HASH: i64 = -1;
    const NO_PREFERRED: i32 = -1;

    /// The locator of an object in a namespace of a pool.
    #[must_use]
    pub fn new(pool: i64, namespace: impl Into<ObjectName>) -> Self {
        Self { pool, key: ObjectName::new(), namespace: namespace.into(), hash: Self::NO_HASH }
    }
}

impl ObjectLocator {
    /// Appends it with another pool, such as that of a cache.
    pub(crate) fn encode_in(&self, pool: i64, writer: &mut Writer) {
        let compat = if self.hash == Self::NO_HASH { 3 } else { 6 };
        writer.versioned(6, compat, |w| {
            w.i64(pool);
            w.i32(Self::NO_PREFERRED);
            w.bytes(&self.key);
            w.bytes(&self.namespace);
            w.i64(self.hash);
        });
    }
}

impl Encode for ObjectLocator {
    fn encode(&self, writer: &mut Writer) {
        self.encode_in(self.pool, writer);
    }
}

impl Decode for ObjectLocator {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(6)?;
        let (version, mut fields) = (versioned.version, versioned.fields);
        if version < 3 {
            return Err(
                fields.violation("an object locator has version 3 or newer", version.into())
            );
        }
        let pool = fields.i64()?;
        fields.i32()?;
        let key = fields.name()?;
        let namespace = if version >= 5 { fields.name()? } else { ObjectName::new() };
        let hash = if version >= 6 { fields.i64()? } else { Self::NO_HASH };
        Ok(Self { pool, key, namespace, hash })
    }
}

/// An object, its snapshot and its place in the order of a placement group (ceph: `src/common/hobject.h`, `hobject_t`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hobject {
    /// The locator's key; empty if the name is what was hashed.
    pub key: ObjectName,
    /// The object's name.
    pub name: ObjectName,
    /// The snapshot, or [`NOSNAP`].
    pub snap: u64,
    /// The hash of key or name.
    pub hash: u32,
    /// Whether this stands behind all objects. All other fields then mean nothing.
    pub max: bool,
    /// The namespace.
    pub namespace: ObjectName,
    /// The pool.
    pub pool: i64,
}

impl Hobject {
    /// The names' part of the order: a key takes the place of the name, which then only breaks ties.
    fn effective_key(&self) -> &[u8] {
        if self.key.is_empty() { &self.name } else { &self.key }
    }
}

impl Ord for Hobject {
    /// The order of objects in a placement group: by the hash with its bits reversed, so that a group that is split falls
    /// into ranges.
    fn cmp(&self, other: &Self) -> Ordering {
        let of = |it: &Self| (it.max, it.pool, it.hash.reverse_bits());
        if self.max && other.max {
            return Ordering::Equal;
        }
        of(self)
            .cmp(&of(other))
            .then_with(|| self.namespace.cmp(&other.namespace))
            .then_with(|| self.effective_key().cmp(other.effective_key()))
            .then_with(|| self.name.cmp(&other.name))
            .then_with(|| self.snap.cmp(&other.snap))
    }
}

impl PartialOrd for Hobject {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Encode for Hobject {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(4, 3, |w| {
            w.bytes(&self.key);
            w.bytes(&self.name);
            w.u64(self.snap);
            w.u32(self.hash);
            w.bool(self.max);
            w.bytes(&self.namespace);
            w.i64(self.pool);
        });
    }
}

impl Decode for Hobject {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(4)?;
        let (version, mut fields) = (versioned.version, versioned.fields);
        if version < 4 {
            return Err(fields.violation("an object's position has version 4", version.into()));
        }
        Ok(Self {
            key: fields.name()?,
            name: fields.name()?,
            snap: fields.u64()?,
            hash: fields.u32()?,
            max: fields.bool()?,
            namespace: fields.name()?,
            pool: fields.i64()?,
        })
    }
}

/// The version of an object or a placement group (`eversion_t`): first the epoch counts, then the version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Eversion {
    /// The epoch of the OSD map.
    pub epoch: u32,
    /// Counts writes.
    pub version: u64,
}

impl Encode for Eversion {
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.version);
        writer.u32(self.epoch);
    }
}

impl Decode for Eversion {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let version = reader.u64()?;
        Ok(Self { epoch: reader.u32()?, version })
    }
}

/// What makes a request unique in the cluster (`osd_reqid_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Who asks.
    pub client: EntityName,
    /// The client's number for the request, kept when it is sent again.
    pub tid: u64,
    /// The client's incarnation.
    pub incarnation: i32,
}

impl Encode for RequestId {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(2, 2, |w| {
            w.put(&self.client);
            w.u64(self.tid);
            w.i32(self.incarnation);
        });
    }
}

impl Decode for RequestId {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut fields = reader.versioned(2)?.fields;
        Ok(Self { client: fields.get()?, tid: fields.u64()?, incarnation: fields.i32()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::EntityType;
    use crate::encoding::encoded;
    use proptest::prelude::*;

    fn decoded<T: Decode>(bytes: &[u8]) -> T {
        let mut reader = Reader::new("testing", bytes);
        let value = reader.get().unwrap();
        assert!(reader.is_empty());
        value
    }

    /// From the MOSDOp v8 that `rados put` of 16.2.15 sent for pool 2.
    #[test]
    fn shard_and_locator_are_the_bytes_of_a_real_client() {
        let shard = PgShard { pg: PgId { pool: 2, seed: 0x1f }, shard: PgShard::NO_SHARD };
        let bytes = b"\x01\x01\x12\0\0\0\x01\x02\0\0\0\0\0\0\0\x1f\0\0\0\xff\xff\xff\xff\xff";
        assert_eq!(encoded(&shard), bytes);
        assert_eq!(decoded::<PgShard>(bytes), shard);
        assert_eq!(shard.pg.to_string(), "2.1f");
        let locator = ObjectLocator::new(2, "");
        let bytes = b"\x06\x03\x1c\0\0\0\x02\0\0\0\0\0\0\0\xff\xff\xff\xff\
            \0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(encoded(&locator), bytes);
        assert_eq!(decoded::<ObjectLocator>(bytes), locator);
    }

    #[test]
    fn an_explicit_hash_is_refused_by_old_readers() {
        let locator = ObjectLocator { hash: 5, ..ObjectLocator::new(1, "space") };
        let bytes = encoded(&locator);
        assert_eq!(&bytes[..2], [6, 6]);
        assert_eq!(decoded::<ObjectLocator>(&bytes), locator);
    }

    #[test]
    fn objects_are_in_order_of_their_reversed_hashes() {
        let object = |hash, key: &str, name: &str, snap| Hobject {
            key: key.into(),
            name: name.into(),
            snap,
            hash,
            max: false,
            namespace: ObjectName::new(),
            pool: 2,
        };
        let end = Hobject { max: true, ..object(0, "", "", 0) };
        let first = Hobject { pool: i64::MIN, ..object(0, "", "", 0) };
        let ordered = [
            first,
            object(0, "", "b", 1),
            object(0, "", "b", NOSNAP),
            object(0, "c", "a", 0),
            object(0, "", "d", 0),
            object(0x8000_0000, "", "a", 0),
            object(2, "", "a", 0),
            object(1, "", "a", 0),
            object(3, "", "a", 0),
            end,
        ];
        for (index, left) in ordered.iter().enumerate() {
            for (other, right) in ordered.iter().enumerate() {
                assert_eq!(left.cmp(right), index.cmp(&other), "{left:?} {right:?}");
            }
        }
    }

    #[test]
    fn a_request_id_has_21_bytes() {
        let client = EntityName { kind: EntityType::CLIENT, number: 4135 };
        let id = RequestId { client, tid: 9, incarnation: 0 };
        let bytes = encoded(&id);
        assert_eq!(&bytes[..6], [2, 2, 21, 0, 0, 0]);
        assert_eq!(decoded::<RequestId>(&bytes), id);
    }

    proptest! {
        #[test]
        fn positions_come_back(name: Vec<u8>, key: Vec<u8>, snap: u64, hash: u32, max: bool, pool: i64) {
            let position = Hobject { key: key.into(), name: name.into(), snap, hash, max, namespace: "n".into(), pool };
            prop_assert_eq!(decoded::<Hobject>(&encoded(&position)), position);
        }

        #[test]
        fn versions_order_by_epoch_first(a: (u32, u64), b: (u32, u64)) {
            let version = |(epoch, version)| Eversion { epoch, version };
            prop_assert_eq!(version(a).cmp(&version(b)), a.cmp(&b));
            prop_assert_eq!(decoded::<Eversion>(&encoded(&version(a))), version(a));
        }
    }
}
