//! Extensions of requests that make files (7.36, 7.38): security contexts, and a supplementary group of the caller.
//!
//! Each begins with its length and its type (`fuse_ext_header`). The types 0 to 31 are security contexts, as many as
//! the type says (`fuse_secctx_header`).

use crate::Protocol;
use crate::error::{Error, ErrorKind, Message, Result};
use crate::request::CBytes;
use crate::wire::{Reader, Wire};

/// The most security contexts of a request (`FUSE_MAX_NR_SECCTX`).
const SECCTX_MAX: u32 = 31;
/// The type of supplementary groups (`FUSE_EXT_GROUPS`).
const GROUPS: u32 = 32;
/// What extensions, and contexts in them, are padded to.
const ALIGNMENT: usize = 8;
/// Bytes of `fuse_ext_header`, and of `fuse_secctx`.
const HEAD_LEN: usize = 8;

/// A security context: what an extended attribute of the new file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecurityContext<'a> {
    /// The name of the attribute.
    pub name: CBytes<'a>,
    /// Its value.
    pub value: &'a [u8],
}

/// An extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension<'a> {
    /// Security contexts, at most 31.
    SecurityContexts(Contexts<'a>),
    /// Supplementary groups of the caller; the kernel sends the one that is the directory's.
    Groups(Groups<'a>),
    /// One of a newer peer.
    Unknown(u32),
}

/// Security contexts, which were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contexts<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Contexts<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = SecurityContext<'a>> + 'a {
        let mut body = Reader::new(self.bytes);
        (0..self.count).map_while(move |_| context(&mut body).ok())
    }
}

/// Groups of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups<'a>(&'a [u8]);

impl<'a> Groups<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        let mut bytes = self.0;
        std::iter::from_fn(move || u32::take(&mut bytes))
    }
}

fn error(kind: ErrorKind) -> Error {
    Error::new(Message::Extensions, kind)
}

/// The extensions of a request, one after the other, in the order that they came. It ends with the first that is
/// wrong: lengths or counts that lie.
pub fn iter(bytes: &[u8]) -> impl Iterator<Item = Result<Extension<'_>>> {
    let mut parts = parts(bytes);
    std::iter::from_fn(move || {
        let part = match parts.next()? {
            Ok(part) => part,
            Err(err) => return Some(Err(err)),
        };
        let mut body = Reader::new(part.body);
        Some(match part.kind {
            0..=SECCTX_MAX => contexts(part.kind, part.body).map(Extension::SecurityContexts),
            GROUPS => groups(&mut body).map(Extension::Groups),
            _ => Ok(Extension::Unknown(part.kind)),
        })
    })
}

/// An extension that was not looked into.
struct Part<'a> {
    kind: u32,
    body: &'a [u8],
    /// All of it, with its header and padding.
    whole: &'a [u8],
}

fn parts(bytes: &[u8]) -> impl Iterator<Item = Result<Part<'_>>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let part = part(&mut rest);
        if part.is_err() {
            rest = &[];
        }
        Some(part)
    })
}

fn part<'a>(rest: &mut &'a [u8]) -> Result<Part<'a>> {
    let mut head = Reader::new(rest);
    let short = || error(ErrorKind::Truncated("header"));
    let size = u32::read(&mut head).ok_or_else(short)? as usize;
    let kind = u32::read(&mut head).ok_or_else(short)?;
    let wrong = || {
        let (got, expected) = (size as u64, rest.len() as u64);
        error(ErrorKind::Length { what: "length in bytes", got, expected })
    };
    // What pads the last one may be left out.
    let padded = size.checked_next_multiple_of(ALIGNMENT).ok_or_else(wrong)?.min(rest.len());
    let body = rest.get(HEAD_LEN..size).ok_or_else(wrong)?;
    let (whole, others) = rest.split_at_checked(padded).ok_or_else(wrong)?;
    *rest = others;
    Ok(Part { kind, body, whole })
}

fn contexts(count: u32, bytes: &[u8]) -> Result<Contexts<'_>> {
    let mut body = Reader::new(bytes);
    for _ in 0..count {
        context(&mut body)?;
    }
    Ok(Contexts { count, bytes })
}

fn context<'a>(body: &mut Reader<'a>) -> Result<SecurityContext<'a>> {
    let short = || error(ErrorKind::Truncated("security context"));
    let before = body.len();
    let size = u32::read(body).ok_or_else(short)? as usize;
    u32::read(body).ok_or_else(short)?;
    let name = body.string().ok_or_else(short)?;
    let value = body.bytes(size).ok_or_else(short)?;
    let used = before - body.len();
    body.bytes((used.next_multiple_of(ALIGNMENT) - used).min(body.len())).ok_or_else(short)?;
    Ok(SecurityContext { name, value })
}

