//! The work of a copy: what the lanes do with a piece, and which pieces there are.

use std::ops::Range;
use std::sync::Arc;

use blockyard_blkmq::{Bdev, Bio, Disk, Op, Status};
use blockyard_buf::{Segment, Segments, total_len};
use parking_lot::Mutex;

use super::direct::{Direct, Moved};
use super::zeroes::by_zeroes;
use crate::error::{Error, Result};
use crate::tools::cut::{cut, parts, pieces};
use crate::tools::extents::{Extents, Zeroes};
use crate::tools::lanes::Pieces;
use crate::tools::ranges::Ranges;
use crate::tools::sums::{self, Sums};
use crate::tools::{io_error, read};

/// Bytes that are zeroed with one request: it can be told how far it is.
const ZERO_PIECE: u64 = 128 << 20;

#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) zero: bool,
}

/// What this program knows of a piece that is on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It is zeroes.
    Zeroes,
    /// Its data, which have this sum if anybody wants to know.
    Data(Option<u32>),
    /// Nothing: its data have not come this way.
    Nothing,
}

/// What is done.
#[derive(Default)]
pub(super) struct Done {
    pub(super) ranges: Ranges,
    /// Which bytes those were, if anybody wants to know.
    pub(super) sums: Option<Sums>,
    pub(super) copied: u64,
    /// Of these, bytes that did not come this way.
    pub(super) direct: u64,
    pub(super) zeroed: u64,
    pub(super) skipped: u64,
}

impl Done {
    /// A piece is on the target, of which `zeroed` bytes were written as zeroes. What nobody has seen is in no sum, and so in no
    /// journal: it is copied again.
    fn add(&mut self, range: Range<u64>, seen: Seen, zeroed: u64) {
        let len = range.end - range.start;
        self.zeroed += zeroed;
        self.copied += len - zeroed;
        match (&mut self.sums, seen) {
            (Some(sums), Seen::Zeroes) => sums.insert_zeroes(range.clone()),
            (Some(sums), Seen::Data(Some(sum))) => sums.insert(range.clone(), sum),
            _ => {}
        }
        if seen == Seen::Nothing {
            self.direct += len;
        }
        self.ranges.insert(range);
    }
}

/// What the lanes share.
pub(super) struct Shared {
    pub(super) source: Bdev,
    pub(super) target: Bdev,
    pub(super) uris: (String, String),
    pub(super) direct: Direct,
    pub(super) detect_zeroes: bool,
    /// There is a journal.
    pub(super) writes_down: bool,
    pub(super) done: Mutex<Done>,
}

pub(super) fn unknown_map(status: Status) -> Error {
    Error::failed("cannot read the block map of the disks").caused_by(status)
}

impl Shared {
    pub(super) fn disks(&self) -> [&Arc<Disk>; 2] {
        [self.source.disk(), self.target.disk()]
    }

