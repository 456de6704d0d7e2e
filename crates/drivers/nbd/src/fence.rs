//! Which ranges of the disk a write of an old connection may still change.
//!
//! `docs/nbd-fencing.md` has the argument. In short: a write that was sent on a connection and not answered
//! there may be carried out by the server at any time until the server has answered it, has closed that
//! connection, or is given up. Until then its range is in here, and nothing that changes the range is sent on
//! another connection.

use crate::span::Span;

/// Names a connection, for the lifetime of a disk.
pub(crate) type LinkId = u64;

struct Loose {
    link: LinkId,
    cookie: u64,
    span: Span,
}

/// Ranges of writes that are loose: sent on a connection that is not used any more, and not answered.
#[derive(Default)]
pub(crate) struct Fence {
    loose: Vec<Loose>,
}

impl Fence {
    pub(crate) fn add(&mut self, link: LinkId, cookie: u64, span: Span) {
        self.loose.push(Loose { link, cookie, span });
    }

    /// A write was answered.
    pub(crate) fn resolve(&mut self, link: LinkId, cookie: u64) {
        self.loose.retain(|loose| (loose.link, loose.cookie) != (link, cookie));
    }

    /// Nothing that was sent on the connection will be carried out any more.
    pub(crate) fn settle(&mut self, link: LinkId) {
        self.loose.retain(|loose| loose.link != link);
    }

    pub(crate) fn overlaps(&self, span: Span) -> bool {
        self.loose.iter().any(|loose| loose.span.overlaps(span))
    }

    /// Whether something that was sent on the connection may still be carried out.
    pub(crate) fn has(&self, link: LinkId) -> bool {
        self.loose.iter().any(|loose| loose.link == link)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.loose.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_held_until_its_write_is_answered_or_its_connection_is_over() {
        let mut fence = Fence::default();
        fence.add(1, 7, Span::new(0, 4096));
        fence.add(1, 8, Span::new(8192, 4096));
        fence.add(2, 7, Span::new(4096, 4096));
        assert!(fence.overlaps(Span::new(4095, 1)) && !fence.overlaps(Span::new(12288, 1)));
        fence.resolve(1, 7);
        assert!(!fence.overlaps(Span::new(0, 4096)), "what touches does not overlap");
        assert!(fence.overlaps(Span::new(0, 4097)));
        fence.settle(1);
        assert!(!fence.overlaps(Span::new(8192, 4096)) && !fence.is_empty());
        fence.settle(2);
        assert!(fence.is_empty());
    }
}
