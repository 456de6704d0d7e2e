//! The end of a server, and of a disk, under load.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Busy, Driver, Features, HctxHandle, Limits, Op, OpenMode, Request, Status};
use blockyard_driver_ram::Ram;
use blockyard_export_nbd::{
    Address, Config, Error, ErrorKind, Export, HeaderStyle, Listener, Server, TlsMode, bind,
};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode};
use common::{Client, HeldDisk, MIB, Yard, disk_of, eventually, held_disk, ram, request, tags};

const NONE: CommandFlags = CommandFlags::empty();

#[test]
fn a_shutdown_under_load_loses_no_acknowledged_write() {
    let yard = Yard::new(64 * MIB);
    let disk = yard.disk.clone();
    let acknowledged: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|writer| {
                let mut client = yard.client();
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    let mut offsets = std::collections::HashMap::new();
                    for n in 0.. {
                        let offset = (writer * 4096 + n % 4096) * 4096;
                        let write = request(Command::Write, NONE, offset, 4096);
                        let (cookie, bytes) = client.encode(write, &[writer as u8 + 1; 4096]);
                        offsets.insert(cookie, offset);
                        if std::io::Write::write_all(&mut client.stream, &bytes).is_err() {
                            break;
                        }
                        if n >= 16 {
                            match client.next_reply() {
                                Ok((cookie, outcome)) if outcome.error.is_none() => {
                                    acknowledged.push(offsets[&cookie]);
                                }
                                _ => break,
                            }
                        }
                    }
                    // What was in flight is answered, too, and what came later is told why it is not done.
                    while let Ok((cookie, outcome)) = client.next_reply() {
                        match outcome.error {
                            None => acknowledged.push(offsets[&cookie]),
                            error => assert_eq!(error, Some(ErrorCode::ESHUTDOWN)),
                        }
                    }
                    (writer, acknowledged)
                })
            })
            .collect();
        eventually("load", || yard.server.clients().iter().all(|client| client.requests > 200));
        let start = Instant::now();
        yard.shutdown(Duration::from_secs(20));
        assert!(start.elapsed() < Duration::from_secs(15), "nobody had to be cut off");
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert!(std::os::unix::net::UnixStream::connect(&yard.socket).is_err(), "nobody listens");
    let bdev = disk.open(None, OpenMode::ReadOnly).unwrap();
    for (writer, offsets) in acknowledged {
        assert!(offsets.len() > 100);
        for offset in offsets.into_iter().collect::<BTreeSet<_>>() {
            let sector = blockyard_blkmq::Sector::from_bytes_floor(offset);
            let bio = blockyard_blkmq::Bio::new(blockyard_blkmq::Op::Read, sector, 4096);
            let bio = bdev.submit_and_wait(0, bio);
            let data: Vec<u8> = bio.data().iter().flat_map(|segment| segment.to_vec()).collect();
            assert!(data == [writer as u8 + 1; 4096], "{writer} {offset}");
        }
    }
}

#[test]
fn what_is_in_flight_is_finished_and_answered() {
    let held = held_disk(MIB, Limits::default());
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let mut client = yard.client();
    let cookie = client.send(request(Command::Read, NONE, 0, 512), &[]);
    eventually("the read", || held.held() == 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            yard.shutdown(Duration::from_secs(25));
            done.store(true, Ordering::SeqCst);
        });
        eventually("the socket to go", || !yard.socket.exists());
        assert!(!done.load(Ordering::SeqCst), "it waits for the disk");
        held.release(Status::Ok);
        let (got, outcome) = client.next_reply().unwrap();
        assert_eq!((got, outcome.ok().data), (cookie, vec![7; 512]));
        assert!(client.is_closed());
        drop(client);
    });
}

#[test]
fn whoever_is_in_the_midst_of_something_is_served_meanwhile() {
    let held = held_disk(MIB, Limits::default());
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let mut client = yard.client();
    client.send(request(Command::Write, NONE, 0, 512), &[1; 512]);
    eventually("the write", || held.held() == 1);
    std::thread::scope(|scope| {
        scope.spawn(|| yard.shutdown(Duration::from_secs(25)));
        eventually("the socket to go", || !yard.socket.exists());
        client.send(request(Command::Read, NONE, 0, 512), &[]);
        eventually("the read", || held.held() == 2);
        client.send(request(Command::Flush, NONE, 0, 0), &[]);
        held.release(Status::Ok);
        for _ in 0..3 {
            assert_eq!(client.next_reply().unwrap().1.error, None);
        }
        assert!(client.is_closed());
    });
}

