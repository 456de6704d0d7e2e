//! Clients of a disk that does not answer, and those of another disk, who do not notice.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::io::Write;
use std::sync::Arc;

use blockyard_blkmq::{Features, Limits, OpenMode, Status};
use blockyard_export_nbd::{Config, Export, HeaderStyle};
use blockyard_nbd::wire::{Command, CommandFlags};
use common::{Client, HeldDisk, MIB, Yard, eventually, held_disk, pattern, ram, request};

const NONE: CommandFlags = CommandFlags::empty();

/// The exports `hung`, whose requests stay until they are released, and `well`.
fn exports(configure: impl FnOnce(&mut Config)) -> (HeldDisk, Yard) {
    let limits = Limits {
        max_hw_sectors: 1 << 20,
        max_segment_size: u32::MAX,
        features: Features::NOMERGES,
        ..Limits::default()
    };
    let held = held_disk(64 * MIB, limits);
    let yard = Yard::with(ram(64 * MIB), |config, _| {
        let hung = held.disk.open(None, OpenMode::ReadWrite).unwrap();
        config.exports[0].name = "well".into();
        config.exports.push(Export::new("hung", Arc::new(hung)));
        configure(config);
    });
    (held, yard)
}

fn open(yard: &Yard, export: &str) -> Client {
    Client::open(Box::new(yard.connect()), export, HeaderStyle::Simple).unwrap()
}

#[test]
fn a_disk_that_hangs_takes_no_memory_from_the_others() {
    let (held, yard) = exports(|_| {});
    let mut crowd: Vec<_> = (0..8).map(|_| open(&yard, "hung")).collect();
    for client in &mut crowd {
        (0..4).for_each(|_| _ = client.send(request(Command::Read, NONE, 0, 32 << 20), &[]));
    }
    eventually("as many as there is room for", || held.held() >= 3);
    let mut well = open(&yard, "well");
    let data = pattern(1, 8 << 20);
    for _ in 0..4 {
        well.write(MIB, &data);
        assert!(well.read(MIB, 8 << 20) == data);
    }
    drop(crowd);
    eventually("the end", || {
        held.release(Status::Ok);
        yard.server.clients().len() == 1
    });
}

#[test]
fn clients_that_are_gone_keep_neither_memory_nor_places() {
    const MOST: usize = 4;
    let (held, yard) = exports(|config| {
        config.limits.max_clients = MOST;
        config.limits.max_payload = 64 << 20;
    });
    for _ in 0..2 {
        let mut crowd: Vec<_> = (0..MOST).map(|_| open(&yard, "hung")).collect();
        for (n, client) in crowd.iter_mut().enumerate() {
            client.send(request(Command::Read, NONE, 0, 16 << 20), &[]);
            let more = match n {
                // It leaves as it should, or in the middle of a message, or while it waits for memory.
                0 => client.encode(request(Command::Disc, NONE, 0, 0), &[]).1,
                1 => vec![0x25],
                2 => client.encode(request(Command::Read, NONE, 0, 56 << 20), &[]).1,
                _ => Vec::new(),
            };
            client.stream.write_all(&more).unwrap();
        }
        eventually("the reads", || held.held() >= MOST && yard.server.memory_in_use() > 0);
        drop(crowd);
        eventually("their memory", || yard.server.memory_in_use() == 0);
        // All places are free.
        let mut others: Vec<_> = (0..MOST).map(|_| open(&yard, "well")).collect();
        assert!(others.iter_mut().all(|client| client.read(0, 512) == [0; 512]));
        drop(others);
        let waiting = || yard.server.clients().iter().filter(|info| info.in_flight == 1).count();
        eventually("leaving", || yard.server.clients().len() == waiting());
        // They are there until the disk has done with them, and it gets no more than so many.
        assert_eq!(waiting(), MOST);
        assert!(open(&yard, "hung").is_closed());
        held.release(Status::Ok);
        eventually("the end", || yard.server.clients().is_empty());
    }
}

#[test]
fn what_was_asked_for_before_a_goodbye_is_done_though_nobody_waits_for_the_replies() {
    const WRITES: usize = 600;
    let (held, yard) = exports(|config| {
        config.limits.in_flight_per_client = WRITES;
        config.limits.max_clients = 1;
    });
    let mut client = open(&yard, "hung");
    let mut bytes = Vec::new();
    for _ in 0..WRITES {
        bytes.extend(client.encode(request(Command::Write, NONE, 0, 512), &[1; 512]).1);
    }
    bytes.extend(client.encode(request(Command::Disc, NONE, 0, 0), &[]).1);
    client.stream.write_all(&bytes).unwrap();
    // Its place is free once the goodbye was heard.
    eventually("the goodbye", || {
        Client::open(Box::new(yard.connect()), "well", HeaderStyle::Simple).is_ok()
    });
    drop(client);
    // There are fewer tags, so that some of them have not begun.
    assert!((1..WRITES).contains(&held.held()));
    let mut done = 0;
    eventually("the end", || {
        done += held.release(Status::Ok);
        yard.server.clients().is_empty()
    });
    assert_eq!(done, WRITES);
}

#[test]
fn a_payload_whose_memory_ends_with_what_has_come_goes_on() {
    let (held, yard) = exports(|config| {
        config.limits.max_memory = 64 << 20;
        config.exports.remove(0);
    });
    // One takes nothing of its reply, and another waits for that memory: others have what each has for itself.
    let mut crowd: Vec<_> = (0..2).map(|_| open(&yard, "hung")).collect();
    for client in &mut crowd {
        client.send(request(Command::Read, NONE, 0, 32 << 20), &[]);
    }
    eventually("the first read", || held.held() > 0);
    held.release(Status::Ok);
    let own = 64 << 20 >> 3 >> 10;
    for step in [own, 512] {
        let mut client = open(&yard, "hung");
        let payload = pattern(3, 1 << 20);
        let (_, bytes) = client.encode(request(Command::Write, NONE, 0, 1 << 20), &payload);
        let (first, rest) = bytes.split_at(28 + own);
        // What comes first fills the memory to the last byte; the next one finds none, and no other comes before the disk has
        // those.
        client.stream.write_all(&first[..28]).unwrap();
        for piece in first[28..].chunks(step) {
            client.stream.write_all(piece).unwrap();
        }
        let (next, rest) = rest.split_at(1);
        client.stream.write_all(next).unwrap();
        eventually("a piece at the disk", || held.held() > 0);
        let reply = std::thread::scope(|scope| {
            let reply = scope.spawn(|| {
                client.stream.write_all(rest).unwrap();
                client.next_reply().unwrap()
            });
            eventually("all pieces", || {
                held.release(Status::Ok);
                reply.is_finished()
            });
            reply.join().unwrap()
        });
        assert_eq!(reply.1.error, None);
    }
}
