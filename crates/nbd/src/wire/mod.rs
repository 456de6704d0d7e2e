//! The numbers and layouts of `doc/proto.md`, shared by both roles.
//!
//! Everything on the wire is big-endian. Numbers that a newer peer may extend are newtypes, so that an
//! unknown value is carried, printed and answered rather than lost.

mod handshake;
mod reader;
mod request;
mod transmission;

pub(crate) use handshake::{BadText, named_numbers, text};
pub use handshake::{
    CLIENT_FLAGS_LEN, CLISERV_MAGIC, ClientFlags, EXPORT_NAME_REPLY_LEN, EXPORT_NAME_ZEROES,
    GREETING_LEN, HandshakeFlags, INIT_PASSWD, InfoType, MAX_STRING_LEN, OPTION_HEADER_LEN,
    OPTION_MAGIC, OPTION_REPLY_HEADER_LEN, OPTION_REPLY_MAGIC, Opt, ReplyType,
};
pub(crate) use reader::Reader;
pub use request::{Request, RequestHead};
pub use transmission::{
    AllocationFlags, BASE_ALLOCATION, ChunkFlags, ChunkType, Command, CommandFlags, ErrorCode,
    HEARS_SHUTDOWN, HeaderStyle, MAX_STATUS_DESCRIPTORS, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC,
    TransmissionFlags,
};
