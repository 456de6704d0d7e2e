//! Extensions of requests that make files (7.36, 7.38): security contexts, and a supplementary group of the caller.
//!
//! Each begins with its length and its type (`fuse_ext_header`). The types 0 to 31 are security contexts, as many as
//! the type says (`fuse_secctx_header`).

use crate::error::{Error, ErrorKind, Result};
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
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// An extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension<'a> {
    /// Security contexts, at most 31.
    SecurityContexts(Vec<SecurityContext<'a>>),
    /// Supplementary groups of the caller; the kernel sends the one that is the directory's.
    Groups(Vec<u32>),
    /// One of a newer peer.
    Unknown(u32),
}

/// Parses the extensions of a request.
///
/// # Errors
/// Lengths or counts that lie.
pub fn parse(bytes: &[u8]) -> Result<Vec<Extension<'_>>> {
    let error = |kind| Error::new("extensions", kind);
    let mut all = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut head = Reader::new(rest);
        let short = || error(ErrorKind::Truncated("header"));
        let size = u32::read(&mut head).ok_or_else(short)? as usize;
        let kind = u32::read(&mut head).ok_or_else(short)?;
        let (mine, others) = Some(size)
            .filter(|size| *size >= HEAD_LEN)
            .and_then(|size| rest.split_at_checked(size))
            .ok_or_else(|| {
                let (got, expected) = (size as u64, rest.len() as u64);
                error(ErrorKind::Length { what: "length in bytes", got, expected })
            })?;
        let mut body = Reader::new(mine.get(HEAD_LEN..).unwrap_or(&[]));
        all.push(match kind {
            0..=SECCTX_MAX => Extension::SecurityContexts(contexts(kind, &mut body)?),
            GROUPS => Extension::Groups(groups(&mut body)?),
            _ => Extension::Unknown(kind),
        });
        // What pads the last one may be left out.
        let padding = size.next_multiple_of(ALIGNMENT) - size;
        rest = others.get(padding..).unwrap_or(&[]);
    }
    Ok(all)
}

fn contexts<'a>(count: u32, body: &mut Reader<'a>) -> Result<Vec<SecurityContext<'a>>> {
    let short = || Error::new("security context", ErrorKind::Truncated("value"));
    let mut contexts = Vec::new();
    for _ in 0..count {
        let before = body.len();
        let size = u32::read(body).ok_or_else(short)? as usize;
        u32::read(body).ok_or_else(short)?;
        let name = body.string().ok_or_else(short)?;
        let value = body.bytes(size).ok_or_else(short)?;
        let used = before - body.len();
        body.bytes((used.next_multiple_of(ALIGNMENT) - used).min(body.len())).ok_or_else(short)?;
        contexts.push(SecurityContext { name, value });
    }
    Ok(contexts)
}

fn groups(body: &mut Reader<'_>) -> Result<Vec<u32>> {
    let short = || Error::new("supplementary groups", ErrorKind::Truncated("list"));
    let count = u32::read(body).ok_or_else(short)? as usize;
    // Before anything is kept for them: the count is the peer's.
    if count > body.len() / size_of::<u32>() {
        return Err(short());
    }
    (0..count).map(|_| u32::read(body).ok_or_else(short)).collect()
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
            out.extend_from_slice(name);
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

    #[test]
    fn contexts_and_groups_come_back_as_they_went() {
        let contexts = vec![
            SecurityContext { name: b"security.selinux", value: b"a:b:c\0" },
            SecurityContext { name: b"security.x", value: b"" },
        ];
        let mut out = Vec::new();
        write_contexts(&contexts, &mut out);
        write_groups(&[100, 200], &mut out);
        assert!(out.len().is_multiple_of(8));
        let expected = [Extension::SecurityContexts(contexts), Extension::Groups(vec![100, 200])];
        assert_eq!(parse(&out).unwrap(), expected);
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
