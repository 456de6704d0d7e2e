//! What came from the server and is not understood yet, and where more of it goes.

use blockyard_buf::{Buffer, Pool, Segment};

use crate::place::Filling;

/// Bytes that are received at a time.
pub(crate) const RECEIVE_LEN: usize = 256 << 10;

/// A payload that is longer is worth a system call of its own, so that it need not be copied.
const LARGE_PAYLOAD_LEN: u64 = 64 << 10;
/// Bytes that are received past a large payload: the header of the next one.
const HEADER_ROOM: usize = 4 << 10;

/// A large buffer, so that one system call brings many replies. A payload goes past it to the memory of its request,
/// which is the request's: whoever has that brings it along, or nothing if the request was taken back, and then the
/// payload goes nowhere.
pub(crate) struct Inbox {
    pool: Pool,
    buffer: Buffer,
    /// The bytes that came and were not taken yet.
    start: usize,
    end: usize,
    /// How long the message at the front is known to be.
    message_len: usize,
    /// Bytes of a payload that are still to come, before the next message.
    payload_left: u64,
    /// Whether a payload is received into its place, rather than into the buffer and copied.
    direct: bool,
    /// Whether the last payload was large. The next one will be, too, most likely.
    large: bool,
}

impl Inbox {
    pub(crate) fn new(pool: Pool, direct: bool) -> Self {
        let buffer = pool.get(RECEIVE_LEN);
        Self {
            pool,
            buffer,
            start: 0,
            end: 0,
            message_len: 1,
            payload_left: 0,
            direct,
            large: false,
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What there is to understand.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes bytes off the front.
    pub(crate) fn take(&mut self, len: usize) {
        self.start += len;
        self.message_len = 1;
        assert!(self.start <= self.end, "took more than came");
    }

    /// Takes all off.
    pub(crate) fn discard(&mut self) {
        self.payload_left = 0;
        self.take(self.end - self.start);
    }

    /// The message at the front is `len` bytes long.
    pub(crate) fn need(&mut self, len: usize) {
        self.message_len = len;
    }

    /// Takes bytes off the front as a segment, which shares the buffer.
    pub(crate) fn take_shared(&mut self, len: usize) -> Segment {
        let segment = self.buffer.segment(self.start, len);
        self.take(len);
        segment
    }

    /// The next `len` bytes are a payload.
    pub(crate) fn expect(&mut self, len: u64) {
        self.large = len >= LARGE_PAYLOAD_LEN;
        self.payload_left = len;
    }

    /// Moves what came of the payload to its place, if it has one; says whether that is all of it.
    pub(crate) fn place(&mut self, place: Option<&mut Filling>) -> bool {
        let here =
            usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(self.end - self.start);
        if here > 0 {
            if let Some(place) = place {
                place.fill(&self.buffer[self.start..self.start + here]);
            }
            self.take(here);
            self.payload_left -= here as u64;
        }
        self.payload_left == 0
    }

    /// Makes room for the message at the front, and for some more.
    pub(crate) fn make_room(&mut self) {
        let (kept, len) = (self.end - self.start, self.message_len);
        if kept == 0 {
            (self.start, self.end) = (0, 0);
        }
        let shared = self.buffer.get_mut().is_none();
        let enough = self.start + len <= self.buffer.len() && self.end < self.buffer.len();
        // A buffer that grew for one long message is not kept.
        let grown = self.buffer.len() > RECEIVE_LEN && len <= RECEIVE_LEN && kept <= RECEIVE_LEN;
        if !shared && enough && !grown {
            return;
        }
        if !shared && !grown && len <= self.buffer.len() && kept < self.buffer.len() {
            let (start, end) = (self.start, self.end);
            if let Some(bytes) = self.buffer.get_mut() {
                bytes.copy_within(start..end, 0);
            }
        } else {
            let mut next = self.pool.get(RECEIVE_LEN.max(len).max(kept + 1));
            if let Some(bytes) = next.get_mut() {
                bytes[..kept].copy_from_slice(&self.buffer[self.start..self.end]);
            }
            self.buffer = next;
        }
        (self.start, self.end) = (0, kept);
    }

    /// Whether the rest of a payload is received into `place`, past the buffer.
    fn is_direct(&self, place: Option<&Filling>) -> bool {
        // What is in the buffer goes first, and a payload that goes nowhere passes through it.
        self.direct
            && self.start == self.end
            && self.payload_left > 0
            && place.is_some_and(|place| !place.places().is_empty())
    }

    /// Where received bytes go: the rest of the payload, then the buffer. Call [`Inbox::make_room`] before.
    pub(crate) fn room<'a>(
        &'a mut self,
        place: Option<&'a Filling>,
    ) -> (&'a [Segment], &'a mut [u8]) {
        let places = match place {
            Some(filling) if self.is_direct(place) => filling.places(),
            _ => &[],
        };
        // As much as comes, or, if that is better received into its place, only what says where that is.
        let most = if self.direct && self.large && self.message_len <= HEADER_ROOM {
            HEADER_ROOM
        } else {
            usize::MAX
        };
        let bytes = self.buffer.get_mut().map_or(&mut [][..], |bytes| &mut bytes[self.end..]);
        let most = most.min(bytes.len());
        (places, &mut bytes[..most])
    }

    /// So many bytes came into [`Inbox::room`] of the same place.
    pub(crate) fn came(&mut self, bytes: usize, place: Option<&mut Filling>) {
        let mut rest = bytes;
        if self.is_direct(place.as_deref())
            && let Some(place) = place
        {
            let here = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(rest);
            place.advance(here);
            self.payload_left -= here as u64;
            rest -= here;
        }
        self.end += rest;
        assert!(self.end <= self.buffer.len(), "more came than there was room for");
    }
}

#[cfg(test)]
mod tests {
    use blockyard_buf::Segments;

