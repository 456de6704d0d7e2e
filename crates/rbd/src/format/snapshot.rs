//! A snapshot in an image's header.

use super::{ImageFlags, Parent, optional, put_optional};
use blockyard_rados::Result;
use blockyard_rados::encoding::{Decode, Encode, NOSNAP, Reader, Utime, Writer};
use bytes::Bytes;

/// Whether a snapshot may be removed (ceph: `src/include/rbd/librbd.h`, `RBD_PROTECTION_STATUS_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// It may.
    #[default]
    Unprotected,
    /// Somebody looks whether it may.
    Unprotecting,
    /// It has clones, or is to have some (version 1).
    Protected,
}

impl Protection {
    /// The one with a number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Unprotected),
            1 => Some(Self::Unprotecting),
            2 => Some(Self::Protected),
            _ => None,
        }
    }
}

/// What a snapshot is for (`cls_rbd_types.h`, `SnapshotNamespace`). Names are unique within one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SnapshotNamespace {
    /// Somebody made it.
    #[default]
    User,
    /// It was removed, and clones still need it.
    Trash {
        /// What it was called.
        name: String,
        /// What it was for.
        kind: u32,
    },
    /// Another: of a group, a mirror, or of newer versions. It is kept as it is.
    Other {
        /// Which.
        kind: u32,
        /// Its fields.
        fields: Bytes,
    },
}

impl SnapshotNamespace {
    const USER: u32 = 0;
    const TRASH: u32 = 2;

    /// Its number.
    #[must_use]
    pub const fn kind(&self) -> u32 {
        match self {
            Self::User => Self::USER,
            Self::Trash { .. } => Self::TRASH,
            Self::Other { kind, .. } => *kind,
        }
    }
}

impl Encode for SnapshotNamespace {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| {
            w.u32(self.kind());
            match self {
                Self::User => {}
                Self::Trash { name, kind } => {
                    w.string(name);
                    w.u32(*kind);
                }
                Self::Other { fields, .. } => w.raw(fields),
            }
        });
    }
}

impl Decode for SnapshotNamespace {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut r = reader.versioned(1)?.fields;
        Ok(match r.u32()? {
            Self::USER => Self::User,
            Self::TRASH => Self::Trash { name: r.string()?, kind: r.u32()? },
            kind => Self::Other { kind, fields: Bytes::copy_from_slice(r.rest()) },
        })
    }
}

/// A snapshot as the header has it (`cls_rbd_snap`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, which its objects' snapshots have too.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The image's size then.
    pub image_size: u64,
    /// Whether it may be removed; a number, as it is stored.
    pub protection: u8,
    /// The parent, in records of old: it is in the header by now.
    pub parent: Parent,
    /// What was wrong with the image then.
    pub flags: ImageFlags,
    /// What it is for.
    pub namespace: SnapshotNamespace,
    /// When it was made.
    pub timestamp: Utime,
    /// Its clones that know of it.
    pub child_count: u32,
    /// Bytes of the parent that shone through then.
    pub parent_overlap: Option<u64>,
}

impl Snapshot {
    /// Whether it was removed, and clones still need it.
    #[must_use]
    pub const fn is_in_trash(&self) -> bool {
        matches!(self.namespace, SnapshotNamespace::Trash { .. })
    }

    /// Whether it was removed, and no clone needs it any more.
    #[must_use]
    pub const fn is_unneeded(&self) -> bool {
        self.is_in_trash()
            && self.child_count == 0
            && self.protection == Protection::Unprotected as u8
    }

    /// Whether it was removed, and somebody had made it under this name.
    #[must_use]
    pub fn was_called(&self, name: &str) -> bool {
        matches!(&self.namespace, SnapshotNamespace::Trash { name: old, kind } if old == name && *kind == SnapshotNamespace::USER)
    }

    /// Whether something of a parent is seen in it.
    #[must_use]
    pub fn has_parent(&self) -> bool {
        self.parent.spec.exists() || self.parent_overlap.is_some()
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            id: NOSNAP,
            name: String::new(),
            image_size: 0,
            protection: 0,
            parent: Parent::default(),
            flags: ImageFlags::empty(),
            namespace: SnapshotNamespace::User,
            timestamp: Utime::default(),
            child_count: 0,
            parent_overlap: None,
        }
    }
}

/// From this version on a snapshot has only the overlap with the parent.
const WITHOUT_PARENT: u8 = 8;

impl Encode for Snapshot {
    /// As OSDs from Ceph 14 on do: without the parent.
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(WITHOUT_PARENT, WITHOUT_PARENT, |w| {
            w.u64(self.id);
            w.string(&self.name);
            w.u64(self.image_size);
            w.u8(self.protection);
            w.u64(self.flags.bits());
            w.put(&self.namespace);
            w.put(&self.timestamp);
            w.u32(self.child_count);
            put_optional(w, self.parent_overlap);
        });
    }
}

