//! How the image of a disk is open.

use blockyard_rbd::Result;
use blockyard_rbd::image::Image;
use blockyard_rbd::live::{LiveImage, ObjectLocks, Status};
use blockyard_rbd::store::ObjectStore;
use tokio::sync::{RwLock, RwLockReadGuard, watch};

/// An image that is open.
pub enum Opened<S: ObjectStore> {
    /// It is written under its lock, which others may want now and then; what they change is seen.
    Live(LiveImage<S>),
    /// A snapshot, an image that is only looked at, or one that nobody else has.
    Still(Box<Still<S>>),
}

/// An image that does not change by itself.
pub struct Still<S: ObjectStore> {
    image: RwLock<Image<S>>,
    size: u64,
    locks: ObjectLocks,
}

impl<S: ObjectStore> From<Image<S>> for Opened<S> {
    fn from(image: Image<S>) -> Self {
        let size = image.size();
        let still = Still { image: RwLock::new(image), size, locks: ObjectLocks::default() };
        Self::Still(Box::new(still))
    }
}

impl<S: ObjectStore> From<LiveImage<S>> for Opened<S> {
    fn from(image: LiveImage<S>) -> Self {
        Self::Live(image)
    }
}

impl<S: ObjectStore> Opened<S> {
    /// Bytes that it had when it was opened, or has now.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Live(live) => live.status().borrow().size,
            Self::Still(still) => still.size,
        }
    }

    /// What is known of it now, and later; nothing of one that does not change.
    pub(crate) fn status(&self) -> Option<watch::Receiver<Status>> {
        match self {
            Self::Live(live) => Some(live.status()),
            Self::Still(_) => None,
        }
    }

    /// The image, to be read.
    pub(crate) async fn read(&self) -> Result<RwLockReadGuard<'_, Image<S>>> {
        match self {
            Self::Live(live) => live.image().await,
            Self::Still(still) => Ok(still.image.read().await),
        }
    }

    /// The image, to be written.
    pub(crate) async fn owned(&self) -> Result<RwLockReadGuard<'_, Image<S>>> {
        match self {
            Self::Live(live) => live.owned().await,
            Self::Still(still) => Ok(still.image.read().await),
        }
    }

    /// The locks of its objects.
    pub(crate) fn locks(&self) -> &ObjectLocks {
        match self {
            Self::Live(live) => live.locks(),
            Self::Still(still) => &still.locks,
        }
    }

    /// Makes it so large, if it is smaller.
    pub(crate) async fn grow(&self, to: u64) -> Result<()> {
        match self {
            Self::Live(live) => {
                let size = live.image().await?.size();
                if to <= size {
                    return Ok(());
                }
                match live.resize(to, false).await {
                    // Others have made it larger than that meanwhile.
                    Err(_) if live.image().await?.size() > to => Ok(()),
                    done => done,
                }
            }
            Self::Still(still) => {
                let mut image = still.image.write().await;
                if to > image.size() { image.resize(to).await } else { Ok(()) }
            }
        }
    }

    /// Makes what was written durable, and gives its lock back. It is not used after that.
    pub(crate) async fn close(&self) -> Result<()> {
        match self {
            Self::Live(live) => live.close().await,
            Self::Still(still) => still.image.read().await.flush().await,
        }
    }
}
