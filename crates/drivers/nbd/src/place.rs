//! Where the content of a read goes.

use blockyard_buf::{Pool, Segment, Segments};

use crate::job::{Job, has_all_memory};

/// Memory for all of a read: the request's own, or one that is delivered with its end. There is none until the
/// first content comes, so that a whole payload or hole can be handed on as it is.
#[derive(Default)]
pub(crate) struct Place {
    memory: Segments,
    /// Whether it is to be delivered.
    ours: bool,
    filling: Filling,
}

impl Place {
    /// Hands `segments` on as all of the content, if the request leaves that to us.
    pub(crate) fn take_whole<J: Job>(
        &mut self,
        job: &J,
        segments: impl FnOnce() -> Segments,
    ) -> bool {
        if !self.memory.is_empty() || has_all_memory(&job.memory(), &job.ask()) {
            return false;
        }
        self.memory = segments();
        self.ours = true;
        true
    }

    /// The next `len` bytes that are filled in go `at` bytes behind the start of the request.
    pub(crate) fn expect<J: Job>(&mut self, job: &J, pool: &Pool, at: u64, len: u64) {
        self.filling = self.part(job, pool, at, len).into();
    }

    pub(crate) fn filling(&mut self) -> &mut Filling {
        &mut self.filling
    }

    pub(crate) fn fill_zero<J: Job>(&mut self, job: &J, pool: &Pool, at: u64, len: u64) {
        self.part(job, pool, at, len).iter().for_each(Segment::fill_zero);
    }

    /// Memory for `len` bytes from `at` on, both relative to the start of the request.
    fn part<J: Job>(&mut self, job: &J, pool: &Pool, at: u64, len: u64) -> Segments {
        if self.memory.is_empty() {
            let ask = job.ask();
            self.memory = job.memory();
            self.ours = !has_all_memory(&self.memory, &ask);
            if self.ours {
                // Bounded by the largest request that the limits of the disk let through.
                let len = usize::try_from(ask.len).unwrap_or(usize::MAX);
                self.memory = [pool.get(len).into_segment_mut(len)].into_iter().collect();
            }
        }
        slice(&self.memory, at, len)
    }

    /// The read has succeeded: its content is all there.
    pub(crate) fn deliver<J: Job>(self, job: &mut J) {
        if self.ours {
            self.memory.into_iter().for_each(|segment| job.deliver(segment));
        }
    }
}

/// Memory that a payload is being received into: as much of it as is still to come.
#[derive(Default)]
pub(crate) struct Filling(Segments);

impl From<Segments> for Filling {
    fn from(places: Segments) -> Self {
        Self(places)
    }
}

impl Filling {
    pub(crate) fn places(&self) -> &[Segment] {
        &self.0
    }

    /// Copies bytes in.
    pub(crate) fn fill(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(place) = self.0.first() else {
                unreachable!("places are as long as the payload")
            };
            let here = place.len().min(bytes.len());
            place.copy_from(&bytes[..here]);
            bytes = &bytes[here..];
            self.advance(here);
        }
    }

    /// So many bytes were received into it.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        let whole = self.0.iter().take_while(|place| {
            let covered = place.len() <= bytes;
            bytes -= if covered { place.len() } else { 0 };
            covered
        });
        let whole = whole.count();
        self.0.drain(..whole);
        if let Some(place) = self.0.first_mut().filter(|_| bytes > 0) {
            *place = place.slice(bytes, place.len() - bytes);
        }
    }
}

/// `len` bytes of a list from `at` on.
fn slice(memory: &Segments, at: u64, len: u64) -> Segments {
    let (mut skip, mut left) = (at, len);
    let mut part = Segments::new();
    for segment in memory {
        let size = segment.len() as u64;
        if skip >= size {
            skip -= size;
            continue;
        }
        let here = (size - skip).min(left);
        if here == 0 {
            break;
        }
        // Both are within a segment.
        let (from, count) = (usize::try_from(skip), usize::try_from(here));
        part.push(segment.slice(from.unwrap_or(usize::MAX), count.unwrap_or(usize::MAX)));
        left -= here;
        skip = 0;
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_list_is_the_same_memory() {
        let all: Segments =
            ["abc", "defg", "h"].map(|text| Segment::from_vec(text.into())).into_iter().collect();
        for at in 0..8_u64 {
            for len in 0..=8 - at {
                let part = slice(&all, at, len);
                let bytes: Vec<u8> = part.iter().flat_map(Segment::to_vec).collect();
                let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
                assert_eq!(bytes, b"abcdefgh"[range]);
            }
        }
    }
}
