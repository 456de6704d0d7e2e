//! Images that several have open: under their lock, with a watch on their header.
//!
//! Whoever writes has the lock of the image, and gives it back when somebody else asks for it: what is under way ends first,
//! and is flushed. A lock whose owner is dead is broken when he is kept out. The owner does what others want done to the
//! image (snapshots, another size), and everybody hears when the header has changed, and reads it again.
//!
//! The words and the order of steps are librbd's (ceph: `src/librbd/ImageWatcher.cc`, `src/librbd/managed_lock`), so that an
//! image is shared with Ceph's own clients.
//!
//! Four tasks of the opener's runtime belong to an image: one hears and answers at once (`listen.rs`), one does what that
//! brings, as it may have to wait for I/O to end, one sees to the name of the lock, which waits for nothing, and one tells
//! others (`jobs.rs`).

mod acquire;
mod alone;
mod beside;
mod jobs;
mod listen;
mod lock;
mod locks;
mod maintain;
mod removal;
mod sweep;

#[cfg(test)]
mod tests;

pub use lock::{Owner, owner, watchers};
pub use locks::ObjectLocks;
pub use removal::{remove, remove_from_trash};

use crate::error::{Error, Result};
use crate::format::notify::{ClientId, Message, RequestId};
use crate::format::{Features, names};
use crate::image::Image;
use crate::store::{NotifyAnswers, ObjectName, ObjectStore};
use blockyard_rados::encoding::encoded;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedRwLockWriteGuard, RwLock, RwLockReadGuard, watch};
use tokio::time::{Instant, timeout};

/// How long those who are told something have time to answer (ceph: `src/librbd/watcher/Notifier.cc`, `NOTIFY_TIMEOUT`).
const NOTIFY_LIMIT: Duration = Duration::from_secs(5);
/// After this time something that did not work is tried again (`ImageWatcher.cc`, `RETRY_DELAY_SECONDS`).
const RETRY: Duration = Duration::from_secs(1);
/// Those of an image: `listen.rs`, and three of `jobs.rs`.
const TASKS: usize = 4;
/// How long the end of an image waits for others to hear of it.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who had the image in a life before this one, which has ended: his lock is taken over at once, whatever it is called by
    /// now.
    pub dead_self: Option<Owner>,
    /// How long to wait for the lock.
    pub lock_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { dead_self: None, lock_limit: Duration::from_secs(300) }
    }
}

/// What is known of an open image, and changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes.
    pub size: u64,
    /// Whether it has its lock, or needs none.
    pub is_owner: bool,
    /// The client is kept out of the cluster: nothing more can be done, but to open the image as another client.
    pub is_fenced: bool,
}

/// An open image. It is closed by [`close`](Self::close); one that is dropped closes in the background.
pub struct LiveImage<S: ObjectStore> {
    shared: Arc<Shared<S>>,
}

/// What the tasks of an image share with it.
struct Shared<S: ObjectStore> {
    store: S,
    header: ObjectName,
    options: Options,
    /// Whoever reads or writes reads this; whoever changes the header, or who owns the image, writes it, and has the image
    /// alone.
    image: Arc<RwLock<Image<S>>>,
    locks: ObjectLocks,
    /// The header has changed: it is read again before anything else.
    is_stale: AtomicBool,
    /// Nothing more can be done; the state says why.
    has_failed: AtomicBool,
    /// Held by the one who gets the lock.
    acquiring: tokio::sync::Mutex<()>,
    /// Held by the one who changes whether the lock is held, or what it is called. He waits for the store, and for nobody who
    /// has the image.
    naming: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Wakes the task that does things.
    jobs: Notify,
    /// Wakes the one that sees to the name of the lock.
    renames: Notify,
    /// Wakes the one that listens: something is to be answered.
    answered: Notify,
    /// Wakes the one that tells others.
    news: Notify,
    /// Counts what was heard.
    heard: watch::Sender<u64>,
    status: watch::Sender<Status>,
    requests: AtomicU64,
    /// How many of the image's tasks go on.
    tasks: watch::Sender<usize>,
}

/// A task of an image goes on as long as this lives.
struct Task<'a>(&'a watch::Sender<usize>);

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// What is behind a lock that is held for a moment.
#[derive(Default)]
struct State {
    /// The watch that is set.
    watch: Option<u64>,
    /// What the lock of the image is called, from when it was taken until it is given back for certain.
    held: Option<String>,
    /// It was taken: this is the owner.
    is_taken: bool,
    /// Nothing more can be done, for this reason.
    failed: Option<Errno>,
    /// Somebody else was given the lock, and is to take it before this one does again; but not for ever.
    yields_until: Option<Instant>,
    jobs: jobs::Jobs,
    /// The ends of requests that were made of the owner, by their numbers, of those that are waited for.
    completed: BTreeMap<u64, Option<i32>>,
}

