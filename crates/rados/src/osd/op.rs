//! One operation of a request.

use super::code::OpCode;
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

/// What a read up to the end is expected to bring: the size of most objects (ceph: option `rbd_default_order`).
const WHOLE_OBJECT: u64 = 4 << 20;
/// What a class method, attributes, keys or a list are expected to bring.
const SOME_ANSWER: u64 = 64 << 10;

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
    pub(super) fn extent(code: OpCode, offset: u64, length: u64, data: Bytes) -> Self {
        let mut op = Self::with_args(code, &offset.to_le_bytes(), data);
        op.args[8..16].copy_from_slice(&length.to_le_bytes());
        op
    }

    /// Most bytes that it sends and receives; where only the OSD knows, what is usual.
    #[must_use]
    pub fn budget(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, length @ ..] = self.args;
        let comes = match (self.code, length.first_chunk::<8>()) {
            (OpCode::READ | OpCode::SPARSE_READ, Some(length)) => {
                match u64::from_le_bytes(*length) {
                    0 => WHOLE_OBJECT,
                    length => length,
                }
            }
            (code, _) if code.gives_much() => SOME_ANSWER,
            _ => 0,
        };
        comes.saturating_add(self.data.len() as u64)
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
