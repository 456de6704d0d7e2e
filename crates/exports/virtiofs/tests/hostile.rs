//! Drivers and front-ends that break the rules: the request, the queue or the connection ends, the server does not.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use blockyard_conformance::front_end::{GUEST, INDIRECT, MEMORY, NEXT, WRITE, descriptor};
use blockyard_fuse::dirent::parse_plus;
use blockyard_fuse::wire::*;
use blockyard_fuse::{Name, Operation, ROOT_ID};
use blockyard_vhost_user::wire::{Inflight, Message, Reply, VringState};
use common::*;

/// What a driver puts into queue 1 has that queue stopped; the other goes on, and the next front-end is served.
fn breaks(name: &str, act: impl FnOnce(&mut Driver)) {
    let served = Served::new();
    fs::write(served.dir().join("file"), "content").unwrap();
    let mut guest = Driver::mounted(&served.socket());
    let node = guest.look_up("file").unwrap().nodeid;
    let fh = guest.open(node, 0).unwrap();
    let used = guest.front.used_index(REQUESTS);
    act(&mut guest);
    guest.front.kick(1);
    assert!(guest.front.is_broken(1), "{name}");
    assert_eq!(guest.front.used_index(REQUESTS), used, "{name}: nothing of it is used");
    assert_eq!(guest.read(2, fh, 0, 7).unwrap(), b"content", "{name}: another queue");
    let stopped = guest.front.ask(&Message::GetVringBase(VringState { index: 1, num: 0 }));
    assert!(matches!(stopped, Reply::Base(_)), "{name}");
    drop(guest);
    let mut next = Driver::mounted(&served.socket());
    next.look_up("file").unwrap();
}

#[test]
fn chains_that_cannot_be_stop_their_queue() {
    let (at, to) = places(REQUESTS);
    breaks("a loop", |guest| {
        guest.front.descriptor(REQUESTS, 0, at, 40, NEXT, 1);
        guest.front.descriptor(REQUESTS, 1, at, 40, NEXT, 0);
        guest.front.offer(REQUESTS, 0);
    });
    breaks("no such descriptor", |guest| guest.front.offer(REQUESTS, 16));
    breaks("no such next descriptor", |guest| {
        guest.front.descriptor(REQUESTS, 0, at, 40, NEXT, 16);
        guest.front.offer(REQUESTS, 0);
    });
    breaks("a place for an answer before the request", |guest| {
        guest.chain(REQUESTS, &[(to, 16, WRITE), (at, 40, 0)]);
        guest.front.offer(REQUESTS, 0);
    });
    breaks("more than there can be", |guest| {
        let index = guest.front.used_index(REQUESTS);
        guest.front.set_available(REQUESTS, index.wrapping_add(17));
    });
    breaks("an indirect table of half a descriptor", |guest| {
        guest.chain(REQUESTS, &[(at, 24, INDIRECT)]);
        guest.front.offer(REQUESTS, 0);
    });
    breaks("a table in a table", |guest| {
        guest.front.bytes(at, 16).copy_from(&descriptor(GUEST + at, 16, INDIRECT, 0));
        guest.chain(REQUESTS, &[(at, 16, INDIRECT)]);
        guest.front.offer(REQUESTS, 0);
    });
}

#[test]
fn requests_that_are_nowhere_stop_their_queue() {
    let (at, to) = places(REQUESTS);
    for (name, addr, len) in [
        ("past the end", MEMORY - 20, 40),
        ("before the start", 0xffff_ffff_0000, 40),
        ("around all addresses", u64::MAX - 10, 40),
        ("too long", at, u32::MAX),
    ] {
        breaks(name, |guest| {
            let bytes = guest.encode(ROOT_ID, &Operation::Statfs);
            guest.front.bytes(at, bytes.len()).copy_from(&bytes);
            guest.chain(REQUESTS, &[(at, 40, 0), (to, 16, WRITE), (addr, len, WRITE)]);
            guest.front.offer(REQUESTS, 0);
        });
        breaks(name, |guest| {
            guest.chain(REQUESTS, &[(addr, len, 0), (to, 16, WRITE)]);
            guest.front.offer(REQUESTS, 0);
        });
    }
    for len in [0, 1, 39] {
        breaks("a short header", |guest| {
            guest.chain(REQUESTS, &[(at, len, 0), (to, 16, WRITE)]);
            guest.front.offer(REQUESTS, 0);
        });
    }
    breaks("no request at all", |guest| {
        guest.chain(REQUESTS, &[(to, 16, WRITE)]);
        guest.front.offer(REQUESTS, 0);
    });
}

