//! Other processes of this program, for what a daemon must not do itself: nothing in it opens its own device.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::api::pass_runtime_dir;
use crate::error::ErrorKind;

const POLL: Duration = Duration::from_millis(20);
/// The program that runs, whatever has become of the file that it was started from.
const RUNNING: &str = "/proc/self/exe";

/// This very program, also after its file was removed, or replaced by another version, with the same runtime directory.
pub(super) fn this_program() -> Command {
    let program = program(std::env::current_exe().ok());
    let mut command = Command::new(&program);
    if program == Path::new(RUNNING) {
        command.arg0(std::env::args_os().next().unwrap_or_else(|| OsString::from("blockyard")));
    }
    pass_runtime_dir(&mut command);
    command
}

fn program(named: Option<PathBuf>) -> PathBuf {
    let file = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let is_running =
        |path: &PathBuf| file(path).is_some() && file(path) == file(Path::new(RUNNING));
    named.filter(is_running).unwrap_or_else(|| RUNNING.into())
}

/// Opens a device and closes it again, and sets meanwhile whether it refuses writes.
pub(super) fn look_at(device: &str, read_only: Option<bool>) -> io::Result<ExitStatus> {
    let mut command = this_program();
    command.arg("look-at").arg(device);
    if let Some(read_only) = read_only {
        command.arg("--read-only").arg(read_only.to_string());
    }
    command.status()
}

/// Whether the kernel lets somebody claim a device for himself. None: it does not say within `limit`.
pub(super) fn may_be_claimed(device: &str, limit: Duration) -> io::Result<Option<bool>> {
    let mut child =
        this_program().args(["look-at", device, "--claim"]).stderr(Stdio::null()).spawn()?;
    let end = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            Some(status) => return claimed(status).map(Some),
            None if Instant::now() < end => std::thread::sleep(POLL),
            None => {
                // It ends when the device is taken away, if not now.
                let _ = child.kill();
                return Ok(None);
            }
        }
    }
}

/// Whether another process has claimed what it was to claim. An end that says neither yes nor no is no yes.
fn claimed(status: ExitStatus) -> io::Result<bool> {
    const BUSY: i32 = ErrorKind::Busy.exit_code() as i32;
    match status.code() {
        Some(0) => Ok(true),
        Some(BUSY) => Ok(false),
        _ => Err(io::Error::other(format!("helper process failed: {status}"))),
    }
}

/// Sees to it that nobody uses the device, flushes it, and asks this daemon to end; says why not. It ends with the thread
/// that calls this.
pub(super) fn detach(device: &str) -> io::Result<ExitStatus> {
    let own = std::process::id().to_string();
    this_program().args(["detach", device, "--for-daemon", &own]).status()
}

/// Has the kernel's disk refuse writes, or take them again. May wait for the disk.
pub(super) fn set_read_only(device: &str, read_only: bool) {
    match look_at(device, Some(read_only)) {
        Ok(status) if status.success() => tracing::info!(device, read_only, "kernel updated"),
        // It has said why.
        Ok(_) => tracing::warn!(device, read_only, "kernel kept the old setting"),
        Err(err) => tracing::warn!(device, read_only, error = %err, "cannot update the kernel"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_does_not_say_that_a_device_is_free_does_not_make_it_free() {
        let ended = |code: i32| claimed(ExitStatus::from_raw(code << 8));
        assert!(ended(0).unwrap());
        assert!(!ended(75).unwrap());
        for code in [1, 64, 77, 101] {
            ended(code).unwrap_err();
        }
        claimed(ExitStatus::from_raw(9)).unwrap_err();
        // This program here is no `blockyard`: it claims nothing.
        may_be_claimed("/dev/null", Duration::from_secs(60)).unwrap_err();
    }

    #[test]
    fn a_program_that_was_replaced_runs_itself_and_not_what_is_in_its_place() {
        let here = std::env::current_exe().unwrap();
        assert_eq!(program(Some(here.clone())), here);
        // As the kernel says it.
        assert_eq!(program(Some("/bin/blockyard (deleted)".into())), Path::new(RUNNING));
        let other = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(program(Some(other.path().to_owned())), Path::new(RUNNING));
        assert_eq!(program(None), Path::new(RUNNING));
    }
}
