//! A loop device that goes with its test.

use std::fs::File;
use std::process::Command;

/// Detached by the kernel when it is closed for the last time: by this, also when the test is killed, and by who has mounted it.
pub struct LoopDevice {
    path: String,
    _held: File,
}

impl LoopDevice {
    /// A free one for the file and the options that losetup(8) is given.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn attach(args: &[&str]) -> Self {
        let path = losetup(&[&["--find", "--show"], args].concat());
        let held = File::open(&path).unwrap();
        // Of one that is open, the kernel makes a note.
        losetup(&["--detach", &path]);
        Self { path, _held: held }
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

#[track_caller]
fn losetup(args: &[&str]) -> String {
    let output = Command::new("losetup").args(args).output();
    let output = output.unwrap_or_else(|err| panic!("losetup: {err}; run: cargo xtask setup"));
    assert!(output.status.success(), "losetup {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
