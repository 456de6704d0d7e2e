//! Block operations as NBD commands, and NBD's errors as block statuses.

use blockyard_blkmq::{Flags, Op, Status};
use blockyard_nbd::client::{Expected, Negotiated};
use blockyard_nbd::wire::{
    BASE_ALLOCATION, Command, CommandFlags, ErrorCode, HeaderStyle, Request, RequestHead,
    TransmissionFlags,
};

use crate::job::Ask;

/// What a connection agreed on, as far as requests depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialect {
    pub(crate) style: HeaderStyle,
    pub(crate) flags: TransmissionFlags,
    /// The id of `base:allocation`, if it was selected.
    pub(crate) allocation: Option<u32>,
    /// Bytes of the export.
    pub(crate) size: u64,
    /// The smallest unit that the disk is asked in.
    pub(crate) block: u64,
}

impl From<&Negotiated> for Dialect {
    fn from(negotiated: &Negotiated) -> Self {
        let allocation = negotiated.contexts.iter().find(|context| context.name == BASE_ALLOCATION);
        Self {
            style: negotiated.style,
            flags: negotiated.export.flags,
            allocation: allocation.map(|context| context.id),
            size: negotiated.export.size,
            block: crate::export::block_size(negotiated).bytes().into(),
        }
    }
}

impl Dialect {
    /// The request that does what is asked, and what is expected in reply.
    ///
    /// A block status or a prefetch may be for less than was asked, where the header has no room for it all:
    /// the first answers for a part, which it may, and the second is advice.
    pub(crate) fn request(&self, ask: &Ask, cookie: u64) -> Result<Expected, Status> {
        let (command, needed) = match ask.op {
            Op::Read => (Command::Read, TransmissionFlags::empty()),
            Op::Write => (Command::Write, TransmissionFlags::empty()),
            Op::Flush => (Command::Flush, TransmissionFlags::SEND_FLUSH),
            Op::Discard => (Command::Trim, TransmissionFlags::SEND_TRIM),
            Op::WriteZeroes => (Command::WriteZeroes, TransmissionFlags::SEND_WRITE_ZEROES),
            Op::Prefetch => (Command::Cache, TransmissionFlags::SEND_CACHE),
            Op::BlockStatus => (Command::BlockStatus, TransmissionFlags::empty()),
            Op::SecureErase => return Err(Status::NotSupported),
        };
        if !self.flags.contains(needed) {
            return Err(Status::NotSupported);
        }
        let flags = self.command_flags(ask)?;
        let length = if self.style == HeaderStyle::Extended {
            ask.len
        } else {
            ask.len.min(u64::from(u32::MAX) / 65536 * 65536)
        };
        let request = Request { command, flags, cookie, offset: ask.offset, length };
        match (ask.op, self.allocation) {
            (Op::BlockStatus, None) => Err(Status::NotSupported),
            (Op::BlockStatus, Some(id)) => Ok(Expected::block_status(request, &[id])),
            // Limits keep these within what the header can say.
            _ if length != ask.len && ask.op != Op::Prefetch => Err(Status::Invalid),
            _ => Ok(Expected::new(request)),
        }
    }

    fn command_flags(&self, ask: &Ask) -> Result<CommandFlags, Status> {
        let mut flags = CommandFlags::empty();
        if ask.op.is_write() && ask.flags.contains(Flags::FUA) {
            if !self.flags.contains(TransmissionFlags::SEND_FUA) {
                return Err(Status::NotSupported);
            }
            flags |= CommandFlags::FUA;
        }
        if ask.op == Op::WriteZeroes && ask.flags.contains(Flags::NOUNMAP) {
            flags |= CommandFlags::NO_HOLE;
        }
        if ask.op == Op::WriteZeroes && ask.flags.contains(Flags::NOFALLBACK) {
            if !self.flags.contains(TransmissionFlags::SEND_FAST_ZERO) {
                return Err(Status::NotSupported);
            }
            flags |= CommandFlags::FAST_ZERO;
        }
        if ask.op == Op::BlockStatus && ask.flags.contains(Flags::FIRST_EXTENT) {
            flags |= CommandFlags::REQ_ONE;
        }
        Ok(flags)
    }
}

/// The message that says goodbye, to which there is no answer.
pub(crate) fn goodbye(style: HeaderStyle) -> Option<RequestHead> {
    let (command, flags) = (Command::Disc, CommandFlags::empty());
    Request { command, flags, cookie: 0, offset: 0, length: 0 }.encode(style).ok()
}

