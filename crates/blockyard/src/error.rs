//! The one error of the library and the command: what was being done, what to do about it, and why it failed.

use std::error::Error as StdError;
use std::fmt;

use crate::text::term::plain;

/// What kind of thing went wrong; it decides the exit code of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What the user wrote cannot be: a URI, an option, a configuration.
    Usage,
    /// Anything else that failed.
    Failed,
    /// The kernel, or this build, lacks what is needed.
    Unavailable,
    /// Somebody else has it.
    Busy,
    /// The user may not do that.
    NotPermitted,
}

impl ErrorKind {
    /// The exit code of a command that ends this way (`sysexits.h` has the same numbers).
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Busy => 75,
            Self::NotPermitted => 77,
        }
    }

    /// What ends with an exit code: [`ErrorKind::Failed`] for those that are none of ours.
    #[must_use]
    pub fn of_exit_code(code: u8) -> Self {
        let kinds = [Self::Usage, Self::Unavailable, Self::Busy, Self::NotPermitted];
        kinds.into_iter().find(|kind| kind.exit_code() == code).unwrap_or(Self::Failed)
    }
}

/// What was being done, what to do about it, and why it failed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    help: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of whatever can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a sentence that says what, and where.
    #[must_use]
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), help: None, source: None }
    }

    /// What the user wrote cannot be.
    #[must_use]
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, what)
    }

    /// Something failed.
    #[must_use]
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, what)
    }

    /// With what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// With what caused it. The kind of an error of the system, or of the layers below, is taken over where it
    /// says more.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        if self.kind == ErrorKind::Failed {
            self.kind = kind_of(&*source);
        }
        self.source = Some(source);
        self
    }

    /// The same, if anything is known to have caused it.
    #[must_use]
    pub(crate) fn perhaps_caused_by(self, source: Option<Self>) -> Self {
        match source {
            Some(source) => self.caused_by(source),
            None => self,
        }
    }

    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// What the first error of a chain that knows says.
fn kind_of(error: &(dyn StdError + 'static)) -> ErrorKind {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.kind;
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            match error.kind() {
                std::io::ErrorKind::PermissionDenied => return ErrorKind::NotPermitted,
                std::io::ErrorKind::AddrInUse | std::io::ErrorKind::ResourceBusy => {
                    return ErrorKind::Busy;
                }
                _ => {}
            }
        }
        if let Some(error) = error.downcast_ref::<blockyard_blkmq::Error>() {
            use blockyard_blkmq::ErrorKind as Kind;
            match error.kind() {
                Kind::Busy => return ErrorKind::Busy,
                Kind::NotPermitted => return ErrorKind::NotPermitted,
                Kind::NotSupported => return ErrorKind::Unavailable,
                _ => {}
            }
        }
        next = error.source();
    }
    ErrorKind::Failed
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The whole chain on lines of their own, a cause once where a layer repeats it, and what to do at the end.
pub fn describe(error: &Error, out: &mut impl fmt::Write) -> fmt::Result {
    let mut said = error.to_string();
    out.write_str(&plain(&said))?;
    let mut help: Vec<&str> = error.remedy().into_iter().collect();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            write!(out, "\n  because: {}", plain(&text))?;
        }
        if let Some(remedy) = cause.downcast_ref::<Error>().and_then(Error::remedy) {
            help.push(remedy);
        }
        said = text;
        next = cause.source();
    }
    for help in help {
        write!(out, "\n  help: {}", plain(help))?;
    }
    Ok(())
}

/// The error that another process has described, line by line.
pub(crate) fn described(kind: ErrorKind, text: &str) -> Error {
    let mut lines = text.lines();
    let what = lines.next().unwrap_or_default();
    let (mut causes, mut helps) = (Vec::new(), Vec::new());
    for line in lines {
        match (line.strip_prefix("  because: "), line.strip_prefix("  help: ")) {
            (Some(cause), _) => causes.push(cause),
            (_, Some(help)) => helps.push(help),
            (None, None) => causes.push(line),
        }
    }
    let inner = causes.into_iter().rev().fold(None, |inner: Option<Error>, cause| {
        let error = Error::new(kind, cause);
        Some(match inner {
            Some(inner) => error.caused_by(inner),
            None => error,
        })
    });
    let mut error = Error::new(kind, what);
    error.help = (!helps.is_empty()).then(|| helps.join("; "));
    match inner {
        Some(inner) => error.caused_by(inner),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_chain_is_shown_and_its_kind_decides_the_exit_code() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let inner = Error::failed("opening /x").caused_by(denied).help("run as root");
        let outer = Error::failed("cannot serve file:/x").caused_by(inner);
        assert_eq!(outer.kind().exit_code(), 77);
        let mut text = String::new();
        describe(&outer, &mut text).unwrap();
        assert_eq!(
            text,
            "cannot serve file:/x\n  because: opening /x\n  because: permission denied\n  help: run as root"
        );
    }

    #[test]
    fn an_error_of_another_process_is_told_in_the_same_lines() {
        let inner = Error::failed("inner\n  help: not ours").help("first");
        let outer = Error::new(ErrorKind::Busy, "outer \x1b[2J").caused_by(inner);
        let mut text = String::new();
        describe(&outer, &mut text).unwrap();
        let expected = "outer \\u{1b}[2J\n  because: inner\\n  help: not ours\n  help: first";
        assert_eq!(text, expected);
        let told = described(ErrorKind::Busy, &text);
        let mut again = String::new();
        describe(&told, &mut again).unwrap();
        assert_eq!((again.as_str(), told.kind()), (expected, ErrorKind::Busy));
    }
}
