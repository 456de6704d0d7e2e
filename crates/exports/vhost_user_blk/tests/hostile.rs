//! Drivers and front-ends that break the rules: the queue or the connection ends, the server does not, and nobody else notices.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use blockyard_blkmq::{Disk, Limits};
use blockyard_buf::RegionSpec;
use blockyard_driver_file::FileConfig;
use blockyard_driver_ram::Ram;
use blockyard_vhost_user::queue::F_INDIRECT_DESC;
use blockyard_vhost_user::wire::{
    ConfigSpan, Inflight, Message, Reply, VringAddr, VringFd, VringState,
};
use common::frontend::*;
use common::{DISK_BYTES, Served, file, ram};
use rustix::event::{EventfdFlags, eventfd};

const READ: u32 = 0;
const OUT: u32 = 1;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;
const OK: u8 = 0;
const IO_ERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What a driver does; the queue must break, and another front-end is served afterwards.
fn breaks(name: &str, features: u64, act: impl FnOnce(&FrontEnd)) {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), features);
    assert_eq!(driver.request(READ, 0, 512), OK, "{name}: before");
    let used = driver.used_index(0);
    act(&driver);
    driver.kick(0);
    assert!(driver.is_broken(0), "{name}");
    assert_eq!(driver.used_index(0), used, "{name}: nothing of it is used");
    assert!(driver.is_served(), "{name}: the connection lives");
    let stopped = driver.ask(&Message::GetVringBase(VringState { index: 0, num: 0 }));
    assert!(matches!(stopped, Reply::Base(_)), "{name}");
    drop(driver);
    let next = FrontEnd::started(&served.socket(), features);
    next.set_available(0, 0);
    assert_eq!(next.request(READ, 0, 512), OK, "{name}: after");
}

/// Memory that the guest has never touched is none of the host's, whatever the guest asks that cannot be.
#[test]
fn a_request_that_cannot_be_brings_in_none_of_the_memory_that_it_names() {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), ALL);
    assert_eq!(driver.request(READ, 0, 4096), OK);
    let blocks = || rustix::fs::fstat(&driver.file).unwrap().st_blocks;
    let before = blocks();
    assert_eq!(driver.request(READ, DISK_BYTES / 512, 1 << 20), IO_ERR);
    assert_eq!(driver.request(OUT, DISK_BYTES / 512, 1 << 20), IO_ERR);
    assert_eq!(blocks(), before);
    assert!(driver.is_served());
}

#[test]
fn a_chain_with_a_loop() {
    breaks("in the ring", ALL, |driver| {
        driver.descriptor(0, 4, DATA, 16, NEXT, 5);
        driver.descriptor(0, 5, DATA, 16, NEXT, 4);
        driver.offer(0, 4);
    });
    breaks("of one", ALL, |driver| {
        driver.descriptor(0, 4, DATA, 16, NEXT, 4);
        driver.offer(0, 4);
    });
    breaks("in a table", ALL, |driver| {
        driver.bytes(DATA, 16).copy_from(&descriptor(GUEST, 16, NEXT, 1));
        driver.bytes(DATA + 16, 16).copy_from(&descriptor(GUEST, 16, NEXT, 0));
        driver.descriptor(0, 4, DATA, 32, INDIRECT, 0);
        driver.offer(0, 4);
    });
}

#[test]
fn indexes_that_are_not_there() {
    breaks("head", ALL, |driver| driver.offer(0, SIZE));
    breaks("next", ALL, |driver| {
        driver.descriptor(0, 4, DATA, 16, NEXT, 0xffff);
        driver.offer(0, 4);
    });
    breaks("next in a table", ALL, |driver| {
        driver.bytes(DATA, 16).copy_from(&descriptor(GUEST, 16, NEXT, 2));
        driver.descriptor(0, 4, DATA, 32, INDIRECT, 0);
        driver.offer(0, 4);
    });
    breaks("available", ALL, |driver| driver.set_available(0, 1 + SIZE + 1));
    breaks("available, backwards", ALL, |driver| driver.set_available(0, 0));
}

