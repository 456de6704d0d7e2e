//! Messages of a hostile front-end: a header of 12 bytes, and whatever follows.
#![no_main]

use blockyard_vhost_user::wire::{HEADER_LEN, Header, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((header, payload)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = Header::parse(header) else { return };
    if let Ok(message) = Message::parse(&header, payload) {
        let bytes = message.encode(header.need_reply);
        let again = Header::parse(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(Message::parse(&again, &bytes[HEADER_LEN..]), Ok(message));
    }
});
