//! What is done to an image's snapshots beside its reads and writes, as far as that goes: it may have to wait for monitors, for
//! other pools, or for space that only it frees.

use super::Shared;
use crate::error::{Error, Result};
use crate::format::{ChildSpec, SnapshotNamespace};
use crate::image::Image;
use crate::store::ObjectStore;
use rustix::io::Errno;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};
use tokio::time::{Instant, timeout_at};

/// How long all pools together may take to tell of clones.
const POOLS_LIMIT: Duration = Duration::from_secs(30);
/// Others may have made a snapshot since this one was given its number: then it is given another one, so often.
const NUMBERS: usize = 8;

impl<S: ObjectStore> Shared<S> {
    /// The image, as its owner; who does something for another does not get the lock for that.
    async fn beside(&self, is_for_another: bool) -> Result<RwLockReadGuard<'_, Image<S>>> {
        if !is_for_another {
            return self.owned().await;
        }
        let image = self.current().await?;
        if image.is_owner() { Ok(image) } else { Err(Error::answer(Errno::RESTART)) }
    }

    /// The same, alone.
    pub(super) async fn alone_as_owner(
        &self,
        is_for_another: bool,
    ) -> Result<RwLockWriteGuard<'_, Image<S>>> {
        if !is_for_another {
            return self.acquire().await;
        }
        let mut image = self.alone_for_a_job().await?;
        self.refresh_held(&mut image).await?;
        // If it has lost the lock meanwhile, whoever asks looks who has it.
        if image.is_owner() { Ok(image) } else { Err(Error::answer(Errno::RESTART)) }
    }

    pub(super) async fn remove_snapshot(
        &self,
        is_for_another: bool,
        name: &str,
        namespace: &SnapshotNamespace,
    ) -> Result<()> {
        let image = self.beside(is_for_another).await?;
        let removed = match namespace {
            SnapshotNamespace::Trash { .. } => image.remove_trashed_snapshot_beside(name).await,
            _ => image.remove_snapshot_beside(name).await,
        };
        drop(image);
        self.is_stale.store(true, Ordering::Release);
        match self.alone_in_a_moment().await {
            Some(mut image) => self.refresh_held(&mut image).await?,
            None => self.jobs.notify_one(),
        }
        self.note(removed)
    }

    pub(super) async fn create_snapshot(&self, is_for_another: bool, name: &str) -> Result<()> {
        for _ in 0..NUMBERS {
            let image = self.beside(is_for_another).await?;
            let number = self.note(image.snapshot_number().await)?;
            drop(image);
            let mut image = match self.alone_as_owner(is_for_another).await {
                Ok(image) => image,
                Err(error) => {
                    self.image.read().await.give_back_number(number).await;
                    return Err(error);
                }
            };
            let made = self.note(image.create_snapshot_as(name, number).await);
            self.tell_status(&image);
            match made {
                Err(error) if error.errno() == Some(Errno::STALE) => {}
                made => return made,
            }
        }
        Err(Error::answer(Errno::BUSY).at("others make snapshots all the time"))
    }

    pub(super) async fn unprotect(&self, is_for_another: bool, name: &str) -> Result<()> {
        let mut image = self.alone_as_owner(is_for_another).await?;
        let id = self.note(image.begin_unprotecting(name).await)?;
        let image = image.downgrade();
        let children = self.old_children(&image, id).await;
        drop(image);
        let again = |error: Error| {
            error.at(format_args!("snapshot {name:?} is half unprotected; unprotect it again"))
        };
        let mut image = self.alone_as_owner(is_for_another).await.map_err(again)?;
        self.note(image.end_unprotecting(id, children).await)
    }

    async fn old_children(&self, image: &Image<S>, snapshot: u64) -> Result<Vec<ChildSpec>> {
        let end = Instant::now() + POOLS_LIMIT;
        let late = |place: &dyn std::fmt::Display| Error::answer(Errno::TIMEDOUT).at(place);
        let pools = timeout_at(end, image.pools()).await;
        let pools = pools.map_err(|_| late(&"asking for the pools"))?;
        let mut children = Vec::new();
        for pool in self.note(pools)? {
            let place = format!("looking for clones in pool {pool}");
            let found = timeout_at(end, image.old_children_in(pool, snapshot)).await;
            children.extend(self.note(found.map_err(|_| late(&place))?)?);
        }
        Ok(children)
    }
}
