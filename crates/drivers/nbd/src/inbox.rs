//! What came from the server and is not understood yet, and where more of it goes.

use blockyard_buf::{Buffer, Pool, Segment, Segments};

/// Bytes that are received at a time.
pub(crate) const RECEIVE_LEN: usize = 256 << 10;

/// A payload that is longer is worth a system call of its own, so that it need not be copied.
const LARGE_PAYLOAD_LEN: u64 = 64 << 10;
/// Bytes that are received past a large payload: the header of the next one.
const HEADER_ROOM: usize = 4 << 10;

/// A large buffer, so that one system call brings many replies, and the rest of a payload that is on its way to
/// its place past the buffer.
pub(crate) struct Inbox {
    pool: Pool,
    buffer: Buffer,
    /// The bytes that came and were not taken yet.
    start: usize,
    end: usize,
    /// How long the message at the front is known to be.
    message_len: usize,
    payload: Option<Payload>,
    /// Whether a payload is received into its place, rather than into the buffer and copied.
    direct: bool,
    /// Whether the last payload was large. The next one will be, too, most likely.
    large: bool,
}

/// A payload that comes.
struct Payload {
    /// Places for its rest, in order; none if it goes nowhere.
    places: Segments,
    left: u64,
}

impl Inbox {
    pub(crate) fn new(pool: Pool, direct: bool) -> Self {
        let buffer = pool.get(RECEIVE_LEN);
        Self { pool, buffer, start: 0, end: 0, message_len: 1, payload: None, direct, large: false }
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
        self.payload = None;
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

    /// The next `len` bytes are a payload, which goes to `places`, or nowhere if there are none.
    pub(crate) fn expect(&mut self, places: Segments, len: u64) {
        self.large = len >= LARGE_PAYLOAD_LEN;
        self.payload = (len > 0).then_some(Payload { places, left: len });
    }

    /// Moves what came of the payload to its place; says whether that is all of it.
    pub(crate) fn place(&mut self) -> bool {
        let Some(mut payload) = self.payload.take() else { return true };
        let here = usize::try_from(payload.left).unwrap_or(usize::MAX).min(self.end - self.start);
        payload.fill(&self.buffer[self.start..self.start + here]);
        self.take(here);
        self.payload = (payload.left > 0).then_some(payload);
        self.payload.is_none()
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

    /// Where received bytes go: the rest of the payload, then the buffer. Call [`Inbox::make_room`] before.
    pub(crate) fn room(&mut self) -> (&[Segment], &mut [u8]) {
        let places = match &self.payload {
            // What is in the buffer goes first, and a payload that goes nowhere passes through it.
            Some(payload) if self.direct && self.start == self.end => &payload.places[..],
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

    /// So many bytes came into [`Inbox::room`].
    pub(crate) fn came(&mut self, bytes: usize) {
        let mut rest = bytes;
        if self.direct
            && self.start == self.end
            && let Some(payload) = &mut self.payload
            && !payload.places.is_empty()
        {
            let here = usize::try_from(payload.left).unwrap_or(usize::MAX).min(rest);
            payload.advance(here);
            rest -= here;
            if payload.left == 0 {
                self.payload = None;
            }
        }
        self.end += rest;
        assert!(self.end <= self.buffer.len(), "more came than there was room for");
    }
}

impl Payload {
    fn fill(&mut self, mut bytes: &[u8]) {
        if self.places.is_empty() {
            self.left -= bytes.len() as u64;
            return;
        }
        while !bytes.is_empty() {
            let Some(place) = self.places.first() else {
                unreachable!("places are as long as the payload")
            };
            let here = place.len().min(bytes.len());
            place.copy_from(&bytes[..here]);
            bytes = &bytes[here..];
            self.advance(here);
        }
    }

    fn advance(&mut self, mut bytes: usize) {
        self.left -= bytes as u64;
        let whole = self.places.iter().take_while(|place| {
            let covered = place.len() <= bytes;
            bytes -= if covered { place.len() } else { 0 };
            covered
        });
        let whole = whole.count();
        self.places.drain(..whole);
        if let Some(place) = self.places.first_mut().filter(|_| bytes > 0) {
            *place = place.slice(bytes, place.len() - bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(inbox: &mut Inbox, mut bytes: &[u8]) {
        inbox.make_room();
        let (places, room) = inbox.room();
        let mut count = 0;
        for place in places {
            let here = place.len().min(bytes.len());
            place.copy_from(&bytes[..here]);
            bytes = &bytes[here..];
            count += here;
        }
        room[..bytes.len()].copy_from_slice(bytes);
        inbox.came(count + bytes.len());
    }

    #[test]
    fn past_a_large_payload_there_is_room_for_a_header_only() {
        let mut inbox = Inbox::new(Pool::default(), true);
        let large = usize::try_from(LARGE_PAYLOAD_LEN).unwrap();
        inbox.make_room();
        assert_eq!(inbox.room().1.len(), RECEIVE_LEN);
        for (len, room) in [(large, HEADER_ROOM), (4096, RECEIVE_LEN)] {
            inbox.expect([Segment::from_vec(vec![0; len])].into_iter().collect(), len as u64);
            receive(&mut inbox, &vec![1; len]);
            assert!(inbox.place());
            inbox.make_room();
            assert_eq!(inbox.room().1.len(), room, "after {len} bytes");
        }
        // A message that is longer than that is received.
        inbox.expect([Segment::from_vec(vec![0; large])].into_iter().collect(), large as u64);
        receive(&mut inbox, &vec![1; large]);
        inbox.need(HEADER_ROOM + 1);
        inbox.make_room();
        assert!(inbox.room().1.len() > HEADER_ROOM);
    }

    #[test]
    fn a_payload_goes_to_its_place_in_pieces_of_any_size() {
        let message: Vec<u8> = (0..100).collect();
        for piece in 1..=100 {
            let mut inbox = Inbox::new(Pool::default(), true);
            let places = [3, 50, 1, 26].map(|len| Segment::from_vec(vec![0; len]));
            let mut pieces = message.chunks(piece);
            while inbox.bytes().len() < 10 {
                receive(&mut inbox, pieces.next().unwrap());
            }
            inbox.take(10);
            inbox.expect(places.iter().cloned().collect(), 80);
            while !inbox.place() {
                receive(&mut inbox, pieces.next().unwrap());
            }
            let got: Vec<u8> = places.iter().flat_map(Segment::to_vec).collect();
            assert_eq!(got, message[10..90]);
            pieces.for_each(|piece| receive(&mut inbox, piece));
            assert_eq!(inbox.bytes(), &message[90..]);
        }
    }

    #[test]
    fn a_payload_that_nobody_wants_passes_by() {
        let mut inbox = Inbox::new(Pool::default(), true);
        inbox.expect(Segments::new(), 1 << 20);
        let piece = vec![7; 1000];
        let mut count = 0;
        while !inbox.place() {
            receive(&mut inbox, &piece);
            count += 1;
        }
        assert_eq!(count, (1 << 20) / 1000 + 1);
        assert_eq!(inbox.bytes().len(), 1000 - (1 << 20) % 1000);
    }

    #[test]
    fn what_was_shared_is_not_written_over() {
        let mut inbox = Inbox::new(Pool::default(), true);
        receive(&mut inbox, b"abcdef");
        let shared = inbox.take_shared(4);
        receive(&mut inbox, b"ghi");
        assert_eq!(inbox.bytes(), b"efghi");
        assert_eq!(shared.to_vec(), b"abcd");
    }

    #[test]
    fn a_long_message_gets_a_larger_buffer_for_a_while() {
        let mut inbox = Inbox::new(Pool::default(), true);
        receive(&mut inbox, b"head");
        inbox.need(3 * RECEIVE_LEN);
        inbox.make_room();
        assert_eq!(inbox.bytes(), b"head");
        assert!(inbox.room().1.len() >= 3 * RECEIVE_LEN - 4);
        inbox.make_room();
        assert!(inbox.room().1.len() >= 3 * RECEIVE_LEN - 4, "still");
        inbox.take(4);
        inbox.make_room();
        assert_eq!(inbox.room().1.len(), RECEIVE_LEN);
    }
}
