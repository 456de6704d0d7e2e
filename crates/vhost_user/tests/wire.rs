//! Bytes of messages, both ways (vhost-user.rst, "Message Specification" and "Front-end message types").
#![allow(clippy::unwrap_used, reason = "tests")]

use blockyard_buf::RegionSpec;
use blockyard_vhost_user::wire::{
    ConfigSpan, HEADER_LEN, Header, Inflight, MAX_PAYLOAD, Message, Reply, VringAddr, VringFd,
    VringState, WireError, config_change,
};
use proptest::prelude::*;

/// The words of a message: request, flags, size, then the payload.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn parse(bytes: &[u8]) -> Result<Message, WireError> {
    let header = Header::parse(bytes.first_chunk().unwrap())?;
    Message::parse(&header, &bytes[HEADER_LEN..])
}

#[test]
fn requests_are_these_bytes() {
    let region = RegionSpec { guest_addr: 1, size: 2, user_addr: 3, mmap_offset: 4 };
    let addr = VringAddr { index: 1, flags: 0, descriptor: 2, used: 3, available: 4, log: 5 };
    let span = ConfigSpan { offset: 32, flags: 0, bytes: vec![1, 0, 0, 0] };
    let shape = Inflight { mmap_size: 1, mmap_offset: 2, num_queues: 3, queue_size: 4 };
    for (message, bytes) in [
        (Message::GetFeatures, words(&[1, 1, 0])),
        (Message::SetFeatures(1 << 32 | 5), words(&[2, 1, 8, 5, 1])),
        (Message::SetOwner, words(&[3, 1, 0])),
        (Message::SetMemTable(vec![region]), words(&[5, 1, 40, 1, 0, 1, 0, 2, 0, 3, 0, 4, 0])),
        (Message::SetVringNum(VringState { index: 1, num: 128 }), words(&[8, 1, 8, 1, 128])),
        (Message::SetVringAddr(addr), words(&[9, 1, 40, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])),
        (Message::GetVringBase(VringState { index: 2, num: 0 }), words(&[11, 1, 8, 2, 0])),
        (Message::SetVringKick(VringFd { index: 3, has_fd: true }), words(&[12, 1, 8, 3, 0])),
        (Message::SetVringCall(VringFd { index: 3, has_fd: false }), words(&[13, 1, 8, 0x103, 0])),
        (Message::SetConfig(span), words(&[25, 1, 16, 32, 4, 0, u32::from_ne_bytes([1, 0, 0, 0])])),
        (Message::AddMemReg(region), words(&[37, 1, 40, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0])),
    ] {
        assert_eq!(message.encode(false), bytes, "{message:?}");
        assert_eq!(parse(&bytes), Ok(message));
    }
    let inflight = Message::SetInflightFd(shape);
    let mut bytes = inflight.encode(true);
    assert_eq!(bytes[..12], words(&[32, 1 | 8, 24]));
    assert_eq!(parse(&bytes), Ok(inflight.clone()));
    // Without the bytes that C adds.
    bytes.truncate(HEADER_LEN + 20);
    bytes[8..12].copy_from_slice(&20_u32.to_ne_bytes());
    assert_eq!(parse(&bytes), Ok(inflight));
    assert_eq!(config_change().to_vec(), words(&[2, 1, 0]));
}

#[test]
fn replies_are_these_bytes() {
    let base = Reply::Base(VringState { index: 1, num: 7 });
    assert_eq!(Reply::Number(5).encode(1), words(&[1, 1 | 4, 8, 5, 0]));
    assert_eq!(base.encode(11), words(&[11, 1 | 4, 8, 1, 7]));
    let ask = Message::GetVringBase(VringState { index: 1, num: 0 });
    assert_eq!(Reply::parse(&ask, &base.encode(11)[HEADER_LEN..]), Ok(base));
}

#[test]
fn what_cannot_be_is_told_apart() {
    assert_eq!(parse(&words(&[1, 2, 0])), Err(WireError::Version(2)));
    assert_eq!(parse(&words(&[1, 1 | 4, 0])), Err(WireError::Reply));
    assert_eq!(parse(&words(&[200, 1, 0])), Err(WireError::Unknown(200)));
    assert_eq!(parse(&words(&[1, 1, 513])), Err(WireError::TooLong(513)));
    assert_eq!(parse(&words(&[2, 1, 4, 0])), Err(WireError::Malformed(2)));
    assert_eq!(parse(&words(&[5, 1, 8, 9, 0])), Err(WireError::Malformed(5)), "nine regions");
    assert_eq!(parse(&words(&[24, 1, 16, 256, 4, 0, 0])), Err(WireError::Malformed(24)));
}

proptest! {
    /// Whatever comes is a message that is written as it was read, or an error.
    #[test]
    fn any_bytes_are_a_message_or_an_error(request in 0_u32..45, payload in prop::collection::vec(any::<u8>(), 0..MAX_PAYLOAD)) {
        let size = u32::try_from(payload.len()).unwrap();
        let header = Header { request, reply: false, need_reply: false, size };
        if let Ok(message) = Message::parse(&header, &payload) {
            prop_assert_eq!(parse(&message.encode(false)), Ok(message));
        }
    }
}
