//! What an image has to do beside its reads and writes: one task does it, one thing after the other. Another one tells
//! watchers what there is to tell, and nobody waits for that.

use super::maintain::supports;
use super::{RETRY, Shared};
use crate::error::{Error, Result};
use crate::format::notify::{Message, RequestId, Work};
use crate::store::ObjectStore;
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use tokio::time::sleep;

/// Most requests of others that wait.
const MAX_REQUESTS: usize = 64;
/// Requests whose ends are remembered: one that is sent again is not done again.
const MAX_SEEN: usize = 1024;
/// Most things that wait to be told.
const MAX_NEWS: usize = 256;
/// How often the end of a request is told to somebody who does not answer.
const MAX_TELLINGS: usize = 5;

/// A request of somebody else's.
pub(super) struct Asked {
    /// Its number; without, the notification is answered when it is done.
    pub(super) request: Option<RequestId>,
    pub(super) notify_id: u64,
    pub(super) work: Work,
}

/// What is to be done.
#[derive(Default)]
pub(super) struct Jobs {
    /// Somebody wants the lock.
    pub(super) release: bool,
    /// The lock may have to be called after another watch, or be somebody else's.
    pub(super) rename: bool,
    requests: VecDeque<Asked>,
    /// What became of requests; `None` of those that wait.
    seen: BTreeMap<RequestId, Option<i32>>,
    /// Notifications that are to be answered, and with which result.
    pub(super) answers: VecDeque<(u64, i32)>,
    news: VecDeque<Message>,
    /// Nobody has the image any more.
    closing: bool,
    over: bool,
}

enum Job {
    Do(Asked),
    Release,
    Refresh,
    Close,
}

impl Jobs {
    /// Takes a request; one that was taken before is not done again.
    pub(super) fn add(&mut self, asked: Asked) -> std::result::Result<(), Errno> {
        if !supports(&asked.work) {
            // Whoever asks gets the lock then, and does it himself.
            return Err(Errno::OPNOTSUPP);
        }
        if let Some(request) = asked.request {
            match self.seen.get(&request) {
                Some(None) => return Ok(()),
                Some(Some(result)) => {
                    let result = *result;
                    self.tell(Message::Complete { request, result });
                    return Ok(());
                }
                None => {}
            }
        }
        if self.requests.len() >= MAX_REQUESTS {
            return Err(Errno::BUSY);
        }
        if let Some(request) = asked.request {
            // Of one client the older ones go first.
            while self.seen.len() >= MAX_SEEN {
                let Some(ended) = self.seen.iter().find(|(_, end)| end.is_some()) else { break };
                let ended = *ended.0;
                self.seen.remove(&ended);
            }
            self.seen.insert(request, None);
        }
        self.requests.push_back(asked);
        Ok(())
    }

    fn tell(&mut self, message: Message) {
        if self.news.len() < MAX_NEWS {
            self.news.push_back(message);
        }
    }

    /// Nobody has the image any more.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    fn next(&mut self, is_stale: bool) -> Option<Job> {
        if self.over {
            return None;
        }
        if let Some(asked) = self.requests.pop_front() {
            return Some(Job::Do(asked));
        }
        if self.closing {
            return Some(Job::Close);
        }
        if std::mem::take(&mut self.release) {
            return Some(Job::Release);
        }
        is_stale.then_some(Job::Refresh)
    }
}

impl super::State {
    /// Nobody has the image, and nothing is to be done any more.
    pub(super) fn is_over(&self) -> bool {
        self.jobs.over
    }
}

impl<S: ObjectStore> Shared<S> {
    /// Does what there is to do, as long as the image is open.
    pub(super) async fn work(&self) {
        let _ends = self.task();
        loop {
            let is_stale = self.is_stale.load(Ordering::Acquire) && self.check().is_ok();
            let job = self.state.lock().jobs.next(is_stale);
            let done = match job {
                None => {
                    self.jobs.notified().await;
                    continue;
                }
                Some(Job::Release) => {
                    self.again_if_failed(self.hand_over().await, |jobs| jobs.release = true)
                }
                Some(Job::Do(asked)) => {
                    self.do_for_another(asked).await;
                    Ok(())
                }
                Some(Job::Refresh) => self.refresh_or_fail().await,
                Some(Job::Close) => {
                    // One that cannot be given back is taken by the next one: its watch is gone.
                    let _left_behind = self.release().await;
                    self.state.lock().jobs.over = true;
                    self.fail(Errno::BADF);
                    self.answered.notify_one();
                    self.renames.notify_one();
                    self.news.notify_one();
                    return;
                }
            };
            if done.is_err() {
                sleep(RETRY).await;
            }
        }
    }

    /// Sees to it that the lock is called after the watch that is there, as long as the image is open.
    pub(super) async fn keep_name(&self) {
        let _ends = self.task();
        loop {
            let (is_due, over) = {
                let mut state = self.state.lock();
                (std::mem::take(&mut state.jobs.rename), state.is_over())
            };
            if over {
                return;
            }
            if !is_due {
                self.renames.notified().await;
                continue;
            }
            if self.again_if_failed(self.rename_lock().await, |jobs| jobs.rename = true).is_err() {
                sleep(RETRY).await;
            }
        }
    }

    fn again_if_failed(&self, done: Result<()>, again: impl FnOnce(&mut Jobs)) -> Result<()> {
        let mut state = self.state.lock();
        if done.is_err() && state.failed.is_none() {
            again(&mut state.jobs);
        }
        done
    }

    async fn refresh_or_fail(&self) -> Result<()> {
        // Whoever needs it at once reads it himself.
        let read = match self.alone_in_a_moment().await {
            Some(mut image) => self.refresh_held(&mut image).await,
            None => Err(Errno::BUSY.into()),
        };
        if read.as_ref().is_err_and(Error::is_not_found) {
            self.fail(Errno::NOENT);
        }
        read
    }

    async fn do_for_another(&self, asked: Asked) {
        let done = self.do_for(asked.request, &asked.work).await;
        let result = match &done {
            Ok(()) => 0,
            Err(error) => -error.errno().unwrap_or(Errno::IO).raw_os_error(),
        };
        self.announce(Message::HeaderUpdate);
        match asked.request {
            Some(request) => {
                self.state.lock().jobs.seen.insert(request, Some(result));
                self.announce(Message::Complete { request, result });
            }
            None => {
                self.state.lock().jobs.answers.push_back((asked.notify_id, result));
                self.answered.notify_one();
            }
        }
    }

    /// Has something told to all who watch.
    pub(super) fn announce(&self, message: Message) {
        self.state.lock().jobs.tell(message);
        self.news.notify_one();
    }

    /// Tells what there is to tell, as long as the image is open.
    pub(super) async fn spread(&self) {
        let _ends = self.task();
        loop {
            let (message, over) = {
                let mut state = self.state.lock();
                (state.jobs.news.pop_front(), state.is_over())
            };
            match message {
                Some(message) => self.tell_for_certain(&message).await,
                None if over => return,
                None => self.news.notified().await,
            }
        }
    }

    /// Tells something; the end of a request also again, until the one who waits for it has heard it.
    async fn tell_for_certain(&self, message: &Message) {
        for _ in 0..MAX_TELLINGS {
            let Message::Complete { request, .. } = message else {
                let _whoever_misses_it_looks = self.tell(message).await;
                return;
            };
            let he = (request.client.client, request.client.watch);
            match self.tell(message).await {
                Ok(answers) if !answers.silent.contains(&he) => return,
                Ok(_) => {}
                Err(_) if self.check().is_err() => return,
                Err(_) => sleep(RETRY).await,
            }
        }
    }
}
