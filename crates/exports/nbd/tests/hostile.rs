//! Clients that mean no good, or are broken: none crashes the server, makes it hold more than its limits, or
//! hurts another.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Features, Limits};
use blockyard_export_nbd::{Config, Export, HeaderStyle, TlsMode};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, Request};
use common::{
    Client, DEADLINE, MIB, Paused, STYLES, Yard, eventually, held_disk, pattern, ram, request,
};
use parking_lot::Mutex;

const NONE: CommandFlags = CommandFlags::empty();
const GREETING: usize = 18;

/// A client that others may hurt.
struct Bystander(Client, u64);

impl Bystander {
    fn new(yard: &Yard) -> Self {
        Self(yard.client(), 0)
    }

    /// It still gets what it asks for, and soon.
    fn is_well(&mut self) {
        self.1 += 1;
        let start = Instant::now();
        let data = pattern(self.1, 4096);
        self.0.write(4096, &data);
        assert!(self.0.read(4096, 4096) == data);
        assert!(start.elapsed() < DEADLINE / 3);
    }
}

fn greeted(yard: &Yard) -> UnixStream {
    let mut stream = yard.connect();
    stream.read_exact(&mut [0; GREETING]).unwrap();
    stream
}

fn option(number: u32, len: u32, data: &[u8]) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn is_closed(mut stream: UnixStream) -> bool {
    // What the server says before is its business.
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => true,
        Err(err) => err.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn write(request: &Request) -> Vec<u8> {
    request.encode(HeaderStyle::Simple).unwrap().to_vec()
}

const SHORT: Duration = Duration::from_millis(300);

#[test]
fn garbage_instead_of_a_handshake_is_hung_up_on() {
    let yard = Yard::new(MIB);
    let mut bystander = Bystander::new(&yard);
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n"[..],
        &[0xff; 4],
        &[0; 64],
        // The right flags, then no option.
        &[&[0, 0, 0, 3][..], &[0x55; 64]].concat(),
        // An option of 4 GiB.
        &[&[0, 0, 0, 3][..], &option(7, u32::MAX, b"")].concat(),
        &[&[0, 0, 0, 3][..], &option(1, u32::MAX, b"")].concat(),
        // A name of 4 GiB in an option that is short.
        &[&[0, 0, 0, 3][..], &option(1, 5, b"no no")].concat(),
        // Not fixed newstyle, but an option that needs it.
        &[&[0, 0, 0, 0][..], &option(3, 0, b"")].concat(),
    ] {
        let mut stream = greeted(&yard);
        stream.write_all(garbage).unwrap();
        assert!(is_closed(stream), "{garbage:?}");
        bystander.is_well();
    }
}

#[test]
fn options_without_end_are_hung_up_on() {
    let yard = Yard::new(MIB);
    let mut stream = greeted(&yard);
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let flood = option(0x7777, 0, b"").repeat(4096);
        // Fails once the server has had enough.
        let _ = stream.write_all(&flood);
    });
    let mut said = Vec::new();
    let _ = reader.read_to_end(&mut said);
    sender.join().unwrap();
    Bystander::new(&yard).is_well();
}

