//! The block map of a disk, run by run.

use std::collections::VecDeque;

use blockyard_blkmq::{Bdev, Bio, Features, Op, Status};

/// Bytes of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it begins, in bytes.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Nothing is allocated for it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

impl Run {
    /// The byte after its last one.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }

    const fn is_like(&self, other: &Self) -> bool {
        self.hole == other.hole && self.zero == other.zero
    }
}

/// The runs of a disk, from its start on, each as long as can be. A disk without a block map is one run of data.
///
/// It waits for the disk: never on a queue thread.
pub struct Extents<'a> {
    bdev: &'a Bdev,
    size: u64,
    /// Where the next question begins.
    at: u64,
    answers: VecDeque<Run>,
    /// A run that may go on.
    last: Option<Run>,
}

impl<'a> Extents<'a> {
    /// The runs of a disk as large as it is now.
    #[must_use]
    pub fn of(bdev: &'a Bdev) -> Self {
        let size = bdev.size_bytes();
        Self { bdev, size, at: 0, answers: VecDeque::new(), last: None }
    }

    fn next_answer(&mut self) -> Result<Option<Run>, Status> {
        if let Some(run) = self.answers.pop_front() {
            return Ok(Some(run));
        }
        if self.at >= self.size {
            return Ok(None);
        }
        let limits = self.bdev.limits();
        if !limits.features.contains(Features::BLOCK_STATUS) {
            let rest = self.size - self.at;
            let run = Run { start: self.at, len: rest, hole: false, zero: false };
            self.at = self.size;
            return Ok(Some(run));
        }
        let block = u64::from(limits.logical_block_size.bytes());
        // What a server tells may end inside a block; a question begins with one.
        let asked = self.at / block * block;
        let question = Bio::at_bytes(Op::BlockStatus, asked, self.size - asked);
        let answer = self.bdev.submit_and_wait(0, question);
        if !answer.status().is_ok() {
            return Err(answer.status());
        }
        let mut end = asked;
        for extent in &answer.extents {
            end = end.saturating_add(extent.len).min(self.size);
            self.push(end, extent.hole, extent.zero);
        }
        if end <= asked {
            // An answer for nothing would be asked for again and again.
            return Err(Status::Io);
        }
        // One that never gets to the end of a block would, too: the rest of it may be anything.
        self.push((asked + block).min(self.size), false, false);
        self.next_answer()
    }

    /// It is like that up to there, from what is known on.
    fn push(&mut self, end: u64, hole: bool, zero: bool) {
        if end > self.at {
            self.answers.push_back(Run { start: self.at, len: end - self.at, hole, zero });
            self.at = end;
        }
    }

    fn advance(&mut self) -> Result<Option<Run>, Status> {
        while let Some(run) = self.next_answer()? {
            match &mut self.last {
                Some(last) if last.is_like(&run) => last.len += run.len,
                last => {
                    if let Some(whole) = last.replace(run) {
                        return Ok(Some(whole));
                    }
                }
            }
        }
        Ok(self.last.take())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Run, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// Where a disk reads as zeroes, asked for with rising offsets.
pub(super) struct Zeroes<'a> {
    extents: Extents<'a>,
    run: Option<Run>,
}

impl<'a> Zeroes<'a> {
    pub(super) fn of(bdev: &'a Bdev) -> Self {
        Self { extents: Extents::of(bdev), run: None }
    }

    /// The kind of what begins at `start`, and where that kind ends; `end` at most.
    fn at(&mut self, start: u64, end: u64) -> Result<(bool, u64), Status> {
        while self.run.is_none_or(|run| run.end() <= start) {
            match self.extents.next().transpose()? {
                Some(run) => self.run = Some(run),
                // Past the end of what is known nothing is promised.
                None => return Ok((false, end)),
            }
        }
        Ok(self.run.map_or((false, end), |run| (run.zero, run.end().min(end))))
    }

    /// The same in whole blocks, from one border to another: a block that is zeroes in part counts as data.
    pub(super) fn blocks_at(
        &mut self,
        start: u64,
        end: u64,
        block: u64,
    ) -> Result<(bool, u64), Status> {
        let (zero, until) = self.at(start, end)?;
        let whole = if until == end { end } else { until / block * block };
        if zero && whole > start {
            return Ok((true, whole));
        }
        Ok((false, until.next_multiple_of(block).min(end)))
    }
}
