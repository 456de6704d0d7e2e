//! The data of the client's options, and the replies to them ("Option types", "Option reply types").

use crate::export::BlockSizes;
use crate::wire::{
    BadText, InfoType, OPTION_REPLY_MAGIC, Opt, Reader, ReplyType, TransmissionFlags, text,
};

/// An error reply: its type, and words for the user of the client.
pub(super) type Answer = (ReplyType, &'static str);

const MALFORMED: Answer = (ReplyType::ERR_INVALID, "the data of the option is malformed");

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub(super) name: &'a str,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
    pub(super) wants_block_size: bool,
}

impl<'a> InfoRequest<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, Answer> {
        let mut r = Reader::new(data);
        let name = export_name(r.string32().ok_or(MALFORMED)?)?;
        let count = r.u16().ok_or(MALFORMED)?;
        if r.rest().len() != usize::from(count) * 2 {
            return Err(MALFORMED);
        }
        let mut wanted =
            Self { name, wants_name: false, wants_description: false, wants_block_size: false };
        while let Some(info) = r.u16() {
            match InfoType(info) {
                InfoType::NAME => wanted.wants_name = true,
                InfoType::DESCRIPTION => wanted.wants_description = true,
                InfoType::BLOCK_SIZE => wanted.wants_block_size = true,
                // EXPORT is always sent, and "the server MUST ignore any information requests it does not understand".
                _ => {}
            }
        }
        Ok(wanted)
    }
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContextRequest<'a> {
    pub(super) export: &'a str,
    pub(super) queries: Vec<&'a str>,
}

impl<'a> ContextRequest<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, Answer> {
        let mut r = Reader::new(data);
        let export = export_name(r.string32().ok_or(MALFORMED)?)?;
        let count = r.u32().ok_or(MALFORMED)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            let query = text(r.string32().ok_or(MALFORMED)?)
                .map_err(|bad| (ReplyType::ERR_INVALID, bad.rule()))?;
            if query.split_once(':').is_none_or(|(namespace, _)| namespace.is_empty()) {
                return Err((ReplyType::ERR_INVALID, "a query has no namespace before a colon"));
            }
            queries.push(query);
        }
        if r.is_empty() { Ok(Self { export, queries }) } else { Err(MALFORMED) }
    }

    /// Positions in `contexts` that SET_META_CONTEXT selects: those named exactly.
    pub(super) fn selected(&self, contexts: &[String]) -> Vec<usize> {
        Self::matching(contexts, |name| self.queries.contains(&name))
    }

    /// Positions in `contexts` that LIST_META_CONTEXT shows: all of them without a query, else those named
    /// exactly, or by a wildcard such as `base:` or `qemu:dirty-bitmap:`.
    pub(super) fn listed(&self, contexts: &[String]) -> Vec<usize> {
        Self::matching(contexts, |name| {
            self.queries.is_empty()
                || self
                    .queries
                    .iter()
                    .any(|&query| name == query || query.ends_with(':') && name.starts_with(query))
        })
    }

    fn matching(contexts: &[String], matches: impl Fn(&str) -> bool) -> Vec<usize> {
        contexts.iter().enumerate().filter(|(_, name)| matches(name)).map(|(at, _)| at).collect()
    }
}

/// The name of an export, of at most 4096 bytes.
pub(super) fn export_name(bytes: &[u8]) -> Result<&str, Answer> {
    text(bytes).map_err(|bad| match bad {
        BadText::TooLong => (ReplyType::ERR_TOO_BIG, bad.rule()),
        BadText::NotText => (ReplyType::ERR_INVALID, bad.rule()),
    })
}

/// Appends replies to one option.
pub(super) struct Replies<'a> {
    out: &'a mut Vec<u8>,
    option: Opt,
}

impl<'a> Replies<'a> {
    pub(super) const fn new(out: &'a mut Vec<u8>, option: Opt) -> Self {
        Self { out, option }
    }

