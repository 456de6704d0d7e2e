//! Frames of a hostile peer. First byte: bit 0 whether they are encrypted, the others how much comes at a time, all if they
//! are 0; bodies that are lent are filled. What comes out is encoded and read again.
#![no_main]

use blockyard_rados::msgr::{
    CONNECTION_SECRET_LEN, ConnectionSecret, Decoder, Encoder, Frame, Message, Transmit,
};
use bytes::BufMut as _;
use libfuzzer_sys::fuzz_target;

/// Bodies of more than 64 KiB are lent.
const MAX: u64 = 1 << 18;

/// The next frame of what comes `step` bytes at a time.
fn next(decoder: &mut Decoder, input: &mut &[u8], step: usize) -> Option<Frame> {
    loop {
        let (piece, later) = input.split_at(input.len().min(step));
        let mut left = piece;
        let frame = decoder.decode(&mut left).ok()?;
        *input = &input[piece.len() - left.len()..];
        if frame.is_some() {
            return frame;
        }
        assert!(left.is_empty() && *input == later);
        if let Some(mut body) = decoder.lend() {
            let room = body.room().remaining_mut();
            assert!(room > 0);
            let (piece, later) = input.split_at(input.len().min(room).min(step));
            body.room().put_slice(piece);
            *input = later;
            decoder.give_back(body);
            let frame = decoder.decode(&mut &[][..]).ok()?;
            if frame.is_some() {
                return frame;
            }
        }
        if input.is_empty() {
            return None;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, mut input)) = data.split_first() else { return };
    let secret = ConnectionSecret::parse(&[7; CONNECTION_SECRET_LEN]).expect("it is long enough");
    let (mut encoder, mut decoder, mut again) =
        (Encoder::new(), Decoder::new(MAX), Decoder::new(MAX));
    if how & 1 == 1 {
        // No fuzzer forges a code: the frames are encrypted here, from the plain ones that it makes.
        encoder.secure(&secret);
        again.secure_server(&secret);
    }
    let step = match usize::from(how >> 1) {
        0 => usize::MAX,
        step => step * 8,
    };
    while let Some(frame) = next(&mut decoder, &mut input, step) {
        assert!(frame.segments.iter().map(|segment| segment.len() as u64).sum::<u64>() <= MAX);
        let mut transmit = Transmit::default();
        encoder.encode(&frame, &mut transmit);
        let mut pieces = Vec::new();
        transmit.drain(&mut pieces);
        let bytes = pieces.concat();
        let mut rest = &bytes[..];
        assert_eq!(again.decode(&mut rest), Ok(Some(frame.clone())));
        assert!(rest.is_empty() && again.is_idle());
        let _ = Message::from_frame(frame);
    }
});
