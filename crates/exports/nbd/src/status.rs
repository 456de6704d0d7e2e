//! The one place where the block layer's answers become the protocol's.

use blockyard_blkmq::{Op, Status};
use blockyard_nbd::wire::ErrorCode;

/// The error of a status (`doc/proto.md`, "Error values"); of [`Status::Ok`] there is none to tell.
pub(crate) const fn error_code(op: Op, status: Status) -> ErrorCode {
    match status {
        Status::NoSpace => ErrorCode::ENOSPC,
        // "The server SHOULD return NBD_ENOSPC if it receives a write request including one or more sectors
        // beyond the size of the device", EINVAL for other requests. A disk that has just shrunk gets here.
        Status::OutOfRange => {
            if matches!(op, Op::Write | Op::WriteZeroes) {
                ErrorCode::ENOSPC
            } else {
                ErrorCode::EINVAL
            }
        }
        Status::NotPermitted | Status::ReservationConflict => ErrorCode::EPERM,
        Status::Resource => ErrorCode::ENOMEM,
        // "The server SHOULD NOT return NBD_ENOTSUP except as documented in response to NBD_CMD_WRITE_ZEROES".
        Status::NotSupported => {
            if matches!(op, Op::WriteZeroes) {
                ErrorCode::ENOTSUP
            } else {
                ErrorCode::EINVAL
            }
        }
        Status::Invalid => ErrorCode::EINVAL,
        Status::Offline => ErrorCode::ESHUTDOWN,
        Status::Ok
        | Status::Timeout
        | Status::Transport
        | Status::Medium
        | Status::Io
        | Status::Again => ErrorCode::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_end_depends_on_the_command() {
        assert_eq!(error_code(Op::Write, Status::OutOfRange), ErrorCode::ENOSPC);
        assert_eq!(error_code(Op::Read, Status::OutOfRange), ErrorCode::EINVAL);
        assert_eq!(error_code(Op::Discard, Status::NotSupported), ErrorCode::EINVAL);
        assert_eq!(error_code(Op::WriteZeroes, Status::NotSupported), ErrorCode::ENOTSUP);
        assert_eq!(error_code(Op::Read, Status::Timeout), ErrorCode::EIO);
    }
}
