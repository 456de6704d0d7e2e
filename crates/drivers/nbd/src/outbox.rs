//! What waits to be sent on a connection, in order: messages are put in whole and go out in pieces of any size.

use std::collections::VecDeque;

use blockyard_buf::{Segment, Segments};
use blockyard_nbd::wire::RequestHead;
use blockyard_sys::net::Gather;

enum Part {
    Head(RequestHead),
    Payload(Segment),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Head(head) => head.len(),
            Self::Payload(segment) => segment.len(),
        }
    }
}

/// Parts of messages that are still to be sent.
#[derive(Default)]
pub(crate) struct Outbox {
    parts: VecDeque<Part>,
    /// Bytes of the first part that were sent.
    skip: usize,
    /// Bytes that were put in so far, and that were sent so far.
    queued: u64,
    sent: u64,
}

impl Outbox {
    /// Puts a message in; says where in the stream it begins.
    pub(crate) fn push(&mut self, head: RequestHead, payload: Segments) -> u64 {
        let at = self.queued;
        self.put(Part::Head(head));
        payload.into_iter().for_each(|segment| self.put(Part::Payload(segment)));
        at
    }

    fn put(&mut self, part: Part) {
        if part.len() > 0 {
            self.queued += part.len() as u64;
            self.parts.push_back(part);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Gives up what was not sent; says whether a message was cut short by that.
    pub(crate) fn cut(&mut self, boundary: u64) -> bool {
        self.parts.clear();
        self.skip = 0;
        self.queued = self.sent;
        self.sent < boundary
    }

    /// Bytes of the stream that were put in.
    pub(crate) fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes of the stream that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Adds as many parts to a message as it takes.
    pub(crate) fn fill<'a>(&'a self, gather: &mut Gather<'a>) {
        let mut skip = self.skip;
        for part in &self.parts {
            if gather.is_full() {
                return;
            }
            match part {
                Part::Head(head) => gather.push(&head[skip..]),
                Part::Payload(segment) => gather.push_segment(segment, skip),
            }
            skip = 0;
        }
    }

    /// Copies bytes to `out`, as many as it takes; says how many those were.
    pub(crate) fn copy_to(&self, out: &mut [u8]) -> usize {
        let (mut skip, mut at) = (self.skip, 0);
        for part in &self.parts {
            let len = (part.len() - skip).min(out.len() - at);
            let to = &mut out[at..at + len];
            match part {
                Part::Head(head) => to.copy_from_slice(&head[skip..skip + len]),
                Part::Payload(segment) => segment.slice(skip, len).copy_to(to),
            }
            at += len;
            skip = 0;
            if at == out.len() {
                break;
            }
        }
        at
    }

    /// So many bytes were sent.
    ///
    /// # Panics
    /// If there were fewer.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        assert!(self.sent <= self.queued, "sent more than there was");
        let mut left = self.skip + bytes;
        while let Some(part) = self.parts.front()
            && left >= part.len()
        {
            left -= part.len();
            self.parts.pop_front();
        }
        self.skip = left;
    }
}

#[cfg(test)]
mod tests {
    use blockyard_nbd::wire::{Command, CommandFlags, HeaderStyle, Request};

    use super::*;

    #[test]
    fn messages_go_out_whole_and_in_order_in_pieces_of_any_size() {
        let head = |cookie| {
            let flags = CommandFlags::empty();
            let request = Request { command: Command::Write, flags, cookie, offset: 0, length: 10 };
            request.encode(HeaderStyle::Simple).unwrap()
        };
        let payload = || {
            let parts = [b"0123".to_vec(), Vec::new(), b"456789".to_vec()];
            parts.map(Segment::from_vec).into_iter().collect::<Segments>()
        };
        let mut all = Vec::new();
        for cookie in 0..3 {
            all.extend_from_slice(&head(cookie));
            all.extend_from_slice(b"0123456789");
        }
        for piece in 1..all.len() {
            let mut outbox = Outbox::default();
            let starts = [0, 1, 2].map(|cookie| outbox.push(head(cookie), payload()));
            assert_eq!(starts, [0, 38, 76]);
            let (mut got, mut buf) = (Vec::new(), vec![0; piece]);
            while !outbox.is_empty() {
                let len = outbox.copy_to(&mut buf);
                got.extend_from_slice(&buf[..len]);
                outbox.advance(len);
            }
            assert!(got == all, "pieces of {piece}");
            assert_eq!(outbox.sent(), all.len() as u64);
        }
    }
}
