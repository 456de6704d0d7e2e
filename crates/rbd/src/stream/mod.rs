//! Images as streams of bytes: diffs (ceph: `doc/dev/rbd-diff.rst`, versions 1 and 2), and whole images with their snapshots
//! (ceph: `doc/dev/rbd-export.rst`, `src/tools/rbd/action/Export.cc`: export format 2). Records come from anything that can be
//! read, and go wherever bytes go; lengths are not believed before as many bytes have come.

mod diff;
mod export;
mod merge;
#[cfg(test)]
mod tests;

pub use diff::{DiffReader, DiffRecord, MAX_PIECE, Version};
pub use export::{ExportHeader, MAX_METADATA, diff_count, put_diff_count};
pub use merge::merge;

use crate::error::{Error, Result};
use std::io::{ErrorKind, Read};

/// Longest name of a snapshot (ceph: `src/tools/rbd/action/Import.cc`: 4k).
pub const MAX_NAME: u64 = 4096;

/// Reads exactly so many bytes.
fn array<const N: usize>(input: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(cut)?;
    Ok(bytes)
}

fn number(input: &mut impl Read) -> Result<u64> {
    array(input).map(u64::from_le_bytes)
}

/// Reads so many bytes, at most `max`.
fn bytes(input: &mut impl Read, count: u64, max: u64) -> Result<Vec<u8>> {
    if count > max {
        return Err(Error::damaged(format!(
            "a record of the stream says that it has {count} bytes; it can have {max}"
        )));
    }
    let mut bytes = Vec::new();
    input.take(count).read_to_end(&mut bytes).map_err(cut)?;
    if bytes.len() as u64 == count { Ok(bytes) } else { Err(ended()) }
}

/// Reads text with its length in front of it, in a record that has so many bytes left for that.
fn text(input: &mut impl Read, max: u64) -> Result<String> {
    let length = u32::from_le_bytes(array(input)?);
    let text = String::from_utf8(bytes(input, length.into(), max)?);
    text.map_err(|_| Error::damaged("a name in the stream is not UTF-8"))
}

/// Passes over so many bytes.
fn skip(input: &mut impl Read, count: u64) -> Result<()> {
    let skipped = std::io::copy(&mut input.take(count), &mut std::io::sink()).map_err(cut)?;
    if skipped == count { Ok(()) } else { Err(ended()) }
}

fn banner(input: &mut impl Read, expected: &[u8], what: &str) -> Result<()> {
    let mut found = Vec::new();
    input.take(expected.len() as u64).read_to_end(&mut found).map_err(cut)?;
    if found == expected {
        Ok(())
    } else {
        Err(Error::damaged(format!("the stream is not an {what}")))
    }
}

fn ended() -> Error {
    Error::damaged("the stream ends in the middle")
}

fn cut(error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => ended(),
        _ => Error::io("reading the stream")(error),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
