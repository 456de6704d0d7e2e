//! Reading and writing an image.

use super::{Image, may_be_gone};
use crate::error::Result;
use crate::format::{Layout, ObjectExtent, ObjectState, names};
use crate::store::{Answer, ObjectName, ObjectStore, Op, Request, SnapContext};
use bytes::Bytes;
use rustix::io::Errno;
use std::ops::Range;

/// What is done to a range of an object.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(Bytes),
    Zero,
}

impl<S: ObjectStore> Image<S> {
    pub(super) fn check_range(&self, offset: u64, length: u64) -> Result<Range<u64>> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size());
        end.map(|end| offset..end).ok_or(Errno::INVAL.into())
    }

    pub(super) fn data_object(&self, number: u64) -> ObjectName {
        names::data(&self.header.prefix, number)
    }

    /// How the image is cut into objects.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.header.layout
    }

    /// Reads a range.
    ///
    /// # Errors
    /// EINVAL if it is not in the image; those of the store.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let range = self.check_range(offset, length)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| Errno::INVAL)?];
        for extent in self.header.layout.extents(range) {
            let at = usize::try_from(extent.image_offset - offset).unwrap_or(usize::MAX);
            let rest = bytes.get_mut(at..).unwrap_or_default();
            self.read_object(&extent, rest).await?;
        }
        Ok(bytes)
    }

    /// Reads a range of an object into zeroes.
    async fn read_object(&self, extent: &ObjectExtent, into: &mut [u8]) -> Result<()> {
        let found = self.read_extent(extent).await?;
        let length = into.len().min(found.len());
        if let (Some(into), Some(found)) = (into.get_mut(..length), found.get(..length)) {
            into.copy_from_slice(found);
        }
        Ok(())
    }

    /// Reads a range of one object, which is in the image: what there is of it. What is missing at the end is zeroes.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_extent(&self, extent: &ObjectExtent) -> Result<Bytes> {
        if self.map_state(extent.object) != Some(ObjectState::Nonexistent) {
            let ops = vec![Op::read(extent.offset, extent.length)];
            let request = Request::Read { snap: self.snap, ops };
            match self.data.operate(&self.data_object(extent.object), request).await {
                Err(error) if error.is_not_found() => {}
                answers => {
                    let found = answers?.into_iter().next().map(Answer::into_data);
                    return Ok(found.unwrap_or_default());
                }
            }
        }
        self.read_parent(extent.image_offset, extent.length).await
    }

    /// Writes to a range of one object, which is in the image and as long as the bytes.
    ///
    /// # Errors
    /// EROFS if the image is not owned; those of the store.
    pub async fn write_extent(&self, extent: &ObjectExtent, data: Bytes) -> Result<()> {
        self.check_writable()?;
        self.change(extent, Change::Write(data)).await
    }

    /// Makes a range of one object zero, which is in the image. Whoever calls this sees to it that nobody writes to the object
    /// at the same time: if nothing is left of it, it is removed, and the map says so after that.
    ///
    /// # Errors
    /// EROFS if the image is not owned; those of the store.
    pub async fn zero_extent(&self, extent: &ObjectExtent) -> Result<()> {
        self.check_writable()?;
        self.change(extent, Change::Zero).await
    }

    /// What the parent has of a range; less, where it has less.
    pub(super) async fn read_parent(&self, offset: u64, length: u64) -> Result<Bytes> {
        let Some(parent) = &self.parent else { return Ok(Bytes::new()) };
        let end = offset.saturating_add(length).min(self.overlap()).min(parent.size());
        if offset >= end {
            return Ok(Bytes::new());
        }
        Ok(Box::pin(parent.read(offset, end - offset)).await?.into())
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// EINVAL if they do not fit into the image; EROFS if it is not owned; those of the store.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.check_writable()?;
        let range = self.check_range(offset, data.len() as u64)?;
        for extent in self.header.layout.extents(range) {
            let at = usize::try_from(extent.image_offset - offset).unwrap_or(usize::MAX);
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            self.change(&extent, Change::Write(data.slice(at..at + length))).await?;
        }
        Ok(())
    }

    /// Makes a range zero, and gives its space back: discard and write-zeroes are the same.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        let range = self.check_range(offset, length)?;
        for extent in self.header.layout.extents(range) {
            self.change(&extent, Change::Zero).await?;
        }
        Ok(())
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn flush(&self) -> Result<()> {
        self.data.flush().await
    }

    /// Whether something of the parent would be seen if the object were not there.
    pub(super) fn hides_parent(&self, object: u64) -> bool {
        let start = self.header.layout.image_offset(object, 0);
        self.parent.is_some() && start.is_some_and(|start| start < self.overlap())
    }

    pub(super) async fn change(&self, extent: &ObjectExtent, change: Change) -> Result<()> {
        let hides_parent = self.hides_parent(extent.object);
        let to_end = extent.offset + extent.length == self.header.layout.object_bytes();
        let is_gone = self.map_state(extent.object) == Some(ObjectState::Nonexistent);
        let op = match change {
            Change::Zero if !hides_parent && is_gone => return Ok(()),
            Change::Zero if !hides_parent && to_end && extent.offset == 0 => {
                return self.remove_object(extent.object).await;
            }
            Change::Zero if self.is_zero(extent).await? => return Ok(()),
            Change::Zero if to_end => Op::truncate(extent.offset),
            Change::Zero => Op::zero(extent.offset, extent.length),
            Change::Write(data) => Op::write(extent.offset, data),
        };
        // An object that would be made by the write.
        self.set_state(extent.object, ObjectState::Exists).await?;
        let object = self.data_object(extent.object);
        if !hides_parent {
            return self.write_object(&object, vec![op]).await;
        }
        if extent.length == self.header.layout.object_bytes() {
            // Nothing of the parent is needed any more, unless a snapshot needs it.
            if self.header.context.snaps.is_empty() {
                return self.write_object(&object, vec![Op::create(false), op]).await;
            }
        }
        match self.write_object(&object, vec![Op::assert_exists(), op.clone()]).await {
            Err(error) if error.is_not_found() => self.copy_up(extent.object, vec![op]).await,
            done => done,
        }
    }

    /// Whether a range is known to be zeroes already, of an object that has not changed since the last snapshot as far as the
    /// map tells. A store does not touch an object in which there is nothing to be made zero, so the map must not say that it
    /// has changed. Of one that has changed it says so anyway.
    async fn is_zero(&self, extent: &ObjectExtent) -> Result<bool> {
        let may_be_there = match self.map_state(extent.object) {
            None | Some(ObjectState::Exists) => return Ok(false),
            // What is there has changed then, and a whole object needs no look at the parent.
            _ if self.header.context.snaps.is_empty() => return Ok(false),
            state => state != Some(ObjectState::Nonexistent),
        };
        if may_be_there && let Some(size) = self.object_size(extent.object).await? {
            return Ok(size <= extent.offset);
        }
        let seen = self.read_parent(extent.image_offset, extent.length).await?;
        Ok(seen.iter().all(|byte| *byte == 0))
    }

    /// Whether an object has nothing from the begin of a range on, or is not there.
    pub(super) async fn ends_before(&self, extent: &ObjectExtent) -> Result<bool> {
        let size = self.object_size(extent.object).await?;
        Ok(size.is_none_or(|size| size <= extent.offset))
    }

    pub(super) async fn write_object(&self, object: &ObjectName, ops: Vec<Op>) -> Result<()> {
        let context = self.header.context.clone();
        self.data.operate(object, Request::Write { context, ops }).await.map(|_| ())
    }

    /// Writes under snapshots as if there were none: what was there before all of them.
    pub(super) async fn write_below_snapshots(
        &self,
        object: &ObjectName,
        ops: Vec<Op>,
    ) -> Result<()> {
        let context = SnapContext::default();
        self.data.operate(object, Request::Write { context, ops }).await.map(|_| ())
    }

    /// Removes an object below which there is no parent.
    pub(super) async fn remove_object(&self, number: u64) -> Result<()> {
        if self.map_state(number) == Some(ObjectState::Nonexistent) {
            return Ok(());
        }
        self.set_state(number, ObjectState::Pending).await?;
        may_be_gone(self.write_object(&self.data_object(number), vec![Op::remove()]).await)?;
        self.set_state(number, ObjectState::Nonexistent).await
    }
}
