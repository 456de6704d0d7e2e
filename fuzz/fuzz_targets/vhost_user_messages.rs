//! Whatever a front-end sends, it is refused, or is a message that is written back the same.
#![no_main]

use blockyard_vhost_user::wire::{HEADER_LEN, Header, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = Header::parse(head) else { return };
    let payload = &payload[..payload.len().min(header.size as usize)];
    let Ok(message) = Message::parse(&header, payload) else { return };
    let written = message.encode(header.need_reply);
    let split = written.split_first_chunk::<HEADER_LEN>();
    let (head, payload) = split.expect("a message has a header");
    let again = Header::parse(head).expect("we read what we write");
    assert_eq!(again.size as usize, payload.len());
    assert_eq!(Message::parse(&again, payload).as_ref(), Ok(&message));
});
