//! Watches and notifications among those who use a store in one process; `peers.rs` has the other processes.

use crate::class::Caller;
use crate::error::Result;
use crate::store::{NotifyAnswers, StoreWatch, WatchEvent, Watcher};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Most notifications that wait for a watcher; who is behind by more has to look for himself.
const MAX_EVENTS: usize = 256;

/// The watches of a store.
#[derive(Clone, Default)]
pub(super) struct Watches(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    watchers: HashMap<u64, Entry>,
}

struct Entry {
    key: Vec<u8>,
    events: mpsc::Sender<Told>,
    missed: bool,
}

/// A notification on its way.
struct Told {
    notify_id: u64,
    notifier: u64,
    payload: Bytes,
    answer: oneshot::Sender<Bytes>,
}

impl Watches {
    pub(super) fn add(&self, key: Vec<u8>) -> DirWatch {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let mut state = self.0.lock();
        state.next += 1;
        let cookie = state.next;
        state.watchers.insert(cookie, Entry { key, events: sender, missed: false });
        DirWatch { watches: self.clone(), cookie, events, unanswered: HashMap::new() }
    }

    /// Who watches an object.
    pub(super) fn of(&self, key: &[u8], caller: &Caller) -> Vec<Watcher> {
        let state = self.0.lock();
        let cookies = state.watchers.iter().filter(|(_, entry)| entry.key == key);
        let mut cookies: Vec<u64> = cookies.map(|(cookie, _)| *cookie).collect();
        cookies.sort_unstable();
        let watcher = |cookie| Watcher {
            client: caller.client,
            cookie,
            timeout: Duration::ZERO,
            addr: caller.addr,
        };
        cookies.into_iter().map(watcher).collect()
    }

    pub(super) async fn notify(
        &self,
        key: &[u8],
        payload: &Bytes,
        limit: Duration,
        caller: &Caller,
        notifier: u64,
    ) -> NotifyAnswers {
        let me = u64::try_from(caller.client.number).unwrap_or_default();
        let mut answers = NotifyAnswers { answered: Vec::new(), silent: Vec::new() };
        let mut waiting = Vec::new();
        {
            let mut state = self.0.lock();
            state.next += 1;
            let notify_id = state.next;
            for (cookie, entry) in state.watchers.iter_mut().filter(|(_, entry)| entry.key == key) {
                let (answer, answered) = oneshot::channel();
                let told = Told { notify_id, notifier, payload: payload.clone(), answer };
                entry.missed |= entry.events.try_send(told).is_err();
                waiting.push((*cookie, answered));
            }
        }
        let end = tokio::time::Instant::now() + limit;
        for (cookie, answered) in waiting {
            match tokio::time::timeout_at(end, answered).await {
                Ok(Ok(answer)) => answers.answered.push(((me, cookie), answer)),
                Ok(Err(_)) | Err(_) => answers.silent.push((me, cookie)),
            }
        }
        answers
    }
}

/// A watch on an object of a store in a directory.
pub struct DirWatch {
    watches: Watches,
    cookie: u64,
    events: mpsc::Receiver<Told>,
    unanswered: HashMap<u64, oneshot::Sender<Bytes>>,
}

impl StoreWatch for DirWatch {
    fn cookie(&self) -> u64 {
        self.cookie
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        let missed = self.watches.0.lock().watchers.get_mut(&self.cookie).map(|entry| {
            // What waits is told first: it was there before what did not find room.
            self.events.is_empty() && std::mem::take(&mut entry.missed)
        });
        if missed? {
            return Some(WatchEvent::Missed);
        }
        let Told { notify_id, notifier, payload, answer } = self.events.recv().await?;
        // Those who have stopped waiting are forgotten.
        self.unanswered.retain(|_, answer| !answer.is_closed());
        self.unanswered.insert(notify_id, answer);
        Some(WatchEvent::Notified { notify_id, notifier, payload })
    }

    async fn acknowledge(&mut self, notify_id: u64, payload: Bytes) -> Result<()> {
        if let Some(answer) = self.unanswered.remove(&notify_id) {
            let _waits_no_more = answer.send(payload);
        }
        Ok(())
    }
}

impl Drop for DirWatch {
    fn drop(&mut self) {
        self.watches.0.lock().watchers.remove(&self.cookie);
    }
}
