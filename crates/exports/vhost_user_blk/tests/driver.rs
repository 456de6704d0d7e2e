//! A driver that keeps the rules, ring by ring: what a guest may count on.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::io::Read;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use blockyard_blkmq::{Features, Limits, Rate, Sector, Throttle, ThrottleGroup};
use blockyard_buf::{RegionSpec, SharedMapping, SharedWords};
use blockyard_conformance::pause;
use blockyard_driver_file::FileConfig;
use blockyard_driver_ram::Ram;
use blockyard_export_vhost_user_blk::Export;
use blockyard_vhost_user::queue::{F_EVENT_IDX, F_INDIRECT_DESC, region_len};
use blockyard_vhost_user::wire::{
    ConfigSpan, HEADER_LEN, Message, Reply, VringFd, VringState, config_change,
};
use common::frontend::*;
use common::{DISK_BYTES, Served, file, ram};
use rustix::event::{EventfdFlags, eventfd};

const READ: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const ID: u32 = 8;
const OK: u8 = 0;

fn config(driver: &FrontEnd, offset: u32, len: usize) -> Vec<u8> {
    let span = ConfigSpan { offset, flags: 0, bytes: vec![0; len] };
    match driver.ask(&Message::GetConfig(span)) {
        Reply::Config(span) => span.bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let served = Served::with(ram(Ram::limits()), |export| Export { queues: 64, ..export });
    let driver = FrontEnd::negotiated(&served.socket(), ALL);
    let space = config(&driver, 0, 256);
    let u32_at = |at: usize| u32::from_le_bytes(*space[at..].first_chunk().unwrap());
    assert_eq!(space[..8], (DISK_BYTES / 512).to_le_bytes());
    assert_eq!((u32_at(12), u32_at(20)), (126, 512), "segments, block size");
    assert_eq!(space[32..36], [1, 0, 64, 0], "write cache, queues");
    assert!(u32_at(36) > 0 && u32_at(48) > 0 && space[56] == 1, "discard, write-zeroes");
    assert_eq!(config(&driver, 8, 16), space[8..24]);
}

/// One of several may not be able to start: nobody must have been served by then.
#[test]
fn what_is_only_prepared_serves_nobody() {
    let served = Served::new();
    let socket = served.directory().join("other");
    let prepared = served.prepared(&socket);
    let front_end = FrontEnd::raw(&socket);
    front_end.tell(&Message::SetOwner, &[]);
    front_end.tell(&Message::GetFeatures, &[]);
    drop(prepared);
    let heard = (&front_end.socket).read(&mut [0; HEADER_LEN]);
    assert!(matches!(heard, Ok(0) | Err(_)), "{heard:?}");
    let started = served.prepared(&socket).start();
    FrontEnd::negotiated(&socket, ALL);
    drop(started);
}

#[test]
fn the_serial_number_is_what_was_asked_for() {
    let served = Served::with(ram(Ram::limits()), |export| Export {
        serial: "0123456789abcdefghijKLM".into(),
        ..export
    });
    let driver = FrontEnd::started(&served.socket(), ALL);
    driver.bytes(DATA, 32).fill_zero();
    assert_eq!(driver.request(ID, 0, 20), OK);
    assert_eq!(driver.bytes(DATA, 22).to_vec(), b"0123456789abcdefghij\0\0");
    assert_eq!(driver.last_used(0), (0, 21));
    driver.bytes(DATA, 32).fill_zero();
    assert_eq!(driver.request(ID, 0, 4), OK);
    assert_eq!(driver.bytes(DATA, 6).to_vec(), b"0123\0\0");
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), ALL);
    driver.header(DATA, OUT, 3);
    driver.bytes(DATA + 16, 512).copy_from(&[9; 512]);
    // Header and data in three pieces, one of them both; then the same by a table, read back.
    driver.descriptor(0, 0, DATA, 7, NEXT, 1);
    driver.descriptor(0, 1, DATA + 7, 100, NEXT, 2);
    driver.descriptor(0, 2, DATA + 107, 528 - 107, NEXT, 3);
    driver.descriptor(0, 3, DATA - 8, 1, WRITE, 0);
    assert_eq!(driver.answer(0), OK);
    driver.header(DATA, READ, 3);
    let table = [
        descriptor(GUEST + DATA, 16, NEXT, 2),
        [0; 16],
        descriptor(GUEST + DATA + 1001, 511, NEXT | WRITE, 3),
        descriptor(GUEST + DATA + 2002, 2, WRITE, 0),
    ];
    driver.bytes(DATA + 4096, 64).copy_from(&table.concat());
    driver.descriptor(0, 5, DATA + 4096, 64, INDIRECT, 0);
    let before = driver.used_index(0);
    driver.offer(0, 5);
    driver.kick(0);
    driver.wait_used(0, before + 1);
    assert_eq!(driver.last_used(0), (5, 513));
    assert_eq!(driver.bytes(DATA + 1001, 511).to_vec(), [9; 511]);
    assert_eq!(driver.bytes(DATA + 2002, 2).to_vec(), [9, OK]);
}