#[test]
fn indirect_tables_that_cannot_be() {
    for (name, len) in [("empty", 0), ("odd", 24), ("huge", 16 << 20), ("all", u32::MAX)] {
        breaks(name, ALL, |driver| {
            driver.descriptor(0, 4, DATA, len, INDIRECT, 0);
            driver.offer(0, 4);
        });
    }
    breaks("nowhere", ALL, |driver| {
        driver.descriptor(0, 4, u64::MAX - 8, 32, INDIRECT, 0);
        driver.offer(0, 4);
    });
    breaks("followed by more", ALL, |driver| {
        driver.descriptor(0, 4, DATA, 32, INDIRECT | NEXT, 5);
        driver.offer(0, 4);
    });
    breaks("in a table", ALL, |driver| {
        driver.bytes(DATA, 16).copy_from(&descriptor(GUEST + DATA, 32, INDIRECT, 0));
        driver.descriptor(0, 4, DATA, 32, INDIRECT, 0);
        driver.offer(0, 4);
    });
    breaks("not agreed upon", ALL & !F_INDIRECT_DESC, |driver| {
        driver.descriptor(0, 4, DATA, 32, INDIRECT, 0);
        driver.offer(0, 4);
    });
}

#[test]
fn requests_without_their_parts() {
    breaks("no status", ALL, |driver| {
        driver.header(DATA, READ, 0);
        driver.descriptor(0, 4, DATA, 16, 0, 0);
        driver.offer(0, 4);
    });
    breaks("a status of no bytes", ALL, |driver| {
        driver.header(DATA, READ, 0);
        driver.descriptor(0, 4, DATA, 16, NEXT, 5);
        driver.descriptor(0, 5, DATA, 0, WRITE, 0);
        driver.offer(0, 4);
    });
    breaks("a short header", ALL, |driver| {
        driver.descriptor(0, 4, DATA, 15, NEXT, 5);
        driver.descriptor(0, 5, DATA + 64, 1, WRITE, 0);
        driver.offer(0, 4);
    });
    breaks("no header", ALL, |driver| {
        driver.descriptor(0, 4, DATA, 1, WRITE, 0);
        driver.offer(0, 4);
    });
    breaks("status nowhere", ALL, |driver| {
        driver.header(DATA, READ, 0);
        driver.descriptor(0, 4, DATA, 16, NEXT, 5);
        driver.descriptor(0, 5, GUEST + MEMORY, 1, WRITE, 0);
        driver.offer(0, 4);
    });
    breaks("header nowhere", ALL, |driver| {
        driver.descriptor(0, 4, u64::MAX - 7, 16, NEXT, 5);
        driver.descriptor(0, 5, DATA, 1, WRITE, 0);
        driver.offer(0, 4);
    });
    breaks("the wrong order", ALL, |driver| {
        driver.descriptor(0, 4, DATA, 1, NEXT | WRITE, 5);
        driver.descriptor(0, 5, DATA, 16, 0, 0);
        driver.offer(0, 4);
    });
    breaks("more than 4 GiB", ALL, |driver| {
        driver.descriptor(0, 4, DATA, u32::MAX, NEXT, 5);
        driver.descriptor(0, 5, DATA, 16, 0, 0);
        driver.offer(0, 4);
    });
}

/// Requests that can be answered are, and change nothing.
#[test]
fn what_cannot_be_done_is_answered() {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), ALL);
    let last = DISK_BYTES / 512;
    driver.bytes(DATA, 4096).copy_from(&[7; 4096]);
    for (kind, sector, len, wanted) in [
        (OUT, last, 512, IO_ERR),
        (READ, last - 1, 1024, IO_ERR),
        (READ, u64::MAX, 512, IO_ERR),
        (OUT, u64::MAX >> 9, 512, IO_ERR),
        (READ, 0, 511, IO_ERR),
        (OUT, 0, 513, IO_ERR),
        (2, 0, 512, UNSUPPORTED),
        (99, 0, 0, UNSUPPORTED),
        (DISCARD, 0, 0, IO_ERR),
        (DISCARD, 0, 17, IO_ERR),
        (ZEROES, 0, 16 * 17, IO_ERR),
        (READ, 0, 0, OK),
        (OUT, 0, 0, OK),
        (4, u64::MAX, 0, OK),
        (READ, last - 1, 512, OK),
    ] {
        assert_eq!(driver.request(kind, sector, len), wanted, "{kind} at {sector}, {len} bytes");
    }
    // Data that is nowhere, or partly.
    for addr in [GUEST + MEMORY, u64::MAX - 100, GUEST + MEMORY - 256] {
        for kind in [READ, OUT] {
            driver.header(DATA - 32, kind, 0);
            let way = if kind == READ { WRITE } else { 0 };
            driver.descriptor(0, 0, DATA - 32, 16, NEXT, 1);
            driver.descriptor(0, 1, addr, 512, NEXT | way, 2);
            driver.descriptor(0, 2, DATA - 8, 1, WRITE, 0);
            assert_eq!(driver.answer(0), IO_ERR);
        }
    }
    assert_eq!(driver.request(READ, 0, 4096), OK);
    assert_eq!(driver.bytes(DATA, 4096).to_vec(), [0; 4096], "nothing was written");
}

