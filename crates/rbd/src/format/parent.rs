//! Where a clone comes from, and where to.

use super::{optional, put_optional};
use blockyard_rados::Result;
use blockyard_rados::encoding::{Decode, Encode, NOSNAP, Reader, Writer};

/// A snapshot that has clones (ceph: `cls_rbd_types.h`, `ParentImageSpec`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentSpec {
    /// The pool; -1 if there is no parent.
    pub pool: i64,
    /// The namespace in it.
    pub namespace: String,
    /// The image's id.
    pub image: String,
    /// The snapshot.
    pub snapshot: u64,
}

impl Default for ParentSpec {
    fn default() -> Self {
        Self { pool: -1, namespace: String::new(), image: String::new(), snapshot: NOSNAP }
    }
}

impl ParentSpec {
    /// Whether it names a snapshot.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.pool >= 0 && !self.image.is_empty() && self.snapshot != NOSNAP
    }

    fn put_fields(&self, w: &mut Writer) {
        w.i64(self.pool);
        w.string(&self.namespace);
        w.string(&self.image);
        w.u64(self.snapshot);
    }

    fn fields(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { pool: r.i64()?, namespace: r.string()?, image: r.string()?, snapshot: r.u64()? })
    }
}

impl Encode for ParentSpec {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| self.put_fields(w));
    }
}

impl Decode for ParentSpec {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Self::fields(&mut reader.versioned(1)?.fields)
    }
}

/// The parent in a clone's header (`cls_rbd_parent`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent {
    /// Which snapshot.
    pub spec: ParentSpec,
    /// Bytes from the start of the image that shine through; `None` if it is only the parent of snapshots any more.
    pub overlap: Option<u64>,
}

impl Encode for Parent {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(2, 2, |w| {
            self.spec.put_fields(w);
            put_optional(w, self.overlap);
        });
    }
}

impl Decode for Parent {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(2)?;
        let mut r = versioned.fields;
        if versioned.version >= 2 {
            let spec = ParentSpec::fields(&mut r)?;
            return Ok(Self { spec, overlap: optional(&mut r)? });
        }
        let (pool, image, snapshot) = (r.i64()?, r.string()?, r.u64()?);
        let spec = ParentSpec { pool, namespace: String::new(), image, snapshot };
        Ok(Self { spec, overlap: Some(r.u64()?) })
    }
}

/// A clone of a snapshot, in the header of the parent (`ChildImageSpec`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildSpec {
    /// The pool.
    pub pool: i64,
    /// The namespace in it.
    pub namespace: String,
    /// The image's id.
    pub image: String,
}

impl Encode for ChildSpec {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(2, 1, |w| {
            w.i64(self.pool);
            w.string(&self.image);
            w.string(&self.namespace);
        });
    }
}

impl Decode for ChildSpec {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(2)?;
        let mut r = versioned.fields;
        let (pool, image) = (r.i64()?, r.string()?);
        let namespace = if versioned.version >= 2 { r.string()? } else { String::new() };
        Ok(Self { pool, namespace, image })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rados::encoding::encoded;

    fn decoded<T: Decode>(bytes: &[u8]) -> T {
        Reader::new("testing", bytes).get().unwrap()
    }

    /// `cls_rbd.h`, `cls_rbd_parent::encode`, and the instance {1, "ns", "image id", 234}, 123 of its tests.
    #[test]
    fn golden_parent() {
        let spec =
            ParentSpec { pool: 1, namespace: "ns".into(), image: "image id".into(), snapshot: 234 };
        let parent = Parent { spec, overlap: Some(123) };
        let bytes = b"\x02\x02\x2b\0\0\0\
            \x01\0\0\0\0\0\0\0\x02\0\0\0ns\x08\0\0\0image id\xea\0\0\0\0\0\0\0\x01\x7b\0\0\0\0\0\0\0";
        assert_eq!(encoded(&parent), bytes);
        assert_eq!(decoded::<Parent>(bytes), parent);
        assert_eq!(encoded(&Parent::default()).last(), Some(&0));
    }

    /// Version 1, which OSDs before Ceph 14 wrote.
    #[test]
    fn golden_parent_of_old() {
        let bytes = b"\x01\x01\x20\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0abcd\x03\0\0\0\0\0\0\0\x7b\0\0\0\0\0\0\0";
        let parent: Parent = decoded(bytes);
        assert_eq!(
            (parent.spec.image.as_str(), parent.spec.snapshot, parent.overlap),
            ("abcd", 3, Some(123))
        );
    }

    /// `cls_rbd_types.cc`, `ChildImageSpec::encode`: the namespace is behind the id.
    #[test]
    fn golden_child() {
        let child = ChildSpec { pool: 2, namespace: "n".into(), image: "ab".into() };
        let bytes = b"\x02\x01\x13\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0ab\x01\0\0\0n";
        assert_eq!(encoded(&child), bytes);
        assert_eq!(decoded::<ChildSpec>(bytes), child);
    }
}
