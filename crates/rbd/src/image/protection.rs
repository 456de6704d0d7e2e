//! More about snapshots: names, protection, how many there may be.

use super::{Image, ask, method, tell};
use crate::error::{Error, Result};
use crate::format::{ChildSpec, Protection, names};
use crate::store::{ObjectStore, Op};
use blockyard_rados::encoding::Reader;
use rustix::io::Errno;

impl<S: ObjectStore> Image<S> {
    /// Gives a snapshot another name.
    ///
    /// # Errors
    /// ENOENT if there is none of the old name, EEXIST if there is one of the new one.
    pub async fn rename_snapshot(&mut self, from: &str, to: &str) -> Result<()> {
        self.begin().await?;
        let id = self.snapshot_record(from)?.id;
        self.change_header(method("snapshot_rename", |w| {
            w.u64(id);
            w.string(to);
        }))
        .await
    }

    /// Keeps a snapshot from being removed, as it has to be for clones of version 1.
    ///
    /// # Errors
    /// ENOENT if there is none of that name; EBUSY if it is protected.
    pub async fn protect_snapshot(&mut self, name: &str) -> Result<()> {
        self.begin().await?;
        let snapshot = self.snapshot_record(name)?;
        if snapshot.protection == Protection::Protected as u8 {
            return Err(Errno::BUSY.into());
        }
        let id = snapshot.id;
        self.change_header(set_protection(id, Protection::Protected)).await
    }

    /// Lets a snapshot be removed again.
    ///
    /// # Errors
    /// ENOENT if there is none of that name; EINVAL if it is not protected; EBUSY if it has clones of version 1, in whichever
    /// pool; those of the store, if it does not say that of each pool.
    pub async fn unprotect_snapshot(&mut self, name: &str) -> Result<()> {
        let id = self.begin_unprotecting(name).await?;
        let children = self.old_children(id).await;
        self.end_unprotecting(id, children).await
    }

    /// Begins to unprotect a snapshot, which nobody clones from now on: its number.
    ///
    /// # Errors
    /// As [`unprotect_snapshot`](Self::unprotect_snapshot).
    pub async fn begin_unprotecting(&mut self, name: &str) -> Result<u64> {
        self.begin().await?;
        let snapshot = self.snapshot_record(name)?;
        if snapshot.protection == Protection::Unprotected as u8 {
            return Err(Errno::INVAL.into());
        }
        let id = snapshot.id;
        self.change_header(set_protection(id, Protection::Unprotecting)).await?;
        Ok(id)
    }

    /// Ends that: the snapshot is protected again if it has clones of version 1, or if that is not known. One that somebody has
    /// protected since, and may have cloned, stays so.
    ///
    /// # Errors
    /// As [`unprotect_snapshot`](Self::unprotect_snapshot); EBUSY if it was protected since.
    pub async fn end_unprotecting(
        &mut self,
        id: u64,
        children: Result<Vec<ChildSpec>>,
    ) -> Result<()> {
        self.begin().await?;
        // It may have been another one's meanwhile.
        self.refresh().await?;
        let snapshot = self.header.snapshots.iter().find(|snapshot| snapshot.id == id);
        let snapshot = snapshot.ok_or(Errno::NOENT)?;
        if snapshot.protection == Protection::Protected as u8 {
            let place = format_args!("snapshot {:?} was protected meanwhile", snapshot.name);
            return Err(Error::from(Errno::BUSY).at(place));
        }
        let refused = match children {
            Ok(children) if children.is_empty() => None,
            Ok(_) => Some(Errno::BUSY.into()),
            Err(error) => Some(error),
        };
        if let Some(refused) = refused {
            self.change_header(set_protection(id, Protection::Protected)).await?;
            return Err(refused);
        }
        self.change_header(set_protection(id, Protection::Unprotected)).await
    }

    /// The clones of version 1 of a snapshot, in all pools.
    pub(super) async fn old_children(&self, snapshot: u64) -> Result<Vec<ChildSpec>> {
        let mut children = Vec::new();
        for pool in self.pools().await? {
            children.extend(self.old_children_in(pool, snapshot).await?);
        }
        Ok(children)
    }

    /// The pools that may have clones.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn pools(&self) -> Result<Vec<i64>> {
        self.store.pools().await
    }

    /// The clones of version 1 of a snapshot in a pool. Each pool knows its own, of parents in the same namespace as they are in
    /// (ceph: `src/librbd/operation/SnapshotUnprotectRequest.cc`).
    ///
    /// # Errors
    /// Those of the store.
    pub async fn old_children_in(&self, pool: i64, snapshot: u64) -> Result<Vec<ChildSpec>> {
        let place = |error: Error| error.at(format_args!("looking for clones in pool {pool}"));
        let namespace = self.store.namespace();
        let store = match self.store.in_pool(pool, namespace).await {
            // It was deleted meanwhile.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            store => store.map_err(place)?,
        };
        let object = names::CHILDREN.into();
        let listed = ask(&store, &object, "get_children", |w| {
            w.i64(self.store.pool());
            w.string(&self.id);
            w.u64(snapshot);
        });
        let listed = match listed.await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            listed => listed.map_err(place)?,
        };
        let images =
            Reader::new("reading the clones of a snapshot", &listed).vec(4, Reader::string)?;
        let child = |image| ChildSpec { pool, namespace: namespace.to_owned(), image };
        Ok(images.into_iter().map(child).collect())
    }

    /// Sets how many snapshots it may have; `None` for as many as one likes.
    ///
    /// # Errors
    /// ERANGE if it has more.
    pub async fn set_snapshot_limit(&self, limit: Option<u64>) -> Result<()> {
        let set = method("snapshot_set_limit", |w| w.u64(limit.unwrap_or(u64::MAX)));
        tell(&self.store, &self.header_object(), vec![set]).await
    }
}

fn set_protection(id: u64, protection: Protection) -> Op {
    method("set_protection_status", |w| {
        w.u64(id);
        w.u8(protection as u8);
    })
}
