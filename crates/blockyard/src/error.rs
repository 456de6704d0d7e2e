//! The one error of the library and the command: what was being done, what to do about it, and why it failed.

use std::error::Error as StdError;
use std::fmt;

pub use blockyard_error::quoted;
use blockyard_error::{Error as Shape, Remedy, Source};
use serde::{Deserialize, Serialize};

use crate::text::term::plain;

/// What kind of thing went wrong; it decides the exit code of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// A command to run does not exist.
    NoCommand,
    /// A command to run cannot be executed.
    NotExecutable,
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
            // As shells have it.
            Self::NotExecutable => 126,
            Self::NoCommand => 127,
        }
    }
}

/// What was being done, what to do about it, and why it failed.
#[derive(Debug)]
pub struct Error(Shape<ErrorKind>);

/// The result of whatever can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a sentence that says what, and where.
    #[must_use]
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self(Shape::new(kind, what))
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
    pub fn help(self, help: impl Into<String>) -> Self {
        Self(self.0.help(help))
    }

    /// With what caused it. The kind of an error of the system, or of the layers below, is taken over where it
    /// says more.
    #[must_use]
    pub fn caused_by(self, source: impl Into<Source>) -> Self {
        let source = source.into();
        let kind = self.kind();
        let kind = if kind == ErrorKind::Failed { kind_of(&*source) } else { kind };
        Self(self.0.with_kind(kind).caused_by(source))
    }

    /// The same, if anything is known to have caused it.
    #[must_use]
    pub(crate) fn perhaps_caused_by(self, source: Option<Self>) -> Self {
        match source {
            Some(source) => self.caused_by(source),
            None => self,
        }
    }

    /// Its causes, one once where a layer repeats it, and all that can be done.
    #[must_use]
    pub fn told(&self) -> (Vec<String>, Vec<String>) {
        let mut said = self.to_string();
        let (mut causes, mut helps) = (Vec::new(), Vec::new());
        let mut next = self.source();
        while let Some(cause) = next {
            next = cause.source();
            if let Some(remedy) = Remedy::of(cause) {
                helps.push(remedy.to_owned());
                continue;
            }
            let text = cause.to_string();
            if !said.contains(&text) {
                causes.push(text.clone());
            }
            said = text;
        }
        (causes, helps)
    }

    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.0.remedy()
    }
}

/// What the first error of a chain that knows says.
fn kind_of(error: &(dyn StdError + 'static)) -> ErrorKind {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.kind();
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
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// The whole chain on lines of their own, a cause once where a layer repeats it, and what to do at the end.
pub fn describe(error: &Error, out: &mut impl fmt::Write) -> fmt::Result {
    out.write_str(&plain(&error.to_string()))?;
    let (causes, helps) = error.told();
    for cause in causes {
        write!(out, "\n  because: {}", plain(&cause))?;
    }
    for help in helps {
        write!(out, "\n  help: {}", plain(&help))?;
    }
    Ok(())
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

    /// Of crates that this one has no list of.
    #[test]
    fn what_can_be_done_is_taken_from_the_layers_below() {
        #[derive(Debug)]
        struct Kind;
        let lowest = Shape::new(Kind, "no such device").help("modprobe it");
        let low = Shape::new(3, "address in use").caused_by(lowest).help("choose another");
        let error = Error::failed("cannot serve NBD").caused_by(low);
        let causes = ["address in use", "no such device"].map(str::to_owned).to_vec();
        let helps = ["choose another", "modprobe it"].map(str::to_owned).to_vec();
        assert_eq!(error.told(), (causes, helps));
    }
}
