//! Operations on an object's bytes.

use super::code::OpCode;
use super::op::Op;
use crate::encoding::{Reader, Utime, Writer};
use crate::error::Result;
use bitflags::bitflags;
use bytes::Bytes;

/// Flags of an operation (ceph: `src/include/rados.h`, `CEPH_OSD_OP_FLAG_*`): it fails if the object is there; the
/// others go on if it fails.
const EXCLUSIVE: u32 = 1;
const FAIL_OK: u32 = 2;

bitflags! {
    /// What an object is for (`CEPH_OSD_ALLOC_HINT_FLAG_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AllocHint: u32 {
        /// It is written from its begin to its end.
        const SEQUENTIAL_WRITE = 1;
        /// It is written here and there.
        const RANDOM_WRITE = 2;
        /// It is read from its begin to its end.
        const SEQUENTIAL_READ = 4;
        /// It is read here and there.
        const RANDOM_READ = 8;
        /// It only grows.
        const APPEND_ONLY = 16;
        /// It never changes.
        const IMMUTABLE = 32;
        /// It goes soon.
        const SHORT_LIVED = 64;
        /// It stays.
        const LONG_LIVED = 128;
        /// It can be compressed.
        const COMPRESSIBLE = 256;
        /// It cannot.
        const INCOMPRESSIBLE = 512;
    }
}

impl Op {
    fn range(code: OpCode, offset: u64, length: u64) -> Self {
        Self::extent(code, offset, length, Bytes::new())
    }

    /// Reads a range; a length of 0 is up to the end.
    #[must_use]
    pub fn read(offset: u64, length: u64) -> Self {
        Self::range(OpCode::READ, offset, length)
    }

    /// Reads a range, and says where in it there is something: see [`Extents`].
    #[must_use]
    pub fn sparse_read(offset: u64, length: u64) -> Self {
        Self::range(OpCode::SPARSE_READ, offset, length)
    }

    /// Asks for size and time: see [`Stat`]. Fails if there is no object, and is used as a guard for that.
    #[must_use]
    pub fn stat() -> Self {
        Self::range(OpCode::STAT, 0, 0)
    }

    /// Writes a range.
    #[must_use]
    pub fn write(offset: u64, data: Bytes) -> Self {
        Self::extent(OpCode::WRITE, offset, data.len() as u64, data)
    }

    /// Replaces the whole object.
    #[must_use]
    pub fn write_full(data: Bytes) -> Self {
        Self { code: OpCode::WRITE_FULL, ..Self::write(0, data) }
    }

    /// Writes behind the end of the object.
    #[must_use]
    pub fn append(data: Bytes) -> Self {
        Self { code: OpCode::APPEND, ..Self::write(0, data) }
    }

    /// Fills a range with the same bytes; `length` is a multiple of theirs.
    #[must_use]
    pub fn write_same(offset: u64, length: u64, data: Bytes) -> Self {
        let mut args = Writer::new();
        args.u64(offset);
        args.u64(length);
        args.u64(data.len() as u64);
        Self::with_args(OpCode::WRITE_SAME, args.as_slice(), data)
    }

    /// Makes a range zero.
    #[must_use]
    pub fn zero(offset: u64, length: u64) -> Self {
        Self::range(OpCode::ZERO, offset, length)
    }

    /// Cuts the object to a size, or grows it.
    #[must_use]
    pub fn truncate(size: u64) -> Self {
        Self::range(OpCode::TRUNCATE, size, 0)
    }

    /// Makes the object if it is not there; `exclusive` fails if it is (EEXIST).
    #[must_use]
    pub fn create(exclusive: bool) -> Self {
        let op = Self::range(OpCode::CREATE, 0, 0);
        Self { flags: if exclusive { EXCLUSIVE } else { 0 }, ..op }
    }

    /// Removes the object.
    #[must_use]
    pub fn delete() -> Self {
        Self::range(OpCode::DELETE, 0, 0)
    }

    /// Says what sizes of the object and of writes to expect. Nothing fails if the OSD makes nothing of it.
    #[must_use]
    pub fn alloc_hint(object_bytes: u64, write_bytes: u64, hint: AllocHint) -> Self {
        let mut args = Writer::new();
        args.u64(object_bytes);
        args.u64(write_bytes);
        args.u32(hint.bits());
        let op = Self::with_args(OpCode::SET_ALLOC_HINT, args.as_slice(), Bytes::new());
        Self { flags: FAIL_OK, ..op }
    }
}

/// What [`Op::stat`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The object's size in bytes.
    pub size: u64,
    /// When it was written last.
    pub modified: Utime,
}

impl Stat {
    /// Reads the data of the operation's result.
    ///
    /// # Errors
    /// It is cut.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let mut r = Reader::new("reading what stat gives", data);
        Ok(Self { size: r.u64()?, modified: r.get()? })
    }
}

/// What [`Op::sparse_read`] gives: ranges in which there is something, in rising order, and their bytes one behind the
/// other. Everything else in the range that was asked for, up to the end of the object, is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// Where something is: first byte in the object, number of bytes.
    pub ranges: Vec<(u64, u64)>,
    /// All of it.
    pub data: Bytes,
}

impl Extents {
    /// Reads the data of the operation's result.
    ///
    /// # Errors
    /// It is cut, ranges overlap or run over the format's end, or have other bytes than there are.
    pub fn parse(data: &Bytes) -> Result<Self> {
        let mut r = Reader::new("reading what sparse-read gives", data);
        let ranges = r.vec(16, |r| Ok((r.u64()?, r.u64()?)))?;
        let mut end = 0_u64;
        let mut total = 0_u64;
        for &(offset, length) in &ranges {
            let next = offset.checked_add(length).filter(|_| offset >= end);
            end = next.ok_or_else(|| r.violation("ranges are in rising order", offset))?;
            total = total.saturating_add(length);
        }
        let bytes = r.bytes()?;
        if total != bytes.len() as u64 {
            return Err(r.violation("ranges have as many bytes as there are", total));
        }
        Ok(Self { ranges, data: data.slice_ref(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of `struct ceph_osd_op` of `src/include/rados.h`.
    #[test]
    fn arguments_are_where_osds_look_for_them() {
        let op = Op::write_same(1, 8, Bytes::from_static(b"ab"));
        assert_eq!((op.args[0], op.args[8], op.args[16]), (1, 8, 2));
        let op = Op::alloc_hint(1 << 22, 1 << 12, AllocHint::IMMUTABLE);
        assert_eq!((op.args[2], op.args[9], op.args[16], op.flags), (0x40, 0x10, 32, 2));
        assert_eq!(Op::create(true).flags, 1);
        assert_eq!(Op::append(Bytes::from_static(b"abc")).args[8], 3);
    }

    #[test]
    fn ranges_that_lie_are_refused() {
        let encoded = |ranges: &[(u64, u64)], bytes: usize| {
            let mut w = Writer::new();
            w.vec(ranges, |w, range| {
                w.u64(range.0);
                w.u64(range.1);
            });
            w.bytes(&vec![7; bytes]);
            Bytes::from(w.into_bytes())
        };
        let good = Extents::parse(&encoded(&[(4096, 2), (8192, 1)], 3)).unwrap();
        assert_eq!((good.ranges.len(), good.data.len()), (2, 3));
        for (ranges, bytes) in [(&[(8, 2), (9, 1)][..], 3), (&[(u64::MAX, 2)], 2), (&[(0, 4)], 3)] {
            assert!(Extents::parse(&encoded(ranges, bytes)).is_err());
        }
    }
}
