//! Guests whose memory goes away while the disk has requests of theirs: what is there is used as it is, and what is gone is not
//! taken for zeroes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex};

use blockyard_blkmq::{
    BlockDeviceOps, Busy, Disk, DiskConfig, Driver, HctxHandle, Limits, MonotonicClock, Op,
    Request, Result, Sector, Status, TagSet, TagSetConfig,
};
use blockyard_buf::{RegionSpec, Segment};
use blockyard_vhost_user::wire::Message;
use common::frontend::*;
use common::{DISK_BYTES, Served, THREADS};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// The disk cannot discard.
const FEATURES: u64 = ALL & !(1 << 13);
const OUT: u32 = 1;
const OK: u8 = 0;
const IO_ERR: u8 = 1;

/// A disk that keeps writes waiting until a test lets them go.
struct Slow {
    state: Mutex<State>,
    came: Condvar,
}

struct State {
    waiting: Vec<Request<Slow>>,
    bytes: Vec<u8>,
}

impl Slow {
    fn new() -> Arc<Self> {
        let bytes = vec![0xee; DISK_BYTES as usize];
        Arc::new(Self {
            state: Mutex::new(State { waiting: Vec::new(), bytes }),
            came: Condvar::new(),
        })
    }

    fn disk(self: &Arc<Self>, limits: Limits) -> Arc<Disk> {
        let tags =
            TagSetConfig { cpus: THREADS, hw_queues: [THREADS, 0, 0], ..TagSetConfig::default() };
        let set = TagSet::new(Arc::clone(self), tags).unwrap();
        let config = DiskConfig::new("slow0", Sector::from_bytes_floor(DISK_BYTES), limits);
        let ops: Arc<dyn BlockDeviceOps> = Arc::<Self>::clone(self);
        Disk::alloc(&set, (), config, ops, Arc::new(MonotonicClock::new())).unwrap()
    }

    fn wait_for(&self, count: usize) {
        let few = |state: &mut State| state.waiting.len() < count;
        let waited = self.came.wait_timeout_while(self.state.lock().unwrap(), PATIENCE, few);
        assert!(!waited.unwrap().1.timed_out(), "{count} writes did not come");
    }

    /// Takes the write at a sector, which waits.
    fn take(&self, sector: u64) -> Request<Self> {
        let mut state = self.state.lock().unwrap();
        let at = state.waiting.iter().position(|rq| rq.sector() == Sector(sector)).unwrap();
        state.waiting.remove(at)
    }

    /// Carries out the write at a sector.
    fn write(&self, sector: u64) {
        let rq = self.take(sector);
        let mut state = self.state.lock().unwrap();
        let mut at = rq.offset() as usize;
        for segment in rq.segments() {
            segment.copy_to(&mut state.bytes[at..at + segment.len()]);
            at += segment.len();
        }
        drop(state);
        rq.end(Status::Ok);
    }

    fn bytes(&self, sector: u64, len: usize) -> Vec<u8> {
        self.state.lock().unwrap().bytes[sector as usize * 512..][..len].to_vec()
    }
}

impl Driver for Slow {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> Result<()> {
        Ok(())
    }

    fn queue_rq(
        &self,
        _hctx: &mut (),
        mut rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        if rq.op() == Op::Write {
            self.state.lock().unwrap().waiting.push(rq);
            self.came.notify_all();
            return Ok(());
        }
        if rq.op() == Op::Read {
            let len = rq.len() as usize;
            rq.deliver(Segment::from_vec(vec![0; len]));
        }
        rq.end(Status::Ok);
        Ok(())
    }
}

impl BlockDeviceOps for Slow {}

/// Offers a write of 4 KiB at `data` as the chain of three descriptors from `head` on.
fn offer_write(driver: &FrontEnd, head: u16, sector: u64, data: u64) {
    let place = DATA + 64 * u64::from(head);
    driver.header(place, OUT, sector);
    driver.bytes(place + 32, 1).copy_from(&[0xff]);
    driver.descriptor(0, head, place, 16, NEXT, head + 1);
    driver.descriptor(0, head + 1, data, 4096, NEXT, head + 2);
    driver.descriptor(0, head + 2, place + 32, 1, WRITE, 0);
    driver.offer(0, head);
    driver.kick(0);
}

