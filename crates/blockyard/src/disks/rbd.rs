//! `rbd:` and `rbd+dir:`: an image, or a snapshot of one, in a cluster, or in a store in a directory.

mod opening;

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use blockyard_blkmq::Disk;
use blockyard_rbd::image::find;
use blockyard_rbd::store::ObjectStore;

use super::identity::DiskIdentity;
use super::kind::{Body, DiskKind, DiskSource, Fresh, Place, Said};
use super::maker::DiskMaker;
use super::options::{OptionSpec, Value, ValueKind};
use super::plan::{DiskPlan, absolute};
use crate::error::Result;
use crate::images::{self, ImageSpec, Store, wait};

/// The kind of disks that are images in a directory.
pub static KIND: DiskKind = DiskKind {
    name: "rbd-dir",
    schemes: &["rbd+dir"],
    body: Body::Path,
    usage: "rbd+dir:DIR/IMAGE[@SNAPSHOT]",
    summary: "an RBD image, or a snapshot of one, in a store in a directory",
    options: &[
        OptionSpec::new(
            "namespace",
            ValueKind::Text,
            "the default namespace",
            "namespace of the image",
        ),
        OptionSpec::new(
            "create",
            ValueKind::Size,
            "none: the image must exist",
            "create a missing image, and its store, with this size",
        ),
    ],
    without: &[],
    has_below: false,
    stays_read_only: true,
    is_volatile: false,
    source,
};

/// The kind of disks that are images in clusters.
pub static IN_CLUSTER: DiskKind = DiskKind {
    name: "rbd",
    schemes: &["rbd"],
    body: Body::Text,
    usage: "rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]",
    summary: "an RBD image, or a snapshot of one, in a Ceph cluster",
    options: &[
        OptionSpec::new(
            "conf",
            ValueKind::Path,
            "$CEPH_CONF, else as Ceph's tools",
            "Ceph configuration file",
        ),
        OptionSpec::new("id", ValueKind::Text, "admin", "authenticate as client.ID"),
        OptionSpec::new("keyring", ValueKind::Path, "from ceph.conf", "keyring file"),
        OptionSpec::new("mon_host", ValueKind::Text, "from ceph.conf", "monitor addresses"),
    ],
    without: &[],
    has_below: false,
    stays_read_only: true,
    is_volatile: false,
    source: source_in_cluster,
};

fn source_in_cluster(said: &Said<'_>) -> Result<Box<dyn DiskSource>, String> {
    let missing = || "the image is missing; write rbd:pool/image".to_owned();
    let Some(Place::Text(text)) = said.place else { return Err(missing()) };
    let (before, image) = text.rsplit_once('/').ok_or_else(missing)?;
    let (pool, namespace) = before.split_once('/').unwrap_or((before, ""));
    if pool.is_empty() || namespace.contains('/') {
        return Err(missing());
    }
    let spec = ImageSpec::parse(namespace, image)?;
    let mut arguments = Vec::new();
    for key in ["conf", "id", "keyring", "mon_host"] {
        let value = match said.settings.iter().find(|(name, _)| *name == key) {
            Some((_, Value::Path(path))) => {
                let path = absolute(said.folder, path)?.into_os_string().into_string();
                Some(path.map_err(|path| format!("{} is not UTF-8", path.display()))?)
            }
            Some((_, Value::Text(text))) => Some(text.clone()),
            _ => None,
        };
        if let Some(value) = value {
            arguments.extend([format!("--{}", key.replace('_', "-")), value]);
        }
    }
    let place = images::Place::Pool { pool: pool.to_owned(), arguments };
    Ok(Box::new(RbdSource { place, spec, create: None, is_shared: false }))
}

/// An image, and how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RbdSource {
    place: images::Place,
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
        return Err("create cannot be combined with read_only or a snapshot; omit it".into());
    }
    let directory = absolute(said.folder, path.parent().unwrap_or(Path::new("")))?;
    let place = images::Place::Directory(directory);
    Ok(Box::new(RbdSource { place, spec, create, is_shared: false }))
}

/// The store and the image, if the disk is one.
pub(crate) fn image_of(plan: &DiskPlan) -> Option<(images::Place, ImageSpec)> {
    let source = plan.source.as_any().downcast_ref::<RbdSource>()?;
    Some((source.place.clone(), source.spec.clone()))
}

impl DiskSource for RbdSource {
    fn open(&self, plan: &DiskPlan, _: Option<&Arc<Disk>>, maker: &mut DiskMaker) -> Result<Fresh> {
        opening::open(self, plan, maker)
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

/// The identity of an image, or a snapshot of one, by its id and that of its store.
fn identity(
    kind: &str,
    [store, part]: [String; 2],
    namespace: &str,
    image: String,
    snapshot: Option<u64>,
) -> DiskIdentity {
    let snapshot = snapshot.map_or_else(|| "-".to_owned(), |snapshot| snapshot.to_string());
    DiskIdentity::of_words(kind, [store, part, namespace.to_owned(), image, snapshot])
}

impl RbdSource {
    /// By the image's id, and the store's directory, or its cluster and pool: none of them changes with a name.
    fn find(&self) -> io::Result<DiskIdentity> {
        let spec = &self.spec;
        let images::Place::Directory(directory) = &self.place else {
            return self.find_in_cluster();
        };
        let absent = || DiskIdentity::of_path(&directory.join(&spec.image));
        let found = match std::fs::metadata(directory) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return DiskIdentity::of_path(directory);
            }
            found => found?,
        };
        let Ok(store) = self.place.open(&spec.namespace, false) else { return absent() };
        match self.look_up(&store)? {
            Some((id, snapshot)) => {
                let (major, minor) =
                    (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
                let place = [format!("{major}:{minor}"), found.ino().to_string()];
                Ok(identity("image", place, &spec.namespace, id, snapshot))
            }
            None => absent(),
        }
    }

    fn find_in_cluster(&self) -> io::Result<DiskIdentity> {
        let store = self.place.open(&self.spec.namespace, false).map_err(io::Error::other)?;
        // One that is not there yet has no id; no id begins like that.
        let absent = || (format!("?{}", self.spec.image), None);
        let (id, snapshot) = self.look_up(&store)?.unwrap_or_else(absent);
        let place = [store.cluster_id(), store.pool().to_string()];
        Ok(identity("rbd", place, &self.spec.namespace, id, snapshot))
    }

    /// The ids of the image and the snapshot, if they are there.
    fn look_up(&self, store: &Store) -> io::Result<Option<(String, Option<u64>)>> {
        let spec = &self.spec;
        let found = wait(async { find(store, &spec.image, spec.snapshot.as_deref()).await });
        match found.map_err(io::Error::other)? {
            Ok(found) => Ok(Some(found)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(io::Error::other(err)),
        }
    }
}

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
        assert_eq!(source.place, images::Place::Directory("/yard".into()));
        assert_eq!(source.spec.to_string(), "ns/a b@s");
        let plan_of = plan("rbd:p/n/a@s?id=me&mon_host=1.2.3.4");
        let source = plan_of.source.as_any().downcast_ref::<RbdSource>().unwrap();
        assert_eq!((source.place.pool(), source.spec.to_string()), ("p", "n/a@s".to_owned()));
        for (uri, part) in [
            ("rbd:a", "is missing"),
            ("rbd:", "is missing"),
            ("rbd:p/n/m/a", "is missing"),
            ("rbd+dir:", "is missing"),
            ("rbd+dir:/", "is missing"),
            ("rbd+dir:/yard/a@", "invalid snapshot name"),
            ("rbd+dir:/yard/a@s?create=1G", "omit it"),
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
