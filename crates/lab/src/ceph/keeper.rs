//! The thread that starts daemons.
//!
//! `setpriv --pdeathsig` makes the kernel kill a daemon when the *thread* that started it ends (prctl(2),
//! PR_SET_PDEATHSIG). A test's thread ends long before a cluster that other tests share; this one lives as long as the
//! process does.

use anyhow::{Context as _, Result};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::{io, thread};

struct Job {
    command: Command,
    reply: Sender<io::Result<Child>>,
}

static KEEPER: OnceLock<Sender<Job>> = OnceLock::new();

/// Starts a command whose process ends with this one.
///
/// # Errors
/// It cannot be started.
pub(super) fn spawn(command: Command) -> Result<Child> {
    let shown = format!("{command:?}");
    let keeper = KEEPER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for mut job in jobs {
                let _nobody_waits = job.reply.send(job.command.spawn());
            }
        });
        sender
    });
    let (reply, child) = mpsc::channel();
    keeper.send(Job { command, reply }).context("the thread that starts daemons is gone")?;
    let child = child.recv().context("the thread that starts daemons is gone")?;
    child.with_context(|| format!("cannot start {shown}"))
}
