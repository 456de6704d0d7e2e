//! `rbd+dir:`: an image, or a snapshot of one, in a store in a directory.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockyard_blkmq::Disk;
use blockyard_driver_rbd::{Rbd, limits};
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, create, find};

use super::identity::DiskIdentity;
use super::kind::{Body, DiskKind, DiskSource, Fresh, Place, Said};
use super::maker::{DiskMaker, Parts, shown_size};
use super::options::{OptionSpec, ValueKind};
use super::plan::{DiskPlan, absolute};
use crate::error::Result;
use crate::images::{ImageSpec, open_store, own, rbd_error, read, wait};

/// The order of images that are made by opening them: objects of 4 MiB, as `rbd` makes them.
const ORDER: u8 = 22;

/// The kind of disks that are images in a directory.
pub static KIND: DiskKind = DiskKind {
    name: "rbd",
    schemes: &["rbd+dir"],
    body: Body::Path,
    usage: "rbd+dir:DIR/IMAGE[@SNAPSHOT]",
    summary: "an RBD image, or a snapshot of one, in a store in a directory",
    options: &[
        OptionSpec::new("namespace", ValueKind::Text, "the default one", "the image's namespace"),
        OptionSpec::new(
            "create",
            ValueKind::Size,
            "it must exist",
            "create it, and the store, with this size if it does not exist",
        ),
    ],
    without: &[],
    has_below: false,
    stays_read_only: true,
    is_volatile: false,
    source,
};

/// An image, and how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RbdSource {
    directory: PathBuf,
    spec: ImageSpec,
    /// Make it, so large, if it is not there.
    create: Option<u64>,
    /// Do not keep others from writing it: nor can this disk then.
    is_shared: bool,
}

fn source(said: &Said<'_>) -> Result<Box<dyn DiskSource>, String> {
    let missing = || "the image is missing; write rbd+dir:/dir/image".to_owned();
    let Some(Place::Path(path)) = said.place else { return Err(missing()) };
    let name = path.file_name().and_then(OsStr::to_str).ok_or_else(missing)?;
    let namespace = said.settings.text("namespace").unwrap_or_default();
    let spec = ImageSpec::parse(namespace, name)?;
    let create = said.settings.number("create");
    if create.is_some() && (said.options.read_only || spec.snapshot.is_some()) {
        return Err("create makes an empty image, which is to be written; leave it out".into());
    }
    let directory = absolute(said.folder, path.parent().unwrap_or(Path::new("")))?;
    Ok(Box::new(RbdSource { directory, spec, create, is_shared: false }))
}

/// The store's directory and the image, if the disk is one.
pub(crate) fn image_of(plan: &DiskPlan) -> Option<(PathBuf, ImageSpec)> {
    let source = plan.source.as_any().downcast_ref::<RbdSource>()?;
    Some((source.directory.clone(), source.spec.clone()))
}

impl DiskSource for RbdSource {
    fn open(&self, plan: &DiskPlan, _: Option<&Arc<Disk>>, maker: &mut DiskMaker) -> Result<Fresh> {
        let read_only = plan.options.read_only || self.spec.snapshot.is_some();
        let store = open_store(&self.directory, &self.spec.namespace, self.create.is_some())?;
        let (image, guard) = wait(async {
            if let Some(size) = self.create {
                self.make(&store, size).await?;
            }
            if read_only || self.is_shared {
                return Ok((read(&store, &self.spec).await?, None));
            }
            let (image, lock) = own(&store, &self.spec).await?.into_parts();
            Ok((image, Some(lock)))
        })??;
        let size = shown_size(plan, image.size())?;
        let limits = limits(&image.layout(), read_only);
        let driver = Rbd::new(self.spec.to_string(), image, guard, maker.threads());
        driver.show(size);
        let mut parts = Parts::new(plan, maker, driver, size, limits);
        parts.read_only = read_only;
        Ok(Fresh { disk: maker.alloc(plan, parts)?, remote: None })
    }

    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        self.find().map(Some)
    }

    fn stem(&self) -> Option<&str> {
        Some(&self.spec.image)
    }

    fn never_make(&mut self) {
        self.create = None;
    }

    fn make_if_absent(&mut self, size: u64) {
        if self.spec.snapshot.is_none() {
            self.create.get_or_insert(size);
        }
    }

    fn share(&mut self) {
        self.is_shared = true;
    }
}

