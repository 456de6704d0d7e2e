//! Disk URIs: from text to what is said of a disk. What there is to say, [`crate::disks`] knows.

use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::disks::{Body, DiskKind, PlanBuilder, file, kind_of, schemes, set_body};
use crate::text::{size, suggest};

/// A mistake in a URI: what, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError {
    uri: String,
    at: Range<usize>,
    problem: String,
}

impl UriError {
    pub(crate) fn new(uri: &str, at: Range<usize>, problem: impl Into<String>) -> Self {
        Self { uri: uri.into(), at, problem: problem.into() }
    }

    /// The URI as a whole is wrong.
    pub(crate) fn of_all(uri: &str, problem: impl Into<String>) -> Self {
        Self::new(uri, 0..uri.len(), problem)
    }

    /// The bytes of the URI that are wrong.
    #[must_use]
    pub fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    /// What is wrong with them, and what would be right.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.uri.get(..self.at.start).unwrap_or("");
        let column = before.chars().count() + 1;
        match self.uri.get(self.at.clone()) {
            Some(part) if !part.is_empty() && part.len() < self.uri.len() => {
                write!(f, "in {:?}, at {part:?} (column {column}): {}", self.uri, self.problem)
            }
            _ => write!(f, "{:?}: {}", self.uri, self.problem),
        }
    }
}

impl std::error::Error for UriError {}

/// Whether it is no URI, but a path: one that says so by how it begins, or the bare name of a file. Where that could be a slip,
/// as a size or the name of a kind of disks is, it is none.
pub(crate) fn is_path(text: &str) -> bool {
    let bare = || {
        let is_slip = text.is_empty() || size::parse(text).is_ok() || kind_of(text).is_some();
        !text.contains(':') && !is_slip
    };
    ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || bare()
}

/// The kind of disk that a URI is of, as far as that can be told of one that is wrong.
#[must_use]
pub fn kind_of_uri(uri: &str) -> Option<&'static DiskKind> {
    if is_path(uri) {
        return Some(&file::KIND);
    }
    let (scheme, _) = uri.split_once(':')?;
    kind_of(scheme).or_else(|| kind_of(suggest::nearest(scheme, schemes())?))
}

/// What a URI says of a disk.
pub(crate) fn parse(uri: &str) -> Result<PlanBuilder, UriError> {
    if is_path(uri) {
        let mut plan = PlanBuilder::new(&file::KIND);
        plan.path(uri).map_err(|problem| UriError::of_all(uri, problem))?;
        return Ok(plan);
    }
    let Some((scheme, rest)) = uri.split_once(':') else {
        let problem = if uri.is_empty() {
            "empty disk URI; write e.g. ram:1G, file:/path or nbd://host/export".into()
        } else if size::parse(uri).is_ok() {
            format!("no scheme; write ram:{uri} for a RAM disk, or ./{uri} for a file")
        } else {
            let usage = kind_of(uri).map_or("ram:1G", |kind| kind.usage);
            format!("no scheme; write {usage}, or ./{uri} for a file")
        };
        return Err(UriError::of_all(uri, problem));
    };
    let Some(kind) = kind_of(scheme) else {
        let hint = suggest::hint(scheme, &schemes());
        let problem = format!("unknown disk type {scheme:?}; {hint}");
        return Err(UriError::new(uri, 0..scheme.len(), problem));
    };
    let mut plan = PlanBuilder::new(kind);
    match kind.body {
        Body::Own(read) => read(&mut plan, uri)?,
        _ => read(&mut plan, uri, scheme.len() + 1, rest)?,
    }
    Ok(plan)
}

/// A URI as ours are, whose `rest` begins at `start`.
fn read(plan: &mut PlanBuilder, uri: &str, start: usize, rest: &str) -> Result<(), UriError> {
    let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
    let at = start..start + body.len();
    set_body(plan, body).map_err(|problem| UriError::new(uri, at, problem))?;
    let mut at = start + body.len() + 1;
    for parameter in query.split('&') {
        let range = at..at + parameter.len();
        at = range.end + 1;
        if parameter.is_empty() {
            continue;
        }
        let wrong = |problem| UriError::new(uri, range.clone(), problem);
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, "1"));
        let value = decode(value).map_err(wrong)?;
        plan.set(key, &value).map_err(wrong)?;
    }
    Ok(())
}

/// RFC 8089: `file:/p`, `file:///p`, and, beyond it, a relative `file:p`.
pub(crate) fn file_path(body: &str) -> Result<PathBuf, String> {
    match body.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => decode_path(rest),
        Some(rest) => {
            let host = rest.split('/').next().unwrap_or(rest);
            Err(format!("a file URI with the host {host:?} is not supported; write file:/path"))
        }
        None => decode_path(body),
    }
}

/// A path is bytes.
fn decode_path(text: &str) -> Result<PathBuf, String> {
    Ok(OsString::from_vec(decode_bytes(text)?).into())
}

pub(crate) fn decode(text: &str) -> Result<String, String> {
    let decoded = String::from_utf8(decode_bytes(text)?);
    decoded.map_err(|_| "the percent-encoded bytes are not UTF-8".into())
}

fn decode_bytes(text: &str) -> Result<Vec<u8>, String> {
    let broken = text.split('%').skip(1).find(|escape| {
        !escape
            .as_bytes()
            .first_chunk::<2>()
            .is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    });
    if broken.is_some() {
        return Err(
            "% must be followed by two hexadecimal digits; write %25 for a percent sign".into()
        );
    }
    Ok(percent_decode_str(text).collect())
}

#[cfg(test)]
mod tests;
