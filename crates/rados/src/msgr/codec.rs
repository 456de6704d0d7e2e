//! Frames of revision 1 on the wire.
//!
//! With checksums: preamble, first segment, its crc if it is not empty, the other segments; then, with more than one
//! segment, an epilogue: a status byte and three crcs.
//!
//! Encrypted: one block of the preamble and the first 48 bytes of the first segment; then, if there is more, one block
//! of the rest of the first segment, the other segments, and with more than one segment an epilogue of 16 bytes. Each
//! piece is filled up with zeroes to 16 bytes, and each of the two blocks is followed by its code.

use super::body::{Rest, Spares};
use super::crc::{DATA_SEED, ceph_crc32c};
use super::frame::{Frame, MAX_SEGMENTS, PREAMBLE_LEN, Preamble, Segments, Tag};
use super::secure::{BLOCK, CODE_LEN, ConnectionSecret, Gcm};
use super::transmit::Transmit;
use crate::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// Bytes of the first segment that are encrypted together with the preamble.
const INLINE: usize = 48;
/// Bytes of the first block of an encrypted frame.
const SECURE_HEAD: usize = PREAMBLE_LEN + INLINE + CODE_LEN;
/// Bytes of a crc, and of the epilogue with crcs.
const CRC_LEN: usize = 4;
const CRC_EPILOGUE: usize = 1 + (MAX_SEGMENTS - 1) * CRC_LEN;
/// Status of a frame in its epilogue, the lower half of the byte: complete, or given up by its sender on the way.
const LATE_COMPLETE: u8 = 0x0e;
const LATE_ABORTED: u8 = 0x01;
const LATE_MASK: u8 = 0x0f;

const DOING: &str = "reading a frame";

const fn padded(len: usize) -> usize {
    len.next_multiple_of(BLOCK)
}

/// Makes bytes of frames.
#[derive(Debug, Default)]
pub struct Encoder {
    cipher: Option<Gcm>,
}

impl Encoder {
    /// An encoder that adds checksums.
    #[must_use]
    pub const fn new() -> Self {
        Self { cipher: None }
    }

    /// Encrypts from here on, as the client does.
    pub fn secure(&mut self, secret: &ConnectionSecret) {
        self.cipher = Some(secret.client_cipher());
    }

    /// Encrypts from here on, as the server does.
    pub fn secure_server(&mut self, secret: &ConnectionSecret) {
        self.cipher = Some(secret.server_cipher());
    }

    /// Appends a frame. With checksums, large segments are not copied.
    pub fn encode(&mut self, frame: &Frame, out: &mut Transmit) {
        let preamble = Preamble::of(frame);
        match &mut self.cipher {
            None => encode_crc(&preamble, &frame.segments, out),
            Some(cipher) => encode_secure(cipher, &preamble, &frame.segments, out),
        }
    }
}

fn encode_crc(preamble: &Preamble, segments: &Segments, out: &mut Transmit) {
    out.copy(&preamble.encode());
    let crc = |segment: &Bytes| ceph_crc32c(DATA_SEED, segment).to_le_bytes();
    let [first, others @ ..] = segments;
    if !first.is_empty() {
        out.push(first.clone());
        out.copy(&crc(first));
    }
    if preamble.count == 1 {
        return;
    }
    let mut epilogue = [0; CRC_EPILOGUE];
    epilogue[0] = LATE_COMPLETE;
    for (index, segment) in others.iter().enumerate().take(preamble.count - 1) {
        out.push(segment.clone());
        epilogue[1 + index * CRC_LEN..][..CRC_LEN].copy_from_slice(&crc(segment));
    }
    out.copy(&epilogue);
}

fn encode_secure(cipher: &mut Gcm, preamble: &Preamble, segments: &Segments, out: &mut Transmit) {
    let (inline, rest) = segments[0].split_at(segments[0].len().min(INLINE));
    let mut head = [0; PREAMBLE_LEN + INLINE];
    head[..PREAMBLE_LEN].copy_from_slice(&preamble.encode());
    head[PREAMBLE_LEN..][..inline.len()].copy_from_slice(inline);
    let code = cipher.seal(&mut head);
    out.copy(&head);
    out.copy(&code);
    let len = secure_body(preamble);
    if len == 0 {
        return;
    }
    let mut body = BytesMut::with_capacity(len);
    body.extend_from_slice(rest);
    body.resize(padded(body.len()), 0);
    for segment in &segments[1..preamble.count] {
        body.extend_from_slice(segment);
        body.resize(padded(body.len()), 0);
    }
    if preamble.count > 1 {
        let epilogue = body.len();
        body.resize(epilogue + BLOCK, 0);
        body[epilogue] = LATE_COMPLETE;
    }
    let code = cipher.seal(&mut body);
    body.extend_from_slice(&code);
    debug_assert_eq!(body.len(), len);
    out.push(body.freeze());
}