/// What a command does to the block layer.
pub(crate) fn op(command: Command) -> Op {
    match command {
        Command::Write => Op::Write,
        Command::Flush => Op::Flush,
        Command::Trim => Op::Discard,
        Command::WriteZeroes => Op::WriteZeroes,
        Command::Cache => Op::Prefetch,
        Command::BlockStatus => Op::BlockStatus,
        // The last ones are never sent, or have no reply.
        Command::Read | Command::Disc | Command::Resize | Command::Unknown(_) => Op::Read,
    }
}

/// What the server's error means to the block layer.
pub(crate) fn status(error: ErrorCode) -> Status {
    match error {
        ErrorCode::EOVERFLOW => Status::Invalid,
        ErrorCode(number) => i32::try_from(number).map_or(Status::Io, Status::from_errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Dialect = Dialect {
        style: HeaderStyle::Extended,
        flags: TransmissionFlags::all(),
        allocation: Some(3),
        size: 1 << 40,
        block: 512,
    };

    fn ask(op: Op, flags: Flags, len: u64) -> Ask {
        Ask { op, flags, offset: 4096, len }
    }

    #[test]
    fn each_operation_has_its_command() {
        for (op, flags, command, command_flags) in [
            (Op::Read, Flags::SUPPLY, Command::Read, CommandFlags::empty()),
            (Op::Write, Flags::FUA, Command::Write, CommandFlags::FUA),
            (Op::Flush, Flags::empty(), Command::Flush, CommandFlags::empty()),
            (Op::Discard, Flags::empty(), Command::Trim, CommandFlags::empty()),
            (Op::WriteZeroes, Flags::NOUNMAP, Command::WriteZeroes, CommandFlags::NO_HOLE),
            (Op::WriteZeroes, Flags::NOFALLBACK, Command::WriteZeroes, CommandFlags::FAST_ZERO),
            (Op::BlockStatus, Flags::FIRST_EXTENT, Command::BlockStatus, CommandFlags::REQ_ONE),
            (Op::Prefetch, Flags::empty(), Command::Cache, CommandFlags::empty()),
        ] {
            let request = *ALL.request(&ask(op, flags, 512), 9).unwrap().request();
            let expected =
                Request { command, flags: command_flags, cookie: 9, offset: 4096, length: 512 };
            assert_eq!(request, expected);
        }
    }

    #[test]
    fn what_the_server_cannot_do_is_not_sent() {
        let plain = Dialect {
            style: HeaderStyle::Simple,
            flags: TransmissionFlags::HAS_FLAGS,
            allocation: None,
            ..ALL
        };
        for op in [Op::Flush, Op::Discard, Op::WriteZeroes, Op::BlockStatus, Op::Prefetch] {
            let refused = plain.request(&ask(op, Flags::empty(), 512), 1).unwrap_err();
            assert_eq!(refused, Status::NotSupported, "{op:?}");
        }
        assert!(plain.request(&ask(Op::Write, Flags::FUA, 512), 1).is_err());
        let erase = ask(Op::SecureErase, Flags::empty(), 512);
        assert_eq!(ALL.request(&erase, 1).unwrap_err(), Status::NotSupported);
    }

    #[test]
    fn lengths_of_more_than_32_bits_need_extended_headers() {
        let compact = Dialect { style: HeaderStyle::Structured, ..ALL };
        for (op, ok) in [(Op::BlockStatus, true), (Op::Prefetch, true), (Op::Discard, false)] {
            let ask = ask(op, Flags::empty(), 8 << 30);
            assert_eq!(ALL.request(&ask, 1).unwrap().request().length, 8 << 30);
            let sent = compact.request(&ask, 1);
            assert_eq!(sent.is_ok(), ok, "{op:?}");
            assert!(sent.is_err() || sent.unwrap().request().length < 1 << 32);
        }
    }

    #[test]
    fn errors_keep_their_meaning() {
        for (error, expected) in [
            (ErrorCode::EPERM, Status::NotPermitted),
            (ErrorCode::EIO, Status::Io),
            (ErrorCode::ENOMEM, Status::Resource),
            (ErrorCode::EINVAL, Status::Invalid),
            (ErrorCode::ENOSPC, Status::NoSpace),
            (ErrorCode::EOVERFLOW, Status::Invalid),
            (ErrorCode::ENOTSUP, Status::NotSupported),
            (ErrorCode::ESHUTDOWN, Status::Offline),
            (ErrorCode(u32::MAX), Status::Io),
        ] {
            assert_eq!(status(error), expected, "{error}");
        }
    }
}
