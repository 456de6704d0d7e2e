//! Which daemon is meant, and which of its disks.

use std::path::PathBuf;

use serde_json::Value;

use crate::api::client::{Answer, Ask, ask_at, values_of_all};
use crate::error::{Error, Result};
use crate::yard::report::{Daemon, DiskReport, ExportReport};

/// A daemon that answers.
pub(super) struct Found {
    socket: PathBuf,
    pub(super) daemon: Daemon,
}

impl Found {
    /// Asks it for something, and waits as long as that takes.
    pub(super) fn ask(&self, question: &Ask) -> Result<Answer> {
        let ended = || Error::failed(format!("the daemon {} has exited", self.daemon.pid));
        ask_at(&self.socket, question)?.ok_or_else(ended)
    }

    /// The same, where the answer is nothing but that it was done.
    pub(super) fn wish(&self, question: &Ask) -> Result<()> {
        self.ask(question)?.accepted().map(drop)
    }

    /// Wants something there; says whether it was made only now.
    pub(super) fn put(&self, path: &str, wanted: Value) -> Result<bool> {
        made(self.ask(&Ask::put(path, wanted))?)
    }

    /// The same, unless there is something already; says whether it was made.
    pub(super) fn put_new(&self, path: &str, wanted: Value) -> Result<bool> {
        let answer = self.ask(&Ask::put_new(path, wanted))?;
        if answer.is_taken() { Ok(false) } else { made(answer) }
    }
}

fn made(answer: Answer) -> Result<bool> {
    let is_made = answer.is_made();
    answer.accepted().map(|_| is_made)
}

fn all() -> Result<Vec<Found>> {
    let daemons = values_of_all("/v1/daemon")?;
    Ok(daemons.into_iter().map(|(socket, daemon)| Found { socket, daemon }).collect())
}

/// The daemon that disks can be added to: the one of that process, or the only one.
pub(super) fn yard(pid: Option<u32>) -> Result<Found> {
    let mut found = all()?;
    match pid {
        Some(pid) => found.retain(|it| it.daemon.pid == pid),
        // Who serves a disk of the kernel, or a directory, has that, and nothing else.
        None => found.retain(|Found { daemon, .. }| {
            daemon.devices.is_empty() && !daemon.exports.iter().any(ExportReport::is_alone)
        }),
    }
    let pids: Vec<_> = found.iter().map(|it| it.daemon.pid.to_string()).collect();
    match (found.pop(), pid) {
        (None, Some(pid)) => Err(Error::failed(format!("no daemon of this user has PID {pid}"))
            .help("list daemons and disks: blockyard list")),
        (None, None) => Err(Error::failed("no daemon of this user is running")
            .help("start one: blockyard serve ram:1G --nbd unix:/tmp/nbd.sock")),
        (Some(_), None) if pids.len() > 1 => {
            let what = format!("several daemons are running: {}", pids.join(", "));
            Err(Error::usage(what).help("name one: --daemon PID"))
        }
        (Some(found), _) => Ok(found),
    }
}

/// The daemon that has a disk of that name, and the disk.
pub(super) fn disk(wanted: &str) -> Result<(Found, DiskReport)> {
    // A name may have a colon in it.
    let with_pid =
        wanted.split_once(':').and_then(|(pid, name)| Some((pid.parse::<u32>().ok()?, name)));
    let (mut by_name, mut by_pid) = (Vec::new(), None);
    for found in all()? {
        let named = |name: &str| found.daemon.disks.iter().find(|disk| disk.name == name).cloned();
        if let Some(disk) = named(wanted) {
            by_name.push((found, disk));
        } else if let Some(disk) =
            with_pid.filter(|(pid, _)| *pid == found.daemon.pid).and_then(|(_, name)| named(name))
        {
            by_pid = Some((found, disk));
        }
    }
    if by_name.is_empty() {
        by_name.extend(by_pid);
    }
    let several = by_name.len() > 1;
    match by_name.pop() {
        None => Err(Error::failed(format!("no daemon has a disk {wanted:?}"))
            .help("list daemons and disks: blockyard list")),
        Some((found, disk)) if several => {
            let what = format!("several daemons have a disk {:?}", disk.name);
            let pid = found.daemon.pid;
            Err(Error::usage(what).help(format!("name one, e.g. {pid}:{}", disk.name)))
        }
        Some(found) => Ok(found),
    }
}