/// Bytes of the second block of an encrypted frame with its code; 0 if there is none.
fn secure_body(preamble: &Preamble) -> usize {
    let mut lengths = preamble.lengths.map(|length| length as usize);
    lengths[0] = lengths[0].saturating_sub(INLINE);
    let segments = lengths.into_iter().map(padded).sum::<usize>();
    let epilogue = if preamble.count > 1 { BLOCK } else { 0 };
    match segments + epilogue {
        0 => 0,
        len => len + CODE_LEN,
    }
}

/// Bytes behind the preamble of a frame with checksums.
fn crc_body(preamble: &Preamble) -> usize {
    let segments = preamble.lengths.iter().map(|&length| length as usize).sum::<usize>();
    let first_crc = if preamble.lengths[0] > 0 { CRC_LEN } else { 0 };
    let epilogue = if preamble.count > 1 { CRC_EPILOGUE } else { 0 };
    segments + first_crc + epilogue
}

/// Makes frames of bytes.
#[derive(Debug)]
pub struct Decoder {
    cipher: Option<Gcm>,
    max: u64,
    /// Whether larger messages are skipped; and what is still to be skipped of one.
    skips: bool,
    skip: u64,
    /// What came of the first block.
    head: [u8; SECURE_HEAD],
    head_len: usize,
    /// The preamble, once the first block is whole; then what came behind it, and how long that will be.
    preamble: Option<Preamble>,
    body: BytesMut,
    body_len: usize,
    /// Whether the body is with whoever receives.
    lent: bool,
    spares: Arc<Spares>,
}

