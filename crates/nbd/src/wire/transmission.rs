//! Numbers of the transmission phase (`doc/proto.md`, "Transmission" and "Values / Transmission phase").

use bitflags::bitflags;

use super::named_numbers;

/// First 4 bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Bytes of a simple reply without data: magic, error, cookie.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Most descriptors in a chunk of block status (`NBD_REPLY_TYPE_BLOCK_STATUS`).
pub const MAX_STATUS_DESCRIPTORS: usize = 1 << 20;
/// The one metadata context that the specification defines.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// A query beside those for contexts (`doc/proto.md`, "`NBD_OPT_SET_META_CONTEXT`": a namespace `x-*:` is for local
/// experiments), which selects nothing, and which other servers ignore: its client counts what it has not flushed as lost when
/// the connection ends, and takes ESHUTDOWN for the word to flush and leave. The protocol has no other.
pub const HEARS_SHUTDOWN: &str = "x-blockyard:shutdown";

const STRUCTURED_REPLY_LEN: usize = 20;
const EXTENDED_REPLY_LEN: usize = 32;
const COMPACT_REQUEST_LEN: usize = 28;
const EXTENDED_REQUEST_LEN: usize = 32;

const _: () = assert!(SIMPLE_REPLY_LEN == 4 + size_of::<ErrorCode>() + 8);
const _: () =
    assert!(STRUCTURED_REPLY_LEN == 4 + size_of::<ChunkFlags>() + size_of::<ChunkType>() + 8 + 4);
const _: () = assert!(EXTENDED_REPLY_LEN == 4 + 2 + 2 + 8 + 8 + 8);
const _: () = assert!(COMPACT_REQUEST_LEN == 4 + size_of::<CommandFlags>() + 2 + 8 + 8 + 4);
const _: () = assert!(EXTENDED_REQUEST_LEN == 4 + 2 + 2 + 8 + 8 + 8);

/// The message headers that a connection agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderStyle {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies (`NBD_OPT_STRUCTURED_REPLY`).
    Structured,
    /// Extended requests and replies with 64-bit lengths (`NBD_OPT_EXTENDED_HEADERS`).
    Extended,
}

impl HeaderStyle {
    /// Bytes of a request without payload.
    #[must_use]
    pub const fn request_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => COMPACT_REQUEST_LEN,
            Self::Extended => EXTENDED_REQUEST_LEN,
        }
    }

    /// First 4 bytes of a request.
    #[must_use]
    pub const fn request_magic(self) -> u32 {
        match self {
            Self::Simple | Self::Structured => 0x2560_9513,
            Self::Extended => 0x21e4_1c71,
        }
    }

    /// Bytes of the reply to a READ, or of its chunks, without payload.
    #[must_use]
    pub const fn reply_len(self) -> usize {
        match self {
            Self::Simple => SIMPLE_REPLY_LEN,
            Self::Structured => STRUCTURED_REPLY_LEN,
            Self::Extended => EXTENDED_REPLY_LEN,
        }
    }

    /// First 4 bytes of the reply to a READ, or of its chunks.
    #[must_use]
    pub const fn reply_magic(self) -> u32 {
        match self {
            Self::Simple => SIMPLE_REPLY_MAGIC,
            Self::Structured => 0x668e_33ef,
            Self::Extended => 0x6e8a_278c,
        }
    }

    /// Whether replies come in chunks: holes, block status and errors with a message need that.
    #[must_use]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }
}

/// What a request asks for ("Request types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// Say goodbye; there is no reply.
    Disc,
    /// Make all completed writes durable.
    Flush,
    /// The data is no longer needed.
    Trim,
    /// The data will be needed soon.
    Cache,
    /// Write zeroes.
    WriteZeroes,
    /// Ask for the metadata of a range.
    BlockStatus,
    /// Change the size (branch `extension-resize`).
    Resize,
    /// Any other number.
    Unknown(u16),
}

impl From<u16> for Command {
    #[inline]
    fn from(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disc,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            other => Self::Unknown(other),
        }
    }
}

impl From<Command> for u16 {
    #[inline]
    fn from(command: Command) -> Self {
        match command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disc => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Resize => 8,
            Command::Unknown(other) => other,
        }
    }
}

