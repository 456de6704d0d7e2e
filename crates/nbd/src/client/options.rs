//! Options as a client sends them, and what the server's replies hold ("Option types", "Option reply types").

use crate::error::{Error, ErrorKind};
use crate::export::{BlockSizes, ExportInfo, MetaContext};
use crate::wire::{
    BadText, InfoType, MAX_STRING_LEN, OPTION_MAGIC, OPTION_REPLY_MAGIC, Opt, Reader, ReplyType,
    TransmissionFlags, text,
};

/// Longest reply to an option that is taken, in bytes.
pub const MAX_OPTION_REPLY_LEN: u32 = 64 << 10;
/// Most bytes in all replies to one option, with their headers.
pub const MAX_OPTION_REPLIES_LEN: usize = 16 << 20;

pub(super) const DOING: &str = "negotiating with a server";

/// An export in a server's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// The name to open it by.
    pub name: String,
    /// A text for people, empty if there is none.
    pub description: String,
}

/// The first 16 bytes of a reply to an option behind the magic that was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyHeader {
    pub(super) kind: ReplyType,
    pub(super) len: u32,
}

impl ReplyHeader {
    /// Checks that it answers `option` and is of bearable length. `bytes` are as many as a header has.
    pub(super) fn parse(bytes: &[u8], option: Opt) -> Result<Self, Error> {
        let mut r = Reader::new(bytes);
        let magic = r.u64().unwrap_or(0);
        if magic != OPTION_REPLY_MAGIC {
            let kind = ErrorKind::BadMagic { expected: OPTION_REPLY_MAGIC, got: magic };
            return Err(Error::new(DOING, kind));
        }
        let answered = r.u32().unwrap_or(0);
        if answered != option.0 {
            let rule = "the server answered an option that was not asked";
            return Err(Error::violation(DOING, rule, answered.into()));
        }
        let (kind, len) = (ReplyType(r.u32().unwrap_or(0)), r.u32().unwrap_or(0));
        if len > MAX_OPTION_REPLY_LEN {
            let what = "the length in bytes of a reply to an option";
            return Err(Error::too_big(DOING, what, len.into(), MAX_OPTION_REPLY_LEN.into()));
        }
        Ok(Self { kind, len })
    }
}

/// Appends an option to `out`.
pub(super) fn put_option(out: &mut Vec<u8>, option: Opt, data: &[u8]) {
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.0.to_be_bytes());
    put_string(out, data);
}

