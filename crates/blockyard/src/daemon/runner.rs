//! `run URI -- CMD` and `serve --run CMD`: a command that uses the disk, and whose end is the daemon's.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use blockyard_export_nbd::Address;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::yard::plan::Listen;

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
            let what = format!("cannot create a directory in {}", place.display());
            Error::failed(what).caused_by(err).help("set TMPDIR to a writable directory")
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
