//! Load on the objects of a pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blockyard_rados::Error as RadosError;
use blockyard_rados::net::Pool;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::report::{Report, Tally, cpu_time};
use crate::error::{Error, Result};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct ObjectLoad {
    /// Write, or read what is written first.
    pub write: bool,
    /// Bytes of a request, and of an object.
    pub block: u32,
    /// Requests at a time.
    pub depth: usize,
    /// For how long.
    pub time: Duration,
    /// How many objects.
    pub objects: u32,
}

/// What is done to an object.
#[derive(Clone, Copy)]
enum Action {
    Make,
    Write,
    Read,
    Remove,
}

/// What the tasks share.
struct Run {
    pool: Pool,
    data: Bytes,
    load: ObjectLoad,
    next: AtomicU32,
}

/// Loads a pool, and removes the objects.
///
/// # Errors
/// Objects cannot be made or removed. What fails under load is counted.
pub async fn run_objects(pool: &Pool, load: &ObjectLoad) -> Result<Report> {
    let data = Bytes::from(vec![0x5a; load.block as usize]);
    let (pool, next) = (pool.clone(), AtomicU32::new(0));
    let run = Arc::new(Run { pool, data, load: *load, next });
    let failed = |what: &str, err: RadosError| Error::failed(what).caused_by(err);
    each_once(&run, Action::Make)
        .await
        .map_err(|err| failed("cannot write the objects of the benchmark", err))?;

    run.next.store(0, Ordering::Relaxed);
    let (begin, cpu) = (Instant::now(), cpu_time());
    let mut tasks = JoinSet::new();
    for _ in 0..load.depth {
        tasks.spawn(until_time_is_up(Arc::clone(&run), begin));
    }
    let mut tally = Tally::new()?;
    while let Some(part) = tasks.join_next().await {
        let part = part.map_err(|err| Error::failed("a task ended early").caused_by(err))?;
        tally.add(&part?);
    }
    let (wall, cpu) = (begin.elapsed(), cpu_time().saturating_sub(cpu));

    each_once(&run, Action::Remove)
        .await
        .map_err(|err| failed("cannot remove the objects of the benchmark", err))?;
    Ok(Report::new(&tally, load.block, wall, cpu))
}

/// Loads objects in turn.
async fn until_time_is_up(run: Arc<Run>, begin: Instant) -> Result<Tally> {
    let mut tally = Tally::new()?;
    let action = if run.load.write { Action::Write } else { Action::Read };
    while begin.elapsed() < run.load.time {
        let number = run.next.fetch_add(1, Ordering::Relaxed) % run.load.objects;
        let start = Instant::now();
        match run.act(number, action).await {
            Ok(()) => tally.record(start.elapsed()),
            Err(err) => tally.fail(&err),
        }
    }
    Ok(tally)
}

/// Does something to each object once, several at a time.
async fn each_once(run: &Arc<Run>, action: Action) -> Result<(), RadosError> {
    run.next.store(0, Ordering::Relaxed);
    let mut tasks = JoinSet::new();
    for _ in 0..run.load.depth {
        let run = Arc::clone(run);
        tasks.spawn(async move {
            loop {
                let number = run.next.fetch_add(1, Ordering::Relaxed);
                if number >= run.load.objects {
                    return Ok(());
                }
                run.act(number, action).await?;
            }
        });
    }
    // A task that panicked has said why.
    tasks.join_all().await.into_iter().collect()
}

impl Run {
    async fn act(&self, number: u32, action: Action) -> Result<(), RadosError> {
        // No other run has these.
        let name = format!("blockyard_bench.{}.{number}", std::process::id());
        match action {
            Action::Make => self.pool.write_full(&name, self.data.clone()).await,
            Action::Write => self.pool.write(&name, 0, self.data.clone()).await,
            Action::Read => self.pool.read(&name, 0, self.load.block.into()).await.map(|_| ()),
            Action::Remove => self.pool.remove(&name).await,
        }
    }
}