/// The end does not come before what a client was told of is durable, or it has had its time.
#[test]
fn whoever_has_written_may_flush_before_the_server_ends() {
    let patient =
        |config: &mut Config, _: &Arc<_>| config.limits.flush_grace = common::DEADLINE * 4;
    let yard = Yard::with(ram(MIB), patient);
    let [mut writer, mut other, mut flushed] = [(); 3].map(|()| yard.client());
    for (at, client) in [&mut writer, &mut other, &mut flushed].into_iter().enumerate() {
        client.write(at as u64 * 512, &[1; 512]);
    }
    flushed.command(Command::Flush, 0, 0).ok();
    writer.write(512, &[2; 512]);
    other.ask(request(Command::WriteZeroes, CommandFlags::FUA, 0, 512), &[]).ok();
    std::thread::scope(|scope| {
        let end = scope.spawn(|| yard.shutdown(common::DEADLINE * 4));
        // All that it wrote was flushed, by itself, or by others.
        assert!(flushed.is_closed() && other.is_closed());
        drop((flushed, other));
        // An error would be the last word to whoever would ask another server again.
        assert_eq!(writer.read(512, 512), [2; 512]);
        assert!(!end.is_finished());
        writer.command(Command::Flush, 0, 0).ok();
        assert!(writer.is_closed());
        drop(writer);
        end.join().unwrap();
    });
}

#[test]
fn one_flush_lets_all_go() {
    let patient =
        |config: &mut Config, _: &Arc<_>| config.limits.flush_grace = common::DEADLINE * 4;
    let yard = Yard::with(ram(MIB), patient);
    let [mut one, mut two] = [(); 2].map(|()| yard.client());
    one.write(0, &[1; 512]);
    two.write(512, &[1; 512]);
    std::thread::scope(|scope| {
        let end = scope.spawn(|| yard.shutdown(common::DEADLINE * 4));
        eventually("the socket to go", || !yard.socket.exists());
        one.command(Command::Flush, 0, 0).ok();
        assert!(one.is_closed() && two.is_closed());
        drop((one, two));
        end.join().unwrap();
    });
}

/// The farewell has a bound in bytes, and whoever may still flush one in time.
#[test]
fn who_has_not_flushed_in_time_is_refused_the_rest_and_may_flush_yet() {
    let hasty = |config: &mut Config, _: &Arc<_>| {
        config.limits.flush_grace = Duration::from_millis(1);
    };
    let held = HeldDisk::keeping(|op| op == Op::WriteZeroes, tags(), 4 * MIB, {
        let features = Features::WRITE_CACHE;
        Limits { features, max_write_zeroes_sectors: 8, ..Limits::default() }
    });
    let yard = Yard::with(held.disk.clone(), hasty);
    let mut stream = yard.connect();
    let mut client = Client::open_hearing(Box::new(stream.try_clone().unwrap())).unwrap();
    client.write(0, &[1; 512]);
    // As long as something is out, nobody is let go.
    let slow = client.send(request(Command::WriteZeroes, NONE, 0, 512), &[]);
    held.wait_for(1);
    std::thread::scope(|scope| {
        let end = scope.spawn(|| yard.shutdown(common::DEADLINE * 4));
        eventually("its time is over", || {
            client.command(Command::Read, 0, 512).error == Some(ErrorCode::ESHUTDOWN)
        });
        let payload = vec![2; MIB as usize];
        let writes = (0..4).map(|at| request(Command::Write, NONE, at * MIB, MIB));
        let mut bytes: Vec<u8> =
            writes.flat_map(|write| client.encode(write, &payload).1).collect();
        let (flush, message) = client.encode(request(Command::Flush, NONE, 0, 0), &[]);
        bytes.extend(message);
        scope.spawn(move || stream.write_all(&bytes).unwrap());
        for _ in 0..4 {
            assert_eq!(client.next_reply().unwrap().1.error, Some(ErrorCode::ESHUTDOWN));
        }
        let (cookie, outcome) = client.next_reply().unwrap();
        assert_eq!((cookie, outcome.error), (flush, None));
        held.release(Status::Ok);
        let (cookie, outcome) = client.next_reply().unwrap();
        assert_eq!((cookie, outcome.error), (slow, None));
        assert!(client.is_closed());
        drop(client);
        end.join().unwrap();
    });
}

