//! What is done to an image as a whole. The owner of its lock does it, for whoever wants it; if nobody has the lock, or its
//! owner cannot, whoever wants it gets the lock.

use super::{LiveImage, NOTIFY_LIMIT, Shared, has_lock};
use super::{lock, sweep};
use crate::error::{Error, Result};
use crate::format::notify::{Message, RequestId, Response, Work};
use crate::format::{Protection, Snapshot, SnapshotNamespace};
use crate::image::Image;
use crate::store::ObjectStore;
use blockyard_rados::encoding::Reader;
use rustix::io::Errno;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::RwLockReadGuard;
use tokio::time::{Instant, timeout, timeout_at};

/// A request whose owner has said nothing for so long is sent again (ceph: option `rbd_request_timed_out_seconds`).
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// After so many objects those who wait hear how far it is.
const TOLD: u64 = 64;
/// A request that is seen to be done, but whose end was not heard.
const HEAR_OF_END: Duration = Duration::from_secs(5);

/// Whether work of others is done here.
pub(super) const fn supports(work: &Work) -> bool {
    match work {
        Work::Flatten
        | Work::Resize { .. }
        | Work::RenameSnapshot { .. }
        | Work::ProtectSnapshot { .. }
        | Work::UnprotectSnapshot { .. }
        | Work::Rename { .. } => true,
        Work::CreateSnapshot { namespace, .. } => matches!(namespace, SnapshotNamespace::User),
        Work::RemoveSnapshot { namespace, .. } => {
            matches!(namespace, SnapshotNamespace::User | SnapshotNamespace::Trash { .. })
        }
        // It would have the image alone for as long as it takes.
        Work::RebuildObjectMap => false,
    }
}

/// Does what needs the image alone, as the owner.
async fn perform<S: ObjectStore>(image: &mut Image<S>, work: &Work) -> Result<()> {
    match work {
        Work::Resize { size, allow_shrink } if *allow_shrink || *size >= image.size() => {
            image.resize(*size).await
        }
        Work::Resize { .. } => Err(Errno::INVAL.into()),
        Work::RenameSnapshot { id, name } => {
            let old = name_of_snapshot(image, *id).ok_or(Errno::NOENT)?.to_owned();
            image.rename_snapshot(&old, name).await
        }
        Work::ProtectSnapshot { name } => image.protect_snapshot(name).await,
        Work::Rename { name } => image.rename(name).await,
        _ => Err(Errno::OPNOTSUPP.into()),
    }
}

fn name_of_snapshot<S: ObjectStore>(image: &Image<S>, id: u64) -> Option<&str> {
    image.snapshots().find(|(known, ..)| *known == id).map(|(_, name, _)| name)
}

/// Whether an image is as the work would leave it.
fn is_done<S: ObjectStore>(image: &Image<S>, work: &Work) -> bool {
    let has = |name: &str| image.snapshots().any(|(_, known, _)| known == name);
    let protection = |name: &str| image.snapshot_record(name).ok().map(|known| known.protection);
    match work {
        Work::Flatten => image.overlap() == 0,
        Work::Resize { size, .. } => image.size() == *size,
        Work::CreateSnapshot { name, .. } => has(name),
        Work::RemoveSnapshot { name, namespace } => !image.snapshot_records().iter().any(|known| {
            let is_left = *namespace == SnapshotNamespace::User
                && known.is_unneeded()
                && known.was_called(name);
            is_left || known.namespace == *namespace && known.name == *name
        }),
        Work::RenameSnapshot { id, name } => name_of_snapshot(image, *id) == Some(name),
        Work::ProtectSnapshot { name } => protection(name) == Some(Protection::Protected as u8),
        Work::UnprotectSnapshot { name } => protection(name) == Some(Protection::Unprotected as u8),
        // The header does not know the image's name; the owner's map is nobody else's affair.
        Work::Rename { .. } | Work::RebuildObjectMap => false,
    }
}

impl<S: ObjectStore> LiveImage<S> {
    /// Makes the image larger, or smaller if that is allowed: others may have made it larger than it was seen to be.
    ///
    /// # Errors
    /// EINVAL if it is larger, and may not shrink. Those of [`Image::resize`], and of [`write`](Self::write); so it is with the
    /// others.
    pub async fn resize(&self, size: u64, allow_shrink: bool) -> Result<()> {
        self.shared.maintain(Work::Resize { size, allow_shrink }).await
    }

    /// Makes a snapshot of what was written before.
    ///
    /// # Errors
    /// As [`Image::create_snapshot`].
    pub async fn create_snapshot(&self, name: &str) -> Result<()> {
        let (name, namespace) = (name.to_owned(), SnapshotNamespace::User);
        self.shared.maintain(Work::CreateSnapshot { name, namespace, flags: 0 }).await
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// As [`Image::remove_snapshot`].
    pub async fn remove_snapshot(&self, name: &str) -> Result<()> {
        let (name, namespace) = (name.to_owned(), SnapshotNamespace::User);
        self.shared.maintain(Work::RemoveSnapshot { name, namespace }).await
    }

    /// Removes a snapshot from the trash, which no clone needs any more.
    ///
    /// # Errors
    /// As [`Image::remove_trashed_snapshot_beside`].
    pub async fn remove_trashed_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        let (name, namespace) = (snapshot.name.clone(), snapshot.namespace.clone());
        self.shared.maintain(Work::RemoveSnapshot { name, namespace }).await
    }

