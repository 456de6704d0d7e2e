//! What a flush covers, with several connections and several servers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bio, Op, Sector, Status};
use blockyard_driver_nbd::{Backoff, Ledger, NbdConfig};
use blockyard_nbd::wire::{Command, Request};
use common::fake::{Fake, Left, Manner, Then, USUAL};
use common::{Attached, PATIENCE, Place, attach, unix, until, write};
use parking_lot::Mutex;

fn config(place: &Place, connections: usize) -> NbdConfig {
    NbdConfig {
        connections: Some(connections),
        timeout: PATIENCE,
        dead_conn_timeout: PATIENCE,
        backoff: Backoff { first: Duration::from_millis(5), most: Duration::from_millis(20) },
        ..unix(&place.path("s"))
    }
}

/// Loses the first connection, and waits until the third takes its place.
fn make_anew(disk: &Attached, server: &Fake) {
    server.hang_up(0);
    until("another one is asked", || {
        let read = disk.submit(0, Bio::new(Op::Read, Sector(0), 512));
        // On a busy machine it may come too late.
        let _ = read.recv_timeout(PATIENCE).unwrap().status();
        (2..100).any(|number| !server.asked(number).is_empty())
    });
}

#[test]
fn what_the_old_server_answers_after_a_move_is_flushed_there() {
    let (place, other) = (Place::new(), Place::new());
    let old = Fake::scripted(
        &place.path("s"),
        |_| USUAL,
        |_, _, request| {
            if request.command == Command::Write { Then::Holds } else { Then::Answers }
        },
    );
    let _new = Fake::start(&other.path("s"), |_| USUAL);
    let disk = attach(config(&place, 1), 1);
    let end = disk.submit(0, write(0, &[1; 4096]));
    old.until_asked(Command::Write, 1);
    disk.block_on(disk.nbd.reconfigure(config(&other, 1).uri)).unwrap();
    old.release(0);
    assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    assert_eq!(old.left(), (0, Left::Disconnected));
    assert_eq!(old.asked(0), [Command::Write, Command::Flush, Command::Disc]);
}

#[test]
fn a_server_that_is_left_is_flushed_even_if_its_restarts_are_trusted() {
    let (place, other) = (Place::new(), Place::new());
    let old = Fake::start(&place.path("s"), |_| USUAL);
    let _new = Fake::start(&other.path("s"), |_| USUAL);
    let disk = attach(NbdConfig { trust_server: true, ..config(&place, 1) }, 1);
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    disk.block_on(disk.nbd.reconfigure(config(&other, 1).uri)).unwrap();
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    assert_eq!(old.left(), (0, Left::Disconnected));
    assert_eq!(old.asked(0), [Command::Write, Command::Flush, Command::Disc]);
}

