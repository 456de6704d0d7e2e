//! Operations on snapshots of an object.

use super::code::OpCode;
use super::op::Op;
use crate::encoding::{Decode, NOSNAP, Reader};
use crate::error::Result;
use bytes::Bytes;

impl Op {
    /// Makes the object what it was in a snapshot.
    #[must_use]
    pub fn rollback(snapshot: u64) -> Self {
        Self::with_args(OpCode::ROLLBACK, &snapshot.to_le_bytes(), Bytes::new())
    }

    /// Asks for the object's clones: see [`Snapshots`]. The request reads [`SNAPDIR`](crate::encoding::SNAPDIR).
    #[must_use]
    pub fn list_snapshots() -> Self {
        Self::with_args(OpCode::LIST_SNAPS, &[], Bytes::new())
    }
}

/// A state of an object that is kept for snapshots, or its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clone {
    /// Its number, that of the newest of its snapshots; [`NOSNAP`] for the head.
    pub id: u64,
    /// The snapshots that have it.
    pub snapshots: Vec<u64>,
    /// What it has in common with the next newer one: first byte, number of bytes.
    pub overlap: Vec<(u64, u64)>,
    /// Its size in bytes.
    pub size: u64,
}

impl Decode for Clone {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut r = reader.versioned(1)?.fields;
        Ok(Self {
            id: r.u64()?,
            snapshots: r.vec(8, Reader::u64)?,
            overlap: r.vec(16, |r| Ok((r.u64()?, r.u64()?)))?,
            size: r.u64()?,
        })
    }
}

/// What [`Op::list_snapshots`] gives (ceph: `src/osd/osd_types.h`, `obj_list_snap_response_t`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// Clones, the oldest first.
    pub clones: Vec<Clone>,
    /// The newest snapshot that the object was written with.
    pub seq: u64,
}

impl Snapshots {
    /// Reads the data of the operation's result.
    ///
    /// # Errors
    /// It is cut.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let versioned = Reader::new("reading the clones of an object", data).versioned(2)?;
        let mut r = versioned.fields;
        // A clone has a header of 6 bytes, two numbers and two counts.
        let clones = r.vec(6 + 8 + 4 + 4 + 8, Reader::get)?;
        let seq = if versioned.version >= 2 { r.u64()? } else { NOSNAP };
        Ok(Self { clones, seq })
    }
}
