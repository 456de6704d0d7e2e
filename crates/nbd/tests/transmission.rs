//! Replies of our server read by our client, in pieces; and replies of servers that make no sense.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::HashMap;

use blockyard_nbd::Error;
use blockyard_nbd::client::{Chunk, Expected, Parsed, ReplyParser};
use blockyard_nbd::server::{ExtentList, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, HeaderStyle, Request};
use proptest::prelude::*;

const OFFSET: u64 = 1 << 33;

fn request(command: Command, cookie: u64, length: u64) -> Request {
    Request { command, flags: CommandFlags::empty(), cookie, offset: OFFSET, length }
}

/// What a client makes of a stream: the data of the read with cookie 1, and what else it was told.
#[derive(Debug, PartialEq)]
struct Seen {
    data: Vec<u8>,
    told: Vec<String>,
    ended: Vec<(u64, Result<(), ErrorCode>)>,
}

/// Reads `stream`, of which `step` more bytes come whenever more are needed.
fn read(style: HeaderStyle, length: u64, stream: &[u8], step: usize) -> Result<Seen, Error> {
    let mut in_flight = HashMap::from([
        (1, Expected::new(request(Command::Read, 1, length))),
        (2, Expected::new(request(Command::Write, 2, length))),
        (3, Expected::block_status(request(Command::BlockStatus, 3, length), &[0])),
    ]);
    let parser = ReplyParser::new(style);
    let mut data = vec![0xee; usize::try_from(length).unwrap()];
    let (mut told, mut ended) = (Vec::new(), Vec::new());
    let (mut at, mut given) = (0, 0);
    loop {
        let (reply, consumed) = match parser.parse(&stream[at..given], &mut in_flight)? {
            Parsed::Reply { reply, consumed } => (reply, consumed),
            Parsed::NeedMore(need) => {
                assert!(need > given - at);
                if given == stream.len() {
                    return Ok(Seen { data, told, ended });
                }
                given = stream.len().min(given.saturating_add(step));
                continue;
            }
        };
        at += consumed;
        let place = |offset: u64, length: u64| {
            let start = usize::try_from(offset - OFFSET).unwrap();
            start..start + usize::try_from(length).unwrap()
        };
        match reply.chunk {
            Chunk::Data { offset, length } => {
                let place = place(offset, length);
                let Some(bytes) = stream.get(at..at + place.len()) else {
                    return Ok(Seen { data, told, ended });
                };
                at += bytes.len();
                given = given.max(at);
                data[place].copy_from_slice(bytes);
            }
            Chunk::Hole { offset, length } => data[place(offset, length)].fill(0),
            Chunk::Status { context, extents } => {
                told.push(format!("{context} {:?}", extents.collect::<Vec<_>>()));
            }
            Chunk::Error { error, offset, message } => {
                told.push(format!("{error} {offset:?} {}", String::from_utf8_lossy(message)));
            }
            Chunk::None => {}
        }
        if reply.done {
            let expected = in_flight.remove(&reply.cookie).unwrap();
            ended.push((reply.cookie, expected.result()));
        }
    }
}

fn style() -> impl Strategy<Value = HeaderStyle> {
    prop_oneof![
        Just(HeaderStyle::Simple),
        Just(HeaderStyle::Structured),
        Just(HeaderStyle::Extended)
    ]
}

