//! What changed in an image between two snapshots, or since it was made (ceph: `src/librbd/api/DiffIterate.cc`,
//! `src/librados/snap_set_diff.cc`).

use super::{Image, ask};
use crate::error::{Error, Result};
use crate::format::{Features, ImageFlags, ObjectMap, ObjectState, names};
use crate::store::{Answer, NOSNAP, ObjectStore, Query, Request, Snapshots};
use rustix::io::Errno;
use std::ops::Range;

/// A range of the image that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// From here on.
    pub offset: u64,
    /// So many bytes.
    pub length: u64,
    /// There is something; else it is zeroes.
    pub is_data: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiffOptions {
    /// The number of the snapshot that it starts from; without, all that there is.
    pub from: Option<u64>,
    /// Whole objects, in which something has changed: faster, where the map tells.
    pub whole_object: bool,
    /// What a clone has from its parent counts, too, if all is asked for.
    pub with_parent: bool,
}

/// What changed in an object.
#[derive(Debug, Default, PartialEq, Eq)]
struct ObjectChange {
    ranges: Vec<Range<u64>>,
    /// Its size in the end; `None` if it is not there then.
    size: Option<u64>,
}

/// What changed in an object from a snapshot (0: from the beginning) up to another.
fn object_change(snapshots: &Snapshots, from: u64, to: u64) -> ObjectChange {
    let (mut ranges, mut start_size, mut saw_start) = (Vec::new(), 0, false);
    let mut clones = snapshots.clones.iter().peekable();
    while let Some(clone) = clones.next() {
        // The snapshots that see this: the head is seen by all that are newer than what was written.
        let (first, last) = match clone.id {
            NOSNAP => (snapshots.seq + 1, NOSNAP),
            id => (clone.snapshots.first().copied().unwrap_or(id), id),
        };
        if last < from {
            continue;
        }
        if !std::mem::replace(&mut saw_start, true) {
            if from < first {
                // It was not there.
                add(&mut ranges, 0..clone.size);
            } else {
                start_size = clone.size;
            }
        }
        if to < first {
            // It is not there any more.
            break;
        }
        if to <= last {
            return ObjectChange { ranges, size: Some(clone.size) };
        }
        let size = clone.size.max(clones.peek().map_or(0, |next| next.size));
        let mut at = 0;
        for &(offset, length) in &clone.overlap {
            add(&mut ranges, at..offset.min(size));
            at = at.max(offset.saturating_add(length));
        }
        add(&mut ranges, at..size);
    }
    let mut ranges = Vec::new();
    add(&mut ranges, 0..start_size);
    ObjectChange { ranges, size: None }
}

/// All of an object, as long as it may be.
fn whole() -> Vec<Range<u64>> {
    std::iter::once(0..u64::MAX).collect()
}

/// Adds a range to others.
fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.start >= range.end {
        return;
    }
    ranges.push(range);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}

/// A diff, told piece by piece.
pub struct Diff<'a, S: ObjectStore> {
    image: &'a Image<S>,
    options: DiffOptions,
    maps: Option<Maps>,
    at: u64,
}

impl<S: ObjectStore> Diff<'_, S> {
    /// What changed in the next objects, which are the same bytes of the image; `None` at the end of the image. Often nothing
    /// has.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn next(&mut self) -> Result<Option<Vec<Changed>>> {
        let (image, start) = (self.image, self.at);
        if start >= image.size() {
            return Ok(None);
        }
        let (_, count) = image.layout().stripes();
        let set_bytes = image.layout().object_bytes().saturating_mul(count);
        let end = image.size().min(start.saturating_add(set_bytes));
        let first = start / set_bytes * count;
        let objects = image.layout().objects(end).min(first.saturating_add(count));
        let mut found = Vec::new();
        for object in first..objects {
            image
                .diff_object(object, start..end, &self.options, self.maps.as_ref(), &mut found)
                .await?;
        }
        self.at = end;
        found.sort_unstable_by_key(|changed| changed.offset);
        Ok(Some(joined(found)))
    }

    /// Where the next objects begin.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.at
    }
}

/// What maps of objects tell of a diff.
struct Maps(Vec<ObjectMap>);

impl Maps {
    /// Whether an object may have changed, and whether it is there in the end.
    fn state(&self, object: u64, from_start: bool) -> (bool, bool) {
        let is_there =
            |map: &ObjectMap| !matches!(map.state(object), None | Some(ObjectState::Nonexistent));
        let end = self.0.last().is_some_and(is_there);
        if from_start {
            return (end, end);
        }
        let changed = self.0.windows(2).any(|pair| match pair {
            [before, after] => {
                let state = after.state(object);
                is_there(before) != is_there(after)
                    || is_there(after) && state != Some(ObjectState::ExistsClean)
            }
            _ => true,
        });
        (changed, end)
    }
}

