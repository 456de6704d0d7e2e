//! What waits to be sent to a client: headers of ours, and memory of the disk's.

use std::io;

use blockyard_blkmq::Bio;
use blockyard_buf::Segment;
use blockyard_sys::net::IoVecs;

use super::Bios;
use super::wire::Wire;

/// More room for headers, in bytes, or for parts than an idle connection keeps.
const KEPT_HEADS: usize = 8 << 10;
const KEPT_PARTS: usize = 512;
/// Bytes that are encrypted at a time: a TLS record.
const RECORD: usize = 16 << 10;

/// A batch of replies, in the order in which they go over the wire.
#[derive(Default)]
pub(crate) struct Transmit {
    heads: Vec<u8>,
    parts: Vec<Part>,
    /// Whose memory it is.
    bios: Bios,
    /// The first part that is not all sent.
    next: usize,
    /// Bytes of it that are.
    sent: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// A range of `heads`.
    Head { start: usize, end: usize },
    /// A segment of one of `bios`.
    Data { bio: usize, segment: usize },
}

impl Transmit {
    /// Whether all was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Where it stands: what changes when something is sent.
    pub(crate) fn position(&self) -> (usize, usize) {
        (self.next, self.sent)
    }

    /// Bytes of headers that are kept for now.
    pub(crate) fn heads_len(&self) -> usize {
        self.heads.len()
    }

    /// Adds bytes.
    pub(crate) fn head(&mut self, bytes: &[u8]) {
        self.head_with(|heads| heads.extend_from_slice(bytes));
    }

    /// Adds the bytes that `append` appends.
    pub(crate) fn head_with(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        let start = self.heads.len();
        append(&mut self.heads);
        let end = self.heads.len();
        match self.parts.last_mut() {
            Some(Part::Head { end: last, .. }) if *last == start => *last = end,
            _ if start == end => {}
            _ => self.parts.push(Part::Head { start, end }),
        }
    }

    /// Adds a segment of the bio that [`Transmit::keep`] takes next.
    pub(crate) fn data(&mut self, segment: usize) {
        self.parts.push(Part::Data { bio: self.bios.len(), segment });
    }

    /// Keeps a bio until all was sent.
    pub(crate) fn keep(&mut self, bio: Box<Bio>) {
        self.bios.push(bio);
    }

    /// Sends what there is room for. Says whether that was all; if so, the bios are free.
    pub(crate) fn send(&mut self, wire: &mut Wire, vecs: &mut IoVecs) -> io::Result<bool> {
        if wire.has_tls() {
            return self.send_tls(wire);
        }
        while self.next < self.parts.len() {
            let mut message = vecs.gather();
            let mut skip = self.sent;
            for part in &self.parts[self.next..] {
                if message.is_full() {
                    break;
                }
                match *part {
                    Part::Head { start, end } => message.push(&self.heads[start + skip..end]),
                    Part::Data { bio, segment } => {
                        message.push_segment(&self.bios[bio].data()[segment], skip);
                    }
                }
                skip = 0;
            }
            let len = message.len();
            let sent = wire.send(message)?;
            self.advance(sent);
            if sent < len {
                return Ok(false);
            }
        }
        self.sent_all(wire);
        Ok(true)
    }

    fn send_tls(&mut self, wire: &mut Wire) -> io::Result<bool> {
        let mut record = [0; RECORD];
        while self.next < self.parts.len() {
            let (filled, sent) = (self.fill(&mut record), wire.flush_tls()?);
            if !sent {
                return Ok(false);
            }
            let taken = wire.send_tls(&record[..filled])?;
            self.advance(taken);
        }
        if !wire.flush_tls()? {
            return Ok(false);
        }
        self.sent_all(wire);
        Ok(true)
    }

    /// Copies what is next to `record`.
    fn fill(&self, record: &mut [u8]) -> usize {
        let (mut filled, mut skip) = (0, self.sent);
        for part in &self.parts[self.next..] {
            let room = &mut record[filled..];
            let len = (self.part_len(*part) - skip).min(room.len());
            match *part {
                Part::Head { start, .. } => {
                    room[..len].copy_from_slice(&self.heads[start + skip..start + skip + len]);
                }
                Part::Data { bio, segment } => {
                    self.bios[bio].data()[segment].slice(skip, len).copy_to(&mut room[..len]);
                }
            }
            filled += len;
            skip = 0;
            if filled == record.len() {
                break;
            }
        }
        filled
    }

    fn part_len(&self, part: Part) -> usize {
        match part {
            Part::Head { start, end } => end - start,
            Part::Data { bio, segment } => {
                self.bios[bio].data().get(segment).map_or(0, Segment::len)
            }
        }
    }

    fn advance(&mut self, mut bytes: usize) {
        while let Some(part) = self.parts.get(self.next) {
            let left = self.part_len(*part) - self.sent;
            if bytes < left {
                self.sent += bytes;
                return;
            }
            bytes -= left;
            self.next += 1;
            self.sent = 0;
        }
    }

    fn sent_all(&mut self, wire: &mut Wire) {
        wire.all_sent();
        self.parts.clear();
        self.parts.shrink_to(KEPT_PARTS);
        self.heads.clear();
        self.heads.shrink_to(KEPT_HEADS);
        self.next = 0;
    }

    /// The bios of what was sent.
    pub(crate) fn take_bios(&mut self) -> impl Iterator<Item = Box<Bio>> + '_ {
        debug_assert!(self.parts.is_empty(), "memory that is still to be sent");
        self.bios.drain(..)
    }
}
