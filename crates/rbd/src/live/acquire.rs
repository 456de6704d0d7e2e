//! Getting the lock, and giving it back.

use super::alone::ALONE_LIMIT;
use super::lock::{self, Owner};
use super::{NOTIFY_LIMIT, RETRY, Shared, State, has_lock};
use crate::error::{Error, Result};
use crate::format::notify::{Message, Response};
use crate::image::Image;
use crate::store::{NotifyAnswers, ObjectStore};
use blockyard_rados::encoding::Reader;
use rustix::io::Errno;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// An owner who has said that he gives the lock back, and does not, is asked again after this time (ceph: option
/// `client_notify_timeout`).
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// So often, within the time of a retry, an owner is looked for who watches no more.
const LOOKS: u32 = 5;
/// How long the one who has given the lock to another waits for him to take it, before he takes it again himself.
const COURTESY: Duration = Duration::from_secs(2);

impl<S: ObjectStore> Shared<S> {
    /// Gets the image for this one alone, and the lock with it.
    pub(super) async fn acquire(&self) -> Result<RwLockWriteGuard<'_, Image<S>>> {
        let end = Instant::now() + self.options.lock_limit;
        let _one = self.turn_to_acquire(end).await?;
        self.acquire_alone(end).await
    }

    /// Gets the lock, for one who needs the image not alone: if somebody before him has got it, he waits for no request.
    pub(super) async fn owned_after_others(&self) -> Result<RwLockReadGuard<'_, Image<S>>> {
        let end = Instant::now() + self.options.lock_limit;
        let _one = self.turn_to_acquire(end).await?;
        self.check()?;
        let image = self.image.read().await;
        if image.is_owner() && (self.is_current(&image) || self.keeps_header(&image)) {
            return Ok(image);
        }
        drop(image);
        Ok(self.acquire_alone(end).await?.downgrade())
    }

    /// One at a time gets the lock.
    async fn turn_to_acquire(&self, end: Instant) -> Result<MutexGuard<'_, ()>> {
        let late = || Error::answer(Errno::TIMEDOUT).at("waiting for others who get the lock");
        timeout_at(end, self.acquiring.lock()).await.map_err(|_| late())
    }

    /// The same as [`acquire`](Self::acquire), of the one whose turn it is.
    async fn acquire_alone(&self, end: Instant) -> Result<RwLockWriteGuard<'_, Image<S>>> {
        loop {
            self.check()?;
            let mut image = self.alone_until(Some(end)).await?;
            self.refresh_held(&mut image).await?;
            if image.is_owner() {
                return Ok(image);
            }
            if !has_lock(&image) {
                image.own().await?;
                self.tell_status(&image);
                return Ok(image);
            }
            drop(image);
            let cookie = self.take(end).await?;
            if let Some(image) = self.own(&cookie, end).await? {
                return Ok(image);
            }
        }
    }

    /// Has the lock: is the image's owner, unless the watch is another one by now.
    async fn own(
        &self,
        cookie: &str,
        end: Instant,
    ) -> Result<Option<RwLockWriteGuard<'_, Image<S>>>> {
        let mut image = self.alone_until(Some(end)).await?;
        if self.state.lock().held.as_deref() != Some(cookie) {
            return Ok(None);
        }
        let owned = self.note(image.own().await);
        if let Err(error) = owned {
            drop(image);
            let _given_back = self.release().await;
            return Err(error);
        }
        self.tell_status(&image);
        self.announce(Message::AcquiredLock(self.me()));
        Ok(Some(image))
    }

    /// Takes the lock, when nobody else has it any more: what it is called.
    async fn take(&self, end: Instant) -> Result<String> {
        loop {
            self.check()?;
            let mut heard = self.heard.subscribe();
            let courtesy = self.state.lock().courtesy();
            if let Some(courtesy) = courtesy {
                self.until_heard(&mut heard, end, courtesy, None).await?;
                continue;
            }
            let Some(watch) = self.state.lock().watch else {
                self.until_heard(&mut heard, end, RETRY, None).await?;
                continue;
            };
            let cookie = lock::cookie(watch);
            if self.take_as(&cookie).await? {
                return Ok(cookie);
            }
            if let Some(owner) = self.note(lock::owner(&self.store, &self.header).await)? {
                self.deal_with(&owner, &mut heard, end).await?;
            }
        }
    }

    /// Takes the lock, if nobody else has it.
    async fn take_as(&self, cookie: &str) -> Result<bool> {
        let _nobody_renames_it = self.naming.lock().await;
        // Noted first: if its answer is lost, it is given back all the same.
        let before = self.state.lock().held.replace(cookie.to_owned());
        if let Some(before) = before.filter(|before| before != cookie) {
            // Of an earlier watch, which was not given back for certain.
            self.note(lock::give_back(&self.store, &self.header, &before).await)?;
        }
        let is_taken = self.note(lock::take(&self.store, &self.header, cookie).await)?;
        let mut state = self.state.lock();
        if !is_taken {
            state.forget_lock(cookie);
            return Ok(false);
        }
        state.is_taken = true;
        // A watch that came before the name was noted did not find it.
        if state.watch.is_some_and(|watch| lock::cookie(watch) != cookie) {
            state.jobs.rename = true;
            drop(state);
            self.renames.notify_one();
        }
        Ok(true)
    }

    /// Somebody else has the lock: waits until he has given it back, if he lives, else takes it from him.
    async fn deal_with(
        &self,
        owner: &Owner,
        heard: &mut Receiver<u64>,
        end: Instant,
    ) -> Result<()> {
        let dead_self = self.options.dead_self.as_ref();
        let is_dead_self = dead_self.is_some_and(|dead| dead.client.client == owner.client.client);
        let store = &self.store;
        if is_dead_self {
            return self.take_from(owner, end).await;
        }
        if !self.is_watching(owner, end).await? {
            return self.take_from(owner, end).await;
        }
        let answers = self.ask_for_lock().await?;
        let retry = match response(&answers) {
            // Whoever he is by now, he knows nothing of a lock that is called after a watch that is gone.
            None if denies(&answers, owner)
                && !self.note(lock::is_alive(store, &self.header, owner).await)? =>
            {
                return self.take_from(owner, end).await;
            }
            Some(0) => ASK_AGAIN,
            Some(result) if result == -Errno::ROFS.raw_os_error() => {
                let error = Error::answer(Errno::ROFS);
                return Err(error.at(format_args!("{owner} does not give the lock back")));
            }
            _ => RETRY,
        };
        self.until_heard(heard, end, retry, Some(owner)).await
    }

    /// Whether an owner watches the image: not always with the watch that his lock is called after. One who has lost that has
    /// another one soon, and calls the lock after it when what is under way has ended.
    async fn is_watching(&self, owner: &Owner, end: Instant) -> Result<bool> {
        let client = owner.client.client;
        for _ in 0..LOOKS {
            let watchers = self.note(lock::watchers(&self.store, &self.header).await)?;
            if watchers.iter().any(|watcher| watcher.client == client) {
                return Ok(true);
            }
            self.wait(end, RETRY / LOOKS, Some(owner)).await?;
        }
        Ok(false)
    }

    /// Takes the lock from somebody who is dead: he is kept out first.
    async fn take_from(&self, owner: &Owner, end: Instant) -> Result<()> {
        // Somebody else may have done so, and live.
        let now = self.note(lock::owner(&self.store, &self.header).await)?;
        if now.as_ref() != Some(owner) {
            return Ok(());
        }
        // What this client itself has left is not kept out: its requests are done in order.
        if owner.client.client != self.store.caller().client {
            match self.note(self.store.fence(&owner.client).await) {
                // He does live.
                Err(error) if error.errno() == Some(Errno::BUSY) => {
                    return self.wait(end, RETRY, Some(owner)).await;
                }
                fenced => fenced?,
            }
        }
        self.note(lock::break_it(&self.store, &self.header, owner).await)
    }

    /// Asks for the lock: what those say who watch the image.
    async fn ask_for_lock(&self) -> Result<NotifyAnswers> {
        let ask = Message::RequestLock { client: self.me(), force: false };
        let limit = 2 * NOTIFY_LIMIT;
        // The store waits for answers itself; one that does not come back is no reason to hang.
        match timeout(limit, self.tell(&ask)).await {
            Ok(Err(error)) if error.errno() == Some(Errno::TIMEDOUT) => {
                Ok(NotifyAnswers::default())
            }
            Ok(answers) => answers,
            Err(_) => Ok(NotifyAnswers::default()),
        }
    }

    /// Waits until something is heard, or for a while.
    async fn until_heard(
        &self,
        heard: &mut Receiver<u64>,
        end: Instant,
        retry: Duration,
        owner: Option<&Owner>,
    ) -> Result<()> {
        let until = end.min(Instant::now() + retry);
        let _heard_or_not = timeout_at(until, heard.changed()).await;
        in_time(end, owner)
    }

    /// Waits for a while.
    async fn wait(&self, end: Instant, time: Duration, owner: Option<&Owner>) -> Result<()> {
        sleep_until(end.min(Instant::now() + time)).await;
        in_time(end, owner)
    }

    /// Gives the lock to somebody who has asked for it. One who is getting it at this moment has it for what he wanted it for,
    /// and takes it again only when the other one has had it, who hears of it later than he could take it.
    pub(super) async fn hand_over(&self) -> Result<()> {
        let _nobody_takes_it = self.acquiring.lock().await;
        {
            let mut state = self.state.lock();
            if state.held.is_none() {
                return Ok(());
            }
            state.yields_until = Some(Instant::now() + COURTESY);
        }
        self.release_until(Some(Instant::now() + ALONE_LIMIT)).await
    }

    /// Gives the lock back: what is under way ends first, and is durable.
    pub(super) async fn release(&self) -> Result<()> {
        self.release_until(None).await
    }

    async fn release_until(&self, end: Option<Instant>) -> Result<()> {
        let mut image = self.alone_until(end).await?;
        if self.state.lock().held.is_none() {
            return Ok(());
        }
        if image.is_owner() {
            self.note(image.flush().await)?;
            image.disown();
            self.tell_status(&image);
        }
        {
            let _nobody_renames_it = self.naming.lock().await;
            let Some(cookie) = self.state.lock().held.clone() else { return Ok(()) };
            self.note(lock::give_back(&self.store, &self.header, &cookie).await)?;
            self.state.lock().forget_lock(&cookie);
        }
        drop(image);
        self.announce(Message::ReleasedLock(self.me()));
        Ok(())
    }

    /// Calls the lock after the watch that is there, whatever is under way: whose lock is called after one that is gone is
    /// taken for dead by Ceph's clients. If the lock is somebody else's, the image is not owned any more.
    pub(super) async fn rename_lock(&self) -> Result<()> {
        if self.keeps_lock(false).await? {
            return Ok(());
        }
        // What is under way cannot be taken back.
        let mut image = self.image.write().await;
        if !self.keeps_lock(true).await? {
            image.disown();
            self.tell_status(&image);
        }
        Ok(())
    }

    /// Whether the lock, if this one holds it, is its own, and is called after the watch that is there; one that is not is
    /// forgotten, if `forgets`.
    async fn keeps_lock(&self, forgets: bool) -> Result<bool> {
        let _nobody_else_does = self.naming.lock().await;
        let (held, watch) = {
            let state = self.state.lock();
            (state.held.clone(), state.watch)
        };
        let (Some(held), Some(watch)) = (held, watch) else { return Ok(true) };
        let cookie = lock::cookie(watch);
        let is_own = match held == cookie {
            true => self.note(lock::is_own(&self.store, &self.header, &cookie).await)?,
            false => self.note(lock::rename(&self.store, &self.header, &held, &cookie).await)?,
        };
        let mut state = self.state.lock();
        match is_own {
            true => state.held = Some(cookie),
            false if forgets => state.forget_lock(&held),
            false => {}
        }
        Ok(is_own)
    }
}

