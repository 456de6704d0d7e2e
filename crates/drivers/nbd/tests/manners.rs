//! Servers whose connections differ, and how a connection is left.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bio, Op, Sector, Status};
use blockyard_driver_nbd::{Backoff, ErrorKind, NbdConfig};
use blockyard_nbd::wire::{Command, ErrorCode, HeaderStyle, TransmissionFlags};
use common::fake::{Fake, Left, Manner, Then, USUAL};
use common::{
    Attached, PATIENCE, Place, attach, attach_beside, attach_with_a_late_thread, try_attach, unix,
    until, write,
};

fn quick(place: &Place, connections: usize) -> NbdConfig {
    NbdConfig {
        connections: Some(connections),
        timeout: Duration::from_millis(200),
        dead_conn_timeout: PATIENCE,
        backoff: Backoff { first: Duration::from_millis(5), most: Duration::from_millis(20) },
        ..unix(&place.path("s"))
    }
}

fn works_on(disk: &Attached, cpu: usize) {
    let read = disk.submit(cpu, Bio::new(Op::Read, Sector(0), 512));
    assert_eq!(read.recv_timeout(PATIENCE).unwrap().status(), Status::Ok, "cpu {cpu}");
}

#[test]
fn a_connection_that_is_to_another_disk_is_left_again() {
    let others = [
        Manner { size: 2 << 20, ..USUAL },
        Manner { flags: TransmissionFlags::HAS_FLAGS, ..USUAL },
        Manner { flags: USUAL.flags - TransmissionFlags::CAN_MULTI_CONN, ..USUAL },
        Manner { flags: USUAL.flags | TransmissionFlags::READ_ONLY, ..USUAL },
        Manner { style: HeaderStyle::Structured, ..USUAL },
    ];
    for (case, other) in others.into_iter().enumerate() {
        let place = Place::new();
        let first = Manner { style: HeaderStyle::Extended, ..USUAL };
        let other =
            Manner { style: if case == 4 { other.style } else { HeaderStyle::Extended }, ..other };
        let server =
            Fake::start(&place.path("s"), move |number| if number == 0 { first } else { other });
        let disk = attach(quick(&place, 2), 2);
        assert_eq!(disk.nbd.connections(), 1, "case {case}");
        assert_eq!(server.left(), (1, Left::Disconnected), "case {case}");
        (0..2).for_each(|cpu| works_on(&disk, cpu));
    }
}

#[test]
fn a_server_that_takes_its_promise_back_has_one_connection_from_then_on() {
    let place = Place::new();
    let server = Fake::start(&place.path("s"), |number| Manner {
        flags: if number < 2 {
            USUAL.flags
        } else {
            USUAL.flags - TransmissionFlags::CAN_MULTI_CONN
        },
        then: if number < 2 { Then::HangsUp } else { Then::Answers },
        ..USUAL
    });
    let disk = attach(quick(&place, 2), 2);
    assert_eq!(disk.nbd.connections(), 2);
    let ends = [0, 1].map(|cpu| disk.submit(cpu, Bio::new(Op::Read, Sector(0), 512)));
    for end in ends {
        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    }
    // Whatever was opened beside the one that is kept is left.
    let begun = Instant::now();
    while disk.nbd.connected() != 1 {
        assert!(begun.elapsed() < PATIENCE, "{} connections", disk.nbd.connected());
        blockyard_conformance::pause();
    }
    for _ in 0..20 {
        (0..2).for_each(|cpu| works_on(&disk, cpu));
        assert_eq!(disk.nbd.connected(), 1);
    }
    let mut left = [server.left(), server.left()];
    left.sort_by_key(|(number, _)| *number);
    assert_eq!(left, [(0, Left::ByUs), (1, Left::ByUs)]);
}

#[test]
fn patience_counts_from_the_first_loss() {
    let place = Place::new();
    let count = Arc::new(AtomicUsize::new(0));
    let made = Arc::clone(&count);
    let _server = Fake::start(&place.path("s"), move |_| {
        made.fetch_add(1, Ordering::SeqCst);
        Manner { then: Then::IsSilent, ..USUAL }
    });
    // Each connection is lost after one timeout: the end comes half a second after the first, five of them take ten.
    let config = NbdConfig {
        timeout: Duration::from_secs(2),
        dead_conn_timeout: Duration::from_millis(500),
        ..quick(&place, 1)
    };
    let disk = attach(config, 1);
    assert_eq!(disk.read(0, 512), Err(Status::Transport));
    let made = count.load(Ordering::SeqCst);
    assert!(made < 5, "{made} connections, where five are the end in any case");
}

