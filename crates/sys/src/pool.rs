//! Threads for what may block: a few, started when there is work, gone when there was none for a while.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A thread without work ends after this long.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// A bounded pool of threads. Clones share it. Work that was accepted is done even if all of them are dropped.
///
/// What waits for a thread is bounded by those who submit: an [`crate::IoQueue`] never has more out than its
/// depth.
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

struct Handle(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    most_threads: usize,
    start: fn(Arc<Shared>) -> io::Result<()>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    /// A pool of at most `most_threads` threads, at least one. None is started yet.
    #[must_use]
    pub fn new(most_threads: usize) -> Self {
        Self::with(most_threads, start)
    }

    fn with(most_threads: usize, start: fn(Arc<Shared>) -> io::Result<()>) -> Self {
        let most_threads = most_threads.max(1);
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), most_threads, start };
        Self(Arc::new(Handle(Arc::new(shared))))
    }

    /// Has `job` done by one of the threads. If there is none and none can be started, it is done here, so that
    /// nothing is ever stuck.
    pub fn execute(&self, job: Job) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            shared.work.notify_one();
            return;
        }
        if state.threads == shared.most_threads {
            return;
        }
        state.threads += 1;
        drop(state);
        if (shared.start)(Arc::clone(shared)).is_err() {
            let mut state = shared.lock();
            state.threads -= 1;
            // Whoever came meanwhile and counted on this one, or failed as well and left it to this one, has nobody else.
            while state.threads == 0
                && let Some(job) = state.jobs.pop_front()
            {
                drop(state);
                job();
                state = shared.lock();
            }
        }
    }
}

fn start(shared: Arc<Shared>) -> io::Result<()> {
    let thread = thread::Builder::new().name("blockyard-io".into());
    thread.spawn(move || shared.work()).map(drop)
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (woken, waited) =
                self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, mpsc};

    #[test]
    fn all_work_is_done_by_no_more_threads_than_allowed() {
        let pool = Pool::new(3);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let together = Arc::new(Barrier::new(3));
        let (done, all) = mpsc::channel();
        for _ in 0..48 {
            let (running, most, done) = (Arc::clone(&running), Arc::clone(&most), done.clone());
            let together = Arc::clone(&together);
            pool.execute(Box::new(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                // None goes on before three have come.
                together.wait();
                running.fetch_sub(1, Ordering::SeqCst);
                done.send(()).unwrap();
            }));
        }
        drop((pool, done));
        assert_eq!(all.iter().count(), 48, "work goes on after the last handle is dropped");
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    /// Threads that cannot be started, two at the same time: each is counted when the other fails.
    #[test]
    fn work_is_done_where_no_thread_can_be_started() {
        static BOTH: Barrier = Barrier::new(2);
        let pool = Pool::with(8, |_shared| {
            BOTH.wait();
            Err(io::ErrorKind::WouldBlock.into())
        });
        let done = Arc::new(AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let done = Arc::clone(&done);
                    pool.execute(Box::new(move || _ = done.fetch_add(1, Ordering::SeqCst)));
                });
            }
        });
        assert_eq!(done.load(Ordering::SeqCst), 2);
        assert_eq!(pool.0.0.lock().jobs.len(), 0);
    }
}