/// What each is answered; the next request finds everything as it was.
#[test]
fn requests_that_make_no_sense_are_answered_with_an_error() {
    let served = Served::new();
    fs::write(served.dir().join("file"), "content").unwrap();
    let mut guest = Driver::mounted(&served.socket());
    let node = guest.look_up("file").unwrap().nodeid;
    let fh = guest.open(node, 2).unwrap();
    let errno = |guest: &mut Driver, bytes: &[u8], data: &[u8], room: u32| {
        guest.put(REQUESTS, bytes, data, room);
        guest.front.finish(REQUESTS, 0);
        let answer = guest.answer(REQUESTS);
        let said = answer.get(4..8).map(|said| -i32::from_le_bytes(said.try_into().unwrap()));
        said.filter(|_| answer.len() == OUT)
    };
    let lookup = Operation::Lookup(Name::new(b"file").unwrap());
    // A length that is not its own, both ways; an operation that there is not; a name without an end.
    for len in [0_u32, 39, 40, 44, 46, u32::MAX] {
        let mut bytes = guest.encode(ROOT_ID, &lookup);
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        assert_eq!(errno(&mut guest, &bytes, &[], 1000), Some(EINVAL), "{len}");
    }
    let mut bytes = guest.encode(ROOT_ID, &lookup);
    bytes[4..8].copy_from_slice(&4000_u32.to_le_bytes());
    assert_eq!(errno(&mut guest, &bytes, &[], 1000), Some(ENOSYS));
    let mut bytes = guest.encode(ROOT_ID, &lookup);
    *bytes.last_mut().unwrap() = b'x';
    assert_eq!(errno(&mut guest, &bytes, &[], 1000), Some(EINVAL));
    // Data that are fewer or more than is said.
    for size in [0, 6, 8, u32::MAX] {
        let args = WriteIn { fh, size: 7, ..WriteIn::default() };
        let payload = blockyard_fuse::Payload { here: &[], elsewhere: 7 };
        let mut bytes = guest.encode(node, &Operation::Write(args, payload));
        bytes[56..60].copy_from_slice(&size.to_le_bytes());
        assert_eq!(errno(&mut guest, &bytes, b"CONTENT", 8), Some(EINVAL), "{size}");
    }
    // Nodes and files that were never given, sizes past the end of all files.
    let read = |fh, offset, size| Operation::Read(ReadIn { fh, offset, size, ..ReadIn::default() });
    for (operation, expected) in [
        (read(fh + 9, 0, 8), EBADF),
        (read(fh, u64::MAX - 3, 8), EINVAL),
        (Operation::Getattr(GetattrIn::default()), ESTALE),
    ] {
        let bytes = guest.encode(77, &operation);
        assert_eq!(errno(&mut guest, &bytes, &[], 120), Some(expected), "{operation:?}");
    }
    // Too little room for an answer, or for any: a read that is cut short would be the end of the file.
    let bytes = guest.encode(ROOT_ID, &lookup);
    assert_eq!(errno(&mut guest, &bytes, &[], EntryOut::LEN as u32 - 1), Some(EIO));
    let bytes = guest.encode(node, &read(fh, 0, 7));
    assert_eq!(errno(&mut guest, &bytes, &[], 6), Some(EIO));
    let bytes = guest.encode(ROOT_ID, &lookup);
    let (at, to) = places(REQUESTS);
    for room in [None, Some(0), Some(15)] {
        guest.front.bytes(at, bytes.len()).copy_from(&bytes);
        let mut parts = vec![(at, bytes.len() as u32, 0)];
        parts.extend(room.map(|room| (to, room, WRITE)));
        guest.front.bytes(to, 16).copy_from(&[0xaa; 16]);
        guest.chain(REQUESTS, &parts);
        guest.front.finish(REQUESTS, 0);
        assert_eq!(guest.front.last_used(REQUESTS), (0, 0), "{room:?}");
        assert_eq!(guest.front.bytes(to, 16).to_vec(), [0xaa; 16], "{room:?}");
    }
    // An INIT that is cut short ends nothing that was agreed upon.
    let init = Operation::Init(blockyard_fuse::init::InitIn::new(0, InitFlags::empty()));
    let mut bytes = guest.encode(0, &init);
    bytes.truncate(44);
    bytes[..4].copy_from_slice(&44_u32.to_le_bytes());
    assert_eq!(errno(&mut guest, &bytes, &[], 64), Some(EINVAL));
    assert_eq!(guest.read(REQUESTS, fh, 0, 7).unwrap(), b"content");
}

