//! Processes below this one, as `/proc` tells: what a command that hangs has started ends with it, and what a test has
//! left behind is found.

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, wait,
};
use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long a process may take to go that was left behind: one that ends just now is no fault.
const GRACE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// How long one may take to go that was killed.
const DEATH: Duration = Duration::from_secs(10);

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    is_zombie: bool,
}

fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that has gone meanwhile has no file.
    pids.filter_map(|pid: u32| parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)): the name is in parentheses, and may hold any.
fn parse(pid: u32, stat: &str) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    Some(Process { pid, parent: parent.parse().ok()?, is_zombie: state == "Z" })
}

/// The processes that `pid` has started, those that they have started, and so on.
fn below(pid: u32) -> Vec<Process> {
    let all = all();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// Kills all that `pid`, a child that was not waited for, has started, and waits for their end; itself it leaves to its owner.
pub(crate) fn kill_below(pid: u32) {
    let killed: Vec<_> = below(pid).iter().filter_map(kill).collect();
    let deadline = Instant::now() + DEATH;
    for process in killed {
        let left = deadline.saturating_duration_since(Instant::now());
        // Readable means ended, pidfd_open(2). One that the kernel does not let go is not waited for.
        let left = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], left.as_ref());
    }
}

/// Whose death it is, if it has not ended already.
fn kill(process: &Process) -> Option<OwnedFd> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    pidfd_send_signal(&process, Signal::KILL).ok()?;
    Some(process)
}

/// Holds those processes of jobs that would outlive them.
#[derive(Debug)]
pub(crate) struct Reaper(());

impl Reaper {
    /// From now on this process becomes the parent of those that lose theirs.
    pub(crate) fn start() -> Result<Self> {
        set_child_subreaper(Some(getpid())).context("cannot become the parent of orphans")?;
        Ok(Self(()))
    }

    /// Call when no child of one's own is left. Says what jobs have left behind, and kills it.
    pub(crate) fn finish(self) -> Vec<String> {
        let deadline = Instant::now() + GRACE;
        let mut left = Vec::new();
        loop {
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            let running = below(std::process::id());
            let mut running = running.iter().filter(|process| !process.is_zombie).peekable();
            if running.peek().is_none() {
                return left;
            }
            if Instant::now() > deadline {
                for process in running {
                    left.push(described(process.pid));
                    kill(process);
                }
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // It was set before.
        let _ = set_child_subreaper(None);
    }
}

fn described(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    format!("process {pid}: {}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_may_be_anything() {
        let process = parse(7, "7 (a) Z (b) S 4 7 7 0").unwrap();
        assert_eq!(process, Process { pid: 7, parent: 4, is_zombie: false });
        assert!(parse(7, "7 (a) Z 4").unwrap().is_zombie);
        assert_eq!(parse(7, "7 (a"), None);
    }

    #[test]
    fn this_test_has_no_grandchildren_and_is_found() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert!(below(std::process::id()).iter().any(|process| process.pid == child.id()));
        assert!(below(child.id()).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