bitflags! {
    /// Modifiers of a request ("Command flags").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct CommandFlags: u16 {
        /// Durable before the reply.
        const FUA = 1 << 0;
        /// WRITE_ZEROES must not make a hole.
        const NO_HOLE = 1 << 1;
        /// READ must be answered by one chunk of content.
        const DF = 1 << 2;
        /// BLOCK_STATUS must be answered by one extent.
        const REQ_ONE = 1 << 3;
        /// WRITE_ZEROES must be faster than a write, or fail.
        const FAST_ZERO = 1 << 4;
        /// The length is that of a payload behind the header (extended headers only).
        const PAYLOAD_LEN = 1 << 5;
    }

    /// What an export can do ("Transmission flags").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct TransmissionFlags: u16 {
        /// Always set on the wire.
        const HAS_FLAGS = 1 << 0;
        /// Writing fails.
        const READ_ONLY = 1 << 1;
        /// FLUSH works.
        const SEND_FLUSH = 1 << 2;
        /// [`CommandFlags::FUA`] works.
        const SEND_FUA = 1 << 3;
        /// Seeks cost.
        const ROTATIONAL = 1 << 4;
        /// TRIM works.
        const SEND_TRIM = 1 << 5;
        /// WRITE_ZEROES works.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// [`CommandFlags::DF`] works.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers the writes completed on all.
        const CAN_MULTI_CONN = 1 << 8;
        /// RESIZE works (branch `extension-resize`).
        const SEND_RESIZE = 1 << 9;
        /// CACHE works.
        const SEND_CACHE = 1 << 10;
        /// [`CommandFlags::FAST_ZERO`] works.
        const SEND_FAST_ZERO = 1 << 11;
        /// BLOCK_STATUS takes a list of contexts as its payload (branch `extension-ext-header`).
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// Modifiers of a reply chunk ("Structured reply flags").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct ChunkFlags: u16 {
        /// The last chunk of this reply.
        const DONE = 1 << 0;
    }

    /// Status flags of [`BASE_ALLOCATION`] ("`base:allocation` metadata context").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct AllocationFlags: u32 {
        /// Nothing is allocated there; a write may fail for lack of space.
        const HOLE = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
    }
}

named_numbers! {
    /// The kind of a reply chunk ("Structured reply types"). Bit 15 marks an error.
    ChunkType(u16), "chunk type" {
        /// Nothing; only as the last chunk.
        NONE = 0, "NBD_REPLY_TYPE_NONE";
        /// Data at an offset.
        OFFSET_DATA = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        /// Zeroes at an offset.
        OFFSET_HOLE = 2, "NBD_REPLY_TYPE_OFFSET_HOLE";
        /// Extents with 32-bit lengths.
        BLOCK_STATUS = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        /// Extents with 64-bit lengths (branch `extension-ext-header`).
        BLOCK_STATUS_EXT = 6, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT";
        /// An error.
        ERROR = (1 << 15) + 1, "NBD_REPLY_TYPE_ERROR";
        /// An error at an offset.
        ERROR_OFFSET = (1 << 15) + 2, "NBD_REPLY_TYPE_ERROR_OFFSET";
    }
}

impl ChunkType {
    /// Whether bit 15 is set.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >> 15 == 1
    }
}

named_numbers! {
    /// How a request failed ("Error values"). A client takes an unknown number for `EINVAL`.
    ErrorCode(u32), "error" {
        /// Not permitted.
        EPERM = 1, "NBD_EPERM";
        /// Input/output error.
        EIO = 5, "NBD_EIO";
        /// Out of memory.
        ENOMEM = 12, "NBD_ENOMEM";
        /// Invalid argument.
        EINVAL = 22, "NBD_EINVAL";
        /// No space left.
        ENOSPC = 28, "NBD_ENOSPC";
        /// Too large.
        EOVERFLOW = 75, "NBD_EOVERFLOW";
        /// Not supported.
        ENOTSUP = 95, "NBD_ENOTSUP";
        /// The server is going down.
        ESHUTDOWN = 108, "NBD_ESHUTDOWN";
    }
}

impl ErrorCode {
    /// The error of a Linux `errno`: those of the protocol as they are, `EDQUOT` and `EFBIG` as `ENOSPC`,
    /// `EROFS` and `EACCES` as `EPERM`, others as `EIO` ("Error values").
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            1 | 13 | 30 => Self::EPERM,
            12 => Self::ENOMEM,
            22 => Self::EINVAL,
            27 | 28 | 122 => Self::ENOSPC,
            75 => Self::EOVERFLOW,
            95 => Self::ENOTSUP,
            108 => Self::ESHUTDOWN,
            _ => Self::EIO,
        }
    }

    /// The same value if the specification defines it, else `EINVAL`, as a client must read it.
    #[must_use]
    pub const fn known(self) -> Self {
        match self {
            Self::EPERM
            | Self::EIO
            | Self::ENOMEM
            | Self::ENOSPC
            | Self::EOVERFLOW
            | Self::ENOTSUP
            | Self::ESHUTDOWN => self,
            _ => Self::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_keep_their_number() {
        for number in 0..=u16::MAX {
            assert_eq!(u16::from(Command::from(number)), number);
        }
    }

    #[test]
    fn errors_of_linux_become_errors_of_the_protocol() {
        assert_eq!(ErrorCode::from_errno(122), ErrorCode::ENOSPC, "EDQUOT");
        assert_eq!(ErrorCode::from_errno(27), ErrorCode::ENOSPC, "EFBIG");
        assert_eq!(ErrorCode::from_errno(110), ErrorCode::EIO, "ETIMEDOUT");
        assert_eq!(ErrorCode(13).known(), ErrorCode::EINVAL);
        assert_eq!(ErrorCode::EIO.known(), ErrorCode::EIO);
    }
}
