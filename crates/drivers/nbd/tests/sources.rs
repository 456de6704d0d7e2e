//! Writes of what is in a file, which takes its time, or cannot be read.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bio, Status};
use blockyard_buf::FileRange;
use blockyard_conformance::faulty::{Call, Errno, Faulty};
use blockyard_driver_nbd::NbdConfig;
use blockyard_nbd::wire::Command;
use common::fake::{Fake, USUAL};
use common::{Attached, PATIENCE, Place, attach, attach_beside, nbdkit, pattern, unix, until};

const LEN: usize = 1 << 20;
/// More calls than anybody makes.
const EVER: usize = 1_000_000;

fn write_of(faulty: &Faulty) -> Box<Bio> {
    let file = std::fs::File::open(faulty.file()).unwrap();
    let file = Arc::new(OwnedFd::from(file));
    Bio::write_range(0, FileRange::new(&file, 0, LEN as u64))
}

fn flush(disk: &Attached) -> Status {
    disk.run(Bio::flush()).status()
}

/// The server is owed bytes, and owes no answer: it is not lost for that, and neither is what it has not flushed.
#[test]
fn a_file_that_is_slow_keeps_no_queue_thread_and_costs_no_connection() {
    let place = Place::new();
    let faulty = Faulty::new(LEN);
    let sockets = [place.path("a"), place.path("b")];
    let server = Fake::start(&sockets[0], |_| USUAL);
    let mut other_server = nbdkit(&sockets[1], &["memory", "16M"]);
    let short = Duration::from_millis(300);
    let configs = sockets.each_ref().map(|socket| NbdConfig { timeout: short, ..unix(socket) });
    let [first, other] = configs;
    let other = NbdConfig { dead_conn_timeout: 3 * short, ..other };
    let [disk, other] = attach_beside([first, other]);
    assert_eq!(disk.write(0, &pattern(0, 1, 4096)), Status::Ok);
    std::thread::scope(|scope| {
        let held = faulty.hold(Call::Read);
        let submit = scope.spawn(|| disk.submit(0, write_of(&faulty)));
        faulty.wait_for(Call::Read, 1);
        until("it is submitted", || submit.is_finished());
        let write = submit.join().unwrap();
        // By the same queue thread.
        assert_eq!(other.write(0, &[1; 512]), Status::Ok);
        other_server.kill();
        assert_eq!(other.read(0, 512), Err(Status::Transport), "the time-outs have passed");
        assert!(write.try_recv().is_err(), "its data cannot be read yet");
        drop(held);
        assert_eq!(write.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    });
    assert_eq!(flush(&disk), Status::Ok);
    assert_eq!(server.asked(0), [Command::Write, Command::Write, Command::Flush]);
    assert_eq!(server.connections(), 1, "none was lost");
}

/// Some of the errors of a file are called as those of a socket.
#[test]
fn an_error_of_the_file_is_the_writes_own() {
    let place = Place::new();
    let faulty = Faulty::new(LEN);
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["memory", "16M"]);
    let disk = attach(unix(&socket), 1);
    use Errno as E;
    for errno in [E::EIO, E::ENOMEM, E::ENOTCONN, E::EPIPE, E::EAGAIN, E::EINTR] {
        assert_eq!(disk.write(0, &pattern(0, 1, 4096)), Status::Ok);
        faulty.fail(Call::Read, errno, EVER);
        assert_eq!(disk.run(write_of(&faulty)).status(), Status::Io, "{errno:?}");
        assert_eq!(flush(&disk), Status::Ok, "{errno:?}: no connection was lost");
        faulty.succeed(Call::Read);
    }
    assert_eq!(disk.run(write_of(&faulty)).status(), Status::Ok);
    assert!(disk.read(0, LEN as u64).unwrap() == vec![0; LEN]);
}