impl<S: ObjectStore> Image<S> {
    /// What changed, in the order of the image.
    ///
    /// # Errors
    /// ENOENT if there is no such snapshot, EINVAL if it is newer than this; those of the store.
    pub async fn diff(&self, options: DiffOptions) -> Result<Diff<'_, S>> {
        self.check_start(options.from)?;
        let maps = self.maps_of_diff(options.from).await?;
        Ok(Diff { image: self, options, maps, at: 0 })
    }

    fn check_start(&self, from: Option<u64>) -> Result<()> {
        let Some(from) = from else { return Ok(()) };
        if !self.header.snapshots.iter().any(|snapshot| snapshot.id == from) {
            return Err(Errno::NOENT.into());
        }
        if from > self.snap { Err(Errno::INVAL.into()) } else { Ok(()) }
    }

    async fn diff_object(
        &self,
        object: u64,
        range: Range<u64>,
        options: &DiffOptions,
        maps: Option<&Maps>,
        found: &mut Vec<Changed>,
    ) -> Result<()> {
        let from_start = options.from.is_none();
        let known = maps.map(|maps| maps.state(object, from_start));
        let change = match known {
            Some((false, false)) if from_start => ObjectChange::default(),
            Some((false, _)) => return Ok(()),
            Some((true, is_there)) if options.whole_object => {
                let size = is_there.then_some(u64::MAX);
                ObjectChange { ranges: whole(), size }
            }
            _ => self.ask_for_change(object, options).await?,
        };
        if from_start && change.size.is_none() && options.with_parent {
            return self.parts_of_parent(object, range, found).await;
        }
        let bytes = self.layout().object_bytes();
        for part in &change.ranges {
            let data_end = change.size.unwrap_or_default().min(part.end);
            for (part, is_data) in
                [(part.start..data_end, true), (data_end.max(part.start)..part.end, false)]
            {
                self.in_image(object, part.start..part.end.min(bytes), is_data, &range, found);
            }
        }
        Ok(())
    }

    /// Asks the store for an object's clones.
    async fn ask_for_change(&self, object: u64, options: &DiffOptions) -> Result<ObjectChange> {
        let request = Request::read(vec![Query::Snapshots.into()]);
        let answers = self.data.operate(&self.data_object(object), request).await;
        let snapshots = match answers {
            Err(error) if error.is_not_found() => return Ok(ObjectChange::default()),
            answers => match answers?.into_iter().next() {
                Some(Answer::Snapshots(snapshots)) => snapshots,
                _ => return Err(Error::damaged("the store does not tell of clones")),
            },
        };
        let mut change = object_change(&snapshots, options.from.unwrap_or_default(), self.snap);
        if options.whole_object && !change.ranges.is_empty() {
            change.ranges = whole();
            change.size = change.size.map(|_| u64::MAX);
        }
        Ok(change)
    }

    /// A range of an object, as ranges of the image, as far as they are in `range`.
    fn in_image(
        &self,
        object: u64,
        part: Range<u64>,
        is_data: bool,
        range: &Range<u64>,
        found: &mut Vec<Changed>,
    ) {
        let (unit, count) = self.layout().stripes();
        let piece = if count == 1 { self.layout().object_bytes() } else { unit };
        let mut at = part.start;
        while at < part.end {
            let end = part.end.min((at / piece + 1) * piece);
            let Some(offset) = self.layout().image_offset(object, at) else { return };
            let stop = offset.saturating_add(end - at).min(range.end);
            if offset < stop {
                found.push(Changed { offset, length: stop - offset, is_data });
            }
            at = end;
        }
    }

    /// What the parent has of an object that is not there.
    async fn parts_of_parent(
        &self,
        object: u64,
        range: Range<u64>,
        found: &mut Vec<Changed>,
    ) -> Result<()> {
        if !self.hides_parent(object) {
            return Ok(());
        }
        let mut parts = Vec::new();
        let whole = 0..self.layout().object_bytes();
        let end = range.end.min(self.overlap());
        self.in_image(object, whole, true, &(range.start..end), &mut parts);
        for part in parts {
            let mut at = part.offset;
            for run in self.allocation(at..at + part.length, usize::MAX).await? {
                if run.is_data {
                    found.push(Changed { offset: at, length: run.length, is_data: true });
                }
                at += run.length;
            }
        }
        Ok(())
    }

    /// The maps from a snapshot up to what is looked at, if all of them are right.
    async fn maps_of_diff(&self, from: Option<u64>) -> Result<Option<Maps>> {
        let needed = match from {
            None => Features::OBJECT_MAP,
            Some(_) => Features::FAST_DIFF,
        };
        if !self.header.features.contains(needed) {
            return Ok(None);
        }
        let (snap, newer) = (self.snap, from.unwrap_or(NOSNAP));
        let snapshots = self.header.snapshots.iter();
        let between = snapshots.filter(|other| other.id >= newer && other.id < snap);
        let mut maps = Vec::new();
        for id in between.map(|snapshot| snapshot.id).chain([snap]) {
            match self.stored_map(id).await? {
                Some(map) => maps.push(map),
                None => return Ok(None),
            }
        }
        Ok(Some(Maps(maps)))
    }

    /// The map of the image or a snapshot as it is stored; `None` if it is not right.
    pub(super) async fn stored_map(&self, snapshot: u64) -> Result<Option<ObjectMap>> {
        let object = names::object_map(&self.id, Some(snapshot).filter(|id| *id != NOSNAP));
        let size = |w: &mut blockyard_rados::encoding::Writer| w.u64(snapshot);
        let flags = ask(&self.store, &self.header_object(), "get_flags", size).await?;
        let flags = blockyard_rados::encoding::Reader::new("reading flags", &flags).u64()?;
        if !ImageFlags::from_bits_retain(flags).is_empty() {
            return Ok(None);
        }
        match ask(&self.store, &object, "object_map_load", |_| {}).await {
            Ok(bytes) => Ok(ObjectMap::parse(&bytes).ok()),
            Err(error) if [Some(Errno::NOENT), Some(Errno::INVAL)].contains(&error.errno()) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes of the image that are stored for it, changed since a snapshot or all of them: whole objects unless `exact`.
    ///
    /// # Errors
    /// As [`diff`](Self::diff).
    pub async fn used_bytes(&self, from: Option<u64>, exact: bool) -> Result<u64> {
        let options = DiffOptions { from, whole_object: !exact, with_parent: false };
        let (mut used, mut diff) = (0, self.diff(options).await?);
        while let Some(found) = diff.next().await? {
            let data = found.iter().filter(|changed| changed.is_data);
            used += data.map(|changed| changed.length).sum::<u64>();
        }
        Ok(used)
    }
}

/// Neighbours of one kind are one.
fn joined(found: Vec<Changed>) -> Vec<Changed> {
    let mut joined: Vec<Changed> = Vec::with_capacity(found.len());
    for changed in found {
        match joined.last_mut() {
            Some(last)
                if last.is_data == changed.is_data
                    && last.offset + last.length == changed.offset =>
            {
                last.length += changed.length;
            }
            _ => joined.push(changed),
        }
    }
    joined
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "some changes are of one range")]
mod tests {
    use super::*;
    use crate::store::ObjectClone;

