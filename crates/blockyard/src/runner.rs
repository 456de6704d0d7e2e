//! `run URI -- CMD` and `serve --run CMD`: a command that uses the disk, and whose end is the daemon's.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use blockyard_export_nbd::Address;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::plan::Listen;

/// The exit code of a command that was killed, as shells have it: 128 and the signal.
const KILLED: i32 = 128;

/// A command to run, and a place for a socket that only it is told of.
#[derive(Debug)]
pub struct Runner {
    command: Command,
    directory: Option<PathBuf>,
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

    /// A command; `private`: make a directory for a socket.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(command: Command, private: bool) -> Result<Self> {
        let mut runner = Self { command, directory: None };
        if private {
            let directory =
                std::env::temp_dir().join(format!("blockyard-run-{}", std::process::id()));
            let made =
                std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                    .create(&directory);
            made.map_err(|err| {
                Error::failed(format!("cannot make {}", directory.display())).caused_by(err)
            })?;
            runner.directory = Some(directory);
        }
        Ok(runner)
    }

    /// Where the private socket is to be.
    #[must_use]
    pub fn listen(&self) -> Option<Listen> {
        let directory = self.directory.as_ref()?;
        Some(Address::Unix(directory.join("nbd.sock")).into())
    }

    /// Runs the command beside `daemon`, and ends the daemon with it. Returns the command's exit code.
    ///
    /// # Errors
    /// The command cannot be started, or the daemon fails.
    pub fn run(mut self, daemon: Daemon, uri: &str) -> Result<u8> {
        self.command.env("uri", uri).env("nbd", uri);
        let mut command = std::mem::replace(&mut self.command, Command::new("true"));
        daemon.run_until(move || {
            let status = command.status().map_err(|err| {
                let program = command.get_program().to_string_lossy();
                Error::failed(format!("cannot run {program}")).caused_by(err)
            })?;
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            let code = status.code().or(signal.map(|signal| KILLED + signal));
            Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
        })
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // The socket in it is gone with its listener.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}
