//! Who changes an object at the same time. Zeroing one may remove it, after which the map of objects says that it is gone: a
//! write in between would be hidden by the map. So writes go on beside each other, as on any disk, and what zeroes has the
//! object alone.

use crate::error::Result;
use crate::image::Image;
use crate::store::ObjectStore;
use bytes::Bytes;
use rustix::io::Errno;
use std::ops::Range;
use tokio::sync::RwLock;

/// Locks that all objects of an image share: it is by chance that two have the same.
const LOCKS: u64 = 64;

/// The locks of an image's objects. All who write the image at the same time have the same ones.
pub struct ObjectLocks(Box<[RwLock<()>]>);

impl Default for ObjectLocks {
    fn default() -> Self {
        Self((0..LOCKS).map(|_| RwLock::new(())).collect())
    }
}

impl ObjectLocks {
    fn of(&self, object: u64) -> &RwLock<()> {
        // There are LOCKS of them.
        &self.0[usize::try_from(object % LOCKS).unwrap_or_default()]
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub async fn write<S: ObjectStore>(
        &self,
        image: &Image<S>,
        offset: u64,
        data: Bytes,
    ) -> Result<()> {
        for extent in image.layout().extents(range(image, offset, data.len() as u64)?) {
            let at = usize::try_from(extent.image_offset - offset).unwrap_or(usize::MAX);
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            let _beside_others = self.of(extent.object).read().await;
            image.write_extent(&extent, data.slice(at..at + length)).await?;
        }
        Ok(())
    }

    /// Makes a range zero, and gives its space back.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub async fn zero<S: ObjectStore>(
        &self,
        image: &Image<S>,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        for extent in image.layout().extents(range(image, offset, length)?) {
            let _alone = self.of(extent.object).write().await;
            image.zero_extent(&extent).await?;
        }
        Ok(())
    }
}

/// A range of an image.
fn range<S: ObjectStore>(image: &Image<S>, offset: u64, length: u64) -> Result<Range<u64>> {
    let end = offset.checked_add(length).filter(|end| *end <= image.size());
    end.map(|end| offset..end).ok_or(Errno::INVAL.into())
}