impl Decoder {
    /// A decoder that checks checksums, and takes frames whose segments have at most `max` bytes together.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self {
            cipher: None,
            max,
            skips: false,
            skip: 0,
            head: [0; SECURE_HEAD],
            head_len: 0,
            preamble: None,
            body: BytesMut::new(),
            body_len: 0,
            lent: false,
            spares: Arc::default(),
        }
    }

    /// Takes frames of up to `max` bytes from here on. Of a larger message only the header is taken, and the rest skipped:
    /// whoever waits for it is to hear of that, and nobody else.
    pub fn skip_beyond(&mut self, max: u64) {
        (self.max, self.skips) = (max, true);
    }

    /// Decrypts from here on, as the client does.
    pub fn secure(&mut self, secret: &ConnectionSecret) {
        self.cipher = Some(secret.server_cipher());
    }

    /// Decrypts from here on, as the server does.
    pub fn secure_server(&mut self, secret: &ConnectionSecret) {
        self.cipher = Some(secret.client_cipher());
    }

    /// Whether the stream stands between two frames.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.head_len == 0 && self.skip == 0
    }

    /// Lends the body of a large frame that is not whole, so that it is received where it will stay. It is to be
    /// [given back](Self::give_back) before anything else is done.
    pub fn lend(&mut self) -> Option<Rest> {
        self.preamble?;
        let rest = Rest::of(&mut self.body, self.body_len)?;
        self.lent = true;
        Some(rest)
    }

    /// Takes a body back, with what came of it. If it is whole, [`decode`](Self::decode) gives its frame.
    ///
    /// # Panics
    /// If none was lent.
    pub fn give_back(&mut self, rest: Rest) {
        assert!(self.lent, "no body was lent");
        self.lent = false;
        self.body = rest.body;
    }

    /// Takes memory of large bodies from those of other decoders too.
    pub(crate) fn share(&mut self, spares: Arc<Spares>) {
        self.spares = spares;
    }

    /// Gives back memory that is only kept to be used again.
    pub fn forget_spares(&self) {
        self.spares.clear();
    }

    /// Takes bytes off the front of `input` up to the end of a frame, and gives that; nothing if more is needed, and
    /// then all of `input` was taken. A frame that its sender gave up is skipped.
    ///
    /// # Errors
    /// A frame that is broken, or too big. The stream cannot be used any more.
    ///
    /// # Panics
    /// If a body is lent.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Frame>> {
        assert!(!self.lent, "bytes came while a body is lent");
        loop {
            if !self.skip_rest(input) {
                return Ok(None);
            }
            let preamble = if let Some(preamble) = self.preamble {
                preamble
            } else if self.fill_head(input) {
                self.open_head()?
            } else {
                return Ok(None);
            };
            let wanted = self.body_len - self.body.len();
            let (taken, rest) = input.split_at(wanted.min(input.len()));
            self.body.extend_from_slice(taken);
            *input = rest;
            if taken.len() < wanted {
                return Ok(None);
            }
            self.preamble = None;
            self.head_len = 0;
            let mut body = std::mem::take(&mut self.body);
            if let Some(cipher) = &mut self.cipher {
                open_body(cipher, &mut body)?;
            }
            let body = body.freeze();
            self.spares.keep(&body);
            let segments = match &self.cipher {
                None => split_crc(&preamble, body)?,
                Some(_) => split_secure(&preamble, &self.head, body)?,
            };
            if let Some(segments) = segments {
                return Ok(Some(Frame { tag: preamble.tag, segments, left_out: self.skip }));
            }
        }
    }

    /// Drops what is left of a message that is too large; whether that is all.
    fn skip_rest(&mut self, input: &mut &[u8]) -> bool {
        let skipped = input.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        *input = &input[skipped..];
        self.skip -= skipped as u64;
        self.skip == 0
    }

    /// Collects the first block; whether it is whole.
    fn fill_head(&mut self, input: &mut &[u8]) -> bool {
        let whole = if self.cipher.is_some() { SECURE_HEAD } else { PREAMBLE_LEN };
        let (taken, rest) = input.split_at((whole - self.head_len).min(input.len()));
        self.head[self.head_len..][..taken.len()].copy_from_slice(taken);
        self.head_len += taken.len();
        *input = rest;
        self.head_len == whole
    }

    /// Reads the preamble in the first block, and prepares for what follows.
    fn open_head(&mut self) -> Result<Preamble> {
        if let Some(cipher) = &mut self.cipher {
            let (block, code) = self.head.split_at_mut(PREAMBLE_LEN + INLINE);
            let mut copy = [0; CODE_LEN];
            copy.copy_from_slice(code);
            cipher.open(block, &copy)?;
        }
        let mut bytes = [0; PREAMBLE_LEN];
        bytes.copy_from_slice(&self.head[..PREAMBLE_LEN]);
        let mut preamble = Preamble::decode(&bytes, if self.skips { u64::MAX } else { self.max })?;
        let secure = self.cipher.is_some();
        let body = if secure { secure_body } else { crc_body };
        self.body_len = body(&preamble);
        if preamble.total() > self.max {
            let [header, ..] = preamble.lengths;
            if preamble.tag != Tag::MESSAGE || header as usize > INLINE {
                let got = preamble.total();
                return Err(Error::too_big(DOING, "bytes of a frame", got, self.max));
            }
            preamble = Preamble { tag: preamble.tag, count: 1, lengths: [header, 0, 0, 0] };
            self.skip = (self.body_len - body(&preamble)) as u64;
            self.body_len = body(&preamble);
            // The header is in the first block, and all of the second one is skipped.
            if let Some(cipher) = &mut self.cipher {
                cipher.skip();
            }
        }
        self.body = self.spares.room(self.body_len);
        self.preamble = Some(preamble);
        Ok(preamble)
    }
}

/// Whether a frame with this status is complete; false if its sender gave it up.
fn is_complete(status: u8) -> Result<bool> {
    match status & LATE_MASK {
        LATE_COMPLETE => Ok(true),
        LATE_ABORTED => Ok(false),
        _ => Err(Error::violation(DOING, "a frame is complete or aborted", status.into())),
    }
}