    /// Gives a snapshot another name.
    ///
    /// # Errors
    /// As [`Image::rename_snapshot`].
    pub async fn rename_snapshot(&self, from: &str, to: &str) -> Result<()> {
        let id = self.shared.current().await?.snapshot_record(from)?.id;
        self.shared.maintain(Work::RenameSnapshot { id, name: to.to_owned() }).await
    }

    /// Keeps a snapshot from being removed.
    ///
    /// # Errors
    /// As [`Image::protect_snapshot`].
    pub async fn protect_snapshot(&self, name: &str) -> Result<()> {
        self.shared.maintain(Work::ProtectSnapshot { name: name.to_owned() }).await
    }

    /// Lets a snapshot be removed again.
    ///
    /// # Errors
    /// As [`Image::unprotect_snapshot`].
    pub async fn unprotect_snapshot(&self, name: &str) -> Result<()> {
        self.shared.maintain(Work::UnprotectSnapshot { name: name.to_owned() }).await
    }

    /// Gives the image another name.
    ///
    /// # Errors
    /// As [`Image::rename`].
    pub async fn rename(&self, name: &str) -> Result<()> {
        self.shared.maintain(Work::Rename { name: name.to_owned() }).await
    }

    /// Copies all that is still seen of the parent, and leaves it.
    ///
    /// # Errors
    /// As [`Image::flatten`].
    pub async fn flatten(&self) -> Result<()> {
        self.shared.maintain(Work::Flatten).await
    }

    /// Makes the image what it was in a snapshot; whoever wants that gets the lock first.
    ///
    /// # Errors
    /// As [`Image::rollback`].
    pub async fn rollback(&self, name: &str) -> Result<()> {
        let shared = &self.shared;
        let mut image = shared.acquire().await?;
        let done = shared.note(image.rollback(name).await);
        shared.tell_status(&image);
        drop(image);
        let _whoever_misses_it_looks = shared.tell(&Message::HeaderUpdate).await;
        done
    }
}

/// A request that is waited for; forgotten when this is dropped.
struct Awaited<'a, S: ObjectStore> {
    shared: &'a Shared<S>,
    request: RequestId,
}

impl<S: ObjectStore> Drop for Awaited<'_, S> {
    fn drop(&mut self) {
        self.shared.state.lock().completed.remove(&self.request.number);
    }
}

impl<S: ObjectStore> Awaited<'_, S> {
    fn result(&self) -> Option<i32> {
        self.shared.state.lock().completed.get(&self.request.number).copied().flatten()
    }
}

fn checked(result: i32) -> Result<()> {
    if result >= 0 {
        return Ok(());
    }
    Err(Error::answer(Errno::from_raw_os_error(result.saturating_neg())))
}

impl<S: ObjectStore> Shared<S> {
    pub(super) async fn maintain(&self, work: Work) -> Result<()> {
        // Looked at anew: what was so before says nothing of whether the work was done.
        self.is_stale.store(true, Ordering::Release);
        let (is_own, was_so, parent) = {
            let image = self.current().await?;
            let is_own = image.is_owner() || !has_lock(&image);
            (is_own, is_done(&image, &work), sweep::parent_of(&image))
        };
        let mut was_asked = false;
        if !is_own && let Some(result) = self.ask_owner(&work, was_so, &mut was_asked).await? {
            return result;
        }
        // The owner may have done it before he died.
        let can_tell = was_asked && !was_so && !matches!(work, Work::Resize { .. });
        if can_tell && is_done(&*self.owned().await?, &work) {
            return Ok(());
        }
        let done = self.perform(None, &work).await;
        let _whoever_misses_it_looks = self.tell(&Message::HeaderUpdate).await;
        if done.is_ok() {
            self.sweep(parent).await;
        }
        done
    }

    /// Does what another one has asked for, as long as this one is the owner, and nobody wants the lock.
    pub(super) async fn do_for(&self, request: Option<RequestId>, work: &Work) -> Result<()> {
        let parent = sweep::parent_of(&*self.image.read().await);
        let done = self.perform(Some(request), work).await;
        if done.is_ok() && sweep::parent_of(&*self.image.read().await) != parent {
            // Nobody waits for that.
            tokio::spawn(sweep::sweep(self.store.clone(), parent));
        }
        done
    }

