//! Watching objects, and telling those who watch.

use super::pool::{Pool, first};
use crate::error::{Error, ErrorKind, Result};
use crate::objecter::{Addressed, Notification};
use crate::osd::NotifyAnswers;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Most events of a watch that wait for somebody to look at them; what comes beyond is one [`Told::Missed`].
const MAX_EVENTS: usize = 1024;
/// The answer to a notification whose time was up before all had answered.
const ETIMEDOUT: i32 = 110;

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Somebody told the watchers something, and waits for [`Watch::acknowledge`].
    Notified(Notification),
    /// Something may have been missed: the watch has lost its session and hears nothing now, or is carried over and hears
    /// again, or more came than were looked at. Look at the object again, each time.
    Missed,
    /// The watch is gone. What happened meanwhile is not known; to watch on, watch again.
    Lost(Error),
}

/// A watch on an object; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    pool: Pool,
    cookie: u64,
}

/// What the machine has for a watch.
#[derive(Default)]
pub(super) struct Watcher {
    /// Told when the watch is set, or cannot be.
    pub set: Option<oneshot::Sender<Result<()>>>,
    events: VecDeque<Told>,
    /// The watch is gone; what came before that may still be looked at.
    over: bool,
    waker: Option<Waker>,
}

impl Watcher {
    /// Has something for whoever listens. Nothing gets lost without a word: what there is no room for is missed.
    pub(super) fn tell(&mut self, told: Told) {
        let lost = matches!(told, Told::Lost(_));
        let told = if lost || self.events.len() + 1 < MAX_EVENTS { told } else { Told::Missed };
        // What follows one that is not looked at yet is seen by looking then.
        if self.over || told == Told::Missed && self.events.back() == Some(&Told::Missed) {
            return;
        }
        self.over = lost;
        self.events.push_back(told);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// It cannot be set, or is gone.
    pub(super) fn lose(&mut self, error: Error) {
        match self.set.take() {
            Some(set) => {
                let _nobody_waits = set.send(Err(error));
            }
            None => self.tell(Told::Lost(error)),
        }
    }

    fn poll(&mut self, context: &Context<'_>) -> Poll<Option<Told>> {
        match self.events.pop_front() {
            None if !self.over => {
                self.waker = Some(context.waker().clone());
                Poll::Pending
            }
            told => Poll::Ready(told),
        }
    }
}

impl Pool {
    fn addressed<'a>(&'a self, object: &'a [u8]) -> Addressed<'a> {
        let (locator, flags, share) = (&self.locator, self.flags, self.share());
        Addressed { locator, object, flags, share }
    }

    /// Watches an object, which has to be there. The OSD drops a watcher that it does not hear of for `timeout` (rounded up to
    /// whole seconds; without, its default of 30 s). The watch keeps the pool's [flags](Self::with_flags): with
    /// [`OpFlags::FULL_TRY`](crate::osd::OpFlags::FULL_TRY) it is set, carried over and ended also while the cluster is full.
    ///
    /// # Errors
    /// As all operations.
    pub async fn watch(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        timeout: Option<Duration>,
    ) -> Result<Watch> {
        let (set, is_set) = oneshot::channel();
        let deadline = self.deadline();
        let watch = {
            let mut state = self.cluster.engine.state.lock();
            let objecter = state.client.objecter_mut();
            let object = self.addressed(object.as_ref());
            let cookie = objecter.watch(Instant::now(), &object, timeout, deadline)?;
            state.watchers.insert(cookie, Watcher { set: Some(set), ..Watcher::default() });
            state.wake_pump();
            // From here on it is ended if this future is dropped.
            Watch { pool: self.clone(), cookie }
        };
        let gone = |_| Error::new("watching an object", ErrorKind::Cancelled);
        is_set.await.map_err(gone)??;
        Ok(watch)
    }

