//! What waits to be sent on a connection, in order: messages are put in whole and go out in pieces of any size.

use std::collections::VecDeque;

use blockyard_buf::{FileRange, Segment, total_len};
use blockyard_nbd::wire::RequestHead;
use blockyard_sys::net::Gather;

use crate::job::Job;
use crate::slots::Slots;

/// A request's message. Its payload stays with the request, in the slots, unless that was taken back, or it is a range of a file,
/// which nobody lends.
struct Message {
    cookie: u64,
    head: RequestHead,
    payload_len: usize,
    range: Option<FileRange>,
}

impl Message {
    fn len(&self) -> usize {
        self.head.len() + self.payload_len
    }
}

/// Messages that are still to be sent.
#[derive(Default)]
pub(crate) struct Outbox {
    messages: VecDeque<Message>,
    /// Bytes of the first message that were sent.
    skip: usize,
    /// What is left of the first one, if its request was taken back when a part of it had been sent.
    rest: Option<Segment>,
    /// One was given up when a part of it had been sent: nothing behind it would be understood.
    torn: bool,
}

/// How far a message has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Nothing was sent, and nothing will be.
    Nothing,
    /// A part or all of it.
    Something,
}

/// What a server may have heard of a request by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Not what is asked.
    Nothing,
    /// What is asked, but not all of the payload.
    Head,
    /// All of it.
    All,
}

impl Outbox {
    /// Puts a message in.
    pub(crate) fn push(&mut self, cookie: u64, head: RequestHead, payload_len: usize) {
        self.messages.push_back(Message { cookie, head, payload_len, range: None });
    }

    /// Puts one in whose payload is a range of a file. Only a socket without TLS can send it.
    pub(crate) fn push_range(&mut self, cookie: u64, head: RequestHead, range: FileRange) {
        let payload_len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        self.messages.push_back(Message { cookie, head, payload_len, range: Some(range) });
    }

    /// The range of a file that is to be sent next, without what was sent of it, and whose it is.
    pub(crate) fn next_range(&self) -> Option<(u64, FileRange)> {
        let first = self.messages.front()?;
        let sent = self.skip.checked_sub(first.head.len())?;
        first.range.as_ref().map(|range| (first.cookie, range.after(sent as u64)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// In place of the range that is to be sent next these bytes are, as many as are left of it. Says whose range it was.
    ///
    /// # Panics
    /// If there are more, or fewer.
    pub(crate) fn replace_range(&mut self, bytes: Segment) -> Option<u64> {
        let first = self.messages.front_mut()?;
        first.range.take()?;
        let left = first.payload_len - self.skip.saturating_sub(first.head.len());
        assert_eq!(bytes.len(), left, "the stream would break");
        self.rest = Some(bytes);
        Some(first.cookie)
    }

    /// Gives up the messages of which nothing was sent.
    pub(crate) fn withdraw_all(&mut self) -> impl Iterator<Item = u64> + '_ {
        let begun = usize::from(self.skip > 0);
        self.messages.drain(begun..).map(|message| message.cookie)
    }

    /// How much of a request that was put in has gone out.
    pub(crate) fn heard(&self, cookie: u64) -> Heard {
        match self.messages.iter().position(|message| message.cookie == cookie) {
            None => Heard::All,
            Some(0) if self.messages.front().is_some_and(|it| self.skip >= it.head.len()) => {
                Heard::Head
            }
            Some(_) => Heard::Nothing,
        }
    }

    /// Sends nothing more.
    pub(crate) fn abandon(&mut self) {
        self.torn |= self.skip > 0;
        self.messages.clear();
        (self.skip, self.rest) = (0, None);
    }

    /// Whether a message that is put in now would be understood.
    pub(crate) fn is_whole(&self) -> bool {
        !self.torn
    }

    /// A request is taken back, whose payload this is. Its message is not sent, unless a part of it was: then the
    /// rest is copied, so that the stream stays whole.
    pub(crate) fn take_back(&mut self, cookie: u64, payload: &[Segment]) -> Sent {
        let Some(at) = self.messages.iter().position(|message| message.cookie == cookie) else {
            return Sent::Something;
        };
        if at > 0 || self.skip == 0 {
            self.messages.remove(at);
            return Sent::Nothing;
        }
        if let Some(message) = self.messages.front()
            && message.payload_len > 0
            && message.range.is_none()
            && self.rest.is_none()
        {
            let done = self.skip.saturating_sub(message.head.len());
            let mut rest = vec![0; total_len(payload) - done];
            copy(payload, done, &mut rest);
            self.rest = Some(Segment::from_vec(rest));
        }
        Sent::Something
    }

    /// Adds as many parts to a message as it takes, up to a range of a file.
    pub(crate) fn fill<'a, J: Job>(&'a self, slots: &'a Slots<J>, gather: &mut Gather<'a>) {
        let mut skip = self.skip;
        for message in &self.messages {
            if gather.is_full() {
                return;
            }
            if skip < message.head.len() {
                gather.push(&message.head[skip..]);
            }
            if message.range.is_some() {
                return gather.goes_on();
            }
            let (payload, mut skip_payload) = self.payload(message, skip, slots);
            for segment in payload {
                if gather.is_full() {
                    return;
                }
                let here = skip_payload.min(segment.len());
                if here < segment.len() {
                    gather.push_segment(segment, here);
                }
                skip_payload -= here;
            }
            skip = 0;
        }
    }

    /// Copies bytes to `out`, as many as it takes; says how many those were.
    pub(crate) fn copy_to<J: Job>(&self, slots: &Slots<J>, out: &mut [u8]) -> usize {
        let (mut skip, mut at) = (self.skip, 0);
        for message in &self.messages {
            debug_assert!(message.range.is_none(), "a file cannot be sent through TLS");
            if let Some(head) = message.head.get(skip..) {
                let len = head.len().min(out.len() - at);
                out[at..at + len].copy_from_slice(&head[..len]);
                at += len;
            }
            let (payload, done) = self.payload(message, skip, slots);
            at += copy(payload, done, &mut out[at..]);
            skip = 0;
            if at == out.len() {
                break;
            }
        }
        at
    }

    /// The payload of a message of which `skip` bytes were sent, and how many of those were of the payload.
    fn payload<'a, J: Job>(
        &'a self,
        message: &Message,
        skip: usize,
        slots: &'a Slots<J>,
    ) -> (&'a [Segment], usize) {
        let sent = skip.saturating_sub(message.head.len());
        if message.payload_len == 0 {
            return (&[], 0);
        }
        match &self.rest {
            // It is of the first message, the only one that was begun.
            Some(rest) if skip > 0 => {
                (std::slice::from_ref(rest), rest.len() + sent - message.payload_len)
            }
            _ => (slots.payload(message.cookie), sent),
        }
    }

