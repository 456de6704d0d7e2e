//! Which store, which image: from the command line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blockyard_rbd::image::Image;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::cli::ImagePlaceArgs;
use crate::disks::rbd::image_of;
use crate::disks::uri::file_path;
use crate::disks::{DiskPlan, absolute};
use crate::error::{Error, Result};
use crate::images::{ImageSpec, OwnedImage, Store, open_store, own, read};
use crate::text::size;
use crate::tools::progress::Progress;

/// What is escaped in the path of a URI.
const PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'&');
/// How the URIs of images begin.
const SCHEME: &str = "rbd+dir:";

/// What all commands of `image` have in common.
pub(super) struct Context<'a> {
    args: &'a ImagePlaceArgs,
    /// JSON, not text.
    pub(super) json: bool,
}

/// An image, or a snapshot of one, in its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) directory: PathBuf,
    pub(super) spec: ImageSpec,
}

impl<'a> Context<'a> {
    pub(super) fn new(args: &'a ImagePlaceArgs) -> Self {
        Self { args, json: args.json }
    }

    fn directory(&self) -> Result<PathBuf> {
        let directory = self.args.dir.as_deref().ok_or_else(|| {
            let what = "no store is named";
            Error::usage(what).help("write --dir DIR, or rbd+dir:DIR/IMAGE instead of IMAGE")
        })?;
        absolute(Path::new(""), directory).map_err(Error::usage)
    }

    fn namespace(&self) -> &str {
        self.args.namespace.as_deref().unwrap_or_default()
    }

    /// An image, or a snapshot: a URI, or a name in the store of `--dir`.
    pub(super) fn target(&self, text: &str) -> Result<Target> {
        if text.starts_with(SCHEME) {
            let plan: DiskPlan = super::super::disk_uri(text)?;
            let found = image_of(&plan).map(|(directory, spec)| Target { directory, spec });
            let mut target = found.ok_or_else(|| Error::usage(format!("{text} is no image")))?;
            if target.spec.namespace.is_empty() {
                self.namespace().clone_into(&mut target.spec.namespace);
            }
            return Ok(target);
        }
        if text.starts_with("rbd:") {
            let what = format!("{text} is in a cluster, and images are in directories as yet");
            return Err(Error::usage(what).help("write rbd+dir:DIR/IMAGE"));
        }
        let directory = self.directory()?;
        let (namespace, image) = match text.rsplit_once('/') {
            Some((namespace, image)) => (namespace, image),
            None => (self.namespace(), text),
        };
        let spec = ImageSpec::parse(namespace, image).map_err(Error::usage)?;
        Ok(Target { directory, spec })
    }

    /// An image, which is no snapshot.
    pub(super) fn image(&self, text: &str) -> Result<Target> {
        let target = self.target(text)?;
        match &target.spec.snapshot {
            Some(_) => Err(Error::usage(format!("{text} is a snapshot; name the image alone"))),
            None => Ok(target),
        }
    }

    /// A snapshot, and its name.
    pub(super) fn snapshot(&self, text: &str) -> Result<(Target, String)> {
        let mut target = self.target(text)?;
        match target.spec.snapshot.take() {
            Some(snapshot) => Ok((target, snapshot)),
            None => Err(Error::usage(format!("{text} names no snapshot"))
                .help(format!("write {text}@SNAPSHOT"))),
        }
    }

    /// Opens a store: a URI of its directory, or a namespace in that of `--dir`.
    pub(super) fn store(&self, text: Option<&str>, make: bool) -> Result<Store> {
        let (directory, namespace) = match text {
            Some(uri) if uri.starts_with(SCHEME) => {
                let path = file_path(uri.get(SCHEME.len()..).unwrap_or_default());
                let path = path.map_err(Error::usage)?;
                (absolute(Path::new(""), &path).map_err(Error::usage)?, self.namespace())
            }
            Some(namespace) => (self.directory()?, namespace),
            None => (self.directory()?, self.namespace()),
        };
        open_store(&directory, namespace, make)
    }

