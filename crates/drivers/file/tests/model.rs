//! Random operations, many in flight, against bytes in memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod common;

use blockyard_blkmq::{Bio, Flags, Op, Sector, Status};
use blockyard_buf::{Segment, Segments};
use blockyard_driver_file::FileConfig;
use common::{Place, bytes, open, ways};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

const SIZE: usize = 2 << 20;
const ROUNDS: usize = 60;
const IN_FLIGHT: usize = 48;

fn rng() -> StdRng {
    let seed = match std::env::var("BLOCKYARD_SEED") {
        Ok(text) => text.parse().expect("BLOCKYARD_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("BLOCKYARD_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Disjoint ranges of whole blocks, in no order: what is in flight at the same time must not overlap to have
/// one outcome.
fn ranges(rng: &mut StdRng, block: usize) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < SIZE / block && ranges.len() < IN_FLIGHT {
        // Often right behind the one before, so that they are merged.
        let gap = if rng.random_bool(0.4) { 0 } else { rng.random_range(0..SIZE / block / 24) };
        let start = at + gap;
        let longest = if rng.random_bool(0.1) { 400 } else { 24 };
        let len = rng.random_range(1..=longest);
        let end = (start + len).min(SIZE / block);
        if start < end {
            ranges.push((start * block, (end - start) * block));
        }
        at = end.max(start);
    }
    for i in (1..ranges.len()).rev() {
        if rng.random_bool(0.5) {
            ranges.swap(i, rng.random_range(0..=i));
        }
    }
    ranges
}

/// Memory in one to three parts, at any address.
fn scatter(rng: &mut StdRng, data: &[u8]) -> Segments {
    let mut segments = Segments::new();
    let mut rest = data;
    while !rest.is_empty() {
        let len = if segments.len() == 2 || rng.random_bool(0.5) {
            rest.len()
        } else {
            rng.random_range(1..=rest.len())
        };
        let lead = if rng.random_bool(0.5) { 0 } else { rng.random_range(1..64) };
        let mut padded = vec![0; lead];
        padded.extend(&rest[..len]);
        segments.push(Segment::from_vec(padded).into_slice(lead, len));
        rest = &rest[len..];
    }
    segments
}

/// One operation on a range, and what it makes of the reference.
fn operation(rng: &mut StdRng, at: usize, len: usize, reference: &mut [u8]) -> Box<Bio> {
    let sector = Sector(at as u64 / 512);
    let part = &mut reference[at..at + len];
    match rng.random_range(0..10) {
        0..=2 => Bio::new(Op::Read, sector, len as u64),
        3 => Bio::with_data(Op::Read, sector, scatter(rng, &vec![0; len])),
        4..=6 => {
            rng.fill_bytes(part);
            let bio = Bio::with_data(Op::Write, sector, scatter(rng, part));
            if rng.random_bool(0.1) { bio.with_flags(Flags::FUA) } else { bio }
        }
        7 => {
            part.fill(0);
            Bio::new(Op::Discard, sector, len as u64)
        }
        _ => {
            part.fill(0);
            let flags = if rng.random_bool(0.5) { Flags::NOUNMAP } else { Flags::empty() };
            Bio::new(Op::WriteZeroes, sector, len as u64).with_flags(flags)
        }
    }
}

fn check(config: &FileConfig, rng: &mut StdRng, name: &str) {
    let disk = open(config).unwrap();
    let block = disk.info.limits.logical_block_size.bytes() as usize;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut reference = vec![0; SIZE];
    for round in 0..ROUNDS {
        let mut ends = Vec::new();
        for (at, len) in ranges(rng, block) {
            let bio = operation(rng, at, len, &mut reference);
            let read = bio.op == Op::Read;
            ends.push((at, len, read, disk.bdev.submit_async(rng.random_range(0..2), bio)));
            if rng.random_bool(0.05) {
                ends.push((0, 0, false, disk.bdev.submit_async(0, Bio::flush())));
            }
        }
        for (at, len, read, end) in ends {
            let bio = runtime.block_on(end);
            assert_eq!(bio.status(), Status::Ok, "{name}, round {round}: {bio:?}");
            if read {
                let same = bytes(&bio) == reference[at..at + len];
                assert!(same, "{name}, round {round}: {len} bytes at {at}");
            }
        }
    }
    assert_eq!(disk.flush(), Status::Ok);
    assert!(disk.read(0, SIZE as u64) == reference, "{name}: the whole disk");
    drop(disk);
    assert!(std::fs::read(&config.path).unwrap() == reference, "{name}: the file itself");
}

#[test]
fn a_disk_is_as_bytes_in_memory() {
    let mut rng = rng();
    for place in Place::all() {
        for config in ways(&place.path().join("disk")) {
            place.file("disk", SIZE as u64);
            check(&config, &mut rng, &format!("{} {config:?}", place.name));
        }
    }
}