fn status(driver: &FrontEnd, head: u16) -> u8 {
    driver.bytes(DATA + 64 * u64::from(head) + 32, 1).to_vec()[0]
}

#[test]
fn a_write_of_what_is_still_there_is_carried_out_as_it_is() {
    let slow = Slow::new();
    let served = Served::with(slow.disk(Limits::default()), |export| export);
    let driver = FrontEnd::started(&served.socket(), FEATURES);
    let (there, gone) = (MEMORY / 4, MEMORY - 4096);
    driver.bytes(there, 4096).copy_from(&[7; 4096]);
    driver.bytes(gone, 4096).copy_from(&[8; 4096]);
    offer_write(&driver, 0, 64, there);
    offer_write(&driver, 3, 128, gone);
    slow.wait_for(2);
    driver.shrink(MEMORY / 2);
    // It is found out by the second, in the midst of the copy.
    slow.write(128);
    slow.write(64);
    assert!(driver.is_hung_up_on());
    assert!(slow.bytes(64, 4096) == [7; 4096]);
    assert_eq!(
        driver.used_index(0),
        0,
        "neither is answered: they are begun anew when it comes back"
    );
}

/// The front-end has taken a part of its memory away, and lets go of it, while a request has it still.
#[test]
fn a_write_from_memory_that_was_taken_away_and_is_gone_fails() {
    let slow = Slow::new();
    let served = Served::with(slow.disk(Limits::default()), |export| export);
    let driver = FrontEnd::started(&served.socket(), FEATURES);
    let file = memfd_create("more", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 8192).unwrap();
    let guest_addr = GUEST + 2 * MEMORY;
    let more = RegionSpec { guest_addr, user_addr: USER + 2 * MEMORY, size: 8192, mmap_offset: 0 };
    driver.done(&Message::AddMemReg(more), &[file.as_fd()]);
    offer_write(&driver, 0, 64, guest_addr);
    slow.wait_for(1);
    driver.done(&Message::RemMemReg(more), &[]);
    ftruncate(&file, 0).unwrap();
    slow.write(64);
    driver.wait_used(0, 1);
    assert_eq!(status(&driver, 0), IO_ERR);
    assert!(driver.is_served(), "its memory is all there");
    driver.bytes(MEMORY / 2, 4096).copy_from(&[9; 4096]);
    offer_write(&driver, 3, 64, MEMORY / 2);
    slow.wait_for(1);
    slow.write(64);
    driver.wait_used(0, 2);
    assert!(status(&driver, 3) == OK && slow.bytes(64, 4096) == [9; 4096]);
}

/// What it says of where the data is, and the data itself, may be gone: nothing of that comes to the disk.
#[test]
fn a_request_that_is_lost_before_it_is_begun_does_not_begin() {
    for alignment in [0, 511] {
        let slow = Slow::new();
        let limits = Limits { dma_alignment: alignment, ..Limits::default() };
        let served = Served::with(slow.disk(limits), |export| export);
        let driver = FrontEnd::started(&served.socket(), FEATURES);
        // Descriptors in a table that is gone, or data that has to be copied.
        let table = MEMORY - 8192;
        if alignment == 0 {
            driver.header(DATA, OUT, 64);
            driver.bytes(table, 16).copy_from(&descriptor(GUEST + DATA, 16, NEXT, 1));
            driver.bytes(table + 16, 16).copy_from(&descriptor(GUEST, 4096, NEXT, 2));
            driver.bytes(table + 32, 16).copy_from(&descriptor(GUEST + DATA + 32, 1, WRITE, 0));
            driver.descriptor(0, 0, table, 48, INDIRECT, 0);
            driver.shrink(MEMORY / 2);
            driver.offer(0, 0);
            driver.kick(0);
        } else {
            driver.shrink(MEMORY / 2);
            offer_write(&driver, 0, 64, table + 1);
        }
        assert!(driver.is_hung_up_on());
        assert!(slow.state.lock().unwrap().waiting.is_empty());
        assert!(slow.bytes(64, 4096) == [0xee; 4096]);
        let next = FrontEnd::started(&served.socket(), FEATURES);
        assert_eq!(next.request(0, 0, 512), OK);
    }
}