    /// So many bytes were sent.
    ///
    /// # Panics
    /// If there were fewer.
    pub(crate) fn advance(&mut self, bytes: usize) {
        let mut left = self.skip + bytes;
        while let Some(message) = self.messages.front()
            && left >= message.len()
        {
            left -= message.len();
            self.messages.pop_front();
            self.rest = None;
        }
        assert!(left == 0 || !self.messages.is_empty(), "sent more than there was");
        self.skip = left;
    }
}

/// Copies what `out` has room for, without the first `skip` bytes; says how much that was.
fn copy(segments: &[Segment], mut skip: usize, out: &mut [u8]) -> usize {
    let mut at = 0;
    for segment in segments {
        let here = skip.min(segment.len());
        skip -= here;
        let len = (segment.len() - here).min(out.len() - at);
        segment.slice(here, len).copy_to(&mut out[at..at + len]);
        at += len;
    }
    at
}

/// What a TLS session sends from: the bytes that wait on a connection.
pub(crate) trait Unsent {
    /// Copies bytes to `out`, as many as it takes; says how many those were.
    fn copy_to(&self, out: &mut [u8]) -> usize;
    /// So many bytes were sent.
    fn advance(&mut self, bytes: usize);
}

/// The messages of an outbox, with the memory of the requests that they are of.
pub(crate) struct Messages<'a, J> {
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) slots: &'a Slots<J>,
}