    /// Hands out what is to be done: not what was done earlier, and not zeroes where there are zeroes.
    pub(super) fn plan(
        &self,
        (size, block): (u64, u64),
        earlier: &Ranges,
        pieces_to: &Pieces<Piece>,
    ) -> Result<()> {
        let mut zeroes = Zeroes::of(&self.target);
        let skip = |start: u64, len: u64| {
            let mut done = self.done.lock();
            done.ranges.insert(start..start + len);
            if let Some(sums) = &mut done.sums {
                sums.insert_zeroes(start..start + len);
            }
            done.skipped += len;
        };
        let put = |start, len, zero| pieces_to.put(Piece { start, len, zero });
        parts(Extents::of(&self.source), block, size, |part| {
            let mut at = part.start;
            while at < part.end {
                let start = at;
                let (is_done, end) = earlier.at(at, part.end);
                at = end;
                if is_done {
                    continue;
                }
                if !part.zero {
                    if !pieces(start, end).all(|(start, len)| put(start, len, false)) {
                        return Ok(false);
                    }
                    continue;
                }
                let (is_zero, end) = zeroes.blocks_at(start, end, block)?;
                at = end;
                if is_zero {
                    skip(start, end - start);
                } else if !cut(start, end, ZERO_PIECE).all(|(start, len)| put(start, len, true)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .map_err(unknown_map)
    }

    pub(super) async fn work(&self, cpu: usize, piece: Piece) -> Result<()> {
        let Piece { start, len, zero } = piece;
        let (seen, zeroed) = if zero {
            self.zero(cpu, start, len).await?;
            (Seen::Zeroes, len)
        } else {
            match self.move_directly(cpu, start, len).await {
                Moved::Yes => (Seen::Nothing, 0),
                Moved::Read(data) => self.write_seen(cpu, start, data).await?,
                Moved::No => {
                    let data = self.read_source(cpu, start, len).await?;
                    self.write_seen(cpu, start, data).await?
                }
            }
        };
        self.done.lock().add(start..start + len, seen, zeroed);
        Ok(())
    }

    /// Writes data. Says what was seen of it, and how many bytes were written as zeroes.
    async fn write_seen(&self, cpu: usize, start: u64, data: Segments) -> Result<(Seen, u64)> {
        let seen = Seen::Data(self.writes_down.then(|| sums::append(0, &data)));
        let mut zeroed = 0;
        if self.detect_zeroes {
            zeroed = self.write_without_zeroes(cpu, start, &data).await?;
        } else {
            self.write(cpu, start, data).await?;
        }
        Ok((seen, zeroed))
    }

    async fn read_source(&self, cpu: usize, start: u64, len: u64) -> Result<Segments> {
        let read = read(&self.source, cpu, start, len).await;
        let mut bio = read.map_err(|status| io_error("read", &self.uris.0, start, len, status))?;
        Ok(bio.take_data())
    }

    pub(super) async fn read_target(&self, cpu: usize, start: u64, len: u64) -> Result<Segments> {
        let read = read(&self.target, cpu, start, len).await;
        let mut bio = read.map_err(|status| io_error("read", &self.uris.1, start, len, status))?;
        Ok(bio.take_data())
    }

    async fn write(&self, cpu: usize, start: u64, data: Segments) -> Result<()> {
        let len = total_len(&data) as u64;
        let mut bio = Bio::at_bytes(Op::Write, start, 0);
        data.into_iter().for_each(|segment| bio.add_segment(segment));
        self.ended("write", start, len, self.target.submit_async(cpu, bio).await.status())
    }

    async fn zero(&self, cpu: usize, start: u64, len: u64) -> Result<()> {
        let bio = Bio::at_bytes(Op::WriteZeroes, start, len);
        self.ended("zero", start, len, self.target.submit_async(cpu, bio).await.status())
    }

    fn ended(&self, doing: &str, start: u64, len: u64, status: Status) -> Result<()> {
        if status.is_ok() { Ok(()) } else { Err(io_error(doing, &self.uris.1, start, len, status)) }
    }

    /// Writes data, and zeroes as zeroes. Says how many bytes those were.
    async fn write_without_zeroes(&self, cpu: usize, start: u64, data: &[Segment]) -> Result<u64> {
        let mut zeroed = 0;
        let mut at = start;
        for (list, zero) in by_zeroes(data) {
            let len = total_len(&list) as u64;
            if zero {
                self.zero(cpu, at, len).await?;
                zeroed += len;
            } else {
                self.write(cpu, at, list).await?;
            }
            at += len;
        }
        Ok(zeroed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_seen_is_done_and_is_in_no_journal() {
        let sums = Some(Sums::new(8 << 20));
        let mut done = Done { sums, ..Done::default() };
        done.add(0..1 << 20, Seen::Nothing, 0);
        done.add(2 << 20..3 << 20, Seen::Zeroes, 1 << 20);
        done.add(4 << 20..5 << 20, Seen::Data(Some(5)), 4096);
        let noted: Vec<_> = done.sums.iter().flat_map(Sums::iter).collect();
        let zeroes = sums::of_zeroes(1 << 20);
        assert_eq!(noted, [(2 << 20..3 << 20, zeroes), (4 << 20..5 << 20, 5)]);
        assert_eq!(done.ranges.bytes(), 3 << 20);
        let counted = (done.copied, done.direct, done.zeroed);
        assert_eq!(counted, ((2 << 20) - 4096, 1 << 20, (1 << 20) + 4096));
    }
}
