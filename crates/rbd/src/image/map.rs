//! The map of an image's objects: what it says is not there, is not there.

use super::header::Header;
use super::{Image, ask, method, tell};
use crate::error::Result;
use crate::format::{Features, ImageFlags, ObjectMap, ObjectState, names};
use crate::store::{NOSNAP, ObjectName, ObjectStore, Op};
use rustix::io::Errno;

/// What an image or a snapshot says whose map is wrong.
const INVALID: ImageFlags = ImageFlags::OBJECT_MAP_INVALID.union(ImageFlags::FAST_DIFF_INVALID);

impl<S: ObjectStore> Image<S> {
    /// Reads the map, as the image's owner. One that is damaged, or of a wrong size, is noted as invalid, and not used.
    pub(super) async fn load_map(&mut self) -> Result<()> {
        *self.map.lock() = None;
        let is_used = self.header.features.contains(Features::OBJECT_MAP)
            && !self.header.flags.contains(ImageFlags::OBJECT_MAP_INVALID);
        if !is_used {
            return Ok(());
        }
        let object = names::object_map(&self.id, None);
        let map = match ask(&self.store, &object, "object_map_load", |_| {}).await {
            Ok(bytes) => ObjectMap::parse(&bytes).ok(),
            // The class' answers for a map that is not there, or cannot be decoded. Others say nothing of the map.
            Err(error) if [Some(Errno::NOENT), Some(Errno::INVAL)].contains(&error.errno()) => None,
            Err(error) => return Err(error),
        };
        let objects = self.header.layout.objects(self.header.size);
        match map {
            Some(map) if map.objects() >= objects => *self.map.lock() = Some(map),
            _ => {
                self.invalidate_map(NOSNAP).await?;
                self.header.flags |= INVALID;
            }
        }
        Ok(())
    }

    /// Reads the map again, if it is used.
    async fn reload_map(&mut self) -> Result<()> {
        if !self.has_map() {
            return Ok(());
        }
        let loaded = self.load_map().await;
        self.kept(NOSNAP, loaded).await
    }

    /// What was done to a map. If it has failed, the map is noted as invalid, and what it was done for goes on: a map can be
    /// built again.
    pub(super) async fn kept(&self, snapshot: u64, done: Result<()>) -> Result<()> {
        if done.is_err() { self.invalidate_map(snapshot).await } else { Ok(()) }
    }

    /// Notes that a map is not to be believed, and believes it no more.
    async fn invalidate_map(&self, snapshot: u64) -> Result<()> {
        let set = method("set_flags", |w| {
            w.u64(INVALID.bits());
            w.u64(INVALID.bits());
            w.u64(snapshot);
        });
        tell(&self.store, &self.header_object(), vec![set]).await?;
        if snapshot == NOSNAP {
            *self.map.lock() = None;
        }
        Ok(())
    }

    pub(super) fn has_map(&self) -> bool {
        self.map.lock().is_some()
    }

    /// What the map says of an object; `None` if there is none that is right.
    pub(super) fn map_state(&self, object: u64) -> Option<ObjectState> {
        self.map.lock().as_ref().and_then(|map| map.state(object))
    }

    /// Notes an object's state, in the store first.
    pub(super) async fn set_state(&self, object: u64, state: ObjectState) -> Result<()> {
        if self.map_state(object).is_none_or(|known| known == state) {
            return Ok(());
        }
        let updated = self.update_map(None, object, state, None).await;
        self.kept(NOSNAP, updated).await?;
        if let Some(map) = self.map.lock().as_mut() {
            map.set(object, state);
        }
        Ok(())
    }

    /// Notes that an object is there, below all snapshots, of which nothing was known. A write that goes on beside this may
    /// note more, which stays.
    pub(super) async fn set_copied(&self, object: u64) -> Result<()> {
        let known = self.map_state(object);
        let Some(known @ (ObjectState::Nonexistent | ObjectState::Pending)) = known else {
            return Ok(());
        };
        let has_snapshots = !self.header.context.snaps.is_empty();
        let is_clean = has_snapshots && self.header.features.contains(Features::FAST_DIFF);
        let state = if is_clean { ObjectState::ExistsClean } else { ObjectState::Exists };
        let updated = self.update_map(None, object, state, Some(known)).await;
        self.kept(NOSNAP, updated).await?;
        if let Some(map) = self.map.lock().as_mut()
            && map.state(object) == Some(known)
        {
            map.set(object, state);
        }
        Ok(())
    }

