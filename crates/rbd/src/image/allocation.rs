//! What there is of an image, and what is a hole.

use super::Image;
use crate::error::Result;
use crate::format::{ObjectExtent, ObjectState};
use crate::store::{Answer, ObjectStore, Query, Request};
use std::ops::Range;

/// Bytes in the order of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// So many.
    pub length: u64,
    /// There may be something; else they are zeroes.
    pub is_data: bool,
}

/// A list whose neighbours differ.
struct Runs(Vec<Allocated>);

impl Runs {
    fn push(&mut self, length: u64, is_data: bool) {
        match self.0.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.is_data == is_data => last.length += length,
            _ => self.0.push(Allocated { length, is_data }),
        }
    }
}

impl<S: ObjectStore> Image<S> {
    /// What there is of a range of the image, from its start on: as far as at most so many objects tell that had to be asked.
    /// It is true as long as nobody writes.
    ///
    /// # Errors
    /// EINVAL if the range is not in the image; those of the store.
    pub async fn allocation(&self, range: Range<u64>, max_asked: usize) -> Result<Vec<Allocated>> {
        let range = self.check_range(range.start, range.end.saturating_sub(range.start))?;
        let (mut runs, mut asked) = (Runs(Vec::new()), 0);
        for extent in self.header.layout.extents(range) {
            let is_known_hole = self.map_state(extent.object) == Some(ObjectState::Nonexistent);
            if !is_known_hole || self.hides_parent(extent.object) {
                if asked >= max_asked.max(1) {
                    break;
                }
                asked += 1;
            }
            let size = if is_known_hole { None } else { self.object_size(extent.object).await? };
            match size {
                Some(size) => {
                    let data = size.saturating_sub(extent.offset).min(extent.length);
                    runs.push(data, true);
                    runs.push(extent.length - data, false);
                }
                None => self.of_parents(&extent, &mut runs).await?,
            }
        }
        Ok(runs.0)
    }

    /// Bytes that the store has of an object; `None` if it is not there.
    pub(super) async fn object_size(&self, number: u64) -> Result<Option<u64>> {
        let request = Request::Read { snap: self.snap, ops: vec![Query::Stat.into()] };
        match self.data.operate(&self.data_object(number), request).await {
            Err(error) if error.is_not_found() => Ok(None),
            answers => match answers?.into_iter().next() {
                Some(Answer::Stat(stat)) => Ok(Some(stat.size)),
                _ => Ok(None),
            },
        }
    }

    /// What the parent has of an object that is not there.
    async fn of_parents(&self, extent: &ObjectExtent, runs: &mut Runs) -> Result<()> {
        let (start, end) = (extent.image_offset, extent.image_offset + extent.length);
        let mut at = start;
        if let Some(parent) = &self.parent {
            let shown = end.min(self.overlap()).min(parent.size());
            while at < shown {
                // All of it, however many objects of the parent that is: one of ours is not larger than 32 MiB.
                let found = Box::pin(parent.allocation(at..shown, usize::MAX)).await?;
                for run in found {
                    runs.push(run.length, run.is_data);
                    at += run.length;
                }
            }
        }
        runs.push(end - at, false);
        Ok(())
    }
}
