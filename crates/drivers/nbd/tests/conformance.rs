//! The suite that every driver runs, on what real servers keep.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::net::UnixStream;
use std::process::Command;

use blockyard_conformance::{Capabilities, STORES, Subject};
use blockyard_driver_nbd::NbdConfig;
use common::{Place, Server, attach, nbdkit, unix, until_it_answers};

const MIB: u64 = 1 << 20;
const WITH_HOLES: Capabilities = Capabilities { discard_zeroes: true, holes: true, ..STORES };

fn subject(config: NbdConfig, queues: usize, servers: (Server, Place)) -> Subject {
    let attached = attach(config, queues);
    Subject::new(attached.reopen(), (attached, servers))
}

/// nbdkit's memory, on several connections.
fn memory(arguments: &[&str]) -> Subject {
    let place = Place::new();
    let socket = place.path("s");
    let server = nbdkit(&socket, &[arguments, &["memory", "4M"]].concat());
    subject(unix(&socket), 2, (server, place))
}

/// A file behind qemu-nbd, which knows holes and takes several connections.
fn qemu() -> Subject {
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 4 * MIB));
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=8", "--format=raw", "--discard=unmap"]);
    command.arg("--socket").arg(&socket).arg(&file);
    let server = until_it_answers(Server::start("qemu-utils", &mut command), || {
        UnixStream::connect(&socket).is_ok()
    });
    subject(unix(&socket), 2, (server, place))
}

blockyard_conformance::suite!(nbdkit_memory, || memory(&[]).with(WITH_HOLES));

blockyard_conformance::suite!(nbdkit_simple_replies, || memory(&["--no-sr"])
    .with(Capabilities { discard_zeroes: true, ..STORES }));

blockyard_conformance::suite!(qemu_nbd, || qemu().with(WITH_HOLES));