/// Of the request's own queue no connection is left that could have a timer, and of the other maybe no request.
#[test]
fn a_request_that_an_idle_connection_has_taken_over_is_waited_for_no_longer_than_any() {
    for cpus in [&[0][..], &[0, 1]] {
        let place = Place::new();
        let refuses = Arc::new(AtomicBool::new(false));
        let refusing = Arc::clone(&refuses);
        let _server = Fake::start(&place.path("s"), move |number| match number {
            0 => Manner { then: Then::HangsUp, ..USUAL },
            1 => Manner { then: Then::IsSilent, ..USUAL },
            // Another disk, so that none is made again.
            _ => {
                refusing.store(true, Ordering::SeqCst);
                Manner { size: 512, ..USUAL }
            }
        });
        let config =
            NbdConfig { dead_conn_timeout: Duration::from_millis(500), ..quick(&place, 2) };
        let disk = attach(config, 2);
        assert_eq!(disk.nbd.connections(), 2);
        let begun = Instant::now();
        let begin = |cpu: usize| disk.submit(cpu, write(cpu as u64 * 4096, &[1; 512]));
        let ends: Vec<_> = cpus.iter().map(|&cpu| begin(cpu)).collect();
        for end in ends {
            assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Transport);
        }
        assert!(begun.elapsed() < PATIENCE / 2 && refuses.load(Ordering::SeqCst));
    }
}

#[test]
fn who_was_refused_says_goodbye_all_the_same() {
    let place = Place::new();
    let server = Fake::start(&place.path("s"), |_| USUAL);
    let uri = format!("nbd+unix:///nothing?socket={}", place.path("s").display());
    let err = try_attach(NbdConfig::new(uri.parse().unwrap()), 1).err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Refused, "{}", err.chain());
    assert_eq!(server.left(), (0, Left::Aborted));
    let disk = attach(patient(&place, 2), 2);
    (0..2).for_each(|cpu| works_on(&disk, cpu));
    disk.block_on(disk.nbd.disconnect());
    for _ in 0..2 {
        assert_eq!(server.left().1, Left::Disconnected);
    }
}

/// Of which no connection is lost because the machine is busy.
fn patient(place: &Place, connections: usize) -> NbdConfig {
    NbdConfig { timeout: PATIENCE, ..quick(place, connections) }
}

#[test]
fn a_connection_that_is_not_in_use_yet_is_left_too() {
    let place = Place::new();
    let server = Fake::start(&place.path("s"), |_| USUAL);
    let (disk, go_on) = attach_with_a_late_thread(patient(&place, 2), 2);
    // By the first connection: nobody has looked at the second.
    (0..2).for_each(|cpu| works_on(&disk, cpu));
    assert_eq!((disk.nbd.connections(), disk.nbd.connected()), (2, 1));
    disk.block_on(disk.nbd.disconnect());
    drop(go_on);
    let mut left = [server.left(), server.left()];
    left.sort_by_key(|(number, _)| *number);
    assert_eq!(left, [(0, Left::Disconnected), (1, Left::Disconnected)]);
}

#[test]
fn a_connection_that_is_being_made_is_left_when_it_is() {
    let place = Place::new();
    let (tell, told) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let server = Fake::start(&place.path("s"), move |number| {
        if number == 1 {
            tell.send(()).unwrap();
            let _ = wait.recv();
        }
        USUAL
    });
    let disk = attach(patient(&place, 1), 1);
    works_on(&disk, 0);
    server.hang_up(0);
    assert_eq!(server.left(), (0, Left::HungUp));
    told.recv_timeout(PATIENCE).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| disk.block_on(disk.nbd.disconnect()));
        let nowhere = || quick(&Place::new(), 1).uri;
        let is_closed = || {
            let moved = disk.block_on(disk.nbd.reconfigure(nowhere()));
            moved.is_err_and(|err| err.kind() == ErrorKind::Closed)
        };
        until("the disk ends", is_closed);
        drop(go_on);
    });
    assert_eq!(server.left(), (1, Left::Disconnected));
    assert_eq!(disk.nbd.connected(), 0);
}

