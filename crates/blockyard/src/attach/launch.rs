//! A daemon in the background: started, and waited for until it is ready or has said what is wrong.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use blockyard_sys::net::Watch;
use tokio::io::Interest;

use super::helper;
use super::store::{Store, forget_log};
use crate::error::{Error, Result};
use crate::text::term;

/// So much is shown of what it says until it is ready.
const MAX_SHOWN: u64 = 64 << 10;

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
    /// Waits until it prints the path of its device, and prints that, after what it has to say of it. If it ends before that,
    /// shows what it said.
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
            self.show_log();
            term::say(line.trim_end())?;
            return Ok(0);
        }
        let status = self.child.wait();
        let status =
            status.map_err(|err| Error::failed("cannot wait for the daemon").caused_by(err))?;
        self.show_log();
        // It is shown now.
        forget_log(&self.log);
        match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(0) | None => {
                Err(Error::failed(format!("the daemon exited before it was ready: {status}")))
            }
            Some(code) => Ok(code),
        }
    }
}

impl Launched {
    fn show_log(&self) {
        let mut said = Vec::new();
        let read = File::open(&self.log).and_then(|log| log.take(MAX_SHOWN).read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        if read.is_ok() && !said.trim_end().is_empty() {
            term::tell(said.trim_end());
        }
    }
}

/// What a daemon in the background does first: no terminal and no group of its starter's can reach it.
pub(super) fn leave_the_starter() {
    // It fails only for the leader of a group, who has nothing to leave.
    let _ = rustix::process::setsid();
}

/// Waits until whoever has started a daemon in the background, and waits for its device, is gone: nobody reads its output any
/// more.
pub(super) async fn starter_gone() {
    gone(&io::stdout()).await;
}

async fn gone(output: &impl AsFd) {
    let watch = output.as_fd().try_clone_to_owned();
    // What is no pipe has no reader to lose.
    if let Ok(watch) = watch.and_then(|fd| Watch::new(fd, Interest::ERROR))
        && watch.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// What a daemon in the background does once it is ready: nothing holds its starter's output, nor a directory.
pub(super) fn let_go() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    std::env::set_current_dir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that says so much, and ends with that code.
    fn launched(script: &str, log: &Path) -> Launched {
        let out = File::create(log).unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).stderr(out);
        Launched { child: command.spawn().unwrap(), log: log.to_owned() }
    }

    #[tokio::test]
    async fn that_nobody_reads_is_heard_of_by_who_writes_to_a_pipe() {
        let (reader, writer) = io::pipe().unwrap();
        let patience = std::time::Duration::from_secs(60);
        let mut nobody = std::pin::pin!(gone(&writer));
        tokio::select! {
            biased;
            () = &mut nobody => panic!("somebody reads"),
            () = tokio::task::yield_now() => {}
        }
        drop(reader);
        tokio::time::timeout(patience, nobody).await.unwrap();
        let file = tempfile::tempfile().unwrap();
        tokio::select! {
            biased;
            () = gone(&file) => panic!("a file is written to for whoever comes"),
            () = tokio::task::yield_now() => {}
        }
    }

    #[test]
    fn what_a_daemon_says_is_kept_only_if_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let ready = launched("echo a warning >&2; echo /dev/nbd0", &log).wait();
        assert_eq!(ready.unwrap(), 0);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "a warning\n");
        assert_eq!(launched("echo no >&2; exit 75", &log).wait().unwrap(), 75);
        assert!(!log.exists());
        launched("printf half a line", &log).wait().unwrap_err();
    }
}
