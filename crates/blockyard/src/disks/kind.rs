//! What a kind of disk says of itself, once: its URIs and options, and how it is opened.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::Disk;
use blockyard_driver_nbd::TlsFiles;

use super::builder::PlanBuilder;
use super::describe::{Described, Offers};
use super::identity::DiskIdentity;
use super::maker::DiskMaker;
use super::options::{DiskOptions, OptionSpec, Settings};
use super::plan::DiskPlan;
use super::remote::RemoteDriver;
use crate::disks::uri::UriError;
use crate::error::Result;

/// A kind of disk. The parser of URIs, `yard.toml`, the help, completions, `info`, `list` and `set` are made from this.
pub struct DiskKind {
    /// Its name, in lists and of its device numbers.
    pub name: &'static str,
    /// How its URIs begin.
    pub schemes: &'static [&'static str],
    /// What stands between the scheme and the options.
    pub body: Body,
    /// Its URIs, as the help shows them.
    pub usage: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// The options that only this kind has.
    pub options: &'static [OptionSpec],
    /// Options of all disks that it does not have.
    pub without: &'static [&'static str],
    /// It lies on another disk, which its option `below` names.
    pub has_below: bool,
    /// What is opened read-only can only be read: its driver has made no preparations for writes.
    pub stays_read_only: bool,
    /// Nothing of it is left when the process ends.
    pub is_volatile: bool,
    /// Checks what was said of a disk, and makes a source of it. The error is a sentence for people.
    pub source: fn(&Said<'_>) -> Result<Box<dyn DiskSource>, String>,
}

impl DiskKind {
    /// The options that a disk of this kind has: those of all disks, then its own.
    pub fn all_options(&self) -> impl Iterator<Item = &'static OptionSpec> {
        let common = super::options::COMMON.iter().filter(|option| {
            !self.without.contains(&option.name)
                && (self.has_below || option.name != super::options::BELOW)
        });
        common.chain(self.options)
    }

    /// Whether its URIs begin so, in any case.
    #[must_use]
    pub fn has_scheme(&self, scheme: &str) -> bool {
        self.schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme))
    }
}

impl fmt::Debug for DiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What stands in a URI between the scheme and the options.
#[derive(Clone, Copy)]
pub enum Body {
    /// The option `size`.
    Size,
    /// The path of a file (RFC 8089).
    Path,
    /// Words that the kind reads.
    Text,
    /// The URI of the disk below, escaped where it has options of its own.
    Below,
    /// The URI is another's, and read by this.
    Own(fn(&mut PlanBuilder, &str) -> Result<(), UriError>),
}

/// Where a disk is, as far as its URI says so besides options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path.
    Path(PathBuf),
    /// What only the kind can read.
    Text(String),
}

/// All that was said of a disk, each part of it right.
pub struct Said<'a> {
    /// The URI as it was written.
    pub uri: &'a str,
    /// Where it is.
    pub place: Option<&'a Place>,
    /// What is common to all disks.
    pub options: &'a DiskOptions,
    /// The options of the kind.
    pub settings: &'a Settings,
    /// Where relative paths start.
    pub folder: &'a Path,
}

/// Where the bytes of one disk are, as only its kind knows it.
pub trait DiskSource: AnySource + fmt::Debug + Send + Sync {
    /// Opens it; `below` is the disk that it lies on. Never called on a queue thread: it may wait.
    ///
    /// # Errors
    /// What keeps it from being opened, with what to do.
    fn open(
        &self,
        plan: &DiskPlan,
        below: Option<&Arc<Disk>>,
        maker: &mut DiskMaker,
    ) -> Result<Fresh>;

    /// What tells it from other disks, now; none if that is the disk below. Not asked of volatile kinds.
    ///
    /// # Errors
    /// Its place cannot be looked at.
    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        Ok(None)
    }

    /// What to call it, where it has something like a name.
    fn stem(&self) -> Option<&str> {
        None
    }

    /// The file or block device of this machine that has its bytes, as they are.
    fn file(&self) -> Option<&Path> {
        None
    }

    /// How long a write may be kept back because an earlier one may still be on its way, as after its daemon has died.
    fn fence(&self) -> Option<Duration> {
        None
    }

    /// It is not made if it is not there.
    fn never_make(&mut self) {}

    /// It is made, so large, if it is not there.
    fn make_if_absent(&mut self, _size: u64) {}

    /// Others may use it at the same time.
    fn share(&mut self) {}

    /// Files of TLS from the command line, for a server.
    ///
    /// # Errors
    /// They contradict what its URI says.
    fn take_tls(&mut self, _uri: &str, _files: &TlsFiles) -> Result<TlsTaken> {
        Ok(TlsTaken::NoServer)
    }

    /// What its server says of it, if it has one that can be asked without opening a disk.
    fn describe(&self) -> Option<Result<Described>> {
        None
    }

    /// What else its server has on offer.
    fn offers(&self) -> Option<Result<Offers>> {
        None
    }
}

/// What has become of files of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsTaken {
    /// They are used.
    Yes,
    /// There would be TLS by this URI.
    OnlyBy(String),
    /// There is no server.
    NoServer,
}

/// A disk that was opened, and is not added to the block layer yet.
pub struct Fresh {
    /// It.
    pub disk: Arc<Disk>,
    /// Its server, if there is one that has to be told of its end.
    pub remote: Option<Arc<dyn RemoteDriver>>,
}

/// What every source can do.
pub trait AnySource: Any {
    /// The same once more.
    fn boxed(&self) -> Box<dyn DiskSource>;
    /// To find out which it is.
    fn as_any(&self) -> &dyn Any;
}

impl<T: DiskSource + Clone> AnySource for T {
    fn boxed(&self) -> Box<dyn DiskSource> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Clone for Box<dyn DiskSource> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }
}
