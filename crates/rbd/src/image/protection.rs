//! More about snapshots: names, protection, how many there may be.

use super::{Image, ask, method, tell};
use crate::error::Result;
use crate::format::{Protection, names};
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
    /// ENOENT if there is none of that name; EINVAL if it is not protected; EBUSY if it has clones of version 1 in this pool and
    /// namespace.
    pub async fn unprotect_snapshot(&mut self, name: &str) -> Result<()> {
        self.begin().await?;
        let snapshot = self.snapshot_record(name)?;
        if snapshot.protection == Protection::Unprotected as u8 {
            return Err(Errno::INVAL.into());
        }
        let id = snapshot.id;
        self.change_header(set_protection(id, Protection::Unprotecting)).await?;
        if self.has_old_clones(id).await? {
            self.change_header(set_protection(id, Protection::Protected)).await?;
            return Err(Errno::BUSY.into());
        }
        self.change_header(set_protection(id, Protection::Unprotected)).await
    }

    /// Whether there are clones of version 1.
    async fn has_old_clones(&self, snapshot: u64) -> Result<bool> {
        let object = names::CHILDREN.into();
        let listed = ask(&self.store, &object, "get_children", |w| {
            w.i64(self.store.pool());
            w.string(&self.id);
            w.u64(snapshot);
        });
        match listed.await {
            Err(error) if error.is_not_found() => Ok(false),
            listed => {
                let listed = listed?;
                Ok(Reader::new("reading the clones of a snapshot", &listed).count(4)? > 0)
            }
        }
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
