//! Clones: images that begin with what a snapshot of another one has.

use super::create::{CreateOptions, create_id, remove_id};
use super::header::Header;
use super::{Image, may_be_gone, method, tell};
use crate::error::{Error, Result};
use crate::format::{ChildSpec, Features, ObjectState, OpFeatures, ParentSpec, Snapshot, names};
use crate::store::{ObjectStore, Op};
use bytes::Bytes;
use rustix::io::Errno;

impl<S: ObjectStore> Image<S> {
    /// Makes a clone (version 2) of a snapshot in a namespace or pool of the same store. Its layout and features are those
    /// of this image.
    ///
    /// # Errors
    /// ENOENT if there is no such snapshot; EEXIST if there is an image of that name; this image has no layering.
    pub async fn clone_snapshot(&self, snapshot: &str, into: &S, name: &str) -> Result<()> {
        if !self.header.features.contains(Features::LAYERING) {
            return Err(Error::bad("clones are made of images with the feature layering"));
        }
        let snapshot = self.header.snapshot(snapshot).ok_or(Errno::NOENT)?;
        let features = self.header.features.difference(Features::OPERATIONS);
        let size = snapshot.image_size;
        let options = CreateOptions { size, layout: self.header.layout, features };
        let data_pool = self.header.data_pool;
        let id = create_id(into, data_pool, name, &options).await?;
        if size == 0 {
            return Ok(());
        }
        let child = ChildSpec {
            pool: into.pool(),
            namespace: into.namespace().to_owned(),
            image: id.clone(),
        };
        let attached = self.attach(snapshot.id, size, into, &child).await;
        if attached.is_err() {
            // What was made is taken back as far as that goes; the first error is the one to tell.
            let _detached = self.child(snapshot.id, &child, "child_detach").await;
            let _removed = remove_id(into, name, &id).await;
        }
        attached
    }

    /// Makes an image a clone of a snapshot.
    async fn attach(&self, snapshot: u64, size: u64, into: &S, child: &ChildSpec) -> Result<()> {
        let spec = ParentSpec {
            pool: self.store.pool(),
            namespace: self.store.namespace().to_owned(),
            image: self.id.clone(),
            snapshot,
        };
        let header = names::header(&child.image);
        let attach = method("parent_attach", |w| {
            w.put(&spec);
            w.u64(size);
            w.bool(false);
        });
        tell(into, &header, vec![attach]).await?;
        let is_clone = method("op_features_set", |w| {
            w.u64(OpFeatures::CLONE_CHILD.bits());
            w.u64(OpFeatures::CLONE_CHILD.bits());
        });
        tell(into, &header, vec![is_clone]).await?;
        self.child(snapshot, child, "child_attach").await
    }

    /// Notes, or forgets, that a snapshot has a clone.
    async fn child(&self, snapshot: u64, child: &ChildSpec, what: &'static str) -> Result<()> {
        let note = method(what, |w| {
            w.u64(snapshot);
            w.put(child);
        });
        tell(&self.store, &self.header_object(), vec![note]).await
    }

    /// Copies an object out of the parent, and then does more to it. With snapshots, the copy is below all of them.
    pub(super) async fn copy_up(&self, number: u64, ops: Vec<Op>) -> Result<()> {
        let data = self.of_parent(number).await?;
        let object = self.data_object(number);
        // An OSD makes no object of a copy of nothing.
        let copy = match data.is_empty() {
            true => Op::create(false),
            false => Op::exec("rbd", "copyup", data),
        };
        if self.header.context.snaps.is_empty() {
            let ops = [vec![copy], ops].concat();
            return self.write_object(&object, ops).await;
        }
        self.note_below_snapshots(number).await?;
        self.write_below_snapshots(&object, vec![copy]).await?;
        if ops.is_empty() { Ok(()) } else { self.write_object(&object, ops).await }
    }

    /// An object is there now in all snapshots, too. What a map knows of one that was there before stays: it may say that
    /// the object changed between two snapshots.
    async fn note_below_snapshots(&self, number: u64) -> Result<()> {
        if !self.header.features.contains(Features::OBJECT_MAP) {
            return Ok(());
        }
        for (index, snapshot) in self.header.snapshots.iter().enumerate() {
            if number >= self.header.layout.objects(snapshot.image_size) {
                continue;
            }
            let is_clean = index > 0 && self.header.features.contains(Features::FAST_DIFF);
            let state = if is_clean { ObjectState::ExistsClean } else { ObjectState::Exists };
            let only = Some(ObjectState::Nonexistent);
            let updated = self.update_map(Some(snapshot.id), number, state, only).await;
            self.kept(snapshot.id, may_be_gone(updated)).await?;
        }
        Ok(())
    }

