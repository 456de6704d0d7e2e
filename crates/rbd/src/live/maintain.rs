//! What is done to an image as a whole. The owner of its lock does it, for whoever wants it; if nobody has the lock, or its
//! owner cannot, whoever wants it gets the lock.

use super::lock;
use super::{LiveImage, NOTIFY_LIMIT, Shared, has_lock};
use crate::error::{Error, Result};
use crate::format::SnapshotNamespace;
use crate::format::notify::{Message, RequestId, Response, Work};
use crate::image::Image;
use crate::store::ObjectStore;
use blockyard_rados::encoding::Reader;
use rustix::io::Errno;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// A request whose owner has said nothing for so long is sent again (ceph: option `rbd_request_timed_out_seconds`).
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// A request that is seen to be done, but whose end was not heard.
const HEAR_OF_END: Duration = Duration::from_secs(5);

/// Whether work of others is done here.
pub(super) const fn supports(work: &Work) -> bool {
    match work {
        Work::Flatten | Work::Resize { .. } => true,
        Work::CreateSnapshot { namespace, .. } | Work::RemoveSnapshot { namespace, .. } => {
            matches!(namespace, SnapshotNamespace::User)
        }
        Work::RenameSnapshot { .. }
        | Work::ProtectSnapshot { .. }
        | Work::UnprotectSnapshot { .. }
        | Work::RebuildObjectMap
        | Work::Rename { .. } => false,
    }
}

/// Does it, as the owner.
pub(super) async fn perform<S: ObjectStore>(image: &mut Image<S>, work: &Work) -> Result<()> {
    match work {
        Work::Flatten => image.flatten().await,
        Work::Resize { size, allow_shrink } if *allow_shrink || *size >= image.size() => {
            image.resize(*size).await
        }
        Work::Resize { .. } => Err(Errno::INVAL.into()),
        Work::CreateSnapshot { name, .. } => image.create_snapshot(name).await,
        Work::RemoveSnapshot { name, .. } => image.remove_snapshot(name).await,
        _ => Err(Errno::OPNOTSUPP.into()),
    }
}

/// Whether an image is as the work would leave it.
fn is_done<S: ObjectStore>(image: &Image<S>, work: &Work) -> bool {
    let has = |name: &str| image.snapshots().any(|(_, known, _)| known == name);
    match work {
        Work::Flatten => image.overlap() == 0,
        Work::Resize { size, .. } => image.size() == *size,
        Work::CreateSnapshot { name, .. } => has(name),
        Work::RemoveSnapshot { name, .. } => !has(name),
        _ => false,
    }
}

impl<S: ObjectStore> LiveImage<S> {
    /// Makes the image larger or smaller.
    ///
    /// # Errors
    /// As [`Image::resize`], and as [`write`](Self::write). So it is with the others.
    pub async fn resize(&self, size: u64) -> Result<()> {
        self.shared.maintain(Work::Resize { size, allow_shrink: true }).await
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
    async fn maintain(&self, work: Work) -> Result<()> {
        let is_own = {
            let image = self.current().await?;
            image.is_owner() || !has_lock(&image)
        };
        let mut was_asked = false;
        if !is_own {
            was_asked = true;
            if let Some(result) = self.ask_owner(&work).await? {
                return result;
            }
        }
        let mut image = self.acquire().await?;
        // The owner may have done it before he died.
        if was_asked && is_done(&image, &work) && !matches!(work, Work::Resize { .. }) {
            return Ok(());
        }
        let done = self.note(perform(&mut image, &work).await);
        self.tell_status(&image);
        drop(image);
        let _whoever_misses_it_looks = self.tell(&Message::HeaderUpdate).await;
        done
    }

    /// Has the owner of the lock do something: what came of it, or nothing if there is nobody who can.
    async fn ask_owner(&self, work: &Work) -> Result<Option<Result<()>>> {
        let request = self.next_request();
        self.state.lock().completed.insert(request.number, None);
        let awaited = Awaited { shared: self, request };
        let message = Message::Request { request: Some(request), work: work.clone() };
        let end = Instant::now() + self.options.lock_limit;
        while Instant::now() < end {
            if lock::owner(&self.store, &self.header).await?.is_none() {
                return Ok(None);
            }
            let answered = self.answer_of_owner(&message).await?;
            match answered {
                None => return Ok(None),
                Some(result) if result == -Errno::OPNOTSUPP.raw_os_error() => return Ok(None),
                Some(result) if result == -Errno::RESTART.raw_os_error() => return Ok(None),
                Some(result) if result < 0 => return Ok(Some(checked(result))),
                Some(_) => {}
            }
            match self.end_of(&awaited, work).await? {
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
    async fn end_of(&self, awaited: &Awaited<'_, S>, work: &Work) -> Result<Option<i32>> {
        let mut heard = self.heard.subscribe();
        let mut until = Instant::now() + ASK_AGAIN;
        let mut was_done = false;
        loop {
            if let Some(result) = awaited.result() {
                return Ok(Some(result));
            }
            let is_done = is_done(&*self.current().await?, work);
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
