//! Looking after an image: its map of objects, zeroes that take up space.

use super::{Image, method, tell};
use crate::error::Result;
use crate::format::{Features, ImageFlags, ObjectExtent, ObjectMap, ObjectState, names};
use crate::store::{NOSNAP, ObjectStore, Op};
use blockyard_rados::encoding::encoded;
use rustix::io::Errno;

/// What is said of a map that is wrong.
const INVALID: ImageFlags = ImageFlags::OBJECT_MAP_INVALID.union(ImageFlags::FAST_DIFF_INVALID);

impl<S: ObjectStore> Image<S> {
    /// Compares the map of objects of the image, or of the snapshot that it is opened at, with what is there: the number of
    /// the first object that it does not know of.
    ///
    /// # Errors
    /// EINVAL if the image has none; those of the store.
    pub async fn check_map(&self, mut progress: impl FnMut(u64, u64)) -> Result<MapState> {
        if !self.header.features.contains(Features::OBJECT_MAP) {
            return Err(Errno::INVAL.into());
        }
        let objects = self.layout().objects(self.size());
        let Some(mut map) = self.map_of(objects).await? else { return Ok(MapState::Invalid) };
        let says_gone =
            |map: &ObjectMap, object| map.state(object) == Some(ObjectState::Nonexistent);
        for object in 0..objects {
            progress(object, objects);
            if !says_gone(&map, object) || self.object_size(object).await?.is_none() {
                continue;
            }
            // One who writes it notes an object before he makes it, and may have done both since the map was read; or it is
            // removed at this moment, and noted as gone after that.
            let Some(newer) = self.map_of(objects).await? else { return Ok(MapState::Invalid) };
            map = newer;
            if says_gone(&map, object) && self.object_size(object).await?.is_some() {
                return Ok(MapState::Misses(object));
            }
        }
        Ok(MapState::Right)
    }

    /// The map as it is stored, if it is right and knows of so many objects.
    async fn map_of(&self, objects: u64) -> Result<Option<ObjectMap>> {
        Ok(self.stored_map(self.snap).await?.filter(|map| map.objects() >= objects))
    }

    /// Makes the maps of the image and of all its snapshots anew.
    ///
    /// # Errors
    /// EINVAL if the image has none; EROFS if it is not owned; those of the store.
    pub async fn rebuild_map(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        self.begin().await?;
        if !self.header.features.contains(Features::OBJECT_MAP) {
            return Err(Errno::INVAL.into());
        }
        let ids: Vec<u64> = self.header.snapshots.iter().map(|snapshot| snapshot.id).collect();
        for id in ids.into_iter().chain([NOSNAP]) {
            let view = self.at(id).await?;
            let objects = view.layout().objects(view.size());
            let mut map = ObjectMap::new(objects)?;
            for object in 0..objects {
                progress(object, objects);
                if view.object_size(object).await?.is_some() {
                    // Nothing is known of when it changed.
                    map.set(object, ObjectState::Exists);
                }
            }
            let name = names::object_map(&self.id, Some(id).filter(|id| *id != NOSNAP));
            let save = Op::write_full(encoded(&map));
            tell(&self.store, &name, vec![save]).await?;
            let clear = method("set_flags", |w| {
                w.u64(0);
                w.u64(INVALID.bits());
                w.u64(id);
            });
            tell(&self.store, &self.header_object(), vec![clear]).await?;
        }
        self.own().await
    }

    /// The image as it is in a snapshot, or as it is.
    async fn at(&self, snapshot: u64) -> Result<Self> {
        Self::open_id(&self.store, self.id.clone(), snapshot, 0).await
    }

    /// Gives back the space of what is zeroes: ranges of at least `least` bytes, which divide an object. How many bytes those
    /// are.
    ///
    /// # Errors
    /// EROFS if it is not owned; EINVAL for a size that does not divide an object; those of the store.
    pub async fn sparsify(
        &mut self,
        least: u64,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<u64> {
        self.begin().await?;
        let bytes = self.layout().object_bytes();
        if least == 0 || !bytes.is_multiple_of(least) {
            return Err(Errno::INVAL.into());
        }
        let (mut freed, size, layout) = (0, self.size(), self.layout());
        for extent in layout.extents(0..size) {
            progress(extent.image_offset, size);
            // What a clone has of its parent is not in it; what hides the parent has to stay.
            if self.hides_parent(extent.object) || self.object_size(extent.object).await?.is_none()
            {
                continue;
            }
            freed += self.sparsify_extent(&extent, least).await?;
        }
        Ok(freed)
    }

    async fn sparsify_extent(&self, extent: &ObjectExtent, least: u64) -> Result<u64> {
        let data = self.read_extent(extent).await?;
        let step = usize::try_from(least).unwrap_or(usize::MAX);
        let (mut run, mut freed) = (None, 0);
        let mut zero = Vec::new();
        for (part, at) in data.chunks(step).zip((0..).step_by(step)) {
            if part.iter().any(|byte| *byte != 0) {
                zero.extend(run.take().map(|start: u64| start..at));
            } else {
                run.get_or_insert(at);
            }
        }
        // What is missing at the end is zeroes, too.
        zero.extend(run.map(|start| start..extent.length));
        for range in zero {
            freed += range.end.min(data.len() as u64).saturating_sub(range.start);
            let part = ObjectExtent {
                offset: extent.offset + range.start,
                length: range.end - range.start,
                image_offset: extent.image_offset + range.start,
                ..*extent
            };
            self.zero_extent(&part).await?;
        }
        Ok(freed)
    }
}

/// What there is to say of a map of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapState {
    /// It knows all objects that are there.
    Right,
    /// It is not there, damaged, of a wrong size, or noted as invalid.
    Invalid,
    /// It does not know of an object that is there.
    Misses(u64),
}
