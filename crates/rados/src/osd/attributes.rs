//! Operations on an object's attributes.

use super::code::OpCode;
use super::op::Op;
use crate::encoding::{Reader, Writer};
use crate::error::Result;
use bytes::Bytes;
use std::collections::BTreeMap;

/// How an attribute is compared (ceph: `src/include/rados.h`, `CEPH_OSD_CMPXATTR_OP_*`): the given value with the one
/// of the object, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// They are equal.
    Equal = 1,
    /// They differ.
    NotEqual = 2,
    /// The given one is greater.
    Greater = 3,
    /// The given one is not less.
    GreaterOrEqual = 4,
    /// The given one is less.
    Less = 5,
    /// The given one is not greater.
    LessOrEqual = 6,
}

/// Values as bytes, or as numbers (`CEPH_OSD_CMPXATTR_MODE_*`).
const MODE_BYTES: u8 = 1;
const MODE_NUMBER: u8 = 2;

/// Name and value in one, and their lengths in the arguments.
fn op(code: OpCode, name: &str, value: &[u8], compare: Option<(Compare, u8)>) -> Op {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut args = Writer::new();
    args.u32(length(name.as_bytes()));
    args.u32(length(value));
    if let Some((compare, mode)) = compare {
        args.u8(compare as u8);
        args.u8(mode);
    }
    Op::with_args(code, args.as_slice(), [name.as_bytes(), value].concat().into())
}

impl Op {
    /// Reads an attribute, which is the data of the result; ENODATA if it is not there.
    #[must_use]
    pub fn get_xattr(name: &str) -> Self {
        op(OpCode::GET_XATTR, name, &[], None)
    }

    /// Reads all attributes: see [`xattrs`].
    #[must_use]
    pub fn get_xattrs() -> Self {
        Self::with_args(OpCode::GET_XATTRS, &[], Bytes::new())
    }

    /// Sets an attribute.
    #[must_use]
    pub fn set_xattr(name: &str, value: &[u8]) -> Self {
        op(OpCode::SET_XATTR, name, value, None)
    }

    /// Removes an attribute.
    #[must_use]
    pub fn remove_xattr(name: &str) -> Self {
        op(OpCode::RM_XATTR, name, &[], None)
    }

    /// Fails with ECANCELED unless a value compares so with an attribute. One that is not there is an empty one.
    #[must_use]
    pub fn cmp_xattr(name: &str, compare: Compare, value: &[u8]) -> Self {
        op(OpCode::CMP_XATTR, name, value, Some((compare, MODE_BYTES)))
    }

    /// As [`cmp_xattr`](Self::cmp_xattr) for numbers, which attributes have as decimal text.
    #[must_use]
    pub fn cmp_xattr_number(name: &str, compare: Compare, value: u64) -> Self {
        op(OpCode::CMP_XATTR, name, &value.to_le_bytes(), Some((compare, MODE_NUMBER)))
    }
}

/// What [`Op::get_xattrs`] gives.
///
/// # Errors
/// It is cut.
pub fn xattrs(data: &Bytes) -> Result<BTreeMap<Bytes, Bytes>> {
    super::omap::pairs(&mut Reader::new("reading the attributes of an object", data), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of `struct ceph_osd_op` of `src/include/rados.h`.
    #[test]
    fn lengths_come_before_name_and_value() {
        let op = Op::cmp_xattr_number("lock", Compare::LessOrEqual, 3);
        assert_eq!(op.args[..12], [4, 0, 0, 0, 8, 0, 0, 0, 6, 2, 0, 0]);
        assert_eq!(op.data, b"lock\x03\0\0\0\0\0\0\0"[..]);
    }
}
