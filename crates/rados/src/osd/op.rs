//! One operation of a request.

use crate::encoding::{Reader, Writer};
use crate::error::Result;
use bytes::Bytes;

/// Most operations of a request (ceph: `src/messages/MOSDOp.h`).
pub const MAX_OPS: usize = u16::MAX as usize;
/// Bytes of an operation without its data (`ceph_osd_op`).
pub(super) const OP_LEN: usize = 2 + 4 + UNION + 4;
/// Bytes of the arguments, which have other meanings for other operations.
pub(super) const UNION: usize = 28;
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

    /// Watches it.
    pub const WATCH: Self = Self(0x220f);
    /// Tells its watchers.
    pub const NOTIFY: Self = Self(0x1206);
    /// Answers one who told.
    pub const NOTIFY_ACK: Self = Self(0x1207);

    const MODE_WRITE: u16 = 0x2000;

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::READ => "read",
            Self::STAT => "stat",
            Self::WRITE => "write",
            Self::WRITE_FULL => "write-full",
            Self::TRUNCATE => "truncate",
            Self::ZERO => "zero",
            Self::DELETE => "delete",
            Self::WATCH => "watch",
            Self::NOTIFY => "notify",
            Self::NOTIFY_ACK => "notify-ack",
            _ => "another operation",
        }
    }

    /// Whether it changes the object.
    #[must_use]
    pub const fn is_write(self) -> bool {
        self.0 & Self::MODE_WRITE != 0
    }
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What is done.
    pub code: OpCode,
    /// How it is to be treated (`CEPH_OSD_OP_FLAG_*`).
    pub flags: u32,
    /// Its arguments, whose meaning depends on the code (`ceph_osd_op`, the union).
    pub args: [u8; UNION],
    /// What is written, or further arguments.
    pub data: Bytes,
}

impl Op {
    /// An operation with arguments of any form; what they do not fill is zero.
    pub(crate) fn with_args(code: OpCode, args: &[u8], data: Bytes) -> Self {
        let mut all = [0; UNION];
        all[..args.len()].copy_from_slice(args);
        Self { code, flags: 0, args: all, data }
    }

    /// An operation on a range.
    fn extent(code: OpCode, offset: u64, length: u64, data: Bytes) -> Self {
        let mut op = Self::with_args(code, &offset.to_le_bytes(), data);
        op.args[8..16].copy_from_slice(&length.to_le_bytes());
        op
    }

    fn new(code: OpCode, offset: u64, length: u64) -> Self {
        Self::extent(code, offset, length, Bytes::new())
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
        Self::extent(OpCode::WRITE, offset, data.len() as u64, data)
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

    /// Most bytes that it sends or, if it is a read of a range, receives.
    #[must_use]
    pub fn budget(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, length @ ..] = self.args;
        let read = match (self.code, length.first_chunk::<8>()) {
            (OpCode::READ, Some(length)) => u64::from_le_bytes(*length),
            _ => 0,
        };
        read + self.data.len() as u64
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u16(self.code.0);
        writer.u32(self.flags);
        writer.raw(&self.args);
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
