//! A daemon in the background: started, and waited for until it is ready or has said what is wrong.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::helper;
use super::store::Store;
use crate::error::{Error, Result};
use crate::text::term;

/// A daemon that has been started, and is not ready yet.
pub struct Launched {
    child: Child,
    log: PathBuf,
}

/// Runs this program again with `args`, to stay when we are gone, in `directory`.
///
/// # Errors
/// It cannot be started.
pub fn launch(args: &[OsString], directory: Option<&Path>) -> Result<Launched> {
    let (log, out) = Store::open()?.new_log()?;
    let mut command = helper::this_program();
    command.args(args).arg("--foreground").arg("--log").arg(&log);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(out);
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    let child =
        command.spawn().map_err(|err| Error::failed("cannot start the daemon").caused_by(err))?;
    Ok(Launched { child, log })
}

impl Launched {
    /// Waits until it prints the path of its device, and prints that. If it ends before that, shows what it said.
    ///
    /// Returns the exit code.
    ///
    /// # Errors
    /// It cannot be waited for, or has ended and not said why.
    pub fn wait(mut self) -> Result<u8> {
        let mut line = String::new();
        if let Some(out) = self.child.stdout.take() {
            // An end before a line is for the exit code to tell.
            let _ = BufReader::new(out).read_line(&mut line);
        }
        if line.ends_with('\n') {
            term::say(line.trim_end())?;
            return Ok(0);
        }
        let status = self.child.wait();
        let status =
            status.map_err(|err| Error::failed("cannot wait for the daemon").caused_by(err))?;
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        // It is shown now.
        let _ = std::fs::remove_file(&self.log);
        term::tell(said.trim_end());
        match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(0) | None => {
                Err(Error::failed(format!("the daemon exited before it was ready: {status}")))
            }
            Some(code) => Ok(code),
        }
    }
}

/// What a daemon in the background does first: no terminal and no group of its starter's can reach it.
pub(super) fn leave_the_starter() {
    // It fails only for the leader of a group, who has nothing to leave.
    let _ = rustix::process::setsid();
}

/// What a daemon in the background does once it is ready: nothing holds its starter's output, nor a directory.
pub(super) fn let_go() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    std::env::set_current_dir("/")
}
