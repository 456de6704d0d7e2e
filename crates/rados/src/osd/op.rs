//! One operation of a request.

use crate::encoding::{Reader, Writer};
use crate::error::Result;
use bytes::Bytes;

/// Most operations of a request (ceph: `src/messages/MOSDOp.h`).
pub const MAX_OPS: usize = u16::MAX as usize;
/// Bytes of an operation without its data (`ceph_osd_op`).
pub(super) const OP_LEN: usize = 2 + 4 + UNION + 4;
/// Bytes of the arguments, which have other meanings for other operations.
const UNION: usize = 28;
const _: () = assert!(OP_LEN == 38);

/// What is done (ceph: `src/include/rados.h`, `CEPH_OSD_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpCode(pub u16);

impl OpCode {
    /// Reads bytes.
    pub const READ: Self = Self(0x1201);
    /// Asks for size and time.
    pub const STAT: Self = Self(0x1202);
    /// Writes bytes.
    pub const WRITE: Self = Self(0x2201);
    /// Writes the whole object.
    pub const WRITE_FULL: Self = Self(0x2202);
    /// Cuts or grows it.
    pub const TRUNCATE: Self = Self(0x2203);
    /// Makes bytes zero.
    pub const ZERO: Self = Self(0x2204);
    /// Removes it.
    pub const DELETE: Self = Self(0x2205);

    const MODE_WRITE: u16 = 0x2000;

    /// Whether it changes the object.
    #[must_use]
    pub const fn is_write(self) -> bool {
        self.0 & Self::MODE_WRITE != 0
    }
}

/// An operation on a range of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What is done.
    pub code: OpCode,
    /// From which byte on.
    pub offset: u64,
    /// To how many bytes.
    pub length: u64,
    /// What is written.
    pub data: Bytes,
}

impl Op {
    fn new(code: OpCode, offset: u64, length: u64) -> Self {
        Self { code, offset, length, data: Bytes::new() }
    }

    /// Reads a range; a length of 0 is up to the end.
    #[must_use]
    pub fn read(offset: u64, length: u64) -> Self {
        Self::new(OpCode::READ, offset, length)
    }

    /// Asks for size and time.
    #[must_use]
    pub fn stat() -> Self {
        Self::new(OpCode::STAT, 0, 0)
    }

    /// Writes a range.
    #[must_use]
    pub fn write(offset: u64, data: Bytes) -> Self {
        Self { code: OpCode::WRITE, offset, length: data.len() as u64, data }
    }

    /// Replaces the whole object.
    #[must_use]
    pub fn write_full(data: Bytes) -> Self {
        Self { code: OpCode::WRITE_FULL, ..Self::write(0, data) }
    }

    /// Makes a range zero.
    #[must_use]
    pub fn zero(offset: u64, length: u64) -> Self {
        Self::new(OpCode::ZERO, offset, length)
    }

    /// Cuts the object to a size, or grows it.
    #[must_use]
    pub fn truncate(size: u64) -> Self {
        Self::new(OpCode::TRUNCATE, size, 0)
    }

    /// Removes the object.
    #[must_use]
    pub fn delete() -> Self {
        Self::new(OpCode::DELETE, 0, 0)
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u16(self.code.0);
        writer.u32(0);
        writer.u64(self.offset);
        writer.u64(self.length);
        // A size and a number of a truncation, which only file systems use.
        writer.raw(&[0; UNION - 16]);
        let len = u32::try_from(self.data.len());
        assert!(len.is_ok(), "an operation with {} bytes of data was built", self.data.len());
        writer.u32(len.unwrap_or(u32::MAX));
    }

    /// The code of an operation in a reply, and how many bytes it gave.
    pub(super) fn decode_result(reader: &mut Reader<'_>) -> Result<(OpCode, u32)> {
        let code = OpCode(reader.u16()?);
        reader.raw(4 + UNION)?;
        Ok((code, reader.u32()?))
    }
}