#[test]
fn a_handshake_has_a_deadline_whatever_it_trickles() {
    let yard = Yard::with(ram(MIB), |config, _| config.limits.handshake_timeout = SHORT);
    let silent = yard.connect();
    let truncated = {
        let mut stream = greeted(&yard);
        // On a busy machine that may be too late already.
        let _ = stream.write_all(&[0, 0, 0]);
        stream
    };
    let mut trickling = greeted(&yard);
    let start = Instant::now();
    let flood = [&[0, 0, 0, 3][..], &option(7, 60_000, &[0; 60_000])].concat();
    let mut sent = 0;
    while trickling.write_all(&flood[sent..=sent]).is_ok() && start.elapsed() < DEADLINE {
        sent += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(start.elapsed() < DEADLINE);
    assert!(is_closed(silent) && is_closed(truncated) && is_closed(trickling));
    // On a busy machine it may be late itself.
    let open = || Client::open(Box::new(yard.connect()), "", HeaderStyle::Extended).ok();
    let mut opened = None;
    eventually("a client that is quick", || {
        opened = open();
        opened.is_some()
    });
    Bystander(opened.unwrap(), 0).is_well();
}

#[test]
fn a_wrong_magic_in_the_transmission_phase_is_hung_up_on() {
    let yard = Yard::new(MIB);
    let mut bystander = Bystander::new(&yard);
    for style in STYLES {
        let mut client = yard.client_of(style);
        client.stream.write_all(&[0x5a; 40]).unwrap();
        assert!(client.is_closed());
        bystander.is_well();
    }
    // What came before it is answered, all in one message.
    let mut client = yard.client_of(HeaderStyle::Simple);
    let (_, flush) = client.encode(request(Command::Flush, NONE, 0, 0), &[]);
    client.stream.write_all(&[&flush[..], &[0x5a; 40]].concat()).unwrap();
    client.next_reply().unwrap().1.ok();
    assert!(client.is_closed());
    // Headers of another style are garbage too.
    let mut client = yard.client_of(HeaderStyle::Extended);
    client.stream.write_all(&write(&request(Command::Flush, NONE, 0, 0))).unwrap();
    assert!(client.is_closed());
}

#[test]
fn a_payload_that_is_too_long_is_skipped_or_ends_the_connection() {
    let yard = Yard::with(ram(64 * MIB), |config, _| config.limits.max_payload = MIB as u32);
    let mut client = yard.client_of(HeaderStyle::Simple);
    let before = common::peak_memory();
    let outcome = client.try_write(0, &vec![1; 8 << 20]);
    assert_eq!(outcome.error, Some(ErrorCode::EINVAL));
    assert_eq!(client.read(0, 512), [0; 512], "the stream is in step, and nothing was written");
    for length in [33 << 20, u64::from(u32::MAX)] {
        let mut client = yard.client_of(HeaderStyle::Simple);
        client.stream.write_all(&write(&request(Command::Write, NONE, 0, length))).unwrap();
        assert!(client.is_closed());
    }
    let mut client = yard.client();
    let huge = request(Command::Write, CommandFlags::PAYLOAD_LEN, 0, u64::MAX);
    client.stream.write_all(&huge.encode(HeaderStyle::Extended).unwrap()).unwrap();
    assert!(client.is_closed());
    // The test's own copy of the payload, and not that of the server.
    assert!(common::peak_memory() - before < 64 << 20);
}

#[test]
fn a_payload_that_never_comes_holds_its_own_memory_and_not_for_ever() {
    let yard = Yard::with(ram(64 * MIB), |config, _| config.limits.stall_timeout = SHORT);
    let mut bystander = Bystander::new(&yard);
    let mut stuck: Vec<_> = (0..20).map(|_| yard.client_of(HeaderStyle::Simple)).collect();
    for (n, client) in stuck.iter_mut().enumerate() {
        let header = write(&request(Command::Write, NONE, 0, 32 << 20));
        client.stream.write_all(&header[..28 - n]).unwrap();
        if n == 0 {
            // On a busy machine that may be too late already.
            let _ = client.stream.write_all(&[0; 100_000]);
        }
    }
    bystander.is_well();
    for client in &mut stuck {
        assert!(client.is_closed());
    }
    bystander.is_well();
    assert_eq!(bystander.0.read(0, 512), [0; 512], "half a write is none");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_anything_is_forgotten() {
    let yard = Yard::new(64 * MIB);
    let held = held_disk(MIB, Limits::default());
    let slow = Yard::with(held.disk.clone(), |_, _| {});
    for cut in [1, 27, 28, 29, 4000, 20_000] {
        let mut client = yard.client_of(HeaderStyle::Simple);
        let bytes = [write(&request(Command::Write, NONE, 0, 65_536)), vec![1; 65_536]].concat();
        client.stream.write_all(&bytes[..cut]).unwrap();
        drop(client);
    }
    let mut client = slow.client();
    for _ in 0..10 {
        client.send(request(Command::Read, NONE, 0, 4096), &[]);
    }
    eventually("the reads", || held.held() == 10);
    drop(client);
    held.release(blockyard_blkmq::Status::Ok);
    eventually("leaving", || yard.server.clients().is_empty() && slow.server.clients().is_empty());
    Bystander::new(&yard).is_well();
}

#[test]
fn replies_that_are_never_read_hold_no_more_than_the_limit() {
    let yard = Yard::with(ram(64 * MIB), |config, _| {
        config.limits.memory_per_client = 4 << 20;
        config.limits.max_payload = 4 << 20;
    });
    let mut bystander = Bystander::new(&yard);
    bystander.0.write(0, &pattern(9, 4 << 20));
    for style in STYLES {
        let stream = yard.connect();
        let control = stream.try_clone().unwrap();
        let mut client = Client::open(Box::new(stream), "", style).unwrap();
        let flood = flood(&mut client);
        let sender = std::thread::spawn(move || client.stream.write_all(&flood));
        eventually("the flood to be held back", || {
            let most = yard.server.clients().iter().map(|info| info.in_flight).max();
            most.is_some_and(|most| most > 2)
        });
        let most = yard.server.clients().iter().map(|info| info.in_flight).max().unwrap();
        assert!(most <= 4, "{most} reads of 1 MiB in 4 MiB");
        bystander.is_well();
        control.shutdown(Shutdown::Both).unwrap();
        assert!(sender.join().unwrap().is_err());
        eventually("the stuck client to be gone", || yard.server.clients().len() == 1);
    }
}

/// Reads of 1 MiB and requests that are refused, many of both.
fn flood(client: &mut Client) -> Vec<u8> {
    let (_, read) = client.encode(request(Command::Read, NONE, 0, MIB), &[]);
    let (_, bad) = client.encode(request(Command::Unknown(77), NONE, 0, MIB), &[]);
    [read, bad].concat().repeat(10_000)
}

#[test]
fn replies_that_are_never_read_are_not_kept_for_ever() {
    const STALL: Duration = Duration::from_secs(60);
    let config = |config: &mut Config| config.limits.stall_timeout = STALL;
    Paused::run(&ram(MIB), config, |paused| async move {
        let sender = paused.client(false, |mut client| {
            let flood = flood(&mut client);
            // What the server does not take finds nobody in the end.
            let _ = client.stream.write_all(&flood);
        });
        // The first of them has filled the socket.
        Paused::until("the flood", || paused.requests() > 2).await;
        let begun = tokio::time::Instant::now();
        while !paused.server.clients().is_empty() && begun.elapsed() < 2 * STALL {
            tokio::time::advance(STALL / 20).await;
        }
        let took = begun.elapsed();
        assert!(took >= STALL && took < STALL + STALL / 4, "{took:?}");
        sender.join().unwrap();
    });
}

#[test]
fn a_slow_reader_gets_everything_and_costs_no_memory() {
    let yard = Yard::with(ram(64 * MIB), |config, _| {
        config.limits.memory_per_client = 2 << 20;
        config.limits.max_payload = 2 << 20;
    });
    let data = pattern(11, MIB as usize);
    yard.client_of(HeaderStyle::Simple).write(0, &data);
    let stream = yard.connect();
    let mut sender = stream.try_clone().unwrap();
    let mut client = Client::open(Box::new(stream), "", HeaderStyle::Structured).unwrap();
    let mut bytes = Vec::new();
    for _ in 0..64 {
        bytes.extend(client.encode(request(Command::Read, NONE, 0, MIB), &[]).1);
    }
    sender.write_all(&bytes).unwrap();
    for _ in 0..64 {
        let listed = yard.server.clients();
        assert!(listed.iter().all(|info| info.in_flight <= 2), "{listed:?}");
        assert!(client.next_reply().unwrap().1.ok().data == data);
    }
}

#[test]
fn writes_that_a_disk_holds_on_to_hold_their_client_back() {
    let limits = Limits {
        max_hw_sectors: 1 << 20,
        max_segment_size: u32::MAX,
        features: Features::NOMERGES,
        ..Limits::default()
    };
    let held = held_disk(64 * MIB, limits);
    let yard = Yard::with(held.disk.clone(), |config, _| {
        config.limits.memory_per_client = 2 << 20;
        config.limits.max_payload = 1 << 20;
        config.limits.in_flight_per_client = 16;
    });
    for (len, most) in [(4096, 16), (512 << 10, 4)] {
        let stream = yard.connect();
        let mut sender = stream.try_clone().unwrap();
        let mut client = Client::open(Box::new(stream), "", HeaderStyle::Simple).unwrap();
        let mut bytes = Vec::new();
        for n in 0..40 {
            let write = request(Command::Write, NONE, n * len, len);
            bytes.extend(client.encode(write, &pattern(n, len as usize)).1);
        }
        let sender = std::thread::spawn(move || sender.write_all(&bytes).unwrap());
        let mut done = 0;
        while done < 40 {
            let expected = most.min(40 - done);
            eventually("as many writes as there is room for", || held.held() >= expected);
            assert_eq!(held.held(), expected);
            held.release(blockyard_blkmq::Status::Ok);
            (0..expected).for_each(|_| assert_eq!(client.next_reply().unwrap().1.error, None));
            done += expected;
        }
        sender.join().unwrap();
    }
}

#[test]
fn there_are_no_more_clients_than_the_limit_and_those_go_on() {
    let yard = Yard::with(ram(MIB), |config, _| {
        config.limits.max_clients = 64;
        config.tls = TlsMode::Off;
    });
    let mut bystander = Bystander::new(&yard);
    let idle: Vec<_> = (0..63).map(|_| yard.client()).collect();
    // A client knows that it is served before the server counts it so.
    let served = || yard.server.clients().iter().filter(|client| client.session.is_some()).count();
    eventually("64 served clients", || served() == 64);
    let mut refused = 0;
    let mut kept = Vec::new();
    for n in 0..4000 {
        let mut stream = yard.connect();
        // At once, or with a greeting that never comes.
        if stream.read(&mut [0; 1]).map_or(true, |len| len == 0) {
            refused += 1;
        }
        if kept.len() < 300 {
            kept.push(stream);
        }
        if n % 500 == 0 {
            bystander.is_well();
        }
    }
    assert_eq!(refused, 4000);
    assert_eq!(yard.server.clients().len(), 64);
    bystander.is_well();
    drop(idle);
    eventually("room", || yard.server.clients().len() == 1);
    yard.client().disconnect();
}

/// What was logged by any thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_in_a_connection_costs_that_connection_and_is_told_once() {
    let log = Log::default();
    let to = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone()).init();
    let told = || String::from_utf8_lossy(&log.0.lock()).matches("bug: a panic").count();
    let yard = Yard::with(ram(MIB), |config, _| {
        let bad = common::disk_of(Arc::new(common::Panics), (), MIB, Limits::default());
        let bdev = bad.open(None, blockyard_blkmq::OpenMode::ReadWrite).unwrap();
        config.exports.push(Export::new("bad", Arc::new(bdev)));
        config.default_export = Some("disk".into());
    });
    let mut bystanders: Vec<_> = (0..2).map(|_| Bystander::new(&yard)).collect();
    for round in 1..=4 {
        let mut client =
            Client::open(Box::new(yard.connect()), "bad", HeaderStyle::Extended).unwrap();
        client.send(request(Command::Read, NONE, 0, 512), &[]);
        assert!(client.is_closed());
        eventually("the log", || told() >= round);
        bystanders.iter_mut().for_each(Bystander::is_well);
    }
    eventually("leaving", || yard.server.clients().len() == 2);
    assert_eq!(told(), 4, "each once, by what it said");
    assert!(String::from_utf8_lossy(&log.0.lock()).contains("as a test wants it"));
}

#[test]
fn a_client_that_only_shuts_its_side_still_gets_its_replies() {
    let held = held_disk(MIB, Limits::default());
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    // Between two messages, and in the middle of one.
    for half in [&[][..], &[0x25; 1]] {
        let stream = yard.connect();
        let control = stream.try_clone().unwrap();
        let mut client = Client::open(Box::new(stream), "", HeaderStyle::Extended).unwrap();
        let (_, read) = client.encode(request(Command::Read, NONE, 0, 512), &[]);
        client.stream.write_all(&[&read[..], half].concat()).unwrap();
        control.shutdown(Shutdown::Write).unwrap();
        eventually("the read", || held.held() == 1);
        held.release(blockyard_blkmq::Status::Ok);
        assert_eq!(client.next_reply().unwrap().1.ok().data, [7; 512]);
        assert!(client.is_closed());
    }
}