#[test]
fn ranges_of_a_discard_are_checked() {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), ALL);
    driver.bytes(DATA, 4096).copy_from(&[7; 4096]);
    assert_eq!(driver.request(OUT, 0, 4096), OK);
    let ranged = |kind, list: &[(u64, u32, u32)]| {
        for (at, (sector, sectors, flags)) in list.iter().enumerate() {
            let mut bytes = sector.to_le_bytes().to_vec();
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            driver.bytes(DATA + 16 * at as u64, 16).copy_from(&bytes);
        }
        driver.request(kind, 0, 16 * list.len() as u32)
    };
    let last = DISK_BYTES / 512;
    for (kind, list, wanted) in [
        (DISCARD, &[(0, 8, 1)][..], UNSUPPORTED),
        (DISCARD, &[(0, 8, 2)], UNSUPPORTED),
        (ZEROES, &[(0, 8, 2)], UNSUPPORTED),
        (ZEROES, &[(last, 1, 0)], IO_ERR),
        (ZEROES, &[(last - 1, 2, 1)], IO_ERR),
        (DISCARD, &[(u64::MAX, u32::MAX, 0)], IO_ERR),
        (14, &[(0, 8, 0)], UNSUPPORTED),
    ] {
        assert_eq!(ranged(kind, list), wanted, "{kind} {list:?}");
    }
    assert_eq!(driver.request(READ, 0, 4096), OK);
    assert_eq!(driver.bytes(DATA, 4096).to_vec(), [7; 4096], "nothing was discarded");
    assert_eq!(ranged(ZEROES, &[(0, 1, 0), (2, 1, 1), (4, 0, 0), (6, 2, 1)]), OK);
    assert_eq!(driver.request(READ, 0, 4096), OK);
    let read = driver.bytes(DATA, 4096).to_vec();
    let zero = |sector: usize| read[sector * 512..][..512].iter().all(|byte| *byte == 0);
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6, 7].map(zero),
        [true, false, true, false, false, false, true, true]
    );
}

#[test]
fn a_descriptor_that_is_offered_twice() {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), ALL);
    assert_eq!(driver.request(READ, 0, 512), OK);
    // Both are seen together: the second is there before the first is answered.
    driver.offer_together(0, &[0, 0]);
    driver.kick(0);
    assert!(driver.is_broken(0));
    driver.wait_used(0, 2);
    assert!(driver.is_served());
}

/// A message after which the front-end is hung up on, or which is refused where an answer was asked for.
fn refused(name: &str, act: impl Fn(&FrontEnd, bool) -> Option<u64>) {
    let served = Served::new();
    let front_end = FrontEnd::negotiated(&served.socket(), ALL);
    if let Some(result) = act(&front_end, true) {
        assert_ne!(result, 0, "{name}");
        assert!(front_end.is_served(), "{name}: one that asks is told, and goes on");
    }
    act(&front_end, false);
    assert!(front_end.is_hung_up_on(), "{name}");
    let next = FrontEnd::started(&served.socket(), ALL);
    assert_eq!(next.request(READ, 0, 512), OK, "{name}: the next is served");
}

fn message(name: &str, message: &Message, fds: &[OwnedFd]) {
    refused(name, |front_end, ask| {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if ask {
            return Some(front_end.result(message, &fds));
        }
        front_end.tell(message, &fds);
        None
    });
}

