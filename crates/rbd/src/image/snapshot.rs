//! Snapshots of an image.

use super::{Image, method};
use crate::error::Result;
use crate::format::{Protection, Snapshot, SnapshotNamespace};
use crate::store::{Mutation, ObjectStore};
use rustix::io::Errno;

impl<S: ObjectStore> Image<S> {
    fn snapshot_id(&self, name: &str) -> Result<u64> {
        self.header.snapshot(name).map(|snapshot| snapshot.id).ok_or(Errno::NOENT.into())
    }

    /// Makes a snapshot of what was written before.
    ///
    /// # Errors
    /// EEXIST if there is one of that name; EROFS if it is not owned; those of the store.
    pub async fn create_snapshot(&mut self, name: &str) -> Result<()> {
        self.begin().await?;
        if self.header.snapshot(name).is_some() {
            return Err(Errno::EXIST.into());
        }
        // What is in it survives a power cut.
        self.flush().await?;
        let id = self.data.create_snapshot().await?;
        let add = method("snapshot_add", |w| {
            w.string(name);
            w.u64(id);
            w.put(&SnapshotNamespace::User);
        });
        // Known at once: what is written from now on must not change what is in it.
        if let Err(error) = self.change_header(add).await
            && !self.has_snapshot(id)
        {
            if !self.is_stale {
                let _given_back = self.data.remove_snapshot(id).await;
            }
            return Err(error);
        }
        self.map_for_snapshot(id).await
    }

    fn has_snapshot(&self, id: u64) -> bool {
        self.header.snapshots.iter().any(|snapshot| snapshot.id == id)
    }

    /// Removes a snapshot. One that clones (version 2) need has no name any more, and goes when the last of them does (ceph:
    /// `src/librbd/operation/SnapshotRemoveRequest.cc`, `trash_snap`).
    ///
    /// # Errors
    /// ENOENT if there is none; EBUSY if it is protected; those of the store.
    pub async fn remove_snapshot(&mut self, name: &str) -> Result<()> {
        self.begin().await?;
        // Clones may have come since.
        self.refresh().await?;
        let snapshot = self.header.snapshot(name).ok_or(Errno::NOENT)?;
        let (id, children) = (snapshot.id, snapshot.child_count);
        if snapshot.protection != Protection::Unprotected as u8 {
            return Err(Errno::BUSY.into());
        }
        if children > 0 {
            return self.change_header(method("snapshot_trash_add", |w| w.u64(id))).await;
        }
        self.remove_snapshot_id(id).await
    }

    /// Removes a snapshot from the trash, by the name that it has there.
    ///
    /// # Errors
    /// ENOENT if there is none; EBUSY if it has clones; those of the store.
    pub async fn remove_trashed_snapshot(&mut self, name: &str) -> Result<()> {
        self.begin().await?;
        self.refresh().await?;
        let trashed = |it: &&Snapshot| it.is_in_trash() && it.name == name;
        let snapshot = self.header.snapshots.iter().find(trashed).ok_or(Errno::NOENT)?;
        if snapshot.child_count > 0 {
            return Err(Errno::BUSY.into());
        }
        let id = snapshot.id;
        self.remove_snapshot_id(id).await
    }

    /// Removes a snapshot that nobody needs.
    async fn remove_snapshot_id(&mut self, id: u64) -> Result<()> {
        self.map_without_snapshot(id).await?;
        let remove = method("snapshot_remove", |w| w.u64(id));
        let parent = self.header.parent.clone();
        let removed = self.change_header(remove).await;
        // Its number is given back when the header is known not to have it.
        if self.is_stale || self.has_snapshot(id) {
            return removed;
        }
        self.data.remove_snapshot(id).await?;
        match parent {
            Some(parent) => self.leave_parents_header(&parent.spec).await,
            None => Ok(()),
        }
    }

    /// Makes the image what it was in a snapshot, its size included.
    ///
    /// # Errors
    /// ENOENT if there is no such snapshot; EROFS if it is not owned; those of the store.
    pub async fn rollback(&mut self, name: &str) -> Result<()> {
        self.begin().await?;
        let id = self.snapshot_id(name)?;
        let size = self.header.snapshot(name).map_or(0, |snapshot| snapshot.image_size);
        self.resize(size).await?;
        // The map has what is there before and what is there afterwards, until that is so.
        self.map_from_snapshot(id, true).await?;
        for object in 0..self.header.layout.objects(size) {
            let rollback = Mutation::Rollback { snap: id };
            self.write_object(&self.data_object(object), vec![rollback.into()]).await?;
        }
        self.map_from_snapshot(id, false).await
    }
}
