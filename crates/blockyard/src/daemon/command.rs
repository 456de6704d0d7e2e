//! A command that runs beside a daemon: it is told of signals, waited for, and never left behind.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus};

use blockyard_sys::net::Watch;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpgrp, kill_process_group, pidfd_open, pidfd_send_signal,
};
use tokio::io::Interest;

use super::signals::Signals;
use crate::error::{Error, ErrorKind, Result};

/// The exit code of a command that was killed, as shells have it: 128 and the signal.
const KILLED: i32 = 128;

/// A command that runs.
pub(super) struct Command {
    child: Child,
    watch: Watch,
    reach: Reach,
}

/// Who is told of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// The command and whatever it has started: they are a group of processes of their own.
    Group,
    /// The command alone: it shares our group, in the foreground of a terminal, which tells all of them of Ctrl-C.
    Child,
}

impl Command {
    /// Starts it. Called within a runtime.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(command: &mut std::process::Command) -> Result<Self> {
        let reach = if in_the_foreground() { Reach::Child } else { Reach::Group };
        if reach == Reach::Group {
            command.process_group(0);
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let failed =
            |err: std::io::Error| Error::failed(format!("cannot run {program}")).caused_by(err);
        let child = command.spawn().map_err(|err| match err.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorKind::NoCommand, format!("cannot run {program}: no such command"))
                    .help("correct the command, or give its path")
            }
            std::io::ErrorKind::PermissionDenied => {
                Error::new(ErrorKind::NotExecutable, format!("cannot run {program}")).caused_by(err)
            }
            _ => failed(err),
        })?;
        let watched = pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)
            .and_then(|pidfd| Watch::new(pidfd, Interest::READABLE));
        let mut child = Orphan(Some(child));
        let watch = watched.map_err(failed)?;
        match child.0.take() {
            Some(child) => Ok(Self { child, watch, reach }),
            None => unreachable!("it was put there"),
        }
    }

    /// Waits for its end, and returns its exit code. It is told of the signals that come meanwhile, and has the disk until it
    /// has ended, however long that takes; a second one kills it. Ctrl-C at its terminal is its own affair.
    pub(super) async fn supervise(mut self, signals: &mut Signals) -> Result<u8> {
        let _its_own = (self.reach == Reach::Child).then(|| signals.leave_interrupts());
        loop {
            tokio::select! {
                ended = self.watch.readable() => {
                    ended.map_err(lost)?.retain_ready();
                    let status = self.child.wait().map_err(lost)?;
                    return Ok(exit_code(status));
                }
                signal = signals.next_of_all() => {
                    self.tell(if signals.count() > 1 { Signal::KILL } else { signal });
                }
            }
        }
    }

    fn tell(&self, signal: Signal) {
        // The child is not waited for yet, so that its number is its own.
        let told = match self.reach {
            Reach::Group => kill_process_group(Pid::from_child(&self.child), signal),
            Reach::Child => pidfd_send_signal(&self.watch, signal),
        };
        if let Err(err) = told {
            tracing::debug!(error = %err, "the command has already exited");
        }
    }
}

fn lost(err: std::io::Error) -> Error {
    Error::failed("cannot wait for the command").caused_by(err)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| KILLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// A child that nobody can wait for is killed.
struct Orphan(Option<Child>);

impl Drop for Orphan {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether what is typed at the terminal reaches this process, and with it the commands that it has started.
fn in_the_foreground() -> bool {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}
