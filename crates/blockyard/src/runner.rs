//! `run URI -- CMD` and `serve --run CMD`: a command that uses the disk, and whose end is the daemon's.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

use blockyard_export_nbd::Address;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, getpgrp, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::daemon::Daemon;
use crate::daemon::signals::Signals;
use crate::error::{Error, Result};
use crate::plan::Listen;

/// The exit code of a command that was killed, as shells have it: 128 and the signal.
const KILLED: i32 = 128;

/// A command to run, and a place for a socket that only it is told of.
#[derive(Debug)]
pub struct Runner {
    command: Command,
    directory: Option<TempDir>,
}

impl Runner {
    /// A command for the shell; `private` as in [`Runner::new`].
    ///
    /// # Errors
    /// As those of [`Runner::new`].
    pub fn shell(script: &OsStr, private: bool) -> Result<Self> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Self::new(command, private)
    }

    /// A command; `private`: make a directory for a socket, which nobody else can have made.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(command: Command, private: bool) -> Result<Self> {
        let make = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix("blockyard-run-").permissions(Permissions::from_mode(0o700)).tempdir()
        };
        let directory = private.then(make).transpose().map_err(|err| {
            let place = std::env::temp_dir();
            let what = format!("cannot make a directory in {}", place.display());
            Error::failed(what).caused_by(err).help("TMPDIR names another place")
        })?;
        Ok(Self { command, directory })
    }

    /// Where the private socket is to be.
    #[must_use]
    pub fn listen(&self) -> Option<Listen> {
        let directory = self.directory.as_ref()?;
        Some(Address::Unix(directory.path().join("nbd.sock")).into())
    }

    /// Runs the command beside `daemon`, and ends the daemon with it. Signals are the command's, and the disk is there for as
    /// long as it is. Returns the command's exit code.
    ///
    /// # Errors
    /// The command cannot be started, or the daemon fails.
    pub fn run(mut self, daemon: Daemon, uri: &str) -> Result<u8> {
        self.command.env("uri", uri).env("nbd", uri);
        daemon.run_beside(&mut self.command)
    }
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    /// It cannot be taken for another process, also when that has ended.
    process: OwnedFd,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed =
            |err: std::io::Error| Error::failed(format!("cannot run {program}")).caused_by(err);
        let mut child = command.spawn().map_err(failed)?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(process) => Ok(Self { child, process }),
            Err(err) => {
                // It would be left alone with a disk that goes away.
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(err.into()))
            }
        }
    }

    /// Waits for its end, and passes on the signals that come meanwhile. Returns its exit code.
    pub(crate) async fn wait(self, signals: &mut Signals) -> Result<u8> {
        let Self { mut child, process } = self;
        let mut ended = tokio::task::spawn_blocking(move || child.wait());
        let mut hangup = signal(SignalKind::hangup())
            .map_err(|err| Error::failed("cannot catch signals").caused_by(err))?;
        let mut asked = false;
        let status = loop {
            let signal = tokio::select! {
                status = &mut ended => break status,
                _ = hangup.recv() => Signal::HUP,
                kind = signals.next_kind() => {
                    if kind == SignalKind::interrupt() { Signal::INT } else { Signal::TERM }
                }
            };
            if signal == Signal::INT && is_in_the_foreground() {
                // The terminal has sent it to the command, too.
                continue;
            }
            // One that does not want to end is ended by the second word.
            let signal = if asked && signal == Signal::TERM { Signal::KILL } else { signal };
            asked |= signal == Signal::TERM;
            // It may have ended this very moment.
            let _ = pidfd_send_signal(&process, signal);
        };
        let status = status.map_err(std::io::Error::other).flatten();
        status
            .map(exit_code)
            .map_err(|err| Error::failed("cannot wait for the command").caused_by(err))
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| KILLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Whether what is typed at the terminal reaches this process, and with it the commands that it has started.
fn is_in_the_foreground() -> bool {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}
