//! One daemon.

use super::{keeper, wait};
use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// A running daemon, killed when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts the daemon of a name such as `osd.0` in the foreground; what it prints goes to a file. `program` is that of
    /// its kind.
    pub(super) fn start(name: &str, program: &Path, dir: &Path, conf: &Path) -> Result<Self> {
        let (_, id) = name.split_once('.').context("a daemon's name is kind.id")?;
        let out = File::options()
            .create(true)
            .append(true)
            .open(dir.join("log").join(format!("{name}.out")))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(["-f", "-i", id, "-c"]).arg(conf);
        command.env_remove("CEPH_ARGS").stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
        Ok(Self { name: name.to_owned(), child: keeper::spawn(command)? })
    }

    /// Ends it as a machine that loses power would.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn stop(&mut self) -> Result<()> {
        // Not reaped yet, so the process id is still this child's.
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let what = format!("the end of {}", self.name);
        wait::eventually(&what, || Ok(self.child.try_wait()?))?;
        Ok(())
    }

    /// Stops it in its tracks, or lets it run on: a machine that hangs.
    pub(super) fn pause(&self, paused: bool) -> Result<()> {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Fails if it ended without being asked.
    pub(super) fn check(&mut self) -> Result<()> {
        let ended: Option<ExitStatus> = self.child.try_wait()?;
        match ended {
            None => Ok(()),
            Some(status) => Err(Ended { name: self.name.clone(), status }.into()),
        }
    }
}

/// A daemon has ended that nobody told to: no waiting brings it back.
#[derive(Debug, thiserror::Error)]
#[error("{name} ended by itself: {status}")]
pub(super) struct Ended {
    name: String,
    status: ExitStatus,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.kill();
    }
}
