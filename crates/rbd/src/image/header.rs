//! What an image's header says.

use super::ask;
use crate::error::{Error, Result};
use crate::format::{Features, ImageFlags, Layout, Parent, Snapshot, SnapshotNamespace, names};
use crate::store::{Answer, NOSNAP, ObjectStore, Query, Request, SnapContext};
use blockyard_rados::encoding::Reader;
use bytes::Bytes;
use rustix::io::Errno;

/// Keys that are read at a time.
const PAGE: u64 = 256;

/// The header of an image, or of a snapshot of it.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) size: u64,
    pub(super) layout: Layout,
    pub(super) features: Features,
    pub(super) flags: ImageFlags,
    pub(super) prefix: String,
    /// The pool of the bytes, if it is another one.
    pub(super) data_pool: Option<i64>,
    pub(super) context: SnapContext,
    /// The oldest first.
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) parent: Option<Parent>,
}

impl Header {
    pub(super) async fn read(store: &impl ObjectStore, id: &str) -> Result<Self> {
        let object = names::header(id);
        let answer = ask(store, &object, "get_size", |w| w.u64(NOSNAP)).await?;
        let mut r = Reader::new("reading the size of an image", &answer);
        let (order, size) = (r.u8()?, r.u64()?);
        let answer = ask(store, &object, "get_features", |w| {
            w.u64(NOSNAP);
            w.bool(false);
        });
        let features = Reader::new("reading the features of an image", &answer.await?).u64()?;
        let features = Features::from_bits_retain(features);
        let layout = if features.contains(Features::STRIPINGV2) {
            let answer = ask(store, &object, "get_stripe_unit_count", |_| {}).await?;
            let mut r = Reader::new("reading the stripes of an image", &answer);
            Layout::striped(order, r.u64()?, r.u64()?)?
        } else {
            Layout::new(order)?
        };
        let answer = ask(store, &object, "get_object_prefix", |_| {}).await?;
        let prefix = Reader::new("reading the names of objects", &answer).string()?;
        let mut data_pool = None;
        if features.contains(Features::DATA_POOL) {
            let answer = ask(store, &object, "get_data_pool", |_| {}).await?;
            let pool = Reader::new("reading the data pool of an image", &answer).i64()?;
            data_pool = Some(pool).filter(|pool| *pool >= 0);
        }
        let answer = ask(store, &object, "get_flags", |w| w.u64(NOSNAP)).await?;
        let flags = Reader::new("reading the flags of an image", &answer).u64()?;
        let answer = ask(store, &object, "get_snapcontext", |_| {}).await?;
        let mut r = Reader::new("reading the snapshots of an image", &answer);
        let context = SnapContext { seq: r.u64()?, snaps: r.vec(8, Reader::u64)? };
        Ok(Self {
            size,
            layout,
            features,
            flags: ImageFlags::from_bits_retain(flags),
            prefix,
            data_pool,
            context,
            snapshots: snapshots(store, id).await?,
            parent: parent(store, id).await?,
        })
    }

    /// The snapshots that somebody has made. Others are those of mirrors and groups, which break without them, and what is in
    /// the trash, which clones still need.
    pub(super) fn user_snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().filter(|snapshot| snapshot.namespace == SnapshotNamespace::User)
    }

    /// The snapshot that somebody has made under a name.
    pub(super) fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.user_snapshots().find(|snapshot| snapshot.name == name)
    }

    /// The snapshots in the trash that no clone needs any more.
    pub(super) fn unneeded_snapshots(&self) -> Vec<u64> {
        self.snapshots.iter().filter(|it| it.is_unneeded()).map(|it| it.id).collect()
    }

    pub(super) fn overlap(&self) -> u64 {
        self.parent.as_ref().and_then(|parent| parent.overlap).unwrap_or_default()
    }

    /// Whether the image, or a snapshot of it, can be used by its features.
    pub(super) fn check(&self, snap: u64) -> Result<()> {
        let known = if snap == NOSNAP { super::WRITABLE } else { super::READABLE };
        let unknown = self.features.difference(known);
        if unknown.is_empty() {
            return Ok(());
        }
        Err(crate::error::ErrorKind::Features { names: unknown.names().join(", ") }.into())
    }

    /// Makes it that of a snapshot.
    pub(super) fn look_at(&mut self, id: u64) -> Result<()> {
        let snapshot = self.snapshots.iter().find(|snapshot| snapshot.id == id);
        let snapshot = snapshot.ok_or(Errno::NOENT)?;
        self.size = snapshot.image_size;
        self.flags = snapshot.flags;
        let overlap = snapshot.parent_overlap.or(snapshot.parent.overlap);
        if snapshot.parent.spec.exists() {
            self.parent = Some(snapshot.parent.clone());
        }
        if let Some(parent) = &mut self.parent {
            parent.overlap = overlap.filter(|overlap| *overlap > 0);
        } else if overlap.is_some() {
            return Err(Error::damaged(
                "a snapshot has a part of a parent, and the image has none",
            ));
        }
        Ok(())
    }
}

async fn snapshots(store: &impl ObjectStore, id: &str) -> Result<Vec<Snapshot>> {
    let prefix = Bytes::from_static(names::SNAPSHOT_KEYS.as_bytes());
    let (mut after, mut snapshots) = (prefix.clone(), Vec::new());
    loop {
        let query = Query::OmapList { after, prefix: prefix.clone(), max: PAGE };
        let answers = store.operate(&names::header(id), Request::read(vec![query.into()])).await?;
        let Some(Answer::Omap(page)) = answers.into_iter().next() else {
            return Err(Error::damaged("the store gives no keys"));
        };
        for value in page.values.values() {
            snapshots.push(Reader::new("reading a snapshot", value).get()?);
        }
        match page.values.last_key_value() {
            Some((last, _)) if page.more => after = last.clone(),
            _ => return Ok(snapshots),
        }
    }
}

async fn parent(store: &impl ObjectStore, id: &str) -> Result<Option<Parent>> {
    let query = Query::OmapGet(vec![Bytes::from_static(b"parent")]);
    let answers = store.operate(&names::header(id), Request::read(vec![query.into()])).await?;
    let Some(Answer::Omap(page)) = answers.into_iter().next() else { return Ok(None) };
    let Some(value) = page.values.values().next() else { return Ok(None) };
    let parent: Parent = Reader::new("reading the parent of an image", value).get()?;
    Ok(Some(parent).filter(|parent| parent.spec.exists()))
}