impl<S: ObjectStore> LiveImage<S> {
    /// Opens an image. Nobody is asked for its lock before something is written.
    ///
    /// # Errors
    /// As [`Image::open`]; it cannot be watched.
    pub async fn open(store: &S, name: &str, options: Options) -> Result<Self> {
        let image = Image::open(store, name).await?;
        Self::with(store, image, options).await
    }

    /// The same of an image that is open already.
    async fn with(store: &S, image: Image<S>, options: Options) -> Result<Self> {
        let status = Status { size: image.size(), is_owner: image.is_owner(), is_fenced: false };
        let header = names::header(image.id());
        // Heard before it is read: nothing falls in between.
        let watch = store.watch(&header).await?;
        let shared = Arc::new(Shared {
            store: store.clone(),
            header,
            options,
            image: Arc::new(RwLock::new(image)),
            locks: ObjectLocks::default(),
            is_stale: AtomicBool::new(true),
            has_failed: AtomicBool::new(false),
            acquiring: tokio::sync::Mutex::new(()),
            naming: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
            jobs: Notify::new(),
            renames: Notify::new(),
            answered: Notify::new(),
            news: Notify::new(),
            heard: watch::Sender::new(0),
            status: watch::Sender::new(status),
            requests: AtomicU64::new(0),
            tasks: watch::Sender::new(TASKS),
        });
        tokio::spawn(listen::listen(Arc::clone(&shared), watch));
        let (jobs, names, news) = (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared));
        tokio::spawn(async move { jobs.work().await });
        tokio::spawn(async move { names.keep_name().await });
        tokio::spawn(async move { news.spread().await });
        let live = Self { shared };
        drop(live.shared.current().await?);
        Ok(live)
    }

    /// The image, to be looked at: what changes it waits.
    ///
    /// # Errors
    /// The header has changed, and cannot be read; the client is fenced.
    pub async fn image(&self) -> Result<RwLockReadGuard<'_, Image<S>>> {
        self.shared.current().await
    }

    /// What is known of it now, and later.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Who this is, as the owner of the lock: to be written down by whoever wants to take over from his dead self.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let cookie = self.shared.state.lock().held.clone()?;
        Some(Owner { client: self.shared.store.caller(), cookie })
    }

    /// Reads a range.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let image = self.shared.current().await?;
        self.shared.note(image.read(offset, length).await)
    }

    /// Writes bytes. One who gives this up before its end does not know whether they are written, now or later: he is to close
    /// the image before somebody else has it.
    ///
    /// # Errors
    /// As [`Image::write`]; ETIMEDOUT if somebody else has the lock and does not give it back in time; EROFS if he never does.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        let image = self.shared.owned().await?;
        self.shared.note(self.shared.locks.write(&image, offset, data).await)
    }

    /// Makes a range zero, and gives its space back.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let image = self.shared.owned().await?;
        self.shared.note(self.shared.locks.zero(&image, offset, length).await)
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn flush(&self) -> Result<()> {
        let image = self.shared.current().await?;
        self.shared.note(image.flush().await)
    }

    /// Gets the lock, so that the first write need not wait for it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn acquire(&self) -> Result<()> {
        self.shared.owned().await.map(|_| ())
    }

    /// Gives the lock back, if it is held; the next write gets it again.
    ///
    /// # Errors
    /// What was written cannot be flushed; those of the store.
    pub async fn release(&self) -> Result<()> {
        self.shared.release().await
    }

    /// The image, which may be written, beside others who hold it, as long as this is held. What changes its objects takes their
    /// [`locks`](Self::locks).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn owned(&self) -> Result<RwLockReadGuard<'_, Image<S>>> {
        self.shared.owned().await
    }

    /// The locks of its objects.
    #[must_use]
    pub fn locks(&self) -> &ObjectLocks {
        &self.shared.locks
    }

    /// The image for this one alone, which may be written: for what has no method here. Nobody else gets the lock meanwhile. If
    /// the header was changed, others are to be [told](Self::tell_change) of it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn alone(&self) -> Result<OwnedRwLockWriteGuard<Image<S>>> {
        loop {
            drop(self.shared.acquire().await?);
            let image = || Arc::clone(&self.shared.image).write_owned();
            let image = self.shared.in_moments(None, image).await?;
            // It may have been given back in between.
            if image.is_owner() && self.shared.is_current(&image) {
                return Ok(image);
            }
        }
    }

    /// Tells others, and those who look at the status, that the header has changed.
    pub async fn tell_change(&self) {
        self.shared.tell_status(&*self.shared.image.read().await);
        let _whoever_misses_it_looks = self.shared.tell(&Message::HeaderUpdate).await;
    }

    /// Gives the lock back and ends the watch; the image is not used after that.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub async fn close(&self) -> Result<()> {
        let released = self.shared.release().await;
        self.shared.state.lock().jobs.close();
        self.shared.jobs.notify_one();
        let mut tasks = self.shared.tasks.subscribe();
        // What is not told in this time is found out by those whom it concerns.
        let _ended = timeout(CLOSE_LIMIT, tasks.wait_for(|count| *count == 0)).await;
        released
    }
}