impl Decode for Snapshot {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let compat = reader.rest().get(1).copied().unwrap_or_default();
        let versioned = reader.versioned(WITHOUT_PARENT)?;
        let (version, mut r) = (versioned.version, versioned.fields);
        let mut snapshot =
            Self { id: r.u64()?, name: r.string()?, image_size: r.u64()?, ..Self::default() };
        if compat < WITHOUT_PARENT {
            // Features, which are not used.
            r.u64()?;
            if version >= 2 {
                snapshot.parent = r.get()?;
            }
        }
        if version >= 3 {
            snapshot.protection = r.u8()?;
        }
        if version >= 4 {
            snapshot.flags = ImageFlags::from_bits_retain(r.u64()?);
        }
        if version >= 5 {
            snapshot.namespace = r.get()?;
        }
        if version >= 6 {
            snapshot.timestamp = r.get()?;
        }
        if version >= 7 {
            snapshot.child_count = r.u32()?;
        }
        if version >= 8 {
            snapshot.parent_overlap = optional(&mut r)?;
        }
        Ok(snapshot)
    }
}

/// What the method `snapshot_get` tells of a snapshot (`cls_rbd_types.h`, `SnapshotInfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its number.
    pub id: u64,
    /// What it is for.
    pub namespace: SnapshotNamespace,
    /// Its name.
    pub name: String,
    /// The image's size then.
    pub image_size: u64,
    /// When it was made.
    pub timestamp: Utime,
    /// Its clones that know of it.
    pub child_count: u32,
}

impl From<Snapshot> for SnapshotInfo {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot { id, name, image_size, namespace, timestamp, child_count, .. } = snapshot;
        Self { id, namespace, name, image_size, timestamp, child_count }
    }
}

impl Encode for SnapshotInfo {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| {
            w.u64(self.id);
            w.put(&self.namespace);
            w.string(&self.name);
            w.u64(self.image_size);
            w.put(&self.timestamp);
            w.u32(self.child_count);
        });
    }
}

impl Decode for SnapshotInfo {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut r = reader.versioned(1)?.fields;
        Ok(Self {
            id: r.u64()?,
            namespace: r.get()?,
            name: r.string()?,
            image_size: r.u64()?,
            timestamp: r.get()?,
            child_count: r.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rados::encoding::encoded;

    fn decoded<T: Decode>(bytes: &[u8]) -> T {
        Reader::new("testing", bytes).get().unwrap()
    }

    /// `cls_rbd.h`, `cls_rbd_snap::encode` with the features of Ceph 14.
    #[test]
    fn golden_snapshot() {
        let snapshot = Snapshot {
            id: 1,
            name: "snap".into(),
            image_size: 123_456,
            protection: 2,
            flags: ImageFlags::from_bits_retain(31),
            child_count: 543,
            parent_overlap: Some(123),
            timestamp: Utime { seconds: 5, nanoseconds: 6 },
            ..Snapshot::default()
        };
        let bytes = b"\x08\x08\x40\0\0\0\
            \x01\0\0\0\0\0\0\0\x04\0\0\0snap\x40\xe2\x01\0\0\0\0\0\x02\x1f\0\0\0\0\0\0\0\
            \x01\x01\x04\0\0\0\0\0\0\0\
            \x05\0\0\0\x06\0\0\0\x1f\x02\0\0\x01\x7b\0\0\0\0\0\0\0";
        assert_eq!(encoded(&snapshot), bytes);
        assert_eq!(decoded::<Snapshot>(bytes), snapshot);
    }

    /// Version 6, compat 1: with features, and the parent in its version 1.
    #[test]
    fn a_snapshot_of_old_has_its_parent_with_it() {
        let mut writer = Writer::new();
        writer.versioned(6, 1, |w| {
            w.u64(4);
            w.string("old");
            w.u64(4096);
            w.u64(3);
            w.versioned(1, 1, |w| {
                w.i64(1);
                w.string("p");
                w.u64(3);
                w.u64(500);
            });
            w.u8(1);
            w.u64(0);
            w.put(&SnapshotNamespace::User);
            w.put(&Utime::default());
        });
        let snapshot: Snapshot = decoded(&writer.into_bytes());
        assert!(snapshot.parent.spec.exists());
        assert_eq!((snapshot.parent.overlap, snapshot.protection), (Some(500), 1));
    }

    #[test]
    fn a_namespace_that_is_not_known_is_kept() {
        let trash = SnapshotNamespace::Trash { name: "was".into(), kind: 0 };
        assert_eq!(encoded(&trash), b"\x01\x01\x0f\0\0\0\x02\0\0\0\x03\0\0\0was\0\0\0\0");
        for namespace in
            [trash, SnapshotNamespace::Other { kind: 3, fields: Bytes::from_static(b"xyz") }]
        {
            assert_eq!(decoded::<SnapshotNamespace>(&encoded(&namespace)), namespace);
        }
    }
}
