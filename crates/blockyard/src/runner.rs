//! `run URI -- CMD` and `serve --run CMD`: a command that uses the disk, and whose end is the daemon's.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Command;

use blockyard_export_nbd::Address;

use crate::daemon::{self, Daemon};
use crate::error::{Error, Result};
use crate::plan::Listen;

/// How many names are tried for a directory.
const ATTEMPTS: usize = 64;

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
            runner.directory = Some(private_directory()?);
        }
        Ok(runner)
    }

    /// Where the private socket is to be.
    #[must_use]
    pub fn listen(&self) -> Option<Listen> {
        let directory = self.directory.as_ref()?;
        Some(Address::Unix(directory.join("nbd.sock")).into())
    }

    /// Runs the command beside `daemon`, and ends the daemon with it. Signals go to the command, which is waited for.
    /// Returns the command's exit code.
    ///
    /// # Errors
    /// The command cannot be started, or the daemon fails.
    pub fn run(mut self, daemon: Daemon, uri: &str) -> Result<u8> {
        self.command.env("uri", uri).env("nbd", uri);
        daemon.run_beside(|| daemon::Command::start(&mut self.command))
    }
}

/// A directory for this user only, whose name nobody can know before.
fn private_directory() -> Result<PathBuf> {
    let parent = std::env::temp_dir();
    let random = RandomState::new();
    let make = || -> io::Result<PathBuf> {
        for attempt in 0..ATTEMPTS {
            let mut hasher = random.build_hasher();
            hasher.write_usize(attempt);
            let directory = parent.join(format!("blockyard-run-{:016x}", hasher.finish()));
            match DirBuilder::new().mode(0o700).create(&directory) {
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| directory),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    };
    make().map_err(|err| {
        Error::failed(format!("cannot make a directory in {}", parent.display()))
            .caused_by(err)
            .help("set TMPDIR to a directory that this user may write to")
    })
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // The socket in it is gone with its listener.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}
