//! Bytes that wait to be sent.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::mem;

/// From here on a piece is sent from where it lies; smaller ones are copied together.
const SEPARATE: usize = 4096;

/// A queue of pieces. Large ones are not copied.
#[derive(Debug, Default)]
pub struct Transmit {
    whole: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Transmit {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.tail.is_empty()
    }

    /// How many bytes wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Appends a copy of bytes.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        if self.tail.is_empty() {
            self.tail.reserve(SEPARATE);
        }
        self.tail.extend_from_slice(bytes);
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SEPARATE {
            self.copy(&bytes);
        } else {
            self.cut();
            self.len += bytes.len();
            self.whole.push_back(bytes);
        }
    }

    fn cut(&mut self) {
        if !self.tail.is_empty() {
            self.whole.push_back(mem::take(&mut self.tail).freeze());
        }
    }

    /// Moves everything that waits to the end of `out`, in order; whether there was anything.
    pub fn drain(&mut self, out: &mut Vec<Bytes>) -> bool {
        self.cut();
        self.len = 0;
        let any = !self.whole.is_empty();
        out.extend(self.whole.drain(..));
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_join_and_large_ones_are_not_copied() {
        let large = Bytes::from(vec![7; SEPARATE]);
        let mut transmit = Transmit::default();
        transmit.copy(b"ab");
        transmit.push(Bytes::from_static(b"cd"));
        transmit.push(large.clone());
        transmit.copy(b"e");
        assert_eq!(transmit.len(), 4 + SEPARATE + 1);
        let mut out = Vec::new();
        assert!(transmit.drain(&mut out));
        assert_eq!(out.iter().map(Bytes::len).collect::<Vec<_>>(), [4, SEPARATE, 1]);
        assert_eq!(out[1].as_ptr(), large.as_ptr());
        assert!(transmit.is_empty() && !transmit.drain(&mut out));
    }
}
