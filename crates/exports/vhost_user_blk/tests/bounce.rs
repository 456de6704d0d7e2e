//! Memory that data goes through where the disk cannot use the guest's: all queues of a guest together have so much of it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::cell::Cell;
use std::os::fd::AsFd;
use std::time::Instant;

use blockyard_blkmq::{Features, Limits, Status, TagSetConfig};
use blockyard_conformance::{HeldDisk, pause};
use blockyard_vhost_user::wire::{Message, Reply, VringState};
use common::frontend::*;
use common::{DISK_BYTES, Served, tags};

const READ: u32 = 0;
const OK: u8 = 0;
const IO_ERR: u8 = 1;
/// The bound.
const ALL_BOUNCED: usize = 64 << 20;
const QUEUES: u16 = 64;
/// Requests of each queue: more than it can have under way.
const REQUESTS: u16 = 3;
/// Descriptors of a request: header, data twice, status.
const CHAIN: u16 = 4;
const LEN: usize = 4 << 20;
/// Behind the rings of all queues: headers, statuses, and data at an odd address.
const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x9_0000;
const ODD: u64 = 0x10_0001;

/// A disk that keeps its requests, served, and its guest with an in-flight region or without.
struct Misaligned {
    held: HeldDisk,
    driver: FrontEnd,
    _served: Served,
}

impl Misaligned {
    fn new(has_region: bool) -> Self {
        let limits = Limits {
            dma_alignment: 511,
            max_hw_sectors: 1 << 20,
            max_segment_size: u32::MAX,
            features: Features::NOMERGES,
            ..Limits::default()
        };
        let held = HeldDisk::new(TagSetConfig { depth: 256, ..tags() }, DISK_BYTES, limits);
        let served = Served::with(held.disk.clone(), |export| export);
        let mut driver = FrontEnd::negotiated(&served.socket(), ALL & !(1 << 13));
        if has_region {
            let (region, shape) = inflight_of(&driver, QUEUES);
            driver.done(&Message::SetInflightFd(shape), &[region.as_fd()]);
        }
        driver.bytes(HEADER, 16).copy_from(&[READ.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat());
        (0..u32::from(QUEUES)).for_each(|queue| driver.start_queue(queue, 0));
        Self { held, driver, _served: served }
    }

    fn status_of(queue: u32, request: u16) -> u64 {
        STATUS + u64::from(queue) * 16 + u64::from(request)
    }

    /// Offers reads of data at an odd address.
    fn offer(&self, queue: u32, requests: u16) {
        let driver = &self.driver;
        let heads: Vec<_> = (0..requests).map(|request| request * CHAIN).collect();
        for (request, head) in (0..).zip(&heads) {
            driver.bytes(Self::status_of(queue, request), 1).copy_from(&[0xff]);
            driver.descriptor(queue, *head, HEADER, 16, NEXT, head + 1);
            driver.descriptor(queue, head + 1, ODD, LEN as u32 / 2, NEXT | WRITE, head + 2);
            driver.descriptor(queue, head + 2, ODD, LEN as u32 / 2, NEXT | WRITE, head + 3);
            driver.descriptor(queue, head + 3, Self::status_of(queue, request), 1, WRITE, 0);
        }
        driver.offer_together(queue, &heads);
    }

    /// Waits until a queue has taken what it can. The first message may end its sleep, and the second come before it takes
    /// anything in that turn: the third is answered after that.
    fn settle(&self, index: u32) {
        let enable = Message::SetVringEnable(VringState { index, num: 1 });
        (0..3).for_each(|_| self.driver.done(&enable, &[]));
    }

    /// Waits until these queues have taken what they can, and the disk has it.
    fn fill(&self, queues: std::ops::Range<u32>) {
        queues.for_each(|queue| self.settle(queue));
        let end = Instant::now() + PATIENCE;
        while self.bytes_held() < ALL_BOUNCED {
            assert!(Instant::now() < end, "{} bytes at the disk", self.bytes_held());
            pause();
        }
        assert_eq!(self.bytes_held(), ALL_BOUNCED, "no more than there is");
    }

    /// Bytes that the disk was asked for and has not answered.
    fn bytes_held(&self) -> usize {
        let bytes = Cell::new(0);
        self.held.release_if(
            |rq| {
                bytes.set(bytes.get() + rq.len() as usize);
                false
            },
            Status::Ok,
        );
        bytes.get()
    }

    /// Has all that the queues have offered done, and sees that it never is too much at a time.
    fn finish(&self, queues: std::ops::Range<u32>, requests: u16, status: Status, answer: u8) {
        let end = Instant::now() + PATIENCE;
        while queues.clone().any(|queue| self.driver.used_index(queue) != requests) {
            assert!(Instant::now() < end, "requests that wait for memory stay where they are");
            assert!(self.bytes_held() <= ALL_BOUNCED);
            self.held.release(status);
            pause();
        }
        for queue in queues {
            for request in 0..requests {
                let status = self.driver.bytes(Self::status_of(queue, request), 1).to_vec();
                assert_eq!(status, [answer], "queue {queue}, request {request}");
            }
        }
    }
}

#[test]
fn all_queues_of_a_guest_share_the_memory_that_its_data_goes_through() {
    let guest = Misaligned::new(false);
    (0..u32::from(QUEUES)).for_each(|queue| guest.offer(queue, REQUESTS));
    guest.fill(0..QUEUES.into());
    // Nothing is copied of those that fail: it would take long.
    guest.finish(0..QUEUES.into(), REQUESTS, Status::Io, IO_ERR);
}

/// A request that waits for memory is the guest's until it begins.
#[test]
fn a_queue_that_is_stopped_while_a_request_of_it_waits_for_memory_has_not_taken_it() {
    for has_region in [false, true] {
        let mut guest = Misaligned::new(has_region);
        let last = (ALL_BOUNCED / LEN) as u32;
        (0..last).for_each(|queue| guest.offer(queue, 1));
        guest.fill(0..last);
        guest.offer(last, 1);
        guest.settle(last);
        let state = VringState { index: last, num: 0 };
        assert_eq!(guest.driver.ask(&Message::GetVringBase(state)), Reply::Base(state));
        guest.driver.start_queue(last, 0);
        guest.settle(last);
        assert_eq!(guest.driver.used_index(last), 0);
        guest.finish(0..last + 1, 1, Status::Ok, OK);
    }
}
