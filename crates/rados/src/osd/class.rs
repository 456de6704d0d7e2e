//! Methods of classes that OSDs load.

use super::code::OpCode;
use super::op::Op;
use crate::error::{Error, ErrorKind, Result};

const DOING: &str = "calling a method of a class";

impl Op {
    /// Runs a method of a class with an input, whose form is the method's. What it gives is the data of the result. One
    /// that writes belongs into a request with [`OpFlags::WRITE`](super::OpFlags::WRITE).
    ///
    /// # Errors
    /// A name of more than 255 bytes, which the format cannot hold, or an input of 4 GiB.
    pub fn call(class: &str, method: &str, input: &[u8]) -> Result<Self> {
        let length = |name: &str| {
            let problem = "names of classes and methods have up to 255 bytes";
            let text = name.to_owned();
            u8::try_from(name.len())
                .map_err(|_| Error::new(DOING, ErrorKind::BadParameter { problem, text }))
        };
        let mut args = vec![length(class)?, length(method)?, 0];
        let input_len = u32::try_from(input.len());
        let limit = u32::MAX.into();
        let input_len = input_len
            .map_err(|_| Error::too_big(DOING, "bytes of input", input.len() as u64, limit))?;
        args.extend_from_slice(&input_len.to_le_bytes());
        let data = [class.as_bytes(), method.as_bytes(), input].concat();
        Ok(Self::with_args(OpCode::CALL, &args, data.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of `struct ceph_osd_op` of `src/include/rados.h`.
    #[test]
    fn lengths_come_before_the_names() {
        let op = Op::call("rbd", "get_id", b"x").unwrap();
        assert_eq!(op.args[..8], [3, 6, 0, 1, 0, 0, 0, 0]);
        assert_eq!(op.data, b"rbdget_idx"[..]);
        assert!(Op::call("rbd", &"x".repeat(256), b"").is_err());
    }
}
