//! The memory of frames' bodies: what is large is received where it will stay, and memory that nobody holds any more is
//! used again, as fresh memory costs the kernel more than receiving into it does.

use bytes::buf::Limit;
use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// From here on a body is large.
const LARGE: usize = 64 << 10;
/// So much is reserved on the word of a preamble; beyond it, memory grows with what really comes.
const EAGER: usize = 8 << 20;
/// Memory is allocated in multiples of this.
const ROUND: usize = 4096;
/// How many large bodies that were given out are looked after, and how many bytes they may have together.
const MAX_SPARES: usize = 16;
const MAX_SPARE_BYTES: usize = 32 << 20;

/// A frame's large body, lent to whoever receives: to be filled, and given back.
#[derive(Debug)]
pub struct Rest {
    pub(super) body: BytesMut,
    /// How long it may become.
    end: usize,
}

impl Rest {
    /// Borrows a body that is to have so many bytes, and has not all of them yet, if it is large.
    pub(super) fn of(body: &mut BytesMut, whole: usize) -> Option<Self> {
        if whole < LARGE {
            return None;
        }
        let mut body = std::mem::take(body);
        let missing = whole - body.len();
        if body.capacity() == body.len() {
            body.reserve(missing.min(body.len().max(LARGE)));
        }
        let end = (body.len() + missing).min(body.capacity());
        Some(Self { body, end })
    }

    /// Where the next bytes of the stream belong; there is room for no more than what is missing.
    pub fn room(&mut self) -> Limit<&mut BytesMut> {
        let missing = self.end - self.body.len();
        (&mut self.body).limit(missing)
    }
}

/// Large bodies that were given out. Connections may share one, so that its bounds are those of all of them.
#[derive(Debug, Default)]
pub(crate) struct Spares(Mutex<VecDeque<Bytes>>);

/// What is allocated for a body: those of like requests differ by some bytes, and are to fit each other.
const fn rounded(len: usize) -> usize {
    len.next_multiple_of(ROUND)
}

impl Spares {
    /// Room for a body of so many bytes.
    pub(super) fn room(&self, len: usize) -> BytesMut {
        if len < LARGE {
            return BytesMut::with_capacity(len);
        }
        match self.take(len).map(Bytes::try_into_mut) {
            Some(Ok(mut body)) => {
                body.clear();
                body.reserve(len);
                body
            }
            _ => BytesMut::with_capacity(rounded(len).min(EAGER)),
        }
    }

    /// One that nobody holds any more, of such a size; the latest, which the processor may still have in its cache.
    fn take(&self, len: usize) -> Option<Bytes> {
        let fits = |spare: &Bytes| {
            let has = rounded(spare.len());
            has >= len && has / 2 <= len && spare.is_unique()
        };
        let mut spares = self.0.lock();
        let at = spares.iter().rposition(fits)?;
        spares.remove(at)
    }

    /// Looks after a body that is given out.
    pub(super) fn keep(&self, body: &Bytes) {
        if !(LARGE..=EAGER).contains(&body.len()) {
            return;
        }
        let mut spares = self.0.lock();
        spares.push_back(body.clone());
        let mut bytes: usize = spares.iter().map(Bytes::len).sum();
        while spares.len() > MAX_SPARES || bytes > MAX_SPARE_BYTES {
            bytes -= spares.pop_front().map_or(0, |oldest| oldest.len());
        }
    }

    /// Gives the memory back.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of so many bytes, as it is given out.
    fn given(spares: &Spares, len: usize) -> Bytes {
        let mut body = spares.room(len);
        body.resize(len, 7);
        let body = body.freeze();
        spares.keep(&body);
        body
    }

    #[test]
    fn memory_is_used_again_when_nobody_holds_it() {
        let spares = Spares::default();
        let first = given(&spares, 100_000);
        let (at, slice) = (first.as_ptr(), first.slice(5..9));
        drop(first);
        assert_ne!(given(&spares, 100_000).as_ptr(), at, "a part of it is held");
        spares.clear();
        let second = given(&spares, 100_000);
        let at = second.as_ptr();
        drop((slice, second));
        assert_eq!(given(&spares, 100_003).as_ptr(), at);
        assert_ne!(given(&spares, LARGE - 1).as_ptr(), at, "what is small is not worth it");
        assert_ne!(given(&spares, 1 << 20).as_ptr(), at, "it does not fit");
    }

    #[test]
    fn what_is_looked_after_is_bounded() {
        let spares = Spares::default();
        let held = |all: &[Bytes]| all.iter().filter(|body| !body.is_unique()).count();
        let all: Vec<_> = (0..20).map(|_| given(&spares, LARGE)).collect();
        assert_eq!(held(&all), MAX_SPARES);
        let large: Vec<_> = (0..6).map(|_| given(&spares, EAGER)).collect();
        assert_eq!((held(&all), held(&large)), (0, MAX_SPARE_BYTES / EAGER));
        spares.clear();
        let others = [given(&spares, EAGER + 1), given(&spares, LARGE - 1)];
        assert_eq!((held(&large), held(&others)), (0, 0));
    }

    #[test]
    fn a_rest_takes_what_is_missing_and_no_more() {
        let mut body = BytesMut::with_capacity(1 << 20);
        body.extend_from_slice(&[1; 100]);
        assert!(Rest::of(&mut body, LARGE - 1).is_none());
        let mut rest = Rest::of(&mut body, LARGE).unwrap();
        assert!(body.is_empty() && rest.room().remaining_mut() == LARGE - 100);
        rest.room().put_slice(&[2; 1000]);
        assert_eq!((rest.body.len(), rest.body[99], rest.body[100]), (1100, 1, 2));
    }
}