fn split_crc(preamble: &Preamble, mut body: Bytes) -> Result<Option<Segments>> {
    let check = |segment: &Bytes, crc: &[u8]| match ceph_crc32c(DATA_SEED, segment).to_le_bytes() {
        right if right == crc => Ok(()),
        _ => Err(Error::new(DOING, ErrorKind::Corrupted { what: "segment" })),
    };
    let mut segments = Segments::default();
    if preamble.lengths[0] > 0 {
        segments[0] = body.split_to(preamble.lengths[0] as usize);
        let crc = body.split_to(CRC_LEN);
        check(&segments[0], &crc)?;
    }
    if preamble.count == 1 {
        return Ok(Some(segments));
    }
    for (segment, &length) in segments.iter_mut().zip(&preamble.lengths).skip(1) {
        *segment = body.split_to(length as usize);
    }
    let (status, crcs) = (body[0], &body[1..]);
    if !is_complete(status)? {
        return Ok(None);
    }
    for (segment, crc) in segments[1..preamble.count].iter().zip(crcs.chunks_exact(CRC_LEN)) {
        check(segment, crc)?;
    }
    Ok(Some(segments))
}

/// Decrypts the second block of a frame.
fn open_body(cipher: &mut Gcm, body: &mut BytesMut) -> Result<()> {
    if let Some(at) = body.len().checked_sub(CODE_LEN) {
        let mut code = [0; CODE_LEN];
        code.copy_from_slice(&body[at..]);
        body.truncate(at);
        cipher.open(body, &code)?;
    }
    Ok(())
}

