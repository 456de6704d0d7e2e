//! QEMU, with a file open.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::Place;

/// It is ready before.
const LIMIT: Duration = Duration::from_secs(60);

/// qemu-nbd that has a file open, until it is dropped.
pub struct Qemu(Child);

impl Qemu {
    pub fn on(place: &Place, file: &Path, options: &[&str]) -> Self {
        let socket = place.path().join(format!("socket{}", options.len()));
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "-f", "raw", "--socket"]).arg(&socket).args(options);
        let mut qemu = Self(command.arg(file).spawn().unwrap());
        let begun = Instant::now();
        // It listens before it has the file open, and greets once it has.
        let mut stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            assert!(qemu.0.try_wait().unwrap().is_none(), "qemu-nbd has ended");
            assert!(begun.elapsed() < LIMIT, "qemu-nbd does not listen");
            blockyard_conformance::pause();
        };
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        qemu
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