impl<S: ObjectStore> Drop for LiveImage<S> {
    fn drop(&mut self) {
        self.shared.state.lock().jobs.close();
        self.shared.jobs.notify_one();
    }
}

impl<S: ObjectStore> Shared<S> {
    /// Held by each of the tasks.
    fn task(&self) -> Task<'_> {
        Task(&self.tasks)
    }

    /// This one, as the others know it.
    fn me(&self) -> ClientId {
        let client = u64::try_from(self.store.caller().client.number).unwrap_or_default();
        ClientId { client, watch: self.state.lock().watch.unwrap_or_default() }
    }

    fn next_request(&self) -> RequestId {
        RequestId { client: self.me(), number: self.requests.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Tells all who watch.
    async fn tell(&self, message: &Message) -> Result<NotifyAnswers> {
        let payload = encoded(message).into();
        self.note(self.store.notify(&self.header, payload, NOTIFY_LIMIT).await)
    }

    /// Nothing more can be done, once the cluster has said so.
    fn check(&self) -> Result<()> {
        if !self.has_failed.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.state.lock().failed {
            Some(errno) => {
                let why = match errno {
                    Errno::SHUTDOWN => "the cluster keeps this client out",
                    Errno::BADF => "the image is closed",
                    _ => "the image is gone",
                };
                Err(Error::answer(errno).at(why))
            }
            None => Ok(()),
        }
    }

    fn fail(&self, errno: Errno) {
        self.state.lock().failed.get_or_insert(errno);
        self.has_failed.store(true, Ordering::Release);
        self.status.send_if_modified(|status| {
            let is_fenced = errno == Errno::SHUTDOWN;
            let before = *status;
            *status =
                Status { is_owner: false, is_fenced: is_fenced || status.is_fenced, ..before };
            before != *status
        });
        self.bump();
        self.jobs.notify_one();
    }

    /// Looks whether the cluster has said that the client is kept out (EBLOCKLISTED has the number of ESHUTDOWN).
    fn note<T>(&self, done: Result<T>) -> Result<T> {
        if let Err(error) = &done
            && error.errno() == Some(Errno::SHUTDOWN)
        {
            self.fail(Errno::SHUTDOWN);
        }
        done
    }

    /// Something was heard: those who wait for it look again.
    fn bump(&self) {
        self.heard.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Says what the image is now.
    fn tell_status(&self, image: &Image<S>) {
        self.status.send_if_modified(|status| {
            let is_owner = image.is_owner() && !status.is_fenced;
            let now = Status { size: image.size(), is_owner, ..*status };
            let before = std::mem::replace(status, now);
            before != now
        });
    }

    /// The image, whose header is the newest that was heard of, or this one's own affair.
    async fn current(&self) -> Result<RwLockReadGuard<'_, Image<S>>> {
        loop {
            self.check()?;
            let image = self.image.read().await;
            if self.is_current(&image) || self.keeps_header(&image) {
                return Ok(image);
            }
            drop(image);
            self.refresh().await?;
        }
    }

    /// The image, which is owned as long as this is held.
    async fn owned(&self) -> Result<RwLockReadGuard<'_, Image<S>>> {
        let image = self.current().await?;
        if image.is_owner() {
            return Ok(image);
        }
        drop(image);
        self.owned_after_others().await
    }

    /// Whether the header is the newest that was heard of, and known: a change that has failed leaves it unknown.
    fn is_current(&self, image: &Image<S>) -> bool {
        !self.is_stale.load(Ordering::Acquire) && !image.is_stale()
    }

    /// Whether what matters of the header only changes when this one changes it, as it has the lock: what it may have missed is
    /// read when the image can be had alone for that (`jobs.rs`), and nobody waits until then.
    fn keeps_header(&self, image: &Image<S>) -> bool {
        image.is_owner() && !image.is_stale() && has_lock(image) && self.state.lock().is_taken
    }

    /// Reads the header again, if it has changed.
    async fn refresh(&self) -> Result<()> {
        let mut image = self.alone_until(None).await?;
        self.refresh_held(&mut image).await
    }

    async fn refresh_held(&self, image: &mut Image<S>) -> Result<()> {
        // What comes from here on is seen by looking again.
        if !self.is_stale.swap(false, Ordering::AcqRel) && !image.is_stale() {
            return Ok(());
        }
        let read = self.note(image.refresh().await);
        if read.is_err() {
            self.is_stale.store(true, Ordering::Release);
        } else if image.is_owner() && has_lock(image) && self.state.lock().held.is_none() {
            // It needed no lock, and was given the feature: another one may have the lock, and a map that this one does not keep.
            image.disown();
        }
        self.tell_status(image);
        read
    }
}

/// Whether an image is written under a lock.
fn has_lock<S: ObjectStore>(image: &Image<S>) -> bool {
    image.features().contains(Features::EXCLUSIVE_LOCK)
}