/// Appends a length of 32 bits and the bytes. Callers keep to the limits of strings and queries.
fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`, asking for all there is to know.
pub(super) fn info_data(name: &str) -> Vec<u8> {
    let wanted = [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
    let mut data = Vec::new();
    put_string(&mut data, name.as_bytes());
    data.extend_from_slice(&3_u16.to_be_bytes());
    for info in wanted {
        data.extend_from_slice(&info.0.to_be_bytes());
    }
    data
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(super) fn contexts_data(export: &str, queries: &[String]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, export.as_bytes());
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap_or(u32::MAX).to_be_bytes());
    for query in queries {
        put_string(&mut data, query.as_bytes());
    }
    data
}

fn malformed(kind: ReplyType, len: usize) -> Error {
    let rule = match kind {
        ReplyType::SERVER => "an NBD_REP_SERVER reply is malformed",
        ReplyType::INFO => "an NBD_REP_INFO reply is malformed",
        _ => "an NBD_REP_META_CONTEXT reply is malformed",
    };
    Error::violation(DOING, rule, len.try_into().unwrap_or(u64::MAX))
}

/// What a server calls something. Names that are no text of the protocol's are known of servers whose files have such names
/// (nbdkit's file plugin with `dir=`): one of them is told escaped, and makes the others no worse.
fn string(bytes: &[u8], kind: ReplyType) -> Result<String, Error> {
    match text(bytes) {
        Ok(text) => Ok(text.into()),
        Err(BadText::NotText) => {
            Ok(bytes.escape_ascii().take(MAX_STRING_LEN).map(char::from).collect())
        }
        Err(BadText::TooLong) => Err(malformed(kind, bytes.len())),
    }
}

/// Data of `NBD_REP_SERVER`.
pub(super) fn listed_export(data: &[u8]) -> Result<ListedExport, Error> {
    let mut r = Reader::new(data);
    let name = r.string32().ok_or_else(|| malformed(ReplyType::SERVER, data.len()))?;
    Ok(ListedExport {
        name: string(name, ReplyType::SERVER)?,
        description: string(r.rest(), ReplyType::SERVER)?,
    })
}

/// Data of `NBD_REP_META_CONTEXT`.
pub(super) fn meta_context(data: &[u8]) -> Result<MetaContext, Error> {
    let mut r = Reader::new(data);
    let id = r.u32().ok_or_else(|| malformed(ReplyType::META_CONTEXT, data.len()))?;
    Ok(MetaContext { id, name: string(r.rest(), ReplyType::META_CONTEXT)? })
}

/// What the `NBD_REP_INFO` replies said so far.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) info: ExportInfo,
    /// Whether the mandatory `NBD_INFO_EXPORT` came.
    pub(super) complete: bool,
}

impl Collected {
    pub(super) const fn new(name: String) -> Self {
        let info = ExportInfo {
            name,
            description: String::new(),
            size: 0,
            flags: TransmissionFlags::empty(),
            block_sizes: None,
        };
        Self { info, complete: false }
    }

    /// Takes the data of one `NBD_REP_INFO`; what it does not know it must ignore.
    pub(super) fn add(&mut self, data: &[u8]) -> Result<(), Error> {
        let bad = || malformed(ReplyType::INFO, data.len());
        let mut r = Reader::new(data);
        match InfoType(r.u16().ok_or_else(bad)?) {
            InfoType::EXPORT => {
                self.info.size = r.u64().ok_or_else(bad)?;
                self.info.flags = TransmissionFlags::from_bits_retain(r.u16().ok_or_else(bad)?);
                self.complete = true;
            }
            InfoType::NAME => {
                self.info.name = string(r.take_rest(), ReplyType::INFO)?;
            }
            InfoType::DESCRIPTION => {
                self.info.description = string(r.take_rest(), ReplyType::INFO)?;
            }
            InfoType::BLOCK_SIZE => {
                let mut size = || r.u32().ok_or_else(bad);
                // Sizes that break the rules are taken as none, as libnbd does: the server serves others with them.
                self.info.block_sizes = BlockSizes::new(size()?, size()?, size()?).ok();
            }
            _ => return Ok(()),
        }
        if r.is_empty() { Ok(()) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // "Newstyle negotiation" (option) and NBD_OPT_GO.
    #[test]
    fn golden_go() {
        let mut out = Vec::new();
        put_option(&mut out, Opt::GO, &info_data("disk"));
        let expected = b"IHAVEOPT\0\0\0\x07\0\0\0\x10\0\0\0\x04disk\0\x03\0\x01\0\x02\0\x03";
        assert_eq!(out, expected);
    }

    // NBD_OPT_SET_META_CONTEXT.
    #[test]
    fn golden_contexts() {
        let data = contexts_data("d", &["base:allocation".to_owned()]);
        assert_eq!(data, b"\0\0\0\x01d\0\0\0\x01\0\0\0\x0fbase:allocation");
    }

    // NBD_REP_INFO: NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE.
    #[test]
    fn golden_info() {
        let mut collected = Collected::new(String::new());
        for data in [
            &b"\0\0\0\0\0\0\0\x10\0\0\0\x05"[..],
            b"\0\x01disk",
            b"\0\x02a disk",
            b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0",
            b"\x12\x34whatever",
        ] {
            collected.add(data).unwrap();
        }
        assert!(collected.complete);
        let expected = ExportInfo {
            name: "disk".into(),
            description: "a disk".into(),
            size: 1 << 20,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
            block_sizes: Some(BlockSizes::new(512, 4096, 32 << 20).unwrap()),
        };
        assert_eq!(collected.info, expected);
        for bad in [
            &b""[..],
            b"\0",
            b"\0\0\0",
            b"\0\0\0\0\0\0\0\x10\0\0\0\x05x",
            b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0",
        ] {
            assert!(collected.add(bad).is_err(), "{bad:?}");
        }
        // A minimum of 513 bytes.
        collected.add(b"\0\x03\0\0\x02\x01\0\0\x10\0\x02\0\0\0").unwrap();
        assert_eq!(collected.info.block_sizes, None, "as if the server had said nothing");
    }

    // NBD_REP_SERVER, NBD_REP_META_CONTEXT.
    #[test]
    fn golden_list_entries() {
        let export = listed_export(b"\0\0\0\x04diska disk").unwrap();
        assert_eq!((export.name.as_str(), export.description.as_str()), ("disk", "a disk"));
        assert!(listed_export(b"\0\0\0\x05disk").is_err());
        let foreign = listed_export(b"\0\0\0\x04caf\xe9\x1b[2J\0\xff").unwrap();
        assert_eq!(foreign.name, r"caf\xe9");
        assert_eq!(foreign.description, r"\x1b[2J\x00\xff");
        let long = listed_export(&[&4096_u32.to_be_bytes()[..], &[0xff; 4096]].concat()).unwrap();
        assert_eq!(long.name.len(), MAX_STRING_LEN);
        let context = meta_context(b"\0\0\0\x07base:allocation").unwrap();
        assert_eq!(context, MetaContext { id: 7, name: "base:allocation".into() });
        assert!(meta_context(b"\0\0\x07").is_err());
    }

    #[test]
    fn replies_to_other_options_and_long_ones_are_violations() {
        let good = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\0\0\0\x02\0\0\0\x08";
        let header = ReplyHeader::parse(good, Opt::LIST).unwrap();
        assert_eq!((header.kind, header.len), (ReplyType::SERVER, 8));
        assert!(ReplyHeader::parse(good, Opt::GO).is_err());
        let mut long = *good;
        long[16] = 1;
        let error = ReplyHeader::parse(&long, Opt::LIST).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooBig { got: 0x0100_0008, .. }));
    }
}
