//! What waits to be sent to a client: headers of ours, and memory of the disk's.

use super::Work;

/// More room for headers, in bytes, or for parts than an idle connection keeps.
const KEPT_HEADS: usize = 8 << 10;
const KEPT_PARTS: usize = 512;

/// A part of what is to be sent.
#[derive(Debug)]
pub enum Piece<'a, W> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// A segment of what a disk has answered, without its first bytes.
    Data {
        /// Whose it is.
        work: &'a W,
        /// Its place in there.
        segment: usize,
        /// Bytes of it that were sent before.
        skip: usize,
    },
}

/// A batch of replies, in the order in which they go over the wire.
#[derive(Debug)]
pub(super) struct Output<W> {
    heads: Vec<u8>,
    parts: Vec<Part>,
    /// Whose memory it is.
    works: Vec<W>,
    /// The first part that is not all sent.
    next: usize,
    /// Bytes of it that are.
    sent: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// A range of `heads`.
    Head { start: usize, end: usize },
    /// A segment of one of `works`.
    Data { work: usize, segment: usize },
}

impl<W> Default for Output<W> {
    fn default() -> Self {
        Self { heads: Vec::new(), parts: Vec::new(), works: Vec::new(), next: 0, sent: 0 }
    }
}

impl<W: Work> Output<W> {
    /// Whether all was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes of headers that are kept for now.
    pub(super) fn heads_len(&self) -> usize {
        self.heads.len()
    }

    /// Adds bytes.
    pub(super) fn head(&mut self, bytes: &[u8]) {
        self.head_with(|heads| heads.extend_from_slice(bytes));
    }

    /// Adds the bytes that `append` appends.
    pub(super) fn head_with(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        let start = self.heads.len();
        append(&mut self.heads);
        let end = self.heads.len();
        match self.parts.last_mut() {
            Some(Part::Head { end: last, .. }) if *last == start => *last = end,
            _ if start == end => {}
            _ => self.parts.push(Part::Head { start, end }),
        }
    }

    /// Adds a segment of the work that [`Output::keep`] takes next.
    pub(super) fn data(&mut self, segment: usize) {
        self.parts.push(Part::Data { work: self.works.len(), segment });
    }

    /// Keeps a work until all was sent.
    pub(super) fn keep(&mut self, work: W) {
        self.works.push(work);
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece<'_, W>> {
        let mut skip = self.sent;
        self.parts[self.next..].iter().map(move |part| {
            let skip = std::mem::take(&mut skip);
            match *part {
                Part::Head { start, end } => Piece::Bytes(&self.heads[start + skip..end]),
                Part::Data { work, segment } => {
                    Piece::Data { work: &self.works[work], segment, skip }
                }
            }
        })
    }

    fn part_len(&self, part: Part) -> usize {
        match part {
            Part::Head { start, end } => end - start,
            Part::Data { work, segment } => self.works[work].segment_len(segment),
        }
    }

    /// `bytes` more were sent. Says whether that was all.
    pub(super) fn advance(&mut self, mut bytes: usize) -> bool {
        while let Some(part) = self.parts.get(self.next) {
            let left = self.part_len(*part) - self.sent;
            if bytes < left {
                self.sent += bytes;
                return false;
            }
            bytes -= left;
            self.next += 1;
            self.sent = 0;
        }
        assert!(bytes == 0, "{bytes} bytes were sent that were not queued");
        self.clear();
        true
    }

    /// Nothing of it is to be sent any more.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.parts.shrink_to(KEPT_PARTS);
        self.heads.clear();
        self.heads.shrink_to(KEPT_HEADS);
        (self.next, self.sent) = (0, 0);
    }

    /// The next of those whose replies were all sent.
    pub(super) fn pop_sent(&mut self) -> Option<W> {
        if self.is_empty() { self.works.pop() } else { None }
    }
}