    /// A bar for what takes long.
    pub(super) fn progress(&self, what: &'static str, bytes: u64) -> Progress {
        if self.args.no_progress { Progress::silent() } else { Progress::new(what, bytes) }
    }
}

impl Target {
    /// Its URI.
    pub(super) fn uri(&self) -> String {
        let ImageSpec { namespace, image, snapshot } = &self.spec;
        let snapshot = snapshot.as_ref().map(|name| format!("@{name}")).unwrap_or_default();
        let path = self.directory.join(format!("{image}{snapshot}"));
        let escaped = percent_encode(path.as_os_str().as_bytes(), PATH);
        let mut uri = format!("{SCHEME}{escaped}");
        if !namespace.is_empty() {
            let namespace = percent_encode(namespace.as_bytes(), PATH);
            uri.push_str(&format!("?namespace={namespace}"));
        }
        uri
    }

    /// Opens its store.
    pub(super) fn store(&self, make: bool) -> Result<Store> {
        open_store(&self.directory, &self.spec.namespace, make)
    }

    /// Opens it to read it.
    pub(super) async fn read(&self) -> Result<(Store, Image<Store>)> {
        let store = self.store(false)?;
        let image = read(&store, &self.spec).await?;
        Ok((store, image))
    }

    /// Opens it, and has it for oneself.
    pub(super) async fn own(&self) -> Result<OwnedImage> {
        own(&self.store(false)?, &self.spec).await
    }
}

/// A size as `rbd` reads it: in MiB, if there is no unit.
pub(super) fn size_in_mib(flag: &str, text: &str) -> Result<u64> {
    let bytes = match text.parse::<u64>() {
        Ok(mib) => mib.checked_mul(1 << 20).filter(|bytes| *bytes <= size::MAX),
        Err(_) => return super::super::size(flag, text),
    };
    bytes.ok_or_else(|| Error::usage(format!("{flag}: {text} MiB is more than an image can have")))
}

/// The name of an image for a file, and the other way round.
pub(super) fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(OsStr::to_str).ok_or_else(|| {
        Error::usage(format!("{} is no name of an image; name the image", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: Option<&str>, namespace: Option<&str>) -> ImagePlaceArgs {
        let (dir, namespace) = (dir.map(PathBuf::from), namespace.map(str::to_owned));
        ImagePlaceArgs { dir, namespace, json: false, no_progress: false }
    }

    #[test]
    fn images_are_named_by_uris_and_in_stores() {
        let args = args(Some("/yard"), Some("ns"));
        let context = Context::new(&args);
        let target = |text| {
            let Target { directory, spec } = context.target(text).unwrap();
            (directory.display().to_string(), spec.to_string())
        };
        assert_eq!(target("a@s"), ("/yard".into(), "ns/a@s".into()));
        assert_eq!(target("other/a"), ("/yard".into(), "other/a".into()));
        assert_eq!(target("rbd+dir:/x/b"), ("/x".into(), "ns/b".into()));
        assert_eq!(target("rbd+dir:/x/b?namespace=m"), ("/x".into(), "m/b".into()));
        for wrong in ["", "a@", "a/b/", "rbd:pool/a", "rbd+dir:"] {
            assert!(context.target(wrong).is_err(), "{wrong}");
        }
        let odd = context.target("m/a b?@s%").unwrap();
        assert_eq!(context.target(&odd.uri()).unwrap(), odd);
        assert!(context.image("a@s").is_err() && context.snapshot("a").is_err());
    }

    #[test]
    fn without_a_store_it_is_said_what_to_write() {
        let args = args(None, None);
        let error = Context::new(&args).target("a").unwrap_err();
        assert!(error.remedy().unwrap().contains("--dir"));
    }

    #[test]
    fn sizes_without_a_unit_are_mebibytes() {
        assert_eq!(size_in_mib("--size", "10").unwrap(), 10 << 20);
        assert_eq!(size_in_mib("--size", "10K").unwrap(), 10 << 10);
        assert_eq!(size_in_mib("--size", "1B").unwrap(), 1);
        assert!(size_in_mib("--size", "99999999999999").is_err());
        assert!(size_in_mib("--size", "1x").is_err());
    }
}
