//! A disk that can be opened: what its URI and its options say, checked together.

use std::iter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockyard_driver_nbd::TlsFiles;

use super::builder::PlanBuilder;
use super::kind::{DiskKind, DiskSource, TlsTaken};
use super::options::DiskOptions;
use crate::disks::uri::UriError;
use crate::error::Result;

/// A disk that can be opened.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    /// As the user wrote it.
    pub uri: String,
    /// Its kind.
    pub kind: &'static DiskKind,
    /// Where its bytes are.
    pub source: Box<dyn DiskSource>,
    /// What is common to all disks.
    pub options: DiskOptions,
    /// The disk that it lies on.
    pub below: Option<Box<Self>>,
}

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
        let wrong = |problem: String| UriError::of_all(uri, problem);
        PlanBuilder::of_uri(uri)?.finish(uri, folder).map_err(wrong)
    }

    /// What the disk is called if the user says nothing, and it is the `index`-th of its kind.
    #[must_use]
    pub fn default_name(&self, index: usize) -> String {
        let clean: String = self
            .source
            .stem()
            .unwrap_or("")
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
            .take(24)
            .collect();
        if clean.is_empty() { format!("{}{index}", self.kind.name) } else { clean }
    }

    /// Each disk, from this one down.
    fn each(&mut self, mut change: impl FnMut(&mut Self)) {
        let mut next = Some(self);
        while let Some(plan) = next {
            change(plan);
            next = plan.below.as_deref_mut();
        }
    }

    /// How long a write to it may be kept back because an earlier one may still be on its way.
    #[must_use]
    pub fn fence(&self) -> Option<Duration> {
        let writable = Some(self).filter(|plan| !plan.options.read_only);
        let layers = iter::successors(writable, |plan| plan.below.as_deref());
        layers.filter_map(|plan| plan.source.fence()).max()
    }

    /// What is not there is not made by opening it.
    pub fn never_make(&mut self) {
        self.each(|plan| plan.source.never_make());
    }

    /// Others may use it at the same time, and nothing is made.
    pub fn share(&mut self) {
        self.each(|plan| {
            plan.source.never_make();
            plan.source.share();
        });
    }

    /// Gives files of TLS to the servers of it and of what it lies on.
    ///
    /// # Errors
    /// They contradict what a URI says.
    pub fn take_tls(&mut self, files: &TlsFiles) -> Result<TlsTaken> {
        let mut taken = Ok(TlsTaken::NoServer);
        self.each(|plan| {
            let this = plan.source.take_tls(&plan.uri, files);
            match (&taken, &this) {
                (Err(_), _) | (Ok(TlsTaken::Yes), Ok(_)) | (_, Ok(TlsTaken::NoServer)) => {}
                _ => taken = this,
            }
        });
        taken
    }
}

/// A path that means the same file wherever this process, or one that it starts, goes to; a relative one starts at `folder`.
///
/// # Errors
/// A sentence for people: the working directory is unknown.
pub fn absolute(folder: &Path, path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(folder.join(path)).map_err(|err| {
        format!("{} is relative, and the working directory is unknown: {err}", path.display())
    })
}
