//! Numbers of the handshake phase (`doc/proto.md`, "Handshake" and "Values / Handshake phase").

use std::fmt;

use bitflags::bitflags;

/// First 8 bytes of a server, `NBDMAGIC`.
pub const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// Next 8 bytes of a newstyle server, and first 8 of each option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What stands there for an oldstyle server, which is not supported.
pub const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First 8 bytes of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Bytes of the server's greeting: two magics and the handshake flags.
pub const GREETING_LEN: usize = 18;
/// Bytes of the client's flags.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Bytes of an option without its data: magic, option, length.
pub const OPTION_HEADER_LEN: usize = 16;
/// Bytes of a reply to an option without its data: magic, option, reply type, length.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// Bytes of the reply to `NBD_OPT_EXPORT_NAME` without the zeroes: size and transmission flags.
pub const EXPORT_NAME_REPLY_LEN: usize = 10;
/// Bytes of zeroes behind it, unless both sides agreed on `NO_ZEROES`.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// Longest string of the protocol in bytes (`doc/proto.md`, "Conventions").
pub const MAX_STRING_LEN: usize = 4096;

const _: () = assert!(GREETING_LEN == 8 + 8 + size_of::<HandshakeFlags>());
const _: () = assert!(CLIENT_FLAGS_LEN == size_of::<ClientFlags>());
const _: () = assert!(OPTION_HEADER_LEN == 8 + size_of::<Opt>() + 4);
const _: () = assert!(OPTION_REPLY_HEADER_LEN == 8 + size_of::<Opt>() + size_of::<ReplyType>() + 4);

bitflags! {
    /// What the server offers in its greeting.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Options other than `EXPORT_NAME` may be sent, and are answered.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The zeroes behind the reply to `EXPORT_NAME` can be left out.
        const NO_ZEROES = 1 << 1;
    }

    /// What the client takes of [`HandshakeFlags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// The client speaks fixed newstyle.
        const FIXED_NEWSTYLE = 1 << 0;
        /// No zeroes, please.
        const NO_ZEROES = 1 << 1;
    }
}

/// Declares a newtype of a number, with names for the known values; others print as a number.
macro_rules! named_numbers {
    ($(#[$doc:meta])* $name:ident($int:ty), $unknown:literal {
        $($(#[$item_doc:meta])* $item:ident = $value:expr, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$item_doc])* pub const $item: Self = Self($value);)*
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match *self {
                    $(Self::$item => f.write_str($text),)*
                    Self(other) => write!(f, "{} {other:#x}", $unknown),
                }
            }
        }
    };
}
pub(crate) use named_numbers;

named_numbers! {
    /// An option of the handshake ("Option types"). Any number is a value: unknown ones must be answered too.
    Opt(u32), "option" {
        /// Choose an export and end the handshake, without errors.
        EXPORT_NAME = 1, "NBD_OPT_EXPORT_NAME";
        /// Say goodbye.
        ABORT = 2, "NBD_OPT_ABORT";
        /// Name the exports.
        LIST = 3, "NBD_OPT_LIST";
        /// Upgrade the connection to TLS.
        STARTTLS = 5, "NBD_OPT_STARTTLS";
        /// Describe an export.
        INFO = 6, "NBD_OPT_INFO";
        /// Describe an export, and end the handshake.
        GO = 7, "NBD_OPT_GO";
        /// Use structured replies.
        STRUCTURED_REPLY = 8, "NBD_OPT_STRUCTURED_REPLY";
        /// Name the metadata contexts of an export.
        LIST_META_CONTEXT = 9, "NBD_OPT_LIST_META_CONTEXT";
        /// Choose metadata contexts of an export.
        SET_META_CONTEXT = 10, "NBD_OPT_SET_META_CONTEXT";
        /// Use the extended headers (branch `extension-ext-header`).
        EXTENDED_HEADERS = 11, "NBD_OPT_EXTENDED_HEADERS";
    }
}

named_numbers! {
    /// The kind of a reply to an option ("Option reply types"). Bit 31 marks an error.
    ReplyType(u32), "reply" {
        /// Done.
        ACK = 1, "NBD_REP_ACK";
        /// One export of the list.
        SERVER = 2, "NBD_REP_SERVER";
        /// One piece of information on an export.
        INFO = 3, "NBD_REP_INFO";
        /// One metadata context.
        META_CONTEXT = 4, "NBD_REP_META_CONTEXT";
        /// The option is not known.
        ERR_UNSUP = (1 << 31) + 1, "NBD_REP_ERR_UNSUP";
        /// The server's configuration forbids it.
        ERR_POLICY = (1 << 31) + 2, "NBD_REP_ERR_POLICY";
        /// The option's data is malformed, or it makes no sense now.
        ERR_INVALID = (1 << 31) + 3, "NBD_REP_ERR_INVALID";
        /// The server's platform cannot do it.
        ERR_PLATFORM = (1 << 31) + 4, "NBD_REP_ERR_PLATFORM";
        /// Not before TLS.
        ERR_TLS_REQD = (1 << 31) + 5, "NBD_REP_ERR_TLS_REQD";
        /// No such export.
        ERR_UNKNOWN = (1 << 31) + 6, "NBD_REP_ERR_UNKNOWN";
        /// The server is going down.
        ERR_SHUTDOWN = (1 << 31) + 7, "NBD_REP_ERR_SHUTDOWN";
        /// Not without asking for `NBD_INFO_BLOCK_SIZE`.
        ERR_BLOCK_SIZE_REQD = (1 << 31) + 8, "NBD_REP_ERR_BLOCK_SIZE_REQD";
        /// The request or its reply is too large.
        ERR_TOO_BIG = (1 << 31) + 9, "NBD_REP_ERR_TOO_BIG";
        /// Only with extended headers (branch `extension-ext-header`).
        ERR_EXT_HEADER_REQD = (1 << 31) + 10, "NBD_REP_ERR_EXT_HEADER_REQD";
    }
}

impl ReplyType {
    /// Whether bit 31 is set.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >> 31 == 1
    }
}

