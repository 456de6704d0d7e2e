//! The command and the kernel's own clients, in guests of the laboratory (`blockyard_lab::vm`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod experiment;
mod kernel_client;
mod vsock;

use blockyard_lab::vm::{Guest, Vm};
use common::Daemon;
use std::process::Command;
use tempfile::TempDir;

/// A guest with the kernel's NBD driver and what configures it.
fn nbd_guest() -> Vm {
    Vm::new().module("nbd").program("nbd-client").file_systems()
}

/// `blockyard serve ARGS` on a loopback port of the kernel's choice, and that port.
fn serve_tcp(dir: TempDir, port: u16, args: &[&str]) -> (Daemon, u16) {
    let mut command: Command = common::blockyard(&dir.path().join("run"));
    command.arg("serve").args(args).args(["--nbd", &format!("tcp:127.0.0.1:{port}")]);
    let daemon = Daemon::start(command, dir, 1);
    let port = daemon.uris[0].rsplit_once(':').unwrap().1.trim_end_matches('/').parse().unwrap();
    (daemon, port)
}

/// Waits for the end of a guest whose script has to succeed.
#[track_caller]
fn succeed(guest: Guest) {
    let outcome = guest.finish().unwrap_or_else(|err| panic!("{err}"));
    assert_eq!(outcome.status, 0, "the guest said:\n{}", outcome.console);
}