#[test]
fn messages_that_cannot_be() {
    let event = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let pipe = || rustix::pipe::pipe().unwrap().1;
    let file = || rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let state = |index, num| VringState { index, num };
    let ring = |index| VringFd { index, has_fd: true };
    message("a queue that is not there", &Message::SetVringNum(state(64, 16)), &[]);
    message("a queue far away", &Message::SetVringEnable(state(u32::MAX, 1)), &[]);
    refused("a reply that there is not", |front_end, ask| {
        if !ask {
            front_end.send(&Message::GetVringBase(state(64, 0)).encode(true), &[]);
        }
        None
    });
    message("an odd size", &Message::SetVringNum(state(0, 15)), &[]);
    message("a size of nothing", &Message::SetVringNum(state(0, 0)), &[]);
    message("a huge size", &Message::SetVringNum(state(0, 1 << 16)), &[]);
    message("a base past 16 bits", &Message::SetVringBase(state(0, 1 << 16)), &[]);
    message("no event", &Message::SetVringCall(ring(0)), &[pipe()]);
    message("a start out of nothing", &Message::SetVringKick(ring(0)), &[event()]);
    let none = VringFd { index: 0, has_fd: false };
    message("polling", &Message::SetVringKick(none), &[]);
    message("features", &Message::SetFeatures(u64::MAX), &[]);
    message("protocol features", &Message::SetProtocolFeatures(u64::MAX), &[]);
    message("memory past its file", &Message::AddMemReg(region()), &[file()]);
    message("memory that is an event", &Message::AddMemReg(region()), &[event()]);
    let overlapping = RegionSpec { guest_addr: GUEST + 4096, ..region() };
    message("memory twice", &Message::AddMemReg(overlapping), &[file()]);
    let nothing = RegionSpec { size: 0, guest_addr: 0, ..region() };
    message("memory of no bytes", &Message::AddMemReg(nothing), &[file()]);
    message("memory that is not there", &Message::RemMemReg(nothing), &[]);
    let config =
        |offset, flags, len| Message::SetConfig(ConfigSpan { offset, flags, bytes: vec![0; len] });
    message("the capacity", &config(0, 0, 8), &[]);
    message("more than the cache", &config(32, 0, 2), &[]);
    let inflight = |num_queues, queue_size, mmap_size| {
        Message::SetInflightFd(Inflight { mmap_size, mmap_offset: 0, num_queues, queue_size })
    };
    message("an in-flight region past its file", &inflight(1, 16, 4096), &[file()]);
    message("an in-flight region of nothing", &inflight(0, 16, 4096), &[file()]);
    message("a small in-flight region", &inflight(1, 128, 64), &[file()]);
    message("an odd in-flight region", &inflight(1, 100, 4096), &[file()]);
}

#[test]
fn rings_that_are_nowhere() {
    for (name, addr) in [
        ("descriptors", VringAddr { descriptor: 0, ..place(0) }),
        ("available", VringAddr { available: USER + MEMORY - 8, ..place(0) }),
        ("used", VringAddr { used: u64::MAX, ..place(0) }),
        ("odd descriptors", VringAddr { descriptor: USER + 8, ..place(0) }),
        ("odd available", VringAddr { available: USER + 0x401, ..place(0) }),
        ("odd used", VringAddr { used: USER + 0x802, ..place(0) }),
    ] {
        refused(name, |front_end, ask| {
            front_end.done(&Message::SetVringNum(VringState { index: 0, num: 16 }), &[]);
            front_end.done(&Message::SetVringAddr(addr), &[]);
            let start = Message::SetVringKick(VringFd { index: 0, has_fd: true });
            let kick = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            if ask {
                return Some(front_end.result(&start, &[kick.as_fd()]));
            }
            front_end.tell(&start, &[kick.as_fd()]);
            None
        });
    }
}

#[test]
fn bytes_that_are_no_messages() {
    let valid = Message::GetFeatures.encode(false);
    let with = |at: usize, byte: u8| {
        let mut bytes = valid.clone();
        bytes[at] = byte;
        bytes
    };
    let short = Message::SetFeatures(0).encode(false)[..16].to_vec();
    for (name, bytes) in [
        ("another version", with(4, 2)),
        ("a reply", with(4, 1 | 4)),
        ("a request of no kind", with(0, 200)),
        ("a huge payload", with(10, 0xff)),
        ("a payload where there is none", [with(8, 4), vec![0; 4]].concat()),
        ("half a message", short),
    ] {
        refused(name, |front_end, ask| {
            if !ask {
                front_end.send(&bytes, &[]);
                front_end.socket.shutdown(std::net::Shutdown::Write).unwrap();
            }
            None
        });
    }
    // File descriptors where none belong, too few of them, and too many.
    let event = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let table = Message::SetMemTable(vec![region()]);
    for (message, count) in [(Message::GetFeatures, 1), (table, 0), (Message::SetOwner, 12)] {
        refused("file descriptors", |front_end, ask| {
            if !ask {
                let fds: Vec<_> = (0..count).map(|_| event()).collect();
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                front_end.send(&message.encode(false), &fds);
            }
            None
        });
    }
}