impl RbdSource {
    /// Makes the image, if it is not there.
    async fn make(&self, store: &crate::images::Store, size: u64) -> Result<()> {
        let cannot = |err| rbd_error(format!("cannot make {}", self.spec), err);
        let layout = Layout::new(ORDER).map_err(cannot)?;
        let options = CreateOptions { size, layout, features: Features::DEFAULT };
        match create(store, &self.spec.image, &options).await {
            Err(err) if err.errno().is_some_and(|errno| errno.raw_os_error() == EEXIST) => Ok(()),
            made => made.map_err(cannot),
        }
    }

    /// By the store's directory and the image's id: neither changes with a name.
    fn find(&self) -> io::Result<DiskIdentity> {
        let absent = || DiskIdentity::of_path(&self.directory.join(&self.spec.image));
        let directory = match std::fs::metadata(&self.directory) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return DiskIdentity::of_path(&self.directory);
            }
            directory => directory?,
        };
        let Ok(store) = open_store(&self.directory, &self.spec.namespace, false) else {
            return absent();
        };
        let spec = &self.spec;
        let found = wait(async { find(&store, &spec.image, spec.snapshot.as_deref()).await });
        match found.map_err(io::Error::other)? {
            Ok((id, snapshot)) => {
                let place = (directory.dev(), directory.ino());
                Ok(DiskIdentity::of_image(place, &spec.namespace, &id, snapshot))
            }
            Err(err) if err.is_not_found() => absent(),
            Err(err) => Err(io::Error::other(err)),
        }
    }
}

const EEXIST: i32 = 17;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::tools::session::Session;
    use blockyard_blkmq::DiskFlags;

    fn plan(uri: &str) -> DiskPlan {
        uri.parse().unwrap_or_else(|err| panic!("{uri}: {err}"))
    }

    #[test]
    fn uris_name_stores_images_and_snapshots() {
        let plan_of = plan("rbd+dir:/yard/a%20b@s?namespace=ns");
        let source = plan_of.source.as_any().downcast_ref::<RbdSource>().unwrap();
        assert_eq!(source.directory, Path::new("/yard"));
        assert_eq!(source.spec.to_string(), "ns/a b@s");
        for (uri, part) in [
            ("rbd+dir:", "is missing"),
            ("rbd+dir:/", "is missing"),
            ("rbd+dir:/yard/a@", "no name of a snapshot"),
            ("rbd+dir:/yard/a@s?create=1G", "leave it out"),
            ("rbd+dri:/yard/a", "rbd+dir"),
        ] {
            let error = uri.parse::<DiskPlan>().expect_err(uri).to_string();
            assert!(error.contains(part), "{uri}: {error}");
        }
    }

    #[test]
    fn one_writes_an_image_and_others_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("rbd+dir:{}/store/a", dir.path().display());
        let flags = DiskFlags::NO_PART_SCAN;
        let mut session = Session::start(1).unwrap();
        let absent = DiskIdentity::of(&plan(&uri));
        assert!(absent.is_ok(), "{absent:?}");
        assert!(session.open(&plan(&uri), flags).is_err(), "nothing is made by looking");
        let disk = session.open(&plan(&format!("{uri}?create=8M")), flags).unwrap();
        assert_eq!((disk.size_bytes(), disk.is_read_only()), (8 << 20, false));
        let refused = session.open(&plan(&uri), flags).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        let (said, _) = refused.told();
        assert!(said.iter().any(|said| said.contains("in use by process")), "{said:?}");
        let reader = session.look_at(&plan(&uri), flags).unwrap();
        assert!(reader.is_read_only());
        let identity = DiskIdentity::of(&plan(&uri)).unwrap();
        assert!(identity.same_disk(&DiskIdentity::of(&plan(&uri)).unwrap()));
        assert_eq!(identity.to_string().parse(), Ok(identity));
        drop((disk, reader));
        session.close().unwrap();
    }
}
