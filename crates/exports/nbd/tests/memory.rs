//! What all clients together can make a server hold: this test has its process to itself.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::io::Write;

use blockyard_blkmq::{Features, Limits, Status};
use blockyard_export_nbd::HeaderStyle;
use blockyard_nbd::wire::{Command, CommandFlags};
use common::{MIB, Yard, eventually, held_disk, request};

const NONE: CommandFlags = CommandFlags::empty();
/// Clients of each kind.
const CROWD: usize = 64;
const BUDGET: u64 = 256 << 20;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_crowd_that_announces_and_never_receives_stays_within_the_budget() {
    let limits = Limits {
        max_hw_sectors: 1 << 20,
        max_segment_size: u32::MAX,
        features: Features::NOMERGES,
        ..Limits::default()
    };
    let held = held_disk(64 * MIB, limits);
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let before = resident();
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut client = yard.client_of(HeaderStyle::Simple);
        let write = request(Command::Write, NONE, 0, 32 << 20);
        client.stream.write_all(&write.encode(HeaderStyle::Simple).unwrap()).unwrap();
        crowd.push(client);
        let mut client = yard.client_of(HeaderStyle::Simple);
        (0..4).for_each(|_| _ = client.send(request(Command::Read, NONE, 0, 32 << 20), &[]));
        crowd.push(client);
    }
    // Somebody who wants little gets it.
    let mut small = yard.client_of(HeaderStyle::Simple);
    for _ in 0..100 {
        small.send(request(Command::Read, NONE, 0, 4096), &[]);
        let (_, outcome) = std::thread::scope(|scope| {
            let reply = scope.spawn(|| small.next_reply().unwrap());
            eventually("the small read", || {
                held.release(Status::Ok);
                reply.is_finished()
            });
            reply.join().unwrap()
        });
        assert_eq!(outcome.ok().data, [7; 4096]);
    }
    let grown = resident() - before;
    assert!(grown < BUDGET, "{} MiB more than before", grown >> 20);
}
