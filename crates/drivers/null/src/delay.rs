//! Requests that wait until they may end.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use blockyard_blkmq::{HctxHandle, Request, Status};
use blockyard_sys::{EventWatch, Timer};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::Null;

/// What waits in one hardware queue: all for equally long, so that the first to come is the first to go.
pub struct Delay {
    latency: Duration,
    waiting: VecDeque<(Instant, Request<Null>)>,
    /// Ends requests when they are due; there is none where somebody polls.
    alarm: Option<Alarm>,
}

struct Alarm {
    timer: Timer,
    task: JoinHandle<()>,
}

impl Delay {
    pub(crate) fn polled(latency: Duration) -> Self {
        Self { latency, waiting: VecDeque::new(), alarm: None }
    }

    pub(crate) fn timed(
        latency: Duration,
        handle: HctxHandle<Null>,
        runtime: &Handle,
    ) -> io::Result<Self> {
        let timer = Timer::new()?;
        let watch = EventWatch::new(timer.event(), runtime)?;
        let task = runtime.spawn(async move {
            let due = |delay: &mut Option<Self>| delay.as_mut().map_or(0, Self::end_due);
            while watch.happened().await.is_ok() && handle.with(due).is_some() {}
        });
        Ok(Self { alarm: Some(Alarm { timer, task }), ..Self::polled(latency) })
    }

    pub(crate) fn push(&mut self, rq: Request<Null>) {
        if self.waiting.is_empty()
            && let Some(alarm) = &self.alarm
        {
            alarm.timer.set(self.latency);
        }
        self.waiting.push_back((Instant::now() + self.latency, rq));
    }

    /// Ends what has waited long enough; says how many.
    pub(crate) fn end_due(&mut self) -> usize {
        let now = Instant::now();
        let mut count = 0;
        while let Some((_, rq)) = self.waiting.pop_front_if(|(due, _)| *due <= now) {
            rq.complete(Status::Ok);
            count += 1;
        }
        if let (Some(alarm), Some((due, _))) = (&self.alarm, self.waiting.front()) {
            alarm.timer.set(due.saturating_duration_since(Instant::now()));
        }
        count
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.task.abort();
    }
}