#[test]
fn both_kinds_of_notification_work() {
    for features in [ALL, ALL & !F_EVENT_IDX, ALL & !F_INDIRECT_DESC & !F_EVENT_IDX] {
        let served = Served::new();
        let driver = FrontEnd::started(&served.socket(), features);
        for round in 0..300_u64 {
            assert_eq!(driver.request(OUT, round % 100, 512), OK, "{features:#x} {round}");
        }
        assert!(happened(&driver.calls[0]));
    }
}

#[test]
fn a_queue_that_is_stopped_goes_on_where_it_was() {
    let served = Served::new();
    let mut driver = FrontEnd::started(&served.socket(), ALL);
    assert_eq!(driver.request(OUT, 0, 512), OK);
    driver.done(&Message::SetVringEnable(VringState { index: 0, num: 0 }), &[]);
    driver.offer(0, 0);
    driver.kick(0);
    assert!(driver.is_served());
    assert_eq!(driver.used_index(0), 1, "a disabled queue takes nothing");
    let state = VringState { index: 0, num: 0 };
    assert_eq!(
        driver.ask(&Message::GetVringBase(state)),
        Reply::Base(VringState { index: 0, num: 1 })
    );
    driver.start_queue(0, 1);
    driver.wait_used(0, 2);
    driver.done(&Message::ResetDevice, &[]);
    assert_eq!(served.server().status().queues, 0);
}

/// As one that resets its device, or a virtual machine that is saved: it waits for what its disk keeps for a day.
#[test]
fn a_queue_that_is_stopped_does_not_wait_for_limits() {
    let disk = ram(Ram::limits());
    let slow = NonZeroU64::new(1).map(|per_second| Rate { per_second, burst: None });
    let limits = Throttle { write_bps: slow, ..Throttle::default() };
    disk.set_throttle(vec![ThrottleGroup::new(limits)]);
    let served = Served::with(Arc::clone(&disk), |export| export);
    let driver = FrontEnd::started(&served.socket(), ALL);
    driver.chain(OUT, 0, 4096);
    driver.offer(0, 0);
    driver.kick(0);
    let end = Instant::now() + PATIENCE;
    while disk.oldest().is_none() {
        assert!(Instant::now() < end, "{}", disk.show());
        pause();
    }
    let stopped = driver.ask(&Message::GetVringBase(VringState { index: 0, num: 0 }));
    assert_eq!(stopped, Reply::Base(VringState { index: 0, num: 1 }));
    assert_eq!((driver.used_index(0), driver.bytes(DATA - 8, 1).to_vec()[0]), (1, OK));
}

