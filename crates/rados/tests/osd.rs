//! Requests and replies, against those of `rados put` and `rados get` of 16.2.15.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_rados::encoding::{ObjectLocator, PgId, PgShard, Reader, Utime};
use blockyard_rados::error::ErrorKind;
use blockyard_rados::msgr::{BANNER_LEN, Decoder, Message, Tag};
use blockyard_rados::osd::{Op, OpCode, OsdRequest, Reply, Target};

const PUT: &[u8] = include_bytes!("../testdata/streams/crc-osd.cap");
const GET: &[u8] = include_bytes!("../testdata/streams/crc-osd-get.cap");
const FEATURES: u64 = 0x3f01_cfbd_fffd_ffff;

/// The message of one side of a captured stream.
fn message(capture: &'static [u8], server: bool) -> Message {
    let mut reader = Reader::new("reading test data", capture);
    let mut bytes = Vec::new();
    while !reader.is_empty() {
        let from_server = reader.u8().unwrap() == 1;
        let record = reader.bytes().unwrap();
        if from_server == server {
            bytes.extend_from_slice(record);
        }
    }
    let (mut input, mut decoder) = (&bytes[BANNER_LEN..], Decoder::new(1 << 20));
    let frames = std::iter::from_fn(|| decoder.decode(&mut input).unwrap());
    let frame = frames.last().unwrap();
    assert_eq!(frame.tag, Tag::MESSAGE);
    Message::from_frame(frame).unwrap().0
}

fn target() -> Target {
    let pg = PgShard { pg: PgId { pool: 2, seed: 0x1f }, shard: PgShard::NO_SHARD };
    Target { pg, hash: 0x6cf8_deff, epoch: 16 }
}

#[test]
fn a_put_is_the_message_of_a_real_client() {
    let real = message(PUT, false);
    let mut request =
        OsdRequest::new(ObjectLocator::new(2, ""), "obj1", vec![Op::write_full(real.data.clone())]);
    request.mtime = Utime { seconds: 0x6b02_e2ee, nanoseconds: 0x32c6_a660 };
    let ours = request.message(real.tid, target(), 0, FEATURES);
    assert_eq!(ours.front, real.front);
    assert_eq!((ours.kind, ours.version, ours.compat), (real.kind, real.version, real.compat));
    assert_eq!(ours.data.as_ptr(), real.data.as_ptr(), "data is not copied");
}

#[test]
fn replies_are_read() {
    let reply = Reply::parse(&message(PUT, true)).unwrap();
    assert_eq!((reply.tid, &*reply.object, reply.result, reply.attempt), (1, &b"obj1"[..], 0, 0));
    assert_eq!((reply.epoch, reply.user_version, reply.version.version), (16, 1, 1));
    assert_eq!((reply.ops.len(), reply.ops[0].code), (1, OpCode::WRITE_FULL));
    let reply = Reply::parse(&message(GET, true)).unwrap();
    assert_eq!(reply.ops[0].code, OpCode::READ);
    assert_eq!(reply.ops[0].data, message(PUT, false).data);
    assert_eq!(reply.redirect, None);
}

#[test]
fn a_reply_that_promises_more_than_it_brings_is_refused() {
    let mut short = message(GET, true);
    short.data.truncate(100);
    let error = Reply::parse(&short).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Violation { got: 5000, .. }), "{error}");
    let whole = message(GET, true);
    for len in 0..whole.front.len() - 24 {
        let cut = Message { front: whole.front.slice(..len), ..whole.clone() };
        assert!(Reply::parse(&cut).is_err(), "{len}");
    }
}

#[test]
fn data_of_several_operations_follows_in_order() {
    let ops = vec![
        Op::write(0, b"ab".as_slice().into()),
        Op::zero(9, 1),
        Op::write(5, b"c".as_slice().into()),
    ];
    let request = OsdRequest::new(ObjectLocator::new(2, ""), "obj1", ops);
    assert_eq!(request.message(1, target(), 2, FEATURES).data, b"abc"[..]);
}

/// What is asked for is bounded too, where its size is not known.
#[test]
fn what_an_operation_brings_counts() {
    let budget = |op: Op| op.budget();
    assert_eq!(budget(Op::read(0, 100)), 100);
    assert_eq!(budget(Op::read(0, 0)), 4 << 20, "up to the end");
    assert_eq!(budget(Op::call("rbd", "get_size", b"x").unwrap()), (64 << 10) + 12);
    assert!(budget(Op::omap_get_vals(b"", 1000, b"")) > 60_000);
    assert_eq!((budget(Op::stat()), budget(Op::write(0, vec![0; 9].into()))), (0, 9));
    assert_eq!(budget(Op::read(0, u64::MAX)), u64::MAX);
}