fn groups<'a>(body: &mut Reader<'a>) -> Result<Groups<'a>> {
    let short = || error(ErrorKind::Truncated("list of groups"));
    let count = u32::read(body).ok_or_else(short)? as usize;
    let len = count.checked_mul(u32::LEN).ok_or_else(short)?;
    body.bytes(len).map(Groups).ok_or_else(short)
}

/// Those of `bytes` that a session has agreed on, each with its header and padding. It ends with the first that is no
/// extension.
pub(crate) fn agreed<'a>(
    bytes: &'a [u8],
    protocol: &Protocol,
) -> impl Iterator<Item = &'a [u8]> + 'a {
    let (contexts, groups) = protocol.extensions();
    let may = move |kind| match kind {
        0..=SECCTX_MAX => contexts,
        GROUPS => groups,
        _ => false,
    };
    let parts = parts(bytes).map_while(Result::ok);
    parts.filter(move |part| may(part.kind)).map(|part| part.whole)
}

/// Appends security contexts.
///
/// # Panics
/// There are more than 31.
pub fn write_contexts(contexts: &[SecurityContext<'_>], out: &mut Vec<u8>) {
    assert!(contexts.len() <= SECCTX_MAX as usize, "at most 31 security contexts");
    with_header(u32::try_from(contexts.len()).unwrap_or(SECCTX_MAX), out, |out| {
        for SecurityContext { name, value } in contexts {
            let start = out.len();
            u32::try_from(value.len()).unwrap_or(u32::MAX).write(out);
            0u32.write(out);
            out.extend_from_slice(name.bytes());
            out.push(0);
            out.extend_from_slice(value);
            pad(start, out);
        }
    });
}

/// Appends supplementary groups.
pub fn write_groups(groups: &[u32], out: &mut Vec<u8>) {
    with_header(GROUPS, out, |out| {
        u32::try_from(groups.len()).unwrap_or(u32::MAX).write(out);
        groups.iter().for_each(|group| group.write(out));
    });
}

fn with_header(kind: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    0u32.write(out);
    kind.write(out);
    write(out);
    pad(start, out);
    let size = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..start + size_of::<u32>()) {
        place.copy_from_slice(&size.to_le_bytes());
    }
}

fn pad(start: usize, out: &mut Vec<u8>) {
    out.resize(start + (out.len() - start).next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Vec<Extension<'_>>> {
        iter(bytes).collect()
    }

    #[test]
    fn contexts_and_groups_come_back_as_they_went() {
        let name = |bytes| CBytes::new(bytes).unwrap();
        let contexts = [
            SecurityContext { name: name(b"security.selinux"), value: b"a:b:c\0" },
            SecurityContext { name: name(b"security.x"), value: b"" },
        ];
        let mut out = Vec::new();
        write_contexts(&contexts, &mut out);
        write_groups(&[100, 200], &mut out);
        assert!(out.len().is_multiple_of(8));
        let parsed = parse(&out).unwrap();
        let [Extension::SecurityContexts(came), Extension::Groups(groups)] = parsed[..] else {
            panic!("{parsed:?}");
        };
        assert_eq!(came.iter().collect::<Vec<_>>(), contexts);
        assert_eq!(groups.iter().collect::<Vec<_>>(), [100, 200]);
    }

    #[test]
    fn a_group_is_laid_out_as_in_the_header() {
        let mut out = Vec::new();
        write_groups(&[7], &mut out);
        // struct fuse_ext_header: size, type; struct fuse_supp_groups: nr_groups, groups.
        assert_eq!(out, [16, 0, 0, 0, 32, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn extensions_of_a_newer_peer_are_passed_over_and_lies_refused() {
        let newer = [16, 0, 0, 0, 99, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(parse(&newer).unwrap(), [Extension::Unknown(99)]);
        for size in [0u8, 7, 17, 255] {
            let mut lies = newer;
            lies[0] = size;
            assert!(parse(&lies).is_err(), "{size}");
        }
        let mut many = Vec::new();
        write_groups(&[7], &mut many);
        many[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&many).is_err());
        let contexts = [31, 0, 0, 0].map(|byte| byte);
        let lies = [&[8u8, 0, 0, 0][..], &contexts].concat();
        assert!(parse(&lies).is_err(), "contexts that are not there");
    }
}