proptest! {
    /// A disk's content, read in chunks of random lengths and order, mixed with replies to others.
    #[test]
    fn what_the_server_sends_is_what_the_client_reads(
        style in style(),
        runs in prop::collection::vec((1_usize..60, 0_u8..4), 1..20),
        order in any::<prop::sample::Index>(),
        step in 1_usize..100,
    ) {
        let disk: Vec<u8> = runs.iter().flat_map(|&(length, byte)| vec![byte; length]).collect();
        let length = disk.len() as u64;
        let encoder = ReplyEncoder::new(style);
        let to = |cookie| ReplyTo { cookie, offset: OFFSET };
        let mut stream = Vec::new();
        let mut list = ExtentList::new(length, false, u32::MAX);
        for &(length, byte) in &runs {
            list.push(length as u64, u64::from(byte == 0));
        }
        if encoder.can_send_holes() {
            encoder.block_status(&mut stream, to(3), 0, &list, true);
            let mut at = 0;
            let mut chunks: Vec<Vec<u8>> = runs.iter().map(|&(length, byte)| {
                let (offset, len) = (OFFSET + at as u64, u32::try_from(length).unwrap());
                let from = at;
                at += length;
                if byte == 0 {
                    encoder.hole(to(1), offset, len, false).to_vec()
                } else {
                    [&encoder.data(to(1), offset, len, false)[..], &disk[from..at]].concat()
                }
            }).collect();
            let middle = order.index(chunks.len());
            chunks.rotate_left(middle);
            let ok = encoder.ok(to(2)).to_vec();
            chunks.insert(middle, ok);
            stream.extend(chunks.concat());
            stream.extend_from_slice(&encoder.ok(to(1)));
        } else {
            stream.extend_from_slice(&encoder.error(to(3), ErrorCode::EINVAL));
            stream.extend_from_slice(&encoder.data(to(1), OFFSET, u32::try_from(length).unwrap(), true));
            stream.extend_from_slice(&disk);
            stream.extend_from_slice(&encoder.ok(to(2)));
        }
        let seen = read(style, length, &stream, step).unwrap();
        prop_assert_eq!(&seen.data, &disk);
        prop_assert_eq!(seen.ended.len(), 3);
        prop_assert!(seen.ended.contains(&(1, Ok(()))) && seen.ended.contains(&(2, Ok(()))));
        if encoder.can_send_holes() {
            let extents: Vec<_> = list.extents().iter().map(|e| (e.length, e.status)).collect();
            prop_assert_eq!(&seen.told, &[format!("0 {extents:?}")]);
        }
        prop_assert_eq!(read(style, length, &stream, usize::MAX), Ok(seen));
    }

    #[test]
    fn any_bytes_are_read_or_refused_the_same_in_pieces(
        style in style(),
        junk in prop::collection::vec(
            (0_u16..2, prop_oneof![0_u16..8, 0x8000_u16..0x8004], 0_u64..5,
             prop::collection::vec(any::<u8>(), 0..40)),
            0..6,
        ),
        step in 1_usize..30,
    ) {
        let mut stream = Vec::new();
        for (flags, kind, cookie, payload) in junk {
            stream.extend_from_slice(&style.reply_magic().to_be_bytes());
            stream.extend_from_slice(&flags.to_be_bytes());
            stream.extend_from_slice(&kind.to_be_bytes());
            stream.extend_from_slice(&cookie.to_be_bytes());
            if style == HeaderStyle::Extended {
                stream.extend_from_slice(&OFFSET.to_be_bytes());
                stream.extend_from_slice(&[0; 4]);
            }
            stream.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
            stream.extend_from_slice(&payload);
        }
        prop_assert_eq!(read(style, 64, &stream, step), read(style, 64, &stream, usize::MAX));
    }
}

#[test]
fn errors_at_offsets_leave_the_rest_of_the_stream_readable() {
    let style = HeaderStyle::Structured;
    let (encoder, to) = (ReplyEncoder::new(style), ReplyTo { cookie: 1, offset: OFFSET });
    let mut stream = encoder.data(to, OFFSET, 4, false).to_vec();
    stream.extend_from_slice(b"good");
    stream.extend_from_slice(&encoder.error_at(to, ErrorCode::EIO, OFFSET + 4, false));
    stream.extend_from_slice(&encoder.ok(to));
    stream.extend_from_slice(&encoder.ok(ReplyTo { cookie: 2, ..to }));
    let seen = read(style, 8, &stream, 3).unwrap();
    assert_eq!(seen.data, b"good\xee\xee\xee\xee");
    assert_eq!(seen.told, [format!("NBD_EIO Some({}) ", OFFSET + 4)]);
    assert_eq!(seen.ended, [(1, Err(ErrorCode::EIO)), (2, Ok(()))]);
}