/// It would have no limits, with as many writes in flight at each reset as it has room for.
#[test]
fn a_queue_that_is_stopped_again_and_again_keeps_to_its_limits() {
    let disk = ram(Ram::limits());
    let slow = NonZeroU64::new(1).map(|per_second| Rate { per_second, burst: None });
    let limits = Throttle { write_bps: slow, ..Throttle::default() };
    disk.set_throttle(vec![ThrottleGroup::new(limits)]);
    let served = Served::with(Arc::clone(&disk), |export| export);
    let mut driver = FrontEnd::started(&served.socket(), ALL);
    let begun = Instant::now();
    driver.chain(OUT, 0, 4096);
    driver.offer(0, 0);
    driver.kick(0);
    for round in 0..2_u32 {
        while disk.oldest().is_none() {
            assert!(begun.elapsed() < PATIENCE, "{}", disk.show());
            pause();
        }
        let state = VringState { index: 0, num: round + 1 };
        let stopped = driver.ask(&Message::GetVringBase(VringState { num: 0, ..state }));
        assert_eq!(stopped, Reply::Base(state));
        // It is taken when the queue is started.
        driver.offer(0, 0);
        driver.start_queue(0, round + 1);
    }
    // From the first on, which has not waited.
    assert!(begun.elapsed().as_secs() >= 10, "{:?}", begun.elapsed());
}

#[test]
fn without_a_flush_writes_are_durable_at_once() {
    let limits =
        Limits { features: Ram::limits().features | Features::WRITE_CACHE, ..Ram::limits() };
    let flushes = |features, cached: Option<u8>| {
        let disk = ram(limits.clone());
        let served = Served::with(Arc::clone(&disk), |export| export);
        let driver = FrontEnd::started(&served.socket(), features);
        if let Some(cached) = cached {
            let span = ConfigSpan { offset: 32, flags: 0, bytes: vec![cached] };
            driver.done(&Message::SetConfig(span), &[]);
            assert_eq!(config(&driver, 32, 1), [cached]);
        }
        assert_eq!(driver.request(OUT, 0, 512), OK);
        let count = || disk.stats().0.counters(blockyard_blkmq::StatGroup::Flush).ios;
        let before = count();
        if features & 1 << 9 != 0 {
            assert_eq!(driver.request(FLUSH, 0, 0), OK);
            assert!(count() > before);
        }
        before
    };
    assert_eq!(flushes(ALL, None), 0, "the guest flushes itself");
    assert_eq!(flushes(ALL, Some(1)), 0);
    assert!(flushes(ALL, Some(0)) > 0, "the guest wants no cache");
    assert!(flushes(ALL & !(1 << 9) & !(1 << 11), None) > 0, "the guest cannot flush");
}

#[test]
fn a_disk_that_makes_nothing_durable_offers_no_flush_and_takes_writes() {
    for more in [Features::empty(), Features::FUA] {
        let features = Ram::limits().features | Features::NO_FLUSH | more;
        let served = Served::with(ram(Limits { features, ..Ram::limits() }), |export| export);
        let Reply::Number(offered) = FrontEnd::raw(&served.socket()).ask(&Message::GetFeatures)
        else {
            panic!("no features");
        };
        assert_eq!(offered & (1 << 9 | 1 << 11), 0, "neither a flush nor a cache to switch");
        let driver = FrontEnd::started(&served.socket(), ALL & !(1 << 9) & !(1 << 11));
        assert_eq!(driver.request(OUT, 0, 512), OK, "{more:?}");
    }
}

/// What the disk tells the server meanwhile is not kept up by half a message.
#[test]
fn a_front_end_that_is_in_the_middle_of_a_message_is_told_too() {
    let served = Served::new();
    let driver = FrontEnd::negotiated(&served.socket(), ALL);
    let (ours, theirs) = UnixStream::pair().unwrap();
    driver.done(&Message::SetBackendReqFd, &[theirs.as_fd()]);
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut told = [0; HEADER_LEN];
    let message = Message::GetQueueNum.encode(false);
    for cut in 1..message.len() {
        driver.send(&message[..cut], &[]);
        served.disk.set_capacity(Sector(1000 + cut as u64)).unwrap();
        served.server().follow();
        (&ours).read_exact(&mut told).unwrap();
        assert_eq!(told, config_change());
        driver.send(&message[cut..], &[]);
        assert_eq!(driver.reply(&Message::GetQueueNum), Reply::Number(64));
    }
    // Byte by byte, and two in one packet.
    message.iter().for_each(|byte| driver.send(&[*byte], &[]));
    driver.send(&[message.clone(), message].concat(), &[]);
    (0..3).for_each(|_| assert_eq!(driver.reply(&Message::GetQueueNum), Reply::Number(64)));
}

