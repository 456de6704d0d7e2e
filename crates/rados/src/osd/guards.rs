//! Operations that do nothing but fail if something is not as it should be: the others of the request are then not done.
//! [`Op::stat`] is the one for "the object is there", [`Op::cmp_xattr`] the one for attributes.

use super::code::OpCode;
use super::op::Op;
use crate::encoding::Writer;
use bytes::Bytes;

/// The greatest error number; the place where bytes differ is counted from there (ceph: `src/include/compat.h`).
const MAX_ERRNO: i32 = 4095;

impl Op {
    /// Fails unless the object's version, as [`Reply::user_version`](super::Reply::user_version) says it, is this one:
    /// ERANGE if the object is newer, EOVERFLOW if it is older.
    #[must_use]
    pub fn assert_version(version: u64) -> Self {
        let mut args = Writer::new();
        args.u64(0);
        args.u64(version);
        Self::with_args(OpCode::ASSERT_VER, args.as_slice(), Bytes::new())
    }

    /// Fails unless these bytes are at an offset: [`mismatch`] says where they differ.
    #[must_use]
    pub fn compare_extent(offset: u64, data: Bytes) -> Self {
        Self::extent(OpCode::CMPEXT, offset, data.len() as u64, data)
    }
}

/// At which of its bytes a comparison failed, if that is what a result says.
#[must_use]
pub fn mismatch(result: i32) -> Option<u32> {
    u32::try_from((-MAX_ERRNO).checked_sub(result)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_is_beyond_the_error_numbers() {
        assert_eq!((mismatch(-4095), mismatch(-4100)), (Some(0), Some(5)));
        assert_eq!(
            (mismatch(-2), mismatch(0), mismatch(i32::MIN)),
            (None, None, Some(i32::MIN.unsigned_abs() - 4095))
        );
        assert_eq!(Op::assert_version(7).args[8], 7);
    }
}
