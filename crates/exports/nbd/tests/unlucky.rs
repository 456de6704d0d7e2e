//! Clients that die, go silent or never stop, and the bystanders on their queue thread, who lose nothing.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use blockyard_blkmq::{Limits, Status};
use blockyard_export_nbd::HeaderStyle;
use blockyard_nbd::wire::{Command, CommandFlags};
use common::{Client, DEADLINE, MIB, Yard, eventually, held_disk, pattern, ram, request};

const NONE: CommandFlags = CommandFlags::empty();

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A client of each queue thread.
fn bystanders(yard: &Yard) -> Vec<Client> {
    let clients: Vec<_> = (0..2).map(|_| yard.client()).collect();
    let mut threads: Vec<_> = yard.server.clients().iter().map(|info| info.thread).collect();
    threads.sort_unstable();
    assert_eq!(threads, [0, 1]);
    clients
}

#[test]
fn a_client_that_dies_with_writes_in_flight_costs_nobody_else_anything() {
    let held = held_disk(MIB, Limits::default());
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let mut bystanders = bystanders(&yard);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Told also when the test fails.
        let done = Done(&done);
        scope.spawn(|| {
            while !done.0.load(Ordering::SeqCst) {
                held.release(Status::Ok);
                std::thread::yield_now();
            }
        });
        for round in 0..100 {
            let mut client = yard.client_of(HeaderStyle::Simple);
            let mut bytes = Vec::new();
            for _ in 0..4 {
                let write = request(Command::Write, NONE, 0, 4096);
                bytes.extend(client.encode(write, &pattern(round, 4096)).1);
                // Refused, and answered while the write is under way.
                bytes.extend(client.encode(request(Command::Read, NONE, 2 * MIB, 512), &[]).1);
            }
            client.stream.write_all(&bytes).unwrap();
            drop(client);
            for bystander in &mut bystanders {
                assert_eq!(bystander.try_write(8192, &[1; 4096]).error, None, "round {round}");
                assert_eq!(bystander.read(0, 512), [7; 512], "round {round}");
            }
        }
        eventually("leaving", || yard.server.clients().len() == 2);
    });
}

#[test]
fn a_client_that_never_stops_sending_is_hung_up_on_and_keeps_nobody_waiting() {
    let yard = Yard::with(ram(MIB), |_, _| {});
    let mut bystanders = bystanders(&yard);
    let mut client = yard.client();
    let flood = std::thread::spawn(move || {
        let (start, garbage) = (Instant::now(), vec![0x5a; 256 << 10]);
        while client.stream.write_all(&garbage).is_ok() {
            assert!(start.elapsed() < DEADLINE, "nobody hangs up");
        }
    });
    eventually("the refusal", || yard.server.clients().len() < 3 || flood.is_finished());
    for _ in 0..20 {
        for bystander in &mut bystanders {
            bystander.write(0, &[3; 4096]);
            assert_eq!(bystander.read(0, 4096), [3; 4096]);
        }
    }
    flood.join().unwrap();
}