/// Every window of the configuration space is cut out of the same space.
#[test]
fn the_configuration_space_is_read_through_any_window() {
    let served = Served::new();
    let driver = FrontEnd::negotiated(&served.socket(), ALL);
    let space = config(&driver, 0, 256);
    for offset in (0..256).step_by(7).chain([0, 1, 254, 255, 256]) {
        for len in [0, 1, 2, 3, 8, 60, 255, 256] {
            if offset + len <= 256 {
                let found = config(&driver, u32::try_from(offset).unwrap(), len);
                assert_eq!(found, space[offset..offset + len], "{len} bytes at {offset}");
            }
        }
    }
    drop(driver);
    for (offset, len) in [(256, 1), (255, 2), (1, 256), (u32::MAX, 1), (u32::MAX, 256)] {
        let driver = FrontEnd::negotiated(&served.socket(), ALL);
        let span = ConfigSpan { offset, flags: 0, bytes: vec![0; len] };
        driver.tell(&Message::GetConfig(span), &[]);
        assert!(driver.is_hung_up_on(), "{len} bytes at {offset}");
    }
}

#[test]
fn a_front_end_is_told_that_the_disk_has_changed() {
    let served = Served::new();
    let driver = FrontEnd::negotiated(&served.socket(), ALL);
    let (ours, theirs) = UnixStream::pair().unwrap();
    driver.done(&Message::SetBackendReqFd, &[theirs.as_fd()]);
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    served.disk.set_capacity(Sector(1000)).unwrap();
    served.server().follow();
    let mut message = [0; HEADER_LEN];
    (&ours).read_exact(&mut message).unwrap();
    assert_eq!(message, config_change());
    assert_eq!(config(&driver, 0, 8), 1000_u64.to_le_bytes());
}

#[test]
fn memory_comes_and_goes_under_a_queue_that_is_served() {
    let served = Served::new();
    let driver = FrontEnd::started(&served.socket(), ALL);
    let Reply::Number(slots) = driver.ask(&Message::GetMaxMemSlots) else { panic!() };
    assert!(slots >= 32);
    let more = RegionSpec {
        guest_addr: GUEST + MEMORY,
        size: 8192,
        user_addr: USER + MEMORY,
        mmap_offset: 0,
    };
    let file = rustix::fs::memfd_create("more", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 8192).unwrap();
    let mapped = SharedMapping::new(file.as_fd(), 0, 8192).unwrap();
    driver.done(&Message::AddMemReg(more), &[file.as_fd()]);
    mapped.segment(0, 4096).copy_from(&[5; 4096]);
    let across = |kind, way| {
        driver.header(DATA - 32, kind, 0);
        driver.descriptor(0, 0, DATA - 32, 16, NEXT, 1);
        driver.descriptor(0, 1, GUEST + MEMORY - 512, 1024, NEXT | way, 2);
        driver.descriptor(0, 2, DATA - 8, 1, WRITE, 0);
        driver.answer(0)
    };
    driver.bytes(MEMORY - 512, 512).copy_from(&[4; 512]);
    assert_eq!(across(OUT, 0), OK);
    assert_eq!(driver.request(READ, 0, 1024), OK);
    assert_eq!(driver.bytes(DATA, 1024).to_vec(), [[4; 512], [5; 512]].concat());
    driver.done(&Message::RemMemReg(more), &[]);
    assert_eq!(across(OUT, 0), 1);
    driver.done(&Message::SetMemTable(vec![region()]), &[driver.file.as_fd()]);
    assert_eq!(driver.request(READ, 0, 512), OK);
}

