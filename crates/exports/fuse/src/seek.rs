//! Where data and holes are (lseek(2), `SEEK_DATA` and `SEEK_HOLE`), by what a disk says of its blocks.

use blockyard_blkmq::Extent;
use blockyard_fuse::Errno;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whence {
    Data,
    Hole,
}

impl Whence {
    /// `SEEK_DATA` or `SEEK_HOLE`; all others the kernel does by itself.
    pub(crate) const fn of(whence: u32) -> Option<Self> {
        match whence {
            3 => Some(Self::Data),
            4 => Some(Self::Hole),
            _ => None,
        }
    }
}

/// A search that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seek {
    pub(crate) node: u64,
    pub(crate) whence: Whence,
    /// Before this there is none.
    pub(crate) at: u64,
    /// Where the disk ends.
    pub(crate) end: u64,
}

/// What an answer of the disk means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is there.
    Found(u64),
    /// There is none.
    Nothing(Errno),
    /// It is not before [`Seek::at`]: the disk has to be asked for more.
    Further,
}

impl Seek {
    /// Goes on with what the disk says about the bytes from [`Seek::at`] on. What it says nothing of is data.
    pub(crate) fn step(&mut self, extents: &[Extent]) -> Step {
        let before = self.at;
        for extent in extents {
            // What does not read as zeroes is no hole, whether or not there is room for it.
            let found = if extent.zero { Whence::Hole } else { Whence::Data };
            if found == self.whence && extent.len > 0 && self.at < self.end {
                return Step::Found(self.at);
            }
            self.at = self.at.saturating_add(extent.len).min(self.end);
        }
        match self.whence {
            Whence::Data if self.at >= self.end => Step::Nothing(Errno::ENXIO),
            // There is a hole behind the end of each file.
            Whence::Hole if self.at >= self.end => Step::Found(self.end),
            _ if self.at > before => Step::Further,
            Whence::Data => Step::Found(self.at),
            Whence::Hole => Step::Found(self.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seek(whence: Whence, at: u64) -> Seek {
        Seek { node: 1, whence, at, end: 100 }
    }

    #[test]
    fn what_reads_as_zeroes_is_a_hole() {
        let extents = [
            Extent::data(10),
            Extent { len: 10, hole: true, zero: false },
            Extent { len: 10, hole: false, zero: true },
            Extent::data(70),
        ];
        assert_eq!(seek(Whence::Data, 0).step(&extents), Step::Found(0));
        assert_eq!(seek(Whence::Hole, 0).step(&extents), Step::Found(20));
        let mut hole = seek(Whence::Hole, 30);
        assert_eq!(hole.step(&extents[3..]), Step::Found(100), "behind the end");
        let mut data = seek(Whence::Data, 20);
        assert_eq!(data.step(&extents[2..3]), Step::Further);
        assert_eq!(data.at, 30);
        assert_eq!(data.step(&extents[3..]), Step::Found(30));
    }

    #[test]
    fn the_end_of_the_disk_ends_the_search() {
        assert_eq!(seek(Whence::Data, 90).step(&[Extent::hole(10)]), Step::Nothing(Errno::ENXIO));
        assert_eq!(
            seek(Whence::Data, 90).step(&[Extent::hole(u64::MAX)]),
            Step::Nothing(Errno::ENXIO)
        );
        assert_eq!(seek(Whence::Hole, 90).step(&[Extent::data(10)]), Step::Found(100));
    }

    #[test]
    fn what_the_disk_does_not_tell_is_data() {
        assert_eq!(seek(Whence::Data, 7).step(&[]), Step::Found(7));
        assert_eq!(seek(Whence::Hole, 7).step(&[]), Step::Found(100));
        assert_eq!(seek(Whence::Hole, 7).step(&[Extent::hole(0)]), Step::Found(100));
    }
}
