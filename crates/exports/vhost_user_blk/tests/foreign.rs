//! blkio, a driver that is not ours, on a served disk.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use blkio::ReqFlags;
use common::foreign::Foreign;
use common::{DISK_BYTES, Served};

#[test]
fn reads_what_it_wrote_over_every_queue() {
    let served = Served::new();
    let mut driver = Foreign::connect(&served.socket(), 3, 1 << 20);
    assert_eq!(driver.capacity(), DISK_BYTES);
    for queue in 0..3 {
        let byte = u8::try_from(queue).unwrap() + 1;
        let start = u64::from(byte) << 20;
        driver.write(queue, start, &vec![byte; 64 << 10]).unwrap();
        driver.flush(queue).unwrap();
        let other = (queue + 1) % 3;
        assert_eq!(driver.read(other, start, 64 << 10).unwrap(), vec![byte; 64 << 10]);
    }
    assert_eq!(served.server().status().queues, 3);
}

#[test]
fn discards_and_zeroes() {
    let served = Served::new();
    let mut driver = Foreign::connect(&served.socket(), 1, 1 << 20);
    driver.write(0, 0, &vec![7; 64 << 10]).unwrap();
    driver.discard(0, 4096, 4096).unwrap();
    driver.write_zeroes(0, 8192, 4096, ReqFlags::empty()).unwrap();
    driver.write_zeroes(0, 16384, 4096, ReqFlags::NO_UNMAP).unwrap();
    let mut wanted = vec![7; 64 << 10];
    wanted[4096..12288].fill(0);
    wanted[16384..20480].fill(0);
    assert_eq!(driver.read(0, 0, 64 << 10).unwrap(), wanted);
}

#[test]
fn many_at_a_time_all_end() {
    let served = Served::new();
    let mut driver = Foreign::connect(&served.socket(), 1, 1 << 20);
    for round in 0..50_usize {
        for at in 0..64 {
            driver.segment(at * 4096, 4096).copy_from(&[u8::try_from(at + round).unwrap(); 4096]);
            let (address, start) = (driver.address(at * 4096), (at * 4096) as u64);
            driver.queues[0].write(start, address, 4096, at, ReqFlags::empty());
        }
        let mut done = driver.wait(0, 64);
        done.sort_unstable();
        assert_eq!(done, (0..64).map(|at| (at, 0)).collect::<Vec<_>>());
        let read = driver.read(0, 63 * 4096, 4096).unwrap();
        assert_eq!(read, [u8::try_from(63 + round).unwrap(); 4096]);
    }
}

#[test]
fn the_next_driver_is_served_when_one_has_left() {
    let mut served = Served::new();
    for round in 0..5 {
        let mut driver = Foreign::connect(&served.socket(), 2, 1 << 20);
        if round > 0 {
            assert_eq!(driver.read(1, 0, 512).unwrap(), [round; 512]);
        }
        driver.write(0, 0, &[round + 1; 512]).unwrap();
    }
    served.shut_down();
    assert!(!served.socket().exists());
}

#[test]
fn a_disk_that_is_read_only_says_so_and_stays_as_it_is() {
    let disk = common::ram(blockyard_driver_ram::Ram::limits());
    disk.set_read_only(true);
    let served = Served::with(disk, |export| export);
    assert!(Foreign::try_connect(&served.socket(), 1, 1 << 20, false).is_err());
    let mut driver = Foreign::try_connect(&served.socket(), 1, 1 << 20, true).unwrap();
    assert_eq!(driver.read(0, 0, 512).unwrap(), [0; 512]);
}
