//! A hostile server's replies to three requests. First byte: the headers; the rest is what the client gets.
#![no_main]

use std::collections::HashMap;

use blockyard_nbd::client::{Chunk, Expected, Parsed, ReplyParser};
use blockyard_nbd::wire::{Command, CommandFlags, HeaderStyle, Request};
use libfuzzer_sys::fuzz_target;

const READ: u64 = 1;
const WRITE: u64 = 2;
const STATUS: u64 = 3;
const OFFSET: u64 = 4096;
const LENGTH: u64 = 256;

fn in_flight() -> HashMap<u64, Expected> {
    let request = |command, cookie| Request {
        command,
        flags: CommandFlags::empty(),
        cookie,
        offset: OFFSET,
        length: LENGTH,
    };
    HashMap::from([
        (READ, Expected::new(request(Command::Read, READ))),
        (WRITE, Expected::new(request(Command::Write, WRITE))),
        (STATUS, Expected::block_status(request(Command::BlockStatus, STATUS), &[0, 1])),
    ])
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, mut bytes)) = data.split_first() else { return };
    let style =
        [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended][usize::from(how % 3)];
    let parser = ReplyParser::new(style);
    let mut in_flight = in_flight();
    // How often each byte of the read came.
    let mut came = [0_u8; LENGTH as usize];
    loop {
        let (reply, consumed) = match parser.parse(bytes, &mut in_flight) {
            Ok(Parsed::Reply { reply, consumed }) => (reply, consumed),
            Ok(Parsed::NeedMore(need)) => {
                assert!(need > bytes.len());
                assert!(need < 16 << 10, "more than any of the requests can ask for");
                return;
            }
            Err(_) => return,
        };
        bytes = &bytes[consumed..];
        match reply.chunk {
            Chunk::Data { offset, length } | Chunk::Hole { offset, length } => {
                assert_eq!(reply.cookie, READ);
                let start = (offset - OFFSET) as usize;
                came[start..start + length as usize].iter_mut().for_each(|times| *times += 1);
                if matches!(reply.chunk, Chunk::Data { .. }) {
                    let Some(rest) = bytes.get(length as usize..) else { return };
                    bytes = rest;
                }
            }
            Chunk::Status { context, extents } => {
                assert!(reply.cookie == STATUS && context < 2);
                assert!(extents.clone().count() > 0);
                let sum = extents.map(|(length, _)| u128::from(length)).sum::<u128>();
                assert!(sum > 0);
            }
            Chunk::Error { .. } | Chunk::None => {}
        }
        assert!(came.iter().all(|&times| times <= 1));
        if reply.done {
            let expected = in_flight.remove(&reply.cookie).expect("it was in flight");
            if reply.cookie == READ && expected.result().is_ok() {
                assert!(came.iter().all(|&times| times == 1));
            }
        }
    }
});