/// The reply to a write may cross a flush on its way: only the client knows whether it did.
#[test]
fn who_has_just_flushed_may_flush_again() {
    let patient =
        |config: &mut Config, _: &Arc<_>| config.limits.flush_grace = common::DEADLINE * 4;
    let yard = Yard::with(ram(MIB), patient);
    let (mut writer, mut reader) = (yard.hearing_client(), yard.client());
    let start = Instant::now();
    writer.write(0, &[1; 512]);
    writer.command(Command::Flush, 0, 0).ok();
    assert_eq!(reader.read(0, 512), [1; 512]);
    std::thread::scope(|scope| {
        let end = scope.spawn(|| yard.shutdown(common::DEADLINE * 4));
        assert!(reader.is_closed());
        assert!(writer.is_closed());
        // The driver for disks at NBD servers flushes within a second. Nobody else flushes by himself.
        assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
        drop((reader, writer));
        end.join().unwrap();
    });
}

/// Nothing is promised, and nothing waited for.
#[test]
fn whoever_cannot_flush_is_not_waited_for() {
    let patient =
        |config: &mut Config, _: &Arc<_>| config.limits.flush_grace = common::DEADLINE * 4;
    let mut limits = Ram::limits();
    limits.features |= Features::NO_FLUSH;
    let yard = Yard::with(disk_of(Ram::new(), (), MIB, limits), patient);
    let mut client = yard.client();
    client.write(0, &[1; 512]);
    assert!(client.command(Command::Flush, 0, 0).error.is_some());
    std::thread::scope(|scope| {
        scope.spawn(|| yard.shutdown(common::DEADLINE * 4));
        // A tenth of what it would be waited for.
        assert!(client.is_closed());
        drop(client);
    });
}