impl State {
    /// How long somebody else may still take the lock first.
    fn courtesy(&mut self) -> Option<Duration> {
        let until = self.yields_until?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.yields_until = None;
            return None;
        }
        Some(left)
    }

    /// The lock is given back, or somebody else's.
    fn forget_lock(&mut self, cookie: &str) {
        if self.held.take_if(|held| held == cookie).is_some() {
            self.is_taken = false;
        }
    }
}

/// What the owner of the lock says, if he does.
fn response(answers: &NotifyAnswers) -> Option<i32> {
    let read = |answer| Reader::new("reading an answer", answer).get::<Response>().ok();
    lock::answers(answers).find_map(|answer| read(answer)).map(|answer| answer.result)
}

/// Whether an owner's client has heard, and says nothing: it has no lock that it knows of.
fn denies(answers: &NotifyAnswers, owner: &Owner) -> bool {
    let Ok(number) = u64::try_from(owner.client.client.number) else { return false };
    answers.answered.iter().any(|((client, _), _)| *client == number)
        && answers.silent.iter().all(|(client, _)| *client != number)
}

fn in_time(end: Instant, owner: Option<&Owner>) -> Result<()> {
    if Instant::now() < end {
        return Ok(());
    }
    let error = Error::answer(Errno::TIMEDOUT);
    Err(match owner {
        Some(owner) => error.at(format_args!("waiting for the lock, which {owner} has")),
        None => error.at("waiting for a watch on the image"),
    })
}
