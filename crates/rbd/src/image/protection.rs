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
        self.begin().await?;
        let snapshot = self.snapshot_record(name)?;
        if snapshot.protection == Protection::Unprotected as u8 {
            return Err(Errno::INVAL.into());
        }
        let id = snapshot.id;
        self.change_header(set_protection(id, Protection::Unprotecting)).await?;
        let refused = match self.old_children(id).await {
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

    /// The clones of version 1 of a snapshot. Each pool knows its own, of parents in the same namespace as they are in (ceph:
    /// `src/librbd/operation/SnapshotUnprotectRequest.cc`).
    pub(super) async fn old_children(&self, snapshot: u64) -> Result<Vec<ChildSpec>> {
        let (mut children, object) = (Vec::new(), names::CHILDREN.into());
        let namespace = self.store.namespace();
        for pool in self.store.pools().await? {
            let place = |error: Error| error.at(format_args!("looking for clones in pool {pool}"));
            let store = match self.store.in_pool(pool, namespace).await {
                // It was deleted meanwhile.
                Err(error) if error.is_not_found() => continue,
                store => store.map_err(place)?,
            };
            let listed = ask(&store, &object, "get_children", |w| {
                w.i64(self.store.pool());
                w.string(&self.id);
                w.u64(snapshot);
            });
            let listed = match listed.await {
                Err(error) if error.is_not_found() => continue,
                listed => listed.map_err(place)?,
            };
            let mut reader = Reader::new("reading the clones of a snapshot", &listed);
            for image in reader.vec(4, Reader::string)? {
                children.push(ChildSpec { pool, namespace: namespace.to_owned(), image });
            }
        }
        Ok(children)
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