    /// Notes an object's state in the map of the image or a snapshot; with `only`, if the state is that before.
    pub(super) async fn update_map(
        &self,
        snapshot: Option<u64>,
        object: u64,
        state: ObjectState,
        only: Option<ObjectState>,
    ) -> Result<()> {
        let update = method("object_map_update", |w| {
            w.u64(object);
            w.u64(object + 1);
            w.u8(state as u8);
            w.bool(only.is_some());
            if let Some(only) = only {
                w.u8(only as u8);
            }
        });
        tell(&self.store, &names::object_map(&self.id, snapshot), vec![update]).await
    }

    /// Cuts or grows the map.
    pub(super) async fn resize_map(&mut self, size: u64) -> Result<()> {
        if !self.has_map() {
            return Ok(());
        }
        let objects = self.header.layout.objects(size);
        let resize = method("object_map_resize", |w| {
            w.u64(objects);
            w.u8(ObjectState::Nonexistent as u8);
        });
        let resized = tell(&self.store, &names::object_map(&self.id, None), vec![resize]).await;
        if let Err(error) = &resized
            && error.errno().is_some_and(|errno| [Errno::NOSPC, Errno::DQUOT].contains(&errno))
        {
            // The pool is full: then the image does not grow, and its map is right as it is.
            return resized;
        }
        self.kept(NOSNAP, resized).await?;
        self.map.lock().as_mut().map_or(Ok(()), |map| map.resize(objects, ObjectState::Nonexistent))
    }

    /// Keeps the map for a snapshot; from then on what changes is told from what does not.
    pub(super) async fn map_for_snapshot(&mut self, snapshot: u64) -> Result<()> {
        let Some(map) = self.map.lock().clone() else { return Ok(()) };
        let save = Op::write_full(blockyard_rados::encoding::encoded(&map));
        let of_snapshot = names::object_map(&self.id, Some(snapshot));
        self.kept(snapshot, tell(&self.store, &of_snapshot, vec![save]).await).await?;
        if self.header.features.contains(Features::FAST_DIFF) {
            let clean = method("object_map_snap_add", |_| {});
            let cleaned = tell(&self.store, &names::object_map(&self.id, None), vec![clean]).await;
            self.kept(NOSNAP, cleaned).await?;
        }
        self.reload_map().await
    }

    /// Takes the map of a snapshot away; what had changed in it has changed for the next one. This goes on beside reads and
    /// writes.
    pub(super) async fn map_without_snapshot(&self, header: &Header, snapshot: u64) -> Result<()> {
        if !header.features.contains(Features::OBJECT_MAP) {
            return Ok(());
        }
        let of_snapshot = names::object_map(&self.id, Some(snapshot));
        if header.features.contains(Features::FAST_DIFF) {
            let newer = header.snapshots.iter().map(|other| other.id).find(|id| *id > snapshot);
            let merged = self.merge_map(&of_snapshot, newer).await;
            self.kept(newer.unwrap_or(NOSNAP), merged).await?;
        }
        super::may_be_gone(tell(&self.store, &of_snapshot, vec![Op::remove()]).await)
    }

    /// Has the map of the next newer snapshot, or of the image, say what changed in an older one.
    async fn merge_map(&self, older: &ObjectName, newer: Option<u64>) -> Result<()> {
        let map = ask(&self.store, older, "object_map_load", |_| {}).await?;
        let changed = Op::exec("rbd", "object_map_snap_remove", map.clone());
        tell(&self.store, &names::object_map(&self.id, newer), vec![changed]).await?;
        // The store's first: what is known here to have changed is not noted there again.
        if newer.is_none()
            && let Some(known) = self.map.lock().as_mut()
        {
            known.merge(&ObjectMap::parse(&map)?);
        }
        Ok(())
    }

    /// Makes the map say what a snapshot's says, or that and what it says now.
    pub(super) async fn map_from_snapshot(&mut self, snapshot: u64, and_now: bool) -> Result<()> {
        let Some(now) = self.map.lock().clone() else { return Ok(()) };
        let of_snapshot = names::object_map(&self.id, Some(snapshot));
        let loaded = ask(&self.store, &of_snapshot, "object_map_load", |_| {}).await;
        let Ok(mut map) = loaded.and_then(|map| ObjectMap::parse(&map)) else {
            return self.invalidate_map(NOSNAP).await;
        };
        map.resize(now.objects(), ObjectState::Nonexistent)?;
        for object in 0..map.objects() {
            // What was taken back has changed.
            let was_there = map.state(object) != Some(ObjectState::Nonexistent);
            let is_there = now.state(object) != Some(ObjectState::Nonexistent);
            if was_there || and_now && is_there {
                map.set(object, ObjectState::Exists);
            }
        }
        let save = Op::write_full(blockyard_rados::encoding::encoded(&map));
        let saved = tell(&self.store, &names::object_map(&self.id, None), vec![save]).await;
        self.kept(NOSNAP, saved).await?;
        self.reload_map().await
    }
}