    /// Tells all watchers of an object something, and waits for their answers, at most for `timeout`, rounded up to
    /// whole seconds.
    /// Who did not answer in time is in the answers too.
    ///
    /// # Errors
    /// As all operations.
    pub async fn notify(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        payload: &[u8],
        timeout: Duration,
    ) -> Result<NotifyAnswers> {
        let engine = &self.cluster.engine;
        let deadline = self.deadline();
        let done = engine
            .perform(|client, now| {
                let objecter = client.objecter_mut();
                objecter.notify(now, &self.addressed(object.as_ref()), payload, timeout, deadline)
            })
            .await?;
        let reply = done.result?;
        if reply.result < 0 && reply.result != -ETIMEDOUT {
            let state = engine.state.lock();
            return Err(state.client.objecter().refusal(&done.request, reply.result));
        }
        NotifyAnswers::parse(&first(reply)?.data)
    }
}

impl Watch {
    /// The number by which the OSD knows it, together with the client's.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// What it says next; nothing more after [`Told::Lost`].
    pub async fn next(&mut self) -> Option<Told> {
        poll_fn(|context| {
            let mut state = self.pool.cluster.engine.state.lock();
            let watcher = state.watchers.get_mut(&self.cookie);
            watcher.map_or(Poll::Ready(None), |watcher| watcher.poll(context))
        })
        .await
    }

    /// Answers a notification.
    pub fn acknowledge(&self, told: &Notification, payload: &[u8]) {
        let mut state = self.pool.cluster.engine.state.lock();
        state.client.objecter_mut().acknowledge(Instant::now(), told, payload);
        state.wake_pump();
    }

    /// For how long the OSD may not have known of it: longer than its timeout, and it may be gone without a word yet.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        let state = self.pool.cluster.engine.state.lock();
        state.client.objecter().watch_age(Instant::now(), self.cookie)
    }

    /// Ends it, and waits until the OSD knows.
    ///
    /// # Errors
    /// As all operations.
    pub async fn close(self) -> Result<()> {
        let deadline = self.pool.deadline();
        let engine = std::sync::Arc::clone(&self.pool.cluster.engine);
        let done = engine
            .perform_if(|client, now| client.objecter_mut().unwatch(now, self.cookie, deadline));
        match done.await? {
            Some(done) => done.result.map(|_| ()),
            None => Ok(()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.pool.cluster.engine.state.lock();
        state.watchers.remove(&self.cookie);
        // Nobody waits for its end; the machine tells the OSD.
        let now = Instant::now();
        let objecter = state.client.objecter_mut();
        if let Some(tid) = objecter.unwatch(now, self.cookie, None) {
            objecter.cancel(now, tid);
        }
        state.wake_pump();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(watcher: &mut Watcher) -> Option<Told> {
        match watcher.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => told,
            Poll::Pending => panic!("nothing was told"),
        }
    }

    fn news(notify_id: u64) -> Told {
        let payload = bytes::Bytes::new();
        Told::Notified(Notification { watch: 1, notify_id, notifier: 2, payload })
    }

    #[test]
    fn one_who_does_not_listen_hears_that_something_was_missed() {
        let mut watcher = Watcher::default();
        let many = MAX_EVENTS as u64 + 100;
        (0..many).for_each(|id| watcher.tell(news(id)));
        for id in 0..MAX_EVENTS as u64 - 1 {
            assert_eq!(next(&mut watcher), Some(news(id)));
        }
        assert_eq!(next(&mut watcher), Some(Told::Missed));
        watcher.tell(news(many));
        assert_eq!(next(&mut watcher), Some(news(many)));
        assert!(watcher.poll(&Context::from_waker(Waker::noop())).is_pending());
    }

    #[test]
    fn that_a_watch_is_gone_is_heard_also_by_one_who_does_not_listen() {
        let mut watcher = Watcher::default();
        (0..2 * MAX_EVENTS as u64).for_each(|id| watcher.tell(news(id)));
        let error = Error::new("watching an object", ErrorKind::NoPool);
        watcher.lose(error.clone());
        watcher.tell(news(1));
        let all: Vec<_> = std::iter::from_fn(|| next(&mut watcher)).collect();
        assert_eq!(all[MAX_EVENTS - 1..], [Told::Missed, Told::Lost(error)]);
    }

    #[test]
    fn what_is_missed_in_a_row_is_one_look() {
        let mut watcher = Watcher::default();
        (0..10).for_each(|_| watcher.tell(Told::Missed));
        assert_eq!(next(&mut watcher), Some(Told::Missed));
        assert!(watcher.poll(&Context::from_waker(Waker::noop())).is_pending());
    }
}