    /// What the parent has of an object, without zeroes at the end.
    async fn of_parent(&self, number: u64) -> Result<Bytes> {
        let layout = self.header.layout;
        let (unit, _) = layout.stripes();
        let mut bytes = Vec::new();
        for offset in
            (0..layout.object_bytes()).step_by(usize::try_from(unit).unwrap_or(usize::MAX))
        {
            let Some(start) = layout.image_offset(number, offset) else { break };
            let part = self.read_parent(start, unit).await?;
            if !part.is_empty() {
                bytes.resize(usize::try_from(offset).unwrap_or(usize::MAX), 0);
                bytes.extend_from_slice(&part);
            }
        }
        let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(length);
        Ok(bytes.into())
    }

    /// Copies all that is still seen of the parent, and leaves it.
    ///
    /// # Errors
    /// EINVAL if there is no parent; EROFS if it is not owned; those of the store.
    pub async fn flatten(&mut self) -> Result<()> {
        self.begin().await?;
        if self.parent.is_none() {
            return Err(Errno::INVAL.into());
        }
        for object in 0..self.objects_of_parent() {
            self.take_from_parent(object).await?;
        }
        self.leave_copied_parent().await
    }

    /// How many objects, from the first on, may show something of the parent.
    #[must_use]
    pub fn objects_of_parent(&self) -> u64 {
        if self.parent.is_some() { self.header.layout.objects(self.overlap()) } else { 0 }
    }

    /// Copies what is seen of the parent in one of these objects: a part of [`flatten`](Self::flatten) that goes on beside
    /// reads and writes.
    ///
    /// # Errors
    /// EROFS if it is not owned; those of the store.
    pub async fn copy_from_parent(&self, object: u64) -> Result<()> {
        self.check_writable()?;
        self.take_from_parent(object).await
    }

    /// Leaves the parent, all of whose objects were [copied](Self::copy_from_parent) since the image was opened.
    ///
    /// # Errors
    /// EROFS if it is not owned; those of the store.
    pub async fn leave_copied_parent(&mut self) -> Result<()> {
        self.begin().await?;
        self.flush().await?;
        self.leave_parent().await
    }

    /// Copies what is seen of the parent in an object, for snapshots, too. One that is there stays as it is.
    pub(super) async fn take_from_parent(&self, object: u64) -> Result<()> {
        if !self.hides_parent(object) {
            return Ok(());
        }
        self.set_copied(object).await?;
        self.copy_up(object, Vec::new()).await
    }

    /// Is no clone any more. The parent's header hears of it first, so that one that is stopped in between can be gone on with
    /// (ceph: `src/librbd/operation/FlattenRequest.h`).
    pub(super) async fn leave_parent(&mut self) -> Result<()> {
        self.refresh().await?;
        let Some(parent) = self.header.parent.clone() else { return Ok(()) };
        let keeps_snapshots = !self.header.features.contains(Features::DEEP_FLATTEN);
        if !keeps_snapshots || !self.header.snapshots.iter().any(Snapshot::has_parent) {
            self.leave_parents_header(&parent.spec).await?;
        }
        if parent.overlap.is_some() {
            let detach = method("parent_detach", |_| {});
            may_be_gone(self.change_header(detach).await)?;
        }
        self.parent = None;
        Ok(())
    }

    /// Is no child for the parent's header any more, as neither the image nor a snapshot of it needs that.
    pub(super) async fn leave_parents_header(&self, parent: &ParentSpec) -> Result<()> {
        let child = self.as_child();
        let store = match self.store.in_pool(parent.pool, &parent.namespace).await {
            Err(error) if error.is_not_found() => return Ok(()),
            store => store?,
        };
        let detach = method("child_detach", |w| {
            w.u64(parent.snapshot);
            w.put(&child);
        });
        let detached = tell(&store, &names::header(&parent.image), vec![detach]).await;
        if let Err(error) = may_be_gone(detached) {
            // Nothing can be noted in one that is damaged, and nobody needs it to be.
            match Header::read(&store, &parent.image).await {
                Err(damage) if damage.is_damage() => {}
                _ => return Err(error),
            }
        }
        // A clone of version 1 is in an object of its own pool.
        let remove = method("remove_child", |w| {
            w.i64(parent.pool);
            w.string(&parent.image);
            w.u64(parent.snapshot);
            w.string(&self.id);
        });
        may_be_gone(tell(&self.store, &names::CHILDREN.into(), vec![remove]).await)
    }

    /// The names of images by ids are in the directory; a clone's parent is opened by id.
    #[cfg(test)]
    pub(super) async fn id_by_name(store: &S, name: &str) -> Result<String> {
        super::id_of(store, name).await
    }
}
