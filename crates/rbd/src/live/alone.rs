//! Having an image alone, while others read and write it.
//!
//! Whoever waits for the image stands before all who come after him, also before those who only read. If what is under way does
//! not end, as the pool is full or a placement group is inactive, they would all hang with it. So he gives his place up after a
//! moment, lets others pass for as long, and tries again for longer.

use super::Shared;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::store::ObjectStore;
use rustix::io::Errno;
use std::future::Future;
use std::time::Duration;
use tokio::sync::RwLockWriteGuard;
use tokio::time::{Instant, sleep, timeout};

/// How long others stand behind whoever waits: at first, and at most.
const MOMENT: Duration = Duration::from_millis(200);
const MAX_MOMENT: Duration = Duration::from_secs(6);
/// How long the task that does things waits for one of them: others wait for it, too.
pub(super) const ALONE_LIMIT: Duration = Duration::from_secs(30);

const WAITING: &str = "waiting for requests to end";

impl<S: ObjectStore> Shared<S> {
    /// The image alone, in time: ETIMEDOUT if it cannot be had.
    pub(super) async fn alone_until(
        &self,
        end: Option<Instant>,
    ) -> Result<RwLockWriteGuard<'_, Image<S>>> {
        self.in_moments(end, || self.image.write()).await
    }

    /// The same for what is done for others, who hear EBUSY: one who hears that time is up asks again (ceph:
    /// `src/librbd/ImageWatcher.cc`).
    pub(super) async fn alone_for_a_job(&self) -> Result<RwLockWriteGuard<'_, Image<S>>> {
        let had = self.alone_until(Some(Instant::now() + ALONE_LIMIT)).await;
        had.map_err(|error| match error.errno() {
            Some(Errno::TIMEDOUT) => Error::answer(Errno::BUSY).at(WAITING),
            _ => error,
        })
    }

    /// The same if it can be had in a moment.
    pub(super) async fn alone_in_a_moment(&self) -> Option<RwLockWriteGuard<'_, Image<S>>> {
        timeout(MOMENT, self.image.write()).await.ok()
    }

    /// Waits for something that others wait behind.
    pub(super) async fn in_moments<T, F: Future<Output = T>>(
        &self,
        end: Option<Instant>,
        wait: impl Fn() -> F,
    ) -> Result<T> {
        let mut moment = MOMENT;
        loop {
            if let Ok(had) = timeout(moment, wait()).await {
                return Ok(had);
            }
            self.check()?;
            if end.is_some_and(|end| Instant::now() >= end) {
                return Err(Error::answer(Errno::TIMEDOUT).at(WAITING));
            }
            sleep(moment).await;
            moment = (2 * moment).min(MAX_MOMENT);
        }
    }
}