/// A ring that is served stays where it is.
#[test]
fn a_ring_that_is_served_is_not_changed() {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), ALL);
    let state = |num| VringState { index: 0, num };
    assert_ne!(driver.result(&Message::SetVringNum(state(8)), &[]), 0);
    assert_ne!(driver.result(&Message::SetVringBase(state(8)), &[]), 0);
    let elsewhere = VringAddr { used: USER + 0x9000, ..place(0) };
    assert_ne!(driver.result(&Message::SetVringAddr(elsewhere), &[]), 0);
    driver.done(&Message::SetVringAddr(place(0)), &[]);
    assert_eq!(driver.request(READ, 0, 512), OK);
}

/// Memory that goes away under a guest costs its session, and nobody else notices: neither the next front-end, nor that of
/// another server in the same process.
#[test]
fn memory_that_becomes_shorter_ends_its_session_only() {
    type Act = fn(&FrontEnd);
    let cases: [(&str, Act); 5] = [
        ("the ring", |driver| {
            driver.shrink(0);
            driver.kick(0);
        }),
        ("the data of a write", |driver| {
            driver.header(DATA - 32, OUT, 0);
            driver.descriptor(0, 0, DATA - 32, 16, NEXT, 1);
            driver.descriptor(0, 1, MEMORY - 4096, 4096, NEXT, 2);
            driver.descriptor(0, 2, DATA - 8, 1, WRITE, 0);
            go_without_half(driver);
        }),
        ("the data of a read", |driver| {
            driver.header(DATA - 32, READ, 0);
            driver.descriptor(0, 0, DATA - 32, 16, NEXT, 1);
            driver.descriptor(0, 1, MEMORY - 4096, 4096, NEXT | WRITE, 2);
            driver.descriptor(0, 2, DATA - 8, 1, WRITE, 0);
            go_without_half(driver);
        }),
        ("the header", |driver| {
            driver.descriptor(0, 0, MEMORY - 4096, 16, NEXT, 2);
            driver.descriptor(0, 2, DATA - 8, 1, WRITE, 0);
            go_without_half(driver);
        }),
        ("the status", |driver| {
            driver.header(DATA - 32, READ, 0);
            driver.descriptor(0, 0, DATA - 32, 16, NEXT, 2);
            driver.descriptor(0, 2, MEMORY - 4096, 1, WRITE, 0);
            go_without_half(driver);
        }),
    ];
    let bystander = Served::new();
    let other = FrontEnd::started(&bystander.socket(), ALL);
    let served = Served::new();
    for (name, act) in cases {
        let driver = FrontEnd::started(&served.socket(), ALL);
        assert_eq!(driver.request(READ, 0, 512), OK, "{name}: before");
        act(&driver);
        assert!(driver.is_hung_up_on(), "{name}");
        assert_ne!(driver.used_index(0), 2, "{name}: nothing of it is shown");
        assert_eq!(other.request(OUT, 0, 512), OK, "{name}: the neighbour");
    }
    let next = FrontEnd::started(&served.socket(), ALL);
    assert_eq!(next.request(READ, 0, 512), OK);
}

/// Offers chain 0 of a guest whose upper half of memory goes away.
fn go_without_half(driver: &FrontEnd) {
    driver.shrink(MEMORY / 2);
    driver.offer(0, 0);
    driver.kick(0);
}

#[test]
fn an_in_flight_region_that_becomes_shorter_ends_its_session_only() {
    let served = Served::new();
    let mut driver = FrontEnd::negotiated(&served.socket(), ALL);
    let file = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 4096).unwrap();
    let shape = Inflight { mmap_size: 4096, mmap_offset: 0, num_queues: 1, queue_size: SIZE };
    driver.done(&Message::SetInflightFd(shape), &[file.as_fd()]);
    driver.start_queue(0, 0);
    assert_eq!(driver.request(READ, 0, 512), OK);
    rustix::fs::ftruncate(&file, 0).unwrap();
    driver.header(DATA - 32, READ, 0);
    driver.offer(0, 0);
    driver.kick(0);
    assert!(driver.is_hung_up_on());
    let next = FrontEnd::started(&served.socket(), ALL);
    assert_eq!(next.request(READ, 0, 512), OK);
}

