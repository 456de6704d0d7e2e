//! Load on the objects of a pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blockyard_rados::Error as RadosError;
use blockyard_rados::net::Pool;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::report::{Report, Tally, cpu_time};
use crate::error::{Error, Result};

/// What to do.
#[derive(Clone, Debug)]
pub struct ObjectLoad {
    /// Write, or read.
    pub write: bool,
    /// Bytes of a request, and of an object.
    pub block: u32,
    /// Requests at a time.
    pub depth: usize,
    /// For how long.
    pub time: Duration,
    /// How many objects.
    pub objects: u32,
    /// What their names begin with; without, what no other run has.
    pub run_name: Option<String>,
    /// Write the objects first.
    pub prepare: bool,
    /// Remove the objects in the end.
    pub clean_up: bool,
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
    names: Vec<String>,
    data: Bytes,
    block: u32,
    depth: usize,
    next: AtomicU32,
    tally: Mutex<Tally>,
}

/// Loads a pool.
///
/// # Errors
/// Objects cannot be made or removed. What fails under load is counted.
pub async fn run_objects(pool: &Pool, load: &ObjectLoad) -> Result<Report> {
    let run = Arc::new(Run::new(pool, load)?);
    let failed = |what: &str, err: RadosError| Error::failed(what).caused_by(err);
    if load.prepare {
        each_once(&run, Action::Make)
            .await
            .map_err(|err| failed("cannot write the objects of the benchmark", err))?;
    }

    run.next.store(0, Ordering::Relaxed);
    let action = if load.write { Action::Write } else { Action::Read };
    let (begin, cpu) = (Instant::now(), cpu_time());
    let mut tasks = JoinSet::new();
    for _ in 0..load.depth {
        tasks.spawn(until(begin + load.time, Arc::clone(&run), action));
    }
    tasks.join_all().await;
    let (wall, cpu) = (begin.elapsed(), cpu_time().saturating_sub(cpu));
    let report = Report::new(&run.tally.lock(), load.block, wall, cpu);

    if load.clean_up {
        each_once(&run, Action::Remove)
            .await
            .map_err(|err| failed("cannot remove the objects of the benchmark", err))?;
    }
    Ok(report)
}

/// Loads objects in turn.
async fn until(end: Instant, run: Arc<Run>, action: Action) {
    let mut start = Instant::now();
    while start < end {
        let number = run.next.fetch_add(1, Ordering::Relaxed) as usize % run.names.len();
        let result = run.act(&run.names[number], action).await;
        let now = Instant::now();
        match result {
            Ok(()) => run.tally.lock().record(now - start),
            Err(err) => run.tally.lock().fail(&err),
        }
        start = now;
    }
}

/// Does something to each object once, several at a time.
async fn each_once(run: &Arc<Run>, action: Action) -> Result<(), RadosError> {
    run.next.store(0, Ordering::Relaxed);
    let mut tasks = JoinSet::new();
    for _ in 0..run.depth {
        let run = Arc::clone(run);
        tasks.spawn(async move {
            while let Some(name) = run.names.get(run.next.fetch_add(1, Ordering::Relaxed) as usize)
            {
                run.act(name, action).await?;
            }
            Ok(())
        });
    }
    // A task that panicked has said why.
    tasks.join_all().await.into_iter().collect()
}

impl Run {
    fn new(pool: &Pool, load: &ObjectLoad) -> Result<Self> {
        let own = || format!("blockyard_bench.{}", std::process::id());
        let run_name = load.run_name.clone().unwrap_or_else(own);
        Ok(Self {
            pool: pool.clone(),
            names: (0..load.objects).map(|number| format!("{run_name}.{number}")).collect(),
            data: Bytes::from(vec![0x5a; load.block as usize]),
            block: load.block,
            depth: load.depth,
            next: AtomicU32::new(0),
            tally: Mutex::new(Tally::new()?),
        })
    }

    async fn act(&self, name: &str, action: Action) -> Result<(), RadosError> {
        match action {
            Action::Make => self.pool.write_full(name, self.data.clone()).await,
            Action::Write => self.pool.write(name, 0, self.data.clone()).await,
            Action::Read => self.pool.read(name, 0, self.block.into()).await.map(|_| ()),
            Action::Remove => self.pool.remove(name).await,
        }
    }
}
