//! Which store, which image: from the command line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use blockyard_rbd::Error as RbdError;
use blockyard_rbd::image::Image;
use blockyard_rbd::live::LiveImage;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use super::cannot;
use crate::cli::ImagePlaceArgs;
use crate::disks::rbd::image_of;
use crate::disks::uri::file_path;
use crate::disks::{DiskPlan, absolute};
use crate::error::{Error, Result};
use crate::images::{ImageSpec, OwnedImage, Place, Store, change, own, read};
use crate::text::size;
use crate::tools::progress::Progress;

/// What is escaped in the path of a URI.
const PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'&');
/// How the URIs of images in directories begin.
const IN_DIRECTORY: &str = "rbd+dir:";
/// How those of images in clusters begin.
const IN_CLUSTER: &str = "rbd:";
/// The pool that is taken if none is named (ceph: option `rbd_default_pool`).
const USUAL_POOL: &str = "rbd";

/// What all commands of `image` have in common.
pub(super) struct Context<'a> {
    args: &'a ImagePlaceArgs,
    /// JSON, not text.
    pub(super) json: bool,
}

/// An image, or a snapshot of one, in its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    place: Place,
    pub(super) spec: ImageSpec,
}

impl<'a> Context<'a> {
    pub(super) fn new(args: &'a ImagePlaceArgs) -> Self {
        Self { args, json: args.json }
    }

    /// The store of what is named without one; in a cluster, this pool of it, or the usual one.
    fn place(&self, pool: Option<&str>) -> Result<Place> {
        let args = self.args;
        if let Some(directory) = &args.dir {
            let directory = absolute(Path::new(""), directory).map_err(Error::usage)?;
            return Ok(Place::Directory(directory));
        }
        let flags = [
            ("--conf", &args.conf),
            ("--id", &args.id),
            ("--keyring", &args.keyring),
            ("--mon-host", &args.mon_host),
        ];
        let words = flags.iter().filter_map(|(flag, value)| {
            value.as_ref().map(|value| [(*flag).to_owned(), value.clone()])
        });
        let pool = pool.or(args.pool.as_deref()).unwrap_or(USUAL_POOL);
        Ok(Place::Pool { pool: pool.to_owned(), arguments: words.flatten().collect() })
    }

    fn namespace(&self) -> &str {
        self.args.namespace.as_deref().unwrap_or_default()
    }

    /// An image, or a snapshot: a URI, or a name in the store of `--dir`, or in a cluster.
    pub(super) fn target(&self, text: &str) -> Result<Target> {
        if text.starts_with(IN_DIRECTORY) || text.starts_with(IN_CLUSTER) {
            let plan: DiskPlan = super::super::disk_uri(text)?;
            let found = image_of(&plan).map(|(place, spec)| Target { place, spec });
            let mut target = found.ok_or_else(|| Error::usage(format!("invalid image {text}")))?;
            if target.spec.namespace.is_empty() {
                self.namespace().clone_into(&mut target.spec.namespace);
            }
            // What leads to the cluster may be said by options of the command, too.
            if let Place::Pool { pool, arguments } = &target.place
                && arguments.is_empty()
                && self.args.dir.is_none()
            {
                target.place = self.place(Some(pool))?;
            }
            return Ok(target);
        }
        let (before, image) = text.rsplit_once('/').unwrap_or(("", text));
        let (pool, namespace) = self.pool_and_namespace(before)?;
        let spec = ImageSpec::parse(namespace, image).map_err(Error::usage)?;
        Ok(Target { place: self.place(pool)?, spec })
    }