named_numbers! {
    /// A piece of information on an export (`NBD_REP_INFO`).
    InfoType(u16), "information" {
        /// Size and transmission flags, always sent.
        EXPORT = 0, "NBD_INFO_EXPORT";
        /// The canonical name.
        NAME = 1, "NBD_INFO_NAME";
        /// A text for people.
        DESCRIPTION = 2, "NBD_INFO_DESCRIPTION";
        /// Minimum and preferred block size, maximum payload.
        BLOCK_SIZE = 3, "NBD_INFO_BLOCK_SIZE";
    }
}

/// The rules of strings ("Conventions"): UTF-8, at most [`MAX_STRING_LEN`] bytes, no NUL.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, BadText> {
    if bytes.len() > MAX_STRING_LEN {
        return Err(BadText::TooLong);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(BadText::NotText),
    }
}

/// Why bytes are no string of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadText {
    TooLong,
    NotText,
}

impl BadText {
    pub(crate) const fn rule(self) -> &'static str {
        match self {
            Self::TooLong => "a string is longer than 4096 bytes",
            Self::NotText => "a string is not UTF-8, or has a NUL in it",
        }
    }
}

impl fmt::Display for BadText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magics_are_ascii() {
        assert_eq!(&INIT_PASSWD.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn unknown_numbers_are_carried_and_printed() {
        assert_eq!(Opt(0x63).to_string(), "option 0x63");
        assert_eq!(Opt::GO.to_string(), "NBD_OPT_GO");
        assert!(ReplyType::ERR_UNSUP.is_error() && !ReplyType::ACK.is_error());
        assert!(ReplyType(1 << 31).is_error());
    }

    #[test]
    fn strings_are_utf8_without_nul_up_to_4096_bytes() {
        assert_eq!(text("é".as_bytes()), Ok("é"));
        assert_eq!(text(b"a\0b"), Err(BadText::NotText));
        assert_eq!(text(&[0xff]), Err(BadText::NotText));
        assert!(text(&[b'x'; 4096]).is_ok());
        assert_eq!(text(&[b'x'; 4097]), Err(BadText::TooLong));
    }
}
