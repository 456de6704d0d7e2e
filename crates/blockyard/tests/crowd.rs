//! As many clients as a rack has machines, at one server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{Daemon, nbdsh};
use rustix::process::{Resource, getrlimit, setrlimit};

const MIB: u64 = 1 << 20;
const CLIENTS: usize = 10_000;
/// What each end needs besides the connections.
const OTHER_FILES: u64 = 200;
/// What the server may hold for a client that is idle.
const BYTES_PER_CLIENT: u64 = 16 << 10;

/// `proto.md`, "Newstyle negotiation": client flags FIXED_NEWSTYLE and NO_ZEROES, then NBD_OPT_EXPORT_NAME of
/// the default export.
const HELLO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0";
const GREETING_LEN: usize = 18;
const EXPORT_LEN: usize = 10;
/// NBD_CMD_READ of 4 KiB at 0 with the cookie "crowded!".
const READ: &[u8] = b"\x25\x60\x95\x13\0\0\0\0crowded!\0\0\0\0\0\0\0\0\0\0\x10\0";
/// NBD_CMD_WRITE of 32 MiB at 0.
const WRITE: &[u8] = b"\x25\x60\x95\x13\0\0\0\x01crowded!\0\0\0\0\0\0\0\0\x02\0\0\0";
/// A simple reply to it.
const REPLY: &[u8] = b"\x67\x44\x66\x98\0\0\0\0crowded!";

/// Both this process and the daemon, which inherits it, may have as many files as the system lets them.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let enough = limit.maximum.is_none_or(|most| most >= CLIENTS as u64 + OTHER_FILES);
    assert!(enough, "only {:?} open files are allowed; raise it: ulimit -Hn 20000", limit.maximum);
}

/// A connection that the server has taken.
fn greeted(socket: &Path) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.read_exact(&mut [0; GREETING_LEN]).ok().map(|()| stream)
}

fn connect(socket: &Path, size: u64) -> UnixStream {
    let mut stream = greeted(socket).expect("room for a client");
    let mut reply = [0; EXPORT_LEN];
    stream.write_all(HELLO).unwrap();
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(u64::from_be_bytes(reply[..8].try_into().unwrap()), size);
    stream
}

fn read(stream: &mut UnixStream) {
    stream.write_all(READ).unwrap();
    let mut reply = vec![1; REPLY.len() + 4096];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply[..REPLY.len()], REPLY);
    assert_eq!(reply[REPLY.len()..], [0; 4096]);
}

fn resident_bytes(pid: u32) -> u64 {
    memory(pid, "VmRSS")
}

fn memory(pid: u32, of: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(of)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn ten_thousand_clients_at_a_time_are_served_and_cost_little_each() {
    raise_file_limit();
    let most = (CLIENTS + 1).to_string();
    let daemon = Daemon::serve(&["ram:1M", "--max-clients", &most]);
    let socket = daemon.path("s");
    let mut one = connect(&socket, MIB);
    read(&mut one);
    let before = resident_bytes(daemon.pid());
    let mut crowd: Vec<_> = (0..CLIENTS).map(|_| connect(&socket, MIB)).collect();
    crowd.iter_mut().for_each(read);
    read(&mut one);
    let each = (resident_bytes(daemon.pid()) - before) / CLIENTS as u64;
    assert!(each < BYTES_PER_CLIENT, "an idle client costs {each} bytes");

    assert!(greeted(&socket).is_none(), "one more than the limit");
    crowd.iter_mut().for_each(read);

    drop(crowd);
    // Their places are free as soon as the server has seen them leave.
    assert!((0..CLIENTS).any(|_| greeted(&socket).is_some()));
    nbdsh(&daemon.uri(""), "assert h.pread(4096, 0) == bytes(4096)");
    read(&mut one);
    daemon.stop();
}

/// Each has sent nearly all of a large write, and nothing can be done with that yet, but for pieces.
#[test]
fn as_much_memory_is_used_for_clients_as_is_said() {
    const WRITERS: u64 = 6;
    let daemon = Daemon::serve(&["null:64M", "--max-memory", "64M", "--threads", "1"]);
    let before = resident_bytes(daemon.pid());
    let payload = vec![1; 31 << 20];
    let mut writers: Vec<_> = (0..WRITERS).map(|_| connect(&daemon.path("s"), 64 * MIB)).collect();
    for writer in &mut writers {
        writer.write_all(WRITE).unwrap();
        writer.write_all(&payload).unwrap();
    }
    let most = memory(daemon.pid(), "VmHWM") - before;
    assert!(most < 128 * MIB, "{} MiB, of {} that were sent", most / MIB, WRITERS * 31);
    drop(writers);
    daemon.stop();
}