fn split_secure(
    preamble: &Preamble,
    head: &[u8; SECURE_HEAD],
    mut body: Bytes,
) -> Result<Option<Segments>> {
    let mut piece = |length: usize| {
        let mut piece = body.split_to(padded(length));
        piece.truncate(length);
        piece
    };
    let mut segments = Segments::default();
    let first = preamble.lengths[0] as usize;
    let inline = &head[PREAMBLE_LEN..][..first.min(INLINE)];
    let rest = piece(first - inline.len());
    segments[0] = [inline, &rest].concat().into();
    for (segment, &length) in segments.iter_mut().zip(&preamble.lengths).skip(1) {
        *segment = piece(length as usize);
    }
    if preamble.count > 1 && !is_complete(piece(BLOCK)[0])? {
        return Ok(None);
    }
    Ok(Some(segments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgr::CONNECTION_SECRET_LEN;
    use bytes::BufMut as _;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const MAX: u64 = 1 << 20;

    fn bytes_of(encoder: &mut Encoder, frames: &[Frame]) -> Vec<u8> {
        let mut transmit = Transmit::default();
        frames.iter().for_each(|frame| encoder.encode(frame, &mut transmit));
        let mut pieces = Vec::new();
        transmit.drain(&mut pieces);
        pieces.concat()
    }

    fn secret() -> ConnectionSecret {
        ConnectionSecret::parse(&[9; CONNECTION_SECRET_LEN]).unwrap()
    }

    fn pair(secure: bool) -> (Encoder, Decoder) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(MAX));
        if secure {
            encoder.secure_server(&secret());
            decoder.secure(&secret());
        }
        (encoder, decoder)
    }

    fn all(decoder: &mut Decoder, mut input: &[u8]) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.decode(&mut input)? {
            frames.push(frame);
        }
        assert!(input.is_empty());
        Ok(frames)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let len = prop_oneof![Just(0_usize), 1..100_usize, Just(48), Just(64), 4000..5000_usize];
        (1..21_u8, vec(len, 4)).prop_map(|(tag, lengths)| {
            let mut segments = Segments::default();
            for (index, (segment, length)) in segments.iter_mut().zip(lengths).enumerate() {
                *segment = (0..=250).cycle().skip(index).take(length).collect();
            }
            Frame { tag: Tag(tag), segments, left_out: 0 }
        })
    }

    proptest! {
        #[test]
        fn frames_come_back_however_the_stream_is_cut(
            frames in vec(frame(), 1..4),
            cuts in vec(1..200_usize, 1..20),
            secure: bool,
        ) {
            let (mut encoder, mut decoder) = pair(secure);
            let bytes = bytes_of(&mut encoder, &frames);
            let (mut rest, mut got) = (&bytes[..], Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, others) = rest.split_at((*cut).min(rest.len()));
                rest = others;
                got.extend(all(&mut decoder, piece).unwrap());
            }
            prop_assert_eq!(got, frames);
            prop_assert!(decoder.is_idle());
        }

        #[test]
        fn one_wrong_bit_is_found(frame in frame(), at: prop::sample::Index, bit in 0_u32..8, secure: bool) {
            let (mut encoder, mut decoder) = pair(secure);
            let mut bytes = bytes_of(&mut encoder, std::slice::from_ref(&frame));
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            // A status of which the unused half changed, or a crc of a segment that is not used, tells nothing.
            let passes = !secure && frame.segment_count() > 1 && at + CRC_EPILOGUE >= bytes.len();
            if let Ok(frames) = all(&mut decoder, &bytes) {
                prop_assert!(passes && (frames.is_empty() || frames == [frame]));
            }
        }
    }

    #[test]
    fn large_data_is_received_where_it_stays() {
        for secure in [false, true] {
            let (mut encoder, mut decoder) = pair(secure);
            let data: Vec<u8> = (0..=250).cycle().take(300_000).collect();
            let mut frame = Frame::control(Tag::MESSAGE, vec![1; 41]);
            frame.segments[3] = data.into();
            let bytes = bytes_of(&mut encoder, &[frame.clone(), frame.clone()]);
            let (mut input, mut got, mut lent) = (&bytes[..], Vec::new(), 0);
            while !input.is_empty() {
                let (piece, rest) = input.split_at(input.len().min(5000));
                input = rest;
                got.extend(all(&mut decoder, piece).unwrap());
                while let Some(mut rest) = decoder.lend() {
                    let (piece, others) = input.split_at(rest.room().remaining_mut().min(70_000));
                    rest.room().put_slice(piece);
                    input = others;
                    lent += piece.len();
                    decoder.give_back(rest);
                    got.extend(decoder.decode(&mut &[][..]).unwrap());
                }
            }
            assert_eq!(got, [frame.clone(), frame]);
            assert!(lent > 500_000 && decoder.is_idle(), "{lent} bytes were received in place");
        }
    }

    #[test]
    fn a_frame_that_was_given_up_is_skipped() {
        let mut frame = Frame::control(Tag::MESSAGE, vec![1; 41]);
        frame.segments[3] = vec![2; 10].into();
        let mut bytes = bytes_of(&mut Encoder::new(), std::slice::from_ref(&frame));
        let status = bytes.len() - CRC_EPILOGUE;
        bytes[status] = LATE_ABORTED;
        bytes.extend(bytes_of(&mut Encoder::new(), std::slice::from_ref(&frame)));
        assert_eq!(all(&mut Decoder::new(MAX), &bytes).unwrap(), [frame]);
        bytes[status] = 0x05;
        assert!(all(&mut Decoder::new(MAX), &bytes).is_err());
    }

    #[test]
    fn large_data_is_sent_from_where_it_lies() {
        let data = Bytes::from(vec![1; 1 << 16]);
        let mut frame = Frame::control(Tag::MESSAGE, vec![1; 41]);
        frame.segments[3] = data.clone();
        let mut transmit = Transmit::default();
        Encoder::new().encode(&frame, &mut transmit);
        let mut pieces = Vec::new();
        transmit.drain(&mut pieces);
        assert!(pieces.iter().any(|piece| piece.as_ptr() == data.as_ptr()));
    }

    #[test]
    fn of_a_message_over_the_limit_only_the_header_is_taken() {
        for secure in [false, true] {
            let (mut encoder, mut decoder) = pair(secure);
            decoder.skip_beyond(MAX);
            let mut large = Frame::control(Tag::MESSAGE, vec![1; 41]);
            large.segments[1] = vec![2; 10].into();
            large.segments[3] = vec![3; 3 << 20].into();
            let small = Frame::control(Tag::MESSAGE, vec![4; 41]);
            let bytes = bytes_of(&mut encoder, &[large, small.clone(), small.clone()]);
            let mut got = Vec::new();
            for piece in bytes.chunks(70_001) {
                got.extend(all(&mut decoder, piece).unwrap());
                assert!(decoder.body.capacity() < 1 << 20);
            }
            assert_eq!((got[0].tag, &got[0].segments[0][..]), (Tag::MESSAGE, &[1; 41][..]));
            assert!(got[0].left_out > 3 << 20);
            assert_eq!(got[1..], [small.clone(), small], "secure {secure}");
            let control = Frame::control(Tag::ACK, vec![1; 2 << 20]);
            assert!(all(&mut decoder, &bytes_of(&mut encoder, &[control])).is_err());
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_comes() {
        let bytes = bytes_of(&mut Encoder::new(), &[Frame::control(Tag::MESSAGE, vec![1; 100])]);
        assert!(all(&mut Decoder::new(99), &bytes[..PREAMBLE_LEN]).is_err());
    }
}
