//! Commands that run beside each other, each with its output kept together.
//!
//! Most tests wait for something: a peer, a cluster, a guest. A few binaries at a time keep the processors busy,
//! where cargo would run one after the other. A process for each test, as other runners have it, would start a
//! Ceph cluster for each test.

use crate::job::{Job, Output};
use crate::places::Places;
use crate::processes::Reaper;
use crate::verdict::Counts;
use anyhow::{Result, bail};
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How many processors there are.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Runs all jobs in this order, so many at a time, and says how many tests passed. A job that fails does not keep the
/// others from running. At the deadline all that run are ended, so that what is known by then is told.
///
/// # Errors
/// A job fails, or one leaves a process, a mount, a loop device or a file behind; why is part of the error.
pub fn run(jobs: Vec<Job>, at_a_time: usize, deadline: Instant) -> Result<Counts> {
    let count = jobs.len();
    let names: Vec<String> = jobs.iter().map(|job| job.name.clone()).collect();
    let waiting = Mutex::new(jobs.into_iter().enumerate());
    let places = Places::new()?;
    let (failed, counts) = (Mutex::new(Vec::new()), Mutex::new(Counts::default()));
    let next = || locked(&waiting).next();
    let reaper = Reaper::start()?;
    std::thread::scope(|scope| {
        for _ in 0..at_a_time.clamp(1, count.max(1)) {
            scope.spawn(|| {
                while let Some((number, mut job)) = next() {
                    let left = deadline.saturating_duration_since(Instant::now());
                    job.limit = job.limit.min(left);
                    let done = places.make(number).and_then(|place| {
                        job.command.env("TMPDIR", place);
                        job.run(Output::IfItFails)
                    });
                    match done {
                        Ok(its) => locked(&counts).add(its),
                        Err(error) => locked(&failed).push(format!("{error:#}")),
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failures = failed.len();
    failed.extend(reaper.finish().into_iter().map(|it| format!("left behind: {it}")));
    // Only now: who ends removes its files itself.
    for (number, name) in names.iter().enumerate() {
        failed.extend(places.left(number).iter().map(|it| format!("left behind by {name}: {it}")));
    }
    if failed.is_empty() {
        return Ok(*locked(&counts));
    }
    bail!("{failures} of {count} failed\n{}", failed.join("\n"));
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