    fn clone(id: u64, snapshots: &[u64], size: u64, overlap: &[(u64, u64)]) -> ObjectClone {
        ObjectClone { id, snapshots: snapshots.to_vec(), size, overlap: overlap.to_vec() }
    }

    fn change(ranges: &[Range<u64>], size: Option<u64>) -> ObjectChange {
        ObjectChange { ranges: ranges.to_vec(), size }
    }

    /// The cases of ceph's `snap_set_diff.cc`: written before 4, between 4 and 8, and after 8.
    #[test]
    fn clones_tell_what_changed() {
        let head = clone(NOSNAP, &[], 100, &[]);
        let clones = vec![
            clone(4, &[3, 4], 100, &[(0, 50)]),
            clone(8, &[6, 8], 100, &[(0, 20), (30, 70)]),
            head,
        ];
        let all = Snapshots { clones, seq: 8 };
        assert_eq!(object_change(&all, 0, NOSNAP), change(&[0..100], Some(100)));
        assert_eq!(object_change(&all, 4, 8), change(&[50..100], Some(100)));
        assert_eq!(object_change(&all, 3, 4), change(&[], Some(100)));
        assert_eq!(object_change(&all, 8, NOSNAP), change(&[20..30], Some(100)));
        assert_eq!(object_change(&all, 4, NOSNAP), change(&[20..30, 50..100], Some(100)));
        // Not there before 3, nor in the beginning.
        assert_eq!(object_change(&all, 2, 4), change(&[0..100], Some(100)));
        assert_eq!(object_change(&all, 1, 2), change(&[], None));
    }

    #[test]
    fn what_was_removed_is_zeroes() {
        let gone = Snapshots { clones: vec![clone(4, &[4], 60, &[])], seq: 4 };
        assert_eq!(object_change(&gone, 4, NOSNAP), change(&[0..60], None));
        assert_eq!(object_change(&gone, 0, NOSNAP), change(&[], None));
        assert_eq!(object_change(&gone, 0, 4), change(&[0..60], Some(60)));
    }
}
