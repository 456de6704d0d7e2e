//! What is told of connections that are lost and made again.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{self, Write};
use std::sync::Arc;

use blockyard_driver_nbd::NbdConfig;
use common::fake::{Fake, USUAL};
use common::{PATIENCE, Place, attach, unix, until};
use parking_lot::Mutex;

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
fn a_connection_that_is_soon_lost_is_explained_and_told_to_be_back() {
    let log = Log::default();
    let to = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone()).init();
    let says = |what: &str| String::from_utf8_lossy(&log.0.lock()).contains(what);
    let place = Place::new();
    let (here, elsewhere) = (place.path("s"), place.path("t"));
    let server = Fake::start(&here, |_| USUAL);
    let disk = attach(NbdConfig { timeout: PATIENCE, ..unix(&here) }, 1);
    until("it is up", || disk.nbd.connected() == 1);
    std::fs::rename(&here, &elsewhere).unwrap();
    server.hang_up(0);
    until("it is told why there is none", || says("NBD reconnect failed, retrying"));
    assert_eq!(disk.nbd.connected(), 0);
    std::fs::rename(&elsewhere, &here).unwrap();
    until("it is told that there is one", || says("NBD connection restored server="));
    assert_eq!(disk.nbd.connected(), 1);
}
