//! Gathers what is said of a disk, in a URI or in `yard.toml`, each part checked as it comes.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blockyard_blkmq::{BlockSize, Sector};

use super::kind::{Body, DiskKind, Place, Said};
use super::options::{BELOW, DiskOptions, OptionSpec, Settings, canonical_key};
use super::plan::DiskPlan;
use crate::disks::uri::{self, UriError};
use crate::text::suggest;

/// Disks that lie on each other: more is a mistake, or a loop of somebody's making.
const MAX_LAYERS: usize = 16;

/// Gathers what is said of a disk.
#[derive(Clone, Debug)]
pub struct PlanBuilder {
    kind: &'static DiskKind,
    place: Option<Place>,
    settings: Settings,
}

impl PlanBuilder {
    /// Nothing said yet.
    #[must_use]
    pub fn new(kind: &'static DiskKind) -> Self {
        Self { kind, place: None, settings: Settings::default() }
    }

    /// What a URI says, so that more can be said of the disk, but nothing twice.
    ///
    /// # Errors
    /// A mistake in the URI.
    pub fn of_uri(uri: &str) -> Result<Self, UriError> {
        uri::parse(uri)
    }

    /// The kind of the disk.
    #[must_use]
    pub fn kind(&self) -> &'static DiskKind {
        self.kind
    }

    /// The path of a file.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn path(&mut self, path: impl Into<PathBuf>) -> Result<(), String> {
        let path = path.into();
        if path.as_os_str().is_empty() {
            return Err("the path is missing; write file:/path".into());
        }
        if path.as_os_str().as_bytes().contains(&0) {
            return Err("the path contains a NUL byte".into());
        }
        self.place = Some(Place::Path(path));
        Ok(())
    }

    /// Where it is, in words that the kind can read.
    pub fn text(&mut self, text: impl Into<String>) {
        self.place = Some(Place::Text(text.into()));
    }

    /// The name, if it was said.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.settings.text("name")
    }

    /// All options that can be set.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.kind.all_options().map(|option| option.name).collect()
    }

    /// Sets an option.
    ///
    /// # Errors
    /// A sentence for people: what is wrong and what would be right.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let key = canonical_key(key);
        let key = key.as_ref();
        let Some(option) = self.kind.all_options().find(|option| option.name == key) else {
            return Err(self.unknown(key));
        };
        let OptionSpec { name, value: kind, default, .. } = option;
        let value =
            kind.parse(name, default, value).map_err(|problem| format!("{key}: {problem}"))?;
        if self.settings.set(name, value) {
            Ok(())
        } else {
            Err(format!("{key:?} is given twice: remove one"))
        }
    }

    fn unknown(&self, key: &str) -> String {
        let of_others = super::KINDS.iter().find(|kind| {
            kind.options.iter().any(|option| option.name == key) || key == BELOW && kind.has_below
        });
        let this = self.kind.name;
        match of_others {
            Some(other) => {
                format!("{key:?} is an option of {}: disks, not of {this}: disks", other.name)
            }
            None => {
                let hint = suggest::hint(key, &self.names());
                format!("a {this}: disk has no option {key:?}; {hint}")
            }
        }
    }

    /// Checks what the options say together. Relative paths start at `folder`.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn finish(self, uri: &str, folder: &Path) -> Result<DiskPlan, String> {
        self.finish_above(uri, folder, 0)
    }

    /// The same of a disk on which so many others lie.
    fn finish_above(self, uri: &str, folder: &Path, above: usize) -> Result<DiskPlan, String> {
        let options = DiskOptions::of(&self.settings);
        let below = self.below(folder, above)?;
        let said = Said {
            uri,
            place: self.place.as_ref(),
            options: &options,
            settings: &self.settings,
            folder,
        };
        let source = (self.kind.source)(&said)?;
        Ok(DiskPlan { uri: uri.into(), kind: self.kind, source, options, below })
    }

    fn below(&self, folder: &Path, above: usize) -> Result<Option<Box<DiskPlan>>, String> {
        if !self.kind.has_below {
            return Ok(None);
        }
        let this = self.kind.name;
        let uri = self.settings.text(BELOW).ok_or_else(|| {
            format!("the disk below is missing; write {this}:/path, or {this}:?below=URI")
        })?;
        if above + 1 >= MAX_LAYERS {
            return Err(format!("more than {MAX_LAYERS} layers of disks"));
        }
        let builder = Self::of_uri(uri).map_err(|err| format!("{BELOW}: {err}"))?;
        Ok(Some(Box::new(builder.finish_above(uri, folder, above + 1)?)))
    }
}

impl Said<'_> {
    /// The size of a disk that has none by nature.
    ///
    /// # Errors
    /// It was not said, or is no multiple of its block size.
    pub fn needed_size(&self, scheme: &str) -> Result<u64, String> {
        let size = self.options.size;
        let size = size.ok_or_else(|| format!("size missing; write {scheme}:1G"))?;
        let block = self.options.block.unwrap_or(BlockSize::B512);
        let bytes = u64::from(block.bytes());
        if block.divides(size) {
            return Ok(size);
        }
        let (below, above) = (size / bytes * bytes, (size / bytes).saturating_add(1) * bytes);
        let or_above =
            if above <= Sector::MAX.bytes() { format!(" or {above}") } else { String::new() };
        Err(format!(
            "a size of {size} bytes is not a multiple of the block size {bytes}; use {below}{or_above}"
        ))
    }
}

/// What stands between the scheme and the options of a URI, unescaped.
pub(crate) fn set_body(plan: &mut PlanBuilder, body: &str) -> Result<(), String> {
    match plan.kind.body {
        Body::Path => plan.path(uri::file_path(body)?),
        _ if body.is_empty() => Ok(()),
        Body::Size => plan.set("size", body),
        Body::Text => {
            plan.text(uri::decode(body)?);
            Ok(())
        }
        Body::Below => plan.set(BELOW, &uri::decode(body)?),
        Body::Own(_) => unreachable!("it is read by its kind"),
    }
}