    /// `NAMESPACE` of a directory, `POOL` or `POOL/NAMESPACE` of a cluster; and what the arguments say where that is silent.
    fn pool_and_namespace<'t>(&'t self, text: &'t str) -> Result<(Option<&'t str>, &'t str)> {
        let (pool, namespace) = match text.split_once('/') {
            _ if text.is_empty() => (None, self.namespace()),
            None if self.args.dir.is_some() => (None, text),
            None => (Some(text), self.namespace()),
            Some((pool, namespace)) => (Some(pool), namespace),
        };
        if namespace.contains('/') || pool.is_some() && self.args.dir.is_some() {
            let what = format!("invalid store {text:?}");
            let help =
                "write NAMESPACE/IMAGE with --dir, POOL/IMAGE or POOL/NAMESPACE/IMAGE in a cluster";
            return Err(Error::usage(what).help(help));
        }
        Ok((pool, namespace))
    }

    /// An image, which is no snapshot.
    pub(super) fn image(&self, text: &str) -> Result<Target> {
        let target = self.target(text)?;
        match &target.spec.snapshot {
            Some(_) => {
                Err(Error::usage(format!("{text} is a snapshot, not an image"))
                    .help("omit @SNAPSHOT"))
            }
            None => Ok(target),
        }
    }

    /// A snapshot, and its name.
    pub(super) fn snapshot(&self, text: &str) -> Result<(Target, String)> {
        let mut target = self.target(text)?;
        match target.spec.snapshot.take() {
            Some(snapshot) => Ok((target, snapshot)),
            None => Err(Error::usage(format!("snapshot missing in {text}"))
                .help(format!("write {text}@SNAPSHOT"))),
        }
    }

    /// Opens a store: a URI without an image, a namespace in that of `--dir`, or a pool of a cluster.
    pub(super) fn store(&self, text: Option<&str>, make: bool) -> Result<Store> {
        let text = text.unwrap_or_default();
        if let Some(path) = text.strip_prefix(IN_DIRECTORY) {
            let path = file_path(path).map_err(Error::usage)?;
            let directory = absolute(Path::new(""), &path).map_err(Error::usage)?;
            return Place::Directory(directory).open(self.namespace(), make);
        }
        let (pool, namespace) =
            self.pool_and_namespace(text.strip_prefix(IN_CLUSTER).unwrap_or(text))?;
        self.place(pool)?.open(namespace, make)
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
        let escaped = |text: &[u8]| percent_encode(text, PATH).to_string();
        let snapshot = snapshot.as_ref().map(|name| format!("@{name}")).unwrap_or_default();
        let (base, mut options) = match &self.place {
            Place::Directory(directory) => {
                let path = directory.join(format!("{image}{snapshot}"));
                let base = format!("{IN_DIRECTORY}{}", escaped(path.as_os_str().as_bytes()));
                let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
                let namespace =
                    namespace.map(|name| format!("namespace={}", escaped(name.as_bytes())));
                (base, Vec::from_iter(namespace))
            }
            Place::Pool { pool, .. } => {
                let spec = escaped(self.spec.to_string().as_bytes());
                (format!("{IN_CLUSTER}{}/{spec}", escaped(pool.as_bytes())), Vec::new())
            }
        };
        if let Place::Pool { arguments, .. } = &self.place {
            options.extend(arguments.chunks(2).filter_map(|pair| match pair {
                [flag, value] => {
                    let key = flag.trim_start_matches('-').replace('-', "_");
                    Some(format!("{key}={}", escaped(value.as_bytes())))
                }
                _ => None,
            }));
        }
        let mark = if options.is_empty() { "" } else { "?" };
        format!("{base}{mark}{}", options.join("&"))
    }

    /// Whether another one is in the same directory, or in the same cluster.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        match (&self.place, &other.place) {
            (Place::Pool { arguments: one, .. }, Place::Pool { arguments: two, .. }) => one == two,
            (one, two) => one == two,
        }
    }

    /// Opens its store.
    pub(super) fn store(&self, make: bool) -> Result<Store> {
        self.place.open(&self.spec.namespace, make)
    }

    /// Opens it to read it.
    pub(super) async fn read(&self) -> Result<(Store, Image<Store>)> {
        let store = self.store(false)?;
        let image = read(&store, &self.spec).await?;
        Ok((store, image))
    }

    /// Has it for oneself while something is done to it, and then gives it back.
    pub(super) async fn owned<T>(
        &self,
        work: impl AsyncFnOnce(&mut OwnedImage) -> Result<T>,
    ) -> Result<T> {
        let mut owned = own(&self.store(false)?, &self.spec).await?;
        let done = work(&mut owned).await;
        let closed = owned.close().await.map_err(cannot("close", &self.spec));
        done.and_then(|done| closed.map(|()| done))
    }

    /// Has something changed in it, also while it is somebody's disk.
    pub(super) async fn change<T>(
        &self,
        doing: &str,
        work: impl AsyncFnOnce(&LiveImage<Store>) -> std::result::Result<T, RbdError>,
    ) -> Result<T> {
        change(&self.store(false)?, &self.spec, doing, work).await
    }
}