/// An event that is full, and made to block after it was passed, keeps no queue thread: others on the same thread are served.
#[test]
fn an_event_that_blocks_keeps_nobody() {
    let served = Served::new();
    let mut driver =
        FrontEnd::negotiated(&served.socket(), ALL & !blockyard_vhost_user::queue::F_EVENT_IDX);
    driver.start_queue(0, 0);
    assert_eq!(driver.request(READ, 0, 512), OK);
    for event in [&driver.calls[0], &driver.errs[0]] {
        let mut count = [0; 8];
        let _ = rustix::io::read(event, &mut count);
        rustix::io::write(event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(event, rustix::fs::OFlags::empty()).unwrap();
    }
    for _ in 0..200 {
        assert_eq!(driver.request(READ, 0, 512), OK);
    }
    let call = Message::SetVringCall(VringFd { index: 0, has_fd: true });
    driver.done(&call, &[driver.calls[0].as_fd()]);
    driver.offer(0, SIZE);
    driver.kick(0);
    assert!(driver.is_broken(0));
    assert!(driver.is_served());
}

/// The ring of a queue that is served has to be in the memory that the front-end goes on with; if it is not, all stays as it was.
#[test]
fn memory_without_a_ring_is_refused_whole() {
    let served = Served::new();
    let mut driver = FrontEnd::started(&served.socket(), ALL);
    driver.start_queue(1, 0);
    let file = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 8192).unwrap();
    // With the ring of the first queue, without that of the second.
    let short = RegionSpec { size: 4096, ..region() };
    assert_ne!(driver.result(&Message::SetMemTable(vec![short]), &[file.as_fd()]), 0);
    assert_ne!(driver.result(&Message::SetMemTable(Vec::new()), &[]), 0);
    assert_ne!(driver.result(&Message::RemMemReg(region()), &[]), 0);
    for _ in 0..3 {
        assert_eq!(driver.request(READ, 0, 512), OK);
    }
}

/// Data that the disk cannot use where it is goes through memory of ours, of which a guest gets some.
#[test]
fn what_a_guest_makes_us_allocate_has_a_bound() {
    let limits = Limits { dma_alignment: 511, ..Ram::limits() };
    what_it_makes_us_allocate_has_a_bound(ram(limits));
}

/// The disk says what memory it can use: else it would get what it cannot, as long as the guest likes.
#[test]
fn what_a_guest_makes_us_allocate_for_a_file_past_the_page_cache_has_a_bound() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(2 * DISK_BYTES).unwrap();
    let (disk, threads) = file(&FileConfig { direct: true, ..FileConfig::new(path) });
    what_it_makes_us_allocate_has_a_bound(disk);
    drop(threads);
}

fn what_it_makes_us_allocate_has_a_bound(disk: Arc<Disk>) {
    let served = Served::with(disk, |export| export);
    let driver = FrontEnd::started(&served.socket(), ALL);
    // 14 times the same 2 MiB, at an odd address.
    let len = 2 << 20;
    driver.header(DATA - 32, READ, 0);
    driver.descriptor(0, 0, DATA - 32, 16, NEXT, 1);
    (1..15).for_each(|index| driver.descriptor(0, index, DATA + 1, len, NEXT | WRITE, index + 1));
    driver.descriptor(0, 15, DATA - 8, 1, WRITE, 0);
    assert_eq!(driver.answer(0), IO_ERR);
    // What fits is carried out, also if all of it comes at once.
    driver.descriptor(0, 4, DATA + 1, len, NEXT | WRITE, 15);
    assert_eq!(driver.answer(0), OK);
    let before = driver.used_index(0);
    for head in [5_u16, 8, 11] {
        driver.descriptor(0, head, DATA - 32, 16, NEXT, head + 1);
        driver.descriptor(0, head + 1, DATA + 1, len, NEXT | WRITE, head + 2);
        driver.descriptor(0, head + 2, DATA - 8, 1, WRITE, 0);
    }
    driver.offer_together(0, &[5, 8, 11]);
    driver.kick(0);
    driver.wait_used(0, before + 3);
}

/// Each refusal is a line in the log.
#[test]
fn a_front_end_that_is_refused_again_and_again_is_hung_up_on() {
    let served = Served::new();
    let front_end = FrontEnd::negotiated(&served.socket(), ALL);
    let bad = Message::SetVringNum(VringState { index: 0, num: 3 });
    (0..32).for_each(|_| assert_ne!(front_end.result(&bad, &[]), 0));
    front_end.send(&bad.encode(true), &[]);
    assert!(front_end.is_hung_up_on());
}