/// The end of a header is gone, and the sector with it: what is left, with zeroes, is another write.
#[test]
fn a_request_whose_header_is_lost_in_part_does_not_come_to_the_disk() {
    let slow = Slow::new();
    let served = Served::with(slow.disk(Limits::default()), |export| export);
    let driver = FrontEnd::started(&served.socket(), FEATURES);
    let (header, data) = (MEMORY / 2 - 8, MEMORY / 4);
    driver.bytes(data, 4096).copy_from(&[7; 4096]);
    driver.header(header, OUT, 64);
    driver.bytes(DATA, 1).copy_from(&[0xff]);
    driver.descriptor(0, 0, header, 16, NEXT, 1);
    driver.descriptor(0, 1, data, 4096, NEXT, 2);
    driver.descriptor(0, 2, DATA, 1, WRITE, 0);
    driver.shrink(MEMORY / 2);
    driver.offer(0, 0);
    driver.kick(0);
    assert!(driver.is_hung_up_on());
    assert!(slow.state.lock().unwrap().waiting.is_empty());
    assert_eq!(driver.used_index(0), 0);
    assert_eq!(driver.bytes(DATA, 1).to_vec(), [0xff], "nor is it answered");
}

/// The disk says no more than that it failed, where the kernel could not read the memory.
#[test]
fn memory_that_a_disk_could_not_use_is_found_to_be_gone() {
    let slow = Slow::new();
    let served = Served::with(slow.disk(Limits::default()), |export| export);
    let driver = FrontEnd::started(&served.socket(), FEATURES);
    offer_write(&driver, 0, 64, MEMORY - 4096);
    slow.wait_for(1);
    driver.shrink(MEMORY / 2);
    slow.take(64).end(Status::Io);
    assert!(driver.is_hung_up_on());
    assert_eq!(driver.used_index(0), 0);
}

/// A disk that has failed may have met memory that is gone. To look at it brings memory in that the guest has never touched,
/// while others wait.
#[test]
fn a_limited_part_of_what_a_disk_has_failed_with_is_looked_at() {
    const LEN: u32 = 3 << 20;
    const MOST: i64 = 2 << 20;
    let slow = Slow::new();
    let in_one = Limits { max_hw_sectors: LEN / 512, max_segment_size: LEN, ..Limits::default() };
    let served = Served::with(slow.disk(in_one), |export| export);
    let driver = FrontEnd::started(&served.socket(), FEATURES);
    driver.header(DATA, OUT, 64);
    driver.bytes(DATA + 32, 1).copy_from(&[0xff]);
    driver.descriptor(0, 0, DATA, 16, NEXT, 1);
    driver.descriptor(0, 1, DATA + 4096, LEN, NEXT, 2);
    driver.descriptor(0, 2, DATA + 32, 1, WRITE, 0);
    let bytes = || rustix::fs::fstat(&driver.file).unwrap().st_blocks * 512;
    driver.offer(0, 0);
    driver.kick(0);
    slow.wait_for(1);
    let before = bytes();
    slow.take(64).end(Status::Io);
    driver.wait_used(0, 1);
    assert_eq!(status(&driver, 0), IO_ERR);
    let brought_in = bytes() - before;
    assert!((4096..=MOST).contains(&brought_in), "{brought_in}");
}

/// However much it was, and however late in it the end of the file is: the guest's session ends, and does not go on with zeroes.
#[test]
fn memory_that_is_gone_far_behind_in_what_a_disk_has_failed_with_is_found() {
    const LEN: u32 = 3 << 20;
    let slow = Slow::new();
    let in_one = Limits { max_hw_sectors: LEN / 512, max_segment_size: LEN, ..Limits::default() };
    let served = Served::with(slow.disk(in_one), |export| export);
    let driver = FrontEnd::started(&served.socket(), FEATURES);
    driver.header(DATA, OUT, 64);
    driver.bytes(DATA + 32, 1).copy_from(&[0xff]);
    driver.descriptor(0, 0, DATA, 16, NEXT, 1);
    driver.descriptor(0, 1, DATA + 4096, LEN, NEXT, 2);
    driver.descriptor(0, 2, DATA + 32, 1, WRITE, 0);
    driver.offer(0, 0);
    driver.kick(0);
    slow.wait_for(1);
    driver.shrink(DATA + u64::from(LEN));
    slow.take(64).end(Status::Io);
    assert!(driver.is_hung_up_on());
    assert_eq!(driver.used_index(0), 0, "it is begun anew when it comes back");
}
