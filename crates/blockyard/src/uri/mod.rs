//! Disk URIs: from text to a plan that can no longer be wrong.
//!
//! | URI | the disk |
//! | --- | --- |
//! | `ram:1G` | memory, taken as it is written |
//! | `null:1T?latency=100us` | reads zeroes, forgets writes, each after a while |
//! | `file:/p?direct=1&create=1G&lock=0&engine=uring` | a file or a block device |
//! | `/p`, `./p` | the same with nothing special, the path taken as it is |
//! | `nbd://host/export?connections=2` and its like | an export of an NBD server ([`blockyard_nbd::uri`], [`NbdPlan`]) |
//!
//! A plan has no relative paths: they start at the folder where the URI was written, and mean the same file from then on.

mod nbd;
mod options;

use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

pub use nbd::NbdPlan;
pub(crate) use options::flag;
pub use options::{
    DiskOptions, DiskPlan, DriverPlan, Engine, FilePlan, OPTIONS, PlanBuilder, Scheme,
    canonical_key, parse_duration,
};

use crate::suggest;

/// A mistake in a URI: what, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError {
    uri: String,
    at: Range<usize>,
    problem: String,
}

impl UriError {
    fn new(uri: &str, at: Range<usize>, problem: impl Into<String>) -> Self {
        Self { uri: uri.into(), at, problem: problem.into() }
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
            _ => write!(f, "{:?}, column {column}: {}", self.uri, self.problem),
        }
    }
}

impl std::error::Error for UriError {}

const NBD_SCHEMES: [&str; 6] = ["nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock"];

impl std::str::FromStr for DiskPlan {
    type Err = UriError;

    /// Relative paths start at the working directory.
    fn from_str(uri: &str) -> Result<Self, UriError> {
        Self::parse_in(uri, Path::new(""))
    }
}

impl DiskPlan {
    /// The plan of a URI whose relative paths start at `folder`.
    ///
    /// # Errors
    /// A mistake in the URI.
    pub fn parse_in(uri: &str, folder: &Path) -> Result<Self, UriError> {
        let wrong = |problem| UriError::new(uri, 0..uri.len(), problem);
        PlanBuilder::of_uri(uri)?.finish(uri, folder).map_err(wrong)
    }
}

impl PlanBuilder {
    /// What a URI says, so that more can be said of the disk, but nothing twice.
    ///
    /// # Errors
    /// A mistake in the URI.
    pub fn of_uri(uri: &str) -> Result<Self, UriError> {
        parse(uri)
    }
}

/// A path that means the same file wherever this process, or one that it starts, goes to; a relative one starts at `folder`.
///
/// # Errors
/// A sentence for people: the working directory cannot be told.
pub fn absolute(folder: &Path, path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(folder.join(path)).map_err(|err| {
        format!("{} starts at the working directory, which cannot be told: {err}", path.display())
    })
}

/// Whether it is no URI, but a path.
fn is_path(text: &str) -> bool {
    ["/", "./", "../"].iter().any(|start| text.starts_with(start))
}

fn parse(uri: &str) -> Result<PlanBuilder, UriError> {
    let all = 0..uri.len();
    if is_path(uri) {
        let mut plan = PlanBuilder::new(Scheme::File);
        plan.path(uri).map_err(|problem| UriError::new(uri, all.clone(), problem))?;
        return Ok(plan);
    }
    let Some((scheme, rest)) = uri.split_once(':') else {
        let problem = if uri.is_empty() {
            "nothing is no disk; write ram:1G, file:/path or nbd://host/export".into()
        } else {
            format!("it has no scheme; a file is written ./{uri} or file:{uri}, memory ram:1G")
        };
        return Err(UriError::new(uri, all, problem));
    };
    if NBD_SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()) {
        return nbd::parse(uri);
    }
    let Some(kind) = Scheme::parse(scheme) else {
        let locals = Scheme::ALL.iter().map(|kind| kind.name()).filter(|name| *name != "nbd");
        let known: Vec<&str> = locals.chain(NBD_SCHEMES).collect();
        let problem = format!("there are no disks {scheme:?}; {}", suggest::hint(scheme, &known));
        return Err(UriError::new(uri, 0..scheme.len(), problem));
    };
    local(uri, kind, scheme.len() + 1, rest)
}

/// A URI of a disk of ours, whose `rest` begins at `start`.
fn local(uri: &str, scheme: Scheme, start: usize, rest: &str) -> Result<PlanBuilder, UriError> {
    let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
    let at = start..start + body.len();
    let mut plan = PlanBuilder::new(scheme);
    let set = |problem| UriError::new(uri, at.clone(), problem);
    match scheme {
        Scheme::File => plan.path(file_path(body).map_err(set)?).map_err(set)?,
        _ if body.is_empty() => {}
        _ => plan.set("size", body).map_err(set)?,
    }
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
    Ok(plan)
}

/// RFC 8089: `file:/p`, `file:///p`, and, beyond it, a relative `file:p`.
fn file_path(body: &str) -> Result<PathBuf, String> {
    match body.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => decode_path(rest),
        Some(rest) => {
            let host = rest.split('/').next().unwrap_or(rest);
            Err(format!("files are on this machine, not on {host:?}; write file:/path"))
        }
        None => decode_path(body),
    }
}

/// A path is bytes.
fn decode_path(text: &str) -> Result<PathBuf, String> {
    Ok(OsString::from_vec(decode_bytes(text)?).into())
}

fn decode(text: &str) -> Result<String, String> {
    let decoded = String::from_utf8(decode_bytes(text)?);
    decoded.map_err(|_| "the escaped bytes are not UTF-8".into())
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
            "a % is followed by two hexadecimal digits; write %25 for the sign itself".into()
        );
    }
    Ok(percent_decode_str(text).collect())
}

#[cfg(test)]
mod tests;
