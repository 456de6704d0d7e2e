//! Commands that run beside each other, each with its output kept together.
//!
//! Most tests wait for something: a peer, a cluster, a guest. A few binaries at a time keep the processors busy,
//! where cargo would run one after the other. A process for each test, as other runners have it, would start a
//! Ceph cluster for each test.

use crate::run::{Failures, shown};
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::num::NonZero;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A command with a name for people.
#[derive(Debug)]
pub struct Job {
    /// What the output is headed by.
    pub name: String,
    /// What is run, without input.
    pub command: Command,
}

/// How many processors there are.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Runs all jobs in this order, so many at a time, each for at most `limit`. A job that fails does not keep the
/// others from running.
///
/// # Errors
/// A job cannot be started, runs for longer, or fails; what failed tests said is part of the error.
pub fn run(jobs: Vec<Job>, at_a_time: usize, limit: Duration) -> Result<()> {
    let count = jobs.len();
    let waiting = Mutex::new(jobs.into_iter());
    let failed = Mutex::new(Vec::new());
    let next = || locked(&waiting).next();
    std::thread::scope(|scope| {
        for _ in 0..at_a_time.clamp(1, count.max(1)) {
            scope.spawn(|| {
                while let Some(job) = next() {
                    if let Err(error) = run_one(job, limit) {
                        locked(&failed).push(error);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failed.len() {
        0 => Ok(()),
        failures => {
            let told: Vec<_> = failed.iter().map(|error| format!("{error:#}")).collect();
            bail!("{failures} of {count} failed\n{}", told.join("\n"));
        }
    }
}

fn run_one(Job { name, mut command }: Job, limit: Duration) -> Result<()> {
    let mut output = tempfile::tempfile().context("cannot make a file for the output")?;
    let (out, err) = (output.try_clone()?, output.try_clone()?);
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
    let mut child = child.with_context(|| format!("cannot start `{}`", shown(&command)))?;
    let status = wait(&mut child, limit)?;
    let said = content(&mut output)?;
    let took = start.elapsed().as_secs_f64();
    let mut failures = Failures::default();
    said.lines().for_each(|line| failures.see(line));
    // In one piece, so that nothing of another job comes between.
    println!("$ {name} ({took:.1} s)\n{said}");
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{name}: {status}{}", failures.shown()),
        None => bail!("{name}: ran for more than {limit:?} and was killed{}", failures.shown()),
    }
}

/// Waits for the end; `None` if it was not reached in time, and the child was killed.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn content(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn job(name: &str, script: &str) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job { name: name.to_owned(), command }
    }

    #[test]
    fn all_run_although_one_fails_and_the_error_says_which_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("ran");
        let failing = "echo failures:; echo lost a write; echo test result: FAILED; exit 3";
        let jobs = vec![job("first", failing), job("second", &format!("touch {}", mark.display()))];
        let error = run(jobs, 1, LIMIT).unwrap_err().to_string();
        assert!(error.starts_with("1 of 2 failed\nfirst: exit status: 3"), "{error}");
        assert!(error.contains("lost a write") && !error.contains("second"), "{error}");
        assert!(mark.exists());
    }

    #[test]
    fn jobs_run_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        // Each waits for what the other does.
        let meet = |mine: &str, other: &str| {
            format!("touch {}; until [ -e {} ]; do sleep 0.01; done", path(mine), path(other))
        };
        let jobs = vec![job("a", &meet("a", "b")), job("b", &meet("b", "a"))];
        run(jobs, 2, LIMIT).unwrap();
    }

    #[test]
    fn what_hangs_is_ended() {
        let error = run(vec![job("stuck", "exec sleep 600")], 1, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("stuck: ran for more than"), "{error}");
    }
}
