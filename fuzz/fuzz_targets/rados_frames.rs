//! Frames of a hostile peer. First byte: bit 0 whether they are encrypted; what comes out is encoded and read again.
#![no_main]

use blockyard_rados::msgr::{
    CONNECTION_SECRET_LEN, ConnectionSecret, Decoder, Encoder, Message, Transmit,
};
use libfuzzer_sys::fuzz_target;

const MAX: u64 = 1 << 16;

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
    while let Ok(Some(frame)) = decoder.decode(&mut input) {
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