/// Queues on threads of their own make connections and write while the disk moves to and fro.
#[test]
fn of_two_servers_that_take_turns_one_is_used_at_a_time() {
    const MOVES: usize = 150;
    let places = [Place::new(), Place::new()];
    let log: Arc<Mutex<Vec<(usize, Command)>>> = Arc::default();
    let _servers = [0, 1].map(|server| {
        let log = Arc::clone(&log);
        let script = move |_: &Manner, _, request: &Request| {
            log.lock().push((server, request.command));
            Then::Answers
        };
        Fake::scripted(&places[server].path("s"), |_| USUAL, script)
    });
    let disk = attach(config(&places[0], 2), 2);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (disk, is_over) = (&disk, &is_over);
        let writers = [0, 1].map(|cpu| {
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let end = disk.submit(cpu, write(4096 * cpu as u64, &[1; 512]));
                    assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
                }
            })
        });
        for turn in 1..=MOVES {
            disk.block_on(disk.nbd.reconfigure(config(&places[turn % 2], 2).uri)).unwrap();
            let before = log.lock().len();
            // Now and then it moves on at once.
            if turn % 4 > 0 {
                let is_stuck = || writers.iter().any(std::thread::ScopedJoinHandle::is_finished);
                until("it is used", || log.lock().len() > before || is_stuck());
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    let mut dirty = [false; 2];
    for (at, (server, command)) in log.lock().iter().enumerate() {
        match command {
            Command::Write => {
                assert!(!dirty[1 - server], "server {server} is used, the other not flushed: {at}");
                dirty[*server] = true;
            }
            Command::Flush => dirty[*server] = false,
            _ => {}
        }
    }
}

/// Another connection shows that the server is there, and its cache with it.
#[test]
fn a_server_that_is_left_is_flushed_for_connections_that_are_over_as_well() {
    let (place, other) = (Place::new(), Place::new());
    let old = Fake::start(&place.path("s"), |_| USUAL);
    let _new = Fake::start(&other.path("s"), |_| USUAL);
    let disk = attach(NbdConfig { trust_server: true, ..config(&place, 1) }, 1);
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    old.hang_up(0);
    assert_eq!(old.left().0, 0);
    assert_eq!(disk.read(0, 512).unwrap(), [7; 512]);
    disk.block_on(disk.nbd.reconfigure(config(&other, 1).uri)).unwrap();
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    let (last, left) = old.left();
    assert_eq!(left, Left::Disconnected);
    assert_eq!(old.asked(last), [Command::Read, Command::Flush, Command::Disc]);
}

#[test]
fn a_flush_by_a_new_connection_says_nothing_of_one_whose_server_may_be_gone() {
    let place = Place::new();
    // The connection that gets the write is to a server that dies after it, and nobody notices. On a busy machine it may be a
    // later one, or several.
    let wrote: Arc<Mutex<Vec<usize>>> = Arc::default();
    let writes = Arc::clone(&wrote);
    let server = Fake::scripted(
        &place.path("s"),
        |_| USUAL,
        move |_, number, request| {
            let mut writes = writes.lock();
            match request.command {
                Command::Write => writes.push(number),
                Command::Flush if writes.contains(&number) => return Then::IsSilent,
                _ => {}
            }
            Then::Answers
        },
    );
    let disk = attach(
        NbdConfig {
            timeout: Duration::from_millis(100),
            dead_conn_timeout: Duration::from_millis(300),
            ..config(&place, 2)
        },
        2,
    );
    until("both are up", || disk.nbd.connected() == 2);
    until("it is written", || {
        let end = disk.submit(1, write(0, &[1; 4096]));
        end.recv_timeout(PATIENCE).unwrap().status() == Status::Ok
    });
    make_anew(&disk, &server);
    // It covers no write of the second one, as that has not shown that it lives.
    assert_eq!(disk.run(Bio::flush()).status(), Status::Transport);
    // The server asks for it while it has a lock that this needs.
    let wrote = wrote.lock().clone();
    wrote.into_iter().for_each(|number| server.hang_up(number));
    until("it is known to be lost", || disk.run(Bio::flush()).status() == Status::Io);
}

#[test]
fn a_connection_that_shows_that_it_lives_is_covered_again() {
    let place = Place::new();
    let server = Fake::start(&place.path("s"), |_| USUAL);
    let disk = attach(config(&place, 2), 2);
    until("both are up", || disk.nbd.connected() == 2);
    let on_second = |block: u64| {
        let end = disk.submit(1, write(block * 4096, &[1; 4096]));
        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    };
    on_second(0);
    make_anew(&disk, &server);
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    let flushes = |number| {
        let asked = server.asked(number);
        asked.iter().filter(|command| **command == Command::Flush).count()
    };
    // Asked for by the disk, or by the older connection for itself before the disk's goes on by either.
    assert!(flushes(1) >= 1, "the newer one does not cover the older");
    let before = flushes(1) + flushes(2);
    on_second(1);
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    assert_eq!(flushes(1) + flushes(2), before + 1, "one is enough, by either, from then on");
}

#[test]
fn flushes_that_overlap_cover_what_came_before_each() {
    let place = Place::new();
    let server = Fake::scripted(
        &place.path("s"),
        |_| USUAL,
        |_, _, request| {
            if request.command == Command::Flush { Then::Holds } else { Then::Answers }
        },
    );
    let disk = attach(config(&place, 2), 2);
    until("both are up", || disk.nbd.connected() == 2);
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    let first = disk.submit(0, Bio::flush());
    server.until_asked(Command::Flush, 1);
    assert_eq!(disk.write(8192, &[1; 4096]), Status::Ok);
    let second = disk.submit(1, Bio::flush());
    server.until_asked(Command::Flush, 2);
    for (number, end) in [first, second].into_iter().enumerate() {
        server.release(number);
        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    }
    make_anew(&disk, &server);
    let last = disk.submit(1, Bio::flush());
    server.until_asked(Command::Flush, 3);
    server.release(1);
    assert_eq!(last.recv_timeout(PATIENCE).unwrap().status(), Status::Ok, "all was flushed");
}

fn holds_flushes() -> impl Fn(&common::fake::Manner, usize, &blockyard_nbd::wire::Request) -> Then {
    |_, number, request| match (number, request.command) {
        (0, Command::Flush) => Then::Holds,
        _ => Then::Answers,
    }
}

#[test]
fn a_slow_flush_costs_nothing_once_it_is_answered() {
    let place = Place::new();
    let server = Fake::scripted(&place.path("s"), |_| USUAL, holds_flushes());
    let (timeout, fence_timeout) = (Duration::from_millis(100), Duration::from_millis(100));
    let disk = attach(NbdConfig { timeout, fence_timeout, ..config(&place, 1) }, 1);
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    let begun = Instant::now();
    let flush = disk.submit(0, Bio::flush());
    // Another connection is made, and asked something for as long as the first could be given up.
    until("the fence could have fallen", || {
        assert_eq!(disk.read(0, 512), Ok(vec![7; 512]));
        // On a busy machine the next one may be late for its own time-out, too.
        let another = (1..100).any(|number| !server.asked(number).is_empty());
        another && begun.elapsed() > 10 * timeout + 2 * fence_timeout
    });
    server.release(0);
    assert_eq!(flush.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
}

#[test]
fn a_flush_that_is_never_answered_fails_and_costs_no_other() {
    let place = Place::new();
    // By whatever connection it comes: on a busy machine the first one may be given up before.
    let answers = Arc::new(AtomicBool::new(false));
    let may_answer = Arc::clone(&answers);
    let server = Fake::scripted(
        &place.path("s"),
        |_| USUAL,
        move |_, _, request| {
            let holds = request.command == Command::Flush && !may_answer.load(Ordering::SeqCst);
            if holds { Then::Holds } else { Then::Answers }
        },
    );
    let config = NbdConfig {
        timeout: Duration::from_millis(100),
        fence_timeout: Duration::from_millis(100),
        dead_conn_timeout: Duration::from_millis(200),
        ..config(&place, 1)
    };
    let disk = attach(config, 1);
    until("it is written", || disk.write(0, &[1; 4096]) == Status::Ok);
    assert_eq!(disk.run(Bio::flush()).status(), Status::Transport);
    answers.store(true, Ordering::SeqCst);
    until("it is answered", || {
        server.release_all();
        disk.run(Bio::flush()).status() == Status::Ok
    });
}

#[test]
fn a_server_that_was_left_and_is_lost_unflushed_is_forgiven_nothing() {
    let (place, other) = (Place::new(), Place::new());
    let old = Fake::scripted(
        &place.path("s"),
        |_| USUAL,
        |_, _, request| {
            if request.command == Command::Flush { Then::HangsUp } else { Then::Answers }
        },
    );
    let _new = Fake::start(&other.path("s"), |_| USUAL);
    let disk = attach(NbdConfig { trust_server: true, ..config(&place, 1) }, 1);
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    disk.block_on(disk.nbd.reconfigure(config(&other, 1).uri)).unwrap();
    assert_eq!(old.left(), (0, Left::ByUs));
    assert_eq!(disk.read(0, 512), Ok(vec![7; 512]));
    for _ in 0..2 {
        assert_eq!(disk.run(Bio::flush()).status(), Status::Io, "once and for all");
    }
}

#[test]
fn a_new_server_is_used_once_the_old_one_is_flushed() {
    let (place, other) = (Place::new(), Place::new());
    let old = Fake::scripted(&place.path("s"), |_| USUAL, holds_flushes());
    let new = Fake::start(&other.path("s"), |_| USUAL);
    let disk = attach(config(&place, 1), 1);
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    disk.block_on(disk.nbd.reconfigure(config(&other, 1).uri)).unwrap();
    old.until_asked(Command::Flush, 1);
    let end = disk.submit(0, write(0, &[2; 4096]));
    assert!(end.recv_timeout(Duration::from_millis(300)).is_err(), "the new one was asked");
    assert_eq!(new.asked(0), []);
    old.release(0);
    assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    assert_eq!(new.asked(0), [Command::Write]);
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
}

/// The epochs of what was written, of flushes that were sent and that have ended, and of what was flushed, as they are told.
#[derive(Default)]
struct Told {
    written: Mutex<Vec<u64>>,
    sent: Mutex<Vec<u64>>,
    ended: Mutex<Vec<u64>>,
    flushed: Mutex<Vec<u64>>,
}

impl Told {
    fn is_dirty(&self) -> bool {
        let last = |epochs: &Mutex<Vec<u64>>| epochs.lock().iter().copied().max().unwrap_or(0);
        last(&self.written) > last(&self.flushed)
    }
}

impl Ledger for Told {
    fn written(&self, epoch: u64) {
        self.written.lock().push(epoch);
    }

    fn flushing(&self, epoch: u64) {
        self.sent.lock().push(epoch);
    }

    fn flush_ended(&self, epoch: u64, durable: bool) {
        assert!(self.sent.lock().contains(&epoch), "{epoch} was not sent: {:?}", self.sent);
        self.ended.lock().push(epoch);
        if durable {
            self.flushed.lock().push(epoch);
        }
    }
}

/// Who goes on with the disk of a process that was killed has no other way to know.
#[test]
fn what_is_not_flushed_is_told_before_its_write_ends_and_not_for_each_write() {
    let place = Place::new();
    let _server = Fake::start(&place.path("s"), |_| USUAL);
    let disk = attach(config(&place, 2), 2);
    until("both are up", || disk.nbd.connected() == 2);
    let told = Arc::new(Told::default());
    assert!(disk.nbd.tracks_unflushed());
    disk.nbd.keep_ledger(Arc::<Told>::clone(&told));
    for _ in 0..3 {
        for cpu in [0, 1, 0, 1] {
            let end = disk.submit(cpu, write(0, &[1; 4096]));
            assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
            assert!(told.is_dirty());
        }
        assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
        assert!(!told.is_dirty());
    }
    // Once for each connection and flush.
    assert_eq!(told.written.lock().len(), 6, "{:?}", told.written);
}

/// One that has gone with its marks, and is trusted, is flushed by the next.
#[test]
fn what_is_not_flushed_is_told_also_while_connections_are_lost() {
    let place = Place::new();
    let server = Fake::start(&place.path("s"), |_| USUAL);
    let disk = attach(NbdConfig { trust_server: true, ..config(&place, 1) }, 1);
    let told = Arc::new(Told::default());
    disk.nbd.keep_ledger(Arc::<Told>::clone(&told));
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    server.hang_up(0);
    until("another one is asked", || {
        let read = disk.submit(0, Bio::new(Op::Read, Sector(0), 512));
        assert_eq!(read.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
        !server.asked(1).is_empty()
    });
    assert!(told.is_dirty());
    assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    assert!(!told.is_dirty());
}

/// Any of them may be the one whose answer is an error.
#[test]
fn each_flush_is_told_until_it_is_answered_or_its_connection_is_lost() {
    let place = Place::new();
    let server = Fake::scripted(&place.path("s"), |_| USUAL, holds_flushes());
    let disk = attach(NbdConfig { trust_server: true, ..config(&place, 1) }, 1);
    let told = Arc::new(Told::default());
    disk.nbd.keep_ledger(Arc::<Told>::clone(&told));
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    let flush = disk.submit(0, Bio::flush());
    server.until_asked(Command::Flush, 1);
    assert_eq!((told.sent.lock().len(), told.ended.lock().len()), (1, 0));
    server.hang_up(0);
    assert_eq!(flush.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    let (mut sent, mut ended) = (told.sent.lock().clone(), told.ended.lock().clone());
    sent.sort_unstable();
    ended.sort_unstable();
    assert!(sent.len() > 1 && sent == ended, "{sent:?}, {ended:?}");
}

#[test]
fn what_another_process_has_not_flushed_is_lost_unless_its_server_is_trusted() {
    for (trust_server, after) in [(false, Status::Io), (true, Status::Ok)] {
        let place = Place::new();
        let _server = Fake::start(&place.path("s"), |_| USUAL);
        let disk = attach(NbdConfig { trust_server, ..config(&place, 1) }, 1);
        assert_eq!(disk.nbd.inherit_unflushed(), !trust_server);
        assert_eq!(disk.run(Bio::flush()).status(), after);
    }
}