#[test]
fn a_connection_that_was_replaced_is_left_once_it_is_through_and_at_the_end_in_any_case() {
    let (place, other) = (Place::new(), Place::new());
    let holds = |_| Manner { then: Then::Holds, ..USUAL };
    let servers = [&place, &other].map(|place| Fake::start(&place.path("s"), holds));
    let config = NbdConfig { timeout: Duration::from_secs(2), ..quick(&place, 1) };
    let disk = attach(config, 1);
    let read = |server: usize, times| {
        let end = disk.submit(0, Bio::new(Op::Read, Sector(0), 512));
        servers[server].until_asked(Command::Read, times);
        end
    };
    let move_to = |place: &Place| disk.block_on(disk.nbd.reconfigure(quick(place, 1).uri)).unwrap();
    let first = read(0, 1);
    move_to(&other);
    let second = read(1, 1);
    servers[0].release(0);
    assert_eq!(first.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    assert_eq!(servers[0].left(), (0, Left::Disconnected), "through");
    move_to(&place);
    disk.block_on(disk.nbd.disconnect());
    assert_eq!(second.recv_timeout(PATIENCE).unwrap().status(), Status::Offline);
    assert_eq!(servers[1].left(), (0, Left::Disconnected), "the disk has ended");
    assert_eq!(servers[0].left(), (1, Left::Disconnected), "the last one");
}

#[test]
fn an_idle_connection_takes_over_even_where_nobody_waits_for_another_one() {
    let place = Place::new();
    let _server = Fake::start(&place.path("s"), |number| Manner {
        then: if number == 0 { Then::HangsUp } else { Then::Answers },
        ..USUAL
    });
    let config = NbdConfig { dead_conn_timeout: Duration::ZERO, ..patient(&place, 2) };
    let disk = attach(config, 2);
    until("both are up", || disk.nbd.connected() == 2);
    (0..2).for_each(|cpu| works_on(&disk, cpu));
}

#[test]
fn a_server_that_cannot_stand_for_the_disk_is_named() {
    let (place, other) = (Place::new(), Place::new());
    let _server = Fake::start(&place.path("s"), |_| USUAL);
    let _other = Fake::start(&other.path("s"), |_| Manner { size: 512, ..USUAL });
    let disk = attach(patient(&place, 1), 1);
    let err = disk.block_on(disk.nbd.reconfigure(quick(&other, 1).uri)).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Changed);
    let named = other.path("s").display().to_string();
    assert!(err.to_string().contains(&named), "{named}: {}", err.chain());
}

