//! The task that hears what watchers tell each other. It answers at once, and never waits for the image.

use super::jobs::Asked;
use super::{NOTIFY_LIMIT, RETRY, Shared};
use crate::format::notify::{Message, Response, is_request};
use crate::store::{ObjectStore, StoreWatch, WatchEvent};
use blockyard_rados::encoding::{Reader, encoded};
use bytes::Bytes;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::{sleep, timeout};

/// What is done about a notification.
enum Answer {
    /// It is answered with this.
    Now(Bytes),
    /// The task that does what was asked for answers.
    Later,
}

fn response(result: i32) -> Answer {
    Answer::Now(encoded(&Response { result }).into())
}

/// Watches an image as long as it is open.
pub(super) async fn listen<S: ObjectStore>(shared: Arc<Shared<S>>, first: S::Watch) {
    let _ends = shared.task();
    let mut next = Some(first);
    while let Some(watch) = next.take() {
        shared.watching(watch.cookie());
        if shared.hear_all(watch).await {
            return;
        }
        shared.state.lock().watch = None;
        while next.is_none() {
            if shared.state.lock().is_over() {
                return;
            }
            match shared.note(shared.store.watch(&shared.header).await) {
                Ok(watch) => next = Some(watch),
                Err(error) if error.is_not_found() => return shared.fail(Errno::NOENT),
                Err(_) => sleep(RETRY).await,
            }
        }
    }
}

impl<S: ObjectStore> Shared<S> {
    /// There is a watch: what was told before it was not heard, and a lock that is held has to be called after it.
    fn watching(&self, watch: u64) {
        {
            let mut state = self.state.lock();
            state.watch = Some(watch);
            state.jobs.rename = state.held.is_some();
        }
        self.renames.notify_one();
        self.missed();
    }

    /// Something may not have been heard.
    fn missed(&self) {
        self.is_stale.store(true, Ordering::Release);
        self.bump();
        self.jobs.notify_one();
    }

    /// Hears what a watch says, until it is gone: whether the image is closed.
    async fn hear_all(&self, mut watch: S::Watch) -> bool {
        loop {
            let answer = self.state.lock().jobs.answers.pop_front();
            if let Some((notify_id, result)) = answer {
                let answer = encoded(&Response { result }).into();
                let _asked_again = watch.acknowledge(notify_id, answer).await;
                continue;
            }
            if self.state.lock().is_over() {
                // Whoever looks for watchers next does not find one that is gone.
                let _gone_later = timeout(NOTIFY_LIMIT, watch.close()).await;
                return true;
            }
            let event = tokio::select! {
                event = watch.next() => event,
                () = self.answered.notified() => continue,
            };
            match event {
                Some(WatchEvent::Notified { notify_id, payload, .. }) => {
                    if let Answer::Now(answer) = self.hear(notify_id, &payload) {
                        // One that gets lost is asked for again.
                        let _asked_again = watch.acknowledge(notify_id, answer).await;
                    }
                }
                Some(WatchEvent::Missed) => self.missed(),
                Some(WatchEvent::Lost(error)) => {
                    let _noted = self.note::<()>(Err(error));
                    return self.state.lock().is_over();
                }
                None => return false,
            }
        }
    }

    fn hear(&self, notify_id: u64, payload: &Bytes) -> Answer {
        // Those who know of nothing but changes tell nothing at all (ceph: `HeaderUpdatePayload`).
        let message = match payload.is_empty() {
            true => Ok(Message::HeaderUpdate),
            false => Reader::new("reading a notification", payload).get(),
        };
        let nothing = Answer::Now(Bytes::new());
        match message {
            Ok(Message::AcquiredLock(client)) => {
                if client != self.me() {
                    self.acquired_by_another();
                }
                self.bump();
            }
            Ok(Message::ReleasedLock(_)) => self.bump(),
            Ok(Message::RequestLock { client, .. }) => return self.lock_requested(client),
            Ok(Message::HeaderUpdate) => self.missed(),
            Ok(Message::Progress { .. }) => self.bump(),
            Ok(Message::Complete { request, result }) => {
                if request.client.client == self.me().client {
                    let mut state = self.state.lock();
                    if let Some(completed) = state.completed.get_mut(&request.number) {
                        *completed = Some(result);
                    }
                }
                self.bump();
            }
            Ok(Message::Request { request, work }) => {
                return self.requested(Asked { request, notify_id, work });
            }
            Ok(Message::Other { op }) if is_request(op) && self.is_holding() => {
                return response(-Errno::OPNOTSUPP.raw_os_error());
            }
            // Of a newer version, or nonsense: whoever owns the lock cannot do it.
            Err(_) if self.is_holding() => return response(-Errno::OPNOTSUPP.raw_os_error()),
            Ok(Message::Other { .. }) | Err(_) => {}
        }
        nothing
    }

    /// Somebody else has the lock: if that was this one's, it was broken by hand.
    fn acquired_by_another(&self) {
        let mut state = self.state.lock();
        state.yields_until = None;
        if state.is_taken {
            state.jobs.rename = true;
            drop(state);
            self.renames.notify_one();
        }
    }

    fn is_holding(&self) -> bool {
        self.state.lock().is_taken && self.status.borrow().is_owner
    }

    fn lock_requested(&self, client: crate::format::notify::ClientId) -> Answer {
        if client == self.me() {
            return Answer::Now(Bytes::new());
        }
        let mut state = self.state.lock();
        // One that may be held, as an answer was lost, is given back like one that is.
        if state.held.is_none() {
            return Answer::Now(Bytes::new());
        }
        state.jobs.release = true;
        drop(state);
        self.jobs.notify_one();
        response(0)
    }

    /// Somebody wants something done, which is the owner's affair.
    fn requested(&self, asked: Asked) -> Answer {
        if !self.is_holding() {
            return Answer::Now(Bytes::new());
        }
        let is_numbered = asked.request.is_some();
        let queued = self.state.lock().jobs.add(asked);
        self.jobs.notify_one();
        match queued {
            Ok(()) if is_numbered => response(0),
            Ok(()) => Answer::Later,
            Err(errno) => response(-errno.raw_os_error()),
        }
    }
}