#[test]
fn names_and_lookups_of_a_guest_lead_nowhere() {
    let served = Served::new();
    fs::write(served.dir().parent().unwrap().join("secret"), "secret").unwrap();
    let mut guest = Driver::mounted(&served.socket());
    for name in ["..", "a/../../secret", "/etc/passwd", "."] {
        let mut bytes = guest.encode(ROOT_ID, &Operation::Lookup(Name::new(b"x").unwrap()));
        bytes.truncate(40);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        guest.put(REQUESTS, &bytes, &[], 1000);
        guest.front.finish(REQUESTS, 0);
        assert_eq!(guest.answer(REQUESTS)[4..8], (-EINVAL).to_le_bytes(), "{name}");
    }
    // A link to the outside is what it is, also in a list, and leads nowhere.
    symlink("..", served.dir().join("out")).unwrap();
    let is_link = |attr: &Attr| attr.mode & 0o170_000 == 0o120_000;
    let out = guest.look_up("out").unwrap();
    assert!(is_link(&out.attr), "{:o}", out.attr.mode);
    let secret = Operation::Lookup(Name::new(b"secret").unwrap());
    assert_eq!(guest.call(out.nodeid, &secret).unwrap_err(), ENOTDIR);
    assert_eq!(guest.open(out.nodeid, 0).unwrap_err(), EPERM);
    let opened = guest.call(ROOT_ID, &Operation::Opendir(OpenIn::default())).unwrap();
    let Answer::Open(OpenOut { fh, .. }) = opened else { panic!("{opened:?}") };
    let list = Operation::Readdirplus(ReadIn { fh, size: 4096, ..ReadIn::default() });
    let answer = guest.call(ROOT_ID, &list).unwrap();
    let Answer::Data(data) = answer else { panic!("{answer:?}") };
    let listed = parse_plus(&data).map(Result::unwrap);
    let listed: Vec<_> = listed.filter(|listed| listed.entry.name.bytes() == b"out").collect();
    assert_eq!(listed.len(), 1);
    let found = listed[0].found.unwrap();
    assert!(found.nodeid == out.nodeid && is_link(&found.attr), "{:o}", found.attr.mode);
    // Far more than it was given.
    for lookups in [1, u64::MAX] {
        let forget = guest.encode(ROOT_ID, &Operation::Forget { nlookup: lookups });
        guest.put(HIPRIO, &forget, &[], 0);
        guest.front.finish(HIPRIO, 0);
    }
    guest.call(ROOT_ID, &Operation::Getattr(GetattrIn::default())).unwrap();
}

#[test]
fn messages_about_what_was_not_offered_are_refused() {
    let served = Served::new();
    let guest = Driver::connect(&served.socket());
    let shape = Inflight { num_queues: 3, queue_size: 16, ..Inflight::default() };
    let refused = Message::SetInflightFd(shape);
    assert_eq!(guest.front.result(&refused, &[std::os::fd::AsFd::as_fd(&guest.front.file)]), 1);
    let all = Message::SetProtocolFeatures(u64::MAX);
    assert_eq!(guest.front.result(&all, &[]), 1);
    let fourth = Message::SetVringNum(VringState { index: 3, num: 16 });
    assert_eq!(guest.front.result(&fourth, &[]), 1);
    guest.front.tell(&Message::GetInflightFd(shape), &[]);
    assert!(guest.front.is_hung_up_on());
}

#[test]
fn memory_that_is_lost_ends_the_session_and_no_other() {
    let served = Served::new();
    fs::write(served.dir().join("file"), vec![7; 100_000]).unwrap();
    let mut guest = Driver::mounted(&served.socket());
    let node = guest.look_up("file").unwrap().nodeid;
    let fh = guest.open(node, 2).unwrap();
    let read = Operation::Read(ReadIn { fh, size: 4096, ..ReadIn::default() });
    let bytes = guest.encode(node, &read);
    let (at, _) = places(REQUESTS);
    guest.front.bytes(at, bytes.len()).copy_from(&bytes);
    guest.chain(REQUESTS, &[(at, bytes.len() as u32, 0), (MEMORY - 8192, 4112, WRITE)]);
    guest.front.shrink(MEMORY - 8192);
    guest.front.offer(REQUESTS, 0);
    guest.front.kick(1);
    assert!(guest.front.is_hung_up_on());
    let mut next = Driver::mounted(&served.socket());
    next.look_up("file").unwrap();
}
