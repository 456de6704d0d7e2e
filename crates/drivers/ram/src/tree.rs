//! The tree of regions: as deep as the disk is large, and as bushy as it was written.

use std::io;
use std::sync::OnceLock;

use blockyard_buf::Segment;

use crate::region::{REGION_SIZE, Region, Run};

/// Levels of directories: five steps of 8 bits, as 2^63 bytes are 2^37 regions. The depth is the same for every
/// disk, so that one can grow to any size.
const DEPTH: u32 = 5;
/// Children of a directory.
const FANOUT: usize = 1 << STEP_BITS;
const STEP_BITS: u32 = u8::BITS;

/// What a region counts for that is discarded, however little it gives back: the notes of all its pages are looked at.
pub(crate) const LEAST_A_REGION: u64 = 1 << 20;

enum Node {
    Dir(Box<[OnceLock<Node>]>),
    Leaf(Region),
}

impl Node {
    fn dir() -> Self {
        Self::Dir((0..FANOUT).map(|_| OnceLock::new()).collect())
    }
}

/// Regions by their place. One that was made stays; discarding empties it.
#[derive(Default)]
pub(crate) struct Tree {
    root: OnceLock<Node>,
}

impl Tree {
    fn slot(index: u64, level: u32) -> usize {
        usize::from((index >> (level * STEP_BITS)).to_le_bytes()[0])
    }

    fn find(&self, index: u64) -> Option<&Region> {
        let mut node = self.root.get()?;
        let mut level = DEPTH;
        loop {
            match node {
                Node::Leaf(region) => return Some(region),
                Node::Dir(children) => {
                    level -= 1;
                    node = children[Self::slot(index, level)].get()?;
                }
            }
        }
    }

    fn find_or_make(&self, index: u64) -> io::Result<&Region> {
        if let Some(region) = self.find(index) {
            return Ok(region);
        }
        let mut place = &self.root;
        let mut level = DEPTH;
        loop {
            if place.get().is_none() {
                let new = if level == 0 { Node::Leaf(Region::new()?) } else { Node::dir() };
                // Somebody else may have been faster: then this one is dropped, with nothing in it.
                let _ = place.set(new);
            }
            match place.get() {
                Some(Node::Leaf(region)) => return Ok(region),
                Some(Node::Dir(children)) => {
                    level -= 1;
                    place = &children[Self::slot(index, level)];
                }
                None => unreachable!("set above"),
            }
        }
    }

    /// Cuts a range where regions meet: calls `each` with the index of a region, the offset in it, and a
    /// length.
    fn pieces(
        mut at: u64,
        mut left: u64,
        mut each: impl FnMut(u64, usize, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        while left > 0 {
            let within = at % REGION_SIZE;
            let here = left.min(REGION_SIZE - within);
            #[expect(clippy::cast_possible_truncation, reason = "both are at most REGION_SIZE")]
            each(at / REGION_SIZE, within as usize, here as usize)?;
            at += here;
            left -= here;
        }
        Ok(())
    }

    pub(crate) fn write(&self, at: u64, src: &Segment) -> io::Result<()> {
        let mut done = 0;
        Self::pieces(at, src.len() as u64, |index, offset, len| {
            let region = self.find_or_make(index)?;
            if len == src.len() {
                region.write(offset, src);
            } else {
                region.write(offset, &src.slice(done, len));
            }
            done += len;
            Ok(())
        })
    }

    pub(crate) fn zero_in_place(&self, at: u64, len: u64) -> io::Result<()> {
        Self::pieces(at, len, |index, offset, len| {
            self.find_or_make(index)?.zero(offset, len);
            Ok(())
        })
    }

    /// The stretches of data and holes of a range, in order.
    pub(crate) fn runs(&self, at: u64, len: u64, mut each: impl FnMut(Run, usize)) {
        let all = Self::pieces(at, len, |index, offset, len| {
            match self.find(index) {
                Some(region) => region.runs(offset, len, &mut each),
                None => each(Run::Hole, len),
            }
            Ok(())
        });
        debug_assert!(all.is_ok(), "looking makes no region");
    }

    /// The first region from `index` on that was made, without looking at each place where none was.
    fn next_made(&self, index: u64) -> Option<(u64, &Region)> {
        next_made(self.root.get()?, DEPTH, index)
    }

    /// Forgets a range, until `most` bytes of memory were given back or more, of which each region counts for some
    /// ([`LEAST_A_REGION`]); says how much of the range it came through. Only regions that were made are looked at.
    pub(crate) fn discard(&self, at: u64, len: u64, most: u64) -> u64 {
        let end = at + len;
        let (mut from, mut given_back) = (at / REGION_SIZE, 0u64);
        while let Some((index, region)) =
            self.next_made(from).filter(|(index, _)| index * REGION_SIZE < end)
        {
            if given_back >= most {
                return (index * REGION_SIZE).max(at) - at;
            }
            let (first, last) = within(index, at, end);
            let before = region.allocated_bytes();
            region.discard(first, last - first);
            given_back += before.saturating_sub(region.allocated_bytes()).max(LEAST_A_REGION);
            from = index + 1;
        }
        len
    }

    /// The stretches of a range, in order, at most so many: whether each holds data, and its length.
    pub(crate) fn extents(&self, at: u64, len: u64, most: usize) -> Vec<(bool, u64)> {
        let end = at + len;
        let mut list: Vec<(bool, u64)> = Vec::new();
        // Says whether there was room for it.
        let mut push = |data: bool, len: u64| {
            let full = list.len() == most;
            match list.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.0 == data => last.1 += len,
                _ if full => return false,
                _ => list.push((data, len)),
            }
            true
        };
        let mut done = at;
        while done < end {
            let Some((index, region)) =
                self.next_made(done / REGION_SIZE).filter(|(index, _)| index * REGION_SIZE < end)
            else {
                push(false, end - done);
                break;
            };
            let (first, last) = within(index, at, end);
            let begin = index * REGION_SIZE + first as u64;
            let room = push(false, begin - done);
            if !room
                || !region.stretches(first, last - first).all(|(data, len)| push(data, len as u64))
            {
                break;
            }
            done = index * REGION_SIZE + last as u64;
        }
        list
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.root.get().map_or(0, allocated)
    }
}

fn allocated(node: &Node) -> u64 {
    match node {
        Node::Leaf(region) => region.allocated_bytes(),
        Node::Dir(children) => children.iter().filter_map(OnceLock::get).map(allocated).sum(),
    }
}

/// The part of the region `index` that is within `at..end`.
#[expect(clippy::cast_possible_truncation, reason = "both are at most REGION_SIZE")]
fn within(index: u64, at: u64, end: u64) -> (usize, usize) {
    let start = index * REGION_SIZE;
    (at.saturating_sub(start) as usize, (end - start).min(REGION_SIZE) as usize)
}

fn next_made(node: &Node, level: u32, index: u64) -> Option<(u64, &Region)> {
    let children = match node {
        Node::Leaf(region) => return Some((index, region)),
        Node::Dir(children) => children,
    };
    let level = level - 1;
    let width = 1 << (level * STEP_BITS);
    let base = index / (width * FANOUT as u64) * (width * FANOUT as u64);
    let first = Tree::slot(index, level);
    (first..).zip(&children[first..]).find_map(|(slot, child)| {
        let from = index.max(base + slot as u64 * width);
        next_made(child.get()?, level, from)
    })
}
