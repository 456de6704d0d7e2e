//! Another size.

use super::io::Change;
use super::{Image, method};
use crate::error::{Error, Result};
use crate::format::{Features, MAX_OBJECTS, ObjectState};
use crate::store::ObjectStore;

impl<S: ObjectStore> Image<S> {
    /// Makes the image larger or smaller. What is cut off is gone, except in snapshots. After a shrink that failed the image is
    /// as large as before, and some of what was to go may be gone; or it is smaller, and nothing is behind its end.
    ///
    /// # Errors
    /// EROFS if it is not owned; more objects than a map can have; those of the store.
    pub async fn resize(&mut self, size: u64) -> Result<()> {
        self.begin().await?;
        let objects = self.header.layout.objects(size);
        if self.header.features.contains(Features::OBJECT_MAP) && objects > MAX_OBJECTS {
            return Err(Error::bad(format!(
                "an object map has at most {MAX_OBJECTS} objects, not {objects}"
            )));
        }
        let old = self.size();
        let set_size = method("set_size", |w| w.u64(size));
        if size < old {
            self.take_for_snapshots(size).await?;
            // The size last: whoever makes the image larger again by that alone finds nothing behind its end (ceph:
            // `src/librbd/operation/ResizeRequest.cc`).
            self.see_less_of_parent(size);
            self.cut(size, self.objects_up_to(old)).await?;
            self.change_header(set_size).await?;
            self.resize_map(size).await
        } else {
            // What a shrink has left that did not come to its end, as older versions did it, is no part of the image any more:
            // as far as the map tells of it. Without one, each object of the new part would have to be looked for.
            self.cut(old, self.objects_up_to(old)).await?;
            self.resize_map(size).await?;
            self.change_header(set_size).await
        }
    }

    /// The objects that there may be up to a size, and behind it, if the map tells of more.
    pub(super) fn objects_up_to(&self, size: u64) -> u64 {
        let known = self.map.lock().as_ref().map(crate::format::ObjectMap::objects);
        known.unwrap_or_else(|| self.header.layout.objects(size))
    }

    /// Copies what snapshots see of the parent behind a size, as long as the image sees it too: a copy that is made later would
    /// have less.
    async fn take_for_snapshots(&self, size: u64) -> Result<()> {
        if self.header.context.snaps.is_empty() || self.overlap() <= size {
            return Ok(());
        }
        let layout = self.header.layout;
        let (_, count) = layout.stripes();
        let first = size / layout.object_bytes().saturating_mul(count) * count;
        for object in first..layout.objects(self.overlap()) {
            self.take_from_parent(object).await?;
        }
        Ok(())
    }

    /// From now on no more of the parent is seen than up to a size, until the header is read again: so that objects behind it
    /// can go.
    fn see_less_of_parent(&mut self, size: u64) {
        self.is_stale = true;
        if let Some(overlap) = self.header.parent.as_mut().and_then(|it| it.overlap.as_mut()) {
            *overlap = size.min(*overlap);
        }
    }

    /// Takes away what lies behind a size, of so many objects.
    pub(super) async fn cut(&self, size: u64, all: u64) -> Result<()> {
        let layout = self.header.layout;
        let kept = layout.objects(size);
        for object in kept..all {
            self.remove_object(object).await?;
        }
        // The last objects that stay have more than the image: up to the end of their set.
        let (_, count) = layout.stripes();
        let set = layout.object_bytes().saturating_mul(count);
        let end = size.div_ceil(set).saturating_mul(set);
        for extent in layout.extents(size..end).filter(|extent| extent.object < kept) {
            self.cut_tail(&extent).await?;
        }
        Ok(())
    }

    /// Makes a range zero that is no part of the image any more, if its object is there. Nothing of the parent is in it.
    async fn cut_tail(&self, extent: &crate::format::ObjectExtent) -> Result<()> {
        if !self.hides_parent(extent.object) {
            return self.change(extent, Change::Zero).await;
        }
        if self.map_state(extent.object) == Some(ObjectState::ExistsClean) {
            if self.ends_before(extent).await? {
                return Ok(());
            }
            self.set_state(extent.object, ObjectState::Exists).await?;
        }
        let op = crate::store::Op::zero(extent.offset, extent.length);
        self.write_object(&self.data_object(extent.object), vec![op]).await
    }
}