    fn reply(&mut self, kind: ReplyType, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        // Names, descriptions and messages are cut or refused far below 4 GiB.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.0.to_be_bytes());
        self.out.extend_from_slice(&kind.0.to_be_bytes());
        self.out.extend_from_slice(&len.to_be_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    pub(super) fn ack(&mut self) {
        self.reply(ReplyType::ACK, &[]);
    }

    pub(super) fn error(&mut self, (kind, message): Answer) {
        self.reply(kind, &[message.as_bytes()]);
    }

    pub(super) fn server(&mut self, name: &str, description: &str) {
        let name = clipped(name);
        let len = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.reply(ReplyType::SERVER, &[&len, name.as_bytes(), clipped(description).as_bytes()]);
    }

    pub(super) fn info_export(&mut self, size: u64, flags: TransmissionFlags) {
        self.info(InfoType::EXPORT, &[&size.to_be_bytes(), &flags.bits().to_be_bytes()]);
    }

    pub(super) fn info_text(&mut self, kind: InfoType, text: &str) {
        self.info(kind, &[clipped(text).as_bytes()]);
    }

    pub(super) fn info_block_size(&mut self, sizes: BlockSizes) {
        let parts = [
            &sizes.minimum().to_be_bytes()[..],
            &sizes.preferred().to_be_bytes(),
            &sizes.max_payload().to_be_bytes(),
        ];
        self.info(InfoType::BLOCK_SIZE, &parts);
    }

    fn info(&mut self, kind: InfoType, parts: &[&[u8]]) {
        let kind = kind.0.to_be_bytes();
        let all: Vec<&[u8]> = std::iter::once(&kind[..]).chain(parts.iter().copied()).collect();
        self.reply(ReplyType::INFO, &all);
    }

    pub(super) fn meta_context(&mut self, id: u32, name: &str) {
        self.reply(ReplyType::META_CONTEXT, &[&id.to_be_bytes(), clipped(name).as_bytes()]);
    }
}

/// Our own strings keep to the limit of the protocol too.
pub(crate) fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(crate::wire::MAX_STRING_LEN)]
}

#[cfg(test)]
mod tests {
    use super::*;

    // "Option types", NBD_OPT_INFO and NBD_OPT_GO: name "disk", BLOCK_SIZE and an unknown information.
    #[test]
    fn golden_info_request() {
        let data = b"\0\0\0\x04disk\0\x02\0\x03\x7f\xff";
        let info = InfoRequest::parse(data).unwrap();
        assert_eq!((info.name, info.wants_block_size, info.wants_name), ("disk", true, false));
        for cut in 0..data.len() {
            assert_eq!(InfoRequest::parse(&data[..cut]), Err(MALFORMED));
        }
        assert_eq!(InfoRequest::parse(b"\0\0\0\0\0\0x"), Err(MALFORMED), "a byte too many");
    }

    // "Option types", NBD_OPT_SET_META_CONTEXT: export "d", queries "base:allocation" and "qemu:".
    #[test]
    fn golden_context_request() {
        let data = b"\0\0\0\x01d\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x05qemu:";
        let request = ContextRequest::parse(data).unwrap();
        assert_eq!(request.queries, ["base:allocation", "qemu:"]);
        let have = ["base:allocation", "qemu:allocation-depth", "x-y:z"].map(String::from);
        assert_eq!(request.selected(&have), [0], "a wildcard selects nothing");
        assert_eq!(request.listed(&have), [0, 1]);
        assert_eq!(
            ContextRequest { queries: vec![], ..request }.listed(&have),
            [0, 1, 2],
            "no query asks for all"
        );
        for cut in 0..data.len() {
            assert_eq!(ContextRequest::parse(&data[..cut]), Err(MALFORMED));
        }
    }

    #[test]
    fn queries_have_a_namespace_and_lie_within_the_data() {
        for query in [&b"nocolon"[..], b":leaf", b"\xff:x"] {
            let len = u32::try_from(query.len()).unwrap().to_be_bytes();
            let data = [&b"\0\0\0\0\0\0\0\x01"[..], &len, query].concat();
            assert_eq!(ContextRequest::parse(&data).unwrap_err().0, ReplyType::ERR_INVALID);
        }
        let lying_count = b"\0\0\0\0\xff\xff\xff\xff";
        assert_eq!(ContextRequest::parse(lying_count), Err(MALFORMED));
    }

    #[test]
    fn names_over_the_limit_are_too_big() {
        let name = [b'x'; 4097];
        assert_eq!(export_name(&name).unwrap_err().0, ReplyType::ERR_TOO_BIG);
        assert_eq!(clipped(&"é".repeat(4096)).len(), 4096);
        assert_eq!(clipped(&format!("x{}", "é".repeat(4096))).len(), 4095);
    }
}
