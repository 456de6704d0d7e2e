//! A server's extents, which may end at any byte, as extents of whole blocks.
//!
//! nbdkit's file plugin, for one, caps them at 2^32 - 1 bytes. A block that several extents share is a hole, or
//! reads as zeroes, only if all of them say so; one of which the server has not told all counts as data if nothing
//! before it was told, and is left out otherwise: it is asked for again.

use blockyard_blkmq::Extent;

/// Puts extents together to whole blocks.
pub(crate) struct Extents {
    block: u64,
    /// Bytes that are asked for and were not told yet.
    left: u64,
    /// What was told of a block that is not told of to its end.
    part: Option<Extent>,
    any: bool,
}

impl Extents {
    /// For an answer about `asked` bytes, from the start of a block on.
    pub(crate) fn new(block: u64, asked: u64) -> Self {
        Self { block, left: asked, part: None, any: false }
    }

    /// Adds what the server says of the next `len` bytes.
    pub(crate) fn push(&mut self, len: u64, hole: bool, zero: bool, mut out: impl FnMut(Extent)) {
        let mut len = len.min(self.left);
        self.left -= len;
        if let Some(part) = &mut self.part {
            let here = len.min(self.block - part.len);
            *part =
                Extent { len: part.len + here, hole: part.hole && hole, zero: part.zero && zero };
            len -= here;
            if part.len < self.block {
                return;
            }
            out(*part);
            (self.part, self.any) = (None, true);
        }
        let whole = len / self.block * self.block;
        if whole > 0 {
            out(Extent { len: whole, hole, zero });
            self.any = true;
        }
        self.part = (len > whole).then_some(Extent { len: len - whole, hole, zero });
    }

    /// The server says no more.
    pub(crate) fn finish(self, mut out: impl FnMut(Extent)) {
        // The end of an export that ends within a block is all that there is of that block.
        match self.part {
            Some(part) if self.left == 0 => out(part),
            Some(_) if !self.any => out(Extent::data(self.block)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(asked: u64, extents: &[(u64, bool)]) -> Vec<(u64, bool)> {
        let (mut list, mut whole) = (Vec::new(), Extents::new(512, asked));
        for &(len, hole) in extents {
            whole.push(len, hole, hole, |extent| extent.push(&mut list));
        }
        whole.finish(|extent| extent.push(&mut list));
        list.iter().map(|extent| (extent.len, extent.hole && extent.zero)).collect()
    }

    #[test]
    fn extents_end_at_blocks() {
        for (asked, extents, expected) in [
            // nbdkit's file plugin, with more than 4 GiB.
            (8 << 30, &[((1 << 32) - 1, true)][..], &[((1 << 32) - 512, true)][..]),
            (1024, &[(512, true), (512, false)], &[(512, true), (512, false)]),
            (2048, &[(700, true), (1348, false)], &[(512, true), (1536, false)]),
            (2048, &[(700, true), (1348, true)], &[(2048, true)]),
            (
                1024,
                &[(100, true), (100, true), (100, false), (724, true)],
                &[(512, false), (512, true)],
            ),
            // Longer than asked for.
            (1024, &[(1 << 40, true)], &[(1024, true)]),
            // Nothing whole: it must not be an answer about nothing.
            (1024, &[(1, true)], &[(512, false)]),
            (1024, &[(511, true)], &[(512, false)]),
            // The rest is asked for again.
            (2048, &[(1024, true), (7, true)], &[(1024, true)]),
        ] {
            assert_eq!(told(asked, extents), expected, "{extents:?}");
        }
    }
}