/// A file is read and written by pages at best, and may have any size: the guest sees whole sectors, and the file keeps its size.
#[test]
fn a_file_of_an_odd_size_says_what_it_prefers_and_keeps_its_size() {
    const ODD: u64 = 1 << 20 | 1777;
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk");
    std::fs::write(&path, vec![5; ODD as usize]).unwrap();
    let (disk, threads) = file(&FileConfig::new(&path));
    let served = Served::with(disk, |export| export);
    let driver = FrontEnd::started(&served.socket(), ALL);
    let space = config(&driver, 0, 60);
    let last = ODD / 512;
    assert_eq!(space[..8], (last + 1).to_le_bytes());
    assert_eq!(space[20..25], [0, 2, 0, 0, 3], "sectors of 512 bytes, eight to a block");
    let padded = |byte: u8| {
        assert_eq!(driver.request(READ, last, 512), OK);
        let (there, padding) = (ODD as usize % 512, 512 - ODD as usize % 512);
        let expected = [vec![byte; there], vec![0; padding]].concat();
        assert_eq!(driver.bytes(DATA, 512).to_vec(), expected);
    };
    padded(5);
    driver.bytes(DATA, 1024).copy_from(&[6; 1024]);
    assert_eq!(driver.request(OUT, last - 1, 1024), OK);
    assert_eq!(driver.request(OUT, last, 1024), 1, "past the end");
    padded(6);
    assert_eq!(driver.request(FLUSH, 0, 0), OK);
    let bytes = std::fs::read(&path).unwrap();
    let changed = (last as usize - 1) * 512;
    assert_eq!(bytes.len() as u64, ODD);
    assert!(bytes[..changed].iter().all(|byte| *byte == 5));
    assert!(bytes[changed..].iter().all(|byte| *byte == 6));
    drop((driver, served));
    drop(threads);
}

/// Buffers that the disk cannot take as they are go through memory that it can.
#[test]
fn a_disk_that_wants_aligned_memory_gets_it() {
    let limits = Limits { dma_alignment: 511, ..Ram::limits() };
    let served = Served::with(ram(limits), |export| export);
    let driver = FrontEnd::started(&served.socket(), ALL);
    let bytes: Vec<u8> = (0..1024_u32).map(|n| (n % 251) as u8).collect();
    for offset in [0, 3] {
        let cut = |kind, way| {
            driver.header(DATA - 32, kind, 8);
            driver.descriptor(0, 0, DATA - 32, 16, NEXT, 1);
            driver.descriptor(0, 1, DATA + offset, 1000, NEXT | way, 2);
            driver.descriptor(0, 2, DATA + offset + 1000, 24, NEXT | way, 3);
            driver.descriptor(0, 3, DATA - 8, 1, WRITE, 0);
            driver.answer(0)
        };
        driver.bytes(DATA + offset, 1024).copy_from(&bytes);
        assert_eq!(cut(OUT, 0), OK);
        driver.bytes(DATA, 2048).fill_zero();
        assert_eq!(cut(READ, WRITE), OK);
        assert_eq!(driver.bytes(DATA + offset, 1024).to_vec(), bytes);
    }
}

