//! Watching objects, and telling those who watch.

use super::engine::Watcher;
use super::pool::{Pool, first};
use crate::error::{Error, ErrorKind, Result};
use crate::objecter::Notification;
use crate::osd::NotifyAnswers;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Most events of a watch that wait for somebody to look at them; beyond, they are lost.
const MAX_EVENTS: usize = 1024;
/// The answer to a notification whose time was up before all had answered.
const ETIMEDOUT: i32 = 110;

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Somebody told the watchers something, and waits for [`Watch::acknowledge`].
    Notified(Notification),
    /// The watch was carried over to another session. What was told between may have come too late for an answer.
    Reconnected,
    /// The watch is gone. What happened meanwhile is not known; to watch on, watch again.
    Lost(Error),
}

/// A watch on an object; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    pool: Pool,
    cookie: u64,
    events: mpsc::Receiver<Told>,
}

impl Pool {
    /// Watches an object, which has to be there. The OSD drops a watcher that it does not hear of for `timeout` (whole
    /// seconds; without, its default of 30 s).
    ///
    /// # Errors
    /// As all operations.
    pub async fn watch(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        timeout: Option<Duration>,
    ) -> Result<Watch> {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let (set, is_set) = oneshot::channel();
        let deadline = self.deadline();
        let watch = {
            let mut state = self.cluster.engine.state.lock();
            let objecter = state.client.objecter_mut();
            let cookie =
                objecter.watch(Instant::now(), &self.locator, object, timeout, deadline)?;
            state.watchers.insert(cookie, Watcher { set: Some(set), events: sender });
            state.wake_pump();
            // From here on it is ended if this future is dropped.
            Watch { pool: self.clone(), cookie, events }
        };
        let gone = |_| Error::new("watching an object", ErrorKind::Cancelled);
        is_set.await.map_err(gone)??;
        Ok(watch)
    }

    /// Tells all watchers of an object something, and waits for their answers, at most for `timeout` (whole seconds).
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
        let _permits = self.permits(payload.len() as u64).await?;
        let done = engine
            .perform(|client, now| {
                let objecter = client.objecter_mut();
                objecter.notify(now, &self.locator, object, payload, timeout, deadline)
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
        self.events.recv().await
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
        let deadline = Some(Instant::now() + Duration::from_secs(30));
        state.client.objecter_mut().unwatch(Instant::now(), self.cookie, deadline);
        state.wake_pump();
    }
}
