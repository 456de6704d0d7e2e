//! What a guest is told is durable survives a power cut: on a disk that forgets what was not flushed, at once and late.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use blockyard_blkmq::{BlockSize, Disk, DiskConfig, MonotonicClock, Sector, TagSet};
use blockyard_conformance::{Carrier, Volatile, cases};
use blockyard_vhost_user::wire::{ConfigSpan, Message};
use common::frontend::*;
use common::{DISK_BYTES, Served, tags};

const OUT: u32 = 1;
const FLUSH: u32 = 4;
const ZEROES: u32 = 13;
const OK: u8 = 0;
/// What a guest can do with a disk that takes no discards.
const FEATURES: u64 = ALL & !(1 << 13);
const CAN_FLUSH: u64 = 1 << 9 | 1 << 11;
const BYTES: usize = 512;
const ROUNDS: u8 = 40;

/// A disk that forgets, served.
struct Forgetful {
    served: Served,
    volatile: Arc<Volatile>,
    /// Dropped after the disk.
    _carrier: Option<Carrier>,
}

impl Forgetful {
    fn new(fua: bool, late: bool) -> Self {
        let (volatile, carrier) = if late {
            let (volatile, carrier) = Volatile::late(DISK_BYTES, cases::seed());
            (volatile, Some(carrier))
        } else {
            (Volatile::new(DISK_BYTES), None)
        };
        let set = TagSet::new(Arc::clone(&volatile), tags()).unwrap();
        let limits = Volatile::limits(BlockSize::B512, fua);
        let config = DiskConfig::new("cached", Sector::from_bytes_floor(DISK_BYTES), limits);
        let clock = Arc::new(MonotonicClock::new());
        let disk = Disk::alloc(&set, (), config, Arc::<Volatile>::clone(&volatile), clock).unwrap();
        let served = Served::with(disk, |export| export);
        Self { served, volatile, _carrier: carrier }
    }

    fn keeps(&self, sector: u64, byte: u8) -> bool {
        self.volatile.survivors(sector * 512, BYTES as u64) == [byte; BYTES]
    }
}

/// Does `test` with a disk of every kind.
fn each(test: impl Fn(&Forgetful, &str)) {
    for (fua, late) in [(false, false), (false, true), (true, false), (true, true)] {
        test(&Forgetful::new(fua, late), &format!("FUA {fua}, late {late}"));
    }
}

/// Where the parts of a request are: the header, then the status, then the data.
fn place_of(slot: u16) -> u64 {
    DATA + u64::from(slot) * 0x1000
}

/// Makes the chain of a request, and says which it is. `byte` is what it writes, if it writes bytes.
fn prepare(driver: &FrontEnd, slot: u16, kind: u32, sector: u64, byte: u8) -> u16 {
    let (at, head) = (place_of(slot), slot * 3);
    driver.header(at, kind, if kind == ZEROES { 0 } else { sector });
    driver.bytes(at + 16, 1).copy_from(&[0xff]);
    let len = match kind {
        OUT => {
            driver.bytes(at + 512, BYTES).copy_from(&[byte; BYTES]);
            512
        }
        ZEROES => {
            let range = [&sector.to_le_bytes()[..], &1_u32.to_le_bytes(), &[0; 4]].concat();
            driver.bytes(at + 512, 16).copy_from(&range);
            16
        }
        _ => 0,
    };
    let status = head + 2;
    driver.descriptor(0, head, at, 16, NEXT, if len > 0 { head + 1 } else { status });
    driver.descriptor(0, head + 1, at + 512, len, NEXT, status);
    driver.descriptor(0, status, at + 16, 1, WRITE, 0);
    head
}

/// Has all of them done, which the device sees at the same moment.
fn together(driver: &FrontEnd, heads: &[u16]) {
    let end = driver.used_index(0).wrapping_add(u16::try_from(heads.len()).unwrap());
    driver.offer_together(0, heads);
    driver.kick(0);
    driver.wait_used(0, end);
    for head in heads {
        assert_eq!(driver.bytes(place_of(head / 3) + 16, 1).to_vec(), [OK], "{head}");
    }
}

fn one(driver: &FrontEnd, kind: u32, sector: u64, byte: u8) {
    together(driver, &[prepare(driver, 0, kind, sector, byte)]);
}

#[test]
fn what_was_flushed_is_kept_and_nothing_else_is_promised() {
    each(|disk, name| {
        let driver = FrontEnd::started(&disk.served.socket(), FEATURES);
        one(&driver, OUT, 7, 1);
        assert!(disk.keeps(7, 0), "{name}: this disk forgets");
        one(&driver, FLUSH, 0, 0);
        assert!(disk.keeps(7, 1), "{name}");
        one(&driver, ZEROES, 7, 0);
        assert!(disk.keeps(7, 1), "{name}");
        one(&driver, FLUSH, 0, 0);
        assert!(disk.keeps(7, 0), "{name}");
    });
}

/// A flush covers what was answered before it came, whatever else is out.
#[test]
fn a_flush_among_writes_covers_those_that_were_answered() {
    each(|disk, name| {
        let driver = FrontEnd::started(&disk.served.socket(), FEATURES);
        for round in 1..=ROUNDS {
            let write = |slot: u16| prepare(&driver, slot, OUT, slot.into(), round);
            together(&driver, &[write(0), write(1)]);
            let flush = prepare(&driver, 3, FLUSH, 0, 0);
            together(&driver, &[write(2), flush, write(4)]);
            assert!(disk.keeps(0, round) && disk.keeps(1, round), "{name}, round {round}");
            one(&driver, FLUSH, 0, 0);
            assert!(disk.keeps(2, round) && disk.keeps(4, round), "{name}, round {round}");
        }
    });
}

/// Because it says so, or because it cannot flush.
#[test]
fn a_guest_that_flushes_nothing_has_all_kept_that_was_answered() {
    each(|disk, name| {
        for can_flush in [true, false] {
            let features = if can_flush { FEATURES } else { FEATURES & !CAN_FLUSH };
            let driver = FrontEnd::started(&disk.served.socket(), features);
            if can_flush {
                let span = ConfigSpan { offset: 32, flags: 0, bytes: vec![0] };
                driver.done(&Message::SetConfig(span), &[]);
            }
            for round in 1..=ROUNDS {
                let write = |slot: u16| prepare(&driver, slot, OUT, slot.into(), round);
                together(&driver, &[write(0), write(1), write(2), write(3)]);
                for sector in 0..4 {
                    assert!(disk.keeps(sector, round), "{name}, {can_flush}, round {round}");
                }
            }
            one(&driver, ZEROES, 2, 0);
            assert!(disk.keeps(2, 0) && disk.keeps(1, ROUNDS), "{name}, {can_flush}");
        }
    });
}
