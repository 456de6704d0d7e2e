//! Whether a guest flushes: what is known of that, whoever has served it before. Where nobody can know, writes are durable.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use blockyard_blkmq::{Disk, Features, Limits, StatGroup};
use blockyard_driver_ram::Ram;
use blockyard_vhost_user::queue::region_len;
use blockyard_vhost_user::wire::{ConfigSpan, Inflight, Message, Reply, VringState};
use common::frontend::*;
use common::{Served, ram};

const OUT: u32 = 1;
const OK: u8 = 0;
const QUEUES: u16 = 2;

/// A guest on a disk with a cache, as back-ends and front-ends come and go.
struct Guest {
    disk: Arc<Disk>,
    served: Served,
    driver: FrontEnd,
    region: Option<(OwnedFd, Inflight)>,
    /// Requests of each queue so far.
    requests: [u32; QUEUES as usize],
}

impl Guest {
    /// It has not started.
    fn new() -> Self {
        let features = Ram::limits().features | Features::WRITE_CACHE;
        let disk = ram(Limits { features, ..Ram::limits() });
        let served = Served::with(Arc::clone(&disk), |export| export);
        let driver = FrontEnd::negotiated(&served.socket(), ALL);
        Self { disk, served, driver, region: None, requests: [0; QUEUES as usize] }
    }

    /// As QEMU begins with a guest: it asks for a region, and sets it at once.
    fn begin(&mut self) {
        self.ask_for_region();
        self.set_region();
    }

    fn ask_for_region(&mut self) {
        self.region = Some(inflight_of(&self.driver, QUEUES));
    }

    fn set_region(&self) {
        let (file, shape) = self.region.as_ref().unwrap();
        self.driver.done(&Message::SetInflightFd(*shape), &[file.as_fd()]);
    }

    /// Its front-end comes back to the same back-end.
    fn come_back(&mut self) {
        let file = self.driver.file.try_clone().unwrap();
        self.driver = FrontEnd::with_memory(&self.served.socket(), file);
        self.driver.negotiate(ALL);
    }

    /// Its front-end comes to another back-end, as after the first was killed.
    fn move_on(&mut self) {
        self.served = Served::with(Arc::clone(&self.disk), |export| export);
        self.come_back();
    }

    /// Another front-end comes, which has read the configuration space, as after a migration.
    fn migrate(&mut self) {
        self.move_on();
        self.config();
        self.region = None;
    }

    fn config(&self) -> u8 {
        let span = ConfigSpan { offset: 32, flags: 0, bytes: vec![0] };
        let Reply::Config(span) = self.driver.ask(&Message::GetConfig(span)) else { panic!() };
        span.bytes[0]
    }

    fn choose(&self, cached: u8) {
        let span = ConfigSpan { offset: 32, flags: 0, bytes: vec![cached] };
        self.driver.done(&Message::SetConfig(span), &[]);
    }

    /// A queue goes on where it is.
    fn start(&mut self, queue: u32) {
        self.driver.start_queue(queue, self.requests[queue as usize]);
    }

    fn stop_all(&mut self) {
        for index in 0..u32::from(QUEUES) {
            let base = self.driver.ask(&Message::GetVringBase(VringState { index, num: 0 }));
            assert!(matches!(base, Reply::Base(_)));
        }
        // The next start brings others.
        self.driver.kicks.clear();
    }

    fn start_all(&mut self) {
        (0..u32::from(QUEUES)).for_each(|queue| self.start(queue));
    }

    /// Whether a write by the first queue is durable when it is answered.
    fn is_durable(&mut self) -> bool {
        let count = || self.disk.stats().0.counters(StatGroup::Flush).ios;
        let before = count();
        assert_eq!(self.driver.request(OUT, 0, 512), OK);
        self.requests[0] += 1;
        count() > before
    }
}

/// QEMU does not say again what its guest has chosen.
#[test]
fn write_through_is_not_forgotten() {
    let mut guest = Guest::new();
    guest.begin();
    guest.start(0);
    assert!(!guest.is_durable());
    guest.choose(0);
    assert!(guest.is_durable());
    // To the same back-end, without the region; and after a reset, of which the guest's configuration space knows nothing.
    guest.come_back();
    guest.start(0);
    assert!(guest.is_durable());
    assert_eq!(guest.config(), 0);
    guest.driver.done(&Message::ResetDevice, &[]);
    assert_eq!(guest.config(), 0);
    // To another back-end, as after ours was killed: the region knows.
    guest.move_on();
    guest.set_region();
    guest.start(0);
    assert!(guest.is_durable());
    guest.choose(1);
    assert!(!guest.is_durable());
    guest.move_on();
    guest.set_region();
    guest.start(0);
    assert!(!guest.is_durable());
    // To another, without the region: nobody knows, until the guest says.
    guest.move_on();
    guest.start(0);
    assert!(guest.is_durable());
    guest.choose(1);
    assert!(!guest.is_durable());
    // A region that another kind of back-end has made and used says that the guest goes on, and no more.
    guest.move_on();
    let (_, shape) = guest.region.as_mut().unwrap();
    shape.mmap_size = (region_len(SIZE) * usize::from(QUEUES)) as u64;
    guest.set_region();
    guest.start(0);
    assert!(guest.is_durable());
}