/// What a back-end that was killed had begun is begun anew by the next, in order; what it had given back is not.
#[test]
fn requests_that_were_open_are_replayed() {
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    // Whoever has what is below the disk knows of it first: the disk has no request when it is told.
    let disk = ram(Ram::limits());
    let below = Arc::clone(&disk);
    let served = Served::with(disk, |export| {
        let on_resume = move || {
            assert_eq!(below.stats().0.counters(blockyard_blkmq::StatGroup::Write).ios, 0);
            count.fetch_add(1, Ordering::SeqCst);
        };
        Export { on_resume: Some(Arc::new(on_resume)), ..export }
    });
    let driver = FrontEnd::negotiated(&served.socket(), ALL);
    let (region, shape) = inflight_of(&driver, 1);
    assert!(shape.mmap_size >= region_len(SIZE) as u64);
    // The state that a back-end which was killed leaves behind: chains 0, 4 and 8 write to the same sector and were taken, 8
    // before 0 before 4; 4 was given back, but not all of that was written down.
    for (head, byte) in [(0, 1), (4, 2), (8, 3), (12, 4)] {
        let at = DATA + u64::from(head) * 1024;
        driver.header(at, OUT, 7);
        driver.bytes(at + 16, 512).copy_from(&[byte; 512]);
        driver.descriptor(0, head, at, 16 + 512, NEXT, head + 1);
        driver.descriptor(0, head + 1, at + 600, 1, WRITE, 0);
        driver.bytes(at + 600, 1).copy_from(&[0xff]);
    }
    driver.offer_together(0, &[8, 0, 4]);
    driver.set_used(0, 1);
    let map = SharedMapping::new(region.as_fd(), 0, shape.mmap_size).unwrap();
    let words = SharedWords::new(map.segment(0, region_len(SIZE))).unwrap();
    let order = std::sync::atomic::Ordering::Relaxed;
    words.store_u16(8, 1, order);
    words.store_u16(10, SIZE, order);
    words.store_u16(12, 4, order);
    words.store_u16(14, 0, order);
    for (head, counter) in [(8, 5), (0, 6), (4, 7)] {
        words.store_u8(16 + 16 * head, 1, order);
        words.store_u64(16 + 16 * head + 8, counter, order);
    }
    let file = driver.file.try_clone().unwrap();
    drop(driver);
    let mut driver = FrontEnd::with_memory(&served.socket(), file);
    driver.negotiate(ALL);
    driver.done(&Message::SetInflightFd(shape), &[region.as_fd()]);
    // QEMU goes on from the used index, and knows no better.
    driver.start_queue(0, 1);
    driver.wait_used(0, 3);
    let status = |head: u64| driver.bytes(DATA + head * 1024 + 600, 1).to_vec()[0];
    assert_eq!([status(8), status(0), status(4)], [OK, OK, 0xff], "4 was given back before");
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(driver.last_used(0), (0, 1), "8 was taken first, and 0 ended last");
    driver.offer(0, 12);
    driver.kick(0);
    driver.wait_used(0, 4);
    assert_eq!(status(12), OK, "the ring goes on behind what was open");
    assert_eq!((words.load_u16(14, order), words.load_u8(16 + 16 * 12, order)), (4, 0));
}

/// A guest with two queues whose front-end is gone for a while.
#[test]
fn a_front_end_that_comes_back_finds_its_queues_as_they_were() {
    let served = Served::new();
    let mut driver = FrontEnd::negotiated(&served.socket(), ALL);
    driver.start_queue(0, 0);
    for round in 1..=20_u16 {
        assert_eq!(driver.request(OUT, u64::from(round), 512), OK);
        let file = driver.file.try_clone().unwrap();
        drop(driver);
        driver = FrontEnd::with_memory(&served.socket(), file);
        driver.negotiate(ALL);
        driver.start_queue(0, round.into());
    }
}

/// What wakes nobody is not lost: requests that were made before the queue started.
#[test]
fn a_queue_that_starts_with_requests_serves_them() {
    let served = Served::new();
    let mut driver = FrontEnd::negotiated(&served.socket(), ALL);
    driver.header(DATA - 32, FLUSH, 0);
    driver.descriptor(0, 0, DATA - 32, 16, NEXT, 2);
    driver.descriptor(0, 2, DATA - 8, 1, WRITE, 0);
    driver.offer(0, 0);
    driver.start_queue(0, 0);
    driver.wait_used(0, 1);
    // A call that comes late is signalled once, for what it has missed.
    let call = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    driver.done(&Message::SetVringCall(VringFd { index: 0, has_fd: true }), &[call.as_fd()]);
    assert!(happened(&call));
}