#[test]
fn a_server_that_goes_down_refuses_each_connection_and_fails_no_request() {
    let place = Place::new();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let server = Fake::start(&place.path("s"), move |number| {
        // It is started anew once it has seen all connections end.
        if number == 6 {
            let _ = wait.recv_timeout(PATIENCE);
        }
        let goes_down = Then::Fails(ErrorCode::ESHUTDOWN);
        Manner { then: if number < 6 { goes_down } else { Then::Answers }, ..USUAL }
    });
    let disk = attach(patient(&place, 6), 6);
    until("all are up", || disk.nbd.connected() == 6);
    let read = disk.submit(0, Bio::new(Op::Read, Sector(0), 512));
    for _ in 0..6 {
        assert_eq!(server.left().1, Left::Disconnected);
    }
    drop(go_on);
    assert_eq!(read.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    (0..6).for_each(|cpu| works_on(&disk, cpu));
}

#[test]
fn a_server_that_is_always_going_down_is_waited_for_no_longer_than_any() {
    let place = Place::new();
    let goes_down = Then::Fails(ErrorCode::ESHUTDOWN);
    let _server = Fake::start(&place.path("s"), move |_| Manner { then: goes_down, ..USUAL });
    let wait = Duration::from_millis(200);
    let disk = attach(NbdConfig { dead_conn_timeout: wait, ..patient(&place, 2) }, 2);
    let begun = Instant::now();
    assert!(disk.read(0, 512).is_err());
    assert!(begun.elapsed() >= wait / 2, "{:?}", begun.elapsed());
}

#[test]
fn what_a_server_that_is_left_still_answers_is_waited_for() {
    let (place, other) = (Place::new(), Place::new());
    let old = Fake::start(&place.path("s"), |_| Manner { then: Then::Holds, ..USUAL });
    let _new = Fake::start(&other.path("s"), |_| USUAL);
    let config = NbdConfig { dead_conn_timeout: Duration::ZERO, ..patient(&place, 1) };
    let disk = attach(config, 1);
    until("it is up", || disk.nbd.connected() == 1);
    let ends = [Bio::new(Op::Read, Sector(0), 512), write(4096, &[1; 512])];
    let ends = ends.map(|bio| disk.submit(0, bio));
    old.until_asked(Command::Read, 1);
    old.until_asked(Command::Write, 1);
    disk.block_on(disk.nbd.reconfigure(quick(&other, 1).uri)).unwrap();
    old.release(0);
    for end in ends {
        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    }
}

#[test]
fn a_server_that_is_left_and_falls_silent_is_asked_no_more() {
    let (place, other) = (Place::new(), Place::new());
    let old = Fake::start(&place.path("s"), |_| Manner { then: Then::IsSilent, ..USUAL });
    let _new = Fake::start(&other.path("s"), |_| USUAL);
    let disk = attach(quick(&place, 1), 1);
    let read = disk.submit(0, Bio::new(Op::Read, Sector(0), 512));
    old.until_asked(Command::Read, 1);
    disk.block_on(disk.nbd.reconfigure(quick(&other, 1).uri)).unwrap();
    assert_eq!(read.recv_timeout(PATIENCE / 2).unwrap().status(), Status::Ok);
    assert_eq!(old.left(), (0, Left::Disconnected));
}

#[test]
fn a_connection_made_for_the_old_server_is_not_used_after_a_move() {
    let (place, other) = (Place::new(), Place::new());
    let (tell, told) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let old = Fake::start(&place.path("s"), move |number| {
        if number == 1 {
            tell.send(()).unwrap();
            let _ = wait.recv_timeout(PATIENCE);
        }
        USUAL
    });
    let new = Fake::start(&other.path("s"), |_| USUAL);
    let disk = attach(patient(&place, 1), 1);
    works_on(&disk, 0);
    old.hang_up(0);
    assert_eq!(old.left(), (0, Left::HungUp));
    told.recv_timeout(PATIENCE).unwrap();
    disk.block_on(disk.nbd.reconfigure(quick(&other, 1).uri)).unwrap();
    drop(go_on);
    works_on(&disk, 0);
    assert_eq!(old.left(), (1, Left::Disconnected));
    assert_eq!(old.asked(1), [Command::Disc]);
    assert_eq!(new.asked(0), [Command::Read]);
}

#[test]
fn growth_is_told_once_all_connections_know_of_it() {
    const SMALL: u64 = USUAL.size;
    const LARGE: u64 = 2 * SMALL;
    let place = Place::new();
    let (tell, told) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let server = Fake::start(&place.path("s"), move |number| {
        // The first is lost, and made again to the larger export; so is the second then, for that.
        if number == 3 {
            tell.send(()).unwrap();
            let _ = wait.recv_timeout(PATIENCE);
        }
        Manner { size: if number < 2 { SMALL } else { LARGE }, ..USUAL }
    });
    let disk = attach(patient(&place, 2), 2);
    let size = || disk.nbd.watch().borrow().size;
    until("both are up", || disk.nbd.connected() == 2);
    assert_eq!(size(), SMALL);
    server.hang_up(0);
    told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(size(), SMALL, "one of them does not know");
    drop(go_on);
    until("both know", || size() == LARGE);
    (0..2).for_each(|cpu| works_on(&disk, cpu));
}

/// The rest of it is sent when there is room, from memory of its own, and the connection is as good as it was.
#[test]
fn a_server_that_refuses_a_write_early_keeps_no_other_disk_waiting() {
    let place = Place::new();
    let large = Manner { size: 64 << 20, ..USUAL };
    let server = Fake::scripted(
        &place.path("s"),
        move |_| large,
        |manner, _, request| match request.command {
            Command::Write => Then::FailsEarly(ErrorCode::ENOSPC),
            _ => manner.then,
        },
    );
    let _beside = Fake::start(&place.path("t"), |_| USUAL);
    let config = |name| NbdConfig { timeout: PATIENCE, ..unix(&place.path(name)) };
    let [disk, beside] = attach_beside([config("s"), config("t")]);
    // One request, of more than sockets have room for.
    let mut limits = disk.disk.limits();
    limits.max_user_sectors = Some(limits.max_hw_sectors);
    disk.disk.set_limits(limits).unwrap();
    assert_eq!(disk.write(0, &vec![1; 16 << 20]), Status::NoSpace);
    assert_eq!(beside.read(0, 512).unwrap(), [7; 512]);
    server.take_on();
    assert_eq!(disk.read(0, 512).unwrap(), [7; 512]);
    assert_eq!(server.asked(0).last(), Some(&Command::Read), "by the same connection");
    drop((disk, beside));
}
