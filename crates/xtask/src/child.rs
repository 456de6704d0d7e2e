//! Child processes that never outlive their owner, and the directories and sockets that they share with it.
//!
//! A [`Server`] is ended by its process id when it is dropped, so also when a panic unwinds; no process is ever
//! looked up by name.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take to accept its first connection.
pub const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to end after SIGTERM before it is killed.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often a bounded wait looks again.
const POLL: Duration = Duration::from_millis(5);

/// A fresh directory, removed with all that is in it when dropped. Its path is short enough for a unix socket
/// inside.
///
/// # Errors
/// The temporary directory is not writable, or full.
pub fn fresh_dir() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("blockyard-")
        .tempdir()
        .context("cannot make a temporary directory")
}

/// A running child process with its own log file.
#[derive(Debug)]
pub struct Server {
    child: Child,
    shown: String,
    log: PathBuf,
}

impl Server {
    /// Starts the command without input; its output goes to `log`.
    ///
    /// # Errors
    /// The log cannot be written, or the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let shown = crate::run::shown(command);
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let err = out.try_clone()?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("cannot start `{shown}`"))?;
        Ok(Self { child, shown, log: log.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the unix socket accepts a connection, at most [`START_LIMIT`].
    ///
    /// # Errors
    /// The server ended, or the time is over; what it logged is part of the error.
    pub fn wait_accepting(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "`{}` ended before it accepted ({status}); it said:\n{}",
                    self.shown,
                    self.logged()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "`{}` did not accept on {} within {START_LIMIT:?}; it said:\n{}",
                    self.shown,
                    socket.display(),
                    self.logged()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// What the server has written so far.
    #[must_use]
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().trim_end().to_owned()
    }

    /// Asks the server to end, and kills it if it does not within [`STOP_LIMIT`]. Returns how it ended.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end()
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // Not reaped yet, so the process id is still this child's.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn is_alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}/stat")).exists()
    }

    fn sleeper(dir: &TempDir) -> Server {
        Server::start(Command::new("sleep").arg("600"), &dir.path().join("log")).unwrap()
    }

    #[test]
    fn a_dropped_server_is_gone() {
        let dir = fresh_dir().unwrap();
        let server = sleeper(&dir);
        let pid = server.pid();
        assert!(is_alive(pid));
        drop(server);
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_panic_ends_the_server_too() {
        let dir = fresh_dir().unwrap();
        let mut pid = 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let server = sleeper(&dir);
            pid = server.pid();
            panic!("on purpose");
        }));
        assert!(outcome.is_err());
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_server_that_dies_early_is_an_error_with_its_words() {
        let dir = fresh_dir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo the port is in use; exit 1"]);
        let mut server = Server::start(&mut command, &dir.path().join("log")).unwrap();
        let error = server.wait_accepting(&dir.path().join("socket")).unwrap_err().to_string();
        assert!(error.contains("the port is in use"), "{error}");
    }
}
