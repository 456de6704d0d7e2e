//! Removed images that can be had back.

use blockyard_rados::Result;
use blockyard_rados::encoding::{Decode, Encode, Reader, Utime, Writer};

/// An image in the trash (ceph: `cls_rbd_types.h`, `TrashImageSpec`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrashEntry {
    /// Who put it there: one of the numbers of [`Self::sources`].
    pub source: u8,
    /// Its name.
    pub name: String,
    /// When that was.
    pub deleted: Utime,
    /// It is kept until then.
    pub kept_until: Utime,
    /// Whether it is on its way into or out of the trash.
    pub state: u8,
}

impl TrashEntry {
    /// Somebody put it there (`TRASH_IMAGE_SOURCE_USER`).
    pub const USER: u8 = 0;
    /// It is there (`TRASH_IMAGE_STATE_NORMAL`).
    pub const NORMAL: u8 = 0;
    /// It is about to be (`TRASH_IMAGE_STATE_MOVING`).
    pub const MOVING: u8 = 1;
    /// It is about to be gone for good (`TRASH_IMAGE_STATE_REMOVING`).
    pub const REMOVING: u8 = 2;
    /// It is about to have a name again (`TRASH_IMAGE_STATE_RESTORING`).
    pub const RESTORING: u8 = 3;

    /// What `rbd` calls those who put images there, by number.
    #[must_use]
    pub const fn sources() -> [&'static str; 5] {
        ["USER", "MIRRORING", "MIGRATION", "REMOVING", "USER_PARENT"]
    }
}

impl Encode for TrashEntry {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(2, 1, |w| {
            w.u8(self.source);
            w.string(&self.name);
            w.put(&self.deleted);
            w.put(&self.kept_until);
            w.u8(self.state);
        });
    }
}

impl Decode for TrashEntry {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(2)?;
        let mut r = versioned.fields;
        let mut entry = Self {
            source: r.u8()?,
            name: r.string()?,
            deleted: r.get()?,
            kept_until: r.get()?,
            state: Self::NORMAL,
        };
        if versioned.version >= 2 {
            entry.state = r.u8()?;
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rados::encoding::encoded;

    /// `cls_rbd_types.cc`, `TrashImageSpec::encode`.
    #[test]
    fn golden_trash() {
        let entry = TrashEntry {
            source: 0,
            name: "a".into(),
            deleted: Utime { seconds: 1, nanoseconds: 2 },
            kept_until: Utime { seconds: 3, nanoseconds: 4 },
            state: 1,
        };
        let bytes = b"\x02\x01\x17\0\0\0\0\x01\0\0\0a\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x01";
        assert_eq!(encoded(&entry), bytes);
        assert_eq!(Reader::new("testing", bytes).get::<TrashEntry>().unwrap(), entry);
    }
}
