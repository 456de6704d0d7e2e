//! Snapshots of an image.

use super::header::Header;
use super::{Image, may_be_gone, method, tell};
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
        let id = self.snapshot_number().await?;
        self.create_snapshot_as(name, id).await
    }

    /// The number of a snapshot that is to be made: whoever gives one has to be asked beside reads and writes, as that may take
    /// long.
    ///
    /// # Errors
    /// As [`create_snapshot`](Self::create_snapshot).
    pub async fn snapshot_number(&self) -> Result<u64> {
        self.check_writable()?;
        self.data.create_snapshot().await
    }

    /// Gives back the number of a snapshot that is not made.
    pub async fn give_back_number(&self, id: u64) {
        // What is left is a number, and nothing is kept for it.
        let _given_back = self.data.remove_snapshot(id).await;
    }

    /// Makes a snapshot that [has a number](Self::snapshot_number), which is given back if it fails.
    ///
    /// # Errors
    /// As [`create_snapshot`](Self::create_snapshot).
    pub async fn create_snapshot_as(&mut self, name: &str, id: u64) -> Result<()> {
        let made = self.add_snapshot(name, id).await;
        if made.is_err() && !self.has_snapshot(id) && !self.is_stale {
            self.give_back_number(id).await;
        }
        made
    }

    async fn add_snapshot(&mut self, name: &str, id: u64) -> Result<()> {
        self.begin().await?;
        // What is in it survives a power cut.
        self.flush().await?;
        let add = method("snapshot_add", |w| {
            w.string(name);
            w.u64(id);
            w.put(&SnapshotNamespace::User);
        });
        // Known at once: what is written from now on must not change what is in it.
        if let Err(error) = self.change_header(add).await
            && !self.has_snapshot(id)
        {
            return Err(error);
        }
        self.map_for_snapshot(id).await
    }

    fn has_snapshot(&self, id: u64) -> bool {
        self.header.snapshots.iter().any(|snapshot| snapshot.id == id)
    }

    /// Removes a snapshot. One that clones (version 2) need has no name any more, and goes when the last of them does (ceph:
    /// `src/librbd/operation/SnapshotRemoveRequest.cc`, `trash_snap`). One whose removal did not come to its end is removed, too.
    ///
    /// # Errors
    /// ENOENT if there is none; EBUSY if it is protected; those of the store.
    pub async fn remove_snapshot(&mut self, name: &str) -> Result<()> {
        self.begin().await?;
        self.is_stale = true;
        let removed = self.remove_named(name).await;
        let read = self.refresh().await;
        removed.and(read)
    }

    /// The same, beside reads and writes: a write that waits for space is not in the way of what frees some. The header is to be
    /// [read again](Self::refresh) afterwards; what is written before that names the snapshot still, which stores pass over.
    ///
    /// # Errors
    /// As [`remove_snapshot`](Self::remove_snapshot).
    pub async fn remove_snapshot_beside(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.remove_named(name).await
    }

    /// Removes a snapshot from the trash, by the name that it has there, beside reads and writes.
    ///
    /// # Errors
    /// ENOENT if there is none; EBUSY if it has clones; those of the store.
    pub async fn remove_trashed_snapshot_beside(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        let header = Header::read(&self.store, &self.id).await?;
        let trashed = |it: &&Snapshot| it.is_in_trash() && it.name == name;
        let snapshot = header.snapshots.iter().find(trashed).ok_or(Errno::NOENT)?;
        if snapshot.child_count > 0 {
            return Err(Errno::BUSY.into());
        }
        self.remove_unneeded(&header, snapshot.id).await
    }

    /// Removes all snapshots in the trash that nobody needs any more.
    pub(super) async fn empty_trash(&mut self) -> Result<()> {
        for id in self.header.unneeded_snapshots() {
            let header = self.header.clone();
            self.is_stale = true;
            let removed = self.remove_unneeded(&header, id).await;
            let read = self.refresh().await;
            removed.and(read)?;
        }
        Ok(())
    }

    async fn remove_named(&self, name: &str) -> Result<()> {
        // Clones may have come since it was read.
        let header = Header::read(&self.store, &self.id).await?;
        let Some(snapshot) = header.snapshot(name) else {
            let left = header.snapshots.iter().find(|it| it.is_unneeded() && it.was_called(name));
            let id = left.ok_or(Errno::NOENT)?.id;
            return self.remove_unneeded(&header, id).await;
        };
        if snapshot.protection != Protection::Unprotected as u8 {
            return Err(Errno::BUSY.into());
        }
        let id = snapshot.id;
        // Into the trash first: nobody makes a clone of it any more, and the header tells of it until all else is done.
        let trash = method("snapshot_trash_add", |w| w.u64(id));
        tell(&self.store, &self.header_object(), vec![trash]).await?;
        let header = Header::read(&self.store, &self.id).await?;
        match header.unneeded_snapshots().contains(&id) {
            true => self.remove_unneeded(&header, id).await,
            false => Ok(()),
        }
    }

    /// Removes a snapshot in the trash that nobody needs: the header forgets it last, so that one that is removed in part can be
    /// removed again (ceph: `SnapshotRemoveRequest.cc`). Each of the steps may have been done before.
    async fn remove_unneeded(&self, header: &Header, id: u64) -> Result<()> {
        // First, as it may have to wait for monitors.
        may_be_gone(self.data.remove_snapshot(id).await)?;
        let others_need_it = header.snapshots.iter().any(|it| it.id != id && it.has_parent());
        if let Some(parent) = header.parent.as_ref().filter(|parent| parent.overlap.is_none())
            && !others_need_it
        {
            self.leave_parents_header(&parent.spec).await?;
        }
        self.map_without_snapshot(header, id).await?;
        let remove = method("snapshot_remove", |w| w.u64(id));
        may_be_gone(tell(&self.store, &self.header_object(), vec![remove]).await)
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