    /// Does it, as the owner: for another, or for this one, who gets the lock for that.
    async fn perform(&self, for_another: Option<Option<RequestId>>, work: &Work) -> Result<()> {
        let is_for_another = for_another.is_some();
        match work {
            Work::Flatten => self.flatten(for_another).await,
            Work::CreateSnapshot { name, .. } => self.create_snapshot(is_for_another, name).await,
            Work::RemoveSnapshot { name, namespace } => {
                self.remove_snapshot(is_for_another, name, namespace).await
            }
            Work::UnprotectSnapshot { name } => self.unprotect(is_for_another, name).await,
            _ => {
                let mut image = self.alone_as_owner(is_for_another).await?;
                let done = self.note(perform(&mut image, work).await);
                self.tell_status(&image);
                done
            }
        }
    }

    /// The image for the next step of something that goes on beside reads and writes.
    async fn step(&self, is_for_another: bool) -> Result<RwLockReadGuard<'_, Image<S>>> {
        if !is_for_another {
            return self.owned().await;
        }
        let image = self.current().await?;
        if !image.is_owner() || self.state.lock().jobs.release {
            return Err(Error::answer(Errno::RESTART));
        }
        Ok(image)
    }

    /// Copies from the parent object by object, beside reads and writes; then leaves it. What is done for another ends early
    /// if somebody wants the lock.
    async fn flatten(&self, for_another: Option<Option<RequestId>>) -> Result<()> {
        let mut object = 0;
        loop {
            let image = self.step(for_another.is_some()).await?;
            let total = image.objects_of_parent();
            if total == 0 && object == 0 {
                return Err(Errno::INVAL.into());
            }
            if object >= total {
                break;
            }
            self.note(image.copy_from_parent(object).await)?;
            drop(image);
            object += 1;
            if let Some(Some(request)) = for_another
                && object % TOLD == 0
            {
                self.announce(Message::Progress { request, offset: object, total });
            }
        }
        let mut image = self.alone_as_owner(for_another.is_some()).await?;
        let done = match image.objects_of_parent() {
            // Whoever had the lock in between has done so.
            0 => Ok(()),
            _ => self.note(image.leave_copied_parent().await),
        };
        self.tell_status(&image);
        done
    }

    /// Has the owner of the lock do something: what came of it, or nothing if there is nobody who can; and whether somebody was
    /// asked. `was_so` if the image was before as the work would leave it.
    async fn ask_owner(
        &self,
        work: &Work,
        was_so: bool,
        was_asked: &mut bool,
    ) -> Result<Option<Result<()>>> {
        let request = self.next_request();
        self.state.lock().completed.insert(request.number, None);
        let awaited = Awaited { shared: self, request };
        let message = Message::Request { request: Some(request), work: work.clone() };
        let end = Instant::now() + self.options.lock_limit;
        while Instant::now() < end {
            if lock::owner(&self.store, &self.header).await?.is_none() {
                return Ok(None);
            }
            *was_asked = true;
            let answered = self.answer_of_owner(&message).await?;
            match answered {
                None => return Ok(None),
                Some(result) if result == -Errno::OPNOTSUPP.raw_os_error() => return Ok(None),
                Some(result) if result == -Errno::RESTART.raw_os_error() => return Ok(None),
                Some(result) if result < 0 => return Ok(Some(checked(result))),
                Some(_) => {}
            }
            match self.end_of(&awaited, work, was_so).await? {
                Some(result) if result == -Errno::RESTART.raw_os_error() => return Ok(None),
                Some(result) => return Ok(Some(checked(result))),
                None => {}
            }
        }
        Err(Error::answer(Errno::TIMEDOUT).at("waiting for the image's owner to do it"))
    }

    async fn answer_of_owner(&self, message: &Message) -> Result<Option<i32>> {
        let answers = match timeout(2 * NOTIFY_LIMIT, self.tell(message)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) if error.errno() == Some(Errno::TIMEDOUT) => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(None),
        };
        let read = |answer| Reader::new("reading an answer", answer).get::<Response>().ok();
        Ok(lock::answers(&answers).find_map(|answer| read(answer)).map(|answer| answer.result))
    }

    /// Waits for the end of a request: its result, or nothing if it is to be asked for again.
    async fn end_of(
        &self,
        awaited: &Awaited<'_, S>,
        work: &Work,
        was_so: bool,
    ) -> Result<Option<i32>> {
        let mut heard = self.heard.subscribe();
        let mut until = Instant::now() + ASK_AGAIN;
        let mut was_done = false;
        loop {
            if let Some(result) = awaited.result() {
                return Ok(Some(result));
            }
            let is_done = !was_so && is_done(&*self.current().await?, work);
            if is_done && !was_done {
                was_done = true;
                until = Instant::now() + HEAR_OF_END;
            }
            if timeout_at(until, heard.changed()).await.is_err() {
                // Of one that is done, only the message that says so got lost.
                return Ok(awaited.result().or_else(|| is_done.then_some(0)));
            }
            if !was_done {
                until = Instant::now() + ASK_AGAIN;
            }
        }
    }
}