/// Ends what it gets at once, a flush when it is told to.
struct Gate {
    reached: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Driver for Gate {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> blockyard_blkmq::Result<()> {
        Ok(())
    }

    fn queue_rq(&self, _hctx: &mut (), rq: Request<Self>, _last: bool) -> Result<(), Busy<Self>> {
        if rq.op() == Op::Flush {
            self.reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv_timeout(common::DEADLINE).unwrap();
        }
        rq.end(Status::Ok);
        Ok(())
    }
}

#[test]
fn a_flush_that_ends_while_the_end_begins_lets_others_go() {
    let ((reached, is_reached), (go_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
    let gate = Arc::new(Gate { reached, go_on: Mutex::new(may_go_on) });
    let limits = Limits { features: Features::WRITE_CACHE, ..Limits::default() };
    let patient =
        |config: &mut Config, _: &Arc<_>| config.limits.flush_grace = common::DEADLINE * 4;
    let yard = Yard::with(disk_of(gate, (), MIB, limits), patient);
    // Each on a thread of its own: that of the first carries out the shutdown.
    let [mut writer, mut other] = [(); 2].map(|()| yard.client());
    let threads: Vec<_> = yard.server.clients().iter().map(|client| client.thread).collect();
    assert_eq!(threads, [0, 1]);
    writer.write(0, &[1; 512]);
    let flush = other.send(request(Command::Flush, NONE, 0, 0), &[]);
    is_reached.recv_timeout(common::DEADLINE).unwrap();
    std::thread::scope(|scope| {
        let end = scope.spawn(|| yard.shutdown(common::DEADLINE * 4));
        eventually("the socket to go", || !yard.socket.exists());
        assert_eq!(writer.command(Command::Cache, 0, 512).error, None, "it is waited for");
        // It ends within the turn that has begun before the end.
        go_on.send(()).unwrap();
        let (cookie, outcome) = other.next_reply().unwrap();
        assert_eq!((cookie, outcome.error), (flush, None));
        assert!(other.is_closed() && writer.is_closed());
        drop((writer, other));
        end.join().unwrap();
    });
}

#[test]
fn whoever_does_not_flush_is_let_go_in_the_end() {
    let hasty = |config: &mut Config, _: &Arc<_>| {
        config.limits.flush_grace = Duration::from_millis(20);
    };
    let yard = Yard::with(ram(MIB), hasty);
    let mut client = yard.client();
    client.write(0, &[1; 512]);
    std::thread::scope(|scope| {
        scope.spawn(|| yard.shutdown(common::DEADLINE * 4));
        assert!(client.is_closed());
        drop(client);
    });
}

#[test]
fn what_takes_longer_than_the_grace_is_cut_off() {
    let held = held_disk(MIB, Limits::default());
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let mut client = yard.client();
    client.send(request(Command::Write, NONE, 0, 512), &[1; 512]);
    eventually("the write", || held.held() == 1);
    yard.shutdown(Duration::from_millis(100));
    assert_eq!(yard.server.clients(), []);
    assert!(client.is_closed());
    // Its end finds nobody, and harms nobody.
    held.release(Status::Ok);
}

/// What is in flight there is answered; others notice nothing.
#[test]
fn exports_come_and_go_while_others_are_used() {
    let yard = Yard::new(MIB);
    let mut other = yard.client();
    other.write(0, &[3; 512]);
    let held = held_disk(MIB, Limits::default());
    let more = || {
        let bdev = held.disk.open(None, OpenMode::ReadWrite).unwrap();
        Export::new("more", Arc::new(bdev))
    };
    let open = || Client::open(Box::new(yard.connect()), "more", HeaderStyle::Extended);
    for _ in 0..2 {
        assert!(open().is_err(), "it is not there");
        yard.server.add_export(more()).unwrap();
        assert_eq!(yard.server.add_export(more()).unwrap_err().kind(), ErrorKind::InUse);
        let mut client = open().unwrap();
        let cookie = client.send(request(Command::Read, NONE, 0, 512), &[]);
        eventually("the read", || held.held() == 1);
        std::thread::scope(|scope| {
            let server = Arc::clone(&yard.server);
            let removed = scope.spawn(|| {
                yard.block_on(async move {
                    let removed = server.remove_export("more", Duration::from_secs(25)).await;
                    removed.map(|removed| server.in_flight_of(removed))
                })
            });
            eventually("its end", || open().is_err());
            assert_eq!(other.read(0, 512), [3; 512]);
            assert!(!removed.is_finished(), "it waits for the disk");
            held.release(Status::Ok);
            let (got, outcome) = client.next_reply().unwrap();
            assert_eq!((got, outcome.ok().data), (cookie, vec![7; 512]));
            assert!(client.is_closed());
            drop(client);
            assert_eq!(removed.join().unwrap(), Some(0));
        });
        assert_eq!(held.disk.openers(), 0);
    }
    let server = Arc::clone(&yard.server);
    let none = yard.block_on(async move { server.remove_export("more", Duration::ZERO).await });
    assert_eq!(none, None);
    assert_eq!(other.read(0, 512), [3; 512]);
}

/// Who sees it end may write the same elsewhere, and the old write comes after the new one.
#[test]
fn a_connection_that_is_cut_off_ends_after_its_writes() {
    let yard = Yard::new(MIB);
    let mut other = yard.client();
    let held = held_disk(MIB, Limits::default());
    let bdev = held.disk.open(None, OpenMode::ReadWrite).unwrap();
    yard.server.add_export(Export::new("more", Arc::new(bdev))).unwrap();
    let stream = yard.connect();
    let mut client =
        Client::open(Box::new(stream.try_clone().unwrap()), "more", HeaderStyle::Extended).unwrap();
    client.send(request(Command::Write, NONE, 0, 512), &[1; 512]);
    eventually("the write", || held.held() == 1);
    let server = Arc::clone(&yard.server);
    let removal = async move { server.remove_export("more", Duration::from_millis(10)).await };
    let removed = yard.block_on(removal).unwrap();
    stream.set_nonblocking(true).unwrap();
    let end = (&stream).read(&mut [0]).map_err(|err| err.kind());
    assert_eq!(end, Err(std::io::ErrorKind::WouldBlock), "it is open");
    assert_eq!(yard.server.in_flight_of(removed), 1, "the write");
    // One of that name that comes later is another.
    let bdev = held.disk.open(None, OpenMode::ReadWrite).unwrap();
    yard.server.add_export(Export::new("more", Arc::new(bdev))).unwrap();
    assert_eq!(yard.server.in_flight_of(removed), 1);
    let server = Arc::clone(&yard.server);
    let again =
        yard.block_on(async move { server.remove_export("more", common::DEADLINE).await }).unwrap();
    assert_ne!(again, removed);
    assert_eq!(yard.server.in_flight_of(again), 0);
    // Nor is it forgotten.
    assert_eq!(yard.server.clients().iter().map(|client| client.in_flight).max(), Some(1));
    other.write(0, &[3; 512]);
    stream.set_nonblocking(false).unwrap();
    held.release(Status::Ok);
    assert!(client.is_closed(), "without an answer");
    eventually("its end", || held.disk.openers() == 0);
    assert_eq!(yard.server.in_flight_of(removed), 0);
    assert_eq!(other.read(0, 512), [3; 512]);
}

#[test]
fn clients_in_their_handshake_and_idle_ones_do_not_hold_it_up() {
    let yard = Yard::new(MIB);
    let (silent, mut idle) = (yard.connect(), yard.client());
    eventually("both", || yard.server.clients().len() == 2);
    let hang_up = std::thread::spawn(move || {
        assert!(idle.is_closed());
        drop(idle);
    });
    let start = Instant::now();
    yard.shutdown(Duration::from_secs(20));
    assert!(start.elapsed() < Duration::from_secs(10));
    hang_up.join().unwrap();
    drop(silent);
}

#[test]
fn a_client_that_chooses_while_the_server_ends_is_told_so() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let disk = ram(MIB);
    let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
    let config = Config { exports: vec![Export::new("disk", bdev)], ..Config::default() };
    let server = Server::new(config, vec![runtime.handle().clone()]).unwrap();
    let (client, theirs) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    server.serve(theirs.into());
    // The flags that it agrees to, and half of `NBD_OPT_GO`.
    let message = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7], &[0, 0, 0, 6], &[0; 6]].concat();
    (&client).write_all(&message[..9]).unwrap();
    let mut said = Vec::new();
    runtime.block_on(async {
        // As long as something blocks, the clock does not move by itself.
        let (still, stop) = std::sync::mpsc::channel::<()>();
        let blocker = tokio::task::spawn_blocking(move || _ = stop.recv());
        let mut hear = async |len: usize| {
            let mut bytes = vec![0; 4096];
            while said.len() < len {
                match (&client).read(&mut bytes) {
                    Ok(len) => said.extend_from_slice(&bytes[..len]),
                    Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::WouldBlock),
                }
                tokio::task::yield_now().await;
            }
            said.split_off(0)
        };
        hear(18).await;
        let end = tokio::spawn({
            let server = Arc::clone(&server);
            async move { server.shutdown(Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        (&client).write_all(&message[9..]).unwrap();
        let reply = hear(20).await;
        assert_eq!(reply[8..16], [0, 0, 0, 7, 0x80, 0, 0, 7], "NBD_REP_ERR_SHUTDOWN to GO");
        assert!(!end.is_finished());
        drop(still);
        blocker.await.unwrap();
        // It says nothing more, and is left behind.
        end.await.unwrap();
    });
    assert_eq!(server.clients(), []);
}

#[test]
fn a_connection_ends_after_its_requests_whoever_ends_it() {
    let held = held_disk(MIB, Limits::default());
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    // On one thread, so that what is done for the one was done after what the other sent before.
    let mut client = yard.client();
    let elsewhere = yard.connect();
    eventually("the other thread", || yard.server.clients().len() == 2);
    let mut witness = yard.client();
    let threads: Vec<_> = yard.server.clients().iter().map(|client| client.thread).collect();
    assert_eq!(threads, [0, 1, 0]);
    client.send(request(Command::Write, NONE, 0, 512), &[1; 512]);
    eventually("the write", || held.held() == 1);
    client.stream.write_all(&[0x5a; 40]).unwrap();
    for _ in 0..3 {
        assert!(witness.command(Command::Read, MIB, 512).error.is_some());
    }
    assert_eq!(yard.server.clients()[0].in_flight, 1, "its write may still be carried out");
    // The other way: the client is gone.
    let second = yard.server.clients()[2].id;
    witness.send(request(Command::Write, NONE, 0, 512), &[2; 512]);
    eventually("the write", || held.held() == 2);
    witness.stream.write_all(&[0x25, 0x60]).unwrap();
    drop(witness);
    // Neither is forgotten before the disk has done with it.
    assert!(yard.server.clients().iter().any(|client| client.id == second));
    held.release(Status::Ok);
    client.next_reply().unwrap().1.ok();
    assert!(client.is_closed());
    drop((client, elsewhere));
    eventually("the end", || yard.server.clients().is_empty());
}

#[test]
fn a_disk_that_is_removed_fails_its_requests_and_no_more() {
    let layer = blockyard_blkmq::BlockLayer::new();
    let disk = ram(MIB);
    layer.add_disk(&disk).unwrap();
    let yard = Yard::with(disk.clone(), |_, _| {});
    let mut client = yard.client();
    client.write(0, &[1; 512]);
    layer.del_disk(&disk);
    // Its size is 0 now.
    let error = client.command(Command::Read, 0, 512).error;
    assert!(matches!(error, Some(ErrorCode::EINVAL | ErrorCode::ESHUTDOWN)), "{error:?}");
}

#[test]
fn it_listens_at_several_places_and_by_passed_sockets() {
    let yard = Yard::new(MIB);
    let tcp = bind(&"tcp:127.0.0.1:0".parse().unwrap(), None).unwrap();
    let [Address::Tcp { host, port }] = &tcp.addresses()[..] else { panic!("one address") };
    let address = (host.clone(), *port);
    yard.server.listen(tcp);
    let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = passed.local_addr().unwrap();
    yard.server.listen(Listener::from_fd(passed.into()).unwrap());
    let over = |stream: std::net::TcpStream| {
        stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
        Client::open(Box::new(stream), "disk", HeaderStyle::Extended).unwrap()
    };
    let mut one = over(std::net::TcpStream::connect(address).unwrap());
    let mut two = over(std::net::TcpStream::connect(second).unwrap());
    one.write(0, &[5; 512]);
    assert_eq!(two.read(0, 512), [5; 512]);
    assert!(yard.server.clients().iter().all(|client| client.peer.starts_with("tcp:127.0.0.1:")));
    let threads: Vec<_> = yard.server.clients().iter().map(|client| client.thread).collect();
    assert_eq!(threads, [0, 1], "spread over the queue threads");
    one.disconnect();
    two.disconnect();
}

#[test]
fn a_configuration_that_cannot_be_says_why() {
    let disk = ram(MIB);
    let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
    let error = |change: &dyn Fn(&mut Config)| -> Error {
        let mut config =
            Config { exports: vec![Export::new("a", bdev.clone())], ..Config::default() };
        change(&mut config);
        Server::new(config, Vec::new()).err().unwrap()
    };
    for (problem, change) in [
        (
            "two exports",
            &(|config: &mut Config| config.exports.push(config.exports[0].clone()))
                as &dyn Fn(&mut Config),
        ),
        ("default export", &|config| config.default_export = Some("b".into())),
        ("TLS is off", &|config| {
            config.exports[0].tls_only = true;
            config.tls = TlsMode::Off;
        }),
        ("preferred block size", &|config| config.exports[0].preferred_block_size = Some(1000)),
        ("maximum payload", &|config| config.limits.max_payload = 4096),
        ("memory per client", &|config| config.limits.memory_per_client = 1 << 20),
        ("longer than", &|config| config.exports[0].description = "x".repeat(5000)),
        ("queue threads", &|_| {}),
    ] {
        let error = error(change);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(problem), "{error}");
    }
}

/// As other servers do: whoever writes and leaves does not wait for answers.
#[test]
fn what_stands_before_a_goodbye_is_done_though_nobody_takes_the_answers() {
    const WRITES: u64 = 40;
    const AT_A_TIME: usize = 4;
    let limits = Limits { features: Features::NOMERGES, ..Limits::default() };
    let held = held_disk(MIB, limits);
    // The others wait for their turn.
    let yard =
        Yard::with(held.disk.clone(), |config, _| config.limits.in_flight_per_client = AT_A_TIME);
    let mut client = yard.client();
    let mut bytes = Vec::new();
    for at in 0..WRITES {
        bytes.extend(client.encode(request(Command::Write, NONE, at * 512, 512), &[1; 512]).1);
        if at % 8 == 7 {
            bytes.extend(client.encode(request(Command::Read, NONE, at * 512, 512), &[]).1);
        }
    }
    let goodbye = request(Command::Disc, NONE, 0, 0);
    bytes.extend_from_slice(&goodbye.encode(client.style()).unwrap());
    client.stream.write_all(&bytes).unwrap();
    eventually("the first", || held.held() == AT_A_TIME);
    drop(client);
    let mut written = 0;
    eventually("all that was sent", || {
        written += held.release_if(|rq| rq.op() == Op::Write, Status::Ok);
        held.release_if(|rq| rq.op() != Op::Write, Status::Ok);
        written == WRITES as usize
    });
    eventually("its end", || yard.server.clients().is_empty());
}