/// A size as `rbd` reads it: in MiB, if there is no unit.
pub(super) fn size_in_mib(flag: &str, text: &str) -> Result<u64> {
    let bytes = match text.parse::<u64>() {
        Ok(mib) => mib.checked_mul(1 << 20).filter(|bytes| *bytes <= size::MAX),
        Err(_) => return super::super::size(flag, text),
    };
    bytes.ok_or_else(|| {
        Error::usage(format!("{flag}: {text} MiB is more than the maximum size of an image"))
    })
}

/// The name of an image for a file, and the other way round.
pub(super) fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(OsStr::to_str).ok_or_else(|| {
        Error::usage(format!("{} is not a valid image name", path.display()))
            .help("give the name of the image, too")
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn args(dir: Option<&str>, namespace: Option<&str>) -> ImagePlaceArgs {
        let (dir, namespace) = (dir.map(PathBuf::from), namespace.map(str::to_owned));
        ImagePlaceArgs {
            dir,
            namespace,
            pool: None,
            conf: None,
            id: None,
            keyring: None,
            mon_host: None,
            json: false,
            no_progress: false,
        }
    }

    #[test]
    fn images_are_named_by_uris_and_in_stores() {
        let args = args(Some("/yard"), Some("ns"));
        let context = Context::new(&args);
        let target = |text| {
            let Target { place, spec } = context.target(text).unwrap();
            let Place::Directory(directory) = place else { panic!("{place:?}") };
            (directory.display().to_string(), spec.to_string())
        };
        assert_eq!(target("a@s"), ("/yard".into(), "ns/a@s".into()));
        assert_eq!(target("other/a"), ("/yard".into(), "other/a".into()));
        assert_eq!(target("rbd+dir:/x/b"), ("/x".into(), "ns/b".into()));
        assert_eq!(target("rbd+dir:/x/b?namespace=m"), ("/x".into(), "m/b".into()));
        for wrong in ["", "a@", "a/b/", "a/b/c", "rbd:", "rbd+dir:"] {
            assert!(context.target(wrong).is_err(), "{wrong}");
        }
        let odd = context.target("m/a b?@s%").unwrap();
        assert_eq!(context.target(&odd.uri()).unwrap(), odd);
        assert!(context.image("a@s").is_err() && context.snapshot("a").is_err());
    }

    #[test]
    fn without_a_directory_images_are_in_pools() {
        let mut args = args(None, None);
        args.conf = Some("/c".into());
        let context = Context::new(&args);
        let pool = |text: &str| {
            let target = context.target(text).unwrap();
            assert_eq!(context.target(&target.uri()).unwrap(), target, "{}", target.uri());
            (target.place.pool().to_owned(), target.spec.to_string())
        };
        assert_eq!(pool("a"), ("rbd".into(), "a".into()));
        assert_eq!(pool("p/a@s"), ("p".into(), "a@s".into()));
        assert_eq!(pool("p/n/a"), ("p".into(), "n/a".into()));
        assert_eq!(pool("rbd:p/n/a@s?conf=/c"), ("p".into(), "n/a@s".into()));
        let (one, other) = (context.target("p/a").unwrap(), context.target("q/b").unwrap());
        assert!(one.is_beside(&other));
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