    use super::*;

    fn receive(inbox: &mut Inbox, mut bytes: &[u8], place: Option<&mut Filling>) {
        inbox.make_room();
        let (places, room) = inbox.room(place.as_deref());
        let mut count = 0;
        for place in places {
            let here = place.len().min(bytes.len());
            place.slice(0, here).copy_from(&bytes[..here]);
            bytes = &bytes[here..];
            count += here;
        }
        room[..bytes.len()].copy_from_slice(bytes);
        inbox.came(count + bytes.len(), place);
    }

    fn filling(parts: &[Segment]) -> Filling {
        parts.iter().cloned().collect::<Segments>().into()
    }

    #[test]
    fn past_a_large_payload_there_is_room_for_a_header_only() {
        let mut inbox = Inbox::new(Pool::default(), true);
        let large = usize::try_from(LARGE_PAYLOAD_LEN).unwrap();
        inbox.make_room();
        assert_eq!(inbox.room(None).1.len(), RECEIVE_LEN);
        for (len, room) in [(large, HEADER_ROOM), (4096, RECEIVE_LEN)] {
            let mut place = filling(&[Segment::from_vec(vec![0; len])]);
            inbox.expect(len as u64);
            receive(&mut inbox, &vec![1; len], Some(&mut place));
            assert!(inbox.place(Some(&mut place)));
            inbox.make_room();
            assert_eq!(inbox.room(None).1.len(), room, "after {len} bytes");
        }
        // A message that is longer than that is received.
        let mut place = filling(&[Segment::from_vec(vec![0; large])]);
        inbox.expect(large as u64);
        receive(&mut inbox, &vec![1; large], Some(&mut place));
        inbox.need(HEADER_ROOM + 1);
        inbox.make_room();
        assert!(inbox.room(None).1.len() > HEADER_ROOM);
    }

    #[test]
    fn a_payload_goes_to_its_place_in_pieces_of_any_size() {
        let message: Vec<u8> = (0..100).collect();
        for piece in 1..=100 {
            let mut inbox = Inbox::new(Pool::default(), true);
            let places = [3, 50, 1, 26].map(|len| Segment::from_vec(vec![0; len]));
            let mut pieces = message.chunks(piece);
            while inbox.bytes().len() < 10 {
                receive(&mut inbox, pieces.next().unwrap(), None);
            }
            inbox.take(10);
            let mut place = filling(&places);
            inbox.expect(80);
            while !inbox.place(Some(&mut place)) {
                receive(&mut inbox, pieces.next().unwrap(), Some(&mut place));
            }
            let got: Vec<u8> = places.iter().flat_map(Segment::to_vec).collect();
            assert_eq!(got, message[10..90]);
            pieces.for_each(|piece| receive(&mut inbox, piece, None));
            assert_eq!(inbox.bytes(), &message[90..]);
        }
    }

    #[test]
    fn a_place_that_is_taken_back_is_left_alone_and_the_rest_passes_by() {
        for back_at in 0..100 {
            let mut inbox = Inbox::new(Pool::default(), true);
            let memory = Segment::from_vec(vec![0; 100]);
            let mut place = Some(filling(std::slice::from_ref(&memory)));
            inbox.expect(100);
            for at in 0..100 {
                if at == back_at {
                    place = None;
                    memory.fill_zero();
                }
                receive(&mut inbox, &[7], place.as_mut());
                assert_eq!(inbox.place(place.as_mut()), at == 99);
            }
            assert_eq!(memory.to_vec(), [0; 100]);
            receive(&mut inbox, b"next", None);
            assert_eq!(inbox.bytes(), b"next");
        }
    }

    #[test]
    fn a_payload_that_nobody_wants_passes_by() {
        let mut inbox = Inbox::new(Pool::default(), true);
        inbox.expect(1 << 20);
        let piece = vec![7; 1000];
        let mut count = 0;
        while !inbox.place(None) {
            receive(&mut inbox, &piece, None);
            count += 1;
        }
        assert_eq!(count, (1 << 20) / 1000 + 1);
        assert_eq!(inbox.bytes().len(), 1000 - (1 << 20) % 1000);
    }

    #[test]
    fn what_was_shared_is_not_written_over() {
        let mut inbox = Inbox::new(Pool::default(), true);
        receive(&mut inbox, b"abcdef", None);
        let shared = inbox.take_shared(4);
        receive(&mut inbox, b"ghi", None);
        assert_eq!(inbox.bytes(), b"efghi");
        assert_eq!(shared.to_vec(), b"abcd");
    }

    #[test]
    fn a_long_message_gets_a_larger_buffer_for_a_while() {
        let mut inbox = Inbox::new(Pool::default(), true);
        receive(&mut inbox, b"head", None);
        inbox.need(3 * RECEIVE_LEN);
        inbox.make_room();
        assert_eq!(inbox.bytes(), b"head");
        assert!(inbox.room(None).1.len() >= 3 * RECEIVE_LEN - 4);
        inbox.make_room();
        assert!(inbox.room(None).1.len() >= 3 * RECEIVE_LEN - 4, "still");
        inbox.take(4);
        inbox.make_room();
        assert_eq!(inbox.room(None).1.len(), RECEIVE_LEN);
    }
}