impl<J: Job> Unsent for Messages<'_, J> {
    fn copy_to(&self, out: &mut [u8]) -> usize {
        self.outbox.copy_to(self.slots, out)
    }

    fn advance(&mut self, bytes: usize) {
        self.outbox.advance(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blockyard_blkmq::{Extent, Flags, Op};
    use blockyard_buf::Segments;
    use blockyard_nbd::client::Expected;
    use blockyard_nbd::wire::{Command, CommandFlags, HeaderStyle, Request};

    use super::*;
    use crate::held::{Held, Past};
    use crate::job::Ask;
    use crate::slots::Entry;

    const ASK: Ask = Ask { op: Op::Write, flags: Flags::empty(), offset: 0, len: 10 };

    struct Write(Segments);

    impl Job for Write {
        fn ask(&self) -> Ask {
            ASK
        }
        fn memory(&self) -> Segments {
            self.0.clone()
        }
        fn deliver(&mut self, _segment: Segment) {}
        fn extent(&mut self, _extent: Extent) {}
    }

    /// Three writes of ten bytes each, and their memory.
    fn writes(slots: &mut Slots<Write>, outbox: &mut Outbox) -> (Vec<(u64, Segments)>, Vec<u8>) {
        let (mut list, mut all) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let cookie = slots.next_cookie();
            let flags = CommandFlags::empty();
            let request = Request { command: Command::Write, flags, cookie, offset: 0, length: 10 };
            let head = request.encode(HeaderStyle::Simple).unwrap();
            all.extend_from_slice(&head);
            all.extend_from_slice(b"0123456789");
            let parts = [b"0123".to_vec(), Vec::new(), b"456789".to_vec()];
            let memory: Segments = parts.map(Segment::from_vec).into_iter().collect();
            outbox.push(cookie, head, 10);
            slots.insert(Entry {
                expected: Expected::new(request),
                held: Some(Held::new(Write(memory.clone()), &ASK, Past::default())),
                changes: None,
                flush: <_>::default(),
                since: Duration::ZERO,
            });
            list.push((cookie, memory));
        }
        (list, all)
    }

    #[test]
    fn messages_go_out_whole_and_in_order_in_pieces_of_any_size() {
        for piece in 1..115 {
            let (mut slots, mut outbox) = (Slots::default(), Outbox::default());
            let (_, all) = writes(&mut slots, &mut outbox);
            let (mut got, mut buf) = (Vec::new(), vec![0; piece]);
            while !outbox.is_empty() {
                let len = outbox.copy_to(&slots, &mut buf);
                got.extend_from_slice(&buf[..len]);
                outbox.advance(len);
            }
            assert!(got == all, "pieces of {piece}");
        }
    }

    #[test]
    fn memory_that_is_taken_back_is_not_sent_from_and_messages_stay_whole() {
        let message = 38;
        for sent in 0..3 * message {
            for taken in 0..3 {
                let (mut slots, mut outbox) = (Slots::default(), Outbox::default());
                let (list, all) = writes(&mut slots, &mut outbox);
                let mut got = vec![0; sent];
                assert_eq!(outbox.copy_to(&slots, &mut got), sent);
                outbox.advance(sent);
                let (cookie, memory) = &list[taken];
                let fate = outbox.take_back(*cookie, slots.payload(*cookie));
                slots.remove(*cookie);
                memory.iter().for_each(Segment::fill_zero);
                let begun = sent > taken * message;
                assert_eq!(fate, if begun { Sent::Something } else { Sent::Nothing });
                let mut rest = vec![0; 200];
                rest.truncate(outbox.copy_to(&slots, &mut rest.clone()));
                outbox.copy_to(&slots, &mut rest);
                got.extend(rest);
                let gone = if begun { 0..0 } else { taken * message..(taken + 1) * message };
                let kept = all.iter().zip(0..).filter(|(_, at)| !gone.contains(at));
                let kept: Vec<u8> = kept.map(|(byte, _)| *byte).collect();
                assert!(got == kept, "{taken} taken back after {sent} bytes");
            }
        }
    }

    #[test]
    fn a_range_of_a_file_is_sent_behind_its_head_and_needs_nobody_that_has_it() {
        let file = std::sync::Arc::new(tempfile::tempfile().unwrap().into());
        let (mut slots, mut outbox) = (Slots::<Write>::default(), Outbox::default());
        let (list, all) = writes(&mut slots, &mut outbox);
        let head = ask_head(99);
        outbox.push_range(99, head, FileRange::new(&file, 0, 1000));
        outbox.push(100, ask_head(100), 0);
        let mut vecs = blockyard_sys::net::IoVecs::new();
        assert!(outbox.next_range().is_none());
        let mut gather = vecs.gather();
        outbox.fill(&slots, &mut gather);
        let before = all.len() + head.len();
        assert_eq!(gather.len(), before, "up to the range");
        outbox.advance(before);
        let next = |outbox: &Outbox| outbox.next_range().map(|(_, range)| range.len());
        assert_eq!(next(&outbox), Some(1000));
        outbox.advance(400);
        assert_eq!(outbox.take_back(99, &[]), Sent::Something, "the rest is still to be sent");
        assert_eq!(next(&outbox), Some(600));
        let zeroes = Segment::from_vec(vec![0; 600]);
        assert_eq!(outbox.replace_range(zeroes), Some(99), "its file was cut off");
        assert!(outbox.next_range().is_none());
        let mut rest = vec![1; 600 + head.len()];
        assert_eq!(outbox.copy_to(&slots, &mut rest), rest.len());
        assert!(rest[..600].iter().all(|byte| *byte == 0) && rest[600..] == *ask_head(100));
        outbox.advance(600);
        let mut gather = vecs.gather();
        outbox.fill(&slots, &mut gather);
        assert_eq!(gather.len(), head.len());
        assert_eq!(list.len(), 3);
    }

    fn ask_head(cookie: u64) -> RequestHead {
        let flags = CommandFlags::empty();
        let request = Request { command: Command::Write, flags, cookie, offset: 0, length: 1000 };
        request.encode(HeaderStyle::Simple).unwrap()
    }
}