/// The region is new, and as the front-end brings it back at once, it looks like one that a back-end has left.
#[test]
fn of_a_guest_that_was_migrated_nothing_is_known_whatever_is_in_its_new_region() {
    let mut guest = Guest::new();
    guest.begin();
    guest.start_all();
    guest.choose(0);
    assert!(guest.is_durable());
    guest.migrate();
    guest.begin();
    guest.start_all();
    assert!(guest.is_durable(), "it may not flush");
    // Nor does the next back-end know, from what this one has left.
    guest.move_on();
    guest.set_region();
    guest.start_all();
    assert!(guest.is_durable(), "it may still not flush");
    guest.choose(1);
    assert!(!guest.is_durable());
}

/// That it was asked for does not make a region one that says anything.
#[test]
fn a_region_that_was_only_asked_for_tells_the_next_back_end_what_was_unknown() {
    let mut guest = Guest::new();
    guest.start_all();
    assert!(!guest.is_durable());
    guest.migrate();
    guest.ask_for_region();
    guest.start_all();
    assert!(guest.is_durable());
    guest.move_on();
    guest.set_region();
    guest.start_all();
    assert!(guest.is_durable());
}

#[test]
fn what_one_guest_was_told_says_nothing_of_the_next() {
    for has_region in [true, false] {
        let mut other = Guest::new();
        other.begin();
        other.start_all();
        assert!(!other.is_durable());
        let Guest { disk, served, driver, .. } = other;
        drop(driver);
        // Its memory is another, and its rings are in the middle.
        let driver = FrontEnd::negotiated(&served.socket(), ALL);
        driver.set_available(0, 1);
        driver.set_used(0, 1);
        let mut guest = Guest { disk, served, driver, region: None, requests: [1, 0] };
        if has_region {
            guest.begin();
        }
        guest.start_all();
        assert!(guest.is_durable(), "with a region: {has_region}");
    }
}

/// A guest is put back to an earlier state without a new front-end.
#[test]
fn what_a_guest_has_said_is_not_what_it_had_said_before() {
    let mut guest = Guest::new();
    guest.begin();
    guest.start_all();
    guest.choose(1);
    assert!(!guest.is_durable());
    guest.stop_all();
    guest.begin();
    guest.start_all();
    assert!(guest.is_durable());
}

/// The queue that starts first may be one that was never used.
#[test]
fn one_queue_in_the_middle_of_its_ring_is_enough_to_know_nothing() {
    for is_killed in [false, true] {
        let mut guest = Guest::new();
        guest.driver.set_available(1, 7);
        guest.driver.set_used(1, 7);
        guest.requests[1] = 7;
        guest.begin();
        guest.start(0);
        if is_killed {
            // Before the second has started: the region says of the first only that it began.
            guest.move_on();
            guest.set_region();
            guest.start(0);
        }
        guest.start(1);
        assert!(guest.is_durable(), "killed: {is_killed}");
        guest.move_on();
        guest.set_region();
        guest.start_all();
        assert!(guest.is_durable(), "killed: {is_killed}, and the next");
    }
}

/// Its front-end has read the configuration of a back-end that is gone, which may have been another.
#[test]
fn a_guest_that_begins_with_what_another_back_end_has_told_it_is_not_known() {
    let mut guest = Guest::new();
    guest.choose(0);
    guest.move_on();
    guest.begin();
    guest.start_all();
    assert!(guest.is_durable());
}

/// What is durable at once costs a flush each: nobody pays for it without need.
#[test]
fn a_guest_that_began_here_stays_cached() {
    let mut guest = Guest::new();
    guest.begin();
    guest.start_all();
    assert!(!guest.is_durable());
    for _ in 0..2 {
        // Killed, and paused.
        guest.move_on();
        guest.set_region();
        guest.start_all();
        assert!(!guest.is_durable());
        guest.stop_all();
        guest.set_region();
        guest.start_all();
        assert!(!guest.is_durable());
    }
    // Begun anew with that back-end, which has told it nothing itself.
    guest.stop_all();
    guest.driver.set_available(0, 0);
    guest.driver.set_used(0, 0);
    guest.requests = [0; QUEUES as usize];
    guest.begin();
    guest.start_all();
    assert!(!guest.is_durable());
    // And without a region, paused.
    let mut guest = Guest::new();
    guest.start_all();
    assert!(!guest.is_durable());
    guest.stop_all();
    guest.start_all();
    assert!(!guest.is_durable());
}
