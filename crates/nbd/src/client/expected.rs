//! What a client expects in reply to a request that is in flight.

use std::collections::HashMap;
use std::hash::BuildHasher;

use super::replies::DOING;
use crate::error::Error;
use crate::wire::{Command, CommandFlags, ErrorCode, Request};

/// Most separate pieces of one read that may be waiting for what lies between them.
pub const MAX_READ_FRAGMENTS: usize = 1024;

/// A request in flight, and what came of its reply so far. Reads whose data comes in order cost no allocation
/// of their own.
#[derive(Clone, Debug)]
pub struct Expected {
    pub(super) request: Request,
    /// Sorted, disjoint, not touching: the parts of a read that came, as start and end.
    covered: Vec<(u64, u64)>,
    /// The whole read came in one piece.
    whole: bool,
    /// Contexts whose extents are still to come.
    contexts: Vec<u32>,
    failed: Option<ErrorCode>,
}

/// The requests in flight of a connection, by cookie.
pub trait InFlight {
    /// The request that was sent with this cookie, if its reply is not complete.
    fn expected(&mut self, cookie: u64) -> Option<&mut Expected>;
}

impl<S: BuildHasher> InFlight for HashMap<u64, Expected, S> {
    fn expected(&mut self, cookie: u64) -> Option<&mut Expected> {
        self.get_mut(&cookie)
    }
}

impl Expected {
    /// For any command but BLOCK_STATUS.
    #[must_use]
    pub const fn new(request: Request) -> Self {
        Self { request, covered: Vec::new(), whole: false, contexts: Vec::new(), failed: None }
    }

    /// For a BLOCK_STATUS that is to be answered for the contexts with these ids. The `length` of `request` is what
    /// is asked for, also where the request goes over the wire with a payload.
    #[must_use]
    pub fn block_status(request: Request, contexts: &[u32]) -> Self {
        Self { contexts: contexts.to_vec(), ..Self::new(request) }
    }

    /// The request.
    #[must_use]
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// How it ended, once its last chunk came.
    ///
    /// # Errors
    ///
    /// The first error that the server told.
    pub const fn result(&self) -> Result<(), ErrorCode> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub(super) fn fail(&mut self, error: ErrorCode) {
        self.failed.get_or_insert(error.known());
    }

    /// Whether the range lies within the request.
    pub(super) fn contains(&self, offset: u64, length: u64) -> bool {
        let Request { offset: start, length: asked, .. } = self.request;
        offset.checked_sub(start).is_some_and(|at| at <= asked && length <= asked - at)
    }

    /// Notes a piece of content, which must lie within the request and overlap no other.
    pub(super) fn cover(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        if !self.contains(offset, length) {
            let rule = "the server sent content outside the range that was read";
            return Err(Error::violation(DOING, rule, offset));
        }
        let end = offset.saturating_add(length);
        let at = self.covered.partition_point(|&(start, _)| start < offset);
        let before = at.checked_sub(1).and_then(|i| self.covered.get(i)).copied();
        let after = self.covered.get(at).copied();
        if self.whole
            || before.is_some_and(|(_, until)| until > offset)
            || after.is_some_and(|(from, _)| from < end)
        {
            let rule = "the server sent the same part of a read twice";
            return Err(Error::violation(DOING, rule, offset));
        }
        let any = !self.covered.is_empty();
        if any && self.request.flags.contains(CommandFlags::DF) {
            let rule = "the server fragmented a read with DF";
            return Err(Error::violation(DOING, rule, offset));
        }
        if !any && length == self.request.length {
            self.whole = true;
            return Ok(());
        }
        let joins_before = before.is_some_and(|(_, until)| until == offset);
        let joins_after = after.is_some_and(|(from, _)| from == end);
        let start = if joins_before { before.map_or(offset, |(from, _)| from) } else { offset };
        let until = if joins_after { after.map_or(end, |(_, until)| until) } else { end };
        let first = if joins_before { at - 1 } else { at };
        let last = if joins_after { at + 1 } else { at };
        self.covered.splice(first..last, [(start, until)]);
        if self.covered.len() > MAX_READ_FRAGMENTS {
            let limit = MAX_READ_FRAGMENTS.try_into().unwrap_or(u64::MAX);
            let what = "the number of scattered pieces of a read";
            return Err(Error::too_big(DOING, what, limit + 1, limit));
        }
        Ok(())
    }

    /// Whether the extents of this context are still to come.
    pub(super) fn awaits_context(&self, id: u32) -> bool {
        self.contexts.contains(&id)
    }

    pub(super) fn context_came(&mut self, id: u32) {
        self.contexts.retain(|&other| other != id);
    }

    /// Checks what must have come when the server calls the reply complete.
    pub(super) fn complete(&self) -> Result<(), Error> {
        if self.failed.is_some() {
            return Ok(());
        }
        let Request { command, offset, length, cookie, .. } = self.request;
        let all = [(offset, offset.saturating_add(length))];
        if command == Command::Read && length > 0 && !self.whole && self.covered != all {
            let rule = "the server ended a read without all of its data";
            return Err(Error::violation(DOING, rule, cookie));
        }
        if !self.contexts.is_empty() {
            let rule = "the server ended a block status without all of its contexts";
            return Err(Error::violation(DOING, rule, cookie));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(offset: u64, length: u64) -> Expected {
        let flags = CommandFlags::empty();
        Expected::new(Request { command: Command::Read, flags, cookie: 1, offset, length })
    }

    #[test]
    fn one_piece_needs_no_memory() {
        let mut expected = read(512, 1024);
        expected.cover(512, 1024).unwrap();
        assert_eq!(expected.covered.capacity(), 0);
        assert!(expected.complete().is_ok());
        assert!(expected.cover(512, 1).is_err());
    }

    #[test]
    fn scattered_pieces_are_bounded() {
        let mut expected = read(0, 1 << 20);
        let result = (0..2000).try_for_each(|i| expected.cover(i * 2, 1));
        assert!(result.is_err());
        assert!(expected.covered.len() <= MAX_READ_FRAGMENTS + 1);
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_of_bytes(
            pieces in prop::collection::vec((90_u64..210, 1_u64..40), 0..30),
        ) {
            let mut expected = read(100, 100);
            let mut map = [false; 100];
            for (offset, length) in pieces {
                let inside = offset >= 100 && offset + length <= 200;
                let places = (offset.max(100)..(offset + length).min(200))
                    .map(|at| usize::try_from(at - 100).unwrap());
                let fits = inside && places.clone().all(|at| !map[at]);
                prop_assert_eq!(expected.cover(offset, length).is_ok(), fits);
                if fits {
                    places.for_each(|at| map[at] = true);
                }
                prop_assert_eq!(expected.complete().is_ok(), map.iter().all(|&came| came));
            }
        }
    }
}
